"""The page's data as plain JSON values: settings, metrics with errors, effects, samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..analysis.columns import label, ordered, plain
from ..analysis.numbers import DATA_DIGITS
from ..analysis.preference import PRIOR
from ..analysis.reference import Reference
from ..analysis.samplers import SamplerComparison
from ..analysis.stats import BY_CHANCE, MIN_PAIRS, by_seed
from ..analysis.sweep import Sweep
from ..store.schema import MEANS, SAMPLE_KEY, STATUSES
from .notes import models_note
from .token_data import token_columns

MAX_CONTRASTED = 60
"""With more rated settings than this, the page omits their pairwise differences."""
MAX_CELLS = 20_000
"""With more means over settings than this, the page offers none of them."""


def page_data(
    sweep: Sweep, title: str, reference: Reference | None = None, comparisons: Sequence[SamplerComparison] = ()
) -> dict[str, Any]:
    """All data of the page. Lists of equal length are columns; a row of ``groups`` is a setting, averaged over its seeds."""
    keys = [key for key in sweep.swept if key != "seed"]
    groups = sweep.group()
    group_of = {point: number for number, points in enumerate(groups["points"]) for point in points}
    shown = sweep.thinned()
    values = {key: ordered(groups[key]) for key in keys}
    statuses = sweep.summary["status"].to_dict()
    measured = measured_samples(shown, group_of)
    return {
        "title": title,
        "facts": facts(sweep),
        "problems": [*sweep.problems, *sweep.failures()],
        "keys": [
            {"name": key, "labels": [label(value) for value in values[key]], "numbers": numbers(values[key])} for key in keys
        ],
        "metrics": [
            {"name": name, "label": metric.label, "unit": metric.unit, "meaning": metric.meaning, "per": metric.per,
             "column": metric.field or name, "pooled": metric.pooled, "exponential": metric.exponential,
             "default": metric.default, "axis": metric.axis}
            for name, metric in ((name, sweep.declared[name]) for name in sweep.metrics)
        ],
        "groups": {
            "at": [list(places) for places in zip(*(placed(groups[key], values[key]) for key in keys), strict=True)] or [[]],
            "points": groups["num_points"].tolist(),
            "samples": groups["num_samples"].tolist(),
            "status": [least_finished(statuses[point] for point in points) for points in groups["points"]],
        },
        "values": {
            name: means(groups, name)
            | {"seeds": seed_values(sweep, name, group_of, len(groups)) if sweep.declared[name].per == "point" else None}
            for name in sweep.metrics
        },
        "cells": cells(sweep, values),
        "contrasts": contrasts(sweep, group_of, len(groups)),
        "rating_prior": PRIOR,
        "reasons": sweep.reasons(),
        "effects": effects(shown, values),
        "samplers": [sampler_curves(each) for each in comparisons],
        "min_pairs": MIN_PAIRS,
        "by_chance": BY_CHANCE,
        "prompts": list(shown.samples["prompt"].cat.categories),
        "point_ids": (point_ids := sorted(shown.summary["point_id"].dropna().unique())),
        "samples": sample_columns(shown, measured, point_ids),
        "tokens": token_columns(shown, shown.samples.loc[measured.index]),
        "total": int(groups["num_samples"].sum()),
        "reference": {name: number(reference.metrics.get(name)) for name in sweep.metrics} if reference else None,
        "notes": notes(sweep, reference),
    }  # fmt: skip


def notes(sweep: Sweep, reference: Reference | None) -> list[str]:
    """What to know about the numbers of the table: where the reference text is from, and what compares what."""
    text = [f"reference text {reference.source}", reference.note] if reference else []
    shown = [name for name in sweep.metrics if sweep.declared[name].default]
    return [note for note in (*text, models_note(sweep, shown)) if note]


def facts(sweep: Sweep) -> dict[str, Any]:
    """The data of the page's header."""
    table = sweep.summary
    return {
        "points": len(table),
        "statuses": {status: int((table["status"] == status).sum()) for status in STATUSES},
        "models": sorted(table["model"].dropna().unique()) if "model" in table else [],
        "seeds": int(table["seed"].nunique()) if "seed" in table else 0,
        "tokens": int(sweep.samples["completion_tokens"].sum()),
        "prompts": int(sweep.samples["prompt_index"].nunique()),
        "damaged": sweep.damaged_lines,
    }


def least_finished(statuses: Iterable[str]) -> str:
    """Return the least complete status."""
    return STATUSES[max(STATUSES.index(status) for status in statuses)]


