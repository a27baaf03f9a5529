"""From raw maps to pictures, on values worked out by hand."""

import numpy as np
import pytest
import xarray as xr

from helpers.explain.heatmaps import enlarge, is_flat, to_heatmap, to_mask

CAM = np.array([[4.0, 0.0], [-8.0, 2.0]])


def test_signs_at_the_maps_own_size():
    assert to_heatmap(CAM, 2).tolist() == [[1, 0], [0, 0.5]]
    assert to_heatmap(CAM, 2, "negative").tolist() == [[0, 0], [1, 0]]
    assert to_heatmap(CAM, 2, "absolute").tolist() == [[0.5, 0], [1, 0.25]]


def test_bilinear_with_centres_in_place():
    """Doubling two cells: the outer pixels repeat the cell, the inner ones lie a quarter of the way between."""
    assert to_heatmap([[0.0, 1.0]], (1, 4)).tolist() == [[0, 0.25, 0.75, 1]]
    wide = to_heatmap([[0.0, 4.0, 0.0]], (3, 6))
    assert wide.shape == (3, 6)
    np.testing.assert_allclose(wide[1], [0, 1 / 3, 1, 1, 1 / 3, 0])


def test_sign_is_chosen_before_the_enlargement():
    assert to_heatmap([[-3.0, 1.0]], (1, 4)).tolist() == [[0, 0.25, 0.75, 1]]


def test_scale_of_the_raw_map_does_not_matter():
    np.testing.assert_allclose(to_heatmap(1e-20 * CAM, 7), to_heatmap(CAM, 7), rtol=1e-12)
    np.testing.assert_allclose(to_heatmap(-CAM, 7, "negative"), to_heatmap(CAM, 7, "positive"))


@pytest.mark.parametrize("kind", [np.asarray, xr.DataArray])
def test_leading_dimensions_are_mapped_one_by_one(kind):
    cams = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    heatmaps = to_heatmap(kind(cams), (8, 9))
    assert heatmaps.shape == (2, 3, 8, 9)
    assert heatmaps.min() >= 0
    assert (heatmaps.max((-2, -1)) == 1).all()
    np.testing.assert_array_equal(heatmaps[1, 2], to_heatmap(cams[1, 2], (8, 9)))


def test_flipping_the_map_flips_the_picture():
    cam = np.random.default_rng(0).normal(size=(4, 5))
    np.testing.assert_allclose(to_heatmap(cam[:, ::-1], 12), to_heatmap(cam, 12)[:, ::-1], atol=1e-12)


def test_flat_maps_are_nan_and_counted():
    nothing, constant, rounding = np.zeros((2, 2)), np.full((2, 2), 3.0), np.array([[1.0, 1.0], [1.0, 1.0 + 1e-7]])
    negative, broken = -np.abs(CAM), np.array([[1.0, np.nan], [0.0, 0.0]])
    heatmaps = to_heatmap(np.stack([nothing, CAM, constant, rounding, negative, broken]), 6)
    assert is_flat(heatmaps).tolist() == [True, False, True, True, True, True]
    assert not np.isnan(heatmaps[1]).any()
    assert not is_flat(to_heatmap(negative, 6, "negative"))


def test_min_max_takes_the_smallest_value_off():
    assert to_heatmap(np.array([[4.0, 1.0], [2.0, 3.0]]), 2, scale="min-max").tolist() == [[1, 0], [1 / 3, 2 / 3]]
    assert to_heatmap(CAM, 2, scale="min-max").tolist() == [[1, 0], [0, 0.5]]
    with pytest.raises(ValueError, match="scale: expected one of max, min-max"):
        to_heatmap(CAM, 2, scale="sum")


def test_enlarging_keeps_the_scale():
    assert enlarge(np.array([[[0.0, 0.5]]]), (1, 4)).tolist() == [[[0, 0.125, 0.375, 0.5]]]
    assert np.isnan(enlarge(np.full((2, 3, 3), np.nan), (6, 6))).all()


def test_mask():
    heatmap = np.array([[0.2, 0.5], [0.7, 1.0]])
    assert to_mask(heatmap, 0.5).tolist() == [[False, True], [True, True]]
    assert to_mask(heatmap, 1).tolist() == [[False, False], [False, True]]
    assert not to_mask(np.full((2, 2), np.nan), 0.5).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_heatmap(CAM, 2, "both"), "sign: expected one of positive"),
        (lambda: to_heatmap(CAM, 0), "size"),
        (lambda: to_heatmap(CAM, (2, 2, 2)), "size"),
        (lambda: to_heatmap(CAM, 2.5), "size"),
        (lambda: to_heatmap(CAM[0], 2), r"expected \(..., h, w\)"),
        (lambda: to_mask(CAM, 0), "threshold"),
        (lambda: to_mask(CAM, 50), "threshold"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
