"""Cut the rows of a plan into shards of equal expected cost, and keep track of which worker has which. Nothing runs here.

A shard is a slice of the plan in its own order, in which rows that share noise and prompt are adjacent, so work that one batch
would share stays shared. A worker takes several shards at a time, up to its share of what is left. So a small sweep is decoded
in a few large batches, and the last rows of a large sweep go to whichever worker is idle.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from ...engine.backend import Workload, windows_read
from ...records import Prefix, Row
from ..rows import Plan
from ..sample_identity import canonical_settings

TRIES = 3
"""How many times a shard is attempted before its rows fail."""
_LARGE_BATCH = 64
"""The batch size in rows beyond which efficiency hardly grows. A worker with more takes only half its share of the rest."""
_READ = 0.25
"""The cost of a token of a prefill, in sampled tokens; it is lower, as many are processed at once."""
_ATTENTION = 2048
"""The context length in tokens at which attention costs as much as the rest of the model."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows of a plan, by number, in the order in which they start. ``failures`` counts the attempts that failed."""

    rows: tuple[int, ...]
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """The rows of some shards, with their numbers, to send to a worker; ``workload`` bounds their size."""

    rows: tuple[tuple[int, Row], ...]
    workload: Workload


def row_cost(row: Row, block_size: int | None) -> float:
    """Estimate the cost of a row without the prefill of its prompt, in tokens sampled after an empty context.

    The size of the model does not enter, as it is a common factor of all rows of a plan.
    """
    prompt, most = len(row.prompt_ids), row.sampling.max_new_tokens
    context = math.inf if block_size is None else block_size
    first, last = min(prompt + row.begun, context), min(prompt + most, context)
    windows = windows_read(row.sampling, prompt, most, block_size, row.begun)
    sampled = (most - row.begun) * (1 + (first + last) / 2 / _ATTENTION)
    return sampled + _READ * (row.begun + windows * (block_size or 0))


def stream_of(row: Row) -> Hashable | None:
    """Return a key that is equal for rows that draw from the same sequential random stream, and so must stay together.

    None for rows whose random numbers come from a counter.
    """
    if row.sampling.rng == "counter":
        return None
    return canonical_settings(row.sampling), row.noise_key, row.prompt_index, row.prompt_ids


def shards_of(rows: Sequence[Row], block_size: int | None, count: int) -> list[Shard]:
    """Cut rows into at most ``count`` shards of about equal cost.

    Rows that share a random stream stay together. So do rows that share noise and prompt, unless they exceed a shard's cost.
    """
    costs = [row_cost(row, block_size) for row in rows]
    for number, (before, row) in enumerate(zip([None, *rows], rows, strict=False)):
        if before is None or before.prompt_ids != row.prompt_ids:
            costs[number] += _READ * len(row.prompt_ids)
    total = sum(costs)
    pieces: list[tuple[tuple[int, ...], float]] = []
    for (stream, *_), numbers in itertools.groupby(range(len(rows)), lambda number: _group_key(rows[number])):
        together = tuple(numbers)
        cost = sum(costs[number] for number in together)
        if stream is not None or cost * count <= total:
            pieces.append((together, cost))
        else:
            pieces += [((number,), costs[number]) for number in together]
    slices: dict[int, list[int]] = defaultdict(list)
    before_piece = 0.0
    for piece, cost in pieces:
        middle = before_piece + cost / 2
        slices[min(count - 1, int(middle * count / total))] += piece
        before_piece += cost
    return [Shard(tuple(numbers)) for numbers in slices.values()]


def _group_key(row: Row) -> tuple[Hashable, ...]:
    """Return a key that is equal for adjacent rows that share a random stream, or noise and prompt."""
    stream = stream_of(row)
    return (stream,) if stream is not None else (None, row.noise_key, row.prompt_index, row.sample_index, row.prompt_ids)


