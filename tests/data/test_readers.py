import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from helpers.data.readers import read_folder, read_mendeley, read_study
from helpers.data.study import open_study

pytestmark = pytest.mark.filterwarnings("ignore:.*`problems` of the study")


def picture(path, seed=None, size=(24, 32), mode=None, **options):
    """Write a picture of noise; the noise follows from the name, so that no two pictures are equal."""
    rng = np.random.default_rng(list(path.name.encode()) if seed is None else seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(rng.integers(1, 255, size, np.uint8))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def mask(path, rows, size=(24, 32)):
    """Write a mask: `rows` maps a grey level to the first and last row (exclusive) that have it."""
    array = np.zeros(size, np.uint8)
    for level, (first, last) in rows.items():
        array[first:last] = level
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """images/A/a0.png .. a2.png, images/B/b0.png .. b2.png, each with a mask and a group."""
    root = tmp_path / "mine"
    for kind in "AB":
        for number in range(3):
            picture(root / "images" / kind / f"{kind.lower()}{number}.png")
            mask(root / "masks" / f"{kind.lower()}{number}.png", {255: (6, 12)})
    rows = [f"{kind}{number},p{number}" for kind in "ab" for number in range(3)]
    (root / "study.csv").write_text("\n".join(["name,group", *rows]))
    return root


def told(study, problem):
    """Files of one problem, with what was done."""
    rows = study.problems[study.problems["problem"] == problem]
    return dict(zip(rows["file"], rows["action"], strict=True))


def test_a_clean_folder(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = read_folder(folder)
    assert study.names == ("a0", "a1", "a2", "b0", "b1", "b2")
    assert study.classes == ("A", "B") and study.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert study.groups.tolist() == ["p0", "p1", "p2"] * 2
    assert study.title == "mine" and study.rule == "rings" and study.problems.empty
    assert list(study.problems.columns) == ["file", "problem", "action"]
    assert study.mask(4, "lesion").sum() == 6 * 32
    assert study.has_layer_map.all()


def test_classes_straight_in_the_root(folder):
    (folder / "images" / "A").rename(folder / "A")
    (folder / "images" / "B").rename(folder / "B")
    (folder / "images").rmdir()
    study = read_folder(folder)
    assert study.names == ("a0", "a1", "a2", "b0", "b1", "b2") and study.problems.empty


@pytest.mark.parametrize("suffix", [".PNG", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"])
def test_formats_and_odd_names(folder, suffix):
    picture(folder / "images" / "A" / f"a (3) [x].1{suffix}")
    mask(folder / "masks" / "a (3) [x].1.png", {255: (0, 4)})
    study = read_folder(folder)
    i = study.names.index("a (3) [x].1")
    assert study.labels[i] == 0 and study.picture(i).size == (32, 24)
    assert study.mask(i, "lesion").sum() == 4 * 32


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_modes_of_pictures_and_masks(folder, mode):
    array = np.zeros((24, 32), np.uint8)
    array[3:9, 4:20] = 255
    image = Image.fromarray(array.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(array).convert(mode)
    image.save(folder / "images" / "A" / "odd.png")
    image.save(folder / "masks" / "odd.png")
    with Image.open(folder / "masks" / "odd.png") as written:
        assert written.mode == mode
    study = read_folder(folder)
    i = study.names.index("odd")
    assert (np.asarray(study.picture(i)) == array[..., None]).all()
    assert (study.mask(i, "lesion") == (array > 0)).all()


def test_sixteen_bit_pictures_that_use_twelve(folder):
    for name, top in (("a5", 4095), ("b5", 1000)):
        values = np.linspace(0, top, 24 * 32).astype(np.uint16).reshape(24, 32)
        Image.fromarray(values).save(folder / "images" / name[0].upper() / f"{name}.tif")
    study = read_folder(folder)
    assert told(study, "16-bit pictures that use fewer bits") == {".": "4095 is shown as white"}
    brightest = [np.asarray(study.picture(study.names.index(name))).max() for name in ("a5", "b5")]
    assert brightest == [255, round(1000 / 4095 * 255)]


def test_masks_beside_the_pictures_are_united(folder):
    (folder / "masks" / "a0.png").unlink()
    mask(folder / "images" / "A" / "a0_mask.png", {255: (2, 4)})
    mask(folder / "images" / "A" / "a0_mask_1.png", {255: (3, 7)})
    study = read_folder(folder)
    assert len(study) == 6 and study.problems.empty
    assert study.mask(0, "lesion")[:, 0].nonzero()[0].tolist() == [2, 3, 4, 5, 6]


def test_mask_of_another_size(folder):
    mask(folder / "masks" / "a0.png", {255: (6, 12)}, size=(12, 16))
    study = read_folder(folder)
    assert told(study, "mask of another size") == {
        "masks/a0.png": "resized from 16 x 12 to 32 x 24 pixels by nearest neighbour"
    }
    assert study.mask(0, "lesion")[:, 5].nonzero()[0].tolist() == list(range(12, 24))


def test_mask_without_image_and_image_without_mask(folder):
    mask(folder / "masks" / "stray.png", {255: (6, 12)})
    mask(folder / "images" / "A" / "gone_mask.png", {255: (6, 12)})
    (folder / "masks" / "b1.png").unlink()
    mask(folder / "masks" / "b2.png", {})
    study = read_folder(folder)
    assert set(told(study, "mask without image")) == {"masks/stray.png", "images/A/gone_mask.png"}
    assert set(told(study, "image without mask")) == {"images/B/b1.png"}
    assert set(told(study, "empty mask")) == {"images/B/b2.png"}
    assert study.has_layer_map.tolist() == [True] * 4 + [False] * 2
    assert study.summary().loc["B", "layer maps"] == 1
    assert not study.layer_maps(24)[4:].any() and not study.mask(5, "lesion").any()
    with pytest.raises(ValueError, match="b1: neither a layer map nor masks"):
        study.layer_map(4, 24)


def test_problems_are_counted_in_one_warning(folder):
    (folder / "masks" / "b1.png").unlink()
    (folder / "masks" / "b2.png").unlink()
    with pytest.warns(UserWarning, match="mine: 2 x image without mask; `problems` of the study lists") as caught:
        read_folder(folder)
    assert len(caught) == 1


def test_unusable_pictures_are_left_out_and_counted(folder):
    (folder / "images" / "A" / "a0.png").write_bytes(b"")
    whole = (folder / "images" / "A" / "a1.png").read_bytes()
    (folder / "images" / "A" / "a1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "images" / "B" / "b0.png").write_text("text")
    study = read_folder(folder)
    assert study.names == ("a2", "b1", "b2")
    problems = told(study, "unusable picture")
    assert set(problems) == {"images/A/a0.png", "images/A/a1.png", "images/B/b0.png"}
    assert all(action.startswith("left out: ") and "copy or export it again" in action for action in problems.values())
    assert not told(study, "mask without image"), "its picture was reported already"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_left_out_and_named(folder):
    Image.new("1", (10_000, 10_000)).save(folder / "images" / "A" / "bomb.png")
    study = read_folder(folder)
    assert "bomb" not in study.names
    assert told(study, "unusable picture") == {
        "images/A/bomb.png": "left out: bomb.png: more than 50 megapixels, the limit; save it smaller"
    }


def test_an_unreadable_mask_leaves_its_image(folder):
    (folder / "masks" / "a0.png").write_text("text")
    study = read_folder(folder)
    assert len(study) == 6 and study.has_layer_map.tolist() == [False] + [True] * 5
    assert set(told(study, "unusable picture")) == {"masks/a0.png"}
    assert set(told(study, "image without mask")) == {"images/A/a0.png"}


@pytest.mark.parametrize("other", ["images/B/a0.png", "images/A/a0.jpg"])
def test_two_pictures_of_one_name(folder, other):
    picture(folder / other)
    with pytest.raises(
        ValueError, match=rf"two pictures of one name: images/A/a0\S+ and {other}|{other} and images/A/a0"
    ):
        read_folder(folder)


def test_one_class_only(folder):
    for path in (folder / "images" / "B").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"mine: pictures of one class only \(A\); at least two classes are needed"):
        read_folder(folder)
    (folder / "images" / "B").rmdir()
    with pytest.raises(ValueError, match="one class only"):
        open_study(folder)


def test_no_pictures(tmp_path):
    (tmp_path / "mine" / "images" / "A").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no pictures; .*expected images/<class>/<name>.png.*first problem: images/A"):
        read_folder(tmp_path / "mine")
    with pytest.raises(FileNotFoundError, match="no such file or folder; give 'phantoms'"):
        open_study(tmp_path / "nowhere")


def test_other_things_lying_about(folder):
    (folder / "images" / "A" / "notes.txt").touch()
    (folder / "images" / "A" / ".DS_Store").touch()
    (folder / "images" / "Thumbs.db").touch()
    (folder / "__MACOSX").mkdir()
    (folder / "images" / "C").mkdir()
    (folder / "README.md").touch()
    picture(folder / "images" / "lost.png")
    picture(folder / "images" / "A" / "deeper" / "d.png")
    study = read_folder(folder)
    assert study.classes == ("A", "B") and len(study) == 6
    assert dict(zip(study.problems["file"], study.problems["problem"], strict=True)) == {
        "images/A/notes.txt": "not a picture",
        "images/C": "class folder without pictures",
        "images/lost.png": "file outside a class folder",
        "images/A/deeper": "folder inside a class folder",
    }


def test_pictures_that_deserve_a_look(folder):
    (folder / "images" / "A" / "a9.png").write_bytes((folder / "images" / "A" / "a0.png").read_bytes())
    Image.new("L", (32, 24), 7).save(folder / "images" / "B" / "b9.png")
    frame = Image.open(folder / "images" / "B" / "b0.png")
    frame.save(folder / "images" / "B" / "b8.tif", save_all=True, append_images=[frame])
    study = read_folder(folder)
    assert len(study) == 9
    assert told(study, "equal files") == {"images/A/a9.png": "kept, although equal to a0; remove one of them"}
    assert set(told(study, "one grey value all over")) == {"images/B/b9.png"}
    assert told(study, "several frames") == {"images/B/b8.tif": "the first of 2 is used"}


def test_stored_layer_maps_come_first(folder):
    stored = np.full((24, 32), 64, np.uint8)
    (folder / "layer_maps").mkdir()
    Image.fromarray(stored).save(folder / "layer_maps" / "a0.png")
    Image.fromarray(stored).save(folder / "layer_maps" / "a0.tif")
    Image.fromarray(stored).convert("RGB").save(folder / "layer_maps" / "b1.png")
    Image.fromarray(stored).save(folder / "layer_maps" / "stray.png")
    (folder / "masks" / "b1.png").unlink()
    study = read_folder(folder)
    assert (study.layer_map(0, 24) == 64).all() and (study.layer_map(4, 24) == 64).all()
    assert (study.layer_map(1, 24) == 255).any()
    assert set(told(study, "layer map without image")) == {"layer_maps/stray.png"}
    assert told(study, "second layer map") == {"layer_maps/a0.tif": "not used; a0.png is, remove one of them"}
    assert len(study.problems) == 2, "an image with a layer map needs no mask"


def test_a_layer_map_with_another_level(folder):
    mask(folder / "layer_maps" / "a0.png", {255: (0, 4), 96: (4, 6)})
    with pytest.raises(ValueError, match="layer_maps/a0.png: .*found 0, 96, 255.*8-bit grey PNG"):
        read_folder(folder)


def test_the_rule_follows_the_structures_unless_told(folder):
    assert read_folder(folder).rule == "rings"
    assert read_folder(folder, rule="columns").rule == "columns"
    assert (
        open_study(folder, rule="columns").layer_map(0)[:, 0].tolist()
        == [0] * 4 + [32] * 2 + [255] * 6 + [128] * 4 + [64] * 4 + [32] * 4
    )
    (folder / "masks" / "structures.csv").write_text("level;structure\n255;epidermis\n")
    study = read_folder(folder)
    assert study.rule == "columns" and set(study.masks[0]) == {"epidermis"}


def test_skin_structures_of_a_general_folder(folder):
    mask(folder / "masks" / "a0.png", {255: (4, 6), 128: (6, 9), 64: (12, 14)})
    study = read_folder(folder)
    assert set(study.masks[0]) == {"epidermis", "sleb", "tumour"} and set(study.masks[1]) == {"epidermis"}
    assert study.mask(0, "sleb")[:, 0].nonzero()[0].tolist() == [6, 7, 8]
    assert study.rule == "columns"
    assert "add masks/structures.csv" in told(study, "structures without a table")["masks"]


def test_the_fingerprint_follows_the_contents_not_the_place(folder, tmp_path):
    mark = read_folder(folder).fingerprint
    folder.rename(tmp_path / "moved")
    folder = tmp_path / "moved"
    assert read_folder(folder).fingerprint == mark
    assert read_folder(folder, rule="columns").fingerprint != mark
    marks = {mark}
    mask(folder / "masks" / "a0.png", {255: (6, 13)})
    marks.add(read_folder(folder).fingerprint)
    picture(folder / "images" / "A" / "a0.png", seed=99)
    marks.add(read_folder(folder).fingerprint)
    mask(folder / "layer_maps" / "a0.png", {255: (6, 13)})
    marks.add(read_folder(folder).fingerprint)
    (folder / "study.csv").unlink()
    marks.add(read_folder(folder).fingerprint)
    (folder / "images" / "A" / "a2.png").rename(folder / "images" / "B" / "a2.png")
    marks.add(read_folder(folder).fingerprint)
    assert len(marks) == 6


@pytest.fixture
def archive(tmp_path):
    """The downloaded layout: images/1AD.png, masks/1AD.png with two grey levels that differ from mask to mask."""
    root = tmp_path / "mendeley"
    for number in range(1, 4):
        picture(root / "images" / f"{number}AD.png")
        mask(root / "masks" / f"{number}AD.png", {200 + number: (6, 9), 100 - number: (9, 14)})
        picture(root / "images" / f"{number + 30}PS.png")
        mask(root / "masks" / f"{number + 30}PS.png", {90: (9, 14), 180: (5, 9)})
    return root


def test_the_archive(archive):
    study = read_mendeley(archive)
    assert study.names == ("1AD", "2AD", "3AD", "31PS", "32PS", "33PS")
    assert study.classes == ("AD", "PS") and study.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert study.groups is None and study.rule == "columns"
    assert study.mask(0, "epidermis")[:, 0].nonzero()[0].tolist() == [6, 7, 8]
    assert study.mask(0, "sleb")[:, 0].nonzero()[0].tolist() == [9, 10, 11, 12, 13]
    assert set(study.problems["problem"]) == {"no patient or examination known"}
    assert study.summary()["images"].to_dict() == {"AD": 3, "PS": 3, "all": 6}
    column = study.layer_map(0)[:, 0]
    assert column.tolist() == [0] * 4 + [32] * 2 + [255] * 8 + [128] * 4 + [64] * 4 + [32] * 2


def test_any_number_of_classes(archive):
    picture(archive / "images" / "7xy_2.png")
    assert read_mendeley(archive).classes == ("AD", "PS", "XY")


def test_masks_of_the_archive_that_are_odd(archive):
    mask(archive / "masks" / "31PS.png", {180: (5, 9)})
    mask(archive / "masks" / "32PS.png", {90: (5, 9)})
    mask(archive / "masks" / "1AD.png", {1: (0, 7), 2: (7, 14), 3: (14, 21)})
    for number in range(34, 36):
        picture(archive / "images" / f"{number}PS.png")
        mask(archive / "masks" / f"{number}PS.png", {90: (9, 14), 180: (5, 9)})
    study = read_mendeley(archive)
    found = {name: set(masks) for name, masks in zip(study.names, study.masks, strict=True)}
    assert found["31PS"] == {"epidermis"} and found["32PS"] == {"sleb"} and found["1AD"] == set()
    assert told(study, "mask of one grey level") == {
        "masks/31PS.png": "level 180 read as epidermis",
        "masks/32PS.png": "level 90 read as sleb",
    }
    assert "not used; save it with two levels" in told(study, "mask of more than two grey levels")["masks/1AD.png"]
    assert study.has_layer_map.sum() == len(study) - 1


def test_an_archive_without_its_parts(archive):
    picture(archive / "images" / "2018-10-15_11_1.png")
    assert set(told(read_mendeley(archive), "no class in the name")) == {"images/2018-10-15_11_1.png"}
    for path in (archive / "masks").iterdir():
        path.unlink()
    study = read_mendeley(archive)
    assert not study.has_layer_map.any() and len(told(study, "image without mask")) == 6
    with pytest.raises(ValueError, match="no folder 'images' in it"):
        read_mendeley(archive / "images")


def pack(root, path, inside=""):
    with zipfile.ZipFile(path, "w") as file:
        for part in sorted(root.rglob("*")):
            file.write(part, inside + part.relative_to(root).as_posix())
    return path


@pytest.mark.parametrize("inside", ["", "Skin HFUS/", "a/b/"])
def test_a_zip_equals_its_folder(archive, tmp_path, inside):
    (archive / "masks").rename(archive / "Masks")
    path = pack(archive, tmp_path / "set.zip", inside)
    one, two = open_study(archive), open_study(path, cache=tmp_path / "cache")
    assert one.fingerprint == two.fingerprint and one.names == two.names
    assert (one.images(16) == two.images(16)).all()
    assert not (tmp_path / "results").exists()


def test_a_zip_of_a_study_folder_and_a_folder_with_nothing_but_the_zip(folder, tmp_path):
    (tmp_path / "down").mkdir()
    path = pack(folder, tmp_path / "down" / "mine.zip", "mine/")
    mark = read_folder(folder).fingerprint
    assert read_study(path, tmp_path / "cache").fingerprint == mark
    assert read_study(tmp_path / "down", tmp_path / "cache").fingerprint == mark


def test_a_zip_that_leads_outside(archive, tmp_path):
    path = pack(archive, tmp_path / "set.zip")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("../evil.png", "x")
    with pytest.raises(ValueError, match="set.zip: '../evil.png' leads outside the archive"):
        open_study(path, cache=tmp_path / "cache")
    assert not (tmp_path / "evil.png").exists() and not (tmp_path / "cache" / "evil.png").exists()


def test_breast_ultrasound(real_data):
    study = open_study(real_data / "breast_ultrasound")
    print(study.summary(), study.problems["problem"].value_counts(), sep="\n")
    assert study.classes == ("benign", "malignant", "normal") and np.bincount(study.labels).tolist() == [20, 20, 8]
    assert study.rule == "rings" and study.groups is None
    assert study.problems["problem"].value_counts().to_dict() == {
        "empty mask": 8,
        "mask of another size": 1,
        "no patient or examination known": 1,
    }
    assert set(told(study, "mask of another size")) == {"benign/benign (4)_mask_1.png"}
    assert (study.has_layer_map == (study.labels != 2)).all()
    united = study.mask(study.names.index("benign (25)"), "lesion")
    single = [real_data / "breast_ultrasound" / "benign" / f"benign (25)_mask{part}.png" for part in ("", "_1")]
    one, two = (np.asarray(Image.open(path)) for path in single)
    assert (united == (one | two)).all() and united.sum() > max(one.sum(), two.sum())
    images, maps = study.images(64), study.layer_maps(64)
    assert images.shape == (48, 3, 64, 64) and images.dtype == np.float32 and 0 <= images.min() < images.max() <= 1
    assert set(np.unique(maps)) == {0, 32, 64, 128, 255}
