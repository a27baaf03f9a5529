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
