"""Decides which rows decode and which token ids the model reads next, and appends what was sampled.

The model reads sequences, not rows: rows whose ids so far are equal share one sequence until they sample different tokens.
Prefill is a sequence with many pending tokens, decode one with a single pending token. When a full context drops its oldest
tokens, positions change, so the sequence is read again from its start.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..kernels.abi import PAGE, ROW
from ..models.architecture import NO_TOKEN
from ..records import Completion, FinishReason, Prefix, Row, TokenLogprobs
from .backend import BackendProgress, windows_read
from .history import LogitAdjustments
from .kv_cache import KVCache, Span
from .sampler import kernel_samples, row_record, stream_at
from .stopping import Repetition
from .waiting import Stream, WaitingQueue

NewStopMatcher = Callable[[tuple[str, ...]], Callable[[int], bool]]
"""Makes the stop matcher of a sample from its stop strings."""


_GOES_ON = ""
"""Stands for ``overflow`` while a row's context has room or is unlimited."""


def no_stop_strings(stops: tuple[str, ...]) -> Callable[[int], bool]:
    """The `NewStopMatcher` for rows without stop strings."""
    raise ValueError(f"stop strings {stops} need an engine with a stop_matcher")


@dataclass(slots=True, eq=False)
class RunningRow:
    """A row that is decoding. ``slot`` is its index in `Scheduler.records`; for ``kernel_samples`` see `sampler`.

    ``sums`` has the number of tokens; their summed logprob, sampler logprob and entropy in nats; and the state of the stream
    after them. It is replaced atomically, so that it is consistent whenever another thread or a signal handler reads it.
    ``logprobs`` has one record per token, and may already have that of the next, if the row requests them.
    """

    row: Row
    stream: Stream
    slot: int
    kernel_samples: bool
    adjustments: LogitAdjustments | None
    stop_matcher: Callable[[int], bool] | None
    repetition: Repetition | None
    token_ids: list[int]
    sums: tuple[int, float, float, float, Tensor | None]
    logprobs: list[TokenLogprobs]

    def append(self, token: int, logprob: float, sampler_logprob: float, entropy: float) -> FinishReason | None:
        """Append a sampled token. Returns why the row is finished, or None."""
        self.token_ids.append(token)
        _, a, b, c, _ = self.sums
        state = None if self.stream.generator is None else self.stream.generator.get_state()
        self.sums = len(self.token_ids), a + logprob, b + sampler_logprob, c + entropy, state
        if self.row.sampling.stop_at_eot and token in self.row.end_tokens:
            return "eot"
        if self.stop_matcher is not None and self.stop_matcher(token):
            return "stop"
        if token in self.row.sampling.stop_token_ids:
            return "stop"
        if self.repetition is not None and self.repetition(token):
            return "repetition"
        if len(self.token_ids) == self.row.sampling.max_new_tokens:
            return "length"
        if self.adjustments is not None:
            self.adjustments.add(token)
        return None

    @property
    def prefix(self) -> Prefix:
        """The row's tokens and sums so far."""
        n, logprob, sampler_logprob, entropy, state = self.sums
        return Prefix(
            token_ids=tuple(self.token_ids[:n]),
            logprob=logprob,
            sampler_logprob=sampler_logprob,
            entropy=entropy,
            stream=None if state is None else state.numpy().tobytes(),
            logprobs=tuple(self.logprobs[:n]),
        )

    def completion(self, reason: FinishReason) -> Completion:
        """The completion of the finished row."""
        n, logprob, sampler_logprob, entropy, _ = self.sums
        return Completion(
            row=self.row,
            token_ids=tuple(self.token_ids),
            finish_reason=reason,
            logprob_mean=logprob / n,
            sampler_logprob_mean=sampler_logprob / n,
            entropy_mean=entropy / n,
            logprobs=tuple(self.logprobs),
        )


@dataclass(slots=True, eq=False)
class SharedSequence:
    """Token ids that the model reads once for all ``rows``: ``length`` of them are in the cache, and ``pending`` come next.

    ``prompt`` is the prompt to add to the prefix cache once ``pending`` has been read; empty: none. ``previous`` is the token
    before ``pending``, `NO_TOKEN` if there is none.
    """

    block_table: int
    length: int
    pending: list[int]
    rows: list[RunningRow]
    prompt: tuple[int, ...] = ()
    previous: int = NO_TOKEN


