r"""Attributions of single pixels from gradients, through captum: raw, signed, summed over the colour channels.

Maps (N, H, W) are in units of the logit; those of Saliency in logit per unit of brightness.
"""

from __future__ import annotations

import captum.attr
import numpy as np
import torch


def saliency(model, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    r"""Saliency: how strongly the logit of a target (N,) answers to each pixel of an image (N, C, H, W).

    .. math:: M_{yx} = \sum_c \left| \frac{\partial s}{\partial x_{cyx}} \right|

    References
    ----------
    .. [1] Simonyan, Vedaldi and Zisserman, Deep Inside Convolutional Networks: Visualising Image Classification Models
       and Saliency Maps, ICLR workshop 2014, arXiv:1312.6034.
    """
    return captum.attr.Saliency(model).attribute(_differentiable(images), target=targets).sum(1)


def integrated_gradients(
    model,
    images: torch.Tensor,
    targets: torch.Tensor,
    steps: int = 50,
    baseline: float | torch.Tensor = 0.0,
    batch: int | None = None,
) -> torch.Tensor:
    r"""Integrated Gradients: gradients collected on the straight way from a baseline x' to the image x.

    .. math:: M_{yx} = \sum_c (x - x')_{cyx} \int_0^1 \frac{\partial s(x' + \alpha (x - x'))}{\partial x_{cyx}} d\alpha

    The map sums to s(x) - s(x'), up to the error of the numerical integration (Gauss-Legendre).

    Parameters
    ----------
    steps : points on the way
    baseline : one number, or a tensor that fits the images
    batch : points computed at once, at least one per image

    References
    ----------
    .. [1] Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, ICML 2017, arXiv:1703.01365.
    """
    method = captum.attr.IntegratedGradients(model)
    size = None if batch is None else max(batch, len(images))
    return method.attribute(images, baseline, targets, n_steps=steps, internal_batch_size=size).sum(1)


def gradient_shap(
    model,
    image: torch.Tensor,
    target: int,
    samples: int = 5,
    noise: float = 0.09,
    baselines: torch.Tensor | None = None,
    seed: int = 0,
    batch: int | None = None,
) -> torch.Tensor:
    r"""GradientShap: expected gradients between random baselines and noisy copies of one image (1, C, H, W).

    .. math:: M_{yx} = \frac{1}{n} \sum_{k=1}^n \sum_c (x + \varepsilon_k - x'_k)_{cyx} \,
              \frac{\partial s(x'_k + \alpha_k (x + \varepsilon_k - x'_k))}{\partial x_{cyx}}

    with :math:`\varepsilon_k \sim N(0, noise^2)`, :math:`\alpha_k \sim U(0, 1)` and :math:`x'_k` drawn from the
    baselines. Every image is given the same draws, so its map does not hang on the images beside it.

    Parameters
    ----------
    samples : n
    noise : standard deviation
    baselines : (n', C, H, W) to draw from; None draws `samples` of them from N(0, 0.001^2), as the study does
    seed : of every draw; the generators of NumPy and torch are left as they were
    batch : samples computed at once

    References
    ----------
    .. [1] Lundberg and Lee, A Unified Approach to Interpreting Model Predictions, NeurIPS 2017, arXiv:1705.07874.
    .. [2] Erion et al., Improving performance of deep learning models with axiomatic attribution priors and expected
       gradients, Nature Machine Intelligence 3, 2021.
    """
    state = np.random.get_state()
    devices = [image.device] if image.is_cuda else []
    with torch.random.fork_rng(devices):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed)
            if baselines is None:
                baselines = torch.randn(samples, *image.shape[1:]).to(image) * 0.001
            method = captum.attr.GradientShap(model)
            method.gradient_func = _in_batches(method.gradient_func, batch or samples)
            return method.attribute(image, baselines, n_samples=samples, stdevs=noise, target=target).sum(1)
        finally:
            np.random.set_state(state)


def _differentiable(images):
    return images.detach().clone().requires_grad_()  # captum warns where it has to ask for gradients itself


def _in_batches(gradients, size):
    """captum draws all samples at once, so that a map does not hang on the batch; gradients come piece by piece."""

    def in_batches(forward, inputs, target, arguments=None):
        (images,) = inputs
        pieces = [gradients(forward, _differentiable(piece), target, arguments) for piece in images.split(size)]
        return (torch.cat([piece for (piece,) in pieces]),)

    return in_batches
