"""Folded and packed copies against the network they are made of, and batches that fit into memory."""

from copy import deepcopy

import pytest
import torch
from torch import fx, nn
from torchvision import models

from helpers.explain.inference import (
    Packed,
    folded,
    gathered,
    in_cache,
    largest,
    output_sizes,
    packed,
    parts,
)
from helpers.models.classifiers import STAGES
from tests.explain.networks import images, network, state_of


@pytest.mark.parametrize("architecture", STAGES)
@pytest.mark.parametrize("copy", [folded, packed])
def test_copies_give_the_same_logits(architecture, copy):
    model, before = network(architecture), state_of(network(architecture))
    made = copy(model, images())
    assert isinstance(made, fx.GraphModule) and state_of(model) == before
    with torch.no_grad():
        expected, found = model(images(3, 64, seed=1)), made(images(3, 64, seed=1))
    # weights are random: rounding grows from layer to layer; in double precision nothing else is left, see below
    assert (expected - found).abs().max() <= 1e-3 * expected.abs().max()
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in made.modules())
    assert norms < sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    if copy is packed:
        assert not any(type(module) is nn.Conv2d for module in made.modules())


@pytest.mark.parametrize("architecture", STAGES)
def test_folding_is_exact(architecture):
    model, given = deepcopy(network(architecture)).double(), images(2, 64, seed=1).double()
    made = folded(model, given)
    assert made is not model
    with torch.no_grad():
        torch.testing.assert_close(made(given), model(given), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "make", [models.resnet18, models.vgg16_bn, models.squeezenet1_1], ids=lambda make: make.__name__
)
def test_other_networks(make):
    torch.manual_seed(0)
    model = make(num_classes=3).eval()
    with torch.no_grad():
        torch.testing.assert_close(packed(model, images())(images()), model(images()), rtol=1e-4, atol=1e-5)


def test_activations_behind_a_convolution_are_fused():
    network_of_two = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.LazyLinear(2))
    network_of_two(images(1, 8))
    made = packed(network_of_two.eval(), images(1, 8))
    found = [(module.activation, module.scalars) for module in made.modules() if isinstance(module, Packed)]
    assert found == [("hardtanh", [0.0, 6.0]), ("none", [])]


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 3)

    def forward(self, x):
        return self.layer(x if x.sum() > 0 else -x).mean((2, 3))


def test_what_cannot_be_traced_is_used_as_it_is():
    model = Untraceable().eval()
    assert packed(model, images()) is model and folded(model, images()) is model


def test_what_would_give_other_logits_is_used_as_it_is():
    class Counting(Untraceable):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return self.layer(x).mean((2, 3)) + Counting.calls

    model = Counting().eval()
    assert packed(model, images()) is model


def test_double_precision_and_autocast_are_not_packed():
    model = models.resnet18(num_classes=2).double().eval()
    assert not any(isinstance(module, Packed) for module in packed(model, images().double()).modules())
    with torch.autocast("cpu", torch.bfloat16):
        made = packed(models.resnet18(num_classes=2).eval(), images())
    assert not any(isinstance(module, Packed) for module in made.modules())


def test_sizes_of_outputs():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1))
    before = state_of(model)
    with output_sizes(model) as sizes:
        model(images(2, 4))
    assert sorted(sizes) == [0, 2 * 16 * 4, 8 * 16 * 4]
    assert largest(model, images(2, 4)) == 8 * 16 * 4
    with pytest.raises(RuntimeError), output_sizes(model):
        model(images(2, 4)[:, :1])
    assert state_of(model) == before


def test_parts_cover_everything_and_fit():
    found = list(parts(10, 100, 350))
    assert [(part.start, part.stop) for part in found] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert [(part.start, part.stop) for part in parts(2, 100, 50)] == [(0, 1), (1, 2)]
    assert in_cache(100, 10, torch.device("cpu")) == 10
    assert in_cache(5, 10, torch.device("cpu")) == 5
    assert in_cache(100, 10, torch.device("cuda")) == 100


def test_results_are_gathered_in_their_order():
    asked = []

    def compute(part):
        asked.append((part.start, part.stop))
        return images(5)[part]

    assert torch.equal(gathered(compute, 5, 10, 20), images(5))
    assert asked == [(0, 2), (2, 4), (3, 5)]
    assert torch.equal(gathered(compute, 5, 10, 1000), images(5)) and asked[3:] == [(0, 5)]
    assert torch.equal(gathered(compute, 5, 10, 1), images(5)) and asked[4:] == [(i, i + 1) for i in range(5)]
