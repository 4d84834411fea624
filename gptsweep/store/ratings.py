"""Ratings of pairs of samples: JSONL that the page exports, and that scripts or judging models may write.

A line is an object with ``left`` and ``right`` (sample ids), ``verdict``, and optionally ``seconds`` (time spent) and ``rater``
(a name). Other fields are ignored. Files come from other people: nothing in them is executed, and sizes are limited.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import orjson

from ..errors import ResultsError
from ..files import open_to_read
from .durable import atomic_write
from .schema import RATINGS

Verdict = Literal["left", "right", "tie", "both_bad", "skip"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
MAX_BYTES = 64 << 20
MAX_NAME = 200
"""The maximum length of a rater's name and of a sample id, in characters."""


@dataclass(frozen=True, slots=True)
class Rating:
    """A line of a file of ratings.

    Args:
        left, right: two different sample ids, as `Sample.sample_id`.
        verdict: which is better.
        rater: the rater's name.
        seconds: time spent; NaN if unknown.
    """

    left: str
    right: str
    verdict: Verdict
    rater: str
    seconds: float = math.nan


def read_ratings(path: Path, opened: Callable[[Path], BinaryIO] = open_to_read) -> list[Rating]:
    """Read the ratings of a file, in order; without a ``rater``, a line gets the file's name.

    Args:
        path: the file.
        opened: opens it; `files.open_inside` for results that may be a stranger's.

    Raises:
        ResultsError: the file cannot be read, or a line is not a rating; the error names the line.
    """
    try:
        with opened(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ResultsError("ratings", str(path), f"cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise ResultsError("ratings", str(path), f"is larger than {MAX_BYTES >> 20} MiB; split it")
    found = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            rating = _rating(line, path.stem[:MAX_NAME])
            if isinstance(rating, str):
                raise ResultsError("ratings", str(path), f"line {number}: {rating}")
            found.append(rating)
    return found


def save_ratings(directory: Path, ratings: Sequence[Rating]) -> None:
    """Write a sweep's ``ratings.jsonl`` for later reviews.

    Raises:
        ResultsError: it cannot be written.
    """
    lines = [asdict(each) | {"seconds": None if math.isnan(each.seconds) else each.seconds} for each in ratings]
    atomic_write(directory / RATINGS, "".join(json.dumps(line) + "\n" for line in lines).encode())


def _rating(line: bytes, rater: str) -> Rating | str:
    """Parse a line: a rating, or what is wrong with it."""
    try:
        fields: Any = orjson.loads(line)
    except ValueError:
        return "is not JSON"
    if not isinstance(fields, dict):
        return 'must be an object with "left", "right" and "verdict"'
    left, right, rater = (fields.get(name) or default for name, default in (("left", ""), ("right", ""), ("rater", rater)))
    for name, value in (("left", left), ("right", right), ("rater", rater)):
        if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME:
            return f"{name} must be a string of at most {MAX_NAME} characters"
    if left == right:
        return "left and right are the same sample"
    if (verdict := fields.get("verdict")) not in VERDICTS:
        return f"verdict must be one of {', '.join(VERDICTS)}"
    seconds = fields.get("seconds")
    if seconds is not None and (type(seconds) not in (int, float) or not 0 <= seconds < 1e9):
        return "seconds must be a number, 0 or more"
    return Rating(left, right, verdict, rater, math.nan if seconds is None else float(seconds))
