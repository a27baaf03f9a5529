"""Training of one network with Lightning: augmentation, curves, best weights, resumption after an interruption."""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset
from torchvision.transforms import v2

from helpers.data.study import Study
from helpers.settings import Settings, pick_device
from helpers.store import replacing

# Less than this much work is lost when a training is interrupted; a shorter training is simply begun again.
CHECKPOINT_SECONDS = 60


def augmentation(kind: str, image_size: int) -> v2.Compose:
    """Random changes of a training picture (PIL) on its way to a (3, h, w) float32 tensor in [0, 1].

    "mild": squashed to `image_size`, flipped left-right, shifted by up to 5 %, brightness times 0.8-1.2.
    "reference", the study's, in pixels at 224: shorter side to 260, random resized crop of 254, flip, rotation by up to
    15 degrees; no normalisation. Other sizes scale both numbers.
    """
    if kind == "mild":
        steps = [
            v2.Resize((image_size, image_size)),
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(degrees=0, translate=(0.05, 0.05)),
            v2.ColorJitter(brightness=0.2),
        ]
    elif kind == "reference":
        steps = [
            v2.Resize(round(image_size * 260 / 224)),
            v2.RandomResizedCrop(round(image_size * 254 / 224)),
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(15),
        ]
    else:
        raise ValueError(f"augmentation: expected 'mild' or 'reference', got {kind!r}")
    return v2.Compose([*steps, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def best_weights(checkpoint: Path) -> Path:
    """File of the best weights so far, beside a checkpoint: memory holds enough of a network in training as it is."""
    return checkpoint.with_suffix(".best.pth")


class TrainingPictures(Dataset):
    """Pictures of a study with their labels, changed at random; an item is asked for as (epoch, position).

    The random numbers follow from seed, epoch and position alone, so a training that is resumed sees the same images.
    """

    def __init__(self, study: Study, which, transform, seed: int):
        self.study, self.which, self.transform, self.seed = study, which, transform, seed

    def __len__(self):
        return len(self.which)

    def __getitem__(self, item):
        epoch, position = item
        torch.manual_seed((self.seed * 10_000 + epoch) * 100_000 + position)
        index = self.which[position]
        return self.transform(self.study.picture(index)), int(self.study.labels[index])


class Shuffled(Sampler):
    """All positions as (epoch, position) in an order that follows from seed and epoch; Lightning sets the epoch.

    Without a last batch of one image, on which batch normalisation cannot be trained.
    """

    def __init__(self, n: int, batch_size: int, seed: int):
        self.n, self.seed, self.epoch = n, seed, 0
        self.used = n - (n % batch_size == 1)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.used

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n)
        return iter([(self.epoch, int(position)) for position in order[: self.used]])


class StraightToDisk(TorchCheckpointIO):
    """Writes a checkpoint as it goes: Lightning's own way first builds the whole file, half a gigabyte, in memory."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)


class Resumable(lightning.LightningModule):
    """A training that keeps itself in a checkpoint now and then, with the attributes that `remembered` names."""

    remembered = ("best", "curves")

    def __init__(self, checkpoint: Path):
        super().__init__()
        self.checkpoint, self._saved = checkpoint, time.monotonic()

    def on_train_epoch_end(self):
        if time.monotonic() - self._saved >= CHECKPOINT_SECONDS:
            self.trainer.save_checkpoint(self.checkpoint)
            self._saved = time.monotonic()

    def on_save_checkpoint(self, checkpoint):
        checkpoint |= {name: getattr(self, name) for name in self.remembered}

    def on_load_checkpoint(self, checkpoint):
        for name in self.remembered:
            setattr(self, name, checkpoint[name])

    def run(self, *loaders, **options) -> None:
        """Train to the end, from the checkpoint where there is one; Lightning stays silent.

        Parameters
        ----------
        *loaders : of training, and of validation if there is one
        **options : of `lightning.Trainer`
        """
        quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in ("lightning.pytorch", "lightning.fabric"):
                logging.getLogger(name).setLevel(logging.ERROR)
            trainer = lightning.Trainer(
                plugins=[StraightToDisk()],
                num_sanity_val_steps=0,
                default_root_dir=self.checkpoint.parent,
                **dict.fromkeys(quiet, False),
                **options,
            )
            resume = self.checkpoint if self.checkpoint.is_file() else None
            trainer.fit(self, *loaders, ckpt_path=resume, weights_only=True)


class Classifier(Resumable):
    """Cross-entropy training of one network that remembers its curves and its best weights."""

    def __init__(self, model, settings: Settings, checkpoint: Path):
        super().__init__(checkpoint)
        self.model, self.settings = model, settings
        self.curves, self.best = [], None
        self._train, self._validation = [], []

    def training_step(self, batch, _):
        images, labels = batch
        logits = self.model(images.to(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits, labels)
        self._train.append((loss.detach() * len(labels), (logits.argmax(1) == labels).sum(), len(labels)))
        return loss

    def on_train_batch_start(self, *_):
        # Without the gradients of the last step in memory during the forward pass.
        self.optimizers().zero_grad()

    def validation_step(self, batch, _):
        images, labels = batch
        logits = self.model(images.to(memory_format=torch.channels_last)).float()
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        self._validation.append((loss, (logits.argmax(1) == labels).sum(), len(labels)))

    def on_validation_epoch_end(self):
        row = {"epoch": self.current_epoch}
        for part, sums in (("train", self._train), ("val", self._validation)):
            loss, right, n = (float(sum(column)) for column in zip(*sums, strict=True))
            row |= {f"{part}_loss": loss / n, f"{part}_accuracy": right / n}
            sums.clear()
        row["learning_rate"] = self.optimizers().param_groups[0]["lr"]
        self.curves.append(row)
        ties = row["val_loss"] if self.settings.keep == "best" else 0.0
        score = (row["val_accuracy"], -ties)
        if not np.isfinite(row["train_loss"]):
            raise FloatingPointError(f"the training loss of epoch {self.current_epoch} is {row['train_loss']}")
        if self.best is None or score > tuple(self.best["score"]):
            self.best = {"score": list(score), "epoch": self.current_epoch}
            with replacing(best_weights(self.checkpoint)) as temporary:
                torch.save(self.model.state_dict(), temporary)

    def configure_optimizers(self):
        settings, rate = self.settings, self.settings.learning_rate
        parameters = list(self.model.parameters())
        if settings.optimizer == "sgd":
            options = {"momentum": settings.momentum, "weight_decay": settings.weight_decay}
            optimizer = torch.optim.SGD(parameters, rate, **options)
        else:
            optimizer = torch.optim.AdamW(parameters, rate, weight_decay=settings.weight_decay, fused=True)
        if settings.schedule == "step":
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)]
        steps = self.trainer.estimated_stepping_batches
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]


def fit(model, architecture: str, study: Study, train, val, settings: Settings, folder, key: str) -> Classifier:
    """Train a network on images `train` of a study and leave it, in eval mode, with its best weights on `val`.

    Parameters
    ----------
    model : network of `classifiers.build`, changed in place
    train, val : indices of the study's images
    settings : recipe; see `Settings`
    folder : where files named "unfinished-*" are kept: the checkpoint of an interrupted training and the best weights
        so far; the caller removes them once it has kept the result
    key : only a checkpoint of the same key is resumed, others are removed

    Returns
    -------
    the trained `Classifier` with its `curves` (a row per epoch) and its `best` epoch and score

    Raises
    ------
    FloatingPointError
        if the training loss is not finite
    """
    settings = settings.of(architecture)
    changes = augmentation(settings.augmentation, settings.image_size)
    pictures = TrainingPictures(study, train, changes, settings.seed)
    order = Shuffled(len(train), settings.batch_size, settings.seed)
    loader = DataLoader(pictures, settings.batch_size, sampler=order)
    images = torch.from_numpy(study.images(settings.image_size, val))
    validation = DataLoader(TensorDataset(images, torch.from_numpy(study.labels[val])), 32)
    device = pick_device(settings.device)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"unfinished-{key}.ckpt"
    for other in folder.glob("unfinished-*"):
        if other not in (checkpoint, best_weights(checkpoint)):
            other.unlink()
    classifier = Classifier(model, settings, checkpoint)
    classifier.run(
        loader,
        validation,
        max_epochs=settings.epochs,
        accelerator=device.type if device.type != "cuda" else "gpu",
        devices=[_gpu()] if device.type == "cuda" else 1,
        precision="bf16-mixed" if architecture in settings.bfloat16 and computes_bfloat16(device) else "32-true",
    )
    model.load_state_dict(torch.load(best_weights(checkpoint), map_location="cpu", weights_only=True))
    model.cpu().eval()
    return classifier


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; a processor without them imitates it, ten times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _gpu() -> int:
    """The GPU of this worker: Dask's local workers are numbered."""
    from distributed import get_worker

    try:
        name = get_worker().name
    except ValueError:
        name = 0
    return name % torch.cuda.device_count() if isinstance(name, int) else 0


def predict(model, images, batch_size: int = 32) -> np.ndarray:
    """Softmax probabilities (N, K) in float64 of images (N, 3, H, W) in [0, 1]; the model is in eval mode."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        batches = torch.as_tensor(images).split(batch_size)
        logits = [model(b.to(device, memory_format=torch.channels_last)).double().cpu() for b in batches]
    return torch.cat(logits).softmax(1).numpy()
