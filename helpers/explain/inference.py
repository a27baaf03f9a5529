"""A network made ready for thousands of forward passes: norms folded, activations fused, weights packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional

SAME = 1e-3  # the same logits up to this share of the largest one: a hundred layers can make so much of rounding
CACHED = 2**27  # bytes of a batch of forward passes on the CPU
SHARE = 6  # a forward pass holds about this many tensors of its largest size at once
FUSED = {nn.ReLU: ("relu", []), nn.ReLU6: ("hardtanh", [0.0, 6.0]), functional.relu: ("relu", [])}


class Packed(nn.Module):
    """A convolution in oneDNN's own layout together with the activation behind it; inference on the CPU only."""

    def __init__(self, convolution: nn.Conv2d, activation: str, scalars: list):
        super().__init__()
        for name in ("stride", "padding", "dilation", "groups", "kernel_size"):
            setattr(self, name, getattr(convolution, name))
        self.weight, self.bias = convolution.weight.detach(), convolution.bias
        self.activation, self.scalars = activation, scalars

    def forward(self, images):
        geometry = self.padding, self.stride, self.dilation, self.groups
        if not self.weight.is_mkldnn:
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *geometry, list(images.shape))
        return torch.ops.mkldnn._convolution_pointwise(
            images, self.weight, self.bias, *geometry, self.activation, self.scalars, ""
        )


def folded(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """A copy whose norms are folded into the convolutions before them; it has gradients of its input.

    The model itself where it cannot be traced, or where the copy gives other logits on the images.
    """
    return _trusted(model, images, _fold)


def packed(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """A folded copy whose convolutions are packed for oneDNN, with the activation behind them; no gradients.

    Only folded are networks on another device than the CPU or of another type than float32, and under autocast.
    """
    plain = images.device.type == "cpu" and images.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if plain and not torch.is_autocast_enabled("cpu"):
        network = _trusted(model, images, lambda model: _pack(_fold(model)))
        if network is not model:
            return network
    return folded(model, images)


def _fold(model):
    return fuse(model).requires_grad_(False).to(memory_format=torch.channels_last)


def _trusted(model, images, change):
    try:
        with torch.inference_mode(False), torch.no_grad():
            made = change(model)
            wanted, got = model(images[:1]), made(images[:1])
            same = (wanted - got).abs().max() <= SAME * wanted.abs().max()
    except Exception:  # tracing and packing can fail in as many ways as there are networks
        return model
    return made if same else model


def _pack(network):
    graph = network.graph
    for node in list(graph.nodes):
        module = network.get_submodule(node.target) if node.op == "call_module" else None
        if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or isinstance(module.padding, str):
            continue
        activation = "none", []
        if len(node.users) == 1:
            (after,) = node.users
            kind = type(network.get_submodule(after.target)) if after.op == "call_module" else after.target
            if kind in FUSED:
                activation = FUSED[kind]
                after.replace_all_uses_with(node)
                graph.erase_node(after)
        parent, _, name = node.target.rpartition(".")
        setattr(network.get_submodule(parent), name, Packed(module, *activation))
    graph.lint()
    network.recompile()
    return network


@contextmanager
def output_sizes(model: nn.Module):
    """Within the block, a list receives the bytes per image of every output of a module without children."""
    sizes = [0]

    def note(_, inputs, output):
        if isinstance(output, torch.Tensor) and output.dim() and len(output):
            if any(isinstance(value, torch.Tensor) and value.data_ptr() == output.data_ptr() for value in inputs):
                return  # computed in place
            sizes.append(output.element_size() * output.numel() // len(output))

    with ExitStack() as hooks:
        for module in model.modules():
            if not any(module.children()):
                hooks.enter_context(module.register_forward_hook(note))
        yield sizes


def largest(model: nn.Module, images: torch.Tensor) -> int:
    """Bytes per image of the largest output of any module."""
    with output_sizes(model) as sizes, torch.inference_mode():
        model(images[:1])
    return max(sizes)


def in_cache(memory: int, size: int, device: torch.device) -> int:
    """On the CPU at most `size` of the memory: larger batches would only wait for it."""
    return min(memory, size) if device.type == "cpu" else memory


def parts(n: int, bytes_each: int, memory: int) -> Iterator[slice]:
    """Slices of at most as many of n things as fit into the memory, at least one each."""
    size = max(1, memory // max(1, bytes_each))
    return (slice(start, min(n, start + size)) for start in range(0, n, size))


def gathered(compute: Callable[[slice], torch.Tensor], n: int, bytes_each: int, memory: int) -> torch.Tensor:
    """Results (n, ...) of `compute`, which is given as many of n things at a time as fit into the memory.

    Every batch has the same size, so that a kernel is prepared for one shape only: the last one begins early and
    repeats a few. Results are copied into one tensor as they come; a list of them would pin small pieces of memory
    between the large ones of the forward passes, and the process would grow with every batch.
    """
    whole, size = None, None
    for part in parts(n, bytes_each, memory):
        size = size or part.stop
        part = slice(part.stop - size, part.stop)
        batch = compute(part)
        if whole is None:
            whole = batch.new_empty((n, *batch.shape[1:]))
        whole[part] = batch
    return whole
