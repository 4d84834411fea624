"""How many run directories a process may hold open at once: each takes a file descriptor, of which it has few."""

from __future__ import annotations

import sys

if sys.platform != "win32":
    import resource

_OPEN_POINTS = 200


def open_points() -> int:
    """How many points may be held open: a quarter of the files that this process may open, as it needs others, too."""
    if sys.platform == "win32":
        return _OPEN_POINTS
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _OPEN_POINTS if limit == resource.RLIM_INFINITY else max(1, min(_OPEN_POINTS, limit // 4))
