"""Scores of a whole study: the numbers of the single functions, complete, and only what changed made again."""

import numpy as np
import pandas as pd
import pytest

from helpers import store
from helpers.data import study as study_module
from helpers.evaluate import scores as scores_module
from helpers.evaluate.confidence import confidence
from helpers.evaluate.localization import as_displayed, coverage, hit_rate, iou, n_peaks
from helpers.evaluate.scores import CLIP, MEASURES, confidence_scores, localize, scores
from helpers.explain.engine import explain
from helpers.explain.heatmaps import to_heatmap
from helpers.models import cross_validation as cv

METHODS = ("Grad-CAM", "Saliency", "Integrated Gradients")
FAST = {"steps": 3}


@pytest.fixture(scope="module")
def settings(trained_study):
    return trained_study(images_per_class=6, image_size=64)


@pytest.fixture(scope="module")
def table(settings):
    return scores(settings, METHODS, **FAST)


def one(table, name, method, sign="positive", network="mobilenet_v2"):
    return table.query("name == @name and method == @method and sign == @sign and network == @network")


def test_the_same_numbers_as_by_single_calls(settings, table):
    study = cv.study_of(settings)
    fold = int(one(table, study.names[5], "Grad-CAM")["fold"].iloc[0])
    which = [i for i, name in enumerate(study.names) if name in set(table.loc[table["fold"] == fold, "name"])]
    model, layer_maps = cv.load_fold(settings, "mobilenet_v2", fold), study.layer_maps(64, which)
    found = explain(model, study.images(64, which), METHODS, layer=32, **FAST)
    for method, sign in (("Grad-CAM", "positive"), ("Integrated Gradients", "negative")):
        heatmaps = to_heatmap(found[method], 64, sign)
        shown = as_displayed(heatmaps, 0 if method == "Grad-CAM" else CLIP)
        expected = {
            "hit_rate_1": hit_rate(heatmaps, layer_maps), "hit_rate_1_displayed": hit_rate(shown, layer_maps),
            "coverage": coverage(heatmaps, layer_maps, 0), "iou": iou(heatmaps, layer_maps, 0.6, 128),
        }  # fmt: skip
        part = table[(table["method"] == method) & (table["sign"] == sign) & (table["fold"] == fold)]
        part = part[part["level"].isna() | part["level"].eq(0) & part["measure"].eq("coverage")
                    | part["level"].eq(128) & part["threshold"].eq(0.6)]  # fmt: skip
        for measure, values in expected.items():
            got = part[part["measure"] == measure].set_index("name")["score"].loc[[study.names[i] for i in which]]
            np.testing.assert_allclose(got, values, rtol=1e-2, atol=2e-3)


def test_one_row_per_map_and_measure(settings, table):
    study = cv.study_of(settings)
    maps = table.query("measure == 'hit_rate_1'")
    assert (
        len(table) == len(maps) * len(MEASURES)
        and not table.duplicated(["network", "method", "sign", "name", "measure", "level", "threshold"]).any()
    )
    counts = maps.groupby(["method", "sign"], observed=True).size()
    assert counts["Grad-CAM"].to_dict() == counts["Saliency"].to_dict() == {"positive": 24}
    assert counts["Integrated Gradients"].to_dict() == {"positive": 24, "negative": 24, "absolute": 24}
    labels = {name: study.classes[label] for name, label in zip(study.names, study.labels, strict=True)}
    assert (maps["class"].astype(str) == maps["name"].map(labels).astype(str)).all()
    told = cv.predictions(settings).query("part == 'test'").set_index("name")
    own = maps[maps["network"] == "mobilenet_v2"]
    assert (told.loc[own["name"], "predicted"].to_numpy() == own["predicted"]).all()
    assert (told.loc[own["name"], "fold"].to_numpy() == own["fold"]).all()
    groups = dict(zip(study.names, study.groups, strict=True))
    assert (maps["group"].astype(str) == maps["name"].map(groups).astype(str)).all()


