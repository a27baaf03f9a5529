"""The runner, on small notebooks that it really executes."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pandas as pd
import psutil
import pytest

from helpers import run
from helpers.settings import ROOT

SQUARE = ("# 01 · Square", ("parameters", 'N = 3\nNAME = "a"\nPROFILE = "quick"'), "print(NAME, N * N, PROFILE)")


@pytest.fixture
def folder(tmp_path, write_notebook):
    """Two notebooks that succeed; the second has fewer parameters."""
    write_notebook(tmp_path / "notebooks" / "01_square.ipynb", *SQUARE)
    write_notebook(tmp_path / "notebooks" / "02_add.ipynb", ("parameters", "N = 1"), "import os", "print(N + 1)")
    return tmp_path / "notebooks"


def printed(path):
    """All that the notebook's cells wrote to their standard output."""
    cells = nbformat.read(path, 4).cells
    return "".join(o.text for c in cells for o in c.get("outputs", []) if o.get("name") == "stdout")


@pytest.mark.parametrize("name", ["2", "02", "02_add", "02_add.ipynb", "notebooks/02_add.ipynb"])
def test_a_notebook_is_found_by_number_stem_and_file(folder, name):
    assert [path.name for path in run.find([name], folder)] == ["02_add.ipynb"]


def test_notebooks_come_in_order_and_once(folder):
    assert [path.stem for path in run.find(["02", "1", "02_add"], folder)] == ["01_square", "02_add"]
    assert run.find((), folder) == run.find(["1", "2"], folder)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8), ("-0.5", -0.5), ("1e-3", 0.001), ("true", True), ("False", False), ("none", None), ("null", None),
        ("text", "text"), ("'8'", "8"), ("007", "007"), ("[1, 'a']", [1, "a"]), ("(1, 2)", (1, 2)),
        ("[googlenet, resnet101]", ["googlenet", "resnet101"]),
        ("2018-10-15", "2018-10-15"), ("no", "no"), ("", ""), ("a=b", "a=b"),
    ],
)  # fmt: skip
def test_values_are_read_as_literals(text, value):
    read = run.literal(text)
    assert read == value
    assert type(read) is type(value)


def test_a_list_that_cannot_be_read_is_an_error():
    with pytest.raises(run.UsageError, match=r"\[a: "):
        run.literal("[a: ]: b")


def plan(folder, *names, **arguments):
    return run.plan(run.find(names, folder), **arguments)


def test_plain_notebooks_are_given_nothing(folder):
    assert plan(folder) == ([{}, {}], folder.parent / "results" / "quick" / "notebooks")


def test_a_parameter_goes_to_those_that_have_it_and_the_others_are_named(folder, capsys):
    jobs, _ = plan(folder, changes={"N": "4", "NAME": "5"})
    assert jobs == [{"N": 4, "NAME": "5"}, {"N": 4}]
    assert capsys.readouterr().out == "NAME is passed to 01_square; the others do not have it\n"


def test_the_profile_is_passed_where_it_is_known(folder):
    assert plan(folder, profile="paper") == (
        [{"PROFILE": "paper"}, {}], folder.parent / "results" / "paper" / "notebooks"
    )  # fmt: skip


def test_a_scheduler_changes_no_folder(tmp_path, write_notebook):
    write_notebook(tmp_path / "n" / "01_a.ipynb", ("parameters", "SCHEDULER = None"), "1")
    jobs, output = plan(tmp_path / "n", scheduler="tcp://node:8786")
    assert jobs == [{"SCHEDULER": "tcp://node:8786"}]
    assert output == tmp_path / "results" / "quick" / "notebooks"


