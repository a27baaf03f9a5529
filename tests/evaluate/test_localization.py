"""Hit Rate, coverage and IoU on 4 x 4 maps, counted by hand."""

import numpy as np
import pytest
from captum.attr import visualization

from helpers.evaluate.localization import (
    HIT_RATE_2,
    LAYER_SCORES,
    THRESHOLDS,
    as_displayed,
    baseline_heatmaps,
    coverage,
    hit_rate,
    iou,
    n_peaks,
    score_map,
    weighted_coverage,
)

LAYERS = np.array([[0, 0, 0, 0], [32, 32, 32, 32], [255, 255, 255, 0], [128, 128, 64, 64]], np.uint8)


def peak_at(*pixels):
    heatmap = np.full((4, 4), 0.25)
    for pixel in pixels:
        heatmap[pixel] = 1.0
    return heatmap


@pytest.mark.parametrize(
    ("pixels", "first", "second"),
    [
        ([(0, 0)], -1, -1),
        ([(1, 3)], 0, 0),
        ([(2, 1)], 3, 1),
        ([(3, 0)], 2, 0),
        ([(3, 3)], 1, 0),
        ([(2, 0), (2, 3)], 1, 0),
        ([(2, 0), (3, 0), (3, 2), (1, 0)], 1.5, 0.25),
        ([(0, 0), (2, 0), (2, 1)], 5 / 3, 1 / 3),
    ],
)
def test_by_hand(pixels, first, second):
    assert hit_rate(peak_at(*pixels), LAYERS) == pytest.approx(first)
    assert hit_rate(peak_at(*pixels), LAYERS, HIT_RATE_2) == pytest.approx(second)


def test_only_the_maximum_counts_whatever_its_value():
    heatmap = peak_at((2, 0))
    heatmap[0] = 0.999
    assert hit_rate(heatmap, LAYERS) == 3
    assert hit_rate(0.5 * heatmap, LAYERS) == 3


def test_custom_scores():
    scores = {level: float(level) for level in LAYER_SCORES}
    assert hit_rate(peak_at((2, 0), (3, 2)), LAYERS, scores) == (255 + 64) / 2


def test_flat_and_nan_maps_peak_nowhere():
    heatmaps = np.stack([np.zeros((4, 4)), np.ones((4, 4)), np.full((4, 4), np.nan), peak_at((2, 0))])
    np.testing.assert_array_equal(hit_rate(heatmaps, LAYERS), [np.nan, np.nan, np.nan, 3])


def test_leading_dimensions_with_a_layer_map_per_image():
    rng = np.random.default_rng(0)
    heatmaps = np.round(rng.random((2, 3, 4, 4)), 1)
    layer_maps = rng.choice(np.array(list(LAYER_SCORES), np.uint8), (3, 4, 4))
    rates = hit_rate(heatmaps, layer_maps)
    assert rates.shape == (2, 3)
    alone = [[hit_rate(heatmaps[m, i], layer_maps[i]) for i in range(3)] for m in range(2)]
    np.testing.assert_array_equal(rates, alone)
    assert ((rates >= -1) & (rates <= 3)).all() and len(np.unique(rates)) > 2


def test_flipping_everything_changes_nothing():
    rng = np.random.default_rng(1)
    heatmaps = np.round(rng.random((20, 4, 4)), 1)
    whole = hit_rate(heatmaps, LAYERS)
    np.testing.assert_allclose(hit_rate(heatmaps[..., ::-1], LAYERS[:, ::-1]), whole)
    np.testing.assert_allclose(hit_rate(heatmaps[..., ::-1, :], LAYERS[::-1]), whole)
    np.testing.assert_allclose(hit_rate(heatmaps.swapaxes(1, 2), LAYERS.T), whole)
    assert not np.allclose(hit_rate(heatmaps[..., ::-1], LAYERS), whole)


def test_the_layer_map_itself_is_the_upper_bound():
    assert hit_rate(LAYERS / 255, LAYERS) == 3


