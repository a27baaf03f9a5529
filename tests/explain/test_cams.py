"""The formulas, on numbers that can be checked on paper."""

import pytest
import torch

from helpers.explain.cams import GRADIENT_CAMS, grad_cam, hirescam

A = torch.tensor([[4.0, 1.0], [1.0, 0.0]])
W = torch.tensor([[-1.0, 4.0], [1.0, 0.0]])
BIAS = 0.5


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


@pytest.mark.parametrize("method", GRADIENT_CAMS.values(), ids=GRADIENT_CAMS)
def test_maps_are_linear_in_gradients_and_blind_to_the_order_of_channels(method):
    activations, gradients = torch.randn(2, 3, 5, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    whole = method(activations, gradients)
    assert whole.shape == (3, 4, 4)
    torch.testing.assert_close(method(activations, -2 * gradients), -2 * whole)
    order = [3, 1, 4, 0, 2]
    torch.testing.assert_close(method(activations[:, order], gradients[:, order]), whole)


def test_constant_gradients_make_both_maps_equal():
    activations = torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    gradients = torch.arange(10.0).double().reshape(2, 5, 1, 1).expand_as(activations)
    torch.testing.assert_close(grad_cam(activations, gradients), hirescam(activations, gradients))
