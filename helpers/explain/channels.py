"""Weights of feature maps without gradients: the score without each (Ablation-CAM), or through each (Score-CAM)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate

from helpers.explain.cut import Cut
from helpers.explain.inference import CACHED, SHARE, gathered, in_cache, largest
from helpers.explain.sampling import sampled_scores

TAIL_CACHED = 2**25  # bytes of a batch of replays on the CPU, which are so short that the way to main memory counts


def ablation_weights(cut: Cut, i: int, targets: torch.Tensor, memory: int = 2**28) -> torch.Tensor:
    r"""Ablation-CAM: the share of the score that is lost when a feature map is set to zero.

    .. math:: w_f = \frac{s - s_{A^f = 0}}{s}

    The rest of the network runs once per feature map. A negative score turns the signs of all weights around, and
    hence the map: that is the method's definition. grad-cam 1.5.7 sets a feature map to zero only where the smallest
    activation of the layer is 0; else it sets it to that minimum less 1e7, unlike the paper.

    Parameters
    ----------
    cut : made with replay=True
    i : which of its images
    targets : (T,) class indices
    memory : bytes that a batch may take

    Returns
    -------
    (T, F) weights; NaN or infinity for a score of exactly 0

    References
    ----------
    .. [1] Desai and Ramaswamy, Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free
       Localization, WACV 2020.
    """
    whole = cut.activations[i]
    n = len(whole)
    each, fitting = SHARE * cut.bytes, in_cache(memory, TAIL_CACHED, whole.device)
    # to ask for the same memory again and again costs more than to fill it
    buffer = whole.new_empty((min(n, max(1, fitting // each)), *whole.shape)).contiguous(
        memory_format=torch.channels_last
    )

    def without(part):
        channels = torch.arange(part.start, part.stop, device=whole.device)
        ablated = buffer.copy_(whole)
        ablated[channels - part.start, channels] = 0
        return cut.replay(ablated, i)[:, targets]

    scores, score = gathered(without, n, each, fitting), cut.logits[i, targets][:, None]
    return (score - scores.T.to(score)) / score


def masks(activations: torch.Tensor, size) -> torch.Tensor:
    """Feature maps (F, h, w), each enlarged to (F, H, W) bilinearly, corners on corners, and scaled to [0, 1]."""
    large = interpolate(activations[None], tuple(size), mode="bilinear", align_corners=True)[0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    return (large - low) / (high - low + 1e-8)


def masked_logits(
    network: nn.Module, image: torch.Tensor, activations: torch.Tensor, channels: torch.Tensor, memory: int
) -> torch.Tensor:
    """Logits (len(channels), K) of an image (1, C, H, W) multiplied with the mask of one feature map at a time."""
    each = SHARE * max(largest(network, image), image.numel() * image.element_size())

    def seen_through(part):
        masked = image * masks(activations[channels[part]], image.shape[-2:])[:, None]
        return network(masked.contiguous(memory_format=torch.channels_last)).float()

    with torch.inference_mode():
        return gathered(seen_through, len(channels), each, in_cache(memory, CACHED, image.device))


class Scored(NamedTuple):
    """Weights of Score-CAM, and what they cost."""

    weights: torch.Tensor  # (T, F), each row sums to 1
    images: int  # that were scored
    error: np.ndarray  # (T,) estimated, as a share of the map; 0 where every feature map was scored


def score_weights(
    network: nn.Module,
    image: torch.Tensor,
    activations: torch.Tensor,
    targets: torch.Tensor,
    memory: int = 2**28,
    tolerance: float | None = None,
    seed: int = 0,
) -> Scored:
    r"""Score-CAM: softmax, over feature maps, of the score that the image has when seen through each of them.

    .. math:: w_f = \frac{e^{s(x \cdot H^f)}}{\sum_k e^{s(x \cdot H^k)}}, \qquad
              H^f = \frac{U^f - \min U^f}{\max U^f - \min U^f + 10^{-8}}

    with :math:`U^f` the feature map enlarged to the image. Flat feature maps give a black image, scored once.

    Parameters
    ----------
    network : of `inference.packed`, (N, C, H, W) -> logits (N, K)
    image : (1, C, H, W)
    activations : (F, h, w)
    targets : (T,) class indices
    memory : bytes that a batch may take
    tolerance, seed : score only some feature maps, see `sampling.sampled_scores`; None scores all

    References
    ----------
    .. [1] Wang et al., Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks, CVPR workshops
       2020, arXiv:1910.01279.
    """
    flat = activations.amax((1, 2)) == activations.amin((1, 2))
    alive, blank = torch.nonzero(~flat)[:, 0], torch.nonzero(flat)[:1, 0]
    scores = activations.new_empty((len(flat), len(targets)))
    count, error = len(alive), np.zeros(len(targets))

    def score(channels):
        return masked_logits(network, image, activations, channels, memory)[:, targets].to(scores)

    if len(blank):
        scores[flat] = score(blank)
    if tolerance is None or not count:
        scores[alive] = score(alive) if count else 0
    else:
        maps = activations[alive].flatten(1).double().cpu().numpy()
        low, high = maps.min(1, keepdims=True), maps.max(1, keepdims=True)
        found, count, error = sampled_scores(
            lambda part: score(alive[torch.from_numpy(part).to(alive.device)]).double().cpu().numpy(),
            (maps - low) / (high - low), maps, tolerance, seed,
        )  # fmt: skip
        scores[alive] = torch.from_numpy(found).to(scores)
    return Scored(scores.T.softmax(1), count + len(blank), error)