@pytest.mark.parametrize(
    ("heatmap", "layer_map", "message"),
    [
        (peak_at((0, 0)), LAYERS[:3], "same height and width"),
        (peak_at((0, 0)), np.stack([LAYERS, LAYERS]), "leading dimensions"),
        (np.stack([peak_at((0, 0))] * 3), np.stack([LAYERS] * 2), "leading dimensions"),
        (peak_at((0, 0))[0], LAYERS, "same height and width"),
        (peak_at((0, 0)), np.where(LAYERS == 64, 48, LAYERS).astype(np.uint8), r"levels \[48\].*nearest neighbour"),
        (peak_at((0, 0)), LAYERS / 255, "expected uint8"),
        (peak_at((0, 0)) * 255, LAYERS, r"expected \[0, 1\]"),
        (peak_at((0, 0)) - 0.5, LAYERS, r"expected \[0, 1\]"),
        (np.where(LAYERS == 64, np.nan, 0.5), LAYERS, "some pixels are NaN"),
    ],
)
def test_errors(heatmap, layer_map, message):
    with pytest.raises(ValueError, match=message):
        hit_rate(heatmap, layer_map)


def test_baselines():
    images = np.random.default_rng(0).random((3, 3, 8, 12)).astype(np.float32)
    images[2] = 0.5
    images[1] = np.where(np.arange(12) < 3, 0.0, 1.0)
    maps = baseline_heatmaps(images)
    assert all(heatmap.shape == (3, 8, 12) for heatmap in maps.values())
    assert (maps["random map"].max((1, 2)) == 1).all()
    assert (baseline_heatmaps(images)["random map"] == maps["random map"]).all()
    assert (baseline_heatmaps(images, seed=1)["random map"] != maps["random map"]).any()
    centre = np.argwhere(maps["centre Gaussian"][0] == 1).tolist()
    assert centre == [[3, 5], [3, 6], [4, 5], [4, 6]]
    assert set(np.argwhere(maps["edge map"][1] > 0.99)[:, 1]) == {2, 3}
    assert np.isnan(maps["edge map"][2]).all() and np.isnan(maps["flat map"]).all()


def test_a_random_peak_scores_the_mean_of_the_layer_map_on_average():
    layer_map = np.kron(LAYERS, np.ones((4, 4), np.uint8))
    maps = baseline_heatmaps(np.zeros((4000, 1, 16, 16), np.float32))["random map"]
    rates = hit_rate(maps, layer_map)
    assert abs(rates.mean() - score_map(layer_map).mean()) < 4 * rates.std() / np.sqrt(len(rates))


# Of the twelve pixels of the top three rows of HEAT, three lie on level 255 (0.1, 0.9, 1.0).
HEAT = np.array([[0, 0.2, 0.1, 0], [0, 0.4, 0.6, 0], [0.1, 0.9, 1, 0.3], [0, 0.2, 1, 0.5]])
MEASURES = {
    "Hit Rate 1": hit_rate,
    "Hit Rate 2": lambda h, m: hit_rate(h, m, HIT_RATE_2),
    "displayed": lambda h, m: hit_rate(as_displayed(h, clip=0.2, bits=3), m),
    "coverage": coverage,
    "background": lambda h, m: coverage(h, m, 0),
    "weighted": weighted_coverage,
    "IoU": lambda h, m: iou(h, m, THRESHOLDS, (255, 128, 64, 32, 0)).sum((-2, -1)),
}


def test_coverage_by_hand():
    assert coverage(HEAT, LAYERS) == pytest.approx((0.1 + 0.9 + 1) / 3)
    assert coverage(HEAT, LAYERS, 0) == pytest.approx((0.2 + 0.1 + 0.3) / 5)
    assert coverage(HEAT, LAYERS, 128) == pytest.approx(0.1)
    assert weighted_coverage(HEAT, LAYERS) == pytest.approx((2 + 0.2 / 2 + 1.5 / 4) / 7)
    assert weighted_coverage(HEAT, LAYERS, {32: 1, 64: 3}) == pytest.approx((1 + 1.5 * 3) / 6)


@pytest.mark.parametrize(
    ("threshold", "level", "expected"),
    [(0.5, 255, 2 / 6), (0.6, 255, 2 / 5), (0.95, 255, 1 / 4), (0.95, 64, 1 / 3), (0.05, 0, 3 / 13), (1, 128, 0)],
)
def test_iou_by_hand(threshold, level, expected):
    found = iou(HEAT, LAYERS, threshold, level)
    assert found.shape == () and found == pytest.approx(expected)
    curve = iou(HEAT, LAYERS, (threshold,), (level,))
    assert curve.shape == (1, 1) and curve[0, 0] == found


