"""Write run directories: samples are durable as they finish, and a manifest never claims more than is on disk.

A point's samples are appended to ``samples.partial.jsonl``, with one fsync per batch. `PointWriter.finish` then writes
``samples.jsonl``, ``summary.csv`` and ``manifest.json``, in this order; each replaces its predecessor atomically and is on disk
before the next appears. So a process killed at any moment, or a machine that loses power, keeps every sample whose
`PointWriter.add` had returned, and a manifest that says complete exists only beside the files it describes.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..display import counted, get_logger
from ..errors import ResultsError, shown
from ..files import open_file, open_to_read
from ..records import ENGINE_VERSION, SCHEMA_VERSION, LineEncoder, Sample
from .csv_files import csv_bytes, csv_rows
from .durable import refusals_as_results_errors, replace, sync_directory
from .keyed_lines import KeyedLines, Place
from .lock import DirectoryLock
from .logprobs import line_of, lines_of, parsed
from .origins import Origins
from .reader import open_lines, parse_line, read_manifest
from .schema import LOGPROBS, LOGPROBS_PARTIAL, MANIFEST, ORIGINS, PARTIAL, SAMPLES, SUMMARY, TEMPORARY, Key, key_of

log = get_logger(__name__)

_REPLACED = tuple(f".{name}." for name in (SAMPLES, LOGPROBS, SUMMARY, MANIFEST, ORIGINS))
"""Prefixes of the names of temporary files."""

CHECK_DIGITS = 16
"""The number of hex digits of each line's sha256 in the manifest; they show which lines of a changed file are intact."""


