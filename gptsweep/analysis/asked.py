"""Which comparisons of samplers were asked for: ``samplers.json`` beside the results, so that later pages have them, too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ResultsError
from ..files import open_inside
from ..store.durable import atomic_write
from ..store.schema import COMPARISONS
from .frames import Sweep
from .metrics import METRICS
from .reference import Reference
from .samplers import Aim, SamplerComparison

MAX_BYTES = 1 << 16
"""A ``samplers.json`` that is larger is not ours."""
MAX_METRICS = 20


@dataclass(frozen=True, slots=True)
class Asked:
    """Comparisons of samplers: by each of ``metrics``, as `Aim.of` reads them, of families as ``by`` makes them."""

    metrics: tuple[str, ...]
    by: tuple[str, ...] | None = None

    @classmethod
    def of(cls, metrics: str, by: str | None = None) -> Asked:
        """From names with commas between, as they are typed."""
        names, keys = (tuple(name.strip() for name in (text or "").split(",") if name.strip()) for text in (metrics, by))
        return cls(names, keys or None)

    def compare(self, sweep: Sweep, reference: Reference | None) -> list[SamplerComparison]:
        """The comparisons.

        Raises:
            ResultsError: as `Sweep.compare_samplers`.
        """
        metrics = reference.metrics if reference else None
        return [sweep.compare_samplers(name, self.by, reference=metrics) for name in self.metrics]

    def keep(self, directory: Path) -> None:
        """Write ``samplers.json``."""
        atomic_write(directory / COMPARISONS, (json.dumps({"metrics": self.metrics, "by": self.by}) + "\n").encode())


def kept(directory: Path) -> Asked | None:
    """What ``samplers.json`` holds; None where there is none, it is damaged, or names what is no metric of ours."""
    try:
        with open_inside(directory / COMPARISONS) as file:
            data = file.read(MAX_BYTES + 1)
        found: Any = json.loads(data) if len(data) <= MAX_BYTES else None
        metrics, by = found["metrics"], found["by"]
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return None
    lists = [metrics] if by is None else [metrics, by]
    if not all(isinstance(each, list) and each and all(isinstance(name, str) for name in each) for each in lists):
        return None
    if len(metrics) > MAX_METRICS or any(name.partition(":")[0] not in METRICS for name in metrics):
        return None
    return Asked(tuple(metrics), by and tuple(by))


def require_comparisons(asked: str, reference: str | None) -> None:
    """See that the setting ``compare_samplers`` says what is best, before any work.

    Args:
        asked: its value.
        reference: that of the setting ``reference``.

    Raises:
        ConfigError: it does not.
    """
    names = Asked.of(asked).metrics
    if not names:
        raise ConfigError("compare_samplers", asked, "must be METRIC:min, METRIC:max or METRIC:reference, or null")
    try:
        for name in names:
            _, direction = Aim.split(name)
            if direction == "reference" and reference is None:
                raise ConfigError("compare_samplers", asked, "needs a reference text; give one with reference=FILE:path")
    except ResultsError as error:
        raise ConfigError("compare_samplers", asked, f"{error.value} {error.wanted}") from error
