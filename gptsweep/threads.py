"""The threads that torch computes with on a CPU: how many, and how long they spin before they sleep.

A decode step has hundreds of parallel regions, and each ends when its last thread does. If another process occupies a core,
every region waits for a thread that the system has descheduled, and two threads are many times slower than one. So the number
of threads follows the number of free cores (`free_cores.py`). Between regions, OpenMP threads spin before they sleep, because
waking a thread is slow on a virtual machine; the spin time suits an idle machine (`benchmarks/shared_machine.py`).
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

from .control_groups import control_groups

WAIT = {"GOMP_SPINCOUNT": "50000", "KMP_BLOCKTIME": "1"}
"""Loop iterations for GNU's OpenMP, which torch uses on Linux; milliseconds for LLVM's and Intel's."""
CHOICES = (*WAIT, "OMP_WAIT_POLICY", "KMP_LIBRARY")
"""Environment variables by which users choose for themselves."""
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def choose_wait() -> None:
    """Set `WAIT` unless the user has chosen; too late once torch is imported, because OpenMP has read the variables."""
    if "torch" not in sys.modules and not any(name in os.environ for name in CHOICES):
        os.environ.update(WAIT)


def own_count(root: Path = Path("/")) -> int | None:
    """The maximum number of threads: one per core that this process may use; None if the user set a variable."""
    if any(os.environ.get(name) for name in COUNTS):
        return None
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, math.ceil(min([cores, *map(_quota, control_groups("cpu", root))])))


def _quota(group: Path) -> float:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # "max", or no such file: no limit
        return math.inf
