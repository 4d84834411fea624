"""How long this machine takes for the parts of a decode step of a model of some shape: measured with random weights.

A model too large for that is measured with one layer and with three; its other layers are taken to last as long.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from ..memory import host_memory
from ..models.architecture import Architecture, Config
from ..models.loading import place, stored_dtype
from ..records import Row, Sampling
from .engine import Engine

SECONDS = 20.0
"""A calibration takes no longer than this by much: what would is left out."""
BATCHES = (64, 1, 256, 16, 4)
"""Numbers of rows that are measured, the most important first."""
SHORT, LONG = 8, 256
"""Positions that are cached when a step is measured; the second at most, where the context is shorter."""
_STEPS = 24
_MOST_BYTES = 1 << 30
_TILE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Seconds of the parts of a decode step.

    Args:
        steps: of a step, by the number of sequences that it reads a token of and samples a row of each, ascending.
        row: of each further row that is sampled from a sequence.
        position: of each position that a sequence has cached beyond `SHORT`.
        prompt_token: of each token of a prompt.
    """

    steps: tuple[tuple[int, float], ...]
    row: float
    position: float
    prompt_token: float

    def step(self, sequences: float) -> float:
        """Seconds of a step with so many sequences: between two that were measured in proportion, beyond the last likewise."""
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
    """Measure a model of this shape.

    Args:
        architecture, config: its shape.
        device, dtype: as resolved.
        sampling: how tokens are chosen.
        vocab_size: ids from here on are never sampled.
    """
    began = time.perf_counter()
    layers = config.n_layer
    size = sum(parameter.numel() for parameter in _laid_out(architecture, config).parameters())
    measured = [layers]
    if size * stored_dtype(dtype).itemsize > min(_MOST_BYTES, host_memory() // 4) and layers > 4:
        measured = [1, 3]
    speeds = []
    for place_, count in enumerate(measured, start=1):
        model = _laid_out(architecture, replace(config, n_layer=count))
        _fill(model, stored_dtype(dtype))
        place(model, device, dtype)
        until = began + SECONDS * place_ / len(measured)
        speeds.append(_measured(Engine(model, vocab_size=vocab_size), sampling, until))
        del model
    if len(speeds) == 1:
        return speeds[0]
    return extrapolated(speeds[0], speeds[1], measured, layers)


def extrapolated(few: Speed, more: Speed, counts: Sequence[int], layers: int) -> Speed:
    """The speed with so many ``layers``, of two with ``counts`` of them: each further layer lasts as long as those between."""

    def at(a: float, b: float) -> float:
        return a + max(0.0, b - a) / (counts[1] - counts[0]) * (layers - counts[0])

    known = dict(more.steps)
    return Speed(
        steps=tuple((count, at(seconds, known[count])) for count, seconds in few.steps if count in known),
        row=max(few.row, more.row),
        position=at(few.position, more.position),
        prompt_token=at(few.prompt_token, more.prompt_token),
    )


def shape_of(architecture: type[Architecture], config: Config) -> dict[str, Any]:
    """What of a model decides its speed, as JSON."""
    return {"architecture": architecture.TITLE, **asdict(config)}


def _laid_out(architecture: type[Architecture], config: Config) -> Architecture:
    with torch.device("meta"):
        return architecture(config)


def _fill(model: Architecture, dtype: torch.dtype) -> None:
    """Random weights, such that logits are about as far apart as those of a trained model."""
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
    """Measure what there is time for; the first batch whatever it takes."""
    share = max(1.0, (until - time.perf_counter()) / (len(BATCHES) + 4))
    block_size = engine.model.block_size or SHORT + LONG
    short = max(1, min(SHORT, block_size - _STEPS))
    long = max(short, min(LONG, block_size - _STEPS))
    first = BATCHES[0]
    _seconds(engine, sampling, 2, short, share=share)  # kernels that are loaded when first called
    started, step = min(_seconds(engine, sampling, first, short, share=share) for _ in range(2))
    steps = {first: step}
    started_long, step_long = min(_seconds(engine, sampling, first, long, share=share) for _ in range(2))
    _, shared = _seconds(engine, sampling, first, short, share=share, alike=True)
    for count in BATCHES[1:]:
        if time.perf_counter() + share * count / first < until:
            steps[count] = _seconds(engine, sampling, count, short, share=share)[1]
    alone = steps.get(1, shared)
    positions = max(1, long - short)
    return Speed(
        steps=tuple(sorted(steps.items())),
        row=max(0.0, (shared - alone) / (first - 1)),
        position=max(0.0, (step_long - step) / first / positions),
        prompt_token=max(0.0, (started_long - started) / positions),
    )


class _Enough(Exception):  # noqa: N818
    """Ends a run whose steps are measured."""


def _seconds(
    engine: Engine, sampling: Sampling, count: int, prompt_tokens: int, *, share: float, alike: bool = False
) -> tuple[float, float]:
    """Seconds until the first token, and the lower quartile of later steps: of rows that part at once, or are all ``alike``."""
    settings = replace(sampling, max_new_tokens=_STEPS, stop=(), stop_at_eot=False, stop_token_ids=(), stop_on_repetition=())
    prompt = tuple(place_ % engine.vocab_size for place_ in range(prompt_tokens))
    rows = [Row(prompt_ids=prompt, sampling=settings, noise_key=0 if alike else number) for number in range(count)]
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
    return seconds[0], statistics.quantiles([*seconds[2:], min(seconds)], n=4)[0]
