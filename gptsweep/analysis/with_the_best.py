"""Which of many settings may be the best: multiple comparisons with the best, by the bootstrap of `stats`.

Finding which of many settings may be the best is a multiple comparison with the best (Edwards and Hsu 1983, Multiple
Comparisons with the Best Treatment; Hsu 1996, Multiple Comparisons). For setting i, divide its difference from each other
setting j by the standard deviation s_ij. The critical value d_i is the 95 % quantile, over bootstrap resamples without true
differences, of the largest of these (max-T, Westfall and Young 1993, Resampling-Based Multiple Testing). For few clusters, it
is widened by the ratio of Student's t quantile to the normal one. With 95 % simultaneous confidence

    the best is among S = {i: no j has score_j - score_i > d_i s_ij}, and the best of the other settings leads i by at most
    max over j in S of score_j - score_i + d_j s_ij, and by at least min(0, max over j of score_j - score_i - d_i s_ij)

The critical value of a setting depends only on its own differences, so settings are compared block by block. Time grows with
the square of their number, memory only with their number.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from .stats import MAX_BLOCKS, MIN_PAIRS, RESAMPLES, Floats, Ints, Mask, critical, in_blocks, resampled, summed

TOGETHER = 32
"""Settings whose resampled scores are compared at a time: about as many as fit into a core's cache."""
ROUNDING = 1e-12
"""The fraction of a score's standard deviation below which the standard deviation of a difference is nothing but rounding."""


class WithTheBest(NamedTuple):
    """How settings compare with the best one, simultaneously for all of them; each array is [settings].

    ``low`` and ``high`` bound the lead of the best of the other settings, in units of the score; they are NaN if there are too
    few pairs. ``independent`` is the number of independent pairs with the best one as measured.
    """

    may_be_best: Mask
    low: Floats
    high: Floats
    independent: Ints


