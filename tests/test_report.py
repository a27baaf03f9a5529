"""The page about a network: verdicts from known numbers, missing ones counted, one file that needs no other."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers.evaluate import scores as scores_module
from helpers.evaluate.statistics import intervals
from helpers.evaluate.verdict import ON_MAP, ON_NETWORK
from helpers.models import cross_validation as cv
from helpers.report import cover_figure, draw_scheme, evidence, judge, scheme_figure, summary, write_report


def table(right=1.0, hit_rate=3.0, trust=0.5, n=20):
    """Evidence of n images in n groups and two folds, all alike; every second one is covered."""
    number = np.arange(n)
    covered = number % 2 == 0
    return pd.DataFrame({
        "network": "net", "fold": number % 2, "name": [f"image {k}" for k in number],
        "group": [f"group {k}" for k in number], "class": "A", "predicted": "A", "right": number < right * n,
        "map": "Grad-CAM", "layer_map": True, "covered": covered, "hit_rate": float(hit_rate),
        "coverage": 0.5, "background": 0.1,
        "drop_important": np.where(covered, trust, np.nan), "drop_unimportant": np.where(covered, 0.0, np.nan),
        "trust": np.where(covered, 0.3, np.nan), "beyond": np.where(covered, trust, np.nan),
    })  # fmt: skip


@pytest.mark.parametrize("right", [1.0, 0.2])
@pytest.mark.parametrize("hit_rate", [3.0, -1.0])
@pytest.mark.parametrize("trust", [0.5, -0.5])
def test_every_corner_of_both_schemes(right, hit_rate, trust):
    found = judge(table(right, hit_rate, trust), "net")
    assert found.on_map.verdict == ON_MAP[trust > 0, hit_rate > 1]
    assert found.on_network.verdict == ON_NETWORK[right > 0.9, hit_rate > 1]
    assert found.sentence.startswith("accurate" if right > 0.9 else "not accurate")
    assert ("right place" in found.sentence) == (hit_rate > 1)
    assert ("not known" in found.sentence) == (trust < 0)


def test_a_network_on_a_shortcut():
    assert judge(table(hit_rate=-1), "net").sentence == "accurate, looks at the wrong place"


def test_thresholds_are_handed_on():
    assert judge(table(hit_rate=1.5), "net", min_focus=1.6).on_network.verdict == ON_NETWORK[True, False]
    assert judge(table(right=0.8), "net", min_accuracy=0.7).on_network.verdict == ON_NETWORK[True, True]
    assert judge(table(trust=0.1), "net", min_trust=0.2).on_map.verdict == ON_MAP[False, True]
    with pytest.raises(ValueError, match="min_accuracy, min_focus or min_trust, got least"):
        judge(table(), "net", least=1)


def test_what_is_missing_is_counted_not_averaged():
    rows = table()
    rows.loc[:3, ["hit_rate", "trust", "beyond"]] = np.nan
    rows.loc[:1, "layer_map"] = False
    found = judge(rows, "net")
    assert found.on_network.numbers["focus"].mean == 3
    assert found.on_network.missing == {"accuracy": 0, "focus": 4}
    assert found.counts[1].startswith("2 images without a layer map")
    assert found.counts[2].startswith("2 of 18 maps flat")
    assert found.counts[3].startswith("10 images covered, 2 of their maps flat")


def test_what_is_not_in_the_table():
    with pytest.raises(ValueError, match="no rows of net, HiResCAM; the table holds net, Grad-CAM"):
        judge(table(), "net", "HiResCAM")


def test_a_scheme_is_drawn_with_its_verdicts_and_points():
    found = {name: judge(table(hit_rate=rate), "net").on_network for name, rate in (("a", 2), ("b", 0))}
    _, axis = plt.subplots()
    draw_scheme(axis, found)
    assert {text.get_text().replace("\n", " ") for text in axis.texts} == set(ON_NETWORK.values())
    assert axis.get_legend_handles_labels()[1] == ["a", "b"]
    assert [list(container[0].get_xdata()) for container in axis.containers] == [[2], [0]]
    with pytest.raises(ValueError, match="same thresholds"):
        draw_scheme(axis, found | {"c": judge(table(), "net", min_focus=2).on_network})
    figure = scheme_figure(judge(table(trust=1.0), "net"))
    for axis in figure.axes:  # the words stay clear of the point and its bars, though it is as high as it can be
        words = [text.get_window_extent(figure.canvas.get_renderer()) for text in axis.texts]
        point = axis.transData.transform([line.get_xydata()[0] for line in axis.containers[0][:1]])[0]
        assert not any(box.contains(*point) for box in words)
    assert ["100% of samples" in text.get_text() for text in figure.axes[1].texts].count(True) == 1
    plt.close("all")


@pytest.fixture(scope="module")
def settings(trained_study):
    return trained_study(folds=[1], images_per_class=6, image_size=64)


@pytest.fixture(scope="module")
def proof(settings):
    return evidence(settings, ("Grad-CAM", "HiResCAM"), per_class=1, folds=[1])


def test_the_evidence_holds_every_test_image_once_per_map(settings, proof):
    assert not proof.duplicated(["network", "name", "map"]).any()
    maps = ["Grad-CAM", "HiResCAM", "random map", "centre Gaussian", "edge map", "flat map", "layer map"]
    assert sorted(proof["map"].unique()) == sorted(maps)
    sizes = proof.groupby("map").size()
    assert sizes.nunique() == 1
    told = pd.read_parquet(cv.fold_folder(settings, "mobilenet_v2", 1) / "predictions.parquet").query("part == 'test'")
    first = proof[proof["map"] == "Grad-CAM"]
    assert set(first["name"]) == set(told["name"])
    assert first["right"].mean() == (told["label"] == told["predicted"]).mean()
    assert (first.groupby("class")["covered"].sum() == 1).all()
    np.testing.assert_allclose(first["trust"], first["drop_important"] - first["drop_unimportant"])
    spot = proof[proof["map"] == "centre Gaussian"].set_index("name").loc[first["name"], "trust"]
    np.testing.assert_allclose(first["beyond"], first["trust"] - spot.to_numpy())
    assert (proof.loc[proof["map"] == "layer map", "hit_rate"] == 3).all()
    assert proof.loc[proof["map"] == "flat map", ["hit_rate", "trust"]].isna().all(axis=None)
    assert first.loc[~first["covered"], "trust"].isna().all()


def test_the_page_needs_no_other_file(settings, proof):
    found = judge(proof, "mobilenet_v2", "centre Gaussian")
    path = write_report(settings, proof, judge(proof, "mobilenet_v2", "HiResCAM"), title="A < B")
    page = path.read_text(encoding="utf-8")
    assert path == settings.folder / "reports" / "mobilenet_v2.html"
    assert "A &lt; B" in page
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert len(re.findall(r"<img [^>]*alt=\"[^\"]+\"", page)) == len(re.findall("<img", page)) == 2
    assert all(name in page for name in ("random map", "centre Gaussian", "edge map", "flat map", "layer map"))
    assert str(found.on_network.numbers["focus"]) in page  # the baseline's Hit Rate stands in the table
    own = proof[proof["map"] == "HiResCAM"]
    assert all(text in page.split("By class")[1] for text in intervals(own, "class", "trust")["text"])
    files = {file.name for file in path.parent.iterdir()}
    kinds = {f"mobilenet_v2_{name}.{kind}" for name in ("schemes", "covers") for kind in ("png", "svg")}
    assert files == kinds | {"mobilenet_v2.html"}
    again = write_report(settings, proof, judge(proof, "mobilenet_v2", "HiResCAM"), title="A < B")
    assert again.read_text(encoding="utf-8") == page


def test_the_cover_figure_shows_what_is_left(settings, proof):
    names = proof.loc[proof["covered"], "name"].unique()[:2]
    figure = cover_figure(settings, "mobilenet_v2", names)
    rows = np.array(figure.axes).reshape(2, 4)
    whole, heat, important, unimportant = (axis.images[0].get_array() for axis in rows[1])
    np.testing.assert_allclose(important + unimportant, whole, atol=1e-5)
    np.testing.assert_allclose(unimportant, whole * np.asarray(heat)[..., None], atol=1e-5)
    plt.close(figure)


def test_the_summary_has_a_row_per_map(proof):
    found = summary(proof, "mobilenet_v2")
    assert len(found) == 7
    assert found.loc["layer map", "Hit Rate 1"].startswith("3.00 [3.00, 3.00]")
    assert found.loc["flat map", "trust"].startswith("no value")


def test_what_was_covered_for_several_methods_serves_one(settings, proof, monkeypatch):
    monkeypatch.setattr(scores_module, "confidence", None)
    found = evidence(settings, "HiResCAM", per_class=1, folds=[1])
    wanted = proof[proof["map"] != "Grad-CAM"].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, wanted)
