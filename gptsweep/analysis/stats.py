"""How sure is a mean or a difference: errors over what is independent, and paired bootstrap intervals between two points.

What is independent is a *cluster*: points of a sweep share their noise, so their samples of one (prompt, seed, sample_index)
are one draw, and count as one however many points they come from. With ``noise=independent`` each sample is a draw of its own.
A metric per point is a property of all samples of a point, so its clusters are seeds. A sample that several directories hold
(the same point_id, prompt and sample_index) counts once.

Every metric per sample is a ratio of two sums, R = sum(num) / sum(den): a mean has den = 1, a perplexity is
exp(-sum(log-probability) / sum(tokens)). Its error is the linearised one of a ratio of cluster totals (Cochran 1977, Sampling
Techniques, 6.3 and 9A.2; the same as the cluster-robust error of Liang and Zeger 1986, with the factor G / (G - 1) of Cameron
and Miller 2015, A Practitioner's Guide to Cluster-Robust Inference):

    u_c = sum over the samples of cluster c of (num - R * den)
    se(R) = sqrt(G / (G - 1) * sum(u_c ** 2)) / sum(den),    G clusters

and of exp(-R) it is exp(-R) * se(R), the delta method. Intervals of a difference resample whole clusters of pairs with
replacement and take percentiles (Efron and Tibshirani 1993, An Introduction to the Bootstrap, 13.3; Field and Welsh 2007,
Bootstrapping Clustered Data).

Which of many settings may be the best is a multiple comparison with the best (Edwards and Hsu 1983, Multiple Comparisons with
the Best Treatment; Hsu 1996, Multiple Comparisons). For each setting i the bootstrap gives the critical value d_i that the
largest of its differences from all others, each over its own standard deviation s_ij, exceeds in 5 % of the resamples where
nothing differs (max-T, Westfall and Young 1993, Resampling-Based Multiple Testing), widened for few clusters as t is wider than
normal. With 95 % for everything together

    the best is among S = {i: no j has score_j - score_i > d_i s_ij}, and the best setting but i is ahead of i by at most
    max over j in S of score_j - score_i + d_j s_ij, at least by min(0, max over j of score_j - score_i - d_i s_ij)

Pure functions on the frames that `frames.read_sweep` makes; `sweep.Sweep.group` and `.compare` call them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..store.schema import MEANS
from .metrics import METRICS, Metric, Text

RESAMPLES = 2_000
MIN_PAIRS = 6
"""With fewer independent pairs a difference may be chance: all of n having one sign by luck has p = 2 / 2^n."""
MAX_BLOCKS = 4_000
BY_CHANCE = 0.05
"""The share of comparisons that differ where nothing does: intervals are 95 %. The mean of a count needs no independence."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def ratio(num: Floats, den: Floats, codes: Ints, groups: int, clusters: Ints) -> tuple[Floats, Floats, Ints]:
    """sum(num) / sum(den) of each group, its standard error over clusters (NaN where there is one), and how many have it.

    The formula is in the docstring of this module.

    Args:
        num, den: [n]; a row whose ``den`` is 0 has no value.
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
    """Mean and error of a metric from those of its ratio."""
    return (np.exp(-mean), np.exp(-mean) * error) if metric.exponential else (mean, error)


def per_point(name: str, points: pd.DataFrame, codes: Ints, groups: int) -> tuple[Floats, Floats, Ints]:
    """Mean over points, standard error over seeds, and number of points of a metric per point, for each group."""
    values = points[name].to_numpy(float)
    return ratio(np.nan_to_num(values), (~np.isnan(values)).astype(float), codes, groups, seeds_of(points))


def per_sample(metric: Metric, samples: pd.DataFrame, codes: Ints, groups: int, clusters: Ints) -> tuple[Floats, Floats, Ints]:
    """Mean, standard error over clusters and number of samples of a metric per sample, for each group."""
    num, den = (samples[f"{metric.name}/{part}"].to_numpy(float) for part in ("num", "den"))
    mean, error, n = ratio(num, den, codes, groups, clusters)
    return *exponential(metric, mean, error), n


def from_summaries(metric: Metric, points: pd.DataFrame, codes: Ints, groups: int) -> tuple[Floats, Floats, Ints]:
    """`per_sample` where every sample is a cluster of its own, from the means, errors and counts of the points alone.

    Squared deviations within the points and between them make up those of all samples, so this is the same number, without
    looking at a sample. A million of them need not be measured again to show a table.
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
    """A metric per point: for each group each seed once, in ascending order, and the value of its point there."""
    found: list[list[tuple[str, float]]] = [[] for _ in range(groups)]
    if "seed" in points:
        table = points.assign(group=codes)
        table = table.sort_values("num_samples", ascending=False, kind="stable").drop_duplicates(["group", "seed"])
        table = table.sort_values("seed", kind="stable")
        for group, seed, value in zip(*(table[column].tolist() for column in ("group", "seed", name)), strict=True):
            found[group].append((str(seed), value))
    return found


