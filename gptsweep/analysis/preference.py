"""Rank settings from comparisons of two samples: win rates, a Bradley-Terry model, agreement between raters.

A comparison says that the first of two samples is better (score 1), the second (0), or neither (1/2). A tie counts as half a
win for both, in win rates and in the model: the estimate is the expected score, however many ties contribute to it.

The model (Bradley and Terry 1952, Rank Analysis of Incomplete Block Designs) gives setting i a strength s_i, in log-odds, with
P(i beats j) = 1 / (1 + exp(s_j - s_i)). Strengths maximise the penalised likelihood under a normal prior with standard
deviation 2, which weighs as much as one comparison of equals (``PRIOR``). The prior makes them exist and unique even if a
setting won everything or two groups of settings never met (Ford 1957, Solution of a Ranking Problem from Binary Comparisons,
says when they exist without one).

Comparisons of one cluster, a prompt, are not independent. Errors are those of the clustered sandwich (Liang and Zeger 1986,
Longitudinal Data Analysis Using Generalized Linear Models), with the factor G / (G - 1) for G clusters and the prior as one
more observation:

    A = sum of p (1 - p) (e_i - e_j)(e_i - e_j)' + PRIOR I      e_i: the unit vector of setting i
    B = G / (G - 1) * sum over clusters of u_c u_c' + PRIOR I   u_c = sum in cluster c of (score - p)(e_i - e_j)
    cov(s) = A^-1 B A^-1, for strengths around their mean

A *preference* is the share of wins that a setting would have if it met every other one equally often, the mean of P(i beats j)
over j. Raw win rates depend on which settings were compared, and adaptive pairing makes leaders meet leaders. Errors are by
the delta method; intervals are on the logit scale with quantiles of Student's t with G - 1 degrees of freedom. Intervals of win
rates are Wilson's with the effective number of comparisons p (1 - p) / se^2 (Korn and Graubard 1998, Confidence Intervals for
Proportions with Small Expected Number of Positive Counts Estimated from Survey Data).

Agreement is Krippendorff's alpha for nominal data (Krippendorff 2011, Computing Krippendorff's Alpha-Reliability): 1 if raters
always agree, 0 if they agree as often as by chance. Any number of raters may each judge some of the pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy  # it loads scipy.special, which takes a tenth of a second, on first use: few sweeps have ratings

from .stats import Floats, Ints, Mask, ratio

PRIOR = 0.25
"""Precision of the prior of a strength: p (1 - p) of one comparison of equals."""
COVERAGE = 0.95
_ENOUGH = 1e-10
_STEPS = 100


@dataclass(frozen=True, eq=False)
class Comparisons:
    """Comparisons between settings, which are numbered from 0.

    Args:
        first, second: [n], the two settings of each comparison; always different.
        score: [n], 1 if the first is better, 0 if the second is, 1/2 if neither is.
        cluster: [n], equal for comparisons that are not independent.
        settings: the number of settings; those that were never compared have no value.
    """

    first: Ints
    second: Ints
    score: Floats
    cluster: Ints
    settings: int

    @cached_property
    def clusters(self) -> int:
        """The number of clusters."""
        return len(np.unique(self.cluster))

    @cached_property
    def met(self) -> Mask:
        """[settings], whether each setting was compared."""
        met = np.zeros(self.settings, dtype=bool)
        met[self.first] = met[self.second] = True
        return met

    @property
    def quantile(self) -> float:
        """The quantile of Student's t for intervals; infinite if there is one cluster."""
        return float(scipy.special.stdtrit(self.clusters - 1, (1 + COVERAGE) / 2)) if self.clusters > 1 else math.inf


