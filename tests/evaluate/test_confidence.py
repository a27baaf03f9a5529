"""Drop and increase in confidence: closed forms on a linear network, the study's mistakes, and real networks."""

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from torch import nn

from helpers.evaluate.confidence import confidence, drop_and_increase, road

LEFT = np.zeros((1, 4, 4), np.float32)
LEFT[:, :, :2] = 1
WHITE = np.ones((1, 3, 4, 4), np.float32)


class Halves(nn.Module):
    """Logit 0 is the mean of the left half, times 4; logit 1 the mean of the right half, times 2."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([4.0, 2.0]))
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        left, right = images.mean(1).split(2, -1)
        return torch.stack([left.mean((1, 2)), right.mean((1, 2))], 1) * self.scale


@pytest.fixture
def halves():
    return Halves().eval()


@pytest.fixture(scope="module")
def network():
    """Small and convolutional, with an answer that hangs on the image."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(144, 4),
    )  # fmt: skip
    with torch.no_grad():
        model[-1].weight.mul_(40)
    return model.eval()


def softmax(*logits):
    return (np.exp(logits) / np.exp(logits).sum())[0]


@pytest.mark.parametrize("cover", ["heatmap", "mask"])
@pytest.mark.parametrize(("part", "left", "right"), [("important", 0, 2), ("unimportant", 4, 0)])
def test_by_hand(halves, cover, part, left, right):
    row = confidence(halves, WHITE, LEFT, cover, part, [0.5]).iloc[0]
    before, after = softmax(4, 2), softmax(left, right)
    assert row[["p", "p_covered"]].tolist() == pytest.approx([before, after]) and row["target"] == 0
    assert row["drop"] == pytest.approx(max(0, before - after)) and row["increase"] == (after > before)
    assert row["relative_drop"] == pytest.approx(max(0, before - after) / before)
    logits = confidence(halves, WHITE, LEFT, cover, part, [0.5], scores="logits").iloc[0]
    assert logits[["p", "p_covered", "drop"]].tolist() == [4, left, 4 - left]


def test_darkening_by_hand(halves):
    """A map of 1/4 on the left and 1 on the right: three quarters of the left half are left, nothing of the right."""
    row = confidence(halves, WHITE, np.where(LEFT == 1, 0.25, 1).astype(np.float32), scores="logits", targets=1).iloc[0]
    assert row[["p", "p_covered", "drop", "increase"]].tolist() == [2, 0, 2, 0]
    row = confidence(
        halves, WHITE, np.where(LEFT == 1, 0.25, 1), scores="logits", part="unimportant", targets=[0]
    ).iloc[0]
    assert row[["p", "p_covered", "relative_drop"]].tolist() == [4, 1, 0.75]


def test_thresholds_by_hand(halves):
    heatmap = np.linspace(0, 1, 4, dtype=np.float32)[None, None].repeat(4, 1)
    table = confidence(halves, WHITE, heatmap, "mask", "important", [0.3, 0.5, 1.0], scores="logits", targets=1)
    assert table["threshold"].tolist() == [0.3, 0.5, 1.0] and table["p_covered"].tolist() == [0, 0, 1]


@pytest.mark.parametrize(("fill", "left"), [("zero", 0.0), ("mean", 0.5), ("blur", 0.5)])
def test_fills(halves, fill, left):
    images = np.broadcast_to(np.indices((4, 4)).sum(0) % 2, (1, 3, 4, 4)).astype(np.float32)
    row = confidence(halves, images, LEFT, fill=fill, scores="logits", targets=0).iloc[0]
    assert row["p"] == 2 and row["p_covered"] == pytest.approx(4 * left, abs=0.05)


def test_the_class_predicted_on_the_intact_image_stays_the_one_asked_about(halves):
    images = WHITE * np.where(LEFT == 1, 0.1, 1).astype(np.float32)[:, None]
    table = confidence(halves, images, 1 - LEFT)
    assert table["target"].tolist() == [1] and table["p_covered"].item() == pytest.approx(softmax(0, 0.4))


def test_flat_maps_have_rows_without_values_and_are_counted(halves):
    maps = np.concatenate([LEFT, np.full_like(LEFT, np.nan), np.zeros_like(LEFT)])
    images = WHITE.repeat(3, 0)
    table = confidence(halves, images, maps, ("heatmap", "mask"), ("important", "unimportant"), [0.5, 0.9])
    assert len(table) == 3 * 3 * 2 and not table.duplicated(["image", "cover", "part", "threshold"]).any()
    flat = table["image"] > 0
    assert table.loc[flat, ["p_covered", "drop", "relative_drop", "increase"]].isna().all(axis=None)
    assert table.loc[~flat].drop(columns="threshold").notna().all(axis=None) and table["p"].notna().all()
    found = drop_and_increase(table)
    assert (found["missing"] == 2).all() and (found["images"] == 1).all()


