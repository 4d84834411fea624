"""How long rows take, by the seconds of a decode step's parts: the scheduler, simulated without a model.

Rows that share noise and prompt are one sequence until they sample different tokens. When that is, is not known beforehand, so
a time is a range: from rows that never part to rows that part at once. Between them stands the time of rows that part after
`PARTING` tokens in the mean.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..engine.calibration import attended
from ..engine.engine import MOST_CACHED_PROMPTS
from .rows import POINTS_TOGETHER, Plan

PARTING = 30.0
"""Tokens after which rows that share noise part: benchmarks/shared_work.py, temperatures from 0.7 to 0.9; top_k parts later."""


class StepSeconds(Protocol):
    """As `engine.calibration.Speed`."""

    @property
    def row(self) -> float: ...
    @property
    def position(self) -> float: ...
    @property
    def prompt_token(self) -> float: ...
    def step(self, sequences: float) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RowShape:
    """What of a row decides its time: tokens of the prompt, new ones, whole windows read again, and whom it shares with.

    Rows of one ``group`` sample the same tokens for a while; a ``prompt`` is read once for rows that name it alike.
    """

    prompt_tokens: int
    new_tokens: int
    windows: int
    group: Hashable
    prompt: Hashable


@dataclass(frozen=True, slots=True)
class Seconds:
    """A time in seconds: where rows part at once, as they are likely to, and where they never part."""

    apart: float
    likely: float
    together: float

    def plus(self, seconds: float) -> Seconds:
        """This time and so many seconds more."""
        return Seconds(self.apart + seconds, self.likely + seconds, self.together + seconds)


def shapes(plan: Plan, windows_of: Sequence[int]) -> list[RowShape]:
    """The rows of a plan, in its order.

    Args:
        plan: of the rows.
        windows_of: `windows_read` of each.
    """
    found = []
    for each, windows in zip(plan.recipients, windows_of, strict=True):
        place, key = each[0]
        task = plan.tasks[place]
        sampling, ids = task.point.sampling, task.prompt_ids[key[0]]
        alone = sampling.rng != "counter"
        group = (place, key) if alone else (ids,) if sampling.temperature == 0 else (task.noise_key, key, ids)
        found.append(
            RowShape(
                prompt_tokens=len(ids), new_tokens=sampling.max_new_tokens, windows=windows, group=group,
                prompt=ids if len(task.prompts) <= MOST_CACHED_PROMPTS else (ids, task.noise_key),
            )
        )  # fmt: skip
    return found


def seconds_of(
    rows: Sequence[RowShape],
    speed: StepSeconds,
    max_rows: int,
    block_size: int | None,
    windows: Sequence[int | None] = (None,),
) -> Seconds:
    """Seconds of decoding ``rows``, ``max_rows`` together at most; each layer sees so many positions as ``windows`` says."""
    positions = sum(_positions(row, block_size, windows) for row in rows)
    times = [_seconds(rows, speed, max_rows, block_size, ratio, positions) for ratio in sharing(rows)]
    return Seconds(*times)


def sharing(rows: Sequence[RowShape]) -> tuple[float, float, float]:
    """Sequences read over rows sampled: where rows part at once, as they are likely to, and where they never part."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row.new_tokens)
    total = sum(row.new_tokens for row in rows) or 1
    likely = together = 0.0
    for lengths in groups.values():
        for begin in range(0, len(lengths), POINTS_TOGETHER):
            some = lengths[begin : begin + POINTS_TOGETHER]
            longest = max(some)
            together += longest
            likely += longest + sum(_apart(length) for length in some) - _apart(longest)
    return 1.0, likely / total, together / total


def _apart(tokens: int) -> float:
    """For how many of its tokens a row is a sequence of its own, where it parts from another after `PARTING` in the mean."""
    return tokens - PARTING * (1 - math.exp(-tokens / PARTING))


def _seconds(
    rows: Sequence[RowShape], speed: StepSeconds, max_rows: int, block_size: int | None, ratio: float, positions: float
) -> float:
    seconds = 0.0
    for steps, running in batches((row.new_tokens for row in rows), max_rows):
        sequences = max(1.0, running * ratio)
        seconds += steps * (speed.step(sequences) + speed.row * (running - sequences))
    prompts = {row.prompt: row.prompt_tokens for row in rows}
    seconds += speed.prompt_token * sum(prompts.values())
    seconds += speed.position * ratio * positions
    window = speed.prompt_token * (block_size or 0)
    return seconds + window * sum(row.windows for row in rows)


def _positions(row: RowShape, block_size: int | None, windows: Sequence[int | None]) -> float:
    """Positions that the steps of a row attend to, all together; where tokens are dropped, as if it were read full."""
    first, last = row.prompt_tokens, row.prompt_tokens + row.new_tokens
    most = last if block_size is None else min(last, block_size)
    within = attended(most, windows) - attended(min(first, most), windows)
    full = attended(most, windows) - attended(most - 1, windows)
    return within + full * max(0, last - max(first, most) - (row.windows if last > most else 0))


def batches(lengths: Iterable[int], max_rows: int) -> Iterable[tuple[int, int]]:
    """How many steps run with how many rows: each row takes a free place in turn, for as many steps as it has new tokens."""
    running: list[int] = []
    steps: Counter[int] = Counter()
    now = 0
    for length in lengths:
        if len(running) == max_rows:
            ends = heapq.heappop(running)
            steps[max_rows] += ends - now
            now = ends
        heapq.heappush(running, now + length)
    while running:
        ends = running[0]
        steps[len(running)] += ends - now
        now = ends
        heapq.heappop(running)
    return [(count, size) for size, count in sorted(steps.items()) if count]


def shard(rows: Sequence[RowShape], machines: int) -> list[RowShape]:
    """The rows of the first of so many machines, which has the most groups of rows that share noise; those stay together."""
    if machines == 1:
        return list(rows)
    groups: dict[Hashable, list[RowShape]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    return [row for group in list(groups.values())[::machines] for row in group]
