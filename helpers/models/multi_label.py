"""Networks that answer yes or no for every class, with the ending for which HiResCAM is faithful, and their training.

convolutions -> one more convolution and ReLU (`LAYER`, where maps are made) -> `head` -> logits. The head "flatten" is
ONE linear layer over all features at all positions; "pool" averages over the positions first.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import models

from helpers import store
from helpers.data import photographs as photographs_module
from helpers.data.photographs import Photographs
from helpers.models import training as training_module
from helpers.models.classifiers import read_weights
from helpers.models.training import Resumable, Shuffled
from helpers.settings import Settings, pick_device

BODIES, HEADS = ("small", "vgg16"), ("flatten", "pool")
LAYER = "features"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained.

    Parameters
    ----------
    body : "small" (four convolutions, stride 8) or "vgg16" (torchvision's features, stride 32)
    head : "flatten" or "pool"
    weights : start of the body: "random", "imagenet" (torchvision), or the path of a state dict of torchvision's VGG-16
    image_size : side of the square that the network sees; a flatten head works at this size alone
    width : features of the last convolution
    epochs, batch_size, optimizer, learning_rate, momentum, weight_decay : of the training; "sgd" keeps the rate,
        "adamw" takes it as the top of one cycle
    flip : mirror half of the training pictures
    """

    body: str = "small"
    head: str = "flatten"
    weights: str = "random"
    image_size: int = 64
    width: int = 16
    epochs: int = 12
    batch_size: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 8e-3
    momentum: float = 0.9
    weight_decay: float = 0.05
    flip: bool = True

    def __post_init__(self):
        for name, choices in {"body": BODIES, "head": HEADS, "optimizer": ("adamw", "sgd")}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name, least in {"image_size": 32, "width": 1, "epochs": 1, "batch_size": 2}.items():
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise ValueError(f"{name}: expected a whole number of at least {least}, got {getattr(self, name)!r}")


_PAPER = Recipe("vgg16", "flatten", "imagenet", 320, 16, 20, 64, "sgd", 1e-3, 0.99, 1e-7)
RECIPES = {"quick": Recipe(), "paper": _PAPER}


def get_recipe(profile: str, **changes) -> Recipe:
    """The recipe of a profile ("quick" or "paper") changed field by field; None keeps a value."""
    if profile not in RECIPES:
        raise ValueError(f"profile: expected one of {', '.join(RECIPES)}, got {profile!r}")
    return replace(RECIPES[profile], **{name: value for name, value in changes.items() if value is not None})


class Normalise(nn.Module):
    """Images in [0, 1] less the mean, by the standard deviation, of each colour in ImageNet."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def forward(self, images):
        return (images - self.mean) / self.std


class MultiLabel(nn.Module):
    """(N, 3, S, S) in [0, 1] -> logits (N, K); see the top of the module."""

    def __init__(self, recipe: Recipe, n_classes: int):
        super().__init__()
        self.normalise = Normalise()
        if recipe.body == "vgg16":
            body, channels = models.vgg16(weights=None).features, 512
        else:
            body, channels = _small(), 96
        self.features = nn.Sequential(body, nn.Conv2d(channels, recipe.width, 3, padding=1), nn.ReLU())
        side = recipe.image_size // (32 if recipe.body == "vgg16" else 8)
        self.pool = nn.AdaptiveAvgPool2d(1) if recipe.head == "pool" else nn.Identity()
        self.classifier = nn.Linear(recipe.width * (1 if recipe.head == "pool" else side**2), n_classes)

    def forward(self, images):
        return self.classifier(self.pool(self.features(self.normalise(images))).flatten(1))


def _small():
    layers, before = [], 3
    for after, size, stride in ((24, 5, 2), (48, 3, 2), (64, 3, 1), (96, 3, 2)):
        layers += [nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        before = after
    return nn.Sequential(*layers)


def build(recipe: Recipe, n_classes: int, seed: int = 0) -> MultiLabel:
    """A network in eval mode, before training.

    Raises
    ------
    FileNotFoundError, ValueError
        if the weights are missing or do not fit the body
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MultiLabel(recipe, n_classes)
    if recipe.weights != "random":
        if recipe.body != "vgg16":
            raise ValueError(f"weights: {recipe.weights!r} are for the body 'vgg16', not {recipe.body!r}")
        if recipe.weights == "imagenet":
            state = models.VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        else:
            state = read_weights(recipe.weights)
        own = {name[len("features.") :]: value for name, value in state.items() if name.startswith("features.")}
        try:
            model.features[0].load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"weights: {recipe.weights} do not fit the features of VGG-16: {error}") from error
    return model.eval()


