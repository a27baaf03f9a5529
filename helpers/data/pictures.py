"""Picture files: read in every usual mode, checked whole, never larger than a limit."""

from __future__ import annotations

import hashlib
import io
from collections import namedtuple
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from helpers.data.layer_maps import resize_nearest

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MAX_PIXELS = 50_000_000
WHITE_16_BIT = 65535

Examined = namedtuple("Examined", "size digest frames peak levels")
Examined.__doc__ = """What a file holds: (height, width), digest of its bytes, number of frames, largest value if it has
16 bits (else 0), and number of pixels of each 8-bit grey level."""


class PictureError(ValueError):
    """A picture file that cannot be used; the message names the file, the reason and the remedy."""


def load(source, name):
    """Decode a whole picture, turned upright.

    Parameters
    ----------
    source : path or open binary file
    name : how errors call it

    Raises
    ------
    PictureError
        if it is unreadable, truncated, larger than `MAX_PIXELS`, or its values are not those of 8 or 16 bits
    """
    too_large = PictureError(f"{name}: more than {MAX_PIXELS // 10**6} megapixels, the limit; save it smaller")
    try:
        with Image.open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise too_large
            image.load()
            upright = ImageOps.exif_transpose(image)
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large from error
    except Exception as error:  # decoders fail in many ways on a damaged file, and every way means the same here
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(f"{name}: cannot be read ({reason}); copy or export it again") from error
    if upright.mode[0] in "IF":
        values = np.asarray(upright)
        if upright.mode[0] == "F" or values.min() < 0 or values.max() > WHITE_16_BIT:
            kind = f"mode {upright.mode}, values {values.min()} to {values.max()}"
            raise PictureError(f"{name}: {kind}; save it with 8 or 16 bits, 0 to {WHITE_16_BIT}")
    return upright


def _flat(image):
    """The picture without transparency: what is transparent becomes black."""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image


def read_picture(path, white=WHITE_16_BIT):
    """Read a picture of mode 1, L, LA, P, RGB, RGBA, CMYK or I;16 as RGB; errors as `load`.

    Parameters
    ----------
    path : path of the file
    white : value of a 16-bit picture that becomes 255; 16-bit values are scaled by 255 / white, not cut
    """
    image = load(path, Path(path).name)
    if image.mode[0] == "I":
        image = Image.fromarray(np.rint(np.minimum(np.asarray(image) / white, 1) * 255).astype(np.uint8))
    return _flat(image).convert("RGB")


def _levels(image):
    if image.mode[0] == "I":
        values = np.asarray(image)
        # Sixteen bits: 65535 is level 255, and nothing above zero may vanish.
        return (values if values.max() <= 255 else -(-values.astype(np.int64) // 257)).astype(np.uint8)
    return np.asarray(_flat(image).convert("L"))


def read_levels(path):
    """Read a mask or layer map of any mode as (H, W) uint8; colours become their luminance; errors as `load`."""
    return _levels(load(path, Path(path).name))


def picture_size(path):
    """(height, width) of a picture, upright, from the file's header."""
    with Image.open(path) as image:
        turned = image.getexif().get(0x0112, 1) > 4
        return image.size if turned else image.size[::-1]


def examine(path):
    """`Examined` of a file, decoded to its end so that truncation is found; remembered while it is unchanged.

    Raises
    ------
    PictureError
        as `load`, and if the file is empty
    """
    status = Path(path).stat()
    return _examine(Path(path), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8192)
def _examine(path, _modified, _bytes):
    content = path.read_bytes()
    if not content:
        raise PictureError(f"{path.name}: the file is empty; copy or export it again")
    image = load(io.BytesIO(content), path.name)
    with Image.open(io.BytesIO(content)) as opened:
        frames = getattr(opened, "n_frames", 1)
    peak = int(np.asarray(image).max()) if image.mode[0] == "I" else 0
    counts = np.bincount(_levels(image).ravel(), minlength=256)
    levels = {int(level): int(counts[level]) for level in np.flatnonzero(counts)}
    return Examined(image.size[::-1], hashlib.sha256(content).hexdigest(), frames, peak, levels)


@dataclass(frozen=True)
class MaskFile:
    """A structure on disk: the pixels of some grey levels, united over one or several files.

    Parameters
    ----------
    parts : pairs of a path and the levels that belong to the structure in that file
    """

    parts: tuple[tuple[Path, tuple[int, ...]], ...]

    def read(self, size):
        """(h, w) bool array; a file of another size is resized by nearest neighbour."""
        inside = np.zeros(size, bool)
        for path, levels in self.parts:
            inside |= resize_nearest(np.isin(np.arange(256), levels)[read_levels(path)], size)
        return inside
