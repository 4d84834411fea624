"""``logprobs.jsonl`` beside the samples of a point: measurements at each token, if ``sampling.logprobs`` requests them.

Each sample has one line, with a list over its tokens in each field, and a checksum: a line is valid or not on its own, whatever
the manifest says. A line with more alternatives than requested is valid.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from ..files import open_inside
from ..records import SCHEMA_VERSION, Sample
from .durable import seal
from .schema import LOGPROBS, LOGPROBS_PARTIAL, Key, key_of

NUMBERS = ("logprob", "sampler_logprob", "entropy")
COUNTS = ("rank", "survivors")
LISTS = ("top_ids", "top_logprobs")
_GREATEST = 1e30
_MOST_LINE = 1 << 28
"""The longest line to read, in bytes."""


def line_of(sample: Sample) -> bytes:
    """Encode the line of a sample.

    Raises:
        ValueError: it has no ``logprobs``.
    """
    found = sample.logprobs
    if found is None:
        raise ValueError(f"sample {sample.key} of point {sample.point_id} has no log-probabilities")
    fields = {
        "schema_version": SCHEMA_VERSION,
        "point_id": sample.point_id,
        "prompt_index": sample.prompt_index,
        "sample_index": sample.sample_index,
        "alternatives": found.alternatives,
        "token_ids": sample.token_ids,
        "ends": found.ends,
        **{name: [getattr(token, name) for token in found.tokens] for name in (*NUMBERS, *COUNTS, *LISTS)},
        "texts": {str(token): text for token, text in found.texts.items()},
    }
    body = orjson.dumps(fields)[:-1]
    return body + seal(body)


def parsed(line: bytes) -> dict[str, Any] | None:
    """Decode a line; None if it is damaged."""
    body = line[: -len(seal(b""))]
    if line != body + seal(body):
        return None
    try:
        found = orjson.loads(line)
        return found if _is_whole(found) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def has_logprobs(directory: Path) -> bool:
    """Whether a run directory has a file of log-probabilities, finished or not."""
    return any(os.path.lexists(directory / name) for name in (LOGPROBS, LOGPROBS_PARTIAL))


def read_logprobs(
    directory: Path, opened: Callable[[Path], BinaryIO] = open_inside, problems: list[str] | None = None
) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Yield the complete lines of a run directory with their samples' keys; of several lines of one sample, the last counts.

    Args:
        directory: the run directory.
        opened: opens a file, as in `reader.open_lines`.
        problems: gets a line for each file that cannot be read completely.
    """
    for name in (LOGPROBS, LOGPROBS_PARTIAL):
        damaged = 0
        try:
            for line in lines_of(directory / name, opened):
                found = parsed(line)
                if found is not None:
                    yield key_of(found), found
                elif line.endswith(b"\n") or name == LOGPROBS:  # otherwise another process may be writing it
                    damaged += 1
        except OSError as error:
            if problems is not None:
                problems.append(f"{directory / name}: cannot be read: {error.strerror}")
        if damaged and problems is not None:
            problems.append(f"{directory / name}: damaged lines: {damaged:,}")


def lines_of(path: Path, opened: Callable[[Path], BinaryIO]) -> Iterator[bytes]:
    """Yield the lines of a file; nothing if it does not exist. A line beyond the maximum length is split."""
    try:
        file = opened(path)
    except FileNotFoundError:
        return
    with file:
        while line := file.readline(_MOST_LINE):
            yield line


def _is_whole(found: Mapping[str, Any]) -> bool:
    """Whether every field is present, with its type and length and within its range."""
    ids, tops, texts = found["token_ids"], found["top_ids"], found["texts"]
    counted = [found[name] for name in ("prompt_index", "sample_index", "alternatives")]
    whole = [*ids, *found["ends"], *(number for name in COUNTS for number in found[name]), *counted]
    values = [number for name in NUMBERS for number in found[name]]
    return (
        type(found["point_id"]) is str
        and set(map(type, whole)) <= {int}
        and 0 <= min(whole) <= max(whole) < 2**31
        and {len(found[name]) for name in ("ends", *NUMBERS, *COUNTS, *LISTS)} == {len(ids)}
        and all(type(value) in (float, int) and math.isfinite(value) and abs(value) < _GREATEST for value in values)
        and all(
            len(likeliest) == len(logprobs)
            and set(map(type, likeliest)) <= {int}
            and all(type(value) in (float, int) and abs(value) < _GREATEST for value in logprobs)
            and all(str(token) in texts for token in likeliest)
            for likeliest, logprobs in zip(tops, found["top_logprobs"], strict=True)
        )
        and all(str(token) in texts for token in ids)
        and set(map(type, texts.values())) <= {str}
    )
