"""How sure is a difference: means with their errors over points, and paired bootstrap intervals between two points.

Pure functions on the frames that `frames.read_sweep` makes; `frames.Sweep.group` and `.compare` are their doors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from . import metrics
from .metrics import METRICS

RESAMPLES = 2_000
MIN_PAIRS = 6
"""Below this many pairs no difference is told from chance: all of n differences having one sign by luck has p = 2 / 2^n."""
MAX_BLOCKS = 4_000


Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def pooled(name: str, points: pd.DataFrame, codes: Ints, groups: int) -> tuple[Floats, Floats, Ints]:
    """Mean, standard error and n of a metric for each group of points; see `frames.Sweep.group`.

    A mean over the samples of a group is put together from means, errors and numbers of its points: squared deviations within
    the points and between them. A perplexity is put together as the mean log-probability of a token.

    Args:
        points: rows of ``Sweep.summary``.
        codes: the group of each row, below ``groups``.
    """
    have = points[name].notna().to_numpy(bool)
    points, codes = points[have], codes[have]

    def total(values: npt.ArrayLike) -> Floats:
        return np.asarray(np.bincount(codes, weights=np.asarray(values, dtype=float), minlength=groups), dtype=np.float64)

    values = points[name].to_numpy(float)
    if METRICS[name].per == "point":
        n = total(np.ones(len(values)))
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total(values) / n
            error = np.sqrt(total((values - mean[codes]) ** 2) / np.where(n > 1, n - 1, np.nan) / n)
        return mean, error, n.astype(np.int64)
    samples = points["num_samples"].to_numpy(float)
    if name in metrics.STANDARD_ERROR:
        own = points[metrics.STANDARD_ERROR[name]].to_numpy(float) / np.sqrt(samples)
    else:
        own = points[f"{name}_se"].to_numpy(float)
    logarithmic = name.endswith("perplexity")
    weights = points["completion_tokens"].to_numpy(float) if logarithmic else samples
    if logarithmic:
        values, own = np.log(values), own / values
    n = total(samples)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total(weights * values) / total(weights)
        within = np.nan_to_num(own) ** 2 * (samples - 1) * weights**2 / samples
        between = (weights * (values - mean[codes])) ** 2 / samples
        error = np.sqrt(total(within + between) * n / np.where(n > 1, n - 1, np.nan)) / total(weights)
    return (np.exp(mean), np.exp(mean) * error, n.astype(np.int64)) if logarithmic else (mean, error, n.astype(np.int64))


def sample_values(samples: pd.DataFrame) -> pd.DataFrame:
    """Every metric per sample as a numerator and a denominator, so that its mean is their ratio; empty ones weigh nothing."""
    rows = [
        (metrics.seq_rep(tokens), metrics.word_diversity(grams), float(metrics.ends_repeating(tokens)))
        for tokens, grams in (
            (
                ids[:-1].tolist() if finish == "eot" else ids.tolist(),
                [metrics.ngrams(words, n) for n in (1, 2, 3, 4)],
            )
            for ids, finish, words in zip(
                samples["token_ids"], samples["finish_reason"], map(str.split, samples["completion"]), strict=True
            )
        )
    ]
    values = pd.DataFrame(rows, columns=["seq_rep_4", "diversity", "ends_repeating"], index=samples.index, dtype=float)
    values["completion_tokens_mean"] = samples["completion_tokens"].astype(float)
    for name in metrics.STANDARD_ERROR:
        values[name] = samples[name]
    found = samples.drop(columns=[*metrics.STANDARD_ERROR, "token_ids", "completion"])
    for name in map(str, values):
        found[f"{name}/num"], found[f"{name}/den"] = values[name].fillna(0), values[name].notna().astype(float)
    for name, logprob in (("perplexity", "logprob_mean"), ("sampler_perplexity", "sampler_logprob_mean")):
        tokens = samples["completion_tokens"].where(samples[logprob].notna(), 0)
        found[f"{name}/num"], found[f"{name}/den"] = samples[logprob].fillna(0) * tokens, tokens.astype(float)
    return found


def paired_samples(pairs: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """`Sweep.compare` for the metrics per sample."""
    names = [name for name, metric in METRICS.items() if metric.per == "sample"]
    if pairs.empty:
        reason = "no sample with the same prompt, seed and sample_index on both sides"
        return {name: verdict(math.nan, math.nan, None, 0, reason) for name in names}
    sums = np.stack(
        [pairs[f"{name}/{part}_{side}"].to_numpy(float) for name in names for part in ("num", "den") for side in "ab"]
    )
    sums = sums.reshape(len(names), 2, 2, len(pairs))
    sums *= (sums[:, 1].min(axis=1) > 0)[:, None, None, :]
    counts = (sums[:, 1, 0] > 0).sum(axis=-1)
    blocks = in_blocks(sums)
    draws = np.random.default_rng(0).multinomial(blocks.shape[-1], np.full(blocks.shape[-1], 1 / blocks.shape[-1]), RESAMPLES)
    drawn = blocks @ draws.T.astype(float)
    rows = {}
    for index, name in enumerate(names):
        with np.errstate(invalid="ignore", divide="ignore"):
            mean, again = (part[index, 0] / part[index, 1] for part in (sums.sum(axis=-1), drawn))
        if name.endswith("perplexity"):
            mean, again = np.exp(-mean), np.exp(-again)
        rows[name] = verdict(mean[0], mean[1], again[1] - again[0], int(counts[index]), "needs a pair where both have it")
    return rows


def in_blocks(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The last axis summed into at most ``MAX_BLOCKS`` blocks of pairs drawn at random: the bootstrap's cost stays bounded."""
    n = sums.shape[-1]
    if n <= MAX_BLOCKS:
        return sums
    order = np.random.default_rng(1).permutation(n)
    starts = np.arange(MAX_BLOCKS) * n // MAX_BLOCKS
    return np.add.reduceat(sums[..., order], starts, axis=-1)


def paired_points(pairs: pd.DataFrame, name: str) -> dict[str, Any]:
    """`Sweep.compare` for a metric per point."""
    pairs = pairs[pairs[f"{name}_a"].notna() & pairs[f"{name}_b"].notna()]
    a, b = pairs[f"{name}_a"].to_numpy(float), pairs[f"{name}_b"].to_numpy(float)
    if not len(a):
        return verdict(math.nan, math.nan, None, 0, "no point with the same seed on both sides has it")
    draws = np.random.default_rng(0).integers(0, len(a), (RESAMPLES, len(a)))
    again = (b - a)[draws].mean(axis=1) if len(a) > 1 else None
    return verdict(a.mean(), b.mean(), again, len(a), "needs more than one seed")


def verdict(a: float, b: float, again: npt.NDArray[np.float64] | None, pairs: int, reason: str) -> dict[str, Any]:
    """A row of `Sweep.compare`; ``again`` holds the resampled differences."""
    row: dict[str, Any] = {"a": float(a), "b": float(b), "difference": float(b - a), "low": math.nan, "high": math.nan}
    row |= {"pairs": pairs, "differs": False, "reason": ""}
    if again is None or not pairs:
        return row | {"reason": reason}
    row["low"], row["high"] = (float(edge) for edge in np.nanpercentile(again, (2.5, 97.5)))
    if pairs < MIN_PAIRS:
        return row | {"reason": f"{pairs} pairs are too few to tell a difference from chance; {MIN_PAIRS} can"}
    return row | {"differs": bool(row["low"] > 0 or row["high"] < 0)}
