"""A `Study`: images, labels, layer maps and groups, wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from helpers.data import layer_maps as maps
from helpers.data import pictures as files
from helpers.data.structures import grey_mask
from helpers.settings import ROOT
from helpers.store import replacing, write_table


def problem_table(rows=()):
    """Table with the columns file, problem, action."""
    return pd.DataFrame(list(rows), columns=["file", "problem", "action"], dtype=str)


@dataclass(frozen=True, eq=False)
class Study:
    """N pictures with labels and, where they are known, structures, layer maps and groups.

    Pictures and masks are read (or generated) when they are asked for; resized ones are kept in memory as 8 bit.

    Parameters
    ----------
    title : what the study is called
    names : N unique stems
    labels : (N,) int64, index into `classes`
    classes : names of the classes
    groups : (N,) str, patient or examination; None where nothing is known
    pictures : N items, path of a picture or (H, W, 3) uint8 array
    masks : N mappings from a structure ("epidermis", "sleb", "tumour", "lesion", ...) to an (H, W) bool array or
        a `pictures.MaskFile`; an empty mapping where nothing is segmented
    layer_map_files : N items, path or (H, W) uint8 array of a layer map, or None: then it is built from the masks
    rule : how it is built, "columns" or "rings", see `layer_maps.layer_map`
    fingerprint : hex digest of the contents; equal contents, equal fingerprint, wherever they are stored
    problems : what was left out or changed when the study was read: columns file, problem, action
    white : value that is shown as white in 16-bit pictures

    Raises
    ------
    ValueError
        if lengths differ, a name stands twice, a label has no class, or the rule is unknown
    """

    title: str
    names: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    groups: np.ndarray | None
    pictures: Sequence
    masks: Sequence[Mapping]
    layer_map_files: Sequence
    rule: str
    fingerprint: str
    problems: pd.DataFrame = field(default_factory=problem_table, repr=False)
    white: int = files.WHITE_16_BIT
    _kept: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        parts = ("names", "labels", "pictures", "masks", "layer_map_files", "groups")
        lengths = {name: len(part) for name in parts if (part := getattr(self, name)) is not None}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"a study needs as many of each as there are images, got {lengths}")
        doubles = sorted({name for name in self.names if self.names.count(name) > 1})
        if doubles:
            raise ValueError(f"names must be unique, but these stand twice: {', '.join(doubles[:5])}")
        if len(self.labels) and not 0 <= min(self.labels) <= max(self.labels) < len(self.classes):
            raise ValueError(f"labels must be in 0..{len(self.classes) - 1}, got {np.unique(self.labels).tolist()}")
        if self.rule not in maps.RULES:
            raise ValueError(f"rule must be one of {maps.RULES}, got {self.rule!r}")

    def __len__(self):
        return len(self.names)

    def __getstate__(self):
        # What is kept in memory can be made again: a study that travels to another process leaves it behind.
        return {**self.__dict__, "_kept": {}}

    def picture(self, i):
        """Picture i as a PIL image, RGB, at its own size."""
        item = self.pictures[i]
        return files.read_picture(item, self.white) if isinstance(item, (str, Path)) else Image.fromarray(item)

    def picture_size(self, i):
        """(height, width) of picture i."""
        item = self.pictures[i]
        return files.picture_size(item) if isinstance(item, (str, Path)) else item.shape[:2]

    def images(self, size, which=None):
        """Pictures as a network takes them: squashed to one size, antialiased and bilinear.

        Parameters
        ----------
        size : h or (h, w)
        which : indices or bool mask of the images wanted; None for all

        Returns
        -------
        (n, 3, h, w) float32 array in [0, 1]
        """
        height, width = maps.as_pair(size)

        def resized(i):
            picture = self.picture(i)
            if picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(picture).transpose(2, 0, 1)

        return self._resized("images", (3, height, width), resized, which).astype(np.float32) / np.float32(255)

    def mask(self, i, structure, size=None):
        """Mask of a structure in image i, at the picture's own size or resized by nearest neighbour.

        Returns
        -------
        (h, w) bool array, False everywhere where image i does not have the structure

        Raises
        ------
        KeyError
            if no image of the study has the structure
        """
        mask = self.masks[i].get(structure)
        own = self.picture_size(i)
        if mask is None:
            if not any(structure in masks for masks in self.masks):
                known = sorted({name for masks in self.masks for name in masks})
                raise KeyError(f"{self.title}: no structure {structure!r}; known are {known or 'none'}")
            mask = np.zeros(own, bool)
        elif isinstance(mask, files.MaskFile):
            mask = mask.read(own)
        return maps.resize_nearest(mask, own if size is None else size)

    @property
    def has_layer_map(self):
        """(N,) bool array: the image has a layer map of its own, or masks to build it from."""
        if "has_layer_map" not in self._kept:
            self._kept["has_layer_map"] = np.array(
                [
                    # A structure on disk has pixels: the readers leave out those that have none.
                    file is not None or any(isinstance(mask, files.MaskFile) or mask.any() for mask in masks.values())
                    for file, masks in zip(self.layer_map_files, self.masks, strict=True)
                ],
                bool,
            )
        return self._kept["has_layer_map"].copy()

    def layer_map(self, i, size=None):
        """Layer map of image i: the stored one, or one built from the masks, resized by nearest neighbour.

        Returns
        -------
        (h, w) uint8 array of the levels 255, 128, 64, 32, 0

        Raises
        ------
        ValueError
            if the image has neither, or if the stored map holds another level
        """
        item = self.layer_map_files[i]
        if isinstance(item, (str, Path)):
            array = maps.check_layer_map(files.read_levels(item), Path(item).name)
        elif item is not None:
            array = maps.check_layer_map(item, self.names[i])
        elif self.masks[i]:
            array = maps.layer_map({structure: self.mask(i, structure) for structure in self.masks[i]}, self.rule)
        else:
            raise ValueError(f"{self.names[i]}: neither a layer map nor masks; ask `has_layer_map` first")
        return maps.resize_nearest(array, self.picture_size(i) if size is None else size)

    def layer_maps(self, size, which=None):
        """Layer maps of several images; see `layer_map`.

        Returns
        -------
        (n, h, w) uint8 array, 0 everywhere for an image without one: leave those out by `has_layer_map`
        """
        size, known = maps.as_pair(size), self.has_layer_map
        return self._resized("layer_maps", size, lambda i: self.layer_map(i, size) if known[i] else 0, which)

    def _resized(self, kind, shape, make, which):
        chosen = np.arange(len(self)) if which is None else np.atleast_1d(np.arange(len(self))[which])
        if (kind, shape) not in self._kept:
            self._kept[kind, shape] = np.empty((len(self), *shape), np.uint8), np.zeros(len(self), bool)
        kept, made = self._kept[kind, shape]
        for i in chosen:
            if not made[i]:
                kept[i] = make(i)
                made[i] = True
        return kept[chosen]

    def summary(self):
        """Table of what was found: one row per class and one for all.

        Returns
        -------
        DataFrame with the columns images, masks (images with a structure), layer maps, groups, height, width
        """
        sizes = np.array([self.picture_size(i) for i in range(len(self))])
        masked = np.array([bool(masks) for masks in self.masks])
        rows = {}
        for label, name in enumerate((*self.classes, "all")):
            chosen = (self.labels == label) | (name == "all")
            spans = [f"{values.min()}-{values.max()}" for values in sizes[chosen].T] if chosen.any() else ["", ""]
            groups = "unknown" if self.groups is None else len(set(self.groups[chosen]))
            rows[name] = [chosen.sum(), masked[chosen].sum(), self.has_layer_map[chosen].sum(), groups, *spans]
        columns = ["images", "masks", "layer maps", "groups", "height", "width"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("class")

    def save(self, folder):
        """Write the study as a folder that `open_study` reads: equal names, labels, groups, pictures and layer maps.

        Raises
        ------
        FileExistsError
            if the folder is there and not empty
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise FileExistsError(f"{folder}: not empty; choose a new folder, or remove this one first")
        with replacing(folder) as temporary:
            for part in ("masks", "layer_maps", *(f"images/{name}" for name in self.classes)):
                (temporary / part).mkdir(parents=True)
            levels = {}
            for i, name in enumerate(self.names):
                parts = {f"images/{self.classes[self.labels[i]]}": self.picture(i)}
                if self.masks[i]:
                    grey = grey_mask({structure: self.mask(i, structure) for structure in self.masks[i]}, levels)
                    parts["masks"] = Image.fromarray(grey)
                if self.has_layer_map[i]:
                    parts["layer_maps"] = Image.fromarray(self.layer_map(i))
                for part, image in parts.items():
                    image.save(temporary / part / f"{name}.png", optimize=True)
            named = sorted(((level, "+".join(structures)) for structures, level in levels.items()), reverse=True)
            write_table(pd.DataFrame(named, columns=["level", "structure"]), temporary / "masks" / "structures.csv")
            if self.groups is not None:
                write_table(pd.DataFrame({"name": self.names, "group": self.groups}), temporary / "study.csv")


def open_study(data, images_per_class=60, seed=0, cache=None, size=224, rule=None):
    """The study that a word or a path stands for.

    Parameters
    ----------
    data : "phantoms"; "example" (the miniature study in data/example); the path of a study folder; or the path of
        an archive: a zip, or its unpacked folder, with pictures straight in images/
    images_per_class, seed, size : of the phantoms; not used for other data
    cache : folder in which archives are unpacked; None for results/unpacked
    rule : of the layer maps of pictures that were read; None decides by the masks

    Returns
    -------
    Study

    Raises
    ------
    FileNotFoundError
        if there is nothing at that path
    ValueError
        if it holds no study; what is wrong with single files is listed in `Study.problems` instead
    """
    if data == "phantoms":
        from helpers.data.phantom import phantoms

        return phantoms(images_per_class=images_per_class, size=size, seed=seed)
    from helpers.data import readers  # here, because readers and phantoms make studies: they import this module

    path = ROOT / "data" / "example" if data == "example" else Path(data).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder; give 'phantoms', 'example', a study folder or a zip, see data/README.md"
        )
    return readers.read_study(path, cache, rule)
