"""What can be set in `explain`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import numpy as np
import torch

from helpers.settings import closest

PRECISIONS = ("float32", "bfloat16")
REFERENCE_HEIGHT = 224
MEMORY = {"cpu": 2**28, "cuda": 2**31}


@dataclass(frozen=True)
class Options:
    """Settings of `explain`, with the study's values.

    Parameters
    ----------
    memory : bytes that a batch may take; None for 256 MiB on the CPU and 2 GiB on a GPU
    precision : "float32" (the model's own type) or "bfloat16" (autocast of the network; maps are float32)
    seed : of the draws of GradientShap, and of the choices of Score-CAM with a tolerance
    eigen_smooth : a CAM is the first principal component of its weighted feature maps instead of their sum
    epsilon : in the denominator of Grad-CAM++
    tolerance : of Score-CAM: None to score the image through every feature map; else the estimated error, as a share
        of the map, at which to stop
    steps : of Integrated Gradients, points between baseline and image
    baseline : of Integrated Gradients and Occlusion: one number, or an array that fits an image (C, H, W)
    samples, noise : of GradientShap: draws, and standard deviation of the noise
    windows, stride : of Occlusion, in pixels of an image that is 224 pixels high; one window or several
    brightest : largest value that an image may have
    """

    memory: int | None = None
    precision: str = "float32"
    seed: int = 0
    eigen_smooth: bool = False
    epsilon: float = 1e-6
    tolerance: float | None = None
    steps: int = 50
    baseline: float | np.ndarray | torch.Tensor = 0.0
    samples: int = 5
    noise: float = 0.09
    windows: int | tuple[int, ...] = (15, 30, 45)
    stride: int = 9
    brightest: float = 1.0

    def scaled(self, length: int, height: int) -> int:
        """A length in pixels of 224 in pixels of an image."""
        return max(1, round(length * height / REFERENCE_HEIGHT))

    def bytes(self, device: torch.device) -> int:
        """Memory that a batch may take on a device."""
        return MEMORY.get(device.type, MEMORY["cuda"]) if self.memory is None else self.memory

    def describe(self, names) -> str:
        """Some of the settings as JSON; an array is only named."""
        values = {name: getattr(self, name) for name in names}
        return json.dumps({k: "array" if isinstance(v, (np.ndarray, torch.Tensor)) else v for k, v in values.items()})


def get_options(settings: dict) -> Options:
    """Options from keyword arguments.

    Raises
    ------
    ValueError
        if a name is unknown (answered with the closest ones) or a value is out of range
    """
    known = [field.name for field in dataclasses.fields(Options)]
    for name in settings:
        if name not in known:
            raise ValueError(f"unknown setting {name!r}{closest(name, known)}; known: {', '.join(known)}")
    options = dataclasses.replace(Options(), **settings)
    if not isinstance(options.windows, int):
        options = dataclasses.replace(options, windows=tuple(options.windows))
    windows = (options.windows,) if isinstance(options.windows, int) else options.windows
    wrong = {
        "memory": options.memory is not None and options.memory < 1,
        "precision": options.precision not in PRECISIONS,
        "epsilon": not options.epsilon >= 0,
        "tolerance": options.tolerance is not None and not 0 < options.tolerance < 1,
        "steps": not _whole(options.steps),
        "samples": not _whole(options.samples),
        "noise": not options.noise >= 0,
        "windows": not windows or not all(map(_whole, windows)) or len(set(windows)) < len(windows),
        "stride": not _whole(options.stride) or options.stride > min(windows, default=0),
    }
    for name in filter(wrong.get, wrong):
        expected = {
            "precision": f"one of {PRECISIONS}",
            "epsilon": "a number of at least 0",
            "noise": "a number of at least 0",
            "tolerance": "None or a share between 0 and 1",
            "windows": "one whole number, or several different ones",
            "stride": "a whole number, at most the smallest window",
        }.get(name, "a whole number of at least 1")
        raise ValueError(f"{name}: expected {expected}, got {getattr(options, name)!r}")
    return options


def _whole(value):
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1
