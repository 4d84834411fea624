"""``sweep.csv``: one row per point, including failed and missing ones."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..display import get_logger
from ..errors import ResultsError, describe
from .csv_files import csv_bytes
from .durable import atomic_write
from .reader import point_directories, read_point, read_rows
from .recorded_settings import read_override
from .schema import PARTIAL, SAMPLES, STATE, SWEEP

log = get_logger(__name__)

SECONDS = 1.0
SHARE = 0.05
"""``sweep.csv`` is rewritten at most every `SECONDS`, and takes at most this share of the time."""


class SweepTable:
    """``sweep.csv``: one row per point, including failed and missing ones; rewritten as points finish.

    A point's own files take precedence over an earlier ``sweep.csv``. Points left in the directory by an earlier sweep keep
    their rows.

    Args:
        directory: the sweep's directory, which must exist.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.directory = directory
        self._clock = clock
        self._next = clock()
        self._swept: dict[str, dict[str, Any]] = {}
        self._settled: set[str] = set()
        self._columns: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._rows: dict[str, tuple[tuple[str, ...], tuple[Any, ...]]] = {}
        for name, row in _rows(directory):
            inside = not os.path.isabs(name) and ".." not in Path(name).parts
            if inside and os.path.isdir(directory / name):  # not Path.is_dir, which raises for a name that is too long
                self._keep(name, row)
        for point, root in point_directories(directory):
            name = self._name(Path(os.path.abspath(point)))
            if root == directory and point != directory and name not in self._rows:
                self._keep(name, {"status": "missing", "error": None, "directory": name})
        self._refresh(self._rows)

    def expect(self, directory: Path, overrides: Sequence[str], settings: Mapping[str, object]) -> None:
        """Add a point that is about to run."""
        name = self._name(directory)
        self._swept[name] = {column: value for _, column, value in filter(None, map(read_override, overrides))}
        known = self._row(name) if name in self._rows else {}
        if known.get("status") != "complete":
            status = "partial" if known.get("status") == "partial" else "missing"
            self._keep(name, {**settings, "status": status, "error": None, "directory": name})

    def settle(self, directory: Path, summary: Mapping[str, object] | None, error: Exception | None) -> None:
        """Record the outcome of a point, and write the file if it is due."""
        name = self._name(directory)
        if error is None:
            row = {key: value for key, value in self._row(name).items() if key not in (summary or {})}
            about = {key: row.pop(key) for key in STATE}
            self._keep(name, {**row, **(summary or {}), **about, "status": "complete", "error": None})
            self._settled.add(name)
        else:
            self.fail(directory, describe(error))
        if self._clock() >= self._next:
            self.write()

    def fail(self, directory: Path, error: str) -> None:
        """Record that a point failed."""
        name = self._name(directory)
        row = self._row(name) if name in self._rows else {"directory": name}
        self._keep(name, {**row, "status": "failed", "error": " ".join(error.split())})

    def close(self) -> None:
        """Write the file from the points' own files."""
        self._refresh(set(self._rows) - self._settled)
        self.write()

    def _refresh(self, names: Collection[str]) -> None:
        """Update the rows ``names`` from disk; an error stays if the point is not complete."""
        for name in list(names):
            row, place = self._row(name), self.directory / name
            point = read_point(place, self.directory) if os.path.isdir(place) else None
            if point is not None and point.summarised:
                about = {"status": "complete", "error": None, "directory": name}
                self._keep(name, {key: value for key, value in point.row.items() if key not in STATE} | about)
            elif row.get("status") != "failed" or not row.get("error"):
                known = point.row if point is not None else {}
                self._keep(name, {**known, **row, "status": self._status(name), "error": None})

    def _status(self, name: str) -> str:
        there = any(os.path.exists(self.directory / name / file) for file in (PARTIAL, SAMPLES))
        return "partial" if there else "missing"

    def write(self) -> None:
        """Replace the file."""
        began = self._clock()
        for name in self._swept:
            if (row := self._row(name))["status"] == "missing" and self._status(name) == "partial":
                self._keep(name, {**row, "status": "partial"})
        values: dict[str, set[str]] = {}
        for settings in self._swept.values():
            for key, value in settings.items():
                values.setdefault(key, set()).add(repr(value))
        swept = [key for key, different in values.items() if len(different) > 1]
        named: list[str] = []
        for ours, columns in dict.fromkeys((name in self._swept, columns) for name, (columns, _) in self._rows.items()):
            named += [key for key in swept if ours and key not in columns]
            named += [column for column in columns if column not in STATE]
        rows = (
            {key: value for key, value in self._swept.get(name, {}).items() if key in swept} | self._row(name)
            for name in self._rows
        )
        if self._rows:
            try:
                write_sweep_csv(self.directory, list(dict.fromkeys([*named, *STATE])), rows)
            except ResultsError as error:  # not fatal: the points' own files have the same data
                log.warning("%s", error)
        now = self._clock()
        self._next = now + max(SECONDS, (now - began) / SHARE)

    def _keep(self, name: str, row: Mapping[str, Any]) -> None:
        """Store rows with shared columns, in a tenth of a dictionary's memory."""
        columns = tuple(row)
        self._rows[name] = self._columns.setdefault(columns, columns), tuple(row.values())

    def _row(self, name: str) -> dict[str, Any]:
        columns, values = self._rows[name]
        return dict(zip(columns, values, strict=True))

    def _name(self, directory: Path) -> str:
        root = Path(os.path.abspath(self.directory))
        return directory.relative_to(root).as_posix() if directory.is_relative_to(root) else str(directory)


def write_sweep_csv(directory: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Replace ``sweep.csv``; rows may lack some of ``columns``, but have no others.

    This writes the complete file: with thousands of points, call it every few seconds, not after every point.
    """
    atomic_write(Path(directory) / SWEEP, csv_bytes(columns, rows))


def _rows(directory: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of an earlier ``sweep.csv`` by directory; unreadable rows are skipped, as the points' files have the data."""
    return [(str(row["directory"]), row) for row in read_rows(directory / SWEEP, []) if row.get("directory")]
