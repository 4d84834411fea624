"""What run directories hold, read as they are: while another process writes there, after a crash, with damaged lines.

Files are only looked at here; `frames` makes tables of what is found. What cannot be read is said in `PointFiles.problems`.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import yaml

from ..analysis import metrics
from ..analysis.metrics import METRICS
from ..display import get_logger
from ..files import open_to_read
from ..records import FINISH_REASONS, NANOGPT_FILE, Sampling
from .csv_files import csv_rows
from .writer import LOCK, MANIFEST, PARTIAL, SAMPLES, SUMMARY, SWEEP, whole

log = get_logger(__name__)

COUNTS = ("num_prompts", "num_samples", "prompt_tokens", "completion_tokens", *(f"finish_{end}" for end in FINISH_REASONS))
SPREADS = tuple(metrics.STANDARD_ERROR.values()) + tuple(
    f"{name}_se" for name, metric in METRICS.items() if metric.per == "sample" and name not in metrics.STANDARD_ERROR
)
ABOUT = ("point_id", "status", "error", "directory")
SAMPLING_KEYS = tuple(each.name for each in fields(Sampling) if each.name != "num_samples")

OVERRIDES = {
    "device.dtype": "dtype", "device.name": "device", "model.out_dir": "out_dir", "model.file": "file", "model.path": "path",
    "model.meta": "meta",
}  # fmt: skip
"""Columns that are named otherwise than the key a user types."""

MAX_YAML = 1 << 20
"""Bytes of a file of Hydra's that are read at most: they have a few thousand."""
YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

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
        if names & {SAMPLES, PARTIAL, SUMMARY, MANIFEST, LOCK, ".hydra"}:
            yield directory, sweep
            continue
        if names & {"multirun.yaml", SWEEP}:
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


def opened(path: Path) -> BinaryIO:
    """A regular file of this directory's own; an OSError for a pipe, a device, and a link that leads elsewhere."""
    if path.is_symlink() and os.path.dirname(os.path.realpath(path)) != os.path.realpath(path.parent):
        raise PermissionError(errno.EPERM, "a symbolic link that leads elsewhere", str(path))
    return open_to_read(path)


def read_point(directory: Path, root: Path) -> PointFiles:
    """Settings, metrics and status of a point; its samples are left for later, they are many."""
    point = PointFiles(directory, root, {})
    manifest = read_manifest(directory / MANIFEST, point.problems)
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


def read_manifest(path: Path, problems: list[str]) -> dict[str, Any]:
    """What a manifest says, empty where there is none."""
    try:
        with opened(path) as file:
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
    return found


def read_rows(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The rows of a CSV file, empty cells as None; no rows where there is no such file."""
    try:
        with io.TextIOWrapper(opened(path), encoding="utf-8", newline="") as file:
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
    found = overridden(directory / ".hydra" / "overrides.yaml") | configured(directory / ".hydra" / "config.yaml")
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
            for sample in samples_of(directory / name):
                if sample is not None:
                    return sample
    return {}


def is_setting(value: object) -> bool:
    """Whether a value read from YAML says what was set: no interpolation, and no ``auto`` that was resolved later."""
    return value != "auto" and isinstance(value, (str, int, float, list, dict, type(None))) and "${" not in str(value)


def read_yaml(path: Path) -> Any:
    """What a YAML file of Hydra's holds; None where there is none, it is damaged, or larger than Hydra's are."""
    if path.parent.is_symlink():
        return None
    try:
        with opened(path) as file:
            text = file.read(MAX_YAML + 1)
        return yaml.load(text, Loader=YAML_LOADER) if len(text) <= MAX_YAML else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def configured(path: Path) -> dict[str, Any]:
    """The columns that Hydra's record of a composed config has a value for."""
    config = read_yaml(path)
    if not isinstance(config, dict):
        return {}
    groups = {name: config[name] if isinstance(config.get(name), dict) else {} for name in ("model", "device", "sampling")}
    found = {key: value for key, value in groups["sampling"].items() if key in SAMPLING_KEYS}
    for key, name in OVERRIDES.items():
        group, _, leaf = key.partition(".")
        if leaf in groups[group]:
            found[name] = groups[group][leaf]
    found |= {"model": groups["model"]["name"]} if "name" in groups["model"] else {}
    return found | {key: typed(key, config[key]) for key in ("start", "seed") if key in config}


def overridden(path: Path) -> dict[str, Any]:
    """The columns that Hydra's record of a command line sets."""
    lines = read_yaml(path)
    if not isinstance(lines, list):
        return {}
    from hydra.core.override_parser.overrides_parser import OverridesParser  # late: only unfinished points need it
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException

    parser, found = OverridesParser.create(), {}
    for line in lines:
        try:
            override = parser.parse_override(line)
        except (HydraException, TypeError, ValueError, RecursionError):
            continue
        name, value = column_of(override.key_or_group), override.value()
        if name and not override.is_sweep_override():
            found[name] = typed(name, value.text if isinstance(value, QuotedString) else value)
    return found


def column_of(key: str) -> str | None:
    """The column of a key that a user types; None for one that has none."""
    name = OVERRIDES.get(key, key.removeprefix("sampling."))
    return name if name in (*SAMPLING_KEYS, *OVERRIDES.values(), "model", "start", "seed") else None


def typed(name: str, value: Any) -> Any:
    """A value of a config as the point has it."""
    from ..config import FILE_PREFIXES, unescaped  # late: Hydra, which only unfinished points need

    return unescaped(value) if name == "start" and isinstance(value, str) and not value.startswith(FILE_PREFIXES) else value


def is_shortened(name: str) -> bool:
    """Whether a directory's name is one that `config.point_dir` has cut and ended in a hash: not what anybody typed."""
    return re.search(r"-[0-9a-f]{12}$", name) is not None


def named(directory: Path) -> dict[str, Any]:
    """The columns that a directory's name says, where it is made of overrides as they were typed."""
    pairs = [] if is_shortened(directory.name) else [pair.partition("=") for pair in directory.name.split(",")]
    return {name: None if value == "null" else value for key, _, value in pairs if value and (name := column_of(key))}


def complete_settings(point: PointFiles) -> None:
    """Fill in what neither a point's own files nor ``sweep.csv`` say: from its directory's name, and its prompt."""
    name = point.directory.name
    if is_shortened(name):  # version 0.1 wrote what it read off such a name into sweep.csv
        point.row = {key: None if value and name.endswith(str(value)) else value for key, value in point.row.items()}
    found = named(point.directory)
    if found.get("start", point.row.get("start")) is None:
        sample = first_sample(point.directory)
        if sample.get("prompt_id") == "0":
            found["start"] = sample["prompt"]
    unknown = {key: value for key, value in found.items() if point.row.get(key) is None}
    point.row = unknown | {key: value for key, value in point.row.items() if key not in unknown}
    if is_shortened(name):
        point.named = frozenset(filter(None, map(column_of, re.findall(r"(?:^|,)([A-Za-z_.]+)=", name))))


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


def samples_of(path: Path, digest: hashlib._Hash | None = None) -> Iterator[dict[str, Any] | None]:
    """A file's lines as samples, None for a damaged one; nothing where there is no file. ``digest`` is fed every byte."""
    with contextlib.suppress(FileNotFoundError), opened(path) as file:
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


def read_samples(point: PointFiles) -> list[dict[str, Any]]:
    """The whole lines of a point, in order, each sample once; damaged lines are counted and said with their file."""
    found: dict[tuple[int, int, int], dict[str, Any]] = {}
    if point.unread:
        return []
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
