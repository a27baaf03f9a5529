"""`explain` against grad-cam, captum and closed forms; what must not change a map; what it leaves behind."""

import json
from copy import deepcopy

import captum.attr
import numpy as np
import pytest
import torch
from pytorch_grad_cam import AblationCAM, EigenGradCAM, GradCAM, GradCAMPlusPlus, HiResCAM, ScoreCAM
from pytorch_grad_cam.ablation_layer import AblationLayer
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchvision import models

from helpers.explain.channels import ablation_weights, score_weights
from helpers.explain.cut import Cut
from helpers.explain.engine import COMPARED, METHODS, describe, explain, is_general
from helpers.explain.inference import packed
from helpers.explain.options import get_options
from helpers.models.classifiers import STAGES
from tests.explain.networks import LAYERS, images, network, small, state_of, toy

GRADIENT_CAMS = {"Grad-CAM": GradCAM, "Grad-CAM++": GradCAMPlusPlus, "HiResCAM": HiResCAM}
GENERAL = [method for method in METHODS if is_general(method)]
DETAILED = [method for method in METHODS if not is_general(method)]
CASES = [(architecture, stride, seed) for architecture, stride in LAYERS for seed in range(3)]
# grad-cam notes DenseNet's last norm after the in-place ReLU behind it, see test_grad_cam_reads_densenet...
WITHOUT_TRAP = [case for case in CASES if case[:2] != ("densenet201", 32)]
QUICK = {"steps": 4, "samples": 2, "windows": 60, "stride": 40}


def scaled(cams):
    """Raw maps as grad-cam shows them at 64 pixels."""
    return scale_cam_image(scale_cam_image(np.maximum(cams, 0), (64, 64)))


def library_map(kind, model, layer, given, targets):
    with kind(model, [model.get_submodule(layer)]) as library:
        return library(given, [ClassifierOutputTarget(target) for target in targets])


def likely(model, given):
    """The class that the network finds most likely, per image: its maps have a positive part."""
    with torch.no_grad():
        return model(given).argmax(1).tolist()


@pytest.mark.parametrize(("architecture", "stride", "seed"), WITHOUT_TRAP)
def test_gradient_cams_are_those_of_grad_cam(architecture, stride, seed):
    model, layer, given = network(architecture, seed), STAGES[architecture][stride], images(seed=seed)
    targets = likely(model, given)
    ours = explain(model, given, tuple(GRADIENT_CAMS), targets, layer)
    for method, kind in GRADIENT_CAMS.items():
        theirs = library_map(kind, model, layer, given, targets)
        assert theirs.max() > 0.9
        assert np.abs(scaled(ours[method].values) - theirs).max() <= 1e-5, method


@pytest.mark.parametrize(("architecture", "stride", "seed"), WITHOUT_TRAP)
def test_eigen_grad_cam_is_that_of_grad_cam_up_to_its_sign(architecture, stride, seed):
    model, layer, given = network(architecture, seed), STAGES[architecture][stride], images(seed=seed)
    targets = likely(model, given)
    ours = explain(model, given, "EigenGrad-CAM", targets, layer)["EigenGrad-CAM"].values
    theirs = library_map(EigenGradCAM, model, layer, given, targets)
    for raw, their in zip(ours, theirs, strict=True):
        assert min(np.abs(scaled(sign * raw[None])[0] - their).max() for sign in (1, -1)) <= 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_grad_cam_reads_densenet_after_its_in_place_relu(seed):
    """DenseNet applies an in-place ReLU to the output of its last norm, in the very tensor the library has noted."""
    model, given = network("densenet201", seed), images(seed=seed)
    targets, layer = likely(model, given), model.features.norm5
    theirs = library_map(GradCAM, model, "features.norm5", given, targets)
    ours = explain(model, given, ("Grad-CAM", "HiResCAM"), targets, layer)
    gradient = captum.attr.LayerGradCam(model, layer)
    product = captum.attr.LayerGradientXActivation(model, layer)
    references = {
        "Grad-CAM": gradient.attribute(given, torch.tensor(targets))[:, 0].detach().numpy(),
        "HiResCAM": product.attribute(given, torch.tensor(targets)).sum(1).detach().numpy(),
    }
    for method, reference in references.items():
        assert np.abs(ours[method].values - reference).max() <= 1e-5 * np.abs(reference).max()
    assert np.abs(scaled(ours["Grad-CAM"].values) - theirs).max() > 0.01


