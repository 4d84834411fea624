"""Determine which settings of a sweep may be the best, and by how much each may trail the best; used by ``--best``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import ResultsError
from ..store.schema import MEANS, SAMPLE_KEY
from .columns import OWN_SAMPLES_NOTE, keys_of, several_models
from .samplers import Aim
from .stats import MIN_PAIRS, Floats, Ints, identities, noises, places_of
from .sweep import Sweep
from .with_the_best import with_the_best

PLACES = 30
"""Samples of each point that are compared at least, however many points there are; fewer leave most settings unclear."""


@dataclass(frozen=True, eq=False)
class Verdicts:
    """How each row of a `Sweep.group` compares with the best row.

    ``marks`` are ``best``, ``alike`` (the samples cannot tell it from the best), ``differs``, or ``unclear`` (too few pairs).
    ``low`` and ``high`` bound how far the best of the other rows is ahead, in units of the metric, with 95 % simultaneous
    coverage over all rows; NaN where unknown.
    """

    aim: Aim
    marks: tuple[str, ...]
    low: Floats
    high: Floats


def verdicts(sweep: Sweep, rows: pd.DataFrame, aim: Aim) -> Verdicts:
    """Compare every row with the best one.

    Args:
        sweep: the sweep that was grouped.
        rows: the result of `Sweep.group`.
        aim: what counts as best.

    Raises:
        ResultsError: no row has a value of the metric, or each model has measured its own samples and rows differ in the model.
    """
    name = aim.metric.name
    if name not in rows or not rows[name].notna().any():
        raise ResultsError("best", name, "no point has this metric")
    if aim.metric.field in MEANS and several_models(rows, keys_of(rows)):
        works = "use a metric of the words, such as diversity, or look at one model, for example with --where"
        raise ResultsError("best", name, f"{OWN_SAMPLES_NOTE}; {works}")
    best = int(np.nanargmax(aim.ranked(rows[name].to_numpy(float))))
    if aim.metric.per == "pair" and sweep.ratings:
        row_of = rows_of(rows)
        codes = np.array(list(row_of.values()), dtype=np.int64)
        found = sweep.ratings.with_the_best(pd.Index(list(row_of)), codes, len(rows), -1 if aim.direction == "min" else 1, best)
    else:
        found = with_the_best(*paired(sweep.thinned(PLACES), rows, aim), aim.score, best)
    unclear = found.independent < MIN_PAIRS
    marks = np.where(unclear, "unclear", np.where(found.may_be_best, "alike", "differs")).tolist()
    marks[best] = "best"
    return Verdicts(aim, tuple(marks), found.low, found.high)


def rows_of(rows: pd.DataFrame) -> dict[int, int]:
    """Map each point of a `Sweep.group` to its row."""
    return {point: row for row, points in enumerate(rows["points"]) for point in points}


def paired(sweep: Sweep, rows: pd.DataFrame, aim: Aim) -> tuple[Floats, Floats, Ints]:
    """Arguments for `with_the_best`; pairs share prompt, seed, sample_index and all swept settings that ``rows`` leave open."""
    name, keys = aim.metric.name, keys_of(rows)
    row_of = rows_of(rows)
    points = sweep.summary.loc[list(row_of)]
    left_open = [key for key in sweep.swept if key not in keys and key != "seed"]
    if aim.metric.per == "sample":
        place = [*left_open, *SAMPLE_KEY]
        table = sweep.measured(points)
        num, den = table[f"{name}/num"].to_numpy(float), table[f"{name}/den"].to_numpy(float)
    else:
        place = [*left_open, *({"seed"} & set(sweep.settings))]
        table = points.assign(point=points.index, copy_of=identities(points), noise_of=noises(points))
        table = table.sort_values("num_samples", ascending=False, kind="stable")
        num = table[name].to_numpy(float)
        num, den = np.nan_to_num(num), (~np.isnan(num)).astype(float)
    at = pd.DataFrame({"row": table["point"].map(row_of).to_numpy(np.int64)}, table.index)
    at["pair"] = places_of(table[place]) if place else 0
    first = ~at.duplicated().to_numpy(bool)  # keep one of several copies, and of points that fall into the same pair
    row, pair, table = at["row"].to_numpy(np.int64)[first], at["pair"].to_numpy(np.int64)[first], table[first]
    shared = [each for each in place if each not in left_open]
    own_noise = bool((table["noise_of"] >= 0).all())  # pairs that share no noise are independent
    cluster = pair if own_noise or not shared else places_of(table[shared])
    clusters = np.zeros(pair.max(initial=-1) + 1, dtype=np.int64)
    clusters[pair] = cluster
    sums = np.zeros((2, len(rows), len(clusters)))
    sums[0, row, pair], sums[1, row, pair] = num[first], den[first]
    return sums[0], sums[1], clusters
