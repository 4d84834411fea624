"""Estimate the time that rows take, from the measured parts of a decode step. This simulates the scheduler without a model.

Rows that share noise and prompt are one sequence until they diverge, that is, sample different tokens. When they will is not
known beforehand, so a time is a range: from rows that never diverge to rows that diverge at once. The likely time is that of
rows that diverge after `DIVERGENCE` tokens on average.
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

DIVERGENCE = 30.0
"""The mean number of tokens until rows that share noise diverge: benchmarks/shared_work.py, temperatures from 0.7 to 0.9. Rows
that differ in top_k diverge later."""


class StepSeconds(Protocol):
    """The fields of `engine.calibration.Speed` that an estimate needs, in seconds."""

    @property
    def row(self) -> float: ...
    @property
    def position(self) -> float: ...
    @property
    def prompt_token(self) -> float: ...
    def step(self, sequences: float) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RowShape:
    """What determines the time of a row.

    Args:
        prompt_tokens: the length of its prompt.
        new_tokens: the most tokens that it samples.
        windows: for how many of them the model reads a whole window again.
        group: equal for rows that share noise and prompt, and so sample the same tokens for a while.
        prompt: equal for rows whose prompt is read once for all of them.
    """

    prompt_tokens: int
    new_tokens: int
    windows: int
    group: Hashable
    prompt: Hashable


@dataclass(frozen=True, slots=True)
class Seconds:
    """A time in seconds: ``apart`` if rows diverge at once, ``likely``, and ``together`` if they never diverge."""

    apart: float
    likely: float
    together: float

    def plus(self, seconds: float) -> Seconds:
        """Add ``seconds`` to each."""
        return Seconds(self.apart + seconds, self.likely + seconds, self.together + seconds)


def shapes(plan: Plan, windows_of: Sequence[int]) -> list[RowShape]:
    """Return the shape of each row of a plan, in its order.

    Args:
        plan: the plan.
        windows_of: for each row, how many windows are read again (`windows_read`).
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
    """Estimate the seconds that decoding takes.

    Args:
        rows: the rows, in the order in which they start.
        speed: the seconds of a step's parts.
        max_rows: the maximum number of rows decoded together.
        block_size: the length of the context in tokens; None: unlimited.
        windows: the attention window of each layer, in positions; None: unlimited.
    """
    positions = sum(_positions(row, block_size, windows) for row in rows)
    times = [_seconds(rows, speed, max_rows, block_size, ratio, positions) for ratio in sharing(rows)]
    return Seconds(*times)


def sharing(rows: Sequence[RowShape]) -> tuple[float, float, float]:
    """Return the ratio of sequences read to rows sampled: if rows diverge at once, likely, and if they never diverge."""
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
            likely += longest + sum(_diverged(length) for length in some) - _diverged(longest)
    return 1.0, likely / total, together / total


def _diverged(tokens: int) -> float:
    """Return for how many of its tokens a row is a sequence of its own, if the time to divergence is exponential."""
    return tokens - DIVERGENCE * (1 - math.exp(-tokens / DIVERGENCE))


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
    """Count the positions that all steps of a row attend to; beyond the context, each step counts as one of a full context."""
    first, last = row.prompt_tokens, row.prompt_tokens + row.new_tokens
    most = last if block_size is None else min(last, block_size)
    within = attended(most, windows) - attended(min(first, most), windows)
    full = attended(most, windows) - attended(most - 1, windows)
    return within + full * max(0, last - max(first, most) - (row.windows if last > most else 0))


def batches(lengths: Iterable[int], max_rows: int) -> Iterable[tuple[int, int]]:
    """Return pairs of a number of steps and the number of rows that run in each of them.

    Rows take free slots in order, each for as many steps as it has new tokens.
    """
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
    """Return the rows of the first of ``machines`` machines, which has the most groups. A group of rows is never split."""
    if machines == 1:
        return list(rows)
    groups: dict[Hashable, list[RowShape]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    return [row for group in list(groups.values())[::machines] for row in group]
