"""The only reader of run directories: it reads them as they are, during a run, after a crash, with damaged lines.

It does not change files; `analysis.frames` makes tables of what it finds. `PointFiles.problems` says what could not be read.
Results may come from a stranger: `read_point` and what it calls open no file outside the directory. A run reads its own
directory, whose files may be links to another disk.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from ..display import counted, get_logger
from ..files import open_inside, open_to_read
from ..records import NANOGPT_FILE
from .csv_files import csv_rows
from .durable import refusals_as_results_errors
from .recorded_settings import configured, is_setting, is_shortened, named_settings, overridden
from .schema import (
    ABOUT,
    COUNTS,
    HYDRA,
    LOCK,
    MANIFEST,
    MULTIRUN,
    PARTIAL,
    SAMPLES,
    SAMPLING_KEYS,
    SUMMARY,
    SWEEP,
    column_of_setting,
    is_whole,
    key_of,
)

log = get_logger(__name__)


def parse_line(line: bytes, *, own: bool = False) -> dict[str, Any] | None:
    """Parse a line of ``samples.jsonl``; None if it is torn or damaged.

    The fields of a line that this process wrote (``own``) are not validated, which takes three times as long as parsing.
    """
    if not (line.startswith(b"{") and line.endswith(b"}\n")):
        return None
    try:
        sample: dict[str, Any] = orjson.loads(line)
    except ValueError:  # damaged, or with a lone surrogate, which orjson rejects
        try:
            sample = json.loads(line)
        except (ValueError, RecursionError):
            return None
    if own:
        return sample
    try:
        known_as = f"{sample['point_id']}-{sample['prompt_index']}-{sample['sample_index']}"
        usable = is_whole(sample) and sample["sample_id"] == known_as and "schema_version" in sample
    except (KeyError, TypeError):
        return None
    return sample if usable else None


def open_lines(
    path: Path, opened: Callable[[Path], BinaryIO], digest: hashlib._Hash | None = None
) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield the lines of a file, each with its sample (None if damaged); nothing if the file does not exist.

    Args:
        path: the file.
        opened: opens it; `open_inside` for results that may be a stranger's.
        digest: is updated with every byte.
    """
    with contextlib.suppress(FileNotFoundError), opened(path) as file:
        for line in file:
            if digest is not None:
                digest.update(line)
            yield line, parse_line(line)


def read_samples(path: str | Path) -> tuple[list[dict[str, Any]], int]:
    """Read every complete sample of a run directory or of one of its files, and count damaged lines.

    A run directory gives its finished and its partial samples together, without duplicates, ordered by ``(prompt_index,
    sample_index)``, even while another process writes there; a file gives its lines in order. A line that a process is still
    writing, or had not finished when it was killed, does not count as damaged.

    Raises:
        ResultsError: ``path`` does not exist or cannot be read.
    """
    path = Path(path)
    # The partial file first: if the point is finished between the two reads, its samples are seen twice, not never.
    files = [path / PARTIAL, path / SAMPLES] if path.is_dir() else [path]
    samples: list[dict[str, Any]] = []
    damaged = 0
    with refusals_as_results_errors(path):
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        for file in files:
            for line, sample in open_lines(file, open_to_read):
                if sample is not None:
                    samples.append(sample)
                elif line.endswith(b"\n") or file.name != PARTIAL:
                    damaged += 1
    if path.is_dir():
        samples = [sample for _, sample in sorted({key_of(sample): sample for sample in samples}.items())]
    return samples, damaged


def read_manifest(
    directory: str | Path, opened: Callable[[Path], BinaryIO] = open_to_read, problems: list[str] | None = None
) -> dict[str, Any] | None:
    """Read ``manifest.json`` of a run directory; None if it is missing or damaged.

    Args:
        directory: the run directory.
        opened: opens the file, as in `open_lines`.
        problems: gets a line that says why an existing file cannot be used. Without it, a file that cannot be read raises
            OSError.
    """
    path = Path(directory) / MANIFEST
    try:
        with opened(path) as file:
            found = json.loads(file.read())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        found = None
    except OSError as error:
        if problems is None:
            raise
        problems.append(f"{path}: cannot be read: {error.strerror}")
        return None
    if isinstance(found, dict):
        return found
    if problems is not None:
        problems.append(f"{path}: not a manifest; the point counts as partial")
    return None


