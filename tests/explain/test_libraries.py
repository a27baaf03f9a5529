"""The methods taken from the libraries: what they return, and what they leave behind."""

import captum.attr
import numpy as np
import pytest
import torch
from pytorch_grad_cam import EigenCAM, LayerCAM, XGradCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from helpers.explain import libraries
from helpers.explain.cut import Cut
from helpers.models.classifiers import STAGES
from tests.explain.networks import images, network, state_of

LIBRARY = {"LayerCAM": LayerCAM, "XGrad-CAM": XGradCAM, "Eigen-CAM": EigenCAM}


@pytest.mark.parametrize("method", libraries.CAMS)
def test_cams_are_those_of_grad_cam_before_its_scaling(method):
    model, target = network("googlenet"), torch.tensor([1, 3])
    cut = Cut(model, images(), 16)
    raw = libraries.CAMS[method](cut.activations, cut.gradients(target)).numpy()
    with LIBRARY[method](model, [model.inception4e]) as library:
        theirs = library(images(), [ClassifierOutputTarget(k) for k in (1, 3)])
    assert raw.shape == (2, 4, 4)
    ours = scale_cam_image(scale_cam_image(np.maximum(raw, 0), (64, 64)))
    assert np.abs(ours - theirs).max() <= 1e-4


@pytest.mark.parametrize("method", libraries.ATTRIBUTIONS)
@pytest.mark.parametrize("architecture", STAGES)
def test_attributions_run_on_every_network_and_leave_it_as_it_was(architecture, method):
    model = network(architecture)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before = state_of(model)
    found = libraries.ATTRIBUTIONS[method](model, images(1), 2)
    assert found.shape == (1, 64, 64) and torch.isfinite(found).all() and found.std() > 0
    assert state_of(model) == before and (next(model.parameters()).grad == 1).all()
    next(model.parameters()).grad = None


class Reused(nn.Module):
    """One ReLU in two places, and one that is no module."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), nn.ReLU(inplace=True)

    def forward(self, x):
        return torch.relu(self.relu(self.two(self.relu(self.one(x)))) - 0.1).mean((2, 3))


def test_deep_lift_adds_up_also_where_a_relu_is_used_twice():
    torch.manual_seed(0)
    model, image = Reused().eval(), images(1, 12)
    found = libraries.deep_lift(model, image, 1)
    with torch.no_grad():
        gain = (model(image) - model(torch.zeros_like(image)))[0, 1]
    torch.testing.assert_close(found.sum(), gain, rtol=1e-4, atol=1e-6)


def test_guided_backprop_is_that_of_captum_where_captum_can_do_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))
    theirs = captum.attr.GuidedBackprop(model).attribute(images(1, 12), 0).sum(1)
    torch.testing.assert_close(libraries.guided_backprop(model.eval(), images(1, 12), 0), theirs)
