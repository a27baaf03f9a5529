"""Every architecture on every fold: what is there is reused, what is missing is trained, folds in parallel."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import train_test_split

from helpers import compute, store
from helpers.data import folds as folds_module
from helpers.data import pictures as pictures_module
from helpers.data import study as study_module
from helpers.data.folds import make_folds, split
from helpers.data.phantom import phantoms
from helpers.data.study import Study, open_study
from helpers.models import classifiers, training
from helpers.models.classifiers import build, keep, restore
from helpers.models.training import fit, predict
from helpers.settings import Settings, pick_device

RECIPE = ("epochs", "batch_size", "optimizer", "momentum", "weight_decay", "schedule", "augmentation", "dropout",
          "keep", "seed", "image_size", "learning_rate")  # fmt: skip
LONGEST_FIRST = ("resnet101", "densenet201", "googlenet", "mobilenet_v2")


@lru_cache(maxsize=4)
def _study(data, images_per_class, seed):
    return open_study(data, images_per_class=images_per_class, seed=seed)


def study_of(settings: Settings) -> Study:
    """The study that the settings name; read once per process."""
    return _study(settings.data, settings.images_per_class, settings.seed)


def _source_study(settings):
    # Not kept: once drawn, its pictures and masks are 0.15 GB that no training of a fold needs.
    return phantoms(settings.source_images_per_class, seed=settings.seed, task="source")


def _source_settings(settings: Settings, architecture: str) -> Settings:
    own = settings.of(architecture)
    return replace(own, epochs=own.source_epochs, image_size=own.source_size, learning_rate=own.source_learning_rate)


@lru_cache(maxsize=1)
def _code():
    modules = (sys.modules[__name__], training, classifiers, folds_module, study_module, pictures_module)
    return store.fingerprint(*modules)


def _source_made_from(settings, architecture):
    recipe = _source_settings(settings, architecture)
    made_from = {name: getattr(recipe, name) for name in RECIPE}
    return made_from | {
        "data": _source_study(settings).fingerprint,
        "bfloat16": architecture in settings.bfloat16,
        "code": _code(),
    }


def source_folder(settings: Settings, architecture: str) -> Path:
    """Where the network pre-trained on the source task is kept."""
    return settings.results / settings.profile / "source" / architecture


def train_source(settings: Settings, architecture: str) -> None:
    """Train one network on the source task of the generator and keep it; see `phantoms` with task="source"."""
    folder = source_folder(settings, architecture)
    made_from = _source_made_from(settings, architecture)
    study = _source_study(settings)
    recipe = _source_settings(settings, architecture)
    which = np.arange(len(study))
    train, val = train_test_split(which, test_size=0.2, stratify=study.labels, random_state=settings.seed)
    model = build(architecture, len(study.classes), dropout=settings.dropout, seed=settings.seed)
    classifier = fit(model, architecture, study, train, val, recipe, folder, store.fingerprint(made_from))
    store.write_table(pd.DataFrame(classifier.curves), folder / "curves.parquet")
    keep(model, architecture, folder / "model.safetensors")
    _finish(folder, made_from)


def _finish(folder, made_from):
    store.seal(folder, made_from)
    for file in folder.glob("unfinished-*"):
        file.unlink()


def start_name(settings: Settings) -> str:
    """Name of a start and an input size, such as "source-96px": networks that differ in them are kept side by side."""
    start = settings.weights if settings.weights in ("source", "imagenet", "random") else Path(settings.weights).stem
    return f"{start}-{settings.image_size}px"


def fold_folder(settings: Settings, architecture: str, fold: int) -> Path:
    """Where a fold's network, curves and predictions are kept: `checkpoints/<architecture>/<start>/fold-<k>`."""
    return settings.folder / "checkpoints" / architecture / start_name(settings) / f"fold-{fold}"


def _start(settings, architecture):
    """What identifies the weights that a training starts from."""
    if settings.weights == "source":
        return store.fingerprint(_source_made_from(settings, architecture))
    if settings.weights == "imagenet":
        return f"torchvision {version('torchvision')}"
    return "random" if settings.weights == "random" else store.fingerprint(Path(settings.weights).expanduser())


def _made_from(settings, study, parts, architecture, fold):
    own = settings.of(architecture)
    made_from = {name: getattr(own, name) for name in RECIPE}
    return made_from | {
        "architecture": architecture,
        "data": study.fingerprint,
        "fold": store.fingerprint(parts),
        "start": _start(settings, architecture),
        "bfloat16": architecture in settings.bfloat16,
        "code": _code(),
    }


