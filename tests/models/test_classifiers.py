"""The four networks: heads, starts, stages, and how a trained one is kept."""

import pytest
import torch
from torch import nn
from torchvision import models

from helpers.models import classifiers
from helpers.models.classifiers import HEADS, STAGES, build, keep, read_weights, restore, stage
from helpers.settings import ARCHITECTURES


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def network(request):
    return request.param, build(request.param, 3, seed=4)


def test_a_network_has_as_many_outputs_as_classes(network, images):
    architecture, model = network
    assert model.eval()(images).shape == (2, 3)
    assert model.get_submodule(HEADS[architecture]).out_features == 3


def test_the_same_seed_gives_the_same_start(network):
    architecture, model = network
    for one, two in zip(model.state_dict().values(), build(architecture, 3, seed=4).state_dict().values(), strict=True):
        assert torch.equal(one, two)
    head = f"{HEADS[architecture]}.weight"
    assert not torch.equal(model.state_dict()[head], build(architecture, 3, seed=5).state_dict()[head])


def test_every_stage_works_at_its_stride(network, images):
    architecture, model = network
    shapes = {}
    hooks = [
        model.get_submodule(stage(architecture, stride)).register_forward_hook(
            lambda module, inputs, output, stride=stride: shapes.update({stride: tuple(output.shape[2:])})
        )
        for stride in STAGES[architecture]
    ]
    model.eval()(images)
    for hook in hooks:
        hook.remove()
    assert shapes == {stride: (64 // stride, 64 // stride) for stride in (4, 8, 16, 32)}


def test_a_network_comes_back_as_it_was_kept(network, images, tmp_path):
    architecture, model = network
    keep(model, architecture, tmp_path / "model.safetensors")
    restored = restore(tmp_path / "model.safetensors")
    assert not restored.training
    assert torch.equal(restored(images), model.eval()(images))


@pytest.mark.parametrize("architecture", ["mobilenet_v2", "resnet101"])
def test_residual_blocks_start_as_the_identity(architecture):
    model = build(architecture, 3)
    if architecture == "resnet101":
        zeroed = [m.bn3.weight for m in model.modules() if isinstance(m, models.resnet.Bottleneck)]
    else:
        blocks = [m for m in model.modules() if isinstance(m, models.mobilenetv2.InvertedResidual)]
        zeroed = [m.conv[-1].weight for m in blocks if m.use_res_connect]
    assert len(zeroed) == {"resnet101": 33, "mobilenet_v2": 10}[architecture]
    assert all((weight == 0).all() for weight in zeroed)


def test_weights_of_a_file_are_taken_but_for_the_head(tmp_path):
    origin = models.mobilenet_v2(weights=None, num_classes=1000)
    torch.save(origin.state_dict(), tmp_path / "w.pth")
    model = build("mobilenet_v2", 4, tmp_path / "w.pth", dropout=0.0)
    assert torch.equal(model.features[0][0].weight, origin.features[0][0].weight)
    assert model.classifier[1].out_features == 4
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.0]


def test_torchvision_s_googlenet_file_brings_its_input_scaling_which_is_kept(tmp_path, images):
    origin = models.googlenet(weights=None, num_classes=10, aux_logits=True, init_weights=False)
    torch.save(origin.state_dict(), tmp_path / "w.pth")
    model = build("googlenet", 4, tmp_path / "w.pth").eval()
    assert (model.transform_input, model.aux1, model.aux_logits) == (True, None, False)
    keep(model, "googlenet", tmp_path / "model.safetensors")
    assert torch.equal(restore(tmp_path / "model.safetensors")(images), model(images))


def test_imagenet_weights_come_from_torchvision(monkeypatch):
    asked, original = {}, models.resnet101

    def loader(weights=None, **options):
        asked.update(weights=weights, **options)
        return original(weights=None)

    monkeypatch.setattr(classifiers.models, "resnet101", loader)
    assert build("resnet101", 5, "imagenet").fc.out_features == 5
    assert asked == {"weights": "DEFAULT"}


class Harmful:
    def __reduce__(self):
        return (print, ("this ran",))


def test_a_pickle_with_code_is_refused_unread(tmp_path, capsys):
    torch.save({"w": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(ValueError, match="harmful.pth cannot be read as a state dict of tensors"):
        read_weights(tmp_path / "harmful.pth")
    assert "this ran" not in capsys.readouterr().out


def test_wrong_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*nowhere.pth"):
        build("resnet101", 3, tmp_path / "nowhere.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="list.pth holds list, expected a mapping"):
        build("resnet101", 3, tmp_path / "list.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(ValueError, match="cut.safetensors cannot be read"):
        build("resnet101", 3, tmp_path / "cut.safetensors")
    torch.save(models.mobilenet_v2(weights=None).state_dict(), tmp_path / "mobile.pth")
    with pytest.raises(ValueError, match=r"mobile.pth has no fc.weight: not a resnet101"):
        build("resnet101", 3, tmp_path / "mobile.pth")
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match="resnet18.pth does not fit this network"):
        build("resnet101", 3, tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match="mobile.pth: not a network kept by this collection"):
        restore(tmp_path / "mobile.pth")


def test_wrong_names_are_answered_with_the_closest():
    with pytest.raises(ValueError, match="unknown architecture 'densenet'.*did you mean 'densenet201'"):
        build("densenet", 3)
    with pytest.raises(ValueError, match="stride: expected one of .* got 64"):
        stage("resnet101", 64)
