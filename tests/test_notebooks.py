"""The notebooks: how a lesson is built, one rule a function, and what it does with other parameters.

That the stored outputs still come out is checked by nbval, which runs every notebook.
"""

import ast
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import nibabel
import numpy as np
import pandas as pd
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from helpers import pages, run
from helpers.data.chest_ct import phantom_volumes
from helpers.settings import ROOT

LESSONS = run.find() if list(run.NOTEBOOKS.glob("*.ipynb")) else []
KEYS = set(re.findall(r"^@\w+\{([\w-]+),", (ROOT / "references.bib").read_text(encoding="utf-8"), re.MULTILINE))
RULES = {}

CELLS, CODE_LINES, OUTPUT_LINES, CELL_LINES, FUNCTION_LINES = 40, 250, 100, 30, 10
CHECKED = "nbval-check-output"
# Lessons without a checked output, with the reason.
NOTHING_TO_CHECK = {}
ENDING = ["Summary", "Exercises", "What next", "References"]
PATH = r"(?<![\w.~:/<-])/(?:home|root|tmp|Users|usr|opt|mnt|media|srv|var|work|workspace|content|private|data)/\w"
UNEVEN = r"jet|rainbow|gist_rainbow|nipy_spectral|gist_ncar|hsv"


def rule(check):
    """Register `check(lesson)`, which yields one sentence per thing to mend."""
    RULES[check.__name__] = check
    return check


def open_lesson(path, keys=KEYS):
    """What the rules look at: path, notebook, its code and Markdown cells, and the syntax tree of every code cell."""
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    trees = [ast.parse(TransformerManager().transform_cell(cell.source)) for cell in code]
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    outputs = [output for cell in code for output in cell.outputs]
    return SimpleNamespace(
        path=path, notebook=notebook, code=code, trees=trees, prose=prose, outputs=outputs, keys=keys
    )  # fmt: skip


def tags(cell):
    return cell.metadata.get("tags", [])


def text_of(output):
    """What an output shows as text."""
    return output.get("text", "") or output.get("data", {}).get("text/plain", "")


@rule
def header(lesson):
    first = lesson.notebook.cells[0]
    lines = [line.strip() for line in first.source.splitlines() if line.strip()]
    number = lesson.path.stem[:2]
    if first.cell_type != "markdown" or not lines or not re.match(rf"# {number} · \S", lines[0]):
        yield f"begins with a Markdown cell '# {number} · Title'"
        return
    if len(lines) < 2 or re.match(r"[*#\d-]", lines[1]):
        yield "the line below the title says what the reader will be able to do"
    parts = re.split(r"^\*\*(Objectives|Prerequisites|Time)\*\*", first.source, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    if list(found) != ["Objectives", "Prerequisites", "Time"]:
        yield "lines begin with **Objectives**, **Prerequisites** and **Time**, in this order"
        return
    if not 3 <= len(re.findall(r"^(?:\d+\.|[-*]) ", found["Objectives"], re.MULTILINE)) <= 5:
        yield "three to five objectives, as a list"
    if not re.search(r"\d", found["Time"]):
        yield "the time is a number, measured"


@rule
def opening(lesson):
    """Imports, parameters, start."""
    if len(lesson.code) < 3:
        yield "the code begins with three cells: imports, parameters, start"
        return
    imports = [node for node in lesson.trees[0].body if isinstance(node, (ast.Import, ast.ImportFrom))]
    magics = [node for node in lesson.trees[0].body if "get_ipython" in ast.unparse(node)]
    if not imports or len(imports) + len(magics) < len(lesson.trees[0].body):
        yield "the first code cell imports and does nothing else"
    names = [name for node in imports for name in imported(node)]
    others = [name for name in names if name not in sys.stdlib_module_names]
    if "helpers" not in others[:1]:
        yield "helpers is imported before every library, for it sets how OpenMP waits"
    for number, tree in enumerate(lesson.trees[1:], 2):
        if any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(tree)):
            yield f"code cell {number} imports: that belongs into the first code cell"
    tagged = [number for number, cell in enumerate(lesson.code, 1) if "parameters" in tags(cell)]
    if tagged != [2]:
        yield f"exactly the second code cell is tagged parameters, not {tagged}"
    try:
        run.parameters(lesson.notebook)
    except ValueError as error:
        yield str(error)
    if not any(isinstance(n, ast.Call) and ast.unparse(n.func).endswith("start") for n in ast.walk(lesson.trees[2])):
        yield "the third code cell calls start(settings), which seeds and prints versions"


