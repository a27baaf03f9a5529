"""Where a heat map looks, against a map of the skin's layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from skimage.filters import sobel

LAYER_SCORES = {255: 3.0, 128: 2.0, 64: 1.0, 32: 0.0, 0: -1.0}
HIT_RATE_2 = {255: 1.0, 128: 0.0, 64: 0.0, 32: 0.0, 0: -1.0}


def score_map(layer_map, scores: Mapping[int, float] = LAYER_SCORES) -> np.ndarray:
    """(..., H, W) float: the score of every pixel's layer.

    Raises
    ------
    ValueError
        if the layer map is not uint8 or holds a level without a score
    """
    layer_map = np.asarray(layer_map)
    if layer_map.dtype != np.uint8:
        raise ValueError(f"layer_map: expected uint8 levels, got {layer_map.dtype}")
    table = np.full(256, np.nan)
    for level, score in scores.items():
        table[level] = score
    scored = table[layer_map]
    if np.isnan(scored).any():
        unknown = np.unique(layer_map[np.isnan(scored)]).tolist()
        raise ValueError(
            f"layer_map: levels {unknown[:8]} have no score, expected {sorted(scores, reverse=True)}; "
            "if the map was resized, resize the original with nearest neighbour"
        )
    return scored


def hit_rate(heatmap, layer_map, scores: Mapping[int, float] = LAYER_SCORES) -> np.ndarray:
    r"""Mean score of the layers on which a heat map peaks.

    .. math:: HR = \frac{1}{|P|} \sum_{p \in P} score(L_p), \qquad P = \{p : h_p = \max h\}

    Parameters
    ----------
    heatmap : (..., H, W) float array in [0, 1]
    layer_map : (..., H, W) uint8 array of the levels in `scores`, never interpolated; its leading dimensions are the
        last ones of `heatmap`, so that one layer map per image serves heat maps (method, image, H, W)
    scores : mapping from level to score; `LAYER_SCORES` for Hit Rate 1, `HIT_RATE_2` for Hit Rate 2

    Returns
    -------
    (...) float array between the lowest and the highest score; NaN where the map is flat or NaN, for such a map
    peaks nowhere. All pixels at the maximum count alike, as in the study.

    Raises
    ------
    ValueError
        if shapes differ, the layer map holds a level without a score, or the heat map leaves [0, 1] or is partly NaN

    References
    ----------
    .. [1] Code of the skin ultrasound study, github.com/annasli378/SaliencyCNNAnalysis.
    """
    heatmap, layer_map = np.asarray(heatmap), np.asarray(layer_map)
    _check_pair(heatmap, layer_map)
    scored = score_map(layer_map, scores)
    peak = heatmap.max((-2, -1), keepdims=True)
    hits = heatmap == peak
    flat = ~(peak > heatmap.min((-2, -1), keepdims=True))[..., 0, 0]
    total = np.where(hits, scored, 0.0).sum((-2, -1))
    return np.where(flat, np.nan, total / np.maximum(hits.sum((-2, -1)), 1))


def _check_pair(heatmap, layer_map):
    if heatmap.ndim < 2 or layer_map.ndim < 2 or heatmap.shape[-2:] != layer_map.shape[-2:]:
        raise ValueError(f"heatmap {heatmap.shape} and layer_map {layer_map.shape}: expected the same height and width")
    leading, wanted = heatmap.shape[:-2], layer_map.shape[:-2]
    if len(wanted) > len(leading) or leading[len(leading) - len(wanted) :] != wanted:
        raise ValueError(f"layer_map: leading dimensions {wanted} do not end those of heatmap, {leading}")
    missing = np.isnan(heatmap)
    if (missing.any((-2, -1)) != missing.all((-2, -1))).any():
        raise ValueError("heatmap: some pixels are NaN; only a whole map may be, to say that it is flat")
    known = heatmap[~missing]
    if known.size and (known.min() < 0 or known.max() > 1):
        raise ValueError(f"heatmap: values in [{known.min():.3g}, {known.max():.3g}], expected [0, 1]; see to_heatmap")


def baseline_heatmaps(images, seed: int = 0) -> dict[str, np.ndarray]:
    """Heat maps that need no network: what a measure must beat to say anything about one.

    Parameters
    ----------
    images : (N, C, H, W) float array in [0, 1]
    seed : of the random map

    Returns
    -------
    name to (N, H, W) float array in [0, 1]: "random map" (every pixel drawn alike), "centre Gaussian" (standard
    deviation a quarter of each side), "edge map" (Sobel magnitude of the mean channel), "flat map" (NaN, as
    `to_heatmap` marks it). An image without an edge has a NaN edge map.
    """
    grey = np.asarray(images).mean(1)
    n, height, width = grey.shape
    noise = np.random.default_rng(seed).random(grey.shape)
    rows, columns = (np.exp(-8 * ((np.arange(side) - (side - 1) / 2) / side) ** 2) for side in (height, width))
    centre = np.outer(rows, columns)
    edges = np.stack([sobel(image) for image in grey])
    strongest = edges.max((1, 2), keepdims=True)
    return {
        "random map": noise / noise.max((1, 2), keepdims=True),
        "centre Gaussian": np.broadcast_to(centre / centre.max(), (n, height, width)),
        "edge map": np.divide(edges, strongest, out=np.full_like(edges, np.nan), where=strongest > 0),
        "flat map": np.full(grey.shape, np.nan),
    }
