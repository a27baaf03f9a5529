"""Comparisons of methods: by hand, against scipy, and what they must not hang on."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from helpers.evaluate.comparison import compare, paired, pairs


def table_of(values, groups=None):
    """Rows name, method, score (and group) of an (images, methods) array."""
    values = np.asarray(values, float)
    rows = [
        {"name": f"i{i}", "method": "abcdef"[k], "score": values[i, k]}
        | ({} if groups is None else {"group": groups[i]})
        for i, k in np.ndindex(*values.shape)
    ]
    return pd.DataFrame(rows)


def test_by_hand():
    """Four images rank three methods alike: mean ranks 1, 2, 3; chi2 = n (k - 1), W = 1."""
    found = compare(table_of([[3, 2, 1]] * 4 + [[30, 2, 0]] * 2))
    assert found.ranks.to_dict() == {"a": 1, "b": 2, "c": 3} and found.w == pytest.approx(1) and found.n == 6
    assert found.p_friedman == pytest.approx(stats.chi2.sf(12, 2))
    assert found.cd == pytest.approx(2.343 * np.sqrt(3 * 4 / (6 * 6)), abs=1e-3)  # Demsar, table 5
    assert found.p.loc["a", "c"] < 0.05 < found.p.loc["a", "b"]
    assert "a 1.00, b 2.00, c 3.00" in str(found) and "n = 6" in str(found)


def test_critical_difference_and_nemenyi_agree():
    rng = np.random.default_rng(0)
    found = compare(table_of(rng.normal(size=(40, 5)) + 0.4 * np.arange(5)))
    apart = np.abs(found.ranks.to_numpy()[:, None] - found.ranks.to_numpy()) > found.cd
    np.testing.assert_array_equal(found.p.loc[found.ranks.index, found.ranks.index] < 0.05, apart)
    assert apart.any() and not apart.all()


def test_only_the_order_counts_and_not_that_of_the_rows():
    rng = np.random.default_rng(1)
    table = table_of(rng.normal(size=(20, 4)))
    found, shuffled = compare(table), compare(table.sample(frac=1, random_state=0))
    pd.testing.assert_series_equal(found.ranks, shuffled.ranks, check_names=False)
    curved = compare(table.assign(score=np.exp(table["score"])))
    assert curved.ranks.equals(found.ranks) and curved.p_friedman == found.p_friedman
    turned = compare(table, higher=False)
    np.testing.assert_allclose(turned.ranks[found.ranks.index], 5 - found.ranks)


def test_images_of_a_group_are_one_judge():
    values = np.random.default_rng(2).normal(size=(10, 3))
    once, copied = compare(table_of(values)), compare(table_of(np.repeat(values, 4, 0), np.repeat(np.arange(10), 4)))
    assert copied.n == once.n == 10 and copied.p_friedman == pytest.approx(once.p_friedman)
    assert compare(table_of(np.repeat(values, 4, 0))).p_friedman < once.p_friedman


def test_images_without_a_value_are_counted():
    values = np.random.default_rng(3).normal(size=(8, 3))
    values[2, 1] = values[5] = np.nan
    found = compare(table_of(values))
    assert (found.n, found.dropped) == (6, 2) and "2 images without a value" in str(found)
    matrix, dropped = paired(table_of(values), "method", "score")
    assert matrix.shape == (6, 3) and dropped == 2 and list(matrix) == ["a", "b", "c"]
    missing_row = table_of(values).drop(index=0)
    assert paired(missing_row, "method", "score")[1] == 3


def test_pairs_against_scipy():
    values = np.random.default_rng(4).normal(size=(12, 3)) + [1.5, 0, 0]
    found = pairs(table_of(values)).set_index(["first", "second"])
    raw = [stats.wilcoxon(values[:, i] - values[:, j], zero_method="zsplit", method="approx").pvalue
           for i, j in ((0, 1), (0, 2), (1, 2))]  # fmt: skip
    order = np.sort(raw) * [3, 2, 1]
    np.testing.assert_allclose(np.sort(found["p"]), np.minimum(np.maximum.accumulate(order), 1))
    np.testing.assert_allclose(
        found["difference"], [values[:, i].mean() - values[:, j].mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    )
    assert (found["low"] <= found["difference"]).all() and (found["difference"] <= found["high"]).all()
    assert (found["n"] == 12).all()


def test_effect_by_hand():
    """Differences 1, 2, 3 and -4: W+ = 6, W- = 4, so r = 2 / 10."""
    found = pairs(table_of([[1, 0], [2, 0], [3, 0], [0, 4]]))
    assert found["effect"].tolist() == pytest.approx([0.2]) and found["difference"].tolist() == [0.5]
    assert pairs(table_of([[1, 0], [2, 0]]))["effect"].item() == 1
    alike = pairs(table_of([[1, 1], [2, 2], [3, 3]])).iloc[0]
    assert alike["effect"] == 0 and alike["p"] == 1 and alike["difference"] == 0


def test_folds_widen_the_interval_of_a_difference():
    fold = np.arange(60) % 5
    table = table_of(np.stack([fold + 0.01 * np.arange(60), np.zeros(60)], 1))
    table["fold"] = table["name"].str[1:].astype(int) % 5
    both = [pairs(table, folds=folds).iloc[0] for folds in (True, False)]
    assert both[0]["high"] - both[0]["low"] > 1.5 * (both[1]["high"] - both[1]["low"])


def test_categories_of_a_stored_table():
    table = table_of(np.random.default_rng(5).normal(size=(9, 3))).astype({"method": "category", "name": "category"})
    assert len(pairs(table)) == 3 and set(compare(table).ranks.index) == set("abc")


def test_diagram_names_everything():
    figure, axis = plt.subplots()
    compare(table_of(np.random.default_rng(6).normal(size=(9, 4)))).draw(axis)
    text = " ".join(label.get_text() for label in axis.texts)
    plt.close(figure)
    assert all(f"{name} (" in text or f") {name}" in text for name in "abcd")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare(table_of(np.eye(4)[:, :2])), "at least three different method.*see `pairs`"),
        (lambda: compare(table_of([[1, 2, 3]])), "at least two groups"),
        (lambda: compare(table_of(np.full((3, 3), np.nan))), "at least two groups.*got 0"),
        (lambda: compare(pd.concat([table_of(np.eye(3))] * 2)), r"several rows of \['i0', 'a'\]"),
        (lambda: compare(table_of(np.eye(3)), by="network"), "no column network; it has name, method, score"),
        (lambda: compare(table_of(np.eye(3)), alpha=5), "alpha: expected"),
        (lambda: pairs(table_of(np.eye(3)[:, :1])), "expected two different method"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