def imported(node):
    """Top-level modules that an import statement names."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
    return [name.split(".")[0] for name in names]


@rule
def no_absolute_path(lesson):
    texts = [cell.source for cell in lesson.notebook.cells]
    texts += [text_of(output) for output in lesson.outputs]
    texts += [output.get("data", {}).get("text/html", "") for output in lesson.outputs]
    for text in texts:
        for match in re.finditer(rf"{PATH}|\b[A-Za-z]:\\+\w|{re.escape(str(ROOT))}", text):
            yield f"an absolute path: {text[match.start() : match.start() + 40]!r}"


@rule
def executed_in_one_run(lesson):
    for number, cell in enumerate(lesson.code, 1):
        if cell.execution_count != number:
            yield f"code cell {number} has the count {cell.execution_count}: run make update"
        if any(output.output_type == "error" for output in cell.outputs):
            yield f"code cell {number} stores an error"


@rule
def stored_clean(lesson):
    if pages.clean(lesson.notebook) != lesson.notebook:
        yield "timings, widgets or other traces of one run are stored: run make update"


@rule
def size(lesson):
    if len(lesson.notebook.cells) > CELLS:
        yield f"{len(lesson.notebook.cells)} cells, at most {CELLS}"
    lines = [line for cell in lesson.code for line in cell.source.splitlines() if line.strip()]
    if len(lines) > CODE_LINES:
        yield f"{len(lines)} lines of code, at most {CODE_LINES}"
    for number, (cell, tree) in enumerate(zip(lesson.code, lesson.trees, strict=True), 1):
        if len(cell.source.splitlines()) > CELL_LINES:
            yield f"code cell {number} does not fit a screen of {CELL_LINES} lines"
        for node in ast.walk(tree):
            long = isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
            if long:
                yield f"{node.name} is longer than {FUNCTION_LINES} lines: it belongs into helpers"
        if any(len(text_of(output).splitlines()) > OUTPUT_LINES for output in cell.outputs):
            yield f"code cell {number} prints more than {OUTPUT_LINES} lines"


@rule
def alt_text(lesson):
    for number, cell in enumerate(lesson.code, 1):
        for output in cell.outputs:
            alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
            if "image/png" in output.get("data", {}) and not alt.strip():
                yield f"code cell {number} draws a figure without alt text: use helpers.figures.show"
    shown = [*lesson.prose, *(output.get("data", {}).get("text/html", "") for output in lesson.outputs)]
    for text in shown:
        for picture in re.findall(r"<img\b[^>]*>|!\[\s*\]\([^)]*\)", text):
            if not re.search(r"\balt=[\"'][^\"']", picture):
                yield f"a picture without alt text: {picture[:60]}"


@rule
def even_colours(lesson):
    for number, cell in enumerate(lesson.code, 1):
        if re.search(rf"[\"'](?:{UNEVEN})(?:_r)?[\"']|\bcm\.(?:{UNEVEN})\b|COLORMAP_(?:JET|RAINBOW|HSV)", cell.source):
            yield f"code cell {number} uses a colour map that invents edges"
        if re.search(r"show_cam_on_image\((?![^)]*colormap)", cell.source):
            yield f"code cell {number}: show_cam_on_image draws in jet unless it is given a colormap"


@rule
def ending(lesson):
    headings = re.findall(r"^## +(.+?)\s*$", "\n".join(lesson.prose), re.MULTILINE)
    if headings[-len(ENDING) :] != ENDING:
        yield f"ends with the sections {', '.join(ENDING)}"


@rule
def checked_outputs(lesson):
    marked = [n for n, c in enumerate(lesson.code, 1) if CHECKED in tags(c) or "NBVAL_CHECK_OUTPUT" in c.source]
    if not marked and lesson.path.stem not in NOTHING_TO_CHECK:
        yield f"no cell is tagged {CHECKED}"
    for number in marked:
        if not any(text_of(output).strip() for output in lesson.code[number - 1].outputs):
            yield f"code cell {number} is to be checked and prints nothing"


@rule
def links(lesson):
    for target in re.findall(r"\]\(([^)\s]+)", "\n".join(lesson.prose)):
        file = target.split("#")[0]
        if file and not re.match(r"[a-z]+:", target) and not (lesson.path.parent / file).exists():
            yield f"a link to {target}, which is not there"


@rule
def citations(lesson):
    prose = "\n".join(lesson.prose)
    cited = {key for keys in re.findall(r"\[(@[^\]]+)\]", prose) for key in re.findall(r"@([\w-]+)", keys)}
    for key in sorted(cited - lesson.keys):
        yield f"[@{key}] is not in references.bib"
    for key in sorted(cited - set(re.findall(r"@([\w-]+)", prose.rpartition("## References")[2]))):
        yield f"[@{key}] is not listed under References"


@rule
def formulas(lesson):
    for formula in re.findall(r'<code class="formula">(.*?)</code>', pages.to_html(lesson.notebook, "")):
        yield f"a web page cannot show the formula {formula}"


def problems(lesson, rules=RULES):
    return [f"{name}: {problem}" for name in rules for problem in RULES[name](lesson)]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_keeps_every_rule(path):
    assert problems(open_lesson(path)) == []


def test_the_readme_lists_every_lesson():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\(notebooks/(\d\d_\w+)\.ipynb\)", readme) == [path.stem for path in LESSONS]


def rerun(tmp_path, number, **values):
    """Text of every output of a lesson that is executed with other parameters."""
    (path,) = run.find([number])
    row = run.execute(path, tmp_path / path.name, values, path.stem)
    assert row["status"] == "ok", row["error"]
    cells = nbformat.read(tmp_path / path.name, 4).cells
    return [text_of(output) for cell in cells for output in cell.get("outputs", [])]


def test_start_here_takes_other_parameters(tmp_path):
    texts = rerun(tmp_path, "00", SEED=1, IMAGES_PER_CLASS=4)
    everything = "\n".join(texts)
    assert "seed 1" in everything
    assert "images: (8, 3, 224, 224) in [0, 1]: True" in everything
    assert "per class: {'CG': 4, 'PS': 4}" in everything
    table = next(text for text in texts if "Hit Rate [95 %]" in text).splitlines()[1:]
    assert [row[:16].strip() for row in table] == [
        "skin", "ruler", "random map", "centre Gaussian", "edge map", "flat map",
    ]  # fmt: skip
    assert [("no value" in row, row.split()[-1]) for row in table[1:]] == [(False, "0")] * 4 + [(True, "4")]


SMALL = {"SEED": 1, "IMAGES_PER_CLASS": 10, "IMAGE_SIZE": 64, "EPOCHS": 1, "WEIGHTS": "random", "WORKERS": 0}


def test_prepare_ultrasound_takes_other_parameters(tmp_path):
    everything = "\n".join(rerun(tmp_path, "01", RESULTS=str(tmp_path), SEED=1, IMAGES_PER_CLASS=7))
    assert "seed 1" in everything
    assert re.search(r"\ball +28 +28 +28 +16\b", everything)


def test_train_five_folds_takes_other_parameters(tmp_path):
    values = SMALL | {"RESULTS": str(tmp_path), "TRANSFER_ARCHITECTURE": "mobilenet_v2"}
    texts = rerun(tmp_path, "02", ARCHITECTURES=["mobilenet_v2"], **values)
    everything = "\n".join(texts)
    assert "seed 1" in everything
    assert "40 images of 4 classes, shown to the networks at 64 x 64 pixels" in everything
    assert "5 to train: nothing there (5)" in everything
    assert "gain +0.00, 95 % interval [+0.00, +0.00], n = 5 folds" in everything
    assert "n = 40 test images per network, 5 folds, start: random" in everything
    table = pd.concat(map(pd.read_parquet, tmp_path.rglob("predictions.parquet")))
    assert len(table[table["part"] == "test"]) == 40
    assert not table.isna().any(axis=None)


@pytest.fixture(scope="module")
def shared_results(tmp_path_factory):
    """One folder for the lessons about methods, so that their network is trained once."""
    return str(tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("number", [f"{number:02d}" for number in range(3, 13)])
def test_a_method_takes_other_parameters(tmp_path, shared_results, number):
    everything = "\n".join(rerun(tmp_path, number, RESULTS=shared_results, ARCHITECTURE="googlenet", FOLD=2, **SMALL))
    assert "seed 1" in everything
    assert "8 test images (3, 64, 64)" in everything
    assert "googlenet, fold 2" in everything


def test_compare_methods_takes_other_parameters(tmp_path, shared_results):
    values = SMALL | {"RESULTS": shared_results, "ARCHITECTURES": ["mobilenet_v2", "googlenet"], "FOLD": 2}
    texts = rerun(tmp_path, "13", **values, WINDOW=60)
    everything = "\n".join(texts)
    assert "20 methods x networks, 4 images each" in everything
    assert "googlenet, fold 2, 8 test images" in everything
    (table,) = (text for text in texts if "method of another family" in text)
    assert len(table.splitlines()) == 1 + 10
    assert len(list(Path(shared_results).rglob("Score-CAM/*/fold-2-round-0"))) == 2


def test_break_grad_cam_takes_other_parameters(tmp_path):
    values = SMALL | {"RESULTS": str(tmp_path), "ARCHITECTURES": ["densenet201", "mobilenet_v2"], "FOLD": 2}
    values |= {"SPOT_NETWORKS": 2, "SPOT_IMAGES": 20, "MARKED_IMAGES": 10, "MARKED_EPOCHS": 1}
    everything = "\n".join(rerun(tmp_path, "14", **values))
    assert "seed 1" in everything
    assert "8 test images of fold 2" in everything
    assert "2 networks x 20 test images" in everything
    assert "mobilenet_v2, within 1e-5 of the largest logit: Grad-CAM True HiResCAM True" in everything
    assert "24 pictures with the ruler (Occlusion: 6)" in everything


def test_explain_photographs_takes_other_parameters(tmp_path):
    values = {"RESULTS": str(tmp_path), "SEED": 1, "N_IMAGES": 100, "EPOCHS": 1, "TEST_IMAGES": 12, "DELETED": 6}
    everything = "\n".join(rerun(tmp_path, "15", **values))
    assert "seed 1" in everything
    assert "measured: (12, 3, 64, 64)" in everything
    assert "small-flatten-random-64px: trained now (nothing there)" in everything


def test_prepare_chest_ct_takes_own_ct(tmp_path):
    chests, folder = phantom_volumes(3, seed=7), tmp_path / "own"
    folder.mkdir()
    for i, name in enumerate("abc"):
        image = nibabel.Nifti1Image(chests.volume(i).transpose(2, 1, 0), np.diag([-4, -4, -4, 1]))
        nibabel.save(image, folder / f"{name}.nii.gz")
    (folder / "labels.csv").write_text(
        "name,nodule*right_lung,nodule*left_lung,calcification*aorta\na,1,0,1\nb,0,1,0\nc,0,0,0\n"
    )
    values = {"VOLUMES": str(folder), "SEED": 1, "CONFOUNDED": 0.0, "GRID": 14, "TRAIN": 3, "VALID": 1, "TEST": 2}
    everything = "\n".join(rerun(tmp_path, "20", **values))
    assert "seed 1" in everything
    assert "own: all 3 volumes" in everything
    assert "a: (93, 92, 92) int16, 4.0 mm" in everything
    assert "allowed: (2, 27, 14, 14)" in everything
    assert "6 phantoms; recipe failed in" in everything


def test_train_with_mask_loss_takes_other_parameters(tmp_path):
    values = {"RESULTS": str(tmp_path), "SEED": 1, "TRAIN": 8, "VALID": 6, "TEST": 8, "CONFOUNDED": 0.5, "WORKERS": 0}
    values |= {"EPOCHS": 1, "LAMBDAS": [0, 3], "SEEDS": 1, "INSPECTED": 1}
    everything = "\n".join(rerun(tmp_path, "21", **values))
    assert "seed 1" in everything
    assert "0 of 2 networks found, 2 to train" in everything
    assert re.search(r"nodule +\d+ +\d+ +\d+ +\d+", everything)
    assert "with less without, seed 1" in everything
    assert "1 test volumes, " in everything
    assert len(list(tmp_path.rglob("outputs-clean.npz"))) >= 2


@pytest.mark.parametrize(
    ("number", "more", "expected"),
    [
        ("16", {}, ["40 of 40 images, 20 groups, have a layer map; 64 pixels a side", "Grad-CAM of googlenet "]),
        (
            "17",
            {},
            [
                "40 of 40 images have a layer map, in 20 groups; 64 x 64 pixels",
                "Grad-CAM of googlenet, 40 images",
            ],
        ),
        (
            "18",
            {"METHODS": ["Grad-CAM"], "PER_CLASS": 1, "FEW": 1},
            [
                "trust on googlenet, 20 images",
                "googlenet, darkened, 4 images",
                "flat maps have no drop, and are counted: True",
            ],
        ),
        (
            "19",
            {"PER_CLASS": 1, "MARKED_IMAGES": 6, "MARKED_EPOCHS": 1},
            [
                "per network and map 40 images, 20 of them covered",
                "phantoms/reports/googlenet.html",
                "every page is written: True",
            ],
        ),
    ],
)
def test_an_evaluation_takes_other_parameters(tmp_path, shared_results, number, more, expected):
    values = SMALL | {"RESULTS": shared_results, "ARCHITECTURES": ["googlenet"]} | more
    everything = "\n".join(rerun(tmp_path, number, **values))
    assert "seed 1" in everything
    assert [text for text in expected if text not in everything] == []
    assert "densenet201" not in everything


# A lesson that keeps every rule, and for every rule a change that breaks it.

TEXT = """# 03 · Toy
You will be able to say what a toy is.

