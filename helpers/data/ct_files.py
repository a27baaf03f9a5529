"""CT volumes from files: RAD-ChestCT as it is published, NIfTI files, DICOM series; oriented and with HU checked."""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import nibabel
import numpy as np
import pandas as pd
import pydicom
from nibabel.filebasedimages import ImageFileError
from pydicom.errors import InvalidDicomError
from scipy.ndimage import zoom

from helpers.data.chest_ct import PAPER_SPACING, Volumes
from helpers.store import fingerprint

PARTS = {"train": ("imgtrain", "trn"), "valid": ("imgvalid", "val"), "test": ("imgtest", "tst")}
LABEL_FILE = "{}_Abnormality_and_Location_Labels.csv"
EXTREMA = {"sup_axis0min": "top", "inf_axis0max": "bottom", "ant_axis1min": "front", "pos_axis1max": "back",
           "rig_axis2min": "right", "lef_axis2max": "left"}  # fmt: skip
NIFTI = (".nii", ".nii.gz")
UNREADABLE = (OSError, EOFError, ValueError, KeyError, AttributeError, zlib.error, BadZipFile, ImageFileError,
              InvalidDicomError, NotImplementedError)  # fmt: skip


def check_hu(volume, path) -> np.ndarray:
    """The volume as int16 HU, air not below -1024.

    Raises
    ------
    ValueError
        that names the file, if the numbers cannot be HU of a chest: no air, or values beyond 12 bits of range
    """
    low, high = float(np.min(volume)), float(np.max(volume))
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{path}: holds values that are not finite")
    if low > -500:
        raise ValueError(f"{path}: the lowest value is {low:g}, but a chest holds air of about -1000 HU; if 1000 or "
                         "1024 was added, subtract it; if values were scaled, use the original")  # fmt: skip
    if high > 32000 or high < 0:
        raise ValueError(f"{path}: the highest value is {high:g}, expected tissue and bone, up to 3071 HU, and metal")
    return np.clip(np.round(volume), -1024, 32000).astype(np.int16)


def read_labels(path, id_column: str) -> pd.DataFrame:
    """Table of labels: index the volumes, columns (abnormality, location), bool.

    Parameters
    ----------
    path : CSV with `id_column` and columns named `abnormality*location` of 0 and 1

    Raises
    ------
    ValueError
        that names the file and the column, if the table is anything else
    """
    try:
        table = pd.read_csv(path, dtype={id_column: str})
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no readable CSV: {error}") from error
    if id_column not in table:
        raise ValueError(f"{path}: no column {id_column!r}; the first are {list(table.columns[:3])}")
    table = table.set_index(id_column)
    wrong = [name for name in table.columns if name.count("*") != 1 or not all(name.split("*"))]
    if wrong or table.empty:
        raise ValueError(f"{path}: expected rows and columns named abnormality*location, got {wrong[:3] or 'no rows'}")
    if table.index.hasnans or table.index.has_duplicates:
        raise ValueError(f"{path}: every volume needs one row with its name, but names are missing or stand twice")
    bad = [name for name in table.columns if not table[name].isin((0, 1)).all()]
    if bad:
        raise ValueError(f"{path}: column {bad[0]!r} holds other values than 0 and 1")
    table.columns = pd.MultiIndex.from_tuples([name.split("*") for name in table], names=["abnormality", "location"])
    return table.astype(bool)


def _matched(table, files, path, incomplete, prefix=""):
    """Names with labels and volume, or an error about the first name without one of them."""
    strange = [name for name in table.index if not name.startswith(prefix)]
    if strange:
        raise ValueError(f"{path}: {strange[0]!r} does not begin with {prefix!r}, so it belongs to another split")
    both = [name for name in table.index if name in files]
    if not incomplete:
        lost = [name for name in table.index if name not in files]
        if lost:
            raise ValueError(f"{path}: labels of {lost[0]!r}, but no such volume ({len(lost)} of {len(table)}); "
                             "incomplete=True takes what is there")  # fmt: skip
        extra = sorted(set(files) - set(table.index))
        if extra:
            raise ValueError(f"{files[extra[0]]}: no labels for it in {path.name} ({len(extra)} volumes); "
                             "incomplete=True leaves them out")  # fmt: skip
    if not both:
        raise ValueError(f"{path}: not one of its volumes is there")
    return both


