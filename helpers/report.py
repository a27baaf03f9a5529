"""One page about a network: how accurate it is, where it looks, whether its maps can be trusted, two verdicts."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jinja2 import Environment
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from helpers.evaluate.scores import confidence_scores, scores
from helpers.evaluate.statistics import intervals
from helpers.evaluate.verdict import ON_MAP, ON_NETWORK, Verdict, judge_map, judge_network
from helpers.explain.engine import explain
from helpers.explain.heatmaps import is_flat, to_heatmap
from helpers.figures import DPI, HEAT, picture
from helpers.models import cross_validation as cv
from helpers.models.classifiers import stage
from helpers.models.training import predict
from helpers.settings import Settings
from helpers.store import replacing

NUMBERS = {
    "hit_rate": "Hit Rate 1", "coverage": "coverage of level 255", "background": "coverage of level 0",
    "drop_important": "DiC, important part covered", "drop_unimportant": "DiC, unimportant part covered",
    "trust": "trust", "beyond": "trust less the spot's",
}  # fmt: skip
KEYS = ["network", "fold", "name", "group", "class", "predicted"]
WON = "#d3e3ee"
LIMITS = {"focus": (-1.05, 3.05), "accuracy": (0, 1.08), "trust": (-2.4, 2.4)}  # with room for the words
TICKS = {"accuracy": [0.5, 0.7, 0.8, 0.9, 1], "trust": [-1.5, -1, -0.5, 0, 0.5, 1, 1.5]}
NAMES = {"accuracy": "accuracy, stretched near 1", "trust": "trust less that of the spot in the middle"}
SPOT = "centre Gaussian"
OPEN = 4  # exponent of the scale of accuracies: what is high lies close to 1


def evidence(settings: Settings, methods="Grad-CAM", layer=32, per_class: int | None = 2, folds=None) -> pd.DataFrame:
    """Everything the verdicts are made from: one row per network, test image and map.

    Parameters
    ----------
    settings : the study and its trained networks
    methods : whose maps of the predicted class are judged; the baselines stand beside them
    layer : of the CAMs, as in `study_maps.maps`
    per_class : so many test images of each class in each fold are covered; None for all
    folds : fold numbers; None for all

    Returns
    -------
    DataFrame with the columns network, fold, name, group, class, predicted, right, map, layer_map (the image has one),
    covered (it belongs to the sample), hit_rate, coverage, background (NaN for a flat map or without layer map),
    drop_important, drop_unimportant, trust, their difference, and beyond, the trust less that of the spot in the middle
    on the same image (NaN for a flat map or outside the sample)

    Raises
    ------
    ValueError
        if no image has a layer map
    """
    study, methods = cv.study_of(settings), (methods,) if isinstance(methods, str) else tuple(methods)
    scored = scores(settings, methods, layer, signs=("positive",), folds=folds)
    about = {"hit_rate": ("hit_rate_1", None), "coverage": ("coverage", 255), "background": ("coverage", 0)}
    places = []
    for column, (measure, level) in about.items():
        rows = scored[(scored["measure"] == measure) & ((level is None) | (scored["level"] == level))]
        places.append(rows.set_index(["network", "method", "name"])["score"].astype(float).rename(column))
    places = pd.concat(places, axis=1).reset_index().rename(columns={"method": "map"})
    places = places.astype({"network": str, "map": str, "name": str})
    parts = ("important", "unimportant")
    table = confidence_scores(settings, methods, layer, per_class, folds, part=parts, baselines=True)
    drops = table.pivot(index=["network", "name", "map"], columns="part", values="drop").add_prefix("drop_")
    drops = drops.assign(trust=drops["drop_important"] - drops["drop_unimportant"], covered=True).reset_index()
    spot = drops["trust"].where(drops["map"] == SPOT).groupby([drops["network"], drops["name"]]).transform("max")
    drops["beyond"] = drops["trust"] - spot
    told = []
    for network in settings.architectures:
        for fold in range(settings.n_folds) if folds is None else folds:
            file = cv.fold_folder(settings, network, fold) / "predictions.parquet"
            told.append(pd.read_parquet(file).query("part == 'test'").assign(network=network, fold=fold))
    told = pd.concat(told, ignore_index=True).rename(columns={"label": "class"})
    index = np.array([study.names.index(name) for name in told["name"]])
    told["group"] = told["name"] if study.groups is None else study.groups[index]
    told = told[KEYS].assign(right=told["class"] == told["predicted"], layer_map=study.has_layer_map[index])
    baselines = places[places["network"] == "none"].drop(columns="network")
    tables = []
    for name in drops["map"].unique():
        place = baselines if name in set(baselines["map"]) else places
        on = [column for column in ("network", "name", "map") if column in place]
        tables.append(told.assign(map=name).merge(place, "left", on).merge(drops, "left", ["network", "name", "map"]))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(covered=table["covered"].eq(True))


@dataclass(frozen=True)
class Judgement:
    """Both decision schemes, applied to one network and the maps of one method.

    Attributes
    ----------
    network, method : what is judged
    on_map, on_network : the verdicts, see `verdict.judge_map` and `verdict.judge_network`
    counts : what the numbers leave out, as sentences
    """

    network: str
    method: str
    on_map: Verdict
    on_network: Verdict
    counts: tuple[str, ...] = field(default=())

    @property
    def sentence(self) -> str:
        """Such as "accurate, looks at the wrong place"; maps that are in doubt do not say where a network looks."""
        accurate, right = _sides(self.on_network)
        first, place = "accurate" if accurate else "not accurate", "right" if right else "wrong"
        if _sides(self.on_map)[0]:
            return f"{first}, looks at the {place} place"
        return f"{first}; its maps show the {place} place, but they are doubtful: where it looks is not known"


def judge(table: pd.DataFrame, network: str, method: str = "Grad-CAM", **thresholds) -> Judgement:
    """Apply both decision schemes to one network in a table made by `evidence`.

    Parameters
    ----------
    table : rows of one or several networks and maps
    network, method : which to judge; a baseline may be judged like a method
    **thresholds : min_accuracy, min_focus and min_trust; left out, those of `verdict`. A map is trusted by how far its
        trust goes beyond that of the spot in the middle: how much trust a map can earn differs between networks

    Raises
    ------
    ValueError
        if the table does not hold them, or a threshold has another name
    """
    strange = set(thresholds) - {"min_accuracy", "min_focus", "min_trust"}
    if strange:
        raise ValueError(f"thresholds: expected min_accuracy, min_focus or min_trust, got {', '.join(sorted(strange))}")
    part = table[(table["network"] == network) & (table["map"] == method)]
    if part.empty:
        known = table[["network", "map"]].drop_duplicates().agg(", ".join, axis=1).tolist()
        raise ValueError(f"no rows of {network}, {method}; the table holds {'; '.join(known)}")

    def drawn(*names):
        limits = {name: thresholds[name] for name in names if name in thresholds}
        return {"groups": part["group"].to_numpy(), "folds": part["fold"].to_numpy(), **limits}

    on_map = judge_map(part["beyond"], part["hit_rate"], **drawn("min_trust", "min_focus"))
    on_network = judge_network(part["right"], part["hit_rate"], **drawn("min_accuracy", "min_focus"))
    flat, sample = (part["hit_rate"].isna() & part["layer_map"]).sum(), part[part["covered"]]
    counts = (
        f"{len(part)} test images, {part['group'].nunique()} groups, {part['fold'].nunique()} folds",
        f"{(~part['layer_map']).sum()} images without a layer map: no Hit Rate, but an accuracy",
        f"{flat} of {part['layer_map'].sum()} maps flat: no Hit Rate",
        f"{len(sample)} images covered, {sample['trust'].isna().sum()} of their maps flat: the rest has no trust",
    )
    return Judgement(network, method, on_map, on_network, counts)


def _sides(verdict):
    return [verdict.numbers[name].mean >= least for name, least in verdict.thresholds.items()]


def draw_scheme(axis, verdicts: Verdict | Mapping[str, Verdict]) -> None:
    """A decision scheme as a plane: thresholds are lines, quadrants verdicts, networks points with their intervals.

    Parameters
    ----------
    axis : matplotlib axis
    verdicts : one of either scheme, whose quadrant is coloured and whose shares of the bootstrap samples are named; or
        a mapping from name to verdicts of one scheme and one pair of thresholds, told apart by colour

    Raises
    ------
    ValueError
        if the verdicts are of different schemes or thresholds, or there is none
    """
    several = verdicts if isinstance(verdicts, Mapping) else {"": verdicts}
    one = next(iter(several.values()), None)
    if one is None or any(v.thresholds != one.thresholds for v in several.values()):
        raise ValueError("verdicts: expected at least one, all of one scheme with the same thresholds")
    scheme = ON_NETWORK if "accuracy" in one.thresholds else ON_MAP
    (first, y), (second, x) = one.thresholds.items()
    bottom, top = LIMITS[first]
    left, right = LIMITS[second]
    for (high, correct), text in scheme.items():
        across, up = (x, right) if correct else (left, x), (y, top) if high else (bottom, y)
        share = "" if len(several) > 1 else f"\n{one.shares[text]:.0%} of samples"
        if len(several) == 1 and text == one.verdict:
            axis.add_patch(Rectangle((across[0], up[0]), np.ptp(across), np.ptp(up), color=WON, zorder=0))
        words = f"{textwrap.fill(text, 30)}{share}"
        style = {"ha": "center", "va": "top" if high else "bottom", "fontsize": 9, "color": "#333333"}
        axis.annotate(words, (np.mean(across), up[high]), (0, -4 if high else 4), textcoords="offset points", **style)
    axis.axhline(y, color="grey", linewidth=1)
    axis.axvline(x, color="grey", linewidth=1)
    for k, (name, verdict) in enumerate(several.items()):
        a, b = verdict.numbers[first], verdict.numbers[second]
        bars = [np.nan_to_num([[v.mean - v.low], [v.high - v.mean]]) for v in (a, b)]
        style = {"fmt": "osD^vP*X"[k % 8], "color": "black" if name == "" else f"C{k}", "capsize": 4, "markersize": 8}
        axis.errorbar(b.mean, a.mean, *bars, label=name or None, **style)
    axis.set(xlim=(left, right), ylim=(bottom, top), xlabel=f"{second}: Hit Rate 1", ylabel=NAMES[first])
    if first == "accuracy":
        axis.set_yscale("function", functions=(lambda v: v**OPEN, lambda v: np.clip(v, 0, None) ** (1 / OPEN)))
    axis.set_yticks(TICKS[first])
    axis.set_title("the network" if scheme is ON_NETWORK else "the map")


def scheme_figure(judgement: Judgement) -> Figure:
    """Both schemes side by side."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for axis, verdict in zip(axes, (judgement.on_map, judgement.on_network), strict=True):
        draw_scheme(axis, verdict)
    return figure


