"""The formulas, on numbers that can be checked on paper."""

import pytest
import torch

from helpers.explain.cams import GRADIENT_CAMS, eigen_grad_cam, first_component, grad_cam, grad_cam_plus_plus, hirescam

A = torch.tensor([[4.0, 1.0], [1.0, 0.0]])
W = torch.tensor([[-1.0, 4.0], [1.0, 0.0]])
BIAS = 0.5


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_smallest_failure_of_grad_cam():
    activations, gradients = A[None, None], W[None, None]
    score = (A * W).sum().item() + BIAS
    faithful, averaged = hirescam(activations, gradients)[0], grad_cam(activations, gradients)[0]
    assert score == 1.5
    assert faithful.tolist() == [[-4, 4], [1, 0]] and faithful.sum().item() + BIAS == score
    assert averaged.tolist() == [[4, 1], [1, 0]] and averaged.sum().item() + BIAS == 6.5


def test_two_feature_maps_and_a_rectangular_grid():
    activations = torch.tensor([[[[1.0, 2.0, 3.0]], [[10.0, 0.0, -10.0]]]])
    gradients = torch.tensor([[[[3.0, 0.0, 0.0]], [[0.0, 0.0, 6.0]]]])
    assert grad_cam(activations, gradients).tolist() == [[[21.0, 2.0, -17.0]]]
    assert hirescam(activations, gradients).tolist() == [[[3.0, 0.0, -60.0]]]


def test_grad_cam_plus_plus_on_paper():
    """Sum of A = 6. Where g = 2: alpha = 4 / (8 + 8 * 6) = 1/14, weight 2/14; g = -1: cut off; g = 0: nothing."""
    activations, gradients = torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([[[[2.0, -1.0, 0.0]]]])
    found = grad_cam_plus_plus(activations.double(), gradients.double(), epsilon=0)
    torch.testing.assert_close(found, activations.double()[:, 0] / 7)


def test_epsilon_counts_where_gradients_are_small():
    activations, gradients = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 1e-3)
    exact, library = (grad_cam_plus_plus(activations, gradients, epsilon=e).item() for e in (0, 1e-6))
    assert exact == pytest.approx(1e-3 / 2.001, rel=1e-5)
    assert library == pytest.approx(1e-3 / 3.001, rel=1e-3)


@pytest.mark.parametrize("method", [grad_cam, hirescam])
def test_maps_are_linear_in_gradients(method):
    activations, gradients = random(2, 3, 5, 4, 4)
    torch.testing.assert_close(method(activations, -2 * gradients), -2 * method(activations, gradients))


@pytest.mark.parametrize("combine", [None, first_component])
@pytest.mark.parametrize("method", GRADIENT_CAMS.values(), ids=GRADIENT_CAMS)
def test_maps_are_blind_to_the_order_of_channels(method, combine):
    activations, gradients = random(2, 3, 5, 4, 4)
    options = {} if combine is None else {"combine": combine}
    whole = method(activations, gradients, **options)
    assert whole.shape == (3, 4, 4)
    order = [3, 1, 4, 0, 2]
    torch.testing.assert_close(method(activations[:, order], gradients[:, order], **options), whole)


def test_constant_gradients_make_both_maps_equal():
    activations = random(2, 5, 3, 3)
    gradients = torch.arange(10.0).double().reshape(2, 5, 1, 1).expand_as(activations)
    torch.testing.assert_close(grad_cam(activations, gradients), hirescam(activations, gradients))


@pytest.mark.parametrize("channels", [3, 40])
def test_first_component_is_that_of_the_singular_value_decomposition(channels):
    """With fewer channels than positions, and with more."""
    terms = random(4, channels, 3, 5)
    found = first_component(terms)
    for map_found, term in zip(found, terms, strict=True):
        x = term.flatten(1).T
        x = x - x.mean(0)
        _, values, directions = torch.linalg.svd(x, full_matrices=False)
        projected = x @ directions[0]
        projected = projected * torch.sign((projected * x.sum(1)).sum())
        torch.testing.assert_close(map_found.flatten(), projected, rtol=1e-6, atol=1e-8)
        assert map_found.mean().abs() < 1e-9
        torch.testing.assert_close(map_found.norm(), values[0])


def test_the_sign_agrees_with_hirescam():
    activations, gradients = random(2, 50, 6, 4, 4)
    eigen, faithful = eigen_grad_cam(activations, gradients).flatten(1), hirescam(activations, gradients).flatten(1)
    faithful = faithful - faithful.mean(1, keepdim=True)
    assert ((eigen * faithful).sum(1) >= 0).all()
    torch.testing.assert_close(eigen_grad_cam(activations, -gradients).flatten(1), -eigen)


def test_a_flat_map_stays_flat():
    assert (eigen_grad_cam(torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2)) == 0).all()
