"""Ablation-CAM and Score-CAM weights on paper, and against the whole network."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from helpers.explain.channels import ablation_weights, masked_logits, masks, score_weights
from helpers.explain.cut import Cut
from helpers.explain.inference import packed
from helpers.models.classifiers import STAGES
from tests.explain.networks import LAYERS, images, network


def pooled(weights, bias=0.0):
    """Three feature maps (the channels of the image), pooled, and one linear layer."""
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    with torch.no_grad():
        model[3].weight.copy_(torch.tensor([weights, [0.0, 0.0, 1.0]]))
        model[3].bias.fill_(bias)
    return model.eval()


def test_ablation_on_paper():
    """s = 1 * 0.5 + 2 * 0.25 + 0 * 1 = 1: each map's share of the score is its weight."""
    image = torch.tensor([0.5, 0.25, 1.0])[None, :, None, None].expand(1, 3, 2, 2)
    cut = Cut(pooled([1.0, 2.0, 0.0]), image, "0", replay=True)
    assert ablation_weights(cut, 0, torch.tensor([0, 1])).tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]


def test_a_negative_score_turns_the_signs_around():
    image = torch.tensor([0.5, 0.25, 1.0])[None, :, None, None].expand(1, 3, 2, 2)
    cut = Cut(pooled([1.0, 2.0, 0.0], bias=-3.0), image, "0", replay=True)
    assert ablation_weights(cut, 0, torch.tensor([0])).tolist() == [[-0.25, -0.25, 0.0]]


def test_a_score_of_zero_has_no_shares():
    cut = Cut(pooled([0.0, 0.0, 0.0]), images(1, 2), "0", replay=True)
    assert not torch.isfinite(ablation_weights(cut, 0, torch.tensor([0]))).any()


@pytest.mark.parametrize(("architecture", "stride"), LAYERS)
def test_ablation_is_the_whole_network_without_a_feature_map(architecture, stride):
    model, layer = deepcopy(network(architecture)).double(), STAGES[architecture][stride]
    cut = Cut(model, images().double(), layer, replay=True)
    found = ablation_weights(cut, 1, torch.tensor([2]))[0]
    some = torch.arange(0, len(found), max(1, len(found) // 12))
    without = cut.activations[1].repeat(len(some), 1, 1, 1)
    without[torch.arange(len(some)), some] = 0
    with model.get_submodule(layer).register_forward_hook(lambda *_: without), torch.no_grad():
        scores = model(images()[[1]].double().expand(len(some), -1, -1, -1))[:, 2]
    score = cut.logits[1, 2]
    torch.testing.assert_close(found[some], (score - scores) / score, rtol=1e-7, atol=1e-9)


def test_the_batch_changes_no_weight():
    cut = Cut(deepcopy(network("googlenet")).double(), images().double(), 16, replay=True)
    one, other = (ablation_weights(cut, 0, torch.tensor([0]), memory) for memory in (2**18, 2**26))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_masks_reach_from_zero_to_one():
    found = masks(torch.tensor([[[0.0, 4.0], [-4.0, 0.0]], [[3.0, 3.0], [3.0, 3.0]]]), (3, 5))
    assert found.shape == (2, 3, 5)
    torch.testing.assert_close(found[0][:, [0, 2, 4]], torch.tensor([[4, 6, 8], [2, 4, 6], [0, 2, 4]]) / 8.0)
    assert (found[1] == 0).all()


class Brightness(nn.Module):
    """Logits: the mean of the image, and three times it; counts what it is shown."""

    def __init__(self):
        super().__init__()
        self.shown = 0

    def forward(self, x):
        self.shown += len(x)
        return x.mean((1, 2, 3))[:, None] * torch.tensor([1.0, 3.0])


def test_score_cam_on_paper():
    """Seen through a mask, a white image is as bright as the mask's mean; flat maps show black, once."""
    activations = torch.tensor([[[0.0, 2.0]], [[1.0, 1.0]], [[7.0, 7.0]], [[5.0, -5.0]]])
    model = Brightness()
    scored = score_weights(model, torch.ones(1, 3, 1, 2), activations, torch.tensor([0, 1]))
    scores = torch.tensor([0.5, 0.0, 0.0, 0.5])
    torch.testing.assert_close(scored.weights, torch.stack([scores.softmax(0), (3 * scores).softmax(0)]))
    assert scored.images == 3 and scored.error.tolist() == [0, 0]


def test_only_flat_maps():
    scored = score_weights(Brightness(), torch.ones(1, 3, 2, 2), torch.ones(5, 1, 1), torch.tensor([0]), tolerance=0.1)
    assert scored.images == 1
    torch.testing.assert_close(scored.weights, torch.full((1, 5), 0.2))


@pytest.mark.parametrize("architecture", STAGES)
def test_masked_images_pass_the_whole_network(architecture):
    model, image = network(architecture), images(1)
    cut = Cut(model, image, 32)
    channels = torch.tensor([3, 0, 11])
    found = masked_logits(packed(model, image), image, cut.activations[0], channels, 2**20)
    with torch.no_grad():
        expected = model(image * masks(cut.activations[0][channels], (64, 64))[:, None])
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_a_tolerance_spends_fewer_images():
    model, image = network("mobilenet_v2"), images(1)
    cut, ready = Cut(model, image, 32), packed(network("mobilenet_v2"), images(1))
    exact = score_weights(ready, image, cut.activations[0], torch.tensor([1]))
    quick = score_weights(ready, image, cut.activations[0], torch.tensor([1]), tolerance=0.05)
    maps = [(scored.weights @ cut.activations[0].flatten(1))[0] for scored in (exact, quick)]
    assert quick.images < exact.images / 2
    assert (maps[0] - maps[1]).norm() <= 3 * quick.error[0] * maps[0].norm() and quick.error[0] <= 0.05
