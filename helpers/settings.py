"""One `Settings` object per run: profile, data, networks, training, seed, device, threads."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import platform
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("densenet201", "googlenet", "mobilenet_v2", "resnet101")
EMBEDDED = ("phantoms", "example")
PER_ARCHITECTURE = ("source_epochs", "source_learning_rate", "epochs", "learning_rate")


@dataclass(frozen=True)
class Settings:
    """Everything a result depends on, and where it is kept; made by `get_settings`.

    Parameters
    ----------
    profile : "quick" (embedded data, made from a seed) or "paper" (real data, the reference's hyperparameters)
    data : "phantoms", "example", or the path of a study folder or of a downloaded archive
    results : folder under which everything computed is stored
    seed : whole number from which every random draw follows
    device : "auto" (CUDA where there is one), "cpu" or "cuda" (an error where there is none)
    scheduler : address of a Dask scheduler; None starts a local cluster
    workers : processes of the local cluster; None fits them to cores and memory, 0 works in this process
    images_per_class : phantoms per class; not used for other data
    image_size : height and width in pixels of what the network sees when it is tested
    architectures : networks to train, from `ARCHITECTURES`
    n_folds : folds of the cross-validation
    weights : start of the training: "source" (a source task made by the generator), "imagenet" (torchvision),
        "random", or the path of a file with a state dict
    source_images_per_class, source_size : the source task: images, and height and width in pixels
    source_epochs, epochs : passes over the training images, of the source task and of a fold
    batch_size : images per step
    optimizer : "adamw" or "sgd"
    learning_rate, source_learning_rate : as handed to torch.optim, of a fold and of the source task
    momentum, weight_decay : as handed to torch.optim
    schedule : "one-cycle", or "step" (times 0.1 every seven epochs, as in the study's code)
    augmentation : "mild" or "reference" (that of the study's code)
    dropout : of the last layer; None leaves torchvision's
    keep : which epoch's weights are kept: "best" validation accuracy, ties to the lower validation loss;
        or "first_best", ties to the earlier epoch, as in the study's code
    bfloat16 : architectures trained under bfloat16 autocast, where the device has instructions for it

    `PER_ARCHITECTURE` may hold one value, or a mapping from architecture to value with the key "default".
    """

    profile: str
    data: str
    results: Path = ROOT / "results"
    seed: int = 0
    device: str = "auto"
    scheduler: str | None = None
    workers: int | None = None
    images_per_class: int = 60
    image_size: int = 96
    architectures: tuple[str, ...] = ARCHITECTURES
    n_folds: int = 5
    weights: str = "source"
    source_images_per_class: int = 120
    source_epochs: int | Mapping[str, int] = 8
    source_size: int = 96
    source_learning_rate: float | Mapping[str, float] = 1e-3
    epochs: int | Mapping[str, int] = 6
    batch_size: int = 8
    optimizer: str = "adamw"
    learning_rate: float | Mapping[str, float] = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.01
    schedule: str = "one-cycle"
    augmentation: str = "mild"
    dropout: float | None = 0.0
    keep: str = "best"
    bfloat16: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Folder of this profile's results for this data: `results/<profile>/<study>`."""
        if self.data in EMBEDDED:
            return self.results / self.profile / self.data
        path = Path(self.data).expanduser().resolve()
        stem = re.sub(r"[^\w.-]+", "_", path.stem)
        return self.results / self.profile / f"{stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"

    def of(self, architecture: str) -> Settings:
        """The settings with the values of one architecture in the place of mappings."""
        values = {}
        for name in PER_ARCHITECTURE:
            value = getattr(self, name)
            values[name] = value.get(architecture, value["default"]) if isinstance(value, Mapping) else value
        return dataclasses.replace(self, **values)


PROFILES = {
    "quick": Settings(
        profile="quick",
        data="phantoms",
        source_epochs={"densenet201": 3, "googlenet": 5, "mobilenet_v2": 10, "default": 6},
        source_learning_rate={"mobilenet_v2": 3e-3, "default": 1e-3},
        epochs={"densenet201": 4, "googlenet": 8, "mobilenet_v2": 10, "default": 5},
        learning_rate={"mobilenet_v2": 1.5e-3, "default": 5e-4},
        bfloat16=("densenet201", "googlenet", "resnet101"),
    ),
    "paper": Settings(
        profile="paper",
        data=str(ROOT / "data" / "mendeley"),
        image_size=224,
        weights="imagenet",
        epochs=100,
        optimizer="sgd",
        learning_rate=1e-4,
        weight_decay=0.0,
        schedule="step",
        augmentation="reference",
        dropout=None,
        keep="first_best",
    ),
}
CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "optimizer": ("adamw", "sgd"),
    "schedule": ("one-cycle", "step"),
    "augmentation": ("mild", "reference"),
    "keep": ("best", "first_best"),
}
AT_LEAST = {
    "seed": 0, "images_per_class": 1, "image_size": 32, "n_folds": 3, "source_images_per_class": 1,
    "source_epochs": 1, "source_size": 32, "epochs": 1, "batch_size": 2,
}  # fmt: skip


def closest(name, known) -> str:
    """'; did you mean ...?' for an unknown name, or nothing."""
    matches = difflib.get_close_matches(str(name), [str(k) for k in known], n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(m) for m in matches)}?" if matches else ""


def get_settings(profile: str = "quick", **changes) -> Settings:
    """Settings of a profile, changed field by field.

    Parameters
    ----------
    profile : "quick" or "paper"
    **changes : fields of `Settings`; None keeps the profile's value

    Raises
    ------
    ValueError
        if the profile or a field is unknown, or a value is not one of its choices or below its minimum
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}: expected one of {sorted(PROFILES)}{closest(profile, PROFILES)}")
    fields = [f.name for f in dataclasses.fields(Settings) if f.name != "profile"]
    for name in changes:
        if name not in fields:
            raise ValueError(f"unknown setting {name!r}{closest(name, fields)}; known: {', '.join(fields)}")
    changes = {name: value for name, value in changes.items() if value is not None}
    for name in ("architectures", "bfloat16"):
        if name in changes:
            names = changes[name]
            changes[name] = (names,) if isinstance(names, str) else tuple(names)
            for architecture in changes[name]:
                if architecture not in ARCHITECTURES:
                    hint = closest(architecture, ARCHITECTURES)
                    raise ValueError(f"{name}: unknown {architecture!r}; expected some of {list(ARCHITECTURES)}{hint}")
    for name, choices in CHOICES.items():
        if changes.get(name, choices[0]) not in choices:
            raise ValueError(f"{name}: expected one of {list(choices)}, got {changes[name]!r}")
    for name, least in AT_LEAST.items():
        given = changes.get(name, least)
        for value in given.values() if isinstance(given, Mapping) and name in PER_ARCHITECTURE else [given]:
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}: expected a whole number of at least {least}, got {given!r}")
    if "results" in changes:
        changes["results"] = Path(changes["results"]).expanduser().resolve()
    for name in ("data", "weights"):
        if name in changes:
            changes[name] = str(changes[name])
    return dataclasses.replace(PROFILES[profile], **changes)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def pick_device(device: str = "auto"):
    """The torch device: "auto" takes CUDA where there is one, "cuda" without a GPU is an error."""
    import torch

    if device not in CHOICES["device"]:
        raise ValueError(f"device: expected one of {list(CHOICES['device'])}, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError('device="cuda", but torch finds no CUDA device; use "auto" or "cpu"')
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def set_threads(n: int) -> None:
    """Let torch compute with `n` threads: results on the CPU repeat exactly only with the same number."""
    import torch

    torch.set_num_threads(n)


def start(settings: Settings) -> None:
    """Seed, set threads, check the device and print what the notebook runs on."""
    seed_everything(settings.seed)
    set_threads(1)
    device = pick_device(settings.device)
    packages = " · ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "lightning", "numpy"))
    print(f"Python {platform.python_version()} · {packages}")
    print(f"profile {settings.profile} · data {Path(settings.data).name} · seed {settings.seed} · device {device} · "
          f"{os.cpu_count()} cores")  # fmt: skip
