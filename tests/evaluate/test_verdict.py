"""Verdicts of the two decision schemes: every cell, how sure, and what is missing."""

import numpy as np
import pytest

from helpers.evaluate.verdict import ON_MAP, ON_NETWORK, judge_map, judge_network


@pytest.mark.parametrize("high", [True, False])
@pytest.mark.parametrize("correct", [True, False])
def test_every_cell_of_both_schemes(high, correct):
    focus = np.full(20, 2.0 if correct else 0.0)
    network = judge_network(np.arange(20) < (19 if high else 10), focus)
    assert network.verdict == ON_NETWORK[high, correct] and network.numbers["focus"].mean == focus[0]
    assert network.numbers["accuracy"].mean == pytest.approx(0.95 if high else 0.5)
    found = judge_map(np.full(20, 0.3 if high else -0.3), focus)
    assert found.verdict == ON_MAP[high, correct] and found.agreement == 1 and sum(found.shares.values()) == 1


def test_an_accurate_network_that_looks_elsewhere_is_over_learned():
    rng = np.random.default_rng(0)
    found = judge_network(np.ones(60, bool), rng.choice([-1.0, 0.0], 60), np.arange(60) // 2)
    assert "over-learned" in str(found) and "100%" in str(found) and found.numbers["accuracy"].n == 30


def test_agreement_is_the_share_of_samples_on_the_same_side():
    """A mean that lies on the threshold is on either side half of the time; one standard error above, 84 %."""
    values = np.random.default_rng(1).normal(size=400)
    values = (values - values.mean()) / values.std()
    right = np.ones(400)
    assert judge_network(right, 1 + values).agreement == pytest.approx(0.5, abs=0.05)
    surer = judge_network(right, 1 + 1 / 20 + values, n_resamples=4000)
    assert surer.agreement == pytest.approx(0.84, abs=0.03)
    assert surer.shares[ON_NETWORK[True, False]] == pytest.approx(1 - surer.agreement)


def test_thresholds_decide_and_are_told():
    focus, right = np.full(10, 1.5), np.ones(10)
    assert judge_network(right, focus, min_focus=1.5).verdict == ON_NETWORK[True, True]
    strict = judge_network(right, focus, min_focus=1.6)
    assert strict.verdict == ON_NETWORK[True, False] and strict.thresholds == {"accuracy": 0.9, "focus": 1.6}
    assert "focus 1.50 [1.50, 1.50], n = 10: below 1.6" in str(strict)


def test_criteria_are_drawn_together_by_groups():
    """Focus and accuracy fail on the same patients: no sample is high in one and low in the other."""
    good = np.repeat([1.0, 0.0], 10)
    found = judge_network(good, good, np.arange(20) // 2, min_accuracy=0.5, min_focus=0.5)
    assert found.shares[ON_NETWORK[True, False]] == found.shares[ON_NETWORK[False, True]] == 0
    assert 0.4 < found.agreement < 0.8


def test_copies_within_a_group_do_not_make_it_surer():
    values = np.random.default_rng(2).normal(1.2, 1, 30)
    once = judge_network(np.ones(30), values, np.arange(30))
    copied = judge_network(np.ones(300), np.repeat(values, 10), np.repeat(np.arange(30), 10))
    assert copied.agreement == pytest.approx(once.agreement) and once.agreement < 0.95
    assert judge_network(np.ones(300), np.repeat(values, 10)).agreement > copied.agreement


def test_folds_make_it_less_sure():
    folds = np.repeat(np.arange(5), 20)
    focus = np.array([-1, 0, 1, 2, 5.0])[folds]
    assert judge_network(np.ones(100), focus, folds=folds).agreement < judge_network(np.ones(100), focus).agreement


def test_images_without_a_value_are_counted_and_left_out():
    focus = np.array([2.0, np.nan, 2.0, np.nan])
    found = judge_network([1, 1, 1, 1], focus)
    assert found.missing == {"accuracy": 0, "focus": 2} and found.numbers["focus"].mean == 2
    assert "2 images without a value" in str(found)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: judge_network([1, 1], [1.0]), "one number per image in each criterion"),
        (lambda: judge_map(np.ones((2, 2)), np.ones((2, 2))), "one number per image"),
        (lambda: judge_map([np.nan, np.nan], [1, 1]), "trust: no image has a value"),
        (lambda: judge_network([1, 1], [1, 1], groups=["a"]), "groups: expected one label per value"),
        (lambda: judge_network([1, 1], [1, 1], ["a", "a"], [0, 1]), "a group lies in two folds"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
