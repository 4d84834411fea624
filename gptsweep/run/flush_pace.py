"""When finished samples go to disk: each point's take a sync, so they wait for one another where syncs would take the time."""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.1
"""Samples wait so long that flushing them is this share of the time, …"""
SECONDS = 5.0
SAMPLES = 10_000
"""… but no longer than these seconds, nor until there are more of them. A kill costs them; another end of a run does not."""


class FlushPace:
    """Says when to flush: at once where the last flush took no time.

    Args:
        clock: seconds from anywhere, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = self._next = clock()
        self._held = 0

    def add(self) -> None:
        """Count a sample that waits."""
        self._held += 1

    @property
    def due(self) -> bool:
        """Whether it is time to flush."""
        return self._held >= SAMPLES or (self._held > 0 and self._clock() >= self._next)

    def begin(self) -> None:
        """A flush begins."""
        self._began = self._clock()

    def end(self) -> None:
        """It has ended: nothing waits."""
        now = self._clock()
        self._held, self._next = 0, now + min(SECONDS, (now - self._began) * (1 / SHARE - 1))