**Objectives**
1. one
2. two
3. three

**Prerequisites**: [02 · Before](02_before.ipynb)

**Time**: 2 minutes
"""
END = (
    "## Summary\n\nDone.\n\n## Exercises\n\n## What next\n\n[04](04_after.ipynb)\n\n## References\n\n- [@key] Somebody."
)


def good():
    """Cells of a lesson as it should be."""
    new = nbformat.v4
    picture = new.new_output("display_data", data={"image/png": "AA=="}, metadata={"image/png": {"alt": "A line."}})
    printed = new.new_output("stream", text="accuracy >= 0.90: True\n")
    return [
        new.new_markdown_cell(TEXT),
        new.new_code_cell("import json\n\nfrom helpers.settings import start\nimport torch"),
        new.new_code_cell('PROFILE = "quick"\nSEED = None', metadata={"tags": ["parameters"]}),
        new.new_code_cell("start(get_settings(PROFILE))"),
        new.new_markdown_cell("## Data\n\nIt is $x^2$ [@key]."),
        new.new_code_cell("print(1)", metadata={"tags": [CHECKED]}, outputs=[printed]),
        new.new_code_cell('draw(cmap="magma")', outputs=[picture]),
        new.new_markdown_cell(END),
    ]


@pytest.fixture
def lesson(tmp_path):
    """`lesson(cells)`: those cells as `03_toy.ipynb`, beside the two lessons that it links to."""

    def make(cells):
        for number, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), 1):
            cell.execution_count = cell.execution_count or number
        language = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
        for name in ("02_before", "03_toy", "04_after"):
            nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=language), tmp_path / f"{name}.ipynb")
        return open_lesson(tmp_path / "03_toy.ipynb", keys={"key"})

    return make


def replacing(cell, old, new):
    def change(cells):
        assert old in cells[cell].source
        cells[cell].source = cells[cell].source.replace(old, new)

    return change


def adding(source, **more):
    def change(cells):
        cells.insert(-1, nbformat.v4.new_code_cell(source, **more))

    return change


def printing(text):
    return adding("pass", outputs=[nbformat.v4.new_output("stream", text=text)])


def drawing(data, metadata):
    return adding("pass", outputs=[nbformat.v4.new_output("display_data", data=data, metadata=metadata)])


def counting(cells):
    cells[-2].execution_count = 9


def many_cells(cells):
    cells[-1:-1] = [nbformat.v4.new_markdown_cell("text") for _ in range(CELLS - len(cells) + 1)]


def much_code(cells):
    cells[-1:-1] = [nbformat.v4.new_code_cell("\n".join(["pass"] * 25)) for _ in range(10)]


def untagged(cells):
    cells[2].metadata.tags = []


def twice_tagged(cells):
    cells[3].metadata.tags = ["parameters"]


def unchecked(cells):
    cells[5].metadata.tags = []


def unprinted(cells):
    cells[5].outputs = []


def timed(cells):
    cells[5].metadata.papermill = {"duration": 1}


ERROR = nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])
TRACE = "/".join(["", "home", "me", "a.csv"])
BAD = [
    ("header", replacing(0, "# 03 · Toy", "# Toy")),
    ("header", replacing(0, "# 03 ·", "# 04 ·")),
    ("header", replacing(0, "You will be able to say what a toy is.\n", "")),
    ("header", replacing(0, "**Objectives**", "Objectives")),
    ("header", replacing(0, "3. three\n", "")),
    ("header", replacing(0, "3. three\n", "3. three\n4. four\n5. five\n6. six\n")),
    ("header", replacing(0, "**Prerequisites**", "Prerequisites")),
    ("header", replacing(0, "2 minutes", "short")),
    ("opening", lambda cells: cells.__delitem__(slice(3, -1))),
    ("opening", replacing(1, "import json", "n = 3")),
    ("opening", replacing(1, "from helpers.settings import start\nimport torch", "import torch\nimport helpers")),
    ("opening", replacing(1, "from helpers.settings import start\n", "")),
    ("opening", adding("import os")),
    ("opening", adding("def f():\n    from os import path")),
    ("opening", untagged),
    ("opening", twice_tagged),
    ("opening", replacing(2, "None", "1 + len('a')")),
    ("opening", replacing(2, "SEED = None", "print(1)")),
    ("opening", replacing(3, "start(", "print(")),
    ("no_absolute_path", adding(f"open('{TRACE}')")),
    ("no_absolute_path", adding("open('C:\\\\mine')")),
    ("no_absolute_path", printing(f"saved {TRACE}")),
    ("no_absolute_path", replacing(4, "It", TRACE)),
    ("executed_in_one_run", counting),
    ("executed_in_one_run", adding("1", outputs=[ERROR])),
    ("stored_clean", timed),
    ("stored_clean", printing("1\r2\n")),
    ("stored_clean", printing(f"{ROOT}/results")),
    ("size", many_cells),
    ("size", much_code),
    ("size", adding("\n".join(["pass"] * (CELL_LINES + 1)))),
    ("size", adding("def f():\n" + "    pass\n" * FUNCTION_LINES)),
    ("size", printing("line\n" * (OUTPUT_LINES + 1))),
    ("alt_text", drawing({"image/png": "AA=="}, {})),
    ("alt_text", drawing({"image/png": "AA=="}, {"image/png": {"alt": " "}})),
    ("alt_text", drawing({"text/html": "<img src='a.png'>"}, {})),
    ("alt_text", replacing(4, "It", "![](picture.png)")),
    ("even_colours", replacing(6, '"magma"', '"jet"')),
    ("even_colours", replacing(6, '"magma"', "plt.cm.rainbow")),
    ("even_colours", adding("cv2.applyColorMap(a, cv2.COLORMAP_JET)")),
    ("even_colours", adding("show_cam_on_image(image, cam)")),
    ("ending", replacing(-1, "## Exercises", "Exercises")),
    ("ending", replacing(-1, "## References", "## References\n\n## More")),
    ("checked_outputs", unchecked),
    ("checked_outputs", unprinted),
    ("checked_outputs", adding("# NBVAL_CHECK_OUTPUT\nn = 1")),
    ("links", replacing(0, "02_before.ipynb", "02_missing.ipynb")),
    ("links", replacing(0, "02_before.ipynb", "../data/missing.md#part")),
    ("links", replacing(4, "It", "![a map](missing.png)")),
    ("citations", replacing(4, "[@key]", "[@key; @unknown]")),
    ("citations", replacing(-1, "- [@key]", "-")),
    ("formulas", replacing(4, "$x^2$", "$x_1_2$")),
]


def test_a_good_lesson_keeps_every_rule(lesson):
    assert problems(lesson(good())) == []


@pytest.mark.parametrize(("name", "change"), BAD, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BAD)])
def test_a_rule_finds_what_breaks_it(lesson, name, change):
    cells = good()
    change(cells)
    assert problems(lesson(cells), [name]) != []


def test_every_rule_has_a_lesson_that_breaks_it():
    assert {name for name, _ in BAD} == set(RULES)


@pytest.mark.parametrize(
    "change",
    [
        adding("%matplotlib inline"),
        adding("show_cam_on_image(image, cam, colormap=2)"),
        adding("share = a / b / c  # 1/2 of https://example.org/data/x"),
        replacing(1, "import json", "%matplotlib inline\nimport json"),
        replacing(0, "2 minutes", "about 20 seconds once the networks are trained, 12 minutes before"),
        replacing(4, "It", "[web](https://example.org) [section](#data) and `results/quick/notebooks`"),
        drawing({"text/html": "<img src='a.png' alt='a map'>"}, {}),
        printing("line\n" * OUTPUT_LINES),
        adding("def f():\n" + "    pass\n" * (FUNCTION_LINES - 1)),
    ],
)
def test_what_is_allowed_is_not_reported(lesson, change):
    cells = good()
    change(cells)
    assert problems(lesson(cells)) == []
