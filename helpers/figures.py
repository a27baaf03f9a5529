"""Figures that carry their description: pictures, maps beside them, one scale with a unit, one caption.

Importing this module sets matplotlib's font sizes for a projector.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, Markdown, display
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

plt.rcParams.update({"font.size": 12, "axes.titlesize": 13, "axes.labelsize": 12, "legend.fontsize": 11})

DPI = 80
PANEL = 2.1  # inches
HEAT, SIGNED = "magma", "RdBu_r"
LAYER_NAMES = {
    "columns": {
        0: "gel, deep tissue, margins",
        32: "just above; third band",
        64: "second band beneath",
        128: "first band beneath",
        255: "epidermis and structure",
    },
    "rings": {0: "far away", 32: "third ring", 64: "second ring", 128: "first ring", 255: "lesion"},
}
LAYER_COLOURS = ListedColormap([plt.get_cmap("cividis")(step) for step in np.linspace(0, 1, 5)])
LAYER_STEPS = BoundaryNorm([-0.5, 0.5, 32.5, 64.5, 128.5, 255.5], 5)


def show(figure: Figure, alt: str, caption: str) -> None:
    """Display a figure as PNG with alternative text, and its caption below; the figure is closed.

    Parameters
    ----------
    figure : matplotlib figure
    alt : what a reader who cannot see the figure needs: kind of figure and what it shows. Stored in the output's
        metadata, from where the web page of the notebook takes it
    caption : Markdown; what to look for

    Raises
    ------
    ValueError
        if `alt` or `caption` is empty
    """
    for name, text in (("alt", alt), ("caption", caption)):
        if not text.strip():
            raise ValueError(f"{name}: every figure needs one, got an empty text")
    png = io.BytesIO()
    # without the name of the software, equal figures are equal files
    figure.savefig(png, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    display(Image(png.getvalue(), format="png", alt=" ".join(alt.split())))
    display(Markdown(f"*{' '.join(caption.split())}*"))


def picture(image) -> np.ndarray:
    """(H, W, 3) array that matplotlib shows, of an image (C, H, W) in [0, 1] with one or three channels."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image: expected (1, H, W) or (3, H, W), got shape {image.shape}")
    return np.clip(np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3)), 0, 1)


def image_grid(images, titles: Sequence[str] = (), columns: int = 4) -> Figure:
    """Pictures in rows of `columns`.

    Parameters
    ----------
    images : (N, C, H, W) array in [0, 1], or a sequence of (C, H, W)
    titles : one per image, or none
    columns : pictures in a row
    """
    columns = min(columns, len(images))
    figure, axes = _panels(-(-len(images) // columns), columns)
    for axis in axes.flat[len(images) :]:
        axis.axis("off")
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(picture(image))
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title)
    return figure


def map_grid(
    images,
    maps: Mapping[str, np.ndarray],
    unit: str,
    rows: Sequence[str] = (),
    layer_maps=None,
    signed: bool = False,
    peaks: bool = False,
) -> Figure:
    """One row per image: the image, then its map of every method, all on one scale with one colour bar.

    Raw maps keep their coarse grid, stretched over the image. A flat map (NaN) is a grey panel that says so.

    Parameters
    ----------
    images : (N, C, H, W) array in [0, 1]
    maps : title to (N, h, w) array; heat maps in [0, 1], or raw maps where `signed`
    unit : label of the colour bar
    rows : label of every row, or none
    layer_maps : (N, H, W) uint8, or None; the outline of level 255 is drawn into the maps, not into the image
    signed : diverging colours centred on zero, up to the largest magnitude; else from 0 to 1
    peaks : mark the first pixel at a map's maximum with a cross
    """
    largest = max((np.nanmax(np.abs(values), initial=0.0) for values in maps.values()), default=0.0) or 1.0
    scale = {"cmap": SIGNED, "vmin": -largest, "vmax": largest} if signed else {"cmap": HEAT, "vmin": 0, "vmax": 1}
    figure, axes = _panels(len(images), 1 + len(maps), beside=1.1)
    axes[0, 0].set_title("image")
    shown = None
    for row, image in zip(axes, images, strict=True):
        row[0].imshow(picture(image))
    for axis, title in zip(axes[0, 1:], maps, strict=True):
        axis.set_title(title)
    for column, values in enumerate(maps.values(), start=1):
        for axis, image, values_here in zip(axes[:, column], images, np.asarray(values), strict=True):
            height, width = np.shape(image)[-2:]
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            if np.isnan(values_here).all():
                axis.imshow(np.full((1, 1), 0.8), cmap="gray", vmin=0, vmax=1, extent=extent)
                axis.text(width / 2, height / 2, "flat map", ha="center", va="center")
                continue
            shown = axis.imshow(values_here, extent=extent, interpolation="nearest", **scale)
            if peaks:
                y, x = np.unravel_index(np.nanargmax(values_here), values_here.shape)
                step = height / values_here.shape[0], width / values_here.shape[1]
                at = (x + 0.5) * step[1] - 0.5, (y + 0.5) * step[0] - 0.5
                axis.plot(*at, "+", color="black" if signed else "deepskyblue", markersize=14, markeredgewidth=2.5)
    for row, layer_map in zip(axes, () if layer_maps is None else layer_maps, strict=layer_maps is not None):
        for axis in row[1:] if (layer_map == 255).any() else ():
            axis.contour(layer_map == 255, levels=[0.5], colors="black" if signed else "white", linewidths=1.2)
    for axis, label in zip(axes[:, 0], rows, strict=False):
        axis.set_ylabel(label)
    if shown is not None:
        figure.colorbar(shown, ax=axes, label=unit, fraction=0.05, aspect=12 * len(images))
    return figure


def layer_grid(images, layer_maps, titles: Sequence[str] = (), rule: str = "columns", scores=None) -> Figure:
    """Images above their layer maps, with a legend that names the five levels.

    Parameters
    ----------
    images : (N, C, H, W) array in [0, 1]
    layer_maps : (N, H, W) uint8 of the levels 255, 128, 64, 32, 0
    titles : one per image, or none
    rule : "columns" or "rings", by which the levels are named
    scores : mapping from level to score, added to the legend; None leaves it out
    """
    figure, axes = _panels(2, len(images), beside=4)
    for axis, image, layer_map in zip(axes.T, images, layer_maps, strict=True):
        axis[0].imshow(picture(image))
        axis[1].imshow(layer_map, cmap=LAYER_COLOURS, norm=LAYER_STEPS, interpolation="nearest")
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title)
    score = {level: "" if scores is None else f", score {scores[level]:g}" for level in LAYER_NAMES[rule]}
    handles = [
        Patch(facecolor=LAYER_COLOURS(LAYER_STEPS(level)), edgecolor="black", label=f"{level}: {name}{score[level]}")
        for level, name in reversed(LAYER_NAMES[rule].items())
    ]
    figure.legend(handles=handles, loc="outside right center")
    return figure


def _panels(rows, columns, beside=0.0):
    size = PANEL * columns + beside, PANEL * rows
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="compressed")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure, axes