def test_baselines_are_scored_like_methods(table):
    base = table[table["network"] == "none"].set_index(["method", "measure"])["score"]
    assert set(base.index.get_level_values(0)) == {
        "random map", "centre Gaussian", "edge map", "flat map", "layer map"
    }  # fmt: skip
    assert (base["layer map", "hit_rate_1"] == 3).all() and base["flat map", "hit_rate_1"].isna().all()
    assert len(base["flat map", "hit_rate_1"]) == 24
    cover = table.query("method == 'layer map' and measure == 'coverage' and level == 255")["score"]
    assert (cover == 1).all()


def test_kept_and_reused(settings, table, monkeypatch, capsys):
    monkeypatch.setattr(scores_module, "localize", None)
    again = scores(settings, METHODS, **FAST)
    assert f"{len(table) // len(MEASURES)} were scored already, 0 are new" in capsys.readouterr().out
    pd.testing.assert_frame_equal(again, table)
    stored = pd.read_parquet(settings.folder / "scores.parquet")
    assert len(stored) == len(table) and set(stored) == set(table)
    few = scores(settings, "Saliency", folds=[1], baselines=False)
    assert few["name"].nunique() == 8 and set(few["method"]) == {"Saliency"} and set(few["fold"]) == {1}
    part = one(table, few["name"].iloc[0], "Saliency")["score"].to_numpy()
    np.testing.assert_array_equal(one(few, few["name"].iloc[0], "Saliency")["score"], part)


def counted(monkeypatch):
    seen = []
    whole = localize

    def counting(heatmaps, *arguments):
        seen.append(len(heatmaps))
        return whole(heatmaps, *arguments)

    monkeypatch.setattr(scores_module, "localize", counting)
    return seen


def test_only_what_hangs_on_a_change_is_scored_again(settings, table, monkeypatch):
    seen = counted(monkeypatch)
    more = scores(settings, METHODS, layers=(32, 16), **FAST)
    assert sum(seen) == 24 and set(more["layer"]) == {"stride 32", "stride 16", "pixels"}
    found = scores_module.maps(settings, METHODS, **FAST)["mobilenet_v2"].load()
    found["Integrated Gradients"][5] *= -1
    name = str(found["name"][5].item())
    monkeypatch.setattr(scores_module, "maps", lambda *arguments, **options: {"mobilenet_v2": found})
    seen.clear()
    other = scores(settings, METHODS)
    assert seen == [1, 1, 1] and len(pd.read_parquet(settings.folder / "scores.parquet")) == len(more)
    turned, before = (one(which, name, "Integrated Gradients", "negative")["score"] for which in (other, table))
    np.testing.assert_array_equal(turned, one(table, name, "Integrated Gradients")["score"])
    assert not np.array_equal(turned, before, equal_nan=True)
    seen.clear()
    monkeypatch.setattr(scores_module, "_code", lambda: "other code")
    scores(settings, METHODS, baselines=False)
    assert sum(seen) == 24 * 5


def test_an_unreadable_layout_is_replaced(settings, table):
    file = settings.folder / "scores.parquet"
    table.iloc[1:].drop(columns="group").to_parquet(file)
    pd.testing.assert_frame_equal(scores(settings, METHODS, **FAST), table)


def test_occlusion_has_a_row_for_every_window(settings):
    found = scores(settings, "Occlusion", per_class=1, folds=[0], windows=(45, 90), stride=30, baselines=False)
    assert set(found["method"]) == {"Occlusion 45", "Occlusion 90"} and set(found["sign"]) == {
        "positive", "negative", "absolute"
    }  # fmt: skip
    assert found.query("measure == 'peaks'").groupby("method", observed=True).size().tolist() == [12, 12]


def test_a_study_without_layer_maps(settings, monkeypatch):
    none = property(lambda self: np.zeros(len(self), bool))
    monkeypatch.setattr(study_module.Study, "has_layer_map", none)
    with pytest.raises(ValueError, match="no layer maps and no masks"):
        scores(settings, METHODS)


def test_images_without_a_layer_map_are_left_out(settings, table, monkeypatch):
    some = property(lambda self: np.arange(len(self)) % 2 == 0)
    monkeypatch.setattr(study_module.Study, "has_layer_map", some)
    found = scores(settings, METHODS, **FAST)
    assert found["name"].nunique() == 12
    names = set(found["name"])
    pd.testing.assert_series_equal(
        found["score"], table[table["name"].isin(names)]["score"].reset_index(drop=True), check_index=False
    )


