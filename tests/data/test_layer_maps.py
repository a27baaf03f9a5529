import re

import numpy as np
import pytest

from helpers.data.layer_maps import LEVELS, check_layer_map, layer_map, resize_nearest

# Rows of one column of the study's published map, from the entry echo at row 60: 34 px of level 255, then bands.
PUBLISHED = [0] * 44 + [32] * 16 + [255] * 34 + [128] * 36 + [64] * 36 + [32] * 36 + [0] * 22


def block(shape, rows, columns):
    mask = np.zeros(shape, bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def test_columns_give_the_bands_of_the_published_map():
    epidermis, sleb = block((224, 224), (60, 70), (20, 204)), block((224, 224), (70, 94), (20, 204))
    result = layer_map({"epidermis": epidermis, "sleb": sleb})
    assert result.dtype == np.uint8
    assert (result[:, 20:204] == np.array(PUBLISHED)[:, None]).all()
    assert not result[:, :20].any() and not result[:, 204:].any()


def test_columns_reach_to_the_lower_edge_of_the_lowest_structure():
    epidermis, tumour = block((224, 224), (50, 58), (0, 224)), block((224, 224), (80, 100), (90, 130))
    result = layer_map({"epidermis": epidermis, "tumour": tumour})
    assert [(result[:, column] == 255).sum() for column in (89, 90, 129, 130)] == [8, 50, 50, 8]
    assert (result[50:100, 100] == 255).all() and (result[100:136, 100] == 128).all()


def test_columns_follow_each_column():
    mask = np.zeros((224, 40), bool)
    for column in range(40):
        mask[60 + column : 70 + 2 * column, column] = True
    moved = layer_map({"epidermis": mask})
    for column in range(40):
        alone = layer_map({"epidermis": mask[:, [column]]})
        assert (moved[:, column] == alone[:, 0]).all()


@pytest.mark.parametrize(("height", "above", "bands"), [(112, 8, (18, 18, 18)), (448, 32, (72, 72, 72))])
def test_widths_scale_with_the_height(height, above, bands):
    top, end = height // 4, height // 4 + 10
    column = layer_map({"epidermis": block((height, 5), (top, end), (0, 5))})[:, 2]
    assert (column[:top] == 32).sum() == above
    assert tuple((column[end:] == level).sum() for level in (128, 64, 32)) == bands


def test_rounding_of_widths_does_not_add_up():
    column = layer_map({"epidermis": block((96, 3), (10, 12), (0, 3))})[:, 1]
    assert (column[12:] != 0).sum() == round(3 * 36 * 96 / 224)


def test_bands_are_cut_at_the_border():
    column = layer_map({"epidermis": block((224, 3), (5, 200), (0, 3))})[:, 1]
    assert column.tolist() == [32] * 5 + [255] * 195 + [128] * 24


def test_a_hair_is_bridged_but_not_a_wide_gap():
    mask = block((224, 224), (60, 70), (10, 210))
    mask[:, 50:66] = False  # 16 px
    mask[:, 100:117] = False  # 17 px
    result = layer_map({"epidermis": mask})
    whole = layer_map({"epidermis": block((224, 224), (60, 70), (10, 210))})
    assert (result[:, 10:100] == whole[:, 10:100]).all()
    assert not result[:, 100:117].any()
    assert (result[:, 117:] == whole[:, 117:]).all()


def test_the_bridge_scales_with_the_height():
    for height, gap, bridged in ((448, 32, True), (448, 33, False), (112, 8, True), (112, 9, False)):
        mask = block((height, 100), (30, 40), (0, 100))
        mask[:, 20 : 20 + gap] = False
        assert layer_map({"epidermis": mask})[:, 20].any() == bridged


def test_a_bridge_is_straight():
    mask = np.zeros((224, 12), bool)
    mask[60:70, 0] = mask[80:90, 11] = True
    mask[60:70, 1], mask[80:90, 10] = True, True
    tops = (layer_map({"epidermis": mask}) == 255).argmax(axis=0)
    assert np.allclose(tops, np.rint(np.interp(range(12), [1, 10], [60, 80])))


def test_rings_are_measured_from_the_lesion():
    lesion = block((224, 224), (112, 113), (0, 1))
    row = layer_map({"lesion": lesion}, rule="rings")[112]
    assert row.tolist() == [255] + [128] * 36 + [64] * 36 + [32] * 36 + [0] * 115


def test_rings_scale_with_the_height():
    row = layer_map({"lesion": block((112, 224), (50, 60), (0, 1))}, rule="rings")[55]
    assert row.tolist() == [255] + [128] * 18 + [64] * 18 + [32] * 18 + [0] * 169


def test_rings_do_not_depend_on_orientation():
    rng = np.random.default_rng(3)
    lesion = rng.random((90, 90)) > 0.999
    lesion[40, 50] = True
    upright = layer_map({"lesion": lesion}, rule="rings")
    assert (layer_map({"lesion": lesion.T}, rule="rings") == upright.T).all()
    assert (layer_map({"lesion": lesion[::-1]}, rule="rings") == upright[::-1]).all()
    assert ((upright == 255) == lesion).all()


def test_the_lesion_of_the_rings_is_not_the_epidermis():
    masks = {"epidermis": block((60, 60), (5, 8), (0, 60)), "tumour": block((60, 60), (30, 40), (20, 30))}
    assert (layer_map(masks, "rings") == layer_map({"tumour": masks["tumour"]}, "rings")).all()
    alone = {"epidermis": masks["epidermis"], "tumour": np.zeros((60, 60), bool)}
    assert ((layer_map(alone, "rings") == 255) == masks["epidermis"]).all()


@pytest.mark.parametrize("rule", ["columns", "rings"])
def test_a_layer_map_passes_its_own_check(rule):
    result = layer_map({"lesion": block((75, 31), (20, 30), (3, 9))}, rule)
    assert (check_layer_map(result) == result).all()


def test_masks_that_give_no_layer_map():
    empty = np.zeros((4, 4), bool)
    with pytest.raises(ValueError, match="without a segmented pixel; structures given: none"):
        layer_map({})
    with pytest.raises(ValueError, match=r"structures given: \['tumour'\]"):
        layer_map({"tumour": empty})
    with pytest.raises(ValueError, match="one shape"):
        layer_map({"tumour": ~empty, "epidermis": np.ones((4, 5), bool)})
    with pytest.raises(ValueError, match="'columns', 'rings'.*'circles'"):
        layer_map({"tumour": ~empty}, rule="circles")


def test_unknown_levels_are_listed():
    with pytest.raises(ValueError, match=re.escape("a.png: a layer map holds the levels [0, 32, 64, 128, 255] only")):
        check_layer_map(np.array([[0, 96], [255, 7]], np.uint8), "a.png")
    with pytest.raises(ValueError, match="found 0, 7, 96, 255"):
        check_layer_map(np.array([[0, 96], [255, 7]], np.uint8))
    with pytest.raises(ValueError, match="found 0.5"):
        check_layer_map(np.full((2, 2), 0.5))
    with pytest.raises(ValueError, match=r"got \(2, 2, 3\)"):
        check_layer_map(np.zeros((2, 2, 3), np.uint8))
    assert check_layer_map(np.array([[255.0, 0.0]])).dtype == np.uint8


def test_resize_nearest():
    array = np.array([[255, 0], [64, 32]], np.uint8)
    assert resize_nearest(array, 4).tolist() == np.kron(array, np.ones((2, 2), int)).tolist()
    assert (resize_nearest(resize_nearest(array, (6, 10)), 2) == array).all()
    assert resize_nearest(np.stack([array, array + 1]), (2, 2)).shape == (2, 2, 2)
    assert resize_nearest(np.arange(5)[None], (1, 3)).tolist() == [[0, 2, 4]]


def test_resize_nearest_makes_no_new_levels():
    array = np.random.default_rng(0).choice(np.array(LEVELS, np.uint8), (37, 53))
    for size in (7, 224, (20, 100)):
        assert set(np.unique(resize_nearest(array, size))) <= set(LEVELS)