class Ledger:
    """Tracks which rows of a plan wait, which worker has which, and which are done.

    When a worker is lost, each of its shards is retried without the rows that are done and from the last known state of the
    others. A retried shard is given out alone, so that it cannot take others down with it; before the last attempt it is split
    by points.

    Args:
        plan: the rows.
        block_size: context length of the model; None: unlimited.
        shards: how many shards to cut the rows into.
    """

    def __init__(self, plan: Plan, block_size: int | None, shards: int) -> None:
        self.plan = plan
        self.rows = [row for row, _ in plan.rows()]
        self._costs = [row_cost(row, block_size) for row in self.rows]
        self._streams: dict[Hashable, list[int]] = defaultdict(list)
        for number, row in enumerate(self.rows):
            if (stream := stream_of(row)) is not None:
                self._streams[stream].append(number)
        self.left = set(range(len(self.rows)))
        self.prefixes: dict[int, Prefix] = {}
        self._waiting = deque(shards_of(self.rows, block_size, max(1, shards)))
        self._given: dict[str, list[Shard]] = defaultdict(list)
        self._cost_left = sum(self._costs)

    @property
    def waiting(self) -> int:
        """The number of shards that no worker has."""
        return len(self._waiting)

    def holds(self, worker: str) -> bool:
        """Return whether a worker has unfinished rows."""
        self._given[worker] = [shard for shard in self._given[worker] if not self.left.isdisjoint(shard.rows)]
        return bool(self._given[worker])

    def take(
        self, worker: str, workers: int, *, several: bool = True, alone: bool = False, resumes: bool = True
    ) -> Work | None:
        """Give waiting shards to a worker.

        Args:
            worker: name of the worker.
            workers: how many workers share what is left.
            several: whether it may take more than one shard.
            alone: whether there will never be another worker, so that it may take all shards.
            resumes: whether rows may resume from the tokens that other workers sampled.

        Returns:
            The rows to run; None if nothing waits or the worker still has unfinished rows.
        """
        if self.holds(worker) or not self._waiting:
            return None
        taken = [self._waiting.popleft()]
        rows = list(taken[0].rows)
        while several and self._waiting and not taken[0].failures + self._waiting[0].failures:
            rows += self._waiting[0].rows
            share = self._cost_left / max(1, workers) * (1 if alone or len(rows) <= _LARGE_BATCH else 0.5)
            if sum(self._costs[number] for number in rows) > share * (1 + 1e-9):
                break
            taken.append(self._waiting.popleft())
        self._given[worker] = taken
        numbers = [number for shard in taken for number in shard.rows]
        bounds = replace(self.plan.workload, rows=len(numbers))
        return Work(tuple((number, self._row(number, resumes)) for number in numbers), bounds)

    def finish(self, number: int) -> bool:
        """Record that a row is done; return False if it already was."""
        if number not in self.left:
            return False
        self.left.discard(number)
        self._cost_left -= self._costs[number]
        self.prefixes.pop(number, None)
        return True

    def note(self, number: int, prefix: Prefix) -> None:
        """Record the state of an unfinished row."""
        if number in self.left:
            self.prefixes[number] = prefix

    def lose(self, worker: str) -> list[int]:
        """Queue the rows of a lost worker again, and return those that fail because they have been attempted `TRIES` times."""
        failed: list[int] = []
        again: list[Shard] = []
        for shard in self._given.pop(worker, []):
            if not (left := [number for number in shard.rows if number in self.left]):
                continue
            if shard.failures + 1 >= TRIES:
                failed += left
                continue
            retried = Shard(self._resumable(shard.rows), shard.failures + 1)
            again += [retried] if retried.failures + 1 < TRIES else self._by_point(retried)
        self._waiting.extendleft(reversed(again))
        for number in failed:
            self.finish(number)
        return failed

    def withdraw(self, worker: str) -> None:
        """Queue the rows of a worker again without counting an attempt, as they are not the reason why it ended."""
        shards = [replace(shard, rows=self._resumable(shard.rows)) for shard in self._given.pop(worker, [])]
        self._waiting.extendleft(shard for shard in reversed(shards) if shard.rows)

    def _row(self, number: int, resumes: bool) -> Row:
        row = self.rows[number]
        if not resumes and row.sampling.rng == "counter":
            return row if row.prefix is None else replace(row, prefix=None)
        prefix = self.prefixes.get(number)
        return row if prefix is None else replace(row, prefix=prefix)

    def _resumable(self, rows: Iterable[int]) -> tuple[int, ...]:
        """Return the unfinished rows, and the finished ones that must run again first as they share a random stream."""
        wanted: list[int] = []
        for stream, group in itertools.groupby(rows, lambda number: stream_of(self.rows[number])):
            numbers = list(group)
            left = [number for number in numbers if number in self.left]
            if stream is None or not left:
                wanted += left
            elif (prefix := self.prefixes.get(left[0])) is not None and prefix.stream is not None:
                wanted += numbers[numbers.index(left[0]) :]
            else:
                # The state of the stream is not known, so it restarts at its first row, and earlier rows run again.
                wanted += self._streams[stream]
        return tuple(wanted)

    def _by_point(self, shard: Shard) -> list[Shard]:
        """Split ``shard`` into one shard for each point that it has rows of."""
        points: dict[Hashable, list[int]] = defaultdict(list)
        for number in shard.rows:
            points[stream_of(self.rows[number]) or self.plan.recipients[number][0][0]].append(number)
        return [replace(shard, rows=tuple(numbers)) for numbers in points.values()]
