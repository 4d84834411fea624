"""Memory of the host that a process may still take."""

from __future__ import annotations

import math
from pathlib import Path

import psutil

from .control_groups import control_groups


def host_memory(root: Path = Path("/")) -> int:
    """Bytes that could be allocated now: what the machine has, or less where a control group leaves less."""
    return int(max(0, min([psutil.virtual_memory().available, *map(_left, control_groups("memory", root))])))


def _left(group: Path) -> float:
    """Bytes below the limit of a group. Cached files that nobody reads count as free: the kernel drops them first."""
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
