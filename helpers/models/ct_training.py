"""AxialNet on sets of volumes: training with the mask loss, maps and scores, each made once and then found."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from helpers import compute, store
from helpers.data import organs
from helpers.data.chest_ct import PAPER_SHAPE, QUICK_SHAPE, Volumes, draw_change, prepare, store_volumes
from helpers.models import axialnet
from helpers.models import training as training_module
from helpers.models.axialnet import CAMS, AxialNet, mask_loss, small_trunk
from helpers.models.training import Resumable, Shuffled, best_weights
from helpers.settings import pick_device


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained; `QUICK` for phantoms, `PAPER` as published; change it with `vary`.

    Parameters
    ----------
    weight, norm, cam : of the mask loss, see `axialnet.mask_loss`; cam: "HiResCAM" or "Grad-CAM"
    seed : of weights, order and changes
    head, trunk, channels, kernel, padding, weights : see `AxialNet`; trunk: "resnet18", or channels, strides and
        pool of a `small_trunk`
    shape : of the prepared volumes
    epochs, patience : passes over the training volumes; epochs without a lower total validation loss until it stops
    batch_size : volumes per step and device
    optimizer : "adamw" with one cycle of the learning rate, or "sgd"
    learning_rate, momentum, weight_decay : as handed to torch.optim
    head_rate : times the learning rate for the last layer, with "adamw": behind a mean over all slices, a finding of a
        few cells counts only if its weights are large
    augment : flips and quarter turns, see `chest_ct.draw_change`
    precision, devices, num_nodes : as handed to Lightning
    checkpointing : less memory for more time, see `AxialNet.use_checkpointing`
    """

    weight: float = 1 / 3
    norm: str = "softplus"
    cam: str = "HiResCAM"
    seed: int = 0
    head: str = "mean"
    trunk: str | tuple = ((12, 24), (3, 2), 2)
    channels: tuple[int, ...] = (16,)
    kernel: int = 1
    padding: int = 0
    weights: str = "random"
    shape: tuple[int, int, int] = QUICK_SHAPE
    epochs: int = 12
    patience: int = 15
    batch_size: int = 2
    optimizer: str = "adamw"
    learning_rate: float = 3e-3
    momentum: float = 0.99
    weight_decay: float = 0.1
    head_rate: float = 10.0
    augment: bool = False
    precision: str = "32-true"
    devices: int = 1
    num_nodes: int = 1
    checkpointing: bool = False

    def vary(self, **changes) -> Recipe:
        """The recipe with other values of some fields."""
        return replace(self, **changes)

    @property
    def name(self) -> str:
        """Name of the folder in which its network is kept; the rest of the recipe is in the seal."""
        return f"{self.head}-{self.norm}-{self.cam}-weight-{self.weight:.4g}-seed-{self.seed}"

    def network(self, n_labels: int) -> AxialNet:
        """The network before training."""
        options = {"channels": self.channels, "kernel": self.kernel, "padding": self.padding, "head": self.head}
        options |= {"side": self.shape[1], "weights": self.weights, "seed": self.seed}
        if self.trunk == "resnet18":
            return AxialNet(n_labels, **options).use_checkpointing(self.checkpointing)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            trunk = small_trunk(*self.trunk)
        made = AxialNet(n_labels, trunk, in_channels=self.trunk[0][-1], **options)
        nn.init.zeros_(made.slices.fc.weight)  # no label has a preference for a place before it has seen a volume
        return made.use_checkpointing(self.checkpointing)


QUICK = Recipe()
PAPER = Recipe(trunk="resnet18", channels=axialnet.PAPER_CHANNELS, kernel=3, weights="imagenet", shape=PAPER_SHAPE,
               epochs=100, batch_size=1, optimizer="sgd", learning_rate=1e-3, weight_decay=1e-7, augment=True,
               checkpointing=True)  # fmt: skip


