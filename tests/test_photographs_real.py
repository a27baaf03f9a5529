"""The lesson on photographs on real input: VOC images, ImageNet weights; skipped where they are missing."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

from helpers.data.photographs import open_photographs
from helpers.evaluate.deletion import deletion
from helpers.evaluate.objects import MEASURES, object_scores
from helpers.evaluate.statistics import bootstrap_interval
from helpers.explain.engine import explain
from helpers.explain.heatmaps import to_heatmap
from helpers.models.multi_label import LAYER, Normalise, get_recipe, predict, trained
from helpers.settings import get_settings

SIZE = 224
METHODS = ("Grad-CAM", "HiResCAM")
CATEGORIES = models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
# ImageNet has no person; its many breeds are found by their place in the list.
FITTING = {
    "aeroplane": ["airliner", "warplane"],
    "bicycle": ["bicycle-built-for-two", "mountain bike"],
    "bird": CATEGORIES[CATEGORIES.index("cock") : CATEGORIES.index("great grey owl") + 1]
    + CATEGORIES[CATEGORIES.index("black grouse") : CATEGORIES.index("goose") + 1]
    + CATEGORIES[CATEGORIES.index("white stork") : CATEGORIES.index("albatross") + 1],
    "boat": ["canoe", "catamaran", "fireboat", "gondola", "lifeboat", "speedboat", "trimaran", "yawl"],
    "bottle": ["beer bottle", "pill bottle", "pop bottle", "water bottle", "wine bottle"],
    "bus": ["minibus", "school bus", "trolleybus"],
    "car": ["beach wagon", "cab", "convertible", "jeep", "limousine", "minivan", "Model T", "racer", "sports car"],
    "cat": CATEGORIES[CATEGORIES.index("tabby") : CATEGORIES.index("Egyptian cat") + 1],
    "chair": ["barber chair", "folding chair", "rocking chair", "throne"],
    "cow": ["ox", "water buffalo"],
    "diningtable": ["dining table"],
    "dog": CATEGORIES[CATEGORIES.index("Chihuahua") : CATEGORIES.index("Mexican hairless") + 1],
    "horse": ["sorrel"],
    "motorbike": ["moped", "motor scooter"],
    "pottedplant": ["pot"],
    "sheep": ["ram", "bighorn"],
    "sofa": ["studio couch"],
    "train": ["bullet train", "electric locomotive", "freight car", "passenger car", "steam locomotive"],
    "tvmonitor": ["monitor", "screen", "television"],
}
NETWORKS = {
    "MobileNetV2": (models.mobilenet_v2, "mobilenet_v2_imagenet.pth", "1.features.13"),
    "SqueezeNet 1.1": (models.squeezenet1_1, "squeezenet1_1_imagenet.pth", "1.features.7"),
}


@pytest.fixture(scope="module")
def photographs(real_data):
    return open_photographs(real_data / "voc2012")


def network(name, real_data=None):
    """With ImageNet's weights, or with random ones where no folder is given."""
    make, file, _ = NETWORKS[name]
    torch.manual_seed(0)
    model = make(weights=None)
    if real_data is not None:
        weights = torch.load(real_data / "weights" / file, map_location="cpu", weights_only=True)
        model.load_state_dict(weights, strict=True)
    return nn.Sequential(Normalise(), model).eval()


def pairs(photographs):
    """Objects whose class ImageNet knows, and the number of those that it does not."""
    found = photographs.objects(SIZE, np.arange(len(photographs)))
    known = np.array([photographs.classes[k] in FITTING for k in found.target])
    chosen = found._replace(
        image=found.image[known],
        target=found.target[known],
        masks=found.masks[known],
        ignored=found.ignored[known],
        boxes=[box for box, keep in zip(found.boxes, known, strict=True) if keep],
    )
    return chosen, int((~known).sum())


def best_fit(model, images, names):
    """Of the ImageNet classes that fit an object, the one with the largest logit; and the rank of that among all."""
    with torch.inference_mode():
        logits = torch.cat([model(batch) for batch in torch.from_numpy(images).split(16)]).numpy()
    fitting = [[CATEGORIES.index(name) for name in FITTING[own]] for own in names]
    targets = [rows[np.argmax(logit[rows])] for rows, logit in zip(fitting, logits, strict=True)]
    return np.array(targets), (logits > logits[np.arange(len(logits)), targets][:, None]).sum(1)


