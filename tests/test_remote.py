"""Rows that run in workers that fail in every way, here threads: nothing lost, nothing twice, the same bytes."""

from __future__ import annotations

import io
import itertools
import json
import logging
import pickle
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeps import save_checkpoint
from table_sweeps import files, jobs, settle
from tables import HOW, LETTERS, Table, Tables, broken

from gptsweep.engine.backend import Backends
from gptsweep.engine.torch_backend import TorchBackends
from gptsweep.errors import Interrupted, ResultsError
from gptsweep.models.files.tokenizers import CharTokenizer
from gptsweep.records import DeviceSettings, ModelSource, Point, Prefix, Prompt, Row, Sampling
from gptsweep.run.executors.local import LocalExecutor
from gptsweep.run.executors.remote import Gone, RemoteExecutor
from gptsweep.run.executors.shards import TRIES, Ledger, Work, row_cost, shards_of, stream_of
from gptsweep.run.executors.worker import Failure, Report, Worker, WorkerError
from gptsweep.run.jobs import Job
from gptsweep.run.rows import OpenModel, Plan, Task, encoded


class Threads:
    """A pool of workers in threads.

    Args:
        backends: makes those of worker 1, 2, ….
        workers: how many.
        dies: whether a worker, by number, ends at this report, which is then lost.
    """

    several = True
    may_grow = False
    waiting_for = "a thread"

    def __init__(
        self, backends: Callable[[int], Backends], workers: int = 2, dies: Callable[[int, Report], bool] = lambda *_: False
    ) -> None:
        self.backends, self.workers, self.dies = backends, workers, dies
        self.alive: dict[str, Worker] = {}
        self.numbers = itertools.count(1)
        self.model: tuple[ModelSource, DeviceSettings] | None = None
        self.given: list[Work] = []

    def wanted(self) -> int:
        return self.workers

    def pending(self) -> str:
        return ""

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        return "float32", "cpu"

    def open(self, source: ModelSource, settings: DeviceSettings) -> None:
        self.model = source, settings
        for worker in self.alive.values():
            worker.open(source, settings)
        self._fill()

    def give(self, worker: str, work: Work) -> None:
        self.given.append(work)
        self.alive[worker].give(pickle.loads(pickle.dumps(work)))

    def poll(self, seconds: float) -> list[tuple[str, Report | Gone]]:
        self._fill()
        found: list[tuple[str, Report | Gone]] = []
        for name, worker in list(self.alive.items()):
            report = pickle.loads(pickle.dumps(worker.report(0.002)))
            if self.dies(int(name), report):
                del self.alive[name]
                found.append((name, Gone("it was shot")))
            else:
                found.append((name, report))
        return found

    def stop(self, seconds: float) -> list[tuple[str, Report | Gone]]:
        return [(name, worker.stop(seconds)) for name, worker in self.alive.items()]

    def kill(self, worker: str) -> None:
        self.alive.pop(worker, None)

    def refuse(self, worker: str) -> None:
        self.workers -= 1
        self.kill(worker)

    def close(self) -> None:
        self.alive.clear()

    def _fill(self) -> None:
        while len(self.alive) < self.workers:
            number = next(self.numbers)
            worker = Worker(self.backends(number))
            if self.model is not None:
                worker.open(*self.model)
            self.alive[str(number)] = worker


def test_a_sweep_in_workers_has_the_bytes_of_one_here(tmp_path: Path, whole: dict[str, bytes]) -> None:
    pool = Threads(lambda _: Tables())
    executor = RemoteExecutor(pool)
    assert all(outcome.error is None for outcome in settle(tmp_path / "there", executor))
    assert files(tmp_path / "there") == whole
    assert all(json.loads(path.read_text())["promise"] for path in tmp_path.glob("there/*/manifest.json"))
    assert len(pool.given) > 1
    settle(tmp_path / "more", executor)
    assert next(pool.numbers) == 3, "no worker was started for the second batch"


@pytest.mark.parametrize("losses", [1, 4])
def test_workers_that_die_lose_no_sample_and_make_none_twice(tmp_path: Path, whole: dict[str, bytes], losses: int) -> None:
    decoded: list[Table] = []

    def tables(number: int) -> Tables:
        decoded.append(Table())
        return Tables(decoded[-1])

    received: dict[int, int] = {}

    def dies(number: int, report: Report) -> bool:
        received[number] = received.get(number, 0) + len(report.finished)
        return number <= losses and report.busy and received[number] >= 1

    for outcome in settle(tmp_path / "there", RemoteExecutor(Threads(tables, dies=dies), shards=9)):
        assert outcome.error is None
    assert files(tmp_path / "there") == whole


