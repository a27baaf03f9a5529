import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from helpers.data.ct_files import open_ct, open_rad_chestct, read_ct, read_extrema, read_labels
from helpers.data.organs import organs_of_labels

LABELS = "img{}_Abnormality_and_Location_Labels.csv"


def chest(shape=(6, 5, 4)):
    volume = np.full(shape, -1000, np.int16)
    volume[1:, 1:, 1:] = 40
    volume[0, 0, 0], volume[0, 0, -1], volume[0, -1, 0], volume[-1, 0, 0] = 100, 200, 300, 400
    return volume


@pytest.fixture
def rad(tmp_path):
    """A folder in the layout of RAD-ChestCT with three training volumes and a validation volume."""
    for name in ("trn00001", "trn00002", "trn00005", "val00001"):
        np.savez_compressed(tmp_path / f"{name}.npz", ct=chest())
    columns = ["nodule*right_upper", "nodule*lung", "calcification*aorta", "nodule*heart"]
    rows = [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(0, "NoteAcc_DEID", ["trn00001", "trn00002", "trn00005"])
    table.to_csv(tmp_path / LABELS.format("train"), index=False)
    table[:1].assign(NoteAcc_DEID="val00001").to_csv(tmp_path / LABELS.format("valid"), index=False)
    return tmp_path


def test_rad_chestct_is_read_lazily(rad):
    volumes = open_rad_chestct(rad)
    assert volumes.names == ("trn00001", "trn00002", "trn00005") and volumes.spacing == 0.8
    assert volumes.abnormalities == ("nodule", "calcification")
    assert volumes.labels.tolist() == [[True, False], [False, True], [False, False]]
    np.testing.assert_array_equal(volumes.volume(1), chest())
    assert organs_of_labels(volumes)[0].tolist() == [[1, 0, 0], [0, 0, 0]]
    assert open_rad_chestct(rad, "valid").names == ("val00001",)
    (rad / "trn00005.npz").write_bytes(b"rubbish")
    open_rad_chestct(rad).volume(0)  # the others stay usable
    with pytest.raises(ValueError, match="trn00005.npz: cut off"):
        open_rad_chestct(rad).volume(2)


def rewrite(**arrays):
    return lambda folder: np.savez_compressed(folder / "trn00001.npz", **arrays)


def cut(folder):
    path = folder / "trn00001.npz"
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (rewrite(volume=chest()), "no key 'ct', only .'volume'"),
        (rewrite(ct=chest().astype(np.float32)), "expected int16 .* got float32"),
        (rewrite(ct=chest()[0]), "expected int16 .slices, rows, columns., got int16 .5, 4"),
        (rewrite(ct=np.maximum(chest() + 1000, 0).astype(np.int16) - 40), "expected them clipped|lowest value is -40"),
        (rewrite(ct=(chest() + 1000).clip(0, 1000).astype(np.int16)), "the lowest value is 0, .* 1024 was added"),
        (rewrite(ct=chest() - 24), "expected them clipped to"),
        (cut, "cut off or no .npz file"),
    ],
)
def test_a_broken_volume_is_named(rad, break_it, words):
    break_it(rad)
    with pytest.raises(ValueError, match=f"trn00001.npz: .*({words})"):
        open_rad_chestct(rad).volume(0)


def test_labels_without_volume_and_the_reverse(rad):
    np.savez_compressed(rad / "trn00007.npz", ct=chest())
    with pytest.raises(ValueError, match="trn00007.npz: no labels for it in imgtrain"):
        open_rad_chestct(rad)
    (rad / "trn00002.npz").unlink()
    with pytest.raises(ValueError, match="imgtrain_.*csv: labels of 'trn00002', but no such volume .1 of 3."):
        open_rad_chestct(rad)
    assert open_rad_chestct(rad, incomplete=True).names == ("trn00001", "trn00005")
    with pytest.raises(FileNotFoundError, match="imgtest_.*6406114"):
        open_rad_chestct(rad, "test")
    with pytest.raises(ValueError, match="part: expected one of"):
        open_rad_chestct(rad, "trn")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no readable CSV"),
        ("id,nodule*lung\na,1\n", "no column 'name'; the first are .'id'"),
        ("name,nodule\na,1\n", "named abnormality.location, got .'nodule'"),
        ("name,a*b*c\na,1\n", "got .'a.b.c'"),
        ("name,nodule*lung\na,2\n", "column 'nodule.lung' holds other values"),
        ("name,nodule*lung\na,\n", "holds other values"),
        ("name,nodule*lung\na,1\na,0\n", "names are missing or stand twice"),
        ("name,nodule*lung\n", "no rows"),
    ],
)
def test_a_broken_label_file_is_named(tmp_path, text, words):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"labels.csv: .*{words}"):
        read_labels(path, "name")