def read_rad_chestct(path) -> np.ndarray:
    """(D, H, W) int16 HU of a RAD-ChestCT `.npz`: key `ct`, clipped to [-1000, 1000]; axes as in `Volumes`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = list(file)
            volume = file["ct"] if "ct" in keys else None
    except UNREADABLE as error:
        raise ValueError(f"{path}: cut off or no .npz file: {error}") from error
    if volume is None:
        raise ValueError(f"{path}: no key 'ct', only {keys}")
    if volume.dtype != np.int16 or volume.ndim != 3:
        raise ValueError(f"{path}: expected int16 (slices, rows, columns), got {volume.dtype} {volume.shape}")
    if volume.max() > 1000 or volume.min() < -1000:
        raise ValueError(f"{path}: values {volume.min()} to {volume.max()} HU, expected them clipped to [-1000, 1000]")
    return check_hu(volume, path)


def open_rad_chestct(folder, part: str = "train", incomplete: bool = False) -> Volumes:
    """A split of RAD-ChestCT, read lazily: one volume in memory.

    Parameters
    ----------
    folder : holds `<id>.npz` and `img{train,valid,test}_Abnormality_and_Location_Labels.csv`, perhaps in subfolders
    part : "train", "valid" or "test"; ids begin with trn, val or tst
    incomplete : use the volumes that have labels and are there; False: anything missing is an error

    References
    ----------
    .. [1] RAD-ChestCT, Zenodo, record 6406114.
    """
    if part not in PARTS:
        raise ValueError(f"part: expected one of {list(PARTS)}, got {part!r}")
    folder, (stem, prefix) = Path(folder).expanduser(), PARTS[part]
    tables = sorted(folder.rglob(LABEL_FILE.format(stem)))
    if not tables:
        raise FileNotFoundError(f"{folder}: no {LABEL_FILE.format(stem)}; ask for access at Zenodo, record 6406114")
    table = read_labels(tables[0], "NoteAcc_DEID")
    files = {file.stem: file for file in folder.rglob(f"{prefix}*.npz")}
    names = _matched(table, files, tables[0], incomplete, prefix)
    made = fingerprint(tables[0], names, [files[name].stat().st_size for name in names])
    return Volumes(f"RAD-ChestCT, {part}", tuple(names), table.loc[names], [files[name] for name in names],
                   read_rad_chestct, PAPER_SPACING, made)  # fmt: skip


def read_extrema(path) -> pd.DataFrame:
    """Bounding boxes of the lungs in RAD-ChestCT: index the volumes, columns top, bottom, front, back, right, left."""
    table = pd.read_csv(path, index_col=0)
    missing = [name for name in EXTREMA if name not in table]
    if missing:
        raise ValueError(f"{path}: no column {missing[0]!r}")
    table = table[list(EXTREMA)].rename(columns=EXTREMA)
    table.index = table.index.astype(str).str.removesuffix(".npz")
    return table.replace([np.inf, -np.inf], np.nan)


def read_nifti(path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """(D, H, W) array in the axes of `Volumes`, and the edges of a voxel in mm, of a NIfTI file of any orientation."""
    try:
        image = nibabel.load(path)
        values = np.asanyarray(image.dataobj)
    except UNREADABLE as error:
        raise ValueError(f"{path}: cut off or no NIfTI file: {error}") from error
    if values.ndim != 3:
        raise ValueError(f"{path}: expected three dimensions, got {values.shape}")
    if not (image.header["qform_code"] or image.header["sform_code"]):
        raise ValueError(f"{path}: the header does not say how it is oriented: qform_code and sform_code are 0")
    if np.degrees(nibabel.affines.obliquity(image.affine).max()) > 10:
        raise ValueError(f"{path}: its axes are more than 10 degrees off those of the body; resample it first")
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, image.affine))  # right, anterior, superior
    edges = canonical.header.get_zooms()[::-1]
    return np.asarray(canonical.dataobj).transpose(2, 1, 0)[::-1, ::-1, ::-1], tuple(float(edge) for edge in edges)


def read_dicom(path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """HU and edges of a voxel of an axial series: a folder of `.dcm` files, or one file.

    Raises
    ------
    ValueError
        that names the file, if one is unreadable, of another series or orientation, or does not say how to get HU; or
        if a slice is missing, stands twice, or slices are unevenly spaced
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix.lower() == ".dcm")
    if not files:
        raise ValueError(f"{path}: no .dcm file in it")
    slices = []
    for file in files:
        try:
            one = pydicom.dcmread(file)
            height = float(one.ImagePositionPatient[2])
            tilt = np.abs(np.subtract(one.ImageOrientationPatient, (1, 0, 0, 0, 1, 0))).max()
            about = (one.SeriesInstanceUID, one.Rows, one.Columns, *map(float, one.PixelSpacing))
            scale = float(one.RescaleSlope), float(one.RescaleIntercept)
            pixels = one.pixel_array
        except UNREADABLE as error:
            raise ValueError(f"{file}: cut off, no DICOM image, or without what HU and place need: {error}") from error
        if tilt > 0.02:
            orientation = [float(value) for value in one.ImageOrientationPatient]
            raise ValueError(f"{file}: not an axial slice of a patient on the back: orientation {orientation}")
        slices.append((height, file, about, pixels * scale[0] + scale[1]))
    for _, file, about, _ in slices:
        if about != slices[0][2]:
            raise ValueError(f"{file}: another series, size or pixel spacing than {slices[0][1].name}")
    slices.sort(key=lambda one: -one[0])
    steps = -np.diff([height for height, *_ in slices])
    step = float(np.median(steps)) if len(steps) else float(one.get("SliceThickness") or 1)
    wrong = np.flatnonzero(np.abs(steps - step) > max(0.01, 0.02 * step))
    if len(wrong):
        above, below = slices[wrong[0]], slices[wrong[0] + 1]
        kind = "a slice stands twice" if steps[wrong[0]] < 0.01 else "a slice is missing"
        raise ValueError(f"{path}: {kind}: {above[1].name} and {below[1].name} are {steps[wrong[0]]:g} mm apart, "
                         f"others {step:g} mm")  # fmt: skip
    return np.stack([pixels for *_, pixels in slices]), (step, *slices[0][2][3:])


