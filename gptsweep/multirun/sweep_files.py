"""Files of a sweep: ``sweep.csv``, which says what is on disk, and ``report.html`` at the end; one process at a time in it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..display import get_logger
from ..errors import GptsweepError, ResultsError
from ..files import open_file, open_to_read
from ..store.csv_files import csv_rows
from ..store.writer import MANIFEST, PARTIAL, SAMPLES, SWEEP, SWEEP_LOCK, DirectoryLock, write_sweep_csv

if TYPE_CHECKING:
    from .compose import Planned

log = get_logger(__name__)

ABOUT = ("status", "error", "directory")
SECONDS = 1.0
SHARE = 0.05
"""``sweep.csv`` is rewritten every so many seconds at most, and in no more than this share of the time."""


FAILURES = ".failures.jsonl"
"""What failed in jobs that other processes may have run, until the end of the sweep."""


class SweepTable:
    """``sweep.csv``: a row a point, those that failed or are missing included; rewritten as points finish.

    What a point's own files say stands above what an earlier ``sweep.csv`` said. Points that an earlier sweep left in the
    directory have their rows, too.

    Args:
        directory: of the sweep; must be there.
        clock: seconds from anywhere, never going back.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        from ..store.reader import point_directories  # late: numpy

        self.directory = directory
        self._clock = clock
        self._next = clock()
        self._swept: dict[str, dict[str, str]] = {}
        self._settled: set[str] = set()
        self._columns: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._rows: dict[str, tuple[tuple[str, ...], tuple[Any, ...]]] = {}
        for name, row in _read(directory):
            inside = not os.path.isabs(name) and ".." not in Path(name).parts
            if inside and os.path.isdir(directory / name):  # not Path's: it raises for a name that is too long
                self._keep(name, row)
        for point, root in point_directories(directory):
            name = self._name(Path(os.path.abspath(point)))
            if root == directory and point != directory and name not in self._rows:
                self._keep(name, {"status": "missing", "error": None, "directory": name})
        self._look(self._rows)

    def expect(self, directory: Path, overrides: Sequence[str], settings: Mapping[str, object]) -> None:
        """Add a point that is about to run."""
        name = self._name(directory)
        self._swept[name] = dict(_column(line) for line in overrides)
        known = self._row(name) if name in self._rows else {}
        if known.get("status") != "complete":
            status = "partial" if known.get("status") == "partial" else "missing"
            self._keep(name, {**settings, "status": status, "error": None, "directory": name})

    def settle(self, directory: Path, summary: Mapping[str, object] | None, error: Exception | None) -> None:
        """Note what became of a point, and write the file if it is time to."""
        name = self._name(directory)
        if error is None:
            row = {key: value for key, value in self._row(name).items() if key not in (summary or {})}
            about = {key: row.pop(key) for key in ABOUT}
            self._keep(name, {**row, **(summary or {}), **about, "status": "complete", "error": None})
            self._settled.add(name)
        else:
            self.fail(directory, told(error))
        if self._clock() >= self._next:
            self.write()

    def fail(self, directory: Path, error: str) -> None:
        """Note that a point failed."""
        name = self._name(directory)
        row = self._row(name) if name in self._rows else {"directory": name}
        self._keep(name, {**row, "status": "failed", "error": " ".join(error.split())})

    def close(self) -> None:
        """Write the file as the points' own files have it."""
        self._look(set(self._rows) - self._settled)
        self.write()

    def _look(self, names: Collection[str]) -> None:
        """Let the rows ``names`` say what is on disk; an error stays where the point is not complete."""
        from ..store.reader import read_point  # late: numpy

        for name in list(names):
            row, place = self._row(name), self.directory / name
            point = read_point(place, self.directory) if os.path.isdir(place) else None
            if point is not None and point.summarised:
                about = {"status": "complete", "error": None, "directory": name}
                self._keep(name, {key: value for key, value in point.row.items() if key not in ABOUT} | about)
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
        root = Path(os.path.abspath(self.directory))
        return directory.relative_to(root).as_posix() if directory.is_relative_to(root) else str(directory)


def _column(line: str) -> tuple[str, str]:
    """An override as a column and a cell: ``sampling.top_k=5`` stands in the column ``top_k`` of the settings."""
    key, _, value = line.partition("=")
    return {"device.dtype": "dtype", "device.name": "device"}.get(
        key, key.removeprefix("sampling.").removeprefix("model.")
    ), value