def test_existing_paths_become_absolute_and_results_decide_where_everything_goes(tmp_path, write_notebook, monkeypatch):
    write_notebook(tmp_path / "n" / "01_a.ipynb", ("parameters", 'DATA = "phantoms"\nRESULTS = None'), "1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "phantoms").mkdir()
    monkeypatch.chdir(tmp_path)
    jobs, output = plan(tmp_path / "n", changes={"DATA": "mine", "RESULTS": "elsewhere"})
    assert jobs == [{"DATA": str(tmp_path / "mine"), "RESULTS": str(tmp_path / "elsewhere")}]
    assert output.parent == tmp_path / "elsewhere" / "quick" / "notebooks"
    assert plan(tmp_path / "n", changes={"DATA": "phantoms"})[0] == [{"DATA": "phantoms"}]
    assert plan(tmp_path / "n", changes={"DATA": "missing"})[0] == [{"DATA": "missing"}]


def test_different_changes_never_share_a_folder():
    values = [
        {},
        {"A": 1},
        {"A": "1/2"},
        {"A": "3/2"},
        {"A": [1, 2]},
        {"A": "1 2"},
        {"A": "x" * 80},
        {"A": "x" * 81},
        {"B": 1},
    ]
    slugs = [run.slug(v) for v in values]
    assert len(set(slugs)) == len(slugs)
    assert slugs[0] == ""
    assert slugs[1] == "A=1"
    assert all(re.fullmatch(r"[\w.=-]*", s) and len(s) < 70 for s in slugs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["02_ad"], "no notebook '02_ad' .*did you mean '02_add'"),
        (["7"], "no notebook '7' .*there are: 01_square, 02_add"),
        (["--profile", "papre"], "no profile 'papre'; did you mean 'paper'"),
        (["--set", "NAMES=b"], "no parameter 'NAMES' .*did you mean 'NAME'"),
        (["--jobs", "0"], "--jobs: expected at least 1, got 0"),
        (["02", "--set", "NAME=b"], "no parameter 'NAME' .*there are: N"),
        (["--set", "N"], "--set N: expected NAME=VALUE"),
        (["--set", "N=many"], "N: expected a value like 3, got 'many'"),
        (["--set", "N=2.5"], "N: expected a value like 3, got '2.5'"),
        (["--set", "N=true"], "N: expected a value like 3, got 'true'"),
        (["--set", "PROFILE=paper"], "PROFILE is given as --profile paper"),
        (["--scheduler", "tcp://node:1"], "no parameter 'SCHEDULER'"),
        (["--update", "--set", "N=4"], "--update stores the plain quick profile"),
        (["--update", "--profile", "paper"], "--update stores the plain quick profile"),
        (["--update", "--scheduler", "tcp://node:1"], "--update stores the plain quick profile"),
    ],
)
def test_what_does_not_exist_is_an_error_before_anything_runs(folder, arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        run.main([*arguments, "--folder", str(folder)])
    assert exit_.value.code == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))
    assert not (folder.parent / "results").exists()


@pytest.mark.parametrize("content", ["not json", '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}'])
def test_a_broken_notebook_is_an_error_that_names_it(folder, content):
    (folder / "03_broken.ipynb").write_text(content)
    with pytest.raises(run.UsageError, match="03_broken.ipynb"):
        plan(folder)


