"""Rows in, completions out: one decode loop over rows with settings of their own. It sees token ids, never text.

A step is schedule, forward, sample, advance. What the forward pass works on are sequences, not rows: rows whose ids so far are
equal ride on one sequence, and part when they sample different tokens. Prefill is a sequence with many pending tokens, decode
one with a single pending token, and both go through the same pass; a sequence that slides its window is simply read again.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..display import get_logger
from ..errors import ModelError
from ..kernels.abi import PAGE, ROW
from ..memory import host_memory
from ..models.gpt2 import GPT, GPTConfig
from ..models.linear import Int8Linear, row_invariant
from ..records import Completion, FinishReason, Prefix, Row, Sampling
from .attention import paged_attention, paged_attention_by_kernels
from .cuda_graphs import DecodeSteps
from .kv_cache import AttentionMetadata, KVCache, Span, pages_for
from .sampler import (
    LogitAdjustments,
    adjusted,
    nanogpt_sample,
    nanogpt_stream,
    row_record,
    sample,
    sample_by_kernel,
    stream_at,
    summed,
)

try:
    from ..kernels import runtime as kernels
except ImportError:  # numba has no wheel for this platform
    kernels = None  # type: ignore[assignment]

log = get_logger(__name__)

MOST_ROWS = 256
"""Rows decoded together unless the caller says otherwise: more gain nothing on the CPUs measured (benchmarks/README.md)."""
_TOKENS_A_PASS = 2048
_HELD_PROMPTS = 16
_SHARE_OF_MEMORY = 0.4
_WORTH_A_MEASUREMENT = 50
"""Windows to read again from which on reading one beforehand, to say what they cost, is a small part of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Bounds on the rows of a run, known before the first.

    How many rows, the most tokens in a prompt and in a whole row, the most new tokens of all rows together, those of prefixes
    left out, and for how many of those the model reads a whole window again (`windows_read`).
    """

    rows: int
    prompt_tokens: int
    row_tokens: int
    new_tokens: int
    windows: int = 0

    @classmethod
    def of(cls, rows: Sequence[Row], block_size: int) -> Workload:
        """The bounds of rows that are all there."""
        return cls(
            rows=len(rows),
            prompt_tokens=max((len(row.prompt_ids) for row in rows), default=1),
            row_tokens=max((len(row.prompt_ids) + row.sampling.max_new_tokens for row in rows), default=1),
            new_tokens=sum(row.sampling.max_new_tokens - row.begun for row in rows),
            windows=sum(
                windows_read(row.sampling, len(row.prompt_ids), row.sampling.max_new_tokens, block_size, row.begun)
                for row in rows
            ),
        )


def windows_read(sampling: Sampling, prompt_tokens: int, new_tokens: int, block_size: int, begun: int = 0) -> int:
    """For how many of a row's first ``new_tokens`` the model reads a whole window again: with ``crop``, past the context.

    The first ``begun`` of them are there already.
    """
    if sampling.overflow != "crop":
        return 0
    room = 1 + max(0, block_size - prompt_tokens)
    return max(0, new_tokens - room) - max(0, begun - room)


@dataclass(slots=True)
class Progress:
    """What the engine has done: rows now in flight, tokens sampled so far, and at the end if no row stops early from here on.

    ``windows`` counts those of the tokens for which a whole window was read again. ``window_seconds`` is what reading one
    takes, as measured beforehand; None: there are too few of them, or nobody watches.

    ``unfinished`` gives the rows that were begun and have not ended, each with what it has so far. It may be called at any
    moment, also after an error has ended the run.
    """

    rows_in_flight: int = 0
    tokens: int = 0
    tokens_total: int = 0
    windows: int = 0
    windows_total: int = 0
    window_seconds: float | None = None
    unfinished: Callable[[], list[tuple[Row, Prefix]]] = list


OnStep = Callable[[Progress], None]


@dataclass(slots=True)
class _Lane:
    """Rows to run one after another: a single one, or with ``rng=torch`` all that draw from one stream.

    ``prefix`` is what the first of ``rows`` has already.
    """

    rows: deque[Row]
    generator: torch.Generator | None = None
    prefix: Prefix | None = None


@dataclass(slots=True, eq=False)
class _Running:
    """A row in flight.

    ``sums`` are a count of tokens, what was summed over as many, and the state of the stream after them. They are replaced as
    one, so that they agree at any moment.
    """

    row: Row
    lane: _Lane
    slot: int
    adjustments: LogitAdjustments | None
    stop_matcher: Callable[[int], bool] | None
    token_ids: list[int]
    sums: tuple[int, float, float, float, Tensor | None]

    def accept(self, token: int, logprob: float, sampler_logprob: float, entropy: float) -> FinishReason | None:
        """Append a chosen token; why the row is finished, or None."""
        self.token_ids.append(token)
        _, a, b, c, _ = self.sums
        state = None if self.lane.generator is None else self.lane.generator.get_state()
        self.sums = len(self.token_ids), a + logprob, b + sampler_logprob, c + entropy, state
        if self.row.sampling.stop_at_eot and token == self.row.eot_id:
            return "eot"
        if self.stop_matcher is not None and self.stop_matcher(token):
            return "stop"
        if len(self.token_ids) == self.row.sampling.max_new_tokens:
            return "length"
        if self.adjustments is not None:
            self.adjustments.add(token)
        return None

    @property
    def prefix(self) -> Prefix:
        """What the row has so far."""
        n, logprob, sampler_logprob, entropy, state = self.sums
        return Prefix(
            token_ids=tuple(self.token_ids[:n]),
            logprob=logprob,
            sampler_logprob=sampler_logprob,
            entropy=entropy,
            stream=None if state is None else state.numpy().tobytes(),
        )

    def completion(self, reason: FinishReason) -> Completion:
        n, logprob, sampler_logprob, entropy, _ = self.sums
        return Completion(
            row=self.row,
            token_ids=tuple(self.token_ids),
            finish_reason=reason,
            logprob_mean=logprob / n,
            sampler_logprob_mean=sampler_logprob / n,
            entropy_mean=entropy / n,
        )


@dataclass(slots=True, eq=False)
class _Sequence:
    """Token ids that the model has read (``length``, in the cache) or is about to (``pending``), and the rows on it.

    ``prompt`` is what it begins with that later rows may begin with, until it is held for them.
    """

    table: int
    length: int
    pending: list[int]
    members: list[_Running]
    prompt: tuple[int, ...] = ()


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
        self.device = model.embedding.device
        self.dtype = model.embedding.dtype
        self.use_kernels = use_kernels and kernels is not None and self.device.type == "cpu"
        self.use_graphs = self.device.type == "cuda"
        self.promise = self.use_kernels and row_invariant(model)
        self._measured_window: float | None = None

    def run(self, rows: Iterable[Row], workload: Workload | None = None, on_step: OnStep | None = None) -> Iterator[Completion]:
        """Generate a completion for every row, and yield each as it finishes.

        Rows are taken from ``rows`` when there is room for them, and started in that order; those with ``rng=torch`` that
        share a stream must come one after another. When memory runs out, half as many are tried together.

        Args:
            rows: the rows, made as late as the caller likes.
            workload: their bounds; None looks at all rows first.
            on_step: called after each step, its completions yielded; what it raises ends the run.

        Raises:
            ModelError: the model's logits are not numbers.
        """
        if workload is None:
            rows = list(rows)
            workload = Workload.of(rows, self.model.config.block_size)
        waiting = _Waiting(rows, self.model.config)
        max_rows = min(self.max_rows or self._planned_rows(workload), max(1, workload.rows))
        progress = Progress(tokens_total=workload.new_tokens, windows_total=workload.windows)
        if on_step is not None and workload.windows >= _WORTH_A_MEASUREMENT:
            progress.window_seconds = self._window_seconds(workload)
        while waiting:
            flight = None
            try:
                flight = _Flight(self, waiting, workload, max_rows, progress)
                progress.unfinished = partial(_unfinished, waiting, flight.running)
                while flight.busy:
                    with torch.inference_mode():
                        finished = flight.step()
                    yield from finished
                    if on_step is not None:
                        on_step(progress)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or max_rows == 1:
                    raise
                max_rows //= 2
                log.warning("out of memory: going on with %d rows at a time", max_rows)
                if flight is not None:
                    flight.requeue()

    def _planned_rows(self, workload: Workload) -> int:
        config = self.model.config
        positions = PAGE * pages_for(min(config.block_size, workload.row_tokens))
        row_bytes = positions * 2 * config.n_layer * config.n_embd * self.cache_dtype.itemsize + 4 * config.vocab_size
        return max(1, min(MOST_ROWS, int(_SHARE_OF_MEMORY * available_memory(self.device) / row_bytes)))

    def _window_seconds(self, workload: Workload) -> float:
        """How long reading a whole window takes. The first time that it is asked for, the log says what that comes to."""
        if self._measured_window is not None:
            return self._measured_window
        window = tuple(i % self.vocab_size for i in range(self.model.config.block_size))
        row = Row(prompt_ids=window, sampling=Sampling(max_new_tokens=1, temperature=0.0), noise_key=0)
        seconds = math.inf
        for _ in range(2):  # the first reading of a length may prepare for it
            begin = time.perf_counter()
            list(self.run([row]))
            seconds = min(seconds, time.perf_counter() - begin)
            if seconds > 1:
                break
        log.info(
            "%s tokens come after the context of %s: sampling.overflow=crop reads the whole window again for each, about %s"
            " in all; sampling.overflow=rebase is fast, and stop ends a sample there",
            f"{workload.windows:,}", f"{len(window):,}", timedelta(seconds=math.ceil(seconds * workload.windows)),
        )  # fmt: skip
        self._measured_window = seconds
        return seconds

    @property
    def cache_dtype(self) -> torch.dtype:
        """The dtype of keys and values: the model's where the attention has it, else float32; with int8 layers bfloat16.

        Rounding to bfloat16 is a small part of what int8 layers round, and reading them is a good part of a step.
        """
        if self.use_kernels and isinstance(self.model.lm_head, Int8Linear):
            return torch.bfloat16
        return self.logits_dtype

    @property
    def logits_dtype(self) -> torch.dtype:
        """The dtype of logits: the model's where the sampler has it, else float32."""
        return torch.float32 if self.use_kernels and self.dtype != torch.bfloat16 else self.dtype


