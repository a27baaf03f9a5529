import numpy as np
import pandas as pd
import pytest

from helpers.data.chest_ct import ORGANS, QUICK_SPACING, Volumes, phantom_volumes
from helpers.data.organs import (
    allowed_regions,
    dice,
    fallback_grid,
    organ_grid,
    organ_grids,
    organ_of,
    organs_of_labels,
    segment,
    segment_lungs,
)


def box_chest(width=40):
    """A block of tissue with two lungs of 6 columns each, their box from column 10 to 30, and a windpipe."""
    volume = np.full((12, 20, width), -1000, np.int16)
    volume[:, 2:18, 4:-4] = 40
    volume[2:10, 5:15, 10:16] = -850
    volume[2:10, 5:15, 24:30] = -850
    volume[:, 3, 20] = -900
    return volume


def labelled(table):
    columns = pd.MultiIndex.from_tuples(list(table))
    locations = pd.DataFrame(np.array(list(table.values()), bool).T, columns=columns)
    locations.index = [f"v{i}" for i in range(len(locations))]
    volumes = [box_chest() for _ in locations.index]
    return Volumes("toy", tuple(locations.index), locations, volumes, np.copy, 1.0, "toy")


def test_segmentation_of_a_block_by_hand():
    found = segment(box_chest(), 1.0, smallest=100)
    assert not found.failed
    right, left, heart = (found.masks[organ] for organ in ORGANS)
    assert right.sum() == left.sum() == 8 * 10 * 6
    assert right[:, :, 10:16].sum() == right.sum() and left[:, :, 24:30].sum() == left.sum()
    assert set(np.nonzero(heart)[2]) == set(range(16, 24))  # of columns 15 (10 + 5) to 27 (30 - 2) what is not lung
    assert heart.sum() == 8 * 10 * 8


def test_air_at_the_border_small_parts_and_third_parts_are_dropped():
    volume = box_chest()
    assert not segment_lungs(volume, 1.0, 100)[:, :2].any()
    assert segment_lungs(volume, 1.0, 481).sum() == 0
    assert segment_lungs(volume, 2.0, 8 * 480).sum() == 960
    volume[2:10, 5:15, 30:] = -850  # the left lung is open to the side
    assert segment_lungs(volume, 1.0, 100).sum() == 480
    assert segment_lungs(volume, 1.0, 100, at_border=True)[2:10, 5:15, 24:].all()


def test_a_missing_lung_is_a_failure_and_gets_the_fixed_columns():
    volume = box_chest()
    assert segment(np.full((4, 8, 8), 40), 1.0).failed == "no lung found"
    volume[:, :, 24:30] = 40
    found = segment(volume, 1.0, 100)
    assert found.failed == "the left lung is missing" and not any(mask.any() for mask in found.masks.values())
    assert segment(volume[:, :, ::-1], 1.0, 100).failed == "the right lung is missing"
    columns = fallback_grid((2, 6, 6)).any((1, 2))
    assert columns.tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 0]]


def test_mirroring_swaps_the_lungs():
    volume = box_chest()
    found, mirrored = segment(volume, 1.0, 100).masks, segment(volume[:, :, ::-1], 1.0, 100).masks
    np.testing.assert_array_equal(found["right_lung"], mirrored["left_lung"][:, :, ::-1])


def test_the_phantoms_are_segmented(capsys):
    volumes = phantom_volumes(6, seed=8)
    rows = []
    for i in range(len(volumes)):
        found = segment(volumes.volume(i), volumes.spacing)
        assert not found.failed
        rows.append([dice(found.masks[organ], volumes.organs(i)[organ]) for organ in ORGANS])
    mean = np.mean(rows, 0)
    with capsys.disabled():
        print(f"\nDice on {len(rows)} phantoms:", dict(zip(ORGANS, mean.round(2).tolist(), strict=True)))
    assert mean[0] > 0.8 and mean[1] > 0.8 and mean[2] > 0.45


