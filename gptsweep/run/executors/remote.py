"""Run rows in other processes: give shards to workers, collect their samples, and recover when a worker is lost.

A `Pool` starts workers, communicates with them and ends them; this module does not depend on Ray or SLURM. Workers may come and
go at any time. Samples that have arrived here are done. The unfinished rows of a lost worker resume on another from the last
snapshot.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ...display import counted, get_logger
from ...engine.backend import Backend, BackendProgress, windows_read
from ...errors import describe
from ...models.files.tokenizers import Tokenizer
from ...records import DeviceSettings, ModelSource, Prefix
from ..rows import Finished, OpenModel, Plan, SampleKey
from . import MadeElsewhere, OnStep, Result
from .shards import TRIES, Ledger, Work
from .worker import Facts, Failure, Opened, Report, WorkerError

log = get_logger(__name__)

SHARDS_PER_WORKER = 8
_POLL_SECONDS = 0.25
_STOP_SECONDS = 5.0
_SPEED_SECONDS = 1.0
_LOG_WAITING_SECONDS = 10.0
"""After this time without a worker, the log says what the run is waiting for."""
_EACH_SHOWN = 8
"""Up to this many workers are displayed with their own speeds; for more, only the lowest and the highest are."""


@dataclass(frozen=True, slots=True)
class Gone:
    """Says that a worker has ended, or can no longer be reached.

    Args:
        why: the reason, for the log.
        counts: whether this counts as a failed attempt of its rows; not if they cannot be the cause.
    """

    why: str
    counts: bool = True


class Pool(Protocol):
    """Starts workers, each with a unique name, and communicates with them. Only `resolve`, `poll` and `stop` may wait."""

    several: bool
    """Whether a worker takes several shards at a time."""
    may_grow: bool
    """Whether the number of workers may grow later."""

    @property
    def waiting_for(self) -> str:
        """What must happen before a worker can start, for the log."""

    def wanted(self) -> int:
        """Return how many workers there should be."""

    def pending(self) -> str:
        """Return how many workers are still to start, and why, for the display, without ``, ``; empty: none, or not known."""

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        """Resolve ``settings`` on a worker; see `Executor.resolve`."""

    def open(self, source: ModelSource, settings: DeviceSettings) -> None:
        """Make every worker open a model, including those that start later. Reports say when it is open."""

    def give(self, worker: str, work: Work) -> None:
        """Send rows to a worker."""

    def poll(self, seconds: float) -> list[tuple[str, Report | Gone]]:
        """Wait up to ``seconds`` for messages, and return them by worker. Workers that are gone are replaced."""

    def stop(self, seconds: float) -> list[tuple[str, Report | Gone]]:
        """Stop the batches of all workers and return their last messages. A worker that takes over ``seconds`` is killed."""

    def kill(self, worker: str) -> None:
        """Kill a worker, even if it does not respond."""

    def refuse(self, worker: str) -> None:
        """Kill a worker, and do not replace it."""

    def close(self) -> None:
        """End all workers."""


@dataclass(slots=True)
class _Worker:
    """The state of a worker that has reported. ``same`` says whether its samples have the bits of the model's provenance."""

    model: Facts | None = None
    same: bool = True
    report: Report = field(default_factory=Report)
    seen_at: float = field(default_factory=time.monotonic)
    unfinished_tokens: int = 0
    speed: float | None = None
    measured: tuple[float, int] | None = None

    def update(self, report: Report) -> tuple[int, int]:
        """Record a report, and return the numbers of tokens and windows since the last one."""
        now = time.monotonic()
        # The counts of a restarted worker begin at 0.
        tokens = max(0, report.tokens - self.report.tokens)
        windows = max(0, report.windows - self.report.windows)
        self.report, self.seen_at = report, now
        self.unfinished_tokens += tokens
        then, before = self.measured or (now, report.tokens)
        if now - then >= _SPEED_SECONDS:
            self.speed = (report.tokens - before) / (now - then)
        if self.measured is None or now - then >= _SPEED_SECONDS:
            self.measured = now, report.tokens
        return tokens, windows


