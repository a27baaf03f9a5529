import pickle

import numpy as np
import pytest

from helpers.data.chest_ct import (
    FINDINGS,
    ORGANS,
    QUICK_SHAPE,
    Change,
    Phantom,
    draw,
    draw_change,
    fit_shape,
    phantom_volumes,
    prepare,
    store_volumes,
)


@pytest.fixture(scope="module")
def volumes():
    return phantom_volumes(30, seed=5)


def phantom(*present, confounders=(), number=0):
    return draw(Phantom(1, number, frozenset(present), frozenset(confounders)))


def test_preparation_of_the_paper_by_hand():
    volume = np.full((4, 2, 3), -900, np.int16)
    volume[0, 0, 0], volume[3, 1, 2] = -2000, 3000
    made = prepare(volume, (6, 4, 2))
    assert made.shape == (2, 3, 4, 2) and made.dtype == np.float32
    flat = made.reshape(6, 4, 2)
    assert (flat[[0, 5]] == 0).all() and (flat[:, [0, 3]] == 0).all()  # padded with the minimum, which is clipped
    assert flat[4, 2, 1] == pytest.approx(100 / 1800)  # of three columns the first two stay: (3 - 2) // 2 = 0
    assert flat[1, 1, 0] == 0  # -2000 HU
    assert prepare(np.full((3, 2, 2), 900), (3, 2, 2)).min() == 1
    groups = prepare(np.arange(6)[:, None, None] * np.ones((6, 2, 2)) * 100, (6, 2, 2))
    np.testing.assert_allclose(groups[1, :, 0, 0], (1000 + np.array([300, 400, 500])) / 1800, rtol=1e-6)


def test_fitting_a_shape_is_centred_and_undone_by_the_reverse():
    volume = np.arange(5 * 7 * 3).reshape(5, 7, 3)
    padded = fit_shape(volume, (8, 10, 4), -1)
    assert padded.shape == (8, 10, 4) and (padded == -1).sum() == 8 * 10 * 4 - volume.size
    np.testing.assert_array_equal(fit_shape(padded, (5, 7, 3))[1:, 1:, 1:], volume[1:, 1:, 1:])
    assert fit_shape(volume, (5, 7, 3)) is not None and (fit_shape(volume, (5, 7, 3)) == volume).all()


def test_a_change_moves_the_region_with_the_volume():
    volume = np.zeros((6, 4, 4))
    volume[0:3, 1, 3] = 1000  # the first group of slices, in the right half of the picture
    region = np.zeros((2, 2, 2), bool)  # cells of 3 x 2 x 2 voxels
    region[0, 0, 1] = True
    seen = set()
    for axis in (None, -3, -2, -1):
        for turns in range(4):
            change = Change(axis, turns)
            made = prepare(volume, (6, 4, 4), change).reshape(2, 3, 2, 2, 2, 2).max((1, 3, 5)) > 0.6
            np.testing.assert_array_equal(made, change(region))
            seen.add(change(region).tobytes())
    assert len(seen) == 8


def test_changes_are_drawn_as_in_the_paper():
    drawn = [draw_change(np.random.default_rng(i)) for i in range(2000)]
    flipped = [change.axis for change in drawn if change.axis is not None]
    turned = [change.turns for change in drawn if change.turns]
    for part, kinds in ((flipped, (-3, -2, -1)), (turned, (1, 2, 3))):
        assert 0.46 < len(part) / 2000 < 0.54
        assert set(part) == set(kinds) and all(0.27 < part.count(kind) / len(part) < 0.40 for kind in kinds)


def test_labels_are_any_location(volumes):
    assert volumes.abnormalities == tuple(FINDINGS) and volumes.labels.shape == (30, 7)
    nodule = volumes.locations["nodule"]
    np.testing.assert_array_equal(volumes.labels[:, 0], nodule["right_lung"] | nodule["left_lung"])
    assert (nodule["right_lung"] & ~nodule["left_lung"]).any() and (~nodule["right_lung"] & nodule["left_lung"]).any()


