"""What a user would lose: samples that are the same to the bit in any company, and the memory and time that sharing saves."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import need_packed
from torch import Tensor

from gptsweep.engine import engine as engine_module
from gptsweep.engine.attention import AttentionMetadata
from gptsweep.engine.backend import BackendProgress, Workload
from gptsweep.engine.cuda_graphs import DecodeSteps
from gptsweep.engine.engine import Engine
from gptsweep.engine.kv_cache import KVCache, Span
from gptsweep.engine.scheduler import Scheduler
from gptsweep.errors import ModelError
from gptsweep.free_cores import FreeCores
from gptsweep.kernels.abi import PAGE
from gptsweep.models.decoder import Decoder, DecoderConfig
from gptsweep.models.gpt2 import GPT, GPTConfig
from gptsweep.models.layers import Llama3Scaling, NormConfig, RotaryConfig
from gptsweep.models.linear import Int8Linear, PackedLinear, can_pack, pack
from gptsweep.records import Completion, Row, Sampling

VOCAB = 65
CONFIG = GPTConfig(block_size=24, vocab_size=67, n_layer=2, n_head=5, n_embd=160)  # heads in a group, and one beside it
DTYPES = ["float32", "bfloat16", "int8"]


@functools.cache
def model_in(dtype: str, block_size: int = CONFIG.block_size) -> GPT:
    """A packed model, as a user's is on a CPU that has such layers. Not to be changed."""
    need_packed(dtype)
    config = replace(CONFIG, block_size=block_size)
    model = plain.peaked_gpt(config, dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    pack(model, Int8Linear if dtype == "int8" else PackedLinear)
    return model


def engine_of(dtype: str = "float32", max_rows: int | None = None) -> Engine:
    return Engine(model_in(dtype), vocab_size=VOCAB, max_rows=max_rows, stop_matcher=until)


def run(engine: Engine, rows: Sequence[Row]) -> list[Completion]:
    """Completions in the order of ``rows``; each must come once."""
    found: dict[int, Completion] = {}
    for completion in engine.run(rows):
        assert id(completion.row) not in found
        found[id(completion.row)] = completion
    return [found[id(row)] for row in rows]


def row(prompt_ids: Sequence[int] = (3, 1, 4), *, key: int = 7, sample_index: int = 0, **sampling: Any) -> Row:
    settings = {"temperature": 1.0, "top_k": 20, "max_new_tokens": 12, **sampling}
    return Row(prompt_ids=tuple(prompt_ids), sampling=Sampling(**settings), noise_key=key, sample_index=sample_index)


class Until:
    """A stop matcher for a run of token ids, in place of a stop string."""

    def __init__(self, ids: tuple[int, ...]) -> None:
        self.ids, self.seen = ids, ()

    def __call__(self, token: int) -> bool:
        self.seen = (*self.seen, token)
        return self.seen[-len(self.ids) :] == self.ids


def until(stops: tuple[str, ...]) -> Until:
    """In place of a tokenizer's: the one stop string of a row here is a run of ids."""
    return Until(tuple(map(int, stops[0].split())))


def twin_of(model: GPT | Decoder, row: Row) -> plain.Twin:
    """What ``row`` should come out as by an unpacked model."""
    stop = until(row.sampling.stop).ids if row.sampling.stop else None
    return plain.decode(model, row, VOCAB, lambda ids: stop is not None and tuple(ids[-len(stop) :]) == stop)


def assert_is_twin(completion: Completion, twin: plain.Twin) -> None:
    """Equal, or different from a token on that the twin itself chose by a hair."""
    pairs = itertools.zip_longest(completion.token_ids, twin.token_ids)
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if first is not None:
        assert twin.margins[first] < plain.UNDECIDED
        return
    assert completion.finish_reason == twin.finish_reason
    assert completion.logprob_mean == pytest.approx(np.mean(twin.logprobs), abs=1e-4)
    assert completion.sampler_logprob_mean == pytest.approx(np.mean(twin.sampler_logprobs), abs=1e-4)
    assert completion.entropy_mean == pytest.approx(np.mean(twin.entropies), abs=1e-4)


# -- the promise -------------------------------------------------------------------------------------------------------------

token_ids = st.integers(0, VOCAB - 1)
POOL = [
    tuple((7 * i + 3 * n + i * i) % VOCAB for i in range(n)) for n in (1, 2, 5, PAGE - 1, PAGE, PAGE + 1, 23, 24, 25, 36, 48)
]
"""Prompts that begin alike and not, at the edges of pages and of the context: rows often share one."""


@st.composite
def rows_of_all_kinds(draw: st.DrawFn, overflows: Sequence[str] = ("crop", "stop", "rebase")) -> Row:
    penalised = draw(st.booleans())
    stop = draw(st.one_of(st.none(), st.lists(token_ids, min_size=1, max_size=2).map(tuple)))
    return Row(
        prompt_ids=draw(st.one_of(st.sampled_from(POOL), st.lists(token_ids, min_size=1, max_size=48).map(tuple))),
        sampling=Sampling(
            max_new_tokens=draw(st.integers(1, 30)),
            temperature=draw(st.sampled_from([0.0, 0.7, 1.0, 1.5])),
            top_k=draw(st.sampled_from([None, 1, 5, 20, 200])),
            top_p=draw(st.sampled_from([None, 0.6, 0.95])),
            min_p=draw(st.sampled_from([None, 0.05])),
            repetition_penalty=draw(st.sampled_from([1.3, 1.0])) if penalised else 1.0,
            presence_penalty=draw(st.sampled_from([0.7, 0.0])) if penalised else 0.0,
            frequency_penalty=draw(st.sampled_from([0.3, 0.0])) if penalised else 0.0,
            logit_bias=((5, 2.0), (9, -1.5)) if draw(st.booleans()) else (),
            stop=(" ".join(map(str, stop)),) if stop else (),
            stop_at_eot=draw(st.booleans()),
            overflow=draw(st.sampled_from(overflows)),
            logprobs=draw(st.sampled_from([0, 3])),
        ),
        noise_key=draw(st.sampled_from([1, 2, 2**64 - 1])),
        prompt_index=draw(st.integers(0, 1)),
        sample_index=draw(st.integers(0, 3)),
        end_tokens=(draw(st.sampled_from([0, 17])),),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=7)
@given(st.lists(rows_of_all_kinds(), min_size=2, max_size=12), st.sampled_from([None, 1, 2, 3, 7]))
def test_a_row_is_the_same_to_the_bit_in_any_company(dtype: str, rows: list[Row], max_rows: int | None) -> None:
    together = run(engine_of(dtype, max_rows), rows)
    alone = [completion for one in rows for completion in run(engine_of(dtype, 1), [one])]
    assert together == alone


@st.composite
def decoders(draw: st.DrawFn) -> DecoderConfig:
    """A decoder of any kind, with a context of 24."""
    n_kv_heads, head_size, n_layer = draw(st.sampled_from([1, 2, 6])), draw(st.sampled_from([8, 10, 80])), 2
    kind = draw(st.sampled_from(["rms", "layer"]))
    share = draw(st.sampled_from([1, 2]))
    window = st.sampled_from([None, None, 1, 5, 17, 23])
    scaling = draw(st.sampled_from([None, Llama3Scaling(factor=4.0, low=1.0, high=4.0, trained=16.0)]))
    qkv_bias, out_bias, mlp_bias, parallel, gated, pairs, tied_head = (draw(st.booleans()) for _ in range(7))
    return DecoderConfig(
        vocab_size=CONFIG.vocab_size,
        block_size=CONFIG.block_size,
        n_layer=n_layer,
        n_head=6,
        n_kv_heads=n_kv_heads,
        head_size=head_size,
        n_embd=draw(st.sampled_from([48, 60])),
        n_inner=draw(st.sampled_from([33, 64])),
        norm=NormConfig(kind=kind, epsilon=1e-5, bias=kind == "layer"),
        norm_order=draw(st.sampled_from(["pre", "post"])),
        parallel=parallel,
        qk_norm=draw(st.sampled_from([None, "head", "width"])),
        rotary=RotaryConfig(size=head_size // share // 2 * 2, base=100.0, pairs=pairs, scaling=scaling),
        unrotated=draw(st.sampled_from([(), (1,)])),
        windows=tuple(draw(window) for _ in range(n_layer)),
        activation=draw(st.sampled_from(["silu", "gelu", "gelu_tanh", "relu_squared"])),
        gated=gated,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        mlp_bias=mlp_bias,
        tied_head=tied_head,
    )


ANY_OVERFLOW = ("crop", "stop", "rebase", "extend")


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=6)
@given(decoders(), st.lists(rows_of_all_kinds(ANY_OVERFLOW), min_size=2, max_size=5), st.sampled_from([None, 1, 2, 7]))
def test_a_row_of_any_architecture_is_the_same_to_the_bit_in_any_company(
    dtype: str, config: DecoderConfig, rows: list[Row], max_rows: int | None
) -> None:
    need_packed(dtype)
    model = plain.peaked_decoder(config, dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    pack(model, Int8Linear if dtype == "int8" else PackedLinear)
    engine = Engine(model, vocab_size=VOCAB, max_rows=max_rows, stop_matcher=until)
    assert engine.promise
    assert run(engine, rows) == [completion for one in rows for completion in run(engine, [one])]


@settings(max_examples=8)
@given(decoders(), st.lists(rows_of_all_kinds(ANY_OVERFLOW), min_size=1, max_size=3), st.booleans())
def test_a_batch_of_any_architecture_is_what_its_twins_are(config: DecoderConfig, rows: list[Row], packed: bool) -> None:
    unpacked = plain.peaked_decoder(config)
    model = plain.peaked_decoder(config)
    if packed:
        pack(model)
    for completion in run(Engine(model, vocab_size=VOCAB, stop_matcher=until, use_kernels=packed), rows):
        assert_is_twin(completion, twin_of(unpacked, completion.row))


@settings(max_examples=25)
@given(st.lists(rows_of_all_kinds(), min_size=1, max_size=6), st.booleans())
def test_a_batch_of_mixed_rows_is_what_its_twins_are(rows: list[Row], use_kernels: bool) -> None:
    unpacked = plain.peaked_gpt(CONFIG)
    engine = engine_of() if use_kernels else Engine(unpacked, vocab_size=VOCAB, stop_matcher=until, use_kernels=False)
    for completion in run(engine, rows):
        assert_is_twin(completion, twin_of(unpacked, completion.row))


@pytest.mark.parametrize("overflow", ["crop", "stop", "rebase"])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 23, 24, 25, 48, 60])
def test_a_full_context_crops_stops_or_rebases(overflow: str, length: int) -> None:
    one = row([(5 * i + 1) % VOCAB for i in range(length)], overflow=overflow, max_new_tokens=60)
    twin = twin_of(plain.peaked_gpt(CONFIG), one)
    (completion,) = run(engine_of(), [one])
    assert list(completion.token_ids) == twin.token_ids
    assert completion.finish_reason == twin.finish_reason == ("overflow" if overflow == "stop" else "length")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("threads")
