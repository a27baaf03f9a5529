"""Measures against object masks: exact values on small maps, and what must not change."""

import numpy as np
import pytest

from helpers.data.photographs import Objects
from helpers.evaluate.objects import (
    MEASURES,
    area,
    box_iou,
    energy_in_object,
    forecast,
    mask_iou,
    mean_average_precision,
    object_scores,
    pointing_game,
    rank_agreement,
    roughness,
)

MASK = np.zeros((1, 8, 8), bool)
MASK[0, 2:5, 2:5] = True


def heatmap(*points):
    values = np.zeros((1, 8, 8))
    for row, column, value in points:
        values[0, row, column] = value
    return values


def test_a_peak_on_the_object_is_a_hit_and_beside_it_is_none():
    assert pointing_game(heatmap((3, 3, 1)), MASK) == [1]
    assert pointing_game(heatmap((3, 3, 0.9), (6, 3, 1)), MASK) == [0]
    assert pointing_game(heatmap((3, 3, 1), (6, 3, 1)), MASK) == [0.5]


def test_the_tolerance_is_a_distance_in_pixels():
    near = heatmap((6, 3, 1))
    assert pointing_game(near, MASK, tolerance=1.9) == [0]
    assert pointing_game(near, MASK, tolerance=2) == [1]
    assert pointing_game(heatmap((6, 6, 1)), MASK, tolerance=2) == [0]


def test_shares_and_overlaps_by_hand():
    values = heatmap((3, 3, 1), (3, 4, 0.5), (6, 6, 0.5))
    assert energy_in_object(values, MASK) == [0.75]
    assert mask_iou(values, MASK, 0.5) == [2 / 10]
    assert mask_iou(values, MASK, 0.6) == [1 / 9]
    assert area(values, 0.5) == [3 / 64]
    assert mask_iou(MASK.astype(float), MASK, 0.5) == [1]


def test_the_box_is_that_of_the_largest_part_and_the_best_box_counts():
    values = MASK.astype(float)
    values[0, 7, 7] = 1
    boxes = [np.array([[2, 2, 5, 5]])]
    assert box_iou(values, boxes, 0.5) == [1]
    assert box_iou(values, [np.array([[2, 2, 5, 8], [0, 0, 1, 1]])], 0.5) == [0.5]
    assert np.isnan(box_iou(values, [np.empty((0, 4))], 0.5)).all()


def test_ignored_pixels_count_neither_way():
    ignored = np.zeros_like(MASK)
    ignored[0, 6, 6] = True
    values = heatmap((3, 3, 0.8), (6, 6, 1))
    assert pointing_game(values, MASK, ignored) == [1]
    assert energy_in_object(values, MASK, ignored) == [1]
    assert mask_iou(values, MASK, 0.5, ignored) == [1 / 9]


def test_scaling_a_map_changes_no_peak_and_no_share():
    values = np.random.default_rng(0).random((5, 8, 8))
    masks = np.repeat(MASK, 5, 0)
    for measure in (pointing_game, energy_in_object):
        np.testing.assert_allclose(measure(values, masks), measure(values / 2, masks))


def test_turning_image_and_map_together_changes_nothing():
    values = np.random.default_rng(1).random((5, 8, 8))
    masks = np.repeat(MASK, 5, 0)
    masks[:, 3, 6] = True
    for measure in (pointing_game, energy_in_object, lambda h, m: mask_iou(h, m, 0.5)):
        turned = (stack[:, ::-1].swapaxes(1, 2) for stack in (values, masks))
        np.testing.assert_allclose(measure(values, masks), measure(*turned))


def test_a_random_map_hits_as_often_as_the_object_is_large():
    values = np.random.default_rng(2).random((4000, 8, 8))
    masks = np.repeat(MASK, len(values), 0)
    assert pointing_game(values, masks).mean() == pytest.approx(9 / 64, abs=0.02)
    assert energy_in_object(values, masks).mean() == pytest.approx(9 / 64, abs=0.002)


