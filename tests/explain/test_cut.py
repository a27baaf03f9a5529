"""The cut: activations, gradients and replays against the whole network; what it leaves behind."""

from copy import deepcopy

import pytest
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from torch import nn
from torchvision import models

from helpers.explain.cut import Cut
from helpers.explain.layers import find_layer
from helpers.models.classifiers import STAGES
from tests.explain.networks import LAYERS, images, network, small, state_of, toy

INSIDE = [
    ("densenet201", "features.denseblock3.denselayer20.conv1"),
    ("googlenet", "inception4c.branch3"),
    ("mobilenet_v2", "features.12.conv.1"),
    ("resnet101", "layer3.7.bn2"),
]
PLACES = [(architecture, STAGES[architecture][stride]) for architecture, stride in LAYERS] + INSIDE


def whole(model, image, layer, activations):
    """Logits of the whole network with a hook that replaces the layer's output."""
    with find_layer(model, layer)[1].register_forward_hook(lambda *_: activations), torch.no_grad():
        return model(image.expand(len(activations), *image.shape[1:]))


@pytest.mark.parametrize(("architecture", "layer"), PLACES)
def test_gradients_are_those_of_captum(architecture, layer):
    model, targets = network(architecture), torch.tensor([1, 3])
    cut = Cut(model, images(), layer)
    module, gradients = model.get_submodule(layer), cut.gradients(targets)
    theirs = {
        "product": LayerGradientXActivation(model, module).attribute(images(), targets),
        "averaged": LayerGradCam(model, module).attribute(images(), targets)[:, 0],
    }
    ours = {
        "product": gradients * cut.activations,
        "averaged": (gradients.mean((2, 3), keepdim=True) * cut.activations).sum(1),
    }
    for name, reference in theirs.items():
        assert (ours[name] - reference).abs().max() <= 1e-5 * reference.abs().max()


@pytest.mark.parametrize(("architecture", "layer"), PLACES)
def test_replays_are_the_whole_network_with_other_activations(architecture, layer):
    model = deepcopy(network(architecture)).double()
    cut = Cut(model, images().double(), layer, replay=True)
    for image in (0, 1):
        other = torch.stack([cut.activations[image] * factor for factor in (1.0, 0.0, 0.7)])
        expected = whole(model, images()[[image]].double(), layer, other)
        torch.testing.assert_close(cut.replay(other.clone(), image), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(cut.logits[image], expected[0], rtol=1e-9, atol=1e-9)


class InPlace(nn.Module):
    """Changes what modules returned, in place and outside of modules, before and after the layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.layer = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        y = self.first(x)
        y += 1
        z = self.second(y)
        z.mul_(2)
        return self.head((self.layer(z) + y).relu_().mean((2, 3)))


class Mixed(InPlace):
    """Shifts images along the batch after the layer: recorded outputs of one image are not enough."""

    def forward(self, x):
        y = self.first(x)
        z = self.layer(self.second(y))
        return self.head(torch.cat([z, y * 2 - y.mean(0, keepdim=True)], 2).mean((2, 3)))


@pytest.mark.parametrize("kind", [InPlace, Mixed])
def test_replays_with_operations_outside_of_modules(kind):
    torch.manual_seed(0)
    model, image = kind().eval(), images(1, 8)
    cut = Cut(model, image, "layer", replay=True)
    other = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(cut.replay(other), whole(model, image, "layer", other))


def test_a_replay_does_not_run_what_lies_before():
    model, ran = network("resnet101"), []
    cut = Cut(model, images(), "layer4", replay=True)
    with model.layer2[1].conv1.register_forward_hook(lambda *_: ran.append(1)):
        cut.replay(cut.activations[:1].clone())
    assert not ran


def test_in_place_operations_on_the_layer_change_nothing():
    """DenseNet applies an in-place ReLU to the output of its last norm."""
    cut = Cut(network("densenet201"), images(), "features.norm5", replay=True)
    assert cut.activations.min() < 0
    kept = cut.activations.clone()
    cut.replay(cut.activations[:1].clone())
    assert torch.equal(cut.activations, kept)


def test_bytes_are_those_of_the_rest_of_the_network():
    model = small(pooled=False)
    assert Cut(model, images(1, 8).double(), "1", replay=True).bytes == 5 * 36 * 8


def test_works_inside_inference_mode_and_restores_it():
    model, image = toy()
    with torch.inference_mode():
        inside = Cut(model, image.clone(), "0").gradients(torch.tensor([0]))
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert inside.tolist() == [[[[-1, 4], [1, 0]]]]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("fc", r"'fc': expected an output \(N, F, h, w\), got shape \(2, 4\)"),
        ("layer4.0.relu", "more than once"),
        ("unused", "does not run"),
        ("aside", "do not depend"),
    ],
)
def test_layers_that_do_not_fit(layer, message):
    class Net(models.ResNet):
        def forward(self, x):
            self.aside(x)
            return super().forward(x)

    model = Net(models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=4)
    model.aside, model.unused = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 1, 1)
    before = state_of(model.eval())
    with pytest.raises(ValueError, match=message):
        Cut(model, images(), layer, replay=True).gradients(torch.tensor([0, 1]))
    assert state_of(model) == before


def test_a_random_network_cannot_be_replayed():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return self.layer(x).mean((2, 3)) + torch.rand(2)

    with pytest.raises(ValueError, match="is something in it random"):
        Cut(Noisy().eval(), images(1, 8), "layer", replay=True)
