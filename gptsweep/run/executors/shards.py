"""The rows of a plan as shards of equal expected cost, and which worker has which of them. Nothing here runs anything.

A shard is a slice of the plan's own order, in which rows that share noise and prompt stand side by side, so what one batch
would compute once is computed once still. A worker takes several shards at once, up to its share of what is left: a small sweep
is decoded in few large batches, and the last rows of a large one go to whoever is idle.
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
"""So many times is a shard begun before its rows fail."""
_LARGE_BATCH = 64
"""A batch of so many rows is about as efficient as a greater one: from here on a worker leaves more for the others."""
_READ = 0.25
"""What a token costs that is only read, in sampled tokens: many are read at once."""
_ATTENTION = 2048
"""After so many ids, attention to them costs as much again as the rest of a token."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows of a plan, by number, in the order in which they start. ``failures``: how often they were begun in vain."""

    rows: tuple[int, ...]
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """Shards on their way to a worker: rows with their numbers, and bounds on them."""

    rows: tuple[tuple[int, Row], ...]
    workload: Workload


def row_cost(row: Row, block_size: int | None) -> float:
    """What a row is expected to cost, in sampled tokens after an empty context, the reading of its prompt left out.

    A model's size multiplies the cost of all rows of a plan alike.
    """
    prompt, most = len(row.prompt_ids), row.sampling.max_new_tokens
    context = math.inf if block_size is None else block_size
    first, last = min(prompt + row.begun, context), min(prompt + most, context)
    windows = windows_read(row.sampling, prompt, most, block_size, row.begun)
    sampled = (most - row.begun) * (1 + (first + last) / 2 / _ATTENTION)
    return sampled + _READ * (row.begun + windows * (block_size or 0))


def stream_of(row: Row) -> Hashable | None:
    """Equal for rows that draw one after another from one random stream, and so have to stay together; None: from none."""
    if row.sampling.rng == "counter":
        return None
    return canonical_settings(row.sampling), row.noise_key, row.prompt_index, row.prompt_ids


def shards_of(rows: Sequence[Row], block_size: int | None, count: int) -> list[Shard]:
    """Cut rows into at most ``count`` shards of about equal cost.

    Rows that share a stream stay together, and so do those that share noise and prompt, unless they are more than a shard.
    """
    costs = [row_cost(row, block_size) for row in rows]
    for number, (before, row) in enumerate(zip([None, *rows], rows, strict=False)):
        if before is None or before.prompt_ids != row.prompt_ids:
            costs[number] += _READ * len(row.prompt_ids)
    total = sum(costs)
    pieces: list[tuple[tuple[int, ...], float]] = []
    for (stream, *_), numbers in itertools.groupby(range(len(rows)), lambda number: _kin(rows[number])):
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


def _kin(row: Row) -> tuple[Hashable, ...]:
    """Equal for rows beside one another that share a stream, or noise and prompt."""
    stream = stream_of(row)
    return (stream,) if stream is not None else (None, row.noise_key, row.prompt_index, row.sample_index, row.prompt_ids)


class Ledger:
    """Which rows of a plan wait, which worker has which, and which are done.

    A shard that a worker lost is begun again without the rows that are done, from what is known of the others, and by itself,
    so that no other is lost with it again; the last time, the rows of each point by themselves.

    Args:
        plan: the rows.
        block_size: of the model.
        shards: how many to cut them into.
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
        """Shards that no worker has."""
        return len(self._waiting)

    def holds(self, worker: str) -> bool:
        """Whether a worker has rows that are not done."""
        self._given[worker] = [shard for shard in self._given[worker] if not self.left.isdisjoint(shard.rows)]
        return bool(self._given[worker])

    def take(
        self, worker: str, workers: int, *, several: bool = True, alone: bool = False, resumes: bool = True
    ) -> Work | None:
        """Give shards to a worker, once it has none; None: nothing waits, or it has some.

        Args:
            worker: its name.
            workers: how many share what is left.
            several: whether it may take more than one.
            alone: whether there never is another worker, so that it may take them all.
            resumes: whether rows may go on from what others made of them.
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
        """Take note of a row that is done; False: it was done before."""
        if number not in self.left:
            return False
        self.left.discard(number)
        self._cost_left -= self._costs[number]
        self.prefixes.pop(number, None)
        return True

    def note(self, number: int, prefix: Prefix) -> None:
        """Take note of what an unfinished row has so far."""
        if number in self.left:
            self.prefixes[number] = prefix

    def lose(self, worker: str) -> list[int]:
        """A worker is gone, or gave up: what it had is to be begun again. The rows that fail now, as they were begun enough."""
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
        """A worker is not to be used: what it had waits again, and counts as not begun."""
        shards = [replace(shard, rows=self._resumable(shard.rows)) for shard in self._given.pop(worker, [])]
        self._waiting.extendleft(shard for shard in reversed(shards) if shard.rows)

    def _row(self, number: int, resumes: bool) -> Row:
        row = self.rows[number]
        if not resumes and row.sampling.rng == "counter":
            return row if row.prefix is None else replace(row, prefix=None)
        prefix = self.prefixes.get(number)
        return row if prefix is None else replace(row, prefix=prefix)

    def _resumable(self, rows: Iterable[int]) -> tuple[int, ...]:
        """The rows that are left, and those that have to run again before them, as they draw from the same stream."""
        wanted: list[int] = []
        for stream, group in itertools.groupby(rows, lambda number: stream_of(self.rows[number])):
            numbers = list(group)
            left = [number for number in numbers if number in self.left]
            if stream is None or not left:
                wanted += left
            elif (prefix := self.prefixes.get(left[0])) is not None and prefix.stream is not None:
                wanted += numbers[numbers.index(left[0]) :]
            else:
                # Without a state of its own the stream begins at its first row, which makes those before the first left again.
                wanted += self._streams[stream]
        return tuple(wanted)

    def _by_point(self, shard: Shard) -> list[Shard]:
        """A shard for each point that has rows in ``shard``."""
        points: dict[Hashable, list[int]] = defaultdict(list)
        for number in shard.rows:
            points[stream_of(self.rows[number]) or self.plan.recipients[number][0][0]].append(number)
        return [replace(shard, rows=tuple(numbers)) for numbers in points.values()]