def summary(table: pd.DataFrame, network: str) -> pd.DataFrame:
    """Every number of every map of a network, "mean [95 %], n = groups": one row per map, the baselines among them."""
    part = table[table["network"] == network]
    return pd.DataFrame({text: intervals(part, "map", column)["text"] for column, text in NUMBERS.items()})


def cover_figure(settings: Settings, network: str, names, method: str = "Grad-CAM", layer=32) -> Figure:
    """Images, their heat maps and what is left once the important or the unimportant part is covered.

    Parameters
    ----------
    settings, method, layer : as in `evidence`
    network : architecture
    names : of test images; each is explained by the network that has not seen it

    Returns
    -------
    one row per image; the titles give the probability of the class predicted on the whole image
    """
    study, size = cv.study_of(settings), settings.image_size
    folds = pd.read_csv(settings.folder / "folds.csv", dtype={"name": str}).set_index("name")["fold"]
    place, model, loaded = stage(network, layer) if isinstance(layer, int) else layer, None, None
    titles = "image", "heat map", "important\ncovered", "unimportant\ncovered"
    figure, axes = plt.subplots(len(names), 4, figsize=(8.4, 2.2 * len(names)), squeeze=False, layout="compressed")
    for row, name in zip(axes, names, strict=True):
        i, fold = study.names.index(name), int(folds[name])
        if fold != loaded:
            model, loaded = cv.load_fold(settings, network, fold), fold
        image, levels = study.images(size, [i]), study.layer_maps(size, [i])[0]
        heatmap = to_heatmap(explain(model, image, method, layer=place)[method].values, size)
        kept = np.nan_to_num(heatmap)[:, None]
        shown = np.concatenate([image, image * (1 - kept), image * kept]).astype(np.float32)
        probs = predict(model, shown)
        predicted = probs[0].argmax()
        row[0].set_ylabel(f"{study.classes[study.labels[i]]}\ncalled {study.classes[predicted]}")
        row[0].imshow(picture(shown[0]))
        row[1].imshow(kept[0, 0], cmap=HEAT, vmin=0, vmax=1)
        if (levels == 255).any():
            row[1].contour(levels == 255, levels=[0.5], colors="white", linewidths=1)
        for axis, covered in zip(row[2:], shown[1:], strict=True):
            axis.imshow(picture(covered))
        texts = [f"p = {p:.2f}" for p in probs[:, predicted]]
        texts.insert(1, "flat map" if is_flat(heatmap)[0] else "")
        for axis, title, text in zip(row, titles, texts, strict=True):
            axis.set(xticks=[], yticks=[], title=f"{title}\n{text}" if axis in axes[0] else text)
    return figure


