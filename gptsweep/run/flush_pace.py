"""Decide when to write finished samples: every point's file needs a sync, so where syncs are slow, samples are batched."""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.1
"""Flushing takes about this share of the time, …"""
SECONDS = 5.0
SAMPLES = 10_000
"""… but samples wait at most this many seconds, and at most this many wait. A kill loses them; any other end does not."""


class FlushPace:
    """Decides when to flush: at once if the last flush was fast.

    Args:
        clock: a monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = self._next = clock()
        self._held = 0

    def add(self) -> None:
        """Count a waiting sample."""
        self._held += 1

    @property
    def due(self) -> bool:
        """Whether a flush is due."""
        return self._held >= SAMPLES or (self._held > 0 and self._clock() >= self._next)

    def begin(self) -> None:
        """Note that a flush begins."""
        self._began = self._clock()

    def end(self) -> None:
        """Note that it has ended: no sample waits."""
        now = self._clock()
        self._held, self._next = 0, now + min(SECONDS, (now - self._began) * (1 / SHARE - 1))
