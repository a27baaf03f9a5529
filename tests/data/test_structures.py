from types import SimpleNamespace

import numpy as np
import pytest

from helpers.data.structures import grey_mask, name_by_brightness, name_by_table, read_structures


def seen(**masks):
    """What was found in masks: name to {level: pixels}, with the black that is always there."""
    return {name: SimpleNamespace(levels={0: 1000, **levels}) for name, levels in masks.items()}


@pytest.fixture
def by_table(tmp_path):
    def name(table=None, **masks):
        if table:
            (tmp_path / "structures.csv").write_text(table)
        rows = []
        result = name_by_table(seen(**masks), tmp_path, lambda *row: rows.append(row))
        return result, [(path if isinstance(path, str) else "folder", problem) for path, problem, _ in rows]

    return name


def by_brightness(**masks):
    rows = []
    result = name_by_brightness(seen(**masks), None, lambda *row: rows.append(row))
    return result, {path: action for path, _, action in rows}


def test_one_level_is_a_lesion_whatever_the_level(by_table):
    result, rows = by_table(a={1: 5}, b={255: 5}, c={})
    assert result == {"a": {"lesion": [1]}, "b": {"lesion": [255]}, "c": {}} and rows == []


def test_skin_levels_need_two_of_them_and_no_other(by_table):
    result, rows = by_table(a={255: 5, 64: 3}, b={64: 1})
    assert result == {"a": {"epidermis": [255], "tumour": [64]}, "b": {"tumour": [64]}}
    assert rows == [("folder", "structures without a table")]
    assert by_table(a={255: 5})[0] == {"a": {"lesion": [255]}}
    assert by_table(a={255: 5}, b={100: 1}, c={128: 1})[0]["a"] == {"lesion": [255]}


def test_a_smoothed_mask_is_one_lesion(by_table):
    result, rows = by_table(a={3: 10, 100: 10, 128: 10, 250: 100, 254: 1})
    assert result == {"a": {"lesion": [128, 250, 254]}} and rows == [("a", "mask of several grey levels")]


def test_a_table_decides(by_table):
    table = "level,structure\n255,nail\n128,nail + matrix\n"
    result, rows = by_table(table, a={7: 1, 128: 1, 255: 1})
    assert result == {"a": {"nail": [128, 255], "matrix": [128]}}
    assert rows == [("a", "unknown mask level")]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("level,name\n255,x", "no column 'structure' in its first line, got level, name"),
        ("level,structure\n256,x", "each level from 1 to 255 once"),
        ("level,structure\nred,x", "each level from 1 to 255 once"),
        ("level,structure\n255,x\n255,y", "each level from 1 to 255 once"),
        ("level,structure\n255,", "each level from 1 to 255 once"),
    ],
)
def test_a_table_that_cannot_be_understood(tmp_path, table, message):
    (tmp_path / "structures.csv").write_text(table)
    with pytest.raises(ValueError, match=f"structures.csv: .*{message}"):
        read_structures(tmp_path / "structures.csv")


def test_the_brighter_level_is_the_epidermis():
    result, rows = by_brightness(a={10: 50, 20: 5}, b={200: 5, 90: 50})
    assert result == {"a": {"epidermis": [20], "sleb": [10]}, "b": {"epidermis": [200], "sleb": [90]}} and rows == {}


def test_one_level_is_matched_with_the_other_masks():
    result, rows = by_brightness(a={90: 5, 180: 5}, b={90: 5}, c={180: 5}, d={33: 5}, e={})
    assert [result[name] for name in "bcde"] == [{"sleb": [90]}, {"epidermis": [180]}, {"epidermis": [33]}, {}]
    assert rows == {name: f"level {level} read as {structure}" for name, level, structure in
                    (("b", 90, "sleb"), ("c", 180, "epidermis"), ("d", 33, "epidermis"))}  # fmt: skip


def test_more_than_two_levels():
    result, rows = by_brightness(a={90: 50, 180: 45, 120: 5}, b={90: 50, 180: 44, 120: 6})
    assert result == {"a": {"epidermis": [180], "sleb": [90]}, "b": {}}
    assert rows["a"] == "3 levels, 95% on two: levels 180 and 90 used"
    assert rows["b"] == "3 levels, 94% on two: not used; save it with two levels"


def test_grey_masks_use_the_known_levels_and_keep_overlaps():
    levels = {}
    first = {"epidermis": np.array([[1, 0, 0, 0]], bool), "sleb": np.array([[0, 1, 0, 0]], bool)}
    assert grey_mask(first, levels).tolist() == [[255, 128, 0, 0]]
    second = {"epidermis": np.array([[1, 1, 0, 0]], bool), "tumour": np.array([[0, 1, 1, 0]], bool)}
    assert grey_mask(second, levels).tolist() == [[255, 192, 64, 0]]
    assert levels == {("epidermis",): 255, ("sleb",): 128, ("epidermis", "tumour"): 192, ("tumour",): 64}
    assert grey_mask({"lesion": np.array([[True, False]])}, {}).tolist() == [[255, 0]]
    assert grey_mask({"lesion": np.zeros((1, 2), bool)}, {}).tolist() == [[0, 0]]