class RemoteExecutor:
    """Runs rows in the workers of a pool.

    Args:
        pool: starts the workers.
        shards: how many shards to cut a plan into; None: `SHARDS_PER_WORKER` per worker.
        heartbeat_s: a worker that is silent or makes no progress for this many seconds is killed, and its rows are retried.
        strict: whether to refuse workers whose samples may differ in bits from those of the first worker.
    """

    def __init__(self, pool: Pool, *, shards: int | None = None, heartbeat_s: float = 300.0, strict: bool = False) -> None:
        self.pool, self.shards, self.heartbeat_s, self.strict = pool, shards, heartbeat_s, strict
        self._requested: tuple[ModelSource, DeviceSettings] | None = None
        self._model: OpenModel | None = None
        self._workers: dict[str, _Worker] = {}
        self._tokens = self._windows = self._restarted = 0
        self._logged_differences, self._logged_waits = set[str](), set[str]()
        self._polled_at = self._no_worker_since = time.monotonic()

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        """Implement `Executor.resolve`."""
        return self.pool.resolve(settings)

    def close(self) -> None:
        """End all workers."""
        self.pool.close()

    def open(self, source: ModelSource, settings: DeviceSettings) -> OpenModel:
        """Implement `Executor.open`, and wait until one worker has opened the model.

        Raises:
            WorkerError: several workers ended while they opened it.
        """
        if self._model is not None and self._requested == (source, settings):
            return self._model
        self._requested, self._model = (source, settings), None
        for worker in self._workers.values():
            worker.model = None
        self.pool.open(source, settings)
        ended = 0
        while self._model is None:
            for _, message in self._poll():
                if isinstance(message, Gone):
                    ended += message.counts
                    if ended >= TRIES:
                        raise WorkerError(f"{counted(ended, 'worker')} ended while the model was being opened: {message.why}")
                elif self._model is None and message.opened is not None and isinstance(message.opened.model, Failure):
                    raise message.opened.model.raised()
        return self._model

    def run(self, model: OpenModel, plan: Plan, on_step: OnStep | None = None) -> Iterator[tuple[SampleKey, Result]]:
        """Implement `Executor.run`."""
        workers = max(1, self.pool.wanted())
        batch = _Batch(plan, Ledger(plan, model.backend.block_size, self.shards or SHARDS_PER_WORKER * workers), model)
        tokens_before, windows_before = self._tokens, self._windows
        for worker in self._workers.values():
            worker.unfinished_tokens = 0

        def step() -> None:
            if on_step is not None:
                batch.progress.tokens, batch.progress.windows = self._tokens - tokens_before, self._windows - windows_before
                batch.progress.workers = self._display()
                batch.expect(self._workers.values())
                on_step(batch.progress, batch.unfinished)

        stopped = False
        try:
            while batch.ledger.left:
                self._hand_out(batch.ledger)
                for name, message in self._poll():
                    yield from self._take(batch, name, message)
                try:
                    step()
                except KeyboardInterrupt:
                    stopped = True
                    for name, message in self._stop():
                        yield from self._take(batch, name, message)
                    step()  # to write what has just arrived to disk
                    raise
        finally:
            if not stopped:
                for name, message in self._stop():
                    if isinstance(message, Report) and name in self._workers:
                        batch.note(message, self._workers[name])

    def _take(self, batch: _Batch, name: str, message: Report | Gone) -> Iterator[tuple[SampleKey, Result]]:
        """Apply a worker's message to the rows of a batch, and yield the samples that it finishes."""
        worker = self._workers.get(name)
        if isinstance(message, Gone) and message.counts:
            yield from batch.lose(name, WorkerError(f"the worker {name} ended: {message.why}"))
        elif isinstance(message, Gone) or worker is None:
            batch.ledger.withdraw(name)
        else:
            batch.note(message, worker)
            for number, finished in message.finished:
                yield from batch.finish(number, finished, worker)
            if message.failure is not None:
                error = message.failure.raised()
                log.warning("the worker %s dropped its rows: %s", name, describe(error))
                worker.unfinished_tokens = 0
                yield from batch.lose(name, error)

    def _hand_out(self, ledger: Ledger) -> None:
        """Give shards to the idle workers."""
        workers = max(1, self.pool.wanted())
        for name, worker in self._workers.items():
            if worker.model is None or not ledger.waiting:
                continue
            alone = workers == 1 and not self.pool.may_grow
            if work := ledger.take(name, workers, several=self.pool.several, alone=alone, resumes=worker.same):
                self.pool.give(name, work)

    def _poll(self) -> list[tuple[str, Report | Gone]]:
        """Collect the workers' messages. Kill workers that are silent or stuck for too long, and report them as gone."""
        messages = self.pool.poll(_POLL_SECONDS)
        now = time.monotonic()
        if now - self._polled_at > 2 * _POLL_SECONDS + 1:  # this process was suspended, not the workers
            for worker in self._workers.values():
                worker.seen_at += now - self._polled_at
        self._polled_at = now
        for name, message in messages:
            self._note(name, message)
        for name, worker in list(self._workers.items()):
            if max(now - worker.seen_at, worker.report.idle_seconds) > self.heartbeat_s:
                why = f"it gave no sign of life for {self.heartbeat_s:g} s"
                log.warning("ending the worker %s: %s", name, why)
                self.pool.kill(name)
                del self._workers[name]
                self._restarted += 1
                messages.append((name, Gone(why)))
        self._log_waiting(now)
        return messages

    def _note_model(self, name: str, worker: _Worker, opened: Opened) -> None:
        """Compare the model that a worker opened with that of the first worker.

        Raises:
            WorkerError: no worker is left.
        """
        if isinstance(opened.model, Failure):
            if self._model is not None:
                log.warning("the worker %s cannot open the model: %s", name, describe(opened.model.error))
                self._refuse(name)
            return
        facts, tokenizer = opened.model
        if self._model is None:
            self._model = OpenModel(opened.source, opened.settings, facts, tokenizer)
        worker.model = facts
        if differing := _differing(_identity(facts, tokenizer), _identity(self._model.backend, self._model.tokenizer)):
            log.error("ignoring the worker %s: its model differs (%s)", name, differing)
            self._refuse(name)
        elif differing := _differing(facts.provenance.made_by, self._model.backend.provenance.made_by):
            worker.same = False
            if differing not in self._logged_differences:
                self._logged_differences.add(differing)
                done = (
                    "so they are ignored (hydra.launcher.strict=true)" if self.strict else "so bits may differ (promise: false)"
                )
                log.warning("some workers compute in another environment (%s), %s", differing, done)
            if self.strict:
                self._refuse(name)

    def _refuse(self, name: str) -> None:
        del self._workers[name]
        self.pool.refuse(name)
        if self.pool.wanted() == 0:
            raise WorkerError("no worker is left: all were refused; see the log for the reasons")

    def _stop(self) -> Iterator[tuple[str, Report | Gone]]:
        """Stop the workers' batches, and yield their last messages."""
        for name, message in self.pool.stop(_STOP_SECONDS):
            self._note(name, message)
            yield name, message

    def _note(self, name: str, message: Report | Gone) -> None:
        """Record a worker's message."""
        if isinstance(message, Gone):
            log.warning("the worker %s ended (%s)", name, message.why)
            self._restarted += self._workers.pop(name, None) is not None
            return
        worker = self._workers.setdefault(name, _Worker())
        tokens, windows = worker.update(message)
        self._tokens += tokens
        self._windows += windows
        if message.opened is not None and (message.opened.source, message.opened.settings) == self._requested:
            self._note_model(name, worker, message.opened)

    def _log_waiting(self, now: float) -> None:
        if self._workers:
            self._no_worker_since = now
            self._logged_waits.clear()
        elif now - self._no_worker_since > _LOG_WAITING_SECONDS and self.pool.waiting_for not in self._logged_waits:
            self._logged_waits.add(self.pool.waiting_for)  # log it only once
            log.info("waiting for a worker: %s", self.pool.waiting_for)

    def _display(self) -> str:
        """Describe the workers, such as ``3 workers (1 restarted; 1 pending: Resources) of 31 + 30 + 33 tokens/s``."""
        speeds = [worker.speed for worker in self._workers.values() if worker.speed is not None]
        if len(speeds) > _EACH_SHOWN:
            each = f" of {min(speeds):,.0f} to {max(speeds):,.0f} tokens/s"
        else:
            each = f" of {' + '.join(f'{speed:,.0f}' for speed in speeds)} tokens/s" if speeds else ""
        notes = "; ".join(filter(None, [f"{self._restarted:,} restarted" if self._restarted else "", self.pool.pending()]))
        return f"{counted(len(self._workers), 'worker')}{f' ({notes})' if notes else ''}{each}"