def write_report(
    settings: Settings, table: pd.DataFrame, judgement: Judgement, layer=32, title: str = "", folder=None
) -> Path:
    """Write the page of a network, and its figures beside it as PNG and SVG.

    Parameters
    ----------
    settings, layer : of `evidence`
    table : made by `evidence`
    judgement : made by `judge`
    title : of the page; None takes the network's name and the study's
    folder : where to; None takes `reports/` in the study's results

    Returns
    -------
    path of `<network>.html`, which needs no other file and no network
    """
    study, network, method = cv.study_of(settings), judgement.network, judgement.method
    folder = Path(folder) if folder else settings.folder / "reports"
    part = table[(table["network"] == network) & (table["map"] == method)]
    names = part[part["covered"]].drop_duplicates("class").sort_values("class")["name"].tolist()[:6]
    drawn = {
        "schemes": (
            scheme_figure(judgement),
            "Two planes, one per decision scheme. Map: "
            f"{judgement.on_map.verdict}. Network: {judgement.on_network.verdict}.",
            "Grey lines are the thresholds, the point is the network with 95 % intervals; under every verdict stands "
            "the share of the bootstrap samples that come to it.",
        ),
        "covers": (
            cover_figure(settings, network, names, method, layer),
            "One image per class, its heat map, and the image with its important or its unimportant part darkened.",
            "The first image of each class in the sample. p is the probability of the class predicted on the whole "
            "image; the white line is the edge of level 255.",
        ),
    }
    figures = []
    for name, (figure, alt, caption) in drawn.items():
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout is found once, and no margin is cut: half the time
        for kind in ("svg", "png"):
            file = io.BytesIO()
            metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
            with plt.rc_context({"svg.hashsalt": network}):
                figure.savefig(file, format=kind, dpi=DPI, metadata=metadata)
            with replacing(folder / f"{network}_{name}.{kind}") as temporary:
                temporary.write_bytes(file.getvalue())
        plt.close(figure)
        figures.append({"data": base64.b64encode(file.getvalue()).decode(), "alt": alt, "caption": caption})
    columns = {"right": "right"} | {column: NUMBERS[column] for column in ("hit_rate", "trust", "beyond")}
    by_class = pd.DataFrame({text: intervals(part, "class", column)["text"] for column, text in columns.items()})
    criteria = []
    for what, verdict in (("map", judgement.on_map), ("network", judgement.on_network)):
        for name, interval in verdict.numbers.items():
            side = "at least" if interval.mean >= verdict.thresholds[name] else "below"
            without = verdict.missing[name]
            criteria.append((what, name, str(interval), f"{side} {verdict.thresholds[name]:g}", without))
    page = _TEMPLATE.render(
        title=title or f"{network} on {study.title}",
        judgement=judgement,
        criteria=criteria,
        figures=figures,
        tables={"Every map, and maps that need no network": summary(table, network), "By class": by_class},
        about=f"{method}, layer {layer}, class predicted; images of {settings.image_size} x {settings.image_size} "
        f"pixels; start {cv.start_name(settings)}; seed {settings.seed}; data {study.fingerprint}",
    )
    path = folder / f"{network}.html"
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


