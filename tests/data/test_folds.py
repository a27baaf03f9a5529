import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from helpers.data.folds import check_folds, make_folds, split


def study(counts, per_group=None):
    """What `make_folds` reads of a study: so many images per class, in groups of so many."""
    labels = np.repeat(np.arange(len(counts)), counts)
    number = np.concatenate([np.arange(count) for count in counts])
    groups = None
    if per_group:
        groups = np.array([f"{label}-{n // per_group}" for label, n in zip(labels, number, strict=True)])
    names = tuple(f"{label}_{n}" for label, n in zip(labels, number, strict=True))
    classes = tuple("ABCDEF"[: len(counts)])
    return Sized(title="made", names=names, labels=labels, classes=classes, groups=groups)


class Sized(SimpleNamespace):
    def __len__(self):
        return len(self.names)


@pytest.mark.parametrize("seed", range(5))
def test_grouped_folds_are_even(seed):
    folds = make_folds(study([60] * 4, per_group=2), seed=seed)
    assert list(folds.columns) == ["name", "class", "group", "fold"]
    assert (folds.groupby(["fold", "class"]).size() == 12).all()
    assert (folds.groupby("group")["fold"].nunique() == 1).all()


def test_ungrouped_folds_are_even_and_warn():
    with pytest.warns(UserWarning, match="made: patients and examinations are unknown.*study.csv"):
        folds = make_folds(study([20, 20, 8]))
    sizes = folds.groupby(["class", "fold"]).size().unstack()
    assert (sizes.max(axis=1) - sizes.min(axis=1) <= 1).all()
    assert folds["group"].isna().all()


def test_the_seed_decides():
    one = study([10, 10], per_group=1)
    assert make_folds(one, seed=1).equals(make_folds(one, seed=1))
    assert not make_folds(one, seed=1).equals(make_folds(one, seed=2))


@pytest.mark.parametrize("n_folds", [3, 5])
def test_parts(n_folds):
    folds = make_folds(study([30, 12], per_group=2), n_folds)
    tested = []
    for fold in range(n_folds):
        parts = split(folds, fold)
        assert sorted(np.concatenate(list(parts.values()))) == list(range(42))
        assert set(folds["fold"][parts["test"]]) == {fold}
        assert set(folds["fold"][parts["val"]]) == {(fold + 1) % n_folds}
        groups = [set(folds["group"][rows]) for rows in parts.values()]
        assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
        tested += list(parts["test"])
    assert sorted(tested) == list(range(42))


def test_a_folds_file_splits_as_the_table_did(tmp_path):
    folds = make_folds(study([10, 10], per_group=2))
    folds.to_csv(tmp_path / "folds.csv", index=False)
    again = pd.read_csv(tmp_path / "folds.csv")
    for fold in range(5):
        assert all((split(folds, fold)[part] == split(again, fold)[part]).all() for part in ("train", "val", "test"))


def test_fewer_images_than_folds():
    with pytest.raises(
        ValueError, match="made: class 'B' has 4 images for 5 folds; add images to it or set n_folds to 4"
    ):
        make_folds(study([9, 4]))
    with pytest.raises(ValueError, match="class 'B' has 2 images .* at least 3 are needed"):
        make_folds(study([9, 2]))
    with pytest.raises(ValueError, match="n_folds must be at least 3"):
        make_folds(study([9, 9]), n_folds=2)


def test_fewer_groups_than_folds():
    with pytest.raises(ValueError, match="made: 4 groups for 5 folds; set n_folds lower"):
        make_folds(study([10, 10], per_group=5))
    with pytest.raises(ValueError, match="would train without class B: too few groups"):
        make_folds(study([40, 10], per_group=10), n_folds=5)
    with pytest.warns(
        UserWarning, match=r"made: fold \d tests no B; fold \d tests no B; set n_folds lower or add groups"
    ):
        make_folds(study([40, 9], per_group=3), n_folds=5)


def test_no_warning_without_a_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_folds(study([10, 10], per_group=2))


def test_tables_that_break_the_rules():
    good = make_folds(study([6, 6], per_group=2), n_folds=3)
    assert check_folds(good) == []
    with pytest.raises(ValueError, match="fold must be in 0..2, got 3"):
        split(good, 3)
    torn = good.copy()
    torn.loc[0, "fold"] = (torn.loc[0, "fold"] + 1) % 3
    with pytest.raises(ValueError, match="group '0-0' stands in more than one fold"):
        split(torn, 0)
    double = good.copy()
    double.loc[1, "name"] = double.loc[0, "name"]
    with pytest.raises(ValueError, match="'0_0' stands twice"):
        split(double, 0)
    with pytest.raises(ValueError, match="without gaps"):
        split(good.assign(fold=good["fold"] * 2), 0)
    with pytest.raises(ValueError, match="at least 3"):
        split(good.assign(fold=good["fold"] % 2, group=None), 0)
