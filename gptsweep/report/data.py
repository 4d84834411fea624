"""What the page shows, as plain JSON values: settings, metrics with their errors, effects, samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..compare import MIN_PAIRS, sample_values
from ..frames import STATUSES, Sweep, label, ordered, plain
from ..metrics import METRICS, STANDARD_ERROR, metric_reasons

MAX_SAMPLES = 10_000
MAX_TEXT = 6_000_000
"""Samples on a page: so many, and so many characters. Beyond, whole places (prompt, seed, sample_index) are left out evenly."""

SAMPLE_METRICS = ("perplexity", "sampler_perplexity", "entropy_mean", "seq_rep_4", "diversity", "ends_repeating")


def page_data(sweep: Sweep, title: str, reference: Mapping[str, float | None] | None = None) -> dict[str, Any]:
    """Everything on the page. Lists of one length stand for columns: a row of ``groups`` is a setting, its seeds together."""
    keys = [key for key in sweep.swept if key != "seed"]
    groups = sweep.group()
    group_of = {point: number for number, points in enumerate(groups["points"]) for point in points}
    shown = thinned(sweep)
    samples = shown.samples
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
             "per": METRICS[name].per}
            for name in sweep.metrics
        ],
        "groups": {
            "at": [list(places) for places in zip(*(placed(groups[key], values[key]) for key in keys), strict=True)] or [[]],
            "points": groups["num_points"].tolist(),
            "samples": groups["num_samples"].tolist(),
            "status": [worst(statuses[point] for point in points) for points in groups["points"]],
        },
        "values": {
            name: {
                "mean": rounded(groups[name]),
                "error": rounded(groups[f"{name}_se"]),
                "n": groups[f"{name}_n"].tolist(),
                "seeds": by_seed(sweep, name, group_of, len(groups)) if METRICS[name].per == "point" else None,
            }
            for name in sweep.metrics
        },
        "reasons": reasons(sweep),
        "effects": effects(shown, values),
        "min_pairs": MIN_PAIRS,
        "prompts": list(samples["prompt"].cat.categories),
        "samples": sample_columns(samples, group_of),
        "total": len(sweep.samples),
        "reference": {name: number(reference.get(name)) for name in sweep.metrics} if reference else None,
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
        samples = samples.astype(dict.fromkeys(STANDARD_ERROR, object)).where(samples.notna(), None)
        why = metric_reasons(samples.to_dict("records")).get(name) if len(samples) else "has no samples yet"
        found[metric.name] = why or "not in the point's summary"
    return found


def effects(sweep: Sweep, values: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """For each swept key: each metric along its values, and the paired difference between its two ends."""
    found = []
    for key, choices in values.items():
        along = sweep.group([key])
        along = along.assign(place=placed(along[key], choices)).sort_values("place")
        change = sweep.effect(key)
        found.append(
            {
                "key": key,
                "along": {name: rounded(along[name]) for name in sweep.metrics},
                "change": {
                    name: [number(row["difference"]), number(row["low"]), number(row["high"]), int(row["pairs"]),
                           bool(row["differs"])]
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


def sample_columns(samples: pd.DataFrame, group_of: dict[int, int]) -> dict[str, Any]:
    """The samples, column by column; the values of a metric per sample as ``[numerator, weight]`` where weights differ."""
    measured = sample_values(samples)
    columns: dict[str, Any] = {
        "group": [group_of[point] for point in samples["point"]],
        "prompt": samples["prompt"].cat.codes.tolist(),
        "place": samples["prompt_index"].tolist(),
        "seed": [str(seed) for seed in samples["seed"]],
        "index": samples["sample_index"].tolist(),
        "finish": samples["finish_reason"].astype(str).tolist(),
        "tokens": samples["completion_tokens"].tolist(),
        "text": samples["completion"].tolist(),
    }
    for name in SAMPLE_METRICS:
        have = measured[f"{name}/den"] > 0
        value = (measured[f"{name}/num"] / measured[f"{name}/den"].where(have)).astype(float)
        columns[name] = rounded(np.exp(-value) if name.endswith("perplexity") else value)
    return columns


def by_seed(sweep: Sweep, name: str, group_of: Mapping[int, int], count: int) -> list[dict[str, float | None]]:
    """A metric per point, by group, then by the seed of the point."""
    found: list[dict[str, float | None]] = [{} for _ in range(count)]
    table = sweep.summary
    if "seed" in table:
        for point, seed, value in zip(table.index, table["seed"], table[name], strict=True):
            found[group_of[point]][str(seed)] = number(value)
    return found


def placed(column: pd.Series[Any], values: Sequence[Any]) -> list[int]:
    """The place of each cell among the values of its setting."""
    place = {value: number for number, value in enumerate(values)}
    return [place[plain(value)] for value in column]


def numbers(values: Sequence[Any]) -> list[float] | None:
    """The values as numbers, if they all are."""
    return [float(v) for v in values] if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values) else None


def number(value: Any) -> float | None:
    """A number to five digits; None where it is not one."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def rounded(column: Iterable[Any]) -> list[float | None]:
    """Numbers to five digits: the page shows three or four."""
    return [number(value) for value in column]
