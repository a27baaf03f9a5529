"""Networks and images that several test modules explain."""

from functools import lru_cache

import torch
from torch import nn

from helpers.models.classifiers import STAGES, build

LAYERS = [(architecture, stride) for architecture in STAGES for stride in (32, 16)]


def images(n=2, size=64, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


@lru_cache(maxsize=12)
def network(architecture, seed=0):
    """One of the four with random weights; its batch statistics come from images, so that no map vanishes."""
    model = build(architecture, 4, "random", seed=seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.ones_(module.weight)
    with torch.no_grad():
        model.train()(images(8, seed=9))
    return model.eval()


def toy(bias=0.5):
    """The example on paper as a network: 4 x the image is A, and the head holds W."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.fill_(4.0)
        model[2].weight.copy_(torch.tensor([[-1.0, 4.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
        model[2].bias.copy_(torch.tensor([bias, 0.0]))
    return model.eval(), torch.tensor([[[[1.0, 0.25], [0.25, 0.0]]]])


def small(pooled):
    """Five feature maps, then one linear layer, behind global pooling or not."""
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1) if pooled else nn.Identity()
    head = nn.Linear(5 if pooled else 5 * 36, 3)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), pool, nn.Flatten(), head).double().eval()


def state_of(model):
    """Hooks, replaced forwards, flags and mode of every module."""
    return [
        (
            name, len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks),
            "forward" in module.__dict__, module.training, [p.requires_grad for p in module.parameters(False)],
            [p.grad is None for p in module.parameters(False)],
        )
        for name, module in model.named_modules()
    ]  # fmt: skip
