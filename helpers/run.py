"""Run notebooks with papermill: `python -m helpers.run [NOTEBOOK ...] [--profile paper] [--set NAME=VALUE ...]`."""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import os
import re
import sys
import tempfile
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import psutil
import yaml
from tqdm import tqdm
from traitlets.config import Config

from helpers.compute import fitted_workers
from helpers.pages import clean, to_html
from helpers.settings import EMBEDDED, PROFILES, ROOT, closest
from helpers.store import replacing, write_table

NOTEBOOKS = ROOT / "notebooks"
PATHS = ("DATA", "RESULTS", "WEIGHTS")
WORDS = {"true": True, "false": False, "none": None, "null": None}
SECONDS_BETWEEN_SAMPLES = 0.5
SAMPLING = 0.03  # at most this share of one core is spent on measuring memory
MEMORY_OF_A_NOTEBOOK = 2.5e9  # bytes that must be free for each one that runs beside another
SUMMARY = "summary.csv"
# Tag of the parameters cell where a notebook, from nothing, keeps every core busy by itself.
ALONE = "alone"


class UsageError(ValueError):
    """A notebook, profile or parameter that does not exist, found before anything runs."""


def find(names=(), folder=NOTEBOOKS) -> list[Path]:
    """The notebooks meant by numbers (`3`, `03`), stems (`03_grad_cam`) or file names; all of them for no name.

    Raises
    ------
    UsageError
        if the folder holds no notebook or a name fits none
    """
    known = {path.stem: path.resolve() for path in sorted(Path(folder).glob("*.ipynb"))}
    if not known:
        raise UsageError(f"no notebook in {folder}")
    found = set()
    for name in map(str, names):
        stem = Path(name).stem if name.endswith(".ipynb") else name
        fits = [s for s in known if s == stem or (stem.isdigit() and s.startswith(f"{int(stem):02d}_"))]
        if not fits:
            raise UsageError(f"no notebook {name!r} in {folder}{closest(stem, known)}; there are: {', '.join(known)}")
        found.update(fits)
    return [known[stem] for stem in sorted(found or known)]