class PointWriter:
    """The writer of one point's samples: it locks the directory, reads what is there, adds samples, and finishes the point.

    Inside the ``with`` block ``done`` has the keys ``(prompt_index, sample_index)`` of the samples on disk. ``complete`` says
    whether the point was finished, its files are unchanged since, and it has no partial samples. A complete point may be
    extended: add further samples and finish again. If a file was changed after it was finished, its unchanged lines still
    count. Memory grows by a key and a location per sample, not by its text. Only the lock's file stays open.

    Args:
        directory: the run directory; created if missing, and other files in it are not touched.
        point_id: the id that every sample carries.
        overwrite: replace the samples of another point, once the first sample of this one is on disk.
        made_by: what determines the bits of added samples, by name; recorded for each part of the samples.
        settings: the point's settings by the names users type, for the error if the directory contains another point.
        logprobs: the number of alternatives per token that ``logprobs.jsonl`` must have for a sample to count as done; 0:
            the file is ignored.

    Raises:
        ResultsError: on enter, if another process uses the directory, it contains another point, or it cannot be written;
            from ``add`` and ``finish``, if the disk is full or the like. Finished samples are kept.
    """

    def __init__(
        self,
        directory: Path,
        point_id: str,
        *,
        overwrite: bool = False,
        made_by: Mapping[str, Any] | None = None,
        settings: Mapping[str, object] | None = None,
        logprobs: int = 0,
    ) -> None:
        self.directory = Path(directory)
        self.point_id = point_id
        self.settings = settings or {}
        self.overwrite = overwrite
        self.complete = False
        self.logprobs = logprobs
        self._samples = KeyedLines(self.directory, SAMPLES, PARTIAL)
        self._logprobs = KeyedLines(self.directory, LOGPROBS, LOGPROBS_PARTIAL)
        self._encoder = LineEncoder()
        self._own: set[Key] = set()
        self._sums: tuple[str, str] | None = None
        self._replaces = False
        self._lock = DirectoryLock(self.directory)
        self._origins = Origins(self.directory, made_by)

    @property
    def change(self) -> str:
        """How added samples would differ in origin from those on disk, as far as known; empty if they would not."""
        return "" if self._replaces else self._origins.change()

    @property
    def done(self) -> frozenset[Key]:
        """The keys of the samples on disk."""
        whole = frozenset(self._samples.places)
        return whole & self._logprobs.places.keys() if self.logprobs else whole

    def __enter__(self) -> PointWriter:
        with refusals_as_results_errors(self.directory):
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

    def add(self, samples: Sequence[Sample], made_by: Mapping[str, Any] | None = None) -> None:
        """Write ``samples``, in any order; they are durable on return. Samples that are already on disk are skipped.

        ``made_by`` says what determined their bits; None: the writer's own.

        Raises:
            ResultsError: they cannot be written, or a sample that is generated again for its logprobs has other tokens.
            ValueError: a sample belongs to another point.
        """
        if others := {sample.point_id for sample in samples} - {self.point_id}:
            raise ValueError(f"samples of point {others.pop()} given to the writer of point {self.point_id}")
        lines = {
            sample.key: self._encoder.line(sample).encode() for sample in samples if sample.key not in self._samples.places
        }
        # Without the promise, a sample made again may differ, so its old log-probabilities are dropped.
        measured = {
            sample.key: line_of(sample)
            for sample in samples
            if self.logprobs and (sample.key in lines or sample.key not in self._logprobs.places)
        }
        if not lines and not measured:
            return
        with refusals_as_results_errors(self.directory):
            for sample in samples:
                if sample.key in measured and sample.key not in lines:
                    self._require_same(sample)
            self._remove_replaced()
            if measured:  # before the samples: a sample without them would be made again
                self._logprobs.append(measured)
            if lines:
                self._begin(lines, made_by)
                self._samples.append(lines)
                self._own |= lines.keys()
                self._sums = None
        self.complete = False

    def samples(self) -> list[dict[str, Any]]:
        """The samples on disk, ordered by ``(prompt_index, sample_index)``."""
        found: list[dict[str, Any]] = []
        with refusals_as_results_errors(self.directory):
            self._sums = self._read_lines(found.append)
        return found

    def finish(self, summary: Mapping[str, object], manifest: Mapping[str, object]) -> None:
        """Write ``samples.jsonl`` from everything on disk, then ``summary.csv``, then ``manifest.json``.

        Args:
            summary: the row of ``summary.csv``, from `summarise`.
            manifest: provenance, timings, promise, as JSON values. Status, point_id, versions, ``sha256`` and ``lines`` of
                ``samples.jsonl`` are added.
        """
        with refusals_as_results_errors(self.directory):
            self._remove_replaced()
            self._samples.settle(self._remove_manifest)
            if self.logprobs:
                self._logprobs.settle(lambda: None)
            whole, checks = self._sums or self._read_lines(lambda _: None)
            row = csv_bytes(list(summary), [summary])
            own = {
                "status": "complete",
                "schema_version": SCHEMA_VERSION,
                "engine_version": ENGINE_VERSION,
                "point_id": self.point_id,
                "sha256": whole,
                "lines": len(checks) // CHECK_DIGITS,
                "summary_sha256": hashlib.sha256(row).hexdigest(),
            }
            if self.logprobs:
                own |= {"logprobs": self.logprobs}
            self._origins.settle(self._samples.places)
            if self._origins.parts:
                own |= {"parts": self._origins.parts, "promise": bool(manifest.get("promise")) and self._origins.promise}
            text = json.dumps({**own, **manifest, **own, "line_sha256": checks}, indent=2, allow_nan=False) + "\n"
            replace(self.directory / SUMMARY, [row])
            sync_directory(self.directory)
            replace(self.directory / MANIFEST, [text.encode()])
            for name in (PARTIAL, ORIGINS, *((LOGPROBS_PARTIAL,) if self.logprobs else ())):
                (self.directory / name).unlink(missing_ok=True)
            sync_directory(self.directory)
        self.complete = True

    def _read_lines(self, take: Callable[[dict[str, Any]], object]) -> tuple[str, str]:
        """Pass every complete sample to ``take``, in order; return a hash of all lines, and the concatenated hashes of each."""
        whole, checks = hashlib.sha256(), []
        for key, line in self._samples.items():
            whole.update(line)
            checks.append(hashlib.sha256(line).hexdigest()[:CHECK_DIGITS])
            if (sample := parse_line(line, own=key in self._own)) is not None:
                take(sample)
        return whole.hexdigest(), "".join(checks)

    def _read(self) -> None:
        """Find the complete lines of both files, and remove a torn last line."""
        manifest = read_manifest(self.directory)
        if manifest is None and (self.directory / MANIFEST).exists():
            log.warning("%s is damaged and will be written again", self.directory / MANIFEST)
        stored = "" if manifest is None else str(manifest.get("line_sha256", ""))
        checks = {stored[i : i + CHECK_DIGITS] for i in range(0, len(stored), CHECK_DIGITS)}
        owners = set() if manifest is None else {manifest.get("point_id")}
        digest = hashlib.sha256()
        damaged: dict[str, list[int]] = {SAMPLES: [], PARTIAL: []}
        torn_from = None
        for name, places in damaged.items():
            offset = end = 0
            for number, (line, sample) in enumerate(open_lines(self.directory / name, open_to_read), start=1):
                offset, end = end, end + len(line)
                if sample is not None:
                    owners.add(sample["point_id"] if sample["schema_version"] == SCHEMA_VERSION else None)
                changed = False
                if name == SAMPLES:
                    digest.update(line)
                    changed = manifest is not None and hashlib.sha256(line).hexdigest()[:CHECK_DIGITS] not in checks
                if sample is not None and not changed:
                    self._samples.places.setdefault(key_of(sample), Place(name, offset, len(line)))
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
            self._cut(PARTIAL, torn_from)
        if self.logprobs:
            self._read_logprobs()
        self._origins.read(manifest, self._samples.places)
        intact = manifest is not None and digest.hexdigest() == manifest.get("sha256")
        self._report(manifest, intact, damaged)
        self.complete = (
            manifest is not None
            and intact
            and manifest.get("status") == "complete"
            and self._has_summary(manifest)
            and self._samples.finished
            and self._logprobs.finished
        )
        if self.complete:
            for name in (PARTIAL, ORIGINS):
                (self.directory / name).unlink(missing_ok=True)

    def _read_logprobs(self) -> None:
        """Find complete lines of log-probabilities with enough alternatives, the last of each sample."""
        for name in (LOGPROBS, LOGPROBS_PARTIAL):
            end = damaged = 0
            for line in lines_of(self.directory / name, open_to_read):
                offset, end = end, end + len(line)
                found = parsed(line)
                if found is None and name == LOGPROBS_PARTIAL and not line.endswith(b"\n"):
                    self._cut(name, offset)
                elif found is None:
                    damaged += 1
                elif found["point_id"] == self.point_id and found["alternatives"] >= self.logprobs:
                    self._logprobs.places[key_of(found)] = Place(name, offset, len(line))
            if damaged:
                what = counted(damaged, "damaged line; it is made again", "damaged lines; they are made again")
                log.warning("%s: %s", self.directory / name, what)

    def _cut(self, name: str, offset: int) -> None:
        log.info("%s: dropped a half-written last line", self.directory / name)
        with os.fdopen(open_file(self.directory / name, os.O_WRONLY), "wb") as file:
            file.truncate(offset)

    def _require_same(self, sample: Sample) -> None:
        """Check that a sample made again for its log-probabilities has the same tokens as the one on disk."""
        if json.loads(self._samples.line(sample.key))["token_ids"] != list(sample.token_ids):
            what = (
                "was made on another kind of machine or with another torch, and its samples come out differently here, so that"
                " their log-probabilities cannot be added; give another name"
            )
            raise ResultsError("name", str(self.directory), what)

    def _has_summary(self, manifest: Mapping[str, Any]) -> bool:
        """Whether ``summary.csv`` is unchanged; version 0.1 stored no hash of it, so its row must match the samples."""
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
            log.warning("%s was changed after it was finished and will be written again", path)
        return intact

    def _refuse_or_replace(self, owners: set[Any]) -> None:
        """The directory contains something else: raise, unless the user wants to replace it."""
        if not self.overwrite:
            other = next(iter(owners - {self.point_id}))
            what = "samples of another version"
            if other is not None:
                what = f"another point ({self._differing(other) or f'{other}, this is {self.point_id}'})"
            raise ResultsError(
                "name", str(self.directory), f"contains {what}; give another name, or overwrite=true to replace it"
            )
        self._samples.places.clear()
        self._replaces = True

    def _differing(self, other: str) -> str:
        """The settings in which the directory's point differs from this one, with both values, as far as known."""
        samples = (
            sample
            for name in (SAMPLES, PARTIAL)
            for _, sample in open_lines(self.directory / name, open_to_read)
            if sample is not None and sample["point_id"] == other
        )
        there = {**(read_manifest(self.directory) or {}), **next(samples, {})}
        names = {"start": "prompt"}
        pairs = ((key, there.get(names.get(key, key.rpartition(".")[2]), here), here) for key, here in self.settings.items())
        differing = [f"{key}={shown(was)[:80]} there and {shown(here)[:80]} here" for key, was, here in pairs if was != here]
        return ", ".join(differing[:3])

    def _report(self, manifest: dict[str, Any] | None, intact: bool, damaged: Mapping[str, list[int]]) -> None:
        if manifest is not None and not intact:
            kept = sum(place.file == SAMPLES for place in self._samples.places.values())
            log.warning(
                "%s was changed after it was finished: %d of its %s samples are intact; the others are made again",
                self.directory / SAMPLES, kept, manifest.get("lines"),
            )  # fmt: skip
        for name, numbers in damaged.items():
            if numbers and not (name == SAMPLES and manifest is not None):
                which = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
                log.warning("%s: damaged lines (%s); their samples are made again", self.directory / name, which)

    def _remove_replaced(self) -> None:
        """Remove the other point's files, beginning with the manifest that says they are complete."""
        if self._replaces:
            for name in (MANIFEST, SUMMARY, SAMPLES, PARTIAL, LOGPROBS, LOGPROBS_PARTIAL, ORIGINS):
                (self.directory / name).unlink(missing_ok=True)
            self._origins.parts = []
            self._replaces = False

    def _begin(self, keys: Collection[Key], made_by: Mapping[str, Any] | None) -> None:
        """Record what makes the next samples; without a sync, which would cost one for each new point."""
        data = self._origins.begin(self._samples.places)
        if made_by is not None:
            data = self._origins.add(keys, made_by) or data
        if data is not None:
            path = self.directory / ORIGINS
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
            with os.fdopen(open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                file.write(data)
            os.replace(temporary, path)

    def _remove_manifest(self) -> None:
        """Remove the manifest before the files it describes change: without one, the point is unfinished, never wrong."""
        manifest = self.directory / MANIFEST
        if manifest.exists():
            manifest.unlink()
            sync_directory(self.directory)

    def _remove_temporaries(self) -> None:
        """Remove files that a killed process had not finished writing."""
        for name in os.listdir(self.directory):
            if name.endswith(TEMPORARY) and name.startswith(_REPLACED):
                (self.directory / name).unlink(missing_ok=True)


def _counts(data: bytes) -> list[str | None]:
    """The number of samples in each row of a ``summary.csv``."""
    with contextlib.suppress(csv.Error, ValueError):
        return [row.get("num_samples") for row in csv_rows(io.StringIO(data.decode(), newline=""))]
    return []
