"""What an interrupted run would lose: the tokens of samples in flight, and that they come out as if nothing had happened."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeps import Run, samples_of, save_checkpoint
from test_engine import DTYPES, POOL, VOCAB, model_in, row, rows_of_all_kinds, until

from gptsweep.engine import torch_backend
from gptsweep.engine.backend import BackendProgress
from gptsweep.engine.engine import Engine
from gptsweep.engine.scheduler import Scheduler, SharedSequence
from gptsweep.errors import Interrupted
from gptsweep.models.gpt2 import GPT
from gptsweep.models.linear import can_pack
from gptsweep.records import Completion, Prefix, Row
from gptsweep.store import writer as results
from gptsweep.store.durable import seal
from gptsweep.store.unfinished import Unfinished

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


class StopError(Exception):
    """Ends a run."""


def engine_of(dtype: str = "float32", max_rows: int | None = None) -> Engine:
    if not can_pack(TORCH_DTYPES[dtype]):
        pytest.skip(f"this processor has no {dtype} layers")
    engine = Engine(model_in(dtype), vocab_size=VOCAB, max_rows=max_rows, stop_matcher=until)
    assert engine.promise
    return engine


def outcome(completion: Completion) -> tuple[object, ...]:
    c = completion
    return c.token_ids, c.finish_reason, c.logprob_mean, c.sampler_logprob_mean, c.entropy_mean, c.logprobs


def whole_run(engine: Engine, rows: Sequence[Row]) -> list[tuple[object, ...]]:
    found = {id(completion.row): outcome(completion) for completion in engine.run(rows)}
    return [found[id(row)] for row in rows]


def run_in_pieces(pieces: Iterable[tuple[Engine, int]], rows: Sequence[Row]) -> list[tuple[object, ...]]:
    """Run ``rows``, the run ended after so many steps of each piece and begun again with what was kept; the last one ends."""
    found: dict[int, tuple[object, ...]] = {}
    waiting = dict(enumerate(rows))
    for engine, steps in pieces:
        places = {id(row): place for place, row in waiting.items()}
        count = itertools.count(1)
        kept: list[tuple[Row, Prefix]] = []

        def step(progress: BackendProgress, steps: int = steps, count: Any = count, kept: Any = kept) -> None:
            if next(count) == steps:
                kept += progress.unfinished()
                raise StopError

        try:
            for completion in engine.run(list(waiting.values()), on_step=step):
                place = places[id(completion.row)]
                found[place] = outcome(completion)
                del waiting[place]
        except StopError:
            waiting |= {places[id(row)]: replace(row, prefix=prefix) for row, prefix in kept}
    return [found[place] for place in range(len(rows))]


# -- the same bits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=10)
@given(
    st.lists(rows_of_all_kinds(), min_size=1, max_size=9),
    st.lists(st.tuples(st.sampled_from([None, 1, 2, 5]), st.integers(1, 12)), min_size=1, max_size=4),
)
def test_rows_interrupted_at_any_step_come_out_the_same_to_the_bit(
    dtype: str, rows: list[Row], pieces: list[tuple[int | None, int]]
) -> None:
    some = [(engine_of(dtype, max_rows), steps) for max_rows, steps in pieces]
    assert run_in_pieces([*some, (engine_of(dtype), 0)], rows) == whole_run(engine_of(dtype), rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("overflow", ["crop", "stop", "rebase"])
def test_rows_interrupted_around_the_end_of_the_context_find_their_window(dtype: str, overflow: str) -> None:
    rows = [row(range(length), overflow=overflow, max_new_tokens=45, top_k=None) for length in (5, 22, 24)]
    if overflow != "stop":
        rows += [row(range(length), overflow=overflow, max_new_tokens=45, top_k=None) for length in (25, 50)]
    whole = whole_run(engine_of(dtype), rows)
    for step in (*range(1, 10), *range(17, 44, 3)):
        assert run_in_pieces([(engine_of(dtype), step), (engine_of(dtype), 0)], rows) == whole


def test_streams_go_on_where_they_were() -> None:
    rows = [row(prompt, key=key, sample_index=i, rng="torch", max_new_tokens=7, temperature=1.3, repetition_penalty=penalty)
            for prompt, key, penalty in (((1, 2), 5, 1.0), ((1, 2), 6, 1.2), ((3,), 5, 1.0)) for i in range(3)]  # fmt: skip
    whole = whole_run(engine_of(), rows)
    for step in (1, 2, 7, 8, 13, 15):
        for max_rows in (1, 2, None):
            assert run_in_pieces([(engine_of(max_rows=max_rows), step), (engine_of(), step), (engine_of(), 0)], rows) == whole


def test_rows_that_agree_go_on_together_and_read_what_they_share_once(passes: list[int]) -> None:
    prompt = [(7 * i) % VOCAB for i in range(18)]
    rows = [row(prompt, sample_index=i, temperature=0, max_new_tokens=5) for i in range(6)]
    rows += [row(prompt, sample_index=i, max_new_tokens=5) for i in range(6)]
    engine, kept = engine_of(), []

    def step(progress: BackendProgress) -> None:
        if len(passes) == 3:
            kept.extend(progress.unfinished())
            raise StopError

    with pytest.raises(StopError):
        list(engine.run(rows, on_step=step))
    assert len(kept) == 12
    passes.clear()
    list(engine.run([replace(row, prefix=prefix) for row, prefix in kept], on_step=lambda progress: None))
    distinct = {prefix.token_ids for _, prefix in kept}
    assert 2 < len(distinct) <= 7
    # The first page of the prompt is read by one of them, its rest and the prefix by each.
    assert passes[0] == 16 + len(distinct) * (18 + 3 - 16)
    assert len(passes) == 2


def test_memory_that_runs_out_costs_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(POOL[i], sample_index=i, max_new_tokens=12) for i in range(8)]
    rows += [row((1, 2), sample_index=i, rng="torch", max_new_tokens=12) for i in range(2)]
    whole = whole_run(engine_of(), rows)
    hidden, calls, sampled = GPT.hidden, itertools.count(), 0

    def failing(self: GPT, *arguments: Any) -> Any:
        if next(calls) in (6, 15):
            raise MemoryError
        return hidden(self, *arguments)

    def step(progress: BackendProgress) -> None:
        nonlocal sampled
        sampled = progress.tokens

    monkeypatch.setattr(GPT, "hidden", failing)
    found = {id(c.row): outcome(c) for c in engine_of(max_rows=8).run(rows, on_step=step)}
    assert [found[id(one)] for one in rows] == whole
    assert sampled == 10 * 12


def test_where_the_promise_is_not_kept_rows_go_on_all_the_same() -> None:
    engine = Engine(model_in("float32"), vocab_size=VOCAB, use_kernels=False)
    assert not engine.promise
    rows = [row(POOL[i], sample_index=i, max_new_tokens=20) for i in range(6)]
    assert [len(tokens) for tokens, *_ in run_in_pieces([(engine, 5), (engine, 9), (engine, 0)], rows)] == [20] * 6


# -- on disk -----------------------------------------------------------------------------------------------------------------


TOKENS = 20
SMALL = ("model=resume", f"sampling.max_new_tokens={TOKENS}", "sampling.overflow=rebase", "quiet=true")
SWEEP = ("-m", *SMALL, "sampling.num_samples=3")
RUN = (*SMALL, "sampling.num_samples=4", "seed=3")


class Sampled:
    """Counts the tokens that engines sample, and asks a run to end after so many steps in all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens = self.steps = 0
        self.stop_at: int | None = None
        self.ending: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGINT)
        schedule, postprocess = Scheduler.schedule, Scheduler.postprocess

        def begin(scheduler: Scheduler) -> list[SharedSequence]:
            self.steps += 1
            if self.steps == self.stop_at:
                self.ending()
            return schedule(scheduler)

        def end(scheduler: Scheduler) -> list[Completion]:
            finished = postprocess(scheduler)
            self.tokens += len(scheduler.running) + len(finished)
            return finished

        monkeypatch.setattr(Scheduler, "schedule", begin)
        monkeypatch.setattr(Scheduler, "postprocess", end)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Sampled:
    return Sampled(monkeypatch)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "out", seed=1)
    return tmp_path


