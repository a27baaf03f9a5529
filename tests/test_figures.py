"""Figures as they arrive in a notebook and in its web page, and what is drawn in them."""

import base64
import io

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from nbclient import NotebookClient
from PIL import Image

from helpers import figures
from helpers.pages import to_html

IMAGES = np.random.default_rng(0).random((3, 3, 16, 16)).astype(np.float32)
MAPS = np.random.default_rng(1).random((3, 4, 4))
LAYERS = np.zeros((3, 16, 16), np.uint8)
LAYERS[:, 4:8] = 255


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def shown(monkeypatch):
    outputs = []
    monkeypatch.setattr(figures, "display", outputs.append)
    return outputs


def drawn(axis):
    return axis.get_images()


def test_picture_alt_and_caption_are_displayed_and_nothing_is_left_open(shown):
    figures.show(figures.image_grid(IMAGES), "three\n   noise pictures", "Look at\n the noise.")
    image, caption = shown
    bundle, metadata = image._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == "three noise pictures"
    png = base64.b64decode(bundle["image/png"]) if isinstance(bundle["image/png"], str) else bundle["image/png"]
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG" and picture.width > picture.height
    assert caption.data == "*Look at the noise.*"
    assert plt.get_fignums() == []


def test_equal_figures_are_equal_files(shown):
    for _ in range(2):
        figures.show(figures.map_grid(IMAGES, {"noise": MAPS}, "share"), "noise", "Noise.")
    assert shown[0].data == shown[2].data


@pytest.mark.parametrize(("alt", "caption"), [("", "Noise."), ("  \n", "Noise."), ("noise", "")])
def test_a_figure_without_words_is_an_error(shown, alt, caption):
    with pytest.raises(ValueError, match="every figure needs one"):
        figures.show(figures.image_grid(IMAGES), alt, caption)
    assert shown == []


def test_alt_text_arrives_in_the_notebook_and_in_the_web_page():
    code = (
        "import numpy as np\nfrom helpers import figures\n"
        "figures.show(figures.image_grid(np.ones((1, 3, 4, 4))), 'a \"white\" square', 'White.')"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=120).execute()
    (output, caption) = notebook.cells[0].outputs
    assert output.metadata["image/png"]["alt"] == 'a "white" square'
    assert caption.data["text/markdown"] == "*White.*"
    (picture,) = BeautifulSoup(to_html(notebook, "title"), "html.parser").select("img")
    assert picture["alt"] == 'a "white" square' and picture["src"].startswith("data:image/png;base64,")


def test_image_grid_places_every_image_and_leaves_no_empty_frame():
    figure = figures.image_grid(IMAGES, ["a", "b", "c"], columns=2)
    axes = figure.axes
    assert [axis.get_title() for axis in axes] == ["a", "b", "c", ""]
    assert [len(drawn(axis)) for axis in axes] == [1, 1, 1, 0] and not axes[3].axison
    np.testing.assert_array_equal(drawn(axes[1])[0].get_array(), IMAGES[1].transpose(1, 2, 0))


def test_grey_images_are_shown_grey():
    shown_as = figures.picture(IMAGES[0, :1])
    assert shown_as.shape == (16, 16, 3) and (shown_as == shown_as[..., :1]).all()
    with pytest.raises(ValueError, match=r"\(1, H, W\) or \(3, H, W\), got shape \(16, 16\)"):
        figures.picture(IMAGES[0, 0])


def test_maps_stand_beside_their_image_on_one_scale():
    maps = {"one": MAPS, "half": MAPS / 2}
    figure = figures.map_grid(IMAGES, maps, "share of the maximum", rows=["a", "b", "c"])
    grid = np.array(figure.axes[:9]).reshape(3, 3)
    assert [axis.get_title() for axis in grid[0]] == ["image", "one", "half"]
    assert [axis.get_ylabel() for axis in grid[:, 0]] == ["a", "b", "c"]
    for axis, expected in zip(grid[1], [IMAGES[1].transpose(1, 2, 0), MAPS[1], MAPS[1] / 2], strict=True):
        np.testing.assert_array_equal(drawn(axis)[0].get_array(), expected)
    assert {drawn(axis)[0].get_clim() for axis in grid[:, 1:].flat} == {(0, 1)}
    assert all(drawn(axis)[0].get_extent() == [-0.5, 15.5, 15.5, -0.5] for axis in grid[:, 1:].flat)
    assert len(figure.axes) == 10 and figure.axes[9].get_ylabel() == "share of the maximum"


def test_signed_maps_are_centred_on_zero():
    figure = figures.map_grid(IMAGES, {"raw": 4 * MAPS - 3, "other": MAPS}, "logit", signed=True)
    images = [drawn(axis)[0] for axis in figure.axes[:9] if axis.get_title() != "image"]
    limit = np.abs(4 * MAPS - 3).max()
    assert {image.get_clim() for image in images if image.get_array().ndim == 2} == {(-limit, limit)}
    assert drawn(figure.axes[1])[0].get_cmap().name == "RdBu_r"


def test_a_flat_map_is_not_a_picture():
    maps = MAPS.copy()
    maps[1] = np.nan
    figure = figures.map_grid(IMAGES, {"map": maps}, "share")
    words = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert words == [[], [], [], ["flat map"], [], [], []]
    all_flat = figures.map_grid(IMAGES, {"map": np.full_like(MAPS, np.nan)}, "share")
    assert len(all_flat.axes) == 6


def test_peaks_are_marked_in_pixels_of_the_image():
    maps = np.zeros((1, 4, 4))
    maps[0, 1, 2] = 1
    figure = figures.map_grid(IMAGES[:1], {"map": maps}, "share", peaks=True)
    (cross,) = figure.axes[1].lines
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (9.5, 5.5)


def test_the_structure_is_outlined_in_the_maps_and_not_in_the_image():
    layer_maps = LAYERS.copy()
    layer_maps[2] = 0
    figure = figures.map_grid(IMAGES, {"map": MAPS}, "share", layer_maps=layer_maps)
    assert [len(axis.collections) for axis in figure.axes[:6]] == [0, 1, 0, 1, 0, 0]


def test_layer_maps_have_one_colour_per_level_and_a_legend():
    layer_map = np.array([[255, 128], [64, 32], [0, 0]], np.uint8)
    figure = figures.layer_grid(IMAGES[:1], [layer_map], ["AD"], scores={255: 3, 128: 2, 64: 1, 32: 0, 0: -1})
    image = drawn(figure.axes[1])[0]
    assert len(np.unique(image.to_rgba(layer_map).reshape(-1, 4), axis=0)) == 5
    texts = [text.get_text() for text in figure.legends[0].texts]
    assert texts[0] == "255: epidermis and structure, score 3" and texts[-1].endswith("score -1") and len(texts) == 5
    colours = [handle.get_facecolor() for handle in figure.legends[0].get_patches()]
    np.testing.assert_allclose(colours[0], image.to_rgba(np.array([[255]], np.uint8))[0, 0])