class _Batch:
    """The progress of one plan: which rows are done, and the state of the others."""

    def __init__(self, plan: Plan, ledger: Ledger, model: OpenModel) -> None:
        self.plan, self.ledger = plan, ledger
        self._block_size = model.backend.block_size
        self._tokens_left, self._windows_left = plan.workload.new_tokens, plan.workload.windows
        self.progress = BackendProgress(tokens_total=self._tokens_left, windows_total=self._windows_left)

    def note(self, report: Report, worker: _Worker) -> None:
        """Keep the state of a worker's unfinished rows, if others may resume them: no sample mixes two kinds of machine."""
        if worker.same:
            for number, prefix in report.unfinished or ():
                self.ledger.note(number, prefix)
        if report.window_seconds is not None:
            self.progress.window_seconds = report.window_seconds

    def finish(self, number: int, finished: Finished, worker: _Worker) -> Iterator[tuple[SampleKey, Result]]:
        """Yield the samples of a finished row, unless it was finished before."""
        row = self.ledger.rows[number]
        worker.unfinished_tokens = max(0, worker.unfinished_tokens - len(finished.token_ids) + row.begun)
        if not self.ledger.finish(number):
            return
        self._settle(number)
        for place, key in self.plan.recipients[number]:
            sample = self.plan.tasks[place].sample(key, finished)
            assert worker.model is not None
            yield (place, key), sample if worker.same else MadeElsewhere(sample, worker.model.provenance.made_by)

    def lose(self, name: str, error: Exception) -> Iterator[tuple[SampleKey, Result]]:
        """Queue a lost worker's rows again, and yield ``error`` for the samples whose last attempt this was."""
        for number in self.ledger.lose(name):
            self._settle(number)
            for recipient in self.plan.recipients[number]:
                yield recipient, error

    def unfinished(self) -> Iterator[tuple[SampleKey, Prefix]]:
        """Yield the last known state of the unfinished rows."""
        for number, prefix in self.ledger.prefixes.items():
            yield self.plan.recipients[number][0], prefix

    def expect(self, workers: Collection[_Worker]) -> None:
        """Update the progress: the rows in flight, and the expected totals."""
        progress = self.progress
        progress.rows_in_flight = sum(worker.report.in_flight for worker in workers)
        begun = sum(worker.unfinished_tokens for worker in workers)
        progress.tokens_total = progress.tokens + max(0, self._tokens_left - begun)
        progress.windows_total = progress.windows + self._windows_left

    def _settle(self, number: int) -> None:
        row = self.ledger.rows[number]
        most = row.sampling.max_new_tokens
        self._tokens_left -= most - row.begun
        self._windows_left -= windows_read(row.sampling, len(row.prompt_ids), most, self._block_size, row.begun)


def _identity(model: Backend, tokenizer: Tokenizer) -> dict[str, object]:
    """Return what `point_id` and the end of a row depend on, which must be the same for all workers."""
    names = ("vocab_size", "block_size", "extends_to", "overflow", "end_tokens")
    how = model.provenance
    return {
        "weights": model.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        **{name: getattr(model, name) for name in names},
        "dtype": how.dtype,
        "device": how.device,
        "arithmetic": how.arithmetic,
    }


def _differing(these: Mapping[str, object], those: Mapping[str, object]) -> str:
    """Describe the differences, such as ``processor A / B; torch 1 / 2``; empty if there are none."""
    names = dict.fromkeys([*those, *these])
    return "; ".join(f"{name} {those.get(name)} / {these.get(name)}" for name in names if those.get(name) != these.get(name))
