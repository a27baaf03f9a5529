r"""Class activation maps as formulas on a layer's activations and the gradients there.

Every function takes `activations` and `gradients` (N, F, h, w), the gradients being those of the target's logit, and
returns raw, signed maps (N, h, w). No ReLU, scaling or upsampling: that is display, see `helpers.explain.heatmaps`.
"""

from __future__ import annotations

import torch


def grad_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    r"""Grad-CAM: every feature map weighted with its average gradient.

    .. math:: M = \sum_f \alpha_f A^f, \qquad \alpha_f = \frac{1}{hw} \sum_{i,j} \frac{\partial s}{\partial A^f_{ij}}

    Averaging can give weight to places that lowered the logit, so in general the map does not sum to it.

    References
    ----------
    .. [1] Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization,
       ICCV 2017, arXiv:1610.02391.
    """
    return (gradients.mean((2, 3), keepdim=True) * activations).sum(1)


def hirescam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    r"""HiResCAM: gradient times activation, position by position.

    .. math:: M_{ij} = \sum_f \frac{\partial s}{\partial A^f_{ij}} A^f_{ij}

    Where exactly one linear layer follows the chosen layer, the map sums to the logit less the class's bias. If global
    average pooling stands between them, the gradient is constant over positions, and this is Grad-CAM.

    References
    ----------
    .. [1] Draelos and Carin, Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
       networks, arXiv:2011.08891.
    """
    return (gradients * activations).sum(1)


GRADIENT_CAMS = {"Grad-CAM": grad_cam, "HiResCAM": hirescam}
