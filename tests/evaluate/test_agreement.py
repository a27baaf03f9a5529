"""Correlation of maps against scipy, one pair at a time."""

import numpy as np
import pytest
from scipy import stats

from helpers.evaluate.agreement import correlation


@pytest.mark.parametrize("ranks, expected", [(False, stats.pearsonr), (True, stats.spearmanr)])
def test_against_scipy(ranks, expected):
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 5, 6, 7)).round(1)
    found = correlation(one, other, ranks)
    by_one = [expected(a.ravel(), b.ravel())[0] for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(found, by_one, atol=1e-12)


def test_scale_sign_and_order():
    one = np.random.default_rng(1).uniform(size=(3, 4, 4))
    np.testing.assert_allclose(correlation(one, 2 * one + 5), 1)
    np.testing.assert_allclose(correlation(one, -one), -1)
    np.testing.assert_allclose(correlation(one, one**9, ranks=True), 1)
    assert (correlation(one, one**9) < 0.999).all()


def test_a_flat_map_or_a_nan_has_no_correlation():
    one = np.random.default_rng(2).uniform(size=(3, 4, 4))
    other = one.copy()
    other[0], other[1, 2, 2] = 0.1, np.nan
    for ranks in (False, True):
        assert np.isnan(correlation(one, other, ranks)).tolist() == [True, True, False]


def test_maps_of_different_shape():
    with pytest.raises(ValueError, match=r"one is \(2, 3\) and the other \(2, 4\)"):
        correlation(np.zeros((2, 3)), np.zeros((2, 4)))
