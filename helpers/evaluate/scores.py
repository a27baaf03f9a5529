"""Scores of a whole study: every map of every network and fold by every measure, kept and added to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from helpers import compute, store
from helpers.data.layer_maps import LEVELS
from helpers.evaluate import confidence as confidence_module
from helpers.evaluate import localization
from helpers.evaluate.confidence import confidence
from helpers.evaluate.localization import (
    HIT_RATE_2,
    THRESHOLDS,
    as_displayed,
    baseline_heatmaps,
    coverage,
    hit_rate,
    iou,
    n_peaks,
    weighted_coverage,
)
from helpers.explain import heatmaps as heatmaps_module
from helpers.explain import inference
from helpers.explain.engine import METHODS, is_general
from helpers.explain.heatmaps import SIGNS, to_heatmap
from helpers.explain.options import get_options
from helpers.explain.study_maps import maps, network_fingerprint
from helpers.models import cross_validation as cv
from helpers.settings import Settings, pick_device

CLIP = 0.02  # of captum's plots, as a share of the sum of a map
BASELINES = "baselines"  # stands for all of them where covers are kept
CHUNK = 64  # maps that are enlarged at once
CURVES = [("iou", level, threshold) for threshold in THRESHOLDS for level in LEVELS]
MEASURES = [
    ("hit_rate_1", np.nan, np.nan), ("hit_rate_2", np.nan, np.nan), ("hit_rate_1_displayed", np.nan, np.nan),
    ("peaks", np.nan, np.nan), ("peaks_displayed", np.nan, np.nan), ("coverage", 255, np.nan), ("coverage", 0, np.nan),
    ("weighted_coverage", np.nan, np.nan), *CURVES,
]  # fmt: skip
MAP = ["network", "start", "method", "sign", "layer", "target", "name"]
ABOUT = ["fold", "group", "class", "predicted", "made_from"]


def localize(heatmaps, layer_maps, clip: float = 0.0) -> np.ndarray:
    """(..., len(MEASURES)) float32: heat maps (..., H, W) by all measures of where they look, against (N, H, W) levels.

    "displayed" is what the study measured: the map clipped as captum's plots are, if `clip` is not 0, and cut to 8
    bits. "peaks" counts pixels at the maximum; NaN for a flat map.
    """
    shown, columns = as_displayed(heatmaps, clip), [hit_rate(heatmaps, layer_maps)]
    columns += [hit_rate(heatmaps, layer_maps, HIT_RATE_2), hit_rate(shown, layer_maps)]
    columns += [np.where(np.isnan(columns[0]), np.nan, n_peaks(which)) for which in (heatmaps, shown)]
    columns += [coverage(heatmaps, layer_maps, level) for level in (255, 0)] + [weighted_coverage(heatmaps, layer_maps)]
    curves = iou(heatmaps, layer_maps, THRESHOLDS, LEVELS)
    columns = np.stack(columns, -1), curves.reshape(*curves.shape[:-2], len(CURVES))
    return np.concatenate(columns, -1, dtype=np.float32)


@lru_cache(maxsize=1)
def _code():
    return store.fingerprint(localization, heatmaps_module, _told())


def scores(
    settings: Settings,
    methods: Sequence[str] | str = METHODS,
    layers: int | str | Sequence[int | str] = 32,
    targets: str = "predicted",
    signs: Sequence[str] = SIGNS,
    per_class: int | None = None,
    folds: Sequence[int] | None = None,
    baselines: bool = True,
    **options,
) -> pd.DataFrame:
    """Every test image with a layer map, explained by the network of its fold and scored by every measure.

    Maps that are missing are made, see `study_maps.maps`. Scores are kept in `scores.parquet` in the study's folder and
    reused where map, layer map and code are the same; scores of the same map made from something else are replaced.

    Parameters
    ----------
    settings, methods, targets, per_class, folds, **options : as in `study_maps.maps`
    layers : of the CAMs, one or several, as there
    signs : of maps on pixels; CAMs and Saliency are scored by what is positive, as in the study
    baselines : also score the maps that need no network (network "none"), on the same images

    Returns
    -------
    One row per map and measure: network, start, method ("Occlusion 45" for a window of 45), sign, layer ("stride 32",
    "pixels"), target ("predicted" or "true"), name of the image, fold, group, class, predicted, made_from, measure,
    level, threshold (NaN where the measure has none), score (NaN for a flat map or an absent level)

    Raises
    ------
    ValueError
        if no image has a layer map, or an argument does not fit
    """
    study, size = cv.study_of(settings), settings.image_size
    if not study.has_layer_map.any():
        raise ValueError(f"{study.title}: no layer maps and no masks; where a map looks cannot be scored without them")
    methods = (methods,) if isinstance(methods, str) else tuple(methods)
    layers = (layers,) if isinstance(layers, (int, str)) else tuple(dict.fromkeys(layers))
    stored, wanted, made = _read(settings), [], []
    scored = set(stored.index)

    def add(raw, about, layer_maps, signs, general):
        """Rows of the maps of some images; only those are scored whose scores are not stored."""
        clip = 0.0 if general else CLIP
        prints = [store.fingerprint(_code(), size, clip, *pair) for pair in zip(raw, layer_maps, strict=True)]
        for sign in signs:
            rows = about.assign(sign=sign, made_from=prints)[[*MAP, *ABOUT]]
            known = np.array([row in scored for row in rows[[*MAP, "made_from"]].itertuples(index=False, name=None)])
            wanted.append(rows)
            for which in np.array_split(np.flatnonzero(~known), -(-np.count_nonzero(~known) // CHUNK) or 1):
                if len(which):
                    values = localize(to_heatmap(raw[which], size, sign), layer_maps[which], clip)
                    made.append(pd.DataFrame(values, pd.MultiIndex.from_frame(rows.iloc[which])))

    for number, layer in enumerate(layers):
        chosen = [method for method in methods if number == 0 or is_general(method)]
        found = maps(settings, chosen, layer, targets, per_class, folds, **options) if chosen else {}
        for network, dataset in found.items():
            about, index = _about(settings, network, dataset, targets)
            has = study.has_layer_map[index]
            about, layer_maps = about[has], study.layer_maps(size, index[has])
            for method in chosen:
                general = is_general(method)
                place = (f"stride {layer}" if isinstance(layer, int) else layer) if general else "pixels"
                kept = ("positive",) if general or method == "Saliency" else signs
                for name, raw in _by_window(method, dataset[method], options):
                    add(raw.values[has], about.assign(method=name, layer=place), layer_maps, kept, general)
    if baselines:
        about = pd.concat(wanted).drop_duplicates("name")
        index = np.array([study.names.index(name) for name in about["name"]])
        about = about.assign(network="none", start="none", layer="pixels", target="none", predicted="none")
        for start in range(0, len(index), CHUNK):
            part = slice(start, start + CHUNK)
            layer_maps = study.layer_maps(size, index[part])
            for name, raw in _baselines(settings, index[part]).items():
                add(raw, about.iloc[part].assign(method=name), layer_maps, ("positive",), True)
    return _keep(settings, stored, pd.concat(wanted, ignore_index=True), made)


def _baselines(settings, index):
    """`baseline_heatmaps` of some images; a random map belongs to its image, whichever others are scored with it."""
    study, size = cv.study_of(settings), settings.image_size
    images, layer_maps = study.images(size, index), study.layer_maps(size, index)
    draws = [baseline_heatmaps(images[[k]], settings.seed + i, layer_maps[[k]]) for k, i in enumerate(index)]
    return {name: np.concatenate([one[name] for one in draws]).astype(np.float32) for name in draws[0]}


def _by_window(method, values, options):
    if method != "Occlusion":
        return [(method, values)]
    windows = get_options(options).windows
    if isinstance(windows, int):
        return [(f"{method} {windows}", values)]
    return [(f"{method} {window}", values.sel(window=window)) for window in windows]


def _about(settings, network, dataset, targets):
    """What is known of every image of a Dataset of maps, and its number in the study."""
    study, names = cv.study_of(settings), dataset["name"].values
    index = np.array([study.names.index(name) for name in names])
    files = [cv.fold_folder(settings, network, fold) / "predictions.parquet" for fold in np.unique(dataset["fold"])]
    told = pd.concat([pd.read_parquet(file) for file in files]).query("part == 'test'").set_index("name")["predicted"]
    about = pd.DataFrame({
        "network": network, "start": cv.start_name(settings), "target": targets, "name": names,
        "fold": dataset["fold"].values, "group": names if study.groups is None else study.groups[index],
        "class": np.array(study.classes)[study.labels[index]], "predicted": told.loc[names].to_numpy(),
    })  # fmt: skip
    return about, index


def _file(settings):
    return settings.folder / "scores.parquet"


def _read(settings):
    """What is stored: one row per map, indexed by `MAP` and made_from, with a column for each of `MEASURES`."""
    empty = pd.DataFrame(index=pd.MultiIndex.from_arrays([[]] * (len(MAP) + 1), names=[*MAP, "made_from"]))
    if not _file(settings).is_file():
        return empty
    table, n = pd.read_parquet(_file(settings)), len(MEASURES)
    measures = ["measure", "level", "threshold"]
    if not {*MAP, *ABOUT, *measures, "score"} <= set(table) or str(table[measures].iloc[:n].values.tolist()) != _told():
        return empty
    first = table.iloc[::n]
    index = pd.MultiIndex.from_frame(first[[*MAP, "made_from"]].astype(str))
    about = first[[name for name in ABOUT if name != "made_from"]].set_axis(index)
    return pd.DataFrame(table["score"].to_numpy().reshape(-1, n), index).join(about)


def _told():
    return str([[name, float(level), float(threshold)] for name, level, threshold in MEASURES])


def _keep(settings, stored, wanted, made):
    """Put new scores beside the stored ones and return those wanted, one row per map and measure."""
    n = len(wanted)
    if made:
        new = pd.concat(made)
        new = new.reset_index(level=[name for name in ABOUT if name != "made_from"])
        with store.one_at_a_time(settings.folder, "scoring"):
            stored = _read(settings)  # again: another notebook may have added to it meanwhile
            replaced = stored.index.droplevel("made_from").isin(new.index.droplevel("made_from"))
            stored = pd.concat([stored[~replaced], new]) if len(stored) else new
            store.write_table(_tidy(stored.reset_index()), _file(settings))
    print(f"{n} maps: {n - sum(map(len, made))} were scored already, {sum(map(len, made))} are new")
    rows = stored.loc[pd.MultiIndex.from_frame(wanted[[*MAP, "made_from"]])].reset_index()
    return _tidy(rows)


def _tidy(rows):
    values, n = rows[list(range(len(MEASURES)))].to_numpy(np.float32), len(MEASURES)
    about = rows[[*MAP, *ABOUT]].astype(dict.fromkeys([*MAP, *ABOUT], "category")).astype({"fold": int})
    table = about.iloc[np.repeat(np.arange(len(rows)), n)].reset_index(drop=True)
    measure, level, threshold = (list(column) for column in zip(*MEASURES, strict=True))
    names = list(dict.fromkeys(measure))
    codes = np.tile([names.index(name) for name in measure], len(rows))
    table["measure"] = pd.Categorical.from_codes(codes, names)
    return table.assign(
        level=np.tile(level, len(rows)), threshold=np.tile(threshold, len(rows)), score=values.reshape(-1)
    )


def confidence_scores(
    settings: Settings,
    methods: Sequence[str] | str = METHODS,
    layer: int | str = 32,
    per_class: int | None = None,
    folds: Sequence[int] | None = None,
    sign: str = "positive",
    options: Mapping | None = None,
    baselines: bool = False,
    **arguments,
) -> pd.DataFrame:
    """The table of `confidence` for the maps of the predicted class of every network and fold, in parallel.

    Results are kept in `confidence/` in the study's folder, those of every method by themselves, and reused where maps,
    network, code and arguments are the same.

    Parameters
    ----------
    settings, methods, layer, per_class, folds : as in `study_maps.maps`
    sign : of the heat maps
    options : fields of `options.Options`, of the maps
    baselines : also cover by the maps that need no network, and by the layer map where the image has one
    **arguments : cover, part, thresholds, fill, scores, legacy of `confidence`

    Returns
    -------
    network, fold, name, group, class, predicted, and the columns of `confidence`; map is the method
    """
    found = maps(settings, methods, layer, "predicted", per_class, folds, **(options or {}))
    code = store.fingerprint(confidence_module, heatmaps_module, inference)
    windows, tasks, files = get_options(options or {}).windows, {}, []
    for network, dataset in found.items():
        for fold in np.unique(dataset["fold"]).tolist():
            part = dataset.isel(image=np.flatnonzero(dataset["fold"] == fold))
            about = code, network_fingerprint(settings, network, fold), cv.study_of(settings).fingerprint
            about += part["name"].values.tolist(), sign, arguments
            keys = {method: store.fingerprint(*about, windows, part[method].values) for method in part}
            if baselines:
                keys[BASELINES] = store.fingerprint(*about, settings.seed, localization)
            folder = settings.folder / "confidence" / network / cv.start_name(settings)
            kept = {kind: folder / f"fold-{fold}-{kind}-{key}.parquet" for kind, key in keys.items()}
            files += kept.values()
            missing = {kind: file for kind, file in kept.items() if not file.is_file()}
            if missing:
                part = part[[kind for kind in missing if kind != BASELINES]]
                tasks[f"{network}, fold {fold}"] = settings, network, fold, part, sign, options, arguments, missing
    if tasks:
        workers = 0 if pick_device(settings.device).type == "cuda" else settings.workers
        with compute.pool(settings.scheduler, workers) as pool:
            pool.run(cover_fold, tasks, f"{len(tasks)} folds under covers")
    return pd.concat(map(pd.read_parquet, files), ignore_index=True)


def cover_fold(settings, network, fold, dataset, sign, options, arguments, files: Mapping) -> None:
    """Score the covered test images of one fold under the maps of every method in `files`, and keep a table of each."""
    size = settings.image_size
    about, index = _about(settings, network, dataset, "predicted")
    loaded = dataset.load(scheduler="synchronous")
    heat = {
        method: {
            name: to_heatmap(raw.values, size, sign) for name, raw in _by_window(method, loaded[method], options or {})
        }
        for method in loaded
    }
    if BASELINES in files:
        heat[BASELINES] = _baselines(settings, index)
    model, images = cv.load_fold(settings, network, fold), cv.study_of(settings).images(size, index)
    table = confidence(model, images, {name: one for kind in heat.values() for name, one in kind.items()}, **arguments)
    about = about.drop(columns=["start", "target"]).iloc[table["image"]].reset_index(drop=True)
    table = pd.concat([about, table.drop(columns="image")], axis=1)
    for kind, file in files.items():
        store.write_table(table[table["map"].isin(list(heat[kind]))], file)
