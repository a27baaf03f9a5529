"""Generated scenes: shapes in closed form, masks that fit boxes, homes that are kept."""

import numpy as np
import pytest

from helpers.data.scenes import BORDER, CLASSES, GROUNDS, HOME, make_scenes, outside, scene_grounds


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(150)


def test_equal_seeds_make_equal_scenes_and_others_do_not(scenes):
    again, other = make_scenes(150), make_scenes(150, seed=1)
    np.testing.assert_array_equal(again.pictures, scenes.pictures)
    np.testing.assert_array_equal(again.levels, scenes.levels)
    assert again.boxes == scenes.boxes
    assert (other.pictures != scenes.pictures).mean() > 0.5


def test_grounds_are_known_without_drawing(scenes):
    np.testing.assert_array_equal(scene_grounds(150), scenes.grounds)
    np.testing.assert_array_equal(scene_grounds(9, size=32, seed=3), make_scenes(9, size=32, seed=3).grounds)
    with pytest.raises(ValueError, match="n >= 1"):
        scene_grounds(0)


def test_masks_and_boxes_tell_of_the_same_objects(scenes):
    assert scenes.pictures.shape == (150, 64, 64, 3)
    assert scenes.pictures.dtype == scenes.levels.dtype == np.uint8
    for levels, boxes in zip(scenes.levels, scenes.boxes, strict=True):
        assert 1 <= len(boxes) <= 3
        assert set(np.unique(levels)) - {0, BORDER} == {box[0] + 1 for box in boxes}
        covered = np.zeros(levels.shape, bool)
        for k, left, top, right, bottom in boxes:
            assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
            assert (levels[top:bottom, left:right] == k + 1).any()
            covered[top:bottom, left:right] = True
        assert not ((levels > 0) & (levels < BORDER) & ~covered).any()


@pytest.mark.parametrize("context", [1 / 3, 0.9, 1.0])
def test_shapes_with_a_home_are_found_there_as_often_as_asked(context):
    scenes = make_scenes(600, size=32, context=context)
    for shape, home in HOME.items():
        k = CLASSES.index(shape)
        grounds = scenes.grounds[[any(box[0] == k for box in boxes) for boxes in scenes.boxes]]
        assert (grounds == GROUNDS.index(home)).mean() == pytest.approx(context, abs=0.12)


def test_objects_are_brighter_than_the_ground_and_colour_does_not_tell_the_class(scenes):
    grey = scenes.pictures.mean(3)
    for picture, levels in zip(grey, scenes.levels, strict=True):
        assert picture[(levels > 0) & (levels < BORDER)].mean() > picture[levels == 0].mean() + 30
    colours = [scenes.pictures[scenes.levels == k + 1].mean(0) for k in range(len(CLASSES))]
    assert np.ptp(colours, axis=0).max() < 40


@pytest.mark.parametrize("shape", CLASSES)
def test_a_shape_holds_its_middle_unless_it_is_a_ring_and_nothing_far_away(shape):
    assert (outside(shape, np.array(0.0), np.array(0.0)) < 0) == (shape != "ring")
    angle = np.linspace(0, 2 * np.pi, 100)
    assert (outside(shape, 1.2 * np.cos(angle), 1.2 * np.sin(angle)) > 0).all()


def test_the_area_of_a_disc_is_that_of_a_circle():
    y, x = np.mgrid[-1:1:400j, -1:1:400j]
    assert (outside("disc", x, y) < 0).mean() * 4 == pytest.approx(np.pi * 0.9**2, rel=0.01)
    assert (outside("square", x, y) < 0).mean() * 4 == pytest.approx(1.6**2, rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"n": 0}, "n >= 1"), ({"size": 16}, "size >= 32"), ({"context": 0.2}, "context"), ({"context": 1.1}, "context")],
)
def test_numbers_out_of_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        make_scenes(**({"n": 2} | change))
    with pytest.raises(ValueError, match="shape"):
        outside("pentagon", 0, 0)
