import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from helpers.data.chest_ct import Volumes
from helpers.evaluate.organs import (
    THRESHOLDS,
    choose_thresholds,
    choose_weight,
    energy_share,
    judge,
    judge_labels,
    label_scores,
    mean_auroc,
    normalised,
    organ_iou,
    organ_scores,
    relative_gain,
    summary,
)
from helpers.evaluate.statistics import resample
from helpers.models.ct_training import QUICK


def grid(*values):
    return np.array(values, float).reshape(1, 1, -1)


ALLOWED = grid(1, 1, 0, 0).astype(bool)


def test_thresholds_are_those_of_the_paper():
    assert THRESHOLDS[:7] == (0.004, 0.008, 0.012, 0.016, 0.02, 0.04, 0.06)
    assert THRESHOLDS[-1] == 0.98 and len(THRESHOLDS) == 53 and list(THRESHOLDS) == sorted(set(THRESHOLDS))


def test_organ_iou_of_toys():
    assert organ_iou(grid(2, 0, 2, 0), ALLOWED) == 0.5
    assert organ_iou(grid(4, 0, 1, 0), ALLOWED, 0.3) == 1.0  # the organ's uncovered part costs nothing
    assert organ_iou(grid(4, 0, 1, 0), ALLOWED, 0.25) == 1.0  # above the threshold, not at it
    assert organ_iou(grid(4, 0, 1, 1), ALLOWED, 0.2) == pytest.approx(1 / 3)
    assert organ_iou(grid(0, 0, 3, 3), ALLOWED) == 0.0
    assert organ_iou(grid(-1, -2, 0, -5), ALLOWED) == 0.0  # empty
    assert organ_iou(grid(-9, 3, -9, -9), ALLOWED) == 1.0


def test_the_code_of_the_paper_gives_a_perfect_map_nothing():
    maps, allowed = np.stack([grid(1, 1, 0, 0), grid(2, 0, 2, 0)]), np.stack([ALLOWED, ALLOWED])
    assert organ_iou(maps, allowed).tolist() == [1.0, 0.5]
    assert organ_iou(maps, allowed, reference_code=True).tolist() == [0.0, 0.5]


def test_energy_share_of_toys():
    assert energy_share(grid(3, 0, 1, -8), ALLOWED) == 0.75
    assert energy_share(grid(-3, 0, -1, 0), ALLOWED) == 0.0


def test_scale_does_not_matter_and_the_complement_gets_the_rest():
    rng = np.random.default_rng(0)
    maps, allowed = rng.normal(size=(4, 3, 5, 2, 2)), rng.random((4, 3, 5, 2, 2)) < 0.4
    for measure in (organ_iou, energy_share):
        np.testing.assert_allclose(measure(7 * maps, allowed), measure(maps, allowed))
        np.testing.assert_allclose(measure(maps, allowed) + measure(maps, ~allowed), 1)
    assert normalised(maps).max() == 1 and normalised(maps).min() == 0


def two_labels():
    """Three volumes: for label a the threshold must pass 0.5, for b it must not; c is in no volume."""
    a, b = grid(10, 0, 5, 0), grid(10, 0.9, 0, 0.1)
    maps = np.stack([np.stack([a, b, a])] * 3)
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0]])
    return maps, np.broadcast_to(ALLOWED, maps.shape).copy(), labels


def test_thresholds_are_chosen_per_label_where_it_is_present():
    maps, allowed, labels = two_labels()
    maps[2, 0] = grid(0, 0, 1, 1)  # label a is absent there: must not matter
    chosen = choose_thresholds(maps, allowed, labels, ["a", "b", "c"])
    assert chosen["a"] == 0.5 and chosen["b"] == 0.012  # above 0.1 / 10, the lowest that leaves nothing outside
    assert chosen["c"] == pytest.approx((0.5 + 0.012) / 2)
    with pytest.raises(ValueError, match="no label is present"):
        choose_thresholds(maps, allowed, labels * 0, ["a", "b", "c"])


