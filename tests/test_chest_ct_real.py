"""Chest CT that nobody here made: read, segmented and compared with published masks and counts; skipped without it."""

import numpy as np
import pytest

from helpers.data.chest_ct import ORGANS, PAPER_SHAPE, prepare
from helpers.data.ct_files import read_ct, read_nifti
from helpers.data.organs import dice, fallback_grid, organ_grid, segment, segment_lungs

LUNG_LABELS = {"left_lung": (10, 11), "right_lung": (12, 13, 14)}  # lobes, upper to lower
PUBLISHED = {"right_lung": 32376, "left_lung": 18268}


@pytest.fixture(scope="module")
def chest(real_data):
    folder = real_data / "chest_ct"
    if not folder.is_dir():
        pytest.skip("no chest_ct in the real data")
    return folder


def say(capsys, *words):
    with capsys.disabled():
        print("\n" + " ".join(map(str, words)))


def test_lung_pixels_of_an_axial_slice(chest, capsys):
    volume, spacing = read_ct(chest / "axial_slice.dcm")
    assert volume.shape == (1, 512, 512) and spacing == (1.0, 0.625, 0.625)
    found = segment(volume, spacing, smallest=1000)
    assert not found.failed
    for organ, published in PUBLISHED.items():
        counted = int(found.masks[organ].sum())
        say(capsys, f"{organ}: {counted} pixels, published {published}, ratio {counted / published:.3f}")
        assert 0.85 < counted / published < 1.1


def test_the_heart_in_a_volume_cropped_to_the_mediastinum(chest, capsys):
    volume, spacing = read_ct(chest / "heart_ct.nii.gz")
    heart = read_nifti(chest / "heart_mask_on_heart_ct.nii.gz")[0] > 0
    assert volume.shape == heart.shape and np.allclose(spacing, 1.5)
    recipe = segment(volume, spacing)
    assert recipe.failed  # the lungs touch the border of every slice: the fixed columns must do
    grid = (16, 6, 6)
    small = organ_grid({"heart": heart} | dict.fromkeys(ORGANS[:2], heart), heart.shape, grid)[2]
    columns = fallback_grid(grid)[2]
    kept = segment(volume, spacing, smallest=50_000, at_border=True)
    held = (columns & small).sum() / small.sum()
    say(capsys, f"heart: recipe failed ({recipe.failed}); fixed columns: {held:.3f} of its cells in them, "
        f"Dice {dice(columns, small):.3f}")  # fmt: skip
    held = (kept.masks["heart"] & heart).sum() / heart.sum()
    say(capsys, f"heart, air at the border kept: failed {kept.failed or 'no'}, {held:.3f} of the heart inside, "
        f"Dice {dice(kept.masks['heart'], heart):.3f}")  # fmt: skip
    assert held > 0.9 and (columns & small).sum() > 0.6 * small.sum()
    assert volume[heart].mean() > 0


def test_lung_bases_against_their_labels(chest, capsys):
    volume, spacing = read_ct(chest / "example_ct_sm.nii.gz")
    labels, _ = read_nifti(chest / "example_ct_sm_seg.nii.gz")
    recipe = segment(volume, spacing)
    found = segment(volume, spacing, smallest=20_000)
    say(capsys, f"lung bases: paper's smallest volume: failed {recipe.failed or 'no'}; 20 ml: {found.failed or 'no'}")
    truth = {organ: np.isin(labels, values) for organ, values in LUNG_LABELS.items()}
    both = truth["left_lung"] | truth["right_lung"]
    lungs = segment_lungs(volume, spacing, smallest=20_000)
    upper = both.sum((1, 2)) > 250  # further down the recipe takes gas of the bowel for lung
    share = (lungs & both).sum() / both.sum()
    say(capsys, f"lung bases: {share:.3f} of the lungs found, Dice {dice(lungs, both):.3f}; "
        f"in the {upper.sum()} slices with most lung {dice(lungs[upper], both[upper]):.3f}")  # fmt: skip
    for organ, mask in truth.items():
        say(capsys, f"lung bases, {organ}: Dice {dice(found.masks[organ], mask):.3f}, {mask.sum()} labelled voxels")
    centre = {organ: np.nonzero(mask)[2].mean() for organ, mask in truth.items()}
    assert centre["right_lung"] < centre["left_lung"]  # axes run from right to left
    assert (lungs & both).sum() > 0.85 * both.sum() and dice(lungs[upper], both[upper]) > 0.85


def test_a_real_volume_is_prepared_at_full_size(chest):
    volume, _ = read_ct(chest / "heart_ct.nii.gz", spacing=0.8)
    made = prepare(volume, PAPER_SHAPE)
    assert made.shape == (135, 3, 420, 420) and made.min() == 0 and made.max() == 1