def test_labels_of_another_split_are_refused(rad):
    (rad / LABELS.format("valid")).rename(rad / LABELS.format("test"))
    with pytest.raises(ValueError, match="'val00001' does not begin with 'tst'"):
        open_rad_chestct(rad, "test", incomplete=True)


def test_extrema(tmp_path):
    path = tmp_path / "Extrema_5747.csv"
    head = "VolumeAcc_DEID,sup_axis0min,inf_axis0max,ant_axis1min,pos_axis1max,rig_axis2min,lef_axis2max"
    path.write_text(f"{head}\ntrn00001.npz,30,400,80,330,50,390\ntrn00002.npz,inf,400,80,330,50,390\n")
    table = read_extrema(path)
    assert table.loc["trn00001"].to_dict() == dict(top=30, bottom=400, front=80, back=330, right=50, left=390)
    assert np.isnan(table.loc["trn00002", "top"])
    path.write_text(head.replace("sup_", "top_") + "\n")
    with pytest.raises(ValueError, match="Extrema_5747.csv: no column 'sup_axis0min'"):
        read_extrema(path)


def nifti(path, codes="RAS", edges=(1.0, 1.0, 1.0), volume=None, oriented=True):
    """Write a volume, given in the axes of this collection, in the orientation asked for."""
    ras = (chest() if volume is None else volume)[::-1, ::-1, ::-1].transpose(2, 1, 0)
    image = nibabel.Nifti1Image(ras, np.diag([*edges, 1.0]))
    wanted = nibabel.orientations.axcodes2ornt(codes)
    image = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted))
    nibabel.save(image if oriented else nibabel.Nifti1Image(np.asarray(image.dataobj), None), path)
    return path


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LPI", "PIR", "SAL"])
def test_nifti_of_any_orientation_is_turned(tmp_path, codes):
    volume, edges = read_ct(nifti(tmp_path / "a.nii.gz", codes, (1, 2, 3)))
    np.testing.assert_array_equal(volume, chest())
    assert edges == (3, 2, 1) and volume.dtype == np.int16


def test_resampling_keeps_the_place(tmp_path):
    volume = np.full((10, 12, 14), -1000, np.int16)
    volume[:, 6:, :] = 0
    made, edges = read_ct(nifti(tmp_path / "a.nii", edges=(2, 2, 4), volume=volume), spacing=2)
    assert made.shape == (20, 12, 14) and edges == (2, 2, 2)
    np.testing.assert_array_equal(made[3], volume[3])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_bytes(nifti(path).read_bytes()[:-60]), "cut off or no NIfTI"),
        (lambda path: path.write_bytes(b"no nifti"), "cut off or no NIfTI"),
        (lambda path: nifti(path, oriented=False), "does not say how it is oriented"),
        (lambda path: nifti(path, volume=chest() + 1024), "the lowest value is 24"),
        (lambda path: nibabel.save(nibabel.Nifti1Image(chest()[None], np.eye(4)), path), "expected three dimensions"),
        (lambda path: nifti(path, volume=np.full((3, 3, 3), -1000, np.int16)), "the highest value is -1000"),
    ],
)
def test_a_broken_nifti_file_is_named(tmp_path, write, words):
    write(tmp_path / "mine.nii.gz")
    with pytest.raises(ValueError, match=f"mine.nii.gz: .*{words}"):
        read_ct(tmp_path / "mine.nii.gz")


def test_an_oblique_volume_is_refused(tmp_path):
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]
    nibabel.save(nibabel.Nifti1Image(chest(), turn), tmp_path / "oblique.nii.gz")
    with pytest.raises(ValueError, match="oblique.nii.gz: .*more than 10 degrees"):
        read_ct(tmp_path / "oblique.nii.gz")


