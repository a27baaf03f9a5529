import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from helpers.data import study as module
from helpers.data.layer_maps import resize_nearest
from helpers.data.study import Study, open_study


def made(**changes):
    """Four pictures in memory: two of 20 x 30 pixels, two of 8 x 8; the second pair has no masks."""
    rng = np.random.default_rng(0)
    sizes = [(20, 30), (20, 30), (8, 8), (8, 8)]
    band = np.zeros((20, 30), bool)
    band[4:9, 3:20] = True
    spot = np.zeros((20, 30), bool)
    spot[7:12, 10:14] = True
    fields = {
        "title": "made",
        "names": ("p", "q (1)", "r", "s"),
        "labels": np.array([0, 1, 0, 1]),
        "classes": ("AD", "PS"),
        "groups": np.array(["1", "1", "2", "3"]),
        "pictures": [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes],
        "masks": [{"epidermis": band, "tumour": spot}, {"epidermis": band}, {}, {}],
        "layer_map_files": [None, None, None, np.full((8, 8), 64, np.uint8)],
        "rule": "columns",
        "fingerprint": "0",
    }
    return Study(**{**fields, **changes})


def test_images_of_one_colour_each():
    pictures = [np.full((5, 7 + i, 3), (i, 100, 255), np.uint8) for i in range(4)]
    images = made(pictures=pictures, masks=[{}] * 4).images((6, 9))
    assert images.shape == (4, 3, 6, 9) and images.dtype == np.float32
    assert (images == np.array([[i, 100, 255] for i in range(4)], np.float32)[..., None, None] / np.float32(255)).all()


def test_images_at_their_own_size_are_unchanged():
    study = made()
    assert (study.images((20, 30), [1])[0] == study.pictures[1].transpose(2, 0, 1) / np.float32(255)).all()


def test_images_are_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 200
    small = made(pictures=[stripes] * 4, masks=[{}] * 4).images(8, [0])
    assert np.abs(small * 255 - 100).max() < 5


def test_which_chooses():
    study = made()
    whole = study.images(8)
    assert (study.images(8, [2, 0]) == whole[[2, 0]]).all()
    assert (made().images(8, [3]) == whole[[3]]).all()
    assert (study.images(8, study.labels == 1) == whole[[1, 3]]).all()
    assert study.images(8, 2).shape == (1, 3, 8, 8) and study.images(8, []).shape == (0, 3, 8, 8)
    assert (study.layer_maps(8, [1]) == study.layer_maps(8)[[1]]).all()


def test_a_picture_is_resized_once(monkeypatch):
    study, asked = made(), []
    monkeypatch.setattr(Study, "picture", lambda self, i: asked.append(i) or Image.fromarray(self.pictures[i]))
    study.images(8, [1, 2])
    study.images(8)
    study.images(8)
    assert sorted(asked) == [0, 1, 2, 3]


def test_what_was_kept_cannot_be_changed_from_outside():
    study = made()
    study.images(8)[:] = 0
    study.layer_maps(8)[:] = 1
    study.has_layer_map[:] = False
    assert study.images(8).max() > 0.5 and (study.layer_maps(8) == made().layer_maps(8)).all()
    assert study.has_layer_map.any()


def test_masks():
    study = made()
    assert study.mask(0, "tumour").sum() == 20
    assert (study.mask(0, "tumour", 10) == resize_nearest(study.masks[0]["tumour"], 10)).all()
    assert study.mask(2, "tumour").shape == (8, 8) and not study.mask(2, "tumour").any()
    with pytest.raises(KeyError, match=r"made: no structure 'nail'; known are \['epidermis', 'tumour'\]"):
        study.mask(0, "nail")


def test_layer_maps():
    study = made()
    assert study.has_layer_map.tolist() == [True, True, False, True]
    assert study.layer_map(0).shape == (20, 30)
    assert study.layer_map(0)[:, 11].tolist() == [0] * 3 + [32] + [255] * 8 + [128] * 3 + [64] * 3 + [32] * 2
    assert (study.layer_map(0, 10) == resize_nearest(study.layer_map(0), 10)).all()
    maps = study.layer_maps(10)
    assert maps.shape == (4, 10, 10) and maps.dtype == np.uint8
    assert not maps[2].any() and (maps[3] == 64).all() and (maps[0] == study.layer_map(0, 10)).all()
    rings = replace(study, rule="rings")
    assert ((rings.layer_map(0) == 255) == study.masks[0]["tumour"]).all()


