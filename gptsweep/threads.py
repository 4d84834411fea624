"""The threads that torch computes with on a CPU: how many, and how long they wait awake for work.

A decode step has hundreds of parallel regions, and each ends when the last thread does. Where another process has taken a core,
every region waits for a thread that the system has put aside, and two threads are many times slower than one. So the number
follows the cores that other processes leave (`free_cores.py`). Between two regions OpenMP's threads spin before they sleep,
as waking one takes long on a virtual machine; how long is chosen for an idle machine (`benchmarks/shared_machine.py`).
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

from .control_groups import control_groups

WAIT = {"GOMP_SPINCOUNT": "50000", "KMP_BLOCKTIME": "1"}
"""For GNU's OpenMP, which torch has on Linux, turns of a loop; for LLVM's and Intel's, milliseconds."""
CHOICES = (*WAIT, "OMP_WAIT_POLICY", "KMP_LIBRARY")
"""Variables by which users choose for themselves."""
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def choose_wait() -> None:
    """Choose `WAIT`, unless the user chose, or it is too late: OpenMP reads the variables when torch is imported."""
    if "torch" not in sys.modules and not any(name in os.environ for name in CHOICES):
        os.environ.update(WAIT)


def own_count(root: Path = Path("/")) -> int | None:
    """Threads to compute with at most: a core each that this process may use; None where the user chose in a variable."""
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