@dataclass(frozen=True, eq=False)
class Ranking:
    """Strengths estimated from `Comparisons`.

    ``strength`` [settings] has mean 0 over the settings that were compared; ``covariance`` is [settings, settings]. Both are 0
    for a setting that was not compared. ``information`` is the matrix A of this module's docstring.
    """

    comparisons: Comparisons
    strength: Floats
    information: Floats
    covariance: Floats

    @cached_property
    def error(self) -> Floats:
        """[settings], the standard error of each strength; NaN if there is one cluster."""
        return np.sqrt(np.diag(self.covariance)) if self.comparisons.clusters > 1 else np.full(len(self.strength), np.nan)

    @cached_property
    def _wins(self) -> Floats:
        """[settings, settings], P(i beats j); 0 on the diagonal and for settings that were never compared."""
        found = scipy.special.expit(self.strength[:, None] - self.strength[None, :])
        both = np.outer(self.comparisons.met, self.comparisons.met)
        np.fill_diagonal(both, False)
        return np.asarray(found * both)

    @cached_property
    def preference(self) -> Floats:
        """[settings], the expected share of wins if a setting met every other one equally often; NaN where unknown."""
        others = self.comparisons.met.sum() - 1
        return np.where(self.comparisons.met, self._wins.sum(axis=1) / max(1, others), np.nan)

    @cached_property
    def _preference_covariance(self) -> Floats:
        slope = self._wins * (1 - self._wins) / max(1, self.comparisons.met.sum() - 1)
        jacobian = np.diag(slope.sum(axis=1)) - slope
        return np.asarray(jacobian @ self.covariance @ jacobian.T)

    @cached_property
    def preference_error(self) -> Floats:
        """[settings], the standard error of each preference; NaN where unknown, or if there is one cluster."""
        known = self.comparisons.met & (self.comparisons.clusters > 1)
        return np.where(known, np.sqrt(np.diag(self._preference_covariance).clip(0)), np.nan)

    @cached_property
    def preference_interval(self) -> tuple[Floats, Floats]:
        """Lower and upper ends of the intervals of preferences, [settings] each."""
        share = self.preference
        reach = self.comparisons.quantile * self.preference_error if self.comparisons.clusters > 1 else math.inf
        middle, scale = np.log(share / (1 - share)), share * (1 - share)
        return np.asarray(scipy.special.expit(middle - reach / scale)), np.asarray(scipy.special.expit(middle + reach / scale))

    @cached_property
    def difference_errors(self) -> Floats:
        """[settings, settings], the standard error of each difference of preferences."""
        variances = np.diag(self._preference_covariance)
        return np.asarray(np.sqrt((variances[:, None] + variances[None, :] - 2 * self._preference_covariance).clip(0)))

    def difference(self, a: int, b: int) -> tuple[float, float, float]:
        """The preference of ``b`` minus that of ``a``, and both ends of its interval."""
        middle = float(self.preference[b] - self.preference[a])
        reach = self.comparisons.quantile * float(self.difference_errors[a, b])
        return middle, max(-1.0, middle - reach), min(1.0, middle + reach)


def bradley_terry(found: Comparisons, prior: float = PRIOR) -> Ranking:
    """Estimate strengths by Newton's method; see the docstring of this module.

    Args:
        found: the comparisons.
        prior: the precision of the prior; 0 gives maximum likelihood, which must exist.
    """
    size = found.settings
    pairs, pair = np.unique(found.first * size + found.second, return_inverse=True)
    i, j = pairs // size, pairs % size
    times, wins = np.bincount(pair, minlength=len(pairs)), np.bincount(pair, found.score, len(pairs))

    def loss(strength: Floats) -> float:
        gap = strength[i] - strength[j]
        return float((times * np.logaddexp(0, gap) - wins * gap).sum() + prior / 2 * strength @ strength)

    def information(strength: Floats) -> Floats:
        p = scipy.special.expit(strength[i] - strength[j])
        weight = np.zeros((size, size))
        np.add.at(weight, (i, j), times * p * (1 - p))
        weight += weight.T
        return np.asarray(np.diag(weight.sum(axis=1) + prior) - weight)

    strength = np.zeros(size)
    for _ in range(_STEPS):
        rest = wins - times * scipy.special.expit(strength[i] - strength[j])
        slope = np.bincount(i, rest, size) - np.bincount(j, rest, size) - prior * strength
        step = np.linalg.lstsq(information(strength), slope, rcond=None)[0] if prior == 0 else np.linalg.solve(
            information(strength), slope)  # fmt: skip
        if np.abs(step).max(initial=0.0) < _ENOUGH:
            break
        while loss(strength + step) > loss(strength) + _ENOUGH:
            step = step / 2
        strength = strength + step
    strength = np.where(found.met, strength - strength[found.met].mean() if found.met.any() else 0.0, 0.0)
    return Ranking(found, strength, information(strength), _covariance(found, strength, information(strength), prior))


