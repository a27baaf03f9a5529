"""How sure a mean is: over images that come in groups, and over folds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats


class Interval(NamedTuple):
    """A mean, its confidence interval, and the number of independent units behind it.

    Prints as "1.95 [1.80, 2.10], n = 60"; a format such as f"{interval:.1f}" sets the digits.
    """

    mean: float
    low: float
    high: float
    n: int

    def __format__(self, digits: str) -> str:
        if np.isnan(self.mean):
            return f"no value, n = {self.n}"
        mean, low, high = (format(float(value), digits or ".2f") for value in self[:3])
        return f"{mean} [{'no interval' if np.isnan(self.low) else f'{low}, {high}'}], n = {self.n}"

    def __str__(self) -> str:
        return format(self)


def bootstrap_interval(values, groups=None, n_resamples: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    r"""Mean over values with a percentile bootstrap interval that resamples whole groups.

    .. math:: m^* = \sum_{g \in G^*} \sum_{i \in g} v_i \Big/ \sum_{g \in G^*} |g|

    with :math:`G^*` as many groups as there are, drawn with replacement. Images of one patient are alike; resampling
    them one by one would make the interval too narrow.

    Parameters
    ----------
    values : (N,) numbers; NaN (a flat map) is left out: state its count beside the mean
    groups : (N,) labels of what varies independently (patient, examination); None takes every value by itself
    n_resamples, level, seed : of the bootstrap

    Returns
    -------
    Interval; n counts groups, or values where `groups` is None. With fewer than two of them the bounds are NaN, with
    none the mean too.

    Raises
    ------
    ValueError
        if shapes differ, a group label is missing, or a setting is out of range

    References
    ----------
    .. [1] Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8.
    """
    values = _numbers(values)
    _check_level(level)
    if n_resamples < 1:
        raise ValueError(f"n_resamples: expected at least 1, got {n_resamples}")
    labels = np.arange(len(values)) if groups is None else np.asarray(groups)
    if labels.shape != values.shape:
        raise ValueError(f"groups: expected one label per value, {values.shape}, got {labels.shape}")
    if pd.isna(labels).any():
        raise ValueError("groups: a label is missing; name the group of every value, or pass None for all")
    known = ~np.isnan(values)
    if not known.any():
        return Interval(np.nan, np.nan, np.nan, 0)
    _, member = np.unique(labels[known], return_inverse=True)
    sums, sizes = np.bincount(member, values[known]), np.bincount(member)
    mean = float(sums.sum() / sizes.sum())
    if len(sums) < 2:
        return Interval(mean, np.nan, np.nan, len(sums))
    bounds = stats.bootstrap(
        (sums, sizes),
        lambda total, size, axis=-1: total.sum(axis) / size.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=n_resamples,
        confidence_level=level,
        batch=max(1, 2**22 // len(sums)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(bounds.low), float(bounds.high), len(sums))


def fold_interval(values, level: float = 0.95) -> Interval:
    r"""Mean over folds with Student's t interval.

    .. math:: \bar v \pm t_{k-1,\,(1 + level)/2} \, s / \sqrt{k}

    Folds share training images, so their results are correlated and no unbiased estimate of the variance exists: take
    the interval as a measure of spread over folds.

    Parameters
    ----------
    values : (k,) numbers, one per fold; NaN is left out
    level : of confidence

    Returns
    -------
    Interval; n counts folds. With fewer than two the bounds are NaN.

    References
    ----------
    .. [1] Bengio and Grandvalet, No Unbiased Estimator of the Variance of K-Fold Cross-Validation, JMLR 5, 2004.
    """
    values = _numbers(values)
    _check_level(level)
    values = values[~np.isnan(values)]
    k = len(values)
    if k < 2:
        return Interval(float(values.sum()) if k else np.nan, np.nan, np.nan, k)
    mean, half = float(values.mean()), float(stats.t.ppf((1 + level) / 2, k - 1) * stats.sem(values))
    return Interval(mean, mean - half, mean + half, k)


def _numbers(values):
    values = np.asarray(values, dtype=float)
    if values.ndim != 1:
        raise ValueError(f"values: expected (N,), got shape {values.shape}")
    if np.isinf(values).any():
        raise ValueError("values: hold infinity")
    return values


def _check_level(level):
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}")
