"""Results on disk: whole or not at all, and traced to what made them."""

import re
import subprocess
import sys
import types

import numpy as np
import pandas as pd
import pytest

from helpers.settings import ROOT
from helpers.store import changed, fingerprint, one_at_a_time, replacing, seal, write_table


def module(source, tmp_path, monkeypatch):
    path = tmp_path / "some_module.py"
    path.write_text(source)
    made = types.ModuleType("some_module")
    made.__file__ = str(path)
    monkeypatch.setattr("inspect.getsource", lambda m: path.read_text())
    return fingerprint(made)


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "folder"
    for name in ("old", "new"):
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert [p.name for p in path.iterdir()] == ["new"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_comes_back(tmp_path, suffix):
    table = pd.DataFrame({"name": ["a", "b"], "value": [0.5, 1.5]})
    write_table(table, tmp_path / f"t{suffix}")
    read = pd.read_csv if suffix == ".csv" else pd.read_parquet
    pd.testing.assert_frame_equal(read(tmp_path / f"t{suffix}"), table)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["ab"], ["a", "b"]),
        (["1"], [1]),
        ([1], [1.0]),
        ([True], [1]),
        ([None], ["None"]),
        ([[1, 2]], [[2, 1]]),
        ([[[1], 2]], [[1, [2]]]),
        ([{"a": 1}], [{"a": 2}]),
        ([np.zeros(4)], [np.zeros((2, 2))]),
        ([np.zeros(4)], [np.zeros(4, np.float32)]),
    ],
)
def test_different_things_have_different_fingerprints(one, other):
    assert fingerprint(*one) != fingerprint(*other)


def test_equal_things_have_equal_fingerprints(tmp_path):
    (tmp_path / "a").write_bytes(b"same")
    (tmp_path / "b").write_bytes(b"same")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({1, 2, 3}) == fingerprint({3, 2, 1})
    assert fingerprint(np.arange(6).reshape(2, 3).T) == fingerprint(np.arange(6).reshape(2, 3).T.copy())


def test_what_cannot_be_fingerprinted_is_an_error():
    with pytest.raises(TypeError, match="no fingerprint for a object"):
        fingerprint(object())


def test_code_counts_but_not_its_comments_and_docstrings(tmp_path, monkeypatch):
    plain = module("def f(x):\n    return x + 1\n", tmp_path, monkeypatch)
    told = module('"""Of f."""\n\ndef f(x):\n    # one more\n    return x + 1\n', tmp_path, monkeypatch)
    documented = module('def f(x):\n    """Add one."""\n    return x + 1\n', tmp_path, monkeypatch)
    reworded = module('def f(x):\n    """One more."""\n    return x + 1\n', tmp_path, monkeypatch)
    other = module("def f(x):\n    return x + 2\n", tmp_path, monkeypatch)
    assert plain == told == documented == reworded
    assert plain != other


def test_a_seal_names_what_changed(tmp_path):
    made_from = {"epochs": 6, "data": "abc", "shape": (2, 3)}
    assert changed(tmp_path, made_from) == ["nothing there"]
    seal(tmp_path, made_from)
    assert changed(tmp_path, made_from) == []
    assert changed(tmp_path, made_from | {"epochs": 7, "extra": 1}) == ["epochs", "extra"]
    (tmp_path / "made_from.json").write_text("{")
    assert changed(tmp_path, made_from) == ["made_from.json is unreadable"]


WAIT = """
import sys, time
from helpers.store import one_at_a_time
with one_at_a_time(sys.argv[1], "training"):
    print("begun", time.monotonic(), flush=True)
    time.sleep(1)
    print("ended", time.monotonic(), flush=True)
"""


def test_one_process_at_a_time_and_the_other_says_that_it_waits(tmp_path):
    command = [sys.executable, "-c", WAIT, str(tmp_path / "study")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    texts = [process.communicate(timeout=60)[0] for process in both]
    spans = sorted([float(time) for time in re.findall(r"(?:begun|ended) (\S+)", text)] for text in texts)
    assert spans[0][1] <= spans[1][0]
    assert sorted("training goes on in another notebook" in text for text in texts) == [False, True]


def test_a_lock_ends_with_an_error(tmp_path, capsys):
    with pytest.raises(KeyError), one_at_a_time(tmp_path, "training"):
        raise KeyError
    with one_at_a_time(tmp_path, "training"):
        pass
    assert capsys.readouterr().out == ""
