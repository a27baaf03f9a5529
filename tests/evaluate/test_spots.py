import numpy as np
import pytest
import torch

from helpers.evaluate import spots as module
from helpers.evaluate.spots import (
    CLASSES,
    LAYER,
    REACH,
    SIDE,
    STRIDE,
    Spots,
    drops,
    judge,
    logits,
    mean_weights,
    measure,
    spots,
    train,
)  # fmt: skip
from helpers.explain.engine import explain

CELLS = SIDE // STRIDE


@pytest.fixture(scope="module")
def task():
    return spots(60, 0)


@pytest.fixture(scope="module", params=module.HEADS)
def net(request, task):
    return train(request.param, task, 1, 1e-2)


def one(labels=(0,)):
    """A spot at cell (2, 2), the brighter one, and one at cell (7, 5), without noise."""
    n = len(labels)
    centres = np.tile([[8.0, 8.0], [28.0, 20.0]], (n, 1, 1))
    return Spots(centres, np.array(labels), np.tile([0.8, 0.4], (n, 1)), np.zeros((n, SIDE, SIDE)))


def test_the_label_is_the_brighter_spot(task):
    assert (task.bright.argmax(1) == task.labels).all()
    assert set(task.labels) == {0, 1}
    assert (task.centres[:, 0, 0] < task.centres[:, 1, 0]).all()


def test_neither_brightness_alone_gives_the_class_away():
    many = spots(2000, 1)
    brightest = many.bright.max(1)
    means = [brightest[many.labels == k].mean() for k in range(len(CLASSES))]
    assert means[0] == pytest.approx(means[1], abs=0.02)


def test_pictures_lie_in_range_and_the_second_channel_is_the_row(task):
    images = task.pictures()
    assert images.shape == (60, 2, SIDE, SIDE)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert (images[:, 1] == np.linspace(0, 1, SIDE, dtype=np.float32)[:, None]).all()


def test_a_spot_peaks_at_its_centre_and_a_ring_does_not():
    full, ring = one().pictures()[0, 0], one().pictures(hollow=True)[0, 0]
    assert full[8, 8] == pytest.approx(0.8)
    assert full[28, 20] == pytest.approx(0.4)
    assert ring[8, 8] == pytest.approx(0, abs=1e-6)
    assert ring.max() == pytest.approx(0.8, rel=0.02)


def test_taking_both_spots_away_leaves_the_noise(task):
    np.testing.assert_allclose(task.pictures((0, 0))[:, 0], task.noise, rtol=1e-6)


def test_taking_one_away_leaves_the_other(task):
    images = one().pictures((0, 1))[0, 0]
    assert images[8, 8] == pytest.approx(0, abs=1e-6)
    assert images[28, 20] == pytest.approx(0.4)


def test_the_regions_of_the_two_spots_never_overlap():
    near = spots(3000, 2).near()
    assert not near.all(1).any()
    assert near.any((2, 3)).all()


def test_a_region_holds_the_cells_within_reach():
    near = one().near()[0, 0]
    expected = {(y, x) for y in range(CELLS) for x in range(CELLS) if np.hypot(4 * y - 8, 4 * x - 8) <= REACH}
    assert {tuple(map(int, at)) for at in np.argwhere(near)} == expected


def test_equal_seeds_make_equal_pictures():
    np.testing.assert_array_equal(spots(4, [1, 2]).pictures(), spots(4, [1, 2]).pictures())
    assert not np.array_equal(spots(4, [1, 2]).pictures(), spots(4, [1, 3]).pictures())


def test_judge_on_maps_known_in_closed_form():
    task = one((0, 1, 0, 0))
    maps = np.zeros((4, CELLS, CELLS))
    maps[:2, 2, 2], maps[:2, 7, 5] = 3, 1
    maps[2, 0, 9], maps[2, 2, 2] = 2, -1
    table = judge(maps, task)
    assert table["evidence"].tolist() == [True, False, False, False]
    assert table["distractor"].tolist() == [False, True, False, False]
    assert table["elsewhere"].tolist() == [False, False, True, False]
    np.testing.assert_allclose(table["energy"], [0.75, 0.25, 0, np.nan])
    assert table["above"].tolist() == [3, 3, -1, 0]
    assert table["below"].tolist() == [1, 1, 0, 0]


def test_a_scale_changes_no_peak_and_no_share(task, net):
    maps = explain(net, task.pictures(), "HiResCAM", task.labels, LAYER)["HiResCAM"].values
    once, twice = judge(maps, task), judge(2 * maps, task)
    np.testing.assert_array_equal(once["evidence"], twice["evidence"])
    np.testing.assert_allclose(once["energy"], twice["energy"], rtol=1e-5)


