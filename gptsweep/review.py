"""The command: ``python -m gptsweep.review PATH``: the table of a sweep, what each setting does, and the page.

On a terminal it prints tables; into a pipe it writes CSV. It also brings ``sweep.csv`` and ``report.html`` up to date.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .analysis.frames import Sweep, label, ordered, plain, read_sweep
from .analysis.metrics import METRICS
from .analysis.row_filter import where
from .display import STDOUT, drop, one_line, ready_streams, say, visible
from .errors import GptsweepError, ResultsError
from .report import write_report
from .report.data import failures, reasons, thinned
from .report.tables import FEWEST, Column, fitting, print_blocks, print_in_parts, print_table
from .run.reference import Reference, kept_reference, maker_name, update_reference
from .run.rows import OpenModel
from .store.csv_files import csv_bytes
from .store.schema import MULTIRUN, REFERENCE, SWEEP
from .store.sweep_table import write_sweep_csv

FIRST_ROWS = 8
"""Rows shown at the end of a sweep."""
MAX_ROWS = 200
"""Rows of a table on the terminal; CSV and JSON have all."""

EXAMPLES = """examples:
  python -m gptsweep.review outputs/sweeps/night
  python -m gptsweep.review outputs/sweeps/night --metric perplexity,diversity --sort perplexity
  python -m gptsweep.review outputs/sweeps/night --where "temperature < 1 and top_k == 50" --group temperature
  python -m gptsweep.review outputs/sweeps/night --best self_bleu_4:min
  python -m gptsweep.review outputs/sweeps/night --diff temperature=0.5,top_k=50 temperature=1.0,top_k=50
  python -m gptsweep.review outputs/sweeps/night --format csv > night.csv