def test_two_threads_give_the_bits_of_one(dtype: str) -> None:
    rows = [
        row(POOL[i % len(POOL)], sample_index=i, temperature=0.5 + 0.1 * (i % 7), overflow=("crop", "rebase")[i % 2])
        for i in range(17)
    ]
    torch.set_num_threads(1)
    one = run(engine_of(dtype), rows)
    torch.set_num_threads(2)
    assert run(engine_of(dtype), rows) == one


@pytest.mark.usefixtures("threads")
def test_a_number_of_threads_that_changes_between_steps_changes_no_bit_and_is_put_back() -> None:
    torch.set_num_threads(2)
    rows = [row(POOL[i % len(POOL)], sample_index=i) for i in range(9)]
    whole = run(engine_of(), rows)
    free_cores = Mock(spec=FreeCores, count=Mock(side_effect=itertools.cycle([2, 1])))
    seen = set()
    model = model_in("float32")
    logits = model.logits
    engine = Engine(model, vocab_size=VOCAB, free_cores=free_cores)
    with patch.object(model, "logits", side_effect=lambda hidden: (seen.add(torch.get_num_threads()), logits(hidden))[1]):
        assert run(engine, rows) == whole
    assert seen == {1, 2}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_of_rows_gives_the_same_rows(dtype: str) -> None:
    rows = [row((i % VOCAB, 2), sample_index=i, max_new_tokens=3) for i in range(300)]
    engine = Engine(model_in(dtype), vocab_size=VOCAB, max_rows=300)
    whole = run(engine, rows)
    for count in (*range(1, 20), 31, 32, 33, 63, 64, 65, 100, 127, 129, 255, 257, 299):
        assert run(engine, rows[:count]) == whole[:count]


