"""Cross-validated training: what is reused, what is trained again, what is kept."""

import time
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision import models

from helpers import compute
from helpers.data.phantom import phantoms
from helpers.models import cross_validation as cv
from helpers.settings import get_settings

SMALL = {
    "architectures": "mobilenet_v2",
    "images_per_class": 10,
    "image_size": 32,
    "source_size": 32,
    "source_images_per_class": 10,
    "source_epochs": 1,
    "epochs": 1,
    "device": "cpu",
    "workers": 0,
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    made = get_settings("quick", results=tmp_path_factory.mktemp("results"), **SMALL)
    status = cv.train_folds(made)
    assert list(status["status"]) == ["trained"] * 5
    assert set(status["why"]) == {"nothing there"}
    return made


def test_a_second_call_trains_nothing_within_a_second(settings, capsys):
    begin = time.perf_counter()
    status = cv.train_folds(settings)
    assert time.perf_counter() - begin < 1
    assert list(status["status"]) == ["found"] * 5
    assert "5 of 5 networks found, made from the same data, settings and code: nothing" in capsys.readouterr().out


def test_every_image_is_tested_once_by_a_network_that_has_not_seen_it(settings):
    table = cv.predictions(settings)
    study = cv.study_of(settings)
    test, folds = table[table["part"] == "test"], pd.read_csv(settings.folder / "folds.csv")
    assert sorted(test["name"]) == sorted(study.names)
    assert dict(zip(test["name"], test["fold"], strict=True)) == dict(zip(folds["name"], folds["fold"], strict=True))
    for _, fold in table.groupby("fold"):
        assert not set(fold.loc[fold["part"] == "val", "name"]) & set(fold.loc[fold["part"] == "test", "name"])


def test_probabilities_are_kept_with_the_class_they_predict(settings):
    table = cv.predictions(settings)
    probs = table[[f"p_{name}" for name in cv.study_of(settings).classes]]
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    assert list(probs.idxmax(axis=1).str.removeprefix("p_")) == list(table["predicted"])


def test_a_kept_network_gives_its_kept_probabilities(settings):
    study, table = cv.study_of(settings), cv.predictions(settings)
    table = table[(table["fold"] == 2) & (table["part"] == "test")]
    which = [study.names.index(name) for name in table["name"]]
    probs = cv.predict(cv.load_fold(settings, "mobilenet_v2", 2), study.images(settings.image_size, which))
    np.testing.assert_allclose(probs, table[[f"p_{name}" for name in study.classes]], atol=1e-6)


def test_the_kept_epoch_is_marked_in_the_curves(settings):
    table = cv.curves(settings)
    assert len(table) == 5 * settings.epochs
    assert (table.groupby(["architecture", "fold"])["kept"].sum() == 1).all()


def test_two_runs_give_identical_tables(settings, tmp_path):
    again = replace(settings, results=tmp_path)
    cv.train_folds(again)
    pd.testing.assert_frame_equal(cv.predictions(again), cv.predictions(settings))
    pd.testing.assert_frame_equal(cv.curves(again), cv.curves(settings))


def test_processes_give_the_tables_of_one_process(settings, tmp_path):
    again = replace(settings, results=tmp_path, workers=2)
    cv.train_folds(again)
    pd.testing.assert_frame_equal(cv.predictions(again), cv.predictions(settings))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"learning_rate": 2e-3}, "learning_rate"),
        ({"epochs": 2}, "epochs"),
        ({"seed": 1}, "data, fold, seed, start"),
        ({"source_epochs": 2}, "start"),
        ({"images_per_class": 11}, "data, fold"),
    ],
)
def test_a_changed_setting_is_named(settings, change, why):
    other = replace(settings, **change)
    study = cv.study_of(other)
    parts = cv.split(cv.make_folds(study, other.n_folds, other.seed), 0)
    folder = cv.fold_folder(settings, "mobilenet_v2", 0)
    made_from = cv._made_from(other, study, parts, "mobilenet_v2", 0)
    assert ", ".join(cv.store.changed(folder, made_from)) == why


