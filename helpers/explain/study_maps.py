"""Maps of a whole study: every network explains the test images of its fold, and what is there is reused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
import zarr

from helpers import compute, store
from helpers.data.folds import make_folds, split
from helpers.explain import attributions, cams, channels, cut, engine, incremental, inference, libraries, occlusion
from helpers.explain.engine import METHODS, describe, explain, is_general
from helpers.explain.options import get_options
from helpers.models import cross_validation as cv
from helpers.models.classifiers import stage
from helpers.settings import Settings, pick_device

BATCH = 8  # images of a task, where a round has no more; an interruption loses no more than this
TARGETS = ("predicted", "true")
FORMAT = {"zarr_format": 2, "consolidated": False}


@lru_cache(maxsize=1)
def _code():
    return store.fingerprint(attributions, cams, channels, cut, engine, incremental, inference, libraries, occlusion)


def _group(settings, architecture, layer, method, targets, options, fold, number) -> Path:
    """Group of a zarr hierarchy: maps.zarr/<architecture>/<start>/<layer>/<method>/<choice>/fold-<k>-round-<n>.

    A round holds one test image of each class, so that a few rounds are the beginning of every longer choice. The
    choice is that of targets and options; maps of different choices stand side by side.
    """
    place = (f"stride-{layer}" if isinstance(layer, int) else layer) if is_general(method) else "pixels"
    choice = f"{targets}-{store.fingerprint(describe(method, get_options(options)))[:6]}"
    parts = architecture, cv.start_name(settings), place, method, choice
    return settings.folder.joinpath("maps.zarr", *parts, f"fold-{fold}-round-{number}")


@cache
def _hash(file, written):
    return store.fingerprint(file)


def network_fingerprint(settings: Settings, architecture: str, fold: int) -> str:
    """Fingerprint of the kept weights of a fold; the file is read once as long as it is not written again."""
    file = cv.fold_folder(settings, architecture, fold) / "model.safetensors"
    return _hash(file, file.stat().st_mtime_ns)


def _made_from(settings, architecture, fold, which, layer, method, targets, options):
    network = network_fingerprint(settings, architecture, fold)
    study, kind = cv.study_of(settings), describe(method, get_options(options))
    return store.fingerprint(_code(), network, study.fingerprint, which, layer, method, targets, kind)


def _stored(group) -> str:
    """What the batch was made from; nothing where it is missing or was not written to its end."""
    try:
        return json.loads((group / ".zattrs").read_text())["made_from"]
    except (OSError, ValueError, KeyError):
        return ""


def explain_batch(settings, architecture, fold, rounds, layer, groups: dict, targets, options) -> None:
    """Explain some rounds of images of a fold by the methods in `groups`, a mapping to where each round is kept and
    what it is made from."""
    study, model, which = cv.study_of(settings), cv.load_fold(settings, architecture, fold), np.concatenate(rounds)
    name = stage(architecture, layer) if isinstance(layer, int) else layer
    wanted = study.labels[which] if targets == "true" else None
    found = explain(model, study.images(settings.image_size, which), tuple(groups), wanted, name, **options)
    found = found.assign_coords(name=("image", np.array(study.names)[which]), fold=("image", [fold] * len(which)))
    ends = np.cumsum([len(part) for part in rounds])
    for method, kept in groups.items():
        for (group, made_from), part, end in zip(kept, rounds, ends, strict=True):
            one = found[[method]].isel(image=slice(end - len(part), end)).assign_attrs(made_from=made_from)
            for cost in ("forwards", "seconds"):
                one[method].attrs[cost] = found[method].attrs[cost] * len(part) / len(which)
            with store.replacing(group) as temporary:
                one.to_zarr(temporary, **FORMAT)


def maps(
    settings: Settings,
    methods: Sequence[str] | str = METHODS,
    layer: int | str = 32,
    targets: str = "predicted",
    per_class: int | None = None,
    folds: Sequence[int] | None = None,
    **options,
) -> dict[str, xr.Dataset]:
    """Make what is missing of the maps of every network, fold and test image, in parallel, and open all of them.

    Parameters
    ----------
    settings : the study, and its trained networks; see `cross_validation.train_folds`
    methods : as in `engine.explain`
    layer : stride of a stage, as in `classifiers.stage`, or the dotted name of a module
    targets : "predicted" or "true" class
    per_class : only the first so many test images of each class in each fold; None for all
    folds : fold numbers; None for all
    **options : fields of `options.Options`

    Returns
    -------
    architecture to a Dataset like that of `explain`, read from disk when used, with the coordinates `name` and `fold`
    of every image. What each method cost is in `map_costs`.

    Raises
    ------
    ValueError
        if an argument does not fit
    compute.TasksFailed
        after all others have finished, if a batch failed; the next call makes only what is missing
    """
    methods = (methods,) if isinstance(methods, str) else tuple(methods)
    if targets not in TARGETS:
        raise ValueError(f"targets: expected one of {TARGETS}, got {targets!r}")
    get_options(options)
    with store.one_at_a_time(settings.folder, "explaining"):
        wanted, tasks = _plan(settings, methods, layer, targets, per_class, folds, options)
        _make(settings, tasks)
    return {name: _open(groups) for name, groups in wanted.items()}


def _plan(settings, methods, layer, targets, per_class, folds, options):
    """Every group that is wanted, and the tasks that make those which are missing or were made from something else."""
    study = cv.study_of(settings)
    table = make_folds(study, settings.n_folds, settings.seed)
    wanted, tasks = {}, {}
    for architecture in settings.architectures:
        for fold in range(settings.n_folds) if folds is None else folds:
            place, begun = (settings, architecture, fold), 0
            for rounds in _batches(_rounds(study.labels, split(table, fold)["test"], per_class)):
                groups = {}
                for method in methods:
                    kept = [
                        (_group(settings, architecture, layer, method, targets, options, fold, begun + i),
                         _made_from(*place, which, layer, method, targets, options))
                        for i, which in enumerate(rounds)
                    ]  # fmt: skip
                    wanted.setdefault(architecture, {}).setdefault(method, []).extend(group for group, _ in kept)
                    if any(_stored(group) != made_from for group, made_from in kept):
                        groups[method] = kept
                if groups:
                    name = f"{architecture}, fold {fold}, from round {begun}"
                    tasks[name] = (*place, rounds, layer, groups, targets, options)
                begun += len(rounds)
    return wanted, tasks


def _rounds(labels, test, per_class):
    """Test images in rounds of one of each class: the first few rounds begin any longer choice."""
    rank = pd.Series(test).groupby(labels[test]).cumcount().to_numpy()
    number = rank.max(initial=-1) + 1
    return [
        test[rank == k][np.argsort(labels[test[rank == k]], kind="stable")]
        for k in range(number if per_class is None else min(number, per_class))
    ]


def _batches(rounds):
    """Rounds put together, of at most `BATCH` images where that is possible."""
    together = []
    for part in rounds:
        if together and sum(map(len, together)) + len(part) > BATCH:
            yield together
            together = []
        together.append(part)
    if together:
        yield together


def _make(settings, tasks):
    if not tasks:
        print("every map found, made from the same networks, images, settings and code: nothing to explain")
        return
    workers = 0 if pick_device(settings.device).type == "cuda" else settings.workers
    zarr.open_group(settings.folder / "maps.zarr", mode="a", zarr_format=2)
    with compute.pool(settings.scheduler, workers) as pool:
        pool.run(explain_batch, tasks, f"{len(tasks)} batches of maps")


def _open(groups):
    """One Dataset of all batches of all methods."""
    methods = [
        xr.concat([xr.open_zarr(group, consolidated=False) for group in batches], "image", combine_attrs="drop")
        for batches in groups.values()
    ]
    return xr.merge(methods, compat="override", join="exact", combine_attrs="drop")


def map_costs(settings: Settings) -> pd.DataFrame:
    """What the stored maps cost: architecture, start, layer, method, images, forwards, seconds; summed over batches.

    Forwards are images that passed the whole network, seconds those of one thread.
    """
    root, rows = settings.folder / "maps.zarr", []
    for file in sorted(root.glob("*/*/*/*/*/*/.zattrs")):
        *place, method, _ = file.parent.parent.relative_to(root).parts
        with xr.open_zarr(file.parent, consolidated=False) as batch:
            about = batch[method].attrs
            rows.append((*place, method, batch.sizes["image"], about["forwards"], about["seconds"]))
    keys = ["architecture", "start", "layer", "method"]
    table = pd.DataFrame(rows, columns=[*keys, "images", "forwards", "seconds"])
    return table.groupby(keys, as_index=False).sum()
