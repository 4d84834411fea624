"""Backends without a model: completions are looked up in a row's settings. They can be pickled, and import no torch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gptsweep.engine.backend import BackendProgress, OnStep, Provenance, Workload
from gptsweep.models.files.tokenizers import CharTokenizer
from gptsweep.records import Completion, DeviceSettings, ModelSource, Prefix, Row

LETTERS = "abcdefgh"
HOW = Provenance(dtype="float32", device="cpu", arithmetic="float32", threads=1, made_by={"table": 1}, versions={"table": "1"})


def nothing(row: Row) -> None:
    """The default ``before_row``: do nothing."""


def pause(seconds: float, row: Row) -> None:
    """Take ``seconds`` before a row."""
    time.sleep(seconds)


class Held:
    """Take ``seconds`` before a row; while ``place`` contains a file, let a worker run only three rows until it is removed.

    Another file allows another three rows.
    """

    def __init__(self, place: Path, seconds: float) -> None:
        self.place, self.seconds = place, seconds
        self.files: list[str] = []
        self.rows = 0

    def __call__(self, row: Row) -> None:
        time.sleep(self.seconds)
        files = os.listdir(self.place)
        if files != self.files:
            self.files, self.rows = files, 0
        self.rows += 1
        while files and self.rows > 3 and os.listdir(self.place) == files:
            time.sleep(0.02)


def scripted(place: Path, seconds: float, row: Row) -> None:
    """Take ``seconds`` before a row; directories in ``place`` give some rows a special behaviour.

    With ``held``, sample 5 of seed 3 waits, and creates ``waits``. With ``memory``, sample 1 of seed 2 exceeds the memory,
    twice: the first time Python raises an error, the second time the process is killed, as by Ray's memory monitor.
    """
    time.sleep(seconds)
    while (place / "held").is_dir() and (row.noise_key, row.sample_index) == (3, 5):
        (place / "waits").touch()
        time.sleep(0.02)
    if (memory := place / "memory").is_dir() and (row.noise_key, row.sample_index) == (2, 1):
        times = len(list(memory.iterdir()))
        (memory / str(times)).touch()
        if times == 0:
            raise MemoryError
        if times == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def broken(row: Row) -> None:
    """Fail at the rows of seed 2, with an error that cannot be pickled."""

    class OwnError(Exception):
        pass

    if row.noise_key == 2:
        raise OwnError("row two")


@dataclass
class Table:
    """A backend without a model: it looks up the tokens of a row in its settings, one row after another.

    ``before_row`` is called with each row before it is decoded, and may raise or never return. ``forgets`` are the numbers of
    rows that it yields no completion for.
    """

    before_row: Callable[[Row], None] = nothing
    forgets: tuple[int, ...] = ()
    decoded: list[Row] = field(default_factory=list)
    vocab_size = len(LETTERS)
    block_size: int | None = None
    extends_to: int | None = None
    overflow = "crop"
    end_tokens: tuple[int, ...] = ()
    fingerprint = "table"
    promise = True
    max_rows: int | None = None
    provenance = HOW

    def resumes(self, prefix: Prefix) -> bool:
        return prefix.stream is None

    def run(self, rows: Iterable[Row], workload: Workload, on_step: OnStep | None) -> Iterator[Completion]:
        progress = BackendProgress(tokens_total=workload.new_tokens)
        for number, row in enumerate(rows):
            begun = row.prefix or Prefix(token_ids=((row.noise_key + row.sample_index) % len(LETTERS),), logprob=-1.0)
            progress.unfinished = lambda row=row, begun=begun: [(row, begun)]  # type: ignore[misc]
            progress.rows_in_flight = 1
            if on_step is not None:
                on_step(progress)
            self.before_row(row)
            if number in self.forgets:
                continue
            self.decoded.append(row)
            first, wanted = row.noise_key + row.sample_index, row.sampling.max_new_tokens
            ids = (*begun.token_ids, *((first + i) % len(LETTERS) for i in range(len(begun.token_ids), wanted)))
            progress.tokens += wanted
            progress.unfinished = list
            yield Completion(row=row, token_ids=ids, finish_reason="length", logprob_mean=-1.0,
                             sampler_logprob_mean=-1.0, entropy_mean=1.0)  # fmt: skip
            if on_step is not None:
                on_step(progress)


@dataclass
class Tables:
    """Opens one table, or raises."""

    table: Table = field(default_factory=Table)
    error: Exception | None = None

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        return "float32", "cpu"

    def open(self, source: ModelSource, settings: DeviceSettings) -> tuple[Table, CharTokenizer]:
        if self.error is not None:
            raise self.error
        return self.table, CharTokenizer(LETTERS)


@dataclass
class ShippedTables(Tables):
    """Opens a table only after its letters were shipped, as an array of numbers."""

    arrived: bool = False

    def pack(self, source: ModelSource) -> tuple[str, Iterator[np.ndarray]]:
        return LETTERS[:3], iter([np.frombuffer(LETTERS[3:].encode(), np.uint8)])

    def receive(self, source: ModelSource, outline: object, weights: Sequence[np.ndarray]) -> None:
        self.arrived = f"{outline}{weights[0].tobytes().decode()}" == LETTERS

    def open(self, source: ModelSource, settings: DeviceSettings) -> tuple[Table, CharTokenizer]:
        assert self.arrived
        return super().open(source, settings)
