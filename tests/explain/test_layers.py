"""Finding a layer, and what does not fit."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from helpers.explain.cut import Cut
from helpers.explain.layers import check_eval, check_images, check_logits, find_layer, last_block, prepare
from helpers.models.classifiers import STAGES
from tests.explain.networks import images, network, small


def test_default_layer_of_each_network():
    found = {architecture: last_block(network(architecture), images()) for architecture in STAGES}
    assert found == {
        "densenet201": "features", "googlenet": "inception5b", "mobilenet_v2": "features", "resnet101": "layer4",
    }  # fmt: skip
    assert last_block(small(pooled=False), images(1, 8).double()) == "0"
    assert last_block(models.googlenet(weights=None, init_weights=False).eval(), images()) == "inception5b"
    nested = nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), nn.Flatten())
    assert last_block(nested.eval(), images()) == "0.0"


@pytest.mark.parametrize("architecture", STAGES)
def test_strides_name_the_stages(architecture):
    model = network(architecture)
    for stride, name in STAGES[architecture].items():
        assert find_layer(model, stride) == (name, model.get_submodule(name))
        assert Cut(model, images(1, 128), stride).activations.shape[-2:] == (128 // stride, 128 // stride)


def test_strides_of_other_networks_of_a_family():
    assert find_layer(models.resnet18(), 8)[0] == "layer2"
    assert find_layer(models.densenet121(), 32)[0] == "features.norm5"


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layr4", "'layr4'.*did you mean 'layer4'"),
        ("", "no such module"),
        (nn.ReLU(), "not inside the model"),
        (7, r"layer 7: no stage.*known are \[4, 8, 16, 32\]"),
    ],
)
def test_layers_that_are_not_there(layer, message):
    with pytest.raises(ValueError, match=message):
        find_layer(models.resnet18(), layer)


def test_strides_are_not_guessed():
    with pytest.raises(ValueError, match="name a module"):
        find_layer(small(True), 32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (images()[0], r"pass image\[None\]"),
        (images()[:0], "at least one image"),
        ((images() * 255).byte(), "divide 8-bit values by 255"),
        (images() * 2 - 1, r"expected \[0, 1\]; normalise in the model"),
        (torch.stack([images()[0], torch.full((3, 64, 64), torch.nan)]), "infinity in image 1"),
    ],
)
def test_images_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        check_images(given)


def test_brighter_images_where_they_are_allowed():
    check_images(images() * 1.1, brightest=1.1)
    with pytest.raises(ValueError, match=r"expected \[0, 1.1\]"):
        check_images(images() * 2, brightest=1.1)


def test_train_mode_and_odd_logits():
    model = small(pooled=True)
    model[2].train()
    with pytest.raises(ValueError, match=r"module '2' is in train mode.*model.eval\(\)"):
        check_eval(model)
    with pytest.raises(ValueError, match=r"expected logits \(N, K\), got shape \(1, 4, 6, 6\)"):
        check_logits(torch.zeros(1, 4, 6, 6))
    with pytest.raises(ValueError, match="got tuple"):
        check_logits((torch.zeros(1, 4),))
    with pytest.raises(ValueError, match="logits hold NaN"):
        check_logits(torch.full((1, 2), torch.nan))
    with pytest.raises(ValueError, match="no convolution"):
        last_block(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval(), images(1, 8))


def test_images_take_the_type_of_the_model():
    assert prepare(small(True), np.zeros((1, 3, 8, 8), np.float32)).dtype == torch.float64
