"""What the grey levels of masks stand for."""

from __future__ import annotations

from collections import Counter

import numpy as np

from helpers.data.tables import read_table

SKIN = {255: ("epidermis",), 128: ("sleb",), 64: ("tumour",)}
NAMED_LEVELS = {("epidermis",): 255, ("sleb",): 128, ("tumour",): 64, ("lesion",): 255}
OTHER_LEVELS = [192, 96, 224, 160, 32, *(level for level in range(1, 256) if level % 32)]
ADD_TABLE = "add masks/structures.csv with the columns level, structure"


def name_by_table(seen, folder, report):
    """Structures by `structures.csv` in the masks' folder; without it by what the levels look like.

    Without a table, the levels 255, 128 and 64 are epidermis, SLEB and tumour if two of them and no other occur in
    the study; else what is not black is one lesion, from half the brightest level up where a mask has several.

    Parameters
    ----------
    seen : mapping from path to `pictures.Examined`, of all masks
    folder : where structures.csv is looked for
    report : called with a path, a problem and what was done

    Returns
    -------
    mapping from path to {structure: grey levels}, without structures that have no pixel
    """
    foreground = {path: [level for level in what.levels if level] for path, what in seen.items()}
    found = {level for levels in foreground.values() for level in levels}
    table = None
    if (folder / "structures.csv").exists():
        table = read_structures(folder / "structures.csv")
    elif len(found) > 1 and found <= set(SKIN):
        table = SKIN
        named = ", ".join(f"{level} = {SKIN[level][0]}" for level in sorted(found, reverse=True))
        report(folder, "structures without a table", f"read as {named}; if that is wrong, {ADD_TABLE}")
    result = {path: {} for path in seen}
    for path, levels in foreground.items():
        if table is None:
            kept = [level for level in levels if 2 * level >= max(levels)]
            result[path] = {"lesion": kept} if kept else {}
            if len(levels) > 1:
                action = f"{len(levels)} levels read as one lesion, from level {kept[0]} up; else {ADD_TABLE}"
                report(path, "mask of several grey levels", action)
        else:
            for level in levels:
                for structure in table.get(level, ()):
                    result[path].setdefault(structure, []).append(level)
            unknown = [str(level) for level in levels if level not in table]
            if unknown:
                report(path, "unknown mask level", f"not used: {', '.join(unknown)}; {ADD_TABLE}")
    return result


def name_by_brightness(seen, folder, report):
    """Structures of the archive's masks: the brighter level is the epidermis, the darker the SLEB, mask by mask.

    A mask with one level is matched with the levels of the two-level masks; where that says nothing it is taken for
    the epidermis, which every skin has. Of more than two levels the two commonest are used if they make up at least
    95 % of what is not black. Each such mask is reported. Parameters and return value as `name_by_table`.
    """
    foreground = {path: {level: n for level, n in what.levels.items() if level} for path, what in seen.items()}
    pairs = [sorted(levels) for levels in foreground.values() if len(levels) == 2]
    darker, brighter = (Counter(pair[place] for pair in pairs) for place in (0, 1))
    result = {path: {} for path in seen}
    for path, levels in foreground.items():
        common = sorted(sorted(levels, key=levels.get, reverse=True)[:2])
        share = sum(levels[level] for level in common) / max(sum(levels.values()), 1)
        if len(common) == 1:
            structure = "sleb" if darker[common[0]] > brighter[common[0]] else "epidermis"
            result[path] = {structure: common}
            report(path, "mask of one grey level", f"level {common[0]} read as {structure}")
        elif common and share >= 0.95:
            result[path] = {"epidermis": common[1:], "sleb": common[:1]}
        if len(levels) > 2:
            action = f"levels {common[1]} and {common[0]} used" if result[path] else "not used; save it with two levels"
            report(path, "mask of more than two grey levels", f"{len(levels)} levels, {share:.0%} on two: {action}")
    return result


def read_structures(file):
    """{grey level: structures} of a structures.csv; "a+b" stands for pixels that belong to both.

    Raises
    ------
    ValueError
        if a column is missing, a level is not a whole number in 1..255 or stands twice, or a structure has no name
    """
    rows, result = read_table(file, ("level", "structure")), {}
    for row in rows:
        structures = tuple(part.strip() for part in row["structure"].split("+"))
        if row["level"].isdecimal() and 0 < int(row["level"]) < 256 and all(structures):
            result[int(row["level"])] = structures
    if len(result) != len(rows):
        raise ValueError(f"{file}: expected each level from 1 to 255 once, with a structure's name, got {rows}")
    return result


def grey_mask(masks, levels):
    """The masks of one image as (H, W) uint8 grey levels, 0 where there is nothing: undone by `name_by_table`.

    Parameters
    ----------
    masks : mapping from structure to (H, W) bool array
    levels : mapping from a tuple of structures to the grey level of the pixels that belong to just these; new ones
        are added, so that one mapping serves a whole study
    """
    structures = sorted(masks)
    code = np.tensordot(1 << np.arange(len(structures)), np.stack([masks[name] for name in structures]), 1)
    grey = np.zeros(code.shape, np.uint8)
    for value in np.unique(code[code > 0]):
        together = tuple(structure for bit, structure in enumerate(structures) if value >> bit & 1)
        if together not in levels:
            wished = [NAMED_LEVELS.get(together, 192), *OTHER_LEVELS]
            levels[together] = next(level for level in wished if level not in levels.values())
        grey[code == value] = levels[together]
    return grey
