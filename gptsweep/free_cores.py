"""The cores that other processes leave: as many threads as that compute fastest (`threads.py` says why)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

import psutil

_NOT_WORK = ("idle", "iowait", "guest", "guest_nice")
"""Times of a core that are no work, or that are counted elsewhere, as a guest's is in ``user``."""


class CoreTimes(NamedTuple):
    """What the cores did that this process may use: when, how many, and seconds of work, by all processes and by this one."""

    now: float
    cores: int
    busy: float
    own: float


def core_times() -> CoreTimes:
    """As the system counts, in hundredths of a second."""
    times = psutil.cpu_times(percpu=True)
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is not None:
        times = [times[core] for core in affinity(0) if core < len(times)]
    busy = sum(sum(seconds for name, seconds in core._asdict().items() if name not in _NOT_WORK) for core in times)
    return CoreTimes(time.perf_counter(), len(times), busy, time.process_time())


class FreeCores:
    """How many threads to compute with: one for each core that other processes leave, measured again and again.

    Args:
        most: threads where nothing else runs.
        read: as `core_times`.
    """

    WINDOW = 0.2
    """Seconds that a measurement takes at least."""

    def __init__(self, most: int, read: Callable[[], CoreTimes] = core_times) -> None:
        self._most, self._read = most, read
        # Where all cores are taken the system still gives each process its share, which on many cores is more than one.
        self._least = max(1, most // 4)
        self._count, self._begin = most, read()

    def begin(self) -> None:
        """Measure from now on: what others did while this process computed nothing does not count."""
        self._begin = self._read()

    def count(self) -> int:
        """Threads to compute with now; asked before each step, it costs nothing but once in `WINDOW`."""
        if time.perf_counter() - self._begin.now >= self.WINDOW:
            begin, self._begin = self._begin, self._read()
            busy = (self._begin.busy - begin.busy) - (self._begin.own - begin.own)
            free = self._begin.cores - busy / (self._begin.now - begin.now)
            self._count = max(self._least, min(self._most, round(free)))
        return self._count
