"""Networks for several labels: endings, starts, training that is kept and found again."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from helpers.data.photographs import open_photographs
from helpers.explain.engine import explain
from helpers.models import multi_label
from helpers.models import training as training_module
from helpers.models.multi_label import LAYER, Recipe, build, get_recipe, predict, trained
from helpers.settings import get_settings


@pytest.fixture(scope="module")
def photographs():
    return open_photographs(n_images=60)


@pytest.fixture
def settings(tmp_path):
    return get_settings("quick", results=tmp_path, device="cpu")


RECIPE = Recipe(epochs=2, batch_size=16)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(head="pool"), Recipe("vgg16", image_size=64, width=4)])
def test_the_map_of_hirescam_adds_up_to_the_logit(recipe):
    model, images = build(recipe, 5), np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    maps = explain(model, images, ("Grad-CAM", "HiResCAM"), np.tile(np.arange(5), (2, 1)), LAYER)
    total = maps["HiResCAM"].values.sum((2, 3)) + model.classifier.bias.detach().numpy()
    np.testing.assert_allclose(total, maps["logit"].values, atol=1e-5)
    same = np.allclose(maps["Grad-CAM"].values, maps["HiResCAM"].values, atol=1e-7)
    assert same == (recipe.head == "pool")


def test_the_layer_is_the_one_that_explain_takes_by_itself():
    assert explain(build(Recipe(), 2), np.zeros((1, 3, 64, 64), np.float32), "HiResCAM").attrs["layer"] == LAYER


def test_normalisation_is_inside():
    mean = torch.tensor(multi_label.MEAN)[:, None, None].expand(1, 3, 64, 64)
    assert multi_label.Normalise()(mean).abs().max() < 1e-6


def test_the_profiles_differ_and_fields_can_be_changed():
    paper = get_recipe("paper")
    assert (paper.body, paper.head, paper.image_size, paper.batch_size) == ("vgg16", "flatten", 320, 64)
    assert (paper.optimizer, paper.learning_rate, paper.momentum, paper.weight_decay) == ("sgd", 1e-3, 0.99, 1e-7)
    assert get_recipe("quick", head="pool", epochs=None) == Recipe(head="pool")


@pytest.mark.parametrize(
    "change", [{"body": "large"}, {"head": "max"}, {"optimizer": "adam"}, {"epochs": 0}, {"image_size": 16}]
)
def test_a_recipe_that_cannot_be_is_an_error_that_names_the_field(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Recipe(**change)
    with pytest.raises(ValueError, match="profile"):
        get_recipe("slow")


def test_the_start_may_be_a_file_of_torchvisions_vgg(tmp_path):
    body = build(Recipe("vgg16"), 2).features[0].state_dict()
    state = {f"features.{name}": value + 1 for name, value in body.items()}
    save_file(state, tmp_path / "vgg.safetensors")
    model = build(Recipe("vgg16", weights=str(tmp_path / "vgg.safetensors")), 2)
    torch.testing.assert_close(model.features[0][0].weight, state["features.0.weight"])
    state.pop("features.0.weight")
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"less\.safetensors do not fit"):
        build(Recipe("vgg16", weights=str(tmp_path / "less.safetensors")), 2)
    with pytest.raises(ValueError, match="are for the body 'vgg16'"):
        build(Recipe(weights="imagenet"), 2)
    with pytest.raises(FileNotFoundError):
        build(Recipe("vgg16", weights=str(tmp_path / "missing.pth")), 2)


def test_equal_seeds_build_equal_networks():
    one, two, other = build(Recipe(), 2), build(Recipe(), 2), build(Recipe(), 2, seed=1)
    torch.testing.assert_close(one.classifier.weight, two.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


def test_a_training_is_kept_and_found_again(photographs, settings, capsys):
    model, curve = trained(settings, photographs, RECIPE)
    assert "trained now (nothing there)" in capsys.readouterr().out
    assert curve["loss"].iloc[-1] < curve["loss"].iloc[0] and len(curve) == 2
    assert not list(settings.results.rglob("unfinished-*"))
    again, same = trained(settings, photographs, RECIPE)
    assert "found" in capsys.readouterr().out
    pd.testing.assert_frame_equal(curve, same)
    images = photographs.images(64, photographs.which("test"))
    np.testing.assert_array_equal(predict(model, images), predict(again, images))
    trained(settings, photographs, get_recipe("quick", epochs=1, batch_size=16))
    assert "trained now (epochs)" in capsys.readouterr().out


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(photographs, settings, tmp_path, monkeypatch):
    whole, _ = trained(settings, photographs, RECIPE)
    monkeypatch.setattr(training_module, "CHECKPOINT_SECONDS", 0)
    other = get_settings("quick", results=tmp_path / "other", device="cpu")
    keep = multi_label._Training.on_train_epoch_end

    def stop(self):
        keep(self)
        if self.current_epoch == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(multi_label._Training, "on_train_epoch_end", stop)
        trained(other, photographs, RECIPE)
    assert len(list(other.results.rglob("unfinished-*.ckpt"))) == 1
    resumed, curve = trained(other, photographs, RECIPE)
    assert len(curve) == 2
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)


def test_probabilities_are_those_of_each_class_by_itself():
    model, images = build(Recipe(), 3), np.random.default_rng(0).random((5, 3, 64, 64), np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).double().sigmoid().numpy()
    np.testing.assert_allclose(predict(model, images, 2), expected, atol=1e-6)


def test_one_picture_is_not_enough(settings):
    with pytest.raises(ValueError, match="no two pictures"):
        trained(settings, open_photographs(n_images=1), RECIPE)
