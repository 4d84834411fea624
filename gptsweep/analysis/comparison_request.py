"""Sampler comparisons requested by a user, stored as ``samplers.json`` beside the results so that later pages show them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, ResultsError
from ..files import open_inside, read_json
from ..store.durable import atomic_write
from ..store.schema import COMPARISONS
from .metrics import MAUVE, METRICS
from .own_metrics import OwnMetric
from .reference import Reference
from .samplers import Aim, SamplerComparison, split_direction
from .sweep import Sweep

MAX_BYTES = 1 << 16
"""A larger ``samplers.json`` was not written by this program."""
MAX_METRICS = 20


def split_metrics(texts: Sequence[str], setting: str = "metric") -> tuple[list[str], list[OwnMetric]]:
    """Split comma-separated metrics, each optionally followed by ``:min``, ``:max`` or ``:reference``.

    Returns:
        The metrics one by one, with user-defined ones under the names of their functions; and the user-defined metrics.

    Raises:
        ConfigError: see `OwnMetric.named`.
    """
    names, own = [], []
    for text in (text.strip() for each in texts for text in each.split(",") if text.strip()):
        name, direction = split_direction(text)
        if ":" in name:
            own.append(OwnMetric.named(name, setting))
            name = own[-1].metric.name
        names.append(f"{name}:{direction}" if direction else name)
    return names, own


def metric_name(text: str) -> str:
    """Return the metric's name from ``METRIC:min`` and the like."""
    return split_direction(text)[0]


@dataclass(frozen=True, slots=True)
class ComparisonRequest:
    """Requested sampler comparisons: one for each of ``metrics`` (parsed by `Aim.of`), with families defined by ``by``."""

    metrics: tuple[str, ...]
    by: tuple[str, ...] | None = None

    def compare(self, sweep: Sweep, reference: Reference | None) -> list[SamplerComparison]:
        """Run the comparisons.

        Raises:
            ResultsError: see `Sweep.compare_samplers`.
        """
        metrics = reference.metrics if reference else None
        return [sweep.compare_samplers(name, self.by, reference=metrics) for name in self.metrics]

    def save(self, directory: Path) -> None:
        """Write ``samplers.json``, without metrics that later pages cannot compute: user-defined ones and MAUVE."""
        if metrics := [name for name in self.metrics if metric_name(name) in METRICS]:
            atomic_write(directory / COMPARISONS, (json.dumps({"metrics": metrics, "by": self.by}) + "\n").encode())


def read_request(directory: Path) -> ComparisonRequest | None:
    """Read ``samplers.json``; None if it is missing, damaged, or names an unknown metric."""
    try:
        found = read_json(directory / COMPARISONS, MAX_BYTES, open_inside)
        metrics, by = found["metrics"], found["by"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    lists = [metrics] if by is None else [metrics, by]
    if not all(isinstance(each, list) and each and all(isinstance(name, str) for name in each) for each in lists):
        return None
    if len(metrics) > MAX_METRICS or any(metric_name(name) not in METRICS for name in metrics):
        return None
    return ComparisonRequest(tuple(metrics), by and tuple(by))


def require_comparisons(value: str, reference: str | None) -> None:
    """Check the setting ``compare_samplers`` before any work starts.

    Args:
        value: its value.
        reference: the value of ``reference``.

    Raises:
        ConfigError: no direction says what is best, a user-defined metric cannot be loaded, or a reference text is missing.
    """
    names, own = split_metrics([value], "compare_samplers")
    if not names:
        raise ConfigError("compare_samplers", value, "must be METRIC:min, METRIC:max or METRIC:reference, or null")
    declared = {**METRICS, MAUVE.name: MAUVE, **{each.metric.name: each.metric for each in own}}
    try:
        for text in names:
            name, direction = Aim.split(text, declared)
            if name == MAUVE.name and direction == "reference":
                raise ConfigError("compare_samplers", value, f"{name} already compares with the reference text; use {name}:max")
            if (direction == "reference" or name == MAUVE.name) and reference is None:
                raise ConfigError("compare_samplers", value, "needs a reference text; give one with reference=FILE:path")
    except ResultsError as error:
        raise ConfigError("compare_samplers", value, f"{error.value} {error.wanted}") from error