def test_empty_masks_give_no_layer_map():
    nothing = {"tumour": np.zeros((20, 30), bool)}
    study = made(masks=[nothing, {}, {}, {}])
    assert study.has_layer_map.tolist() == [False, False, False, True]
    assert not study.layer_maps(8)[0].any()


def test_a_stored_layer_map_is_checked():
    with pytest.raises(ValueError, match="s: a layer map holds the levels .* found 65"):
        made(layer_map_files=[None, None, None, np.full((8, 8), 65, np.uint8)]).layer_map(3)


def test_summary():
    table = made().summary()
    assert table.loc["AD"].tolist() == [2, 1, 1, 2, "8-20", "8-30"]
    assert table.loc["all"].tolist() == [4, 2, 3, 3, "8-20", "8-30"]
    assert made(groups=None).summary()["groups"].tolist() == ["unknown"] * 3


def test_a_study_travels_without_what_it_kept():
    study = made()
    before = len(pickle.dumps(study))
    images = study.images(64)
    content = pickle.dumps(study)
    assert len(content) == before
    assert (pickle.loads(content).images(64) == images).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.array([0, 1])}, "as many of each as there are images.*'labels': 2"),
        ({"groups": np.array(["1"])}, "as many of each.*'groups': 1"),
        ({"names": ("p", "p", "r", "s")}, "these stand twice: p"),
        ({"labels": np.array([0, 1, 2, 0])}, r"labels must be in 0..1, got \[0, 1, 2\]"),
        ({"labels": np.array([0, 1, -1, 0])}, "labels must be in 0..1"),
        ({"rule": "circles"}, "rule must be one of .*'circles'"),
    ],
)
def test_studies_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        made(**changes)


@pytest.mark.filterwarnings("ignore:.*`problems` of the study")
@pytest.mark.parametrize("rule", ["columns", "rings"])
@pytest.mark.parametrize("groups", [np.array(["a", "b", "b", "c d"]), None])
def test_save_and_read_again(tmp_path, rule, groups):
    # sorted by class and name, as it is read; structures overlap in the first picture
    study = made(labels=np.array([0, 0, 1, 1]), rule=rule, groups=groups)
    study.save(tmp_path / "saved")
    again = open_study(tmp_path / "saved")
    assert (again.title, again.names, again.classes) == ("saved", study.names, study.classes)
    assert (again.labels == study.labels).all()
    assert again.groups is None if groups is None else (again.groups == groups).all()
    for i in range(len(study)):
        assert (np.asarray(again.picture(i)) == study.pictures[i]).all()
        assert set(again.masks[i]) == set(study.masks[i])
        assert all((again.mask(i, name) == study.mask(i, name)).all() for name in study.masks[i])
    assert (again.has_layer_map == study.has_layer_map).all()
    for size in (20, 13, (5, 64)):
        assert (again.layer_maps(size) == study.layer_maps(size)).all()
        assert (again.images(size) == study.images(size)).all()
    assert set(again.problems["problem"]) <= {"image without mask", "no patient or examination known"}
    again.save(tmp_path / "twice")
    assert open_study(tmp_path / "twice").fingerprint == again.fingerprint


def test_save_overwrites_nothing(tmp_path):
    (tmp_path / "note.txt").touch()
    with pytest.raises(FileExistsError, match="not empty; choose a new folder"):
        made().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_open_study_makes_phantoms():
    study = open_study("phantoms", images_per_class=2, seed=3, size=48)
    assert len(study) == 2 * len(study.classes) and study.picture(0).size == (48, 48)
    assert study.fingerprint != open_study("phantoms", images_per_class=2, seed=4, size=48).fingerprint


def test_opening_a_study_twice_decodes_nothing_again(tmp_path, monkeypatch):
    made().save(tmp_path / "saved")
    with pytest.warns(UserWarning, match="1 x image without mask"):
        open_study(tmp_path / "saved")
    monkeypatch.setattr(module.files, "load", None)
    with pytest.warns(UserWarning, match="1 x image without mask"):
        assert len(open_study(tmp_path / "saved")) == 4
