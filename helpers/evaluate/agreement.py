"""How alike two maps of one image are, wherever they may look."""

from __future__ import annotations

import numpy as np
from scipy import stats


def correlation(one, other, ranks: bool = False) -> np.ndarray:
    r"""Correlation over positions of every map with its counterpart.

    .. math:: r = \sum_p (a_p - \bar a)(b_p - \bar b) \Big/ \sqrt{\sum_p (a_p - \bar a)^2 \sum_p (b_p - \bar b)^2}

    It is 1 where one map is the other times a positive number plus a number: scaling does not matter.

    Parameters
    ----------
    one, other : (N, ...) maps of one shape
    ranks : of the values' ranks (Spearman's) instead of the values (Pearson's): what counts is only their order

    Returns
    -------
    (N,) correlations between -1 and 1; NaN where one of the two maps is flat or has a NaN

    Raises
    ------
    ValueError
        if the shapes differ
    """
    one, other = np.asarray(one, float), np.asarray(other, float)
    if one.shape != other.shape:
        raise ValueError(f"correlation: maps of one shape expected, but one is {one.shape} and the other {other.shape}")
    one, other = (maps.reshape(len(maps), int(np.prod(maps.shape[1:]))) for maps in (one, other))
    flat = (np.ptp(one, axis=1) == 0) | (np.ptp(other, axis=1) == 0)
    if ranks:
        one, other = stats.rankdata(one, axis=1), stats.rankdata(other, axis=1)
    one, other = one - one.mean(1, keepdims=True), other - other.mean(1, keepdims=True)
    size = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(1) / np.where(flat | ~np.isfinite(size), np.nan, size)