def test_equal_covers_are_scored_once(halves):
    maps = {"a": LEFT, "b": LEFT.copy(), "c": 1 - LEFT}
    table = confidence(halves, WHITE, maps, ("heatmap", "mask"), ("important", "unimportant"))
    halves.seen = 0
    again = confidence(halves, WHITE, maps, ("heatmap", "mask"), ("important", "unimportant"))
    assert len(table) == 3 * 11 * 2 and halves.seen < 10
    pd.testing.assert_frame_equal(table, again)
    same = table.groupby(["cover", "part", "threshold"], dropna=False)["p_covered"].nunique()
    assert same.max() == 2 and table["p_covered"].nunique() == 2


def test_an_uncovered_image_has_exactly_its_own_confidence(network):
    images = np.random.default_rng(0).random((3, 3, 64, 64)).astype(np.float32)
    heatmaps = np.full((3, 64, 64), 0.1, np.float32)
    heatmaps[:, 0, 0] = 0.2
    table = confidence(network, images, heatmaps, "mask", "important")
    assert (table["p"] == table["p_covered"]).all() and (table["increase"] == 0).all() and (table["drop"] == 0).all()


def test_like_one_by_one_and_like_the_library(network):
    rng = np.random.default_rng(1)
    images, heatmaps = rng.random((5, 3, 64, 64)).astype(np.float32), rng.random((5, 64, 64)).astype(np.float32)
    table = confidence(network, images, heatmaps, ("heatmap", "mask"), ("important", "unimportant"), [0.3, 0.7])
    assert table["p_covered"].nunique() == len(table) and table["p"].between(0.01, 0.999).any()
    with torch.inference_mode():
        for row in table.itertuples():
            marked = heatmaps[row.image] if row.cover == "heatmap" else heatmaps[row.image] >= np.float32(row.threshold)
            kept = marked if row.part == "unimportant" else 1 - np.asarray(marked, np.float32)
            probs = network(torch.from_numpy(images[[row.image]] * np.asarray(kept, np.float32))).softmax(1)[0]
            assert row.p_covered == pytest.approx(probs[row.target].item(), abs=1e-4)
    kept = table.query("cover == 'heatmap' and part == 'unimportant'")
    targets = [ClassifierOutputSoftmaxTarget(int(k)) for k in kept["target"]]
    arguments = torch.from_numpy(images), heatmaps, targets, network
    np.testing.assert_allclose(kept["drop"], DropInConfidence()(*arguments), atol=1e-4)
    np.testing.assert_array_equal(kept["increase"], IncreaseInConfidence()(*arguments))


def test_order_batches_and_flips(network):
    rng = np.random.default_rng(2)
    images, heatmaps = rng.random((4, 3, 64, 64)).astype(np.float32), rng.random((4, 64, 64)).astype(np.float32)
    table = confidence(network, images, heatmaps, "mask", thresholds=[0.5])
    order = [2, 0, 3, 1]
    shuffled = confidence(network, images[order], heatmaps[order], "mask", thresholds=[0.5], memory=1)
    np.testing.assert_allclose(shuffled["p_covered"], table["p_covered"][order], rtol=1e-4)
    both = confidence(network, images[..., ::-1].copy(), heatmaps[..., ::-1], "mask", thresholds=[0.5])
    other = confidence(network, images, heatmaps[..., ::-1], "mask", thresholds=[0.5])
    assert not np.allclose(other["p_covered"], table["p_covered"]) and not np.allclose(both["p"], other["p"])
    assert all(not module._forward_hooks for module in network.modules())


def test_a_flip_of_everything_changes_nothing(halves):
    images = np.random.default_rng(3).random((4, 3, 4, 4)).astype(np.float32)
    heatmaps = np.random.default_rng(4).random((4, 4, 4)).astype(np.float32)
    table = confidence(halves, images, heatmaps, ("heatmap", "mask"), ("important", "unimportant"))
    flipped = confidence(
        halves, images[..., ::-1, :].copy(), heatmaps[:, ::-1], ("heatmap", "mask"), ("important", "unimportant")
    )
    np.testing.assert_allclose(flipped["p_covered"], table["p_covered"], rtol=1e-6)