def dicom(folder, heights=None, without=()):
    """An axial series with its slices in mixed order; stored with slope 2 and intercept -1024."""
    folder.mkdir(exist_ok=True)
    volume = chest()
    for i, height in enumerate(np.arange(0, -15, -2.5) if heights is None else heights):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{i + 1}"
        one = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID, one.SeriesInstanceUID = CTImageStorage, f"1.2.3.{i + 1}", "1.2.9"
        one.Rows, one.Columns, one.PixelSpacing = 5, 4, [0.7, 0.7]
        one.ImagePositionPatient, one.ImageOrientationPatient = [0, 0, float(height)], [1, 0, 0, 0, 1, 0]
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation, one.SamplesPerPixel = 15, 0, 1
        one.PhotometricInterpretation, one.RescaleSlope, one.RescaleIntercept = "MONOCHROME2", 2, -1024
        one.PixelData = ((volume[i].astype(int) + 1024) // 2).astype(np.uint16).tobytes()
        for name in without:
            delattr(one, name)
        one.save_as(folder / f"{(i * 7) % 10}.dcm", enforce_file_format=True)
    return folder


def test_a_dicom_series_is_sorted_scaled_and_measured(tmp_path):
    volume, edges = read_ct(dicom(tmp_path / "series"))
    np.testing.assert_array_equal(volume, chest())
    assert edges == (2.5, 0.7, 0.7)
    made, edges = read_ct(tmp_path / "series", spacing=1.25)
    assert made.shape == (12, 3, 2) and edges == (1.25,) * 3
    single, _ = read_ct(next((tmp_path / "series").glob("7.dcm")))
    np.testing.assert_array_equal(single[0], chest()[1])


def test_a_broken_dicom_series_is_named(tmp_path):
    with pytest.raises(ValueError, match="a: a slice is missing: 7.dcm and 4.dcm are 5 mm apart, others 2.5 mm"):
        read_ct(dicom(tmp_path / "a", [0, -2.5, -7.5, -10, -12.5, -15]))
    with pytest.raises(ValueError, match="b: a slice stands twice"):
        read_ct(dicom(tmp_path / "b", [0, -2.5, -2.5, -5, -7.5, -10]))
    with pytest.raises(ValueError, match="c: no .dcm file"):
        (tmp_path / "c").mkdir()
        read_ct(tmp_path / "c")
    path = dicom(tmp_path / "d") / "4.dcm"
    one = pydicom.dcmread(path)
    one.SeriesInstanceUID = "1.2.10"
    one.save_as(path)
    with pytest.raises(ValueError, match="4.dcm: another series, size or pixel spacing than 0.dcm"):
        read_ct(tmp_path / "d")
    one.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    one.save_as(path)
    with pytest.raises(ValueError, match="4.dcm: not an axial slice"):
        read_ct(tmp_path / "d")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="4.dcm: cut off"):
        read_ct(tmp_path / "d")
    path.write_bytes(b"no dicom")
    with pytest.raises(ValueError, match="4.dcm: cut off, no DICOM image"):
        read_ct(tmp_path / "d")
    with pytest.raises(ValueError, match="0.dcm: .*without what HU"):
        read_ct(dicom(tmp_path / "e", without=["RescaleIntercept"]))
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_ct(tmp_path / "nothing")


def test_own_ct_of_both_kinds(tmp_path):
    nifti(tmp_path / "one.nii.gz", "LPI", (0.7, 0.7, 2.5))
    dicom(tmp_path / "two")
    with pytest.raises(FileNotFoundError, match="labels.csv: not there"):
        open_ct(tmp_path)
    (tmp_path / "labels.csv").write_text("name,effusion*left_lung,nodule*heart\none,1,0\ntwo,0,1\n")
    volumes = open_ct(tmp_path, spacing=2.5)
    assert volumes.names == ("one", "two") and volumes.labels.tolist() == [[True, False], [False, True]]
    np.testing.assert_array_equal(volumes.volume(0), volumes.volume(1))
    nifti(tmp_path / "three.nii")
    with pytest.raises(ValueError, match="three.nii: no labels for it in labels.csv"):
        open_ct(tmp_path)
    assert open_ct(tmp_path, incomplete=True).names == ("one", "two")
