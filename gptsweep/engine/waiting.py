"""The rows that wait to be decoded. Rows that draw from one random stream wait together, and run one after another."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from ..records import Prefix, Row
from .sampler import stream_at


@dataclass(slots=True)
class Stream:
    """Rows that run one after another: a single row, or with ``rng=torch`` all that draw from one random stream.

    ``prefix`` has the tokens that the first of ``rows`` has already.
    """

    rows: deque[Row]
    generator: torch.Generator | None = None
    prefix: Prefix | None = None


class WaitingQueue:
    """The waiting streams, made from rows no earlier than needed.

    Args:
        rows: the rows in starting order; those of one random stream are adjacent.
        torch_stream: `Model.torch_stream`.
    """

    def __init__(self, rows: Iterable[Row], torch_stream: Callable[[int], torch.Generator]) -> None:
        self._returned: deque[Stream] = deque()
        self._streams = _streams(rows, torch_stream)

    def __bool__(self) -> bool:
        if not self._returned:
            self._returned.extend(itertools.islice(self._streams, 1))
        return bool(self._returned)

    def pop(self) -> Stream:
        """Remove and return the first stream; there must be one."""
        return self._returned.popleft()

    def push_front(self, stream: Stream) -> None:
        """Insert ``stream`` at the front."""
        self._returned.appendleft(stream)

    def begun(self) -> list[tuple[Row, Prefix]]:
        """The waiting rows that have a prefix, with their prefixes."""
        return [(stream.rows[0], stream.prefix) for stream in self._returned if stream.prefix is not None]


def _streams(rows: Iterable[Row], torch_stream: Callable[[int], torch.Generator]) -> Iterator[Stream]:
    """One stream per row; rows with ``rng=torch`` that differ only in sample_index share one."""

    def key(row: Row) -> object:
        return row if row.sampling.rng == "counter" else (row.sampling, row.noise_key, row.prompt_index, row.prompt_ids)

    for _, group in itertools.groupby(rows, key):
        together = deque(group)
        prefix = together[0].prefix
        if together[0].sampling.rng == "counter":
            yield from (Stream(deque([row]), None, row.prefix) for row in together)
        elif prefix is None or prefix.stream is None:
            yield Stream(together, torch_stream(together[0].noise_key))
        else:
            yield Stream(together, stream_at(prefix.stream), prefix)