def test_the_mistakes_of_the_study_one_by_one(halves):
    right = confidence(halves, WHITE, LEFT)
    wrong = confidence(halves, WHITE, LEFT, legacy="transposed map")
    assert wrong["p_covered"].item() == pytest.approx(softmax(2, 1)) != pytest.approx(right["p_covered"].item())
    assert confidence(halves, WHITE, LEFT, legacy="raw logits")["drop"].item() == 4
    assert confidence(halves, WHITE, LEFT, legacy=True)["p_covered"].item() == 2
    both = confidence(halves, WHITE, LEFT, legacy=("raw logits", "transposed map"))
    pd.testing.assert_frame_equal(both, confidence(halves, WHITE, LEFT, legacy=True))


def test_aggregated(halves):
    table = pd.DataFrame({"map": list("aaab"), "cover": "mask", "part": "important", "threshold": 0.5})
    table = table.assign(drop=[0.4, 0, np.nan, 0.1], relative_drop=[0.5, 0, np.nan, 0.2], increase=[0, 1, np.nan, 0])
    found = drop_and_increase(table, ["map"])
    assert found.loc[("DiC", "a"), ["mean", "images", "missing"]].tolist() == [0.2, 2, 1]
    assert found.loc[("IiC", "a"), "mean"] == 0.5 and found.loc[("relative DiC", "a"), "mean"] == 0.25
    legacy = drop_and_increase(table, ["map"], legacy=True)
    assert legacy.loc[("DiC", "a"), "mean"] == pytest.approx(0.4 / 3) and legacy.loc[("DiC", "b"), "mean"] == 0.1
    grouped = drop_and_increase(table.assign(group=["p", "p", "q", "q"], fold=0), ["map"])
    assert grouped.loc[("DiC", "a"), "n"] == 1


def test_road(halves):
    images = np.random.default_rng(5).random((3, 3, 8, 8)).astype(np.float32)

    class First(Halves):
        def forward(self, images):
            return torch.stack([20 * images[:, :, :2, :2].mean((1, 2, 3)), images.sum((1, 2, 3)) * 0 + 15], 1)

    images[:, :, :2, :2] = 1
    corner = np.full((3, 8, 8), 0.0, np.float32) + np.linspace(0, 0.1, 64, dtype=np.float32).reshape(8, 8)[::-1, ::-1]
    corner[:, :2, :2] = 1
    corner[2] = np.nan
    model, torch_state = First().eval(), torch.get_rng_state()
    good, bad = road(model, images, corner, 0), road(model, images, 1 - corner, 0)
    assert (good[:2] > 0.1).all() and (bad[:2] < -0.1).all() and np.isnan(good[2]) and np.isnan(bad[2])
    np.testing.assert_array_equal(good, road(model, images, corner, 0))
    assert torch.equal(torch_state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heatmaps": LEFT[:, :3]}, r"expected \(1, 4, 4\) as the images, got \(1, 3, 4\)"),
        ({"heatmaps": {"a": LEFT, "b": LEFT[0]}}, "heatmaps b: expected"),
        ({"heatmaps": {}}, "at least one"),
        ({"heatmaps": LEFT * 255}, r"expected \[0, 1\]"),
        ({"heatmaps": np.where(LEFT == 1, np.nan, LEFT)}, "some pixels are NaN"),
        ({"images": WHITE * 255}, r"images: values in .* expected \[0, 1\]"),
        ({"images": WHITE[0]}, r"expected \(N, C, H, W\)"),
        ({"cover": "blanket"}, "cover: expected some of"),
        ({"part": ()}, "part: expected some of"),
        ({"fill": "noise"}, "fill: expected some of"),
        ({"scores": "odds"}, "scores: expected some of"),
        ({"legacy": "shuffled names"}, "legacy: expected some of"),
        ({"thresholds": [0.5, 2]}, r"thresholds: expected numbers in \(0, 1\]"),
        ({"targets": 2}, r"no class \[2\]; the model has classes 0 to 1"),
        ({"targets": [0, 1]}, "targets: expected None, one class index or 1"),
        ({"targets": [0.0]}, "targets: expected None"),
    ],
)
def test_errors(halves, change, message):
    with pytest.raises(ValueError, match=message):
        confidence(**({"model": halves, "images": WHITE, "heatmaps": LEFT} | change))


def test_models_that_do_not_fit(halves):
    with pytest.raises(ValueError, match="train mode"):
        confidence(Halves(), WHITE, LEFT)
    with pytest.raises(ValueError, match="only square maps"):
        confidence(halves, WHITE[:, :, :2], LEFT[:, :2], legacy="transposed map")
    with torch.no_grad():
        halves.scale.fill_(np.nan)
    with pytest.raises(ValueError, match="NaN or infinity"):
        confidence(halves, WHITE, LEFT)