@dataclass(slots=True)
class PointFiles:
    """One point directory: its row of ``summary`` as far as known, and the problems with its files."""

    directory: Path
    root: Path
    row: dict[str, Any]
    status: str = ""
    error: str = ""
    manifest: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    damaged_lines: int = 0
    summarised: bool = False
    named: frozenset[str] = frozenset()
    """Columns that were set to values that the directory's shortened name does not show."""
    unread: bool = False
    """Whether only ``sweep.csv`` lists the directory, which may then be anywhere: nothing in it is read."""

    @property
    def name(self) -> str:
        """The directory's name within its sweep."""
        inside = self.directory != self.root and self.directory.is_relative_to(self.root)
        return self.directory.relative_to(self.root).as_posix() if inside else self.directory.name


def point_directories(root: Path) -> Iterator[tuple[Path, Path]]:
    """Yield every point directory at or under ``root``, with the sweep (or run) it belongs to."""
    waiting = [(root, root)]
    seen = set()  # symbolic links may form cycles
    while waiting:
        directory, sweep = waiting.pop()
        try:
            about = os.stat(directory)
            entries = [entry for entry in os.scandir(directory) if not leads_out(Path(entry.path), root)]
        except OSError:
            if directory == root:
                raise
            yield directory, sweep  # as a point with a problem
            continue
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        names = {entry.name for entry in entries}
        if names & {SAMPLES, PARTIAL, SUMMARY, MANIFEST, LOCK, HYDRA}:
            yield directory, sweep
            continue
        if names & {MULTIRUN, SWEEP}:
            sweep = directory
        waiting += [(Path(entry.path), sweep) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def leads_out(path: Path, root: Path) -> bool:
    """Whether ``path``, inside the results ``root``, is a symbolic link to something outside.

    Results may come from a stranger, and the link's target would be copied into the report.
    """
    if not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        return False
        log.warning("ignoring %s, which leads out of %s; to include its target, name it on the command line", path, root)
    return True


def read_point(directory: Path, root: Path) -> PointFiles:
    """Read settings, metrics and status of a point, but not its samples, of which there may be many."""
    point = PointFiles(directory, root, {})
    manifest = read_manifest(directory, open_inside, point.problems) or {}
    point.manifest = {key: manifest[key] for key in ("status", "sha256", "lines") if key in manifest}
    rows = read_rows(directory / SUMMARY, point.problems)
    point.summarised = point.manifest.get("status") == "complete" and len(rows) == 1
    if point.summarised:
        point.row = rows[0]
    else:
        try:
            point.row = settings_of(directory, manifest)
        except (OSError, ValueError) as error:
            point.problems.append(f"{directory}: its settings cannot be read: {error}")
    point.row = with_file(point.row)
    return point


def with_file(row: dict[str, Any]) -> dict[str, Any]:
    """Add a nanoGPT model's checkpoint file, which version 0.1 did not record because there was only one."""
    if row.get("model") != "resume" or row.get("file"):
        return row
    items = [item for item in row.items() if item[0] != "file"]
    place = 1 + [name for name, _ in items].index("out_dir" if "out_dir" in row else "model")
    return dict([*items[:place], ("file", NANOGPT_FILE), *items[place:]])


def read_rows(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The rows of a CSV file, empty cells as None; no rows if there is no such file."""
    try:
        with io.TextIOWrapper(open_inside(path), encoding="utf-8", newline="") as file:
            # Interned, because most cells of a sweep are equal at every point.
            return [{name: sys.intern(value) if value else None for name, value in row.items()} for row in csv_rows(file)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        problems.append(f"{path}: cannot be read: {error}")
        return []


def settings_of(directory: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a point without a summary, from the files of its own directory.

    In order of precedence: a sample, Hydra's record of the composed config, its record of the overrides, the manifest.
    """
    found = overridden(directory / HYDRA / "overrides.yaml") | configured(directory / HYDRA / "config.yaml")
    model = manifest.get("model")
    if isinstance(model, dict):
        found = {"model": model.get("name"), "out_dir": model.get("out_dir"), "path": model.get("path")} | found
        found |= {key: manifest[key] for key in ("dtype", "device") if isinstance(manifest.get(key), str)}
    found = {name: cell(value) for name, value in found.items() if is_setting(value)}
    sample = first_sample(directory)
    return found | {key: cell(sample[key]) for key in ("model", "seed", *SAMPLING_KEYS) if key in sample}


def first_sample(directory: Path) -> dict[str, Any]:
    """The first complete sample of a point; empty if there is none."""
    for name in (SAMPLES, PARTIAL):
        with contextlib.suppress(OSError):
            for _, sample in open_lines(directory / name, open_inside):
                if sample is not None:
                    return sample
    return {}


def complete_settings(point: PointFiles) -> None:
    """Fill in settings that neither a point's own files nor ``sweep.csv`` have: from its directory's name, and its prompt."""
    name = point.directory.name
    if is_shortened(name):  # version 0.1 wrote settings parsed from such a name to sweep.csv
        point.row = {key: None if value and name.endswith(str(value)) else value for key, value in point.row.items()}
    found = named_settings(point.directory)
    if found.get("start", point.row.get("start")) is None:
        sample = first_sample(point.directory)
        if sample.get("prompt_id") == "0":
            found["start"] = sample["prompt"]
    unknown = {key: value for key, value in found.items() if point.row.get(key) is None}
    point.row = unknown | {key: value for key, value in point.row.items() if key not in unknown}
    if is_shortened(name):
        point.named = frozenset(filter(None, map(column_of_setting, re.findall(r"(?:^|,)([A-Za-z_.]+)=", name))))


def cell(value: object) -> object:
    """A setting as a cell of ``summary.csv``: lists and mappings as JSON."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def unseen_points(root: Path, seen: Iterable[PointFiles]) -> Iterator[PointFiles]:
    """Points that only ``sweep.csv`` has, because they never got a directory; and errors of points that are incomplete."""
    problems: list[str] = []
    known = {point.directory: point for point in seen if point.root == root}
    for row in read_rows(root / SWEEP, problems):
        directory, status, error = root / (row.get("directory") or ""), row.get("status"), row.get("error") or ""
        if directory not in known and directory != root:
            asked = with_file({key: row[key] for key in setting_names(row)})
            status = "failed" if status == "failed" else "missing"
            yield PointFiles(directory, root, asked, status=status, error=error, problems=problems, unread=True)
        elif directory in known and not known[directory].summarised:
            own = {key: value for key, value in known[directory].row.items() if value is not None}
            known[directory].row = own | {key: value for key, value in row.items() if key not in own}
            known[directory].status, known[directory].error = "failed" if status == "failed" else "", error
        problems = []


def samples_of_point(point: PointFiles) -> list[dict[str, Any]]:
    """The complete lines of a point, in order, without duplicates; damaged lines are counted and reported by file."""
    found: dict[tuple[int, int, int], dict[str, Any]] = {}
    if point.unread:
        return []
    for name in (PARTIAL, SAMPLES):  # if the point is finished between the two reads, it is seen twice, not never
        damaged, count, digest = 0, 0, hashlib.sha256()
        path = point.directory / name
        try:
            for _, sample in open_lines(path, open_inside, digest):
                count += 1
                if sample is None:
                    damaged += 1
                else:
                    found.setdefault((sample["prompt_index"], sample["seed"], sample["sample_index"]), sample)
        except OSError as error:  # affects only this point
            if os.path.isdir(point.directory):
                point.problems.append(f"{path}: cannot be read: {error.strerror}")
        if damaged:
            point.damaged_lines += damaged
            point.problems.append(f"{path}: {counted(damaged, 'damaged line')} of {count:,} left out")
        if name == SAMPLES and point.manifest.get("sha256") not in (None, digest.hexdigest()):
            lines = point.manifest.get("lines")
            was = counted(lines, "line") if isinstance(lines, int) else "lines"
            point.problems.append(f"{path}: differs from the {was} that its manifest records")
            point.summarised = False
    return [found[key] for key in sorted(found)]


def setting_names(row: Iterable[str]) -> list[str]:
    """The columns that are settings, not results: in every file they come before the counts."""
    return [name for name in takewhile(lambda name: name not in COUNTS, row) if name not in ABOUT]
