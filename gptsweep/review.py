"""The command ``python -m gptsweep.review PATH``: the table of a sweep, the effect of each setting, and the page.

On a terminal it prints tables; into a pipe it writes CSV. It also updates ``sweep.csv`` and ``report.html``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from .analysis.best import Verdicts, verdicts
from .analysis.columns import keys_of, label, ordered, plain
from .analysis.comparison_request import ComparisonRequest, metric_name, read_request, split_metrics
from .analysis.frames import read_sweep
from .analysis.metrics import MAUVE, METRICS, PREFERENCE
from .analysis.rated import rated, require_ratings
from .analysis.reference import Reference, saved_reference, with_own
from .analysis.row_filter import where
from .analysis.samplers import Aim, SamplerComparison
from .analysis.sweep import Sweep
from .display import STDOUT, Parser, drop, ready_streams, say
from .errors import GptsweepError, ResultsError
from .report import report
from .report.ratings import print_ratings, with_ranking
from .report.terminal import default_metrics, print_difference, print_samplers, print_sweep, settings_of_row
from .run.mauve import mauve_metric
from .run.reference import model_name, update_reference
from .run.rows import OpenModel
from .store.csv_files import csv_bytes
from .store.durable import atomic_write
from .store.schema import MULTIRUN, REFERENCE, REPORT, SWEEP
from .store.sweep_table import write_sweep_csv

EXAMPLES = """examples:
  python -m gptsweep.review outputs/sweeps/night
  python -m gptsweep.review outputs/sweeps/night --metric perplexity,diversity --sort perplexity
  python -m gptsweep.review outputs/sweeps/night --where "temperature < 1 and top_k == 50" --group temperature
  python -m gptsweep.review outputs/sweeps/night --best self_bleu_4:min
  python -m gptsweep.review outputs/sweeps/night --diff temperature=0.5,top_k=50 temperature=1.0,top_k=50
  python -m gptsweep.review outputs/sweeps/night --samplers --metric seq_rep_4:min
  python -m gptsweep.review outputs/sweeps/night --ratings ann.jsonl bob.jsonl
  python -m gptsweep.review outputs/sweeps/night --format csv > night.csv
