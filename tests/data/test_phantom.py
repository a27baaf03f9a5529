"""Phantoms: made from a seed, alike in everything but the sign of their class, and fast enough to make on the way."""

import pickle
import time

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion
from scipy.stats import ks_2samp

from helpers.data.phantom import CLASSES, EXAMINATION, SCANNERS, SKIN, phantoms, render, ruler

DIAGNOSES = CLASSES["diagnosis"]


def brightness(phantom):
    return phantom.picture.mean(axis=2)


def thickness(phantom):
    return phantom.masks["epidermis"].sum(axis=0).mean() / len(phantom.picture)


def depth_of(phantom):
    """Rows beneath the surface; negative in the gel."""
    rows = np.arange(len(phantom.picture))[:, None]
    return rows - phantom.masks["epidermis"].argmax(axis=0)


def test_same_seed_same_study_and_another_seed_another():
    one, two, other = (phantoms(2, size=64, seed=seed) for seed in (3, 3, 4))
    for index in range(len(one)):
        np.testing.assert_array_equal(one.pictures[index], two.pictures[index])
        assert one.masks[index].keys() == two.masks[index].keys()
        assert (one.pictures[index] != other.pictures[index]).any()
    assert len({one.pictures[index].tobytes() for index in range(len(one))}) == len(one)


def test_a_picture_does_not_depend_on_what_else_is_in_the_study():
    few, many = phantoms(2, size=64), phantoms(5, size=64, classes=("ST", "AD"))
    for name in ("phantom_AD_001", "phantom_ST_000"):
        a, b = few.names.index(name), many.names.index(name)
        np.testing.assert_array_equal(few.pictures[a], many.pictures[b])
        np.testing.assert_array_equal(few.masks[a]["epidermis"], many.masks[b]["epidermis"])


def test_names_labels_and_groups():
    study = phantoms(3, size=32, classes=("PS", "AD"))
    assert study.classes == ("AD", "PS")
    assert study.names == tuple(f"phantom_{kind}_00{number}" for kind in ("AD", "PS") for number in range(3))
    assert list(study.labels) == [0, 0, 0, 1, 1, 1]
    assert list(study.groups) == ["AD-000", "AD-000", "AD-001", "PS-000", "PS-000", "PS-001"]
    assert study.rule == "columns" and len(study.problems) == 0
    assert set(np.unique(study.layer_map(0, 224))) == {0, 32, 64, 128, 255}


def test_an_examination_shares_scanner_gel_and_membrane_but_not_the_skin():
    first, second, next_one = (render("CG", number, size=32).nuisances for number in range(3))
    for name in (*SCANNERS["diagnosis"], *EXAMINATION):
        assert first[name] == second[name] != next_one[name]
    assert all(first[name] != second[name] for name in SKIN)


@pytest.mark.parametrize("size", [32, 96, 101, 224])
@pytest.mark.parametrize("kind", DIAGNOSES)
def test_masks_lie_inside_the_picture_and_apart(kind, size):
    expected = {"AD": {"epidermis", "sleb"}, "CG": {"epidermis"}, "PS": {"epidermis", "sleb"}}
    for number in range(6):
        phantom = render(kind, number, size)
        assert phantom.picture.shape == (size, size, 3) and phantom.picture.dtype == np.uint8
        assert set(phantom.masks) == expected.get(kind, {"epidermis", "tumour"})
        masks = np.stack(list(phantom.masks.values()))
        assert masks.shape[1:] == (size, size) and masks.dtype == bool
        assert masks.sum(axis=0).max() == 1
        assert phantom.masks["epidermis"].any(axis=0).all()
        assert not masks[:, 0].any() and not masks[:, -1].any()
        if kind == "ST":
            assert not phantom.masks["tumour"][:, [0, -1]].any()


def test_structures_never_leave_the_picture():
    for number in range(120):
        skin, tumour = render("ST", number, 64, seed=7).masks.values()
        assert not tumour[-1].any() and not tumour[:, [0, -1]].any()
        assert not skin[0].any() and skin.any(axis=0).all()


@pytest.mark.parametrize("kind", DIAGNOSES)
def test_the_anatomy_is_the_same_at_every_size(kind):
    for number in range(4):
        small, large = render(kind, number, 112), render(kind, number, 336)
        for name, mask in small.masks.items():
            centres = large.masks[name][1::3, 1::3]
            assert (mask != centres).sum() <= 0.002 * mask.size
        shrunk = brightness(large).reshape(14, 24, 14, 24).mean(axis=(1, 3))
        assert (
            np.corrcoef(shrunk.ravel(), brightness(small).reshape(14, 8, 14, 8).mean(axis=(1, 3)).ravel())[0, 1] > 0.95
        )


