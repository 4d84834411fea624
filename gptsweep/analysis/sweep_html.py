"""A sweep's display in a notebook: the table of the review."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..display import counted, one_line
from .columns import label, plain
from .metrics import Metric
from .numbers import like, number

if TYPE_CHECKING:
    from .sweep import Sweep

MAX_ROWS = 50


def sweep_html(sweep: Sweep) -> str:
    """Counts, then one row per setting with the default metrics and their standard errors; without scripts."""
    rows = sweep.group()
    keys = [key for key in sweep.swept if key != "seed"]
    metrics = [sweep.declared[name] for name in sweep.metrics if sweep.declared[name].default]
    headings = [*keys, "samples", *(metric.label for metric in metrics)]
    body = [
        [
            *(label(plain(row[key])) for key in keys),
            f"{row['num_samples']:,}",
            *(_cell(metric, row[metric.name], row[f"{metric.name}_se"]) for metric in metrics),
        ]
        for row in rows.head(MAX_ROWS).to_dict("records")
    ]
    notes = ["± one standard error"]
    if len(rows) > MAX_ROWS:
        notes.append(f"{counted(len(rows) - MAX_ROWS, 'more row')}: .group() has all")
    notes += [one_line(problem) for problem in sweep.problems[:3]]
    table = "".join(f"<tr>{_cells('td', row)}</tr>" for row in body)
    return (
        f"<div><b>{html.escape(one_line(sweep.headline))}</b><table><thead><tr>{_cells('th', headings)}</tr></thead>"
        f"<tbody>{table}</tbody></table><small>{html.escape('; '.join(notes))}</small></div>"
    )


def _cells(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{html.escape(one_line(text))}</{tag}>" for text in texts)


def _cell(metric: Metric, value: float, error: float) -> str:
    shown = number(metric, value)
    return f"{shown} ± {like(metric, error, value)}" if math.isfinite(error) else shown
