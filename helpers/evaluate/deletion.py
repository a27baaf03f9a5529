"""Deletion and insertion: what happens to the answer when pixels go, or come, in the order of a heat map."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

FILLS = ("blur", "mean", "zero")
_ACTIVATIONS = {"sigmoid": torch.sigmoid, "softmax": partial(torch.softmax, dim=1), "logit": torch.Tensor.double}
BLUR = 0.1  # standard deviation, as a share of the shorter side


class Curves(NamedTuple):
    """Answers along N curves of S steps.

    Attributes
    ----------
    shares : (S + 1,) of the pixels that are deleted or inserted, 0 to 1
    probs : (N, S + 1) float64, probability of the target; NaN for a flat map
    area : (N,) area under the curve, in [0, 1]: small is good for deletion, large for insertion
    """

    shares: np.ndarray
    probs: np.ndarray
    area: np.ndarray


def filled(images, fill: str = "blur") -> np.ndarray:
    """What stands in the place of a deleted pixel, same shape as `images` (N, C, H, W).

    Parameters
    ----------
    fill : "blur" (a Gaussian of `BLUR` of the shorter side: colours stay, shapes go), "mean" (the image's mean colour)
        or "zero" (black)

    Raises
    ------
    ValueError
        if the fill is unknown
    """
    images = np.asarray(images, np.float32)
    if fill == "zero":
        return np.zeros_like(images)
    if fill == "mean":
        return np.broadcast_to(images.mean((2, 3), keepdims=True), images.shape)
    if fill != "blur":
        raise ValueError(f"fill: expected one of {', '.join(FILLS)}, got {fill!r}")
    width = BLUR * min(images.shape[-2:])
    return np.stack([gaussian_filter(image, (0, width, width), mode="nearest") for image in images])


def answers(model, images, targets, activation: str = "sigmoid", batch_size: int = 64) -> np.ndarray:
    """(N,) float64: the model's answer about one target per image.

    Parameters
    ----------
    model, images, targets, batch_size : as in `deletion`
    activation : "sigmoid" or "softmax", see `deletion`; "logit" for the logit itself

    Raises
    ------
    ValueError
        if the activation is unknown
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
    device, found = next(model.parameters()).device, []
    images, targets = torch.as_tensor(images), torch.as_tensor(np.asarray(targets)).long()
    with torch.inference_mode():
        for batch, wanted in zip(images.split(batch_size), targets.split(batch_size), strict=True):
            values = _ACTIVATIONS[activation](model(batch.to(device)).double().cpu())
            found.append(values.gather(1, wanted[:, None])[:, 0])
    return torch.cat(found).numpy()


def deletion(
    model,
    images,
    heatmaps,
    targets,
    steps: int = 16,
    fill: str = "blur",
    insertion: bool = False,
    activation: str = "sigmoid",
    batch_size: int = 64,
) -> Curves:
    r"""Probability of a target while the pixels of an image are replaced, those first that a heat map shows brightest.

    .. math:: AUC = \sum_{s=1}^{S} \frac{p_{s-1} + p_s}{2 S}

    with :math:`p_s` the probability after the share s / S of the pixels, of equal ones those further up and left. In
    deletion they go from the image; in insertion they come back to an image that is nothing but fill.

    Parameters
    ----------
    model : network in eval mode, (N, C, H, W) -> logits (N, K)
    images : (N, C, H, W) float in [0, 1]
    heatmaps : (N, H, W) float; NaN everywhere for a flat map, which orders nothing
    targets : (N,) class indices
    steps : S, at least 1
    fill : what replaces a pixel, see `filled`
    insertion : whether pixels come instead of going
    activation : "sigmoid" where each class has its own yes or no, "softmax" where they exclude each other
    batch_size : images that pass the network at a time

    Raises
    ------
    ValueError
        if shapes differ, a heat map is partly NaN, or an argument is unknown

    References
    ----------
    .. [1] Petsiuk, Das and Saenko, RISE: Randomized Input Sampling for Explanation of Black-box Models, BMVC 2018.
    """
    images, heatmaps, targets = np.asarray(images, np.float32), np.asarray(heatmaps), np.asarray(targets)
    if images.ndim != 4 or heatmaps.shape != (len(images), *images.shape[2:]) or targets.shape != (len(images),):
        raise ValueError(
            f"images {images.shape}, heatmaps {heatmaps.shape}, targets {targets.shape}: expected (N, C, H, W), "
            "(N, H, W) and (N,)"
        )
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: expected a whole number of at least 1, got {steps!r}")
    missing = np.isnan(heatmaps)
    flat = missing.all((1, 2))
    if (missing.any((1, 2)) != flat).any():
        raise ValueError("heatmaps: some pixels are NaN; only a whole map may be, to say that it is flat")
    if activation == "logit":
        raise ValueError("activation: a curve is of probabilities, 'sigmoid' or 'softmax', not of logits")
    n_pixels, shares = heatmaps[0].size, np.linspace(0, 1, steps + 1)
    probs = np.full((len(images), steps + 1), np.nan)
    size = max(1, batch_size // (steps + 1))
    for start in range(0, len(images), size):
        part = np.flatnonzero(~flat[start : start + size]) + start
        if not len(part):
            continue
        order = np.argsort(-heatmaps[part].reshape(len(part), -1), 1, kind="stable")
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(n_pixels)[None], 1)
        gone = rank[:, None] < np.rint(shares * n_pixels)[None, :, None]
        gone = (gone != insertion).reshape(len(part), steps + 1, 1, *images.shape[2:])
        mixed = np.where(gone, filled(images[part], fill)[:, None], images[part][:, None])
        repeated = np.repeat(targets[part], steps + 1)
        found = answers(model, mixed.reshape(-1, *images.shape[1:]), repeated, activation, batch_size)
        probs[part] = found.reshape(len(part), steps + 1)
    return Curves(shares, probs, (probs[:, 1:] + probs[:, :-1]).sum(1) / (2 * steps))
