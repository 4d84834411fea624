"""The settings as a package, for Hydra programs that name ``pkg://gptsweep.conf``: importing it registers what they need."""

from importlib import import_module

from hydra.core.plugins import Plugins

from gptsweep.config_schema import register

register()
# Hydra looked for launchers and sweepers when it started, which may have been before it came to know of this package.
Plugins.instance().register(import_module("hydra_plugins.gptsweep_launcher").FusedLauncher)
for name in ("PointsSweeper", "RandomSweeper"):
    Plugins.instance().register(getattr(import_module("hydra_plugins.gptsweep_sweepers"), name))
