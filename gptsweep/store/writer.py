"""Files of a run directory: samples that are durable as they finish, and a manifest that never claims more than is there.

A point's samples are appended to ``samples.partial.jsonl``, one fsync a batch. `PointWriter.finish` makes ``samples.jsonl``
of them, then ``summary.csv``, then ``manifest.json``; each replaces its predecessor whole, and each is on disk before the
next appears. So a process killed at any moment, or a machine that loses power, leaves every sample whose `PointWriter.add`
had returned, and a manifest that says complete stands only beside the files it describes.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import os
import secrets
import socket
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..display import get_logger
from ..errors import ResultsError, shown
from ..files import open_file, open_to_read
from ..records import ENGINE_VERSION, FINISH_REASONS, SCHEMA_VERSION, Sample
from .csv_files import csv_bytes, csv_rows
from .origins import ORIGINS, Origins

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = get_logger(__name__)

SAMPLES = "samples.jsonl"
PARTIAL = "samples.partial.jsonl"
SUMMARY = "summary.csv"
MANIFEST = "manifest.json"
SWEEP = "sweep.csv"
LOCK = ".lock"
SWEEP_LOCK = ".sweep.lock"
TEMPORARY = ".tmp"
_GREATEST = 1e30
"""No mean of logarithms comes near it, and its square is still a number."""
CHECK_DIGITS = 16
"""Hex digits of each line's sha256 kept in the manifest: they tell which lines of a changed file can still be trusted."""

Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the whole line of a sample lies."""

    file: str
    offset: int
    length: int


class PointWriter:
    """One point's samples on disk: takes the directory's lock, reads what is there, adds, finishes.

    Inside the ``with`` block ``done`` holds the keys ``(prompt_index, sample_index)`` of the samples that are on disk, and
    ``complete`` says whether the point was finished, its files are as they were then, and no sample lies beside them. A
    complete point may be extended: add the further samples and finish again. A file that was changed since it was finished
    keeps the lines that are still as they were. Memory grows by a key and a place for each sample, not by its text. One file
    stays open: the lock's.

    Args:
        directory: the run directory; made where it is missing, other files in it are left alone.
        point_id: the id that every sample carries.
        overwrite: replace the samples of another point. They stay until the first sample of this one is there.
        made_by: what decides the bits of samples that are added, by name; kept for each part of the samples.
        settings: of the point, by the names a user types; named in the error where the directory holds another point.

    Raises:
        ResultsError: on enter, where another process holds the directory, it holds another point, or it cannot be
            written; from ``add`` and ``finish``, where the disk is full or the like. Finished samples are kept.
    """

    def __init__(
        self,
        directory: Path,
        point_id: str,
        *,
        overwrite: bool = False,
        made_by: Mapping[str, Any] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.point_id = point_id
        self.settings = settings or {}
        self.overwrite = overwrite
        self.complete = False
        self._places: dict[Key, _Place] = {}
        self._replaces = False
        self._lock = DirectoryLock(self.directory)
        self._origins = Origins(self.directory, made_by)

    @property
    def change(self) -> str:
        """In which ways added samples are made otherwise than those on disk, as far as is known; empty where in none."""
        return "" if self._replaces else self._origins.change()

    @property
    def done(self) -> frozenset[Key]:
        """Keys of the samples that are on disk."""
        return frozenset(self._places)

    def __enter__(self) -> PointWriter:
        with _refusals_told(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            try:
                self._remove_temporaries()
                self._read()
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._lock.release()

    def add(self, samples: Sequence[Sample]) -> None:
        """Put ``samples`` on disk, in any order; they are durable when this returns. One already there is left out."""
        strangers = {sample.point_id for sample in samples} - {self.point_id}
        if strangers:
            raise ValueError(f"samples of point {strangers.pop()} given to the writer of point {self.point_id}")
        lines = {sample.key: sample.line().encode() for sample in samples if sample.key not in self._places}
        if not lines:
            return
        with _refusals_told(self.directory):
            self._remove_replaced()
            self._begin()
            offset = _append(self.directory / PARTIAL, b"".join(lines.values()))
            if offset == 0:
                _sync_directory(self.directory)
        self.complete = False
        for key, line in lines.items():
            self._places[key] = _Place(PARTIAL, offset, len(line))
            offset += len(line)

    def samples(self) -> list[dict[str, Any]]:
        """What is on disk, ordered by ``(prompt_index, sample_index)``."""
        with _refusals_told(self.directory):
            return [json.loads(line) for line in self._lines()]

    def finish(self, summary: Mapping[str, object], manifest: Mapping[str, object]) -> None:
        """Make ``samples.jsonl`` of everything on disk, then ``summary.csv``, then ``manifest.json``.

        Args:
            summary: the one row of ``summary.csv``, as `summarise` makes it.
            manifest: provenance, timings, promise: whatever JSON holds. Status, point_id, versions, ``sha256`` and ``lines``
                of ``samples.jsonl`` are added.
        """
        with _refusals_told(self.directory):
            self._remove_replaced()
            self._settle()
            whole, checks = hashlib.sha256(), []
            for line in self._lines():
                whole.update(line)
                checks.append(hashlib.sha256(line).hexdigest()[:CHECK_DIGITS])
            row = csv_bytes(list(summary), [summary])
            own = {
                "status": "complete",
                "schema_version": SCHEMA_VERSION,
                "engine_version": ENGINE_VERSION,
                "point_id": self.point_id,
                "sha256": whole.hexdigest(),
                "lines": len(checks),
                "summary_sha256": hashlib.sha256(row).hexdigest(),
            }
            if self._origins.parts:
                own |= {"parts": self._origins.parts, "promise": bool(manifest.get("promise")) and self._origins.promise}
            text = json.dumps({**own, **manifest, **own, "line_sha256": "".join(checks)}, indent=2, allow_nan=False) + "\n"
            _replace(self.directory / SUMMARY, [row])
            _sync_directory(self.directory)
            _replace(self.directory / MANIFEST, [text.encode()])
            for name in (PARTIAL, ORIGINS):
                (self.directory / name).unlink(missing_ok=True)
            _sync_directory(self.directory)
        self.complete = True

    def _read(self) -> None:
        """Find the whole lines of both files, and cut a torn one off."""
        manifest = read_manifest(self.directory)
        if manifest is None and (self.directory / MANIFEST).exists():
            log.warning("%s is damaged; it is written again", self.directory / MANIFEST)
        stored = "" if manifest is None else str(manifest.get("line_sha256", ""))
        checks = {stored[i : i + CHECK_DIGITS] for i in range(0, len(stored), CHECK_DIGITS)}
        owners = set() if manifest is None else {manifest.get("point_id")}
        digest = hashlib.sha256()
        damaged: dict[str, list[int]] = {SAMPLES: [], PARTIAL: []}
        torn_from = None
        for name, places in damaged.items():
            for number, (offset, line) in enumerate(_scan(self.directory / name), start=1):
                sample = _parse(line)
                if sample is not None:
                    owners.add(sample["point_id"] if sample["schema_version"] == SCHEMA_VERSION else None)
                changed = False
                if name == SAMPLES:
                    digest.update(line)
                    changed = manifest is not None and hashlib.sha256(line).hexdigest()[:CHECK_DIGITS] not in checks
                if sample is not None and not changed:
                    key = sample["prompt_index"], sample["sample_index"]
                    self._places.setdefault(key, _Place(name, offset, len(line)))
                elif name == PARTIAL and not line.endswith(b"\n"):
                    torn_from = offset
                else:
                    places.append(number)
            if name == SAMPLES and damaged[SAMPLES] and not owners:
                owners.add(None)
        if owners - {self.point_id}:
            self._refuse_or_replace(owners)
            return
        if torn_from is not None:
            log.info("%s: dropped a half-written last line", self.directory / PARTIAL)
            with os.fdopen(open_file(self.directory / PARTIAL, os.O_WRONLY), "wb") as file:
                file.truncate(torn_from)
        self._origins.read(manifest, self._places)
        intact = manifest is not None and digest.hexdigest() == manifest.get("sha256")
        self._report(manifest, intact, damaged)
        self.complete = (
            manifest is not None
            and intact
            and manifest.get("status") == "complete"
            and self._has_summary(manifest)
            and all(place.file == SAMPLES for place in self._places.values())
        )
        if self.complete:
            for name in (PARTIAL, ORIGINS):
                (self.directory / name).unlink(missing_ok=True)

    def _has_summary(self, manifest: Mapping[str, Any]) -> bool:
        """Whether ``summary.csv`` is as it was finished; version 0.1 kept no hash of it, there its row must fit the samples."""
        path = self.directory / SUMMARY
        try:
            with open_to_read(path) as file:
                data = file.read()
        except FileNotFoundError:
            return False
        if "summary_sha256" in manifest:
            intact = bool(hashlib.sha256(data).hexdigest() == manifest["summary_sha256"])
        else:
            intact = data.endswith(b"\n") and _counts(data) == [str(manifest.get("lines"))]
        if not intact:
            log.warning("%s was changed after it was finished; it is written again", path)
        return intact

    def _refuse_or_replace(self, owners: set[Any]) -> None:
        """The directory holds something else: an error, unless the user wants it replaced."""
        if not self.overwrite:
            other = next(iter(owners - {self.point_id}))
            what = "samples that are not this version's"
            if other is not None:
                what = f"another point ({self._differing(other) or f'{other}, this is {self.point_id}'})"
            raise ResultsError(
                "name", str(self.directory), f"holds {what}; give another name, or overwrite=true to replace what is there"
            )
        self._places.clear()
        self._replaces = True

    def _differing(self, other: str) -> str:
        """The settings that the point in the directory does not share with this one, with both values, as far as is known."""
        lines = (line for name in (SAMPLES, PARTIAL) for _, line in _scan(self.directory / name))
        samples = (sample for sample in map(_parse, lines) if sample is not None and sample["point_id"] == other)
        there = {**(read_manifest(self.directory) or {}), **next(samples, {})}
        names = {"start": "prompt"}
        pairs = ((key, there.get(names.get(key, key.rpartition(".")[2]), here), here) for key, here in self.settings.items())
        differing = [f"{key}={shown(was)[:80]} there and {shown(here)[:80]} here" for key, was, here in pairs if was != here]
        return ", ".join(differing[:3])

    def _report(self, manifest: dict[str, Any] | None, intact: bool, damaged: Mapping[str, list[int]]) -> None:
        if manifest is not None and not intact:
            kept = sum(place.file == SAMPLES for place in self._places.values())
            log.warning(
                "%s was changed after it was finished: %d of its %s samples are as they were; the others are made again",
                self.directory / SAMPLES, kept, manifest.get("lines"),
            )  # fmt: skip
        for name, numbers in damaged.items():
            if numbers and not (name == SAMPLES and manifest is not None):
                which = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
                log.warning("%s: damaged lines (%s); their samples are made again", self.directory / name, which)

    def _remove_replaced(self) -> None:
        """Remove the other point's files, the claim that they are complete first."""
        if self._replaces:
            for name in (MANIFEST, SUMMARY, SAMPLES, PARTIAL, ORIGINS):
                (self.directory / name).unlink(missing_ok=True)
            self._origins.parts = []
            self._replaces = False

    def _begin(self) -> None:
        """Note what the samples are made by that come now; without a sync, as a new file of each point would cost one."""
        if (data := self._origins.begin(self._places)) is not None:
            path = self.directory / ORIGINS
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
            with os.fdopen(open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                file.write(data)
            os.replace(temporary, path)

    def _remove_manifest(self) -> None:
        """Before the file it describes changes: without a manifest the point is unfinished, never wrong."""
        manifest = self.directory / MANIFEST
        if manifest.exists():
            manifest.unlink()
            _sync_directory(self.directory)

    def _remove_temporaries(self) -> None:
        """Remove what a killed process had not finished writing."""
        for name in os.listdir(self.directory):
            if name.endswith(TEMPORARY) and name.startswith((f".{SAMPLES}.", f".{SUMMARY}.", f".{MANIFEST}.", f".{ORIGINS}.")):
                (self.directory / name).unlink(missing_ok=True)

    def _settle(self) -> None:
        """Make ``samples.jsonl`` hold every line, in order; where a file already does, it is not written again."""
        samples, partial = self.directory / SAMPLES, self.directory / PARTIAL
        if self._is_ordered(SAMPLES):
            return
        if self._is_ordered(PARTIAL):
            self._remove_manifest()
            os.replace(partial, samples)
        else:
            with contextlib.closing(self._lines()) as lines:
                temporary = _write_temporary(samples, lines)
            self._remove_manifest()
            os.replace(temporary, samples)
        offset = 0
        for key in sorted(self._places):
            length = self._places[key].length
            self._places[key] = _Place(SAMPLES, offset, length)
            offset += length

    def _is_ordered(self, name: str) -> bool:
        """Whether file ``name`` holds exactly the lines of all samples, in order."""
        offset = 0
        for key in sorted(self._places):
            place = self._places[key]
            if place.file != name or place.offset != offset:
                return False
            offset += place.length
        path = self.directory / name
        return path.exists() and path.stat().st_size == offset

    def _lines(self) -> Generator[bytes, None, None]:
        """The lines of all samples, in order."""
        with contextlib.ExitStack() as stack:
            names = {place.file for place in self._places.values()}
            files = {name: stack.enter_context(open(self.directory / name, "rb")) for name in names}
            for key in sorted(self._places):
                place = self._places[key]
                files[place.file].seek(place.offset)
                yield files[place.file].read(place.length)


class DirectoryLock:
    """One process at a time in a directory; the system frees the lock when its process ends, however it ends.

    The lock is on an open file, so one that a killed process left behind locks nothing. It is removed on release.

    Args:
        directory: what the lock is on.
        name: of the file: `LOCK` for a run directory, `SWEEP_LOCK` for that of a sweep.
    """

    def __init__(self, directory: Path, name: str = LOCK) -> None:
        self.directory = directory
        self._name = name
        self._file: BinaryIO | None = None

    def acquire(self) -> None:
        """Take the lock, or raise `ResultsError` at once where another has it."""
        path = self.directory / self._name
        while True:
            file = os.fdopen(open_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "a+b", buffering=0)
            try:
                if not _try_lock(file):
                    raise self._taken(file)
                # Whoever held it before may have removed this file between our opening and locking it.
                current = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
            except FileNotFoundError:
                current = False
            except BaseException:
                file.close()
                raise
            if current:
                break
            file.close()
        self._file = file
        with contextlib.suppress(OSError):  # only words for the other's error message; the disk may be full
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())

    def release(self) -> None:
        """Give the lock back; nothing where it is not held."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.directory / self._name)
            self._file.close()
            self._file = None

    def _taken(self, file: BinaryIO) -> ResultsError:
        file.seek(0)
        holder = file.read(200).decode(errors="replace") or "another process"
        return ResultsError("name", str(self.directory), f"in use by {holder}; wait until it is done, or give another name")

    def __enter__(self) -> DirectoryLock:
        with _refusals_told(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.release()


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
    with _refusals_told(path):
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        for file in files:
            for _, line in _scan(file):
                sample = _parse(line)
                if sample is not None:
                    samples.append(sample)
                elif line.endswith(b"\n") or file.name != PARTIAL:
                    damaged += 1
    if path.is_dir():
        samples = [sample for _, sample in sorted({_key(sample): sample for sample in samples}.items())]
    return samples, damaged


def read_manifest(directory: str | Path) -> dict[str, Any] | None:
    """What ``manifest.json`` of a run directory says; None where there is none or it is damaged."""
    try:
        with open_to_read(Path(directory) / MANIFEST) as file:
            manifest = json.loads(file.read())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return manifest if isinstance(manifest, dict) else None


def summarise(settings: Mapping[str, object], samples: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """The row of ``summary.csv``: ``settings``, then counts, and means and standard deviations over the samples.

    Args:
        settings: the point's own columns, in their order.
        samples: lines of ``samples.jsonl``.

    Returns:
        ``settings``; ``num_prompts``, ``num_samples`` (over all prompts); ``finish_length``, ``finish_stop``, ``finish_eot``,
        ``finish_overflow``; ``prompt_tokens`` and ``completion_tokens`` (sums); ``logprob_mean``, ``logprob_std`` and the
        same for ``sampler_logprob`` and ``entropy`` in nats, over the samples that have one: the standard deviation with
        n - 1, as pandas has it. None where there are too few.
    """
    reasons = Counter(sample["finish_reason"] for sample in samples)
    row = dict(settings)
    row["num_prompts"] = len({sample["prompt_index"] for sample in samples})
    row["num_samples"] = len(samples)
    row.update({f"finish_{reason}": reasons[reason] for reason in FINISH_REASONS})
    for count in ("prompt_tokens", "completion_tokens"):
        row[count] = sum(sample[count] for sample in samples)
    for name in ("logprob", "sampler_logprob", "entropy"):
        values = [float(sample[f"{name}_mean"]) for sample in samples if sample[f"{name}_mean"] is not None]
        # fsum is exact, so that the order of the samples does not show.
        mean = math.fsum(values) / len(values) if values else None
        row[f"{name}_mean"] = mean
        row[f"{name}_std"] = (
            None
            if mean is None or len(values) < 2
            else math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
        )
    return row


def write_sweep_csv(directory: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Replace ``sweep.csv``: a line for each of ``rows``, which need not have all of ``columns``, and have no other.

    It writes the whole file: with thousands of points call it every few seconds, not after every point.
    """
    atomic_write(Path(directory) / SWEEP, csv_bytes(columns, rows))


