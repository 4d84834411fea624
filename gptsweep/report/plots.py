"""Export the page's plots as SVG and PNG files for papers and slides, with matplotlib (the extra ``plots``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..analysis.columns import label, ordered, plain
from ..analysis.numbers import number
from ..analysis.sweep import Sweep
from ..errors import ResultsError
from .data import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")
RAMP = ("#eef1ea", "#3d7f86", "#0a2f45")
LINES = ("#1c5f6b", "#b4491f", "#6b4fa0", "#2f7a3d", "#b3267a", "#806300", "#2563c9", "#4d4a45")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
STYLE: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "axes.titlesize": 10,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e3ded4", "grid.linewidth": 0.8, "svg.hashsalt": "gptsweep",
    "text.parse_math": False,
    "savefig.dpi": 200, "figure.constrained_layout.use": True,
}  # fmt: skip


def write_plots(sweep: Sweep, directory: Path, names: Sequence[str]) -> list[Path]:
    """Draw each metric along the swept settings, and diversity against perplexity (else the first two of ``names``).

    Files: ``heat-<metric>``, ``curve-<metric>``, ``scatter-<metric>-<metric>``, each as ``.svg`` and ``.png``.

    Raises:
        ResultsError: matplotlib is not installed, or nothing was swept.
    """
    try:
        import matplotlib as mpl  # an optional dependency, and slow to import
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ResultsError("plots", str(directory), "needs matplotlib: pip install 'gptsweep[plots]'") from error
    keys = [key for key in sweep.swept if key != "seed"]
    if not keys:
        raise ResultsError("plots", str(directory), "nothing but the seed was swept, so there is nothing to draw")
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):
        for name, figure in figures(sweep, keys, names, Figure):
            for form in FORMATS:
                path = directory / f"{name}.{form}"
                figure.savefig(path, format=form, metadata={"Date": None} if form == "svg" else None)
                written.append(path)
    return written


def figures(sweep: Sweep, keys: Sequence[str], names: Sequence[str], new: type[Figure]) -> Iterator[tuple[str, Figure]]:
    """Yield every plot with its name."""
    names = [name for name in names if name in sweep.metrics]
    for name in names:
        if len(keys) > 1:
            figure = new(figsize=(5.2, 3.6))
            draw_heat(figure, sweep, keys[0], keys[1], name)
            yield f"heat-{name}", figure
        figure = new(figsize=(5.2, 3.6))
        draw_curve(figure.subplots(), sweep, keys, name)
        yield f"curve-{name}", figure
    pair = [name for axis in ("x", "y") for name in names if sweep.declared[name].axis == axis]
    pair = pair if len(pair) == 2 else names[:2]
    if len(pair) == 2:
        x, y = pair
        figure = new(figsize=(5.2, 3.6))
        draw_scatter(figure.subplots(), sweep, keys, x, y)
        yield f"scatter-{x}-{y}", figure


def draw_heat(figure: Figure, sweep: Sweep, x: str, y: str, name: str) -> None:
    """A metric over two settings, averaged over the others."""
    from matplotlib.colors import LinearSegmentedColormap  # as above

    table = sweep.group([x, y])
    columns, rows = ordered(table[x]), ordered(table[y])
    grid = np.full((len(rows), len(columns)), np.nan)
    for row in table.to_dict("records"):
        grid[rows.index(plain(row[y])), columns.index(plain(row[x]))] = row[name]
    axes = figure.subplots()
    axes.grid(visible=False)
    image = axes.imshow(grid, origin="lower", aspect="auto", cmap=LinearSegmentedColormap.from_list("gptsweep", RAMP))
    axes.set_xticks(range(len(columns)), [label(value) for value in columns])
    axes.set_yticks(range(len(rows)), [label(value) for value in rows])
    if grid.size <= 100:
        middle = np.nanmin(grid) + (np.nanmax(grid) - np.nanmin(grid)) / 2
        for (row_at, column_at), value in np.ndenumerate(grid):
            if np.isfinite(value):
                colour = "white" if value > middle else "black"
                axes.text(column_at, row_at, number(sweep.declared[name], value), ha="center", va="center", color=colour)
    axes.set(xlabel=x, ylabel=y, title=sweep.declared[name].label)
    figure.colorbar(image, ax=axes)


def draw_curve(axes: Axes, sweep: Sweep, keys: Sequence[str], name: str) -> None:
    """A metric along the first setting: one line per value of the second, with bars of one standard error."""
    table = sweep.group(list(keys[:2]))
    values = ordered(table[keys[0]])
    places = numbers(values) or [float(place) for place in range(len(values))]
    lines = ordered(table[keys[1]]) if len(keys) > 1 else [None]
    for line, value in enumerate(lines):
        chosen = table if len(keys) < 2 else table[same(table[keys[1]], value)]
        at = [values.index(plain(each)) for each in chosen[keys[0]]]
        order = np.argsort(at)
        x = np.asarray(places)[np.asarray(at)[order]]
        mean, error = (chosen[column].to_numpy(float)[order] for column in (name, f"{name}_se"))
        axes.errorbar(x, mean, yerr=np.nan_to_num(error), **line_style(line), markersize=4,
                      linewidth=1.5, elinewidth=1, label=label(value) if len(keys) > 1 else None)  # fmt: skip
    if not numbers(values):
        axes.set_xticks(places, [label(value) for value in values])
    axes.set(xlabel=keys[0], ylabel=sweep.declared[name].label)
    if len(keys) > 1:
        axes.legend(title=keys[1], frameon=False, fontsize=8)


def draw_scatter(axes: Axes, sweep: Sweep, keys: Sequence[str], x: str, y: str) -> None:
    """One metric against another: one dot per setting, and lines along the first setting."""
    table = sweep.group(list(keys[:2]))
    table = table.assign(place=[ordered(table[keys[0]]).index(plain(value)) for value in table[keys[0]]]).sort_values("place")
    lines = ordered(table[keys[1]]) if len(keys) > 1 else [None]
    for line, value in enumerate(lines):
        chosen = table if len(keys) < 2 else table[same(table[keys[1]], value)]
        a, b, ea, eb = (chosen[column].to_numpy(float) for column in (x, y, f"{x}_se", f"{y}_se"))
        axes.errorbar(a, b, xerr=np.nan_to_num(ea), yerr=np.nan_to_num(eb), **line_style(line),
                      markersize=4, linewidth=1, elinewidth=0.8, label=label(value) if len(keys) > 1 else None)  # fmt: skip
    axes.set(xlabel=sweep.declared[x].label, ylabel=sweep.declared[y].label)
    if len(keys) > 1:
        axes.legend(title=keys[1], frameon=False, fontsize=8)


def same(column: pd.Series[Any], value: Any) -> pd.Series[bool]:
    """Which cells equal ``value``; None matches empty cells."""
    return column.isna() if value is None else (column == value).fillna(False).astype(bool)


def line_style(number: int) -> dict[str, Any]:
    """A line's style: eight colours, then the same dashed; neighbours have different markers, as on the page."""
    dashed = number // len(LINES) % len(DASHES)
    turn = number // (len(LINES) * len(DASHES))
    return {"color": LINES[number % len(LINES)], "linestyle": DASHES[dashed], "marker": MARKERS[(number + turn) % len(MARKERS)]}
