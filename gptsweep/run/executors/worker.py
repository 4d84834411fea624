"""The worker: it keeps a model open, takes rows and returns finished rows. Everything it exchanges can be pickled."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import psutil

from ...engine.backend import Backend, BackendProgress, Backends, OnStep, Provenance, Workload
from ...models.files.tokenizers import Tokenizer
from ...records import Completion, DeviceSettings, ModelSource, Prefix, Row
from ..rows import Finished
from .local import LocalExecutor
from .shards import Work

SNAPSHOT_SECONDS = 5.0
"""How often a worker reports the state of its unfinished rows, from which they resume if it is lost."""
_TOGETHER_SECONDS = 0.05
"""Rows that finish within this time are sent together."""


class WorkerError(Exception):
    """An error in a worker whose original exception is not available. ``trace`` is the text of its traceback, or empty."""

    def __init__(self, what: str, trace: str = "") -> None:
        super().__init__(what, trace)
        self.trace = trace

    def __str__(self) -> str:
        return str(self.args[0])


class RemoteTracebackError(Exception):
    """The text of a traceback from another process. As the cause of an error it appears in the log."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class TorchInWorkers:
    """Unpickles as `TorchBackends` in a worker. The driver opens no models, so it need not import torch."""

    def __reduce__(self) -> tuple[Callable[[], Backends], tuple[()]]:
        return _torch_backends, ()

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        """Raise `NotImplementedError`: only workers resolve devices."""
        raise NotImplementedError("workers resolve devices")

    def open(self, source: ModelSource, settings: DeviceSettings) -> tuple[Backend, Tokenizer]:
        """Raise `NotImplementedError`: only workers open models."""
        raise NotImplementedError("workers open models")


def _torch_backends() -> Backends:
    from ...engine.torch_backend import TorchBackends  # imported late: it imports torch, which the driver does not need

    return TorchBackends()


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of a worker in a form that can be pickled, with its traceback as text."""

    error: Exception
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Wrap ``error``; one that cannot be pickled is replaced by a `WorkerError` with its message."""
        trace = "".join(traceback.format_exception(error))
        bare: Exception | None = None
        if isinstance(error, Exception):
            try:
                bare = pickle.loads(pickle.dumps(error))
            except Exception:  # its own methods can raise anything
                bare = None
        if bare is None or type(bare) is not type(error):
            bare = WorkerError(f"{type(error).__name__}: {_text(error)}")
        return cls(bare, trace)

    def raised(self) -> Exception:
        """Return the error with the worker's traceback as its cause."""
        self.error.__cause__ = RemoteTracebackError(self.trace)
        return self.error


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # even its __str__ can fail
        return "an error without a message"


@dataclass(frozen=True, slots=True)
class Facts:
    """The properties of a model that is open in a worker: a `Backend` that cannot run rows."""

    vocab_size: int
    block_size: int | None
    extends_to: int | None
    overflow: str
    end_tokens: tuple[int, ...]
    fingerprint: str
    promise: bool
    max_rows: int | None
    provenance: Provenance

    @classmethod
    def of(cls, backend: Backend) -> Facts:
        """Collect the properties of an open model."""
        names = ("vocab_size", "block_size", "extends_to", "overflow", "end_tokens", "fingerprint", "promise", "max_rows")
        return cls(**{name: getattr(backend, name) for name in names}, provenance=backend.provenance)

    def resumes(self, prefix: Prefix) -> bool:
        """Implement `Backend.resumes`."""
        if prefix.stream is None:
            return True
        from ...engine.sampler import stream_at  # imported late: it imports torch, which few sweeps need here

        try:
            stream_at(prefix.stream)
        except RuntimeError:
            return False
        return True

    def run(self, rows: Iterable[Row], workload: Workload, on_step: OnStep | None) -> Iterator[Completion]:
        """Raise `NotImplementedError`: rows run only in workers."""
        raise NotImplementedError("its rows run in workers")


@dataclass(frozen=True, slots=True)
class Opened:
    """The result of opening a model: its properties and tokenizer, or the failure."""

    source: ModelSource
    settings: DeviceSettings
    model: tuple[Facts, Tokenizer] | Failure


