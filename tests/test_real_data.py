"""The main job on real input: breast ultrasound, MobileNetV2 from ImageNet weights; skipped where they are missing."""

import pytest

from helpers.data.folds import make_folds
from helpers.evaluate.localization import hit_rate
from helpers.evaluate.statistics import bootstrap_interval, fold_interval, intervals
from helpers.explain.engine import explain
from helpers.explain.heatmaps import to_heatmap
from helpers.models import cross_validation as cv
from helpers.models.classifiers import stage
from helpers.report import evidence, judge, write_report
from helpers.settings import get_settings

IMAGE_SIZE = 224


@pytest.fixture(scope="module")
def starts(real_data, tmp_path_factory):
    """Settings of the two starts, both trained."""
    common = {
        "data": real_data / "breast_ultrasound",
        "results": tmp_path_factory.mktemp("results"),
        "architectures": "mobilenet_v2",
        "image_size": IMAGE_SIZE,
    }
    weights = real_data / "weights" / "mobilenet_v2_imagenet.pth"
    made = {"ImageNet": get_settings("quick", weights=weights, **common)}
    made["random"] = get_settings("quick", weights="random", **common)
    for settings in made.values():
        cv.train_folds(settings)
    return made


def accuracies(settings):
    table = cv.predictions(settings)
    table = table[table["part"] == "test"]
    return (table["label"] == table["predicted"]).groupby(table["fold"]).mean()


@pytest.mark.filterwarnings("ignore:breast_ultrasound:UserWarning")
def test_imagenet_weights_beat_a_random_start_and_guessing(starts, capsys):
    study = cv.study_of(starts["ImageNet"])
    found = {name: accuracies(settings) for name, settings in starts.items()}
    largest = max((study.labels == k).mean() for k in range(len(study.classes)))
    with capsys.disabled():
        print(f"\nbreast ultrasound, {len(study)} images of {len(study.classes)} classes, largest {largest:.2f}")
        for name, values in found.items():
            print(f"accuracy, MobileNetV2 from {name}: {fold_interval(values)}")
        print(f"gain: {fold_interval(found['ImageNet'] - found['random'])}")
    assert len(study) == 48
    assert found["ImageNet"].mean() > largest
    assert found["ImageNet"].mean() > found["random"].mean()


@pytest.mark.filterwarnings("ignore:breast_ultrasound:UserWarning")
def test_every_image_gets_a_heat_map_and_those_with_a_lesion_a_hit_rate(starts, capsys):
    settings = starts["ImageNet"]
    study = cv.study_of(settings)
    table = make_folds(study, settings.n_folds, settings.seed)
    rates = []
    for fold in range(settings.n_folds):
        which = table.index[(table["fold"] == fold) & study.has_layer_map].to_numpy()
        model = cv.load_fold(settings, "mobilenet_v2", fold)
        cams = explain(model, study.images(IMAGE_SIZE, which), "Grad-CAM", study.labels[which], stage("mobilenet_v2"))
        rates.extend(hit_rate(to_heatmap(cams["Grad-CAM"], IMAGE_SIZE), study.layer_maps(IMAGE_SIZE, which)))
    with capsys.disabled():
        print(f"\nbreast ultrasound, Hit Rate of Grad-CAM: {bootstrap_interval(rates)}")
    assert len(rates) == 40


@pytest.mark.filterwarnings("ignore:breast_ultrasound:UserWarning")
def test_a_report_on_breast_ultrasound(starts, capsys):
    settings = starts["ImageNet"]
    proof = evidence(settings, ("Grad-CAM", "HiResCAM"), per_class=2)
    judgement = judge(proof, "mobilenet_v2")
    path = write_report(settings, proof, judgement)
    with capsys.disabled():
        print(f"\nbreast ultrasound: {judgement.sentence}\n{judgement.on_map}\n{judgement.on_network}")
        print("; ".join(judgement.counts))
        print({key: intervals(proof, "map", key)["text"].to_dict() for key in ("hit_rate", "trust")})
    part = proof[proof["map"] == "Grad-CAM"]
    assert len(part) == 48
    assert (~part["layer_map"]).sum() == (part["class"] == "normal").sum() == 8
    assert judgement.counts[1].startswith("8 images without a layer map")
    assert part.loc[~part["layer_map"], "hit_rate"].isna().all()
    assert part["covered"].sum() == sum(min(2, n) for n in part.groupby(["fold", "class"]).size())
    assert (proof.loc[(proof["map"] == "layer map") & proof["layer_map"], "hit_rate"] == 3).all()
    page = path.read_text(encoding="utf-8")
    assert judgement.on_network.verdict in page
    assert len(page) > 100_000