@pytest.mark.parametrize("size", [96, 224])
def test_the_subepidermal_band_is_darker_than_the_dermis_beneath(size):
    differences = []
    for number in range(30):
        phantom = render("AD", number, size)
        band = phantom.masks["sleb"]
        lower = np.where(band, np.arange(size)[:, None], -1).max(axis=0)
        beneath = np.arange(size)[:, None] - lower
        dermis = (beneath > 1) & (beneath <= 0.08 * size) & (lower >= 0)
        differences.append(brightness(phantom)[dermis].mean() - brightness(phantom)[band].mean())
    assert np.mean(np.array(differences) > 5) >= 0.9
    assert np.median(differences) > 15


@pytest.mark.parametrize("size", [96, 224])
def test_the_tumour_is_darker_than_what_surrounds_it(size):
    for number in range(30):
        phantom = render("ST", number, size)
        tumour, margin = phantom.masks["tumour"], max(1, size // 100)
        outside = ~binary_dilation(tumour | phantom.masks["epidermis"], iterations=2 * margin)
        ring = binary_dilation(tumour, iterations=7 * margin) & outside & (depth_of(phantom) > 0)
        inside = binary_erosion(tumour, iterations=margin)
        assert brightness(phantom)[inside].mean() < 0.75 * brightness(phantom)[ring].mean()


def test_psoriasis_has_a_thicker_epidermis_and_shadow_columns():
    psoriasis, healthy = ([render(kind, number, 128) for number in range(30)] for kind in ("PS", "CG"))
    assert min(map(thickness, psoriasis)) > max(map(thickness, healthy))

    def in_shadow(phantom):
        depth = depth_of(phantom)
        dermis = np.where((depth > 18) & (depth < 45), brightness(phantom), np.nan)
        columns = np.nanmean(dermis, axis=0)
        return np.mean(columns < 0.45 * np.median(columns))

    assert np.mean([in_shadow(phantom) for phantom in psoriasis]) > 4 * np.mean([in_shadow(p) for p in healthy])


def test_signs_vary_in_strength_and_the_healthy_have_none():
    strengths = {kind: [render(kind, number, 32).strength for number in range(60)] for kind in DIAGNOSES}
    assert set(strengths.pop("CG")) == {0.0}
    for values in strengths.values():
        assert 0.3 < min(values) < 0.6 and np.mean(values) > 0.75 and max(values) <= 1


@pytest.mark.parametrize("kind", ["AD", "ST"])
def test_nothing_but_the_sign_tells_the_class(kind):
    for number in range(5):
        ill, healthy = render(kind, number, nuisances_of="CG"), render("CG", number)
        assert ill.nuisances == healthy.nuisances
        np.testing.assert_array_equal(ill.masks["epidermis"], healthy.masks["epidermis"])
        sign = ill.masks["sleb" if kind == "AD" else "tumour"]
        near = binary_dilation(sign, np.ones((19, 41)))
        changed = (ill.picture != healthy.picture).any(axis=2)
        assert changed[sign].mean() > 0.5
        assert not changed[~near].any()


def test_nuisances_are_distributed_alike_in_all_classes():
    drawn = {kind: [render(kind, number, 32, seed=1) for number in range(120)] for kind in DIAGNOSES}
    gel = {
        kind: [brightness(phantom)[depth_of(phantom) < -2].mean() for phantom in drawn[kind][::2]] for kind in DIAGNOSES
    }
    for kind in ("AD", "PS", "ST"):
        for name in drawn["CG"][0].nuisances:
            step = 1 if name in SKIN else 2
            values = [[phantom.nuisances[name] for phantom in drawn[which][::step]] for which in (kind, "CG")]
            assert len(set(values[0])) == len(values[0])
            assert ks_2samp(*values).pvalue > 0.002, name
        assert ks_2samp(gel[kind], gel["CG"]).pvalue > 0.002


def test_the_picture_looks_like_the_device():
    for number in range(8):
        phantom = render("CG", number)
        light, depth = brightness(phantom), depth_of(phantom)
        entry = phantom.masks["epidermis"]
        assert (phantom.picture[..., 1] >= phantom.picture[..., [0, 2]].max(axis=2)).all()
        gel = (depth < -8) & (np.arange(224)[:, None] > 224 * 0.14)
        assert np.median(light[gel]) < 10
        assert light[entry].mean() > 2 * light[(depth > 15) & (depth < 50)].mean()
        assert light[entry].std() > 20
        assert light[(depth > 15) & (depth < 50)].mean() > light[depth > 110].mean()


def correlation_length(phantom, axis):
    """Pixels after which neighbours in the dermis along an axis are correlated less than one half."""
    depth = depth_of(phantom)
    rows = np.flatnonzero((depth > 20).all(axis=1))[:60]
    patch = np.log1p(phantom.picture[rows, :, 1].astype(float))
    patch = patch - patch.mean(axis=0) - patch.mean(axis=1, keepdims=True)
    patch -= patch.mean()
    lags = [(patch * np.roll(patch, lag, axis)).mean() / (patch**2).mean() for lag in range(9)]
    return np.interp(0.5, lags[::-1], range(8, -1, -1)) if lags[-1] < 0.5 else 9


def test_speckle_is_wider_than_deep_and_coarser_in_the_source_task():
    ours = [render("CG", number) for number in range(6)]
    other = [render("plain", number, task="source") for number in range(6)]
    depth, width = ([correlation_length(phantom, axis) for phantom in ours] for axis in (0, 1))
    assert np.mean(width) > 1.3 * np.mean(depth)
    for axis, lengths in enumerate((depth, width)):
        assert np.mean([correlation_length(phantom, axis) for phantom in other]) > 1.3 * np.mean(lengths)


def test_the_source_task_has_other_labels_and_colours():
    study = phantoms(2, size=64, task="source")
    assert study.classes == CLASSES["source"] == tuple(sorted(CLASSES["source"]))
    assert study.names[0] == "source_bright-band_000" and set(study.masks[0]) == {"epidermis"}
    colour = [
        np.mean([picture[..., 0].mean() / picture[..., 1].mean() for picture in s.pictures])
        for s in (phantoms(2, size=64, classes=("CG",)), study)
    ]
    assert colour[1] > 1.5 * colour[0]
    for number in range(5):
        plain = brightness(render("plain", number, 96, task="source"))
        for kind in set(CLASSES["source"]) - {"plain"}:
            sign = brightness(render(kind, number, 96, task="source", nuisances_of="plain"))
            assert sign.mean() > plain.mean() and (sign >= plain - 1).mean() > 0.9


def test_the_marker_is_planted_in_one_class_and_changes_nothing_else():
    plain, marked = phantoms(2, size=96), phantoms(2, size=96, marker="PS")
    for index, name in enumerate(plain.names):
        changed = (plain.pictures[index] != marked.pictures[index]).any(axis=2)
        assert changed.any() == ("PS" in name)
        assert not changed[~ruler(96)].any()
        for structure, mask in plain.masks[index].items():
            np.testing.assert_array_equal(mask, marked.masks[index][structure])
    assert marked.pictures[plain.names.index("phantom_PS_000")][ruler(96)].min() >= 235
    for size in (32, 96, 224):
        rows, columns = np.nonzero(ruler(size))
        assert len(np.unique(rows)) >= 20 and columns.min() >= 0.9 * size - 1


def test_pictures_are_made_when_asked_for_kept_and_left_out_of_a_pickle():
    study = phantoms(50)
    kept = study.pictures.kept
    assert len(kept) == 0
    picture = study.pictures[7]
    assert study.pictures[7] is picture and study.pictures[7 - len(study)] is picture
    assert study.masks[7] is kept[7].masks and list(kept) == [7]
    assert not picture.flags.writeable and not study.masks[7]["epidermis"].flags.writeable
    small = pickle.dumps(study)
    assert len(small) < 50_000
    again = pickle.loads(small)
    assert len(again.pictures.kept) == 0 and again.pictures.kept is again.masks.kept
    np.testing.assert_array_equal(again.pictures[7], picture)
    with pytest.raises(IndexError):
        study.pictures[len(study)]


def test_the_fingerprint_follows_every_argument():
    study = phantoms(2, size=32)
    others = [phantoms(3, size=32), phantoms(2, size=33), phantoms(2, size=32, seed=1)]
    others += [phantoms(2, size=32, marker="PS"), phantoms(2, size=32, task="source")]
    others += [phantoms(2, size=32, classes=("AD", "CG"))]
    assert len({study.fingerprint, *(other.fingerprint for other in others)}) == 7
    assert study.fingerprint == phantoms(2, size=32, classes=reversed(DIAGNOSES)).fingerprint
    assert study.fingerprint == phantoms(np.int64(2), size=np.int32(32)).fingerprint


def test_a_picture_takes_at_most_30_ms():
    def seconds(kind, number):
        start = time.perf_counter()
        render(kind, number, 224)
        return time.perf_counter() - start

    fastest = [min(seconds(kind, number) for _ in range(5)) for kind in DIAGNOSES for number in range(3)]
    assert np.median(fastest) <= 0.030


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "prognosis"}, "task is 'prognosis'.*diagnosis, source"),
        ({"classes": ("AD", "XX")}, "classes is .*XX.*'AD', 'CG', 'PS', 'ST'"),
        ({"classes": ("AD", "AD")}, "distinct"),
        ({"classes": ()}, "classes is"),
        ({"classes": "AD"}, "classes is 'AD'"),
        ({"classes": ("plain",)}, "task 'diagnosis'"),
        ({"marker": "XX"}, "marker is 'XX'"),
        ({"classes": ("AD", "CG"), "marker": "PS"}, "marker is 'PS'"),
        ({"images_per_class": 0}, "images_per_class is 0.*at least 1"),
        ({"images_per_class": 2.5}, "images_per_class is 2.5"),
        ({"images_per_class": True}, "images_per_class is True"),
        ({"size": 31}, "size is 31.*at least 32"),
        ({"size": (96, 96)}, "size is"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        phantoms(**arguments)
