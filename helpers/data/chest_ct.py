"""Chest CT volumes with labels x locations, their preparation for a network, and phantoms made from a seed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from helpers.settings import closest
from helpers.store import fingerprint, replacing

WINDOW = (-1000, 800)  # HU
PAPER_SHAPE, PAPER_SPACING = (405, 420, 420), 0.8
QUICK_SHAPE, QUICK_SPACING = (81, 84, 84), 4.0  # the same field of view
ORGANS = ("right_lung", "left_lung", "heart")


@dataclass(frozen=True, eq=False)
class Volumes:
    """N CT volumes, read (or drawn) one at a time when they are asked for.

    Parameters
    ----------
    title : what the set is called
    names : N unique names
    locations : (N, columns) bool table, index `names`, columns (abnormality, location)
    items : N things that `read` turns into volumes
    read : from an item to a (D, H, W) int16 array in HU; axes from superior, anterior and right to the other end
    spacing : edge of a voxel in mm
    fingerprint : hex digest of what the set is made from
    truth : from an item to {organ: (D, H, W) bool array}, where organs are known; else None
    groups : (N,) what varies independently (patient); None: every volume by itself
    """

    title: str
    names: tuple[str, ...]
    locations: pd.DataFrame
    items: Sequence
    read: Callable
    spacing: float
    fingerprint: str
    truth: Callable | None = None
    groups: np.ndarray | None = None

    def __post_init__(self):
        if len(self.items) != len(self.names) or list(self.locations.index) != list(self.names):
            raise ValueError(f"{self.title}: {len(self.names)} names, {len(self.items)} items and a table of "
                             f"{len(self.locations)} rows; expected one of each for every volume")  # fmt: skip
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"{self.title}: names must be unique")

    def __len__(self):
        return len(self.names)

    @property
    def abnormalities(self) -> tuple[str, ...]:
        """The K label names, in the order of the columns."""
        return tuple(dict.fromkeys(self.locations.columns.get_level_values(0)))

    @property
    def labels(self) -> np.ndarray:
        """(N, K) bool: an abnormality is present if it is at any location."""
        table = self.locations.T.groupby(level=0, sort=False).any().T
        return table[list(self.abnormalities)].to_numpy(bool)

    def volume(self, i) -> np.ndarray:
        """(D, H, W) int16 HU of volume i."""
        return self.read(self.items[i])

    def organs(self, i) -> dict[str, np.ndarray]:
        """True organ masks of volume i, where the set knows them."""
        if self.truth is None:
            raise ValueError(f"{self.title}: organs are not known; see helpers.data.organs.segment")
        return self.truth(self.items[i])

    def subset(self, which) -> Volumes:
        """The volumes of some indices, or of a bool mask."""
        which = np.arange(len(self))[which]
        return replace(
            self,
            names=tuple(self.names[i] for i in which),
            locations=self.locations.iloc[which],
            items=[self.items[i] for i in which],
            fingerprint=fingerprint(self.fingerprint, which),
            groups=None if self.groups is None else self.groups[which],
        )

    def only(self, *abnormalities) -> Volumes:
        """The same volumes with some of the labels."""
        for name in abnormalities:
            if name not in self.abnormalities:
                raise ValueError(f"{self.title}: no abnormality {name!r}{closest(name, self.abnormalities)}")
        kept = self.locations.columns.get_level_values(0).isin(abnormalities)
        made = fingerprint(self.fingerprint, sorted(abnormalities))
        return replace(self, locations=self.locations.loc[:, kept], fingerprint=made)


class Change(NamedTuple):
    """Random change of a training volume; allowed regions on the grid (..., D, H, W) go through the same one.

    Parameters
    ----------
    axis : -3, -2 or -1, along which is flipped, or None
    turns : quarter turns in the axial plane after the flip
    """

    axis: int | None = None
    turns: int = 0

    def __call__(self, array):
        array = array if self.axis is None else np.flip(array, self.axis)
        return np.rot90(array, self.turns, (-2, -1))


def draw_change(rng: np.random.Generator) -> Change:
    """As in the paper: with 50 % a flip along one of the axes, with 50 % one, two or three quarter turns."""
    axis = int(rng.integers(-3, 0)) if rng.random() < 0.5 else None
    return Change(axis, int(rng.integers(1, 4)) if rng.random() < 0.5 else 0)


def fit_shape(volume, shape, value=None) -> np.ndarray:
    """Pad with a value (None: the volume's minimum) to at least `shape`, then crop the centre to `shape`."""
    missing = [max(0, wanted - length) for wanted, length in zip(shape, volume.shape, strict=True)]
    if any(missing):
        value = volume.min() if value is None else value
        volume = np.pad(volume, [(m // 2, m - m // 2) for m in missing], constant_values=value)
    starts = [(length - wanted) // 2 for wanted, length in zip(shape, volume.shape, strict=True)]
    return volume[tuple(slice(s, s + wanted) for s, wanted in zip(starts, shape, strict=True))]


def prepare(volume, shape=PAPER_SHAPE, change: Change | None = None) -> np.ndarray:
    """A volume as AxialNet takes it: padded, centre-cropped, changed, in groups of three slices, windowed.

    Parameters
    ----------
    volume : (D, H, W) HU
    shape : slices (a multiple of 3), height and width; a turn needs both alike
    change : see `draw_change`; None for validation and test

    Returns
    -------
    (slices / 3, 3, height, width) float32 in [0, 1], from the window [-1000, 800] HU. The network itself subtracts
    0.449, which the paper counts as preparation.
    """
    if volume.ndim != 3 or shape[0] % 3:
        raise ValueError(f"volume {volume.shape}, shape {shape}: expected (D, H, W), and slices a multiple of 3")
    fitted = fit_shape(volume, shape)
    fitted = fitted if change is None else change(fitted)
    low, high = WINDOW
    scaled = (np.clip(fitted, low, high).astype(np.float32) - low) / (high - low)
    return np.ascontiguousarray(scaled).reshape(shape[0] // 3, 3, *fitted.shape[1:])


# Label: locations, and what lies on the skin with it: name, angle in degrees (0: left, 90: back), radius and length in
# mm, HU. Lengths are in mm everywhere below; z grows towards the feet, y towards the back, x towards the left.
SIDES = ("right_lung", "left_lung")
FINDINGS = {
    "nodule": (SIDES, ("marker", -60, 9, 70, 1200)),
    "opacity": (SIDES, ("tube", -115, 7, 400, 500)),
    "effusion": (SIDES, ("drain", 160, 11, 160, 300)),
    "cardiomegaly": (("heart",), ("wire", 75, 6, 400, 2000)),
    "calcification": (("heart",), ("clip", 20, 10, 60, 2500)),
    "pacemaker": (("heart",), ("pad", -20, 16, 90, 700)),
    "lymphadenopathy": (("mediastinum",), ("catheter", 110, 8, 220, 900)),
}


class Phantom(NamedTuple):
    """What `draw` needs to draw a volume."""

    seed: int
    number: int
    present: frozenset  # (abnormality, location)
    confounders: frozenset  # labels whose confounder is there


def phantom_volumes(n=60, seed=0, confounded: float | None = 0.8, prevalence: float = 0.4) -> Volumes:
    """Phantom volumes at 4 mm with labels that are drawn independently of each other.

    Parameters
    ----------
    n : number of volumes
    seed : whole number; volume i depends on it, on i and on the following two only
    confounded : c: the thing on the skin that belongs to a label is there with probability (1 + c) / 2 where the label
        is present and (1 - c) / 2 where it is absent, so their correlation is c for a prevalence of one half and close
        to it for others. None draws the very same volumes without any of these things.
    prevalence : probability of a label; lung labels are in the right lung, the left, or (one in five) in both

    Raises
    ------
    ValueError
        if a number is out of range
    """
    if n < 1 or seed < 0 or not 0 < prevalence < 1 or not (confounded is None or 0 <= confounded <= 1):
        raise ValueError(f"n={n}, seed={seed}, confounded={confounded}, prevalence={prevalence}: expected n from 1 up, "
                         "seed from 0 up, confounded None or in [0, 1], prevalence in (0, 1)")  # fmt: skip
    columns = [(label, place) for label, (places, _) in FINDINGS.items() for place in places]
    items, rows = [], []
    for number in range(n):
        rng = np.random.default_rng([seed, number, 1])
        present, things = set(), set()
        for label, (places, _) in FINDINGS.items():
            there, side, thing = rng.random() < prevalence, rng.random(), rng.random()
            if there:
                chosen = places if len(places) == 1 or side < 0.2 else places[:1] if side < 0.6 else places[1:]
                present |= {(label, place) for place in chosen}
            if confounded is not None and thing < (1 + confounded * (1 if there else -1)) / 2:
                things.add(label)
        items.append(Phantom(seed, number, frozenset(present), frozenset(things)))
        rows.append([column in present for column in columns])
    names = tuple(f"phantom_{number:04d}" for number in range(n))
    table = pd.DataFrame(rows, pd.Index(names), pd.MultiIndex.from_tuples(columns, names=["abnormality", "location"]))
    made = fingerprint(n, seed, confounded, prevalence, sys.modules[__name__])
    title = "phantoms" if confounded is not None else "phantoms without confounders"
    return Volumes(title, names, table, items, _drawn_volume, QUICK_SPACING, made, _drawn_organs)


def _drawn_volume(item):
    return draw(item)[0]


def _drawn_organs(item):
    return draw(item)[1]


def store_volumes(volumes: Volumes, folder) -> Volumes:
    """The same volumes, written to `<folder>/volumes-<fingerprint>/` as they are and read from there."""
    paths = [Path(folder) / f"volumes-{volumes.fingerprint}" / f"{name}.npy" for name in volumes.names]
    for i, path in enumerate(paths):
        if not path.is_file():
            with replacing(path) as temporary:
                np.save(temporary, volumes.volume(i))
    items = list(zip(paths, volumes.items, strict=True))
    truth = None if volumes.truth is None else partial(_of_stored, volumes.truth)
    return replace(volumes, items=items, read=_read_stored, truth=truth)


def _read_stored(item):
    return np.load(item[0])


def _of_stored(truth, item):
    return truth(item[1])


def _box(shape, centre, reach):
    """Slices around a point, and the coordinates in it relative to the point, in mm."""
    parts, offsets = [], []
    for axis, (length, c, r) in enumerate(zip(shape, centre, reach, strict=True)):
        at = (length - 1) / 2 + c / QUICK_SPACING
        low, high = max(0, int(at - r / QUICK_SPACING)), min(length, int(at + r / QUICK_SPACING) + 2)
        parts.append(slice(low, max(low, high)))
        line = (np.arange(low, max(low, high), dtype=np.float32) - np.float32(at)) * np.float32(QUICK_SPACING)
        offsets.append(line.reshape([-1 if a == axis else 1 for a in range(3)]))
    return tuple(parts), offsets


def _ellipsoid(shape, centre, radii):
    parts, (z, y, x) = _box(shape, centre, radii)
    inside = np.zeros(shape, bool)
    inside[parts] = (z / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2 < 1
    return inside


def _tube(volume, start, end, radius, value, within=None):
    """Beads along a line; `within` keeps them inside a mask."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    beads = int(np.linalg.norm(end - start) / max(4, 0.7 * radius)) + 1
    for t in np.linspace(0, 1, beads):
        _bead(volume, start + t * (end - start), (radius,) * 3, value, within)


def _bead(volume, centre, radii, value, within=None):
    parts, (z, y, x) = _box(volume.shape, centre, radii)
    inside = (z / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2 < 1
    if within is not None:
        inside &= within[parts]
    volume[parts][inside] = value


def _place(rng, mask):
    """A random point of a mask, in mm."""
    points = np.flatnonzero(mask)
    point = np.unravel_index(points[rng.integers(len(points))], mask.shape)
    return (np.array(point) - (np.array(mask.shape) - 1) / 2) * QUICK_SPACING


def draw(item: Phantom):
    """Draw one phantom: (D, H, W) int16 HU and {organ: (D, H, W) bool array}; about 90 x 92 x 92 voxels of 4 mm."""
    rng, noise = (np.random.default_rng([item.seed, item.number, stream]) for stream in (2, 3))
    shape = (int(rng.integers(84, 94)), 92, 92)
    wide, deep = rng.uniform(140, 152), rng.uniform(98, 108)
    _, (z, y, x) = _box(shape, (0, 0, 0), (999, 999, 999))
    outline = np.hypot(x / wide, y / deep)
    volume = np.full(shape, -1000, np.float32)
    volume[:, (outline < 1)[0]] = -95
    volume[:, (outline < 0.9)[0]] = 45

    # Ribs run down and forward in the wall, the spine stands behind, the sternum in front.
    ribs = (np.abs(outline - 0.84) < 0.035) & ((z + 0.35 * y + rng.uniform(0, 26)) % 26 < 9)
    volume[ribs] = 400
    volume[np.broadcast_to(np.hypot(x, y - 0.7 * deep) < 19, shape)] = 250
    volume[np.broadcast_to((np.abs(x) < 16) & (np.abs(y + 0.83 * deep) < 6), shape) & (z < 60)] = 250

    # Lungs stand on the diaphragm's domes; between them the fat of the mediastinum.
    size, lungs = rng.uniform(0.94, 1.04), {}
    for name, side, across in (("right_lung", -1, 50), ("left_lung", 1, 46)):
        centre = (10, -4, side * 64 * size)
        floor = 70 + 6 * side + 0.009 * ((x - centre[2]) ** 2 + (y - centre[1]) ** 2)
        lungs[name] = _ellipsoid(shape, centre, (130, 78 * size, across * size)) & (z > -116) & (z < floor)
        lungs[name] &= outline < 0.8  # within the ribs
    middle = (np.hypot((x - 4) / 34, (y + 4) / 58) < 1) & (z < 74) & (z > -116) & (outline < 0.8)
    middle &= ~(lungs["right_lung"] | lungs["left_lung"])
    volume[middle] = -90
    grows = 1.32 if ("cardiomegaly", "heart") in item.present else 1.0
    centre, radii = np.array([34, -22, 20]) + rng.normal(0, 3, 3), np.array([46, 38, 46]) * rng.uniform(0.92, 1.04)
    heart = _ellipsoid(shape, centre, radii * grows)
    tissue = gaussian_filter(noise.standard_normal(shape, dtype=np.float32), 0.8, truncate=2) / 0.23
    for name in lungs:
        lungs[name] &= ~heart
        inside = lungs[name]
        volume[inside] = np.broadcast_to(0.6 * y - 830, shape)[inside]  # denser towards the back
        volume[inside & (tissue > 2.1)] = -150  # vessels
    volume[heart] = 60
    _tube(volume, (-60, 8, 14), (150, 45, 24), 13, 110)  # descending aorta
    _tube(volume, (-60, 8, 14), (10, -14, 4), 15, 110)  # arch and ascending aorta
    _tube(volume, (-90, 0, -18), (20, -10, -14), 9, 90)  # superior vena cava
    _tube(volume, (-130, 12, 0), (-40, 14, 0), 9, -950)  # trachea
    _tube(volume, (-40, 14, 0), (-20, 14, -40), 7, -950)
    _tube(volume, (-40, 14, 0), (-20, 14, 44), 7, -950)

    for label, place in sorted(item.present):
        own = np.random.default_rng([item.seed, item.number, 4, list(FINDINGS).index(label), len(place)])
        region = lungs.get(place)
        if label == "nodule":
            for _ in range(own.integers(5, 9)):
                _bead(volume, _place(own, region & (z > -80)), (own.uniform(13, 18),) * 3, 210, region)
        elif label == "opacity":
            for _ in range(own.integers(2, 4)):
                cloud = _ellipsoid(shape, _place(own, region & (z > -70)), own.uniform(34, 50, 3)) & region
                volume[cloud] = -330 + 110 * tissue[cloud]
        elif label == "effusion":
            level = own.uniform(20, 38)
            fluid = region & (y + 0.45 * (z - 50) > level)
            volume[fluid] = 12
        elif label == "calcification":
            for _ in range(own.integers(6, 9)):
                _bead(volume, _place(own, heart), (own.uniform(8, 11),) * 3, 480, heart)
        elif label == "pacemaker":
            tip = centre + radii * np.array([0.6, own.uniform(-0.5, 0.1), own.uniform(-0.4, 0.3)])
            _tube(volume, centre + radii * (-0.85, 0.2, -0.35), tip, 7, 2800)
            _tube(volume, tip, tip + own.normal(0, 14, 3), 7, 2800, heart)
        elif label == "lymphadenopathy":
            for _ in range(own.integers(7, 11)):
                at = (own.uniform(-95, -15), own.uniform(-42, 32), own.uniform(-24, 28))
                _bead(volume, at, (own.uniform(13, 18),) * 3, 210, middle)

    for label in sorted(item.confounders):
        _, (_, angle, radius, length, value) = FINDINGS[label]
        own = np.random.default_rng([item.seed, item.number, 5, list(FINDINGS).index(label)])
        angle, height = np.deg2rad(angle + own.uniform(-8, 8)), own.uniform(-30, 30)
        at = 1.03 * np.array([deep * np.sin(angle), wide * np.cos(angle)])
        _tube(volume, (height - length / 2, *at), (height + length / 2, *at), radius, value)
    volume += 14 * tissue + 14 * noise.standard_normal(shape, dtype=np.float32)
    return np.clip(volume, -1000, 3000).round().astype(np.int16), lungs | {"heart": heart | middle}
