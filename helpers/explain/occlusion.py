"""Occlusion: what the logit loses when a window of the image is covered, for windows everywhere."""

from __future__ import annotations

import torch
from torch import nn

from helpers.explain.incremental import Changed


def occlusion(
    network: nn.Module,
    image: torch.Tensor,
    targets: torch.Tensor,
    window: int,
    stride: int,
    baseline: float | torch.Tensor = 0.0,
    memory: int = 2**28,
) -> tuple[torch.Tensor, int]:
    r"""Mean loss of the logit over the windows that cover a pixel.

    .. math:: M_{yx} = \frac{1}{|W_{yx}|} \sum_{w \in W_{yx}} s(x) - s(x \text{ with the baseline in } w)

    Windows begin at 0, stride, 2 stride, ... until the image is covered; the last ones are cut off at its border.

    Parameters
    ----------
    network : of `inference.packed`, (N, C, H, W) -> logits (N, K)
    image : (1, C, H, W)
    targets : (T,) class indices
    window, stride : in pixels; the window is at least as long as the stride and at most as long as the image
    baseline : what covers the window: one number, or a tensor that fits the image
    memory : bytes that a batch may take

    Returns
    -------
    (T, H, W) map in units of the logit, and the number of covered images

    References
    ----------
    .. [1] Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, arXiv:1311.2901.
    """
    size = image.shape[-2:]
    if not 1 <= stride <= window <= min(size):
        raise ValueError(
            f"Occlusion: expected 1 <= stride <= window <= {min(size)} (the image), got {stride} and {window}"
        )
    sides = [range(0, side - window + stride, stride) for side in size]
    places = [(y, x) for y in sides[0] for x in sides[1]]
    covered = torch.as_tensor(baseline).to(image).expand(image.shape)[0]
    rows, columns = ([min(place[i], size[i] - window) for place in places] for i in (0, 1))
    patches = torch.empty(len(places), image.shape[1], window, window, device=image.device, dtype=image.dtype)
    for patch, (y, x), top, left in zip(patches, places, rows, columns, strict=True):
        inside = slice(top, top + window), slice(left, left + window)
        patch.copy_(image[0][:, *inside])
        patch[:, y - top :, x - left :] = covered[:, *inside][:, y - top :, x - left :]
    with torch.inference_mode():
        whole = network(image.contiguous(memory_format=torch.channels_last))[0, targets]
        left_over = Changed(network, image, memory).logits(patches, rows, columns)[:, targets]
    drop = (whole - left_over).T.reshape(len(targets), len(sides[0]), len(sides[1])).to(image)
    over = [torch.zeros(len(starts), side).to(image) for starts, side in zip(sides, size, strict=True)]
    for cover, starts in zip(over, sides, strict=True):
        for line, start in zip(cover, starts, strict=True):
            line[start : start + window] = 1
    summed = torch.einsum("yh,tyx,xw->thw", over[0], drop, over[1])
    return summed / torch.outer(over[0].sum(0), over[1].sum(0)), len(places)
