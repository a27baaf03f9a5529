"""Scores predicted from some of them."""

import numpy as np
import pytest

from helpers.explain.sampling import sampled_scores


def problem(n=600, places=9, roughness=2.0, seed=0):
    """Masks, maps, and a score that depends smoothly on the mask."""
    rng = np.random.default_rng(seed)
    maps = rng.gamma(0.5, size=(n, places))
    masks = (maps - maps.min(1, keepdims=True)) / np.ptp(maps, axis=1, keepdims=True)
    weights = rng.normal(size=(places, 2))
    return masks, maps, np.tanh(masks @ weights) * roughness


def map_of(scores, maps):
    weights = np.exp(scores - scores.max(0))
    return (weights / weights.sum(0)).T @ maps


@pytest.mark.parametrize("seed", range(4))
def test_few_scores_give_the_map_within_the_estimated_error(seed):
    masks, maps, scores = problem(seed=seed)
    asked = []

    def score(which):
        asked.extend(which)
        return scores[which]

    found, n, errors = sampled_scores(score, masks, maps, 0.05)
    assert len(asked) == len(set(asked)) == n < 0.5 * len(masks)
    np.testing.assert_array_equal(found[asked], scores[asked])
    exact, quick = map_of(scores, maps), map_of(found, maps)
    true = np.linalg.norm(exact - quick, axis=1) / np.linalg.norm(exact, axis=1)
    assert (errors <= 0.05).all() and (errors >= true / 3).all()


def test_a_smaller_tolerance_costs_more_and_gives_more():
    masks, maps, scores = problem()
    spent, true = [], []
    for tolerance in (0.2, 0.02, 0.002):
        found, n, _ = sampled_scores(lambda which: scores[which], masks, maps, tolerance)
        spent.append(n)
        true.append(np.linalg.norm(map_of(scores, maps) - map_of(found, maps)))
    assert spent[0] < spent[1] < spent[2]
    assert true[0] > true[2]


def test_scores_that_cannot_be_predicted_are_all_asked_for():
    masks, maps, _ = problem()
    scores = np.random.default_rng(1).normal(size=(len(masks), 1))
    found, n, errors = sampled_scores(lambda which: scores[which], masks, maps, 0.01)
    assert n == len(masks) and errors.tolist() == [0]
    np.testing.assert_array_equal(found, scores)


@pytest.mark.parametrize("n", [1, 2, 9, 30])
def test_a_handful(n):
    masks, maps, scores = problem(n)
    found, asked, _ = sampled_scores(lambda which: scores[which], masks, maps, 1e-9)
    assert asked == n
    np.testing.assert_array_equal(found, scores)


def test_equal_scores_and_repetition():
    masks, maps, scores = problem()
    constant = np.full((len(masks), 1), 2.0)
    found, n, _ = sampled_scores(lambda which: constant[which], masks, maps, 0.05)
    assert n < 100 and np.allclose(found, 2, atol=1e-3)
    one, other = (sampled_scores(lambda which: scores[which], masks, maps, 0.05, seed=3)[0] for _ in range(2))
    np.testing.assert_array_equal(one, other)