def identities(points: pd.DataFrame) -> Ints:
    """A number for each point, equal for copies of one (the same point_id)."""
    ids = points["point_id"] if "point_id" in points else pd.Series(None, index=points.index, dtype=object)
    own = [f"row {place}" if pd.isna(each) else str(each) for place, each in zip(points.index, ids, strict=True)]
    return pd.factorize(np.asarray(own, dtype=object))[0].astype(np.int64)


def noises(points: pd.DataFrame) -> Ints:
    """The noise each point draws from: -1 for that which points of a sweep share, else a number of the point's own."""
    independent = (points["noise"] == "independent").fillna(False) if "noise" in points else pd.Series(False, points.index)
    return np.where(independent.to_numpy(bool), identities(points), np.int64(-1))


def seeds_of(points: pd.DataFrame) -> Ints:
    """The cluster of each point: points of one seed share their noise, unless it is their own."""
    seeds = points["seed"] if "seed" in points else pd.Series(0, index=points.index)
    return places_of(pd.DataFrame({"seed": seeds, "noise": noises(points)}))


def places_of(table: pd.DataFrame) -> Ints:
    """A number for each row, equal where all columns are, in the order of the columns."""
    return np.asarray(table.groupby(list(table.columns), sort=True, dropna=False).ngroup(), dtype=np.int64)


def shares(points: pd.DataFrame, codes: Ints) -> bool:
    """Whether a group holds points that share their noise, or copies of one."""
    return bool(pd.DataFrame({"group": codes, "cluster": seeds_of(points)}).duplicated().any())


def textual() -> list[str]:
    """Metrics per sample that are computed from its text and tokens; the others stand in its line of ``samples.jsonl``."""
    return [name for name, metric in METRICS.items() if metric.of_sample is not None]


def text_values(samples: pd.DataFrame) -> Floats:
    """[n, metrics], the metrics `textual` of each sample; NaN where it has none."""
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
    """Every metric per sample as a numerator and a denominator, so that its mean is their ratio; empty ones weigh nothing.

    Args:
        samples: rows of ``Sweep.samples``.
        texts: [n, metrics], their `text_values`.
        metrics: by name.
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
    """`Sweep.compare` for the metrics per sample.

    Args:
        pairs: a row a pair: ``<metric>/num_a`` and so on, and ``cluster``, equal for pairs that are not independent.
        metrics: by name.
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
    """`Sweep.compare` for a metric per point; ``cluster`` as in `paired_samples`."""
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
    """The last axis summed over the rows of each cluster, clusters in the order of their numbers."""
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    return np.asarray(np.add.reduceat(sums[..., order], starts, axis=-1))


def in_blocks(sums: Floats) -> Floats:
    """The last axis summed into at most ``MAX_BLOCKS`` blocks: clusters are independent, so any blocks of them are, too.

    The bootstrap's cost stays bounded. Cluster i is in block i modulo their number.
    """
    n = sums.shape[-1]
    return sums if n <= MAX_BLOCKS else summed(sums, np.arange(n) % MAX_BLOCKS)