class Zero(AblationLayer):
    """The library's own way where the smallest activation is 0; else it would subtract 1e7 from the smallest one."""

    def __call__(self, x):
        self.activations[range(len(self.activations)), self.indices[: len(self.activations)]] = 0
        return self.activations


@pytest.mark.parametrize(("architecture", "stride", "seed"), CASES)
def test_ablation_cam_is_that_of_grad_cam_on_64_feature_maps(architecture, stride, seed):
    """On a part of them, for the library runs the whole network for each."""
    model, layer, given = network(architecture, seed), STAGES[architecture][stride], images(1, seed=seed)
    cut, targets = Cut(model, given, layer, replay=True), likely(model, given)
    activations = cut.activations[:, :64].numpy()
    own = {} if cut.activations.min() == 0 else {"ablation_layer": Zero()}
    with AblationCAM(model, [model.get_submodule(layer)], **own) as library:
        library.activations_and_grads.release()
        target = [ClassifierOutputTarget(targets[0])]
        theirs = library.get_cam_weights(given, model.get_submodule(layer), target, activations, None)[0]
    ours = ablation_weights(cut, 0, torch.tensor(targets))[0, :64].numpy()
    maps = [scaled((weights[:, None, None] * activations[0]).sum(0)[None]) for weights in (ours, theirs)]
    assert np.abs(maps[0] - maps[1]).max() <= 1e-5


@pytest.mark.parametrize(("architecture", "stride", "seed"), CASES)
def test_score_cam_is_that_of_grad_cam_on_64_feature_maps(architecture, stride, seed):
    model, layer, given = network(architecture, seed), STAGES[architecture][stride], images(1, seed=seed)
    cut, targets = Cut(model, given, layer), likely(model, given)
    some = cut.activations[0, :64]
    with ScoreCAM(model, [model.get_submodule(layer)]) as library:
        library.activations_and_grads.release()
        target = [ClassifierOutputTarget(targets[0])]
        theirs = library.get_cam_weights(given, None, target, some[None].numpy(), None)[0]
    ours = score_weights(packed(model, given), given, some, torch.tensor(targets)).weights[0].numpy()
    maps = [scaled((weights[:, None, None] * some.numpy()).sum(0)[None]) for weights in (ours, theirs)]
    # folded kernels round in another order, and a hundred layers of random weights amplify it
    assert np.abs(maps[0] - maps[1]).max() <= (1e-3 if architecture == "resnet101" else 1e-4)


def test_whole_maps_without_gradients_are_those_of_grad_cam():
    model, given = network("mobilenet_v2"), images(1)
    targets = likely(model, given)
    ours = explain(model, given, ("Ablation-CAM", "Score-CAM"), targets, 32)
    for method, kind, bound in (("Ablation-CAM", AblationCAM, 1e-5), ("Score-CAM", ScoreCAM, 1e-4)):
        theirs = library_map(kind, model, "features.18", given, targets)
        assert theirs.max() > 0.9 and np.abs(scaled(ours[method].values) - theirs).max() <= bound


PIXEL_GRADIENTS = ("Saliency", "Integrated Gradients", "GradientShap")


def library_attributions(model, given, seed):
    saliency = captum.attr.Saliency(model).attribute(given.clone().requires_grad_(), target=1)
    path = captum.attr.IntegratedGradients(model).attribute(given, 0.0, 1, n_steps=10)
    torch.manual_seed(seed)
    np.random.seed(seed)
    baselines = torch.randn(5, *given.shape[1:]) * 0.001
    shap = captum.attr.GradientShap(model).attribute(given, baselines, n_samples=5, stdevs=0.0, target=1)
    return dict(zip(PIXEL_GRADIENTS, (found.detach().sum(1).numpy() for found in (saliency, path, shap)), strict=True))


@pytest.mark.parametrize("method", PIXEL_GRADIENTS)
def test_pixel_gradients_are_no_farther_from_double_precision_than_the_library(method):
    """Median over four networks and three seeds: single maps hang on which ReLU rounding happens to switch."""
    ours, theirs = [], []
    for architecture in STAGES:
        for seed in range(3):
            model, given = network(architecture, seed), images(1, seed=seed)
            exact = explain(deepcopy(model).double(), given, method, 1, steps=10, noise=0.0, seed=seed)[method].values
            found = explain(model, given, method, 1, steps=10, noise=0.0, seed=seed)[method].values
            for distances, values in ((ours, found), (theirs, library_attributions(model, given, seed)[method])):
                distances.append(np.linalg.norm(values - exact) / np.linalg.norm(exact))
    assert np.median(ours) <= 1.01 * np.median(theirs)


