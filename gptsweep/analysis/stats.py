"""Uncertainty of means and differences: standard errors over independent clusters, and paired bootstrap intervals.

The independent unit is a *cluster*. Points of a sweep share their noise, so their samples of one (prompt, seed, sample_index)
are one draw and form one cluster, however many points they come from. With ``noise=independent`` each sample is its own
cluster, and so are all differences from one sample. A metric per point is a property of all samples of a point, so its clusters
are seeds. A sample found in several directories (the same point_id, prompt and sample_index) counts once.

Every metric per sample is a ratio of two sums, R = sum(num) / sum(den): a mean has den = 1, a perplexity is
exp(-sum(log-probability) / sum(tokens)). Its standard error is the linearised one for a ratio of cluster totals (Cochran 1977,
Sampling Techniques, 6.3 and 9A.2; equal to the cluster-robust error of Liang and Zeger 1986, with the factor G / (G - 1) of
Cameron and Miller 2015, A Practitioner's Guide to Cluster-Robust Inference):

    u_c = sum over the samples of cluster c of (num - R * den)
    se(R) = sqrt(G / (G - 1) * sum(u_c ** 2)) / sum(den),    G clusters

and for exp(-R) it is exp(-R) * se(R), by the delta method. Intervals of a difference resample whole clusters of pairs with
replacement and take percentiles (Efron and Tibshirani 1993, An Introduction to the Bootstrap, 13.3; Field and Welsh 2007,
Bootstrapping Clustered Data).

These are pure functions on the frames of `frames.read_sweep`; `sweep.Sweep.group` and `.compare` call them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..store.schema import MEANS
from .metrics import METRICS, Metric, Text

RESAMPLES = 2_000
MIN_PAIRS = 6
"""With fewer independent pairs a difference may be chance: n differences all have one sign by luck with p = 2 / 2^n."""
MAX_BLOCKS = 4_000
BY_CHANCE = 0.05
"""The false positive rate: 1 minus the coverage of intervals. The expected number of false positives needs no independence."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def ratio(num: Floats, den: Floats, codes: Ints, groups: int, clusters: Ints) -> tuple[Floats, Floats, Ints]:
    """For each group: sum(num) / sum(den), its standard error over clusters (NaN if there is one), and the number of values.

    The formula is in the docstring of this module.

    Args:
        num, den: [n]; a row with ``den`` = 0 has no value.
        codes: [n], the group of each row, below ``groups``.
        clusters: [n], equal for rows that are not independent of each other.
    """
    have = den > 0
    num, den, codes, clusters = num[have], den[have], codes[have], clusters[have]
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.bincount(codes, den, groups)
        mean = np.bincount(codes, num, groups) / total
        residuals = num - mean[codes] * den
        _, cluster = np.unique(clusters, return_inverse=True)
        places, place = np.unique(codes * (cluster.max(initial=0) + 1) + cluster, return_inverse=True)
        group = places // (cluster.max(initial=0) + 1)
        count = np.bincount(group, minlength=groups)
        squares = np.bincount(group, np.bincount(place, residuals, len(places)) ** 2, groups)
        error = np.sqrt(squares * count / np.where(count > 1, count - 1, np.nan)) / total
    return mean, error, np.bincount(codes, minlength=groups).astype(np.int64)


def exponential(metric: Metric, mean: Floats, error: Floats) -> tuple[Floats, Floats]:
    """Convert mean and error of a ratio to the metric's own scale."""
    return (np.exp(-mean), np.exp(-mean) * error) if metric.exponential else (mean, error)


def per_point(name: str, points: pd.DataFrame, codes: Ints, groups: int) -> tuple[Floats, Floats, Ints]:
    """For a metric per point, by group: mean over points, standard error over seeds, and number of points."""
    values = points[name].to_numpy(float)
    return ratio(np.nan_to_num(values), (~np.isnan(values)).astype(float), codes, groups, seeds_of(points))


def per_sample(metric: Metric, samples: pd.DataFrame, codes: Ints, groups: int, clusters: Ints) -> tuple[Floats, Floats, Ints]:
    """For a metric per sample, by group: mean, standard error over clusters, and number of samples."""
    num, den = (samples[f"{metric.name}/{part}"].to_numpy(float) for part in ("num", "den"))
    mean, error, n = ratio(num, den, codes, groups, clusters)
    return *exponential(metric, mean, error), n


