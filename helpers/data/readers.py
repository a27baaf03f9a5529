"""Read studies from folders and from the downloaded archive; whatever cannot be used is reported, never dropped."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from helpers.data.archive import hidden, unpack
from helpers.data.layer_maps import check_layer_map
from helpers.data.pictures import SUFFIXES, WHITE_16_BIT, MaskFile, PictureError, examine
from helpers.data.structures import name_by_brightness, name_by_table
from helpers.data.study import Study, problem_table
from helpers.data.tables import find_groups
from helpers.settings import ROOT
from helpers.store import fingerprint

MASK_NAME = re.compile(r"(.+?)_mask(_\d+)?$")
RESERVED = ("images", "masks", "layer_maps")
LAYOUT = "expected images/<class>/<name>.png, or <class>/<name>.png"


def read_folder(path, rule=None):
    """Read a study folder: `images/<class>/` or `<class>/`, `masks/`, `layer_maps/`, `study.csv`; see data/README.md.

    Parameters
    ----------
    path : folder
    rule : of the layer maps; None for "columns" where a mask shows an epidermis, "rings" elsewhere

    Returns
    -------
    Study sorted by class and name; what was left out or changed is in `problems`, and counted in one warning

    Raises
    ------
    ValueError
        if two pictures have one name, fewer than two classes are left, a layer map holds an unknown level, or
        study.csv or masks/structures.csv cannot be understood
    """
    root = _inner(Path(path))
    reading = _Reading(root)
    folder = reading.part("images") or root
    found = []
    for entry in _visible(folder):
        if not entry.is_dir():
            if folder != root or entry.suffix.lower() in SUFFIXES:
                reading.report(entry, "file outside a class folder", "left out; move it to the folder of its class")
        elif folder != root or entry.name.lower() not in RESERVED:
            pictures = reading.pictures(entry)
            found += [(picture, entry.name) for picture in pictures]
            if not pictures:
                reading.report(entry, "class folder without pictures", "not a class of this study")
    return reading.study(found, name_by_table, rule)


def read_mendeley(path, cache=None, rule=None):
    """Read the archive of the study: `images/1AD.png` with `masks/1AD.png`, the class in the letters of the stem.

    Parameters
    ----------
    path : the downloaded zip, or its unpacked folder
    cache : folder in which a zip is unpacked; None for results/unpacked
    rule : as in `read_folder`

    Returns
    -------
    Study with the classes that were found, however many they are; masks by their two grey levels: the brighter is
    the epidermis, the darker the subepidermal low-echogenic band

    Raises
    ------
    ValueError
        as `read_folder` and `archive.unpack`
    """
    root = _unpacked(Path(path), cache)
    reading = _Reading(root)
    folder = reading.part("images")
    if folder is None:
        raise ValueError(f"{root}: no folder 'images' in it; expected images/1AD.png with masks/1AD.png")
    found = []
    for picture in reading.pictures(folder):
        letters = re.search(r"[A-Za-z]+", picture.stem)
        if letters:
            found.append((picture, letters[0].upper()))
        else:
            reading.report(picture, "no class in the name", "left out; lay the pictures out as images/<class>/")
    return reading.study(found, name_by_brightness, rule)


def read_study(path, cache=None, rule=None):
    """Read a folder or zip by what is in it: pictures straight in `images/` are the archive, all else is a folder."""
    root = _unpacked(Path(path), cache)
    images = _Reading(root).part("images")
    flat = images and not any(entry.is_dir() for entry in _visible(images))
    return read_mendeley(root, rule=rule) if flat else read_folder(root, rule)


def _unpacked(path, cache):
    zips = [path] if path.is_file() else [entry for entry in _visible(path) if entry.suffix.lower() == ".zip"]
    if path.is_file() or (len(zips) == 1 and not any(entry.is_dir() for entry in _visible(path))):
        path = unpack(zips[0], ROOT / "results" / "unpacked" if cache is None else cache)
    return _inner(path)


def _visible(folder):
    return sorted(entry for entry in folder.iterdir() if not hidden(entry.name))


def _inner(folder):
    """The folder that holds the study: archives often wrap it into folders with nothing beside it."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: not a folder; {LAYOUT}")
    entries = _visible(folder)
    while len(entries) == 1 and entries[0].is_dir() and entries[0].name.lower() not in RESERVED:
        inner = _visible(entries[0])
        if not any(entry.is_dir() for entry in inner):
            break
        folder, entries = entries[0], inner
    return folder


