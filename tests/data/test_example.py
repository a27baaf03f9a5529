import warnings

import numpy as np
from PIL import Image

from helpers.data.phantom import phantoms
from helpers.data.study import open_study
from helpers.settings import ROOT

EXAMPLE = ROOT / "data" / "example"


def test_it_is_small_and_reads_without_a_problem():
    files = [path for path in EXAMPLE.rglob("*") if path.is_file()]
    assert len(files) == 3 * 4 * 3 + 2 and sum(path.stat().st_size for path in files) < 1_000_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = open_study("example")
    assert study.classes == ("AD", "CG", "PS", "ST") and np.bincount(study.labels).tolist() == [3, 3, 3, 3]
    assert study.has_layer_map.all() and study.rule == "columns" and study.problems.empty
    assert set().union(*study.masks) == {"epidermis", "sleb", "tumour"}


def same_but_for_rounding(stored, made):
    """Another processor rounds a few pixels to the neighbouring level, which is at most three steps of a colour."""
    apart = np.abs(np.asarray(stored, dtype=int) - np.asarray(made, dtype=int))
    return apart.shape == np.shape(made) and apart.max() <= 3 and (apart > 0).mean() < 0.001


def test_the_generator_makes_the_same_again(tmp_path):
    phantoms(images_per_class=3).save(tmp_path / "again")
    for path in EXAMPLE.rglob("*.*"):
        again = tmp_path / "again" / path.relative_to(EXAMPLE)
        if path.suffix == ".png":
            with Image.open(path) as stored, Image.open(again) as made:
                assert stored.mode == made.mode and same_but_for_rounding(stored, made), path.name
        else:
            assert path.read_text() == again.read_text()


def test_stored_layer_maps_are_those_of_the_masks():
    study, made = open_study("example"), phantoms(images_per_class=3)
    assert (study.layer_maps(96) == made.layer_maps(96)).all()
    assert same_but_for_rounding(study.images(96) * 255, made.images(96) * 255)
    assert study.names == made.names and (study.groups == made.groups).all()