def test_iou_curves_are_the_single_values_in_any_order():
    heatmaps = np.random.default_rng(0).random((2, 3, 4, 4)).astype(np.float32)
    thresholds, levels = (0.9, 0.1, 0.5), (0, 255)
    curves = iou(heatmaps, LAYERS, thresholds, levels)
    assert curves.shape == (2, 3, 3, 2)
    for t, threshold in enumerate(thresholds):
        mask = heatmaps >= threshold
        for k, level in enumerate(levels):
            inside = level == LAYERS
            expected = (mask & inside).sum((2, 3)) / (mask | inside).sum((2, 3))
            np.testing.assert_allclose(curves[..., t, k], expected)
            np.testing.assert_array_equal(iou(heatmaps, LAYERS, threshold, level), curves[..., t, k])
    assert iou(heatmaps, LAYERS, 0.5, levels).shape == (2, 3, 2) and iou(heatmaps, LAYERS).shape == (2, 3, 10)


def test_a_value_at_the_threshold_belongs_to_the_mask():
    for kind in (np.float32, np.float64):
        heatmap = np.where(LAYERS == 255, kind(0.55), kind(0.1)).astype(kind)
        assert iou(heatmap, LAYERS, 0.55) == 1 and iou(heatmap, LAYERS, 0.6) == 0


def test_the_top_level_as_a_map():
    top = (LAYERS == 255).astype(np.float32)
    assert coverage(top, LAYERS) == 1 and coverage(top, LAYERS, 0) == 0 and hit_rate(top, LAYERS) == 3
    assert (iou(top, LAYERS) == 1).all()
    np.testing.assert_array_equal(iou(top, LAYERS, 0.5, (128, 64, 32, 0)), 0)


@pytest.mark.parametrize("name", MEASURES)
def test_what_no_measure_may_hang_on(name, monkeypatch):
    rng = np.random.default_rng(2)
    heatmaps = np.round(rng.random((3, 5, 4, 4)), 1).astype(np.float32)
    layer_maps = rng.choice(np.array([255, 128, 64, 32, 0], np.uint8), (5, 4, 4))
    whole = MEASURES[name](heatmaps, layer_maps)
    assert whole.shape == (3, 5) and np.isfinite(whole).any() and len(np.unique(whole)) > 2
    for flip in (lambda a: a[..., ::-1], lambda a: a[..., ::-1, :], lambda a: a.swapaxes(-1, -2)):
        np.testing.assert_allclose(MEASURES[name](flip(heatmaps), flip(layer_maps)), whole)
    order = rng.permutation(5)
    np.testing.assert_allclose(MEASURES[name](heatmaps[:, order], layer_maps[order]), whole[:, order])
    alone = [[MEASURES[name](heatmaps[m, i], layer_maps[i]) for i in range(5)] for m in range(3)]
    np.testing.assert_allclose(whole, alone)
    monkeypatch.setattr("helpers.evaluate.localization.BLOCK", 32)
    np.testing.assert_array_equal(MEASURES[name](heatmaps, layer_maps), whole)
    assert not np.allclose(MEASURES[name](heatmaps[..., ::-1], layer_maps), whole, equal_nan=True)


@pytest.mark.parametrize("name", MEASURES)
def test_a_flat_map_has_no_value_and_spoils_no_other(name):
    heatmaps = np.stack([np.zeros((4, 4)), np.full((4, 4), 0.5), np.full((4, 4), np.nan), HEAT])
    values = MEASURES[name](heatmaps, LAYERS)
    np.testing.assert_allclose(values, [np.nan] * 3 + [MEASURES[name](HEAT, LAYERS)])
    assert MEASURES[name](heatmaps[:0], LAYERS).shape == (0,)


def test_a_level_that_is_absent_has_no_value():
    layer_maps = np.stack([LAYERS, np.where(LAYERS == 255, 128, LAYERS).astype(np.uint8)])
    both = np.stack([HEAT, HEAT])
    assert np.isnan(coverage(both, layer_maps)).tolist() == [False, True]
    assert np.isnan(iou(both, layer_maps, 0.5)).tolist() == [False, True]
    assert np.isfinite(weighted_coverage(both, layer_maps)).all()
    assert np.isnan(weighted_coverage(HEAT, np.zeros((4, 4), np.uint8)))


