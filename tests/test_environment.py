"""One list of dependencies: what the code imports is in it, what is in it is used, and everything is pinned."""

import ast
import re
import stat
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from helpers import run
from helpers.settings import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
# Needed without being imported here, with what for.
COMMANDS = {
    "jupyterlab": "make lab",
    "ipykernel": "runs the notebooks",
    "ipywidgets": "Lightning's and tqdm's progress bars in a notebook",
    "nbval": "make test",
    "pyarrow": "parquet tables of pandas",
    "pytest-timeout": "make test",
    "pytest-xdist": "make test",
    "ruff": "make test",
}  # fmt: skip


def imported_packages():
    """Distributions that helpers, tests and notebooks import, with one place each."""
    sources = {}
    for folder in ("helpers", "tests", "benchmarks"):
        sources |= {path: path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py")}
    for path in run.NOTEBOOKS.glob("*.ipynb"):
        cells = nbformat.read(path, 4).cells
        lines = "\n".join(cell.source for cell in cells if cell.cell_type == "code").splitlines()
        sources[path] = "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))
    known = packages_distributions()
    found = {}
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"helpers", "tests"}:
                found.setdefault(frozenset(map(canonicalize_name, known.get(name, [name]))), path.name)
    return found


def test_what_is_imported_is_in_the_list():
    missing = {tuple(names): where for names, where in imported_packages().items() if not names & REQUIREMENTS.keys()}
    assert missing == {}


def test_what_is_in_the_list_is_used():
    used = set().union(*imported_packages())
    assert REQUIREMENTS.keys() - used - COMMANDS.keys() == set()
    assert COMMANDS.keys() - REQUIREMENTS.keys() == set()


def test_constraints_hold_names_and_versions_only():
    assert [line for line in PINS if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", line)] == []
    names = [canonicalize_name(line.split("==")[0]) for line in PINS]
    assert len(names) == len(set(names))


def test_every_dependency_is_pinned_to_a_version_that_the_list_allows():
    pins = {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in PINS)}
    assert {n: str(r) for n, r in REQUIREMENTS.items() if n not in pins or not r.specifier.contains(pins[n])} == {}


def test_conda_and_binder_install_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, through_pip = environment["dependencies"]
    assert environment["name"] == PROJECT["name"]
    assert Version(python.removeprefix("python=")) in SpecifierSet(PROJECT["requires-python"])
    assert pip == "pip"
    assert through_pip == {"pip": ["-c constraints.txt", "-e ."]}


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split()
    printed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^make (\S+) +\S", printed, re.MULTILINE) == targets


@pytest.mark.skipif(sys.platform == "win32", reason="file modes are kept elsewhere on Windows")
def test_ci_calls_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert script.read_text(encoding="utf-8").splitlines()[-1] == "exec make test"


def test_make_names_the_remedy_where_python_is_missing_or_old(tmp_path):
    old = tmp_path / "old-python"
    old.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "import sys; sys.version_info = (3, 9, 1, 0, 0); $2"\n')
    old.chmod(0o755)
    for python, message in [(old, "Python 3.11 or later is needed, but .* is 3.9"), ("no-such-python", "README.md")]:
        command = ["make", "-C", str(ROOT), "-s", "lock", f"PYTHON={python}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode != 0
        assert re.search(message, result.stdout + result.stderr)
