import numpy as np
import pytest
import torch

from helpers import store
from helpers.data.chest_ct import draw_change, phantom_volumes
from helpers.data.organs import allowed_regions, organ_grids
from helpers.models import ct_training
from helpers.models import training as training_module
from helpers.models.axialnet import mask_loss
from helpers.models.ct_training import PAPER, QUICK, Examples, Experiment, fit

TINY = QUICK.vary(trunk=((4, 6), (6, 2), 1), channels=(4,), epochs=3, weight=1.0)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    volumes = phantom_volumes(8, seed=4)
    sets = {"train": volumes.subset(slice(0, 4)), "val": volumes.subset(slice(4, 6)), "test": volumes.subset([6, 7])}
    made = Experiment(tmp_path_factory.mktemp("ct"), sets, device="cpu")
    made.run([TINY], workers=0)
    return made


def test_recipes_build_the_networks_they_describe():
    paper = PAPER.vary(weights="random").network(3)
    assert paper.slices.grid == 6 and paper.slices.checkpointing and PAPER.weights == "imagenet"
    assert (PAPER.batch_size, PAPER.learning_rate, PAPER.momentum, PAPER.patience) == (1, 1e-3, 0.99, 15)
    quick = QUICK.network(7)
    assert quick.slices.fc.weight.shape[0] == 7 and QUICK.shape[1] == 84
    again = QUICK.network(7)
    assert all(torch.equal(a, b) for a, b in zip(quick.parameters(), again.parameters(), strict=True))
    names = {QUICK.name, QUICK.vary(weight=3).name, QUICK.vary(seed=1).name, QUICK.vary(cam="Grad-CAM").name}
    assert len(names | {QUICK.vary(head="pooled").name, QUICK.vary(norm="l2").name}) == 6


def test_examples_change_volume_and_region_together_and_repeatably(experiment):
    volumes = experiment.volumes("train")
    grids, _ = organ_grids(volumes, TINY.shape, (27, 7, 7))
    plain, changed = (Examples(volumes, grids, TINY, augment) for augment in (False, True))
    assert len(plain) == 4
    for position in range(4):
        x, labels, allowed = plain[position]
        assert x.shape == (27, 3, 84, 84) and labels.tolist() == volumes.labels[position].tolist()
        for epoch in range(3):
            change = draw_change(np.random.default_rng([TINY.seed, epoch, position]))
            moved, same, region = changed[epoch, position]
            np.testing.assert_array_equal(moved.reshape(81, 84, 84), change(x.reshape(81, 84, 84).numpy()))
            np.testing.assert_array_equal(region, change(allowed.numpy()))
            assert torch.equal(same, labels)


def test_networks_are_trained_once_and_then_found(experiment, capsys):
    before = experiment.model(TINY).state_dict()
    table = experiment.run([TINY], workers=0)
    assert table["status"].tolist() == ["found"] and "1 of 1 networks found" in capsys.readouterr().out
    curves = experiment.curves(TINY)
    assert curves["epoch"].tolist() == [0, 1, 2] and curves["kept"].sum() == 1
    assert curves.loc[curves["kept"], "val_loss"].item() == curves["val_loss"].min()
    assert all(torch.equal(value, experiment.model(TINY).state_dict()[name]) for name, value in before.items())
    with pytest.raises(FileNotFoundError, match="no network of this recipe"):
        experiment.model(TINY.vary(weight=3))
    other = Experiment(experiment.folder, {**experiment.sets, "train": experiment.sets["test"]}, device="cpu")
    with pytest.raises(FileNotFoundError, match="no network of this recipe"):
        other.model(TINY)


def test_curves_hold_the_total_loss(experiment):
    model = experiment.model(TINY)
    grids, _ = experiment.grids(TINY, "val")
    examples = Examples(experiment.volumes("val"), grids, TINY, False)
    losses = []
    for i in range(len(examples)):
        x, labels, allowed = (value[None] for value in examples[i])
        with torch.no_grad():
            features = model.features(x)
            losses.append(mask_loss(model.logits(features), labels, model.attention(features), allowed, TINY.weight))
    assert np.mean(losses) == pytest.approx(experiment.curves(TINY)["val_loss"].min(), rel=1e-4)


def test_outputs_are_maps_and_logits_of_a_part(experiment):
    found = experiment.outputs(TINY, "test")
    side = TINY.network(7).slices.grid
    assert found["logits"].shape == (2, 7) and found["HiResCAM"].shape == (2, 7, 27, side, side)
    bias = experiment.model(TINY).slices.fc.bias.detach().numpy()
    np.testing.assert_allclose(found["HiResCAM"].sum((2, 3, 4)) + bias, found["logits"], rtol=1e-3, atol=1e-4)
    allowed = experiment.allowed(TINY, "test")
    np.testing.assert_array_equal(allowed, allowed_regions(experiment.sets["test"], experiment.grids(TINY, "test")[0]))
    path = next(experiment.folder.rglob("outputs-test.npz"))
    written = path.stat().st_mtime_ns
    experiment.outputs(TINY, "test")
    assert path.stat().st_mtime_ns == written


def test_an_interrupted_training_goes_on_where_it_was(experiment, tmp_path, monkeypatch):
    parts = [Examples(experiment.volumes(p), experiment.grids(TINY, p)[0], TINY, False) for p in ("train", "val")]
    monkeypatch.setattr(training_module, "CHECKPOINT_SECONDS", 0)
    whole, _ = fit(TINY, *parts, tmp_path / "whole", "k", "cpu")

    def stop(self):
        original(self)
        if self.current_epoch == 1:
            raise KeyboardInterrupt

    original = ct_training.MaskTraining.on_train_epoch_end
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(ct_training.MaskTraining, "on_train_epoch_end", stop)
        fit(TINY, *parts, tmp_path / "parts", "k", "cpu")
    assert (tmp_path / "parts" / "unfinished-k.ckpt").is_file()
    resumed, training = fit(TINY, *parts, tmp_path / "parts", "k", "cpu")
    assert [row["epoch"] for row in training.curves] == [0, 1, 2]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


def test_training_stops_when_the_validation_loss_does_not_fall(experiment, tmp_path):
    recipe = TINY.vary(epochs=9, patience=2, learning_rate=0.0, optimizer="sgd")
    parts = [Examples(experiment.volumes(p), experiment.grids(recipe, p)[0], recipe, False) for p in ("train", "val")]
    _, training = fit(recipe, *parts, tmp_path, "k", "cpu")
    assert len(training.curves) < 9
    assert training.curves[-1]["epoch"] - training.best["epoch"] == 2


def test_the_seal_hangs_on_recipe_data_and_code(experiment):
    made = experiment._made_from(TINY)
    assert made["weight"] != experiment._made_from(TINY.vary(weight=2))["weight"]
    assert {"train", "val", "code"} <= set(made)
    assert store.changed(experiment._home(TINY), made) == []


def test_bad_arguments_are_named(experiment, tmp_path):
    with pytest.raises(ValueError, match="sets: no 'val'"):
        Experiment(tmp_path, {"train": experiment.sets["train"]})
    with pytest.raises(ValueError, match="sets: 'val' has the labels"):
        Experiment(tmp_path, {"train": experiment.sets["train"], "val": experiment.sets["val"].only("nodule")})
    with pytest.raises(ValueError, match="part: expected one of"):
        experiment.volumes("clean")
