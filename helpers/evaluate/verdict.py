"""The study's two decision schemes: from numbers and thresholds to a verdict, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from helpers.evaluate.statistics import Interval, bootstrap_interval, resample

# Verdict of (the first criterion is high, the focus is correct).
ON_MAP = {
    (True, True): "trust the map: it looks at the right place",
    (True, False): "trust the map: the network looks at the wrong place",
    (False, True): "doubt the map, though it shows the right place",
    (False, False): "doubt the map: it shows the wrong place and the network does not use it",
}
ON_NETWORK = {
    (True, True): "trust the network",
    (True, False): "over-learned: it decides on interference",
    (False, True): "find the source of its errors",
    (False, False): "insufficiently taught",
}


@dataclass(frozen=True)
class Verdict:
    """What a decision scheme says, and what it says it from.

    Attributes
    ----------
    verdict : of the means
    agreement : share of the bootstrap samples that come to it
    shares : every verdict of the scheme, and its share of the bootstrap samples
    numbers : criterion to `Interval`
    thresholds : criterion to the mean from which on it counts as high or correct
    missing : criterion to the number of images without a value
    """

    verdict: str
    agreement: float
    shares: Mapping[str, float]
    numbers: Mapping[str, Interval]
    thresholds: Mapping[str, float]
    missing: Mapping[str, int]

    def __str__(self) -> str:
        lines = [f"{self.verdict} ({self.agreement:.0%} of the bootstrap samples agree)"]
        for name, interval in self.numbers.items():
            side = "at least" if interval.mean >= self.thresholds[name] else "below"
            without = f", {self.missing[name]} images without a value" if self.missing[name] else ""
            lines.append(f"  {name} {interval}: {side} {self.thresholds[name]:g}{without}")
        return "\n".join(lines)


def judge_map(
    trust, focus, groups=None, folds=None, min_trust: float = 0.0, min_focus: float = 1.0, **options
) -> Verdict:
    """The study's first scheme: high or low confidence in a heat map, correct or undesirable focus.

    Parameters
    ----------
    trust : (N,) how much the network's confidence hangs on what the map marks; for example the drop when the important
        part is covered minus the drop when the unimportant part is, positive where the map marks what the network uses
    focus : (N,) where the map lies; for example Hit Rate 1, or its difference to a baseline
    groups, folds : (N,) as in `statistics.resample`
    min_trust, min_focus : means from which on they count as high and correct. The study states none: these are ours,
        for the examples above. Zero: covering the important part costs at least as much. One: the score of level 64.
    **options : n_resamples and seed of the bootstrap

    Raises
    ------
    ValueError
        if lengths differ, or a criterion has no value at all
    """
    return _judge(ON_MAP, {"trust": trust, "focus": focus}, (min_trust, min_focus), groups, folds, **options)


def judge_network(
    right, focus, groups=None, folds=None, min_accuracy: float = 0.9, min_focus: float = 1.0, **options
) -> Verdict:
    """The study's second scheme: high or low accuracy, correct or undesirable focus.

    Parameters
    ----------
    right : (N,) bool, the image was classified rightly
    focus, groups, folds, min_focus, **options : as in `judge_map`
    min_accuracy : share of right answers from which on accuracy counts as high; ours, the study states none

    Raises
    ------
    ValueError
        as in `judge_map`
    """
    return _judge(ON_NETWORK, {"accuracy": right, "focus": focus}, (min_accuracy, min_focus), groups, folds, **options)


def _judge(scheme, criteria, thresholds, groups, folds, n_resamples=2000, seed=0):
    criteria = {name: np.asarray(values, float) for name, values in criteria.items()}
    shapes = {name: values.shape for name, values in criteria.items()}
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 1:
        raise ValueError(f"expected one number per image in each criterion, got shapes {shapes}")
    empty = [name for name, values in criteria.items() if np.isnan(values).all()]
    if empty:
        raise ValueError(f"{empty[0]}: no image has a value, so nothing can be said; are all maps flat?")
    numbers = {
        name: bootstrap_interval(values, groups, n_resamples, seed=seed, folds=folds)
        for name, values in criteria.items()
    }
    labels = np.arange(len(next(iter(criteria.values())))) if groups is None else groups
    drawn, high = resample(labels, folds, n_resamples, seed), []
    for values, threshold in zip(criteria.values(), thresholds, strict=True):
        known = ~np.isnan(values)
        n = drawn @ known
        means = np.divide(drawn @ np.where(known, values, 0), n, out=np.full(len(n), np.nan), where=n > 0)
        high.append(means >= threshold)
    shares = {
        verdict: float(((high[0] == first) & (high[1] == second)).mean()) for (first, second), verdict in scheme.items()
    }
    found = scheme[tuple(bool(numbers[name].mean >= least) for name, least in zip(numbers, thresholds, strict=True))]
    missing = {name: int(np.isnan(values).sum()) for name, values in criteria.items()}
    return Verdict(found, shares[found], shares, numbers, dict(zip(criteria, thresholds, strict=True)), missing)
