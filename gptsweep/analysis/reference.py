"""Metrics of a reference text to compare samples with, from the ``reference.json`` that a run or a review wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..display import counted
from ..files import read_json
from ..records import FINISH_REASONS
from ..store.schema import MEANS, REFERENCE, is_whole
from .metrics import METRICS
from .own_metrics import OwnMetric
from .summary import summary_of
from .sweep import Sweep

MAX_PIECES = 200
MAX_BYTES = 64 * 2**20
"""A larger ``reference.json`` was not written by this program."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A scored reference text.

    ``metrics`` has every metric of its pieces by name; ``source`` is what the user typed; ``note`` says why the text is too
    short to compare with the samples, and is empty otherwise.
    """

    metrics: Mapping[str, float | None]
    source: str
    note: str = ""


def saved_reference(directory: Path, sweep: Sweep) -> Reference | None:
    """Load what an earlier run or review scored; None if there is none."""
    saved = read_reference_json(directory)
    return None if saved is None or sweep.samples.empty else reference_of(saved, sweep)


def reference_of(saved: Mapping[str, Any], sweep: Sweep) -> Reference:
    """Compute the metrics of the content of ``reference.json``, and check that it is long enough for these samples."""
    samples = saved["samples"]
    row = summary_of(samples)
    metrics = {name: row[name] for name in METRICS}
    length, pieces = samples[0]["completion_tokens"], len(samples)
    wanted_length = int(sweep.samples["completion_tokens"].median())
    wanted_pieces = min(MAX_PIECES, int(sweep.summary["num_samples"].max()))
    have = f"the reference text is short: it makes {counted(pieces, 'piece')} of {counted(length, 'token')}"
    note = ""
    if length < wanted_length:
        note = f"{have}, and a sample has {wanted_length:,}; metrics of shorter text are not comparable"
    elif pieces < wanted_pieces:
        note = f"{have}, and a point has {counted(wanted_pieces, 'sample')}; metrics of whole points are not comparable"
    return Reference(metrics, saved["source"], note)


def with_own(text: Reference | None, directory: Path, own: Sequence[OwnMetric]) -> Reference | None:
    """Add user-defined metrics of the pieces to the reference text; each piece is a sample without a prompt.

    Args:
        text: the result of `saved_reference` for ``directory``.
        directory: the directory with its pieces.
        own: the metrics.

    Raises:
        ResultsError: a function fails.
    """
    if text is None or not own or (known := read_reference_json(directory)) is None:
        return text
    pieces = [{"prompt": "", "prompt_id": "0"} | piece for piece in known["samples"]]
    return replace(text, metrics={**text.metrics, **{each.metric.name: each.mean(pieces, None) for each in own}})


def read_reference_json(directory: Path) -> dict[str, Any] | None:
    """Read ``reference.json``; None if it is missing or damaged."""
    try:
        saved = read_json(directory / REFERENCE, MAX_BYTES)
    except (OSError, ValueError):
        return None
    if not isinstance(saved, dict) or not isinstance(saved.get("wanted"), dict) or not isinstance(saved.get("source"), str):
        return None
    samples = saved.get("samples")
    return saved if isinstance(samples, list) and 0 < len(samples) <= MAX_PIECES and all(map(is_piece, samples)) else None


def is_piece(record: Any) -> bool:
    """Whether a record has the fields that metrics read, as written by `score`."""
    if not isinstance(record, dict) or not is_whole(record | {"prompt": "", "prompt_id": ""}):
        return False
    numbers = [record[name] for name in MEANS]
    return (
        all(value is None or (abs(value) < 1e6 and math.isfinite(value)) for value in numbers)
        and record["finish_reason"] in FINISH_REASONS
        and record.get("completion_tokens") == len(record["token_ids"]) > 0
    )
