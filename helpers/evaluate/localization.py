"""Where a heat map looks, against a map of the skin's layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from skimage.filters import sobel

from helpers.data.layer_maps import LEVELS

LAYER_SCORES = {255: 3.0, 128: 2.0, 64: 1.0, 32: 0.0, 0: -1.0}
HIT_RATE_2 = {255: 1.0, 128: 0.0, 64: 0.0, 32: 0.0, 0: -1.0}
LEVEL_WEIGHTS = {255: 1.0, 128: 0.5, 64: 0.25}
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
BLOCK = 2**18  # pixels that are worked on at once: their temporary arrays stay in the cache


def score_map(layer_map, scores: Mapping[int, float] = LAYER_SCORES) -> np.ndarray:
    """(..., H, W) float: the score of every pixel's layer.

    Raises
    ------
    ValueError
        if the layer map is not uint8 or holds a level without a score
    """
    layer_map = np.asarray(layer_map)
    table = _table(scores, np.nan)
    _check_levels(layer_map, scores)
    return table[layer_map]


def _table(values, other=0.0):
    """(256,) value of every level; `other` for the rest."""
    table = np.full(256, other)
    for level, value in values.items():
        table[level] = value
    return table


def _check_levels(layer_map, known):
    if layer_map.dtype != np.uint8:
        hint = "; the image has none, see Study.has_layer_map" if layer_map.dtype == object else ""
        raise ValueError(f"layer_map: expected uint8 levels, got {layer_map.dtype}{hint}")
    strange = _table(dict.fromkeys(known, False), True).astype(bool)[layer_map]
    if strange.any():
        raise ValueError(
            f"layer_map: levels {np.unique(layer_map[strange]).tolist()[:8]} have no score, expected "
            f"{sorted(known, reverse=True)}; if the map was resized, resize the original with nearest neighbour"
        )


def hit_rate(heatmap, layer_map, scores: Mapping[int, float] = LAYER_SCORES) -> np.ndarray:
    r"""Mean score of the layers on which a heat map peaks.

    .. math:: HR = \frac{1}{|P|} \sum_{p \in P} score(L_p), \qquad P = \{p : h_p = \max h\}

    It is what one pixel drawn from those at the maximum scores on average. Of a map as the network made it that is one
    hit, and different methods are measured alike. The study peaked on maps as they were shown, where captum's clipping
    puts many pixels at the maximum: for its number, pass `as_displayed(heatmap, ...)`.

    Parameters
    ----------
    heatmap : (..., H, W) float array in [0, 1]
    layer_map : (..., H, W) uint8 array of the levels in `scores`, never interpolated; its leading dimensions are the
        last ones of `heatmap`, so that one layer map per image serves heat maps (method, image, H, W)
    scores : mapping from level to score; `LAYER_SCORES` for Hit Rate 1, `HIT_RATE_2` for Hit Rate 2

    Returns
    -------
    (...) float array between the lowest and the highest score; NaN where the map is flat or NaN, for such a map
    peaks nowhere. All pixels at the maximum count alike, as in the study; `n_peaks` counts them.

    Raises
    ------
    ValueError
        if shapes differ, the layer map holds a level without a score, or the heat map leaves [0, 1] or is partly NaN

    References
    ----------
    .. [1] Code of the skin ultrasound study, github.com/annasli378/SaliencyCNNAnalysis.
    """
    table = _table(scores)

    def rates(maps, layers):
        which, pixel = np.nonzero(maps == maps.max(1, keepdims=True))
        total = np.bincount(which, table[layers[which, pixel]], len(maps))
        return total / np.maximum(np.bincount(which, minlength=len(maps)), 1)

    return _measured(rates, heatmap, layer_map, scores)


def n_peaks(heatmap) -> np.ndarray:
    """(...) int: how many pixels of the (..., H, W) heat maps are at the maximum; 0 for a flat map or NaN."""
    heatmap = _as_maps(heatmap)
    lowest, peak = heatmap.min((-2, -1)), heatmap.max((-2, -1))
    return np.where(peak > lowest, (heatmap == peak[..., None, None]).sum((-2, -1)), 0)


def as_displayed(heatmap, clip: float = 0.0, bits: int | None = 8) -> np.ndarray:
    r"""Heat maps after what happens to them on the way into a picture file: clipping, then whole numbers.

    .. math:: h' = \big\lfloor (2^{bits} - 1) \min(1, h / t) \big\rfloor \big/ (2^{bits} - 1)

    with t the smallest value such that the values up to it hold a share 1 - clip of the map's sum. Neither step can be
    undone. Clipping puts many pixels at the maximum. The conversion to 8-bit integers cuts off the fraction, so that
    only what was at the maximum stays there: it adds no ties at the peak.

    Parameters
    ----------
    heatmap : (..., H, W) float array in [0, 1]
    clip : share of the sum that is cut off at the top; captum's plots take 0.02, CAMs are not clipped
    bits : of the picture; None keeps the fractions

    Returns
    -------
    (..., H, W) float array in [0, 1]; NaN stays NaN

    Raises
    ------
    ValueError
        if `clip` is not in [0, 1), `bits` not between 1 and 16, or the heat map leaves [0, 1] or is partly NaN

    References
    ----------
    .. [1] Kokhlikyan et al., Captum: A Unified and Generic Model Interpretability Library for PyTorch,
       arXiv:2009.07896; captum.attr.visualization.
    """
    if not 0 <= clip < 1:
        raise ValueError(f"clip: expected a share in [0, 1), got {clip}")
    if bits is not None and bits not in range(1, 17):
        raise ValueError(f"bits: expected None or a whole number from 1 to 16, got {bits}")
    heatmap = _as_maps(heatmap)
    check_heatmap(heatmap)
    shown = np.array(heatmap).reshape(-1, heatmap.shape[-2] * heatmap.shape[-1])
    for part in _blocks(shown):
        block = shown[part]
        if clip:
            ordered = np.sort(block, 1)
            sums = np.cumsum(ordered, 1, dtype=np.float64)
            cut = np.argmax(sums >= (1 - clip) * sums[:, -1:], 1)
            top = np.take_along_axis(ordered, cut[:, None], 1)
            block[:] = np.minimum(np.divide(block, top, out=np.array(block), where=top > 0), 1)
        if bits is not None:
            block[:] = np.floor(block * (2**bits - 1)) / (2**bits - 1)
    return shown.reshape(heatmap.shape)


def coverage(heatmap, layer_map, level: int = 255) -> np.ndarray:
    r"""Mean of a heat map over the pixels of one level: of a good map large on 255 and small on the background, 0.

    .. math:: C_l = \frac{1}{|\{p : L_p = l\}|} \sum_{p : L_p = l} h_p

    Parameters
    ----------
    heatmap, layer_map : as in `hit_rate`
    level : of the layer map; 0 for background coverage

    Returns
    -------
    (...) float array in [0, 1]; NaN where the map is flat or NaN, and where the layer map does not have the level

    Raises
    ------
    ValueError
        as in `hit_rate`, and if the level is none of `LEVELS`
    """
    return weighted_coverage(heatmap, layer_map, {level: 1.0})


def weighted_coverage(heatmap, layer_map, weights: Mapping[int, float] = LEVEL_WEIGHTS) -> np.ndarray:
    r"""Mean, over the pixels of several levels, of a heat map times the weight of the level.

    .. math:: C_w = \frac{1}{|\{p : L_p \in w\}|} \sum_{p : L_p \in w} w_{L_p} h_p

    A map that is 1 on all of them gets their mean weight, which is less than 1: it hangs on the sizes of the layers.

    Parameters
    ----------
    heatmap, layer_map : as in `hit_rate`
    weights : mapping from level to weight; the study's are 1, 1/2 and 1/4 for 255, 128 and 64

    Returns
    -------
    (...) float array; NaN where the map is flat or NaN, and where the layer map has none of the levels

    Raises
    ------
    ValueError
        as in `hit_rate`, and if a level is none of `LEVELS`
    """
    _check_known(weights)
    weight, inside = _table(weights).astype(np.float32), _table(dict.fromkeys(weights, 1)).astype(bool)

    def covered(maps, layers):
        n = np.count_nonzero(inside[layers], 1)
        return (maps * weight[layers]).sum(1, dtype=np.float64) / np.where(n, n, np.nan)

    return _measured(covered, heatmap, layer_map)


def iou(
    heatmap, layer_map, threshold: float | Sequence[float] = THRESHOLDS, level: int | Sequence[int] = 255
) -> np.ndarray:
    r"""Overlap of a heat map above a threshold with a level of the layer map (Jaccard index).

    .. math:: IoU = \frac{|\{h \ge t\} \cap \{L = l\}|}{|\{h \ge t\} \cup \{L = l\}|}

    Parameters
    ----------
    heatmap, layer_map : as in `hit_rate`
    threshold : in (0, 1], one or T of them
    level : of the layer map, one or K of them

    Returns
    -------
    (..., T, K) float array in [0, 1], without T or K where one number is given; NaN where the map is flat or NaN, and
    where the layer map does not have the level

    Raises
    ------
    ValueError
        as in `hit_rate`, and if a threshold lies outside (0, 1] or a level is none of `LEVELS`
    """
    thresholds, levels = np.atleast_1d(np.asarray(threshold, float)), [int(one) for one in np.atleast_1d(level)]
    if not ((thresholds > 0) & (thresholds <= 1)).all():
        raise ValueError(f"threshold: expected numbers in (0, 1], got {threshold}")
    _check_known(levels)
    order = np.argsort(thresholds)
    number = _table({one: k for k, one in enumerate(LEVELS)}).astype(np.intp)
    columns, n_levels = [LEVELS.index(one) for one in levels], len(LEVELS)

    def overlaps(maps, layers):
        edges, n = thresholds[order].astype(maps.dtype), len(maps)
        size = np.stack([np.count_nonzero(layers == one, 1) for one in LEVELS], 1)[:, None]
        which, pixel = np.nonzero(maps >= edges[0])
        reached = np.searchsorted(edges, maps[which, pixel], "right") - 1
        cell = (which * len(edges) + reached) * n_levels + number[layers[which, pixel]]
        exactly = np.bincount(cell, minlength=n * len(edges) * n_levels).reshape(n, len(edges), n_levels)
        both = exactly[:, ::-1].cumsum(1)[:, ::-1]
        union = both.sum(2, keepdims=True) + size - both
        found = np.empty(both.shape)
        found[:, order] = both / np.where(size, union, np.nan)
        return found[..., columns]

    found = _measured(overlaps, heatmap, layer_map)
    found = found if np.ndim(level) else found[..., 0]
    return found if np.ndim(threshold) else found[(..., 0, slice(None)) if np.ndim(level) else (..., 0)]


def _check_known(levels):
    unknown = [level for level in levels if level not in LEVELS]
    if unknown or not levels:
        raise ValueError(f"level: expected some of {LEVELS}, got {unknown or 'none'}")


def _measured(measure, heatmap, layer_map, known=LEVELS):
    """`measure` of (m, P) pixels and their (m, P) levels, block by block; NaN where a map is flat."""
    heatmap, layer_map = _as_maps(heatmap), np.asarray(layer_map)
    _check_pair(heatmap, layer_map)
    _check_levels(layer_map, known)
    flat = ~check_heatmap(heatmap)
    pixels = heatmap.shape[-2] * heatmap.shape[-1]
    maps, layers = heatmap.reshape(-1, pixels), layer_map.reshape(-1, pixels)
    of = np.arange(len(maps)) % max(1, len(layers))
    results = [measure(maps[part], layers[of[part]]) for part in _blocks(maps)] or [measure(maps, layers[:0])]
    result = np.concatenate(results).astype(float, copy=False)
    result[flat.reshape(-1)] = np.nan
    return result.reshape(heatmap.shape[:-2] + result.shape[1:])[()]


def _as_maps(heatmap):
    heatmap = np.asarray(heatmap)
    return heatmap if heatmap.dtype.kind == "f" else heatmap.astype(float)


def _blocks(maps) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, maps.shape[1]))
    return (slice(start, start + step) for start in range(0, len(maps), step))


def _check_pair(heatmap, layer_map):
    if heatmap.ndim < 2 or layer_map.ndim < 2 or heatmap.shape[-2:] != layer_map.shape[-2:]:
        hint = "; the image has none, see Study.has_layer_map" if layer_map.dtype == object else ""
        shapes = f"heatmap {heatmap.shape} and layer_map {layer_map.shape}"
        raise ValueError(f"{shapes}: expected the same height and width{hint}")
    leading, wanted = heatmap.shape[:-2], layer_map.shape[:-2]
    if len(wanted) > len(leading) or leading[len(leading) - len(wanted) :] != wanted:
        raise ValueError(f"layer_map: leading dimensions {wanted} do not end those of heatmap, {leading}")


def check_heatmap(heatmap):
    """(...) bool: which maps are not flat, once none is partly NaN and none leaves [0, 1]."""
    if 0 in heatmap.shape[-2:]:
        raise ValueError(f"heatmap: expected at least one pixel, got shape {heatmap.shape}")
    lowest, highest = heatmap.min((-2, -1)), heatmap.max((-2, -1))
    missing = np.isnan(lowest)
    if not np.isnan(heatmap[missing]).all():
        raise ValueError("heatmap: some pixels are NaN; only a whole map may be, to say that it is flat")
    if (lowest < 0).any() or (highest > 1).any():
        found = f"[{np.nanmin(lowest):.3g}, {np.nanmax(highest):.3g}]"
        raise ValueError(f"heatmap: values in {found}, expected [0, 1]; see to_heatmap")
    return highest > lowest


def baseline_heatmaps(images, seed: int = 0, layer_maps=None) -> dict[str, np.ndarray]:
    """Heat maps that need no network: what a measure must beat to say anything about one.

    Parameters
    ----------
    images : (N, C, H, W) float array in [0, 1]
    seed : of the random map
    layer_maps : (N, H, W) uint8; adds the "layer map", which no heat map can beat, as it is drawn: level / 255

    Returns
    -------
    name to (N, H, W) float array in [0, 1]: "random map" (every pixel drawn alike), "centre Gaussian" (standard
    deviation a quarter of each side), "edge map" (Sobel magnitude of the mean channel), "flat map" (NaN, as
    `to_heatmap` marks it). An image without an edge has a NaN edge map. Where the layer map has a level 255, "layer
    map" has Hit Rate 3, coverage 1 and an IoU of 1 with that level above 0.5 (at 0.5 level 128 belongs to it, too).

    Raises
    ------
    ValueError
        if the layer maps do not fit the images
    """
    grey = np.asarray(images).mean(1)
    n, height, width = grey.shape
    if layer_maps is not None and np.shape(layer_maps) != grey.shape:
        raise ValueError(f"layer_maps: expected {grey.shape} as the images, got {np.shape(layer_maps)}")
    noise = np.random.default_rng(seed).random(grey.shape)
    rows, columns = (np.exp(-8 * ((np.arange(side) - (side - 1) / 2) / side) ** 2) for side in (height, width))
    centre = np.outer(rows, columns)
    edges = np.stack([sobel(image) for image in grey])
    strongest = edges.max((1, 2), keepdims=True)
    maps = {
        "random map": noise / noise.max((1, 2), keepdims=True),
        "centre Gaussian": np.broadcast_to(centre / centre.max(), (n, height, width)),
        "edge map": np.divide(edges, strongest, out=np.full_like(edges, np.nan), where=strongest > 0),
        "flat map": np.full(grey.shape, np.nan),
    }
    if layer_maps is not None:
        _check_levels(np.asarray(layer_maps), LEVELS)
        maps["layer map"] = np.asarray(layer_maps) / 255
    return maps
