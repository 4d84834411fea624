"""The version of this package as it is installed."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version


@cache
def own_version() -> str:
    """As ``gptsweep.__version__``. Looking it up reads the disk, so it is done when it is first asked for."""
    return version("gptsweep")