def test_scores_and_summary_count_pairs_volumes_and_empty_maps():
    maps, allowed, labels = two_labels()
    maps[1, 0] = -1
    chosen = pd.Series({"a": 0.2, "b": 0.5, "c": 0.5})
    organs = {"a": "lung", "b": "heart", "c": "heart"}
    table = organ_scores(maps, allowed, labels, chosen, organs, ["v1", "v2", "v3"])
    assert table[["scan", "label"]].values.tolist() == [["v1", "a"], ["v1", "b"], ["v2", "a"], ["v3", "b"]]
    assert table["organ_iou"].tolist() == [0.5, 1.0, 0.0, 1.0]
    assert table["empty"].tolist() == [False, False, True, False] and (table["chance"] == 0.5).all()
    by = summary(table, "organ")
    assert by.loc["lung", "mean"] == 0.25 and by.loc["heart", "mean"] == 1.0
    assert by["pairs"].tolist() == [2, 2] and by["empty"].tolist() == [1, 0]
    overall = summary(table).iloc[0]
    assert overall["mean"] == 0.625 and overall["volumes"] == 3 and overall["low"] <= 0.625 <= overall["high"]
    assert summary(table, ["organ", "label"]).index.tolist() == [("lung", "a"), ("heart", "b")]


def test_auroc_and_average_precision_per_label():
    labels = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0]])
    logits = np.array([[4.0, 1, 0], [1, 2, 0], [3, 3, 0], [2, 4, 0]])
    table = label_scores(logits, labels, ["told", "absent", "guessed"])
    assert table.loc["told", "auroc"] == 1 and table.loc["told", "average_precision"] == 1
    assert np.isnan(table.loc["absent", "auroc"]) and table.loc["absent", "positive"] == 0
    assert table.loc["guessed", "auroc"] == 0.5 and table.loc["guessed", "average_precision"] == 0.5
    pd.testing.assert_frame_equal(label_scores(np.exp(logits), labels, table.index), table)