def test_every_fitting_class_is_one_of_imagenets():
    for own, names in FITTING.items():
        assert set(names) <= set(CATEGORIES), own
    assert len(FITTING["dog"]) == 118 and len(FITTING["cat"]) == 5 and len(FITTING["bird"]) == 58


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_of_real_weights_point_at_objects_and_those_of_random_weights_do_not(photographs, real_data, name, capsys):
    found, unknown = pairs(photographs)
    images = photographs.images(SIZE, found.image)
    names = [photographs.classes[k] for k in found.target]
    tables = {}
    for kind, model in (("ImageNet", network(name, real_data)), ("random", network(name))):
        targets, rank = best_fit(model, images, names)
        for where, layer in (("last layer", None), ("earlier layer", NETWORKS[name][2])):
            maps = explain(model, images, METHODS, targets, layer)
            for method in METHODS:
                table = object_scores(to_heatmap(maps[method], SIZE), found)
                tables[kind, where, method] = table.assign(rank=rank)
    size = bootstrap_interval(found.masks.mean((1, 2)), found.image)
    with capsys.disabled():
        top = [(tables["ImageNet", "last layer", "Grad-CAM"]["rank"] < k).mean() for k in (1, 5)]
        print(f"\nVOC, {name}, {len(names)} objects in {len(set(found.image))} images, "
              f"{unknown} without a class in ImageNet; fitting class first {top[0]:.2f}, among five {top[1]:.2f}; "
              f"object area {size}")  # fmt: skip
        for (kind, where, method), table in tables.items():
            means = [f"{m} {bootstrap_interval(table[m], table['image'])}" for m in MEASURES]
            print(f"{kind}, {where}, {method}, {table['area'].isna().sum()} flat: {'; '.join(means)}")
    assert unknown + len(names) == photographs.labels.sum()
    for method in METHODS:
        real, random = (tables[kind, "last layer", method]["pointing game"] for kind in ("ImageNet", "random"))
        assert real.mean() > random.mean() + 0.1
        assert real.mean() > size.high
    earlier = {method: tables["ImageNet", "earlier layer", method] for method in METHODS}
    assert earlier["HiResCAM"]["area"].mean() < earlier["Grad-CAM"]["area"].mean()


def test_the_dog_and_the_cat_of_one_picture_get_maps_of_their_own(real_data):
    folder = real_data / "photographs"
    picture = Image.open(folder / "cat_dog_both.png").convert("RGB").resize((SIZE, SIZE))
    image = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 255
    model = network("MobileNetV2", real_data)
    targets = [best_fit(model, image, [own])[0][0] for own in ("dog", "cat")]
    maps = explain(model, image, METHODS, np.array([targets]))
    for method in METHODS:
        dog, cat = to_heatmap(maps[method].values[0], SIZE)
        y, x = zip(*(np.unravel_index(h.argmax(), h.shape) for h in (dog, cat)), strict=True)
        assert np.hypot(y[0] - y[1], x[0] - x[1]) > SIZE / 4
        assert np.corrcoef(dog.ravel(), cat.ravel())[0, 1] < 0.5


def test_the_lesson_s_network_is_trained_measured_and_explained_on_voc(photographs, tmp_path):
    settings = get_settings("quick", results=tmp_path, device="cpu")
    for head in ("flatten", "pool"):
        recipe = get_recipe("quick", head=head, epochs=2, image_size=96, batch_size=8)
        model, curve = trained(settings, photographs, recipe)
        assert curve["loss"].iloc[-1] < curve["loss"].iloc[0]
        which = photographs.which("test")
        images, found = photographs.images(96, which), photographs.objects(96, which)
        assert predict(model, images).shape == (len(which), 20)
        maps = explain(model, images[found.image], METHODS, found.target, LAYER)
        heatmaps = to_heatmap(maps["HiResCAM"], 96)
        total = maps["HiResCAM"].values.sum((1, 2)) + model.classifier.bias.detach().numpy()[found.target]
        np.testing.assert_allclose(total, maps["logit"].values, atol=1e-4)
        table = object_scores(heatmaps, found)
        assert len(table) == len(found.image) and table["energy in object"].dropna().between(0, 1).all()
        curves = deletion(model, images[found.image], heatmaps, found.target, 4)
        assert (np.isnan(curves.area) == table["area"].isna()).all()