def effects(sweep: Sweep, values: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """For each swept key: each metric along its values, and the paired difference between the lowest and the highest."""
    found = []
    for key, choices in values.items():
        along = sweep.group([key])  # over the samples on the page
        along = along.assign(place=placed(along[key], choices)).sort_values("place")
        change = sweep.effect(key)
        found.append(
            {
                "key": key,
                "along": {name: rounded(along[name]) for name in sweep.metrics},
                "change": {
                    name: [number(row["difference"]), number(row["low"]), number(row["high"]), int(row["pairs"]),
                           bool(row["differs"]), row["reason"]]
                    for name, row in change.iterrows()
                },
            }
        )  # fmt: skip
    return found


def sampler_curves(found: SamplerComparison) -> dict[str, Any]:
    """A comparison of samplers: for each family, the expected best of 1, 2, … settings and where it leads all others."""
    return {
        "metric": found.aim.metric.name,
        "aim": str(found.aim),
        "distance": found.aim.target is not None,
        "lower": found.aim.direction != "max",
        "sentence": found.sentence,
        "notes": list(found.notes),
        "halved": found.halved,
        "families": [
            {"name": str(name), "leads": [found.leader(place) == number for place in range(len(rows))]}
            | {
                short: rounded(rows[column])
                for short, column in (
                    ("best", "held_out"), ("low", "held_out_low"), ("high", "held_out_high"), ("same", "same_samples"))
            }
            for number, (name, rows) in enumerate(found.table.groupby("family", sort=False))
        ],
    }  # fmt: skip


def contrasts(sweep: Sweep, group_of: Mapping[int, int], count: int) -> dict[str, list[Any]] | None:
    """What ratings say about each pair of settings, ``a/b``: difference, interval, number of ratings, whether they differ.

    None without ratings, or with more than `MAX_CONTRASTED` settings.
    """
    if sweep.ratings is None or count > MAX_CONTRASTED:
        return None
    codes = sweep.summary.index.map(group_of).to_numpy(np.int64)
    table = sweep.ratings.contrasts(sweep.summary.index, codes, count)
    return {
        f"{a}/{b}": [number(row["difference"]), number(row["low"]), number(row["high"]), row["pairs"],
                     None if row["reason"] else row["differs"]]
        for a, rows in enumerate(table) for b, row in enumerate(rows) if a != b
    }  # fmt: skip


def measured_samples(sweep: Sweep, group_of: Mapping[int, int]) -> pd.DataFrame:
    """`Sweep.measured` for the samples on the page, without duplicates, with their ``group``."""
    measured = sweep.measured(sweep.summary)
    measured["group"] = measured["point"].map(group_of)
    return measured[~measured.duplicated(["group", "copy_of", *SAMPLE_KEY])]


def sample_columns(sweep: Sweep, measured: pd.DataFrame, point_ids: Sequence[str]) -> dict[str, Any]:
    """The samples of `measured_samples` as columns; a metric per sample is None where it has no value.

    ``point`` is the index of the sample's point in ``point_ids``, -1 if it has no id.
    """
    samples = sweep.samples.loc[measured.index]
    columns: dict[str, Any] = {
        "group": measured["group"].tolist(),
        "point": measured["point"]
        .map(sweep.summary["point_id"])
        .map(dict(zip(point_ids, range(len(point_ids)), strict=True)))
        .fillna(-1)
        .astype(int)
        .tolist(),
        "prompt": samples["prompt"].cat.codes.tolist(),
        "place": samples["prompt_index"].tolist(),
        "seed": [str(seed) for seed in samples["seed"]],
        "index": samples["sample_index"].tolist(),
        "finish": samples["finish_reason"].astype(str).tolist(),
        "completion_tokens": samples["completion_tokens"].tolist(),
        "text": samples["completion"].tolist(),
    }
    for name in MEANS:
        columns[name] = rounded(samples[name])
    for name, metric in sweep.declared.items():
        if metric.per == "sample" and (metric.field or name) not in columns:
            columns[name] = rounded(measured[f"{name}/num"].where(measured[f"{name}/den"] > 0))
    return columns


def means(table: pd.DataFrame, name: str) -> dict[str, Any]:
    """A metric of the rows of a `Sweep.group`, as columns."""
    return {"mean": rounded(table[name]), "error": rounded(table[f"{name}_se"]), "n": table[f"{name}_n"].tolist()}


def cells(sweep: Sweep, values: Mapping[str, Sequence[Any]]) -> dict[str, Any] | None:
    """Means over some of the settings, for charts that leave settings open.

    Returns:
        ``at``, the index of each mean along each key, -1 for all values; and mean, error and n of each metric. None if there
        would be more than ``MAX_CELLS``.
    """
    keys = list(values)
    subsets = [kept for size in range(2, len(keys)) for kept in itertools.combinations(keys, size)] if len(keys) <= 12 else None
    if subsets is None or sum(sweep.summary.groupby(list(kept), dropna=False).ngroups for kept in subsets) > MAX_CELLS:
        return None
    at: list[list[int]] = []
    found: dict[str, dict[str, list[Any]]] = {name: {"mean": [], "error": [], "n": []} for name in sweep.metrics}
    for kept in subsets:
        table = sweep.group(kept)
        columns = [placed(table[key], values[key]) if key in kept else [-1] * len(table) for key in keys]
        at += [list(places) for places in zip(*columns, strict=True)]
        for name, parts in found.items():
            for part, column in means(table, name).items():
                parts[part] += column
    return {"at": at, "values": found}


def seed_values(sweep: Sweep, name: str, group_of: Mapping[int, int], count: int) -> list[list[tuple[str, float | None]]]:
    """`stats.by_seed`, rounded."""
    codes = sweep.summary.index.map(group_of).to_numpy(np.int64)
    return [[(seed, number(value)) for seed, value in each] for each in by_seed(name, sweep.summary, codes, count)]


def placed(column: pd.Series[Any], values: Sequence[Any]) -> list[int]:
    """The index of each cell among the values of its setting."""
    place = {value: number for number, value in enumerate(values)}
    return [place[plain(value)] for value in column]


def numbers(values: Sequence[Any]) -> list[float] | None:
    """The values as numbers, or None if some are not."""
    return [float(v) for v in values] if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values) else None


def number(value: Any) -> float | None:
    """Round to `DATA_DIGITS`; None if not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DATA_DIGITS}g}")


def rounded(column: Iterable[Any]) -> list[float | None]:
    """Apply `number` to each value."""
    return [number(value) for value in column]