@pytest.mark.parametrize("rng", ["counter", "torch"])
@pytest.mark.parametrize("sweep", [True, False])
def test_ctrl_c_keeps_unfinished_samples_and_makes_no_token_twice(
    run: Run, place: Path, sampled: Sampled, sweep: bool, rng: str
) -> None:
    command = (*(SWEEP if sweep else RUN), *(["seed=1,2,3"] if sweep else []), f"sampling.rng={rng}")
    where = place / ("outputs/sweeps" if sweep else "outputs/runs")
    assert run(*command, "name=whole").status == 0
    tokens = sampled.tokens
    for steps in (7, 9):
        sampled.stop_at = sampled.steps + steps
        ended = run(*command, "name=cut")
        assert ended.status == 130
        kept = len((where / "cut/unfinished.jsonl").read_bytes().splitlines())
        assert f"stopped, {kept} unfinished {'sample' if kept == 1 else 'samples'} kept; to go on: python -m" in ended.err
    sampled.stop_at = None
    assert run(*command, "name=cut").status == 0
    assert list(samples_of(where / "cut").values()) == list(samples_of(where / "whole").values())
    assert sampled.tokens == 2 * tokens
    assert not list(place.glob("**/*unfinished*"))


def test_a_sweep_that_grows_keeps_the_unfinished_samples_of_its_other_points(run: Run, place: Path, sampled: Sampled) -> None:
    sampled.stop_at = 6
    assert run(*SWEEP, "seed=1,2", "name=n").status == 130
    before, made = (place / "outputs/sweeps/n/unfinished.jsonl").read_bytes(), sampled.tokens
    assert run(*SWEEP, "seed=3", "name=n").status == 0
    assert (place / "outputs/sweeps/n/unfinished.jsonl").read_bytes() == before
    assert run(*SWEEP, "seed=1,2,4", "sampling.num_samples=4", "name=n").status == 0
    assert not (place / "outputs/sweeps/n/unfinished.jsonl").exists()
    assert sampled.tokens == (3 + 3 * 4) * 20
    assert made > 0


