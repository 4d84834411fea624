"""``scores.json`` beside the samples of a point: a cache for metrics that need more than the samples.

Each entry has a hash of the code or model that computes it and a hash of the samples, and is valid while both are unchanged.
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
"""One value per sample, in order, or one for all of them; None where there is no value."""


def read_scores(directory: Path, name: str, *, source: str, samples: str, count: int) -> Values | None:
    """The cached values of a metric; None if there are none for this source and these samples.

    Args:
        directory: the point's directory.
        name: the metric as requested.
        source: a hash of what computes it.
        samples: a hash of the samples.
        count: the expected number of values.
    """
    entry = _all_scores(directory).get(name)
    if not isinstance(entry, dict) or (entry.get("source"), entry.get("samples")) != (source, samples):
        return None
    values = entry.get("values")
    return values if isinstance(values, list) and len(values) == count and all(map(_is_value, values)) else None


def write_scores(directory: Path, name: str, *, source: str, samples: str, values: Sequence[float | None]) -> None:
    """Cache the values of a metric, see `read_scores`; if the file cannot be written, log a warning."""
    scores = _all_scores(directory) | {name: {"source": source, "samples": samples, "values": list(values)}}
    try:
        atomic_write(directory / SCORES, (json.dumps(scores, indent=1, allow_nan=False) + "\n").encode())
    except (OSError, ResultsError) as error:
        log.warning("could not save the values of %s: %s", name, error)


def _all_scores(directory: Path) -> dict[str, Any]:
    try:
        scores = read_json(directory / SCORES)
    except (OSError, ValueError):
        return {}
    return scores if isinstance(scores, dict) else {}


def _is_value(value: object) -> bool:
    return value is None or is_number(value, -1e300, 1e300)
