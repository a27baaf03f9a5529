"""AxialNet: a network for CT volumes whose HiResCAM is what it used, and a loss that says where it may look."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torchvision import models

from helpers.models.classifiers import read_weights

HEADS = ("mean", "max", "pooled")
CAMS = ("HiResCAM", "Grad-CAM")
NORMS = ("softplus", "l2")
PAPER_CHANNELS = (64, 32, 16, 16)
IMAGENET_MEAN = 0.449


@contextmanager
def _running_statistics_at_rest(module):
    """Batch normalisation does not count a batch twice when checkpointing runs it again."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def resnet_trunk(weights: str = "random", seed: int = 0) -> nn.Sequential:
    """ResNet-18 without its last two layers: (N, 3, 420, 420) -> (N, 512, 14, 14).

    Parameters
    ----------
    weights : "random", "imagenet" (torchvision's, as in the paper), or the path of a state dict of ResNet-18
    seed : of the random numbers
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = models.resnet18(weights="IMAGENET1K_V1" if weights == "imagenet" else None)
    if weights not in ("random", "imagenet"):
        state = {name: value for name, value in read_weights(weights).items() if not name.startswith("fc.")}
        missing, unexpected = made.load_state_dict(state, strict=False)
        if unexpected or set(missing) != {"fc.weight", "fc.bias"}:
            raise ValueError(f"weights: {weights} is no state dict of ResNet-18: see {(unexpected + missing)[:3]}")
    stem = nn.Sequential(made.conv1, made.bn1, made.relu, made.maxpool)
    return nn.Sequential(stem, *made.layer1, *made.layer2, *made.layer3, *made.layer4)


def small_trunk(channels=(16, 24), strides=(2, 3), pool: int = 1) -> nn.Sequential:
    """Two convolutions for small slices: the first starts as a set of CT windows, the second finds patterns in them.

    Channel c of the first starts as :math:`10 \\, |\\bar x - t_c|_+`, with the mean of `strides[0]` squared pixels in
    three slices, thresholds over the range of brightness, and the other sign in every fourth channel. From a random
    start a network this small does not find the windows in the few steps it is trained for.

    Parameters
    ----------
    channels : of the two
    strides : of the first convolution, and of the average pooling behind the second
    pool : a further average pooling
    """
    first = nn.Conv2d(3, channels[0], strides[0], strides[0])
    sign = torch.where(torch.arange(channels[0]) % 4 == 3, -10.0, 10.0)
    with torch.no_grad():
        first.weight *= 0.1
        first.weight += sign[:, None, None, None] / (3 * strides[0] ** 2)
        first.bias.copy_(-sign * (torch.linspace(0.05, 0.95, channels[0]) - IMAGENET_MEAN))
    second = nn.Conv2d(channels[0], channels[1], 3, padding=1, bias=False)
    second = nn.Sequential(second, nn.BatchNorm2d(channels[1]), nn.ReLU(), nn.AvgPool2d(strides[1] * pool))
    return nn.Sequential(nn.Sequential(first, nn.ReLU()), second)


class SliceNet(nn.Module):
    r"""What AxialNet does with each group of three slices: (N, 3, h, w) in [0, 1] -> scores (N, K).

    .. math:: s_m = b_m + \sum_{f,i,j} w_{mfij} \, x_{fij}

    x are the activations of the last ReLU (`convolutions`, the layer of the maps). The last layer is one fully
    connected layer, written as a convolution over the whole grid; where `pooled`, it stands behind a global average.
    """

    def __init__(self, trunk, in_channels, n_labels, side, channels, kernel, padding, pooled):
        super().__init__()
        self.trunk, self.pooled, self.checkpointing = trunk, pooled, False
        layers = []
        for width in channels:
            layers += [nn.Conv2d(in_channels, width, kernel, padding=padding), nn.ReLU()]
            in_channels = width
        self.convolutions = nn.Sequential(*layers)
        with torch.no_grad():
            found = trunk.eval()(torch.zeros(1, 3, side, side)).shape
            trunk.train()
        lost = (kernel - 1 - 2 * padding) * len(channels)
        self.grid = found[-1] - lost
        if found[1] != layers[0].in_channels or self.grid < 1:
            wanted = layers[0].in_channels
            raise ValueError(f"trunk: {side} px become {tuple(found[1:])}; expected {wanted} channels and "
                             f"more than {lost} positions a side")  # fmt: skip
        self.fc = nn.Conv2d(in_channels, n_labels, 1 if pooled else self.grid)

    def features(self, slices):
        """(N, 3, h, w) -> (N, F, i, j)"""
        x = slices - IMAGENET_MEAN
        for block in self.trunk:
            if self.checkpointing and torch.is_grad_enabled():
                again = lambda block=block: (nullcontext(), _running_statistics_at_rest(block))  # noqa: E731
                x = checkpoint(block, x, use_reentrant=False, context_fn=again)
            else:
                x = block(x)
        return self.convolutions(x)

    def scores(self, features):
        """(N, F, i, j) -> (N, K)"""
        features = features.mean((2, 3), keepdim=True) if self.pooled else features
        return self.fc(features)[:, :, 0, 0]

    def forward(self, slices):
        return self.scores(self.features(slices))


class AxialNet(nn.Module):
    r"""A multi-label network for volumes: every group of three slices gets scores, the volume their mean.

    .. math:: s_m = \frac{1}{H} \sum_h \Big( b_m + \sum_{f,i,j} w_{mfij} \, x_{hfij} \Big)

    Only sums stand behind x, so HiResCAM, :math:`\sum_f w_{mfij} x_{hfij} / H`, adds up to the score less b_m.

    Parameters
    ----------
    n_labels : K
    trunk : "resnet18" (the paper's), "small", or a Sequential (N, 3, side, side) -> (N, `in_channels`, ., .)
    side : height and width of the slices in pixels
    channels, kernel, padding : of the convolutions behind the trunk; the paper's four do not pad, so that 14 x 14
        positions become 6 x 6
    head : "mean"; "max" over the slices (a comparison of the paper); "pooled": mean of global averages, a CAM network
    weights : start of the trunk "resnet18", see `resnet_trunk`
    in_channels : of a trunk handed over
    seed : of the random numbers

    References
    ----------
    .. [1] Draelos and Carin, Use HiResCAM instead of Grad-CAM, arXiv 2011.08891.
    """

    def __init__(self, n_labels, trunk="resnet18", side=420, channels=PAPER_CHANNELS, kernel=3, padding=0,
                 head="mean", weights="random", in_channels=None, seed=0):  # fmt: skip
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"head: expected one of {list(HEADS)}, got {head!r}")
        if isinstance(trunk, str) and trunk not in ("resnet18", "small"):
            raise ValueError(f"trunk: expected 'resnet18', 'small' or a module, got {trunk!r}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if trunk == "resnet18":
                trunk, in_channels = resnet_trunk(weights, seed), 512
            elif trunk == "small":
                trunk, in_channels = small_trunk(), 24
            self.slices = SliceNet(trunk, in_channels, n_labels, side, channels, kernel, padding, head == "pooled")
        self.head = head

    def use_checkpointing(self, on: bool = True) -> AxialNet:
        """Trade time for memory: activations inside a block of the trunk are computed again in the backward pass."""
        self.slices.checkpointing = on
        return self

    def features(self, volumes):
        """x: (N, H, 3, h, w) in [0, 1] -> (N, H, F, i, j)"""
        if volumes.dim() != 5 or volumes.shape[2] != 3:
            raise ValueError(f"volumes: expected (N, H, 3, h, w), groups of three slices, got {tuple(volumes.shape)}")
        return self.slices.features(volumes.flatten(0, 1)).unflatten(0, volumes.shape[:2])

    def slice_scores(self, features):
        """(N, H, F, i, j) -> (N, H, K): what every group of slices says; its largest name the top slices of a label."""
        return self.slices.scores(features.flatten(0, 1)).unflatten(0, features.shape[:2])

    def logits(self, features):
        """(N, H, F, i, j) -> (N, K)"""
        scores = self.slice_scores(features)
        return scores.amax(1) if self.head == "max" else scores.mean(1)

    def forward(self, volumes):
        return self.logits(self.features(volumes))

    def attention(self, features, cam: str = "HiResCAM"):
        r"""H times the CAM of every label, differentiable: (N, H, F, i, j) -> (N, K, H, i, j).

        .. math:: HiResCAM: \; H \sum_f \frac{\partial s_m}{\partial x_{hfij}} x_{hfij} \qquad
                  GradCAM: \; H \sum_f \Big\langle \frac{\partial s_m}{\partial x_f} \Big\rangle_{hij} x_{hfij}

        in closed form: for the head "mean" the weights w, and their mean over the grid. No bias, no ReLU, no scaling.
        """
        if cam not in CAMS:
            raise ValueError(f"cam: expected one of {list(CAMS)}, got {cam!r}")
        weight = self.slices.fc.weight
        groups, grid, best = features.shape[1], features.shape[-1], None
        if self.head == "max" and cam == "HiResCAM":
            best = functional.one_hot(self.slice_scores(features).argmax(1), groups)[..., None, None]
        if self.head == "pooled":
            weight = weight / grid**2
        elif cam == "Grad-CAM":
            weight = weight.mean((2, 3), keepdim=True)
        with torch.autocast(features.device.type, enabled=False):
            equation = "mfij,nhfij->nmhij" if weight.shape[-1] > 1 else "mfxy,nhfij->nmhij"
            maps = torch.einsum(equation, weight, features.to(weight.dtype))
        return maps if best is None else maps * groups * best

    def cams(self, volumes, cam: str = "HiResCAM"):
        """Raw, signed maps (N, K, H, i, j) and logits (N, K) of volumes, without gradients, one volume at a time."""
        with torch.no_grad():
            found = [self.features(volume[None]) for volume in volumes]
            maps = torch.cat([self.attention(x, cam) / x.shape[1] for x in found])
            return maps, torch.cat([self.logits(x) for x in found])


def mask_loss(logits, labels, attention, allowed, weight=1 / 3, norm="softplus"):
    r"""Cross-entropy plus a price for attention outside the allowed region.

    .. math:: L = \frac{1}{K} \sum_m BCE(s_m, y_m) + \lambda \, P(F), \qquad
              F = \{(m,h,i,j) : y_m = 0 \text{ or } (h,i,j) \text{ is not allowed for } m\}

    "softplus", the paper's: P is the mean of :math:`\log(1 + e^a)` over F, so only attention *for* a label costs much,
    and nothing is asked inside the region. "l2": P is the Euclidean norm of a over F, which punishes both signs. The
    price of a batch is the mean over its volumes.

    Parameters
    ----------
    logits : (N, K)
    labels : (N, K) of 0 and 1
    attention : (N, K, H, i, j), from `AxialNet.attention`, of either CAM
    allowed : (N, K, H, i, j) bool; the row of an absent label is forbidden everywhere, whatever stands there
    weight : lambda; 0 leaves the cross-entropy
    norm : "softplus" or "l2"

    References
    ----------
    .. [1] Draelos and Carin, Explainable multiple abnormality classification of chest CT volumes, Artificial
       Intelligence in Medicine 132, 102372, 2022.
    """
    if norm not in NORMS:
        raise ValueError(f"norm: expected one of {list(NORMS)}, got {norm!r}")
    if weight < 0:
        raise ValueError(f"weight: expected a number from 0 up, got {weight}")
    if labels.shape != logits.shape or attention.shape[:2] != logits.shape or allowed.shape != attention.shape:
        raise ValueError(f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}, attention "
                         f"{tuple(attention.shape)}, allowed {tuple(allowed.shape)}: expected (N, K) twice and "
                         "(N, K, H, i, j) twice")  # fmt: skip
    entropy = functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
    if not weight:
        return entropy
    forbidden = ~(allowed.bool() & labels.bool()[:, :, None, None, None])
    if norm == "softplus":
        inside = (functional.softplus(attention) * forbidden).flatten(1).sum(1)
        price = inside / forbidden.flatten(1).sum(1).clamp(min=1)
    else:
        price = torch.linalg.vector_norm((attention * forbidden).flatten(1), dim=1)
    return entropy + weight * price.mean()
