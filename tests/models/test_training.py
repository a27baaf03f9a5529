"""Training of one network: augmentation, what is kept, and resumption."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from helpers.data.phantom import phantoms
from helpers.models import training
from helpers.models.training import Classifier, augmentation, fit, predict
from helpers.settings import get_settings, seed_everything


@pytest.fixture(scope="module")
def study():
    return phantoms(8, size=64)


def tiny(seed=0):
    seed_everything(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
    )


def recipe(**changes):
    return get_settings("quick", image_size=32, device="cpu", **({"epochs": 3} | changes))


def parts(study):
    which = np.arange(len(study))
    return which[which % 4 != 0], which[which % 4 == 0]


def trained(study, folder, settings, key="k"):
    model = tiny()
    return model, fit(model, "mobilenet_v2", study, *parts(study), settings, folder, key)


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("kind", "size", "shape"), [("mild", 96, 96), ("reference", 224, 254), ("reference", 112, 127)]
)
def test_augmentation_gives_an_image_of_the_stated_size(kind, size, shape):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (180, 300, 3), dtype=np.uint8))
    seed_everything(0)
    one, two = (augmentation(kind, size)(picture) for _ in range(2))
    assert one.shape == (3, shape, shape)
    assert one.dtype == torch.float32
    assert 0 <= one.min() <= one.max() <= 1
    assert not torch.equal(one, two)


def test_reference_augmentation_has_the_study_s_steps():
    names = [type(step).__name__ for step in augmentation("reference", 224).transforms]
    assert names[:4] == ["Resize", "RandomResizedCrop", "RandomHorizontalFlip", "RandomRotation"]
    resize, crop, _, rotation = augmentation("reference", 224).transforms[:4]
    assert (resize.size, tuple(crop.size), rotation.degrees) == ([260], (254, 254), [-15.0, 15.0])


def test_unknown_augmentation_is_an_error():
    with pytest.raises(ValueError, match="got 'wild'"):
        augmentation("wild", 96)


def test_two_trainings_give_the_same_network(study, tmp_path):
    one, first = trained(study, tmp_path / "a", recipe())
    two, second = trained(study, tmp_path / "b", recipe())
    assert same(one, two)
    assert first.curves == second.curves


def test_an_interrupted_training_ends_in_the_same_network(study, tmp_path, monkeypatch):
    whole, expected = trained(study, tmp_path / "whole", recipe())
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    original = Classifier.training_step

    def interrupted(self, batch, index):
        if self.current_epoch == 2:
            raise OSError("power cut")
        return original(self, batch, index)

    monkeypatch.setattr(Classifier, "training_step", interrupted)
    with pytest.raises(OSError, match="power cut"):
        trained(study, tmp_path / "cut", recipe())
    assert {p.name for p in (tmp_path / "cut").iterdir()} == {"unfinished-k.ckpt", "unfinished-k.best.pth"}
    trained_in = set()

    def counted(self, batch, index):
        trained_in.add(self.current_epoch)
        return original(self, batch, index)

    monkeypatch.setattr(Classifier, "training_step", counted)
    resumed, classifier = trained(study, tmp_path / "cut", recipe())
    assert trained_in == {2}
    assert same(whole, resumed)
    assert classifier.curves == expected.curves


def test_a_short_training_writes_no_checkpoint(study, tmp_path):
    trained(study, tmp_path, recipe())
    assert [p.name for p in tmp_path.iterdir()] == ["unfinished-k.best.pth"]


def test_a_checkpoint_of_another_recipe_is_not_resumed(study, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    trained(study, tmp_path, recipe(), key="one")
    trained(study, tmp_path, recipe(), key="two")
    assert {p.name for p in tmp_path.iterdir()} == {"unfinished-two.ckpt", "unfinished-two.best.pth"}


@pytest.mark.parametrize(("keep", "expected"), [("best", 2), ("first_best", 1)])
def test_best_accuracy_is_kept_and_ties_follow_the_setting(study, tmp_path, monkeypatch, keep, expected):
    outcomes = iter([(0.5, 1.0), (0.75, 0.8), (0.75, 0.4), (0.5, 0.1)])
    original = Classifier.validation_step

    def staged(self, batch, index):
        original(self, batch, index)
        accuracy, loss = next(outcomes)
        self._validation[:] = [(loss * 8, accuracy * 8, 8)]

    monkeypatch.setattr(Classifier, "validation_step", staged)
    _, classifier = trained(study, tmp_path, recipe(epochs=4, keep=keep))
    assert classifier.best["epoch"] == expected


def test_curves_hold_one_row_per_epoch_with_finite_numbers(study, tmp_path):
    _, classifier = trained(study, tmp_path, recipe())
    assert [row["epoch"] for row in classifier.curves] == [0, 1, 2]
    names = {"epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate"}
    assert all(set(row) == names and np.isfinite(list(row.values())).all() for row in classifier.curves)


def test_a_loss_that_is_not_finite_is_an_error(study, tmp_path):
    with pytest.raises(FloatingPointError, match="training loss of epoch"):
        trained(study, tmp_path, recipe(optimizer="sgd", learning_rate=1e30, schedule="step"))


def test_a_last_batch_of_one_image_is_left_out(study, tmp_path):
    model, settings = tiny(), recipe(epochs=1)
    settings = dataclasses.replace(settings, batch_size=8)
    which = np.arange(17)
    sizes = []
    model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)) if module.training else None)
    fit(model, "mobilenet_v2", study, which, np.arange(20, 28), settings, tmp_path, "k")
    assert sizes == [8, 8]


def test_probabilities_sum_to_one_and_do_not_depend_on_the_batch():
    model = tiny().eval()
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    probs = predict(model, images)
    assert probs.shape == (5, 4)
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(predict(model, images, batch_size=2), probs, atol=1e-6)


@pytest.mark.parametrize(
    ("found", "expected"),
    [({}, "32-true"), ({"avx512_bf16": False}, "32-true"), ({"avx512_bf16": True}, "bf16-mixed"),
     ({"amx_bf16": True}, "bf16-mixed")],
)  # fmt: skip
def test_bfloat16_only_where_the_processor_has_it(study, tmp_path, monkeypatch, found, expected):
    asked = []

    class Trainer(training.lightning.Trainer):
        def __init__(self, **options):
            asked.append(options["precision"])
            super().__init__(**options | {"precision": "32-true"})

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(training.lightning, "Trainer", Trainer)
    settings = get_settings("quick", image_size=32, epochs=1, bfloat16=("mobilenet_v2",), device="cpu")
    for architecture in ("mobilenet_v2", "googlenet"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, len(study.classes)))
        fit(model, architecture, study, [0, 1], [2, 3], settings, tmp_path / architecture, "key")
    assert asked == [expected, "32-true"]