def test_workers_that_are_preempted_again_and_again_fail_no_row(tmp_path: Path, whole: dict[str, bytes]) -> None:
    class Preempting(Threads):
        def poll(self, seconds: float) -> list[tuple[str, Report | Gone]]:
            return [
                (name, Gone(message.why, counts=False) if isinstance(message, Gone) else message)
                for name, message in super().poll(seconds)
            ]

    pool = Preempting(lambda _: Tables(), workers=1, dies=lambda number, _: number <= min(3 * TRIES, len(pool.given)))
    assert all(outcome.error is None for outcome in settle(tmp_path / "there", RemoteExecutor(pool, shards=1)))
    assert files(tmp_path / "there") == whole
    assert next(pool.numbers) > 3 * TRIES


def test_a_row_that_always_fails_takes_its_point_with_it_and_no_other(
    tmp_path: Path, whole: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    executor = RemoteExecutor(Threads(lambda _: Tables(Table(before_row=broken))))
    outcomes = settle(tmp_path / "there", executor)
    assert [type(outcome.error) for outcome in outcomes] == [type(None), WorkerError, type(None)]
    assert "OwnError: row two" in str(outcomes[1].error)
    there = files(tmp_path / "there")
    assert there == {name: text for name, text in whole.items() if name in there}
    assert len(there) == 2
    (shown,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert shown.exc_info is not None
    assert "in broken" in logging.Formatter().formatException(shown.exc_info), "the worker's traceback is in the log"
    settle(tmp_path / "there", LocalExecutor(Tables()))
    assert files(tmp_path / "there") == whole


@pytest.mark.parametrize("answers", [True, False])
def test_a_worker_that_hangs_is_replaced(tmp_path: Path, whole: dict[str, bytes], answers: bool) -> None:
    """Whether only its batch stands still, or the whole process."""
    end = threading.Event()

    class Silent(Threads):
        def poll(self, seconds: float) -> list[tuple[str, Report | Gone]]:
            messages = super().poll(seconds)
            return messages if answers or not self.given else [(name, message) for name, message in messages if name != "1"]

    def tables(number: int) -> Tables:
        return Tables(Table(before_row=lambda row: None if number != 1 or row.sample_index != 1 else hang()))

    def hang() -> None:
        end.wait()

    try:
        executor = RemoteExecutor(Silent(tables), heartbeat_s=0.5)
        assert all(outcome.error is None for outcome in settle(tmp_path / "there", executor))
    finally:
        end.set()
    assert files(tmp_path / "there") == whole


def other(number: int) -> Tables:
    """The machines of workers are of two kinds."""
    table = Table()
    table.provenance = replace(HOW, made_by={"table": 1 + (number == 2)})
    return Tables(table)


def test_samples_of_two_kinds_of_machine_are_told_apart(
    tmp_path: Path, whole: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    pool = Threads(other)
    settle(tmp_path / "there", RemoteExecutor(pool, shards=9))
    assert files(tmp_path / "there") == whole, "of the same bits here, as it happens"
    manifests = [json.loads(path.read_text()) for path in tmp_path.glob("there/*/manifest.json")]
    kinds = {part["made_by"]["table"] for manifest in manifests for part in manifest["parts"]}
    assert kinds == {1, 2}
    for manifest in manifests:
        of_two = len(manifest["parts"]) == 2
        assert manifest["promise"] is not of_two
        assert len({part["made_by"]["table"] for part in manifest["parts"]}) == len(manifest["parts"])
    (message,) = [record.message for record in caplog.records if "another environment" in record.message]
    assert "table 1 / 2" in message


def test_strict_refuses_another_kind_of_machine_at_once_and_on_the_way(tmp_path: Path, whole: dict[str, bytes]) -> None:
    pool = Threads(other)
    settle(tmp_path / "there", RemoteExecutor(pool, strict=True), strict=True)
    assert files(tmp_path / "there") == whole
    assert pool.wanted() == 1
    assert all(json.loads(path.read_text())["promise"] for path in tmp_path.glob("there/*/manifest.json"))
    more = jobs(tmp_path / "there", num_samples=7)
    outcomes = settle(tmp_path / "there", LocalExecutor(other(2)), more, strict=True)
    assert [type(outcome.error) for outcome in outcomes] == [ResultsError] * 3
    assert "table 1, now 2" in str(outcomes[0].error)
    assert files(tmp_path / "there") == whole
    assert all(outcome.error is None for outcome in settle(tmp_path / "there", LocalExecutor(other(2)), more))


def test_a_worker_with_other_weights_is_not_used(tmp_path: Path, whole: dict[str, bytes]) -> None:
    def tables(number: int) -> Tables:
        table = Table()
        table.fingerprint = "table" if number == 1 else "another"
        return Tables(table)

    pool = Threads(tables)
    settle(tmp_path / "there", RemoteExecutor(pool))
    assert files(tmp_path / "there") == whole
    assert pool.wanted() == 1


def test_ctrl_c_stops_the_workers_and_keeps_what_is_there(tmp_path: Path, whole: dict[str, bytes]) -> None:
    begun = itertools.count()

    def interrupt(row: Row) -> None:
        if next(begun) == 7:
            signal.raise_signal(signal.SIGINT)
            while not pool.alive["1"]._stopping:
                time.sleep(0.01)

    tables = [Table(before_row=interrupt), Table()]
    pool = Threads(lambda number: Tables(tables[number - 1]), workers=1)
    with pytest.raises(Interrupted):
        settle(tmp_path / "there", RemoteExecutor(pool))
    kept = sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("there/*/samples*.jsonl"))
    assert kept == len(tables[0].decoded) < 18, "what was finished is on disk, and nothing went on"
    settle(tmp_path / "there", RemoteExecutor(Threads(lambda _: Tables(tables[1]))))
    assert len(tables[1].decoded) == 18 - kept
    assert files(tmp_path / "there") == whole


def test_a_model_that_cannot_be_opened_fails_its_points_with_the_workers_error(tmp_path: Path) -> None:
    error = ResultsError("model", "x", "is gone")
    outcomes = settle(tmp_path, RemoteExecutor(Threads(lambda _: Tables(error=error))))
    assert [str(outcome.error) for outcome in outcomes] == [str(error)] * 3


def test_a_random_stream_goes_on_in_another_worker(tmp_path: Path) -> None:
    source = ModelSource(name="resume", out_dir=str(save_checkpoint(tmp_path / "out", seed=1)))
    sampling = Sampling(num_samples=4, max_new_tokens=3, rng="torch")
    points = [Point(model=source, start="a", seed=seed, sampling=sampling) for seed in (1, 2)]

    def wanted(root: Path) -> list[Job]:
        return [Job(point, root / f"seed={point.seed}") for point in points]

    received: dict[int, int] = {}

    def dies(number: int, report: Report) -> bool:
        received[number] = received.get(number, 0) + len(report.finished)
        return number <= 2 and report.busy and received[number] >= 1

    executor = RemoteExecutor(Threads(lambda _: TorchBackends(), dies=dies))
    assert all(o.error is None for o in settle(tmp_path, executor, wanted(tmp_path / "there")))
    settle(tmp_path, LocalExecutor(TorchBackends()), wanted(tmp_path / "here"))
    assert files(tmp_path / "there") == files(tmp_path / "here")


def test_errors_of_every_kind_come_back_from_a_worker() -> None:
    class SullenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    for error in (ValueError("plain"), SullenError(), KeyboardInterrupt(), MemoryError("9 bytes"), Exception(lambda: None)):
        try:
            raise error
        except BaseException as caught:
            failure = pickle.loads(pickle.dumps(Failure.of(caught)))
        back = failure.raised()
        assert type(error).__name__ in f"{type(back).__name__}: {back}"
        assert "test_remote.py" in str(back.__cause__)


def test_a_stop_does_not_wait_until_there_is_something_to_report() -> None:
    worker = Worker(Tables())
    waiting = threading.Thread(target=worker.report, args=(600,), daemon=True)
    waiting.start()
    deadline = time.monotonic() + 300
    while waiting.is_alive() and time.monotonic() < deadline:
        worker.stop(1)
        waiting.join(0.01)
    assert not waiting.is_alive()


def test_the_driver_imports_no_torch_for_what_a_worker_says_of_its_model(tmp_path: Path) -> None:
    source = ModelSource(name="resume", out_dir=str(save_checkpoint(tmp_path / "out", seed=1)))
    worker = Worker(TorchBackends())
    worker.open(source, DeviceSettings())
    report = worker.report(300)
    assert report.opened is not None
    assert not isinstance(report.opened.model, Failure)
    modules = set()

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            modules.add(module.partition(".")[0])
            return super().find_class(module, name)

    assert Reader(io.BytesIO(pickle.dumps(report))).load().opened.source == source
    assert "gptsweep" in modules
    assert "torch" not in modules


@pytest.mark.parametrize("grows", [False, True])
def test_a_worker_that_stays_alone_takes_all_rows_at_once(tmp_path: Path, grows: bool) -> None:
    pool = Threads(lambda _: Tables(), workers=1)
    pool.may_grow = grows
    settle(tmp_path, RemoteExecutor(pool), jobs(tmp_path, num_samples=60))
    assert (len(pool.given) > 1) is grows


# -- shards -------------------------------------------------------------------------------------------------------------------


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Points with and without shared noise, of several prompts and lengths, one or two of them from a random stream."""
    model = OpenModel(ModelSource(), DeviceSettings(), Table(), CharTokenizer(LETTERS))
    texts = draw(st.lists(st.text("abc", min_size=1, max_size=30), min_size=1, max_size=3))
    prompts = encoded(model, tuple(Prompt(str(i), text) for i, text in enumerate(texts)))
    tasks = [
        Task.of(
            model,
            Point(
                seed=draw(st.integers(1, 2)),
                sampling=Sampling(
                    num_samples=draw(st.integers(1, 5)),
                    max_new_tokens=draw(st.sampled_from([1, 10, 100])),
                    rng=draw(st.sampled_from(["counter", "counter", "torch"])),
                    temperature=draw(st.sampled_from([0.5, 1.0])),
                ),
            ),
            prompts,
        )
        for _ in range(draw(st.integers(1, 4)))
    ]
    return Plan.of(model, tasks)


@settings(max_examples=60)
@given(plan=plans(), count=st.integers(1, 12))
def test_shards_hold_every_row_once_in_order_and_cost_about_the_same(plan: Plan, count: int) -> None:
    rows = [row for row, _ in plan.rows()]
    shards = shards_of(rows, None, count)
    assert [number for shard in shards for number in shard.rows] == list(range(len(rows)))
    assert len(shards) <= count
    streams = [{stream_of(rows[n]) for n in shard.rows} - {None} for shard in shards]
    assert sum(map(len, streams)) == len(set().union(*streams)), "no stream is cut"
    costs = [row_cost(row, None) for row in rows]
    for number, row in enumerate(rows):
        if number == 0 or rows[number - 1].prompt_ids != row.prompt_ids:  # else it is read with the row before
            costs[number] += 0.25 * len(row.prompt_ids)
    target = sum(costs) / count
    whole_streams: dict[object, float] = {}
    for row, cost in zip(rows, costs, strict=True):
        whole_streams[stream_of(row)] = whole_streams.get(stream_of(row), 0) + cost
    whole_streams.pop(None, None)
    largest = max([target, *costs, *whole_streams.values()])
    assert all(sum(costs[n] for n in shard.rows) <= target + largest + 1e-6 for shard in shards)
    for before, after in itertools.pairwise(shards):
        a, b = rows[before.rows[-1]], rows[after.rows[0]]
        alike = (a.noise_key, a.prompt_ids, a.prompt_index, a.sample_index) == (
            b.noise_key, b.prompt_ids, b.prompt_index, b.sample_index)  # fmt: skip
        if alike and stream_of(a) is None:
            kin = [n for n, r in enumerate(rows) if (r.noise_key, r.prompt_ids, r.prompt_index, r.sample_index)
                   == (a.noise_key, a.prompt_ids, a.prompt_index, a.sample_index)]  # fmt: skip
            assert sum(costs[n] for n in kin) > target, "noise that is shared is parted only where it is more than a shard"


@settings(max_examples=60)
@given(plan=plans(), shards=st.integers(1, 9), data=st.data())
def test_a_ledger_loses_no_row_whatever_happens_to_workers(plan: Plan, shards: int, data: st.DataObject) -> None:
    ledger = Ledger(plan, None, shards)
    has: dict[str, list[int]] = {}
    losses: dict[int, int] = {}
    done: list[int] = []
    failed: list[int] = []
    for _ in range(10_000):
        if not ledger.left:
            break
        worker = data.draw(st.sampled_from("ab"))
        work = ledger.take(worker, 2)
        if work is not None:
            has[worker] = [number for number, _ in work.rows]
            for stream in {stream_of(row) for _, row in work.rows} - {None}:
                (first, *others) = [row for _, row in work.rows if stream_of(row) == stream]
                assert all(row.prefix is None for row in others)
                assert first.prefix is not None or first.sample_index == 0
        elif has.get(worker) and data.draw(st.integers(0, 5)):
            number = has[worker].pop(0)
            stream = stream_of(ledger.rows[number])
            if ledger.finish(number):
                done.append(number)
            elif stream is None:
                raise AssertionError("a row was made twice")
            if has[worker] and stream is not None and data.draw(st.booleans()):
                ledger.note(
                    has[worker][0], Prefix(token_ids=(1,), stream=b"x") if stream_of(ledger.rows[has[worker][0]]) else Prefix()
                )
        else:
            lost = ledger.lose(worker)
            for number in has.pop(worker, []):
                losses[number] = losses.get(number, 0) + 1
            assert all(losses[number] >= TRIES for number in lost)
            failed += lost
    assert sorted(done + failed) == list(range(len(ledger.rows)))
