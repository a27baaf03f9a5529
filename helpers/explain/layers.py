"""Which layer of a network a map is made of, and whether network and images fit together."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import nn
from torchvision import models

from helpers.models.classifiers import STAGES
from helpers.settings import closest

FAMILIES = {
    models.DenseNet: "densenet201", models.GoogLeNet: "googlenet", models.MobileNetV2: "mobilenet_v2",
    models.ResNet: "resnet101",
}  # fmt: skip


def find_layer(model: nn.Module, layer: nn.Module | str | int) -> tuple[str, nn.Module]:
    """Dotted name and module of a layer.

    Parameters
    ----------
    layer : module of the model; its dotted name; or 4, 8, 16 or 32 for the last module that works at that stride, in a
        torchvision DenseNet, GoogLeNet, MobileNetV2 or ResNet, see `classifiers.STAGES`

    Raises
    ------
    ValueError
        if the model has no such layer; a name is answered with the closest ones
    """
    modules = dict(model.named_modules())
    if isinstance(layer, int):
        family = next((name for kind, name in FAMILIES.items() if isinstance(model, kind)), None)
        if family is None or layer not in STAGES[family]:
            strides = f"known are {sorted(STAGES[family])}" if family else "name a module"
            raise ValueError(f"layer {layer}: no stage of that stride is known in {type(model).__name__}; {strides}")
        layer = STAGES[family][layer]
    if isinstance(layer, str):
        if layer not in modules or not layer:
            raise ValueError(f"layer {layer!r}: no such module in {type(model).__name__}{closest(layer, modules)}")
        return layer, modules[layer]
    for name, module in modules.items():
        if module is layer and name:
            return name, module
    raise ValueError(f"layer: this {type(layer).__name__} is not inside the model; give one of its modules or a name")


def last_block(model: nn.Module, images) -> str:
    """Name of the outermost module holding the last convolution that runs on `images` (N, C, H, W).

    Passed over are modules that leave a single position, and modules that do not run (the auxiliary heads of GoogLeNet
    in eval mode). ResNet: "layer4"; GoogLeNet: "inception5b"; DenseNet, MobileNet, VGG: "features".

    Raises
    ------
    ValueError
        if no module qualifies
    """
    blocks = []

    def note(name, module):
        def hook(_, inputs, output):
            holds = any(isinstance(part, nn.modules.conv._ConvNd) for part in module.modules())
            if holds and isinstance(output, torch.Tensor) and output.dim() == 4 and output[0, 0].numel() > 1:
                blocks.append(name)

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if name:
                hooks.enter_context(module.register_forward_hook(note(name, module)))
        model(prepare(model, images[:1]))
    outer = [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]
    if not outer:
        raise ValueError(f"layer: {type(model).__name__} has no convolution with more than one position; name a layer")
    return outer[-1]


def check_images(images, brightest: float = 1.0) -> None:
    """Raise a ValueError unless `images` are (N, C, H, W) numbers in [0, brightest], N at least 1, without NaN."""
    shape = tuple(getattr(images, "shape", ()))
    if len(shape) != 4 or 0 in shape:
        hint = "; for one image pass image[None]" if len(shape) == 3 else ""
        raise ValueError(f"images: expected (N, C, H, W) with at least one image, got shape {shape}{hint}")
    values = torch.as_tensor(images)
    if not values.is_floating_point():
        raise ValueError(f"images: expected float in [0, 1], got {values.dtype}; divide 8-bit values by 255")
    wrong = ~torch.isfinite(values).flatten(1).all(1)
    if wrong.any():
        raise ValueError(f"images: NaN or infinity in image {wrong.nonzero()[0].item()}")
    low, high = values.amin().item(), values.amax().item()
    if low < 0 or high > brightest * (1 + 1e-6):  # 1.1 in float32 is a little more than 1.1
        expected = f"[0, {brightest:g}]"
        raise ValueError(f"images: values in [{low:.3g}, {high:.3g}], expected {expected}; normalise in the model")


def check_eval(model) -> None:
    """Raise a ValueError if a module of the model is in train mode."""
    for name, module in model.named_modules():
        if module.training:
            where = f"module {name!r}" if name else type(model).__name__
            raise ValueError(f"{where} is in train mode: its maps would be random; call model.eval()")


def check_logits(logits) -> None:
    """Raise a ValueError unless `logits` is a tensor (N, K) of finite numbers."""
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"model: expected logits (N, K), got {got}")
    if not torch.isfinite(logits).all():
        raise ValueError("model: its logits hold NaN or infinity; check the weights")


def prepare(model, images) -> torch.Tensor:
    """Images as a tensor of the model's device and floating-point type."""
    like = next(model.parameters(), torch.empty(0))
    images = torch.as_tensor(images).to(like.device, like.dtype)
    return images.clone() if images.is_inference() else images