def test_a_flat_map_has_no_value_in_any_measure():
    found = Objects(np.array([3, 3]), np.array([0, 1]), np.repeat(MASK, 2, 0), np.zeros((2, 8, 8), bool),
                    [np.array([[2, 2, 5, 5]])] * 2, 0)  # fmt: skip
    values = np.concatenate([np.full((1, 8, 8), np.nan), MASK.astype(float)])
    table = object_scores(values, found)
    assert table.loc[0, list(MEASURES)].isna().all()
    assert table.loc[1, list(MEASURES)].tolist() == [1, 1, 1, 1, 9 / 64]
    assert table["object area"].tolist() == [9 / 64] * 2 and table["image"].tolist() == [3, 3]


@pytest.mark.parametrize(
    ("values", "mask", "message"),
    [
        (heatmap(), MASK[:, :4], "one shape"),
        (heatmap((0, 0, 2)), MASK, "outside"),
        (heatmap((0, 0, np.nan)), MASK, "partly|some pixels"),
        (heatmap((0, 0, 1)), MASK.astype(int), "bool"),
        (heatmap((0, 0, 1)), MASK & False, "no pixel that counts"),
    ],
)
def test_bad_input_is_named(values, mask, message):
    with pytest.raises(ValueError, match=message):
        pointing_game(values, mask)


def test_a_threshold_outside_its_range_is_named():
    for call in (lambda: mask_iou(heatmap((3, 3, 1)), MASK, 0), lambda: area(heatmap((3, 3, 1)), 1.5)):
        with pytest.raises(ValueError, match="threshold"):
            call()
    with pytest.raises(ValueError, match="tolerance"):
        pointing_game(heatmap((3, 3, 1)), MASK, tolerance=-1)


def test_mean_average_precision_is_one_for_a_perfect_order_and_leaves_out_absent_classes():
    labels = np.zeros((40, 3), bool)
    labels[:20, 0] = labels[10:30, 1] = True
    perfect = mean_average_precision(labels, labels + np.linspace(0, 0.5, 40)[:, None])
    assert perfect[:2] == pytest.approx((1, 1)) and perfect.n == 40
    guessed = mean_average_precision(labels, np.zeros((40, 3)))
    assert guessed.mean == pytest.approx(0.5) and guessed.low < 0.5 < guessed.high
    with pytest.raises(ValueError, match="no image"):
        mean_average_precision(labels & False, perfect.mean + np.zeros((40, 3)))


def test_roughness_by_hand():
    maps = np.array([[[4.0, 4], [4, 4]], [[4, 0], [0, 0]], [[8, -1], [-2, 0]], [[-1, -2], [-3, 0]]])
    np.testing.assert_allclose(roughness(maps), [0, 0.5, 0.5, np.nan])


def test_a_forecast_sums_where_the_object_is_and_one_position_around():
    raw = np.arange(16.0).reshape(1, 4, 4)
    corner = np.zeros((1, 8, 8), bool)
    corner[0, 0, 0] = True
    assert forecast(raw, corner) == [0 + 1 + 4 + 5]
    assert forecast(raw, ~corner) == [raw.sum()]
    assert forecast(-raw, MASK) == [-raw.sum()]  # positions 1 to 2 and their neighbours: all
    with pytest.raises(ValueError, match="expected"):
        forecast(raw, corner.astype(float))


def test_rank_agreement_finds_the_better_forecast():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200)
    forecasts = {"good": np.exp(truth), "poor": truth + rng.normal(size=200)}
    found = rank_agreement(forecasts, truth, np.arange(200) // 2, n_resamples=100)
    assert found["good"][:3] == pytest.approx((1, 1, 1)) and found["good"].n == 100
    assert found["poor"].low < found["poor"].mean < found["poor"].high < 1
    assert found["difference"].mean == pytest.approx(1 - found["poor"].mean) and found["difference"].low > 0
    with pytest.raises(ValueError, match="two"):
        rank_agreement({"good": truth}, truth, truth)