def _read(directory: Path) -> list[tuple[str, dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    # What cannot be read is in the points' own directories, too.
    with contextlib.suppress(OSError, ValueError, csv.Error), open_to_read(directory / SWEEP) as file:
        rows = list(csv_rows(io.TextIOWrapper(file, encoding="utf-8", newline="")))
    return [(str(row["directory"]), row) for row in rows if row.get("directory")]


_sweeps: ContextVar[contextlib.ExitStack] = ContextVar("sweeps")
"""What is to be done when the command's sweep ends."""


@contextlib.contextmanager
def ending_sweep() -> Iterator[None]:
    """Around a command: a sweep that `begin_sweep` begins ends with it, however it ends."""
    with contextlib.ExitStack() as stack:
        token = _sweeps.set(stack)
        try:
            yield
        finally:
            _sweeps.reset(token)


def begin_sweep(directory: Path, planned: Sequence[Planned], *, writes_files: bool, show_rows: bool) -> None:
    """Take the lock of a sweep until the command ends.

    Args:
        directory: of the sweep; made where it is missing.
        planned: its points, as far as they are known.
        writes_files: whether ``sweep.csv`` and ``report.html`` are to be written at the end, as the launcher does not.
        show_rows: whether the first rows of the review are to be shown then.

    Raises:
        ResultsError: another process runs a sweep in the directory.
        OSError: it cannot be made.
    """
    if (stack := _sweeps.get(None)) is not None:
        directory.mkdir(parents=True, exist_ok=True)
        stack.enter_context(DirectoryLock(directory, SWEEP_LOCK))
        if writes_files:
            stack.callback(_finish_sweep, directory, planned, show_rows)


def note_failure(sweep: Path, point: Path, error: Exception) -> None:
    """Keep, for the end of the sweep, why a point failed; callable from any process."""
    line = json.dumps({"directory": str(point), "error": told(error)}) + "\n"
    fd = open_file(sweep / FAILURES, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def _finish_sweep(directory: Path, planned: Sequence[Planned], show_rows: bool) -> None:
    from ..run.session import wanted_settings  # late: torch

    table = SweepTable(directory)
    for job in planned:
        table.expect(job.directory, job.overrides, wanted_settings(job.point))
    with contextlib.suppress(FileNotFoundError, ValueError), open_to_read(directory / FAILURES) as file:
        for line in file:
            failure = json.loads(line)
            table.fail(Path(failure["directory"]), failure["error"])
    (directory / FAILURES).unlink(missing_ok=True)
    table.close()
    write_report(directory, show_rows=show_rows)


def require_no_sweep(directory: Path) -> None:
    """See that no process runs a sweep in ``directory``.

    Raises:
        ResultsError: one does.
    """
    if os.path.lexists(directory / SWEEP_LOCK):
        with DirectoryLock(directory, SWEEP_LOCK):
            pass


def refresh_sweep(directory: Path) -> None:
    """After a single run in a sweep's directory: let ``sweep.csv`` say so, unless a sweep is going on, which will say it."""
    if os.path.isfile(directory / SWEEP):
        with contextlib.suppress(ResultsError, OSError), DirectoryLock(directory, SWEEP_LOCK):
            SweepTable(directory).close()


def told(error: Exception) -> str:
    """An error in words: a user's mistake speaks for itself, a bug by its name."""
    if isinstance(error, OSError) and error.filename:
        return f"cannot write {error.filename}: {error.strerror}"
    return str(error) if isinstance(error, GptsweepError) else f"{type(error).__name__}: {error}"


def write_report(directory: Path, *, show_rows: bool = False) -> None:
    """Write ``report.html``; a sweep without a single sample has none, and a page that cannot be made fails no sweep.

    Args:
        directory: of the sweep.
        show_rows: whether the first rows of the review are shown, too, and the command that shows the rest.
    """
    from ..analysis.frames import read_sweep  # late: pandas
    from ..report import write_report as write
    from ..review import print_first_rows

    if not any(directory.glob(f"**/{MANIFEST}")) and not any(directory.glob(f"**/{PARTIAL}")):
        return
    try:
        sweep = read_sweep(directory)
        if show_rows:
            print_first_rows(directory, sweep)
        write(directory, sweep)
    except Exception as error:
        log.warning("no report.html: %s", told(error), exc_info=not isinstance(error, GptsweepError))