class _Flight:
    """The rows in flight and everything they need; one lives until its rows are done or memory runs out."""

    def __init__(self, engine: Engine, waiting: _Waiting, workload: Workload, max_rows: int, progress: Progress) -> None:
        self.engine, self.model, self.waiting, self.progress = engine, engine.model, waiting, progress
        config = engine.model.config
        self.block_size = config.block_size
        self.running: dict[int, _Running] = {}
        self.opened: dict[tuple[int, ...], int] = {}
        self.sequences: list[_Sequence] = []
        self.rows = np.zeros(max_rows, ROW)
        self.max_held = min(_HELD_PROMPTS, workload.rows)
        self.held: OrderedDict[tuple[int, ...], _Sequence] = OrderedDict()
        self.free_slots = list(range(max_rows - 1, -1, -1))
        self.free_tables = list(range(max_rows + self.max_held - 1, -1, -1))
        row_pages = pages_for(min(config.block_size, workload.row_tokens))
        held_pages = pages_for(min(config.block_size, workload.prompt_tokens))
        self.cache = KVCache(
            config,
            n_pages=max_rows * row_pages + self.max_held * held_pages + engine.use_graphs,
            n_tables=len(self.free_tables),
            dtype=engine.cache_dtype,
            device=engine.device,
        )
        if engine.use_kernels:
            self.store = kernels.Kernel("store", engine.cache_dtype)
            self.attend = kernels.Kernel("attend", engine.cache_dtype)
            self.sampler = kernels.Kernel("sample", engine.logits_dtype)
        self.decode = DecodeSteps(self.model, self.cache) if engine.use_graphs else None

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def step(self) -> list[Completion]:
        """One more token for every row in flight; the rows that finished with it."""
        self._schedule()
        logits = self._forward()
        self._sample(logits)
        return self._advance()

    def requeue(self) -> None:
        """Put the rows in flight back to wait, with what they have."""
        for running in reversed(self.running.values()):
            lane = running.lane
            lane.rows.appendleft(running.row)
            lane.prefix = running.prefix
            if lane.prefix.stream is not None:
                lane.generator = stream_at(lane.prefix.stream)
            self.waiting.put_back(lane)
        self.running.clear()

    # -- schedule --------------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Start waiting rows in the free slots; rows whose ids so far are equal start on one sequence."""
        self.opened = {}
        started: dict[tuple[int, ...], _Sequence] = {}
        while self.free_slots and self.waiting:
            running = self._start(self.waiting.next())
            window = self._window(running)
            if window not in started:
                started[window] = self._open(window, running)
            started[window].members.append(running)
        self.sequences += started.values()

    def _start(self, lane: _Lane) -> _Running:
        row, prefix = lane.rows.popleft(), lane.prefix or Prefix()
        lane.prefix = None
        slot = self.free_slots.pop()
        sampling = row.sampling
        adjustments = None
        if sampling.penalises or sampling.logit_bias:
            new_ids = sampling.max_new_tokens + len(set(row.prompt_ids)) if sampling.penalises else 0
            adjustments = LogitAdjustments(sampling, row.prompt_ids, min(new_ids, self.engine.vocab_size))
        stop_matcher = None if row.new_stop_matcher is None else row.new_stop_matcher()
        for token in prefix.token_ids:
            if stop_matcher is not None:
                stop_matcher(token)
            if adjustments is not None:
                adjustments.add(token)
        state = None if lane.generator is None else lane.generator.get_state()
        sums = len(prefix.token_ids), prefix.logprob, prefix.sampler_logprob, prefix.entropy, state
        running = _Running(row, lane, slot, adjustments, stop_matcher, list(prefix.token_ids), sums)
        self.rows[slot] = row_record(row)
        if adjustments is not None:
            self.rows["edits"][slot] = adjustments.array.ctypes.data
        self.running[slot] = running
        return running

    def _window(self, running: _Running) -> tuple[int, ...]:
        """The ids of a row that its next token is chosen after: all of them, or what a full context keeps."""
        row, new = running.row, len(running.token_ids)
        size, half = self.block_size, max(1, self.block_size // 2)
        length = len(row.prompt_ids) + new
        if row.sampling.overflow == "rebase":
            if len(row.prompt_ids) > size:
                length = half + new
            if length > size:  # a full one drops to half, and fills up again
                length = half + (length - size - 1) % (size - half + 1)
        return (*row.prompt_ids, *running.token_ids)[-min(length, size) :]

    def _open(self, window: tuple[int, ...], running: _Running) -> _Sequence:
        """A new sequence about to read ``window``, without what a held prompt or one opened in this step has of it."""
        table = self.free_tables.pop()
        row, new = running.row, len(running.token_ids)
        prompt = window if new == 0 else row.prompt_ids if len(window) == len(row.prompt_ids) + new else ()
        source, length = None, 0
        if prompt in self.held:
            self.held.move_to_end(prompt)
            source, length = self.held[prompt].table, self.held[prompt].length
            prompt = ()
        for end in range(PAGE, len(window), PAGE):
            other = self.opened.setdefault(window[:end], table)
            if other != table and end > length:
                source, length = other, end
        if source is not None:
            self.cache.fork(source, table, length)
        self.cache.extend([Span(table, length, len(window))])
        return _Sequence(table, length, list(window[length:]), [], prompt if len(prompt) > 1 else ())

    def _hold(self, window: tuple[int, ...], sequence: _Sequence) -> None:
        """Keep a prompt's keys and values for rows that start on it later."""
        if len(self.held) == self.max_held:
            self._close(self.held.popitem(last=False)[1].table)
        holder = _Sequence(self.free_tables.pop(), len(window) - 1, [], [])
        self.cache.fork(sequence.table, holder.table, holder.length)
        self.held[window] = holder

    def _close(self, table: int) -> None:
        self.cache.release(table)
        self.free_tables.append(table)

    # -- forward ---------------------------------------------------------------------------------------------------------

    def _forward(self) -> Tensor:
        """Read every sequence's pending tokens; logits ``[sequences, vocab_size]`` after the last of each."""
        ends = {sequence.table: sequence.length + len(sequence.pending) for sequence in self.sequences}
        wanted = []
        opened = set(self.opened.values())  # these have their pages, which others read
        for spans, ids in _passes(self.sequences):
            if grown := [span for span in spans if span.table not in opened] if opened else spans:
                self.cache.extend(grown)
            hidden = self._read(ids, AttentionMetadata.of(spans))
            wanted.append(hidden[[i for i, span in enumerate(spans) if span.end == ends[span.table]]])
        for sequence in self.sequences:
            read, sequence.pending = sequence.pending, []
            sequence.length += len(read)
            if len(read) == self.block_size and sequence.members[0].token_ids:
                self.progress.windows += len(sequence.members)
            if sequence.prompt and sequence.prompt not in self.held:
                self._hold(sequence.prompt, sequence)
            sequence.prompt = ()
        return self.model.logits(torch.cat(wanted))

    def _read(self, ids: list[int], metadata: AttentionMetadata) -> Tensor:
        """Hidden states ``float32 [kept, n_embd]`` of one pass."""
        if self.decode is not None and len(ids) == len(metadata.kept):
            return self.decode(ids, metadata)
        if self.engine.use_kernels:
            attend = paged_attention_by_kernels(self.cache, metadata, self.store, self.attend)
        else:
            attend = paged_attention(self.cache, metadata)
        device = self.engine.device
        positions, kept = (torch.from_numpy(places).to(device) for places in (metadata.positions, metadata.kept))
        return self.model.hidden(torch.tensor(ids, device=device), positions, attend, kept)

    # -- sample ----------------------------------------------------------------------------------------------------------

    def _sample(self, logits: Tensor) -> None:
        """Sample every row's next token, into ``rows``."""
        seated = [(running, place) for place, sequence in enumerate(self.sequences) for running in sequence.members]
        everyone = [running.slot for running, _ in seated]
        self.rows["logits_row"][everyone] = [place for _, place in seated]
        self.rows["position"][everyone] = [len(running.token_ids) for running, _ in seated]
        for running, _ in seated:
            if running.adjustments is not None:
                self.rows["n_edits"][running.slot] = len(running.adjustments)
        counter = [running for running, _ in seated if running.lane.generator is None]
        streams = [running for running, _ in seated if running.lane.generator is not None]
        slots = np.array([running.slot for running in counter], np.int64)
        if len(slots) and self.engine.use_kernels:
            logits = logits.to(self.engine.logits_dtype).contiguous()
            sample_by_kernel(self.sampler, logits, self.rows, slots, self.engine.vocab_size)
        elif len(slots):
            chosen = self.rows[slots]
            adjustments = [None if r.adjustments is None else r.adjustments.array[: len(r.adjustments)] for r in counter]
            sample(logits[:, : self.engine.vocab_size], chosen, adjustments)
            self.rows[slots] = chosen
        for running in streams:
            self._draw(running, logits[self.rows["logits_row"][running.slot]].float().cpu())

    def _draw(self, running: _Running, logits: Tensor) -> None:
        """Sample the next token of a row with ``rng=torch``."""
        record = self.rows[running.slot : running.slot + 1]
        if not logits.isfinite().all():
            record["logprob"] = torch.nan
            return
        logits = logits.clone()
        logits[self.engine.vocab_size :] = -torch.inf
        logprobs = logits.double().log_softmax(-1)
        if running.adjustments is not None:
            logits = adjusted(logits, record[0], running.adjustments.array[: len(running.adjustments)])
        assert running.lane.generator is not None
        token, sampler_logprob = nanogpt_sample(logits, running.row.sampling, running.lane.generator)
        record["token"], record["sampler_logprob"] = token, sampler_logprob
        record["logprob"] = float(logprobs[token])
        record["entropy"] = float(summed(torch.special.entr(logprobs.exp())))

    # -- advance ---------------------------------------------------------------------------------------------------------

    def _advance(self) -> list[Completion]:
        """Append the chosen tokens; finish, part and slide what has to."""
        records = self.rows[list(self.running)]
        if not np.isfinite(records["logprob"] + records["entropy"]).all():
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
            self.progress.tokens += len(sequence.members)
            sequences += self._part(sequence, parting)
        self.sequences = sequences
        self.progress.rows_in_flight = len(self.running)
        return finished

    def _retire(self, running: _Running) -> None:
        wanted, got = running.row.sampling.max_new_tokens, len(running.token_ids)
        self.progress.tokens_total -= wanted - got
        self.progress.windows_total -= self._windows_read(running, wanted) - self._windows_read(running, got)
        del self.running[running.slot]
        self.free_slots.append(running.slot)
        if running.lane.rows:
            running.lane.prefix = Prefix(stream=running.prefix.stream)
            self.waiting.put_back(running.lane)

    def _windows_read(self, running: _Running, new_tokens: int) -> int:
        return windows_read(running.row.sampling, len(running.row.prompt_ids), new_tokens, self.block_size)

    def _part(self, sequence: _Sequence, parting: dict[tuple[int, str], list[_Running]]) -> list[_Sequence]:
        """The sequences on which the rows of ``sequence`` go on, each with the token that its rows chose pending."""
        groups = list(parting.items())
        if sequence.length == self.block_size or not groups:
            self._close(sequence.table)
            return [self._slide(members) for _, members in groups]
        parts = [_Sequence(sequence.table, sequence.length, [groups[0][0][0]], groups[0][1])]
        for (token, _), members in groups[1:]:
            table = self.free_tables.pop()
            self.cache.fork(sequence.table, table, sequence.length)
            parts.append(_Sequence(table, sequence.length, [token], members))
        return parts

    def _slide(self, members: list[_Running]) -> _Sequence:
        """A sequence about to read again what its rows keep of a full context: positions move, so nothing cached holds."""
        return _Sequence(self.free_tables.pop(), 0, list(self._window(members[0])), members)


class _Waiting:
    """The lanes not in flight, made from rows no earlier than they are asked for."""

    def __init__(self, rows: Iterable[Row], config: GPTConfig) -> None:
        self._returned: deque[_Lane] = deque()
        self._lanes = _lanes(rows, config)

    def __bool__(self) -> bool:
        if not self._returned:
            self._returned.extend(itertools.islice(self._lanes, 1))
        return bool(self._returned)

    def next(self) -> _Lane:
        """The lane to start next; there must be one."""
        return self._returned.popleft()

    def put_back(self, lane: _Lane) -> None:
        """Let ``lane`` be next."""
        self._returned.appendleft(lane)

    def begun(self) -> list[tuple[Row, Prefix]]:
        """The rows that go on after what they have when they are next."""
        return [(lane.rows[0], lane.prefix) for lane in self._returned if lane.prefix is not None]


def _lanes(rows: Iterable[Row], config: GPTConfig) -> Iterator[_Lane]:
    """A lane for each row; rows with ``rng=torch`` that differ in nothing but sample_index draw from one stream in turn."""

    def stream(row: Row) -> object:
        return row if row.sampling.rng == "counter" else (row.sampling, row.noise_key, row.prompt_index, row.prompt_ids)

    for _, group in itertools.groupby(rows, stream):
        lane = deque(group)
        prefix = lane[0].prefix
        if lane[0].sampling.rng == "counter":
            yield from (_Lane(deque([row]), None, row.prefix) for row in lane)
        elif prefix is None or prefix.stream is None:
            yield _Lane(lane, nanogpt_stream(config, lane[0].noise_key))
        else:
            yield _Lane(lane, stream_at(prefix.stream), prefix)


def _unfinished(waiting: _Waiting, running: dict[int, _Running]) -> list[tuple[Row, Prefix]]:
    return [(each.row, each.prefix) for each in running.values()] + waiting.begun()


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


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is what an allocator raises; torch's for CPUs has no type of its own."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def available_memory(device: torch.device) -> int:
    """Bytes that could be allocated now on ``device``."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return host_memory()
