"""Compare families of settings at an equal tuning budget: the expected best of n settings, and which family is ahead.

A method that was tuned longer looks better, so families are compared at an equal *budget*: the number n of settings that are
tried before the best is chosen (Dodge et al. 2019, Show Your Work: Improved Reporting of Experimental Results). Given N
settings with scores v_1 <= ... <= v_N, and every choice of n different ones equally likely, the expected best score is

    E_n = sum over i of v_i * C(i - 1, n - 1) / C(N, n)        since i is the best in C(i - 1, n - 1) of C(N, n) choices.

This draws without replacement. Dodge et al. draw with replacement, which tries one setting several times and is biased towards
low values (Tang et al. 2020, Showing Your Work Doesn't Always Work). In practice nobody tries a setting twice, and the sum
above is unbiased if the N settings are independent draws from a family. Its variance grows with n; at n = N it is the single
best value (Dodge et al. 2021, Expected Validation Performance and Estimation of a Random Variable's Maximum).

A score is a mean over samples, so the best of several is partly best by luck. The best setting is therefore also chosen on one
half of the samples and scored on the other (Varma and Simon 2006, Bias in Error Estimation When Using Cross-Validation for
Model Selection): settings are ordered by their scores on one half, and the sum above takes their scores on the other. The
result is the mean over `SPLITS` random halvings, in both directions; all settings are halved alike. Families are compared by
these held-out scores.

Intervals resample clusters (see `stats`) with replacement, jointly for all settings because they share their noise. They are
centred percentile intervals, widened for few clusters by the ratio of Student's t to the normal quantile (Hesterberg 2015, What
Teachers Should Know About the Bootstrap). They describe how far other prompts and samples of *these settings* would move a
curve.

A family is more than the settings that were tried. For two equal families, a difference has two sources: the choice of samples
and the choice of settings. Both are simulated independently and added: the centred bootstrap of the difference, and the
difference after a random permutation of the settings of both families. The noise of single
settings enters both, which is conservative, as in Owen 2007, The Pigeonhole Bootstrap. A family is *ahead* where the difference
divided by its standard deviation exceeds the level that 95 % of these draws stay below at every budget and for every pair of
families (max-T, Westfall and Young 1993, Resampling-Based Multiple Testing). So with probability 95 %, none of the claims about
a sweep is wrong. `benchmarks/equal_budget.py` measures how often that fails.

These are pure functions on arrays; `samplers` builds the arrays and puts the result into sentences.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from .stats import MIN_PAIRS, RESAMPLES, Floats, Ints, Mask, critical, resampled, student

SPLITS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Sufficient statistics for the scores of settings.

    ``num``, ``den`` are [settings, clusters]: sums over the samples of a setting in a cluster, 0 where it has none. ``unit``
    [clusters] is equal for clusters that must stay in one half. ``score`` maps sum(num) / sum(den) to scores; higher is better.
    """

    num: Floats
    den: Floats
    unit: Ints
    score: Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A score at budgets 1 to N and its 95 % interval over prompts and samples, each [N]; NaN where there is none."""

    mean: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Contrast:
    """Family ``a`` minus family ``b`` at the budgets that both have; arrays are [budgets].

    ``difference`` is in held-out scores; it is significant where it exceeds ``margin``. ``ahead`` is 1 where ``a`` is ahead, -1
    where ``b`` is, else 0. ``ahead_here`` is the same for the settings that were tried, without generalising to their families.
    """

    a: int
    b: int
    difference: Floats
    margin: Floats
    ahead: Ints
    ahead_here: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The expected best of each family, chosen and scored on the ``same`` samples and ``held_out``; and each pair of families.

    ``contrasts`` is empty if ``reason`` gives a reason.
    """

    same: tuple[Curve, ...]
    held_out: tuple[Curve, ...]
    contrasts: tuple[Contrast, ...] = ()
    reason: str = ""


@cache
def rank_weights(n_settings: int) -> Floats:
    """Return [budgets, settings]: in row n - 1, the probability that the i-th worst setting is the best of n different ones.

    This is C(i - 1, n - 1) / C(N, n). It is n / N for the best setting, and the others follow by the recurrence
    C(i - 1, n - 1) = C(i, n - 1) (i - n + 1) / i, so that no intermediate number grows large.
    """
    budgets = np.arange(1, n_settings + 1)
    found = np.zeros((n_settings, n_settings))
    found[:, -1] = budgets / n_settings
    for rank in range(n_settings - 1, 0, -1):
        found[:, rank - 1] = found[:, rank] * np.maximum(rank - budgets + 1, 0) / rank
    found.flags.writeable = False  # the cache returns the same array to every caller
    return found


def expected_best(scores: Floats) -> Floats:
    """Map [..., N] scores of a family's settings to [..., N]: the expected best of n = 1 to N of them."""
    return np.asarray(np.sort(scores, axis=-1) @ rank_weights(scores.shape[-1]).T)


def expected_chosen(chosen_by: Floats, scored: Floats) -> Floats:
    """Expected score of the setting that other scores rank best among n different ones; ties are broken at random.

    Args:
        chosen_by: [rows, N], the scores that the setting is chosen by.
        scored: [rows, N], the scores of the same settings that are averaged.

    Returns:
        [rows, N], for n = 1 to N.
    """
    order = np.argsort(chosen_by, axis=-1, kind="stable")
    by = np.take_along_axis(chosen_by, order, axis=-1)
    values = np.take_along_axis(scored, order, axis=-1)
    first = np.diff(by, axis=-1, prepend=-np.inf) != 0
    if not first.all():
        group = np.cumsum(first.ravel()) - 1  # the first element of a row always starts a group
        means = np.bincount(group, values.ravel()) / np.bincount(group)
        values = means[group].reshape(values.shape)
    return np.asarray(values @ rank_weights(scored.shape[-1]).T)