"""


class Parser(argparse.ArgumentParser):
    """Errors are one line, like those of the other command."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and stop with status 2."""
        self.exit(2, f"gptsweep.review: error: {one_line(message)}; see --help\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    known = ", ".join(METRICS)
    found = Parser(
        prog="python -m gptsweep.review", description="Review a sweep: tables here, report.html beside the results.",
        epilog=f"{EXAMPLES}\nmetrics: {known}", formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    found.add_argument("path", nargs="+", type=Path, help="a sweep, a run, or a directory of them")
    found.add_argument("--metric", action="append", metavar="NAME[,NAME]", help="the metrics to show")
    found.add_argument(
        "--sort", metavar="NAME", help="sort by a metric or a setting; a minus in front, --sort -NAME, turns it round"
    )
    found.add_argument(
        "--where", metavar="CONDITION", help='only points for which it holds, as "temperature < 1 and top_k == 50"'
    )
    found.add_argument(
        "--group", metavar="KEY[,KEY]", help="one row for each value of these settings, everything else together"
    )
    found.add_argument(
        "--best", metavar="METRIC:min|max|reference", help="mark the best row, and those that cannot be told from it"
    )
    found.add_argument(
        "--reference", metavar="FILE:PATH", help="hold everything against a text, which later reviews show, too; null ends that"
    )
    found.add_argument("--model", metavar="NAME", help="with --reference: the model to score it with, if results name a path")
    found.add_argument("--diff", nargs=2, metavar="POINT", help="compare two points: row numbers, settings or directories")
    found.add_argument("--samples", type=int, default=3, metavar="N", help="with --diff: so many samples side by side (3)")
    found.add_argument("--format", choices=("table", "csv", "json"), help="table on a terminal, csv in a pipe")
    found.add_argument("--plots", type=Path, metavar="DIR", help="write the plots of the page as SVG and PNG files")
    found.add_argument("--no-report", action="store_true", help="leave report.html and sweep.csv alone")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status: 0, or 2 after a mistake."""
    ready_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    for place, word in enumerate(words[:-1]):
        if word == "--sort" and words[place + 1].startswith("-"):  # a flag, to argparse
            words[place : place + 2] = [f"--sort={words[place + 1]}"]
            break
    options = parser().parse_args(words)
    try:
        review(options)
        sys.stdout.flush()
    except GptsweepError as error:
        say(f"gptsweep.review: error: {error}", error=True)
        return error.exit_status
    except BrokenPipeError:  # as in `| head`: nothing more is wanted
        drop(sys.stdout)
    except OSError as error:  # what is said of files names them
        drop(sys.stdout)
        say(f"gptsweep.review: error: cannot write {error.filename or STDOUT}: {error.strerror}", error=True)
        return 2
    return 0


def review(options: argparse.Namespace, console: Console | None = None) -> None:
    """Do what the command line says.

    Args:
        options: from `parser`.
        console: where tables go; by default standard output.

    Raises:
        GptsweepError: a name, a condition or a path is wrong.
    """
    whole = read_sweep(*options.path)
    sweep = whole.only(where(whole.summary, options.where)) if options.where else whole
    if sweep.summary.empty:
        raise ResultsError("where", options.where, f"holds for none of the {len(whole.summary)} points")
    names = chosen_metrics(sweep, options.metric)
    rows = sorted_rows(sweep.group(options.group.split(",") if options.group else None), options.sort)
    text = reference_of(options, whole)
    reference = text.metrics if text else None
    form = options.format or ("table" if sys.stdout.isatty() else "csv")
    console = console or Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 160)
    if options.diff:
        a, b = (choice(text, sweep, rows) for text in options.diff)
        difference = sweep.compare(a, b)
        difference = difference.loc[[name for name in difference.index if not options.metric or name in names]]
        if form == "table":
            print_difference(console, sweep, difference, (a, b), options.samples)
        else:
            write_frame(difference.reset_index(), form)
    elif form == "table":
        print_sweep(console, sweep, rows, names, options.best, reference, asked_metrics=bool(options.metric))
    else:
        if options.best:
            rows["verdict"] = verdicts(sweep, rows, options.best, reference)[1]
        write_frame(flat(rows, names, reference), form)
    for problem in (*whole.problems, *failures(whole), *([text.note] if text and text.note else [])):
        say(f"gptsweep.review: {problem}", error=True)
    if options.plots:
        from .report.plots import write_plots  # matplotlib is an optional dependency

        for path in write_plots(sweep, options.plots, names):
            say(str(path), error=True)
    if not options.no_report and len(options.path) == 1:
        bring_up_to_date(options.path[0], whole, text)


def reference_of(options: argparse.Namespace, sweep: Sweep) -> Reference | None:
    """The reference text: one that is asked for here and cannot be had is an error, else what was scored earlier."""
    directory = options.path[0]
    if options.model and not options.reference:
        raise ResultsError("model", options.model, "goes with --reference FILE:path")
    if options.reference == "null":
        (directory / REFERENCE).unlink(missing_ok=True)
    elif options.reference:
        return update_reference(directory, sweep, options.reference, partial(open_maker, sweep, options.model))
    return kept_reference(directory, sweep)


def open_maker(sweep: Sweep, asked: str | None) -> OpenModel:
    """The model that made these samples, in the dtype it had.

    Raises:
        GptsweepError: as `maker_name` and `gptsweep.load`.
    """
    from .api import load  # late: torch, not before there is a text to score

    name, dtype = maker_name(sweep, asked)
    return load(name, dtype=dtype)


def bring_up_to_date(path: Path, sweep: Sweep, reference: Reference | None) -> None:
    """Write ``sweep.csv`` (for a sweep) and ``report.html``; a directory that cannot be written is only said."""
    try:
        if (path / MULTIRUN).is_file() or (path / SWEEP).is_file():
            rows = [{str(name): plain(cell) for name, cell in row.items()} for row in sweep.summary.to_dict("records")]
            write_sweep_csv(path, [str(name) for name in sweep.summary], rows)
        say(f"report: {write_report(path, sweep, reference)}", error=True)
    except ResultsError as error:
        say(f"gptsweep.review: no report: {error}", error=True)


def chosen_metrics(sweep: Sweep, asked: Sequence[str] | None) -> list[str]:
    """The metrics to show: those asked for, else the usual ones that there are."""
    names = [name for each in asked or () for name in each.split(",") if name]
    for name in names:
        if name not in METRICS:
            raise ResultsError("metric", name, f"must be one of {', '.join(METRICS)}")
    return names or [name for name in sweep.metrics if METRICS[name].default]


def sorted_rows(rows: pd.DataFrame, by: str | None) -> pd.DataFrame:
    """The rows as asked, empty ones last, numbered from 0."""
    if not by:
        return rows
    name = by.removeprefix("-")
    if name not in rows:
        keys = [column for column in rows if not str(column).endswith(("_se", "_n")) and column != "points"]
        raise ResultsError("sort", name, f"is no column here; there are {', '.join(map(str, keys))}")
    return rows.sort_values(name, ascending=by == name, kind="stable", na_position="last").reset_index(drop=True)


def settings_of_row(row: Mapping[Any, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The settings that a row of `Sweep.group` stands for."""
    return {key: plain(row[key]) for key in keys}


def keys_of(rows: pd.DataFrame) -> list[str]:
    """The settings columns of a table made by `Sweep.group`."""
    return [str(name) for name in rows.columns[: list(rows.columns).index("points")]]


def choice(text: str, sweep: Sweep, rows: pd.DataFrame) -> str | dict[str, Any]:
    """A point as typed: the number of a row, ``key=value`` pairs, or a directory."""
    if text.isdecimal():
        if int(text) >= len(rows):
            raise ResultsError("diff", text, f"is no row; there are rows 0 to {len(rows) - 1}")
        settings = settings_of_row(rows.iloc[int(text)].to_dict(), keys_of(rows))
        return settings or str(sweep.summary["directory"].iloc[0])
    for name in (text, Path(text).name):
        if (sweep.summary["directory"] == name).any() or "=" not in name:
            return name
    found: dict[str, Any] = {}
    for pair in text.split(","):
        key, _, typed = pair.partition("=")
        key = key.strip().removeprefix("sampling.")
        if key not in sweep.settings:
            raise ResultsError("diff", pair, f"{key} is not a setting here; swept are {', '.join(sweep.swept) or 'none'}")
        there = {label(value): value for value in ordered(sweep.summary[key])}
        found[key] = there[typed] if typed in there else matching(key, typed, list(there.values()))
    return found


def matching(key: str, typed: str, values: Sequence[Any]) -> Any:
    """The value that was meant, for a number typed in another way (``1.0`` for 1)."""
    for value in values:
        try:
            if not isinstance(value, str) and value is not None and float(typed) == float(value):
                return value
        except ValueError:
            break
    raise ResultsError("diff", f"{key}={typed}", f"is not there; {key} has {', '.join(map(label, values))}")


def best_of(rows: pd.DataFrame, best: str, reference: Mapping[str, float | None] | None) -> tuple[str, int]:
    """The metric named by ``--best``, and the number of the best row."""
    name, _, direction = best.partition(":")
    if name not in METRICS:
        raise ResultsError("best", best, f"must start with one of {', '.join(METRICS)}")
    direction = direction or {"lower": "min", "higher": "max"}.get(METRICS[name].direction, "")
    if direction not in ("min", "max", "reference"):
        raise ResultsError("best", best, f"no metric is best by itself: say {name}:min, {name}:max or {name}:reference")
    if name not in rows or not rows[name].notna().any():
        raise ResultsError("best", best, "no point has this metric")
    values = rows[name].to_numpy(float)
    if direction == "reference":
        goal = (reference or {}).get(name)
        if goal is None:
            raise ResultsError("best", best, "there is no reference text with this metric; give one with --reference FILE:path")
        values = np.abs(values - goal)
    return name, int(np.nanargmax(values) if direction == "max" else np.nanargmin(values))


def verdicts(
    sweep: Sweep, rows: pd.DataFrame, best: str, reference: Mapping[str, float | None] | None = None
) -> tuple[str, list[str]]:
    """The metric of ``--best``, and how each row stands to the best one.

    That is ``best``, ``alike`` (the samples cannot tell it from the best), ``differs``, or ``unclear`` (too few pairs).
    """
    name, at = best_of(rows, best, reference)
    keys = keys_of(rows)
    thin = thinned(sweep)
    first = settings_of_row(rows.iloc[at].to_dict(), keys)
    found = []
    for place, row in enumerate(rows.to_dict("records")):
        if place == at:
            found.append("best")
            continue
        result = thin.compare(first, settings_of_row(row, keys)).loc[name]
        found.append("unclear" if result["reason"] else "differs" if result["differs"] else "alike")
    return name, found


def flat(rows: pd.DataFrame, names: Sequence[str], reference: Mapping[str, float | None] | None = None) -> pd.DataFrame:
    """The table for other programs: settings, counts, and for each metric its mean, error and n.

    With a reference text also ``<metric>_distance``: how far the mean lies above it.
    """
    columns = [*keys_of(rows), "num_points", "num_samples", *(f"{name}{part}" for name in names for part in ("", "_se", "_n"))]
    for name in names:
        if reference and (goal := reference.get(name)) is not None and name in rows:
            rows = rows.assign(**{f"{name}_distance": rows[name] - goal})
            columns.insert(columns.index(f"{name}_n") + 1, f"{name}_distance")
    if "verdict" in rows:
        columns.append("verdict")
    return rows.reindex(columns=columns)


def write_frame(frame: pd.DataFrame, form: str) -> None:
    """A table as CSV or JSON on standard output; empty stays empty."""
    rows = [{str(name): plain(cell) for name, cell in row.items()} for row in frame.to_dict("records")]
    if form == "csv":
        sys.stdout.write(csv_bytes([str(name) for name in frame], rows).decode())
    else:
        print(json.dumps(rows, indent=1, allow_nan=False))


def number(name: str, value: Any) -> str:
    """A value as people read it: shares to three decimals, everything else to three digits."""
    if value is None or not math.isfinite(value):
        return "–"
    if METRICS[name].unit == "share":
        return f"{value:.3f}"
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def like(name: str, value: float, shown: float) -> str:
    """An error or a bound with as many decimals as the value beside it."""
    return "–" if not math.isfinite(value) else f"{value:.{len(number(name, shown).partition('.')[2])}f}"


def print_sweep(
    console: Console, sweep: Sweep, rows: pd.DataFrame, names: Sequence[str], asked: str | None,
    reference: Mapping[str, float | None] | None, *, asked_metrics: bool,
) -> None:  # fmt: skip
    """The table of the sweep, then what each setting does; ``asked_metrics``: the metrics were asked for, so all are shown."""
    best, marks = verdicts(sweep, rows, asked, reference) if asked else ("", [""] * len(rows))
    done = sweep.summary["status"].value_counts()
    said = ", ".join(f"{done[status]} {status}" for status in ("complete", "partial", "failed", "missing") if status in done)
    console.print(Text(f"{len(sweep.summary)} points ({said}), {len(sweep.samples):,} samples", style="bold"))
    console.print()
    left_out = print_rows(console, rows.head(MAX_ROWS), names, marks, best, reference, whole=asked_metrics)
    if left_out:
        more = ", ".join(METRICS[name].label for name in left_out)
        console.print(Text(f"{more}: in a wider terminal, or with --metric {','.join(left_out)}", style="dim"))
    if len(rows) > MAX_ROWS:
        console.print(f"{len(rows) - MAX_ROWS} more rows: --where, --group or --format csv", style="dim")
    console.print(Text("± one standard error" + (over_seeds(names) if "seed" in sweep.swept else ""), style="dim"))
    if best:
        console.print(
            Text("★ best as asked; ≈ these samples cannot tell it from the best; ? too few pairs to say", style="dim")
        )
    for name, reason in reasons(sweep).items():
        if name in names:
            console.print(Text(f"– {METRICS[name].label}: {one_line(reason)}", style="dim"))
    print_effects(console, sweep, names)


def print_first_rows(directory: Path, sweep: Sweep) -> None:
    """At the end of a sweep: its first settings, and the command that shows the rest; beside standard output in a pipe."""
    keys = [key for key in sweep.swept if key != "seed"]
    table = sweep.summary
    number = table.groupby(keys, dropna=False, sort=False).ngroup().to_numpy() if keys else np.zeros(len(table), int)
    rows = sweep.only(number < FIRST_ROWS).group()
    terminal = sys.stdout.isatty()
    console = Console(
        file=sys.stdout if terminal else sys.stderr,
        force_terminal=terminal or sys.stderr.isatty(),
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print()
    print_rows(console, rows, chosen_metrics(sweep, None), [""] * len(rows), "", None, whole=False)
    more = f"{number.max() + 1 - len(rows):,} more settings, " if number.max() >= len(rows) else ""
    path = os.path.relpath(directory)
    command = f"python -m gptsweep.review {shlex.quote(one_line(os.path.abspath(path) if path.startswith('..') else path))}"
    console.print(Text(f"{more}all metrics, and what each setting does:\n{command}"), soft_wrap=True)


def print_rows(
    console: Console,
    rows: pd.DataFrame,
    names: Sequence[str],
    marks: Sequence[str],
    best: str,
    reference: Mapping[str, float | None] | None,
    *,
    whole: bool,
) -> list[str]:
    """The table of settings and metrics, or a block for each row where it does not fit.

    Args:
        console: where.
        rows: from `Sweep.group`.
        names: the metrics.
        marks: how each row stands to the best in metric ``best``, from `verdicts`.
        best: the metric of ``--best``, or empty.
        reference: the metrics of the reference text.
        whole: whether every metric must be there.

    Returns:
        The metrics that did not fit.
    """
    records = rows.to_dict("records")
    settings = [
        Column(one_line(key), [Text(one_line(label(plain(row[key]))), style="bold") for row in records], True, "left")
        for key in keys_of(rows)
    ]
    samples = Column("samples", [Text(f"{row['num_samples']:,}") for row in records])
    metrics = [
        Column(
            METRICS[name].label, [metric_cell(row, name, marks[at] if name == best else "") for at, row in enumerate(records)]
        )
        for name in names
    ]
    lead = [Column("#", [Text(str(at), style="dim") for at in range(len(records))]), *settings, samples]
    if reference:
        head = Text("reference text", style="cyan")
        ends = [Text(), *([head] + [Text()] * len(settings))[: len(settings)], Text()]
        ends[0] = ends[0] if settings else head
        lead = [replace(column, cells=[*column.cells, end]) for column, end in zip(lead, ends, strict=True)]
        metrics = [
            replace(column, cells=[*column.cells, Text(number(name, reference.get(name)), style="cyan")])
            for name, column in zip(names, metrics, strict=True)
        ]
    count = fitting(lead, metrics, console.width)
    if count == len(metrics) or (count >= FEWEST and not whole):
        print_table(console, [*lead, *metrics[:count]], [len(records)] if reference else [])
        return list(names[count:])
    titles = [
        Text.assemble((f"# {at}  ", "dim"), (", ".join(f"{c.heading}={c.cells[at]}" for c in settings), "bold"),
                      f"  {row['num_samples']:,} samples")
        for at, row in enumerate(records)
    ]  # fmt: skip
    print_blocks(console, [*titles, *([Text("reference text", style="cyan")] if reference else [])], metrics)
    return []


def over_seeds(names: Sequence[str]) -> str:
    """Which of the metrics have their error over seeds."""
    seeds = [METRICS[name].label for name in names if METRICS[name].per == "point"]
    return f" over samples; for {', '.join(seeds)} over points" if seeds else " over samples"


def metric_cell(row: Mapping[Any, Any], name: str, mark: str) -> Text:
    """Mean ± error, and how it stands to the best."""
    mean, error = row.get(name, math.nan), row.get(f"{name}_se", math.nan)
    sign = {"best": "★ ", "alike": "≈ ", "unclear": "? "}.get(mark, "")
    cell = Text(sign + number(name, mean), style={"best": "bold green", "alike": "green"}.get(mark, ""))
    if math.isfinite(error):
        cell.append(f" ±{like(name, error, mean)}", style="dim")
    return cell


def print_effects(console: Console, sweep: Sweep, names: Sequence[str]) -> None:
    """A row for each swept setting: what its lowest and its highest value do to the metrics."""
    thin = thinned(sweep)
    keys = [key for key in sweep.swept if key != "seed" and sweep.summary[key].nunique(dropna=False) > 1]
    if not keys or thin.samples.empty:
        return
    titles = Column("What each\nsetting does", [Text(METRICS[name].label) for name in names], True, "left")
    columns = []
    for key in keys:
        values = ordered(sweep.summary[key])
        effect = rows_by_name(thin.effect(key))
        cells = [change(effect[name], name) if name in effect else Text("–") for name in names]
        ends = one_line(f"{label(values[0])} → {label(values[-1])}")
        columns.append(Column(f"{one_line(key)}\n{ends}", cells, justify="left"))
    console.print()
    print_in_parts(console, titles, columns)
    note = "[95 % interval over pairs of the same prompt, seed and sample]; ≈ not to be told from none; ? too few pairs"
    console.print(Text(note, style="dim"))


def rows_by_name(table: pd.DataFrame) -> dict[str, dict[Any, Any]]:
    """The rows of a `Sweep.compare`, by metric."""
    return dict(zip(map(str, table.index), table.to_dict("records"), strict=True))


def change(row: Mapping[Any, Any], name: str) -> Text:
    """A difference with its interval."""
    difference, low, high = float(row["difference"]), float(row["low"]), float(row["high"])
    if not math.isfinite(difference):
        return Text("–")
    sign = "" if row["differs"] else "? " if row["reason"] else "≈ "
    text = Text(f"{sign}{'+' if difference > 0 else ''}{number(name, difference)}", style="" if row["differs"] else "dim")
    if math.isfinite(low):
        text.append(f" [{like(name, low, difference)}, {like(name, high, difference)}]", style="dim")
    return text


def print_difference(console: Console, sweep: Sweep, difference: pd.DataFrame, sides: Sequence[Any], most: int) -> None:
    """The metrics of two points, and their samples side by side."""
    titles = [named(side) for side in sides]
    found = rows_by_name(difference)
    why = [row["reason"] or ("" if row["differs"] else "these samples cannot tell them apart") for row in found.values()]
    columns = [
        Column("metric", [Text(METRICS[name].label) for name in found], True, "left"),
        Column("A", [Text(number(name, row["a"])) for name, row in found.items()]),
        Column("B", [Text(number(name, row["b"])) for name, row in found.items()]),
        Column("B − A", [change(row, name) for name, row in found.items()]),
        Column("pairs", [Text(str(row["pairs"])) for row in found.values()]),
    ]
    reasons = Column("", [Text(one_line(each), style="dim") for each in why], True, "left")
    fits = fitting(columns, [reasons], console.width)
    console.print(Text.assemble(("A ", "bold"), titles[0], "\n", ("B ", "bold"), titles[1]))
    if fits or fitting([], columns, console.width) == len(columns):
        print_table(console, [*columns, *[reasons][:fits]])
    else:
        titled = [Text(METRICS[name].label, style="bold") for name in found]
        print_blocks(console, titled, [*columns[1:], *([reasons] if any(why) else [])])
    key = ["prompt_index", "seed", "sample_index"]
    parts = [sweep.samples[sweep.samples["point"].isin(sweep.points(side).index)] for side in sides]
    pairs = parts[0].merge(parts[1], on=key, suffixes=("_a", "_b")).sort_values(key).head(max(0, most))
    for pair in pairs.to_dict("records"):
        console.print(side_by_side(pair, titles))


def named(side: str | Mapping[str, Any]) -> str:
    """A point as a heading."""
    return one_line(side if isinstance(side, str) else ", ".join(f"{key}={label(value)}" for key, value in side.items()))


def side_by_side(pair: Mapping[Any, Any], titles: Sequence[str]) -> Table:
    """Two completions in columns: what they share is dim, where they part is marked, repetitions are folded."""
    table = Table(box=box.SQUARE, expand=True, title_justify="left", title_style="dim",
                  title=f"prompt {pair['prompt_index']} · seed {pair['seed']} · sample {pair['sample_index']}")  # fmt: skip
    a, b = pair["completion_a"], pair["completion_b"]
    fork = next((at for at, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
    for side, title in zip("AB", titles, strict=True):
        table.add_column(Text(f"{side} {title}"), ratio=1, overflow="fold")
    table.add_row(*(forked(text, fork, a == b) for text in (a, b)))
    return table


def forked(text: str, fork: int, same: bool) -> Text:
    """A completion with the place marked where it parts from the other."""
    found = Text(folded(text[:fork]), style="dim")
    if same:
        return found.append("  (the same)", style="italic")
    return found.append("▸", style="bold red").append(folded(text[fork:]), style="not dim")


def folded(text: str) -> str:
    """Text made visible, a phrase said at least three times on end written once with its count."""
    pieces, start = [], 0
    for run in re.finditer(r"(.{1,120}?)\1{2,}", text[:50_000], re.DOTALL):
        if len(run[0]) < 24 or not run[1].strip():
            continue
        size, end = len(run[1]), run.end()
        while end < len(text) and text[end] == text[end - size]:
            end += 1  # a last phrase that shifting makes whole
        first = run.start() + word_shift(text, run.start(), size)
        times = (end - first) // size
        pieces += [visible(text[start:first]), visible(text[first : first + size]), f"⟨×{times}⟩"]
        start = first + times * size
    return "".join([*pieces, visible(text[start:])])


def word_shift(text: str, start: int, size: int) -> int:
    """How far into a run of a phrase of ``size`` characters a phrase begins and ends at the edges of words; 0 if nowhere."""
    for shift in range(size):
        first = start + shift
        if (first == 0 or text[first - 1].isspace()) and text[first + size - 1].isspace():
            return shift
    return 0


if __name__ == "__main__":
    sys.exit(main())