def atomic_write(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that whoever looks, whenever, finds the old file or the new one, whole.

    Durable when it returns. Raises `ResultsError` where it cannot be written; the old file is still there then.
    """
    path = Path(path)
    with _refusals_told(path):
        _replace(path, [data])
        _sync_directory(path.parent)


def _scan(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line of a file with its offset, the last one perhaps without a newline; nothing where there is no file."""
    with contextlib.suppress(FileNotFoundError), open_to_read(path) as file:
        offset = 0
        for line in file:
            yield offset, line
            offset += len(line)


def _parse(line: bytes) -> dict[str, Any] | None:
    """The sample that ``line`` holds; None where the line is torn or damaged."""
    if not (line.startswith(b"{") and line.endswith(b"}\n")):
        return None
    try:
        sample = json.loads(line)
        usable = (
            sample["sample_id"] == f"{sample['point_id']}-{sample['prompt_index']}-{sample['sample_index']}"
            and sample["completion_tokens"] == len(sample["token_ids"])
            and min(_key(sample)) >= 0
            and "schema_version" in sample
            and whole(sample)
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return sample if usable else None


def whole(sample: Any) -> bool:
    """Whether every field that is used anywhere is there, with its type and in its range."""
    try:
        return (
            type(sample["completion"])
            is type(sample["prompt"])
            is type(sample["prompt_id"])
            is type(sample["finish_reason"])
            is str
            and type(prompt := sample["prompt_index"]) is type(index := sample["sample_index"]) is int
            and 0 <= prompt < 2**63
            and 0 <= index < 2**63
            and type(read := sample["prompt_tokens"]) is type(seed := sample["seed"]) is int
            and 0 <= read < 2**63
            and 0 <= seed < 2**64
            and type(ids := sample["token_ids"]) is list
            and set(map(type, ids)) <= {int}
            and 0 <= min(ids, default=0) <= max(ids, default=0) < 2**31
            and sample["completion_tokens"] == len(ids)
            and all(
                (mean := sample[name]) is None or (type(mean) in (float, int) and -_GREATEST < mean < _GREATEST)
                for name in ("logprob_mean", "sampler_logprob_mean", "entropy_mean")
            )
        )
    except (KeyError, TypeError):
        return False


def _key(sample: Mapping[str, Any]) -> Key:
    return sample["prompt_index"], sample["sample_index"]


def _counts(data: bytes) -> list[str | None]:
    """The number of samples that each row of a ``summary.csv`` is of."""
    with contextlib.suppress(csv.Error, ValueError):
        return [row.get("num_samples") for row in csv_rows(io.StringIO(data.decode(), newline=""))]
    return []


def _append(path: Path, data: bytes) -> int:
    """Append whole lines and fsync; the offset at which they start. Where that fails, no torn line is left behind."""
    with os.fdopen(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab", buffering=0) as file:
        start = file.tell()
        try:
            _write_all(file, data)
            os.fsync(file.fileno())
        except BaseException:
            written = os.fstat(file.fileno()).st_size - start
            with contextlib.suppress(OSError):
                file.truncate(start + data.rfind(b"\n", 0, written) + 1)
            raise
    return start


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _replace(path: Path, chunks: Iterable[bytes]) -> None:
    os.replace(_write_temporary(path, chunks), path)


def _write_temporary(path: Path, chunks: Iterable[bytes]) -> Path:
    """Write and fsync a file beside ``path``; where that fails, nothing is left of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with open(temporary, "xb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable, where the system and the file system can."""
    if sys.platform == "win32":
        return
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
    finally:
        os.close(fd)


def _try_lock(file: BinaryIO) -> bool:
    """Lock an open file, without waiting; whether it is ours now."""
    try:
        if sys.platform == "win32":
            file.seek(1 << 30)  # far beyond what is read: on Windows a locked byte cannot be
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        _say_no_locks(os.fstat(file.fileno()).st_dev)
    return True


@cache
def _say_no_locks(_device: int) -> None:
    """Once for a file system, not for each of a thousand points."""
    log.warning("this file system has no locks; keep two processes from writing the same results yourself")


_NOT_HERE = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.EBADF, errno.EIO, 524}
"""What file systems answer that know no locks, or cannot sync a directory; 524 is NFS's own ENOTSUPP."""

_MENDS = {
    errno.ENOSPC: "free some space and give the same command again: finished samples are kept",
    errno.EDQUOT: "free some space and give the same command again: finished samples are kept",
    errno.EFBIG: "raise the file size limit (ulimit -f) and give the same command again: finished samples are kept",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EROFS: "choose a directory that can be written",
    errno.EACCES: "make it writable, or choose another directory",
    errno.EPERM: "make it writable, or choose another directory",
    errno.EEXIST: "a file is in the way: move it, or choose another directory",
    errno.ENOTDIR: "a file is in the way: move it, or choose another directory",
    errno.ENOENT: "give one that exists",
    errno.ELOOP: "a symbolic link is in the way: remove it, or choose another directory",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextlib.contextmanager
def _refusals_told(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses to do at ``path`` into one clear line."""
    try:
        yield
    except OSError as error:
        mend = _MENDS.get(error.errno or 0, "choose another directory")
        why = (error.strerror or str(error)).lower()
        raise ResultsError("name", str(path), f"{why}; {mend}") from error