def test_another_architecture_s_rate_changes_nothing(settings):
    rates = {"googlenet": 0.1, "default": settings.of("mobilenet_v2").learning_rate}
    assert set(cv.train_folds(replace(settings, learning_rate=rates))["status"]) == {"found"}


def test_a_finished_fold_leaves_nothing_unfinished(settings):
    names = {path.name for path in cv.fold_folder(settings, "mobilenet_v2", 0).iterdir()}
    assert names == {"model.safetensors", "curves.parquet", "predictions.parquet", "made_from.json"}


def test_another_start_is_kept_beside(settings):
    other = replace(settings, weights="random")
    assert set(cv.train_folds(other, folds=[1])["status"]) == {"trained"}
    assert set(cv.train_folds(settings)["status"]) == {"found"}
    assert cv.fold_folder(other, "mobilenet_v2", 1).parent.name == "random-32px"


def test_only_the_missing_fold_is_trained_and_a_failure_spares_the_others(settings, tmp_path, monkeypatch):
    again = replace(settings, results=tmp_path)
    original = cv.train_fold

    def failing(settings, architecture, fold):
        if fold == 1:
            raise MemoryError("no room")
        original(settings, architecture, fold)

    monkeypatch.setattr(cv, "train_fold", failing)
    with pytest.raises(compute.TasksFailed, match="mobilenet_v2, fold 1: MemoryError: no room"):
        cv.train_folds(again)
    with pytest.raises(FileNotFoundError, match="mobilenet_v2, fold 1: not trained yet"):
        cv.load_fold(again, "mobilenet_v2", 1)
    monkeypatch.setattr(cv, "train_fold", original)
    assert list(cv.train_folds(again)["status"]) == ["found", "trained", "found", "found", "found"]


def test_a_fold_that_does_not_exist_is_an_error(settings):
    with pytest.raises(ValueError, match="fold"):
        cv.train_folds(settings, folds=[5])


def mendeley_archive(path, per_class=10):
    """A zip of the published layout: images/1AD.png, masks/1AD.png with two grey levels."""
    study = phantoms(per_class, size=240, classes=("AD", "PS"))
    number = 0
    with zipfile.ZipFile(path, "w") as archive:
        for i, label in enumerate(study.labels):
            number += 1
            mask = np.zeros((240, 240), np.uint8)
            mask[study.mask(i, "epidermis")] = 200
            mask[study.mask(i, "sleb")] = 90
            for folder, picture in (("images", study.picture(i)), ("masks", Image.fromarray(mask))):
                with archive.open(f"{folder}/{number}{study.classes[label]}.png", "w") as file:
                    picture.save(file, "PNG")
    return path


@pytest.mark.filterwarnings("ignore:.*group")
def test_paper_profile_on_a_miniature_archive(tmp_path):
    torch.manual_seed(0)
    torch.save(models.mobilenet_v2(weights=None).state_dict(), tmp_path / "weights.pth")
    settings = get_settings(
        "paper",
        data=mendeley_archive(tmp_path / "archive.zip"),
        results=tmp_path / "results",
        weights=tmp_path / "weights.pth",
        architectures="mobilenet_v2",
        epochs=2,
        device="cpu",
        workers=0,
    )
    cv.train_folds(settings)
    table = cv.predictions(settings)
    assert len(table[table["part"] == "test"]) == 20
    assert {"p_AD", "p_PS"} <= set(table.columns)
    curves = cv.curves(settings)
    assert (curves["learning_rate"] == 1e-4).all()
    assert len(curves) == 10
    assert np.isfinite(curves[["train_loss", "val_loss"]]).all(axis=None)
    assert cv.study_of(settings).has_layer_map.all()
    assert cv.fold_folder(settings, "mobilenet_v2", 0).parent.name == "weights-224px"
