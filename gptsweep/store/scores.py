"""``scores.json`` beside the samples of a point: values of metrics that are not computed from the samples alone.

A value stands there with a hash of what computes it and one of the samples that it was computed from, and counts while both
are the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..display import get_logger
from ..errors import ResultsError
from ..files import read_json
from ..records import is_number
from .durable import atomic_write
from .schema import SCORES

log = get_logger(__name__)

Values = list[float | None]
"""A value a sample, in the order of the samples, or one for all of them together; None where there is none."""


def read_scores(directory: Path, name: str, *, source: str, samples: str, count: int) -> Values | None:
    """The kept values of a metric; None where there are none for this source and these samples.

    Args:
        directory: of the point.
        name: of the metric, as it was asked for.
        source: a hash of what computes it.
        samples: a hash of the samples.
        count: how many values there must be.
    """
    kept = _kept(directory).get(name)
    if not isinstance(kept, dict) or (kept.get("source"), kept.get("samples")) != (source, samples):
        return None
    values = kept.get("values")
    return values if isinstance(values, list) and len(values) == count and all(map(_is_value, values)) else None


def write_scores(directory: Path, name: str, *, source: str, samples: str, values: Sequence[float | None]) -> None:
    """Keep the values of a metric, see `read_scores`; where the file cannot be written, the log says so."""
    kept = _kept(directory) | {name: {"source": source, "samples": samples, "values": list(values)}}
    try:
        atomic_write(directory / SCORES, (json.dumps(kept, indent=1, allow_nan=False) + "\n").encode())
    except (OSError, ResultsError) as error:
        log.warning("the values of %s are not kept: %s", name, error)


def _kept(directory: Path) -> dict[str, Any]:
    try:
        kept = read_json(directory / SCORES)
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _is_value(value: object) -> bool:
    return value is None or is_number(value, -1e300, 1e300)
