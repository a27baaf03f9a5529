"""Heat maps against masks of objects: pointing game, energy, overlap of masks and of boxes, and the size of the map."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score
from torch.nn.functional import adaptive_max_pool2d, max_pool2d

from helpers.evaluate.statistics import Interval

MEASURES = ("pointing game", "energy in object", "IoU of mask", "IoU of box", "area")
TOLERANCE = 15 / 320  # of the side: 15 pixels at the size at which PASCAL VOC is shown to the network


def _checked(heatmaps, masks, ignored):
    """Heat maps with NaN where a pixel is ignored, masks, what counts, and which maps are flat."""
    heatmaps, masks = np.asarray(heatmaps, float), np.asarray(masks)
    if heatmaps.ndim != 3 or heatmaps.shape != masks.shape:
        raise ValueError(f"heatmaps {heatmaps.shape} and masks {masks.shape}: expected (P, H, W) of one shape")
    ignored = np.zeros(masks.shape, bool) if ignored is None else np.asarray(ignored)
    for name, values in {"masks": masks, "ignored": ignored}.items():
        if values.dtype != bool or values.shape != masks.shape:
            raise ValueError(f"{name}: expected bool {masks.shape}, got {values.dtype} {values.shape}")
    missing = np.isnan(heatmaps)
    if (missing.any((1, 2)) != missing.all((1, 2))).any():
        raise ValueError("heatmaps: some pixels are NaN; only a whole map may be, to say that it is flat")
    if (heatmaps[~missing] < 0).any() or (heatmaps[~missing] > 1).any():
        raise ValueError("heatmaps: values outside [0, 1]; see to_heatmap")
    masks = masks & ~ignored
    empty = np.flatnonzero(~masks.any((1, 2)))
    if len(empty):
        raise ValueError(f"masks: mask {empty[0]} has no pixel that counts; leave such a pair out and say so")
    seen = np.where(ignored, np.nan, heatmaps)
    flat = ~(np.nanmax(np.where(missing, 0, seen), (1, 2)) > np.nanmin(np.where(missing, 0, seen), (1, 2)))
    return seen, masks, flat


def pointing_game(heatmaps, masks, ignored=None, tolerance: float = 0.0) -> np.ndarray:
    r"""Whether a heat map peaks on the object.

    .. math:: \frac{|\{p \in P : d(p, O) \le t\}|}{|P|}, \qquad P = \{p : h_p = \max h\}

    Parameters
    ----------
    heatmaps : (P, H, W) float in [0, 1], or NaN everywhere for a flat map
    masks : (P, H, W) bool, the object O
    ignored : (P, H, W) bool, pixels that count neither as object nor as ground; None for none
    tolerance : t in pixels: a peak as close to the object as that is a hit, for a coarse grid cannot do better

    Returns
    -------
    (P,) in [0, 1]: 1 on the object, 0 beside it, the share of the peaks where there are several; NaN for a flat map

    Raises
    ------
    ValueError
        if shapes differ, a mask is empty, or a heat map leaves [0, 1] or is partly NaN

    References
    ----------
    .. [1] Zhang et al., Top-down Neural Attention by Excitation Backprop, arXiv:1608.00507.
    """
    seen, masks, flat = _checked(heatmaps, masks, ignored)
    if tolerance < 0:
        raise ValueError(f"tolerance: expected at least 0 pixels, got {tolerance}")
    if tolerance:
        masks = np.stack([ndimage.distance_transform_edt(~mask) <= tolerance for mask in masks])
    filled = np.nan_to_num(seen, nan=-1.0)
    peaks = filled == filled.max((1, 2), keepdims=True)
    return np.where(flat, np.nan, (peaks & masks).sum((1, 2)) / peaks.sum((1, 2)))


def energy_in_object(heatmaps, masks, ignored=None) -> np.ndarray:
    r"""Share of a heat map's sum that lies on the object, (P,); arguments and NaN as in `pointing_game`.

    .. math:: \sum_{p \in O} h_p \Big/ \sum_p h_p
    """
    seen, masks, flat = _checked(heatmaps, masks, ignored)
    total, inside = np.nansum(seen, (1, 2)), np.nansum(np.where(masks, seen, 0), (1, 2))
    return np.where(flat, np.nan, inside / np.where(flat, 1, total))


def mask_iou(heatmaps, masks, threshold: float, ignored=None) -> np.ndarray:
    r"""Overlap of a thresholded heat map with the object, (P,); other arguments and NaN as in `pointing_game`.

    .. math:: \frac{|B \cap O|}{|B \cup O|}, \qquad B = \{p : h_p \ge threshold\}
    """
    seen, masks, flat = _checked(heatmaps, masks, ignored)
    bright = seen >= _share(threshold)
    return np.where(flat, np.nan, (bright & masks).sum((1, 2)) / (bright | masks).sum((1, 2)))


def area(heatmaps, threshold: float) -> np.ndarray:
    """(P,) share of the pixels at which a heat map (P, H, W) reaches a threshold; NaN for a flat map."""
    heatmaps = np.asarray(heatmaps, float)
    bright = (heatmaps >= _share(threshold)).mean((1, 2))
    return np.where(np.isnan(heatmaps).all((1, 2)), np.nan, bright)


def roughness(raw) -> np.ndarray:
    r"""Mean step between neighbouring positions of a raw map's positive part, as a share of its maximum.

    .. math:: \tfrac12 (\overline{|h_{i+1,j} - h_{ij}|} + \overline{|h_{i,j+1} - h_{ij}|}), \qquad
        h = \max(M, 0) / \max M

    Parameters
    ----------
    raw : (P, h, w) raw signed maps, at least 2 x 2

    Returns
    -------
    (P,) in [0, 1]: small for a smooth map; NaN where nothing is positive
    """
    raw = np.asarray(raw, float)
    largest = raw.max((1, 2), keepdims=True)
    shares = np.maximum(raw, 0) / np.where(largest > 0, largest, np.nan)
    return (np.abs(np.diff(shares, axis=1)).mean((1, 2)) + np.abs(np.diff(shares, axis=2)).mean((1, 2))) / 2


def box_iou(heatmaps, boxes, threshold: float) -> np.ndarray:
    """Overlap of the box around the largest connected part of a thresholded heat map with a box of the object.

    Parameters
    ----------
    heatmaps : (P, H, W) float in [0, 1], or NaN everywhere for a flat map
    boxes : P arrays (m, 4) of left, top, right, bottom in pixels, ends excluded
    threshold : in (0, 1]

    Returns
    -------
    (P,) in [0, 1], of the best of the m boxes; NaN for a flat map, and where no box is known
    """
    heatmaps = np.asarray(heatmaps, float)
    if len(heatmaps) != len(boxes):
        raise ValueError(f"boxes: expected {len(heatmaps)}, one array per heat map, got {len(boxes)}")
    overlaps = np.full(len(heatmaps), np.nan)
    for i, (bright, known) in enumerate(zip(heatmaps >= _share(threshold), boxes, strict=True)):
        if not bright.any() or not len(known):
            continue
        parts, _ = ndimage.label(bright)
        rows, columns = np.nonzero(parts == np.bincount(parts.ravel())[1:].argmax() + 1)
        own = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        shared = (np.minimum(own[2:], known[:, 2:]) - np.maximum(own[:2], known[:, :2])).clip(min=0).prod(1)
        union = (own[2:] - own[:2]).prod() + (known[:, 2:] - known[:, :2]).prod(1) - shared
        overlaps[i] = (shared / union).max()
    return overlaps


def _share(threshold):
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: expected a number in (0, 1], got {threshold}")
    return threshold


def object_scores(heatmaps, found, threshold: float = 0.5, tolerance: float = 0.0) -> pd.DataFrame:
    """All `MEASURES` of heat maps (P, H, W) against `found`, the `Objects` of P pairs of an image and a class.

    Returns
    -------
    one row per pair: image, target, object area, and the measures; NaN in a measure for a flat map
    """
    measured = {
        "pointing game": pointing_game(heatmaps, found.masks, found.ignored, tolerance),
        "energy in object": energy_in_object(heatmaps, found.masks, found.ignored),
        "IoU of mask": mask_iou(heatmaps, found.masks, threshold, found.ignored),
        "IoU of box": box_iou(heatmaps, found.boxes, threshold),
        "area": area(heatmaps, threshold),
    }
    seen = (~found.ignored).sum((1, 2))
    known = {"image": found.image, "target": found.target, "object area": found.masks.sum((1, 2)) / seen}
    return pd.DataFrame(known | measured)


def forecast(raw, masks) -> np.ndarray:
    """What a raw map adds up to at an object: over the positions of its grid that it touches and their neighbours.

    Parameters
    ----------
    raw : (P, h, w) raw signed maps
    masks : (P, H, W) bool, at least as large

    Returns
    -------
    (P,) in units of the map: for HiResCAM those of the logit, and so a forecast of how far the logit falls when the
    object is hidden. The neighbours are in it because a position sees more than its own pixels.
    """
    raw, masks = np.asarray(raw, np.float64), np.asarray(masks)
    if raw.ndim != 3 or masks.ndim != 3 or len(raw) != len(masks) or masks.dtype != bool:
        raise ValueError(f"raw {raw.shape}, masks {masks.dtype} {masks.shape}: expected (P, h, w) and bool (P, H, W)")
    touched = adaptive_max_pool2d(torch.from_numpy(masks[:, None].astype(np.float32)), raw.shape[1:])
    return (raw * max_pool2d(touched, 3, 1, 1)[:, 0].numpy()).sum((1, 2))


def rank_agreement(forecasts, truth, groups, n_resamples: int = 500, level: float = 0.95, seed: int = 0) -> dict:
    """Spearman's correlation of two forecasts with the truth, and the difference, with a bootstrap over groups.

    Parameters
    ----------
    forecasts : mapping of two names to (P,) numbers
    truth : (P,) numbers
    groups : (P,) label of what varies independently, such as the image
    n_resamples, level, seed : of the bootstrap

    Returns
    -------
    name to Interval of both forecasts, and "difference": the first less the second; n counts groups
    """
    if len(forecasts) != 2:
        raise ValueError(f"forecasts: expected two, got {list(forecasts)}")
    values, truth = np.array(list(forecasts.values()), float), np.asarray(truth, float)
    members = list(pd.Series(np.arange(len(truth))).groupby(np.asarray(groups)).apply(np.array))

    def both(which):
        one, other = (spearmanr(row[which], truth[which]).statistic for row in values)
        return one, other, one - other

    rng, n = np.random.default_rng(seed), len(members)
    drawn = [both(np.concatenate([members[i] for i in rng.integers(n, size=n)])) for _ in range(n_resamples)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    rows = zip((*forecasts, "difference"), both(slice(None)), low, high, strict=True)
    return {name: Interval(float(mean), float(a), float(b), n) for name, mean, a, b in rows}


def mean_average_precision(labels, probs, n_resamples: int = 200, level: float = 0.95, seed: int = 0) -> Interval:
    """Average precision of each class, averaged over the classes that occur, with a bootstrap over images.

    Parameters
    ----------
    labels : (N, K) bool
    probs : (N, K) scores, larger where the class is rather there
    n_resamples, level, seed : of the bootstrap; it leaves out classes that a resample does not hold

    Returns
    -------
    Interval; n counts images

    Raises
    ------
    ValueError
        if shapes differ or no image shows any class
    """
    labels, probs = np.asarray(labels, bool), np.asarray(probs, float)
    if labels.ndim != 2 or labels.shape != probs.shape:
        raise ValueError(f"labels {labels.shape} and probs {probs.shape}: expected (N, K) of one shape")
    if not labels.any():
        raise ValueError("labels: no image shows any class")

    def mean(which):
        some = labels[which].any(0)
        return average_precision_score(labels[which][:, some], probs[which][:, some], average="macro")

    rng, n = np.random.default_rng(seed), len(labels)
    drawn = [rng.integers(n, size=n) for _ in range(n_resamples)]
    means = [mean(which) for which in drawn if labels[which].any()]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(mean(np.arange(n))), float(low), float(high), n)
