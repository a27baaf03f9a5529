"""PARTITION: organs of a CT volume by a morphological recipe, and where a label may be seen, on a network's grid."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from helpers.data.chest_ct import ORGANS, Volumes, fit_shape
from helpers.settings import closest
from helpers.store import fingerprint, replacing

LUNG_HU = -300
SMALLEST_MM3 = 1_000_000 * 0.8**3
# A lung is missing if the lungs begin or end here, as shares of the width: columns 130 and 300 of about 450.
FARTHEST_RIGHT, FARTHEST_LEFT = 0.29, 0.67
MODES = ("nearest", "nearest-exact", "area", "trilinear")

RIGHT, LEFT = (tuple(f"{side}_{part}" for part in ("lung", "upper", "mid", "lower")) for side in ("right", "left"))
HEART = ("heart", "mitral_valve", "aortic_valve", "tricuspid_valve", "pulmonary_valve", "aorta", "svc", "ivc",
         "pulmonary_artery", "pulmonary_vein", "mediastinum")  # fmt: skip


class Segmentation(NamedTuple):
    """Organs of a volume.

    Parameters
    ----------
    masks : {organ: (D, H, W) bool}, of `ORGANS`; empty masks where it failed
    failed : why the fixed columns of the grid must do, or "" where the masks can be used
    """

    masks: dict[str, np.ndarray]
    failed: str


def segment_lungs(volume, spacing, smallest: float = SMALLEST_MM3, at_border: bool = False) -> np.ndarray:
    """Both lungs: air per slice, not at the slice's border, its two largest parts, and of these no small 3D object.

    Parameters
    ----------
    volume : (D, H, W) HU
    spacing : edge of a voxel in mm, one number or three
    smallest : mm^3; smaller connected objects are dropped (paper: 1,000,000 voxels of 0.8 mm)
    at_border : keep air at the border of a slice; for volumes cropped to a part of the chest

    Returns
    -------
    (D, H, W) bool
    """
    air = np.asarray(volume) < LUNG_HU
    lungs = np.zeros(air.shape, bool)
    for found, one in zip(lungs, air, strict=True):
        parts, n = ndimage.label(one, np.ones((3, 3)))
        sizes = np.bincount(parts.ravel(), minlength=3)
        sizes[0] = 0
        if not at_border:
            for edge in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
                sizes[edge] = 0
        kept = np.zeros(len(sizes), bool)
        kept[np.argsort(sizes)[-2:]] = True
        found[:] = (kept & (sizes > 0))[parts]
    parts, n = ndimage.label(lungs)
    voxel = float(np.prod(np.broadcast_to(spacing, 3)))
    large = np.bincount(parts.ravel(), minlength=n + 1) * voxel >= smallest
    large[0] = False
    return large[parts]


def segment(volume, spacing, smallest: float = SMALLEST_MM3, at_border: bool = False) -> Segmentation:
    r"""Right lung, left lung, and heart with mediastinum.

    The lungs of `segment_lungs` are split at the middle of the width. Heart and mediastinum are what is not lung in the
    lungs' bounding box, narrowed to columns :math:`r + q` to :math:`l - q/2` with :math:`q = (l - r)/4`, for the heart
    lies on the left.

    Parameters
    ----------
    volume, spacing, smallest, at_border : as in `segment_lungs`; axes as in `chest_ct.Volumes`

    References
    ----------
    .. [1] Draelos and Carin, Explainable multiple abnormality classification of chest CT volumes, Artificial
       Intelligence in Medicine 132, 102372, 2022; code: rachellea/explainable-ct-ai.
    """
    volume = np.asarray(volume)
    if volume.ndim != 3:
        raise ValueError(f"volume: expected (D, H, W) in HU, got shape {volume.shape}")
    lungs = segment_lungs(volume, spacing, smallest, at_border)
    empty = np.zeros(volume.shape, bool)
    if not lungs.any():
        return Segmentation(dict.fromkeys(ORGANS, empty), "no lung found")
    width, (top, front, right) = volume.shape[2], (axis.min() for axis in np.nonzero(lungs))
    bottom, back, left = (axis.max() + 1 for axis in np.nonzero(lungs))
    if right > FARTHEST_RIGHT * width or left < FARTHEST_LEFT * width:
        side = "right" if right > FARTHEST_RIGHT * width else "left"
        return Segmentation(dict.fromkeys(ORGANS, empty), f"the {side} lung is missing")
    quarter = int((left - right) / 4)
    heart = empty.copy()
    box = slice(top, bottom), slice(front, back), slice(right + quarter, left - quarter // 2)
    heart[box] = ~lungs[box]
    halves = np.arange(width) < width // 2
    return Segmentation({"right_lung": lungs & halves, "left_lung": lungs & ~halves, "heart": heart}, "")


def fallback_grid(grid) -> np.ndarray:
    """(3, H, i, j) bool for a failed segmentation: of six columns 0-2 right lung, 3-5 left lung, 1-4 heart."""
    column = np.arange(grid[2]) * 6 // grid[2]
    rows = np.stack([column < 3, column >= 3, (column > 0) & (column < 5)])
    return np.broadcast_to(rows[:, None, None], (3, *grid)).copy()


def organ_grid(masks, shape, grid, mode: str = "nearest", dilate: bool = False) -> np.ndarray:
    """Organ masks on the grid of a network, padded and cropped like their volume.

    Parameters
    ----------
    masks : {organ: (D, H, W) bool}
    shape : of the prepared volume
    grid : (H, i, j) of the network
    mode : of torch's `interpolate`: "nearest" is the paper's; "area" and "trilinear" take every cell that is not 0
    dilate : by one cell in every direction

    Returns
    -------
    (3, H, i, j) bool, in the order of `ORGANS`
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {list(MODES)}, got {mode!r}{closest(mode, MODES)}")
    fitted = np.stack([fit_shape(masks[organ], shape, False) for organ in ORGANS])
    small = functional.interpolate(torch.from_numpy(fitted)[None].float(), tuple(grid), mode=mode)[0] != 0
    return (functional.max_pool3d(small.float(), 3, 1, 1) > 0 if dilate else small).numpy()