def test_a_volume_hangs_on_seed_and_number_only(volumes):
    more = phantom_volumes(40, seed=5)
    np.testing.assert_array_equal(more.volume(3), volumes.volume(3))
    part = volumes.subset([3, 7])
    np.testing.assert_array_equal(part.volume(0), volumes.volume(3))
    assert part.names == (volumes.names[3], volumes.names[7]) and (part.labels == volumes.labels[[3, 7]]).all()
    assert not np.array_equal(phantom_volumes(4, seed=6).volume(3), volumes.volume(3))
    assert len({volumes.fingerprint, more.fingerprint, part.fingerprint, volumes.only("nodule").fingerprint}) == 4
    assert pickle.loads(pickle.dumps(volumes)).volume(1).shape == volumes.volume(1).shape


def test_volumes_look_like_ct(volumes):
    volume, organs = volumes.volume(0), volumes.organs(0)
    assert volume.dtype == np.int16 and volume.min() == -1000 and set(organs) == set(ORGANS)
    assert not (organs["right_lung"] & organs["left_lung"]).any() and not (organs["right_lung"] & organs["heart"]).any()
    columns = np.arange(volume.shape[2])
    middle = {name: np.average(columns, weights=mask.sum((0, 1))) for name, mask in organs.items()}
    assert middle["right_lung"] < middle["heart"] < middle["left_lung"]
    litres = (organs["right_lung"].sum() + organs["left_lung"].sum()) * 64e-6
    assert 2.5 < litres < 6.5


@pytest.mark.parametrize("label", FINDINGS)
def test_a_finding_changes_its_organ_and_nothing_else(label):
    places = FINDINGS[label][0]
    for place in places:
        plain, organs = phantom()
        found, own = phantom((label, place))
        where = plain != found
        assert where.sum() > 40
        allowed = "heart" if place in ("heart", "mediastinum") else place
        inside = own[allowed] | organs[allowed]
        assert (where & inside).sum() > (0.99 if place in organs else 0.8) * where.sum()


@pytest.mark.parametrize("label", FINDINGS)
def test_a_confounder_lies_outside_of_all_organs(label):
    plain, organs = phantom()
    marked, _ = phantom(confounders=(label,))
    where = fit_shape(plain != marked, QUICK_SHAPE, False)
    assert where.sum() > 30
    for mask in organs.values():
        assert not (where & fit_shape(mask, QUICK_SHAPE, False)).any()


@pytest.mark.parametrize("c", [0.0, 0.6, 1.0])
def test_confounders_go_with_their_label_as_asked_and_labels_stay(c):
    volumes = phantom_volumes(800, seed=2, confounded=c)
    things = np.array([[label in item.confounders for label in FINDINGS] for item in volumes.items])
    assert (things == volumes.labels).mean() == pytest.approx((1 + c) / 2, abs=0.02)
    clean = phantom_volumes(800, seed=2, confounded=None)
    assert not any(item.confounders for item in clean.items)
    np.testing.assert_array_equal(clean.labels, volumes.labels)


def test_stored_volumes_are_the_same(volumes, tmp_path):
    part = volumes.subset([0, 4])
    kept = store_volumes(part, tmp_path)
    assert kept.fingerprint == part.fingerprint and len(list(tmp_path.rglob("*.npy"))) == 2
    for i in range(2):
        np.testing.assert_array_equal(kept.volume(i), part.volume(i))
        np.testing.assert_array_equal(kept.organs(i)["heart"], part.organs(i)["heart"])
    np.save(next(tmp_path.rglob("phantom_0004.npy")), np.zeros((2, 2, 2)))
    assert store_volumes(part, tmp_path).volume(1).shape == (2, 2, 2)  # read, not drawn again


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda v: phantom_volumes(0), "expected n from 1 up"),
        (lambda v: phantom_volumes(confounded=1.2), "confounded None or in"),
        (lambda v: prepare(np.zeros((4, 4)), (3, 4, 4)), "expected .D, H, W."),
        (lambda v: prepare(np.zeros((4, 4, 4)), (4, 4, 4)), "a multiple of 3"),
        (lambda v: v.only("nodul"), "did you mean 'nodule'"),
        (lambda v: v.__class__("x", v.names, v.locations[:3], v.items, v.read, 4.0, ""), "table of 3 rows"),
    ],
)
def test_bad_arguments_are_named(volumes, call, words):
    with pytest.raises(ValueError, match=words):
        call(volumes)
