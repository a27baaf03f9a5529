"""Maps against captum and grad-cam on the study's networks, closed forms, and what the engine leaves behind."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from pytorch_grad_cam import GradCAM, HiResCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchvision import models

from helpers.explain.cams import grad_cam
from helpers.explain.engine import METHODS, explain, find_layer, last_block, record
from helpers.models.classifiers import STAGES, build

LAYERS = [(name, stride) for name in STAGES for stride in (32, 16)]
TARGETS = [1, 3]
LIBRARY = {"Grad-CAM": GradCAM, "HiResCAM": HiResCAM}


@pytest.fixture(scope="module")
def networks():
    """The four networks with random weights; their batch statistics come from images, so that no map vanishes."""
    built = {}

    def get(architecture):
        if architecture not in built:
            model = build(architecture, 4, "random")
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = None
                    nn.init.ones_(module.weight)
            with torch.no_grad():
                model.train()(images(8, seed=9))
            built[architecture] = model.eval()
        return built[architecture]

    return get


def images(n=2, size=64, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def toy(bias=0.5):
    """The example on paper as a network: 4 x the image is A, and the head holds W."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.fill_(4.0)
        model[2].weight.copy_(torch.tensor([[-1.0, 4.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
        model[2].bias.copy_(torch.tensor([bias, 0.0]))
    return model.eval(), torch.tensor([[[[1.0, 0.25], [0.25, 0.0]]]])


def small(pooled):
    """Five feature maps, then one linear layer, behind global pooling or not."""
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1) if pooled else nn.Identity()
    head = nn.Linear(5 if pooled else 5 * 36, 3)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), pool, nn.Flatten(), head).double().eval()


@pytest.mark.parametrize(("architecture", "stride"), LAYERS)
def test_maps_are_those_of_captum(networks, architecture, stride):
    model = networks(architecture)
    name, layer = find_layer(model, STAGES[architecture][stride])
    ours = explain(model, images(), targets=TARGETS, layer=name)
    target = torch.tensor(TARGETS)
    theirs = {
        "Grad-CAM": LayerGradCam(model, layer).attribute(images(), target, relu_attributions=False)[:, 0],
        "HiResCAM": LayerGradientXActivation(model, layer).attribute(images(), target).sum(1),
    }
    for method, reference in theirs.items():
        reference = reference.detach().numpy()
        assert ours[method].shape == reference.shape
        assert np.abs(ours[method].values - reference).max() <= 1e-5 * np.abs(reference).max()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("architecture", "stride"), [case for case in LAYERS if case != ("densenet201", 32)])
def test_maps_are_those_of_grad_cam_after_its_scaling(networks, architecture, stride, method):
    model = networks(architecture)
    name, layer = find_layer(model, STAGES[architecture][stride])
    ours = explain(model, images(), method, TARGETS, name)[method].values
    with LIBRARY[method](model, [layer]) as library:
        theirs = library(images(), [ClassifierOutputTarget(target) for target in TARGETS])
    scaled = scale_cam_image(scale_cam_image(np.maximum(ours, 0), (64, 64)))
    assert theirs.max() > 0.99
    assert np.abs(scaled - theirs).max() <= 1e-5


def test_grad_cam_reads_densenet_after_its_in_place_relu(networks):
    """DenseNet applies an in-place ReLU to the output of its last norm, in the very tensor the library has noted."""
    model = networks("densenet201")
    layer = model.features.norm5
    with GradCAM(model, [layer]) as library:
        theirs = library(images(), [ClassifierOutputTarget(target) for target in TARGETS])
    recording = record(model, images(), layer, TARGETS)
    assert recording.activations.min() < 0
    before, after = (
        scale_cam_image(scale_cam_image(np.maximum(grad_cam(kind, recording.gradients).numpy(), 0), (64, 64)))
        for kind in (recording.activations, recording.activations.relu())
    )
    assert np.abs(after - theirs).max() <= 1e-5
    assert np.abs(before - theirs).max() > 0.01


