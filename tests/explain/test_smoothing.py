"""Averaged heat maps against grad-cam's aug_smooth, eigen_smooth and several layers."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from helpers.explain.engine import explain
from helpers.explain.heatmaps import to_heatmap
from helpers.explain.smoothing import mean_heatmap
from tests.explain.networks import images, network, small

LIBRARY = {"Grad-CAM": GradCAM, "Grad-CAM++": GradCAMPlusPlus, "HiResCAM": HiResCAM}


@pytest.mark.parametrize("method", LIBRARY)
@pytest.mark.parametrize("layers", [["inception5b"], ["inception4e", "inception5b"], ["inception4c", "inception4d"]])
@pytest.mark.parametrize("aug_smooth", [False, True])
def test_as_grad_cam(method, layers, aug_smooth):
    model, given = deepcopy(network("googlenet")).double(), images(2, 96).double()
    with torch.no_grad():
        model.fc.weight.mul_(1e6)  # the library divides by the maximum + 1e-7, which counts where gradients are small
        targets = model(given).argmax(1).tolist()
    ours = mean_heatmap(model, given, method, targets, layers, aug_smooth)
    with LIBRARY[method](model, [model.get_submodule(layer) for layer in layers]) as library:
        theirs = library(given, [ClassifierOutputTarget(k) for k in targets], aug_smooth=aug_smooth)
    assert np.abs(ours - theirs).max() <= 1e-5


def test_eigen_smooth_up_to_the_sign():
    model = network("googlenet")
    with GradCAM(model, [model.inception4e]) as library:
        theirs = library(images(), [ClassifierOutputTarget(k) for k in (1, 3)], eigen_smooth=True)
    ours = mean_heatmap(model, images(), "Grad-CAM", [1, 3], [16], eigen_smooth=True)
    raw = explain(model, images(), "Grad-CAM", [1, 3], 16, eigen_smooth=True)["Grad-CAM"].values
    turned = to_heatmap(-raw, 64, scale="min-max")
    assert ours.shape == theirs.shape == (2, 64, 64)
    for image in range(2):
        assert min(np.abs(one[image] - theirs[image]).max() for one in (ours, turned)) <= 1e-3


def test_the_target_is_that_of_the_image_itself():
    model = network("mobilenet_v2")
    with torch.no_grad():
        predicted = model(images(3)).argmax(1)
    default = mean_heatmap(model, images(3), "Grad-CAM", aug_smooth=True)
    np.testing.assert_array_equal(default, mean_heatmap(model, images(3), "Grad-CAM", predicted, aug_smooth=True))


def test_flat_maps_are_left_out_and_nothing_is_left_of_flat_maps_alone():
    model = small(pooled=False)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(1.0)
        model[4].weight.fill_(0.1)
    assert np.isnan(mean_heatmap(model, images(2, 8), "Grad-CAM", 0, ["1"])).all()


def test_images_that_are_too_bright_are_an_error():
    with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
        mean_heatmap(network("mobilenet_v2"), images() * 1.05, "Grad-CAM")