def from_summaries(metric: Metric, points: pd.DataFrame, codes: Ints, groups: int) -> tuple[Floats, Floats, Ints]:
    """Compute `per_sample` from the points' means, errors and counts, if every sample is its own cluster.

    The squared deviations within and between points add up to those over all samples, so the result is the same without
    reading any sample: showing a table need not measure a million samples again.
    """
    points, codes = points[(have := points[metric.name].notna().to_numpy(bool))], codes[have]

    def total(values: npt.ArrayLike) -> Floats:
        return np.asarray(np.bincount(codes, weights=np.asarray(values, dtype=float), minlength=groups), dtype=np.float64)

    values = points[metric.name].to_numpy(float)
    samples = points["num_samples"].to_numpy(float)
    own = points[metric.spread].to_numpy(float) / (np.sqrt(samples) if metric.deviation else 1.0)
    weights = points["completion_tokens"].to_numpy(float) if metric.pooled else samples
    if metric.exponential:
        values, own = -np.log(values), own / values
    n = total(samples)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total(weights * values) / total(weights)
        within = np.nan_to_num(own) ** 2 * (samples - 1) * weights**2 / samples
        between = (weights * (values - mean[codes])) ** 2 / samples
        error = np.sqrt(total(within + between) * n / np.where(n > 1, n - 1, np.nan)) / total(weights)
    return *exponential(metric, mean, error), n.astype(np.int64)


def by_seed(name: str, points: pd.DataFrame, codes: Ints, groups: int) -> list[list[tuple[str, float]]]:
    """For a metric per point, by group: (seed, value) with each seed once, in ascending order."""
    found: list[list[tuple[str, float]]] = [[] for _ in range(groups)]
    if "seed" in points:
        table = points.assign(group=codes)
        table = table.sort_values("num_samples", ascending=False, kind="stable").drop_duplicates(["group", "seed"])
        table = table.sort_values("seed", kind="stable")
        for group, seed, value in zip(*(table[column].tolist() for column in ("group", "seed", name)), strict=True):
            found[group].append((str(seed), value))
    return found


def identities(points: pd.DataFrame) -> Ints:
    """[points], a number that is equal for copies of one point (the same point_id)."""
    ids = points["point_id"] if "point_id" in points else pd.Series(None, index=points.index, dtype=object)
    own = [f"row {place}" if pd.isna(each) else str(each) for place, each in zip(points.index, ids, strict=True)]
    return pd.factorize(np.asarray(own, dtype=object))[0].astype(np.int64)


def noises(points: pd.DataFrame) -> Ints:
    """[points], the noise stream of each point: -1 for the stream that points of a sweep share, else a number of its own."""
    independent = (points["noise"] == "independent").fillna(False) if "noise" in points else pd.Series(False, points.index)
    return np.where(independent.to_numpy(bool), identities(points), np.int64(-1))


def seeds_of(points: pd.DataFrame) -> Ints:
    """[points], the cluster of each point: points with the same seed share their noise, unless it is independent."""
    seeds = points["seed"] if "seed" in points else pd.Series(0, index=points.index)
    return places_of(pd.DataFrame({"seed": seeds, "noise": noises(points)}))


def places_of(table: pd.DataFrame) -> Ints:
    """Number the distinct rows of ``table`` in sorted order; equal rows get equal numbers."""
    return np.asarray(table.groupby(list(table.columns), sort=True, dropna=False).ngroup(), dtype=np.int64)


def linked(pairs: pd.DataFrame, place: list[str]) -> Ints:
    """Number the clusters of pairs: those that share noise on either side, directly or through other pairs.

    With common noise these are the pairs of one place. With independent noise they are pairs with a sample (or point) in
    common, as when several points are compared with one.

    Args:
        pairs: the columns ``place`` and, for each side, ``noise_of_a`` and ``noise_of_b`` (`noises`).
        place: what samples from one noise stream must agree in to share their noise.
    """
    if not (pairs[["noise_of_a", "noise_of_b"]] >= 0).any(axis=None):
        return places_of(pairs[place]) if place else np.zeros(len(pairs), dtype=np.int64)
    from scipy.sparse import coo_array  # late: a third of a second that few sweeps need
    from scipy.sparse.csgraph import connected_components

    ends = pd.concat([pairs[place].assign(noise=pairs[f"noise_of_{side}"]) for side in "ab"])
    a, b = places_of(ends).reshape(2, -1)
    _, found = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(2 * len(a), 2 * len(a))), directed=False)
    _, first, numbers = np.unique(found[a], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(a[first]))[numbers].astype(np.int64)  # in the order of their places


