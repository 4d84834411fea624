"""Decide when to write finished samples. Every point's file needs a sync, so if syncs are slow, samples are batched."""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.1
"""The share of the time that flushing may take."""
SECONDS = 5.0
SAMPLES = 10_000
"""Samples wait at most this many seconds, and at most this many wait. Only a kill loses them."""


class FlushPace:
    """Decides when to flush: at once if the last flush was fast.

    Args:
        clock: a monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = self._next = clock()
        self._waiting = 0

    def add(self) -> None:
        """Count a waiting sample."""
        self._waiting += 1

    @property
    def due(self) -> bool:
        """Whether a flush is due."""
        return self._waiting >= SAMPLES or (self._waiting > 0 and self._clock() >= self._next)

    def begin(self) -> None:
        """Record that a flush begins."""
        self._began = self._clock()

    def end(self) -> None:
        """Record that it has ended: no sample waits."""
        now = self._clock()
        self._waiting, self._next = 0, now + min(SECONDS, (now - self._began) * (1 / SHARE - 1))
