"""Score-CAM from a part of its forward passes: similar masks have similar scores."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

ROUNDS = 24  # a round scores this part of the feature maps
REFITS = 3  # rounds in which the kernel is fitted; later ones keep it
HALF = 0.5  # share of the feature maps after which the rest is scored too: no estimate is worth more than that
DEVIATIONS = 3  # standard deviations in an estimated error


def sampled_scores(
    score: Callable[[np.ndarray], np.ndarray], masks: np.ndarray, maps: np.ndarray, tolerance: float, seed: int = 0
) -> tuple[np.ndarray, int, np.ndarray]:
    r"""Scores of all feature maps, predicted for those whose forward pass would change the map least.

    A Gaussian process (Matern 3/2) of the masks predicts the scores. The first round scores masks that are far from
    each other and others drawn at random; each further round scores those with the largest expected effect on the map,
    :math:`w_f \sigma_f \lVert A^f - M \rVert`, and as many drawn at random. The estimated error of the map is

    .. math:: e = 3 c \sqrt{\textstyle\sum_{f,g} w_f w_g (e^{\Sigma_{fg}} - 1) (A^f - M) \cdot (A^g - M)}
              \Big/ \lVert M \rVert

    over the maps not scored, with the weights w, the map M and the predictions' covariance :math:`\Sigma`. The factor
    c, at least 1, is how many standard deviations the last round's scores lay from what had been predicted for them.
    It is an estimate and no bound: where masks that look alike score differently, the true error can be larger.

    Parameters
    ----------
    score : from n indices of feature maps to their scores (n, T)
    masks : (F, P), the feature maps scaled to [0, 1], on their own grid
    maps : (F, P), the feature maps
    tolerance : estimated error, as a share of the map's Euclidean norm, at which to stop
    seed : of the random choices

    Returns
    -------
    scores (F, T); the number of feature maps scored; the estimated errors (T,), 0 where all were scored
    """
    n, rng = len(masks), np.random.default_rng(seed)
    size = max(8, n // ROUNDS)
    scored = _far_apart(masks, min(n, size // 2))
    scored = np.r_[scored, rng.choice(np.setdiff1d(np.arange(n), scored), min(n, size) - len(scored), replace=False)]
    found, kernels, factor = score(scored), None, 1.0
    while len(scored) <= HALF * n:
        rest = np.setdiff1d(np.arange(n), scored)
        refit = kernels is None or len(scored) <= REFITS * size
        kernels, means, covariances = _predict(masks[scored], found, masks[rest], kernels, refit)
        deviations = np.sqrt([c.diagonal() for c in covariances]).T
        scores = np.empty((n, found.shape[1]))
        scores[scored], scores[rest] = found, means + deviations**2 / 2  # the mean of exp(score) is that of exp(this)
        weights = softmax(scores, axis=0)
        away = [maps[rest] - w @ maps for w in weights.T]
        effects = [w[rest, None] * a for w, a in zip(weights.T, away, strict=True)]
        spread = [np.einsum("fp,fg,gp->", e, np.expm1(c), e) for e, c in zip(effects, covariances, strict=True)]
        norms = [np.linalg.norm(w @ maps) for w in weights.T]
        errors = DEVIATIONS * factor * np.sqrt(np.maximum(spread, 0)) / np.maximum(norms, np.finfo(float).tiny)
        if errors.max() <= tolerance:
            return scores, len(scored), errors
        gains = deviations * np.linalg.norm(effects, axis=2).T
        best = np.argsort(-(gains / gains.sum(0)).max(1), kind="stable")[: size - size // 2]
        chosen = np.r_[best, rng.choice(np.setdiff1d(np.arange(len(rest)), best), size // 2, replace=False)]
        new = score(rest[chosen])
        factor = max(1.0, np.sqrt(np.mean(((new - means[chosen]) / deviations[chosen]) ** 2)))
        scored, found = np.r_[scored, rest[chosen]], np.r_[found, new]
    rest = np.setdiff1d(np.arange(n), scored)
    scores = np.empty((n, found.shape[1]))
    scores[scored], scores[rest] = found, score(rest) if len(rest) else 0
    return scores, n, np.zeros(found.shape[1])


def _far_apart(masks, n):
    """Indices of n masks, each the farthest from those before it."""
    chosen = [int(((masks - masks.mean(0)) ** 2).sum(1).argmax())]
    distance = ((masks - masks[chosen[0]]) ** 2).sum(1)
    while len(chosen) < n:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((masks - masks[chosen[-1]]) ** 2).sum(1))
    return np.array(chosen)


def _predict(known, scores, unknown, kernels, refit):
    """Kernels, means (n, T) and covariances (T, n, n) of the scores of unknown masks."""
    start = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(1.0, (1e-1, 1e2), nu=1.5) + WhiteKernel(1e-3, (1e-6, 1e0))
    fitted, means, covariances = [], [], []
    for t, values in enumerate(scores.T):
        middle, scale = values.mean(), values.std() or 1.0
        kernel = start if kernels is None else kernels[t]
        process = GaussianProcessRegressor(kernel, optimizer="fmin_l_bfgs_b" if refit else None)
        with warnings.catch_warnings():  # a parameter at its bound is no harm here
            warnings.simplefilter("ignore", ConvergenceWarning)
            process.fit(known, (values - middle) / scale)
        mean, covariance = process.predict(unknown, return_cov=True)
        fitted.append(process.kernel_)
        means.append(middle + scale * mean)
        covariances.append(scale**2 * covariance)
    return fitted, np.stack(means, 1), np.stack(covariances)
