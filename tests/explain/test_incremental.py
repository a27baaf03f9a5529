"""A changed patch: the logits of the early layers computed around it are those of the whole network."""

from copy import deepcopy

import pytest
import torch
from torch import fx, nn

from helpers.explain.incremental import Changed, Reach, segments
from helpers.explain.inference import folded, packed
from helpers.models.classifiers import STAGES
from tests.explain.networks import images, network

PLACES = [(0, 0), (0, 79), (79, 0), (79, 79), (33, 40), (5, 61), (70, 7)]  # of windows of 17 in 96


@pytest.mark.parametrize("architecture", STAGES)
def test_patches_anywhere_as_the_whole_network(architecture):
    model, image = deepcopy(network(architecture)).double(), images(1, 96).double()
    patches, (rows, columns) = images(len(PLACES), 17, seed=4).double(), map(list, zip(*PLACES, strict=True))
    changed = Changed(folded(model, image), image, 2**24)
    found = changed.logits(patches, rows, columns)
    steps, _ = changed._plan((17, 17), rows, columns)
    assert len(steps) >= 2
    for logit, patch, row, column in zip(found, patches, rows, columns, strict=True):
        whole = image.clone()
        whole[0, :, row : row + 17, column : column + 17] = patch
        with torch.no_grad():
            expected = model(whole)[0]
        torch.testing.assert_close(logit, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", STAGES)
def test_packed_networks(architecture):
    model, image = network(architecture), images(1, 96)
    found = Changed(packed(model, image), image, 2**24).logits(torch.zeros(1, 3, 17, 17), [33], [40])
    image[0, :, 33:50, 40:57] = 0
    with torch.no_grad():
        expected = model(image)
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_a_patch_of_the_image_itself_changes_nothing():
    model, image = network("googlenet"), images(1, 96)
    changed = Changed(packed(model, image), image, 2**24)
    found = changed.logits(image[:, :, 20:40, 30:50].clone(), [20], [30])
    with torch.no_grad():
        torch.testing.assert_close(found, model(image), rtol=1e-3, atol=1e-4)


def test_reach_of_convolutions_and_pools():
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    found = segments(fx.symbolic_trace(layers.eval()))
    assert [segment.reach[0] for segment in found] == [Reach(2, -3, 3), Reach(2, -1, 1), Reach(1, -2, 2)]
    assert [len(segment.nodes) for segment in found] == [2, 1, 3]


def test_what_is_not_understood_ends_the_early_part():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            y = self.one(x)
            return self.two(y - y.mean((2, 3), keepdim=True)).mean((2, 3))

    model, image = Odd().eval(), images(1, 48)
    ready = folded(model, image)
    assert len(segments(ready)) == 1
    found = Changed(ready, image, 2**24).logits(torch.zeros(1, 3, 9, 9), [30], [3])
    image[0, :, 30:39, 3:12] = 0
    with torch.no_grad():
        torch.testing.assert_close(found, model(image), rtol=1e-5, atol=1e-6)


def test_early_parts_that_give_other_logits_are_not_used():
    model, image = network("mobilenet_v2"), images(1, 96)
    changed = Changed(packed(model, image), image, 2**24)
    wrong = [
        segment._replace(reach=(Reach(segment.reach[0].stride), segment.reach[1])) for segment in changed._segments
    ]
    changed._segments = wrong
    patch = torch.zeros(1, 3, 17, 17)
    found = changed.logits(patch, [30], [30])
    assert changed._segments == []
    image[0, :, 30:47, 30:47] = 0
    with torch.no_grad():
        torch.testing.assert_close(found, model(image), rtol=1e-3, atol=1e-4)