def test_example_on_paper():
    model, image = toy()
    maps = explain(model, image, ("Grad-CAM", "HiResCAM", "Saliency"), 0, "0")
    assert maps["HiResCAM"].values.tolist() == [[[-4, 4], [1, 0]]]
    assert maps["Grad-CAM"].values.tolist() == [[[4, 1], [1, 0]]]
    assert maps["Saliency"].values.tolist() == [[[4, 16], [4, 0]]]
    assert maps["logit"].values.tolist() == [1.5]
    assert maps["HiResCAM"].sum().item() + 0.5 == 1.5
    assert maps["Grad-CAM"].sum().item() + 0.5 == 6.5


@pytest.mark.parametrize("pooled", [True, False])
def test_hirescam_and_the_bias_sum_to_the_logit(pooled):
    model = small(pooled)
    for target in range(3):
        maps = explain(model, images(4, 8), ("Grad-CAM", "HiResCAM"), target, "1")
        total = maps["HiResCAM"].sum(("row", "column")) + model[-1].bias[target].item()
        np.testing.assert_allclose(total, maps["logit"], rtol=0, atol=1e-6)
    same = np.allclose(maps["Grad-CAM"], maps["HiResCAM"], rtol=0, atol=1e-12)
    assert same == pooled


def test_pooling_makes_three_maps_the_class_activation_map_up_to_a_factor():
    model = small(pooled=True)
    maps = explain(model, images(4, 8), ("Grad-CAM", "HiResCAM", "Ablation-CAM"), 2, "1")
    activations = model[:2](images(4, 8).double())
    cam = torch.einsum("f,nfhw->nhw", model[-1].weight[2], activations).detach().numpy()
    np.testing.assert_allclose(maps["Grad-CAM"] * 36, cam, rtol=0, atol=1e-12)
    np.testing.assert_allclose(maps["HiResCAM"] * 36, cam, rtol=0, atol=1e-12)
    shares = model[-1].weight[2] * activations.mean((2, 3)) / torch.from_numpy(maps["logit"].values)[:, None]
    ablated = torch.einsum("nf,nfhw->nhw", shares, activations).detach().numpy()
    np.testing.assert_allclose(maps["Ablation-CAM"], ablated, rtol=1e-5, atol=1e-7)


