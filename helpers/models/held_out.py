"""A trained network together with the test images of its fold: what a lesson about one method begins with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from helpers import store
from helpers.data.folds import make_folds, split
from helpers.data.study import Study
from helpers.models import cross_validation as cv
from helpers.models.training import predict
from helpers.settings import Settings


@dataclass(frozen=True)
class HeldOut:
    """N test images of K classes, and the network of their fold.

    Attributes
    ----------
    model : network in eval mode, on the device of the settings
    study : where the images come from
    which : (N,) indices of the test images in the study
    images : (N, 3, H, W) float32 in [0, 1]
    labels : (N,) true classes
    layer_maps : (N, H, W) uint8, 0 everywhere for an image without one
    probs : (N, K) softmax probabilities
    """

    model: nn.Module
    study: Study
    which: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    layer_maps: np.ndarray
    probs: np.ndarray

    @cached_property
    def surest(self) -> list[int]:
        """One test image of each class: the one whose true class has the largest probability, if possible with a layer
        map; in the order of the classes."""
        of_truth = self.probs[np.arange(len(self.labels)), self.labels]
        order = np.lexsort((-of_truth, ~self.study.has_layer_map[self.which]))
        present = [k for k in range(len(self.study.classes)) if (self.labels == k).any()]
        return [int(next(i for i in order if self.labels[i] == k)) for k in present]

    @property
    def groups(self) -> np.ndarray | None:
        """(N,) what varies independently (patient, examination), or None if the study does not say."""
        return None if self.study.groups is None else self.study.groups[self.which]

    def titles(self, chosen) -> list[str]:
        """Class of some images, and the probability that the network gives it."""
        return [f"{self.study.classes[self.labels[i]]}, p = {self.probs[i, self.labels[i]]:.2f}" for i in chosen]

    def describe(self) -> str:
        """Shape and range of the images, counts per class, and how many are classified rightly."""
        counts = ", ".join(f"{name} {(self.labels == k).sum()}" for k, name in enumerate(self.study.classes))
        right = (self.probs.argmax(1) == self.labels).sum()
        return (
            f"{len(self.images)} test images {self.images.shape[1:]}, values {self.images.min():.2f} to "
            f"{self.images.max():.2f}\nper class: {counts}\n{right} of {len(self.labels)} classified rightly"
        )


def held_out(settings: Settings, architecture: str, fold: int = 0) -> HeldOut:
    """Train the network of a fold if it is not there yet, and let it classify the test images of that fold."""
    with store.one_at_a_time(settings.folder, "training"):
        cv.train_folds(settings, folds=[fold])
    model, study = cv.load_fold(settings, architecture, fold), cv.study_of(settings)
    which = split(make_folds(study, settings.n_folds, settings.seed), fold)["test"]
    images = study.images(settings.image_size, which)
    layer_maps = study.layer_maps(settings.image_size, which)
    return HeldOut(model, study, which, images, study.labels[which], layer_maps, predict(model, images))