def test_clipping_makes_ties_and_eight_bits_do_not():
    heatmap = np.full((4, 4), 0.25)
    heatmap[2, 0], heatmap[3, 3], heatmap[0, 0] = 1, 0.999, 0.997
    assert n_peaks(heatmap) == 1 and hit_rate(heatmap, LAYERS) == 3
    assert n_peaks(as_displayed(heatmap)) == 1 and hit_rate(as_displayed(heatmap), LAYERS) == 3
    assert n_peaks(as_displayed(heatmap, clip=0.4)) == 3
    assert hit_rate(as_displayed(heatmap, clip=0.4), LAYERS) == 1
    np.testing.assert_allclose(as_displayed(heatmap) * 255, (heatmap * 255).astype(np.uint8))
    np.testing.assert_array_equal(as_displayed(heatmap, bits=None), heatmap)
    np.testing.assert_array_equal(as_displayed(as_displayed(HEAT)), as_displayed(HEAT))
    assert n_peaks(np.stack([HEAT, np.ones((4, 4)), np.full((4, 4), np.nan)])).tolist() == [2, 0, 0]


def test_ties_count_as_one_pixel_drawn_from_them():
    rng, heatmap = np.random.default_rng(3), peak_at((2, 0), (3, 0), (0, 0))
    drawn = [hit_rate(peak_at(((2, 0), (3, 0), (0, 0))[i]), LAYERS) for i in rng.integers(0, 3, 600)]
    assert np.mean(drawn) == pytest.approx(hit_rate(heatmap, LAYERS), abs=4 * np.std(drawn) / np.sqrt(600))


def test_clipping_is_that_of_captum():
    maps = np.random.default_rng(4).random((3, 64, 64)) ** 2
    maps /= maps.max((1, 2), keepdims=True)
    found = as_displayed(maps, clip=0.02, bits=None)
    for one, clipped in zip(maps, found, strict=True):
        np.testing.assert_allclose(clipped, visualization._normalize_attr(one, "positive", outlier_perc=2))
    assert (n_peaks(found) > 1).all() and (n_peaks(maps) == 1).all()


def test_the_layer_map_as_a_baseline_beats_every_other():
    layer_maps, images = np.stack([LAYERS, LAYERS[::-1], 0 * LAYERS]), np.random.default_rng(0).random((3, 3, 4, 4))
    maps = baseline_heatmaps(images, layer_maps=layer_maps)
    assert hit_rate(maps["layer map"][:2], layer_maps[:2]).tolist() == [3, 3]
    assert coverage(maps["layer map"][:2], layer_maps[:2]).tolist() == [1, 1]
    assert iou(maps["layer map"][0], LAYERS, (0.5, 0.55)).tolist() == [3 / 5, 1]
    assert np.isnan(hit_rate(maps["layer map"], layer_maps)).tolist() == [False, False, True]
    with pytest.raises(ValueError, match=r"expected \(3, 4, 4\) as the images"):
        baseline_heatmaps(images, layer_maps=layer_maps[:2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: coverage(HEAT, LAYERS, 100), r"expected some of \(255, 128, 64, 32, 0\), got \[100\]"),
        (lambda: weighted_coverage(HEAT, LAYERS, {}), "got none"),
        (lambda: weighted_coverage(HEAT, LAYERS, {256: 1}), "got \\[256\\]"),
        (lambda: iou(HEAT, LAYERS, 0.5, (255, 7)), r"got \[7\]"),
        (lambda: iou(HEAT, LAYERS, (0.5, 1.5)), r"threshold: expected numbers in \(0, 1\]"),
        (lambda: iou(HEAT, LAYERS, 0), "threshold: expected"),
        (lambda: coverage(HEAT, LAYERS[:3]), "same height and width"),
        (lambda: coverage(HEAT, None), "see Study.has_layer_map"),
        (lambda: iou(HEAT * 255, LAYERS), r"expected \[0, 1\]"),
        (lambda: coverage(np.where(HEAT > 0.8, np.nan, HEAT), LAYERS), "some pixels are NaN"),
        (lambda: iou(HEAT, np.where(LAYERS == 64, 48, LAYERS).astype(np.uint8)), r"levels \[48\].*nearest neighbour"),
        (lambda: coverage(HEAT[:0], LAYERS[:0]), "at least one pixel"),
        (lambda: as_displayed(HEAT, clip=2), r"clip: expected a share in \[0, 1\)"),
        (lambda: as_displayed(HEAT, bits=0), "bits: expected None or a whole number"),
        (lambda: as_displayed(HEAT - 1), r"expected \[0, 1\]"),
    ],
)
def test_errors_of_the_other_measures(call, message):
    with pytest.raises(ValueError, match=message):
        call()