def test_confidence_of_every_fold(settings, monkeypatch):
    arguments = {"cover": ("heatmap", "mask"), "part": ("important", "unimportant"), "thresholds": (0.5, 0.9)}
    found = confidence_scores(settings, METHODS[:2], folds=[1], **arguments)
    assert len(found) == 8 * 2 * 3 * 2 and set(found["map"]) == {"Grad-CAM", "Saliency"} and set(found["fold"]) == {1}
    study = cv.study_of(settings)
    which = [study.names.index(name) for name in dict.fromkeys(found["name"])]
    model, images = cv.load_fold(settings, "mobilenet_v2", 1), study.images(64, which)
    maps = explain(model, images, METHODS[:2], layer=32)
    expected = confidence(model, images, {method: to_heatmap(maps[method], 64) for method in maps}, **arguments)
    np.testing.assert_allclose(found["p_covered"], expected["p_covered"], atol=2e-3)
    assert (found["map"].to_numpy() == expected["map"]).all() and found["group"].notna().all()
    other = confidence_scores(settings, METHODS[:2], folds=[1], **arguments, fill="mean")
    monkeypatch.setattr(scores_module, "confidence", None)
    again = confidence_scores(settings, METHODS[:2], folds=[1], **arguments)
    pd.testing.assert_frame_equal(again, found)
    one = confidence_scores(settings, METHODS[1], folds=[1], **arguments)
    pd.testing.assert_frame_equal(one, found[found["map"] == METHODS[1]].reset_index(drop=True))
    assert not other["p_covered"].equals(found["p_covered"])
    seal = cv.fold_folder(settings, "mobilenet_v2", 1) / store.SEAL
    with monkeypatch.context() as patch:  # what counts is the network, not when or by which version it was sealed
        kept = seal.read_text()
        patch.setattr(scores_module, "confidence", None)
        seal.write_text(kept.replace("code", "other code"))
        pd.testing.assert_frame_equal(confidence_scores(settings, METHODS[:2], folds=[1], **arguments), found)
        seal.write_text(kept)


def test_localize_by_hand():
    layer_map = np.array([[0, 0, 0, 0], [32, 32, 32, 32], [255, 255, 255, 0], [128, 128, 64, 64]], np.uint8)
    heat = np.array([[0, 0.2, 0.1, 0], [0, 0.4, 0.6, 0], [0.1, 0.9, 1, 0.3], [0, 0.2, 1, 0.5]])
    values = dict(zip(MEASURES, localize(heat, layer_map).tolist(), strict=True))
    named = {(m, level, t): v for (m, level, t), v in values.items() if level == level}
    plain = {m: v for (m, level, t), v in values.items() if level != level}
    expected = {"hit_rate_1": 2, "hit_rate_2": 0.5, "hit_rate_1_displayed": 2, "peaks": 2, "peaks_displayed": 2}
    assert plain == pytest.approx(expected | {"weighted_coverage": (2 + 0.1 + 0.375) / 7})
    assert named["iou", 255, 0.6] == pytest.approx(2 / 5) and named["iou", 64, 0.95] == pytest.approx(1 / 3)
    flat = localize(np.stack([heat, 0 * heat]), layer_map)
    assert np.isnan(flat[1]).all() and flat.shape == (2, len(MEASURES)) and n_peaks(heat) == 2


def test_baselines_are_covered_like_any_map(settings):
    table = confidence_scores(settings, "Grad-CAM", folds=[1], baselines=True)
    study = cv.study_of(settings)
    assert list(table["map"].unique()) == [
        "Grad-CAM", "random map", "centre Gaussian", "edge map", "flat map", "layer map",
    ]  # fmt: skip
    assert table.loc[table["map"] == "flat map", "drop"].isna().all()
    which = [study.names.index(name) for name in table["name"].unique()]
    model, levels = cv.load_fold(settings, "mobilenet_v2", 1), study.layer_maps(64, which)
    expected = confidence(model, study.images(64, which), {"layer map": np.float32(levels / 255)})
    np.testing.assert_allclose(table.loc[table["map"] == "layer map", "p_covered"], expected["p_covered"], rtol=1e-4)
    alone = confidence_scores(settings, "Grad-CAM", folds=[1])
    assert alone["map"].unique().tolist() == ["Grad-CAM"]
