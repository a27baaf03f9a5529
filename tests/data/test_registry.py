import csv
import re

from helpers.settings import ROOT

COLUMNS = ["name", "what", "source", "licence", "how to get it", "use", "sha256"]


def registry():
    with (ROOT / "data" / "registry.csv").open(encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == COLUMNS
    return rows


def test_every_set_says_where_it_is_from():
    rows = registry()
    assert len({row["name"] for row in rows}) == len(rows) >= 5
    for row in rows:
        assert None not in row and all(row[column] for column in COLUMNS[:-1]), row["name"]
        assert re.search(r"https?://\S+$", row["source"]), row["name"]
        assert re.fullmatch("([0-9a-f]{64})?", row["sha256"]), row["name"]


def test_the_sets_of_the_lessons_are_listed():
    sources = " ".join(row["source"] for row in registry())
    for mark in ("5p7fxjt7vs", "s21175846", "6406114", "voc2012", "dib.2019.104863"):
        assert mark in sources


def test_the_hash_that_torchvision_checks():
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    row = next(row for row in registry() if row["name"] == "voc2012")
    assert DATASET_YEAR_DICT["2012"]["md5"] in row["how to get it"]
