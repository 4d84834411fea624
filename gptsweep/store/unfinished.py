"""``unfinished.jsonl``: the tokens of unfinished samples, so that an interrupted run resumes where it stopped.

Each line has one sample: its identity, its tokens, the exact sums behind its means, and a checksum. The file is replaced
atomically. It is in the run directory, or in a sweep's directory for all its points, and is removed when it is empty.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from ..display import counted, get_logger
from ..errors import ResultsError
from ..files import open_to_read
from ..records import Prefix, TokenLogprobs
from .durable import atomic_write, seal
from .schema import TEMPORARY, UNFINISHED, Key

log = get_logger(__name__)

SECONDS = 20.0
SHARE = 0.005
"""The file is rewritten at most every `SECONDS`, and takes at most this share of the time."""

_CHECK_DIGITS = 16
_MOST_BYTES = 1 << 30
_MISMATCH = "%s: %s cannot be used (%s) and will be sampled from the beginning"


class Unfinished:
    """The file, as one run reads and writes it.

    Args:
        directory: of the run, or of the sweep for all its points; it need not exist yet.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = Path(directory) / UNFINISHED
        self._made_by = ""
        self._clock = clock
        self._next = clock() + SECONDS
        self._others: list[bytes] = []
        self._refused = False

    @property
    def due(self) -> bool:
        """Whether the next `write` is due."""
        return self._clock() >= self._next

    def read(self, points: Collection[str], made_by: Mapping[str, object]) -> dict[str, dict[Key, Prefix]]:
        """Load the prefixes of ``points``, by point_id and ``(prompt_index, sample_index)``.

        Damaged lines are skipped, and so are lines with another ``made_by`` than now, because no sample may come from two
        kinds of machine; both are logged. Lines of other points stay in the file.
        """
        self._made_by = hashlib.sha256(orjson.dumps(made_by, option=orjson.OPT_SORT_KEYS)).hexdigest()[:_CHECK_DIGITS]
        found: dict[str, dict[Key, Prefix]] = defaultdict(dict)
        self._others = []
        damaged = strange = 0
        for line in self._lines():
            try:
                point, key, maker, prefix = _parsed(line)
            except (ValueError, KeyError, TypeError):
                damaged += 1
                continue
            if point not in points:
                self._others.append(line)
            elif maker != self._made_by:
                strange += 1
            else:
                found[point][key] = prefix
        if damaged:
            log.warning(_MISMATCH, self.path, counted(damaged, "unfinished sample"), "damaged lines")
        if strange:
            why = "started on another kind of machine, or with another version of torch"
            log.warning(_MISMATCH, self.path, counted(strange, "unfinished sample"), why)
        return found

    def write(self, prefixes: Mapping[tuple[str, Key], Prefix]) -> None:
        """Replace the prefixes of the points that were read.

        If the file cannot be written, this logs a warning once, and the old content stays.
        """
        began = self._clock()
        lines = [*self._others, *(self._line(point, key, prefix) for (point, key), prefix in prefixes.items())]
        try:
            if lines:
                atomic_write(self.path, b"".join(lines))
            else:
                self.path.unlink(missing_ok=True)
        except (ResultsError, OSError) as error:
            if not self._refused:
                log.warning("could not save unfinished samples: %s", error)
            self._refused = True
        now = self._clock()
        self._next = now + max(SECONDS, (now - began) / SHARE)

    def _lines(self) -> Iterator[bytes]:
        try:
            for left in self.path.parent.glob(f".{UNFINISHED}.*{TEMPORARY}"):  # left by a killed process
                left.unlink(missing_ok=True)
            with open_to_read(self.path) as file:
                if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                yield from file
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("%s: %s; unfinished samples will be sampled from the beginning", self.path, error.strerror)

    def _line(self, point: str, key: Key, prefix: Prefix) -> bytes:
        fields = {
            "point_id": point,
            "prompt_index": key[0],
            "sample_index": key[1],
            "made_by": self._made_by,
            "token_ids": prefix.token_ids,
            "logprob": prefix.logprob,
            "sampler_logprob": prefix.sampler_logprob,
            "entropy": prefix.entropy,
            "stream": None if prefix.stream is None else base64.b64encode(prefix.stream).decode(),
        }
        if prefix.logprobs:
            fields["logprobs"] = list(map(tuple, prefix.logprobs))
        body = orjson.dumps(fields)[:-1]
        return body + seal(body)


def _parsed(line: bytes) -> tuple[str, Key, str, Prefix]:
    """Parse a line: point, sample, origin and prefix.

    Raises:
        ValueError, KeyError, TypeError: it is damaged.
    """
    body = line[: -len(seal(b""))]
    if line != body + seal(body):
        raise ValueError("wrong checksum")
    fields = orjson.loads(line)
    point, maker, stream = fields["point_id"], fields["made_by"], fields["stream"]
    numbers: list[Any] = [fields["prompt_index"], fields["sample_index"], *fields["token_ids"]]
    sums = [fields[name] for name in ("logprob", "sampler_logprob", "entropy")]
    if not (
        {type(point), type(maker)} == {str}
        and set(map(type, numbers)) == {int}
        and min(numbers) >= 0
        and set(map(type, sums)) == {float}
        and all(map(math.isfinite, sums))
    ):
        raise ValueError("a field has the wrong type")
    prefix = Prefix(
        token_ids=tuple(fields["token_ids"]),
        logprob=sums[0],
        sampler_logprob=sums[1],
        entropy=sums[2],
        stream=None if stream is None else base64.b64decode(stream, validate=True),
        logprobs=tuple(map(token_logprobs, fields.get("logprobs", ()))),
    )
    return point, (numbers[0], numbers[1]), maker, prefix


def token_logprobs(values: list[Any]) -> TokenLogprobs:
    """Parse one token's values from a list of JSON.

    Raises:
        ValueError, TypeError: they are invalid.
    """
    *own, top_ids, top_logprobs = values
    found = TokenLogprobs._make([*own, tuple(top_ids), tuple(top_logprobs)])
    counts, numbers = (found.rank, found.survivors, *top_ids), (*found[:2], found.entropy, *top_logprobs)
    if not set(map(type, counts)) <= {int} or not set(map(type, numbers)) <= {int, float} or len(top_ids) != len(top_logprobs):
        raise ValueError("a field has the wrong type")
    return found