class Examples(Dataset):
    """Prepared volumes with labels and allowed regions; an item is asked for as (epoch, position).

    The random change follows from seed, epoch and position alone; the allowed region goes through the same one.
    """

    def __init__(self, volumes: Volumes, grids, recipe: Recipe, augment: bool):
        self.volumes, self.recipe, self.augment = volumes, recipe, augment
        self.labels, self.allowed = volumes.labels, organs.allowed_regions(volumes, grids)

    def __len__(self):
        return len(self.volumes)

    def __getitem__(self, item):
        epoch, i = item if isinstance(item, tuple) else (0, item)
        change = draw_change(np.random.default_rng([self.recipe.seed, epoch, i])) if self.augment else None
        allowed = self.allowed[i] if change is None else change(self.allowed[i]).copy()
        prepared = prepare(self.volumes.volume(i), self.recipe.shape, change)
        return tuple(map(torch.from_numpy, (prepared, self.labels[i].astype(np.float32), allowed)))


class MaskTraining(Resumable):
    """Training of one AxialNet that remembers its curves and the weights of the lowest total validation loss."""

    def __init__(self, model: AxialNet, recipe: Recipe, checkpoint: Path):
        super().__init__(checkpoint)
        self.model, self.recipe = model, recipe
        self.curves, self.best, self._losses = [], None, {"train": [], "val": []}

    def _loss(self, batch, part):
        volumes, labels, allowed = batch
        features = self.model.features(volumes)
        logits, attention = self.model.logits(features), self.model.attention(features, self.recipe.cam)
        loss = mask_loss(logits.float(), labels, attention, allowed, self.recipe.weight, self.recipe.norm)
        self._losses[part].append(loss.detach() * len(labels))
        return loss

    def training_step(self, batch, _):
        return self._loss(batch, "train")

    def validation_step(self, batch, _):
        self._loss(batch, "val")

    def on_validation_epoch_end(self):
        row = {"epoch": self.current_epoch}
        for part, losses in self._losses.items():
            n = self.trainer.train_dataloader if part == "train" else self.trainer.val_dataloaders
            mean = sum(losses) / max(1, len(n.sampler))
            row[f"{part}_loss"] = float(self.trainer.strategy.reduce(mean, reduce_op="mean"))
            losses.clear()
        if not np.isfinite(row["train_loss"]):
            raise FloatingPointError(f"the training loss of epoch {self.current_epoch} is {row['train_loss']}")
        self.curves.append(row)
        if self.best is None or row["val_loss"] < self.best["val_loss"]:
            self.best = {"val_loss": row["val_loss"], "epoch": row["epoch"]}
            if self.trainer.is_global_zero:
                with store.replacing(best_weights(self.checkpoint)) as temporary:
                    torch.save(self.model.state_dict(), temporary)
        if row["epoch"] - self.best["epoch"] >= self.recipe.patience:
            self.trainer.should_stop = True

    def configure_optimizers(self):
        recipe, parameters = self.recipe, list(self.model.parameters())
        if recipe.optimizer == "sgd":
            options = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
            return torch.optim.SGD(parameters, recipe.learning_rate, **options)
        head = list(self.model.slices.fc.parameters())
        rates = [recipe.learning_rate, recipe.head_rate * recipe.learning_rate]
        body = [p for p in parameters if all(p is not other for other in head)]
        groups = [{"params": part, "lr": rate} for part, rate in zip((body, head), rates, strict=True)]
        optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
        steps = self.trainer.estimated_stepping_batches
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]