def read_ct(path, spacing: float | None = None) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Volume in HU, int16 (D, H, W), and its spacing in mm, of a NIfTI file, a DICOM file or a folder of them.

    Parameters
    ----------
    spacing : resampled linearly to this edge of a voxel in mm; None keeps that of the file
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    volume, edges = (read_nifti if path.name.endswith(NIFTI) else read_dicom)(path)
    volume = check_hu(volume, path)
    if spacing is None or np.allclose(edges, spacing, rtol=1e-3):
        return volume, edges
    return zoom(volume, np.divide(edges, spacing), order=1, mode="nearest", grid_mode=True), (float(spacing),) * 3


def _volume(path, spacing):
    return read_ct(path, spacing)[0]


def open_ct(folder, spacing: float = PAPER_SPACING, incomplete: bool = False) -> Volumes:
    """Own CT: `labels.csv` (column `name`, then `abnormality*location`) beside `<name>.nii.gz` or folders `<name>/`.

    Parameters
    ----------
    spacing : in mm, to which volumes are resampled when they are read
    incomplete : as in `open_rad_chestct`
    """
    folder = Path(folder).expanduser()
    path = folder / "labels.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; it needs the column name and columns abnormality*location")
    table, files = read_labels(path, "name"), {}
    for item in sorted(folder.iterdir()):
        if item.is_dir() or item.name.endswith(NIFTI):
            files[item.name.removesuffix(".gz").removesuffix(".nii")] = item
    names = _matched(table, files, path, incomplete)
    made = fingerprint(path, names, spacing, [files[name].stat().st_size for name in names])
    return Volumes(folder.name, tuple(names), table.loc[names], [files[name] for name in names],
                   partial(_volume, spacing=spacing), spacing, made)  # fmt: skip
