"""Linux control groups: the kernel's limits for a container or a cluster job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Yield the directories of this process's groups, of versions 1 and 2, innermost first; none without control groups.

    Args:
        controller: ``cpu`` or ``memory``; version 1 has separate hierarchies for them.
        root: the root of the file system, for tests.
    """
    try:
        groups = dict(_groups((root / "proc/self/cgroup").read_text()))
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except (OSError, ValueError):
        return
    for mount in mounts:
        fields, _, kind = mount.partition(" - ")
        kind, _, options = kind.partition(" ")
        name = "" if kind == "cgroup2" else controller
        if kind not in ("cgroup", "cgroup2") or name not in ("", *options.split()[-1].split(",")):
            continue
        _, _, _, mounted, place, *_ = fields.split()
        path = PurePosixPath(groups.get(name, "/"))
        inside = path.relative_to(mounted) if path.is_relative_to(mounted) else PurePosixPath()
        for group in (inside, *inside.parents):
            yield root / place.lstrip("/") / group


def _groups(text: str) -> Iterator[tuple[str, str]]:
    """Yield (controller, path) for each group; version 2 has a single group, with the controller ``""``."""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        yield from ((controller, path) for controller in controllers.split(","))
