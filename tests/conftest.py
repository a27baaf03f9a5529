"""Fixtures that several test modules use."""

import os
from pathlib import Path

import nbformat
import pytest

# Before torch is loaded: on a busy machine two threads of one process can be many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data():
    """Folder with real images and weights: `$REAL_DATA`, or `shared/data` beside the repository."""
    folder = Path(os.environ.get("REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: neither $REAL_DATA nor ../shared/data is a folder")
    return folder


@pytest.fixture(scope="module")
def trained_study(tmp_path_factory):
    """`trained_study(folds=None, **changes)`: settings of a tiny study whose networks of these folds are trained."""

    def make(folds=None, **changes):
        from helpers.models import cross_validation as cv
        from helpers.settings import get_settings

        made = get_settings(
            "quick", results=tmp_path_factory.mktemp("results"), architectures="mobilenet_v2", epochs=1, n_folds=3,
            weights="random", device="cpu", workers=0, **changes,
        )  # fmt: skip
        cv.train_folds(made, folds=folds)
        return made

    return make


@pytest.fixture
def write_notebook():
    """`write_notebook(path, *cells)`: cells are code, Markdown (beginning with "# "), or ("parameters", code)."""

    def write(path, *cells):
        made = []
        for number, cell in enumerate(cells):
            tag, source = cell if isinstance(cell, tuple) else (None, cell)
            new = nbformat.v4.new_markdown_cell if source.startswith("# ") else nbformat.v4.new_code_cell
            made.append(new(source, id=f"cell-{number}", metadata={"tags": [tag]} if tag else {}))
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel}), path)
        return path

    return write