def test_integrated_gradients_and_a_linear_network():
    """Every attribution of a linear network is weight times pixel; Occlusion with windows of one pixel too."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(64, 2)).double().eval()
    image = images(1, 8)[:, :1]
    weights = (model[2].weight[1] * model[0].weight.item()).reshape(8, 8).detach().numpy()
    maps = explain(model, image, DETAILED, 1, windows=1, stride=1, noise=0.0, brightest=1.0)
    expected = weights * image[0, 0].numpy()
    np.testing.assert_allclose(maps["Saliency"][0], np.abs(weights), atol=1e-7)
    np.testing.assert_allclose(maps["Integrated Gradients"][0], expected, atol=1e-7)
    np.testing.assert_allclose(maps["Occlusion"][0], expected, atol=1e-7)
    np.testing.assert_allclose(maps["GradientShap"][0], expected, atol=0.01)


def test_a_constant_added_to_a_logit_changes_no_gradient_map():
    names = ("Grad-CAM", "Grad-CAM++", "HiResCAM", "EigenGrad-CAM", "Saliency", "Integrated Gradients", "GradientShap")
    one, other = (explain(*toy(bias), names, 0, "0") for bias in (0.5, 7.0))
    assert other["logit"].item() - one["logit"].item() == 6.5
    assert one.drop_vars("logit").equals(other.drop_vars("logit"))


def little():
    """A network of two residual blocks in double precision."""
    torch.manual_seed(0)
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4).double().eval()


def test_a_permutation_of_channels_changes_nothing():
    model = (
        nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        .double()
        .eval()
    )
    shuffled, order = deepcopy(model), [3, 0, 4, 2, 1]
    with torch.no_grad():
        shuffled[0].weight.copy_(model[0].weight[order])
        shuffled[0].bias.copy_(model[0].bias[order])
        shuffled[2].weight.copy_(model[2].weight[:, order])
    one, other = (explain(net, images(2, 8), METHODS, 1, "1", **QUICK) for net in (model, shuffled))
    for method in METHODS:
        np.testing.assert_allclose(one[method], other[method], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_images_one_by_one(method):
    model = little()
    together = explain(model, images(3), method, layer=8, **QUICK)
    assert together[method].dtype == np.float64 and len(together.image) == 3
    for i in range(3):
        alone = explain(model, images(3)[[i]], method, layer=8, **QUICK)
        scale = np.abs(alone[method]).max()
        assert np.abs(together[method][i] - alone[method][0]).max() <= 1e-7 * scale
        assert together["target"][i] == alone["target"][0]


@pytest.mark.parametrize("method", METHODS)
def test_several_targets_are_as_one_by_one(method):
    model = little()
    several = explain(model, images(), method, [[0, 3, 2], [1, 0, 0]], 8, **QUICK)
    assert several[method].dims[:2] == ("image", "target") and several[method].shape[:2] == (2, 3)
    assert several["class"].values.tolist() == [[0, 3, 2], [1, 0, 0]]
    for t, targets in enumerate(([0, 1], [3, 0], [2, 0])):
        one = explain(model, images(), method, targets, 8, **QUICK)
        np.testing.assert_allclose(several[method][:, t], one[method], rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(several["logit"][:, t], one["logit"])


def test_what_a_dataset_says_of_itself():
    model = network("mobilenet_v2")
    with torch.no_grad():
        logits = model(images())
    maps = explain(model, images(), METHODS, windows=(60, 120), stride=30, steps=3)
    assert tuple(maps) == METHODS
    assert maps["target"].values.tolist() == logits.argmax(1).tolist() and maps.targets == "predicted"
    np.testing.assert_allclose(maps["logit"], logits.amax(1), rtol=1e-4)
    assert maps["HiResCAM"].dims == ("image", "row", "column") and maps["HiResCAM"].shape == (2, 2, 2)
    assert maps["Saliency"].dims == ("image", "y", "x") and maps["Saliency"].shape == (2, 64, 64)
    assert maps["Occlusion"].dims == ("image", "window", "y", "x") and maps["window"].values.tolist() == [60, 120]
    about = maps["Integrated Gradients"].attrs
    assert (about["family"], about["kind"], about["units"], about["forwards"]) == ("gradient", "detailed", "logit", 6)
    assert json.loads(about["settings"]) == {"steps": 3, "baseline": 0.0, "precision": "float32"}
    assert maps["Score-CAM"].attrs["layer"] == maps.layer == "features" and "layer" not in about
    assert all(maps[method].attrs["seconds"] > 0 for method in METHODS)
    assert maps["Grad-CAM"].attrs["forwards"] == 2 and 2 < maps["Score-CAM"].attrs["forwards"] <= 2 * 1280
    assert describe("Saliency", get_options({})) == '{"precision": "float32"}'


def test_one_window_is_no_dimension():
    maps = explain(network("mobilenet_v2"), images(1), "Occlusion", 0, windows=120, stride=60)
    assert maps["Occlusion"].dims == ("image", "y", "x") and "window" not in maps.coords


def test_flat_maps_are_counted_and_returned():
    model = small(pooled=True)
    with torch.no_grad():
        model[4].weight[1].zero_()
    maps = explain(model, images(2, 8), METHODS, [[0, 1], [1, 1]], "1", **QUICK)
    assert [maps[method].attrs["flat"] for method in ("Grad-CAM", "Saliency", "Occlusion")] == [3, 3, 3]
    assert (maps["Saliency"][1] == 0).all()


def test_default_layer_stride_and_module_are_the_same():
    model = network("resnet101")
    maps = [explain(model, images(), "Grad-CAM", 0, layer) for layer in (None, 32, "layer4", model.layer4)]
    assert all(one.equals(maps[0]) for one in maps)


def test_arrays_and_tensors_are_the_same():
    model = network("resnet101")
    maps = [explain(model, given, "Grad-CAM", 0) for given in (images(), images().numpy(), images().double())]
    assert all(one.equals(maps[0]) for one in maps)


@pytest.mark.parametrize("make", [models.resnet18, models.vgg16], ids=lambda make: make.__name__)
def test_networks_that_a_user_brings(make):
    torch.manual_seed(0)
    model = make(num_classes=5).eval()
    maps = explain(model, images(1, 40), METHODS, **QUICK)
    assert all(np.isfinite(maps[method]).all() for method in METHODS)
    total = maps["Integrated Gradients"].sum().item()
    with torch.no_grad():
        gain = (model(images(1, 40)) - model(torch.zeros(1, 3, 40, 40)))[0, maps["target"].item()].item()
    assert np.sign(total) == np.sign(gain)


def test_bfloat16_where_it_is_asked_for():
    model = little().float()
    full, half = (explain(model, images(), GENERAL, 0, 8, precision=name) for name in ("float32", "bfloat16"))
    for method in GENERAL:
        assert half[method].dtype == np.float32
        assert np.corrcoef(full[method].values.ravel(), half[method].values.ravel())[0, 1] > 0.95
    assert not half["Grad-CAM"].equals(full["Grad-CAM"])


def test_works_inside_inference_mode():
    model, image = toy()
    with torch.inference_mode():
        inside = explain(model, image.clone(), METHODS, 0, "0", windows=112, stride=112)
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    outside = explain(model, image, METHODS, 0, "0", windows=112, stride=112)
    assert inside.equals(outside)


def test_frozen_networks_have_maps():
    model, image = toy()
    maps = explain(model, image, METHODS, 0, "0", windows=112, stride=112)
    assert explain(model.requires_grad_(False), image, METHODS, 0, "0", windows=112, stride=112).equals(maps)


class Breaking(nn.Module):
    """Raises an error in the n-th forward pass."""

    def __init__(self, after):
        super().__init__()
        self.first, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)
        self.second, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4, 3)
        self.left = after

    def forward(self, x):
        self.left -= 1
        y = self.relu(self.second(self.relu(self.first(x))))
        if self.left < 0:
            raise RuntimeError("broken")
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("after", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("method", METHODS + COMPARED)
def test_the_model_is_left_as_it_was(method, after):
    """Hooks, replaced forwards, flags, mode, gradients and weights; also when the n-th forward pass fails."""
    model = Breaking(10**6 if after is None else after).eval()
    model.first.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    own = model.second.register_forward_hook(lambda *_: None)
    before, weights = state_of(model), {name: value.clone() for name, value in model.state_dict().items()}
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    try:
        explain(model, images(2, 12), method, 0, "second", windows=112, stride=90, steps=3)
    except RuntimeError as error:
        assert "broken" in str(error) and after is not None
    else:
        assert after is None or after > 0
    assert state_of(model) == before and list(model.second._forward_hooks) == [own.id]
    assert (torch.is_grad_enabled(), torch.get_num_threads()) == (grad, threads)
    assert (model.head.weight.grad == 1).all()
    assert all((model.state_dict()[name] == value).all() for name, value in weights.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "layr4"}, "'layr4'.*did you mean 'layer4'"),
        ({"layer": 5}, "no stage of that stride"),
        ({"layer": "fc"}, r"expected an output \(N, F, h, w\)"),
        ({"targets": 4}, "no class 4; the model has classes 0 to 3"),
        ({"targets": [0, -1]}, "no class -1"),
        ({"targets": [0, 1, 2]}, "got 3"),
        ({"targets": 0.5}, "class index"),
        ({"targets": [[[0]], [[1]]]}, "class index"),
        ({"methods": ["HiresCAM"]}, "unknown 'HiresCAM'.*did you mean 'HiResCAM'"),
        ({"methods": []}, "one or several different ones"),
        ({"methods": ["Saliency", "Saliency"]}, "different ones"),
        ({"step": 3}, "unknown setting 'step'; did you mean 'steps'"),
        ({"images": images()[0]}, r"pass image\[None\]"),
        ({"images": images() * 2}, r"expected \[0, 1\]"),
    ],
)
def test_errors_name_the_argument_and_the_remedy(changes, message):
    model = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4).eval()
    arguments = {"images": images(), "methods": ("Grad-CAM", "Saliency"), "layer": "layer4", "targets": 0} | changes
    with pytest.raises(ValueError, match=message):
        explain(model, **arguments)


def test_train_mode_is_an_error():
    with pytest.raises(ValueError, match="train mode"):
        explain(network("mobilenet_v2").train(), images())
    network("mobilenet_v2").eval()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_cuda_gives_the_maps_of_the_cpu(method):
    model = deepcopy(network("googlenet")).double()
    cpu = explain(model, images(), method, 0, **QUICK)[method].values
    cuda = explain(model.cuda(), images(), method, 0, **QUICK)[method].values
    assert np.abs(cpu - cuda).max() <= 1e-6 * np.abs(cpu).max()
