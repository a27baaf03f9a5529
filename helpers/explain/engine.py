"""One forward to a layer and one backward through what follows it serve every gradient CAM."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from typing import NamedTuple

import torch
import xarray as xr
from torch import nn

from helpers.explain.cams import GRADIENT_CAMS
from helpers.settings import closest

METHODS = tuple(GRADIENT_CAMS)


class Recording(NamedTuple):
    """What a gradient CAM needs, detached, on the model's device: N images, F feature maps, K classes."""

    activations: torch.Tensor  # (N, F, h, w)
    gradients: torch.Tensor  # (N, F, h, w), of the target's logit
    logits: torch.Tensor  # (N, K)
    targets: torch.Tensor  # (N,) int64


def find_layer(model: nn.Module, layer: nn.Module | str) -> tuple[str, nn.Module]:
    """Dotted name and module of a layer that is given as either.

    Raises
    ------
    ValueError
        if the model has no such layer; a name is answered with the closest ones
    """
    modules = dict(model.named_modules())
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
        model(_prepare(model, images[:1]))
    outer = [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]
    if not outer:
        raise ValueError(f"layer: {type(model).__name__} has no convolution with more than one position; name a layer")
    return outer[-1]


def check_images(images) -> None:
    """Raise a ValueError unless `images` are (N, C, H, W) real numbers in [0, 1], N at least 1, without NaN."""
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
    if low < 0 or high > 1:
        raise ValueError(f"images: values in [{low:.3g}, {high:.3g}], expected [0, 1]; normalise in the model")


def _check_eval(model):
    for name, module in model.named_modules():
        if module.training:
            where = f"module {name!r}" if name else type(model).__name__
            raise ValueError(f"{where} is in train mode: its maps would be random; call model.eval()")


def _prepare(model, images):
    like = next(model.parameters(), torch.empty(0))
    return torch.as_tensor(images).to(like.device, like.dtype)


def _as_targets(targets, n):
    if targets is None:
        return None
    values = torch.as_tensor(targets)
    if values.is_floating_point() or values.dtype == torch.bool or values.dim() > 1:
        raise ValueError("targets: expected None (the predicted class), one class index, or one per image")
    if values.dim() == 1 and len(values) != n:
        raise ValueError(f"targets: expected one class index or {n}, one per image; got {len(values)}")
    return values.expand(n).clone().long()


@torch.inference_mode(False)  # also where the caller has switched gradients off
def record(model: nn.Module, images, layer: nn.Module | str, targets=None) -> Recording:
    """Activations of a layer, and there the gradients of the target's logit.

    What lies before the layer runs without a graph. The rest of the network gets a clone of the activations, so an
    in-place operation on them (the ReLU behind DenseNet's last norm) changes neither them nor the map.
    The model's gradients, flags and mode stay as they are; its hook is gone afterwards, also after an error.

    Parameters
    ----------
    model : network in eval mode, (N, C, H, W) -> logits (N, K)
    images : (N, C, H, W) tensor or array in [0, 1]; moved to the model's device and floating-point type
    layer : module of the model, or its dotted name, that runs once and returns a tensor (N, F, h, w)
    targets : None for the predicted class, one class index, or one per image

    Raises
    ------
    ValueError
        if an argument does not fit, or the logits do not depend on the layer
    """
    check_images(images)
    _check_eval(model)
    name, module = find_layer(model, layer)
    targets = _as_targets(targets, len(images))
    kept = []

    def cut(_, inputs, output):
        if kept:
            raise ValueError(f"layer {name!r} runs more than once in a forward pass; choose a module that runs once")
        if not isinstance(output, torch.Tensor) or output.dim() != 4:
            got = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
            raise ValueError(f"layer {name!r}: expected an output (N, F, h, w), got {got}; choose a convolution")
        kept.append(output.detach().requires_grad_())
        torch.set_grad_enabled(True)  # from here on; the no_grad block below restores the caller's setting
        return kept[0].clone()

    with torch.no_grad(), module.register_forward_hook(cut):
        logits = model(_prepare(model, images))
        if not kept:
            raise ValueError(f"layer {name!r} does not run in a forward pass of {type(model).__name__}")
        if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise ValueError(f"model: expected logits (N, K), got {got}")
        if not torch.isfinite(logits).all():
            raise ValueError("model: its logits hold NaN or infinity; check the weights")
        n_classes = logits.shape[1]
        targets = logits.argmax(1) if targets is None else targets.to(logits.device)
        wrong = targets[(targets < 0) | (targets >= n_classes)]
        if len(wrong):
            raise ValueError(f"targets: no class {wrong[0].item()}; the model has classes 0 to {n_classes - 1}")
        score, gradients = logits.gather(1, targets[:, None]).sum(), None
        if score.requires_grad:
            (gradients,) = torch.autograd.grad(score, kept, allow_unused=True)
        if gradients is None:
            raise ValueError(f"layer {name!r}: the logits do not depend on it; choose a layer on the way to them")
    return Recording(kept[0].detach(), gradients, logits.detach(), targets)


def explain(
    model: nn.Module,
    images,
    methods: Sequence[str] | str = METHODS,
    targets=None,
    layer: nn.Module | str | None = None,
    batch_size: int = 32,
) -> xr.Dataset:
    """Raw, signed saliency maps of one target per image.

    Parameters
    ----------
    model : network in eval mode, (N, C, H, W) -> logits (N, K)
    images : (N, C, H, W) tensor or array in [0, 1]
    methods : names from `METHODS`
    targets : None for the predicted class, one class index, or one per image
    layer : module or dotted name; None takes the last convolutional block, see `last_block`
    batch_size : images computed at once; bounds the memory and changes no map beyond rounding

    Returns
    -------
    Dataset with one variable (image, row, column) per method on the layer's grid, in the model's floating-point type,
    and with the coordinates `target` and `logit` of every image. `to_heatmap` turns a variable into a picture.

    Raises
    ------
    ValueError
        if a method is unknown or an argument does not fit, see `record`
    """
    methods = (methods,) if isinstance(methods, str) else tuple(methods)
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"methods: unknown {method!r}; known: {', '.join(METHODS)}{closest(method, METHODS)}")
    if not methods or batch_size < 1:
        raise ValueError(f"expected at least one method and batch_size >= 1, got {methods} and {batch_size}")
    check_images(images)
    _check_eval(model)
    wanted = _as_targets(targets, len(images))
    name = last_block(model, images) if layer is None else find_layer(model, layer)[0]
    maps = {method: [] for method in methods}
    used, logits = [], []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        recording = record(model, images[part], name, None if wanted is None else wanted[part])
        for method in methods:
            maps[method].append(GRADIENT_CAMS[method](recording.activations, recording.gradients).cpu())
        used.append(recording.targets.cpu())
        logits.append(recording.logits.gather(1, recording.targets[:, None])[:, 0].cpu())
    about = {"family": "gradient", "kind": "general", "layer": name}
    return xr.Dataset(
        {
            method: (("image", "row", "column"), torch.cat(parts).numpy(), {"method": method, **about})
            for method, parts in maps.items()
        },
        coords={"target": ("image", torch.cat(used).numpy()), "logit": ("image", torch.cat(logits).numpy())},
        attrs={
            "layer": name,
            "targets": "predicted" if targets is None else "given",
            "versions": " ".join(f"{package} {version(package)}" for package in ("torch", "torchvision")),
        },
    )