def _covariance(found: Comparisons, strength: Floats, information: Floats, prior: float) -> Floats:
    """The covariance of the strengths about their mean."""
    size, count = found.settings, found.clusters
    rest = found.score - scipy.special.expit(strength[found.first] - strength[found.second])
    _, cluster = np.unique(found.cluster, return_inverse=True)
    scores = np.zeros((count, size))
    np.add.at(scores, (cluster, found.first), rest)
    np.add.at(scores, (cluster, found.second), -rest)
    spread = scores.T @ scores * (count / max(1, count - 1)) + prior * np.eye(size)
    inverse = np.linalg.pinv(information, hermitian=True)
    met = found.met.astype(float)
    centred = np.diag(met) - np.outer(met, met) / max(1.0, met.sum())
    return np.asarray(centred @ inverse @ spread @ inverse @ centred)


def win_rates(found: Comparisons) -> tuple[Floats, Floats, Floats, Floats, Ints]:
    """For each setting: its share of wins, the standard error, both ends of the interval, and the number of comparisons."""
    size, score = found.settings, found.score
    setting = np.concatenate([found.first, found.second])
    cluster = np.concatenate([found.cluster, found.cluster])
    share, error, count = ratio(np.concatenate([score, 1 - score]), np.ones(2 * len(score)), setting, size, cluster)
    own = np.unique(np.stack([setting, cluster]), axis=1)[0]
    clusters = np.bincount(own, minlength=size)
    with np.errstate(invalid="ignore", divide="ignore"):
        effective = np.where(error > 0, share * (1 - share) / error**2, np.inf)
        # If half of the scores are ties, the variance halves; an effective number beyond twice the comparisons is chance.
        effective = np.clip(np.where((share > 0) & (share < 1), effective, count), 1, 2 * count)
        z2 = np.where(clusters > 1, scipy.special.stdtrit(np.maximum(1, clusters - 1), (1 + COVERAGE) / 2), np.inf) ** 2
        middle = (share + z2 / (2 * effective)) / (1 + z2 / effective)
        reach = np.sqrt(z2 * (share * (1 - share) / effective + z2 / (4 * effective**2))) / (1 + z2 / effective)
    known = clusters > 1
    low, high = np.where(known, middle - reach, np.nan), np.where(known, middle + reach, np.nan)
    return share, error, low.clip(0, 1), high.clip(0, 1), count


def agreement(unit: Ints, category: Ints) -> tuple[float, int]:
    """Krippendorff's alpha for nominal data, and the number of units judged by two or more raters.

    Args:
        unit: [n], the unit judged.
        category: [n], the judgement, numbered from 0.

    Returns:
        Alpha is NaN if no unit has two judgements, or all judgements are the same.
    """
    _, unit = np.unique(unit, return_inverse=True)
    table = np.zeros((unit.max(initial=-1) + 1, category.max(initial=0) + 1))
    np.add.at(table, (unit, category), 1)
    table = table[table.sum(axis=1) > 1]
    size, total = table.sum(axis=1), table.sum()
    if not len(table):
        return math.nan, 0
    observed = ((size**2 - (table**2).sum(axis=1)) / (size - 1)).sum() / total
    expected = (total**2 - (table.sum(axis=0) ** 2).sum()) / (total * (total - 1))
    return float(1 - observed / expected) if expected > 0 else math.nan, len(table)
