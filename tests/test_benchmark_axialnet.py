"""The script that measures a full-size step of AxialNet, on a small volume."""

import re
import subprocess
import sys

import pytest

from helpers.settings import ROOT


@pytest.mark.parametrize("words", [[], ["--no-checkpointing", "--bfloat16"]])
def test_a_step_is_measured(words):
    command = [sys.executable, ROOT / "benchmarks" / "axialnet.py", "--slices", "3", "--side", "292", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    pattern = rf"3 x 292 x 292, .*checkpointing {not words}, .* peak \d+\.\d\d GiB, gradients finite True"
    assert re.search(pattern, done.stdout)
