"""Which of several methods, or networks, is better on the same images, and whether that could be chance."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import scikit_posthocs
from scipy import stats

from helpers.evaluate.statistics import bootstrap_interval


@dataclass(frozen=True, eq=False)
class Comparison:
    """k things compared by their ranks over n groups of images.

    Attributes
    ----------
    ranks : mean rank of each, 1 is the best; sorted
    p : (k, k) table of the p-values of Nemenyi's test, corrected for the number of pairs
    cd : critical difference: mean ranks that lie closer together cannot be told apart
    p_friedman : of the hypothesis that all are alike; where it is not small, read nothing into the pairs
    w : Kendall's coefficient of concordance, the size of the effect: 1 where every group ranks them alike, 0 at random
    n : groups of images, which are taken as independent
    dropped : images left out because one of the things has no value there
    alpha : level of significance of `cd`
    """

    ranks: pd.Series
    p: pd.DataFrame
    cd: float
    p_friedman: float
    w: float
    n: int
    dropped: int
    alpha: float

    def __str__(self) -> str:
        order = ", ".join(f"{name} {rank:.2f}" for name, rank in self.ranks.items())
        left_out = f", {self.dropped} images without a value left out" if self.dropped else ""
        return (
            f"mean ranks: {order}\ncritical difference {self.cd:.2f} at {self.alpha:g}; Friedman p = "
            f"{self.p_friedman:.2g}, W = {self.w:.2f}, n = {self.n}{left_out}"
        )

    def draw(self, axis) -> None:
        """Critical-difference diagram: what a bar joins cannot be told apart."""
        scikit_posthocs.critical_difference_diagram(self.ranks, self.p, cd=self.cd, alpha=self.alpha, ax=axis)


def compare(
    table: pd.DataFrame, by: str = "method", value: str = "score", higher: bool = True, alpha: float = 0.05
) -> Comparison:
    r"""Friedman's test and Nemenyi's, over groups of images that everything compared has a value for.

    .. math:: CD = q_\alpha \sqrt{k (k + 1) / 6 n}, \qquad W = \chi^2_F \big/ n (k - 1)

    with :math:`q_\alpha` the studentised range divided by the root of 2. Values are averaged over the images of a group
    first: two images of one patient are no two independent judges.

    Parameters
    ----------
    table : one row per image (column "name") and thing compared, and a column "group" where groups are known
    by : column that tells what is compared, at least three values: "method", "network", ...
    value : column of numbers; an image with NaN anywhere is left out and counted
    higher : whether more is better
    alpha : level of significance

    Raises
    ------
    ValueError
        if a column is missing, an image stands twice, or fewer than three things or two groups are left

    References
    ----------
    .. [1] Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: expected a number between 0 and 1, got {alpha}")
    matrix, dropped = paired(table, by, value)
    blocks = matrix.groupby(level="group", sort=False).mean()
    n, k = blocks.shape
    if k < 3:
        raise ValueError(f"compare: expected at least three different {by}, got {list(blocks)}; for two see `pairs`")
    if n < 2:
        raise ValueError(f"compare: expected at least two groups of images with every value, got {n}")
    ranks = pd.Series(stats.rankdata(-blocks if higher else blocks, axis=1).mean(0), blocks.columns, name="rank")
    statistic, p = stats.friedmanchisquare(*blocks.to_numpy().T)
    cd = stats.studentized_range.isf(alpha, k, np.inf) / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * n))
    nemenyi = scikit_posthocs.posthoc_nemenyi_friedman(blocks)
    return Comparison(
        ranks.sort_values(kind="stable"),
        nemenyi,
        float(cd),
        float(p),
        float(statistic / (n * (k - 1))),
        n,
        dropped,
        alpha,
    )


def pairs(table: pd.DataFrame, by: str = "method", value: str = "score", folds: bool = True, **options) -> pd.DataFrame:
    r"""Difference of every two of the things compared, on the same images.

    .. math:: r = (W_+ - W_-) / (W_+ + W_-)

    with :math:`W_\pm` the sums of the ranks of positive and negative differences (matched-pairs rank-biserial
    correlation): 1 where the first is always larger, 0 where neither is.

    Parameters
    ----------
    table, by, value : as in `compare`; two things are enough
    folds : draw folds too where the table has the column "fold"; see `statistics.resample`
    **options : n_resamples, level, seed of `bootstrap_interval`

    Returns
    -------
    one row per pair: first, second, difference (mean over images), low, high (its bootstrap interval over folds and
    groups), effect (r, over groups), p (Wilcoxon's signed ranks, two-sided, over groups, corrected over all pairs after
    Holm), n (groups)
    """
    matrix, _ = paired(table, by, value)
    groups, fold = (matrix.index.get_level_values(name).to_numpy() for name in ("group", "fold"))
    blocks = matrix.groupby(level="group", sort=False).mean()
    if blocks.shape[1] < 2 or len(blocks) < 2:
        raise ValueError(f"pairs: expected two different {by} and two groups of images, got {blocks.shape[::-1]}")
    long = blocks.melt(var_name="thing", value_name="value")
    long["thing"] = long["thing"].astype(object)
    p = scikit_posthocs.posthoc_wilcoxon(long, "value", "thing", "approx", "zsplit", p_adjust="holm")
    folds, rows = (fold if folds and "fold" in table else None), []
    for first, second in combinations(blocks, 2):
        plus = stats.wilcoxon(
            blocks[first] - blocks[second], zero_method="zsplit", alternative="greater", method="approx"
        )
        effect = 4 * plus.statistic / (len(blocks) * (len(blocks) + 1)) - 1
        found = bootstrap_interval((matrix[first] - matrix[second]).to_numpy(), groups, folds=folds, **options)
        rows.append((first, second, *found[:3], effect, p.loc[first, second], found.n))
    return pd.DataFrame(rows, columns=["first", "second", "difference", "low", "high", "effect", "p", "n"])


def paired(table: pd.DataFrame, by: str, value: str) -> tuple[pd.DataFrame, int]:
    """Images (rows, indexed by name, group and fold) against what is compared (columns), complete rows only.

    Also the number of images left out because a value is missing. An image without a group is a group by itself.
    """
    lacking = [column for column in ("name", by, value) if column not in table]
    if lacking:
        raise ValueError(f"table: no column {', '.join(lacking)}; it has {', '.join(map(str, table.columns))}")
    double = table.duplicated(["name", by])
    if double.any():
        first = table.loc[double, ["name", by]].iloc[0].tolist()
        raise ValueError(f"table: several rows of {first}; choose one measure, sign, layer, target and threshold first")
    order = list(dict.fromkeys(table[by]))
    matrix = table.assign(**{by: table[by].astype(object)}).pivot(index="name", columns=by, values=value)[order]
    about = table.drop_duplicates("name").set_index("name").loc[matrix.index]
    group = about["group"].to_numpy() if "group" in about else matrix.index
    fold = about["fold"].to_numpy() if "fold" in about else np.zeros(len(about), int)
    matrix.index = pd.MultiIndex.from_arrays([matrix.index, group, fold], names=["name", "group", "fold"])
    complete = matrix.dropna()
    return complete.astype(float), len(matrix) - len(complete)