def test_parameters_that_are_no_literals_are_an_error(tmp_path, write_notebook):
    write_notebook(tmp_path / "01_a.ipynb", ("parameters", "A = 1\nB = A + 1"), "1")
    with pytest.raises(run.UsageError, match="01_a.ipynb .*line 2"):
        plan(tmp_path)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(run.UsageError, match="no notebook in"):
        run.find((), tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Five notebooks after one run of the command: good, failing, dying, good; and what was printed."""
    folder = tmp_path_factory.mktemp("finished") / "notebooks"
    folder.mkdir()
    new = nbformat.v4
    notebooks = {
        "01_square": [
            ("", SQUARE[1][1]),
            ("", SQUARE[2]),
            ("", "import os; print(os.environ['OMP_WAIT_POLICY'], os.getcwd())"),
        ],
        "02_fails": [("", "a = 1"), ("", "\nb = a / 0  # here\nprint(b)"), ("", "print('never')")],
        "03_dies": [("", "import os\nos.kill(os.getpid(), 9)")],
        "04_large": [("", "import time\nblock = bytearray(300 * 2**20)\ntime.sleep(1.5)")],
    }
    for name, cells in notebooks.items():
        made = [new.new_code_cell(source) for _, source in cells]
        nbformat.write(new.new_notebook(cells=made), folder / f"{name}.ipynb")
    command = [sys.executable, "-m", "helpers.run", "--folder", str(folder)]
    result = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return folder, folder.parent / "results" / "quick" / "notebooks", result


def test_a_failed_notebook_does_not_stop_the_others(finished):
    folder, output, result = finished
    assert result.returncode == 1
    table = pd.read_csv(output / "summary.csv", keep_default_na=False).set_index("notebook")
    assert table["status"].to_dict() == {"01_square": "ok", "02_fails": "failed", "03_dies": "failed", "04_large": "ok"}
    assert table["cells"].to_dict() == {"01_square": 3, "02_fails": 3, "03_dies": 1, "04_large": 1}
    assert (table["seconds"] > 0).all()


def test_the_failing_cell_and_its_error_are_reported(finished):
    _, output, result = finished
    message = "In [2] `b = a / 0  # here`: ZeroDivisionError: division by zero"
    assert f"02_fails failed: {message}" in result.stdout
    assert pd.read_csv(output / "summary.csv").set_index("notebook")["error"]["02_fails"] == message
    assert re.search(r"03_dies failed: In \[1\] `import os`: DeadKernelError: .*not enough memory", result.stdout)


def test_results_stand_under_their_names_and_failures_under_others(finished):
    _, output, _ = finished
    stems = ["01_square", "02_fails.failed", "03_dies.failed", "04_large"]
    expected = {f"{stem}{suffix}" for stem in stems for suffix in (".ipynb", ".html")} | {"summary.csv"}
    assert {path.name for path in output.iterdir()} == expected
    assert "never" not in printed(output / "02_fails.failed.ipynb")


def test_notebooks_run_in_their_folder_and_wait_passively(finished):
    folder, output, _ = finished
    assert printed(output / "01_square.ipynb") == f"a 9 quick\nPASSIVE {folder}\n"


def test_peak_memory_counts_what_the_notebook_holds(finished):
    _, output, _ = finished
    memory = pd.read_csv(output / "summary.csv").set_index("notebook")["peak_memory_mib"]
    assert 290 < memory["04_large"] - memory["01_square"] < 340


def test_the_printed_table_has_a_row_for_each(finished):
    _, output, result = finished
    for name, status in [("01_square", "ok"), ("02_fails", "failed"), ("03_dies", "failed"), ("04_large", "ok")]:
        assert re.search(rf"^ *{name} +{status} +\d+\.\d +\d+ +\d$", result.stdout, re.MULTILINE)
    assert f"summary.csv: {output}" in result.stdout


def test_changed_parameters_arrive_and_leave_the_plain_results_alone(folder, capsys):
    run.run(["1"], folder=folder)
    plain = folder.parent / "results" / "quick" / "notebooks" / "01_square.ipynb"
    before = plain.read_bytes()
    table = run.run(["1"], changes={"N": "5", "NAME": "true"}, folder=folder)
    assert table["status"].tolist() == ["ok"]
    assert printed(plain.parent / "N=5_NAME=true" / "01_square.ipynb") == "true 25 quick\n"
    assert printed(plain) == "a 9 quick\n"
    assert plain.read_bytes() == before


def test_a_repaired_notebook_loses_its_failure_and_the_summary_keeps_the_other_rows(folder, write_notebook, capsys):
    output = folder.parent / "results" / "quick" / "notebooks"
    write_notebook(folder / "02_add.ipynb", "1 / 0")
    assert run.main(["--folder", str(folder)]) == 1
    assert (output / "02_add.failed.html").exists()
    write_notebook(folder / "02_add.ipynb", "1 / 1")
    assert run.main(["2", "--folder", str(folder)]) == 0
    assert sorted(path.name for path in output.glob("02*")) == ["02_add.html", "02_add.ipynb"]
    table = pd.read_csv(output / "summary.csv", keep_default_na=False)
    assert table[["notebook", "status", "error"]].values.tolist() == [["01_square", "ok", ""], ["02_add", "ok", ""]]


def test_a_failure_leaves_the_result_of_the_last_good_run(folder, write_notebook, capsys):
    run.run(["1"], folder=folder)
    good = folder.parent / "results" / "quick" / "notebooks" / "01_square.ipynb"
    before = good.read_bytes()
    write_notebook(folder / "01_square.ipynb", "1 / 0")
    run.run(["1"], folder=folder)
    assert good.read_bytes() == before
    assert good.with_suffix(".failed.ipynb").exists()


def test_update_stores_the_executed_notebook_without_traces_of_the_run(folder, write_notebook, capsys):
    path = write_notebook(
        folder / "01_square.ipynb", *SQUARE,
        "import sys, warnings, helpers\nprint(helpers.__file__)\nwarnings.warn('careful')",
        "for i in range(3):\n    print(i, end='\\r', flush=True)\nprint()",
    )  # fmt: skip
    cells = [cell.source for cell in nbformat.read(path, 4).cells]
    assert run.main(["1", "--update", "--folder", str(folder)]) == 0
    stored = nbformat.read(path, 4)
    nbformat.validate(stored)
    assert [cell.source for cell in stored.cells] == cells
    assert [cell.id for cell in stored.cells] == [f"cell-{i}" for i in range(5)]
    assert [cell.execution_count for cell in stored.cells if cell.cell_type == "code"] == [1, 2, 3, 4]
    text = path.read_text()
    assert str(ROOT) not in text and "papermill" not in text and "ipykernel_" not in text
    assert printed(path).splitlines()[:2] == ["a 9 quick", "helpers/__init__.py"]
    assert stored.cells[4].outputs[0].text == "2\n"
    assert re.search(r"<cell>:3: UserWarning: careful", text)
    first = path.read_bytes()
    assert run.main(["1", "--update", "--folder", str(folder)]) == 0
    assert path.read_bytes() == first


def test_update_does_not_store_a_failure(folder, write_notebook, capsys):
    path = write_notebook(folder / "01_square.ipynb", "1 / 0")
    before = path.read_bytes()
    assert run.main(["1", "--update", "--folder", str(folder)]) == 1
    assert path.read_bytes() == before


MEETING = """import time
from pathlib import Path

Path("{me}").touch()
for _ in range(600):
    if Path("{other}").exists():
        break
    time.sleep(0.05)
assert Path("{other}").exists(), "nobody came"
block = bytearray({mib} * 2**20)
time.sleep(1.5)"""


def test_two_run_at_a_time_and_each_has_its_own_memory_counted(tmp_path, write_notebook, capsys, monkeypatch):
    monkeypatch.setattr(run, "SAMPLING", 1)  # a large test process is slow to measure, and measured seldom
    folder = tmp_path / "n"
    write_notebook(folder / "01_a.ipynb", MEETING.format(me="a", other="b", mib=400))
    write_notebook(folder / "02_b.ipynb", MEETING.format(me="b", other="a", mib=50))
    table = run.run(folder=folder, jobs=2).set_index("notebook")
    assert table["status"].tolist() == ["ok", "ok"], table["error"].tolist()
    assert 300 < table["peak_memory_mib"]["01_a"] - table["peak_memory_mib"]["02_b"] < 400


def test_a_notebook_that_wants_the_machine_gets_it_until_it_has_succeeded(tmp_path, write_notebook, capsys):
    folder = tmp_path / "n"
    clock = "import time\nbegin = time.time()\ntime.sleep(1)\nprint(begin, time.time())"
    write_notebook(folder / "01_a.ipynb", clock)
    path = write_notebook(folder / "02_b.ipynb", ("parameters", "A = 1"), clock)
    notebook = nbformat.read(path, 4)
    notebook.cells[0].metadata.tags = ["parameters", "alone"]
    nbformat.write(notebook, path)
    write_notebook(folder / "03_c.ipynb", clock)
    output = folder.parent / "results" / "quick" / "notebooks"

    def spans():
        assert set(run.run(folder=folder, jobs=3)["status"]) == {"ok"}
        texts = [printed(output / f"{name}.ipynb") for name in ("01_a", "02_b", "03_c")]
        return [[float(time) for time in text.split()] for text in texts]

    first = spans()
    assert first[0][1] <= first[1][0] and first[1][1] <= first[2][0]
    again = spans()
    assert max(begin for begin, _ in again) < min(end for _, end in again)


def alive(pid):
    """Whether the process runs; one that waits for its parent to read its exit status has ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


LONG = """import json, os, subprocess, sys, time
from pathlib import Path

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)
part = Path({pids!r} + ".part")
part.write_text(json.dumps([os.getpid(), child.pid]))
part.rename({pids!r})
time.sleep(100)"""


@pytest.mark.parametrize(("jobs", "later"), [(1, "not run"), (2, "interrupted")])
def test_ctrl_c_leaves_what_is_finished_and_ends_everything_started(folder, write_notebook, tmp_path, jobs, later):
    pids = [tmp_path / "add.json", tmp_path / "later.json"]
    write_notebook(folder / "02_add.ipynb", LONG.format(pids=str(pids[0])))
    write_notebook(folder / "03_later.ipynb", LONG.format(pids=str(pids[1])))
    started = pids[:jobs]
    output = folder.parent / "results" / "quick" / "notebooks"
    command = [sys.executable, "-m", "helpers.run", "--folder", str(folder), "--jobs", str(jobs)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not all(path.exists() for path in [*started, output / "01_square.ipynb"]):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    for name, status in [("01_square", "ok"), ("02_add", "interrupted"), ("03_later", later)]:
        numbers = r"\d+\.\d +\d+ +\d" if status == "ok" else "- +- +-"
        assert re.search(rf"^ *{name} +{status} +{numbers}$", out, re.MULTILINE)
    assert sorted(path.name for path in output.iterdir()) == ["01_square.html", "01_square.ipynb", "summary.csv"]
    assert printed(output / "01_square.ipynb") == "a 9 quick\n"
    assert not any(alive(pid) for path in started for pid in json.loads(path.read_text()))
    assert "Traceback" not in err