"""
MOST_DIGITS = 18
"""Of the number of a row. Python reads no number of more than 4,300."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    known = ", ".join([*METRICS, MAUVE.name, PREFERENCE.name])
    found = Parser(
        prog="python -m gptsweep.review", description="Review a sweep: tables here, report.html beside the results.",
        epilog=f"{EXAMPLES}\nmetrics: {known}", formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    found.add_argument("path", nargs="+", type=Path, help="a sweep, a run, or a directory of them")
    found.add_argument(
        "--metric",
        action="append",
        metavar="NAME[,NAME]",
        help="the metrics to show, module:function for one of your own; with --samplers NAME:min|max|reference",
    )
    found.add_argument("--sort", metavar="NAME", help="sort by a metric or a setting; --sort -NAME reverses the order")
    found.add_argument(
        "--where", metavar="CONDITION", help='only points that satisfy it, such as "temperature < 1 and top_k == 50"'
    )
    found.add_argument(
        "--group", metavar="KEY[,KEY]", help="one row for each combination of these settings, averaged over all others"
    )
    found.add_argument(
        "--best", metavar="METRIC:min|max|reference",
        help="mark the best row, and those that the samples cannot distinguish from it",
    )  # fmt: skip
    found.add_argument(
        "--samplers", action="store_true",
        help="compare families of samplers at equal tuning budgets: the expected best of n settings, by the metric",
    )  # fmt: skip
    found.add_argument(
        "--by", metavar="KEY[,KEY]",
        help="with --samplers: group points into families by these settings, not by samplers",
    )  # fmt: skip
    found.add_argument(
        "--reference", metavar="FILE:PATH", help="compare all settings with a text; later reviews show it, too; null removes it"
    )
    found.add_argument(
        "--model",
        metavar="NAME",
        help="the model that scores --reference where the results name a path, or computes the features of --metric mauve",
    )
    found.add_argument(
        "--ratings", action="extend", nargs="+", metavar="FILE",
        help="rank settings by ratings of their samples, see docs/rating.md; later reviews show them, too; null removes them",
    )  # fmt: skip
    found.add_argument("--diff", nargs=2, metavar="POINT", help="compare two points: row numbers, settings or directories")
    found.add_argument("--samples", type=int, default=3, metavar="N", help="with --diff: N samples side by side (3)")
    found.add_argument("--format", choices=("table", "csv", "json"), help="table on a terminal, csv in a pipe")
    found.add_argument("--plots", type=Path, metavar="DIR", help="write the plots of the page as SVG and PNG files")
    found.add_argument("--no-report", action="store_true", help="do not update report.html and sweep.csv")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: 0, or 2 after a mistake."""
    ready_streams()
    argv = list(sys.argv[1:] if arguments is None else arguments)
    for place, argument in enumerate(argv[:-1]):
        if argument == "--sort" and argv[place + 1].startswith("-"):  # argparse would take it for a flag
            argv[place : place + 2] = [f"--sort={argv[place + 1]}"]
            break
    options = parser().parse_args(argv)
    try:
        review(options)
        sys.stdout.flush()
    except GptsweepError as error:
        say(f"gptsweep.review: error: {error}", error=True)
        return error.exit_status
    except BrokenPipeError:  # the reader, such as `| head`, has closed the pipe
        drop(sys.stdout)
    except OSError as error:  # errors about reading files have been reported with their names
        drop(sys.stdout)
        say(f"gptsweep.review: error: cannot write {error.filename or STDOUT}: {error.strerror}", error=True)
        return 2
    return 0


def review(options: argparse.Namespace, console: Console | None = None) -> None:
    """Run a parsed command line.

    Args:
        options: from `parser`.
        console: where tables go; by default standard output.

    Raises:
        GptsweepError: a name, a condition or a path is wrong.
    """
    options.metric, options.own = split_metrics(options.metric or ())
    alone = options.path[0] if len(options.path) == 1 else None
    whole = rated(read_sweep(*options.path), alone, options.ratings or (), keep=not options.no_report).scored(*options.own)
    if MAUVE.name in map(metric_name, options.metric):
        reference_of(options, whole)  # scores the text if requested
        opened = partial(open_model_of, whole, options.model)
        whole = whole.scored(mauve_metric(options.path[0], opened, scored_the_text=options.model is None))
    sweep = whole.only(where(whole.summary, options.where)) if options.where else whole
    if sweep.summary.empty:
        raise ResultsError("where", options.where, f"is true for none of the {len(whole.summary)} points")
    if options.samplers:
        review_samplers(options, whole, sweep, console)
        return
    if options.by:
        raise ResultsError("by", options.by, "needs --samplers")
    require_ratings([*options.metric, options.best or ""], sweep)
    names = chosen_metrics(sweep, options.metric)
    rows = sorted_rows(sweep.group(options.group.split(",") if options.group else None), options.sort)
    text = reference_of(options, whole)
    reference = text.metrics if text else None
    form, console = format_of(options), console or plain_console()
    if options.diff:
        a, b = (choice(text, sweep, rows) for text in options.diff)
        difference = sweep.compare(a, b)
        difference = difference.loc[[name for name in difference.index if not options.metric or name in names]]
        if form == "table":
            print_difference(console, sweep, difference, (a, b), options.samples)
        else:
            write_frame(difference.reset_index(), form)
    elif form == "table":
        best = best_of(options, sweep, rows, reference)
        print_sweep(console, sweep, rows, names, best, reference, show_all=bool(options.metric))
        if sweep.ratings:
            print_ratings(console, sweep.ratings, sweep.ratings.ranked(rows))
    else:
        if best := best_of(options, sweep, rows, reference):
            rows = rows.assign(verdict=best.marks, behind_low=best.low, behind_high=best.high)
        table = flat(rows, names, reference)
        write_frame(with_ranking(table, sweep.ratings.ranked(rows)) if sweep.ratings else table, form)
    say_problems(whole, text)
    if options.plots:
        from .report.plots import write_plots  # matplotlib is an optional dependency

        for path in write_plots(sweep, options.plots, names):
            say(str(path), error=True)
    if not options.no_report and len(options.path) == 1:
        bring_up_to_date(options.path[0], whole, text)


def review_samplers(options: argparse.Namespace, whole: Sweep, sweep: Sweep, console: Console | None) -> None:
    """``--samplers``: compare by each metric that is named, here and on the page.

    Raises:
        GptsweepError: as `review`.
    """
    for other in ("diff", "best", "group", "sort", "plots"):
        if given := getattr(options, other):
            raise ResultsError(other, str(given), "cannot be combined with --samplers")
    request = ComparisonRequest(tuple(options.metric), tuple(options.by.split(",")) if options.by else None)
    if not request.metrics:
        raise ResultsError("metric", None, "say what is best: --samplers --metric NAME:min, NAME:max or NAME:reference")
    text = reference_of(options, whole)
    found = request.compare(sweep, text)
    if options.where:
        found = [replace(each, notes=(*each.notes, f"only points for which {options.where}")) for each in found]
    if format_of(options) == "table":
        console = console or plain_console()
        for each in found:
            print_samplers(console, each)
    else:
        write_frame(pd.concat([each.table.assign(metric=str(each.aim)) for each in found]), format_of(options))
        for each in found:
            say(f"gptsweep.review: {each.sentence}", error=True)
    say_problems(whole, text)
    if not options.no_report and len(options.path) == 1:
        if not options.where:
            request.save(options.path[0])
        bring_up_to_date(options.path[0], whole, text, found)


def format_of(options: argparse.Namespace) -> str:
    """``table``, ``csv`` or ``json``."""
    return str(options.format or ("table" if sys.stdout.isatty() else "csv"))


def plain_console() -> Console:
    """Standard output; a pipe is as wide as a large terminal."""
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 160)


def say_problems(sweep: Sweep, reference: Reference | None) -> None:
    """Report what could not be read, what failed, and a reference text that is too short."""
    for problem in (*sweep.problems, *sweep.failures(), *([reference.note] if reference and reference.note else [])):
        say(f"gptsweep.review: {problem}", error=True)


def reference_of(options: argparse.Namespace, sweep: Sweep) -> Reference | None:
    """The reference text: the requested one, which is scored if necessary, else the one scored earlier, else None.

    Raises:
        GptsweepError: see `update_reference` and `with_own`; or ``--model`` is given without a use for it.
    """
    directory = options.path[0]
    if options.model and not options.reference and MAUVE.name not in map(metric_name, options.metric):
        raise ResultsError("model", options.model, "needs --reference FILE:path or --metric mauve")
    if options.reference == "null":
        (directory / REFERENCE).unlink(missing_ok=True)
    elif options.reference:
        text = update_reference(directory, sweep, options.reference, partial(open_model_of, sweep, options.model))
        return with_own(text, directory, options.own)
    return with_own(saved_reference(directory, sweep), directory, options.own)


def open_model_of(sweep: Sweep, named: str | None) -> OpenModel:
    """Load the model that made these samples, in the same dtype.

    Raises:
        GptsweepError: as `model_name` and `gptsweep.load`.
    """
    from .api import load  # late: torch, not before there is a text to score

    name, dtype = model_name(sweep, named)
    return load(name, dtype=dtype)


def bring_up_to_date(
    path: Path, sweep: Sweep, reference: Reference | None, comparisons: Sequence[SamplerComparison] | None = None
) -> None:
    """Write ``sweep.csv`` (for a sweep) and ``report.html``; if the directory is not writable, only warn.

    Without ``comparisons``, the page shows the comparisons of samplers that were requested before.
    """
    if comparisons is None and (request := read_request(path)) is not None:
        try:
            comparisons = request.compare(sweep, reference)
        except ResultsError as error:
            say(f"gptsweep.review: no comparison of samplers: {error}", error=True)
    try:
        if (path / MULTIRUN).is_file() or (path / SWEEP).is_file():
            own = [column for name, metric in sweep.declared.items() if name not in METRICS for column in (name, metric.spread)]
            table = sweep.summary.drop(columns=own, errors="ignore")  # they are kept beside the points
            rows = [{str(name): plain(cell) for name, cell in row.items()} for row in table.to_dict("records")]
            write_sweep_csv(path, [str(name) for name in table], rows)
        atomic_write(path / REPORT, report(sweep, path.resolve().name, reference, comparisons or ()))
        say(f"report: {path / REPORT}", error=True)
    except ResultsError as error:
        say(f"gptsweep.review: no report: {error}", error=True)


def chosen_metrics(sweep: Sweep, names: Sequence[str]) -> list[str]:
    """The metrics to show: the requested ones, else the default ones that have values.

    Raises:
        ResultsError: there is no metric of such a name.
    """
    for name in names:
        if name not in sweep.declared:
            raise ResultsError(
                "metric", name, f"must be one of {', '.join(dict.fromkeys([*sweep.declared, MAUVE.name]))}, or module:function"
            )
    return list(names) or default_metrics(sweep)


def sorted_rows(rows: pd.DataFrame, by: str | None) -> pd.DataFrame:
    """Sort the rows by a column (``-column``: descending), empty values last, and renumber them from 0.

    Raises:
        ResultsError: there is no such column.
    """
    if not by:
        return rows
    name = by.removeprefix("-")
    if name not in rows:
        keys = [column for column in rows if not str(column).endswith(("_se", "_n")) and column != "points"]
        raise ResultsError("sort", name, f"is not a column here; there are {', '.join(map(str, keys))}")
    return rows.sort_values(name, ascending=by == name, kind="stable", na_position="last").reset_index(drop=True)


def choice(text: str, sweep: Sweep, rows: pd.DataFrame) -> str | dict[str, Any]:
    """Parse a point: the number of a row, ``key=value`` pairs, or a directory.

    Raises:
        ResultsError: there is no such row, setting or value.
    """
    if text.isdecimal():
        if len(text) > MOST_DIGITS or int(text) >= len(rows):
            raise ResultsError("diff", text, f"is not a row; there are rows 0 to {len(rows) - 1}")
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
            raise ResultsError("diff", pair, f"{key} is not a setting here; swept: {', '.join(sweep.swept) or 'none'}")
        there = {label(value): value for value in ordered(sweep.summary[key])}
        found[key] = there[typed] if typed in there else matching(key, typed, list(there.values()))
    return found


def matching(key: str, typed: str, values: Sequence[Any]) -> Any:
    """Find the value that was meant, for a number typed in another way (``1.0`` for 1).

    Raises:
        ResultsError: no value equals it.
    """
    for value in values:
        try:
            if not isinstance(value, str) and value is not None and float(typed) == float(value):
                return value
        except ValueError:
            break
    raise ResultsError("diff", f"{key}={typed}", f"does not occur; {key} has {', '.join(map(label, values))}")


def best_of(
    options: argparse.Namespace, sweep: Sweep, rows: pd.DataFrame, reference: Mapping[str, float | None] | None
) -> Verdicts | None:
    """Compare the rows with the best one for ``--best``; None without it.

    Raises:
        ResultsError: see `Aim.of` and `verdicts`.
    """
    return verdicts(sweep, rows, Aim.of(options.best, reference, sweep.declared, option="best")) if options.best else None


def flat(rows: pd.DataFrame, names: Sequence[str], reference: Mapping[str, float | None] | None = None) -> pd.DataFrame:
    """The table for other programs: settings, counts, and for each metric its mean, error and n.

    With a reference text it has ``<metric>_distance``, the mean minus the reference's value; with ``--best`` the `Verdicts`.
    """
    columns = [*keys_of(rows), "num_points", "num_samples", *(f"{name}{part}" for name in names for part in ("", "_se", "_n"))]
    for name in names:
        if reference and (goal := reference.get(name)) is not None and name in rows:
            rows = rows.assign(**{f"{name}_distance": rows[name] - goal})
            columns.insert(columns.index(f"{name}_n") + 1, f"{name}_distance")
    columns += [name for name in ("verdict", "behind_low", "behind_high") if name in rows]
    return rows.reindex(columns=columns)


def write_frame(frame: pd.DataFrame, form: str) -> None:
    """Write a table as CSV or JSON to standard output; empty cells stay empty."""
    rows = [{str(name): plain(cell) for name, cell in row.items()} for row in frame.to_dict("records")]
    if form == "csv":
        sys.stdout.write(csv_bytes([str(name) for name in frame], rows).decode())
    else:
        print(json.dumps(rows, indent=1, allow_nan=False))


if __name__ == "__main__":
    sys.exit(main())
