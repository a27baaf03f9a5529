"""A task whose evidence has a known place: two spots, and the class is where the brighter one lies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from helpers.explain.engine import explain

CLASSES = ("above", "below")
HEADS = {"flatten": (8, 1e-2), "pooling": (20, 2e-2)}  # epochs and learning rate that learn the task
TRAINING = 1000
SIDE, STRIDE = 40, 4  # of a picture, and of the grid of the network's last activations, in pixels
REACH = 7  # pixels around a spot within which a cell's centre counts as on it
WIDTH = 1.5  # standard deviation of a spot, in pixels
LAYER = "3"  # the last activations of the network
BATCH = 50


class Spots(NamedTuple):
    """N pictures with one spot above (index 0) and one below (index 1).

    Parameters
    ----------
    centres : (N, 2, 2) row and column of both spots, in pixels
    labels : (N,) the brighter spot: the evidence; the other one is the distractor
    bright : (N, 2) brightness of both
    noise : (N, SIDE, SIDE) background
    """

    centres: np.ndarray
    labels: np.ndarray
    bright: np.ndarray
    noise: np.ndarray

    def pictures(self, keep=(1, 1), hollow: bool = False) -> np.ndarray:
        """(N, 2, SIDE, SIDE) float32 in [0, 1]: the picture, and the row of every pixel.

        Parameters
        ----------
        keep : factors of the two spots' brightness; 0 takes a spot away and leaves the background as it is
        hollow : rings of the same largest brightness in the place of spots
        """
        if np.shape(keep) != (2,):
            raise ValueError(f"keep: expected two factors, one per spot, got {keep!r}")
        y, x = np.mgrid[:SIDE, :SIDE]
        row, column = np.moveaxis(self.centres[..., None, None], 2, 0)
        far = ((y - row) ** 2 + (x - column) ** 2) / (2 * WIDTH**2)
        shape = np.exp(-far) * (np.e * far if hollow else 1)
        drawn = self.noise + ((self.bright * keep)[..., None, None] * shape).sum(1)
        return np.stack([drawn.clip(0, 1), np.broadcast_to(y / (SIDE - 1), drawn.shape)], 1).astype(np.float32)

    def near(self) -> np.ndarray:
        """(N, 2, SIDE / STRIDE, SIDE / STRIDE) bool: the cells whose centre lies within REACH pixels of a spot."""
        y, x = np.mgrid[:SIDE:STRIDE, :SIDE:STRIDE]
        row, column = np.moveaxis(self.centres[..., None, None], 2, 0)
        return (y - row) ** 2 + (x - column) ** 2 <= REACH**2


def spots(n: int, seed) -> Spots:
    """Draw `n` pictures; the regions of the two spots never overlap.

    The brighter spot has 0.45 to 0.9, the other one a fifth to 0.7 of it, so that no brightness alone gives the class
    away: only which of the two is brighter.

    Parameters
    ----------
    n : number of pictures, at least 1
    seed : of `numpy.random.default_rng`
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"n: expected a whole number of at least 1, got {n!r}")
    draws = np.random.default_rng(seed)
    centres = np.stack([draws.uniform([6, 27], [12.5, 34], (n, 2)), draws.uniform(6, 34, (n, 2))], 2)
    labels = draws.integers(0, 2, n)
    share = np.where(np.arange(2) == labels[:, None], 1, draws.uniform(0.2, 0.7, (n, 1)))
    return Spots(centres, labels, 0.9 * draws.uniform(0.5, 1, (n, 1)) * share, draws.uniform(0, 0.1, (n, SIDE, SIDE)))