def test_example_on_paper():
    model, image = toy()
    maps = explain(model, image, targets=0, layer="0")
    assert maps["HiResCAM"].values.tolist() == [[[-4, 4], [1, 0]]]
    assert maps["Grad-CAM"].values.tolist() == [[[4, 1], [1, 0]]]
    assert maps["logit"].values.tolist() == [1.5]
    assert maps["HiResCAM"].sum().item() + 0.5 == 1.5
    assert maps["Grad-CAM"].sum().item() + 0.5 == 6.5


@pytest.mark.parametrize("pooled", [True, False])
def test_hirescam_and_the_bias_sum_to_the_logit(pooled):
    model = small(pooled)
    for target in range(3):
        maps = explain(model, images(4, 8), targets=target, layer="1")
        total = maps["HiResCAM"].sum(("row", "column")) + model[-1].bias[target].item()
        np.testing.assert_allclose(total, maps["logit"], rtol=0, atol=1e-12)
    same = np.allclose(maps["Grad-CAM"], maps["HiResCAM"], rtol=0, atol=1e-12)
    assert same == pooled


def test_pooling_makes_both_maps_the_class_activation_map_up_to_the_number_of_positions():
    model = small(pooled=True)
    maps = explain(model, images(4, 8), targets=2, layer="1")
    activations = model[:2](images(4, 8).double())
    cam = torch.einsum("f,nfhw->nhw", model[-1].weight[2], activations).detach().numpy()
    np.testing.assert_allclose(maps["Grad-CAM"] * 36, cam, rtol=0, atol=1e-12)
    np.testing.assert_allclose(maps["HiResCAM"] * 36, cam, rtol=0, atol=1e-12)


def test_a_constant_added_to_a_logit_changes_no_map():
    one, other = (explain(*toy(bias), targets=0, layer="0") for bias in (0.5, 7.0))
    assert other["logit"].item() - one["logit"].item() == 6.5
    assert one.drop_vars("logit").equals(other.drop_vars("logit"))


def test_a_batch_is_its_images_one_by_one(networks):
    model = deepcopy(networks("googlenet")).double()
    together = explain(model, images(5), batch_size=2)
    assert together["Grad-CAM"].dtype == np.float64
    alone = [explain(model, images(5)[i : i + 1], layer=together.layer) for i in range(5)]
    assert len(together.image) == 5
    for method in METHODS:
        parts = np.concatenate([one[method].values for one in alone])
        assert np.abs(together[method].values - parts).max() <= 1e-12
    assert together["target"].values.tolist() == [one["target"].item() for one in alone]


def test_default_target_is_the_predicted_class(networks):
    model = networks("mobilenet_v2")
    with torch.no_grad():
        logits = model(images(3))
    maps = explain(model, images(3))
    assert maps["target"].values.tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(maps["logit"], logits.amax(1), rtol=1e-5)
    assert maps.targets == "predicted" and maps["HiResCAM"].dims == ("image", "row", "column")


def test_default_layer_of_each_network(networks):
    found = {architecture: last_block(networks(architecture), images()) for architecture in STAGES}
    assert found == {
        "densenet201": "features", "googlenet": "inception5b", "mobilenet_v2": "features", "resnet101": "layer4",
    }  # fmt: skip
    assert last_block(small(pooled=False), images(1, 8)) == "0"
    assert last_block(models.googlenet(weights=None, init_weights=False).eval(), images()) == "inception5b"
    nested = nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), nn.Flatten())
    assert last_block(nested.eval(), images()) == "0.0"


def test_arrays_tensors_modules_and_names_are_the_same(networks):
    model = networks("resnet101")
    maps = [
        explain(model, given, "Grad-CAM", 0, layer)
        for given in (images(), images().numpy(), images().double())
        for layer in ("layer3", model.layer3)
    ]
    assert all(one.equals(maps[0]) for one in maps)


def test_works_inside_inference_mode_and_restores_it():
    model, image = toy()
    with torch.inference_mode():
        inside = explain(model, image.clone(), targets=0, layer="0")
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert inside.equals(explain(model, image, targets=0, layer="0"))


