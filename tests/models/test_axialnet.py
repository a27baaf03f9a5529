import math

import pytest
import torch
from torch import nn
from torchvision import models

from helpers.explain.engine import explain
from helpers.models.axialnet import AxialNet, mask_loss, resnet_trunk

SIDE, GROUPS, LABELS = 36, 5, 3


def network(head="mean", **options):
    """A scaled network in float64 with a grid of 6 x 6."""
    settings = {"trunk": "small", "side": SIDE, "channels": (8, 6), "padding": 1, "seed": 3} | options
    return AxialNet(LABELS, head=head, **settings).double().eval()


def volumes(n=2, seed=0):
    return torch.rand(n, GROUPS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def derivative(model, x, label):
    features = model.features(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.logits(features)[:, label].sum(), features)
    return features.detach(), gradient


@pytest.mark.parametrize("head", ["mean", "max", "pooled"])
def test_attention_is_the_cam_times_the_number_of_slice_groups(head):
    model, x = network(head), volumes()
    for label in range(LABELS):
        features, gradient = derivative(model, x, label)
        hirescam = (gradient * features).sum(2)
        gradcam = (gradient.mean((1, 3, 4), keepdim=True) * features).sum(2)
        for name, cam in (("HiResCAM", hirescam), ("Grad-CAM", gradcam)):
            torch.testing.assert_close(model.attention(features, name)[:, label], GROUPS * cam)
    maps, logits = model.cams(x)
    torch.testing.assert_close(maps, model.attention(model.features(x)) / GROUPS)
    torch.testing.assert_close(logits, model(x))


@pytest.mark.parametrize("head", ["mean", "max", "pooled"])
def test_hirescam_and_the_bias_add_up_to_the_logit(head):
    model, x = network(head), volumes()
    maps, logits = model.cams(x)
    torch.testing.assert_close(maps.sum((2, 3, 4)) + model.slices.fc.bias, logits)


def test_grad_cam_of_a_network_with_a_grid_does_not_add_up_but_that_of_a_cam_network_does():
    x = volumes()
    for head, faithful in (("mean", False), ("pooled", True)):
        model = network(head)
        maps, logits = model.cams(x, "Grad-CAM")
        error = (maps.sum((2, 3, 4)) + model.slices.fc.bias - logits).abs().max()
        assert (error < 1e-6) == faithful


def test_a_slice_group_is_explained_by_the_engine_with_the_same_map():
    model, x = network(), volumes(1)
    attention = {name: model.attention(model.features(x), name) for name in ("HiResCAM", "Grad-CAM")}
    for label in range(LABELS):
        found = explain(model.slices, x[0], ("HiResCAM", "Grad-CAM"), label, "convolutions")
        assert found.attrs["layer"] == "convolutions"
        for name in ("HiResCAM", "Grad-CAM"):
            torch.testing.assert_close(torch.from_numpy(found[name].values), attention[name][0, label].detach())


def test_scores_of_slices_their_mean_and_their_maximum():
    x = volumes()
    mean, most = network("mean"), network("max")
    scores = mean.slice_scores(mean.features(x))
    assert scores.shape == (2, GROUPS, LABELS)
    torch.testing.assert_close(scores.mean(1), mean(x))
    torch.testing.assert_close(scores.amax(1), most(x))
    torch.testing.assert_close(scores[0, 2], mean.slices(x[0, 2:3])[0])
    order = torch.tensor([3, 1, 0, 4, 2])
    torch.testing.assert_close(mean(x[:, order]), mean(x))


def test_full_size_layers_give_the_shapes_of_the_paper():
    model = AxialNet(4).eval()
    assert model.slices.grid == 6 and model.slices.fc.weight.shape == (4, 16, 6, 6)
    with torch.no_grad():
        x = torch.rand(1, 2, 3, 420, 420)
        assert model.slices.trunk(x[0]).shape == (2, 512, 14, 14)
        features = model.features(x)
    assert features.shape == (1, 2, 16, 6, 6) and features.min() == 0
    assert model.attention(features).shape == (1, 4, 2, 6, 6)


def test_checkpointing_changes_neither_gradients_nor_running_statistics():
    x, made = volumes(), []
    for on in (False, True):
        model = network().train().use_checkpointing(on)
        model(x).square().sum().backward()
        made.append(({n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())))
    for name, gradient in made[0][0].items():
        torch.testing.assert_close(made[1][0][name], gradient)
    for name, value in made[0][1].items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(made[1][1][name], value)
    assert all(norm.momentum == 0.1 for norm in model.modules() if isinstance(norm, nn.BatchNorm2d))


def test_the_trunk_is_torchvisions_resnet_and_takes_its_weights(tmp_path):
    torch.manual_seed(1)
    whole = models.resnet18().eval()
    torch.save(whole.state_dict(), tmp_path / "resnet18.pth")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        wanted = nn.Sequential(*list(whole.children())[:-2])(x)
        found = resnet_trunk(tmp_path / "resnet18.pth").eval()(x)
    torch.testing.assert_close(found, wanted)
    torch.save(models.resnet34().state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(ValueError, match="resnet34.pth is no state dict of ResNet-18"):
        resnet_trunk(tmp_path / "resnet34.pth")


def test_equal_seeds_give_equal_networks_and_leave_the_generator_alone():
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = network(seed=1), network(seed=1), network(seed=2)
    assert torch.equal(torch.rand(1), wanted)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.slices.fc.weight, other.slices.fc.weight)


def toy():
    """One volume, two labels (present, absent), two cells each, one of them allowed."""
    logits, labels = torch.tensor([[0.0, 0.0]]), torch.tensor([[1, 0]])
    attention = torch.tensor([5.0, 1.0, 2.0, 2.0]).reshape(1, 2, 1, 1, 2)
    allowed = torch.tensor([True, False, True, False]).reshape(1, 2, 1, 1, 2)
    return logits, labels, attention, allowed


def test_mask_loss_of_a_toy():
    entropy = math.log(2)
    outside = (math.log1p(math.e) + 2 * math.log1p(math.e**2)) / 3  # the absent label is forbidden everywhere
    assert mask_loss(*toy(), weight=0).item() == pytest.approx(entropy)
    assert mask_loss(*toy()).item() == pytest.approx(entropy + outside / 3)
    assert mask_loss(*toy(), weight=2, norm="l2").item() == pytest.approx(entropy + 2 * 3)
    nowhere = (toy()[0], torch.tensor([[1, 1]]), toy()[2], torch.ones(1, 2, 1, 1, 2, dtype=torch.bool))
    assert mask_loss(*nowhere, weight=7).item() == pytest.approx(entropy)


@pytest.mark.parametrize("norm", ["softplus", "l2"])
def test_mask_loss_asks_nothing_inside_and_averages_over_volumes(norm):
    logits, labels, attention, allowed = toy()
    changed = attention.clone()
    changed[0, 0, 0, 0, 0] = -100
    assert mask_loss(logits, labels, changed, allowed, 3, norm) == mask_loss(*toy(), 3, norm)
    other = (torch.tensor([[2.0, -1.0]]), torch.tensor([[0, 1]]), -attention, allowed)
    batch = [torch.cat(pair) for pair in zip(toy(), other, strict=True)]
    single = (mask_loss(*toy(), 3, norm) + mask_loss(*other, 3, norm)) / 2
    torch.testing.assert_close(mask_loss(*batch, 3, norm), single)


def test_negative_attention_outside_is_rewarded_by_softplus_and_punished_by_l2():
    logits, labels, attention, allowed = toy()
    assert mask_loss(logits, labels, attention * 0 - 4, allowed) < mask_loss(logits, labels, attention * 0, allowed)
    options = {"norm": "l2"}
    assert mask_loss(logits, labels, attention * 0 - 4, allowed, **options) > mask_loss(
        logits, labels, attention * 0, allowed, **options
    )


@pytest.mark.parametrize("norm", ["softplus", "l2"])
@pytest.mark.parametrize("cam", ["HiResCAM", "Grad-CAM"])
def test_gradients_of_the_mask_loss(norm, cam):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    labels, allowed = draw(2, LABELS) > 0, draw(2, LABELS, 2, 3, 3) > 0
    weight = draw(LABELS, 4, 3, 3)

    def loss(features):
        scores = torch.einsum("mfij,nhfij->nm", weight, features) / 2
        used = weight if cam == "HiResCAM" else weight.mean((2, 3), keepdim=True).expand_as(weight)
        return mask_loss(scores, labels, torch.einsum("mfij,nhfij->nmhij", used, features), allowed, 2.0, norm)

    assert torch.autograd.gradcheck(loss, draw(2, 2, 4, 3, 3).requires_grad_())


def test_mask_loss_moves_the_attention_inside():
    model, x = network().float().train(), volumes().float()
    labels, allowed = torch.ones(2, LABELS), torch.zeros(2, LABELS, GROUPS, 6, 6, dtype=torch.bool)
    allowed[..., 0] = True
    optimizer, outside = torch.optim.Adam(model.parameters(), 0.01), []
    for _ in range(20):
        features = model.features(x)
        attention = model.attention(features)
        loss = mask_loss(model.logits(features), labels, attention, allowed, 3)
        outside.append(attention[~allowed].mean().item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert outside[-1] < outside[0] - 0.1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: network("median"), "head: expected one of"),
        (lambda: network(trunk="resnet50"), "trunk: expected 'resnet18'"),
        (lambda: network(channels=(8,) * 3, padding=0), "trunk: 36 px become"),
        (lambda: network().features(torch.rand(GROUPS, 3, SIDE, SIDE)), "volumes: expected .N, H, 3, h, w."),
        (lambda: network().attention(torch.rand(1, 2, 6, 3, 3), "LayerCAM"), "cam: expected one of"),
        (lambda: mask_loss(*toy(), norm="l1"), "norm: expected one of"),
        (lambda: mask_loss(*toy(), weight=-1), "weight: expected a number from 0 up"),
        (lambda: mask_loss(*toy()[:3], toy()[3][:, :, :, :, :1]), "expected .N, K. twice"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