def test_a_batch_that_an_error_ends_goes_on_point_by_point_from_where_it_was(run: Run, place: Path, sampled: Sampled) -> None:
    def failing() -> None:
        raise ArithmeticError("a bug")

    sampled.stop_at, sampled.ending = 9, failing
    assert run(*SWEEP, "seed=1,2", "name=n").status == 0
    assert sampled.tokens == 2 * 3 * 20


def test_what_unfinished_samples_have_is_written_every_twenty_seconds(
    run: Run, place: Path, sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[float, int]] = []
    write = Unfinished.write

    def noted(self: Unfinished, prefixes: Any) -> None:
        written.append((sampled.steps, sum(len(prefix.token_ids) for prefix in prefixes.values())))
        write(self, prefixes)

    monkeypatch.setattr(Unfinished, "write", noted)
    monkeypatch.setattr(Unfinished.__init__, "__defaults__", (lambda: 4.0 * sampled.steps,))
    assert run(*RUN, "name=n").status == 0
    assert written == [(5, 4 * 5), (10, 4 * 10), (15, 4 * 15), (20, 0), (20, 0)]


def kept_by(run: Run, sampled: Sampled, *more: str) -> Path:
    """The file of a run that was stopped after 6 steps."""
    sampled.stop_at = sampled.steps + 6
    assert run(*RUN, *more, "name=n").status == 130
    sampled.stop_at = None
    sampled.tokens = 0
    return Path("outputs/runs/n/unfinished.jsonl")


