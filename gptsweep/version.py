"""The version of the installed package."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version


@cache
def own_version() -> str:
    """Return ``gptsweep.__version__``; looked up on first use, because it reads the disk."""
    return version("gptsweep")
