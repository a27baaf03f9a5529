"""`explain`: raw, signed saliency maps of a network, by any of the methods, as one xarray Dataset."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property, lru_cache, partial
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import nn

from helpers.explain import attributions, libraries
from helpers.explain.cams import GRADIENT_CAMS, first_component, total
from helpers.explain.channels import ablation_weights, score_weights
from helpers.explain.cut import Cut
from helpers.explain.heatmaps import FLAT
from helpers.explain.inference import output_sizes, packed, parts
from helpers.explain.layers import check_eval, check_images, check_logits, find_layer, last_block, prepare
from helpers.explain.occlusion import occlusion
from helpers.explain.options import Options, get_options
from helpers.settings import closest

PACKAGES = ("torch", "torchvision", "captum", "grad-cam")


class Method(NamedTuple):
    """How a map is made, and what it is."""

    make: Callable  # from a `Work` to maps (N, T, ...)
    family: str  # "gradient" or "no gradient"
    kind: str  # "general": on the layer's grid; "detailed": on the pixels
    units: str
    options: tuple[str, ...] = ()


class Work:
    """N images with T targets each, and what the methods need of the network, made once when it is first asked for."""

    def __init__(self, model, images, targets, layer, options: Options, copies: list, replay: bool):
        self.model, self.images, self.layer, self.options = model, images, layer, options
        self.memory, self.forwards, self.errors = options.bytes(images.device), 0, []
        self._wanted, self._copies, self._replay, self._gradients = targets, copies, replay, {}

    @cached_property
    def cut(self) -> Cut:
        return Cut(self.model, self.images, self.layer, replay=self._replay)

    @cached_property
    def logits(self) -> torch.Tensor:
        if self.layer is not None:
            return self.cut.logits
        with torch.no_grad():
            logits = self.model(self.images)
        check_logits(logits)
        return logits

    @cached_property
    def targets(self) -> torch.Tensor:
        """(N, T)"""
        if self._wanted is None:
            return self.logits.argmax(1, keepdim=True)
        n_classes, targets = self.logits.shape[1], self._wanted.to(self.logits.device)
        wrong = targets[(targets < 0) | (targets >= n_classes)]
        if len(wrong):
            raise ValueError(f"targets: no class {wrong[0].item()}; the model has classes 0 to {n_classes - 1}")
        return targets

    def gradients(self, t: int) -> torch.Tensor:
        if t not in self._gradients:
            self._gradients[t] = self.cut.gradients(self.targets[:, t])
        return self._gradients[t]

    @property
    def network(self) -> nn.Module:
        """The network made ready for forward passes; shared by all batches."""
        if not self._copies:
            self._copies.append(packed(self.model, self.images))
        return self._copies[0]

    @property
    def combine(self):
        return first_component if self.options.eigen_smooth else total

    def per_target(self, make) -> torch.Tensor:
        return torch.stack([make(t) for t in range(self.targets.shape[1])], 1)

    def per_image(self, make) -> torch.Tensor:
        return torch.stack([make(i) for i in range(len(self.images))])


def _gradient_cam(formula, work):
    work.forwards += len(work.images)
    activations = work.cut.activations.to(work.images.dtype)
    return work.per_target(lambda t: formula(activations, work.gradients(t).to(activations.dtype)))


def _own_gradient_cam(formula, work):
    options = {"epsilon": work.options.epsilon} if formula is GRADIENT_CAMS["Grad-CAM++"] else {}
    return _gradient_cam(partial(formula, combine=work.combine, **options), work)


def _weighted(work, i, weights):
    activations = work.cut.activations[i].to(work.images.dtype)
    return torch.cat([work.combine((activations * row[:, None, None])[None]) for row in weights.to(activations)])


def _ablation_cam(work):
    work.forwards += len(work.images)
    return work.per_image(lambda i: _weighted(work, i, ablation_weights(work.cut, i, work.targets[i], work.memory)))


def _score_cam(work):
    def one(i):
        activations = work.cut.activations[i].to(work.images.dtype)
        network, image = work.network, work.images[i : i + 1]
        tolerance, seed = work.options.tolerance, work.options.seed
        scored = score_weights(network, image, activations, work.targets[i], work.memory, tolerance, seed)
        work.forwards += scored.images
        work.errors.extend(scored.error.tolist())
        return _weighted(work, i, scored.weights)

    return work.per_image(one)


def _saliency(work):
    work.forwards += work.targets.numel()
    return work.per_target(lambda t: attributions.saliency(work.model, work.images, work.targets[:, t]))


def _graph_bytes(work):
    with output_sizes(work.model) as sizes, torch.no_grad():
        work.model(work.images[:1])
    return max(1, sum(sizes))


def _integrated_gradients(work):
    network, steps = work.model, work.options.steps
    batch = max(1, work.memory // _graph_bytes(work))
    baseline = torch.as_tensor(work.options.baseline).to(work.images)
    baseline = baseline.item() if baseline.dim() == 0 else baseline.expand(work.images.shape)
    work.forwards += work.targets.numel() * steps
    return work.per_target(
        lambda t: attributions.integrated_gradients(network, work.images, work.targets[:, t], steps, baseline, batch)
    )


def _gradient_shap(work):
    network, options = work.model, work.options
    batch = max(1, work.memory // _graph_bytes(work))
    draws = {"samples": options.samples, "noise": options.noise, "seed": options.seed, "batch": batch}
    work.forwards += work.targets.numel() * options.samples

    def one(i):
        image = work.images[i : i + 1]
        maps = [attributions.gradient_shap(network, image, target.item(), **draws) for target in work.targets[i]]
        return torch.cat(maps)

    return work.per_image(one)


def _occlusion(work):
    network, options, height = work.network, work.options, work.images.shape[-2]
    windows = [options.windows] if isinstance(options.windows, int) else options.windows

    def one(i, window):
        sizes = (options.scaled(length, height) for length in (window, options.stride))
        baseline = torch.as_tensor(options.baseline)
        arguments = network, work.images[i : i + 1], work.targets[i]
        maps, n = occlusion(*arguments, *sizes, baseline, work.memory)
        work.forwards += n
        return maps

    maps = work.per_image(lambda i: torch.stack([one(i, window) for window in windows], 1))
    return maps[:, :, 0] if isinstance(options.windows, int) else maps


def _one_by_one(function, work):
    work.forwards += work.targets.numel()

    def one(i):
        return torch.cat([function(work.model, work.images[i : i + 1], target.item()) for target in work.targets[i]])

    return work.per_image(one)


_SMOOTH = ("eigen_smooth",)
_METHODS = {
    "Grad-CAM": Method(partial(_own_gradient_cam, GRADIENT_CAMS["Grad-CAM"]), "gradient", "general", "logit", _SMOOTH),
    "Grad-CAM++": Method(
        partial(_own_gradient_cam, GRADIENT_CAMS["Grad-CAM++"]), "gradient", "general", "logit", ("epsilon", *_SMOOTH)
    ),
    "HiResCAM": Method(partial(_own_gradient_cam, GRADIENT_CAMS["HiResCAM"]), "gradient", "general", "logit", _SMOOTH),
    "EigenGrad-CAM": Method(partial(_own_gradient_cam, GRADIENT_CAMS["EigenGrad-CAM"]), "gradient", "general", "logit"),
    "Ablation-CAM": Method(_ablation_cam, "no gradient", "general", "activation", _SMOOTH),
    "Score-CAM": Method(_score_cam, "no gradient", "general", "activation", ("tolerance", "seed", *_SMOOTH)),
    "Saliency": Method(_saliency, "gradient", "detailed", "logit / brightness"),
    "Integrated Gradients": Method(_integrated_gradients, "gradient", "detailed", "logit", ("steps", "baseline")),
    "GradientShap": Method(_gradient_shap, "gradient", "detailed", "logit", ("samples", "noise", "seed")),
    "Occlusion": Method(_occlusion, "no gradient", "detailed", "logit", ("windows", "stride", "baseline")),
}
METHODS = tuple(_METHODS)
_METHODS |= {
    name: Method(
        partial(_gradient_cam, formula), "no gradient" if name == "Eigen-CAM" else "gradient", "general", units
    )
    for (name, formula), units in zip(libraries.CAMS.items(), ("logit", "logit", "activation"), strict=True)
}
_METHODS |= {
    name: Method(partial(_one_by_one, function), "gradient", "detailed", units)
    for (name, function), units in zip(libraries.ATTRIBUTIONS.items(), ("share", "logit", "logit"), strict=True)
}
COMPARED = tuple(name for name in _METHODS if name not in METHODS)


def is_general(method: str) -> bool:
    """Whether a method's maps lie on the grid of a layer (general) rather than on the pixels (detailed)."""
    return _METHODS[_known(method)[0]].kind == "general"


