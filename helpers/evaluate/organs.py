"""Where a map of a volume looks, against the organ in which the abnormality lies; and how well labels are told."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from helpers.data.organs import organs_of_labels
from helpers.evaluate.statistics import Interval, bootstrap_interval, resample
from helpers.models.axialnet import CAMS

THRESHOLDS = (0.004, 0.008, 0.012, 0.016, *(round(0.02 * step, 2) for step in range(1, 50)))


def normalised(cam) -> np.ndarray:
    """ReLU, then divided by the maximum: (..., H, i, j) in [0, 1]; a map without a positive cell becomes 0 everywhere.

    Raises
    ------
    ValueError
        if a value is not finite
    """
    cam = np.asarray(cam, float)
    if cam.ndim < 3 or not np.isfinite(cam).all():
        raise ValueError(f"cam: expected finite numbers (..., H, i, j), got {cam.shape}" if cam.ndim < 3 else
                         f"cam: {(~np.isfinite(cam)).sum()} values are not finite")  # fmt: skip
    positive = np.maximum(cam, 0)
    peak = positive.max((-3, -2, -1), keepdims=True)
    return np.divide(positive, peak, out=np.zeros_like(positive), where=peak > 0)


def _pair(cam, allowed):
    cam, allowed = normalised(cam), np.asarray(allowed)
    if allowed.dtype != bool or allowed.shape != cam.shape:
        raise ValueError(f"allowed: expected bool {cam.shape} as the maps, got {allowed.dtype} {allowed.shape}")
    return cam, allowed


def organ_iou(cam, allowed, threshold=0.5, reference_code: bool = False) -> np.ndarray:
    r"""Share of what a map marks that lies in the allowed region.

    .. math:: OrganIoU = \frac{a}{a + b}, \qquad a = |B \cap A|, \; b = |B \setminus A|, \; B = \{c : \hat h_c > t\}

    h is the map after ReLU and division by its maximum, A the allowed region. That the organ is not covered costs
    nothing: a lesion is smaller than its organ.

    Parameters
    ----------
    cam : (..., H, i, j) raw signed maps
    allowed : bool, the same shape
    threshold : number in [0, 1), or an array that broadcasts against (...)
    reference_code : as in the code of the paper: 0 unless a and b are both above 0, so that a perfect map gets 0

    Returns
    -------
    (...) float array in [0, 1]; 1 for a map wholly inside, 0 for an empty one (`organ_scores` counts these)

    References
    ----------
    .. [1] Draelos and Carin, Use HiResCAM instead of Grad-CAM, arXiv 2011.08891; code: rachellea/explainable-ct-ai.
    """
    cam, allowed = _pair(cam, allowed)
    threshold = np.asarray(threshold, float)
    if ((threshold < 0) | (threshold >= 1)).any():
        raise ValueError(f"threshold: expected numbers in [0, 1), got {threshold}")
    marked = cam > threshold[..., None, None, None]
    a, b = ((marked & part).sum((-3, -2, -1)) for part in (allowed, ~allowed))
    found = a / np.maximum(a + b, 1)
    return np.where((a > 0) & (b > 0), found, 0.0) if reference_code else found


def energy_share(cam, allowed) -> np.ndarray:
    r"""Share of a map's positive values that lies in the allowed region; needs no threshold.

    .. math:: \sum_{c \in A} \max(h_c, 0) \Big/ \sum_c \max(h_c, 0)

    Parameters and return value as `organ_iou`; 0 for an empty map.
    """
    cam, allowed = _pair(cam, allowed)
    total = cam.sum((-3, -2, -1))
    return np.divide((cam * allowed).sum((-3, -2, -1)), total, out=np.zeros_like(total), where=total > 0)


def choose_thresholds(cams, allowed, labels, names, reference_code: bool = False) -> pd.Series:
    """For every label the threshold with the best mean OrganIoU on validation volumes; to be frozen for the test.

    Parameters
    ----------
    cams : (N, K, H, i, j) raw signed maps
    allowed : (N, K, H, i, j) bool
    labels : (N, K) of 0 and 1; only volumes in which a label is present count for it
    names : K label names

    Returns
    -------
    Series by name, from `THRESHOLDS`, the lowest of equals; a label that no volume has gets the median of the others

    Raises
    ------
    ValueError
        if shapes differ or no label is present anywhere
    """
    present = _present(cams, labels, names)
    scores = np.stack([organ_iou(cams, allowed, t, reference_code) for t in THRESHOLDS])
    best = {}
    for k, name in enumerate(names):
        if present[:, k].any():
            best[name] = THRESHOLDS[int(scores[:, present[:, k], k].mean(1).argmax())]
    if not best:
        raise ValueError("labels: no label is present in any volume, so no threshold can be chosen")
    return pd.Series({name: best.get(name, float(np.median(list(best.values())))) for name in names}, name="threshold")


def _present(cams, labels, names):
    labels = np.asarray(labels)
    if np.ndim(cams) != 5 or labels.shape != np.shape(cams)[:2] or len(names) != labels.shape[1]:
        raise ValueError(f"cams {np.shape(cams)}, labels {labels.shape}, {len(names)} names: expected (N, K, H, i, j), "
                         "(N, K) and K names")  # fmt: skip
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels: expected 0 and 1, got {np.unique(labels)[:5]}")
    return labels.astype(bool)


def organ_scores(cams, allowed, labels, thresholds: pd.Series, organs, scans, reference_code=False) -> pd.DataFrame:
    """A row for every volume and label that is truly present in it.

    Parameters
    ----------
    cams, allowed, labels : as in `choose_thresholds`
    thresholds : Series by label, of `choose_thresholds`
    organs : mapping from label to its organ's name
    scans : N names of volumes

    Returns
    -------
    columns scan, label, organ, organ_iou, energy_share, chance (OrganIoU of a map that marks everything: the share of
    cells that are allowed) and empty (a map without a positive cell, scored 0)
    """
    names = list(thresholds.index)
    present = _present(cams, labels, names)
    scores = {
        "organ_iou": organ_iou(cams, allowed, thresholds.to_numpy()[None], reference_code),
        "energy_share": energy_share(cams, allowed),
        "chance": np.asarray(allowed).mean((-3, -2, -1)),
        "empty": np.max(cams, (-3, -2, -1)) <= 0,
    }
    n, k = np.nonzero(present)
    where = {"scan": np.asarray(scans)[n], "label": np.asarray(names)[k], "organ": [organs[names[i]] for i in k]}
    return pd.DataFrame(where | {name: values[n, k] for name, values in scores.items()})


def summary(scores: pd.DataFrame, by=None, measure: str = "organ_iou") -> pd.DataFrame:
    """Means with bootstrap intervals that resample whole volumes.

    Parameters
    ----------
    scores : table of `organ_scores`, perhaps several below each other with further columns such as seed or map
    by : column or columns to group by; None for all rows together
    measure : column that is averaged

    Returns
    -------
    one row per group: mean, low, high, volumes (n of the interval), pairs, empty (maps)
    """

    def one(part):
        mean, low, high, n = bootstrap_interval(part[measure].to_numpy(), part["scan"].to_numpy())
        counts = {"volumes": n, "pairs": len(part), "empty": int(part["empty"].sum())}
        return {"mean": mean, "low": low, "high": high} | counts

    if by is None:
        return pd.DataFrame([one(scores)], ["all"])
    groups = scores.groupby(by, sort=False)
    keys = [key for key, _ in groups]
    index = pd.Index(keys, name=by) if isinstance(by, str) else pd.MultiIndex.from_tuples(keys, names=by)
    return pd.DataFrame([one(part) for _, part in groups], index)


def relative_gain(scores, baseline, measure: str = "organ_iou", n_resamples: int = 2000, seed: int = 0) -> Interval:
    r"""By what share a mean is larger than that of a baseline on the same volumes.

    .. math:: g = \bar v / \bar v_0 - 1

    with a percentile bootstrap interval at 95 % that resamples whole volumes, the same ones on both sides.

    Parameters
    ----------
    scores, baseline : tables of `organ_scores` with the same volumes, perhaps of several seeds below each other

    Raises
    ------
    ValueError
        if the volumes differ
    """
    sides = [table.groupby("scan")[measure].agg(["sum", "size"]) for table in (scores, baseline)]
    if not sides[0].index.equals(sides[1].index):
        raise ValueError("scores and baseline: expected the same volumes in both")
    columns = [side[name].to_numpy(float) for side in sides for name in ("sum", "size")]

    def gain(total, size, total_0, size_0, axis=-1):
        return total.sum(axis) / size.sum(axis) / (total_0.sum(axis) / size_0.sum(axis)) - 1

    rng = np.random.default_rng(seed)
    bounds = stats.bootstrap(
        columns, gain, paired=True, vectorized=True, method="percentile", n_resamples=n_resamples, rng=rng
    ).confidence_interval
    return Interval(float(gain(*columns)), float(bounds.low), float(bounds.high), len(sides[0]))


def label_scores(logits, labels, names) -> pd.DataFrame:
    """AUROC and average precision of every label.

    Parameters
    ----------
    logits : (N, K); any increasing function of them gives the same
    labels : (N, K) of 0 and 1
    names : K label names

    Returns
    -------
    index label; columns auroc, average_precision, positive and n; NaN where a label is present in all volumes or none
    """
    logits, labels = np.asarray(logits, float), np.asarray(labels)
    if logits.shape != labels.shape or logits.ndim != 2 or len(names) != logits.shape[1]:
        raise ValueError(f"logits {logits.shape}, labels {labels.shape}: expected (N, {len(names)}), the names' number")
    rows = []
    for k in range(len(names)):
        positive = int(labels[:, k].sum())
        both = 0 < positive < len(labels)
        measures = (roc_auc_score, average_precision_score)
        rows.append([*(m(labels[:, k], logits[:, k]) if both else np.nan for m in measures), positive, len(labels)])
    return pd.DataFrame(rows, pd.Index(names, name="label"), ["auroc", "average_precision", "positive", "n"])


def mean_auroc(logits, labels, baseline=None, n_resamples: int = 2000, seed: int = 0) -> Interval:
    r"""AUROC, averaged over labels and networks, with a percentile bootstrap interval that resamples volumes.

    .. math:: \frac{1}{R K} \sum_{r,k} \sum_{p,q} v_p v_q \, [s_{rpk} > s_{rqk}] \Big/ \sum_{p,q} v_p v_q

    p runs over the volumes that show label k, q over those that do not; a tie counts one half. v says how often a
    bootstrap sample holds a volume, for all networks and labels alike; the networks are taken as they are.

    Parameters
    ----------
    logits : (R, N, K) of R networks on the same volumes
    labels : (N, K) of 0 and 1; a label that is present in all volumes or in none is left out
    baseline : (R', N, K) logits on volumes of the same labels; then by how much the mean AUROC is above theirs
    n_resamples, seed : of the bootstrap

    Returns
    -------
    Interval; n counts volumes

    Raises
    ------
    ValueError
        if shapes differ or no label is left
    """
    labels, sides = np.asarray(labels, bool), [logits] if baseline is None else [logits, baseline]
    told, n = np.flatnonzero(labels.any(0) & ~labels.all(0)), len(labels)
    for side in sides:
        if np.ndim(side) != 3 or np.shape(side)[1:] != labels.shape:
            raise ValueError(f"logits {np.shape(side)}, labels {labels.shape}: expected (R, N, K) and (N, K)")
    if not len(told):
        raise ValueError("labels: every label is present in all volumes or in none, so there is no AUROC")
    weights = np.vstack([np.ones(n), resample(np.arange(n), None, n_resamples, seed)])
    means = []
    for side in sides:
        values = np.array([_auroc(weights, one[:, k], labels[:, k]) for one in np.asarray(side, float) for k in told])
        known = ~np.isnan(values)  # a sample may hold no volume with a label, or none without it
        means.append(np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1))
    mean, *samples = means[0] if baseline is None else means[0] - means[1]
    low, high = np.quantile(samples, (0.025, 0.975))
    return Interval(float(mean), float(low), float(high), n)


def _auroc(weights, scores, present):
    """AUROC for every row of weights (B, N); NaN where a row leaves nothing to compare."""
    one, other = scores[present][:, None], scores[~present]
    above = (one > other) + 0.5 * (one == other)
    pairs = weights[:, present].sum(1) * weights[:, ~present].sum(1)
    wins = ((weights[:, present] @ above) * weights[:, ~present]).sum(1)
    return np.divide(wins, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def label_groups(volumes) -> dict[str, str]:
    """Organ group of every label, "lung" or "heart" (with vessels and mediastinum), where the volumes show it most."""
    pairs = zip(volumes.abnormalities, organs_of_labels(volumes).sum(0), strict=True)
    return {name: "heart" if heart > right + left else "lung" for name, (right, left, heart) in pairs}


def judge(experiment, recipes, part: str, cams=CAMS, reference_code: bool = False) -> pd.DataFrame:
    """`organ_scores` of several networks and both maps; thresholds from the part "val" of the same network and map.

    Parameters
    ----------
    experiment : `ct_training.Experiment` whose networks are trained
    recipes : of the networks
    part : "val", "test", ...
    cams : maps to score
    reference_code : see `organ_iou`

    Returns
    -------
    the columns of `organ_scores`, and weight, seed, head of the recipe, and map
    """
    organs, tables = label_groups(experiment.sets["train"]), []
    for recipe in recipes:
        parts = {name: (experiment.outputs(recipe, name), experiment.allowed(recipe, name)) for name in {"val", part}}
        for cam in cams:
            (val, regions), names = parts["val"], list(experiment.labels)
            chosen = choose_thresholds(val[cam], regions, experiment.sets["val"].labels, names, reference_code)
            (found, regions), volumes = parts[part], experiment.sets[part]
            table = organ_scores(found[cam], regions, volumes.labels, chosen, organs, volumes.names, reference_code)
            tables.append(table.assign(weight=recipe.weight, seed=recipe.seed, head=recipe.head, map=cam))
    return pd.concat(tables, ignore_index=True)


def judge_labels(experiment, recipes, part: str) -> pd.DataFrame:
    """`label_scores` of several networks: columns label, auroc, average_precision, positive, n, weight, seed, head."""
    tables = []
    for recipe in recipes:
        logits = experiment.outputs(recipe, part)["logits"]
        table = label_scores(logits, experiment.sets[part].labels, experiment.labels).reset_index()
        tables.append(table.assign(weight=recipe.weight, seed=recipe.seed, head=recipe.head))
    return pd.concat(tables, ignore_index=True)


def choose_weight(scores: pd.DataFrame, labels: pd.DataFrame, tolerance: float = 0.01) -> float:
    """The weight of the mask loss with the best mean OrganIoU of those whose mean AUROC is at most `tolerance` below
    that of the network without it.

    Parameters
    ----------
    scores : table of `judge` on validation volumes, one map
    labels : table of `judge_labels` on the same; both with weight 0 among others
    """
    auroc, iou = labels.groupby("weight")["auroc"].mean(), scores.groupby("weight")["organ_iou"].mean()
    if 0 not in auroc.index or not auroc.index.equals(iou.index):
        raise ValueError(f"expected the same weights in both tables and 0 among them, got {list(iou.index)} and "
                         f"{list(auroc.index)}")  # fmt: skip
    return float(iou[auroc >= auroc[0] - tolerance].idxmax())
