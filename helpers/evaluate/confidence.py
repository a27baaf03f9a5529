"""Whether a network uses what a heat map marks: its confidence once that part of the image, or the rest, is covered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np
import pandas as pd
import torch
from pytorch_grad_cam.metrics.road import ROADCombined
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from torch import nn
from torchvision.transforms.v2.functional import gaussian_blur

from helpers.evaluate.localization import THRESHOLDS, check_heatmap
from helpers.evaluate.statistics import intervals
from helpers.explain.inference import CACHED, SHARE, gathered, in_cache, largest, packed
from helpers.explain.layers import check_eval, check_images, check_logits, prepare
from helpers.explain.options import MEMORY

COVERS = ("heatmap", "mask")
PARTS = ("important", "unimportant")
FILLS = ("zero", "mean", "blur")
SCORES = ("probs", "logits")
LEGACY = ("transposed map", "raw logits")
BLUR = 0.05  # standard deviation of the blurred fill, as a share of the height


def confidence(
    model: nn.Module,
    images,
    heatmaps,
    cover: str | Sequence[str] = "heatmap",
    part: str | Sequence[str] = "important",
    thresholds: Sequence[float] = THRESHOLDS,
    fill: str = "zero",
    scores: str = "probs",
    targets=None,
    legacy: bool | str | Sequence[str] = False,
    memory: int | None = None,
) -> pd.DataFrame:
    r"""Confidence p on the image and p' on the covered image, for every image, map, cover, part and threshold.

    .. math:: x' = k x + (1 - k) b, \qquad drop = \max(0, p - p'), \qquad relative = drop / p, \qquad increase = p' > p

    with k what is kept of a pixel. The important part is covered by :math:`k = 1 - h` (cover "heatmap", a darkening) or
    :math:`k = [h < t]` (cover "mask"), the unimportant part by :math:`k = h` or :math:`k = [h \ge t]`. A good map loses
    much of p in the first case and little in the second. The network was not trained on covered images: a drop may come
    from the cover itself, so look at both parts and at other fills.

    Parameters
    ----------
    model : network in eval mode, (N, C, H, W) -> logits (N, K)
    images : (N, C, H, W) in [0, 1]
    heatmaps : (N, H, W) in [0, 1], or a mapping from name to such; see `to_heatmap`
    cover : "heatmap", "mask" or both
    part : "important", "unimportant" or both
    thresholds : of the masks, in (0, 1]
    fill : b: "zero", "mean" (of the image and channel) or "blur" (the image under a Gaussian)
    scores : p is softmax probability ("probs") or logit ("logits")
    targets : class of every image, or one for all; None for the class predicted on the intact image
    legacy : mistakes of the study's code to repeat: some of `LEGACY`, or True for both. "transposed map" swaps height
        and width of the maps, so that the wrong region is covered; "raw logits" takes `scores` to be "logits".
    memory : bytes that a batch may take; None as in `explain`

    Returns
    -------
    DataFrame with the columns image (0 to N - 1), map, cover, part, threshold (NaN for cover "heatmap"), target, p,
    p_covered, drop, relative_drop (NaN where p is not positive) and increase (0 or 1); the last four are NaN where the
    map is flat or NaN. Equal covers of an image are scored once. Bring in groups and folds for `drop_and_increase` with
    ``table.assign(group=groups[table["image"]])``.

    Raises
    ------
    ValueError
        if an argument is unknown, shapes do not fit, a map leaves [0, 1] or is partly NaN, or the model lacks a class

    References
    ----------
    .. [1] Chattopadhay et al., Grad-CAM++: Generalized Gradient-Based Visual Explanations for Deep Convolutional
       Networks, WACV 2018, arXiv:1710.11063.
    .. [2] Code of the skin ultrasound study, github.com/annasli378/SaliencyCNNAnalysis.
    """
    covers, sides = _some("cover", cover, COVERS), _some("part", part, PARTS)
    mistakes = _some("legacy", (LEGACY if legacy is True else legacy) or (), LEGACY)
    (fill,), (scores,) = _some("fill", fill, FILLS), _some("scores", scores, SCORES)
    thresholds = [float(threshold) for threshold in np.atleast_1d(thresholds)]
    if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
        raise ValueError(f"thresholds: expected numbers in (0, 1], got {thresholds}")
    check_eval(model)
    check_images(images)
    maps = _maps(heatmaps, images, "transposed map" in mistakes)
    kinds = [(c, t) for c in covers for t in (thresholds if c == "mask" else [np.nan])]
    with torch.inference_mode():
        images = prepare(model, images).contiguous(memory_format=torch.channels_last)
        network, fills = packed(model, images[:1]), _fill(images, fill)
        covered, rows = _Covers(maps), []
        for name, values in maps.items():
            for i in np.flatnonzero(check_heatmap(values)):
                rows += [(i, name, c, p, t, covered.number(i, name, c, p, t)) for c, t in kinds for p in sides]

        def look(which):
            kept = [covered.kept(*job) for job in covered.jobs[which]]
            kept, i = torch.from_numpy(np.stack(kept)).to(images)[:, None], [job[0] for job in covered.jobs[which]]
            return network(images[i] * kept + fills[i] * (1 - kept)).double()

        memory = MEMORY.get(images.device.type, MEMORY["cuda"]) if memory is None else memory
        each = SHARE * max(largest(network, images), images[0].numel() * images.element_size())
        logits = gathered(look, len(covered.jobs), each, in_cache(memory, CACHED, images.device)).cpu()
    check_logits(logits)
    raw = scores == "logits" or "raw logits" in mistakes
    values, wanted = (logits if raw else logits.softmax(1)).numpy(), _targets(targets, logits[: len(images)])
    index = [(i, name, c, p, t) for name in maps for i in range(len(images)) for c, t in kinds for p in sides]
    table = pd.DataFrame(index, columns=["image", "map", "cover", "part", "threshold"])
    keys = ["image", "map", "cover", "part", "threshold"]
    table = table.merge(pd.DataFrame(rows, columns=[*keys, "job"]).astype({"image": int}), "left", keys)
    job = table.pop("job").to_numpy(float)
    table["target"], known = wanted[table["image"]], ~np.isnan(job)
    table["p"], table["p_covered"] = values[table["image"], table["target"]], np.nan
    table.loc[known, "p_covered"] = values[job[known].astype(int), table["target"][known]]
    table["drop"] = (table["p"] - table["p_covered"]).clip(lower=0)
    table["relative_drop"] = table["drop"] / table["p"].where(table["p"] > 0)
    table["increase"] = (table["p_covered"] > table["p"]).astype(float).where(known)
    return table


class _Covers:
    """The different covers of every image; the first N jobs are the intact images."""

    def __init__(self, maps):
        first = next(iter(maps.values()))
        self.maps, self.whole = maps, np.ones(first.shape[1:], np.float32)
        self.jobs, self.numbers = [], {}
        for i in range(len(first)):
            self._add(i, self.whole, (i, None, None, None, None))

    def kept(self, i, name, cover, part, threshold):
        """(H, W) float32: what is kept of every pixel of image i."""
        if name is None:
            return self.whole
        heatmap = self.maps[name][i]
        marked = heatmap if cover == "heatmap" else (heatmap >= np.float32(threshold)).astype(np.float32)
        return 1 - marked if part == "important" else marked

    def number(self, *job):
        return self._add(job[0], self.kept(*job), job)

    def _add(self, i, kept, job):
        key = i, blake2b(kept.tobytes(), digest_size=16).digest()
        if key not in self.numbers:
            self.numbers[key] = len(self.jobs)
            self.jobs.append(job)
        return self.numbers[key]


def drop_and_increase(
    table: pd.DataFrame, by: Sequence[str] = ("map", "cover", "part", "threshold"), legacy: bool = False, **options
) -> pd.DataFrame:
    """Drop in Confidence (DiC), relative DiC and Increase in Confidence (IiC) of a table made by `confidence`.

    Parameters
    ----------
    table : with the columns "group" and "fold" where they are known
    by : columns to tell apart
    legacy : divide by the count of all images, those whose map is flat too, as the study's code does
    **options : of `statistics.bootstrap_interval`

    Returns
    -------
    like that of `statistics.intervals`, with the outermost index level "measure": "DiC" (mean drop), "relative DiC" and
    "IiC" (share of the images whose confidence increases)
    """
    measures = {"DiC": "drop", "relative DiC": "relative_drop", "IiC": "increase"}
    return pd.concat(
        {name: intervals(table, by, column, legacy, **options) for name, column in measures.items()}, names=["measure"]
    )


def road(model: nn.Module, images, heatmaps, targets=None, seed: int = 0, **options) -> np.ndarray:
    """ROAD of grad-cam: pixels are replaced by noisy means of their neighbours, least important first and most first.

    Parameters
    ----------
    model, images, heatmaps, targets : as in `confidence`; one array of heat maps
    seed : of the noise
    **options : percentiles of pixels that are removed; 10, 20, ... 90

    Returns
    -------
    (N,) half the difference of the mean probability, least important removed minus most important removed; positive
    where the map ranks pixels as the network uses them; NaN where the map is flat. Slow: a linear system per image,
    order and percentile.

    References
    ----------
    .. [1] Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods, ICML 2022,
       arXiv:2202.00449.
    """
    check_eval(model)
    check_images(images)
    heatmaps = _maps(heatmaps, images, False)[""]
    images, result = prepare(model, images), np.full(len(images), np.nan)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        wanted, known = _targets(targets, model(images)), np.flatnonzero(check_heatmap(heatmaps))
        torch.manual_seed(seed)
        for i in known:
            target = [ClassifierOutputSoftmaxTarget(int(wanted[i]))]
            result[i] = ROADCombined(**options)(images[[i]], heatmaps[[i]], target, model)[0]
    return result


def _some(name, given, known):
    given = (given,) if isinstance(given, str) else tuple(given)
    if not set(given) <= set(known) or (not given and name != "legacy"):
        raise ValueError(f"{name}: expected some of {known}, got {given}")
    return given


def _maps(heatmaps, images, transposed):
    maps = heatmaps if isinstance(heatmaps, Mapping) else {"": heatmaps}
    maps = {name: np.asarray(values, np.float32) for name, values in maps.items()}
    wanted = (images.shape[0], *images.shape[2:])
    for name, values in maps.items():
        if values.shape != wanted:
            raise ValueError(f"heatmaps {name}: expected {wanted} as the images, got {values.shape}")
        check_heatmap(values)
    if transposed and wanted[1] != wanted[2]:
        raise ValueError(f"legacy: only square maps can be transposed, got {wanted[1:]}")
    if not maps:
        raise ValueError("heatmaps: expected at least one")
    return {name: np.ascontiguousarray(values.swapaxes(1, 2)) for name, values in maps.items()} if transposed else maps


def _fill(images, fill):
    if fill == "zero":
        return torch.zeros_like(images)
    if fill == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    sigma = max(0.5, BLUR * images.shape[2])
    return gaussian_blur(images, [2 * round(3 * sigma) + 1] * 2, [sigma] * 2)


def _targets(targets, logits):
    if targets is None:
        return logits.argmax(1).cpu().numpy()
    n, n_classes = logits.shape
    targets = np.asarray(targets)
    if targets.dtype.kind not in "iu" or targets.shape not in ((), (n,)):
        raise ValueError(f"targets: expected None, one class index or {n}, got {targets.dtype} {targets.shape}")
    wrong = np.unique(targets[(targets < 0) | (targets >= n_classes)])
    if len(wrong):
        raise ValueError(f"targets: no class {wrong.tolist()}; the model has classes 0 to {n_classes - 1}")
    return np.broadcast_to(targets, n)
