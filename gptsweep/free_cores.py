"""Count the cores that other processes leave free; that many threads compute fastest (see `threads.py`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

import psutil

_NOT_WORK = ("idle", "iowait", "guest", "guest_nice")
"""CPU times that are not work, or that are counted elsewhere, such as a guest's, which ``user`` includes."""


class CoreTimes(NamedTuple):
    """Usage of the cores available to this process: time, number, and seconds of work by all processes and by this one."""

    now: float
    cores: int
    busy: float
    own: float


def core_times() -> CoreTimes:
    """Read the system's counters, in seconds with a resolution of 0.01 s."""
    times = psutil.cpu_times(percpu=True)
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is not None:
        times = [times[core] for core in affinity(0) if core < len(times)]
    busy = sum(sum(seconds for name, seconds in core._asdict().items() if name not in _NOT_WORK) for core in times)
    return CoreTimes(time.perf_counter(), len(times), busy, time.process_time())


class FreeCores:
    """Chooses the number of compute threads, one per core that other processes leave free, and measures again continually.

    Args:
        most: the number of threads on an idle machine.
        read: reads the counters, as `core_times`.
    """

    WINDOW = 0.2
    """The shortest measurement in seconds."""

    def __init__(self, most: int, read: Callable[[], CoreTimes] = core_times) -> None:
        self._most, self._read = most, read
        # On a fully loaded machine the system still gives each process its share, more than one core if there are many.
        self._least = max(1, most // 4)
        self._count, self._begin = most, read()

    def begin(self) -> None:
        """Start measuring: load while this process computed nothing must not count."""
        self._begin = self._read()

    def count(self) -> int:
        """The number of threads to compute with now; called before each step, and cheap except once per `WINDOW`."""
        if time.perf_counter() - self._begin.now >= self.WINDOW:
            begin, self._begin = self._begin, self._read()
            busy = (self._begin.busy - begin.busy) - (self._begin.own - begin.own)
            free = self._begin.cores - busy / (self._begin.now - begin.now)
            self._count = max(self._least, min(self._most, round(free)))
        return self._count
