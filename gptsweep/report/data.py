"""What the page shows, as plain JSON values: settings, metrics with their errors, effects, samples."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..analysis.frames import Sweep, label, ordered, plain
from ..analysis.metrics import METRICS
from ..analysis.stats import MIN_PAIRS
from ..analysis.summary import metric_reasons
from ..run.reference import Reference
from ..store.schema import MEANS, SAMPLE_KEY, STATUSES

MAX_SAMPLES = 10_000
MAX_TEXT = 6_000_000
"""Samples on a page: so many, and so many characters. Beyond, whole places (prompt, seed, sample_index) are left out evenly."""

MAX_CELLS = 20_000
"""Means over settings that a page holds; where there would be more it offers none."""


def page_data(sweep: Sweep, title: str, reference: Reference | None = None) -> dict[str, Any]:
    """Everything on the page. Lists of one length stand for columns: a row of ``groups`` is a setting, its seeds together."""
    keys = [key for key in sweep.swept if key != "seed"]
    groups = sweep.group()
    group_of = {point: number for number, points in enumerate(groups["points"]) for point in points}
    shown = thinned(sweep)
    values = {key: ordered(groups[key]) for key in keys}
    statuses = sweep.summary["status"].to_dict()
    return {
        "title": title,
        "facts": facts(sweep),
        "problems": [*sweep.problems, *failures(sweep)],
        "keys": [
            {"name": key, "labels": [label(value) for value in values[key]], "numbers": numbers(values[key])} for key in keys
        ],
        "metrics": [
            {"name": name, "label": METRICS[name].label, "unit": METRICS[name].unit, "meaning": METRICS[name].meaning,
             "per": METRICS[name].per, "column": METRICS[name].field or name, "pooled": METRICS[name].pooled,
             "exponential": METRICS[name].exponential, "default": METRICS[name].default, "axis": METRICS[name].axis}
            for name in sweep.metrics
        ],
        "groups": {
            "at": [list(places) for places in zip(*(placed(groups[key], values[key]) for key in keys), strict=True)] or [[]],
            "points": groups["num_points"].tolist(),
            "samples": groups["num_samples"].tolist(),
            "status": [worst(statuses[point] for point in points) for points in groups["points"]],
        },
        "values": {
            name: means(groups, name)
            | {"seeds": by_seed(sweep, name, group_of, len(groups)) if METRICS[name].per == "point" else None}
            for name in sweep.metrics
        },
        "cells": cells(sweep, values),
        "reasons": reasons(sweep),
        "effects": effects(shown, values),
        "min_pairs": MIN_PAIRS,
        "prompts": list(shown.samples["prompt"].cat.categories),
        "samples": sample_columns(shown, group_of),
        "total": int(groups["num_samples"].sum()),
        "reference": {name: number(reference.metrics.get(name)) for name in sweep.metrics} if reference else None,
        "reference_note": f"Reference text {reference.source}. {reference.note}".strip() if reference else "",
    }  # fmt: skip


def facts(sweep: Sweep) -> dict[str, Any]:
    """What the head of the page says."""
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


def failures(sweep: Sweep) -> list[str]:
    """A line for each point that failed, the first hundred."""
    failed = sweep.summary[sweep.summary["status"] == "failed"]
    lines = [
        f"{row['directory']}: {row['error'] if pd.notna(row['error']) else 'failed'}" for _, row in failed.head(100).iterrows()
    ]
    return [*lines, f"{len(failed) - 100} further points failed"] if len(failed) > 100 else lines


def worst(statuses: Iterable[str]) -> str:
    """The least finished status."""
    return STATUSES[max(STATUSES.index(status) for status in statuses)]


def reasons(sweep: Sweep) -> dict[str, str]:
    """Why a metric is empty somewhere: by metric, the reason at the first point where it is."""
    found: dict[str, str] = {}
    for name, metric in METRICS.items():
        if name not in sweep.summary or sweep.summary[name].notna().all():
            continue
        point = sweep.summary.index[sweep.summary[name].isna()][0]
        samples = sweep.samples[sweep.samples["point"] == point]
        samples = samples.astype(dict.fromkeys(MEANS, object)).where(samples.notna(), None)
        why = metric_reasons(samples.to_dict("records")).get(name) if len(samples) else "has no samples yet"
        found[metric.name] = why or "not in the point's summary"
    return found


def effects(sweep: Sweep, values: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """For each swept key: each metric along its values, and the paired difference between its two ends."""
    found = []
    for key, choices in values.items():
        along = sweep.group([key])  # of the samples of the page
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


def thinned(sweep: Sweep) -> Sweep:
    """The sweep with as many samples as a page holds; what stays is the same (prompt, seed, sample_index) at every point."""
    samples = sweep.samples
    size = samples["completion"].str.len().sum()
    share = min(1.0, MAX_SAMPLES / max(1, len(samples)), MAX_TEXT / max(1, size))
    if share == 1.0:
        return sweep
    places = samples.groupby(["sample_index", "prompt_index", "seed"], sort=True).ngroup()
    kept = max(1, int((places.max() + 1) * share))
    chosen = np.linspace(0, int(places.max()), kept).round().astype(int)
    return dataclasses.replace(sweep, samples=samples[places.isin(chosen)])


def sample_columns(sweep: Sweep, group_of: Mapping[int, int]) -> dict[str, Any]:
    """The samples, column by column, each once; a metric per sample is None where it has no value."""
    measured = sweep.measured(sweep.summary)
    measured["group"] = measured["point"].map(group_of)
    measured = measured[~measured.duplicated(["group", "copy_of", *SAMPLE_KEY])]
    samples = sweep.samples.loc[measured.index]
    columns: dict[str, Any] = {
        "group": measured["group"].tolist(),
        "prompt": samples["prompt"].cat.codes.tolist(),
        "place": samples["prompt_index"].tolist(),
        "seed": [str(seed) for seed in samples["seed"]],
        "index": samples["sample_index"].tolist(),
        "finish": samples["finish_reason"].astype(str).tolist(),
        "completion_tokens": samples["completion_tokens"].tolist(),
        "text": samples["completion"].tolist(),
    }
    for name in MEANS:
        columns[name] = rounded(samples[name], 7)
    for name, metric in METRICS.items():
        if metric.of_sample is not None:
            columns[name] = rounded(measured[f"{name}/num"].where(measured[f"{name}/den"] > 0), 7)
    return columns


def means(table: pd.DataFrame, name: str) -> dict[str, Any]:
    """A metric of the rows of a `Sweep.group`, column by column."""
    return {"mean": rounded(table[name]), "error": rounded(table[f"{name}_se"]), "n": table[f"{name}_n"].tolist()}


def cells(sweep: Sweep, values: Mapping[str, Sequence[Any]]) -> dict[str, Any] | None:
    """Means over some of the settings: what the charts show where they leave a setting open.

    Returns:
        ``at``, the place of each mean along each key, -1 where it is over all values; and each metric's mean, error and n.
        None where there are more than ``MAX_CELLS``.
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


