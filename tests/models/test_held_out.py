"""The test images of a fold and what its network says of them."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.models import cross_validation as cv
from helpers.models.held_out import held_out
from helpers.settings import get_settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return get_settings(
        "quick", results=tmp_path_factory.mktemp("results"), architectures="mobilenet_v2", images_per_class=10,
        image_size=32, epochs=1, weights="random", device="cpu", workers=0,
    )  # fmt: skip


def test_a_network_and_the_images_it_has_not_seen(settings, capsys):
    found = held_out(settings, "mobilenet_v2", fold=1)
    study = cv.study_of(settings)
    assert "1 to train: nothing there (1)" in capsys.readouterr().out
    assert found.images.shape == (8, 3, 32, 32) and found.layer_maps.shape == (8, 32, 32)
    np.testing.assert_array_equal(found.labels, study.labels[found.which])
    np.testing.assert_allclose(found.probs.sum(1), 1)
    train = set(range(len(study))) - set(found.which)
    assert len(train) == 32 and not found.model.training
    assert found.groups.tolist() == [study.groups[i] for i in found.which]
    assert replace(found, study=replace(study, groups=None)).groups is None
    assert found.describe().splitlines()[:2] == [
        f"8 test images (3, 32, 32), values {found.images.min():.2f} to {found.images.max():.2f}",
        "per class: AD 2, CG 2, PS 2, ST 2",
    ]


def test_the_surest_image_of_each_class(settings):
    found = held_out(settings, "mobilenet_v2", fold=1)
    assert found.labels[found.surest].tolist() == [0, 1, 2, 3]
    for k, i in enumerate(found.surest):
        assert found.probs[i, k] == found.probs[found.labels == k, k].max()
    assert found.titles(found.surest)[2] == f"PS, p = {found.probs[found.surest[2], 2]:.2f}"