def test_the_maps_have_the_grid_of_the_regions_and_add_up(task, net):
    maps = explain(net, task.pictures(), ("Grad-CAM", "HiResCAM"), task.labels, LAYER)
    assert maps["HiResCAM"].shape == (60, CELLS, CELLS)
    bias = net[-1].bias.detach().numpy()[task.labels]
    np.testing.assert_allclose(maps["HiResCAM"].values.sum((1, 2)) + bias, maps["logit"], rtol=1e-4, atol=1e-5)
    if isinstance(net[4], torch.nn.AdaptiveAvgPool2d):
        np.testing.assert_allclose(maps["Grad-CAM"], maps["HiResCAM"], rtol=1e-4, atol=1e-6)


def test_drops_are_differences_of_logits(task, net):
    found = drops(net, task)
    assert found.shape == (60, 2)
    k = task.labels[7]
    expected = logits(net, task.pictures())[7, k] - logits(net, task.pictures((1, 0)))[7, k]
    assert found[7, 1] == pytest.approx(expected, abs=1e-6)


def test_measure_adds_what_the_network_does(task, net):
    table = measure(net, task, "HiResCAM")
    maps = explain(net, task.pictures(), "HiResCAM", task.labels, LAYER)["HiResCAM"].values
    np.testing.assert_array_equal(table["evidence"], judge(maps, task)["evidence"])
    assert table["right"].mean() == (logits(net, task.pictures()).argmax(1) == task.labels).mean()
    assert table["follows"].nunique() == 1
    expected = np.corrcoef(table[list(CLASSES)].to_numpy().ravel(), drops(net, task).ravel())[0, 1]
    assert table["follows"][0] == pytest.approx(expected)
    np.testing.assert_array_equal(table["worth"], drops(net, task)[np.arange(60), task.labels])
    assert not np.allclose(table["above"], measure(net, task, "HiResCAM", hollow=True)["above"])


def test_the_mean_weight_of_a_spot_is_what_grad_cam_multiplies_with(task):
    net = train("flatten", task, 1, 1e-2, features=1)
    maps = explain(net, task.pictures(), "Grad-CAM", [0] * len(task.labels), LAYER)["Grad-CAM"].values
    with torch.no_grad():
        activations = net[:4](torch.from_numpy(task.pictures())).numpy()[:, 0]
    np.testing.assert_allclose(maps, mean_weights(net, task)[0, 0] * activations, rtol=1e-4, atol=1e-7)


def test_weights_that_are_alike_everywhere_have_the_mean_of_their_magnitudes(task):
    net = train("flatten", task, 1, 1e-2)
    with torch.no_grad():
        net[-1].weight[0], net[-1].weight[1] = 0.5, -0.25
    np.testing.assert_allclose(mean_weights(net, task), [[0.5, 0.5], [-0.25, 0.25]], rtol=1e-6)


def test_weights_of_two_halves_cancel(task):
    net = train("flatten", task, 1, 1e-2)
    halves = torch.where(torch.arange(CELLS)[:, None] < CELLS // 2, 1.0, -1.0).expand(12, CELLS, CELLS)
    with torch.no_grad():
        net[-1].weight.copy_(torch.stack([halves, -halves]).flatten(1))
    np.testing.assert_allclose(mean_weights(net, task), [[0, 1], [0, 1]], atol=1e-6)


def test_compare_trains_and_judges_every_network(monkeypatch):
    monkeypatch.setattr(module, "HEADS", {"flatten": (1, 1e-2), "pooling": (1, 1e-2)})
    monkeypatch.setattr(module, "TRAINING", 50)
    nets, tests, table = module.compare(2, 8, seed=3)
    assert set(nets) == {("flatten", 0), ("flatten", 1), ("pooling", 0), ("pooling", 1)}
    assert len(tests) == 2
    assert (table.groupby(["head", "method", "number"]).size() == 8).all()
    again = measure(nets["flatten", 1], tests[1], "Grad-CAM")
    part = table[(table["head"] == "flatten") & (table["method"] == "Grad-CAM") & (table["number"] == 1)]
    np.testing.assert_allclose(part["above"], again["above"])


def test_a_few_epochs_learn_the_task_and_repeat():
    learned = train("flatten", spots(1000, 3), 6, 1e-2, seed=1)
    test = spots(200, 4)
    assert (logits(learned, test.pictures()).argmax(1) == test.labels).mean() > 0.95
    again = [train("flatten", spots(50, 3), 1, 1e-2, seed=1)[0].weight for _ in range(2)]
    assert torch.equal(*again)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda task: spots(0, 0), "n: expected a whole number of at least 1, got 0"),
        (lambda task: spots(2.0, 0), "n: expected a whole number"),
        (lambda task: task.pictures((1,)), "keep: expected two factors"),
        (lambda task: train("flat", task, 1, 1e-2), "head: expected one of"),
        (lambda task: train("flatten", task, 0, 1e-2), "epochs: expected at least 1, got 0"),
        (
            lambda task: mean_weights(train("pooling", task, 1, 1e-2), task),
            "net: expected the head flatten, 1200 weights, got 12",
        ),
        (lambda task: judge(np.zeros((60, 5, 5)), task), r"maps: expected \(60, 10, 10\), got \(60, 5, 5\)"),
    ],
)
def test_bad_input_is_named(task, call, message):
    with pytest.raises(ValueError, match=message):
        call(task)