class _Pictures(Dataset):
    """Training pictures, asked for as (epoch, position); whether one is mirrored follows from seed and position."""

    def __init__(self, photographs, which, recipe, seed):
        self.photographs, self.which, self.recipe, self.seed = photographs, which, recipe, seed

    def __len__(self):
        return len(self.which)

    def __getitem__(self, item):
        epoch, position = item
        index = self.which[position]
        picture = self.photographs.image(index, self.recipe.image_size)
        if self.recipe.flip and np.random.default_rng([self.seed, epoch, position]).random() < 0.5:
            picture = picture[..., ::-1]
        return torch.from_numpy(picture.copy()), torch.from_numpy(self.photographs.labels[index].astype(np.float32))


class _Training(Resumable):
    remembered = ("curve",)

    def __init__(self, model, recipe, checkpoint):
        super().__init__(checkpoint)
        self.model, self.recipe, self.curve, self._losses = model, recipe, [], []

    def training_step(self, batch, _):
        images, labels = batch
        logits = self.model((images / 255).contiguous(memory_format=torch.channels_last))
        loss = functional.binary_cross_entropy_with_logits(logits, labels)
        self._losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self):
        self.curve.append(float(torch.stack(self._losses).mean()))
        self._losses.clear()
        if not np.isfinite(self.curve[-1]):
            raise FloatingPointError(f"the training loss of epoch {self.current_epoch} is {self.curve[-1]}")
        super().on_train_epoch_end()

    def configure_optimizers(self):
        recipe, parameters = self.recipe, self.model.parameters()
        if recipe.optimizer == "sgd":
            options = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
            return torch.optim.SGD(parameters, recipe.learning_rate, **options)
        optimizer = torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
        steps = self.trainer.estimated_stepping_batches
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]


def _fit(model, photographs, recipe, settings, checkpoint):
    which = photographs.which("train")
    order = Shuffled(len(which), recipe.batch_size, settings.seed)
    loader = DataLoader(_Pictures(photographs, which, recipe, settings.seed), recipe.batch_size, sampler=order)
    training = _Training(model, recipe, checkpoint)
    accelerator = "gpu" if pick_device(settings.device).type == "cuda" else "cpu"
    training.train().run(loader, max_epochs=recipe.epochs, accelerator=accelerator, devices=1)
    model.cpu().eval()
    return training.curve


def trained(settings: Settings, photographs: Photographs, recipe: Recipe) -> tuple[MultiLabel, pd.DataFrame]:
    """The network that a recipe makes of the pictures for training; kept below `settings.results` and found again.

    The weights after the last epoch are taken: no picture chooses among epochs.

    Returns
    -------
    the network, in eval mode on the device of the settings, and its curve: epoch, loss

    Raises
    ------
    ValueError
        if there are too few pictures for training
    FloatingPointError
        if the loss is not finite
    """
    if len(photographs.which("train")) < 2:
        raise ValueError(f"photographs: {photographs.title} has no two pictures for training")
    start = Path(recipe.weights).stem
    name = f"{recipe.body}-{recipe.head}-{start}-{recipe.image_size}px"
    folder = settings.results / settings.profile / "photographs" / photographs.fingerprint[:8] / name
    made_from = asdict(recipe) | {"data": photographs.fingerprint, "seed": settings.seed, "code": _code()}
    if recipe.weights == "imagenet":
        made_from["weights"] = f"torchvision {version('torchvision')}"
    elif recipe.weights != "random":
        made_from["weights"] = store.fingerprint(Path(recipe.weights).expanduser())
    why = store.changed(folder, made_from)
    if why:
        print(f"{name}: trained now ({', '.join(why)})")
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = folder / f"unfinished-{store.fingerprint(made_from)}.ckpt"
        model = build(recipe, len(photographs.classes), settings.seed)
        losses = _fit(model, photographs, recipe, settings, checkpoint)
        with store.replacing(folder / "model.safetensors") as temporary:
            save_file(model.state_dict(), temporary)
        store.write_table(pd.DataFrame({"epoch": range(len(losses)), "loss": losses}), folder / "curve.parquet")
        store.seal(folder, made_from)
        for file in folder.glob("unfinished-*"):
            file.unlink()
    else:
        print(f"{name}: found, made from the same data, settings and code")
    model = MultiLabel(recipe, len(photographs.classes))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval().to(pick_device(settings.device)), pd.read_parquet(folder / "curve.parquet")


def _code():
    return store.fingerprint(sys.modules[__name__], photographs_module, training_module)


def predict(model: nn.Module, images, batch_size: int = 32) -> np.ndarray:
    """Probability (N, K) in float64 of each class by itself, the sigmoid of its logit, of images (N, 3, S, S)."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits = [model(batch.to(device)).double().cpu() for batch in torch.as_tensor(images).split(batch_size)]
    return torch.cat(logits).sigmoid().numpy()
