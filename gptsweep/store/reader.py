"""The one reader of run directories: as they are, while another process writes there, after a crash, with damaged lines.

Files are only looked at here; `analysis.frames` makes tables of what is found. `PointFiles.problems` says what cannot be read.
Results may come from a stranger: `read_point` and what it calls open no file that lies outside of the directory. A run reads
its own directory, whose files may be links to another disk.
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
    """The sample that a line of ``samples.jsonl`` holds; None where the line is torn or damaged.

    Of a line that is this process's ``own`` the fields are not looked at, which takes three times as long as parsing it.
    """
    if not (line.startswith(b"{") and line.endswith(b"}\n")):
        return None
    try:
        sample: dict[str, Any] = orjson.loads(line)
    except ValueError:  # damaged, or a lone surrogate, which orjson does not take
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
    """The lines of a file, each with its sample, None for a damaged one; nothing where there is no file.

    Args:
        path: of the file.
        opened: opens it; `open_inside` where the results may be a stranger's.
        digest: is fed every byte.
    """
    with contextlib.suppress(FileNotFoundError), opened(path) as file:
        for line in file:
            if digest is not None:
                digest.update(line)
            yield line, parse_line(line)


def read_samples(path: str | Path) -> tuple[list[dict[str, Any]], int]:
    """Every whole sample of a run directory or of one of its files, and how many lines are damaged.

    A run directory gives its finished and its partial samples together, each once, ordered by ``(prompt_index,
    sample_index)``, also while another process writes there; a file gives its lines as they stand. The line that a process
    is just writing, or had not finished when it was killed, is no damage.
    """
    path = Path(path)
    # The partial file first: when the point is finished between the two reads, its samples are seen twice, not never.
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
    """What ``manifest.json`` of a run directory says; None where there is none or it is damaged.

    Args:
        directory: of the run.
        opened: opens the file, as in `open_lines`.
        problems: takes a line that says why a file that is there cannot be used. Without it, a file that cannot be read
            is an OSError.
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
    """One point directory: its row of ``summary`` as far as it is known, and what is wrong with its files."""

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
    """Columns that were set, as the name of the directory says, though not to which value."""
    unread: bool = False
    """Whether only ``sweep.csv`` knows the directory, which may lie anywhere: nothing in it is looked at."""

    @property
    def name(self) -> str:
        """The directory as its sweep names it."""
        inside = self.directory != self.root and self.directory.is_relative_to(self.root)
        return self.directory.relative_to(self.root).as_posix() if inside else self.directory.name


def point_directories(root: Path) -> Iterator[tuple[Path, Path]]:
    """Every point directory at or under ``root``, with the sweep (or run) it belongs to."""
    waiting = [(root, root)]
    seen = set()  # links may lead round in circles
    while waiting:
        directory, sweep = waiting.pop()
        try:
            about = os.stat(directory)
            entries = [entry for entry in os.scandir(directory) if not leads_out(Path(entry.path), root)]
        except OSError:
            if directory == root:
                raise
            yield directory, sweep  # as a point that says why
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
    """Whether ``path``, a file or directory of the results ``root``, is a symbolic link to what is none of them.

    Results may come from a stranger, and what they lead to would be copied into the report.
    """
    if not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        return False
    log.warning("%s leads out of %s, and is left out; to see what is there, name it on the command line", path, root)
    return True


def read_point(directory: Path, root: Path) -> PointFiles:
    """Settings, metrics and status of a point; its samples are left for later, they are many."""
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
    """The settings of a nanoGPT model with the checkpoint's file, which version 0.1 did not write: there was one alone."""
    if row.get("model") != "resume" or row.get("file"):
        return row
    items = [item for item in row.items() if item[0] != "file"]
    place = 1 + [name for name, _ in items].index("out_dir" if "out_dir" in row else "model")
    return dict([*items[:place], ("file", NANOGPT_FILE), *items[place:]])


def read_rows(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The rows of a CSV file, empty cells as None; no rows where there is no such file."""
    try:
        with io.TextIOWrapper(open_inside(path), encoding="utf-8", newline="") as file:
            # Interned: most cells of a sweep are the same at every point.
            return [{name: sys.intern(value) if value else None for name, value in row.items()} for row in csv_rows(file)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        problems.append(f"{path}: cannot be read: {error}")
        return []


def settings_of(directory: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a point that has no summary, from the files of its own directory.

    What a sample says was so; else Hydra's record of the whole config, of the overrides, and the manifest, in this order.
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
    """The first whole sample of a point; empty where it has none, or none that can be read."""
    for name in (SAMPLES, PARTIAL):
        with contextlib.suppress(OSError):
            for _, sample in open_lines(directory / name, open_inside):
                if sample is not None:
                    return sample
    return {}


def complete_settings(point: PointFiles) -> None:
    """Fill in what neither a point's own files nor ``sweep.csv`` say: from its directory's name, and its prompt."""
    name = point.directory.name
    if is_shortened(name):  # version 0.1 wrote what it read off such a name into sweep.csv
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
    """A setting as ``summary.csv`` holds it: lists and mappings as JSON."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def unseen_points(root: Path, seen: Iterable[PointFiles]) -> Iterator[PointFiles]:
    """What ``sweep.csv`` adds: points that never got a directory, and why those that did are not complete."""
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
    """The whole lines of a point, in order, each sample once; damaged lines are counted and said with their file."""
    found: dict[tuple[int, int, int], dict[str, Any]] = {}
    if point.unread:
        return []
    for name in (PARTIAL, SAMPLES):  # a point finished between the two reads is then seen twice, not never
        damaged, count, digest = 0, 0, hashlib.sha256()
        path = point.directory / name
        try:
            for _, sample in open_lines(path, open_inside, digest):
                count += 1
                if sample is None:
                    damaged += 1
                else:
                    found.setdefault((sample["prompt_index"], sample["seed"], sample["sample_index"]), sample)
        except OSError as error:  # of this point: the others can be read
            if os.path.isdir(point.directory):
                point.problems.append(f"{path}: cannot be read: {error.strerror}")
        if damaged:
            point.damaged_lines += damaged
            point.problems.append(f"{path}: {counted(damaged, 'damaged line')} of {count:,} left out")
        if name == SAMPLES and point.manifest.get("sha256") not in (None, digest.hexdigest()):
            lines = point.manifest.get("lines")
            was = counted(lines, "line") if isinstance(lines, int) else "lines"
            point.problems.append(f"{path}: not the {was} its manifest vouches for")
            point.summarised = False
    return [found[key] for key in sorted(found)]


def setting_names(row: Iterable[str]) -> list[str]:
    """The columns that say what was asked for, not what came out: in every file they stand before the counts."""
    return [name for name in takewhile(lambda name: name not in COUNTS, row) if name not in ABOUT]
