"""The report on real input: breast ultrasound, lesion masks made into layer maps; skipped where it is missing."""

import pytest

from helpers.evaluate.statistics import intervals
from helpers.models import cross_validation as cv
from helpers.report import evidence, judge, write_report
from helpers.settings import get_settings

METHODS = ("Grad-CAM", "HiResCAM")


@pytest.mark.filterwarnings("ignore:breast_ultrasound:UserWarning")
def test_a_report_on_breast_ultrasound(real_data, tmp_path, capsys):
    settings = get_settings(
        "quick", data=real_data / "breast_ultrasound", results=tmp_path, architectures="mobilenet_v2", image_size=224,
        weights=real_data / "weights" / "mobilenet_v2_imagenet.pth",
    )  # fmt: skip
    cv.train_folds(settings)
    proof = evidence(settings, METHODS, per_class=2)
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
