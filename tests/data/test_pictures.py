import numpy as np
import pytest
from PIL import Image

from helpers.data import pictures
from helpers.data.pictures import MaskFile, PictureError, examine, picture_size, read_levels, read_picture

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def saved(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_eight_bit_modes_keep_every_grey(tmp_path, mode, suffix):
    path = saved(tmp_path / f"a{suffix}", RAMP, mode)
    with Image.open(path) as image:
        assert image.mode == mode
    picture = read_picture(path)
    assert picture.mode == "RGB"
    assert (np.asarray(picture) == RAMP[..., None]).all()
    assert (read_levels(path) == RAMP).all()


def test_one_bit(tmp_path):
    path = saved(tmp_path / "a.png", RAMP > 100, "1")
    assert (read_levels(path) == np.where(RAMP > 100, 255, 0)).all()
    assert (np.asarray(read_picture(path))[..., 1] == np.where(RAMP > 100, 255, 0)).all()


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_are_scaled_not_cut(tmp_path, suffix):
    path = saved(tmp_path / f"a{suffix}", RAMP.astype(np.uint16) * 257)
    assert (np.asarray(read_picture(path))[..., 0] == RAMP).all()
    assert (read_levels(path) == RAMP).all()
    assert examine(path).peak == 65535


def test_sixteen_bits_with_the_higher_byte_first(tmp_path):
    values = (RAMP.astype(">u2") * 257).astype(">u2")
    Image.frombytes("I;16B", (16, 16), values.tobytes()).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == "I;16B"
    assert (np.asarray(read_picture(tmp_path / "a.tif"))[..., 2] == RAMP).all()
    assert (read_levels(tmp_path / "a.tif") == RAMP).all() and examine(tmp_path / "a.tif").peak == 65535


def test_sixteen_bits_with_a_lower_white(tmp_path):
    path = saved(tmp_path / "a.png", np.array([[0, 2048, 4095]], np.uint16))
    assert np.asarray(read_picture(path, white=4095))[0, :, 0].tolist() == [0, 128, 255]


def test_sixteen_bit_masks_lose_no_level(tmp_path):
    small = saved(tmp_path / "a.png", np.array([[0, 1, 128, 255]], np.uint16))
    assert read_levels(small).tolist() == [[0, 1, 128, 255]]
    large = saved(tmp_path / "b.png", np.array([[0, 1, 300, 32896, 65535]], np.uint16))
    assert read_levels(large).tolist() == [[0, 1, 2, 128, 255]]


def test_transparent_is_black(tmp_path):
    array = np.full((4, 4, 4), 200, np.uint8)
    array[:, :2, 3], array[:, 2:, 3] = 0, 255
    path = saved(tmp_path / "a.png", array)
    assert np.asarray(read_picture(path))[0, :, 0].tolist() == [0, 0, 200, 200]
    assert read_levels(path)[0].tolist() == [0, 0, 200, 200]


def test_a_transparent_palette_colour_is_black(tmp_path):
    image = Image.fromarray(RAMP).convert("P")
    image.save(tmp_path / "a.png", transparency=77)
    expected = np.where(RAMP == 77, 0, RAMP)
    assert (np.asarray(read_picture(tmp_path / "a.png"))[..., 2] == expected).all()


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_other_formats(tmp_path, suffix):
    path = saved(tmp_path / f"a{suffix}", RAMP)
    assert np.abs(np.asarray(read_picture(path))[..., 0].astype(int) - RAMP).max() <= (6 if suffix == ".jpg" else 0)


def test_a_turned_photograph_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.jpg", np.zeros((20, 30), np.uint8), exif=exif)
    assert read_picture(path).size == (20, 30)
    assert picture_size(path) == examine(path).size == (30, 20)


def test_examine(tmp_path):
    path = saved(tmp_path / "a.png", np.array([[0, 0, 64], [255, 255, 255]], np.uint8))
    seen = examine(path)
    assert seen.size == picture_size(path) == (2, 3)
    assert seen.levels == {0: 2, 64: 1, 255: 3}
    assert (seen.peak, seen.frames) == (0, 1)


def test_examine_decodes_once_until_the_file_changes(tmp_path, monkeypatch):
    path, calls = saved(tmp_path / "a.png", RAMP), []
    original = pictures.load
    monkeypatch.setattr(pictures, "load", lambda *arguments: calls.append(1) or original(*arguments))
    before = examine(path)
    assert examine(path) is before and len(calls) == 1
    saved(path, RAMP[:8])
    assert examine(path).size == (8, 16) and len(calls) == 2


def test_frames(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(RAMP)] * 2)
    assert examine(tmp_path / "a.tif").frames == 3


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_truncated(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    path = saved(tmp_path / f"half{suffix}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(PictureError, match=rf"half{suffix}: cannot be read .*; copy or export it again"):
        examine(path)


def test_empty_and_foreign(tmp_path):
    (tmp_path / "none.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(PictureError, match="none.png: the file is empty"):
        examine(tmp_path / "none.png")
    with pytest.raises(PictureError, match="text.png: cannot be read"):
        examine(tmp_path / "text.png")


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (20_000, 20_000), (7_072, 7_072)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_not_unpacked(tmp_path, width, height):
    path = tmp_path / "bomb.png"
    Image.new("1", (width, height)).save(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(PictureError, match="bomb.png: more than 50 megapixels"):
        examine(path)


def test_just_below_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 256)
    assert examine(saved(tmp_path / "a.png", RAMP)).size == (16, 16)
    with pytest.raises(PictureError):
        examine(saved(tmp_path / "b.png", np.zeros((16, 17), np.uint8)))


def test_floating_point_and_signed(tmp_path):
    with pytest.raises(PictureError, match="f.tif: mode F, .* save it with 8 or 16 bits"):
        read_picture(saved(tmp_path / "f.tif", np.zeros((4, 4), np.float32)))
    with pytest.raises(PictureError, match="i.tif: mode I, values -1000 to 0"):
        read_picture(saved(tmp_path / "i.tif", np.array([[-1000, 0]], np.int32)))


def test_mask_files_are_united_and_resized(tmp_path):
    one = saved(tmp_path / "1.png", np.array([[255, 128], [0, 0]], np.uint8))
    two = saved(tmp_path / "2.png", np.kron([[0, 0], [7, 9]], np.ones((2, 2))).astype(np.uint8))
    mask = MaskFile(((one, (255,)), (two, (7,))))
    assert mask.read((2, 2)).tolist() == [[True, False], [True, False]]
    assert (mask.read((6, 6)) == np.kron(mask.read((2, 2)), np.ones((3, 3), bool))).all()