@dataclass(frozen=True, slots=True)
class Place:
    """A worker's host and process id. The process's start time tells it from a later process with the same id."""

    host: str
    pid: int
    started: float

    @classmethod
    def here(cls) -> Place:
        """Return the place of this process."""
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A worker's report.

    Args:
        opened: the model that it opened since the last report, or its failure.
        finished: the rows that it finished since the last report, with their numbers.
        unfinished: a snapshot of the unfinished rows, sent only now and then; None: no new snapshot.
        failure: the error that ended its batch; it has dropped the batch's unfinished rows.
        busy: whether it runs a batch.
        in_flight: number of rows being decoded.
        tokens: number of tokens sampled since the worker started.
        windows: number of context windows read again since the worker started.
        window_seconds: seconds per window; None: not known.
        idle_seconds: seconds since its last step, if it is busy; else 0.
    """

    opened: Opened | None = None
    finished: tuple[tuple[int, Finished], ...] = ()
    unfinished: tuple[tuple[int, Prefix], ...] | None = None
    failure: Failure | None = None
    busy: bool = False
    in_flight: int = 0
    tokens: int = 0
    windows: int = 0
    window_seconds: float | None = None
    idle_seconds: float = 0.0


@dataclass(slots=True)
class _Unsent:
    """The contents of the next report."""

    opened: Opened | None = None
    finished: list[tuple[int, Finished]] = field(default_factory=list)
    failure: Failure | None = None


class _Stopped(BaseException):
    """Ends a batch between two steps."""


class Worker:
    """Opens models and runs rows in a thread of its own, so that it can report at any time.

    Args:
        backends: loads models.
    """

    def __init__(self, backends: Backends) -> None:
        self._executor = LocalExecutor(backends)
        self._changed = threading.Condition()
        self._to_open: deque[tuple[ModelSource, DeviceSettings]] = deque()
        self._given: Work | None = None
        self._unsent = _Unsent()
        self._begun: dict[int, int] = {}
        """The number of each row that has been started, by the ``id()`` of the row."""
        self._progress = BackendProgress()
        self._snapshot: tuple[tuple[int, Prefix], ...] | None = None
        self._before = self._windows_before = 0
        self._busy = self._stopping = False
        self._stops = 0
        self._active_at = self._snapshot_at = time.monotonic()
        threading.Thread(target=self._work, name="engine", daemon=True).start()

    def place(self) -> Place:
        """Return the worker's host and process."""
        return Place.here()

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        """Implement `Executor.resolve`."""
        return self._executor.resolve(settings)

    def open(self, source: ModelSource, settings: DeviceSettings) -> None:
        """Start opening a model. A report says when it is open."""
        with self._changed:
            self._to_open.append((source, settings))
            self._changed.notify_all()

    def give(self, work: Work) -> None:
        """Start decoding rows. The rows given before must be done."""
        with self._changed:
            self._given = work
            self._changed.notify_all()

    def report(self, seconds: float) -> Report:
        """Wait for a reason to report: at once if a model was opened or a batch failed, soon after rows finish.

        Otherwise, report after ``seconds``, or once `stop` is called in another thread.
        """
        until = time.monotonic() + seconds
        with self._changed:
            stops = self._stops
            while not (self._unsent.opened or self._unsent.failure or self._stops > stops):
                left = until - time.monotonic()
                if self._unsent.finished:
                    left = min(left, _TOGETHER_SECONDS)
                if left <= 0 or not self._changed.wait(left):
                    break
                if self._unsent.finished:
                    until = min(until, time.monotonic() + _TOGETHER_SECONDS)
            return self._report()

    def stop(self, seconds: float) -> Report:
        """End the batch between two steps, drop its rows, and report their state. Wait at most ``seconds`` for the step."""
        with self._changed:
            self._stopping = self._busy
            self._stops += 1
            self._given = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._stopping, seconds)
            return self._report()

    def _report(self) -> Report:
        unsent, self._unsent = self._unsent, _Unsent()
        unfinished, self._snapshot = self._snapshot, None
        return Report(
            opened=unsent.opened,
            finished=tuple(unsent.finished),
            unfinished=unfinished,
            failure=unsent.failure,
            busy=self._busy,
            in_flight=self._progress.rows_in_flight if self._busy else 0,
            tokens=self._before + self._progress.tokens,
            windows=self._windows_before + self._progress.windows,
            window_seconds=self._progress.window_seconds,
            idle_seconds=time.monotonic() - self._active_at if self._busy else 0.0,
        )

    def _work(self) -> None:
        """Run the thread's loop."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._to_open or self._given)
                self._active_at = time.monotonic()
                to_open, work = (self._to_open.popleft(), None) if self._to_open else (None, self._given)
                if work is not None:
                    self._given, self._busy = None, True
            if to_open is not None:
                self._open(*to_open)
            elif work is not None:
                failure = self._decode(work)
                with self._changed:
                    self._unsent.failure = failure
                    self._before += self._progress.tokens
                    self._windows_before += self._progress.windows
                    self._progress = BackendProgress(window_seconds=self._progress.window_seconds)
                    self._busy = self._stopping = False
                    self._changed.notify_all()

    def _open(self, source: ModelSource, settings: DeviceSettings) -> None:
        found: tuple[Facts, Tokenizer] | Failure
        try:
            model = self._executor.open(source, settings)
            found = Facts.of(model.backend), model.tokenizer
        except BaseException as error:
            found = Failure.of(error)
        with self._changed:
            self._unsent.opened = Opened(source, settings, found)
            self._changed.notify_all()

    def _decode(self, work: Work) -> Failure | None:
        """Run rows; return the failure if an error ends the run."""
        self._begun = {}
        model = self._executor.last
        try:
            if model is None:
                raise RuntimeError("no model is open")
            for completion in model.backend.run(self._rows(work), work.workload, self._on_step):
                finished = Finished.of(model.tokenizer, completion)
                with self._changed:
                    number = self._begun.pop(id(completion.row))
                    self._unsent.finished.append((number, finished))
                    self._active_at = time.monotonic()
                    self._changed.notify_all()
            if self._begun:
                raise RuntimeError(f"the backend ended without {len(self._begun):,} rows")
        except _Stopped:
            return None
        except BaseException as error:
            return Failure.of(error)
        return None

    def _rows(self, work: Work) -> Iterator[Row]:
        for number, row in work.rows:
            with self._changed:
                self._begun[id(row)] = number
            yield row

    def _on_step(self, progress: BackendProgress) -> None:
        with self._changed:
            self._progress = progress
            self._active_at = time.monotonic()
            if self._stopping or self._active_at - self._snapshot_at >= SNAPSHOT_SECONDS:
                self._snapshot_at = self._active_at
                self._snapshot = tuple(
                    (self._begun[id(row)], prefix)
                    for row, prefix in progress.unfinished()
                    if id(row) in self._begun and prefix.token_ids
                )
            if self._stopping:
                raise _Stopped
