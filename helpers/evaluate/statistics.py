"""How sure a mean is: over images that come in groups, and over folds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
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


def bootstrap_interval(
    values, groups=None, n_resamples: int = 2000, level: float = 0.95, seed: int = 0, folds=None
) -> Interval:
    r"""Mean over values with a percentile bootstrap interval that resamples whole groups, or folds and groups.

    .. math:: m^* = \sum_{g \in G^*} \sum_{i \in g} v_i \Big/ \sum_{g \in G^*} |g|

    with :math:`G^*` as many groups as there are, drawn with replacement. Images of one patient are alike; resampling
    them one by one would make the interval too narrow.

    Parameters
    ----------
    values : (N,) numbers; NaN (a flat map) is left out: state its count beside the mean
    groups : (N,) labels of what varies independently (patient, examination); None takes every value by itself
    n_resamples, level, seed : of the bootstrap
    folds : (N,) fold of every value, each with a network of its own: folds are drawn first, then the groups in them,
        see `resample`; None takes the networks as they are

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
    labels = np.arange(len(values)) if groups is None else _labels("groups", groups, len(values))
    folds = None if folds is None else _labels("folds", folds, len(values))
    known = ~np.isnan(values)
    if not known.any():
        return Interval(np.nan, np.nan, np.nan, 0)
    _, first, member = np.unique(labels[known], return_index=True, return_inverse=True)
    sums, sizes = np.bincount(member, values[known]), np.bincount(member)
    mean = float(sums.sum() / sizes.sum())
    if len(sums) < 2:
        return Interval(mean, np.nan, np.nan, len(sums))
    if folds is not None:
        _check_nested(member, folds[known])
        drawn = resample(None, folds[known][first], n_resamples, seed)
        low, high = np.quantile((drawn @ sums) / (drawn @ sizes), [(1 - level) / 2, (1 + level) / 2])
        return Interval(mean, float(low), float(high), len(sums))
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


def resample(groups, folds=None, n_resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """How often every value counts in every bootstrap sample: for quantities that must be drawn together.

    Of K folds K are drawn with replacement, and of the G groups of a fold G, anew each time the fold is drawn. With the
    few folds of a cross-validation the spread between them is underestimated, by 1 / K of its variance.

    Parameters
    ----------
    groups : N labels of what varies independently, or None for every value by itself, where `folds` gives N
    folds : (N,) labels, each group in one fold; None for a single one
    n_resamples, seed : of the bootstrap

    Returns
    -------
    (n_resamples, N) whole numbers w, as float: the mean of values v in the samples is w @ v / w.sum(1)

    Raises
    ------
    ValueError
        if lengths differ, a label is missing, or a group lies in two folds

    References
    ----------
    .. [1] Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8.
    """
    n = len(folds) if groups is None else len(groups)
    labels = np.arange(n) if groups is None else _labels("groups", groups, n)
    folds = np.zeros(n, int) if folds is None else _labels("folds", folds, n)
    _, first, member = np.unique(labels, return_index=True, return_inverse=True)
    _check_nested(member, folds)
    _, fold = np.unique(folds[first], return_inverse=True)
    return _draws(tuple(fold.tolist()), n_resamples, seed)[:, member]


@lru_cache(maxsize=8)
def _draws(fold, n_resamples, seed):
    """(n_resamples, G) whole numbers, given the fold of every group; kept, for every point of a curve asks."""
    fold, rng = np.array(fold, int), np.random.default_rng(seed)
    n_folds = fold.max(initial=-1) + 1
    times = rng.multinomial(n_folds, np.full(n_folds, 1 / max(1, n_folds)), n_resamples)
    drawn = np.empty((n_resamples, len(fold)))
    for k in range(n_folds):
        size = np.count_nonzero(fold == k)
        drawn[:, fold == k] = rng.multinomial(times[:, k] * size, np.full(size, 1 / size))
    return drawn


def intervals(
    table: pd.DataFrame, by: str | Sequence[str], value: str = "score", legacy: bool = False, **options
) -> pd.DataFrame:
    """Mean of a column for every combination of others, with its interval and what is missing.

    Images of one `group` are drawn together, folds with their groups, where the table has these columns.

    Parameters
    ----------
    table : one row per image, with the columns `by`, `value` and, if known, "group" and "fold"
    by : one or several columns
    value : column of numbers, NaN where there is none
    legacy : divide the sum by the count of all rows, missing ones too, as the study's code does
    **options : n_resamples, level, seed of `bootstrap_interval`

    Returns
    -------
    one row per combination: mean, low, high, n (groups, or images where no group is known), images (with a value),
    missing (without) and text, such as "1.95 [1.80, 2.10], n = 60"

    Raises
    ------
    ValueError
        if a column is missing
    """
    by = [by] if isinstance(by, str) else list(by)
    lacking = [name for name in (*by, value) if name not in table]
    if lacking:
        raise ValueError(f"table: no column {', '.join(lacking)}; it has {', '.join(map(str, table.columns))}")
    rows = {}
    for key, part in table.groupby(by, observed=True, sort=False, dropna=False):
        values = part[value].to_numpy(float)
        missing = np.isnan(values)
        labels = {f"{name}s": part[name].to_numpy() for name in ("group", "fold") if name in part}
        found = bootstrap_interval(np.where(missing, 0, values) if legacy else values, **labels, **options)
        rows[key] = [*found, (~missing).sum(), missing.sum(), str(found)]
    index = pd.MultiIndex.from_tuples(rows, names=by) if len(by) > 1 else pd.Index([key[0] for key in rows], name=by[0])
    columns = [*Interval._fields, "images", "missing", "text"]
    return pd.DataFrame(list(rows.values()), index, columns)


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


def _labels(name, labels, n):
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"{name}: expected one label per value, {(n,)}, got {labels.shape}")
    if pd.isna(labels).any():
        raise ValueError(f"{name}: a label is missing; name one for every value, or pass None for all")
    return labels


def _check_nested(member, folds):
    if len(pd.DataFrame({"group": member, "fold": folds}).drop_duplicates()) > member.max(initial=-1) + 1:
        raise ValueError("folds: a group lies in two folds; its images are not independent of each other")


def _check_level(level):
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}")
