"""The four networks of the skin ultrasound study, with a new last layer, and the names of their stages."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck

from helpers.settings import ARCHITECTURES, closest, seed_everything
from helpers.store import replacing

HEADS = {"densenet201": "classifier", "googlenet": "fc", "mobilenet_v2": "classifier.1", "resnet101": "fc"}

STAGES = {
    "densenet201": {
        4: "features.denseblock1", 8: "features.denseblock2", 16: "features.denseblock3", 32: "features.norm5"
    },
    "googlenet": {4: "conv3", 8: "inception3b", 16: "inception4e", 32: "inception5b"},
    "mobilenet_v2": {4: "features.3", 8: "features.6", 16: "features.13", 32: "features.18"},
    "resnet101": {4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"},
}  # fmt: skip


def stage(architecture: str, stride: int = 32) -> str:
    """Dotted name of the last module that works at a stride of 4, 8, 16 or 32 pixels of the input.

    The study records target layers for ResNet101 only; those of the other three are this collection's choice.
    """
    _known(architecture)
    if stride not in STAGES[architecture]:
        raise ValueError(f"stride: expected one of {sorted(STAGES[architecture])}, got {stride!r}")
    return STAGES[architecture][stride]


def _known(architecture):
    if architecture not in ARCHITECTURES:
        hint = closest(architecture, ARCHITECTURES)
        raise ValueError(f"unknown architecture {architecture!r}: expected one of {list(ARCHITECTURES)}{hint}")


def _skeleton(architecture, n_classes, dropout=None, auxiliary=False):
    options = {"weights": None, "num_classes": n_classes}
    if architecture == "googlenet":
        options |= {"aux_logits": auxiliary, "init_weights": False}
    if dropout is not None and architecture in ("googlenet", "mobilenet_v2"):
        options["dropout"] = dropout
    return getattr(models, architecture)(**options)


def replace_head(model: nn.Module, architecture: str, n_classes: int) -> nn.Module:
    """Put a new linear layer with `n_classes` outputs in the place of the last one; returns `model`."""
    name = HEADS[architecture]
    old = model.get_submodule(name)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Linear(old.in_features, n_classes))
    return model


def read_weights(path) -> dict[str, torch.Tensor]:
    """State dict of a .safetensors file, or of a .pth / .pt file that holds nothing but tensors.

    Raises
    ------
    FileNotFoundError, ValueError
        if the file is missing, unreadable, or holds anything but a mapping from names to tensors
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"weights: no file {path}; give a state dict (.safetensors, .pth) or 'imagenet'")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"weights: {path} cannot be read as a state dict of tensors: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"weights: {path} holds {type(state).__name__}, expected a mapping from names to tensors")
    return state


def _load_strictly(model, state, origin):
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"weights: {origin} does not fit this network: {error}") from error


def _zero_last_norms(model):
    """A residual block that starts as the identity trains several times faster from a random start."""
    for module in model.modules():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
        elif isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
        elif isinstance(module, InvertedResidual) and module.use_res_connect:
            nn.init.zeros_(module.conv[-1].weight)


def build(
    architecture: str, n_classes: int, weights: str = "random", dropout: float | None = None, seed: int = 0
) -> nn.Module:
    """One of the four networks with a new last layer, in train mode and channels-last memory format.

    Parameters
    ----------
    architecture : one of `ARCHITECTURES`
    n_classes : outputs of the new last layer
    weights : "random" (residual blocks start as the identity), "imagenet" (torchvision's), or the path of a state
        dict of the same architecture, loaded strictly; its own last layer may have any number of outputs
    dropout : before the last layer; None leaves torchvision's; DenseNet201 and ResNet101 have none
    seed : of the random numbers of new layers

    Returns
    -------
    network, images (N, 3, H, W) in [0, 1] -> logits (N, n_classes)

    Raises
    ------
    ValueError, FileNotFoundError
        if the architecture is unknown, or the weights are missing, unreadable or of another network
    """
    _known(architecture)
    seed_everything(seed)
    if weights == "random":
        model = _skeleton(architecture, n_classes, dropout)
        _zero_last_norms(model)
    elif weights == "imagenet":
        model = getattr(models, architecture)(weights="DEFAULT")
    else:
        state = read_weights(weights)
        head = state.get(f"{HEADS[architecture]}.weight")
        if head is None:
            raise ValueError(f"weights: {weights} has no {HEADS[architecture]}.weight: not a {architecture}")
        auxiliary = any(name.startswith("aux1.") for name in state)
        model = _skeleton(architecture, head.shape[0], dropout, auxiliary)
        _load_strictly(model, state, weights)
        if auxiliary:
            # Only torchvision's own file has auxiliary heads; like torchvision, expect ImageNet-normalised input then.
            model.aux_logits, model.aux1, model.aux2, model.transform_input = False, None, None, True
    if weights != "random":
        for module in model.modules():
            if isinstance(module, nn.Dropout) and dropout is not None:
                module.p = dropout
        replace_head(model, architecture, n_classes)
    return model.to(memory_format=torch.channels_last)


def keep(model: nn.Module, architecture: str, path) -> None:
    """Write a network as safetensors, with what `restore` needs to build it again."""
    n_classes = model.get_submodule(HEADS[architecture]).out_features
    metadata = {
        "architecture": architecture,
        "n_classes": str(n_classes),
        "transform_input": str(getattr(model, "transform_input", False)),
    }
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata)


def restore(path) -> nn.Module:
    """A network that `keep` wrote, in eval mode on the CPU.

    Raises
    ------
    FileNotFoundError, ValueError
        if the file is missing, or was not written by `keep`
    """
    state, metadata = read_weights(path), {}
    if Path(path).suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    if "architecture" not in metadata:
        raise ValueError(f"{path}: not a network kept by this collection; `build` loads other state dicts")
    model = _skeleton(metadata["architecture"], int(metadata["n_classes"]))
    if hasattr(model, "transform_input"):
        model.transform_input = metadata["transform_input"] == "True"
    _load_strictly(model, state, path)
    return model.to(memory_format=torch.channels_last).eval()
