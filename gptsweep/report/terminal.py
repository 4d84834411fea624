"""The review's output on a terminal: the table of a sweep, the effect of each setting, two points side by side."""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..analysis.best import Verdicts
from ..analysis.columns import keys_of, label, ordered, plain
from ..analysis.metrics import Metric
from ..analysis.numbers import like, number
from ..analysis.samplers import SamplerComparison
from ..analysis.stats import BY_CHANCE
from ..analysis.sweep import Sweep
from ..display import counted, one_line, visible
from ..store.schema import REPORT, SAMPLE_KEY
from .notes import NEXT_STEPS, models_note
from .tables import FEWEST, Column, fitting, print_blocks, print_in_parts, print_table

FIRST_NAMES = 8
"""The maximum number of settings that a sentence names."""
FIRST_ROWS = 8
"""Rows shown at the end of a sweep."""
MAX_BUDGETS = 10
"""The maximum number of budgets shown in a comparison of samplers; larger ones are thinned evenly on a logarithmic scale."""
MAX_ROWS = 200
"""The maximum number of rows on a terminal; CSV and JSON have all."""


def default_metrics(sweep: Sweep) -> list[str]:
    """The metrics to show if the user names none."""
    return [name for name in sweep.metrics if sweep.declared[name].default]


def settings_of_row(row: Mapping[Any, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The settings of a row of `Sweep.group`."""
    return {key: plain(row[key]) for key in keys}


def print_sweep(
    console: Console, sweep: Sweep, rows: pd.DataFrame, names: Sequence[str], best: Verdicts | None,
    reference: Mapping[str, float | None] | None, *, show_all: bool,
) -> None:  # fmt: skip
    """Print the table of the sweep, then the effect of each setting.

    Args:
        console: the output.
        sweep: the sweep.
        rows: from `Sweep.group`.
        names: the metrics.
        best: the result of ``--best``.
        reference: the metrics of the reference text.
        show_all: whether every metric must be shown, because the user named them.
    """
    console.print(Text(sweep.headline, style="bold"))
    console.print()
    metrics = [sweep.declared[name] for name in names]
    marks, by = (best.marks, best.aim.metric.name) if best else ([""] * len(rows), "")
    left_out = print_rows(console, rows.head(MAX_ROWS), metrics, marks, by, reference, whole=show_all)
    if left_out:
        more = ", ".join(metric.label for metric in left_out)
        console.print(
            Text(f"{more}: in a wider terminal, or with --metric {','.join(metric.name for metric in left_out)}", style="dim")
        )
    if len(rows) > MAX_ROWS:
        console.print(f"{len(rows) - MAX_ROWS} more rows: --where, --group or --format csv", style="dim")
    console.print(Text("± one standard error" + (over_seeds(metrics) if "seed" in sweep.swept else ""), style="dim"))
    if note := models_note(sweep, names):
        console.print(Text(note, style="yellow"))
    if best:
        console.print(Text("★ best; ≈ these samples cannot tell it from the best; ? too few pairs to say", style="dim"))
        console.print(Text(best_set(rows, best), style="bold"))
    for name, reason in sweep.reasons().items():
        if name in names:
            console.print(Text(f"– {sweep.declared[name].label}: {one_line(reason)}", style="dim"))
    print_effects(console, sweep, names)
    if not best and len(rows) > 1:
        console.print(Text(NEXT_STEPS, style="dim"))


def best_set(rows: pd.DataFrame, best: Verdicts) -> str:
    """State which settings may be the best: the best as measured, and all that the samples cannot distinguish from it."""
    keys, metric = keys_of(rows), best.aim.metric
    found: dict[str, list[str]] = {"best": [], "alike": [], "differs": [], "unclear": []}
    for row, mark, most in zip(rows.to_dict("records"), best.marks, best.high, strict=True):
        behind = f" (behind by at most {number(metric, most)})" if mark == "alike" else ""
        found[mark].append((named(settings_of_row(row, keys)) or "this run") + behind)
    parts = [f"best: {found['best'][0]}"]
    if alike := found["alike"]:
        parts.append(f"these samples cannot tell it from {counted(len(alike), 'other setting')}: {_first_names(alike)}")
    elif found["differs"]:
        parts.append("no other setting is as good, as far as these samples can tell")
    if unclear := found["unclear"]:
        parts.append(f"too few pairs to say of {counted(len(unclear), 'setting')}: {_first_names(unclear)}")
    compared = len(alike) + len(found["differs"])
    return "; ".join(parts + [f"95 % for all {compared + 1} settings together"] * (compared > 1))


def _first_names(names: Sequence[str]) -> str:
    more = len(names) - FIRST_NAMES
    return "; ".join(names[:FIRST_NAMES]) + (f"; and {more:,} more, marked in the table" if more > 0 else "")


def by_chance(comparisons: int) -> str:
    """State how many of these comparisons are expected to differ by chance alone."""
    return f"of {comparisons:,} comparisons {comparisons * BY_CHANCE:.3g} would differ by chance alone"


def print_first_rows(directory: Path, sweep: Sweep) -> None:
    """At the end of a sweep, print its first settings and the command that shows the rest; to stderr if stdout is a pipe."""
    keys = [key for key in sweep.swept if key != "seed"]
    table = sweep.summary
    number = table.groupby(keys, dropna=False, sort=False).ngroup().to_numpy() if keys else np.zeros(len(table), int)
    shown = FIRST_ROWS + int(number.max() == FIRST_ROWS)  # the row of one more setting is as short as a line about it
    rows = sweep.only(number < shown).group()
    console = console_at_end()
    console.print()
    print_rows(
        console, rows, [sweep.declared[name] for name in default_metrics(sweep)], [""] * len(rows), "", None, whole=False
    )
    count = number.max() + 1 - len(rows)
    more = f"{count:,} more settings, " if count > 0 else ""
    path = os.path.relpath(directory)
    path = one_line(os.path.abspath(path) if path.startswith("..") else path)
    command = f"python -m gptsweep.review {shlex.quote(path)}"
    page = f"samples side by side, in a browser: {os.path.join(path, REPORT)}"
    console.print(Text(f"{more}all metrics, and what each setting does:\n{command}\n{page}"), soft_wrap=True)


def console_at_end() -> Console:
    """The console for a sweep's closing output: stderr if stdout is a pipe."""
    terminal = sys.stdout.isatty()
    return Console(
        file=sys.stdout if terminal else sys.stderr,
        force_terminal=terminal or sys.stderr.isatty(),
        highlight=False,
        markup=False,
        emoji=False,
    )


def print_comparisons(found: Sequence[SamplerComparison]) -> None:
    """At the end of a sweep, print the requested comparisons of samplers."""
    console = console_at_end()
    for each in found:
        console.print()
        print_samplers(console, each)


def print_rows(
    console: Console,
    rows: pd.DataFrame,
    metrics: Sequence[Metric],
    marks: Sequence[str],
    best: str,
    reference: Mapping[str, float | None] | None,
    *,
    whole: bool,
) -> list[Metric]:
    """Print the table of settings and metrics, or a block per row if it does not fit.

    Args:
        console: the output.
        rows: from `Sweep.group`.
        metrics: the metrics.
        marks: how each row compares with the best in metric ``best``, from `verdicts`.
        best: the metric of ``--best``, or empty.
        reference: the metrics of the reference text.
        whole: whether every metric must be shown.

    Returns:
        The metrics that did not fit.
    """
    records = rows.to_dict("records")
    settings = [
        Column(one_line(key), [Text(one_line(label(plain(row[key]))), style="bold") for row in records], True, "left")
        for key in keys_of(rows)
    ]
    samples = Column("samples", [Text(f"{row['num_samples']:,}") for row in records])
    cells = [
        Column(
            metric.label,
            [metric_cell(row, metric, marks[at] if metric.name == best else "") for at, row in enumerate(records)],
        )
        for metric in metrics
    ]
    lead = [Column("#", [Text(str(at), style="dim") for at in range(len(records))]), *settings, samples]
    if reference:
        head = Text("reference text", style="cyan")
        ends = [Text(), *([head] + [Text()] * len(settings))[: len(settings)], Text()]
        ends[0] = ends[0] if settings else head
        lead = [replace(column, cells=[*column.cells, end]) for column, end in zip(lead, ends, strict=True)]
        cells = [
            replace(column, cells=[*column.cells, Text(number(metric, reference.get(metric.name)), style="cyan")])
            for metric, column in zip(metrics, cells, strict=True)
        ]
    count = fitting(lead, cells, console.width)
    if count == len(cells) or (count >= FEWEST and not whole):
        print_table(console, [*lead, *cells[:count]], [len(records)] if reference else [])
        return list(metrics[count:])
    titles = [
        Text.assemble((f"# {at}  ", "dim"), (", ".join(f"{c.heading}={c.cells[at]}" for c in settings), "bold"),
                      f"  {counted(row['num_samples'], 'sample')}")
        for at, row in enumerate(records)
    ]  # fmt: skip
    print_blocks(console, [*titles, *([Text("reference text", style="cyan")] if reference else [])], cells)
    return []


def over_seeds(metrics: Sequence[Metric]) -> str:
    """Note which of the metrics have their error over seeds."""
    seeds = [metric.label for metric in metrics if metric.per == "point"]
    return f" over samples; for {', '.join(seeds)} over points" if seeds else " over samples"


def metric_cell(row: Mapping[Any, Any], metric: Metric, mark: str) -> Text:
    """Mean ± error, and how it compares with the best."""
    mean, error = row.get(metric.name, math.nan), row.get(f"{metric.name}_se", math.nan)
    sign = {"best": "★ ", "alike": "≈ ", "unclear": "? "}.get(mark, "")
    cell = Text(sign + number(metric, mean), style={"best": "bold green", "alike": "green"}.get(mark, ""))
    if math.isfinite(error):
        cell.append(f" ±{like(metric, error, mean)}", style="dim")
    return cell


def print_effects(console: Console, sweep: Sweep, names: Sequence[str]) -> None:
    """Print one row per swept setting: how the metrics change from its lowest value to its highest."""
    thin = sweep.thinned()
    keys = [key for key in sweep.swept if key != "seed" and sweep.summary[key].nunique(dropna=False) > 1]
    if not keys or thin.samples.empty:
        return
    titles = Column("What each\nsetting does", [Text(sweep.declared[name].label) for name in names], True, "left")
    columns, effects = [], []
    for key in keys:
        values = ordered(sweep.summary[key])
        effect = rows_by_name(thin.effect(key))
        effects += [effect[name] for name in names if name in effect]
        cells = [change(effect[name], sweep.declared[name]) if name in effect else Text("–") for name in names]
        ends = one_line(f"{label(values[0])} → {label(values[-1])}")
        columns.append(Column(f"{one_line(key)}\n{ends}", cells, justify="left"))
    console.print()
    if all(cell.plain == "–" for column in columns for cell in column.cells):
        console.print(Text("what each setting does: no two points differ in one setting alone", style="dim"))
        return
    print_in_parts(console, titles, columns)
    note = (
        "[95 % interval over pairs of the same prompt, seed and sample]; ≈ not distinguishable from no change; ? too few pairs"
    )
    console.print(Text(note, style="dim"))
    if (compared := sum(map(_has_verdict, effects))) > 1:
        console.print(Text(by_chance(compared), style="dim"))


def _has_verdict(row: Mapping[Any, Any]) -> bool:
    """Whether a row of `Sweep.compare` concludes that its sides differ, or that the samples cannot tell."""
    return math.isfinite(float(row["difference"])) and not row["reason"]


def rows_by_name(table: pd.DataFrame) -> dict[str, dict[Any, Any]]:
    """The rows of a `Sweep.compare`, by metric."""
    return dict(zip(map(str, table.index), table.to_dict("records"), strict=True))


def change(row: Mapping[Any, Any], metric: Metric) -> Text:
    """A difference with its interval."""
    difference, low, high = float(row["difference"]), float(row["low"]), float(row["high"])
    if not math.isfinite(difference):
        return Text("–")
    sign = "" if row["differs"] else "? " if row["reason"] else "≈ "
    text = Text(f"{sign}{'+' if difference > 0 else ''}{number(metric, difference)}", style="" if row["differs"] else "dim")
    if math.isfinite(low):
        text.append(f" [{like(metric, low, difference)}, {like(metric, high, difference)}]", style="dim")
    return text


def print_samplers(console: Console, found: SamplerComparison) -> None:
    """Print a comparison of samplers: the sentence, then one row per budget and one column per family."""
    console.print(Text(one_line(found.sentence), style="bold"))
    for note in found.notes:
        console.print(Text(one_line(note), style="dim"))
    console.print()
    metric, most = found.aim.metric, max(found.settings)
    budgets = sorted(
        {round(most**share) for share in np.linspace(0, 1, MAX_BUDGETS)} if most > MAX_BUDGETS else range(1, most + 1)
    )
    cells: dict[tuple[str, int], Text] = {}
    for row in found.table.to_dict("records"):
        leads = found.leader(row["budget"] - 1) == found.families.index(row["family"])
        value, low, high = (row[f"held_out{end}"] for end in ("", "_low", "_high"))
        cell = Text(("★ " if leads else "") + number(metric, value), style="bold green" if leads else "")
        if math.isfinite(low):
            cell.append(f" [{like(metric, low, value)}, {like(metric, high, value)}]", style="dim")
        cells[row["family"], row["budget"]] = cell.append(f" ({number(metric, row['same_samples'])})", style="dim")
    columns = [
        Column(f"{one_line(family)}\n{count} {'setting' if count == 1 else 'settings'}",
               [cells.get((family, budget), Text("–")) for budget in budgets])
        for family, count in zip(found.families, found.settings, strict=True)
    ]  # fmt: skip
    print_in_parts(console, Column("settings\ntried", [Text(str(budget)) for budget in budgets]), columns)
    what = "distance from the reference text" if found.aim.target is not None else metric.label
    console.print(Text(
        f"{what} expected of the best of so many settings, chosen on one half of the {found.halved} and scored on the other "
        "[95 % interval over prompts and samples] (chosen and scored on the same, which flatters it). "
        "★ ahead of every other family", style="dim"))  # fmt: skip


def print_difference(console: Console, sweep: Sweep, difference: pd.DataFrame, sides: Sequence[Any], most: int) -> None:
    """Print the metrics of two points, and their samples side by side."""
    titles = [named(side) for side in sides]
    found = rows_by_name(difference)
    why = [row["reason"] or ("" if row["differs"] else "these samples cannot tell them apart") for row in found.values()]
    columns = [
        Column("metric", [Text(sweep.declared[name].label) for name in found], True, "left"),
        Column("A", [Text(number(sweep.declared[name], row["a"])) for name, row in found.items()]),
        Column("B", [Text(number(sweep.declared[name], row["b"])) for name, row in found.items()]),
        Column("B − A", [change(row, sweep.declared[name]) for name, row in found.items()]),
        Column("pairs", [Text(str(row["pairs"])) for row in found.values()]),
    ]
    reasons = Column("", [Text(one_line(each), style="dim") for each in why], True, "left")
    compared = sum(map(_has_verdict, found.values()))
    fits = fitting(columns, [reasons], console.width)
    console.print(Text.assemble(("A ", "bold"), titles[0], "\n", ("B ", "bold"), titles[1]))
    if fits or fitting([], columns, console.width) == len(columns):
        print_table(console, [*columns, *[reasons][:fits]])
    else:
        titled = [Text(sweep.declared[name].label, style="bold") for name in found]
        print_blocks(console, titled, [*columns[1:], *([reasons] if any(why) else [])])
    if compared > 1:
        console.print(Text(by_chance(compared), style="dim"))
    key = list(SAMPLE_KEY)
    parts = [sweep.samples[sweep.samples["point"].isin(sweep.points(side).index)] for side in sides]
    pairs = parts[0].merge(parts[1], on=key, suffixes=("_a", "_b")).sort_values(key)
    for pair in pairs.head(max(0, most)).to_dict("records"):
        console.print(side_by_side(pair, titles))
    console.print(Text(f"{min(most, len(pairs))} of {counted(len(pairs), 'pair')} of samples; --samples N", style="dim"))


def named(side: str | Mapping[str, Any]) -> str:
    """A point's name as a heading."""
    return one_line(side if isinstance(side, str) else ", ".join(f"{key}={label(value)}" for key, value in side.items()))


def side_by_side(pair: Mapping[Any, Any], titles: Sequence[str]) -> Table:
    """Two completions in columns: the common beginning is dim, the divergence is marked, repetitions are folded."""
    title = "prompt {prompt_index} · seed {seed} · sample {sample_index} · {prompt_a}".format(**pair)
    table = Table(box=box.SQUARE, expand=True, title=Text(one_line(title), "dim", justify="left", overflow="ellipsis"))
    a, b = pair["completion_a"], pair["completion_b"]
    fork = next((at for at, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
    for side, title in zip("AB", titles, strict=True):
        table.add_column(Text(f"{side} {title}"), ratio=1, overflow="fold")
    table.add_row(*(forked(text, fork, a == b) for text in (a, b)))
    return table


def forked(text: str, fork: int, same: bool) -> Text:
    """A completion with a mark where it diverges from the other."""
    found = Text(folded(text[:fork]), style="dim")
    if same:
        return found.append("  (the same)", style="italic")
    return found.append("▸", style="bold red").append(folded(text[fork:]), style="not dim")


def folded(text: str) -> str:
    """Visible text in which a phrase repeated at least three times is written once with its count."""
    pieces, start = [], 0
    for run in re.finditer(r"(.{1,120}?)\1{2,}", text[:50_000], re.DOTALL):
        if len(run[0]) < 24 or not run[1].strip():
            continue
        size, end = len(run[1]), run.end()
        while end < len(text) and text[end] == text[end - size]:
            end += 1  # complete a last phrase that shifting cut
        first = run.start() + word_shift(text, run.start(), size)
        times = (end - first) // size
        pieces += [visible(text[start:first]), visible(text[first : first + size]), f"⟨×{times}⟩"]
        start = first + times * size
    return "".join([*pieces, visible(text[start:])])


def word_shift(text: str, start: int, size: int) -> int:
    """The offset in a run of a phrase of ``size`` characters at which phrases start and end at word boundaries; 0 if none."""
    for shift in range(size):
        first = start + shift
        if (first == 0 or text[first - 1].isspace()) and text[first + size - 1].isspace():
            return shift
    return 0
