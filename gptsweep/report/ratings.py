"""The review's output for ratings: how settings rank, and whether the raters agree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from ..analysis.columns import label, plain
from ..analysis.metrics import PREFERENCE
from ..analysis.numbers import like, number
from ..analysis.preference import COVERAGE
from ..analysis.ratings import RankedSettings, Ratings
from ..display import counted, one_line
from .tables import Column, fitting, print_blocks, print_table

MAX_RATERS = 6
COLUMNS = (
    "comparisons", "won", "tied", "both_bad", "lost", "win_rate", "win_rate_se", "win_rate_low", "win_rate_high", "strength",
    "strength_se", "preference_low", "preference_high",
)  # fmt: skip
"""Columns of `RankedSettings.table` that CSV and JSON have in addition to the metric."""


def print_ratings(console: Console, ratings: Ratings, found: RankedSettings) -> None:
    """Print the ranking of settings, and facts about the ratings."""
    table = found.table
    names = list(ratings.raters.items())
    raters = ", ".join(f"{one_line(name)} {count}" for name, count in names[:MAX_RATERS])
    more = f" and {counted(len(names) - MAX_RATERS, 'more')}" if len(names) > MAX_RATERS else ""
    summary = f"{counted(len(ratings.table), 'rating')} by {counted(len(names), 'rater')} ({raters}{more})"
    console.print()
    console.print(Text(f"Which setting is preferred: {summary}", style="bold"))
    for note in ratings.notes:
        console.print(Text(note, style="dim"))
    if table.empty:
        console.print(Text("no rating compares two of these settings", style="dim"))
        return
    console.print()
    rows = table.to_dict("records")
    keys = [str(name) for name in table.columns[: list(table.columns).index("comparisons")]]
    lead = [Column("#", [Text(str(at), style="dim") for at in table.index])]
    lead += [
        Column(one_line(key), [Text(one_line(label(plain(row[key]))), style="bold") for row in rows], True, "left")
        for key in keys
    ]
    percent = f"{COVERAGE:.0%}"
    cells = [
        Column("preference", [preference_cell(row) for row in rows]),
        Column("strength", [strength_cell(row) for row in rows]),
        Column(f"win rate\n[{percent}]", [interval(row, "win_rate") for row in rows]),
        *(
            Column(name, [Text(f"{row[name.replace(' ', '_')]:,}") for row in rows])
            for name in ("won", "tied", "both bad", "lost")
        ),
    ]
    if fitting(lead, cells, console.width) == len(cells):
        print_table(console, [*lead, *cells])
    else:
        titles = [
            Text(f"# {at}  " + ", ".join(f"{c.heading}={c.cells[place]}" for c in lead[1:]))
            for place, at in enumerate(table.index)
        ]
        print_blocks(console, titles, cells)
    console.print(Text(
        f"preference: {PREFERENCE.meaning} [{percent} interval over {counted(found.clusters, found.unit[:-1])}]; "
        "≈ these ratings cannot tell it from the first. strength: Bradley-Terry, log-odds ± one standard error; "
        "a tie, and both bad, count half a win for each", style="dim"))  # fmt: skip
    for line in about_raters(ratings):
        console.print(Text(line, style="dim"))


def about_raters(ratings: Ratings) -> list[str]:
    """Lines about agreement, sides, and time."""
    alpha, pairs = ratings.agreement()
    lines = []
    if len(ratings.raters) > 1:
        value = f"{alpha:.2f}" if math.isfinite(alpha) else "–"
        lines.append(f"agreement: Krippendorff's alpha {value} over {counted(pairs, 'pair')} that two raters or more judged"
                     if pairs else "agreement: no pair was judged by two raters")  # fmt: skip
    decided = int((ratings.table["score"] != 0.5).sum())
    if decided:
        lines.append(f"the left sample won {ratings.left_share:.0%} of the {decided:,} ratings with a winner")
    seconds = ratings.table["seconds"].dropna()
    if len(seconds):
        lines.append(f"median time of a rating: {float(np.median(seconds)):.3g} s")
    return lines


def preference_cell(row: dict[Any, Any]) -> Text:
    """The preference with its interval, and a mark if the setting cannot be distinguished from the first."""
    return Text("≈ " if row["alike"] else "").append_text(interval(row, "preference"))


def strength_cell(row: dict[Any, Any]) -> Text:
    """The strength ± its standard error."""
    text = Text(f"{round(row['strength'], 2) + 0.0:+.2f}")  # a zero has no minus sign
    return text.append(f" ±{row['strength_se']:.2f}", style="dim") if math.isfinite(row["strength_se"]) else text


def interval(row: dict[Any, Any], name: str) -> Text:
    """A share with its interval."""
    text, low, high = Text(number(PREFERENCE, row[name])), row[f"{name}_low"], row[f"{name}_high"]
    if math.isfinite(low) and math.isfinite(high):
        text.append(f" [{like(PREFERENCE, low, row[name])}, {like(PREFERENCE, high, row[name])}]", style="dim")
    return text


def with_ranking(rows: pd.DataFrame, found: RankedSettings) -> pd.DataFrame:
    """The rows of a `Sweep.group` with the columns of the ranking."""
    return rows.join(found.table[list(COLUMNS)])