_TEMPLATE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.4 sans-serif; max-width: 62rem; margin: 1rem auto; padding: 0 1rem; color: #111 }
table { border-collapse: collapse; font-size: 13px; margin: .5rem 0 }
th, td { border-bottom: 1px solid #bbb; padding: .2rem .5rem; text-align: left; vertical-align: top }
img { max-width: 100% } figure { margin: .5rem 0 } figcaption, .about { font-size: 13px; color: #444 }
.verdict { border-left: .4rem solid #31688e; padding: .1rem .8rem; background: #f2f5f8 }
@page { size: A4; margin: 1cm } @media print { body { font-size: 11px; max-width: none } table { font-size: 9px } }
</style></head><body>
<h1>{{ title }}</h1>
<div class="verdict"><p><strong>{{ judgement.sentence }}</strong></p>
<p>The network: {{ judgement.on_network.verdict }} ({{ "%.0f" % (100 * judgement.on_network.agreement) }} % of the
bootstrap samples agree).<br>
The map: {{ judgement.on_map.verdict }} ({{ "%.0f" % (100 * judgement.on_map.agreement) }} % agree).</p></div>
<table><tr><th>scheme</th><th>criterion</th><th>mean [95 %], n groups</th><th>threshold</th>
<th>images without a value</th></tr>
{% for row in criteria %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
<p class="about">{% for count in judgement.counts %}{{ count }}. {% endfor %}</p>
{% for figure in figures %}
<figure><img src="data:image/png;base64,{{ figure.data }}" alt="{{ figure.alt }}">
<figcaption>{{ figure.caption }}</figcaption></figure>
{% endfor %}
{% for heading, table in tables.items() %}
<h2>{{ heading }}</h2>
<table><tr><th>{{ table.index.name }}</th>{% for name in table.columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in table.itertuples() %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endfor %}
<h2>What this page does not say</h2>
<p>Accuracy is high or low, focus correct or not, by thresholds that somebody chose: look at the intervals, and at the
maps that need no network. Intervals and shares say what other patients could have changed, not what another training
could have. Verdicts are about means: a class by itself may differ. A spot in the middle of the picture can have a high
Hit Rate and know nothing. Trust compares what two covers cost; networks are not trained on covered images, so a part of
every drop may come from the cover itself. A right place does not prove right reasons. Nothing here is about patients
that are not like these.</p>
<p class="about">focus: Hit Rate 1. trust: Drop in Confidence with the important part covered less that with the
unimportant part covered, by darkening, softmax probability of the class predicted on the whole image; the verdict on
the map asks how far it goes beyond that of a spot in the middle of the same image.
{{ about }}.</p>
</body></html>
""")