def train_fold(settings: Settings, architecture: str, fold: int) -> None:
    """Train one network on one fold; keep its best weights, curves, and predictions on validation and test images."""
    study = study_of(settings)
    parts = split(make_folds(study, settings.n_folds, settings.seed), fold)
    folder = fold_folder(settings, architecture, fold)
    made_from = _made_from(settings, study, parts, architecture, fold)
    weights = settings.weights
    if weights == "source":
        weights = str(source_folder(settings, architecture) / "model.safetensors")
    model = build(architecture, len(study.classes), weights, settings.dropout, settings.seed)
    key = store.fingerprint(made_from)
    classifier = fit(model, architecture, study, parts["train"], parts["val"], settings, folder, key)
    rows = []
    for part in ("val", "test"):
        probs = predict(model, study.images(settings.image_size, parts[part]))
        table = pd.DataFrame(probs, columns=[f"p_{name}" for name in study.classes])
        table.insert(0, "name", [study.names[i] for i in parts[part]])
        table.insert(1, "part", part)
        table.insert(2, "label", [study.classes[k] for k in study.labels[parts[part]]])
        table.insert(3, "predicted", [study.classes[k] for k in probs.argmax(1)])
        rows.append(table)
    store.write_table(pd.concat(rows, ignore_index=True), folder / "predictions.parquet")
    curves = pd.DataFrame(classifier.curves).assign(kept=lambda t: t["epoch"] == classifier.best["epoch"])
    store.write_table(curves, folder / "curves.parquet")
    keep(model, architecture, folder / "model.safetensors")
    _finish(folder, made_from)


def _train(settings, architecture, fold):
    """Train a fold, or the source task for no fold."""
    train_source(settings, architecture) if fold is None else train_fold(settings, architecture, fold)


def train_folds(settings: Settings, folds=None) -> pd.DataFrame:
    """Train what is missing or was made from other data, settings or code; say what was found and what is trained.

    Parameters
    ----------
    settings : what to train; see `Settings`
    folds : fold numbers; None for all

    Returns
    -------
    one row per architecture and fold: architecture, fold, status ("found" or "trained") and why it was trained

    Raises
    ------
    compute.TasksFailed
        after all others have finished, if a training failed; the next call trains only what is missing
    """
    study = study_of(settings)
    table = make_folds(study, settings.n_folds, settings.seed)
    store.write_table(table, settings.folder / "folds.csv")
    folds = range(settings.n_folds) if folds is None else folds
    rows = []
    for architecture in settings.architectures:
        for fold in folds:
            made_from = _made_from(settings, study, split(table, fold), architecture, fold)
            why = store.changed(fold_folder(settings, architecture, fold), made_from)
            rows.append((architecture, fold, "trained" if why else "found", ", ".join(why)))
    status = pd.DataFrame(rows, columns=["architecture", "fold", "status", "why"])
    # The longest trainings begin first, so that no worker is left with one at the end.
    missing = status[status["status"] == "trained"].sort_values(
        "architecture", key=lambda a: a.map(LONGEST_FIRST.index)
    )
    if missing.empty:
        print(f"{len(status)} of {len(status)} networks found, made from the same data, settings and code: "
              "nothing to train")  # fmt: skip
        return status
    reasons = "; ".join(f"{why} ({n})" for why, n in missing["why"].value_counts().items())
    print(f"{len(status) - len(missing)} of {len(status)} networks found, {len(missing)} to train: {reasons}")
    workers = settings.workers
    if workers is None and pick_device(settings.device).type == "cuda":
        workers = torch.cuda.device_count()
    needed = list(dict.fromkeys(missing["architecture"])) if settings.weights == "source" else []
    sources = [a for a in needed if store.changed(source_folder(settings, a), _source_made_from(settings, a))]
    with compute.pool(settings.scheduler, workers) as pool:
        tasks = {f"{a}, source task": (settings, a, None) for a in sources}
        for architecture, fold in zip(missing["architecture"], missing["fold"], strict=True):
            tasks[f"{architecture}, fold {fold}"] = settings, architecture, fold
        after = {name: f"{name.split(',')[0]}, source task" for name in list(tasks)[len(sources) :]}
        pool.run(_train, tasks, f"{len(tasks)} trainings", lambda name: name.split(",")[0], after)
    return status


def load_fold(settings: Settings, architecture: str, fold: int):
    """The kept network of a fold, in eval mode, on the device of the settings.

    Raises
    ------
    FileNotFoundError
        if the fold has not been trained
    """
    return restore(_kept(settings, architecture, fold) / "model.safetensors").to(pick_device(settings.device))


def _kept(settings, architecture, fold):
    folder = fold_folder(settings, architecture, fold)
    if not (folder / store.SEAL).is_file():
        raise FileNotFoundError(f"{architecture}, fold {fold}: not trained yet; call train_folds(settings) first")
    return folder


def _gather(settings, file):
    tables = []
    for architecture in settings.architectures:
        for fold in range(settings.n_folds):
            table = pd.read_parquet(_kept(settings, architecture, fold) / file)
            tables.append(table.assign(architecture=architecture, fold=fold))
    table = pd.concat(tables, ignore_index=True)
    return table[["architecture", "fold", *table.columns[:-2]]]


def predictions(settings: Settings) -> pd.DataFrame:
    """Every fold's predictions: architecture, fold, name, part ("val", "test"), label, predicted, p_<class>."""
    return _gather(settings, "predictions.parquet")


def curves(settings: Settings) -> pd.DataFrame:
    """Every fold's curves: architecture, fold, epoch, train / val loss and accuracy, learning_rate, kept."""
    return _gather(settings, "curves.parquet")
