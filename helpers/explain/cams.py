r"""Class activation maps as formulas on a layer's activations and the gradients there.

Every function takes `activations` and `gradients` (N, F, h, w), the gradients being those of the target's logit, and
returns raw, signed maps (N, h, w). No ReLU, scaling or upsampling: that is display, see `helpers.explain.heatmaps`.
`combine` makes one map of F weighted feature maps: their sum, or, as grad-cam's eigen_smooth, their `first_component`.
"""

from __future__ import annotations

import torch


def total(terms: torch.Tensor) -> torch.Tensor:
    """Sum over the feature maps (N, F, h, w)."""
    return terms.sum(1)


def grad_cam(activations: torch.Tensor, gradients: torch.Tensor, combine=total) -> torch.Tensor:
    r"""Grad-CAM: every feature map weighted with its average gradient.

    .. math:: M = \sum_f \alpha_f A^f, \qquad \alpha_f = \frac{1}{hw} \sum_{i,j} \frac{\partial s}{\partial A^f_{ij}}

    Averaging can give weight to places that lowered the logit, so in general the map does not sum to it.

    References
    ----------
    .. [1] Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization,
       ICCV 2017, arXiv:1610.02391.
    """
    return combine(gradients.mean((2, 3), keepdim=True) * activations)


def grad_cam_plus_plus(
    activations: torch.Tensor, gradients: torch.Tensor, combine=total, epsilon: float = 1e-6
) -> torch.Tensor:
    r"""Grad-CAM++: positive gradients only, each with a weight of its own.

    .. math:: M = \sum_f w_f A^f, \qquad w_f = \sum_{i,j} \alpha^f_{ij} \max(g^f_{ij}, 0), \qquad
              \alpha^f_{ij} = \frac{(g^f_{ij})^2}{2 (g^f_{ij})^2 + (g^f_{ij})^3 \sum_{a,b} A^f_{ab} + \epsilon}

    with :math:`g = \partial s / \partial A`, and :math:`\alpha = 0` where g = 0. The paper derives :math:`\alpha` for
    exp(s) in the place of s, which turns its second and third derivatives into these powers; it holds where the rest of
    the network is linear. Its :math:`\epsilon` is 0; grad-cam adds 1e-6, which counts where gradients are small
    (behind global pooling of 7 x 7 positions they are about 1e-3).

    References
    ----------
    .. [1] Chattopadhay et al., Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep Convolutional
       Networks, WACV 2018, arXiv:1710.11063.
    """
    square = gradients**2
    alpha = square / (2 * square + activations.sum((2, 3), keepdim=True) * square * gradients + epsilon)
    alpha = torch.where(gradients == 0, 0, alpha)
    return combine((alpha * gradients.clamp(min=0)).sum((2, 3), keepdim=True) * activations)


def hirescam(activations: torch.Tensor, gradients: torch.Tensor, combine=total) -> torch.Tensor:
    r"""HiResCAM: gradient times activation, position by position.

    .. math:: M_{ij} = \sum_f \frac{\partial s}{\partial A^f_{ij}} A^f_{ij}

    Where exactly one linear layer follows the chosen layer, the map sums to the logit less the class's bias. If global
    average pooling stands between them, the gradient is constant over positions, and this is Grad-CAM.

    References
    ----------
    .. [1] Draelos and Carin, Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
       networks, arXiv:2011.08891.
    """
    return combine(gradients * activations)


def eigen_grad_cam(activations: torch.Tensor, gradients: torch.Tensor, combine=None) -> torch.Tensor:
    r"""EigenGrad-CAM: first principal component of gradient times activation.

    .. math:: M = \bar X v_1, \qquad X_{(ij),f} = \frac{\partial s}{\partial A^f_{ij}} A^f_{ij}

    See `first_component` for its sign; `combine` changes nothing, for this map is a first component already.

    References
    ----------
    .. [1] Muhammad and Yeasin, Eigen-CAM: Class Activation Map using Principal Components, IJCNN 2020,
       arXiv:2008.00299; with gradients: Gildenblat et al., PyTorch library for CAM methods, 2021.
    """
    return first_component(gradients * activations)


def first_component(terms: torch.Tensor) -> torch.Tensor:
    r"""Projection of every position's F values on their first principal direction over all positions.

    .. math:: M = \bar X v_1, \qquad \bar X = X - \text{mean over positions}, \qquad X: (hw, F)

    :math:`v_1` is the first right singular vector of :math:`\bar X`. A singular vector has no sign of its own, and
    libraries return whichever the algorithm happens to give; here M is never negatively correlated with the sum of the
    terms, :math:`\sum_f X_f`, for gradient times activation that is HiResCAM.

    Parameters
    ----------
    terms : (N, F, h, w)

    Returns
    -------
    (N, h, w), of mean zero
    """
    # Of X X' (hw, hw) or X' X (F, F) the smaller one; its condition is the square of that of X, hence float64.
    x = terms.flatten(2).transpose(1, 2).double()
    x = x - x.mean(1, keepdim=True)
    if x.shape[1] <= x.shape[2]:
        values, vectors = torch.linalg.eigh(x @ x.mT)
        projected = vectors[..., -1] * values[..., -1:].clamp(min=0).sqrt()
    else:
        projected = (x @ torch.linalg.eigh(x.mT @ x).eigenvectors[..., -1:])[..., 0]
    agreement = (projected * x.sum(2)).sum(1, keepdim=True)
    projected = torch.where(agreement < 0, -projected, projected)
    return projected.reshape(len(terms), *terms.shape[2:]).to(terms.dtype)


GRADIENT_CAMS = {
    "Grad-CAM": grad_cam, "Grad-CAM++": grad_cam_plus_plus, "HiResCAM": hirescam, "EigenGrad-CAM": eigen_grad_cam
}  # fmt: skip