def describe(method: str, options: Options) -> str:
    """The settings that a map of the method hangs on, as JSON."""
    return options.describe((*_METHODS[method].options, "precision"))


def _known(methods):
    methods = (methods,) if isinstance(methods, str) else tuple(methods)
    for method in methods:
        if method not in _METHODS:
            hint = closest(method, _METHODS)
            raise ValueError(f"methods: unknown {method!r}{hint}; known: {', '.join(_METHODS)}")
    if not methods or len(set(methods)) < len(methods):
        raise ValueError(f"methods: expected one or several different ones, got {methods}")
    return methods


def _as_targets(targets, n):
    """(N, T) int64 or None, and whether T is a dimension of the result."""
    if targets is None:
        return None, False
    values = torch.as_tensor(targets)
    if values.is_floating_point() or values.dtype == torch.bool or values.dim() > 2 or not values.numel():
        raise ValueError("targets: expected None (the predicted class), one class index, one per image, or (N, T)")
    if values.dim() and len(values) != n:
        raise ValueError(f"targets: expected one class index or {n}, one per image; got {len(values)}")
    return values.long().reshape(*values.shape[:2], *(1,) * (2 - values.dim())).expand(n, -1), values.dim() == 2


def explain(
    model: nn.Module,
    images,
    methods: Sequence[str] | str = METHODS,
    targets=None,
    layer: nn.Module | str | int | None = None,
    **settings,
) -> xr.Dataset:
    """Raw, signed saliency maps.

    One forward pass up to the layer and one backward pass from the logit to it serve all CAMs. The model's gradients,
    flags and mode stay as they are, and no hook remains, also after an error.

    Parameters
    ----------
    model : network in eval mode, (N, C, H, W) -> logits (N, K)
    images : (N, C, H, W) tensor or array in [0, 1]; moved to the model's device and floating-point type
    methods : names from `METHODS`, or from `COMPARED` (straight from the libraries)
    targets : None for the predicted class, one class index, one per image (N,), or several per image (N, T)
    layer : of the CAMs: a module, its dotted name, or a stride, see `layers.find_layer`; None takes the last
        convolutional block, see `layers.last_block`
    **settings : fields of `options.Options`

    Returns
    -------
    Dataset with one variable per method: CAMs (image, row, column) on the layer's grid, pixel methods (image, y, x).
    With (N, T) targets a dimension `target` follows `image`; with several windows `window` stands before the last two
    in Occlusion. Coordinates: `target` and `logit` of every image; where targets are (N, T), `class` and `logit` of
    (image, target). Attributes of a variable: method, family, kind, units, layer, settings, flat (number of maps
    without any difference in them), forwards (images that passed the whole network) and seconds, each as if the
    method had been asked for by itself. `to_heatmap` turns a variable into pictures.

    Raises
    ------
    ValueError
        if a name is unknown or an argument does not fit
    """
    methods, options = _known(methods), get_options(settings)
    check_images(images, options.brightest)
    check_eval(model)
    wanted, several = _as_targets(targets, len(images))
    cams = [method for method in methods if _METHODS[method].kind == "general"]
    name = None
    if cams:
        name = last_block(model, images) if layer is None else find_layer(model, layer)[0]
    maps, forwards, seconds = ({method: [] for method in methods} for _ in range(3))
    used, logits, errors, copies = [], [], [], []
    with torch.inference_mode(False), torch.enable_grad(), _autocast(options, model):
        images = prepare(model, images)
        for part in _batches(model, images, options):
            batch = images[part].contiguous(memory_format=torch.channels_last)
            own = None if wanted is None else wanted[part]
            work = Work(model, batch, own, name, options, copies, "Ablation-CAM" in methods)
            begin = time.perf_counter()
            used.append(work.targets.cpu())
            logits.append(work.logits.float().gather(1, work.targets).cpu())
            shared = time.perf_counter() - begin
            for method in methods:
                begin, work.forwards = time.perf_counter(), 0
                maps[method].append(_METHODS[method].make(work).detach().cpu())
                forwards[method].append(work.forwards)
                seconds[method].append(time.perf_counter() - begin + shared * (method in cams))
            errors += work.errors
    variables = {}
    for method in methods:
        values, made = torch.cat(maps[method]).numpy(), _METHODS[method]
        about = {"method": method, "family": made.family, "kind": made.kind, "units": made.units}
        about |= {"layer": name} if method in cams else {}
        about |= {"settings": describe(method, options), "flat": int(_is_flat(values).sum())}
        about |= {"forwards": sum(forwards[method]), "seconds": sum(seconds[method])}
        if errors and method == "Score-CAM":
            about["estimated_error"] = errors
        windows = ("window",) if values.ndim == 5 else ()
        dims = ("image", "target", *windows, *(("row", "column") if method in cams else ("y", "x")))
        variables[method] = xr.Variable(dims, values, about)
    used, logits = torch.cat(used).numpy(), torch.cat(logits).numpy()
    coordinates = {"class": (("image", "target"), used), "logit": (("image", "target"), logits)}
    if not isinstance(options.windows, int) and "Occlusion" in methods:
        coordinates["window"] = list(options.windows)
    found = xr.Dataset(
        variables,
        coordinates,
        {
            "layer": name or "",
            "targets": "predicted" if targets is None else "given",
            "versions": _versions(),
        },
    )
    return found if several else found.isel(target=0).rename({"class": "target"})


@lru_cache(maxsize=1)
def _versions():
    return " ".join(f"{package} {version(package)}" for package in PACKAGES)


def _autocast(options, model):
    device = next(model.parameters(), torch.empty(0)).device.type
    return torch.autocast(device, torch.bfloat16) if options.precision == "bfloat16" else nullcontext()


def _batches(model, images, options):
    if len(images) == 1:
        return [slice(0, 1)]
    with output_sizes(model) as sizes, torch.no_grad():
        model(images[:1])
    return parts(len(images), sum(sizes), options.bytes(images.device))


def _is_flat(maps):
    spread = maps.max((-2, -1)) - maps.min((-2, -1))
    return ~(spread > FLAT * np.abs(maps).max((-2, -1)))
