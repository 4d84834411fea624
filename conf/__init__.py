"""The settings as a package, for Hydra programs that name ``pkg://gptsweep.conf``: importing it registers what they need."""

from importlib import import_module

from gptsweep.config import register

register()
import_module("hydra_plugins.gptsweep_launcher")  # hydra/launcher=fused, where Hydra had started before
