"""Settings of `explain` and what does not fit."""

import json

import numpy as np
import pytest
import torch

from helpers.explain.options import Options, get_options


def test_the_studys_values():
    options = get_options({})
    assert options == Options() and (options.windows, options.stride, options.steps) == ((15, 30, 45), 9, 50)
    assert (options.samples, options.noise) == (5, 0.09)


def test_lengths_are_scaled_with_the_image():
    options = Options()
    assert [options.scaled(length, 224) for length in (15, 30, 45, 9)] == [15, 30, 45, 9]
    assert [options.scaled(length, 96) for length in (15, 30, 45, 9, 1)] == [6, 13, 19, 4, 1]


def test_memory_of_the_device():
    assert Options().bytes(torch.device("cpu")) < Options().bytes(torch.device("cuda"))
    assert Options(memory=7).bytes(torch.device("cpu")) == 7


def test_descriptions_are_json():
    options = get_options({"windows": [10, 20], "baseline": np.zeros((1, 2, 2))})
    assert json.loads(options.describe(("windows", "baseline", "tolerance"))) == {
        "windows": [10, 20], "baseline": "array", "tolerance": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 5}, "unknown setting 'step'; did you mean 'steps'"),
        ({"memory": 0}, "memory: expected a whole number of at least 1, got 0"),
        ({"precision": "float16"}, "precision: expected one of .*bfloat16"),
        ({"epsilon": -1}, "epsilon: expected a number of at least 0"),
        ({"tolerance": 0}, "tolerance: expected None or a share"),
        ({"tolerance": 1.5}, "tolerance"),
        ({"steps": 0.5}, "steps: expected a whole number"),
        ({"samples": True}, "samples"),
        ({"noise": float("nan")}, "noise"),
        ({"windows": ()}, "windows: expected one whole number, or several different ones"),
        ({"windows": (15, 15)}, "windows"),
        ({"windows": 5}, "stride: expected a whole number, at most the smallest window, got 9"),
        ({"stride": 0}, "stride"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        get_options(settings)