def halves(unit: Ints) -> Mask:
    """Return [SPLITS, clusters]: which clusters are in the first half; clusters of one unit stay together."""
    _, places = np.unique(unit, return_inverse=True)
    count = places.max(initial=0) + 1
    ranks = np.random.default_rng(0).random((SPLITS, count)).argsort(axis=1).argsort(axis=1)
    return np.asarray((ranks < count // 2)[:, places])


def compare_families(scores: Scores, family: Ints) -> Comparison:
    """Compare families of settings.

    Args:
        scores: statistics of the settings.
        family: [settings], the index of each setting's family.
    """
    members = [np.flatnonzero(family == each) for each in range(int(family.max(initial=-1)) + 1)]
    clusters = scores.num.shape[1]
    divisions = halves(scores.unit)

    def scored(weights: Floats, instead: Floats) -> Floats:
        """Scores [rows, settings] with weighted clusters; ``instead`` where a setting has no sample."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            found = scores.score((weights @ scores.num.T) / (weights @ scores.den.T))
        return np.where(np.isfinite(found), found, instead)

    def held_out(weights: Floats, whole: Floats) -> list[Floats]:
        """The expected best, chosen on one half and scored on the other: one [rows, N] for each family."""
        found = [np.zeros((len(whole), len(each))) for each in members]
        for first in divisions:
            a, b = (scored(weights * half, whole) for half in (first, ~first))
            for total, each in zip(found, members, strict=True):
                total += expected_chosen(a[:, each], b[:, each]) + expected_chosen(b[:, each], a[:, each])
        return [total / (2 * len(divisions)) for total in found]

    every = np.ones((1, clusters))
    whole = scored(every, np.full((1, len(family)), np.nan))
    same, apart = [expected_best(whole[:, each]) for each in members], held_out(every, whole)
    if clusters < MIN_PAIRS:
        have = f"{clusters} independent {'sample is' if clusters == 1 else 'samples are'}"
        reason = f"{have} too few to tell a difference from chance; {MIN_PAIRS} can"
        alone, halved = (tuple(without_interval(each[0]) for each in found) for found in (same, apart))
        return Comparison(alone, halved, reason=reason)
    drawn = resampled(clusters)
    again = scored(drawn, whole)
    same_again, apart_again = [expected_best(again[:, each]) for each in members], held_out(drawn, again)
    by_samples, by_both = [], []
    rng = np.random.default_rng(1)
    pairs = list(itertools.combinations(range(len(members)), 2))
    for a, b in pairs:
        budgets = min(len(members[a]), len(members[b]))
        moved = apart_again[a][:, :budgets] - apart_again[b][:, :budgets]
        by_samples.append((moved - moved.mean(axis=0)) * math.sqrt(clusters / (clusters - 1)))
        by_both.append(by_samples[-1] + permuted(whole[0, members[a]], whole[0, members[b]], rng))
    contrasts = []
    least = 1e-9 * float(np.abs(whole).max(initial=0.0))  # a difference within rounding does not count
    for (a, b), here, wanted in zip(pairs, margins(by_samples, clusters), margins(by_both, clusters), strict=True):
        difference = apart[a][0, : len(wanted)] - apart[b][0, : len(wanted)]
        ahead, ahead_here = (
            np.where(np.abs(difference) > np.maximum(each, least), np.sign(difference), 0).astype(np.int64)
            for each in (wanted, here)
        )
        contrasts.append(Contrast(a, b, difference, wanted, ahead, ahead_here))
    return Comparison(
        tuple(curve(each[0], drawn, clusters) for each, drawn in zip(same, same_again, strict=True)),
        tuple(curve(each[0], drawn, clusters) for each, drawn in zip(apart, apart_again, strict=True)),
        tuple(contrasts),
    )


def without_interval(mean: Floats) -> Curve:
    """A curve without intervals, for too few clusters."""
    return Curve(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))


def curve(mean: Floats, again: Floats, clusters: int) -> Curve:
    """A curve with its interval. ``again`` [RESAMPLES, N] is centred, since the best of a resample is also best by luck."""
    wider = math.sqrt(clusters / (clusters - 1)) * student(1.96, clusters - 1) / 1.96
    low, high = mean + wider * np.percentile(again - again.mean(axis=0), (2.5, 97.5), axis=0)
    return Curve(mean, low, high)


def permuted(a: Floats, b: Floats, rng: np.random.Generator) -> Floats:
    """[RESAMPLES, budgets]: the difference of two families' curves after a random permutation of all their settings."""
    every, budgets = np.sort(np.concatenate([a, b])), min(len(a), len(b))
    order = rng.random((RESAMPLES, len(every))).argsort(axis=1)
    first, second = (every[np.sort(places, axis=1)] for places in (order[:, : len(a)], order[:, len(a) :]))
    found: Floats = first @ rank_weights(len(a))[:budgets].T - second @ rank_weights(len(b))[:budgets].T
    return found


def margins(draws: Sequence[Floats], clusters: int) -> list[Floats]:
    """The critical difference for each pair, [budgets] each: under no difference, 95 % of the draws stay below it everywhere.

    Args:
        draws: for each pair [RESAMPLES, budgets], simulated differences under no difference.
        clusters: how many clusters the samples come from.
    """
    spreads = [each.std(axis=0) for each in draws]
    most = np.zeros(RESAMPLES)
    for each, spread in zip(draws, spreads, strict=True):
        known = spread > 0
        most = np.maximum(most, (np.abs(each[:, known]) / spread[known]).max(axis=1, initial=0.0))
    limit = critical(most, clusters)
    return [limit * spread for spread in spreads]
