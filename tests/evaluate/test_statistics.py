"""Intervals against closed forms, and how groups change them."""

import numpy as np
import pandas as pd
import pytest

from helpers.evaluate.statistics import Interval, bootstrap_interval, fold_interval, intervals, resample


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


def test_resampling_draws_folds_and_then_groups():
    groups = np.array(list("aabbccddee"))
    folds = np.array([0] * 6 + [1] * 4)
    drawn = resample(groups, folds, 500)
    assert drawn.shape == (500, 10) and (drawn[:, ::2] == drawn[:, 1::2]).all()
    first, second = drawn[:, :6:2].sum(1), drawn[:, 6::2].sum(1)
    assert {(a, b) for a, b in zip(first, second, strict=True)} == {(6, 0), (3, 2), (0, 4)}
    np.testing.assert_allclose(drawn.mean(0), 1, atol=0.15)
    alone = resample(groups, None, 500)
    assert (alone.sum(1) == 10).all() and len(np.unique(alone[:, 0])) > 2
    np.testing.assert_array_equal(resample(None, folds, 50, 3), resample(np.arange(10), folds, 50, 3))


def test_networks_that_differ_widen_the_interval():
    """Five folds with means 0 to 4 and nothing else: the variance of the mean of five draws is 2 / 5."""
    folds, groups = np.repeat(np.arange(5), 40), np.arange(200) // 2
    values = folds.astype(float)
    with_folds = bootstrap_interval(values, groups, 20000, folds=folds)
    without = bootstrap_interval(values, groups)
    assert with_folds[::3] == without[::3] == (2, 100)
    assert with_folds.high - with_folds.low == pytest.approx(2 * 1.96 * np.sqrt(2 / 5), rel=0.1)
    assert without.high - without.low < 0.6 * (with_folds.high - with_folds.low)


def test_one_fold_is_no_fold():
    values, groups = np.random.default_rng(0).normal(size=80), np.arange(80) // 2
    with_fold = bootstrap_interval(values, groups, 8000, folds=np.zeros(80))
    np.testing.assert_allclose(with_fold, bootstrap_interval(values, groups, 8000), atol=0.02)


def test_intervals_of_a_table():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"network": np.repeat(["b", "a"], 20), "score": rng.normal(size=40), "group": np.arange(40) // 2}
    )
    table["fold"] = table["group"] % 5
    table.loc[[0, 1, 25], "score"] = np.nan
    found = intervals(table, "network")
    assert list(found.index) == ["b", "a"] and found.index.name == "network"
    assert found[["n", "images", "missing"]].to_numpy().tolist() == [[9, 18, 2], [10, 19, 1]]
    part = table[table["network"] == "b"]
    expected = bootstrap_interval(part["score"], part["group"], folds=part["fold"])
    assert tuple(found.loc["b", ["mean", "low", "high", "n"]]) == expected and found.loc["b", "text"] == str(expected)
    shuffled = intervals(table.sample(frac=1, random_state=0), "network").loc[["b", "a"]]
    np.testing.assert_allclose(shuffled[["mean", "low", "high"]], found[["mean", "low", "high"]])
    both = intervals(table.drop(columns=["group", "fold"]), ["network"], n_resamples=50)
    assert both["n"].tolist() == [18, 19]
    two = intervals(table, ["network", "fold"])
    assert len(two) == 10 and two.index.names == ["network", "fold"]


def test_legacy_divides_by_all_files():
    table = pd.DataFrame({"method": list("aaaabb"), "score": [4.0, 2, np.nan, np.nan, np.nan, 3]})
    assert intervals(table, "method")["mean"].tolist() == [3, 3]
    legacy = intervals(table, "method", legacy=True)
    assert legacy["mean"].tolist() == [1.5, 1.5] and legacy["missing"].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: resample(["a", "a"], [0, 1]), "a group lies in two folds"),
        (lambda: bootstrap_interval([1, 2, 3], ["a", "a", "b"], folds=[0, 1, 1]), "a group lies in two folds"),
        (lambda: bootstrap_interval([1, 2], folds=[0]), "folds: expected one label per value"),
        (lambda: resample(["a", None]), "groups: a label is missing"),
        (lambda: intervals(pd.DataFrame({"score": [1]}), "method"), "no column method; it has score"),
    ],
)
def test_errors_of_clusters(call, message):
    with pytest.raises(ValueError, match=message):
        call()
