"""Intervals against closed forms, and how groups change them."""

import numpy as np
import pandas as pd
import pytest

from helpers.evaluate.statistics import Interval, bootstrap_interval, fold_interval


def test_fold_interval_by_hand():
    """Values 1 to 5: standard deviation sqrt(2.5), t with four degrees of freedom at 97.5 % is 2.7764."""
    interval = fold_interval([1, 2, 3, 4, 5])
    half = 2.7764451 * np.sqrt(2.5 / 5)
    assert interval == pytest.approx((3, 3 - half, 3 + half, 5))
    assert fold_interval([1, 2, 3, 4, 5], level=0.5).high - 3 == pytest.approx(0.7406971 * np.sqrt(0.5))


def test_fold_interval_with_few_folds():
    assert fold_interval([2.0, 2.0, 2.0]) == (2, 2, 2, 3)
    assert fold_interval([1, np.nan, 3]).n == 2
    assert fold_interval([4.0])[::3] == (4, 1) and np.isnan(fold_interval([4.0])[1:3]).all()
    assert np.isnan(fold_interval([np.nan]).mean) and fold_interval([]).n == 0


def test_bootstrap_is_close_to_the_normal_interval():
    values = np.random.default_rng(0).normal(2, 1, 400)
    interval = bootstrap_interval(values, n_resamples=4000)
    half = 1.96 * values.std() / 20
    assert interval.mean == pytest.approx(values.mean()) and interval.n == 400
    assert interval.low == pytest.approx(values.mean() - half, abs=0.01)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.01)


def test_same_seed_same_interval():
    values = np.random.default_rng(0).random(50)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, seed=1).low != bootstrap_interval(values).low


def test_interval_moves_and_scales_with_the_values():
    values = np.random.default_rng(0).random(50)
    plain, moved = bootstrap_interval(values), bootstrap_interval(3 * values + 10)
    np.testing.assert_allclose(moved[:3], 3 * np.array(plain[:3]) + 10)


def test_copies_within_a_group_do_not_narrow_the_interval():
    values, groups = np.random.default_rng(0).normal(size=40), np.arange(40)
    once = bootstrap_interval(values, groups)
    copied = bootstrap_interval(np.repeat(values, 9), np.repeat(groups, 9))
    pretended = bootstrap_interval(np.repeat(values, 9))
    np.testing.assert_allclose(copied, once)
    assert (pretended.high - pretended.low) < 0.5 * (once.high - once.low)
    assert copied.n == 40 and pretended.n == 360


def test_groups_of_one_are_no_groups_and_order_does_not_matter():
    values = np.random.default_rng(0).random(30)
    assert bootstrap_interval(values, [f"{i:02d}" for i in range(30)]) == bootstrap_interval(values)
    groups, order = np.arange(30) // 3, np.random.default_rng(1).permutation(30)
    np.testing.assert_allclose(
        bootstrap_interval(values[order], groups[order]), bootstrap_interval(values, groups), rtol=1e-12
    )


def test_mean_is_over_values_not_over_groups():
    assert bootstrap_interval([0, 0, 0, 4], ["a", "a", "a", "b"]).mean == 1


def test_constant_and_missing_values():
    assert bootstrap_interval([2.0] * 5) == (2, 2, 2, 5)
    assert bootstrap_interval([1, np.nan, 3]).n == 2 and bootstrap_interval([1, np.nan, 3]).mean == 2
    assert bootstrap_interval([1, np.nan, 3], ["a", "b", "a"]).n == 1
    assert np.isnan(bootstrap_interval([1, 3], ["a", "a"])[1:3]).all()
    assert bootstrap_interval([np.nan]).n == 0 and np.isnan(bootstrap_interval([]).mean)


def test_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        patient = np.repeat(rng.normal(size=30), 4)
        interval = bootstrap_interval(patient + 0.3 * rng.normal(size=120), np.arange(120) // 4, 500, seed=seed)
        hits += interval.low <= 0 <= interval.high
    assert 0.88 <= hits / 200 <= 0.98


def test_prints_for_a_table():
    interval = Interval(1.954, 1.8, 2.1, 60)
    assert str(interval) == "1.95 [1.80, 2.10], n = 60"
    assert f"{interval:.1f}" == "2.0 [1.8, 2.1], n = 60"
    assert str(fold_interval([4.0])) == "4.00 [no interval], n = 1"
    assert str(bootstrap_interval([np.nan])) == "no value, n = 0"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([[1, 2]]), r"expected \(N,\)"),
        (lambda: bootstrap_interval([1, np.inf]), "infinity"),
        (lambda: bootstrap_interval([1, 2], ["a"]), "one label per value"),
        (lambda: bootstrap_interval([1, 2], ["a", None]), "a label is missing"),
        (lambda: bootstrap_interval([1, 2], pd.array(["a", pd.NA])), "a label is missing"),
        (lambda: bootstrap_interval([1, 2], level=95), "between 0 and 1"),
        (lambda: bootstrap_interval([1, 2], n_resamples=0), "at least 1"),
        (lambda: fold_interval([1, 2], level=0), "between 0 and 1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