def organ_of(location: str) -> tuple[str, ...]:
    """Organs that a location allows; none for a location outside of lungs, heart, vessels and mediastinum."""
    known = {RIGHT: ("right_lung",), LEFT: ("left_lung",), ("lung",): SIDES, HEART: ("heart",)}
    return next((organs for names, organs in known.items() if location in names), ())


SIDES = ORGANS[:2]


def organs_of_labels(volumes: Volumes) -> np.ndarray:
    """(N, K, 3) bool: organs in which a label that is present may be seen.

    "lung" stands for any part of the lungs in RAD-ChestCT: it allows both only where no location names a side.
    """
    names, columns = list(volumes.abnormalities), volumes.locations.columns
    allowed = np.zeros((len(volumes), len(names), len(ORGANS)), bool)
    table = volumes.locations.to_numpy(bool)
    for (label, place), present in zip(columns, table.T, strict=True):
        if place != "lung":
            for organ in organ_of(place):
                allowed[present, names.index(label), ORGANS.index(organ)] = True
    for (label, place), present in zip(columns, table.T, strict=True):
        if place == "lung":
            k = names.index(label)
            allowed[present & ~allowed[:, k, :2].any(1), k, :2] = True
    return allowed


def organ_grids(volumes: Volumes, shape, grid, folder=None, truth=False, mode="nearest", dilate=False):
    """Organs of every volume on the grid; segmented once, then kept.

    Parameters
    ----------
    volumes : N volumes
    shape, grid, mode, dilate : as in `organ_grid`
    folder : where the grids are kept, a file for every volume; None keeps nothing
    truth : the true masks of phantoms in the place of the segmentation

    Returns
    -------
    grids : (N, 3, H, i, j) bool, in the order of `ORGANS`
    failed : {name of a volume: why}, of those that got the fixed columns
    """
    key = fingerprint(volumes.fingerprint, list(shape), list(grid), truth, mode, dilate, sys.modules[__name__])
    grids, failed = [], {}
    for i, name in enumerate(volumes.names):
        path = Path(folder or ".") / f"organs-{key}" / f"{name}.npz"
        if folder is not None and path.is_file():
            with np.load(path) as kept:
                made, why = kept["grid"], str(kept["failed"])
        else:
            found = Segmentation(volumes.organs(i), "") if truth else segment(volumes.volume(i), volumes.spacing)
            made, why = organ_grid(found.masks, shape, grid, mode, dilate), found.failed
            made = fallback_grid(grid) if why else made
            if folder is not None:
                with replacing(path) as temporary:
                    np.savez_compressed(temporary, grid=made, failed=why)
        grids.append(made)
        if why:
            failed[name] = why
    return np.stack(grids), failed


def allowed_regions(volumes: Volumes, grids) -> np.ndarray:
    """(N, K, H, i, j) bool: where every label may be seen; nowhere for a label that is absent.

    Parameters
    ----------
    volumes : N volumes
    grids : (N, 3, H, i, j) of `organ_grids`
    """
    grids = np.asarray(grids)
    if grids.dtype != bool or grids.shape[:2] != (len(volumes), len(ORGANS)):
        raise ValueError(f"grids: expected bool ({len(volumes)}, 3, H, i, j), got {grids.dtype} {grids.shape}")
    wanted = organs_of_labels(volumes)[..., None, None, None]
    return (wanted & grids[:, None]).any(2)


def dice(first, second) -> float:
    """Twice the common voxels over the sum of both; NaN where both masks are empty."""
    total = first.sum() + second.sum()
    return float(2 * (first & second).sum() / total) if total else float("nan")
