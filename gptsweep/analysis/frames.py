"""Read run directories into pandas frames: one row per point, one row per sample.

The reader walks the point directories themselves, so it works while a sweep runs and after a crash; ``sweep.csv`` adds the
points that failed or never started. Whatever cannot be read is reported: see `Sweep.problems`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import ResultsError
from ..store.reader import (
    PointFiles,
    cell,
    complete_settings,
    point_directories,
    read_point,
    samples_of_point,
    setting_names,
    unseen_points,
)
from ..store.schema import ABOUT, COUNTS, MODEL_COLUMNS, RARE_COUNTS, SETTINGS_SINCE_0_1, SWEEP
from .columns import Columns, spread_columns, typed
from .metrics import METRICS
from .summary import summary_of
from .sweep import Sweep


def read_sweep(path: str | Path, *more: str | Path) -> Sweep:
    """Read one or more sweeps, runs, or directories that contain them.

    Raises:
        ResultsError: a path does not exist, or contains no point.
    """
    for each in (path, *more):
        if not isinstance(each, (str, os.PathLike)):
            raise ResultsError("path", each, "must be the path of a sweep, a run, or a directory of them")
    roots = [Path(each) for each in (path, *more)]
    try:
        return assemble(found_points(roots))
    except OSError as error:
        raise ResultsError("path", str(error.filename or roots[0]), f"cannot be read: {error.strerror}") from error


def found_points(roots: Sequence[Path]) -> list[PointFiles]:
    """Every point at or under ``roots``, including points that only ``sweep.csv`` lists.

    Raises:
        ResultsError: a path does not exist, or contains no point.
    """
    found: dict[Path, Path] = {}
    for root in roots:
        if not root.is_dir():
            raise ResultsError("path", str(root), "is not a directory; give a sweep, a run, or a directory of them")
        found |= dict(point_directories(root))
    points = [read_point(directory, root) for directory, root in found.items()]
    sweeps = sorted(set(found.values()) | {root for root in roots if (root / SWEEP).is_file()})
    points += [point for root in sweeps for point in unseen_points(root, points)]
    for point in points:
        if not point.summarised and not point.unread:
            complete_settings(point)
    if not points:
        wanted = "holds no run yet: no directory in it has samples.jsonl, summary.csv or manifest.json"
        raise ResultsError("path", str(roots[0]), wanted)
    if len(sweeps) > 1:
        names = names_of(sweeps)
        for point in points:
            point.row = {"sweep": names[point.root]} | point.row
    return points


def names_of(sweeps: Sequence[Path]) -> dict[Path, str]:
    """What tables call each of several sweeps: its directory's name, or its path where another has the same name."""
    names = {sweep: Path(os.path.abspath(sweep)).name for sweep in sweeps}
    alone = {name for name, count in Counter(names.values()).items() if name and count == 1}
    return {sweep: name if name in alone else str(sweep) for sweep, name in names.items()}


def assemble(points: list[PointFiles]) -> Sweep:
    """Build the frames for these points, ordered by the swept settings."""
    spreads = spread_columns()
    measured = {*METRICS, *spreads}
    settings = [name for name in dict.fromkeys(name for point in points for name in setting_names(point.row))
                if name not in measured]  # fmt: skip
    for name, neutral in SETTINGS_SINCE_0_1.items():
        for point in points if name in settings else ():
            if "temperature" in point.row and name not in point.named:  # the point's other settings are known, but not this one
                point.row.setdefault(name, cell(neutral))
    for name in settings:
        if len(known := {same_cell(point.row[name]): point.row[name] for point in points if name in point.row}) == 1:
            models = {point.row.get("model") for point in points if name in point.row}
            for point in points:  # without a summary only a point's overrides are known, with one every setting of its model
                if name not in point.named and (not point.summarised or point.row.get("model") in models):
                    point.row.setdefault(name, *known.values())
    table = typed({name: [point.row.get(name) for point in points] for name in settings})
    swept = sorted((name for name in settings if table[name].nunique(dropna=False) > 1), key="seed".__eq__)
    if "model" in swept:  # leave out what is one and the same for each model, such as its path
        of_model = [name for name in (*MODEL_COLUMNS, "overflow") if name in swept]
        kinds = table.groupby("model", dropna=False)[of_model].nunique(dropna=False).max()
        swept = [name for name in swept if name not in of_model or kinds[name] > 1]
    order = table.sort_values(swept, kind="stable").index if swept else range(len(points))
    points = [points[place] for place in order]

    columns = Columns()
    for number, point in enumerate(points):
        samples = samples_of_point(point)
        columns.add(number, samples)
        if not point.summarised and samples:
            point.row |= summary_of(samples)
        if not point.row.get("point_id") and samples and isinstance(known_as := samples[0].get("point_id"), str):
            point.row["point_id"] = known_as
        point.status = "complete" if point.summarised else point.status or ("partial" if samples else "missing")
        point.row |= {"status": point.status, "error": point.error or None}
        point.row["directory"] = point.name
    counts = [name for name in COUNTS if name not in RARE_COUNTS or any(name in point.row for point in points)]
    names = [*settings, *counts, *METRICS, *spreads]
    names += [name for name in dict.fromkeys(name for point in points for name in point.row) if name not in (*names, *ABOUT)]
    summary = typed({name: [point.row.get(name) for point in points] for name in (*names, *ABOUT)})
    problems = tuple(problem for point in points for problem in point.problems)
    damaged = sum(point.damaged_lines for point in points)
    directories = {number: point.directory for number, point in enumerate(points) if not point.unread}
    frame = columns.frame(summary[settings])
    return Sweep(summary, frame, tuple(settings), tuple(swept), problems, damaged, directories=directories)


def same_cell(value: object) -> object:
    """Map cells that mean the same to equal values, whether they come from CSV or JSON."""
    try:
        return float(str(value))
    except ValueError:
        return str(value)