def with_the_best(num: Floats, den: Floats, clusters: Ints, score: Callable[[Floats], Floats], best: int = 0) -> WithTheBest:
    """Compute multiple comparisons with the best, as in this module's docstring. Pairs count where both settings have a value.

    Args:
        num, den: [settings, pairs]; two settings form a pair in each column; ``den`` is 0 where a setting has no value.
        clusters: [pairs], equal for pairs that are not independent.
        score: maps sum(num) / sum(den) to scores; higher is better.
        best: the setting that is best as measured, whose pairs ``independent`` counts.
    """
    size = len(num)
    kinds, kind = np.unique(den > 0, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    order = np.argsort(kind, kind="stable")  # settings with the same pairs are adjacent
    drawn = resampled(min(len(np.unique(clusters)), MAX_BLOCKS)).T

    def scored(rows: Ints, masks: Mask) -> tuple[Floats, Floats, Ints, Ints]:
        """Return scores [n], their shifts in the resamples [n, RESAMPLES], and the numbers of clusters and of resamples [n].

        Only these pairs count; a resample that has none of them has a shift of 0.
        """
        parts = summed(np.stack([num[rows], den[rows]]) * masks, clusters)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            again = in_blocks(parts) @ drawn
            again = score(again[0] / again[1])
            there = ~np.isnan(again)
            again -= np.nansum(again, axis=1, keepdims=True) / there.sum(axis=1, keepdims=True)
            whole = score(parts[0].sum(axis=-1) / parts[1].sum(axis=-1))
        return whole, np.where(there, again, 0.0), (parts[1] > 0).sum(axis=-1), there.sum(axis=1)

    def compared(rows: Ints, others: Ints, most: Floats | None = None) -> tuple[Floats, Floats, Ints]:
        """Return the leads of the others and their standard deviations [rows, others], and the clusters of both [others].

        All ``rows`` have the same pairs. ``most`` [rows, RESAMPLES] is raised to the largest of the standardised differences.
        """
        ahead, spread = np.full((len(rows), len(others)), np.nan), np.full((len(rows), len(others)), np.nan)
        independent = np.zeros(len(others), dtype=np.int64)
        for first in range(0, len(others), TOGETHER):
            theirs = others[first : first + TOGETHER]
            at = slice(first, first + len(theirs))
            there, place = np.unique(kind[theirs], return_inverse=True)
            both = kinds[there] & kinds[kind[rows[0]]]
            whole, moved, independent[at], resamples = scored(theirs, both[place])
            enough = independent[at] >= MIN_PAIRS
            if not enough.any():
                continue
            own, own_moved, *_ = scored(np.repeat(rows, len(there)), np.tile(both, (len(rows), 1)))
            own, own_moved = own.reshape(len(rows), -1), own_moved.reshape(len(rows), len(there), -1)
            least = ROUNDING**2 * (moved**2).sum(axis=1)
            apart = np.empty_like(moved)
            for number, row in enumerate(rows):
                known = enough & (theirs != row)
                np.subtract(moved, own_moved[number] if len(there) == 1 else own_moved[number, place], out=apart)
                squares = np.einsum("ij,ij->i", apart, apart)
                squares[squares <= least] = 0.0
                deviation = np.sqrt(squares / np.maximum(resamples, 1))
                ahead[number, at] = np.where(known, whole - own[number, place], np.nan)
                wider = np.sqrt(independent[at] / np.maximum(independent[at] - 1, 1))
                spread[number, at] = np.where(known, deviation * wider, np.nan)
                if most is not None:
                    some = known & (deviation > 0)
                    apart *= np.divide(1.0, deviation, out=np.zeros(len(theirs)), where=some)[:, None]
                    np.maximum(most[number], apart.max(axis=0), out=most[number])
        return ahead, spread, independent

    limit, lead = np.zeros(size), np.full(size, -np.inf)
    known, independent, behind = np.zeros(size, dtype=bool), np.zeros(size, dtype=np.int64), np.zeros(size)
    blocks = [
        same[first : first + TOGETHER]
        for same in np.split(order, np.flatnonzero(np.diff(kind[order])) + 1)
        for first in range(0, len(same), TOGETHER)
    ]

    def critical_values(rows: Ints) -> float:
        """Find these settings' critical values and the largest sure lead of another one; return the largest difference."""
        most = np.zeros((len(rows), RESAMPLES))
        ahead, spread, shared = compared(rows, order, most)
        some = ~np.isnan(ahead)
        independent[rows], known[rows] = shared[order == best], some.any(axis=1)
        for number in np.flatnonzero(known[rows]):
            limit[rows[number]] = critical(most[number], int(shared[some[number]].min()))
        lead[rows] = greatest(ahead - limit[rows, None] * spread, -np.inf)
        return float(np.abs(ahead[some]).max(initial=0.0))

    def furthest_behind(rows: Ints) -> None:
        """Find how far the best of the other candidates may lead each of these settings."""
        ahead, spread, _ = compared(rows, candidates)
        behind[rows] = greatest(ahead + limit[candidates] * spread, 0.0)

    with ThreadPoolExecutor() as threads:  # numpy's loops run in parallel
        largest = max(threads.map(critical_values, blocks))
        may = may_be_best(lead, known, largest)
        candidates = order[may[order]]
        list(threads.map(furthest_behind, blocks))
    return intervals(may, known, lead, behind, independent)


def among_the_best(ahead: Floats, spread: Floats, limit: Floats, independent: Ints) -> WithTheBest:
    """Compute the intervals of this module's docstring from tables of all pairs of settings.

    Args:
        ahead, spread: [settings, settings], the lead of j over i, and its standard deviation; NaN where unknown.
        limit: [settings], the critical values.
        independent: as in `WithTheBest`.
    """
    known = ~np.isnan(ahead)
    some = np.asarray(known.any(axis=1))
    lead = greatest(ahead - limit[:, None] * spread, -np.inf)
    may = may_be_best(lead, some, float(np.abs(ahead[known]).max(initial=0.0)))
    behind = greatest(np.where(may, ahead + limit * spread, np.nan), 0.0)
    return intervals(may, some, lead, behind, independent)


def greatest(table: Floats, least: float) -> Floats:
    """Return the greatest number of each row, at least ``least``; NaN is ignored."""
    return np.asarray(np.where(np.isnan(table), -np.inf, table).max(axis=1, initial=least))


def may_be_best(lead: Floats, known: Mask, furthest: float) -> Mask:
    """Return whether no other setting is surely ahead; a lead within rounding of the largest difference does not count."""
    return known & (lead <= 1e-9 * furthest)


def intervals(may: Mask, known: Mask, lead: Floats, behind: Floats, independent: Ints) -> WithTheBest:
    """Return the comparison that follows from the bounds; NaN where nothing is known."""
    return WithTheBest(may, np.where(known, np.minimum(0.0, lead), np.nan), np.where(known, behind, np.nan), independent)
