"""From a raw, signed map to a picture in [0, 1], and from the picture to a mask."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate

SIGNS = ("positive", "negative", "absolute")
SCALES = ("max", "min-max")
FLAT = 1e-6  # a spread below this share of the maximum is rounding error of float32


def to_heatmap(cam, size: int | tuple[int, int], sign: str = "positive", scale: str = "max") -> np.ndarray:
    r"""Keep one sign of a raw map, enlarge it to the image and divide by its maximum.

    .. math:: h = U / \max U, \qquad U = \text{bilinear}(\max(M, 0))

    for sign "positive"; :math:`\max(-M, 0)` for "negative" and :math:`|M|` for "absolute". Pixel centres stay in place
    (align_corners=False), so the outermost half cell repeats its edge: a peak in a border cell covers several pixels.

    Parameters
    ----------
    cam : (..., h, w) raw signed maps, array or DataArray
    size : H and W of the picture, or one number for both
    sign : "positive", "negative" or "absolute"
    scale : "max"; or "min-max", which takes the smallest value off before it divides, as grad-cam does: 0 is then the
        weakest place of the map and no longer the absence of evidence

    Returns
    -------
    (..., H, W) float array in [0, 1] with maximum 1. A map that is flat after the choice of sign (no value of that
    sign, or all the same) or that holds NaN shows nothing and comes out as NaN everywhere; count with `is_flat`.

    Raises
    ------
    ValueError
        if the sign or the scale is unknown, the size not positive, or `cam` has fewer than two dimensions
    """
    if sign not in SIGNS:
        raise ValueError(f"sign: expected one of {', '.join(SIGNS)}, got {sign!r}")
    if scale not in SCALES:
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}")
    size = (size, size) if np.ndim(size) == 0 else tuple(size)
    if len(size) != 2 or any(int(side) != side or side < 1 for side in size):
        raise ValueError(f"size: expected a positive whole number or two, (H, W), got {size}")
    cam = np.asarray(cam)
    if cam.ndim < 2 or 0 in cam.shape:
        raise ValueError(f"cam: expected (..., h, w) with at least one value, got shape {cam.shape}")
    raw = torch.from_numpy(np.array(cam, dtype=np.result_type(cam, np.float32)))
    part = {"positive": raw.clamp(min=0), "negative": (-raw).clamp(min=0), "absolute": raw.abs()}[sign]
    part = part.reshape(-1, 1, *cam.shape[-2:])
    largest = part.amax((2, 3), keepdim=True)
    flat = ~(largest - part.amin((2, 3), keepdim=True) > FLAT * largest)
    large = _enlarged(part, size)
    if scale == "min-max":
        large = large - large.amin((2, 3), keepdim=True)
    scaled = torch.where(flat, torch.nan, large / large.amax((2, 3), keepdim=True))
    return scaled.reshape(*cam.shape[:-2], *large.shape[2:]).numpy()


def _enlarged(maps, size):
    return interpolate(maps, [int(side) for side in size], mode="bilinear", align_corners=False)


def enlarge(heatmap, size: tuple[int, int]) -> np.ndarray:
    """Heat maps (..., h, w) bilinearly at another size, (..., H, W), without a new scale; NaN stays NaN."""
    values = torch.from_numpy(np.array(heatmap))
    large = _enlarged(values.reshape(-1, 1, *values.shape[-2:]), size)
    return large.reshape(*values.shape[:-2], *large.shape[2:]).numpy()


def is_flat(heatmap) -> np.ndarray:
    """(...) bool: which of the (..., H, W) heat maps `to_heatmap` returned as NaN."""
    return np.isnan(np.asarray(heatmap)).all((-2, -1))


def to_mask(heatmap, threshold: float) -> np.ndarray:
    """(..., H, W) bool: where a heat map reaches a threshold in (0, 1]; nowhere for a flat map (NaN).

    Raises
    ------
    ValueError
        if the threshold lies outside (0, 1]
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: expected a number in (0, 1], got {threshold}")
    return np.asarray(heatmap) >= threshold
