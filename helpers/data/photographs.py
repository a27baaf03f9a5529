"""`Photographs`: pictures with several labels each and a mask of every object, generated or in the layout of VOC."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from scipy.io import loadmat
from torchvision.datasets import VOCSegmentation

from helpers.data import scenes
from helpers.data.layer_maps import resize_nearest
from helpers.data.pictures import PictureError, load, read_picture
from helpers.data.study import problem_table
from helpers.settings import ROOT, closest
from helpers.store import fingerprint

BORDER = scenes.BORDER
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
SOURCES = {"quick": "scenes", "paper": str(ROOT / "data" / "voc2012")}
TEST_SHARE = 0.2  # of a folder that does not say which images are for testing


class Objects(NamedTuple):
    """P pairs of an image and a class whose mask has pixels, at one size.

    Attributes
    ----------
    image, target : (P,) position among the images asked for, and class
    masks : (P, H, W) bool, the pixels of that class
    ignored : (P, H, W) bool, pixels that belong to nothing for certain
    boxes : P arrays (m, 4) of left, top, right, bottom in pixels, ends excluded; m = 0 where no box is known
    left_out : number of labels without a pixel of their own
    """

    image: np.ndarray
    target: np.ndarray
    masks: np.ndarray
    ignored: np.ndarray
    boxes: list
    left_out: int


@dataclass(frozen=True, eq=False)
class Photographs:
    """N pictures of K classes; pictures and masks in files are read when they are asked for.

    Parameters
    ----------
    title : what the set is called
    names : N stems
    classes : K names
    labels : (N, K) bool, which classes are in a picture
    pictures, levels : N items, path or array; levels are 0 for ground, k + 1 for class k, `BORDER` for neither, or None
    boxes : N lists of (class, left, top, right, bottom) in pixels of the picture, ends excluded
    parts : (N,) "train" or "test"
    fingerprint : hex digest of the contents
    problems : what was left out or changed: columns file, problem, action
    """

    title: str
    names: tuple[str, ...]
    classes: tuple[str, ...]
    labels: np.ndarray
    pictures: Sequence
    levels: Sequence
    boxes: Sequence
    parts: np.ndarray
    fingerprint: str
    problems: pd.DataFrame = field(default_factory=problem_table, repr=False)

    def __len__(self):
        return len(self.names)

    def which(self, part: str) -> np.ndarray:
        """Indices of the images of a part, "train" or "test"."""
        return np.flatnonzero(self.parts == part)

    def image(self, i: int, size: int) -> np.ndarray:
        """(3, size, size) uint8 of picture i, squashed to a square, antialiased."""
        item = self.pictures[i]
        made = read_picture(item) if isinstance(item, Path) else Image.fromarray(item)
        if made.size != (size, size):
            made = made.resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(made).transpose(2, 0, 1)

    def images(self, size: int, which) -> np.ndarray:
        """(n, 3, size, size) float32 in [0, 1] of the pictures at indices `which`."""
        return np.stack([self.image(i, size).astype(np.float32) / np.float32(255) for i in which])

    def objects(self, size: int, which) -> Objects:
        """Masks and boxes of every class in every picture at indices `which`, see `Objects`."""
        image, target, masks, ignored, boxes = [], [], [], [], []
        for n, i in enumerate(which):
            if self.levels[i] is None:
                continue
            levels = _levels(self.levels[i])
            scale = size / np.array(levels.shape[::-1] * 2)
            levels = resize_nearest(levels, size)
            for k in np.flatnonzero(self.labels[i]):
                if (levels == k + 1).any():
                    image.append(n)
                    target.append(k)
                    masks.append(levels == k + 1)
                    ignored.append(levels == BORDER)
                    own = [box[1:] for box in self.boxes[i] if box[0] == k]
                    boxes.append(np.array(own, float).reshape(-1, 4) * scale)
        shape = (len(image), size, size)
        masks, ignored = (np.array(stack, bool).reshape(shape) for stack in (masks, ignored))
        left_out = int(self.labels[which].sum()) - len(image)
        return Objects(np.array(image, int), np.array(target, int), masks, ignored, boxes, left_out)

    def summary(self) -> pd.DataFrame:
        """Images that show a class, per part, and of all images."""
        table = {part: self.labels[self.which(part)].sum(0) for part in ("train", "test")}
        table = pd.DataFrame(table, index=pd.Index(self.classes, name="class"))
        table.loc["images"] = [len(self.which(part)) for part in table]
        return table


def open_photographs(source="scenes", n_images: int = 1800, seed: int = 0, download: bool = False) -> Photographs:
    """Generated scenes, or a folder in the layout of PASCAL VOC.

    Parameters
    ----------
    source : "scenes"; or a folder that holds JPEGImages, SegmentationClass and Annotations, or VOCdevkit/VOC2012 with
        them. ImageSets/Segmentation/train.txt and val.txt say what is trained and tested on; without them, and where
        val.txt names no image that is there, a share of `TEST_SHARE` is drawn. A folder `sbd` inside (as
        torchvision's SBDataset leaves it) adds the images of its train_noval.txt for training. Other classes than
        VOC's stand one per line in classes.txt.
    n_images : number of scenes; a folder is taken as it is
    seed : of the scenes and of the drawn share
    download : first let torchvision fetch VOC 2012 into the folder, which checks the sum of the archive

    Raises
    ------
    FileNotFoundError
        if there is no such folder, or it holds no image with a mask
    ValueError
        if an annotation names a class that is not known, or a mask has levels beyond the classes
    """
    if source == "scenes":
        made = scenes.make_scenes(n_images, seed=seed)
        labels = np.stack([np.isin(np.arange(len(scenes.CLASSES)), [box[0] for box in own]) for own in made.boxes])
        parts, names = _drawn(n_images, seed), tuple(f"scene-{i:05d}" for i in range(n_images))
        print_of = fingerprint(made.pictures, made.levels, list(parts))
        title = f"{n_images} generated scenes"
        drawn = made.pictures, made.levels, made.boxes
        return Photographs(title, names, scenes.CLASSES, labels, *drawn, parts, print_of)
    root = Path(source).expanduser()
    if download:
        VOCSegmentation(str(root), year="2012", image_set="trainval", download=True)
    return _read_voc(root, seed)


def _drawn(n, seed):
    parts = np.full(n, "train", "<U5")
    parts[np.random.default_rng(seed).permutation(n)[: max(1, round(TEST_SHARE * n))]] = "test"
    return parts


def _read_voc(root, seed):
    places = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    folder = next((place for place in places if (place / "JPEGImages").is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"photographs: no folder JPEGImages in {root} or in VOCdevkit/VOC2012 below it; give the folder of PASCAL "
            "VOC 2012, or open_photographs(..., download=True) fetches it"
        )
    own = folder / "classes.txt"
    classes = tuple(own.read_text(encoding="utf-8").split()) if own.is_file() else VOC_CLASSES
    parts, problems, rows = _listed(folder), [], []
    for file in sorted((folder / "JPEGImages").iterdir()):
        if not parts or file.stem in parts:
            _read_one(file, folder, classes, rows, problems, parts.get(file.stem))
    found = {row[0] for row in rows} | {problem[0] for problem in problems}
    problems += [(f"{name}.jpg", "listed, but not there", "left out") for name in parts if f"{name}.jpg" not in found]
    sbd = next((place for place in (folder / "sbd", root / "sbd") if place.is_dir()), None)
    if sbd is not None:
        _read_sbd(sbd, classes, rows, problems)
    if not rows:
        raise FileNotFoundError(f"photographs: {folder} holds no image with a mask in SegmentationClass")
    if all(row[-1] != "test" for row in rows):
        rows = [(*row[:-1], part) for row, part in zip(rows, _drawn(len(rows), seed), strict=True)]
    files, levels, labels, boxes, parts = zip(*rows, strict=True)
    pictures = [folder / "JPEGImages" / file if isinstance(file, str) else file for file in files]
    names, labels = tuple(Path(file).stem for file in files), np.stack(labels)
    print_of = fingerprint(pictures, list(filter(None, levels)), labels, list(map(str, boxes)), parts)
    table = problem_table(problems)
    return Photographs(folder.name, names, classes, labels, pictures, levels, boxes, np.array(parts), print_of, table)


def _listed(folder):
    """Name to part of the images that ImageSets/Segmentation lists; empty where it lists none."""
    lists = folder / "ImageSets" / "Segmentation"
    files = {part: lists / f"{name}.txt" for part, name in (("train", "train"), ("test", "val"))}
    return {name: part for part, file in files.items() if file.is_file() for name in file.read_text().split()}


def _read_one(file, folder, classes, rows, problems, part):
    mask, annotation = folder / "SegmentationClass" / f"{file.stem}.png", folder / "Annotations" / f"{file.stem}.xml"
    try:
        size = load(file, file.name).size
        levels = _levels(mask, len(classes)) if mask.is_file() else None
    except PictureError as error:
        problems.append((file.name, str(error), "left out"))
        return
    if levels is None:
        problems.append((file.name, "no mask in SegmentationClass", "left out"))
        return
    if levels.shape[::-1] != size:
        problems.append((file.name, f"the mask has another size, {levels.shape[::-1]} and not {size}", "left out"))
        return
    boxes = _boxes(annotation, classes) if annotation.is_file() else []
    if not annotation.is_file():
        problems.append((file.name, "no annotation", "classes taken from the mask; no boxes"))
    named, painted = {box[0] for box in boxes}, set(np.unique(levels).tolist()) - {0, BORDER}
    labels = np.isin(np.arange(len(classes)), [*named, *(level - 1 for level in painted)])
    for k in sorted(named - {level - 1 for level in painted}):
        edge = "only border pixels" if (levels == BORDER).any() else "no pixel"
        problems.append((file.name, f"{classes[k]} has {edge} in the mask", "label kept, not measured"))
    if not labels.any():
        problems.append((file.name, "no object", "kept as an image without any class, not measured"))
    rows.append((file.name, mask, labels, boxes, part))


def _boxes(file, classes):
    """(class, left, top, right, bottom) of the objects of an annotation, whose pixels count from 1, ends included."""
    try:
        objects = ElementTree.parse(file).getroot().findall("object")
        found = [(o.findtext("name"), [float(o.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")])
                 for o in objects]  # fmt: skip
    except (ElementTree.ParseError, TypeError, ValueError) as error:
        raise ValueError(f"{file.name}: not an annotation of PASCAL VOC ({error}); copy it again") from error
    for name, _ in found:
        if name not in classes:
            hint = closest(name, classes)
            raise ValueError(f"{file.name}: class {name!r} is none of the {len(classes)} known ones{hint}; "
                             "other classes than VOC's belong into classes.txt, one per line")  # fmt: skip
    return [(classes.index(name), left - 1, top - 1, right, bottom) for name, (left, top, right, bottom) in found]


def _levels(source, n_classes=None):
    """(H, W) uint8 levels of a palette or grey picture, or of a `.mat` file of SBD."""
    if isinstance(source, np.ndarray):
        return source
    if source.suffix == ".mat":
        return np.asarray(loadmat(source)["GTcls"][0]["Segmentation"][0], np.uint8)
    image = load(source, source.name)
    if image.mode not in ("P", "L"):
        raise PictureError(f"{source.name}: mode {image.mode}; a mask is a palette or grey picture of class numbers")
    levels = np.asarray(image)
    if n_classes is not None and (strange := set(np.unique(levels).tolist()) - {*range(n_classes + 1), BORDER}):
        raise ValueError(f"{source.name}: levels {sorted(strange)[:5]}; expected 0 to {n_classes}, and {BORDER}")
    return levels


def _read_sbd(folder, classes, rows, problems):
    listed = folder / "train_noval.txt"
    if not listed.is_file():
        problems.append((folder.name, "no train_noval.txt", "the images of SBD are left out"))
        return
    there = {Path(row[0]).stem for row in rows}
    for name in sorted(set(listed.read_text().split()) - there):
        picture, mask = folder / "img" / f"{name}.jpg", folder / "cls" / f"{name}.mat"
        if not (picture.is_file() and mask.is_file()):
            problems.append((f"{name}.jpg", "listed by SBD, but picture or mask is not there", "left out"))
            continue
        painted = np.unique(_levels(mask)).astype(int)
        rows.append((picture, mask, np.isin(np.arange(len(classes)) + 1, painted), [], "train"))
