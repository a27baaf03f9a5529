"""Small tables beside the pictures, and the groups that they or the names give."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np

EXAMINATION = re.compile(r"(\d{4}-\d{2}-\d{2}_\d+)_\d+$")
GROUP_COLUMNS = ("group", "patient", "examination")


def read_table(file, columns):
    """Rows of a CSV file as mappings from column to text; separators and marks as spreadsheets write them.

    Raises
    ------
    ValueError
        if it is not UTF-8, lacks one of the columns, or has a row longer than the first
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines() or [""]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error.reason}); save it again as CSV, UTF-8") from error
    reader = csv.reader(lines, delimiter=max(",;\t", key=lines[0].count))
    header, *rows = [[value.strip() for value in row] for row in reader]
    header = [name.lower() for name in header]
    for name in columns:
        if name not in header:
            raise ValueError(f"{file}: no column {name!r} in its first line, got {', '.join(header) or 'nothing'}")
    for row in rows:
        if any(row[len(header) :]):
            raise ValueError(f"{file}: more values than columns in {row}; put a value with a separator in quotes")
    return [dict(zip(header, row + [""] * len(header), strict=False)) for row in rows if any(row)]


def find_groups(names, file, report):
    """Patient or examination of every image: from `study.csv`, else from names as 2018-10-15_11_1 (date, exam, image).

    Parameters
    ----------
    names : stems of the images
    file : path of study.csv with the columns name and group (or patient, or examination); need not exist
    report : called with a path, a problem and what was done

    Returns
    -------
    (N,) array of str; an image without a group forms its own; None where no image has one

    Raises
    ------
    ValueError
        if study.csv cannot be read, or lists an image twice
    """
    groups = {name: match[1] for name in names if (match := EXAMINATION.match(name))}
    if file.exists():
        listed = []
        for row in read_table(file, ("name",)):
            group = next((row[column] for column in GROUP_COLUMNS if row.get(column)), None)
            if group:
                listed.append((row["name"] if row["name"] in names else Path(row["name"]).stem, group))
        doubles = [name for name, count in Counter(name for name, _ in listed).items() if count > 1]
        if doubles:
            raise ValueError(f"{file}: names that stand twice: {_some(doubles)}; leave one row for each")
        strange = [name for name, _ in listed if name not in names]
        if strange:
            report(file, "names without image", f"{len(strange)} rows not used: {_some(strange)}")
        groups |= dict(listed)
    alone = [name for name in names if name not in groups]
    if len(alone) == len(names):
        action = "pictures of one patient may fall on both sides of a fold; add study.csv with the columns name, group"
        report(file, "no patient or examination known", action)
        return None
    if alone:
        action = f"{len(alone)} form a group each ({_some(alone)}); add them to study.csv"
        report(file, "images without a group", action)
    return np.array([groups.get(name, name) for name in names])


def _some(names):
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
