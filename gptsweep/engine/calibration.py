"""Measure how long this machine takes for a decode step, and for prefill, of a model of a given shape, with random weights.

A model that is too large is measured with one layer and with three, and the time is extrapolated to all layers.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from ..kernels.abi import PAGE
from ..memory import host_memory
from ..models.architecture import Architecture, Config
from ..models.loading import place, stored_dtype
from ..records import Row, Sampling
from .engine import Engine

SECONDS = 18.0
"""The approximate time limit of a calibration, in seconds. Measurements that would exceed it are skipped."""
BATCHES = (64, 1, 256, 16, 4, 128)
"""The batch sizes to measure, in rows, the most important first."""
SHORT, LONG = PAGE + 2, 16 * PAGE + 2
"""The lengths of the prompts that are measured, in tokens; a shorter context reduces them. Two tokens more than whole pages, so
that prompts that differ only in the last two share all full pages."""
_STEPS = 24
_ROUNDS = 4
"""The number of rounds of measurements, if there is time. The median over rounds counts, as a machine's speed varies."""
_MOST_MEDIANS = 3.0
"""The cap on the time of one step, in medians, to limit the weight of a step that was interrupted."""
_MOST_BYTES = 1 << 30
_TILE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The measured times of a decode step and of prefill, in seconds.

    Args:
        steps: pairs of a number of sequences, ascending, and the time of a step that decodes one token of each.
        row: time for each further row that samples from the same sequence.
        position: time for each position beyond `SHORT` that a sequence attends to, averaged over layers.
        prompt_token: prefill time per token.
    """

    steps: tuple[tuple[int, float], ...]
    row: float
    position: float
    prompt_token: float

    def step(self, sequences: float) -> float:
        """Return the seconds of a step with ``sequences`` sequences, by linear interpolation and extrapolation of ``steps``."""
        (below, seconds), *others = self.steps
        if sequences <= below or not others:
            return seconds * max(1.0, sequences / below)
        for count, measured in others:
            slope = (measured - seconds) / (count - below)
            if sequences <= count:
                return seconds + slope * (sequences - below)
            last = below, seconds, slope
            below, seconds = count, measured
        return seconds + max(0.0, last[2]) * (sequences - below)


def calibrated(
    architecture: type[Architecture], config: Config, *, device: torch.device, dtype: str, sampling: Sampling, vocab_size: int
) -> Speed:
    """Measure the speed of a model of the given shape.

    Args:
        architecture, config: the shape of the model.
        device, dtype: the resolved device and ``device.dtype``.
        sampling: the settings to sample with.
        vocab_size: number of tokens; ids at or above it are never sampled.
    """
    began = time.perf_counter()
    layers = config.n_layer
    size = sum(parameter.numel() for parameter in architecture.laid_out(config).parameters())
    measured = [layers]
    if size * stored_dtype(dtype).itemsize > min(_MOST_BYTES, host_memory() // 4) and layers > 4:
        measured = [1, 3]
    speeds = []
    for place_, count in enumerate(measured, start=1):
        model = architecture.laid_out(replace(config, n_layer=count))
        _fill(model, stored_dtype(dtype))
        place(model, device, dtype)
        until = began + SECONDS * place_ / len(measured)
        speeds.append(_measured(Engine(model, vocab_size=vocab_size), sampling, until))
        del model
    if len(speeds) == 1:
        return speeds[0]
    return extrapolated(speeds[0], speeds[1], measured, layers)


def extrapolated(few: Speed, more: Speed, counts: Sequence[int], layers: int) -> Speed:
    """Extrapolate linearly to ``layers`` layers from two speeds, measured with ``counts[0]`` and ``counts[1]`` layers."""

    def at(a: float, b: float) -> float:
        return a + max(0.0, b - a) / (counts[1] - counts[0]) * (layers - counts[0])

    known = dict(more.steps)
    return Speed(
        steps=tuple((count, at(seconds, known[count])) for count, seconds in few.steps if count in known),
        row=max(few.row, more.row),
        position=at(few.position, more.position),
        prompt_token=at(few.prompt_token, more.prompt_token),
    )


def attended(positions: float, windows: Sequence[int | None]) -> float:
    """Compute how many positions all tokens up to position ``positions`` attend to in total, averaged over layers.

    Args:
        positions: position of the last token.
        windows: the attention window of each layer, in positions; None: unlimited.
    """
    each = (min(positions, math.inf if window is None else window) for window in windows)
    return statistics.fmean(seen * seen / 2 + seen * (positions - seen) for seen in each)


def shape_of(architecture: type[Architecture], config: Config) -> dict[str, Any]:
    """Return what determines a model's speed, as JSON-compatible data."""
    return {"architecture": architecture.TITLE, **asdict(config)}