def test_mean_auroc_is_that_of_sklearn_in_every_sample():
    rng = np.random.default_rng(0)
    labels, logits = rng.random((30, 3)) < 0.4, rng.normal(size=(2, 30, 3)).round(1)
    names = ["a", "b", "c"]
    found = mean_auroc(logits, labels, n_resamples=50)
    assert found.mean == pytest.approx(np.mean([label_scores(one, labels, names)["auroc"] for one in logits]))
    times = resample(np.arange(30), None, 50)
    samples = [np.mean([roc_auc_score(labels[:, k], one[:, k], sample_weight=t) for one in logits for k in range(3)])
               for t in times]  # fmt: skip
    assert found[1:3] == pytest.approx(np.quantile(samples, (0.025, 0.975))) and found.n == 30
    assert mean_auroc(np.where(labels, 1.0, 0.0)[None], labels)[:3] == (1, 1, 1)
    assert mean_auroc(logits, labels, logits)[:3] == (0, 0, 0)
    better = mean_auroc(logits + 9 * labels, labels, logits)
    assert better.mean == pytest.approx(1 - found.mean) and better.low > 0
    everywhere = np.column_stack([labels, np.ones(30, bool)])
    assert mean_auroc(np.pad(logits, ((0, 0), (0, 0), (0, 1))), everywhere, n_resamples=50) == found


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: organ_iou(np.ones((2, 2)), np.ones((2, 2), bool)), "cam: expected finite numbers"),
        (lambda: organ_iou(grid(1, np.nan), grid(1, 0).astype(bool)), "cam: 1 values are not finite"),
        (lambda: organ_iou(grid(1, 2), grid(1, 0)), "allowed: expected bool"),
        (lambda: organ_iou(grid(1, 2, 3, 4), ALLOWED, 1.0), "threshold: expected numbers in"),
        (lambda: label_scores(np.ones((3, 2)), np.ones((3, 2)), ["a"]), "expected .N, 1."),
        (lambda: mean_auroc(np.ones((3, 2)), np.ones((3, 2))), "expected .R, N, K."),
        (lambda: mean_auroc(np.ones((1, 3, 2)), np.ones((3, 2))), "there is no AUROC"),
        (lambda: choose_thresholds(np.ones((1, 1, 1, 1, 1)), np.ones((1, 1, 1, 1, 1), bool), [[2]], ["a"]), "0 and 1"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_relative_gain_of_volumes_that_gain_alike_and_of_such_that_do_not():
    base = pd.DataFrame({"scan": ["a", "a", "b", "c"], "organ_iou": [0.1, 0.3, 0.2, 0.4]})
    double = relative_gain(base.assign(organ_iou=2 * base["organ_iou"]), base)
    assert double[:3] == pytest.approx((1.0, 1.0, 1.0)) and double.n == 3
    mixed = relative_gain(base.assign(organ_iou=[0.1, 0.3, 0.1, 0.8]), base)
    assert mixed.mean == pytest.approx(0.3) and mixed.low < 0 < mixed.high
    with pytest.raises(ValueError, match="the same volumes"):
        relative_gain(base[:3], base)


class Toy:
    """An experiment with two labels, two validation and two test volumes; a network that looks inside if it has to."""

    labels = ("nodule", "pacemaker")

    def __init__(self):
        columns = pd.MultiIndex.from_tuples([("nodule", "right_lung"), ("pacemaker", "heart")])
        self.sets = {}
        for part in ("train", "val", "test"):
            names = tuple(f"{part}{i}" for i in range(2))
            table = pd.DataFrame([[True, True], [False, True]], pd.Index(names), columns)
            self.sets[part] = Volumes("toy", names, table, [0, 0], None, 1.0, part)

    def outputs(self, recipe, part):
        inside, outside = grid(4, 4, 0, 0), grid(2, 0, 2, 0)
        maps = np.broadcast_to(inside if recipe.weight else outside, (2, 2, 1, 1, 4))
        return {"logits": np.array([[1.0, 0], [0, 0]]), "HiResCAM": maps, "Grad-CAM": maps[..., ::-1]}

    def allowed(self, recipe, part):
        return np.broadcast_to(ALLOWED, (2, 2, 1, 1, 4)) & self.sets[part].labels[..., None, None, None]


def test_networks_are_judged_with_thresholds_of_their_own():
    recipes = [QUICK.vary(weight=w, seed=s) for w in (0.0, 3.0) for s in (0, 1)]
    scores, labels = judge(Toy(), recipes, "test"), judge_labels(Toy(), recipes, "test")
    assert len(scores) == 4 * 2 * 3 and set(scores["scan"]) == {"test0", "test1"}
    mean = scores.groupby(["map", "weight"])["organ_iou"].mean()
    assert mean["HiResCAM"].tolist() == [0.5, 1.0] and mean["Grad-CAM"].tolist() == [0.5, 0.0]
    assert scores.groupby("label")["organ"].first().to_dict() == {"nodule": "lung", "pacemaker": "heart"}
    assert (labels[labels["label"] == "nodule"]["auroc"] == 1).all() and labels["auroc"].isna().sum() == 4
    best = scores[scores["map"] == "HiResCAM"]
    assert choose_weight(best, labels) == 3.0
    worse = labels.assign(auroc=labels["auroc"] - 0.02 * (labels["weight"] > 0))
    assert choose_weight(best, worse) == 0.0 and choose_weight(best, worse, tolerance=0.03) == 3.0
    assert relative_gain(best[best["weight"] == 3], best[best["weight"] == 0]).mean == pytest.approx(1.0)
    with pytest.raises(ValueError, match="0 among them"):
        choose_weight(best[best["weight"] == 3], labels[labels["weight"] == 3])