def by_seed(sweep: Sweep, name: str, group_of: Mapping[int, int], count: int) -> list[list[tuple[str, float | None]]]:
    """A metric per point: for each group each seed once, in ascending order, and the value of its point there."""
    found: list[list[tuple[str, float | None]]] = [[] for _ in range(count)]
    if "seed" in sweep.summary:
        table = sweep.summary.assign(group=sweep.summary.index.map(group_of))
        table = table.sort_values("num_samples", ascending=False, kind="stable").drop_duplicates(["group", "seed"])
        for _, row in table.sort_values("seed", kind="stable").iterrows():
            found[row["group"]].append((str(row["seed"]), number(row[name])))
    return found


def placed(column: pd.Series[Any], values: Sequence[Any]) -> list[int]:
    """The place of each cell among the values of its setting."""
    place = {value: number for number, value in enumerate(values)}
    return [place[plain(value)] for value in column]


def numbers(values: Sequence[Any]) -> list[float] | None:
    """The values as numbers, if they all are."""
    return [float(v) for v in values] if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values) else None


def number(value: Any, digits: int = 5) -> float | None:
    """A number to five digits, as the page shows three or four; None where it is not one."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def rounded(column: Iterable[Any], digits: int = 5) -> list[float | None]:
    """Each as `number` has it."""
    return [number(value, digits) for value in column]
