"""Occlusion in closed form, against captum, and what does not fit."""

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

from helpers.explain.inference import packed
from helpers.explain.occlusion import occlusion
from helpers.models.classifiers import STAGES
from tests.explain.networks import images, network


def linear(weights):
    model = nn.Sequential(nn.Flatten(), nn.Linear(weights.numel(), 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([weights.flatten(), -weights.flatten()]))
    return model.eval()


def test_a_linear_network_on_paper():
    """Windows of 2 at stride 1 in 3 x 3: four windows, each loses the sum of weight times pixel inside it."""
    weights = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [4.0, 0.0, 5.0]])
    maps, n = occlusion(linear(weights), torch.ones(1, 1, 3, 3), torch.tensor([0, 1]), 2, 1)
    drops = np.array([[4.0, 5.0], [7.0, 8.0]])
    expected = [
        [drops[0, 0], drops[0].mean(), drops[0, 1]],
        [drops[:, 0].mean(), drops.mean(), drops[:, 1].mean()],
        [drops[1, 0], drops[1].mean(), drops[1, 1]],
    ]
    assert n == 4
    np.testing.assert_allclose(maps[0], expected, atol=1e-6)
    np.testing.assert_allclose(maps[1], -np.array(expected), atol=1e-6)


def test_windows_are_cut_off_at_the_border():
    """Windows of 2 at stride 2 in 3 x 3 begin at 0 and 2: the last ones cover one row or column."""
    weights = torch.arange(9.0).reshape(3, 3)
    maps, n = occlusion(linear(weights), torch.ones(1, 1, 3, 3), torch.tensor([0]), 2, 2)
    assert n == 4
    assert maps[0].tolist() == [[8, 8, 7], [8, 8, 7], [13, 13, 8]]


@pytest.mark.parametrize(("window", "stride"), [(15, 9), (16, 16), (30, 7)])
@pytest.mark.parametrize("architecture", STAGES)
def test_maps_are_those_of_captum(architecture, window, stride):
    model, image = network(architecture), images(1, 64)
    ours, n = occlusion(packed(model, image), image, torch.tensor([2]), window, stride)
    arguments = {"sliding_window_shapes": (3, window, window), "strides": (3, stride, stride), "target": 2}
    with torch.no_grad():
        theirs = captum.attr.Occlusion(model).attribute(image, perturbations_per_eval=8, **arguments)
    assert n == (-(-(64 - window) // stride) + 1) ** 2
    # folded kernels round in another order, and a hundred layers of random weights amplify it
    bound = 1e-3 if architecture == "resnet101" else 1e-4
    assert (ours[0] - theirs[0, 0]).abs().max() <= bound * theirs.abs().max()


def test_covering_with_the_image_itself_changes_nothing():
    model, image = network("mobilenet_v2"), images(1, 64)
    maps, _ = occlusion(packed(model, image), image, torch.tensor([0]), 20, 10, baseline=image[0])
    with torch.no_grad():
        assert maps.abs().max() <= 1e-5 * model(image).abs().max()


def test_covering_with_another_brightness():
    weights = torch.ones(3, 3)
    maps, _ = occlusion(linear(weights), torch.ones(1, 1, 3, 3), torch.tensor([0]), 3, 1, baseline=0.25)
    assert maps[0].tolist() == [[9 * 0.75] * 3] * 3


@pytest.mark.parametrize(("window", "stride"), [(0, 1), (9, 10), (65, 9), (9, 0)])
def test_windows_that_do_not_fit(window, stride):
    with pytest.raises(ValueError, match="1 <= stride <= window <= 64"):
        occlusion(network("mobilenet_v2"), images(1), torch.tensor([0]), window, stride)
