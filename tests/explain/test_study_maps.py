"""Maps of a whole study: complete, from the right network, resumed where they were interrupted."""

import shutil

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from helpers import compute
from helpers.explain import study_maps
from helpers.explain.engine import explain
from helpers.explain.study_maps import map_costs, maps
from helpers.models import cross_validation as cv

METHODS = ("Grad-CAM", "Saliency")


@pytest.fixture(scope="module")
def settings(trained_study):
    return trained_study(images_per_class=10, image_size=32)


def test_every_image_is_explained_by_the_network_of_its_fold(settings):
    found = maps(settings, METHODS, targets="true")["mobilenet_v2"]
    study, folds = cv.study_of(settings), pd.read_csv(settings.folder / "folds.csv").set_index("name")["fold"]
    assert sorted(found["name"].values) == sorted(study.names) and tuple(found) == METHODS
    assert folds[found["name"].values].tolist() == found["fold"].values.tolist()
    labels = dict(zip(study.names, study.labels, strict=True))
    assert [labels[name] for name in found["name"].values] == found["target"].values.tolist()
    for i in (0, 7, 33):
        which, fold = study.names.index(found["name"].values[i]), int(found["fold"][i])
        alone = explain(
            cv.load_fold(settings, "mobilenet_v2", fold), study.images(32, [which]), METHODS, study.labels[[which]], 32
        )
        for method in METHODS:
            np.testing.assert_allclose(found[method][i], alone[method][0], rtol=1e-3, atol=1e-5)


def test_what_is_there_is_not_made_again(settings, capsys, monkeypatch):
    first = maps(settings, METHODS)["mobilenet_v2"].load()
    monkeypatch.setattr(study_maps, "explain", None)
    again = maps(settings, METHODS)["mobilenet_v2"]
    assert "every map found" in capsys.readouterr().out
    assert again.equals(first)
    assert maps(settings, "Saliency", per_class=2)["mobilenet_v2"].sizes["image"] == 3 * 4 * 2
    assert set(maps(settings, "Saliency", folds=[1])["mobilenet_v2"]["fold"].values) == {1}


def tasks_of(monkeypatch, settings, *arguments, **options):
    """Tasks that a call would run."""
    seen = {}
    monkeypatch.setattr(study_maps, "_make", lambda settings, tasks: seen.update(tasks))
    monkeypatch.setattr(study_maps, "_open", lambda groups: None)
    maps(settings, *arguments, **options)
    monkeypatch.undo()
    return seen


def test_only_what_hangs_on_a_change_is_made_again(settings, monkeypatch):
    maps(settings, METHODS)
    assert tasks_of(monkeypatch, settings, METHODS) == {}
    assert tasks_of(monkeypatch, settings, METHODS, steps=7) == {}
    changed = tasks_of(monkeypatch, settings, METHODS, eigen_smooth=True)
    assert {method for task in changed.values() for method in task[5]} == {"Grad-CAM"}
    assert len(tasks_of(monkeypatch, settings, METHODS, layer=8)) == 6
    group = next(settings.folder.glob("maps.zarr/mobilenet_v2/*/pixels/Saliency/predicted-*/fold-1-round-0"))
    shutil.rmtree(group)
    assert list(tasks_of(monkeypatch, settings, METHODS)) == ["mobilenet_v2, fold 1, from round 0"]
    maps(settings, METHODS)
    monkeypatch.setattr(study_maps, "_code", lambda: "other code")
    assert len(tasks_of(monkeypatch, settings, METHODS)) == 6


def test_a_sample_and_the_whole_share_their_maps_and_choices_stand_side_by_side(settings, monkeypatch):
    maps(settings, "HiResCAM", layer=8, per_class=1)
    maps(settings, "HiResCAM", layer=8)
    assert tasks_of(monkeypatch, settings, "HiResCAM", layer=8, per_class=1) == {}
    sample = maps(settings, "HiResCAM", layer=8, per_class=1)["mobilenet_v2"]
    whole = maps(settings, "HiResCAM", layer=8)["mobilenet_v2"]
    assert set(sample["name"].values) <= set(whole["name"].values)
    maps(settings, "HiResCAM", layer=8, targets="true")
    maps(settings, "HiResCAM", layer=8, precision="bfloat16")
    assert tasks_of(monkeypatch, settings, "HiResCAM", layer=8) == {}


def test_a_failed_batch_loses_nothing_else(settings, monkeypatch):
    whole = study_maps.explain

    def failing(model, images, *arguments, **options):
        if len(seen) == 2:
            seen.append(None)
            raise ValueError("broken")
        seen.append(images)
        return whole(model, images, *arguments, **options)

    seen = []
    monkeypatch.setattr(study_maps, "explain", failing)
    with pytest.raises(compute.TasksFailed, match="1 of 6 tasks failed.*kept"):
        maps(settings, "HiResCAM")
    monkeypatch.setattr(study_maps, "explain", whole)
    assert len(tasks_of(monkeypatch, settings, "HiResCAM")) == 1
    assert maps(settings, "HiResCAM")["mobilenet_v2"].sizes["image"] == 40


def test_the_hierarchy_opens_without_this_package(settings):
    maps(settings, METHODS)
    groups = sorted(settings.folder.glob("maps.zarr/mobilenet_v2/random-32px/stride-32/Grad-CAM/predicted-*/*"))
    assert [group.name for group in groups if not group.name.startswith(".")][0] == "fold-0-round-0"
    with xr.open_zarr(groups[0], consolidated=False) as batch:
        assert batch["Grad-CAM"].attrs["layer"] == "features.18"


def test_costs(settings):
    maps(settings, METHODS)
    costs = map_costs(settings).set_index(["method", "layer"])
    images, forwards = costs.loc[("Saliency", "pixels"), ["images", "forwards"]]
    assert images >= 40 and forwards == images
    assert (costs["seconds"] > 0).all()


def test_arguments_that_do_not_fit(settings):
    with pytest.raises(ValueError, match="targets: expected one of"):
        maps(settings, METHODS, targets="all")
    with pytest.raises(ValueError, match="unknown 'GradCAM'"):
        maps(settings, "GradCAM")
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        maps(settings, METHODS, step=1)
