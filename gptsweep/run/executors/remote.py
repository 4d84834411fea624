"""Rows that run in other processes: the loop that hands shards to workers, takes their samples, and goes on when one is lost.

A `Pool` knows how workers are started, spoken to and ended; this module knows no Ray and no SLURM. Workers may come and go at
any time. What has arrived here is done; what a lost worker had begun goes on from its last snapshot, elsewhere.
"""

from __future__ import annotations

import math
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
_NEWS_SECONDS = 0.25
_STOP_SECONDS = 5.0
_SPEED_SECONDS = 1.0
_PATIENCE_SECONDS = 10.0
"""Without a worker for so long, the log says what is being waited for."""
_EACH_SHOWN = 8
"""So many workers are shown with a speed each, more with the least and the greatest."""


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker has ended, or cannot be reached any more.

    Args:
        why: for the log.
        counts: whether the rows that it had count as begun in vain; not where they cannot have been the reason.
    """

    why: str
    counts: bool = True


class Pool(Protocol):
    """Starts workers, each known by a name that is used once, and speaks to them. None of its methods waits for a worker."""

    several: bool
    """Whether a worker takes several shards at once."""
    may_grow: bool
    """Whether there may be more workers later than are wanted now."""
    waiting_for: str
    """What has to be there before a worker can start, for the log."""

    def wanted(self) -> int:
        """How many workers there are to be."""

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        """As `Executor.resolve`, where the workers are."""

    def open(self, source: ModelSource, settings: DeviceSettings) -> None:
        """Have every worker open a model, those included that start later."""

    def give(self, worker: str, work: Work) -> None:
        """Hand rows to a worker."""

    def news(self, seconds: float) -> list[tuple[str, Report | Gone]]:
        """What workers say, within ``seconds``; in place of one that is gone another is started."""

    def stop(self, seconds: float) -> list[tuple[str, Report | Gone]]:
        """End what all workers do, within ``seconds``; one that does not stop is ended itself, and gone."""

    def kill(self, worker: str) -> None:
        """End a worker that may not listen."""

    def refuse(self, worker: str) -> None:
        """End a worker, and start no other in its place."""

    def close(self) -> None:
        """End all workers."""


@dataclass(slots=True)
class _Worker:
    """What is known of a worker that was heard of. ``same``: its samples have the bits that the model's provenance promises."""

    model: Facts | None = None
    same: bool = True
    report: Report = field(default_factory=Report)
    heard: float = field(default_factory=time.monotonic)
    unfinished_tokens: int = 0
    speed: float | None = None
    measured: tuple[float, int] | None = None

    def hear(self, report: Report) -> tuple[int, int]:
        """Take note of a report; how many tokens and windows it has more than the last."""
        now = time.monotonic()
        # A worker that begins anew counts from nothing.
        tokens = max(0, report.tokens - self.report.tokens)
        windows = max(0, report.windows - self.report.windows)
        self.report, self.heard = report, now
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
        pool: starts them.
        shards: how many shards to cut a plan into; None: several a worker.
        heartbeat_s: a worker that gives no sign of life for so many seconds is ended, and what it had begins again.
        strict: whether workers are refused whose samples may have other bits than those of the first.
    """

    def __init__(self, pool: Pool, *, shards: int | None = None, heartbeat_s: float = 300.0, strict: bool = False) -> None:
        self.pool, self.shards, self.heartbeat_s, self.strict = pool, shards, heartbeat_s, strict
        self._asked: tuple[ModelSource, DeviceSettings] | None = None
        self._model: OpenModel | None = None
        self._workers: dict[str, _Worker] = {}
        self._tokens = self._windows = self._restarted = 0
        self._said: set[str] = set()
        self._looked = self._alone_since = time.monotonic()

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        """As `Executor.resolve`."""
        return self.pool.resolve(settings)

    def close(self) -> None:
        """End all workers."""
        self.pool.close()

    def open(self, source: ModelSource, settings: DeviceSettings) -> OpenModel:
        """As `Executor.open`. It waits until a worker has the model open."""
        if self._model is not None and self._asked == (source, settings):
            return self._model
        self._asked, self._model = (source, settings), None
        for worker in self._workers.values():
            worker.model = None
        self.pool.open(source, settings)
        ended = 0
        while self._model is None:
            for _, news in self._news():
                if isinstance(news, Gone):
                    ended += news.counts
                    if ended >= TRIES:
                        raise WorkerError(f"{counted(ended, 'worker')} ended while the model was being opened: {news.why}")
                elif self._model is None and news.opened is not None and isinstance(news.opened.model, Failure):
                    raise news.opened.model.raised()
        return self._model

    def run(self, model: OpenModel, plan: Plan, on_step: OnStep | None = None) -> Iterator[tuple[SampleKey, Result]]:
        """As `Executor.run`."""
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
                for name, news in self._news():
                    yield from self._take(batch, name, news)
                try:
                    step()
                except KeyboardInterrupt:
                    stopped = True
                    for name, news in self._stop():
                        yield from self._take(batch, name, news)
                    step()  # so that what has just arrived is on disk, too
                    raise
        finally:
            if not stopped:
                for name, news in self._stop():
                    if isinstance(news, Report) and name in self._workers:
                        batch.note(news, self._workers[name])

    def _take(self, batch: _Batch, name: str, news: Report | Gone) -> Iterator[tuple[SampleKey, Result]]:
        """What news of a worker mean for the rows of a batch."""
        worker = self._workers.get(name)
        if isinstance(news, Gone) and news.counts:
            yield from batch.lose(name, WorkerError(f"the worker {name} ended: {news.why}"))
        elif isinstance(news, Gone) or worker is None:
            batch.ledger.withdraw(name)
        else:
            batch.note(news, worker)
            for number, finished in news.finished:
                yield from batch.finish(number, finished, worker)
            if news.failure is not None:
                error = news.failure.raised()
                log.warning("the worker %s gave up what it had begun: %s", name, describe(error))
                worker.unfinished_tokens = 0
                yield from batch.lose(name, error)

    def _hand_out(self, ledger: Ledger) -> None:
        """Give shards to workers that have room for them."""
        workers = max(1, self.pool.wanted())
        for name, worker in self._workers.items():
            if worker.model is None or not ledger.waiting:
                continue
            alone = workers == 1 and not self.pool.may_grow
            work = ledger.take(name, workers, several=self.pool.several, alone=alone, resumes=worker.same)
            if work is not None:
                self.pool.give(name, work)

    def _news(self) -> list[tuple[str, Report | Gone]]:
        """What workers say. One that is silent for too long, or does not get on, is ended and counts as gone."""
        news = self.pool.news(_NEWS_SECONDS)
        now = time.monotonic()
        if now - self._looked > 2 * _NEWS_SECONDS + 1:  # this process stood still itself
            for worker in self._workers.values():
                worker.heard += now - self._looked
        self._looked = now
        for name, each in news:
            self._note(name, each)
        for name, worker in list(self._workers.items()):
            if max(now - worker.heard, worker.report.idle_seconds) > self.heartbeat_s:
                why = f"it gave no sign of life for {self.heartbeat_s:g} s"
                log.warning("the worker %s is ended: %s", name, why)
                self.pool.kill(name)
                del self._workers[name]
                self._restarted += 1
                news.append((name, Gone(why)))
        self._say_waiting(now)
        return news

    def _note_model(self, name: str, worker: _Worker, opened: Opened) -> None:
        """Hold the model that a worker opened against that of the first."""
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
            log.error("the worker %s is not used: its model is another (%s)", name, differing)
            self._refuse(name)
        elif differing := _differing(facts.provenance.made_by, self._model.backend.provenance.made_by):
            worker.same = False
            if differing not in self._said:
                self._said.add(differing)
                done = (
                    "which are not used (hydra.launcher.strict=true)" if self.strict else "so bits may differ (promise: false)"
                )
                log.warning("samples are made otherwise by some workers (%s), %s", differing, done)
            if self.strict:
                self._refuse(name)

    def _refuse(self, name: str) -> None:
        del self._workers[name]
        self.pool.refuse(name)
        if self.pool.wanted() == 0:
            raise WorkerError("no worker is left: all were refused, for reasons that the log has")

    def _stop(self) -> Iterator[tuple[str, Report | Gone]]:
        """End what workers do, and hear from them a last time. Those that had to be ended get no more rows."""
        for name, news in self.pool.stop(_STOP_SECONDS):
            self._note(name, news)
            yield name, news

    def _note(self, name: str, news: Report | Gone) -> None:
        """Take note of what a worker says of itself."""
        if isinstance(news, Gone):
            log.warning("the worker %s ended (%s)", name, news.why)
            self._restarted += self._workers.pop(name, None) is not None
            return
        worker = self._workers.setdefault(name, _Worker())
        tokens, windows = worker.hear(news)
        self._tokens += tokens
        self._windows += windows
        if news.opened is not None and (news.opened.source, news.opened.settings) == self._asked:
            self._note_model(name, worker, news.opened)

    def _say_waiting(self, now: float) -> None:
        if self._workers:
            self._alone_since = now
        elif now - self._alone_since > _PATIENCE_SECONDS:
            self._alone_since = math.inf  # once
            log.info("waiting for a worker: %s", self.pool.waiting_for)

    def _display(self) -> str:
        """``4 workers, 1 restarted, 31 + 30 + 33 + 29 tokens/s``."""
        speeds = [worker.speed for worker in self._workers.values() if worker.speed is not None]
        if len(speeds) > _EACH_SHOWN:
            each = f" of {min(speeds):,.0f} to {max(speeds):,.0f} tokens/s"
        else:
            each = f" of {' + '.join(f'{speed:,.0f}' for speed in speeds)} tokens/s" if speeds else ""
        restarted = f" ({self._restarted:,} restarted)" if self._restarted else ""
        return f"{counted(len(self._workers), 'worker')}{restarted}{each}"


class _Batch:
    """The rows of one plan: which are done, and what others have so far."""

    def __init__(self, plan: Plan, ledger: Ledger, model: OpenModel) -> None:
        self.plan, self.ledger = plan, ledger
        self._block_size = model.backend.block_size
        self._tokens_left, self._windows_left = plan.workload.new_tokens, plan.workload.windows
        self.progress = BackendProgress(tokens_total=self._tokens_left, windows_total=self._windows_left)

    def note(self, report: Report, worker: _Worker) -> None:
        """Keep what a worker's unfinished rows have, if it can go on elsewhere: no sample is made by two kinds of machine."""
        if worker.same:
            for number, prefix in report.unfinished or ():
                self.ledger.note(number, prefix)
        if report.window_seconds is not None:
            self.progress.window_seconds = report.window_seconds

    def finish(self, number: int, finished: Finished, worker: _Worker) -> Iterator[tuple[SampleKey, Result]]:
        """The samples that a finished row makes, if it was not finished before."""
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
        """The samples that fail as a worker lost their row for the last time."""
        for number in self.ledger.lose(name):
            self._settle(number)
            for recipient in self.plan.recipients[number]:
                yield recipient, error

    def unfinished(self) -> Iterator[tuple[SampleKey, Prefix]]:
        """What rows have that were begun, as far as it was heard of."""
        for number, prefix in self.ledger.prefixes.items():
            yield self.plan.recipients[number][0], prefix

    def expect(self, workers: Collection[_Worker]) -> None:
        """Count what is in flight, and what is left to do."""
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
    """What `point_id` and a row's end take from a model: no two may differ in it."""
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
    """``processor A / B; torch 1 / 2``; empty where nothing differs."""
    names = dict.fromkeys([*those, *these])
    return "; ".join(f"{name} {those.get(name)} / {these.get(name)}" for name in names if those.get(name) != these.get(name))
