"""Folds: stratified by class, grouped by patient or examination, disjoint."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold


def make_folds(study, n_folds=5, seed=0):
    """Give every image the fold in which it is tested; classes in equal shares, a group never in two folds.

    Parameters
    ----------
    study : Study
    n_folds : at least 3, for a part to train on, one to validate on and one to test on
    seed : of the shuffling

    Returns
    -------
    DataFrame with the columns name, class, group (None where unknown), fold: one row per image, in the study's order

    Raises
    ------
    ValueError
        if a class has fewer images than folds, or a fold would have to train without a class

    Warns
    -----
    UserWarning
        if groups are unknown, or a validation or test part lacks a class for want of groups
    """
    if n_folds < 3:
        raise ValueError(f"n_folds must be at least 3 (train, validation, test), got {n_folds}")
    for name, count in zip(study.classes, np.bincount(study.labels, minlength=len(study.classes)), strict=True):
        if count < n_folds:
            remedy = f"set n_folds to {count}" if count >= 3 else "at least 3 are needed"
            raise ValueError(
                f"{study.title}: class {name!r} has {count} images for {n_folds} folds; add images to it or {remedy}"
            )
    if study.groups is None:
        splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
        warnings.warn(
            f"{study.title}: patients and examinations are unknown, so images of one patient may be trained and tested "
            "on; add study.csv with the columns name, group",
            stacklevel=2,
        )
    else:
        splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
        if len(set(study.groups)) < n_folds:
            raise ValueError(f"{study.title}: {len(set(study.groups))} groups for {n_folds} folds; set n_folds lower")
    fold = np.empty(len(study), np.int64)
    with warnings.catch_warnings():
        # Fewer groups than folds in one class: said below in the study's own words.
        warnings.simplefilter("ignore", UserWarning)
        for number, (_, test) in enumerate(splitter.split(study.labels, study.labels, study.groups)):
            fold[test] = number
    names = np.array(study.classes)[study.labels]
    folds = pd.DataFrame({"name": study.names, "class": names, "group": study.groups, "fold": fold})
    lacking = check_folds(folds)
    if lacking:
        warnings.warn(f"{study.title}: {'; '.join(lacking)}; set n_folds lower or add groups", stacklevel=2)
    return folds


def split(folds, fold):
    """The parts of one fold: tested on part `fold`, validated on the next one, trained on the rest.

    Parameters
    ----------
    folds : table of `make_folds`, or one read from folds.csv
    fold : number of the fold

    Returns
    -------
    dict with the sorted row numbers of "train", "val" and "test": disjoint, together all rows, no group in two of them

    Raises
    ------
    ValueError
        if there is no such fold, or the table breaks one of these rules
    """
    check_folds(folds)
    return _parts(folds["fold"].to_numpy(), fold)


def _parts(numbers, fold):
    n_folds = numbers.max() + 1
    if not 0 <= fold < n_folds:
        raise ValueError(f"fold must be in 0..{n_folds - 1}, got {fold}")
    part = (numbers - fold) % n_folds
    return {"train": np.flatnonzero(part > 1), "val": np.flatnonzero(part == 1), "test": np.flatnonzero(part == 0)}


def check_folds(folds):
    """Check a table of folds, also one written by hand.

    Returns
    -------
    list of sentences about test parts that lack a class: a pity, not an error

    Raises
    ------
    ValueError
        if names are not unique, folds are not numbered 0..n-1 with n >= 3, a group stands in two folds, or a training
        part lacks a class
    """
    numbers, classes = folds["fold"].to_numpy(), folds["class"].to_numpy()
    doubles = folds["name"][folds["name"].duplicated()].tolist()
    if doubles:
        raise ValueError(f"folds: {doubles[0]!r} stands twice")
    if not np.array_equal(np.unique(numbers), np.arange(max(3, numbers.max() + 1))):
        raise ValueError(f"folds must be numbered 0, 1, 2, ... without gaps, at least 3, got {np.unique(numbers)}")
    torn = folds.groupby("group")["fold"].nunique()
    if (torn > 1).any():
        raise ValueError(f"folds: group {torn.index[torn > 1][0]!r} stands in more than one fold")
    lacking = []
    for fold in range(numbers.max() + 1):
        for part, rows in _parts(numbers, fold).items():
            missing = ", ".join(sorted(set(classes) - set(classes[rows])))
            if missing and part == "train":
                raise ValueError(f"fold {fold} would train without class {missing}: too few groups; set n_folds lower")
            if missing and part == "test":
                lacking.append(f"fold {fold} tests no {missing}")
    return lacking
