"""A forward pass cut at one layer: what lies before it runs once, what follows can be asked again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from helpers.explain.inference import SAME, output_sizes
from helpers.explain.layers import check_logits, find_layer


class Cut:
    """Activations of a layer for N images, the gradients there, and the rest of the network as a function of them.

    What lies before the layer runs without a graph. The rest gets a clone of the activations, so an in-place operation
    on them (the ReLU behind DenseNet's last norm) changes neither them nor a map. Nothing stays behind on the model:
    hooks and replaced forwards are gone when the constructor or `replay` returns, also after an error.

    Parameters
    ----------
    model : network in eval mode, (N, C, H, W) -> logits (N, K)
    images : (N, C, H, W) tensor on the model's device and of its floating-point type
    layer : as in `find_layer`; a module that runs once and returns a tensor (N, F, h, w)
    gradients, replay : what will be asked for; without `gradients` no graph is kept, without `replay` no record

    Attributes
    ----------
    name : dotted name of the layer
    activations : (N, F, h, w) tensor
    logits : (N, K) tensor
    bytes : of the largest tensor of a replay, per image; only with `replay`

    Raises
    ------
    ValueError
        if the layer does not fit, the logits are not (N, K) finite numbers, or a second pass gives other logits
    """

    @torch.inference_mode(False)  # also where the caller has switched gradients off
    def __init__(self, model: nn.Module, images, layer, gradients: bool = True, replay: bool = False):
        self._model, self._images = model, images
        self.name, self._module = find_layer(model, layer)
        self._records, kept, begin = {}, [], []

        def cut(_, inputs, output):
            if kept:
                raise ValueError(
                    f"layer {self.name!r} runs more than once in a forward pass; choose a module that runs once"
                )
            if not isinstance(output, torch.Tensor) or output.dim() != 4:
                got = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
                raise ValueError(
                    f"layer {self.name!r}: expected an output (N, F, h, w), got {got}; choose a convolution"
                )
            begin.append(len(sizes))
            kept.append(output.detach().clone().requires_grad_(gradients))
            torch.set_grad_enabled(gradients)  # from here on; the no_grad block below restores the caller's setting
            return kept[0].clone()

        def recording(module):
            forward = module.forward

            def recorded(*arguments, **options):
                output = forward(*arguments, **options)
                if not kept:
                    self._records.setdefault(module, []).append(_map(torch.clone, output))
                return output

            return recorded

        recorders = {module: recording(module) for module in self._beside()} if replay else {}
        measured = output_sizes(model) if replay else nullcontext([])
        with torch.no_grad(), measured as sizes, _replaced(recorders), self._module.register_forward_hook(cut):
            self._graph = model(images)
            if not kept:
                raise ValueError(f"layer {self.name!r} does not run in a forward pass of {type(model).__name__}")
        self.bytes = max([kept[0][0].numel() * kept[0].element_size(), *sizes[begin[0] :]])
        check_logits(self._graph)
        self._leaf = kept[0]
        self.activations, self.logits = self._leaf.detach(), self._graph.detach()
        if not gradients:
            self._graph = None
        if replay:
            self._choose_mode()

    @torch.inference_mode(False)
    def gradients(self, targets: torch.Tensor) -> torch.Tensor:
        """Gradients (N, F, h, w) of the logit of one target per image, (N,), at the layer."""
        score, gradients = self._graph.gather(1, targets.clone()[:, None]).sum(), None
        if score.requires_grad:
            (gradients,) = torch.autograd.grad(score, [self._leaf], retain_graph=True, allow_unused=True)
        if gradients is None:
            raise ValueError(f"layer {self.name!r}: the logits do not depend on it; choose a layer on the way to them")
        return gradients

    def replay(self, activations: torch.Tensor, image: int = 0) -> torch.Tensor:
        """Logits (B, K) of one image with other activations (B, F, h, w) in the layer's place.

        Modules that had finished before the layer give back what they gave then. Whether that is enough was tried with
        the layer's own activations; where it is not (operations outside modules mix images of a batch), the whole
        network runs.
        """
        n = len(activations)

        def remembered(module, records):
            forward, waiting = module.forward, iter(records)

            def replayed(*arguments, **options):
                for record in waiting:
                    return _map(spread, record)
                return forward(*arguments, **options)

            return replayed

        def spread(value):
            if not value.dim() or len(value) != len(self._images):
                return value
            wide = value[image : image + 1].expand(n, *value.shape[1:])
            return wide.clone() if self._mode == "copies" else wide

        records = {} if self._mode == "whole" else self._records
        replaced = {module: remembered(module, record) for module, record in records.items()}
        if records:
            replaced[self._module] = lambda *arguments, **options: activations
        like = self._images[image : image + 1]
        images = like if self._mode == "views" else like.expand(n, *like.shape[1:])
        with (
            torch.inference_mode(),
            _replaced(replaced),
            self._module.register_forward_hook(lambda module, inputs, output: activations),
        ):
            return self._model(images)

    def _choose_mode(self):
        twice = self.activations[:1].expand(2, *self.activations.shape[1:])
        failure = None
        for self._mode in ("views", "copies", "whole"):
            try:
                logits = self.replay(twice.clone())
            except RuntimeError as error:
                failure = error
                continue
            if logits.shape[0] == 2 and (logits - self.logits[0]).abs().max() <= SAME * self.logits.abs().max():
                return
        if failure is not None:
            raise failure
        raise ValueError("model: the same image gave other logits in a second pass; is something in it random?")

    def _beside(self):
        """The modules beside the way from the model down to the layer."""
        parts = self.name.split(".")
        way = [self._model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]
        return [child for parent in way[:-1] for child in parent.children() if child not in way]


@contextmanager
def _replaced(forwards: Mapping[nn.Module, Callable]):
    """Within the block, each module runs another forward."""
    own = {module: module.__dict__["forward"] for module in forwards if "forward" in module.__dict__}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module in forwards:
            if module in own:
                module.forward = own[module]
            else:
                module.__dict__.pop("forward", None)


def _map(function, value):
    """A tensor, or every tensor inside lists, tuples and dicts, changed by a function."""
    return function(value) if isinstance(value, torch.Tensor) else tree_map_only(torch.Tensor, function, value)
