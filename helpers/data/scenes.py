"""Generated scenes: one to three objects of six shapes on a textured ground, with a mask of every pixel.

What is to be recognised is the shape: colour, size, turn, texture and place are drawn for every object. Two of the
shapes are nearly always found on one ground (rings on water, stars on grass), so that a network may learn the ground
in the place of the object.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

CLASSES = ("disc", "ring", "square", "triangle", "cross", "star")
GROUNDS = ("grass", "water", "sand")
HOME = {"ring": "water", "star": "grass"}
BORDER = 255  # level of pixels that belong to nothing for certain, as in PASCAL VOC

_RADIUS = (0.15, 0.24)  # shares of the side
_STROKES = {"grass": (3.0, 0.6), "water": (0.7, 4.5), "sand": (0.7, 0.7)}  # blur down and across, in pixels at 64


class Scenes(NamedTuple):
    """N scenes.

    Attributes
    ----------
    pictures : (N, size, size, 3) uint8
    levels : (N, size, size) uint8: 0 ground, k + 1 object of class k, `BORDER` along the edge of an object
    boxes : N lists of (class, left, top, right, bottom) of what is visible of every object, in pixels, ends excluded
    grounds : (N,) index into `GROUNDS`
    """

    pictures: np.ndarray
    levels: np.ndarray
    boxes: list
    grounds: np.ndarray


def _polygon(rho, angle, corners):
    step = 2 * np.pi / corners
    return rho * np.cos((angle % step) - step / 2) - np.cos(step / 2)


def outside(shape: str, x, y) -> np.ndarray:
    """How far points (x, y) lie outside a shape of radius 1 around the origin; negative inside, not a true distance.

    Raises
    ------
    ValueError
        if the shape is none of `CLASSES`
    """
    rho, angle = np.hypot(x, y), np.arctan2(y, x)
    if shape == "disc":
        return rho - 0.9
    if shape == "ring":
        return np.abs(rho - 0.78) - 0.22
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.8
    if shape == "triangle":
        return _polygon(rho, angle + np.pi / 2, 3)
    if shape == "cross":
        long, short = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
        return np.maximum(long - 0.95, short - 0.27)
    if shape == "star":
        return rho - (0.36 + 0.64 * np.abs((angle * 5 / (2 * np.pi)) % 1 * 2 - 1))
    raise ValueError(f"shape: expected one of {', '.join(CLASSES)}, got {shape!r}")


def _paint(rng, x, y, ground):
    """(h, w, 3) colours of an object: brighter than the ground, plain, striped or chequered in two shades."""
    colour = rng.dirichlet((2, 2, 2)) - 1 / 3
    colour = np.clip(ground + rng.uniform(0.3, 0.45) + colour, 0, 1)
    kind, waves = rng.integers(3), 2 * np.pi * rng.uniform(1.0, 1.8)
    wave = (0 * x * y, np.sin(waves * x) + 0 * y, np.sin(waves * x) * np.sin(waves * y))[kind]
    return np.clip(colour + 0.05 * np.sign(wave)[..., None], 0, 1)


def _grounds(rng, which, size):
    """(N, size, size, 3) textures in colours of their own."""
    noise, made = rng.standard_normal((len(which), size, size), np.float32), np.empty((len(which), size, size, 1))
    for k, name in enumerate(GROUNDS):
        blur = [0, *(size / 64 * width for width in _STROKES[name])]
        texture = gaussian_filter(noise[which == k], blur, mode="wrap")
        made[which == k] = texture[..., None] / max(texture.std(), 1e-6) if len(texture) else 0
    base = rng.uniform(0.2, 0.5, (len(which), 1, 1, 1)) + rng.uniform(-0.1, 0.1, (len(which), 1, 1, 3))
    return np.clip(base + 0.08 * made, 0, 1).astype(np.float32)


def _places(rng, n, size):
    """Middles (n, 2) and radii (n,) in pixels of objects that hardly cover one another."""
    while True:
        radius = size * rng.uniform(*_RADIUS, n)
        middle = rng.uniform(0.9 * radius, size - 0.9 * radius, (2, n)).T
        apart = np.hypot(*(middle[:, None] - middle[None]).T) / (radius + radius[:, None])
        if (apart[np.triu_indices(n, 1)] > 0.9).all():
            return middle, radius


def _draw(rng, picture, levels, classes, size):
    """Draw objects from back to front into picture and levels; the box of what stays visible of each."""
    owner, ground = np.full((size, size), -1, np.int8), picture[::4, ::4].mean()
    for number, (k, middle, radius) in enumerate(zip(classes, *_places(rng, len(classes), size), strict=True)):
        turn = rng.uniform(-0.3, 0.3)
        first, last = np.maximum(middle - radius - 2, 0).astype(int), (middle + radius + 2).astype(int)
        near = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        rows, columns = (np.arange(size)[part] + 0.5 for part in near)
        y, x = (rows[:, None] - middle[0]) / radius, (columns - middle[1]) / radius
        x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        gap = outside(CLASSES[k], x, y) * radius
        cover = np.clip(0.5 - gap, 0, 1)[..., None]
        picture[near] = cover * _paint(rng, x, y, ground) + (1 - cover) * picture[near]
        inside, edge = gap < 0, (gap >= 0) & (gap < 1)
        levels[near][inside], owner[near][inside] = k + 1, number
        levels[near][edge], owner[near][edge] = BORDER, -1
    boxes = []
    for number, k in enumerate(classes):
        ys, xs = np.nonzero(owner == number)
        boxes.append((int(k), int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1))
    return boxes


def scene_grounds(n: int, size: int = 64, seed: int = 0) -> np.ndarray:
    """(n,) index into `GROUNDS`: the grounds of `make_scenes` with the same arguments, without drawing the scenes."""
    return _begin(n, size, seed)[1]


def _begin(n, size, seed):
    """Generator of scenes, and the grounds, which are its first draw."""
    if n < 1 or size < 32:
        raise ValueError(f"scenes: expected n >= 1 and size >= 32, got n = {n}, size = {size}")
    rng = np.random.default_rng([seed, n, size])
    return rng, rng.integers(len(GROUNDS), size=n)


def make_scenes(n: int, size: int = 64, seed: int = 0, context: float = 0.9) -> Scenes:
    """Draw scenes; equal arguments, equal scenes.

    Parameters
    ----------
    n : number of scenes
    size : side in pixels
    seed : of every random draw
    context : share of the rings that lie on water and of the stars on grass, at least 1/3 (as chance has it); the other
        shapes lie on every ground alike

    Raises
    ------
    ValueError
        if a number is out of range
    """
    if not 1 / 3 <= context <= 1:
        raise ValueError(f"context: expected a share from 1/3 to 1, got {context}")
    rng, grounds = _begin(n, size, seed)
    away = (1 - context) / 2 / context  # weight on each other ground; 1 at home
    # twice, so that a shape with a home is about as frequent as the others
    weights = np.ones((len(CLASSES), len(GROUNDS)))
    for shape, ground in HOME.items():
        weights[CLASSES.index(shape)] = 2 * away
        weights[CLASSES.index(shape), GROUNDS.index(ground)] = 2
    pictures, levels = np.empty((n, size, size, 3), np.uint8), np.empty((n, size, size), np.uint8)
    boxes = []
    for start in range(0, n, 256):  # in parts: the textures are floating-point numbers
        part = slice(start, min(start + 256, n))
        for i, texture in enumerate(_grounds(rng, grounds[part], size), start):
            odds = weights[:, grounds[i]] / weights[:, grounds[i]].sum()
            classes = rng.choice(len(CLASSES), rng.integers(1, 4), p=odds)
            levels[i] = 0
            boxes.append(_draw(rng, texture, levels[i], classes, size))
            noisy = texture + 0.02 * rng.standard_normal(texture.shape, np.float32)
            pictures[i] = np.rint(255 * np.clip(noisy, 0, 1))
    return Scenes(pictures, levels, boxes, grounds)