def shares(points: pd.DataFrame, codes: Ints) -> bool:
    """Whether a group contains points that share their noise, or copies of one point."""
    return bool(pd.DataFrame({"group": codes, "cluster": seeds_of(points)}).duplicated().any())


def textual() -> list[str]:
    """Metrics per sample that are computed from text and tokens; the others are fields of a line of ``samples.jsonl``."""
    return [name for name, metric in METRICS.items() if metric.of_sample is not None]


def text_values(samples: pd.DataFrame) -> Floats:
    """[n, metrics], the values of the metrics in `textual`; NaN where a sample has none."""
    chosen = [METRICS[name] for name in textual()]
    columns = ("completion", "finish_reason", "token_ids")
    rows = [
        [metric.value(text) for metric in chosen]
        for text in (
            Text({"completion": completion, "finish_reason": finish, "token_ids": ids.tolist()})
            for completion, finish, ids in zip(*(samples[name] for name in columns), strict=True)
        )
    ]
    return np.array(rows, dtype=float).reshape(len(rows), len(chosen))


def sample_values(samples: pd.DataFrame, texts: Floats, metrics: Mapping[str, Metric] = METRICS) -> pd.DataFrame:
    """Every metric per sample as numerator and denominator, so that its mean is their ratio; a missing value weighs nothing.

    Args:
        samples: rows of ``Sweep.samples``.
        texts: [n, metrics], their `text_values`.
        metrics: the metrics by name.
    """
    from_text = dict(zip(textual(), texts.T, strict=True))
    found = samples.drop(columns=[*MEANS, "token_ids", "completion"])
    for name, metric in metrics.items():
        if metric.per == "sample":
            value = pd.Series(from_text[name], samples.index) if name in from_text else samples[metric.field].astype(float)
            weight = samples["completion_tokens"].where(value.notna(), 0) if metric.pooled else value.notna()
            found[f"{name}/num"], found[f"{name}/den"] = value.fillna(0) * weight, weight.astype(float)
    return found


def paired_samples(pairs: pd.DataFrame, metrics: Mapping[str, Metric] = METRICS) -> dict[str, dict[str, Any]]:
    """Implement `Sweep.compare` for metrics per sample.

    Args:
        pairs: one row per pair, with ``<metric>/num_a`` and so on, and ``cluster``, equal for pairs that are not independent.
        metrics: the metrics by name.
    """
    names = [name for name, metric in metrics.items() if metric.per == "sample"]
    if pairs.empty:
        reason = "no sample with the same prompt, seed and sample_index on both sides"
        return {name: verdict(math.nan, math.nan, None, 0, 0, reason) for name in names}
    sums = np.stack(
        [pairs[f"{name}/{part}_{side}"].to_numpy(float) for name in names for part in ("num", "den") for side in "ab"]
    )
    sums = sums.reshape(len(names), 2, 2, len(pairs))
    sums *= (sums[:, 1].min(axis=1) > 0)[:, None, None, :]
    counts = (sums[:, 1, 0] > 0).sum(axis=-1)
    clusters = summed(sums, pairs["cluster"].to_numpy(np.int64))
    independent = (clusters[:, 1, 0] > 0).sum(axis=-1)
    blocks = in_blocks(clusters)
    drawn = blocks @ resampled(blocks.shape[-1]).T
    rows = {}
    for index, name in enumerate(names):
        with np.errstate(invalid="ignore", divide="ignore"):
            mean, again = (part[index, 0] / part[index, 1] for part in (sums.sum(axis=-1), drawn))
        if metrics[name].exponential:
            mean, again = np.exp(-mean), np.exp(-again)
        reason = "needs a pair where both have it"
        rows[name] = verdict(mean[0], mean[1], again[1] - again[0], int(counts[index]), int(independent[index]), reason)
    return rows