class _Reading:
    """One folder being read, with the problems found so far."""

    def __init__(self, root):
        self.root, self.rows = root, []

    def report(self, path, problem, action):
        self.rows.append((path.relative_to(self.root).as_posix(), problem, action))

    def part(self, name):
        """Subfolder of this name in any case, or None."""
        return next((entry for entry in _visible(self.root) if entry.is_dir() and entry.name.lower() == name), None)

    def pictures(self, folder, deep=False):
        """Picture files of a folder; everything else in it is reported."""
        found = []
        for entry in _visible(folder):
            if entry.is_dir() and deep:
                found += self.pictures(entry, deep)
            elif entry.is_dir():
                self.report(entry, "folder inside a class folder", "left out; move its pictures one folder up")
            elif entry.suffix.lower() in SUFFIXES:
                found.append(entry)
            elif entry.name != "structures.csv":
                self.report(entry, "not a picture", f"left out; read are {', '.join(SUFFIXES)}")
        return found

    def examined(self, paths, action):
        """Path to what it holds, of those that can be read."""
        paths, result = list(paths), {}
        with ThreadPoolExecutor() as pool:
            tasks = [pool.submit(examine, path) for path in paths]
        for path, task in zip(paths, tasks, strict=True):
            try:
                result[path] = task.result()
            except PictureError as error:
                self.report(path, "unusable picture", f"{action}: {error}")
        return result

    def study(self, found, name_levels, rule):
        """Put everything together; `found` holds (path, class), of masks that lie beside the pictures as well."""
        first, beside = {}, [path for path, _ in found if MASK_NAME.match(path.stem)]
        found = [(path, name) for path, name in found if path not in beside]
        for path, _ in found:
            if path.stem in first:
                one, other = (p.relative_to(self.root).as_posix() for p in (first[path.stem], path))
                raise ValueError(f"{self.root}: two pictures of one name: {one} and {other}; rename or remove one")
            first[path.stem] = path
        held = self.examined(first.values(), "left out")
        found = sorted((name, path.stem, path) for path, name in found if path in held)
        classes = tuple(sorted({name for name, _, _ in found}))
        if len(classes) < 2:
            told = f"; first problem: {self.rows[0][0]}: {self.rows[0][2]}" if self.rows else ""
            what = f"pictures of one class only ({classes[0]})" if classes else "no pictures"
            raise ValueError(f"{self.root}: {what}; at least two classes are needed, {LAYOUT}{told}")
        pictures = {stem: path for _, stem, path in found}
        names, labels = tuple(pictures), np.array([classes.index(name) for name, _, _ in found], np.int64)
        white = self._check_pictures(pictures, held)
        stored = self._layer_maps(pictures, first)
        masks = self._masks(pictures, held, first, beside, stored, name_levels)
        groups = find_groups(names, self.root / "study.csv", self.report)
        if rule is None:
            rule = "columns" if any("epidermis" in mask for mask in masks.values()) else "rings"
        contents = [[held[pictures[name]].digest, self._digests(masks[name]), stored.get(name)] for name in names]
        if self.rows:
            counts = ", ".join(
                f"{count} x {problem}" for problem, count in Counter(row[1] for row in self.rows).items()
            )
            told = f"{self.root.name}: {counts}; `problems` of the study lists each with what to do"
            warnings.warn(told, stacklevel=3)
        return Study(
            title=self.root.name,
            names=names,
            labels=labels,
            classes=classes,
            groups=groups,
            pictures=tuple(pictures.values()),
            masks=tuple(masks[name] for name in names),
            layer_map_files=tuple(stored.get(name) for name in names),
            rule=rule,
            fingerprint=fingerprint(names, labels, classes, groups, rule, white, contents),
            problems=problem_table(self.rows),
            white=white,
        )

    @staticmethod
    def _digests(masks):
        return {name: [[examine(path).digest, levels] for path, levels in mask.parts] for name, mask in masks.items()}

    def _check_pictures(self, pictures, held):
        """Report what deserves a look; the value that is white in 16-bit pictures, which may use fewer bits."""
        same, peak = {}, max(held[path].peak for path in pictures.values())
        for name, path in pictures.items():
            what = held[path]
            if what.frames > 1:
                self.report(path, "several frames", f"the first of {what.frames} is used")
            if len(what.levels) == 1:
                self.report(path, "one grey value all over", "kept; look at it and remove it if it is empty")
            if what.digest in same:
                self.report(path, "equal files", f"kept, although equal to {same[what.digest]}; remove one of them")
            same.setdefault(what.digest, name)
        white = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if peak < 2**bits) if peak else WHITE_16_BIT
        if white != WHITE_16_BIT:
            self.report(self.root, "16-bit pictures that use fewer bits", f"{white} is shown as white")
        return white

    def _layer_maps(self, pictures, first):
        folder, result = self.part("layer_maps"), {}
        held = self.examined(self.pictures(folder, deep=True), "not used") if folder else {}
        for path, what in held.items():
            check_layer_map(np.array([list(what.levels)], np.uint8), str(path.relative_to(self.root)))
            if path.stem in result:
                self.report(path, "second layer map", f"not used; {result[path.stem].name} is, remove one of them")
            elif path.stem in pictures:
                result[path.stem] = path
            elif path.stem not in first:
                self.report(path, "layer map without image", "not used; give it the name of its picture")
        return result

    def _masks(self, pictures, held, first, beside, stored, name_levels):
        folder, of = self.part("masks"), {name: [] for name in pictures}
        for path in [*beside, *(self.pictures(folder, deep=True) if folder else [])]:
            match = MASK_NAME.match(path.stem)
            name = match[1] if match else path.stem
            if name in of:
                of[name].append(path)
            elif name not in first:
                self.report(path, "mask without image", "not used; give it the name of its picture")
        seen = self.examined((path for paths in of.values() for path in paths), "not used")
        levels = name_levels(seen, self.root if folder is None else folder, self.report)
        masks = {}
        for name, paths in of.items():
            parts = {}
            for path in paths:
                if path in seen and seen[path].size != held[pictures[name]].size:
                    (height, width), (h, w) = held[pictures[name]].size, seen[path].size
                    action = f"resized from {w} x {h} to {width} x {height} pixels by nearest neighbour"
                    self.report(path, "mask of another size", action)
                for structure, chosen in levels.get(path, {}).items():
                    parts.setdefault(structure, []).append((path, tuple(chosen)))
            masks[name] = {structure: MaskFile(tuple(each)) for structure, each in parts.items()}
            if not parts and name not in stored:
                problem = "empty mask" if any(path in seen for path in paths) else "image without mask"
                self.report(pictures[name], problem, "kept, without a layer map; scores that need one leave it out")
        return masks
