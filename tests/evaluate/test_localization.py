"""Hit Rate on 4 x 4 maps, counted by hand."""

import numpy as np
import pytest

from helpers.evaluate.localization import HIT_RATE_2, LAYER_SCORES, baseline_heatmaps, hit_rate, score_map

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
