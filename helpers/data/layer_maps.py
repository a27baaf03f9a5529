"""Layer maps: how much each pixel has to do with the disease, in five levels, built from segmented structures."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

LEVELS = (255, 128, 64, 32, 0)
RULES = ("columns", "rings")
REFERENCE_HEIGHT = 224


def as_pair(size):
    """(height, width) of a size given as one number or as a pair."""
    height, width = (size, size) if np.isscalar(size) else size
    return int(height), int(width)


def resize_nearest(array, size):
    """The values of the nearest pixels, nothing in between: the only way to resize masks and layer maps.

    Parameters
    ----------
    array : (..., H, W) array
    size : h or (h, w)

    Returns
    -------
    (..., h, w) array of the same type; pixel y shows row floor((y + 1/2) H / h)
    """
    height, width = as_pair(size)
    rows = (2 * np.arange(height) + 1) * array.shape[-2] // (2 * height)
    columns = (2 * np.arange(width) + 1) * array.shape[-1] // (2 * width)
    return array[..., rows[:, None], columns]


def check_layer_map(array, file="layer map"):
    """The layer map as (H, W) uint8.

    Raises
    ------
    ValueError
        if it is not two-dimensional or holds a value that is not in `LEVELS`; the message lists those found
    """
    array = np.asarray(array)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{file}: a layer map has the shape (height, width), got {array.shape}")
    found = np.flatnonzero(np.bincount(array.ravel())) if array.dtype == np.uint8 else np.unique(array)
    if not np.isin(found, LEVELS).all():
        shown = ", ".join(str(level) for level in found[:12]) + (", ..." if len(found) > 12 else "")
        raise ValueError(
            f"{file}: a layer map holds the levels {sorted(LEVELS)} only, found {shown}. Was it resized with "
            "interpolation or saved as JPEG? Write it again as 8-bit grey PNG, resized by nearest neighbour"
        )
    return array.astype(np.uint8)


def layer_map(masks, rule="columns", above=16, below=36):
    r"""Layer map of segmented structures.

    .. math:: columns:\; L(y) = 32, 255, 128, 64, 32 \text{ where } y \in [t - a, t), [t, b], (b, b + w],
              (b + w, b + 2w], (b + 2w, b + 3w], \text{ else } 0

    .. math:: rings:\; L(p) = 255, 128, 64, 32 \text{ where } d_p = 0, \leq w, \leq 2w, \leq 3w, \text{ else } 0

    with t the entry echo (first row of any structure in the column), b the lower edge of the lowest structure in the
    column, d the distance to the lesion in pixels, a = `above` H / 224 and w = `below` H / 224.

    Tissue between the topmost and the lowest structure belongs to level 255. A column in which nothing is segmented
    has no entry echo: it is 0, as the side margins of the study's own maps are. Only a gap of at most `above` pixels
    of 224 between two segmented columns is bridged by straight lines, because a hair's shadow interrupts the
    annotation and not the skin. The lesion of the rings is every structure but the epidermis (the epidermis too
    where nothing else is segmented).

    Parameters
    ----------
    masks : mapping from structure to (H, W) bool array
    rule : "columns" (skin: bands along the depth) or "rings" (bands around a lesion)
    above, below : widths of the bands in pixels of a map that is 224 pixels high

    Returns
    -------
    (H, W) uint8 array of the levels 255, 128, 64, 32, 0

    Raises
    ------
    ValueError
        if the rule is unknown, shapes differ, or no structure has a pixel

    References
    ----------
    .. [1] J. Czajkowska et al.: Deep learning-based high-frequency ultrasound skin image classification with
       multicriteria model evaluation. Sensors 21(17), 5846, 2021. Widths: measured on the one map that was found.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}, got {rule!r}")
    arrays = {structure: np.asarray(mask, bool) for structure, mask in masks.items()}
    if len({array.shape for array in arrays.values()}) > 1:
        raise ValueError(
            f"masks of one image must have one shape, got { {name: array.shape for name, array in arrays.items()} }"
        )
    segmented = {structure: array for structure, array in arrays.items() if array.any()}
    if not segmented:
        raise ValueError(f"no layer map without a segmented pixel; structures given: {list(masks) or 'none'}")
    if rule == "rings":
        lesion = [array for structure, array in segmented.items() if structure != "epidermis"]
        return _rings(np.logical_or.reduce(lesion or list(segmented.values())), below)
    return _columns(np.logical_or.reduce(list(segmented.values())), above, below)


def _columns(shown, above, below):
    height, width = shown.shape
    scale = height / REFERENCE_HEIGHT
    filled = np.flatnonzero(shown.any(axis=0))
    columns = np.arange(filled[0], filled[-1] + 1)
    gap = filled[np.searchsorted(filled, columns)] - filled[np.searchsorted(filled, columns, side="right") - 1] - 1
    columns = columns[gap <= above * scale]
    top = np.rint(np.interp(columns, filled, shown.argmax(axis=0)[filled])).astype(np.int32)
    end = np.rint(np.interp(columns, filled, height - shown[::-1].argmax(axis=0)[filled])).astype(np.int32)
    starts = [top - round(above * scale), top, end, *(end + round(band * below * scale) for band in (1, 2, 3))]
    row = np.arange(height, dtype=np.int32)[:, None]
    band = sum((row >= start).view(np.uint8) for start in starts)
    result = np.zeros((height, width), np.uint8)
    result[:, columns] = np.array([0, 32, 255, 128, 64, 32, 0], np.uint8)[band]
    return result


def _rings(lesion, below):
    width = below * len(lesion) / REFERENCE_HEIGHT
    distance = distance_transform_edt(~lesion)
    ring = sum((distance > edge).view(np.uint8) for edge in (0, width, 2 * width, 3 * width))
    return np.array(LEVELS, np.uint8)[ring]
