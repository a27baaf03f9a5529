"""Deletion and insertion: exact on a linear model, and the order that must win."""

import numpy as np
import pytest
import torch
from torch import nn

from helpers.evaluate.deletion import answers, deletion, filled


class Sum(nn.Module):
    """Logits: the sum of what each class weighs of every pixel."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.as_tensor(weights, dtype=torch.float32))

    def forward(self, images):
        return torch.einsum("nchw,khw->nk", images, self.weights)


WEIGHTS = np.array([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 1.0]]])
IMAGE = np.ones((1, 1, 2, 2), np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, float)))


def test_deletion_of_a_linear_model_by_hand():
    curves = deletion(Sum(WEIGHTS), IMAGE, WEIGHTS[:1], [0], steps=4, fill="zero")
    expected = sigmoid([10, 6, 3, 1, 0])
    np.testing.assert_allclose(curves.probs, [expected], rtol=1e-6)
    np.testing.assert_allclose(curves.shares, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curves.area, [np.trapezoid(expected, dx=0.25)])


def test_insertion_runs_the_other_way():
    curves = deletion(Sum(WEIGHTS), IMAGE, WEIGHTS[:1], [0], steps=4, fill="zero", insertion=True)
    np.testing.assert_allclose(curves.probs, [sigmoid([0, 4, 7, 9, 10])], rtol=1e-6)


def test_softmax_is_that_of_all_classes():
    curves = deletion(Sum(WEIGHTS), IMAGE, WEIGHTS[:1], [1], steps=2, fill="zero", activation="softmax")
    np.testing.assert_allclose(curves.probs, [sigmoid([1 - 10, 0 - 3, 0])], rtol=1e-5)


def test_answers_are_logits_where_asked():
    np.testing.assert_allclose(answers(Sum(WEIGHTS), IMAGE, [0], "logit"), [10])
    np.testing.assert_allclose(answers(Sum(WEIGHTS), IMAGE, [1], "sigmoid"), sigmoid([1]), rtol=1e-6)


def test_both_ends_hang_on_image_and_fill_alone():
    images = np.random.default_rng(0).random((3, 3, 16, 16), np.float32)
    model, targets = Sum(np.random.default_rng(1).normal(size=(2, 16, 16)) / 16), np.array([0, 1, 0])
    for fill in ("blur", "mean", "zero"):
        for insertion in (False, True):
            maps = np.random.default_rng(2).random((3, 16, 16))
            probs = deletion(model, images, maps, targets, 5, fill, insertion).probs
            ends = probs[:, [-1, 0] if insertion else [0, -1]]
            np.testing.assert_allclose(ends[:, 0], answers(model, images, targets), rtol=1e-5)
            np.testing.assert_allclose(ends[:, 1], answers(model, filled(images, fill).copy(), targets), rtol=1e-5)


def test_the_order_of_the_weights_beats_every_other_order():
    rng = np.random.default_rng(3)
    weights = rng.random((1, 8, 8))
    model, images = Sum(weights / 8), np.ones((21, 1, 8, 8), np.float32)
    maps = np.concatenate([weights, rng.random((20, 8, 8))])
    targets = np.zeros(21, int)
    lost = deletion(model, images, maps, targets, 16, "zero").area
    won = deletion(model, images, maps, targets, 16, "zero", insertion=True).area
    assert (lost[0] < lost[1:]).all() and (won[0] > won[1:]).all()


def test_neither_batches_nor_a_rising_function_of_the_map_change_a_curve():
    rng = np.random.default_rng(4)
    images, maps = rng.random((5, 1, 8, 8), np.float32), rng.random((5, 8, 8))
    model, targets = Sum(rng.normal(size=(2, 8, 8))), np.array([0, 1, 0, 1, 1])
    one = deletion(model, images, maps, targets, 4, batch_size=1)
    for other in (deletion(model, images, maps, targets, 4), deletion(model, images, maps**3, targets, 4)):
        np.testing.assert_allclose(other.probs, one.probs, rtol=1e-4)


def test_a_flat_map_has_no_curve():
    maps = np.concatenate([WEIGHTS[:1], np.full((1, 2, 2), np.nan)])
    curves = deletion(Sum(WEIGHTS), np.repeat(IMAGE, 2, 0), maps, [0, 0], 2, "zero")
    assert np.isfinite(curves.probs[0]).all() and np.isnan(curves.probs[1]).all() and np.isnan(curves.area[1])


def test_a_fill_keeps_an_even_image_or_blackens_it():
    even = np.full((2, 3, 20, 20), 0.4, np.float32)
    for fill in ("blur", "mean"):
        np.testing.assert_allclose(filled(even, fill), even, rtol=1e-5)
    assert not filled(even, "zero").any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fill": "grey"}, "fill"),
        ({"activation": "relu"}, "activation"),
        ({"activation": "logit"}, "activation"),
        ({"steps": 0}, "steps"),
        ({"targets": [0, 1]}, "targets"),
        ({"heatmaps": WEIGHTS}, "heatmaps"),
        ({"heatmaps": np.array([[[np.nan, 1], [0, 0]]])}, "NaN"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"images": IMAGE, "heatmaps": WEIGHTS[:1], "targets": [0]} | change
    with pytest.raises(ValueError, match=message):
        deletion(Sum(WEIGHTS), **arguments)
