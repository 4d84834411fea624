"""Files of a sweep: ``sweep.csv``, which is right at any moment, and ``report.html`` at the end."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .csv_files import csv_rows
from .display import get_logger
from .errors import GptsweepError, ResultsError
from .results import MANIFEST, PARTIAL, SAMPLES, SWEEP, write_sweep_csv

log = get_logger(__name__)

ABOUT = ("status", "error", "directory")
SECONDS = 1.0
SHARE = 0.05
"""``sweep.csv`` is rewritten every so many seconds at most, and in no more than this share of the time."""


class SweepTable:
    """``sweep.csv``: a row a point, those that failed or are missing included; rewritten as points finish.

    Rows of points that an earlier sweep of the same name left in the directory stay.

    Args:
        directory: of the sweep; must be there.
        clock: seconds from anywhere, never going back.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.directory = directory
        self._clock = clock
        self._next = clock()
        self._swept: dict[str, dict[str, str]] = {}
        self._columns: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._rows: dict[str, tuple[tuple[str, ...], tuple[Any, ...]]] = {}
        for name, row in _read(directory):
            if (directory / name).is_dir():
                self._keep(name, row)

    def expect(self, directory: Path, overrides: Sequence[str], settings: Mapping[str, object]) -> None:
        """Add a point that is about to run."""
        name = self._name(directory)
        self._swept[name] = dict(_column(line) for line in overrides)
        self._keep(name, {**settings, "status": "missing", "error": None, "directory": name})

    def settle(self, directory: Path, summary: Mapping[str, object] | None, error: Exception | None) -> None:
        """Note what became of a point, and write the file if it is time to."""
        name = self._name(directory)
        if error is None:
            self._keep(name, {**self._row(name), **(summary or {}), "status": "complete"})
        else:
            self._keep(name, {**self._row(name), "status": "failed", "error": " ".join(told(error).split())})
        if self._clock() >= self._next:
            self.write()

    def close(self) -> None:
        """Write the file, points that were begun and not finished told from those that were not begun."""
        for name in self._swept:
            row = self._row(name)
            if row["status"] == "missing" and any((self.directory / name / file).exists() for file in (PARTIAL, SAMPLES)):
                self._keep(name, {**row, "status": "partial"})
        self.write()

    def write(self) -> None:
        """Replace the file."""
        began = self._clock()
        values: dict[str, set[str]] = {}
        for settings in self._swept.values():
            for key, value in settings.items():
                values.setdefault(key, set()).add(value)
        swept = [key for key, different in values.items() if len(different) > 1]
        named: list[str] = []
        for ours, columns in dict.fromkeys((name in self._swept, columns) for name, (columns, _) in self._rows.items()):
            named += [key for key in swept if ours and key not in columns]
            named += [column for column in columns if column not in ABOUT]
        rows = (
            {key: value for key, value in self._swept.get(name, {}).items() if key in swept} | self._row(name)
            for name in self._rows
        )
        if self._rows:
            try:
                write_sweep_csv(self.directory, list(dict.fromkeys([*named, *ABOUT])), rows)
            except ResultsError as error:  # the points' own files are what counts, and say themselves what they lack
                log.warning("%s", error)
        now = self._clock()
        self._next = now + max(SECONDS, (now - began) / SHARE)

    def _keep(self, name: str, row: Mapping[str, Any]) -> None:
        """A tenth of the memory that a dictionary takes: rows share their columns."""
        columns = tuple(row)
        self._rows[name] = self._columns.setdefault(columns, columns), tuple(row.values())

    def _row(self, name: str) -> dict[str, Any]:
        columns, values = self._rows[name]
        return dict(zip(columns, values, strict=True))

    def _name(self, directory: Path) -> str:
        root = self.directory.absolute()
        return directory.relative_to(root).as_posix() if directory.is_relative_to(root) else str(directory)


def _column(line: str) -> tuple[str, str]:
    """An override as a column and a cell: ``sampling.top_k=5`` stands in the column ``top_k`` of the settings."""
    key, _, value = line.partition("=")
    return {"device.dtype": "dtype", "device.name": "device"}.get(
        key, key.removeprefix("sampling.").removeprefix("model.")
    ), value


def _read(directory: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        with (directory / SWEEP).open(encoding="utf-8", newline="") as file:
            rows: list[dict[str, Any]] = list(csv_rows(file))
    except (FileNotFoundError, ValueError, csv.Error):
        return []  # what it held is in the points' own directories, too
    return [(str(row["directory"]), row) for row in rows if row.get("directory")]


def told(error: Exception) -> str:
    """An error in words: a user's mistake speaks for itself, a bug by its name."""
    if isinstance(error, OSError) and error.filename:
        return f"cannot write {error.filename}: {error.strerror}"
    return str(error) if isinstance(error, GptsweepError) else f"{type(error).__name__}: {error}"


def write_report(directory: Path) -> None:
    """Write ``report.html``; a sweep without a single sample has none, and a page that cannot be made fails no sweep."""
    from .report import write_report as write  # late: pandas

    if not any(directory.glob(f"**/{MANIFEST}")) and not any(directory.glob(f"**/{PARTIAL}")):
        return
    try:
        write(directory)
    except Exception as error:
        log.warning("no report.html: %s", told(error), exc_info=not isinstance(error, GptsweepError))
