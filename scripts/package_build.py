"""The build step of the package, named in ``pyproject.toml``: ``conf/`` goes into a wheel as ``gptsweep.conf``.

With ``package-dir`` instead, an editable install would find modules through an import hook that comes after the working
directory, so ``import gptsweep`` would take a clone's directory of that name for the package.
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools.command import build_py

CONF = Path("conf")


class BuildPy(build_py.build_py):
    """setuptools' command, with the files of ``conf/`` among the package's data."""

    def _get_data_files(self) -> list[tuple[str, str, str, list[str]]]:
        files = [str(path.relative_to(CONF)) for path in _settings()]
        into = os.path.join(self.build_lib, "gptsweep", "conf")
        return [*super()._get_data_files(), ("gptsweep.conf", str(CONF), into, files)]

    def get_source_files(self) -> list[str]:
        """The files of ``conf/`` that a source distribution needs, and this file."""
        return [*super().get_source_files(), *map(str, _settings()), "scripts/package_build.py"]


def _settings() -> list[Path]:
    return sorted(path for path in CONF.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