def paired_points(pairs: pd.DataFrame, name: str) -> dict[str, Any]:
    """Implement `Sweep.compare` for a metric per point; ``cluster`` as in `paired_samples`."""
    pairs = pairs[pairs[f"{name}_a"].notna() & pairs[f"{name}_b"].notna()]
    a, b = pairs[f"{name}_a"].to_numpy(float), pairs[f"{name}_b"].to_numpy(float)
    if not len(a):
        return verdict(math.nan, math.nan, None, 0, 0, "no point with the same seed on both sides has it")
    sums = in_blocks(summed(np.stack([b - a, np.ones(len(a))]), pairs["cluster"].to_numpy(np.int64)))
    independent = sums.shape[-1]
    drawn = sums @ resampled(independent).T
    again = drawn[0] / drawn[1] if independent > 1 else None
    return verdict(a.mean(), b.mean(), again, len(a), independent, "needs more than one seed")


def summed(sums: Floats, clusters: Ints) -> Floats:
    """Sum the last axis over each cluster, in the order of cluster numbers."""
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    return np.asarray(np.add.reduceat(sums[..., order], starts, axis=-1))


def in_blocks(sums: Floats) -> Floats:
    """Sum the last axis into at most ``MAX_BLOCKS`` blocks, to bound the bootstrap's cost.

    Clusters are independent, so blocks of them are, too. Cluster i goes to block i modulo the number of blocks.
    """
    n = sums.shape[-1]
    return sums if n <= MAX_BLOCKS else summed(sums, np.arange(n) % MAX_BLOCKS)


def resampled(n: int) -> Floats:
    """[RESAMPLES, n], how often each of ``n`` items is drawn in each resample, with replacement.

    Draw number k is ``mulberry32`` of k, a 32-bit formula that the page implements, too, so that both show the same intervals.
    """
    found = np.empty((RESAMPLES, n))
    for first in range(0, RESAMPLES, 200):
        rows = min(200, RESAMPLES - first)
        state = np.arange(first * n + 1, (first + rows) * n + 1, dtype=np.uint64) * np.uint64(0x6D2B79F5) + np.uint64(1)
        s = state.astype(np.uint32)
        t = (s ^ (s >> np.uint32(15))) * (s | np.uint32(1))
        t = (t + (t ^ (t >> np.uint32(7))) * (t | np.uint32(61))) ^ t
        chosen = (t ^ (t >> np.uint32(14))).astype(np.uint64) * np.uint64(n) >> np.uint64(32)
        places = chosen.astype(np.int64) + np.repeat(np.arange(rows) * n, n)
        found[first : first + rows] = np.bincount(places, minlength=rows * n).reshape(rows, n)
    return found


def verdict(a: float, b: float, again: Floats | None, pairs: int, independent: int, reason: str) -> dict[str, Any]:
    """A row of `Sweep.compare`; ``again`` has the resampled differences."""
    row: dict[str, Any] = {"a": float(a), "b": float(b), "difference": float(b - a), "low": math.nan, "high": math.nan}
    row |= {"pairs": pairs, "differs": False, "reason": ""}
    if again is None or not pairs:
        return row | {"reason": reason}
    row["low"], row["high"] = (float(edge) for edge in np.nanpercentile(again, (2.5, 97.5)))
    if independent < MIN_PAIRS:
        shared = "" if independent == pairs else f"{pairs} pairs share the noise of {independent}: "
        return row | {"reason": f"{shared}{independent} pairs are too few to tell a difference from chance; {MIN_PAIRS} can"}
    return row | {"differs": bool(row["low"] > 0 or row["high"] < 0)}


def student(z: float, freedom: int) -> float:
    """Student's t quantile at the level of the normal quantile ``z`` (Abramowitz and Stegun 1964, 26.7.5, two terms)."""
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def critical(most: Floats, clusters: int) -> float:
    """The 95 % quantile of the largest of several standardised differences, widened for few clusters.

    Args:
        most: [RESAMPLES], the largest standardised difference of each resample.
        clusters: how many clusters the samples come from.
    """
    return student(float(np.quantile(most, 1 - BY_CHANCE)), clusters - 1)