def test_prompts_read_in_several_passes_are_as_alone() -> None:
    model = model_in("bfloat16", block_size=1024)
    prompts = [[(i * i + n) % VOCAB for i in range(n)] for n in (700, 1000, 1024, 300, 17, 900)]
    rows = [row(prompt, max_new_tokens=4, sample_index=i) for i, prompt in enumerate(prompts)]
    engine = Engine(model, vocab_size=VOCAB)
    assert run(engine, rows) == [completion for one in rows for completion in run(engine, [one])]


def test_the_engine_says_that_it_keeps_the_promise_and_where_it_does_not() -> None:
    assert all(engine_of(dtype).promise for dtype in DTYPES if can_pack(getattr(torch, dtype)))
    assert not Engine(model_in("float32"), vocab_size=VOCAB, use_kernels=False).promise
    assert not any(Engine(plain.peaked_gpt(CONFIG, dtype=dtype), vocab_size=VOCAB).promise
                   for dtype in (torch.float32, torch.bfloat16, torch.float16))  # fmt: skip


@pytest.mark.parametrize("packed", [True, False])
def test_float16_runs_and_keeps_what_it_promises(packed: bool) -> None:
    model = plain.peaked_gpt(CONFIG, dtype=torch.float16)
    if packed:
        need_packed("float16")
        pack(model)
    engine = Engine(model, vocab_size=VOCAB)
    rows = [row(POOL[i], sample_index=i, max_new_tokens=20) for i in range(6)]
    together = run(engine, rows)
    assert [len(c.token_ids) for c in together] == [20] * 6
    assert not engine.promise or together == [completion for one in rows for completion in run(engine, [one])]