def _fill(model: Architecture, dtype: torch.dtype) -> None:
    """Fill the model with random weights, scaled to give logits about as spread out as those of a trained model."""
    values = torch.randn(_TILE, generator=torch.Generator().manual_seed(0))
    for name, parameter in list(model.named_parameters()):
        weight = torch.empty(parameter.shape, dtype=torch.float32 if model.stays_float32(name) else dtype)
        flat = weight.view(-1)
        scale = (3.0 if name in (model.EMBEDDING, model.HEAD) else 1.0) / math.sqrt(max(1, parameter.shape[-1]))
        for begin in range(0, len(flat), _TILE):
            part = flat[begin : begin + _TILE]
            part.copy_(values[: len(part)] * scale if parameter.ndim > 1 else torch.ones(len(part)))
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, nn.Parameter(weight, requires_grad=False))
    if model.config.tied_head:
        module, _, leaf = model.HEAD.rpartition(".")
        setattr(model.get_submodule(module), leaf, model.get_parameter(model.EMBEDDING))


def _measured(engine: Engine, sampling: Sampling, until: float) -> Speed:
    """Measure as many batches as there is time for, and repeat if time is left. The first batch is always measured."""
    share = max(1.0, (until - time.perf_counter()) / (len(BATCHES) + 4))
    block_size = engine.model.block_size or SHORT + LONG
    short = max(1, min(SHORT, block_size - _STEPS))
    long = max(short, min(LONG, block_size - _STEPS))
    first = BATCHES[0]
    for positions in (short, long):
        _seconds(engine, sampling, 2, positions, share=share)  # warm up: kernels are loaded on their first call
    found: dict[tuple[int, int, bool], list[tuple[float, float]]] = defaultdict(list)
    required = [(first, short, False), (first, long, False), (first, short, True)]
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for batch in (*required, *((count, short, False) for count in BATCHES[1:])):
            if batch in required or time.perf_counter() + share * batch[0] / first < until:
                found[batch].append(_seconds(engine, sampling, *batch[:2], share=share, alike=batch[2]))
        now = time.perf_counter()
        if now + (now - began) > until - 2 * share:
            break
    started = {batch: statistics.median(started for started, _ in times) for batch, times in found.items()}
    step = {batch: statistics.median(step for _, step in times) for batch, times in found.items()}
    steps = {count: seconds for (count, tokens, alike), seconds in step.items() if tokens == short and not alike}
    shared = step[first, short, True]
    positions = max(1, long - short)
    prompt_token = max(0.0, (started[first, long, False] - started[first, short, False]) / positions)
    return Speed(
        steps=tuple(sorted(steps.items())),
        row=max(0.0, (shared - steps.get(1, shared)) / (first - 1)),
        position=_position(engine, sampling, short, long, prompt_token, share, until),
        prompt_token=prompt_token,
    )


def _position(
    engine: Engine, sampling: Sampling, short: int, long: int, prompt_token: float, share: float, until: float
) -> float:
    """Measure the seconds for each position that a sequence attends to, with a separate prompt for each row.

    The keys and values of a shared prompt would stay in the processor's caches. As each row needs its own prefill, the prompts
    are only as long as ``share`` seconds allow.
    """
    rows, windows = BATCHES[0], engine.model.windows
    long = min(long, short + int(share / rows / max(prompt_token, 1e-9)))
    more = (
        attended(long + _STEPS, windows)
        - attended(long, windows)
        - attended(short + _STEPS, windows)
        + attended(short, windows)
    )
    if more < _STEPS * PAGE / 2:
        return 0.0
    differences: list[float] = []
    while not differences or (len(differences) < _ROUNDS and time.perf_counter() + 2 * share < until):
        near, far = (_seconds(engine, sampling, rows, positions, share=share, own=True)[1] for positions in (short, long))
        differences.append(far - near)
    return max(0.0, statistics.median(differences) / rows * _STEPS / more)


class _Enough(Exception):  # noqa: N818
    """Ends a run after enough steps have been measured."""


def _seconds(
    engine: Engine, sampling: Sampling, count: int, prompt_tokens: int, *, share: float, alike: bool = False, own: bool = False
) -> tuple[float, float]:
    """Measure the seconds until the first token, and the mean seconds of a later step.

    Rows diverge at once, unless they are all ``alike``. They share one prompt, unless each has its ``own``.
    """
    settings = replace(sampling, max_new_tokens=_STEPS, stop=(), stop_at_eot=False, stop_token_ids=(), stop_on_repetition=())
    common = [place_ % engine.vocab_size for place_ in range(prompt_tokens)]

    def prompt(number: int) -> tuple[int, ...]:
        different = divmod(number % engine.vocab_size**2, engine.vocab_size)
        if own:
            return (*different, *common)[:prompt_tokens]
        # Greedy rows diverge only if their prompts differ.
        return (*common, *different)[2:] if sampling.temperature == 0 and not alike else tuple(common)

    rows = [Row(prompt_ids=prompt(number), sampling=settings, noise_key=0 if alike else number) for number in range(count)]
    stamps = [time.perf_counter()]

    def on_step(_: object) -> None:
        stamps.append(time.perf_counter())
        if len(stamps) > 4 and stamps[-1] - stamps[0] > share:
            raise _Enough

    try:
        for _ in engine.run(rows, None, on_step):
            pass
    except _Enough:
        pass
    seconds = [after - before for before, after in itertools.pairwise(stamps)]
    later = seconds[2:] or seconds
    most = _MOST_MEDIANS * statistics.median(later)
    return seconds[0], statistics.fmean(min(each, most) for each in later)
