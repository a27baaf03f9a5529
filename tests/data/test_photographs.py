"""Photographs: a folder of VOC's layout, its oddities, and generated scenes."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from helpers.data.photographs import BORDER, VOC_CLASSES, open_photographs

CAT, DOG = VOC_CLASSES.index("cat"), VOC_CLASSES.index("dog")


def annotation(*objects):
    boxes = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        "</object>"
        for name, a, b, c, d in objects
    )
    return f"<annotation>{boxes}</annotation>"


@pytest.fixture
def voc(tmp_path):
    """`voc(name, levels, objects)` adds an image to a folder of VOC's layout, which is `voc.folder`."""
    for name in ("JPEGImages", "SegmentationClass", "Annotations"):
        (tmp_path / name).mkdir()

    def add(name, levels, objects=None):
        levels = np.asarray(levels, np.uint8)
        Image.fromarray(np.full((*levels.shape, 3), 90, np.uint8)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(levels).convert("P")
        mask.putdata(levels.ravel().tolist())
        mask.save(tmp_path / "SegmentationClass" / f"{name}.png")
        if objects is not None:
            (tmp_path / "Annotations" / f"{name}.xml").write_text(annotation(*objects))

    def listed(part, *names):
        lists = tmp_path / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{part}.txt").write_text("\n".join(names))

    add.folder, add.listed = tmp_path, listed
    return add


def levels_of(*rectangles, shape=(40, 80)):
    levels = np.zeros(shape, np.uint8)
    for level, top, bottom, left, right in rectangles:
        levels[top:bottom, left:right] = level
    return levels


@pytest.fixture
def two(voc):
    both = levels_of((CAT + 1, 0, 20, 0, 40), (DOG + 1, 20, 40, 40, 80), (BORDER, 18, 20, 0, 40))
    voc("a", both, [("cat", 1, 1, 40, 20), ("dog", 41, 21, 80, 40), ("dog", 41, 21, 60, 40)])
    voc("b", levels_of((DOG + 1, 10, 30, 10, 30)), [("dog", 11, 11, 30, 30)])
    voc.listed("train", "a")
    voc.listed("val", "b")
    return voc


def test_a_folder_is_read_with_labels_masks_boxes_and_parts(two):
    photographs = open_photographs(two.folder)
    assert photographs.names == ("a", "b") and list(photographs.parts) == ["train", "test"]
    assert photographs.classes == VOC_CLASSES and photographs.problems.empty
    assert [np.flatnonzero(row).tolist() for row in photographs.labels] == [[CAT, DOG], [DOG]]
    assert photographs.images(20, [0, 1]).shape == (2, 3, 20, 20)
    found = photographs.objects(40, [0])
    assert found.target.tolist() == [CAT, DOG] and found.image.tolist() == [0, 0] and found.left_out == 0
    # 40 x 80 pixels are squashed to 40 x 40: every second column is left
    assert found.masks.sum((1, 2)).tolist() == [18 * 20, 20 * 20]
    assert found.ignored[0].sum() == 2 * 20
    np.testing.assert_allclose(found.boxes[0], [[0, 0, 20, 20]])
    np.testing.assert_allclose(found.boxes[1], [[20, 20, 40, 40], [20, 20, 30, 40]])
    assert photographs.summary().loc[["cat", "dog", "images"]].to_numpy().tolist() == [[1, 0], [1, 1], [1, 1]]


def test_the_folder_may_be_inside_voc_devkit(two, tmp_path_factory):
    outer = tmp_path_factory.mktemp("outer")
    (outer / "VOCdevkit").mkdir()
    (outer / "VOCdevkit" / "VOC2012").symlink_to(two.folder)
    assert open_photographs(outer).fingerprint == open_photographs(two.folder).fingerprint


def test_the_fingerprint_follows_pictures_masks_and_parts(two):
    before = open_photographs(two.folder).fingerprint
    two.listed("val", "a")
    two.listed("train", "b")
    turned = open_photographs(two.folder).fingerprint
    two("b", levels_of((DOG + 1, 11, 30, 10, 30)), [("dog", 11, 11, 30, 30)])
    assert len({before, turned, open_photographs(two.folder).fingerprint}) == 3


def test_what_cannot_be_measured_is_kept_for_training_and_listed(two):
    two("c", levels_of((BORDER, 0, 9, 0, 9)), [("cat", 1, 1, 9, 9)])
    two("d", levels_of(), [])
    two("e", levels_of((CAT + 1, 0, 9, 0, 9)))
    two("f", levels_of(), [("cat", 1, 1, 9, 9)])
    two.listed("val", *"bcdef")
    photographs = open_photographs(two.folder)
    problems = photographs.problems.set_index("file")["problem"].to_dict()
    assert problems == {
        "c.jpg": "cat has only border pixels in the mask",
        "d.jpg": "no object",
        "e.jpg": "no annotation",
        "f.jpg": "cat has no pixel in the mask",
    }
    found = photographs.objects(40, photographs.which("test"))
    assert photographs.labels[photographs.which("test")].sum(1).tolist() == [1, 1, 0, 1, 1]
    assert found.image.tolist() == [0, 3] and found.left_out == 2
    assert [len(boxes) for boxes in found.boxes] == [1, 0]


def test_an_object_that_vanishes_when_it_is_made_small_is_counted(two):
    two("c", levels_of((CAT + 1, 0, 1, 0, 1)), [("cat", 1, 1, 1, 1)])
    two.listed("val", "c")
    photographs = open_photographs(two.folder)
    assert photographs.objects(40, photographs.which("test")).left_out == 1


def test_files_that_cannot_be_used_are_left_out_and_listed(two):
    (two.folder / "JPEGImages" / "c.jpg").write_bytes(b"no picture")
    two("d", levels_of((CAT + 1, 0, 9, 0, 9)), [("cat", 1, 1, 9, 9)])
    (two.folder / "SegmentationClass" / "d.png").unlink()
    two("e", levels_of((CAT + 1, 0, 9, 0, 9)), [("cat", 1, 1, 9, 9)])
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(two.folder / "SegmentationClass" / "e.png")
    two("g", levels_of((CAT + 1, 0, 9, 0, 9)), [("cat", 1, 1, 9, 9)])
    Image.fromarray(np.zeros((40, 80, 3), np.uint8)).save(two.folder / "SegmentationClass" / "g.png")
    two.listed("val", *"bcdefg")
    photographs = open_photographs(two.folder)
    assert photographs.names == ("a", "b")
    assert photographs.problems["file"].tolist() == ["c.jpg", "d.jpg", "e.jpg", "g.jpg", "f.jpg"]
    assert set(photographs.problems["action"]) == {"left out"}


def test_an_unknown_class_is_an_error_that_names_the_file(two):
    two("b", levels_of((1, 0, 9, 0, 9)), [("catt", 1, 1, 9, 9)])
    with pytest.raises(ValueError, match=r"b\.xml: class 'catt'.*did you mean 'cat'"):
        open_photographs(two.folder)


def test_an_unknown_level_and_a_broken_annotation_name_the_file(two):
    two("b", levels_of((21, 0, 9, 0, 9)), [])
    with pytest.raises(ValueError, match=r"b\.png: levels \[21\]"):
        open_photographs(two.folder)
    two("b", levels_of((1, 0, 9, 0, 9)), [])
    (two.folder / "Annotations" / "b.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    with pytest.raises(ValueError, match=r"b\.xml: not an annotation"):
        open_photographs(two.folder)


def test_classes_of_ones_own(voc):
    voc("a", levels_of((2, 0, 20, 0, 20)), [("spoon", 1, 1, 20, 20)])
    (voc.folder / "classes.txt").write_text("fork\nspoon\n")
    photographs = open_photographs(voc.folder)
    assert photographs.classes == ("fork", "spoon") and photographs.labels.tolist() == [[False, True]]


def test_folders_without_images_are_errors(voc, tmp_path):
    with pytest.raises(FileNotFoundError, match="no image with a mask"):
        open_photographs(voc.folder)
    with pytest.raises(FileNotFoundError, match="no folder JPEGImages"):
        open_photographs(tmp_path / "elsewhere")


def test_images_of_sbd_are_added_for_training(two):
    sbd = two.folder / "sbd"
    for name in ("img", "cls"):
        (sbd / name).mkdir(parents=True)
    Image.fromarray(np.zeros((40, 80, 3), np.uint8)).save(sbd / "img" / "s.jpg")
    levels = levels_of((CAT + 1, 0, 10, 0, 10))
    savemat(sbd / "cls" / "s.mat", {"GTcls": {"Segmentation": levels}})
    (sbd / "train_noval.txt").write_text("a\ns\nmissing\n")
    photographs = open_photographs(two.folder)
    assert photographs.names == ("a", "b", "s") and list(photographs.parts) == ["train", "test", "train"]
    assert np.flatnonzero(photographs.labels[2]).tolist() == [CAT]
    assert photographs.problems["file"].tolist() == ["missing.jpg"]
    assert photographs.objects(40, [2]).masks.sum() == 50


def test_scenes_are_photographs_too():
    photographs = open_photographs(n_images=20)
    assert len(photographs) == 20 and len(photographs.which("test")) == 4
    found = photographs.objects(64, photographs.which("test"))
    assert len(found.image) + found.left_out == photographs.labels[photographs.which("test")].sum()
    for mask, boxes in zip(found.masks, found.boxes, strict=True):
        rows, columns = np.nonzero(mask)
        assert boxes[:, 0].min() <= columns.min() and boxes[:, 3].max() >= rows.max()
    assert photographs.fingerprint != open_photographs(n_images=20, seed=1).fingerprint