def damaged(line: bytes) -> Iterator[bytes]:
    """What a disk, an editor or a stranger may make of a line."""
    yield line[: len(line) // 2]
    yield line.replace(b'"token_ids":[', b'"token_ids":[1')
    yield b"\xff" + line
    yield b"[" * 100_000 + b"\n"
    yield b"{}\n"
    fields = json.loads(line)
    for change in (
        {"token_ids": [10**30]}, {"token_ids": [-1]}, {"token_ids": [1.5]}, {"token_ids": "12"}, {"token_ids": [True]},
        {"logprob": "x"}, {"entropy": 1e999}, {"stream": 3}, {"stream": "@"}, {"point_id": ["a"]}, {"prompt_index": -1},
        {"token_ids": [1000]}, {"token_ids": [1] * 20}, {"stream": "AAAA"}, {"prompt_index": 7},
    ):  # fmt: skip
        body = json.dumps({**{name: value for name, value in fields.items() if name != "check"}, **change})[:-1].encode()
        yield body + seal(body)


def test_a_damaged_or_impossible_line_is_not_trusted(run: Run, place: Path, sampled: Sampled) -> None:
    assert run(*RUN, "name=whole").status == 0
    path = kept_by(run, sampled)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    bad = list(damaged(lines[0]))
    path.write_bytes(b"".join([*lines[1:], *bad]))
    assert run(*RUN, "name=n").status == 0
    assert sampled.tokens == 3 * 14 + 20
    log = (place / "outputs/runs/n/gptsweep.log").read_text()
    assert "unfinished.jsonl: 15 unfinished samples cannot be used (damaged lines)" in log
    assert "unfinished.jsonl: 2 unfinished samples do not fit their points and will be sampled from the beginning" in log
    runs = samples_of(place / "outputs/runs")
    assert runs["n"] == runs["whole"]


def test_a_sample_is_not_begun_on_one_kind_of_machine_and_finished_on_another(
    run: Run, place: Path, sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_by(run, sampled)
    monkeypatch.setattr(torch_backend, "_machine", lambda device: {"capability": "another"})
    assert run(*RUN, "name=n").status == 0
    assert sampled.tokens == 4 * 20
    log = (place / "outputs/runs/n/gptsweep.log").read_text()
    assert "4 unfinished samples cannot be used (started on another kind of machine, or with another version of torch)" in log


def test_a_run_that_ends_before_it_begins_keeps_what_another_left(
    run: Run, place: Path, sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kept_by(run, sampled).read_bytes()

    def interrupted(_self: Any) -> None:
        raise Interrupted

    monkeypatch.setattr(results.PointWriter, "__enter__", interrupted)
    assert run(*RUN, "name=n").status == 130
    assert (place / "outputs/runs/n/unfinished.jsonl").read_bytes() == before


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_hangs_nothing(run: Run, place: Path, make: Any) -> None:
    directory = place / "outputs/runs/n"
    directory.mkdir(parents=True)
    make(directory / "unfinished.jsonl")
    assert run(*RUN, "name=n").status == 0
    assert samples_of(directory)["n"].count(b"\n") == 4


def test_a_stop_string_that_began_before_the_interruption_is_found(run: Run, place: Path, sampled: Sampled) -> None:
    settings = (*RUN, "sampling.temperature=1.5", 'sampling.stop=["ab","ba","  "]', "sampling.num_samples=12")
    assert run(*settings, "name=whole").status == 0
    for steps in (2, 5, 7):
        sampled.stop_at = sampled.steps + steps
        run(*settings, "name=n")
    sampled.stop_at = None
    assert run(*settings, "name=n").status == 0
    runs = samples_of(place / "outputs/runs")
    assert runs["n"] == runs["whole"]
    assert b'"finish_reason": "stop"' in runs["n"]


def test_a_full_disk_is_reported_once_and_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = Unfinished(tmp_path)
    first = {("p", (0, 0)): Prefix(token_ids=(1, 2), logprob=-0.1, sampler_logprob=-1 / 3, entropy=2 / 3)}
    file.write(first)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        file.write({})
        file.write({("p", (0, 1)): Prefix()})
        file.write({("p", (0, 1)): Prefix()})
    assert caplog.text.count("could not save unfinished samples") == 1
    assert list(tmp_path.iterdir()) == []


def test_sums_come_back_to_the_bit(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).standard_normal(300) * 10.0 ** np.arange(-150, 150)
    wanted = {
        (0, i): Prefix(token_ids=(i,), logprob=a, sampler_logprob=-a / 3, entropy=a * a, stream=bytes(range(i % 200)))
        for i, a in enumerate(numbers.tolist())
    }
    file = Unfinished(tmp_path)
    assert file.read({"p"}, {}) == {}
    file.write({("p", key): prefix for key, prefix in wanted.items()})
    (tmp_path / ".unfinished.jsonl.1234.tmp").write_bytes(b"left by a process that was killed")
    assert Unfinished(tmp_path).read({"p"}, {}) == {"p": wanted}
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished.jsonl"]
