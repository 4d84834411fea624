"""Sampling sweeps on GPT models: all points in one batched pass, and bit-identical samples however they are run."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .threads import choose_wait

if TYPE_CHECKING:
    from .analysis.frames import read_sweep as read_sweep
    from .analysis.sweep import Sweep as Sweep
    from .api import LM as LM
    from .api import distribution as distribution
    from .api import load as load
    from .api import sweep as sweep
    from .errors import ConfigError as ConfigError
    from .errors import DeviceError as DeviceError
    from .errors import GptsweepError as GptsweepError
    from .errors import ModelError as ModelError
    from .errors import PromptError as PromptError
    from .errors import ResultsError as ResultsError
    from .models.gpt2 import GPT as GPT
    from .models.gpt2 import GPTConfig as GPTConfig
    from .records import Sample as Sample

    __version__: str

_PLUGIN_PATH = str(Path(__file__).parent / "_plugin_path")
if _PLUGIN_PATH not in sys.path:  # Hydra finds launchers in any hydra_plugins directory on the path
    sys.path.append(_PLUGIN_PATH)

if sys.argv[:1] == ["-m"] or Path(*sys.argv[:1]).name == "gptsweep":  # the command itself, not a program that imports us
    from .starting import collect_seldom, end_at_once

    end_at_once()
    collect_seldom()


class _SettingsBeside:
    """Finds ``gptsweep.conf`` beside the package in a checkout; in a wheel it is inside the package."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(Path(__file__).parent.parent)]) if name == f"{__name__}.conf" else None


sys.meta_path.append(_SettingsBeside)

choose_wait()  # before anything imports torch

_HOMES = {
    **dict.fromkeys(("GptsweepError", "ConfigError", "ModelError", "PromptError", "DeviceError", "ResultsError"), "errors"),
    **dict.fromkeys(("GPT", "GPTConfig"), "models.gpt2"),
    **dict.fromkeys(("LM", "distribution", "load", "sweep"), "api"),
    "Sweep": "analysis.sweep",
    "read_sweep": "analysis.frames",
    "Sample": "records",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    # torch and pandas are imported on first use: `--help` and errors for mistyped keys must appear at once.
    if name == "__version__":
        from .version import own_version  # late: it takes a twentieth of the time of --help

        return own_version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