def resampled(n: int) -> Floats:
    """[RESAMPLES, n], how often each of ``n`` is drawn in each of the resamples, with replacement.

    Draw k of all is ``mulberry32`` of k: 32 bits by a formula that the page knows, too, so that both say the same.
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
    """A row of `Sweep.compare`; ``again`` holds the resampled differences."""
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
    """The quantile of Student's t where the normal distribution has ``z`` (Abramowitz and Stegun 1964, 26.7.5, two terms)."""
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def critical(most: Floats, clusters: int) -> float:
    """What the largest of several standardised differences exceeds in 5 % of the resamples, widened for few clusters.

    Args:
        most: [RESAMPLES], the largest in each.
        clusters: that the samples come from.
    """
    return student(float(np.quantile(most, 1 - BY_CHANCE)), clusters - 1)


class WithTheBest(NamedTuple):
    """How settings stand to the best one, [settings] each, for all of them together.

    ``may_be_best``; ``low`` and ``high``: by how much the best of the others is ahead, at least and at most, in scores; NaN
    where too few pairs tell. ``independent`` [settings, settings]: the independent pairs of two settings.
    """

    may_be_best: Mask
    low: Floats
    high: Floats
    independent: Ints


def with_the_best(num: Floats, den: Floats, clusters: Ints, score: Callable[[Floats], Floats]) -> WithTheBest:
    """Multiple comparisons with the best; see the docstring of this module. Two settings are compared where both have a value.

    Args:
        num, den: [settings, pairs], what two settings have in one column is a pair; ``den`` is 0 where one has no value.
        clusters: [pairs], equal for pairs that are not independent.
        score: maps sum(num) / sum(den) to scores; higher is better.
    """
    size = len(num)
    masks, kind = np.unique(den > 0, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    drawn = resampled(min(len(np.unique(clusters)), MAX_BLOCKS)).T

    def scored(num: Floats, den: Floats) -> tuple[Floats, Floats, Ints]:
        """[rows], [rows, RESAMPLES]: the scores of rows of pairs, and again; and how many clusters have a value."""
        parts = summed(np.stack([num, den]), clusters)
        independent = (parts[1] > 0).sum(axis=-1)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            whole, again = score(parts[0].sum(axis=-1) / parts[1].sum(axis=-1)), in_blocks(parts) @ drawn
            return whole, score(again[0] / again[1]), independent

    ahead, spread = np.full((size, size), np.nan), np.full((size, size), np.nan)
    independent, limit = np.zeros((size, size), dtype=np.int64), np.zeros(size)
    for number, mask in enumerate(masks):
        theirs, theirs_again, shared = scored(num * mask, den * mask)
        for i in np.flatnonzero(kind == number):
            own, own_again, _ = scored(num[i] * masks, den[i] * masks)  # where each other one has a value
            moved = theirs_again - own_again[kind]
            known = shared >= MIN_PAIRS
            known[i] = False
            independent[i] = shared
            if not known.any():
                continue
            ahead[i, known] = (theirs - own[kind])[known]
            moved = moved[known] - np.nanmean(moved[known], axis=1, keepdims=True)
            wider = np.sqrt(shared[known] / (shared[known] - 1))
            spread[i, known] = np.nanstd(moved, axis=1) * wider
            standard = moved[some := spread[i, known] > 0] / np.nanstd(moved, axis=1, keepdims=True)[some]
            limit[i] = critical(np.nan_to_num(standard, nan=-np.inf).max(axis=0, initial=0.0), int(shared[known].min()))
    return among_the_best(ahead, spread, limit, independent)


def among_the_best(ahead: Floats, spread: Floats, limit: Floats, independent: Ints) -> WithTheBest:
    """The intervals of the docstring of this module.

    Args:
        ahead, spread: [settings, settings], by how much j is ahead of i, and its standard deviation; NaN where unknown.
        limit: [settings], the critical values.
        independent: as in `WithTheBest`.
    """
    known = ~np.isnan(ahead)
    least = 1e-9 * float(np.abs(ahead[known]).max(initial=0.0))  # what is within rounding is no difference
    lead = np.where(known, ahead - limit[:, None] * spread, -np.inf).max(axis=1, initial=-np.inf)
    some = known.any(axis=1)
    may = some & (lead <= least)
    behind = np.where(known & may, ahead + limit * spread, -np.inf).max(axis=1, initial=0.0)
    return WithTheBest(may, np.where(some, np.minimum(0.0, lead), np.nan), np.where(some, behind, np.nan), independent)