@pytest.mark.parametrize(("mode", "cells"), [("nearest", 1), ("area", 2), ("nearest-exact", 1)])
def test_grids_by_hand(mode, cells):
    masks = {organ: np.zeros((6, 4, 4), bool) for organ in ORGANS}
    masks["right_lung"][0:3, 0:2, 0:2] = True
    masks["right_lung"][5, 3, 3] = True  # a corner of the last cell, which nearest neighbour does not see
    made = organ_grid(masks, (6, 4, 4), (2, 2, 2), mode)
    assert made.shape == (3, 2, 2, 2) and made[0, 0, 0, 0]
    assert made[0].sum() == (cells if mode != "nearest-exact" else made[0].sum()) and not made[1:].any()
    dilated = organ_grid(masks, (6, 4, 4), (2, 2, 2), mode, dilate=True)
    assert dilated[0].all() and not dilated[1:].any()


def test_masks_are_padded_and_cropped_like_their_volume():
    masks = {organ: np.zeros((4, 4, 8), bool) for organ in ORGANS}
    masks["heart"][:, :, 2:6] = True
    made = organ_grid(masks, (6, 4, 4), (6, 4, 4))[2]
    assert made[1:5].all() and not made[0].any() and not made[5].any()


@pytest.mark.parametrize(
    ("location", "organs"),
    [("right_upper", ("right_lung",)), ("left_lung", ("left_lung",)), ("lung", ("right_lung", "left_lung")),
     ("mediastinum", ("heart",)), ("aorta", ("heart",)), ("heart", ("heart",)), ("liver", ()), ("spine", ())],
)  # fmt: skip
def test_organs_of_locations(location, organs):
    assert organ_of(location) == organs


def test_labels_allow_the_organs_of_their_locations():
    volumes = labelled({
        ("nodule", "right_upper"): [1, 0, 0, 0, 0], ("nodule", "left_lower"): [0, 1, 1, 0, 0],
        ("nodule", "lung"): [1, 1, 1, 1, 0], ("nodule", "liver"): [0, 0, 0, 0, 1],
        ("calcification", "aorta"): [0, 1, 0, 0, 0], ("calcification", "left_lung"): [0, 1, 0, 0, 0],
    })  # fmt: skip
    found = organs_of_labels(volumes)
    assert volumes.abnormalities == ("nodule", "calcification")
    assert found[:, 0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert found[:, 1].tolist() == [[0, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_allowed_regions_follow_labels_and_grids(tmp_path):
    volumes = labelled({("nodule", "right_lung"): [1, 0], ("pacemaker", "heart"): [1, 1]})
    grids, failed = organ_grids(volumes, (12, 20, 40), (4, 5, 5), tmp_path)
    assert set(failed) == {"v0", "v1"}  # two lungs of half a millilitre are no lungs
    np.testing.assert_array_equal(grids, np.stack([fallback_grid((4, 5, 5))] * 2))
    allowed = allowed_regions(volumes, grids)
    np.testing.assert_array_equal(allowed[0, 0], grids[0, 0])
    np.testing.assert_array_equal(allowed[:, 1], grids[:, 2])
    assert not allowed[1, 0].any()
    files = list(tmp_path.rglob("*.npz"))
    assert len(files) == 2
    again = organ_grids(Volumes(**{**volumes.__dict__, "read": None}), (12, 20, 40), (4, 5, 5), tmp_path)
    np.testing.assert_array_equal(again[0], grids)
    assert again[1] == failed


def test_true_organs_in_the_place_of_the_segmentation():
    volumes = phantom_volumes(2, seed=3)
    grids, failed = organ_grids(volumes, (81, 84, 84), (27, 7, 7), truth=True)
    assert failed == {} and grids.any((2, 3, 4)).all()
    assert QUICK_SPACING * 84 == 336 == round(0.8 * 420)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: segment(np.zeros((4, 4)), 1.0), "volume: expected .D, H, W."),
        (lambda: organ_grid({}, (6, 4, 4), (2, 2, 2), "bilinear"), "mode: expected one of"),
        (lambda: allowed_regions(labelled({("a", "heart"): [1]}), np.ones((1, 2, 1, 1, 1), bool)), "grids: expected"),
        (lambda: phantom_volumes(1) and labelled({("a", "heart"): [1]}).organs(0), "organs are not known"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_dice_of_toys():
    a, b = np.array([1, 1, 0], bool), np.array([0, 1, 0], bool)
    assert dice(a, b) == pytest.approx(2 / 3) and dice(a, a) == 1.0 and np.isnan(dice(a & ~a, b & ~b))