def state_of(model):
    return [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks), module.training)
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("failing", [None, "forward", "layer runs twice", "target", "default layer"])
def test_the_model_is_left_as_it_was(failing):
    relu = nn.ReLU(inplace=True)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.Flatten(), nn.Linear(64, 3)).eval()
    model[0].weight.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    own = model[2].register_forward_hook(lambda *_: None)
    before, weights = state_of(model), {name: value.clone() for name, value in model.state_dict().items()}
    arguments = {
        None: (images(2, 8), None, "2"),
        "forward": (images(2, 9), None, "2"),
        "layer runs twice": (images(2, 8), None, "1"),
        "target": (images(2, 8), 5, "2"),
        "default layer": (images(2, 9), None, None),
    }[failing]
    if failing is None:
        explain(model, arguments[0], targets=arguments[1], layer=arguments[2])
    else:
        with pytest.raises((ValueError, RuntimeError)):
            explain(model, arguments[0], targets=arguments[1], layer=arguments[2])
    assert state_of(model) == before and list(model[2]._forward_hooks) == [own.id]
    assert torch.is_grad_enabled()
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]
    assert [p.grad is None for p in model.parameters()] == [True, True, True, True, False, True]
    assert (model[5].weight.grad == 1).all()
    assert all((model.state_dict()[name] == value).all() for name, value in weights.items())


def test_frozen_networks_have_maps():
    model, image = toy()
    maps = explain(model, image, targets=0, layer="0")
    assert explain(model.requires_grad_(False), image, targets=0, layer="0").equals(maps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "layr4"}, "'layr4'.*did you mean 'layer4'"),
        ({"layer": ""}, "no such module"),
        ({"layer": nn.ReLU()}, "not inside the model"),
        ({"layer": "fc"}, r"'fc': expected an output \(N, F, h, w\), got shape \(2, 4\)"),
        ({"layer": "layer4.0.relu"}, "more than once"),
        ({"layer": "unused"}, "does not run"),
        ({"layer": "aside"}, "do not depend"),
        ({"targets": 4}, "no class 4; the model has classes 0 to 3"),
        ({"targets": [0, -1]}, "no class -1"),
        ({"targets": [0, 1, 2]}, "got 3"),
        ({"targets": 0.5}, "class index"),
        ({"methods": ["HiresCAM"]}, "unknown 'HiresCAM'.*did you mean 'HiResCAM'"),
        ({"methods": []}, "at least one method"),
        ({"batch_size": 0}, "batch_size"),
        ({"images": images()[0]}, r"pass image\[None\]"),
        ({"images": images()[:0]}, "at least one image"),
        ({"images": (images() * 255).byte()}, "divide 8-bit values by 255"),
        ({"images": images() * 2 - 1}, r"expected \[0, 1\]; normalise in the model"),
        ({"images": torch.stack([images()[0], torch.full((3, 64, 64), torch.nan)])}, "infinity in image 1"),
    ],
)
def test_errors_name_the_argument_and_the_remedy(changes, message):
    class Net(models.ResNet):
        def forward(self, x):
            self.aside(x)
            return super().forward(x)

    model = Net(models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=4)
    model.aside, model.unused = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 1, 1)
    arguments = {"images": images(), "layer": "layer4", "targets": 0} | changes
    with pytest.raises(ValueError, match=message):
        explain(model.eval(), **arguments)


def test_train_mode_and_odd_outputs_are_errors():
    model = small(pooled=True)
    model[2].train()
    with pytest.raises(ValueError, match=r"module '2' is in train mode.*model.eval\(\)"):
        explain(model, images(1, 8), layer="1")
    with pytest.raises(ValueError, match=r"expected logits \(N, K\), got shape \(1, 4, 6, 6\)"):
        explain(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 4, 1)).eval(), images(1, 8), layer="0")
    with pytest.raises(ValueError, match="no convolution"):
        explain(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval(), images(1, 8))
    broken = small(pooled=True)
    broken[-1].bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="logits hold NaN"):
        explain(broken, images(1, 8), layer="1")