def fit(recipe: Recipe, train: Examples, val: Examples, folder: Path, key: str, device: str = "auto"):
    """Train a network; an interrupted training of the same key is resumed.

    Returns
    -------
    the `AxialNet` in eval mode with the weights of the lowest total validation loss, and its `MaskTraining`

    Raises
    ------
    FloatingPointError
        if the training loss is not finite
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, checkpoint = recipe.network(train.labels.shape[1]), folder / f"unfinished-{key}.ckpt"
    for other in folder.glob("unfinished-*"):
        if other not in (checkpoint, best_weights(checkpoint)):
            other.unlink()
    training = MaskTraining(model.to(memory_format=torch.channels_last), recipe, checkpoint)
    order = Shuffled(len(train), recipe.batch_size, recipe.seed)
    training.run(
        DataLoader(train, recipe.batch_size, sampler=order),
        DataLoader(val, recipe.batch_size),
        max_epochs=recipe.epochs,
        accelerator="gpu" if pick_device(device).type == "cuda" else "cpu",
        devices=recipe.devices,
        num_nodes=recipe.num_nodes,
        precision=recipe.precision,
    )
    model.load_state_dict(torch.load(best_weights(checkpoint), map_location="cpu", weights_only=True))
    return model.cpu().eval(), training


@dataclass(frozen=True, eq=False)
class Experiment:
    """Networks of several recipes, trained and judged on the same sets of volumes, all kept in one folder.

    Parameters
    ----------
    folder : for volumes, organs, networks and maps
    sets : {part: Volumes} with "train" and "val", and others to judge on; all with the same labels
    device : see `Settings`
    keep_volumes : write the volumes to disk first, because drawing them takes longer than reading them

    Raises
    ------
    ValueError
        if a part is missing or labels differ
    """

    folder: Path
    sets: Mapping[str, Volumes]
    device: str = "auto"
    keep_volumes: bool = True

    def __post_init__(self):
        missing = {"train", "val"} - set(self.sets)
        if missing:
            raise ValueError(f"sets: no {sorted(missing)[0]!r}, only {sorted(self.sets)}")
        for part, volumes in self.sets.items():
            if volumes.abnormalities != self.labels:
                raise ValueError(f"sets: {part!r} has the labels {volumes.abnormalities}, 'train' {self.labels}")

    @property
    def labels(self) -> tuple[str, ...]:
        return self.sets["train"].abnormalities

    @cached_property
    def _memory(self):
        return {}

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_memory"}

    def volumes(self, part: str) -> Volumes:
        """The volumes of a part, read from disk where they are kept."""
        if part not in self.sets:
            raise ValueError(f"part: expected one of {list(self.sets)}, got {part!r}")
        if not self.keep_volumes:
            return self.sets[part]
        if part not in self._memory:
            self._memory[part] = store_volumes(self.sets[part], self.folder)
        return self._memory[part]

    def grids(self, recipe: Recipe, part: str):
        """Organs of the volumes on the network's grid, and those whose segmentation failed; see `organ_grids`."""
        side = self._untrained(recipe).slices.grid
        key = part, recipe.shape, side
        if key not in self._memory:
            grid = recipe.shape[0] // 3, side, side
            self._memory[key] = organs.organ_grids(self.volumes(part), recipe.shape, grid, self.folder)
        return self._memory[key]

    def allowed(self, recipe: Recipe, part: str) -> np.ndarray:
        """(N, K, H, i, j) bool, see `allowed_regions`."""
        return organs.allowed_regions(self.sets[part], self.grids(recipe, part)[0])

    def _untrained(self, recipe):
        return recipe.vary(weights="random").network(len(self.labels))

    def _made_from(self, recipe):
        made_from = {name: store.fingerprint(value) for name, value in asdict(recipe).items()}
        made_from |= {part: self.sets[part].fingerprint for part in ("train", "val")}
        return made_from | {"code": store.fingerprint(sys.modules[__name__], axialnet, organs, training_module)}

    def _home(self, recipe):
        return Path(self.folder) / "networks" / recipe.name

    def _train(self, recipe):
        folder, made_from = self._home(recipe), self._made_from(recipe)
        if store.changed(folder, made_from):
            begin = time.monotonic()
            train, val = (Examples(self.volumes(part), self.grids(recipe, part)[0], recipe, augment)
                          for part, augment in (("train", recipe.augment), ("val", False)))  # fmt: skip
            model, training = fit(recipe, train, val, folder, store.fingerprint(made_from), self.device)
            with store.replacing(folder / "model.safetensors") as temporary:
                save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)
            curves = pd.DataFrame(training.curves).assign(kept=lambda t: t["epoch"] == training.best["epoch"])
            store.write_table(curves.assign(seconds=time.monotonic() - begin), folder / "curves.parquet")
            store.seal(folder, made_from)
            for file in folder.glob("unfinished-*"):
                file.unlink()
        for part in self.sets:
            if part != "train":
                self.outputs(recipe, part)

    def _ready(self, recipe, part):
        self.grids(recipe, part)

    def run(self, recipes, scheduler=None, workers=None) -> pd.DataFrame:
        """Draw, segment, train and make maps, where any of it is missing or was made from something else.

        Parameters
        ----------
        recipes : of the networks
        scheduler, workers : see `compute.pool`

        Returns
        -------
        one row per recipe: weight, seed, head, cam, status ("found" or "trained"), why
        """
        recipes, rows = list(recipes), []
        for recipe in recipes:
            why = store.changed(self._home(recipe), self._made_from(recipe))
            status = "trained" if why else "found"
            rows.append((recipe.weight, recipe.seed, recipe.head, recipe.cam, status, ", ".join(why)))
        table = pd.DataFrame(rows, columns=["weight", "seed", "head", "cam", "status", "why"])
        missing = [r for r, status in zip(recipes, table["status"], strict=True) if status == "trained"]
        print(f"{len(recipes) - len(missing)} of {len(recipes)} networks found, {len(missing)} to train")
        if missing:
            with compute.pool(scheduler, workers) as pool:
                pool.run(self._ready, {part: (missing[0], part) for part in self.sets}, "volumes and organs")
                pool.run(self._train, {recipe.name: (recipe,) for recipe in missing}, "trainings")
        return table

    def model(self, recipe: Recipe) -> AxialNet:
        """The trained network of a recipe, in eval mode.

        Raises
        ------
        FileNotFoundError
            if it has not been trained
        """
        folder = self._home(recipe)
        if store.changed(folder, self._made_from(recipe)):
            raise FileNotFoundError(f"{folder}: no network of this recipe; call run([recipe]) first")
        model = self._untrained(recipe)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval().to(pick_device(self.device))

    def curves(self, recipe: Recipe) -> pd.DataFrame:
        """Rows epoch, train_loss, val_loss, kept, seconds (of the whole training)."""
        return pd.read_parquet(self._home(recipe) / "curves.parquet")

    def outputs(self, recipe: Recipe, part: str) -> dict[str, np.ndarray]:
        """Logits (N, K), and raw maps (N, K, H, i, j) under "HiResCAM" and "Grad-CAM", of the volumes of a part."""
        path, volumes = self._home(recipe) / f"outputs-{part}.npz", self.volumes(part)
        key = store.fingerprint(self._made_from(recipe), volumes.fingerprint)
        if path.is_file():
            with np.load(path) as kept:
                if str(kept["key"]) == key:
                    return {name: kept[name] for name in ("logits", *CAMS)}
        model, found = self.model(recipe), {name: [] for name in ("logits", *CAMS)}
        device = next(model.parameters()).device
        for i in range(len(volumes)):
            x = torch.from_numpy(prepare(volumes.volume(i), recipe.shape))[None].to(device)
            with torch.no_grad():
                features = model.features(x)
                found["logits"].append(model.logits(features))
                for cam in CAMS:
                    found[cam].append(model.attention(features, cam) / features.shape[1])
        found = {name: torch.cat(values).cpu().numpy() for name, values in found.items()}
        with store.replacing(path) as temporary:
            np.savez(temporary, key=key, **found)
        return found