def parameters(notebook) -> dict:
    """Names and values in the cell tagged `parameters`; nothing where there is no such cell.

    Raises
    ------
    ValueError
        if the cell holds anything but assignments of literals to names
    """
    values = {}
    for cell in notebook.cells:
        if "parameters" not in _tags(cell):
            continue
        for node in ast.parse(cell.source).body:
            if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
                raise ValueError(f"parameters cell, line {node.lineno}: expected NAME = literal")
            try:
                values[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                raise ValueError(f"parameters cell, line {node.lineno}: the value is not a literal") from None
    return values


def _tags(cell):
    return cell.metadata.get("tags", [])


def literal(text: str):
    """The value meant by a word of the command line: `8`, `true`, `None`, `[a, 1]`, `'8'`; anything else is text."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    if text[:1] in ("[", "{"):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(f"cannot read the list {text!r}; write for example \"['a', 'b']\"") from None
    return text


def _fitted(name, text, default):
    """The value of `NAME=text`, of the kind that the notebook's own value has."""
    value = literal(text)
    if name in PATHS and isinstance(value, str) and value not in EMBEDDED:
        path = Path(value).expanduser().resolve()
        value = str(path) if path.exists() or name == "RESULTS" else value
    if value is None or default is None:
        return value
    if isinstance(default, str):
        return value if isinstance(value, str) else text
    kinds = {bool: bool, int: int, float: (int, float), list: (list, tuple), tuple: (list, tuple)}
    is_flag = isinstance(value, bool) and not isinstance(default, bool)
    if is_flag or not isinstance(value, kinds.get(type(default), object)):
        raise UsageError(f"{name}: expected a value like {default!r}, got {text!r}")
    return value


def plan(paths, profile="quick", changes=None, scheduler=None) -> tuple[list[dict], Path]:
    """What each notebook is given, and the folder that receives the results; checks everything, runs nothing.

    Parameters
    ----------
    paths : notebooks, all in one folder
    profile : name of a profile; its results stand under `results/<profile>/notebooks/`
    changes : mapping from a parameter's name to the text of its value; their results stand in a folder of their own
    scheduler : address of a Dask scheduler, or None

    Raises
    ------
    UsageError
        if the profile is unknown, none of the notebooks has a parameter, or a value is of another kind
    """
    if profile not in PROFILES:
        raise UsageError(f"no profile {profile!r}{closest(profile, PROFILES)}; there are: {', '.join(PROFILES)}")
    defaults = {}
    for path in paths:
        try:
            defaults[path] = parameters(nbformat.read(path, 4))
        except (ValueError, SyntaxError, nbformat.ValidationError) as error:
            raise UsageError(f"{path.name} is no notebook that can be run: {error}") from error
    changes = dict(changes or {})
    for name in {"PROFILE", "SCHEDULER"} & changes.keys():
        raise UsageError(f"{name} is given as --{name.lower()} {changes[name]}")
    wanted = changes | ({"SCHEDULER": scheduler} if scheduler else {})
    known = sorted(set().union(*defaults.values()))
    jobs = [{"PROFILE": profile} if own.get("PROFILE", profile) != profile else {} for own in defaults.values()]
    for name, text in wanted.items():
        takers = [i for i, own in enumerate(defaults.values()) if name in own]
        if not takers:
            there = f"there are: {', '.join(known)}" if known else "they have none"
            raise UsageError(f"no parameter {name!r} in the chosen notebooks{closest(name, known)}; {there}")
        for i in takers:
            jobs[i][name] = _fitted(name, text, defaults[paths[i]][name])
        if len(takers) < len(paths):
            print(f"{name} is passed to {', '.join(paths[i].stem for i in takers)}; the others do not have it")
    values = {name: next(job[name] for job in jobs if name in job) for name in changes}
    results = Path(values.pop("RESULTS", None) or paths[0].parent.parent / "results")
    return jobs, results / profile / "notebooks" / slug(values)


def slug(values) -> str:
    """A folder name for changed parameters, another one for every other choice; empty for none."""
    full = "_".join(f"{name}={value}" for name, value in sorted(values.items()))
    short = re.sub(r"[^\w.=-]+", "-", "_".join(f"{n}={Path(str(v)).name}" for n, v in sorted(values.items())))[:60]
    return full if short == full else f"{short}_{hashlib.sha256(full.encode()).hexdigest()[:6]}"


def _memory(processes) -> float:
    """MiB held by the processes; what they share is counted once where the system tells (Linux)."""
    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().pss if psutil.LINUX else process.memory_info().rss
        except psutil.Error:  # ended meanwhile, or not ours to look at
            continue
    return total / 2**20


def execute(path, target, values, label, position=0, stop=None) -> dict:
    """Execute one notebook and store it, as `target` or, with the error in it, as `<stem>.failed.ipynb`.

    Parameters
    ----------
    path, target : where the notebook is read and where it is stored
    values : what its parameters are set to
    label, position : text and line of the progress bar
    stop : threading.Event that ends the notebook before its time, or None

    Returns
    -------
    dict : notebook, status ("ok", "failed" or "interrupted"), seconds, peak_memory_mib (this process and all that the
        notebook started on this machine), cells (code cells) and error
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    failed = target.with_suffix(".failed.ipynb")
    me, peak, begin, stop = psutil.Process(), 0.0, time.monotonic(), stop or threading.Event()
    pause = SECONDS_BETWEEN_SAMPLES
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as folder:
        scratch, connection = Path(folder) / "notebook.ipynb", Path(folder) / "kernel.json"
        names = [str(name).replace("{", "{{").replace("}", "}}") for name in (path, scratch)]  # no templates
        # What goes to and from a kernel is nobody else's on a shared machine, and what it says of itself nobody needs.
        manager = {"transport_encryption": "auto", "connection_file": str(connection)}
        options = {
            "kernel_name": "python3",
            "progress_bar": {"desc": label, "position": position, "leave": False, "disable": None},
            "config": Config({"KernelManager": manager}),
            "extra_arguments": ["--log-level=50"],
        }
        # The kernel is talked to in a thread, so that Ctrl-C arrives here, where all that it started is known.
        with ThreadPoolExecutor(1) as thread:
            job = thread.submit(papermill.execute_notebook, *names, values, cwd=str(path.parent), **options)
            try:
                while not wait([job], pause).done and not stop.is_set():
                    before = time.thread_time()
                    peak = max(peak, _memory([me, *_of_kernel(connection)]))
                    pause = min(3.0, max(SECONDS_BETWEEN_SAMPLES, (time.thread_time() - before) / SAMPLING))
            finally:
                ended = False
                while not ended:  # a kernel may still be about to start
                    _kill(_of_kernel(connection))
                    ended = bool(wait([job], SECONDS_BETWEEN_SAMPLES).done)
        error = job.exception()
        row = {"notebook": path.stem, "status": "failed" if error else "ok", "seconds": time.monotonic() - begin,
               "peak_memory_mib": peak, "cells": 0, "error": ""}  # fmt: skip
        if error and stop.is_set():
            return {"notebook": path.stem, "status": "interrupted", "error": ""}
        if not scratch.exists():
            return row | {"error": f"{type(error).__name__}: {error}"}
        notebook = nbformat.read(scratch, 4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
        row["cells"] = len(code)
        if error:
            row["error"] = _failure(code, error)
        kept = failed if error else target
        with replacing(kept.with_suffix(".html")) as page:
            page.write_text(to_html(clean(notebook), path.stem), encoding="utf-8")
        os.replace(scratch, kept)
        if not error:
            failed.unlink(missing_ok=True)
            failed.with_suffix(".html").unlink(missing_ok=True)
    return row


def _of_kernel(connection) -> list:
    """The kernel that was started with this connection file, and all that it has started."""
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if str(connection) in process.cmdline():
                found += [process, *process.children(recursive=True)]
    return found


def _kill(processes) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _failure(code, error) -> str:
    """Which cell failed, its first line and the error, from the executed code cells."""
    name, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    hint = " (often there was not enough memory)" if "DeadKernel" in name else ""
    begun = [n for n, cell in enumerate(code, 1) if cell.metadata.papermill.get("start_time")]
    where = f"In [{begun[-1]}] `{code[begun[-1] - 1].source.strip().splitlines()[0]}`: " if begun else ""
    return f"{where}{name}: {text.strip()}{hint}"


def run(names=(), profile="quick", changes=None, scheduler=None, update=False, folder=NOTEBOOKS, jobs=None):
    """Run notebooks, several at a time, into `results/<profile>/notebooks/` beside their folder.

    Parameters
    ----------
    names, folder : as in `find`
    profile, changes, scheduler : as in `plan`
    update : also write each notebook that succeeded, cleaned, back to where it came from
    jobs : notebooks that run at the same time; None fits them to cores and memory. One whose parameters cell is tagged
        `alone` runs by itself until it has once succeeded: it keeps every core busy while its results are missing.

    Returns
    -------
    table with one row per notebook as in `execute`; status can also be "not run". The last row of each notebook that
    ran to its end or its error is kept in `summary.csv`.
    """
    if update and (profile != "quick" or changes or scheduler):
        raise UsageError("--update stores the plain quick profile: leave out --profile, --set and --scheduler")
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs: expected at least 1, got {jobs}")
    paths = find(names, folder)
    values, output = plan(paths, profile, changes, scheduler)
    alone = _alone(paths, output / SUMMARY)
    labels = [f"[{i}/{len(paths)}] {path.stem}" for i, path in enumerate(paths, 1)]
    rows = [{"notebook": path.stem, "status": "not run", "error": ""} for path in paths]
    waiting, running, lines = list(range(len(paths))), {}, list(range(jobs or fitted_workers(MEMORY_OF_A_NOTEBOOK)))
    stop = threading.Event()
    # papermill changes into the notebook's folder and back, which must not matter to one that runs beside it.
    with contextlib.chdir(paths[0].parent), ThreadPoolExecutor(len(lines)) as threads:
        try:
            while waiting or running:
                while waiting and lines and not (running and alone & {waiting[0], *(i for i, _ in running.values())}):
                    i, line = waiting.pop(0), lines.pop(0)
                    task = paths[i], output / paths[i].name, values[i], labels[i], line, stop
                    running[threads.submit(execute, *task)] = i, line
                for job in wait(running, return_when=FIRST_COMPLETED).done:
                    i, line = running.pop(job)
                    lines = sorted([*lines, line])
                    rows[i] = job.result()
                    _store(rows[i], paths[i], output / paths[i].name, update, labels[i])
        except KeyboardInterrupt:
            print("stopped; what is finished stays", file=sys.stderr)
        finally:
            stop.set()
    for job, (i, _) in running.items():
        rows[i] = job.result()
    table = pd.DataFrame(rows)
    _keep(table, output / SUMMARY, known=[path.stem for path in find((), folder)])
    _report(table, output)
    return table


def _alone(paths, summary) -> set[int]:
    """Which of the notebooks are tagged `alone` and have not succeeded yet."""
    earlier = pd.read_csv(summary, keep_default_na=False) if summary.exists() else pd.DataFrame()
    done = set(earlier.loc[earlier["status"] == "ok", "notebook"]) if len(earlier) else set()
    tagged = {i for i, path in enumerate(paths) if any(ALONE in _tags(cell) for cell in nbformat.read(path, 4).cells)}
    return {i for i in tagged if paths[i].stem not in done}


def _store(row, path, executed, update, label) -> None:
    status, seconds, memory = (row[name] for name in ("status", "seconds", "peak_memory_mib"))
    tqdm.write(f"{label}: {status}, {seconds:.0f} s, {memory:.0f} MiB")
    sys.stdout.flush()
    if update and status == "ok":
        with replacing(path) as temporary:
            nbformat.write(clean(nbformat.read(executed, 4)), temporary)


def _keep(table, path, known) -> None:
    ended = table[table["status"].isin(["ok", "failed"])]
    earlier = pd.read_csv(path, keep_default_na=False) if path.exists() else ended[:0]
    earlier = earlier[earlier["notebook"].isin(set(known) - set(ended["notebook"]))]
    if len(ended):
        kept = pd.concat([t for t in (earlier, ended) if len(t)]).sort_values("notebook")
        write_table(kept.round({"seconds": 1, "peak_memory_mib": 0}), path)


def _report(table, output) -> None:
    columns = ["notebook", "status", "seconds", "peak_memory_mib", "cells"]
    formats = {"seconds": "{:.1f}".format, "peak_memory_mib": "{:.0f}".format, "cells": "{:.0f}".format}
    print("\n" + table.reindex(columns=columns).to_string(index=False, formatters=formats, na_rep="-"))
    for row in table[table["status"] == "failed"].itertuples():
        print(f"\n{row.notebook} failed: {row.error}")
    print(f"\nNotebooks, pages and {SUMMARY}: {output}")


def main(arguments=None) -> int:
    """Command line; 0 if all notebooks ran, 1 if one failed, 2 for a wrong name, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m helpers.run", description=run.__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="number, name or file (default: all)")
    parser.add_argument("--profile", default="quick", metavar="|".join(PROFILES), help="default: quick")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes", help="a parameter")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="Dask scheduler, for example tcp://node:8786")
    parser.add_argument("--jobs", type=int, metavar="N", help="notebooks at a time (default: fitted to the machine)")
    parser.add_argument("--update", action="store_true", help="store what the notebooks printed in notebooks/")
    parser.add_argument("--folder", type=Path, default=NOTEBOOKS, help="folder of the notebooks")
    chosen = parser.parse_args(arguments)
    try:
        for change in chosen.changes:
            if not re.match(r"[A-Za-z_]\w*=", change):
                raise UsageError(f"--set {change}: expected NAME=VALUE")
        changes = dict(change.split("=", 1) for change in chosen.changes)
        where = {"folder": chosen.folder, "jobs": chosen.jobs}
        table = run(chosen.notebooks, chosen.profile, changes, chosen.scheduler, chosen.update, **where)
    except UsageError as error:
        parser.error(str(error))
    statuses = set(table["status"])
    return 130 if "interrupted" in statuses else int("failed" in statuses)


if __name__ == "__main__":
    sys.exit(main())