class Scheduler:
    """Starts rows, decides which sequences the model reads, and appends sampled tokens.

    Args:
        waiting: the rows to decode.
        cache: empty, with a block table for each of ``max_rows`` rows and ``max_cached_prompts`` prompts.
        max_rows: the maximum number of rows that decode together.
        max_cached_prompts: size of the prefix cache.
        block_size: the number of tokens in a full context.
        extends_to: the same for a row with ``overflow=extend``.
        vocab_size: token ids are below it.
        stop_matcher: as in `Engine`.
        progress: updated after each step.

    Attributes:
        records: `ROW` records ``[max_rows]``; a running row's is at its slot.
        sequences: what the model reads in this step.
        running: the running rows by slot.
    """

    def __init__(
        self,
        waiting: WaitingQueue,
        cache: KVCache,
        *,
        max_rows: int,
        max_cached_prompts: int,
        block_size: int,
        extends_to: int,
        vocab_size: int,
        stop_matcher: NewStopMatcher,
        progress: BackendProgress,
    ) -> None:
        self.waiting, self.cache, self.progress = waiting, cache, progress
        self.block_size, self.extends_to = block_size, extends_to
        self.vocab_size, self.stop_matcher = vocab_size, stop_matcher
        self.running: dict[int, RunningRow] = {}
        self.sequences: list[SharedSequence] = []
        self.records = np.zeros(max_rows, ROW)
        self.free_slots = list(range(max_rows - 1, -1, -1))
        self.free_block_tables = list(range(max_rows + max_cached_prompts - 1, -1, -1))
        self.max_cached_prompts = max_cached_prompts
        self.prefix_cache: OrderedDict[tuple[int, ...], SharedSequence] = OrderedDict()
        """Prompts read before, without their last token, least recently used first."""
        self._prefilling: dict[tuple[int, ...], int] = {}
        """Ids that fill complete pages, and the block table of the sequence started in this step that reads them."""

    @property
    def busy(self) -> bool:
        """Whether rows are waiting or running."""
        return bool(self.waiting or self.running)

    def requeue(self) -> None:
        """Return the running rows to the front of the queue, with their tokens so far."""
        for running in reversed(self.running.values()):
            stream = running.stream
            stream.rows.appendleft(running.row)
            stream.prefix = running.prefix
            if stream.prefix.stream is not None:
                stream.generator = stream_at(stream.prefix.stream)
            self.waiting.push_front(stream)
        self.running.clear()

    # -- schedule --------------------------------------------------------------------------------------------------------

    def schedule(self) -> list[SharedSequence]:
        """Start waiting rows in the free slots, and give every sequence pages for its pending tokens.

        Returns:
            The sequences to read, each with one pending token or more. Every running row is on one of them.
        """
        self._prefilling = {}
        started: dict[tuple[int, ...], SharedSequence] = {}
        while self.free_slots and self.waiting:
            running = self._start(self.waiting.pop())
            window = self._window(running)
            if window not in started:
                started[window] = self._start_sequence(window, running)
            started[window].rows.append(running)
        if self.sequences:
            self.cache.extend([Span(s.block_table, s.length, s.length + len(s.pending)) for s in self.sequences])
        self.sequences += started.values()
        return self.sequences

    def _start(self, stream: Stream) -> RunningRow:
        row, prefix = stream.rows.popleft(), stream.prefix or Prefix()
        stream.prefix = None
        slot = self.free_slots.pop()
        sampling = row.sampling
        adjustments = LogitAdjustments.of(row, self.vocab_size)
        stop_matcher = self.stop_matcher(sampling.stop) if sampling.stop else None
        repetition = Repetition(*sampling.stop_on_repetition) if sampling.stop_on_repetition else None
        for token in prefix.token_ids:
            if stop_matcher is not None:
                stop_matcher(token)
            if repetition is not None:
                repetition(token)
            if adjustments is not None:
                adjustments.add(token)
        state = None if stream.generator is None else stream.generator.get_state()
        sums = len(prefix.token_ids), prefix.logprob, prefix.sampler_logprob, prefix.entropy, state
        by_kernel, token_ids = kernel_samples(sampling), list(prefix.token_ids)
        logprobs = list(prefix.logprobs) if sampling.logprobs else []
        running = RunningRow(row, stream, slot, by_kernel, adjustments, stop_matcher, repetition, token_ids, sums, logprobs)
        self.records[slot] = row_record(row)
        if adjustments is not None:
            adjustments.place(self.records[slot])
        self.running[slot] = running
        return running

    def _window(self, running: RunningRow) -> tuple[int, ...]:
        """The ids that the next token of a row depends on: all of them, or what a full context keeps."""
        row, new = running.row, len(running.token_ids)
        size, half = self.block_size, max(1, self.block_size // 2)
        length = len(row.prompt_ids) + new
        if row.sampling.overflow == "extend":
            size = max(size, self.extends_to)
        if row.sampling.overflow == "rebase":
            if len(row.prompt_ids) > size:
                length = half + new
            if length > size:  # a full context drops to half, and fills up again
                length = half + (length - size - 1) % (size - half + 1)
        return (*row.prompt_ids, *running.token_ids)[-min(length, size) :]

    def _start_sequence(self, window: tuple[int, ...], running: RunningRow) -> SharedSequence:
        """A sequence for ``window`` that reuses what the prefix cache or a sequence started in this step has of it."""
        block_table = self.free_block_tables.pop()
        row, new = running.row, len(running.token_ids)
        prompt = window if new == 0 else row.prompt_ids if len(window) == len(row.prompt_ids) + new else ()
        source, length = None, 0
        if prompt in self.prefix_cache:
            self.prefix_cache.move_to_end(prompt)
            source, length = self.prefix_cache[prompt].block_table, self.prefix_cache[prompt].length
            prompt = ()
        for end in range(PAGE, len(window), PAGE):
            other = self._prefilling.setdefault(window[:end], block_table)
            if other != block_table and end > length:
                source, length = other, end
        if source is not None:
            self.cache.fork(source, block_table, length)
        self.cache.extend([Span(block_table, length, len(window))])
        previous = window[length - 1] if length else NO_TOKEN
        return SharedSequence(block_table, length, list(window[length:]), [], prompt if len(prompt) > 1 else (), previous)

    # -- postprocess -----------------------------------------------------------------------------------------------------

    def postprocess(self) -> list[Completion]:
        """Append the tokens in ``records`` to their rows, and set up the sequences of the next step.

        Returns:
            The rows that finished, by prompt and sample: whoever watches reads them in this order.
        """
        columns = [self.records[name].tolist() for name in ("token", "logprob", "sampler_logprob", "entropy")]
        sampled = list(zip(*columns, strict=True))
        finished: list[Completion] = []
        sequences: list[SharedSequence] = []
        for sequence in self.sequences:
            self._mark_read(sequence)
        for sequence in self.sequences:
            full = sequence.length == self.block_size
            groups: dict[tuple[int, str], list[RunningRow]] = {}
            for running in sequence.rows:
                token = sampled[running.slot][0]
                reason = running.append(*sampled[running.slot])
                overflow = running.row.sampling.overflow
                extends = overflow == "extend"
                if reason is None and (sequence.length == self.extends_to if extends else full and overflow == "stop"):
                    reason = "overflow"
                overflow = overflow if full and not extends else _GOES_ON
                if reason is None:
                    groups.setdefault((token, overflow), []).append(running)
                else:
                    finished.append(running.completion(reason))
                    self._finish(running)
            self.progress.tokens += len(sequence.rows)
            sequences += self._split(sequence, groups)
        self.sequences = sequences
        self.progress.rows_in_flight = len(self.running)
        return sorted(finished, key=lambda each: (each.row.prompt_index, each.row.sample_index))

    def _mark_read(self, sequence: SharedSequence) -> None:
        """Count the pending tokens as read, and add a new prompt to the prefix cache."""
        read, sequence.pending = sequence.pending, []
        sequence.length += len(read)
        sequence.previous = read[-1]
        if len(read) == self.block_size and sequence.rows[0].token_ids:
            self.progress.windows += sum(running.row.sampling.overflow == "crop" for running in sequence.rows)
        if sequence.prompt and sequence.prompt not in self.prefix_cache:
            if len(self.prefix_cache) == self.max_cached_prompts:
                self._release(self.prefix_cache.popitem(last=False)[1].block_table)
            # Rows that start here later read the last token again, because its logits are not kept.
            cached = SharedSequence(self.free_block_tables.pop(), len(sequence.prompt) - 1, [], [])
            self.cache.fork(sequence.block_table, cached.block_table, cached.length)
            self.prefix_cache[sequence.prompt] = cached
        sequence.prompt = ()

    def _finish(self, running: RunningRow) -> None:
        """Free a finished row's slot, and queue the next row of its stream at the front."""
        most, got = running.row.sampling.max_new_tokens, len(running.token_ids)
        self.progress.tokens_total -= most - got
        self.progress.windows_total -= self._windows_read(running, most) - self._windows_read(running, got)
        del self.running[running.slot]
        self.free_slots.append(running.slot)
        if running.stream.rows:
            running.stream.prefix = Prefix(stream=running.prefix.stream)
            self.waiting.push_front(running.stream)

    def _windows_read(self, running: RunningRow, new_tokens: int) -> int:
        return windows_read(running.row.sampling, len(running.row.prompt_ids), new_tokens, self.block_size)

    def _split(self, sequence: SharedSequence, groups: dict[tuple[int, str], list[RunningRow]]) -> list[SharedSequence]:
        """One sequence for each group of rows that sampled the same token, which is pending on it.

        When a full context drops tokens, positions change and its cached keys are invalid, so the tokens it keeps are read
        again.
        """
        going_on = [(token, rows) for (token, overflow), rows in groups.items() if overflow == _GOES_ON]
        tables = [sequence.block_table, *(self.free_block_tables.pop() for _ in going_on[1:])]
        for block_table in tables[1:]:
            self.cache.fork(sequence.block_table, block_table, sequence.length)
        if not going_on:
            self._release(sequence.block_table)
        split = [
            SharedSequence(block_table, sequence.length, [token], rows, previous=sequence.previous)
            for block_table, (token, rows) in zip(tables, going_on, strict=False)  # if no row continues, the table is freed
        ]
        dropping = [rows for (_, overflow), rows in groups.items() if overflow != _GOES_ON]
        split += [SharedSequence(self.free_block_tables.pop(), 0, list(self._window(rows[0])), rows) for rows in dropping]
        return split

    def _release(self, block_table: int) -> None:
        self.cache.release(block_table)
        self.free_block_tables.append(block_table)


def unfinished(waiting: WaitingQueue, running: dict[int, RunningRow]) -> list[tuple[Row, Prefix]]:
    """The rows that have started and not ended, each with its tokens so far. It may be called at any moment."""
    return [(each.row, each.prefix) for each in running.values()] + waiting.begun()