def test_rows_that_wait_start_in_order_and_take_the_place_of_finished_ones() -> None:
    rows = [row((i % VOCAB,), sample_index=i, max_new_tokens=1 + i % 5) for i in range(20)]
    most = 0

    def watch(progress: BackendProgress) -> None:
        nonlocal most
        most = max(most, progress.rows_in_flight)

    order = [c.row.sample_index for c in Engine(model_in("float32"), vocab_size=VOCAB, max_rows=3).run(rows, on_step=watch)]
    assert sorted(order) == list(range(20))
    assert order[:3] == [0, 1, 2]
    assert most <= 3


def test_rows_that_finish_in_one_step_come_by_prompt_and_sample() -> None:
    rows = [row((5, 1 + i % 2), sample_index=i // 2, top_k=2, max_new_tokens=4) for i in range(12)]
    rows = [replace(each, prompt_index=i % 2) for i, each in enumerate(rows)]
    order = [(c.row.prompt_index, c.row.sample_index) for c in engine_of().run(rows)]
    assert order == list(itertools.product(range(2), range(6)))


def test_rows_are_taken_only_when_there_is_room() -> None:
    taken = 0

    def endless() -> Iterator[Row]:
        nonlocal taken
        for i in itertools.count():
            taken += 1
            yield row((1,), sample_index=i, max_new_tokens=2)

    workload = Workload(rows=10**6, prompt_tokens=1, row_tokens=3, new_tokens=2 * 10**6)
    completions = engine_of(max_rows=4).run(endless(), workload)
    for _ in range(9):
        next(completions)
    assert taken <= 16


def test_what_finished_in_a_step_is_handed_on_before_the_run_may_end() -> None:
    def interrupt(_progress: BackendProgress) -> None:
        raise KeyboardInterrupt

    completions = engine_of().run([row(max_new_tokens=1)], on_step=interrupt)
    assert len(next(completions).token_ids) == 1
    with pytest.raises(KeyboardInterrupt):
        next(completions)


# -- sharing -----------------------------------------------------------------------------------------------------------------


def test_a_shared_prompt_is_read_once(passes: list[int]) -> None:
    prompt = list(range(20))
    rows = [row(prompt, sample_index=i, max_new_tokens=1) for i in range(12)]
    run(engine_of(), rows)
    assert passes == [20]
    passes.clear()
    # Rows that start later find its keys and values, and read its last token again for the logits.
    run(engine_of(max_rows=4), rows)
    assert passes == [20, 1, 1]


def test_rows_that_agree_so_far_are_computed_once(passes: list[int]) -> None:
    rows = [row(sample_index=i % 6, temperature=0.8 + 0.8 * (i // 6)) for i in range(18)]
    completions = run(engine_of(), rows)
    beginnings = {c.token_ids[:n] for c in completions for n in range(1, len(c.token_ids))}
    assert len({c.token_ids for c in completions}) > 6
    assert len(beginnings) < sum(len(c.token_ids) - 1 for c in completions)
    assert sum(passes) == len(rows[0].prompt_ids) + len(beginnings)


def test_greedy_rows_cost_as_much_as_one(passes: list[int]) -> None:
    completions = run(engine_of(), [row(sample_index=i, temperature=0) for i in range(30)])
    assert len({c.token_ids for c in completions}) == 1
    assert passes == [3] + [1] * 11


def test_a_window_that_crops_is_read_again_and_one_that_rebases_by_half(passes: list[int]) -> None:
    run(engine_of(), [row(range(24), overflow="crop", max_new_tokens=4)])
    assert passes == [24] * 4
    passes.clear()
    run(engine_of(), [row(range(24), overflow="rebase", max_new_tokens=4)])
    assert passes == [24, 12, 1, 1]


@settings(max_examples=15)
@given(st.lists(rows_of_all_kinds(), min_size=1, max_size=12), st.sampled_from([1, 5]))
def test_the_windows_to_read_again_are_known_beforehand_and_add_up(rows: list[Row], max_rows: int) -> None:
    seen: list[tuple[int, int]] = []
    completions = list(
        engine_of(max_rows=max_rows).run(rows, on_step=lambda progress: seen.append((progress.windows, progress.windows_total)))
    )
    read = sum(
        one.row.sampling.overflow == "crop" and len(one.row.prompt_ids) + n > CONFIG.block_size
        for one in completions
        for n in range(1, len(one.token_ids))
    )
    assert seen[-1] == (read, read)
    expected = Workload.of(rows, CONFIG.block_size).windows
    assert all(read <= total <= expected for _, total in seen), "rows that stop early only take from it"
    if not any(one.finish_reason in ("eot", "stop") for one in completions):
        assert read == expected


def test_the_log_says_once_what_crossing_the_context_will_cost(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rows = [row(sample_index=i, max_new_tokens=60) for i in range(3)]
    engine, seconds = engine_of(), []
    quiet = run(engine, rows)
    assert not caplog.messages, "nobody watches"
    for _ in range(2):
        watched = list(engine.run(rows, on_step=lambda progress: seconds.append(progress.window_seconds)))
    assert {one.row.sample_index: one for one in watched} == {one.row.sample_index: one for one in quiet}
    (message,) = caplog.messages
    assert message.startswith("114 tokens come after the context of 24: sampling.overflow=crop reads the whole window again ")
    assert message.endswith(" in all; sampling.overflow=rebase is fast, and stop ends a sample there")
    assert all(seconds)
    list(engine.run([row(overflow="rebase", max_new_tokens=99)], on_step=lambda _: None))
    assert len(caplog.messages) == 1


# -- bookkeeping -------------------------------------------------------------------------------------------------------------


class Books:
    """Checks, after every step, that each page is free or used by just the block tables that say so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.schedulers: list[Any] = []
        schedulers, begin = self.schedulers, Scheduler.__init__

        def noted(scheduler: Any, *arguments: Any, **settings: Any) -> None:
            begin(scheduler, *arguments, **settings)
            schedulers.append(scheduler)

        monkeypatch.setattr(Scheduler, "__init__", noted)

    def check(self, _progress: BackendProgress | None = None) -> None:
        scheduler = self.schedulers[-1]
        cache = scheduler.cache
        users = np.zeros_like(cache._users)
        for block_table, count in enumerate(cache.page_count):
            np.add.at(users, cache.block_tables[block_table, :count], 1)
        assert (users == cache._users).all()
        assert sorted(cache._free) == np.flatnonzero(users == 0).tolist()
        assert len(scheduler.free_slots) + len(scheduler.running) == len(scheduler.records)
        block_tables = [sequence.block_table for sequence in (*scheduler.sequences, *scheduler.prefix_cache.values())]
        assert sorted([*scheduler.free_block_tables, *block_tables]) == list(range(len(cache.page_count)))

    def close(self) -> None:
        """At the end only cached prompts have pages left."""
        scheduler = self.schedulers[-1]
        assert not scheduler.running
        assert not scheduler.sequences
        for cached in scheduler.prefix_cache.values():
            scheduler._release(cached.block_table)
        assert scheduler.cache.free_pages == scheduler.cache.keys.shape[1]
        assert len(scheduler.free_block_tables) == len(scheduler.cache.page_count)


@settings(max_examples=15)
@given(st.lists(rows_of_all_kinds(), min_size=1, max_size=25), st.sampled_from([1, 2, 5, 30]))
def test_no_page_is_lost_or_freed_twice(rows: list[Row], max_rows: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        books = Books(monkeypatch)
        done = list(engine_of(max_rows=max_rows).run(rows, on_step=books.check))
        assert len(done) == len(rows)
        books.close()


def test_more_prompts_than_the_prefix_cache_holds_leave_it_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    books = Books(monkeypatch)
    rows = [row((i % 40, 1, 2), sample_index=i, max_new_tokens=3) for i in range(120)]
    assert len(list(engine_of(max_rows=5).run(rows, on_step=books.check))) == 120
    books.close()


# -- when things go wrong ----------------------------------------------------------------------------------------------------


def mixed_rows() -> list[Row]:
    counter = [row(POOL[i % 9], sample_index=i, max_new_tokens=10) for i in range(12)]
    streams = [row((1, 2), sample_index=i, rng="torch", max_new_tokens=10, key=key) for key in (5, 6) for i in range(3)]
    return counter + streams


def test_too_little_memory_for_the_cache_halves_the_rows_and_changes_no_sample(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = run(engine_of(), mixed_rows())

    class Small(KVCache):
        def __init__(self, config: GPTConfig, *, n_pages: int, **rest: Any) -> None:
            if n_pages > 40:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
            super().__init__(config, n_pages=n_pages, **rest)

    monkeypatch.setattr(engine_module, "KVCache", Small)
    rows = mixed_rows()
    got = run(engine_of(max_rows=18), rows)
    assert [c.token_ids for c in got] == [c.token_ids for c in wanted]
    assert "out of memory: continuing with 9 rows at a time" in caplog.text


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_memory_that_runs_out_on_the_way_loses_no_row_and_changes_none(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = run(engine_of(), mixed_rows())
    hidden, calls = GPT.hidden, itertools.count()

    def failing(self: GPT, *arguments: Any) -> Tensor:
        if next(calls) in (5, 11):
            raise error
        return hidden(self, *arguments)

    monkeypatch.setattr(GPT, "hidden", failing)
    rows = mixed_rows()
    got = run(engine_of(max_rows=14), rows)
    assert [c.token_ids for c in got] == [c.token_ids for c in wanted]


def test_one_row_that_does_not_fit_is_the_memorys_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: GPT, *_arguments: Any) -> Tensor:
        raise MemoryError("no more")

    monkeypatch.setattr(GPT, "hidden", never)
    with pytest.raises(MemoryError, match="no more"):
        list(engine_of(max_rows=4).run(mixed_rows()))


@pytest.mark.parametrize("rng", ["counter", "torch"])
@pytest.mark.parametrize("use_kernels", [True, False])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0}, {"top_k": None}, {"top_k": None, "top_p": 0.9}, {"top_p": 0.9}, {"top_k": None, "min_p": 0.1}],
    ids=str,
)
def test_logits_that_are_not_numbers_are_reported(rng: str, use_kernels: bool, poison: float, sampling: dict[str, Any]) -> None:
    model = plain.peaked_gpt(CONFIG)
    logits = model.logits
    model.logits = lambda hidden: logits(hidden).index_fill(-1, torch.tensor([40]), poison)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"device.dtype=float32: the model's logits are not numbers; check the checkpoint"):
        list(Engine(model, vocab_size=VOCAB, use_kernels=use_kernels).run([row(rng=rng, **sampling)]))


@settings(max_examples=15)
@given(st.lists(rows_of_all_kinds(), min_size=1, max_size=6))
def test_steps_of_static_shape_give_what_the_twins_are(rows: list[Row]) -> None:
    """What is captured as a CUDA graph on a GPU, run here as it is."""
    unpacked = plain.peaked_gpt(CONFIG)
    engine = Engine(unpacked, vocab_size=VOCAB, stop_matcher=until, use_kernels=False)
    engine.use_graphs = True
    for completion in run(engine, rows):
        assert_is_twin(completion, twin_of(unpacked, completion.row))


def test_padding_of_a_step_touches_no_sequence() -> None:
    model = plain.peaked_gpt(CONFIG)
    cache = KVCache(CONFIG, n_positions=64, n_pages=8, n_block_tables=3, dtype=torch.float32, device=torch.device("cpu"))
    steps = DecodeSteps(model, cache)
    pages_before = set(range(8)) - {steps.spare}
    for position in range(20):
        spans = [Span(table, position, position + 1) for table in range(3)]
        cache.extend(spans)
        with torch.inference_mode():
            steps([position % 5, 7, 9], AttentionMetadata.of(spans))
    used = {int(page) for table in range(3) for page in cache.block_tables[table, : cache.page_count[table]]}
    assert steps.spare not in used
    assert all(not cache.keys[:, page].any() for page in pages_before - used)


def test_no_rows_is_no_work() -> None:
    assert list(engine_of().run([])) == []
