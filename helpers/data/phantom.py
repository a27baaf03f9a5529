"""Skin-ultrasound phantoms: pictures like the device's, made from a seed, with a mask of every structure."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d

from helpers.data.study import Study
from helpers.store import fingerprint

SOURCE_CLASSES = ("bright band", "bright columns", "bright inclusion", "plain")
CLASSES = {"diagnosis": ("AD", "CG", "PS", "ST"), "source": SOURCE_CLASSES}
IMAGES_PER_EXAMINATION = 2

# Lengths are fractions of the picture's side, levels are dB relative to the dermis just beneath the epidermis.
# Values are drawn from these ranges without knowing the class: they are what the classes have in common.
SCANNERS = {
    "diagnosis": {"gain": (-3, 4), "attenuation": (14, 32), "axial": (0.0032, 0.0046), "lateral": (0.007, 0.0105)},
    "source": {"gain": (-1, 7), "attenuation": (8, 22), "axial": (0.0065, 0.0085), "lateral": (0.013, 0.018)},
}
EXAMINATION = {
    "gel": (0.19, 0.40),  # from the upper edge of the picture to the skin
    "gel_level": (-66, -50),
    "membrane": (0, 1),  # there is one below 0.7
    "membrane_top": (0.02, 0.06),
    "membrane_sag": (0.01, 0.05),
    "membrane_centre": (0.35, 0.65),
    "membrane_start": (-0.45, 0.20),  # left end: outside the picture in most examinations
    "membrane_level": (10, 20),
}
SKIN = {
    "offset": (-0.02, 0.02),
    "tilt": (-0.06, 0.06),
    "thickness": (0.024, 0.040),  # of the epidermis
    "entry_level": (18, 25),
    "subcutis": (0.38, 0.75),  # depth at which the dermis ends
    "subcutis_level": (-14, -5),
    "hairs": (-0.5, 3.5),  # how many, rounded
}
# Smooth random curves and textures: number of knots, range of their standard deviation.
CURVES = {
    "bend": (5, 0.003, 0.018),
    "rough": (40, 0.0012, 0.0035),
    "border": (14, 1, 1),
    "uneven": (30, 2.5, 5),
    "contact": (6, 0.8, 2),
    "floor": (7, 0.03, 0.06),
    "clouds": ((7, 6), 1.2, 2.6),
    "bundles": ((64, 30), 2.5, 4),
}
DYNAMIC_RANGE = 40.0
DERMIS_LEVEL = -20.5  # below full brightness, at gain 0
NOISE_LEVEL = -22.0  # of the electronics, the same at every depth
LOOKS = 2  # independent speckle patterns that the scanner averages
FINEST_GRID = 160  # smaller pictures are drawn on a finer grid and averaged, as a screen shrinks a scan

# Look-up tables: level, red, green, blue; interpolated to 256 levels.
TABLES = {
    "diagnosis": ((0, 0, 0, 0), (90, 4, 74, 20), (150, 26, 150, 66), (205, 124, 216, 156), (255, 255, 255, 255)),
    "source": ((0, 0, 0, 0), (100, 52, 82, 56), (190, 150, 190, 150), (255, 250, 255, 246)),
}


class Phantom(NamedTuple):
    """One rendered picture; its arrays are read-only.

    Parameters
    ----------
    picture : (H, W, 3) uint8 array
    masks : mapping from "epidermis" and, where the picture has one, "sleb" or "tumour" to an (H, W) bool array
    nuisances : mapping from the name of what varies in every class alike to the value drawn
    strength : how clear the sign of the class is, in (0.3, 1); 0 for CG and "plain", which have none
    """

    picture: np.ndarray
    masks: Mapping
    nuisances: Mapping
    strength: float


def phantoms(images_per_class=60, size=224, seed=0, classes=None, marker=None, task="diagnosis"):
    """A study of generated skin-ultrasound pictures.

    A picture depends on `seed`, `size`, `task`, its class and its number within the class only: asking for more of
    them, or for fewer classes, changes none. It is generated when first asked for (about 10 ms at 224 px) and then
    kept. Two pictures form an examination: one scanner setting, one filling of gel, one membrane, hence one group.

    Parameters
    ----------
    images_per_class : number of pictures of every class
    size : height and width in pixels, at least 32
    seed : whole number, not negative
    classes : names of the classes wanted; None takes all of the task
    marker : class in whose pictures, and in no others, a ruler is planted at the right margin; None plants none
    task : "diagnosis" (AD: a dark band beneath the epidermis; CG: healthy; PS: a thick epidermis that casts shadow
        columns, with a thin dark band beneath; ST: a dark oval lesion) or "source" (another scanner; plain skin, a
        bright inclusion, a bright band, bright columns)

    Returns
    -------
    Study of len(classes) * images_per_class pictures

    Raises
    ------
    ValueError
        if the task, a class or the marker's class is unknown, a class is named twice, or a number is too small
    """
    if task not in CLASSES:
        raise ValueError(f"task is {task!r}; choose one of {', '.join(CLASSES)}")
    wanted = tuple(sorted(CLASSES[task] if classes is None else classes))
    if not wanted or len(set(wanted)) < len(wanted) or not set(wanted) <= set(CLASSES[task]):
        raise ValueError(f"classes is {classes!r}; task {task!r} needs distinct names out of {CLASSES[task]}")
    if marker is not None and marker not in wanted:
        raise ValueError(f"marker is {marker!r}; give one of the classes {wanted} or None")
    for name, value, least in (("images_per_class", images_per_class, 1), ("size", size, 32), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} is {value!r}; a whole number of at least {least} is needed")

    items = [(kind, number) for kind in wanted for number in range(images_per_class)]
    jobs = [(kind, number, size, seed, task, kind == marker) for kind, number in items]
    stems = [(kind.replace(" ", "-"), number) for kind, number in items]
    prefix = "phantom" if task == "diagnosis" else "source"
    kept = Kept()
    return Study(
        title="phantoms" if task == "diagnosis" else "source phantoms",
        names=tuple(f"{prefix}_{kind}_{number:03d}" for kind, number in stems),
        labels=np.repeat(np.arange(len(wanted)), images_per_class),
        classes=wanted,
        groups=np.array([f"{kind}-{number // IMAGES_PER_EXAMINATION:03d}" for kind, number in stems]),
        pictures=Rendered(jobs, "picture", kept),
        masks=Rendered(jobs, "masks", kept),
        layer_map_files=[None] * len(items),
        rule="columns",
        fingerprint=fingerprint(images_per_class, size, seed, wanted, marker, task, sys.modules[__name__]),
    )


class Kept(dict):
    """What has been rendered; it can be made again, so pickles leave it behind."""

    def __reduce__(self):
        return Kept, ()


class Rendered(Sequence):
    """One field of the phantoms that `render` draws for `jobs`, each drawn when first asked for and put into `kept`."""

    def __init__(self, jobs, field, kept):
        self.jobs, self.field, self.kept = jobs, field, kept

    def __len__(self):
        return len(self.jobs)

    def __getitem__(self, index):
        index = range(len(self.jobs))[index]
        if index not in self.kept:
            self.kept[index] = render(*self.jobs[index])
        return getattr(self.kept[index], self.field)


def render(kind, number, size=224, seed=0, task="diagnosis", marked=False, nuisances_of=None):
    r"""Draw phantom `number` of class `kind`.

    .. math:: level = 10 \log_{10} \frac{1}{L} \sum_{l=1}^{L} |h * (10^{A/20} w_l) + n_l|^2 + gain

    A is the map of echo levels in dB (gel, membrane, epidermis, dermis, the sign of the class, less attenuation and
    shadows), w and n complex white noise (scatterers and electronics) of each of L looks, h the point-spread function:
    Gaussian, finer in depth than across, and wider across away from the focus at the skin's surface. Levels pass the
    scanner's look-up table.

    Parameters
    ----------
    kind, number, size, seed, task : as in `phantoms`
    marked : plant the ruler
    nuisances_of : class whose phantom `number` lends everything but the sign (scanner, gel, skin, hairs, speckle); None
        means `kind` itself. Two pictures that differ in `kind` only show what the sign, and nothing else, changes.

    Returns
    -------
    Phantom

    References
    ----------
    .. [1] R. F. Wagner, S. W. Smith, J. M. Sandrik, H. Lopez: Statistics of speckle in ultrasound B-scans. IEEE
       Transactions on Sonics and Ultrasonics 30(3), 156-163, 1983.
    """

    def draws(owner, stream, index=number):
        return np.random.default_rng([seed, index, *(zlib.crc32(word.encode()) for word in (task, owner, stream))])

    owner = nuisances_of or kind
    rng = draws(owner, "examination", number // IMAGES_PER_EXAMINATION)
    values = {name: rng.uniform(*limits) for name, limits in (SCANNERS[task] | EXAMINATION).items()}
    rng = draws(owner, "skin")
    values |= {name: rng.uniform(*limits) for name, limits in SKIN.items()}
    coefficients = {name: _normal(rng, knots, rng.uniform(*limits)) for name, (knots, *limits) in CURVES.items()}
    sign = _sign(kind, draws(kind, "sign"))

    finer = -(-FINEST_GRID // size)
    layers = _layers(size * finer, values, coefficients, sign)
    echoes = _echoes(layers, values, coefficients, sign, draws(owner, "hairs"))
    level = _scan(echoes, layers["depth"], values, draws(owner, "speckle"))
    if finer > 1:
        level = level.reshape(size, finer, size, finer).mean(axis=(1, 3))
        layers = _layers(size, values, coefficients, sign)
    picture = _table(task)[(level * 255 + 0.5).astype(np.uint8)]
    if marked:
        picture[ruler(size)] = (235, 255, 240)
    masks = {name: layers[name] for name in ("epidermis", "sleb", "tumour") if layers[name].any()}
    for array in (picture, *masks.values()):
        array.flags.writeable = False
    return Phantom(picture, MappingProxyType(masks), MappingProxyType(values), sign["strength"])


def ruler(size):
    """Pixels of the planted ruler: ticks at the right margin, every fifth one long; (size, size) bool array."""
    row, column = np.ogrid[:size, :size]
    tick, place = np.divmod(row * 20, size)
    length = np.maximum(2, np.where(tick % 5 == 2, 0.06, 0.03) * size)
    return (np.abs(place - size / 2) < max(10, 0.08 * size)) & (column >= size - length)


def _sign(kind, rng):
    """The sign of the class: clear in most pictures (mean strength about 0.8), faint in a few."""
    strength = 0.0 if kind in ("CG", "plain") else 0.3 + 0.7 * rng.beta(3, 1.2)
    sign = {"strength": strength, "thickening": 0.0, "band": 0.0, "band_level": 0.0, "columns": [], "oval": {}}
    sign["wander"] = _normal(rng, 9, 1)
    if kind == "AD":
        sign |= {"band": rng.uniform(0.07, 0.115) * (0.7 + 0.3 * strength), "band_level": -9 - 13 * strength}
    if kind == "PS":
        sign["thickening"] = rng.uniform(0.036, 0.06) * (0.35 + 0.65 * strength)
        sign |= {"band": rng.uniform(0.02, 0.034), "band_level": -7 - 9 * strength}
    if kind in ("PS", "bright columns"):
        level = (-11 - 15 * strength) if kind == "PS" else (7 + 8 * strength)
        for place in rng.permutation(4)[: rng.integers(2, 5)].tolist():
            at = (place + rng.uniform(0.22, 0.78)) / 4
            sign["columns"].append((at, rng.uniform(0.022, 0.055), level * rng.uniform(0.7, 1)))
    if kind in ("ST", "bright inclusion"):
        height = rng.uniform(0.06, 0.11)
        sign["oval"] = {
            "across": rng.uniform(0.35, 0.65),
            "depth": rng.uniform(0.035, 0.09) + height,
            "width": rng.uniform(0.14, 0.26),
            "height": height,
            "waves": _normal(rng, (3, 2), 1) * np.float32([[0.07], [0.05], [0.035]]),
            "level": (-10 - 15 * strength) if kind == "ST" else (8 + 8 * strength),
        }
    if kind == "bright band":
        sign["line"] = (rng.uniform(0.16, 0.32), rng.uniform(0.008, 0.014), 10 + 9 * strength)
    return sign


def _normal(rng, shape, deviation):
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)


@lru_cache(maxsize=64)
def _spline(n, knots):
    """Cubic B-splines, (n, knots): white numbers at the knots become a smooth curve of the same variance everywhere."""
    distance = np.abs((np.arange(n)[:, None] + 0.5) / n * (knots - 1) - np.arange(knots))
    rows = np.clip(2 - distance, 0, None) ** 3 - 4 * np.clip(1 - distance, 0, None) ** 3
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _smooth(n, coefficients):
    """Curve (n,) or texture (n, n) through random coefficients; the same shape at every n."""
    curves = _spline(n, len(coefficients)) @ coefficients
    return curves if curves.ndim == 1 else curves @ _spline(n, curves.shape[1]).T


def _beyond(distance, width):
    """0 before an edge, 1 after it, with a ramp of the given width."""
    return np.clip(distance / width + 0.5, 0, 1)


@lru_cache
def _table(task):
    levels, *colours = np.array(TABLES[task]).T
    return np.stack([np.interp(np.arange(256), levels, colour) for colour in colours], axis=1).round().astype(np.uint8)


def _layers(n, values, coefficients, sign):
    """Geometry on an n x n grid: curves (n,); depth beneath the surface, distance from the oval and masks (n, n)."""
    x = (np.arange(n, dtype=np.float32) + 0.5) / n
    surface = values["gel"] + values["offset"] + values["tilt"] * (2 * x - 1)
    surface += _smooth(n, coefficients["bend"]) + _smooth(n, coefficients["rough"])
    border = _smooth(n, coefficients["border"])
    lower = values["thickness"] * (1 + 0.12 * border) + sign["thickening"] * (1 + 0.25 * border)
    lower = np.maximum(lower, np.float32(1.001 / n))  # a pixel of epidermis in every column of the smallest pictures
    wander = _smooth(n, sign["wander"])
    band = sign["band"] * np.clip(1 + 0.4 * wander, 0.4, 1.8)
    depth = x[:, None] - surface
    layers = {"x": x, "surface": surface, "lower": lower, "wander": wander, "band": band, "depth": depth}
    layers |= {"epidermis": (depth >= 0) & (depth < lower), "sleb": (depth >= lower) & (depth < lower + band)}
    layers["tumour"] = np.zeros((n, n), dtype=bool)
    if oval := sign["oval"]:
        place = (x - oval["across"]) / oval["width"] + 1j * ((depth - oval["depth"]) / oval["height"])
        radius = np.abs(place)
        turn = place / np.maximum(radius, 1e-6)
        border, power = 1.0, turn
        for cosine, sine in oval["waves"]:  # the border's second, third and fourth harmonic
            power = power * turn
            border = border + cosine * power.real + sine * power.imag
        layers["outside"] = radius / border
        if oval["level"] < 0:
            layers["tumour"] = (radius < border) & (depth >= lower)
    return layers


def _echoes(layers, values, coefficients, sign, rng):
    """Map of echo levels in dB, (n, n) float32."""
    x, depth, lower = layers["x"], layers["depth"], layers["lower"]
    n = len(x)
    below = depth - lower
    curve = {name: _smooth(n, numbers) for name, numbers in coefficients.items()}

    tissue = curve["clouds"] + curve["bundles"] - values["attenuation"] * np.maximum(below, 0)
    tissue += values["subcutis_level"] * _beyond(depth - values["subcutis"] - curve["floor"], 0.16)
    tissue += sign["band_level"] * _beyond(layers["band"] - below, 3 / n)
    if sign["oval"]:
        tissue += sign["oval"]["level"] * _beyond(1 - layers["outside"], 0.12)
    if "line" in sign:
        place, thick, level = sign["line"]
        tissue += level * np.exp(-(((depth - place - 0.012 * layers["wander"]) / thick) ** 2))
    for at, wide, level in sign["columns"]:
        tissue += level * np.exp(-(np.abs((x - at) / wide) ** 3)) * _beyond(below - 0.01, 0.02)
    entry = values["entry_level"] + curve["uneven"] - 8 * np.clip(depth / lower, 0, 1)
    echoes = np.where(below < 0, entry, tissue) + curve["contact"]

    hairs = rng.uniform((0.03, 0.004, 8, -6), (0.97, 0.012, 22, 14), (round(values["hairs"]), 4)).tolist()
    for at, wide, shadow, _ in hairs:
        echoes -= shadow * np.exp(-(((x - at) / wide) ** 2)) * _beyond(depth - 0.012, 0.02)
    echoes = np.where(depth < 0, np.float32(values["gel_level"]), echoes)
    for at, wide, _, level in hairs:
        echoes = np.maximum(echoes, level - 6 * (((x - at) / wide) ** 2 + ((depth + 0.012) / 0.006) ** 2))
    if values["membrane"] < 0.7:
        away = x - values["membrane_centre"]
        arc = values["membrane_top"] + values["membrane_sag"] * (2 * away) ** 2
        arc = np.minimum(arc, layers["surface"] - 0.02)  # the skin carries the membrane where they meet
        level = (
            values["membrane_level"]
            + 0.6 * curve["uneven"]
            - 40 * away**2
            - np.float32(60) * (x < values["membrane_start"])
        )
        echoes = np.maximum(echoes, level - 4 * ((x[:, None] - arc) / 0.006) ** 2)
    return echoes


def _scan(echoes, depth, values, rng):
    """Brightness in [0, 1] of the log-compressed envelope, (n, n) float32."""
    n = len(echoes)
    scatterers, electronics = rng.standard_normal((2, 2 * LOOKS, n, n), dtype=np.float32)
    scatterers *= np.power(np.float32(10), echoes / 20)

    def smear(field, sigma, axis):
        unit_energy = np.float32(np.sqrt(2 * np.sqrt(np.pi) * sigma * n))
        return gaussian_filter1d(field, sigma * n, axis=axis, truncate=3) * unit_energy

    field = smear(scatterers, values["axial"], 1)
    focus, aside = smear(field, values["lateral"], 2), smear(field, 1.7 * values["lateral"], 2)
    focus += np.clip(np.abs(depth) / 0.6, 0, 1) * (aside - focus)
    focus += np.float32(10 ** (NOISE_LEVEL / 20)) * electronics
    level = 10 * np.log10((focus**2).mean(axis=0) + 1e-9)
    return np.clip(1 + (level + values["gain"] + DERMIS_LEVEL) / DYNAMIC_RANGE, 0, 1)
