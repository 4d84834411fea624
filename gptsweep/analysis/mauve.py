"""MAUVE: how close a model's texts are to a reference, computed from features of both; from 0 (far) to 1 (close).

Pillutla et al. 2021, MAUVE: Measuring the Gap Between Neural Text and Human Text using Divergence Frontiers. The features of
both sets are clustered together. With p and q the histograms over clusters, the mixtures r = w p + (1 - w) q trace the curve
(exp(-c KL(q || r)), exp(-c KL(p || r))), and MAUVE is the area under it. As in their section 4 and appendix C: features are
normalised to length 1 and projected on the principal components that explain 90 % of their variance; there are a tenth as many
clusters as a set has texts; c = 5; 25 mixtures. The clustering depends only on the features and their order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .metrics import Outcome

MIN_TEXTS = 20
"""Fewer texts would give fewer than two clusters of ten."""
VERSION = 1
"""Incremented whenever the same features would give another value; cached values carry it."""

_VARIANCE = 0.9
_TEXTS_A_CLUSTER = 10
_RESTARTS = 5
_STEPS = 500
_SCALE = 5.0
_MIXTURES = 25

Floats = npt.NDArray[np.float64]


def mauve(texts: npt.ArrayLike, reference: npt.ArrayLike) -> Outcome:
    """MAUVE of two sets of texts, or the reason why it cannot be computed.

    Args:
        texts, reference: ``[n, n_features]`` and ``[m, n_features]``, the features of each text.
    """
    p, q = np.asarray(texts, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if min(len(p), len(q)) < MIN_TEXTS:
        return f"needs {MIN_TEXTS} samples and {MIN_TEXTS} pieces of the reference text"
    clusters = max(2, round(min(len(p), len(q)) / _TEXTS_A_CLUSTER))
    labels = clustered(reduced(np.concatenate([q, p])), clusters)
    counts = [np.bincount(part, minlength=clusters) for part in (labels[len(q) :], labels[: len(q)])]
    return area(counts[0] / len(p), counts[1] / len(q))


def reduced(features: Floats) -> Floats:
    """Normalise features to length 1 and project them on the principal components that explain 90 % of the variance."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(lengths > 0, lengths, 1)
    centred = unit - unit.mean(axis=0)
    _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    shares = np.cumsum(spread**2)
    kept = 1 + int(np.argmax(shares >= _VARIANCE * shares[-1]))
    return np.asarray(centred @ axes[:kept].T)


def clustered(points: Floats, clusters: int) -> npt.NDArray[np.int64]:
    """Assign each point to a cluster by k-means: the best of 5 k-means++ starts (Arthur and Vassilvitskii 2007).

    Args:
        points: ``[n, d]``.
        clusters: the number of clusters, at most ``n``; fewer result if points coincide.
    """
    best, least = np.zeros(len(points), dtype=np.int64), np.inf
    for restart in range(_RESTARTS):
        labels, cost = _lloyd(points, _spread_out(points, clusters, np.random.Generator(np.random.PCG64(restart))))
        if cost < least:
            best, least = labels, cost
    return best


def _spread_out(points: Floats, clusters: int, rng: np.random.Generator) -> Floats:
    """k-means++ centres: each is drawn with probability proportional to the squared distance to the nearest earlier one."""
    chosen = [int(rng.random() * len(points))]
    nearest = _squares(points, points[chosen])[:, 0]
    for _ in range(clusters - 1):
        reached = np.cumsum(nearest)
        chosen.append(min(int(np.searchsorted(reached, rng.random() * reached[-1], side="right")), len(points) - 1))
        nearest = np.minimum(nearest, _squares(points, points[chosen[-1:]])[:, 0])
    return points[chosen]


def _lloyd(points: Floats, centres: Floats) -> tuple[npt.NDArray[np.int64], float]:
    """Iterate until labels are stable. Return labels and the sum of squared distances; an empty cluster keeps its centre."""
    labels = np.full(len(points), -1)
    for _ in range(_STEPS):
        squares = _squares(points, centres)
        before, labels = labels, squares.argmin(axis=1)
        if np.array_equal(before, labels):
            break
        counts = np.bincount(labels, minlength=len(centres))
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, points)
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    return labels, float(squares.min(axis=1).sum())


def _squares(points: Floats, centres: Floats) -> Floats:
    """Squared distances, ``[n, k]``."""
    return np.asarray(((points[:, None, :] - centres[None, :, :]) ** 2).sum(axis=-1))


def area(p: Floats, q: Floats) -> float:
    """The area under the divergence frontier of two histograms."""
    weights = np.linspace(1e-6, 1 - 1e-6, _MIXTURES)
    mixtures = [w * p + (1 - w) * q for w in weights]
    x = np.exp(-_SCALE * np.array([0.0, *(divergence(q, r) for r in mixtures), np.inf]))
    y = np.exp(-_SCALE * np.array([np.inf, *(divergence(p, r) for r in mixtures), 0.0]))
    return float(abs(np.trapezoid(y, x)) + abs(np.trapezoid(x, y))) / 2


def divergence(p: Floats, r: Floats) -> float:
    """The Kullback-Leibler divergence KL(p || r) of two histograms, in nats."""
    there = p > 0
    with np.errstate(divide="ignore"):
        logs: Any = np.log(p[there] / r[there])
    return float((p[there] * logs).sum())
