"""The threads that torch computes with on a CPU: how many, and how long they wait awake for work.

Between two parallel regions, of which a decode step has hundreds, OpenMP's threads spin before they sleep. GNU's spin for
milliseconds: where another process wants the core, each region then waits for a thread that the system has taken off it. A
spin of microseconds is as fast on an idle machine and gives the core away on a shared one (`benchmarks/shared_machine.py`).
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

from .control_groups import control_groups

SHORT_WAIT = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
"""For GNU's OpenMP, which torch has on Linux, turns of a loop; for LLVM's and Intel's, milliseconds."""
CHOICES = (*SHORT_WAIT, "OMP_WAIT_POLICY", "KMP_LIBRARY")
"""Variables by which users choose for themselves."""
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def wait_briefly() -> None:
    """Choose `SHORT_WAIT`, unless the user chose, or it is too late: OpenMP reads the variables when torch is imported."""
    if not wait_is_chosen() and "torch" not in sys.modules:
        os.environ.update(SHORT_WAIT)


def wait_is_chosen() -> bool:
    """Whether a variable says how OpenMP's threads wait."""
    return any(name in os.environ for name in CHOICES)


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
