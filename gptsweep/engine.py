"""Rows in, completions out: one decode loop over rows with settings of their own. It sees token ids, never text.

A step is schedule, forward, choose, advance. What the forward pass works on are sequences, not rows: rows whose ids so far are
equal ride on one sequence, and part when they choose different tokens. Prefill is a sequence with many pending tokens, decode
one with a single pending token, and both go through the same pass; a sequence that slides its window is simply read again.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cache import KVCache, Reading, Span, paged_attention, paged_attention_kernels, pages_for
from .errors import ModelError
from .linear import row_invariant
from .model import GPT
from .records import Completion, FinishReason, Row
from .sampling import ROW, Edits, choose, edited, nanogpt_choice, row_settings

try:
    from . import kernels
except ImportError:  # numba has no wheel for this platform
    kernels = None  # type: ignore[assignment]

MOST_ROWS = 256
"""Rows decoded together unless the caller says otherwise: more gain nothing on the CPUs measured (benchmarks/README.md)."""
_TOKENS_A_PASS = 2048
_HELD_PROMPTS = 64
_SHARE_OF_MEMORY = 0.4


@dataclass(slots=True)
class Progress:
    """What the engine is doing, updated at each step."""

    rows_in_flight: int = 0
    tokens: int = 0


@dataclass(slots=True)
class _Lane:
    """Rows to run one after another: a single one, or with ``rng=torch`` all that draw from one stream."""

    rows: deque[Row]
    generator: torch.Generator | None = None


@dataclass(slots=True, eq=False)
class _Running:
    """A row in flight."""

    row: Row
    lane: _Lane
    slot: int
    edits: Edits | None
    watch: Callable[[int], bool] | None
    stream_state: Tensor | None
    token_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    sampler_logprob: float = 0.0
    entropy: float = 0.0

    def accept(self, token: int, logprob: float, sampler_logprob: float, entropy: float) -> FinishReason | None:
        """Append a chosen token; why the row is finished, or None."""
        self.token_ids.append(token)
        self.logprob += logprob
        self.sampler_logprob += sampler_logprob
        self.entropy += entropy
        if self.row.sampling.stop_at_eot and token == self.row.eot_id:
            return "eot"
        if self.watch is not None and self.watch(token):
            return "stop"
        if len(self.token_ids) == self.row.sampling.max_new_tokens:
            return "length"
        if self.edits is not None:
            self.edits.add(token)
        return None

    def completion(self, reason: FinishReason) -> Completion:
        n = len(self.token_ids)
        return Completion(
            row=self.row,
            token_ids=tuple(self.token_ids),
            finish_reason=reason,
            logprob_mean=self.logprob / n,
            sampler_logprob_mean=self.sampler_logprob / n,
            entropy_mean=self.entropy / n,
        )


@dataclass(slots=True, eq=False)
class _Sequence:
    """Token ids that the model has read (``length``, in the cache) or is about to (``pending``), and the rows on it."""

    table: int
    length: int
    pending: list[int]
    members: list[_Running]


class Engine:
    """Generates completions for rows, many at a time.

    The promise: with ``promise`` true, a row's completion is the same to the bit whatever the other rows, ``max_rows`` or the
    thread count.

    Args:
        model: on its device, in its dtype, ready for inference.
        vocab_size: ids from here on (a padded vocabulary's) are never sampled.
        max_rows: rows decoded together at most; None plans from memory.
        use_kernels: False takes plain torch on a CPU too.
    """

    def __init__(self, model: GPT, *, vocab_size: int, max_rows: int | None = None, use_kernels: bool = True) -> None:
        self.model = model
        self.vocab_size = vocab_size
        self.max_rows = max_rows
        self.device = model.transformer.wte.weight.device
        self.dtype = model.transformer.wte.weight.dtype
        self.use_kernels = use_kernels and kernels is not None and self.device.type == "cpu"
        self.promise = self.use_kernels and row_invariant(model)
        self.progress = Progress()

    def run(self, rows: Iterable[Row], on_step: Callable[[Progress], None] | None = None) -> Iterator[Completion]:
        """Generate a completion for every row, and yield each as it finishes.

        Rows are started in the order given. When memory runs out, half as many are tried together, from their beginning.

        Raises:
            ModelError: the model's logits are not numbers.
        """
        waiting = deque(_lanes(rows))
        max_rows = self.max_rows or self._planned_rows([row for lane in waiting for row in lane.rows])
        while waiting:
            flight = None
            try:
                flight = _Flight(self, waiting, min(max_rows, len(waiting)))
                while flight.busy:
                    with torch.inference_mode():
                        finished = flight.step()
                    self.progress.rows_in_flight = len(flight.running)
                    if on_step is not None:
                        on_step(self.progress)
                    yield from finished
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or max_rows == 1:
                    raise
                max_rows = max(1, min(max_rows, len(waiting) + (len(flight.running) if flight else 0)) // 2)
                if flight is not None:
                    flight.requeue()

    def _planned_rows(self, rows: Sequence[Row]) -> int:
        config = self.model.config
        longest = max((positions_needed(row, config.block_size) for row in rows), default=1)
        row_bytes = pages_for(longest) * 16 * 2 * config.n_layer * config.n_embd * self.cache_dtype.itemsize
        row_bytes += 4 * config.vocab_size
        return max(1, min(MOST_ROWS, int(_SHARE_OF_MEMORY * available_memory(self.device) / row_bytes)))

    @property
    def cache_dtype(self) -> torch.dtype:
        """The dtype of keys and values: the model's where the attention has it, else float32."""
        return torch.float32 if self.use_kernels and self.dtype != torch.bfloat16 else self.dtype


class _Flight:
    """The rows in flight and everything they need; one lives until its rows are done or memory runs out."""

    def __init__(self, engine: Engine, waiting: deque[_Lane], max_rows: int) -> None:
        self.engine, self.model, self.waiting, self.max_rows = engine, engine.model, waiting, max_rows
        config = engine.model.config
        self.block_size = config.block_size
        self.running: dict[int, _Running] = {}
        self.sequences: list[_Sequence] = []
        self.rows = np.zeros(max_rows, ROW)
        rows = [row for lane in waiting for row in lane.rows]
        self.prompts_waiting = Counter(self._window(row.prompt_ids, row.sampling.overflow) for row in rows)
        held = min(_HELD_PROMPTS, len(self.prompts_waiting))
        longest = max(positions_needed(row, config.block_size) for row in rows)
        longest_prompt = max(len(window) for window in self.prompts_waiting)
        self.cache = KVCache(
            config,
            n_pages=max_rows * pages_for(longest) + held * pages_for(longest_prompt),
            n_tables=max_rows + held,
            dtype=engine.cache_dtype,
            device=engine.device,
        )
        self.max_held = held
        self.held: OrderedDict[tuple[int, ...], _Sequence] = OrderedDict()
        self.free_slots = list(range(max_rows - 1, -1, -1))
        self.free_tables = list(range(max_rows + held - 1, -1, -1))
        if engine.use_kernels:
            self.store = kernels.Kernel("store", engine.cache_dtype, kernels.ATTEND)
            self.attend = kernels.Kernel("attend", engine.cache_dtype, kernels.ATTEND)
            self.chooser = kernels.Kernel("choose", engine.cache_dtype, kernels.CHOOSE)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def step(self) -> list[Completion]:
        """One more token for every row in flight; the rows that finished with it."""
        self._schedule()
        logits = self._forward()
        self._choose(logits)
        return self._advance()

    def requeue(self) -> None:
        """Put the rows in flight back to wait, from their beginning."""
        for running in sorted(self.running.values(), key=lambda r: r.slot, reverse=True):
            running.lane.rows.appendleft(running.row)
            if running.lane.generator is not None and running.stream_state is not None:
                running.lane.generator.set_state(running.stream_state)
            self.waiting.appendleft(running.lane)
        self.running.clear()

    # -- schedule --------------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Start waiting rows in the free slots; rows with the same prompt start on one sequence."""
        started: dict[tuple[int, ...], _Sequence] = {}
        while self.waiting and self.free_slots:
            lane = self.waiting.popleft()
            row = lane.rows.popleft()
            window = self._window(row.prompt_ids, row.sampling.overflow)
            if window not in started:
                started[window] = self._open(window)
            running = self._start(row, lane)
            started[window].members.append(running)
            self.prompts_waiting[window] -= 1
        self.sequences += started.values()

    def _start(self, row: Row, lane: _Lane) -> _Running:
        slot = self.free_slots.pop()
        sampling = row.sampling
        edits = None
        if sampling.penalises or sampling.logit_bias:
            new_ids = sampling.max_new_tokens + len(set(row.prompt_ids)) if sampling.penalises else 0
            edits = Edits(sampling, row.prompt_ids, min(new_ids, self.engine.vocab_size))
        state = None if lane.generator is None else lane.generator.get_state()
        watch = None if row.new_watch is None else row.new_watch()
        running = _Running(row, lane, slot, edits, watch, state)
        self.rows[slot] = row_settings(row)
        if edits is not None:
            self.rows["edits"][slot] = edits.array.ctypes.data
        self.running[slot] = running
        return running

    def _window(self, ids: Sequence[int], overflow: str) -> tuple[int, ...]:
        """The part of ``ids`` that a fresh sequence reads."""
        if len(ids) <= self.block_size:
            return tuple(ids)
        return tuple(ids[-(max(1, self.block_size // 2) if overflow == "rebase" else self.block_size) :])

    def _open(self, window: tuple[int, ...]) -> _Sequence:
        """A new sequence about to read ``window``, or just its last token where a held prompt has the rest."""
        table = self.free_tables.pop()
        held = self.held.get(window)
        if held is None:
            return _Sequence(table, 0, list(window), [])
        self.held.move_to_end(window)
        self.cache.fork(held.table, table, held.length)
        return _Sequence(table, held.length, list(window[held.length :]), [])

    def _hold(self, window: tuple[int, ...], sequence: _Sequence) -> None:
        """Keep a prompt's keys and values for the rows still waiting to start on it."""
        if len(window) == 1 or window in self.held:
            return
        if len(self.held) == self.max_held:
            self._let_go(next(iter(self.held)))
        holder = _Sequence(self.free_tables.pop(), len(window) - 1, [], [])
        self.cache.fork(sequence.table, holder.table, holder.length)
        self.held[window] = holder

    def _let_go(self, window: tuple[int, ...]) -> None:
        self._close(self.held.pop(window).table)

    def _close(self, table: int) -> None:
        self.cache.release(table)
        self.free_tables.append(table)

    # -- forward ---------------------------------------------------------------------------------------------------------

    def _forward(self) -> Tensor:
        """Read every sequence's pending tokens; logits ``[sequences, vocab_size]`` after the last of each."""
        device = self.engine.device
        ends = {sequence.table: sequence.length + len(sequence.pending) for sequence in self.sequences}
        wanted = []
        for spans, ids in _passes(self.sequences):
            self.cache.extend(spans)
            reading = Reading.of(spans)
            if self.engine.use_kernels:
                attend = paged_attention_kernels(self.cache, reading, self.store, self.attend)
            else:
                attend = paged_attention(self.cache, reading)
            positions, kept = (torch.from_numpy(places).to(device) for places in (reading.positions, reading.kept))
            hidden = self.model.hidden(torch.tensor(ids, device=device), positions, attend, kept)
            wanted.append(hidden[[i for i, span in enumerate(spans) if span.end == ends[span.table]]])
        for sequence in self.sequences:
            window, fresh = tuple(sequence.pending), sequence.length == 0
            sequence.length += len(sequence.pending)
            sequence.pending = []
            if fresh and self.prompts_waiting[window] > 0:
                self._hold(window, sequence)
        for window in [w for w in self.held if self.prompts_waiting[w] == 0]:
            self._let_go(window)
        return self.model.logits(torch.cat(wanted))

    # -- choose ----------------------------------------------------------------------------------------------------------

    def _choose(self, logits: Tensor) -> None:
        """Choose every row's next token, into ``rows``."""
        counter, streams = [], []
        for place, sequence in enumerate(self.sequences):
            for running in sequence.members:
                self.rows["logits_row"][running.slot] = place
                self.rows["position"][running.slot] = len(running.token_ids)
                if running.edits is not None:
                    self.rows["n_edits"][running.slot] = len(running.edits)
                (counter if running.lane.generator is None else streams).append(running)
        slots = np.array([running.slot for running in counter], np.int64)
        if len(slots) and self.engine.use_kernels:
            logits = logits.to(self.engine.cache_dtype).contiguous()
            task = self.chooser.task
            task["n_rows"], task["stride"], task["vocab_size"] = len(slots), logits.shape[-1], self.engine.vocab_size
            task["logits"], task["rows"], task["order"] = logits.data_ptr(), self.rows.ctypes.data, slots.ctypes.data
            task["chunk"] = max(1, len(slots) // 32)
            self.chooser()
        elif len(slots):
            chosen = self.rows[slots]
            edits = [None if r.edits is None else r.edits.array[: len(r.edits)] for r in counter]
            choose(logits[:, : self.engine.vocab_size], chosen, edits)
            self.rows[slots] = chosen
        for running in streams:
            self._draw(running, logits[self.rows["logits_row"][running.slot]].float())

    def _draw(self, running: _Running, logits: Tensor) -> None:
        """Choose the next token of a row with ``rng=torch``."""
        record = self.rows[running.slot : running.slot + 1]
        logits = logits.clone()
        logits[self.engine.vocab_size :] = -torch.inf
        logprobs = logits.double().log_softmax(-1)
        if running.edits is not None:
            logits = edited(logits, record[0], running.edits.array[: len(running.edits)])
        assert running.lane.generator is not None
        token, sampler_logprob = nanogpt_choice(logits, running.row.sampling, running.lane.generator)
        record["token"], record["sampler_logprob"] = token, sampler_logprob
        record["logprob"] = float(logprobs[token])
        record["entropy"] = float(torch.special.entr(logprobs.exp()).sum())

    # -- advance ---------------------------------------------------------------------------------------------------------

    def _advance(self) -> list[Completion]:
        """Append the chosen tokens; finish, part and slide what has to."""
        if np.isnan(self.rows["logprob"][list(self.running)]).any():
            dtype = str(self.engine.dtype).removeprefix("torch.")
            raise ModelError("device.dtype", dtype, "the model's logits are not numbers; try float32, or check the checkpoint")
        columns = [self.rows[name].tolist() for name in ("token", "logprob", "sampler_logprob", "entropy")]
        chosen = list(zip(*columns, strict=True))
        finished: list[Completion] = []
        sequences: list[_Sequence] = []
        for sequence in self.sequences:
            full = sequence.length == self.block_size
            parting: dict[tuple[int, str], list[_Running]] = {}
            for running in sequence.members:
                token = chosen[running.slot][0]
                reason = running.accept(*chosen[running.slot])
                overflow = running.row.sampling.overflow if full else ""
                if reason is None and overflow == "stop":
                    reason = "overflow"
                if reason is None:
                    parting.setdefault((token, overflow), []).append(running)
                else:
                    finished.append(running.completion(reason))
                    self._retire(running)
            self.engine.progress.tokens += len(sequence.members)
            sequences += self._part(sequence, parting)
        self.sequences = sequences
        return finished

    def _retire(self, running: _Running) -> None:
        del self.running[running.slot]
        self.free_slots.append(running.slot)
        if running.lane.rows:
            self.waiting.appendleft(running.lane)

    def _part(self, sequence: _Sequence, parting: dict[tuple[int, str], list[_Running]]) -> list[_Sequence]:
        """The sequences on which the rows of ``sequence`` go on, each with the token that its rows chose pending."""
        groups = list(parting.items())
        if sequence.length == self.block_size or not groups:
            self._close(sequence.table)
            return [self._slide(members, overflow) for (_, overflow), members in groups]
        parts = [_Sequence(sequence.table, sequence.length, [groups[0][0][0]], groups[0][1])]
        for (token, _), members in groups[1:]:
            table = self.free_tables.pop()
            self.cache.fork(sequence.table, table, sequence.length)
            parts.append(_Sequence(table, sequence.length, [token], members))
        return parts

    def _slide(self, members: list[_Running], overflow: str) -> _Sequence:
        """A sequence about to read again what its rows keep of a full context: positions move, so nothing cached holds."""
        ids = (*members[0].row.prompt_ids, *members[0].token_ids)
        return _Sequence(self.free_tables.pop(), 0, list(self._window(ids, overflow)), members)


def positions_needed(row: Row, block_size: int) -> int:
    """How many positions of the cache a row can come to use."""
    return min(block_size, len(row.prompt_ids) + row.sampling.max_new_tokens)


def _lanes(rows: Iterable[Row]) -> list[_Lane]:
    """Rows with ``rng=torch`` that differ in nothing but sample_index share a stream, and so a lane, in that order."""
    lanes: list[_Lane] = []
    streams: dict[tuple[Any, ...], _Lane] = {}
    for row in rows:
        if row.sampling.rng == "counter":
            lanes.append(_Lane(deque([row])))
            continue
        stream = (row.sampling, row.noise_key, row.prompt_index, row.prompt_ids)
        if stream not in streams:
            streams[stream] = _Lane(deque(), torch.Generator().manual_seed(row.noise_key))
            lanes.append(streams[stream])
        streams[stream].rows.append(row)
    return lanes


def _passes(sequences: Sequence[_Sequence]) -> Iterator[tuple[list[Span], list[int]]]:
    """Cut the pending tokens of all sequences into passes of bounded size: spans and the ids in them."""
    spans: list[Span] = []
    ids: list[int] = []
    for sequence in sequences:
        done = 0
        while done < len(sequence.pending):
            taken = min(len(sequence.pending) - done, _TOKENS_A_PASS - len(ids))
            begin = sequence.length + done
            spans.append(Span(sequence.table, begin, begin + taken))
            ids += sequence.pending[done : done + taken]
            done += taken
            if len(ids) == _TOKENS_A_PASS:
                yield spans, ids
                spans, ids = [], []
    if spans:
        yield spans, ids


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def available_memory(device: torch.device) -> int:
    """Bytes that could be allocated now on ``device``."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
