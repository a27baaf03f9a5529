"""Results on disk: written whole or not at all, and traced to the data, settings and code that made them."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

SEAL = "made_from.json"


@contextmanager
def replacing(path):
    """Yield a temporary path beside `path`, which takes its name when the block ends without an error.

    The temporary file or folder is removed after an error, so `path` is either as it was or complete.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(folder, doing: str):
    """Let one process at a time run the block for a folder; the others say what they wait for, and wait.

    The lock ends with the process that holds it, however that ends.
    """
    path = Path(folder) / f".{doing}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        print(f"{doing} goes on in another notebook: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_table(table: pd.DataFrame, path) -> None:
    """Write a table as .parquet or .csv, whole or not at all."""
    with replacing(path) as temporary:
        if Path(path).suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            table.to_parquet(temporary, index=False)


def _code(module: ModuleType) -> str:
    """The module's syntax tree without docstrings: comments, wording and layout do not count as a change."""
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


def _feed(digest, thing) -> None:
    if isinstance(thing, Path):
        digest.update(b"file")
        with thing.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    elif isinstance(thing, np.ndarray):
        digest.update(f"array{thing.dtype}{thing.shape}".encode())
        digest.update(np.ascontiguousarray(thing).tobytes())
    elif isinstance(thing, ModuleType):
        digest.update(f"code{_code(thing)}".encode())
    elif isinstance(thing, Mapping):
        digest.update(b"mapping")
        for key in sorted(thing, key=str):
            _feed(digest, str(key))
            _feed(digest, thing[key])
    elif isinstance(thing, (list, tuple, set, frozenset)):
        digest.update(f"{'set' if isinstance(thing, (set, frozenset)) else 'list'}{len(thing)}".encode())
        for item in sorted(thing, key=str) if isinstance(thing, (set, frozenset)) else thing:
            _feed(digest, item)
    elif thing is None or isinstance(thing, (str, bytes, bool, int, float, np.generic)):
        value = thing.item() if isinstance(thing, np.generic) else thing
        digest.update(f"{type(value).__name__}{len(repr(value))}:{value!r}".encode())
    else:
        raise TypeError(f"no fingerprint for a {type(thing).__name__}: {thing!r}")


def fingerprint(*things) -> str:
    """Sixteen hex digits that change when the contents of any argument change.

    Parameters
    ----------
    *things : text, numbers, None, arrays, lists, mappings, modules (their code without comments and docstrings)
        and `Path` objects (the contents of the file, not its name)
    """
    digest = hashlib.sha256()
    for thing in things:
        _feed(digest, thing)
    return digest.hexdigest()[:16]


def seal(folder, made_from: Mapping) -> None:
    """Mark a results folder as complete: the last file written into it says what it was made from."""
    with replacing(Path(folder) / SEAL) as temporary:
        temporary.write_text(json.dumps(dict(made_from), indent=1, sort_keys=True))


def changed(folder, made_from: Mapping) -> list[str]:
    """What keeps a results folder from being reused: nothing (an empty list), or the names of what differs.

    Parameters
    ----------
    folder : folder that `seal` completed, or that does not exist
    made_from : name to JSON value, of everything that the result hangs on
    """
    path = Path(folder) / SEAL
    try:
        stored = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return ["nothing there"]
    except (ValueError, OSError):
        return [f"{path.name} is unreadable"]
    wanted = json.loads(json.dumps(dict(made_from)))
    return sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
