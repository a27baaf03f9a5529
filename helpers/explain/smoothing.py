"""Heat maps averaged over layers and over changed copies of the image, as grad-cam does."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch

from helpers.explain.engine import explain
from helpers.explain.heatmaps import enlarge, to_heatmap
from helpers.explain.layers import check_images, prepare

FLIPS, FACTORS = (False, True), (0.9, 1.0, 1.1)


def mean_heatmap(
    model, images, method: str, targets=None, layers: Sequence = (None,), aug_smooth: bool = False, **settings
) -> np.ndarray:
    r"""Mean of the heat maps of several layers, and of changed copies of the image.

    .. math:: h = \frac{1}{6} \sum_t t^{-1}\Big(scale\Big(\frac{1}{L} \sum_l h_l(t(x))\Big)\Big)

    with t the identity and a flip, each with the brightness times 0.9, 1 and 1.1 (without `aug_smooth` the identity
    alone), :math:`h_l` the positive part of layer l's map, and every scaling from its minimum to its maximum. No longer
    raw: signs, and sizes relative to the logit, are lost. Where no target is given, grad-cam takes that of every
    changed copy; here it is always the one of the image itself.

    Parameters
    ----------
    model, images, targets : as in `engine.explain`; one target per image
    method : name of one method
    layers : modules, dotted names or strides; (None,) for the last convolutional block
    aug_smooth : average over the six changed copies
    **settings : as in `engine.explain`, among them `eigen_smooth`

    Returns
    -------
    (N, H, W) float32 in [0, 1]; flat maps are left out of the mean, and where nothing is left it is NaN
    """
    check_images(images)
    images = prepare(model, images)
    if targets is None:
        with torch.no_grad():
            targets = model(images).argmax(1)
    copies = product(FLIPS, FACTORS) if aug_smooth else [(False, 1.0)]
    heatmaps = []
    for flipped, factor in copies:
        copy = (images.flip(-1) if flipped else images) * factor
        parts = []
        for layer in layers:
            found = explain(model, copy, method, targets, layer, brightest=max(FACTORS), **settings)[method]
            parts.append(enlarge(to_heatmap(found, found.shape[-2:], scale="min-max"), copy.shape[-2:]))
        heatmap = to_heatmap(_mean(parts), copy.shape[-2:], scale="min-max")
        heatmaps.append(heatmap[..., ::-1] if flipped else heatmap)
    return _mean(heatmaps).astype(np.float32)


def _mean(heatmaps):
    with warnings.catch_warnings():  # of nothing, where every map is flat
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(heatmaps, axis=0)
