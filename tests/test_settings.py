"""Settings: profiles, overrides, seeds, device."""

import numpy as np
import pytest
import torch

from helpers.settings import PROFILES, Settings, get_settings, pick_device, seed_everything


def test_paper_profile_is_the_study_s_recipe():
    paper = get_settings("paper")
    assert (paper.optimizer, paper.learning_rate, paper.momentum, paper.weight_decay) == ("sgd", 1e-4, 0.9, 0.0)
    assert (paper.schedule, paper.epochs, paper.batch_size, paper.image_size) == ("step", 100, 8, 224)
    assert (paper.weights, paper.augmentation, paper.keep, paper.dropout) == (
        "imagenet",
        "reference",
        "first_best",
        None,
    )


def test_none_keeps_the_profile_s_value_and_others_replace_it():
    settings = get_settings("quick", epochs=None, seed=7, architectures="googlenet")
    assert (settings.epochs, settings.seed, settings.architectures) == (PROFILES["quick"].epochs, 7, ("googlenet",))


def test_an_architecture_takes_its_own_value_of_a_mapping():
    settings = get_settings("quick", learning_rate={"googlenet": 0.5, "default": 0.25}, epochs=3)
    assert (settings.of("googlenet").learning_rate, settings.of("resnet101").learning_rate) == (0.5, 0.25)
    assert settings.of("googlenet").epochs == 3


def test_own_data_has_a_folder_of_its_own(tmp_path):
    one, two = (get_settings("quick", data=tmp_path / name / "my study") for name in "ab")
    assert one.folder != two.folder
    assert one.folder.name.startswith("my_study-")
    assert get_settings("quick").folder.name == "phantoms"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'; did you mean 'epochs'"),
        ({"architectures": ["resnet10"]}, "unknown 'resnet10'.*did you mean 'resnet101'"),
        ({"optimizer": "adam"}, r"optimizer: expected one of \['adamw', 'sgd'\], got 'adam'"),
        ({"epochs": 0}, "epochs: expected a whole number of at least 1, got 0"),
        ({"epochs": 2.5}, "epochs: expected a whole number"),
        ({"epochs": {"default": 0}}, "epochs: expected a whole number of at least 1"),
        ({"n_folds": 2}, "n_folds: .*at least 3, got 2"),
    ],
)
def test_a_wrong_setting_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        get_settings("quick", **changes)


def test_an_unknown_profile_is_named():
    with pytest.raises(ValueError, match="unknown profile 'papr'.*did you mean 'paper'"):
        get_settings("papr")


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        Settings("quick", "phantoms").seed = 3


def test_seeds_repeat_every_generator():
    def draws():
        seed_everything(5)
        return np.random.rand(), float(torch.rand(1))

    assert draws() == draws()


def test_cuda_is_an_error_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(RuntimeError, match="finds no CUDA device"):
        pick_device("cuda")
    with pytest.raises(ValueError, match="got 'gpu'"):
        pick_device("gpu")
