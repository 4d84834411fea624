"""What run directories hold, read as they are: while another process writes there, after a crash, with damaged lines.

Files are only looked at here; `frames` makes tables of what is found. What cannot be read is said in `PointFiles.problems`.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import takewhile
from pathlib import Path
from typing import Any

import orjson

from . import metrics
from .csv_files import csv_rows
from .files import open_to_read
from .metrics import METRICS
from .records import FINISH_REASONS, Sampling
from .results import LOCK, MANIFEST, PARTIAL, SAMPLES, SUMMARY, SWEEP

COUNTS = ("num_prompts", "num_samples", "prompt_tokens", "completion_tokens", *(f"finish_{end}" for end in FINISH_REASONS))
SPREADS = tuple(metrics.STANDARD_ERROR.values()) + tuple(
    f"{name}_se" for name, metric in METRICS.items() if metric.per == "sample" and name not in metrics.STANDARD_ERROR
)
ABOUT = ("point_id", "status", "error", "directory")
SAMPLING_KEYS = tuple(each.name for each in fields(Sampling) if each.name != "num_samples")

OVERRIDES = {
    "device.dtype": "dtype", "device.name": "device", "model.out_dir": "out_dir", "model.path": "path", "model.meta": "meta",
}  # fmt: skip
"""Columns that are named otherwise than the key a user types."""

CHUNK = 1 << 20
"""Bytes of a file that are parsed at once."""

PLACE = ("prompt_index", "seed", "sample_index")
"""What tells the samples of one setting apart."""


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
            entries = list(os.scandir(directory))
        except OSError:
            if directory == root:
                raise
            yield directory, sweep  # as a point that says why
            continue
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        names = {entry.name for entry in entries}
        if names & {SAMPLES, PARTIAL, SUMMARY, MANIFEST, LOCK, ".hydra"}:
            yield directory, sweep
            continue
        if names & {"multirun.yaml", SWEEP}:
            sweep = directory
        waiting += [(Path(entry.path), sweep) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def read_point(directory: Path, root: Path) -> PointFiles:
    """Settings, metrics and status of a point; its samples are left for later, they are many."""
    point = PointFiles(directory, root, {})
    point.manifest = read_manifest(directory / MANIFEST, point.problems)
    rows = read_rows(directory / SUMMARY, point.problems)
    point.summarised = point.manifest.get("status") == "complete" and len(rows) == 1
    if point.summarised:
        point.row = rows[0]
    else:
        try:
            point.row = settings_of(directory)
        except (OSError, ValueError) as error:
            point.problems.append(f"{directory}: its settings cannot be read: {error}")
    return point


def read_manifest(path: Path, problems: list[str]) -> dict[str, Any]:
    """What is read of a manifest here, empty where there is none."""
    try:
        with open_to_read(path) as file:
            found = json.loads(file.read())
    except FileNotFoundError:
        return {}
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
        return {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        problems.append(f"{path}: not a manifest; the point counts as partial")
        return {}
    return {key: found[key] for key in ("status", "sha256", "lines") if key in found}


def read_rows(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The rows of a CSV file, empty cells as None; no rows where there is no such file."""
    try:
        with io.TextIOWrapper(open_to_read(path), encoding="utf-8", newline="") as file:
            # Interned: most cells of a sweep are the same at every point.
            return [{name: sys.intern(value) if value else None for name, value in row.items()} for row in csv_rows(file)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        problems.append(f"{path}: cannot be read: {error}")
        return []


def settings_of(directory: Path) -> dict[str, Any]:
    """The settings of a point that has no summary: from its first whole sample, and from its overrides or its name."""
    settings: dict[str, Any] = {}
    overrides = directory / ".hydra" / "overrides.yaml"
    lines = overrides.read_text(encoding="utf-8").splitlines() if overrides.is_file() else directory.name.split(",")
    for line in lines:
        key, equals, value = line.removeprefix("- ").strip("'\"").partition("=")
        name = OVERRIDES.get(key, key.removeprefix("sampling."))
        if equals and name in (*SAMPLING_KEYS, *OVERRIDES.values(), "model", "start", "seed"):
            settings[name] = None if value == "null" else value.strip("'\"")
    for name in (SAMPLES, PARTIAL):
        for sample in samples_of(directory / name):
            if sample is not None:
                return settings | {key: cell(sample[key]) for key in ("model", "seed", *SAMPLING_KEYS) if key in sample}
    return settings


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
            asked = {key: row[key] for key in setting_names(row)}
            status = "failed" if status == "failed" else "missing"
            yield PointFiles(directory, root, asked, status=status, error=error, problems=problems)
        elif directory in known and not known[directory].summarised:
            known[directory].row = row | known[directory].row
            known[directory].status, known[directory].error = "failed" if status == "failed" else "", error
        problems = []


def samples_of(path: Path, digest: hashlib._Hash | None = None) -> Iterator[dict[str, Any] | None]:
    """A file's lines as samples, None for a damaged one; nothing where there is no file. ``digest`` is fed every byte."""
    with contextlib.suppress(FileNotFoundError), open_to_read(path) as file:
        while lines := file.readlines(CHUNK):
            if digest is not None:
                digest.update(b"".join(lines))
            yield from parsed(lines)


def parsed(lines: Sequence[bytes]) -> list[dict[str, Any] | None]:
    """Lines as samples: all at once, which is faster, and one at a time only where something is wrong."""
    text = b"[" + b",".join(lines) + b"]"
    try:
        samples = orjson.loads(text)
    except ValueError:  # a damaged line, or a lone surrogate, which orjson does not take
        samples = loaded(text) or []
    if len(samples) != len(lines) or not lines[-1].endswith(b"\n"):
        if len(lines) == 1:
            return [None]
        return [sample for line in lines for sample in parsed([line])]
    return [sample if whole(sample) else None for sample in samples]


def loaded(text: bytes) -> Any:
    """JSON, or None where it is damaged."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def whole(sample: Any) -> bool:
    """Whether every field that is used here is there, with its type."""
    try:
        return (
            type(sample["completion"])
            is type(sample["prompt"])
            is type(sample["prompt_id"])
            is type(sample["finish_reason"])
            is str
            and type(sample["prompt_index"]) is type(sample["sample_index"]) is type(sample["prompt_tokens"]) is int
            and type(sample["seed"]) is int
            and 0 <= sample["seed"] < 2**64
            and type(ids := sample["token_ids"]) is list
            and set(map(type, ids)) <= {int}
            and max(ids, default=0) < 2**31
            and {type(sample[f"{name}_mean"]) for name in ("logprob", "sampler_logprob", "entropy")} <= {float, int, type(None)}
        )
    except (KeyError, TypeError):
        return False


def read_samples(point: PointFiles) -> list[dict[str, Any]]:
    """The whole lines of a point, in order, each sample once; damaged lines are counted and said with their file."""
    found: dict[tuple[int, int, int], dict[str, Any]] = {}
    for name in (PARTIAL, SAMPLES):  # a point finished between the two reads is then seen twice, not never
        damaged, count, digest = 0, 0, hashlib.sha256()
        path = point.directory / name
        try:
            for sample in samples_of(path, digest):
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
            point.problems.append(f"{path}: {damaged} damaged {'line' if damaged == 1 else 'lines'} of {count} left out")
        if name == SAMPLES and point.manifest.get("sha256") not in (None, digest.hexdigest()):
            point.problems.append(
                f"{path}: not the {point.manifest.get('lines', '')} lines its manifest vouches for".replace("  ", " ")
            )
            point.summarised = False
    return [found[key] for key in sorted(found)]


def setting_names(row: Iterable[str]) -> list[str]:
    """The columns that say what was asked for, not what came out: in every file they stand before the counts."""
    outcome = {*COUNTS, *METRICS, *SPREADS}
    return [name for name in takewhile(lambda name: name not in outcome, row) if name not in ABOUT]