def train(head: str, task: Spots, epochs: int, learning_rate: float, seed: int = 0, features: int = 12) -> nn.Module:
    """Train two convolutions with ReLU and one linear layer behind them.

    Parameters
    ----------
    head : "flatten" (every feature has a weight of its own at every position) or "pooling" (global average pooling)
    task : pictures to learn
    epochs, learning_rate : of Adam with a one-cycle schedule, batches of 50
    seed : of the first weights and the order of the pictures
    features : of both convolutions

    Returns
    -------
    network in eval mode, (N, 2, SIDE, SIDE) -> logits (N, 2), whose module `LAYER` gives the last activations

    Raises
    ------
    ValueError
        if the head is unknown or there are fewer epochs than one
    """
    if head not in HEADS:
        raise ValueError(f"head: expected one of {list(HEADS)}, got {head!r}")
    if epochs < 1:
        raise ValueError(f"epochs: expected at least 1, got {epochs}")
    torch.manual_seed(seed)
    positions = (SIDE // STRIDE) ** 2 if head == "flatten" else 1
    layers = [nn.Conv2d(2, features, 5, 2, 2), nn.ReLU(), nn.Conv2d(features, features, 3, 2, 1), nn.ReLU()]
    layers += [] if head == "flatten" else [nn.AdaptiveAvgPool2d(1)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features * positions, 2))
    images, labels = torch.from_numpy(task.pictures()), torch.from_numpy(task.labels)
    optimizer = torch.optim.Adam(net.parameters(), learning_rate)
    steps = epochs * -(-len(labels) // BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for batch in (part for _ in range(epochs) for part in torch.randperm(len(labels)).split(BATCH)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimizer.step()
        cycle.step()
    return net.eval()


def logits(net: nn.Module, images) -> np.ndarray:
    """(N, 2) logits of pictures (N, 2, SIDE, SIDE)."""
    with torch.no_grad():
        return net(torch.from_numpy(np.asarray(images))).numpy()


def drops(net: nn.Module, task: Spots, hollow: bool = False) -> np.ndarray:
    """(N, 2): what the logit of the true class loses when the spot above, or the one below, is taken away."""
    which = np.arange(len(task.labels)), task.labels
    whole = logits(net, task.pictures(hollow=hollow))[which]
    return np.stack([whole - logits(net, task.pictures(keep, hollow))[which] for keep in ((0, 1), (1, 0))], 1)


def judge(maps, task: Spots) -> pd.DataFrame:
    """Where maps of the true class look.

    Parameters
    ----------
    maps : (N, SIDE / STRIDE, SIDE / STRIDE) raw signed maps

    Returns
    -------
    one row per picture: evidence, distractor, elsewhere (bool: where the map peaks; all False for a map without a
    difference in it), energy (share of the positive values that lies on the evidence; NaN where none is positive),
    above, below (sum of the map on either spot)

    Raises
    ------
    ValueError
        if the maps do not fit the task
    """
    maps, near = np.asarray(maps), task.near()
    if maps.shape != (len(near), *near.shape[2:]):
        raise ValueError(f"maps: expected {(len(near), *near.shape[2:])}, got {maps.shape}")
    n, flat = np.arange(len(maps)), np.ptp(maps, axis=(1, 2)) == 0
    at = near.reshape(*near.shape[:2], -1)[n, :, maps.reshape(len(maps), -1).argmax(1)] & ~flat[:, None]
    positive, own = maps.clip(min=0), near[n, task.labels]
    total = positive.sum((1, 2))
    energy = (positive * own).sum((1, 2)) / np.where(total > 0, total, np.nan)
    above, below = (maps[:, None] * near).sum((2, 3)).T
    return pd.DataFrame({
        "evidence": at[n, task.labels], "distractor": at[n, 1 - task.labels], "elsewhere": ~at.any(1) & ~flat,
        "energy": energy, "above": above, "below": below,
    })  # fmt: skip


def measure(net: nn.Module, task: Spots, method: str, hollow: bool = False) -> pd.DataFrame:
    """`judge` of a CAM of the true class at the network's last activations, beside what the network does.

    Parameters
    ----------
    net : of `train`
    method : a CAM of `explain`
    hollow : show rings in the place of spots

    Returns
    -------
    the columns of `judge`, and: label; right (bool: classified rightly); worth (what the logit of the true class loses
    without the evidence); follows (correlation, over the spots of all pictures, of the map's sum on a spot with what
    the logit loses without it: one number for the network)
    """
    images = task.pictures(hollow=hollow)
    table = judge(explain(net, images, method, task.labels, LAYER)[method].values, task)
    whole = logits(net, images)
    sums, lost = table[list(CLASSES)].to_numpy(), drops(net, task, hollow)
    follows = np.corrcoef(sums.ravel(), lost.ravel())[0, 1]
    worth = lost[np.arange(len(lost)), task.labels]
    return table.assign(label=task.labels, right=whole.argmax(1) == task.labels, worth=worth, follows=follows)


def mean_weights(net: nn.Module, task: Spots) -> np.ndarray:
    """With how much Grad-CAM weighs an average spot, beside how large the weights are.

    A feature f of the flatten network has the weight W[c, f] at every place for class c. Grad-CAM takes its mean over
    the places; the features are averaged by their activations a_f on the spots of all pictures:
    sum_f a_f mean(W[c, f]) / sum_f a_f.

    Parameters
    ----------
    net : of `train` with the head "flatten"
    task : pictures

    Returns
    -------
    (2, 2) array, a row per class: with the weights themselves, and with their magnitudes

    Raises
    ------
    ValueError
        if the network has one weight per feature
    """
    with torch.no_grad():
        activations = net[: int(LAYER) + 1](torch.from_numpy(task.pictures())).numpy()
    if net[-1].in_features != activations[0].size:
        raise ValueError(f"net: expected the head flatten, {activations[0].size} weights, got {net[-1].in_features}")
    share = (activations * task.near().any(1)[:, None]).sum((0, 2, 3))
    weights = net[-1].weight.detach().numpy().reshape(len(CLASSES), len(share), -1)
    both = np.stack([weights.mean(2), np.abs(weights).mean(2)], 1)
    return both @ (share / share.sum())


def compare(networks: int, images: int, methods=("Grad-CAM", "HiResCAM"), seed: int = 0):
    """Train networks with either head, each on 1000 pictures of its own, and judge their maps on others.

    Parameters
    ----------
    networks : of each head
    images : test pictures of each network
    methods : CAMs of `explain`
    seed : of pictures and first weights

    Returns
    -------
    dict from (head, number) to network, list of test pictures by number, and the tables of `measure` one below the
    other with the columns head, method and number in addition
    """
    nets, tests, tables = {}, [], []
    for number in range(networks):
        learned, test = (spots(n, [seed, number, part]) for part, n in enumerate((TRAINING, images)))
        tests.append(test)
        for head, (epochs, rate) in HEADS.items():
            net = nets[head, number] = train(head, learned, epochs, rate, seed + number)
            for method in methods:
                tables.append(measure(net, test, method).assign(head=head, method=method, number=number))
    return nets, tests, pd.concat(tables, ignore_index=True)
