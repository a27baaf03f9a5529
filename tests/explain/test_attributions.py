"""Pixel attributions: axioms, seeds, batches, and captum itself."""

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

from helpers.explain.attributions import gradient_shap, integrated_gradients, saliency
from tests.explain.networks import images, network


class Product(nn.Module):
    """One logit: the product of the two pixels; its Integrated Gradients from 0 are half the product each."""

    def forward(self, x):
        return x.flatten(1).prod(1)[:, None]


TWO = torch.tensor([[[[0.5, 0.8]]]])


def test_on_paper():
    assert saliency(Product(), TWO, torch.tensor([0])).tolist() == [[[pytest.approx(0.8), 0.5]]]
    found = integrated_gradients(Product(), TWO, torch.tensor([0]))
    np.testing.assert_allclose(found, [[[0.2, 0.2]]], atol=1e-6)
    halfway = integrated_gradients(Product(), TWO, torch.tensor([0]), baseline=torch.tensor([[[[0.5, 0.0]]]]))
    np.testing.assert_allclose(halfway, [[[0.0, 0.4]]], atol=1e-6)


def smooth():
    """A network without kinks, in double precision: the integral is exact."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, 2), nn.SiLU(), nn.Conv2d(8, 8, 3, 2), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 225, 4)
    return nn.Sequential(*layers).double().eval()


@pytest.mark.parametrize("baseline", [0.0, 0.5, images(1, seed=5).double()])
def test_integrated_gradients_are_complete(baseline):
    model, given, targets = smooth(), images(2).double(), torch.tensor([1, 3])
    found = integrated_gradients(model, given, targets, 50, baseline, batch=20).sum((1, 2))
    with torch.no_grad():
        gain = model(given) - model(torch.as_tensor(baseline).expand(given.shape).double())
    torch.testing.assert_close(found, gain[[0, 1], targets], rtol=1e-9, atol=1e-9)


def test_batches_change_no_map():
    model, given, targets = smooth(), images(3).double(), torch.tensor([0, 1, 2])
    whole = integrated_gradients(model, given, targets, 8)
    torch.testing.assert_close(integrated_gradients(model, given, targets, 8, batch=6), whole, rtol=1e-9, atol=1e-12)
    one, other = (gradient_shap(model, given[:1], 1, seed=4, batch=batch) for batch in (1, 5))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_gradient_shap_is_that_of_captum_with_its_seed():
    model, given = network("resnet101"), images(1)
    baselines = torch.rand(7, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    ours = gradient_shap(model, given, 2, samples=4, noise=0.1, baselines=baselines, seed=3)
    torch.manual_seed(3)
    np.random.seed(3)
    method = captum.attr.GradientShap(model)
    theirs = method.attribute(given, baselines, n_samples=4, stdevs=0.1, target=2).sum(1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_seeds():
    """Equal seeds, equal maps; other seeds, other maps; the global generators go on as if nothing had been drawn."""
    model, given = network("mobilenet_v2"), images(1)
    torch.manual_seed(8)
    np.random.seed(8)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(8)
    np.random.seed(8)
    one, same, other = (gradient_shap(model, given, 0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.allclose(one, other)
    assert (torch.rand(1), np.random.rand()) == expected


def test_without_noise_from_the_image_itself_nothing_is_attributed():
    found = gradient_shap(network("mobilenet_v2"), images(1), 0, noise=0.0, baselines=images(1))
    assert (found == 0).all()
