"""Further methods, straight from grad-cam and captum, to compare with."""

from __future__ import annotations

import copy
import warnings

import captum.attr
import torch
from pytorch_grad_cam import EigenCAM, FullGrad, LayerCAM, XGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import fx, nn
from torch.nn import functional

RELUS = (functional.relu, functional.relu_, torch.relu, "relu", "relu_")


def _formula(kind):
    """A CAM of grad-cam as a function of activations and gradients: raw, before its scaling."""

    def formula(activations, gradients):
        arrays = [value.detach().cpu().numpy() for value in (activations, gradients)]
        cams = kind(nn.Linear(1, 1), []).get_cam_image(None, None, None, *arrays, False)
        return torch.from_numpy(cams).to(activations)

    return formula


CAMS = {"LayerCAM": _formula(LayerCAM), "XGrad-CAM": _formula(XGradCAM), "Eigen-CAM": _formula(EigenCAM)}


def full_grad(model, image, target):
    """FullGrad of one image, (1, H, W); as grad-cam returns it, scaled to [0, 1]."""
    with FullGrad(copy.deepcopy(model), []) as method:
        return torch.from_numpy(method(image, [ClassifierOutputTarget(target)]))


def deep_lift(model, image, target):
    """DeepLIFT of one image from a black one, (1, H, W), summed over channels."""
    return _quiet(captum.attr.DeepLift(_own_relus(model)), image, torch.zeros_like(image), target)


def guided_backprop(model, image, target):
    """Guided backpropagation of one image, (1, H, W), summed over channels. captum guides ReLU, but not ReLU6."""
    return _quiet(captum.attr.GuidedBackprop(_own_relus(model)), image, target)


def _quiet(method, *arguments):
    with warnings.catch_warnings():  # that hooks are set, and removed again
        warnings.simplefilter("ignore", UserWarning)
        return method.attribute(*arguments).detach().sum(1)


ATTRIBUTIONS = {"FullGrad": full_grad, "DeepLift": deep_lift, "Guided Backprop": guided_backprop}


def _own_relus(model):
    """A copy in which every ReLU is a module of its own that works out of place, as captum's hooks need it."""
    graph = fx.symbolic_trace(copy.deepcopy(model))
    for number, node in enumerate(list(graph.graph.nodes)):
        module = graph.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.ReLU) or node.target in RELUS:
            graph.add_submodule(f"relu_{number}", nn.ReLU())
            with graph.graph.inserting_after(node):
                own = graph.graph.call_module(f"relu_{number}", (node.args[0],))
            node.replace_all_uses_with(own)
            graph.graph.erase_node(node)
        elif getattr(module, "inplace", False):
            graph.add_submodule(f"kept_{number}", type(module)())
            node.target = f"kept_{number}"
    graph.recompile()
    return graph.eval()
