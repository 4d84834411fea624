"""The host memory that this process may still allocate."""

from __future__ import annotations

import math
from pathlib import Path

import psutil

from .control_groups import control_groups


def host_memory(root: Path = Path("/")) -> int:
    """Bytes that can be allocated now: the machine's free memory, or less if a control group's limit is lower."""
    return int(max(0, min([psutil.virtual_memory().available, *map(_left, control_groups("memory", root))])))


def _left(group: Path) -> float:
    """Bytes below a group's limit. Inactive file cache counts as free: the kernel drops it first."""
    version_2 = (group / "memory.max").exists()
    limit, usage, cached = (
        ("memory.max", "memory.current", "inactive_file")
        if version_2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    try:
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / usage).read_text()) - int(statistics.get(cached, 0))
        return int((group / limit).read_text()) - used
    except (OSError, ValueError):  # "max", or no such file: no limit
        return math.inf
