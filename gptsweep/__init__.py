"""Sampling sweeps on GPT models: every point in one batched pass, every sample the same to the bit however it was run."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .threads import wait_briefly

if TYPE_CHECKING:
    from .errors import ConfigError as ConfigError
    from .errors import DeviceError as DeviceError
    from .errors import GptsweepError as GptsweepError
    from .errors import ModelError as ModelError
    from .errors import PromptError as PromptError
    from .errors import ResultsError as ResultsError
    from .frames import Sweep as Sweep
    from .frames import read_sweep as read_sweep
    from .model import GPT as GPT
    from .model import GPTConfig as GPTConfig
    from .records import Sample as Sample
    from .session import LM as LM
    from .session import load as load
    from .session import sweep as sweep

    __version__: str

_PLUGIN_PATH = str(Path(__file__).parent / "_plugin_path")
if _PLUGIN_PATH not in sys.path:  # Hydra looks for launchers in hydra_plugins, wherever on the path that is
    sys.path.append(_PLUGIN_PATH)

if sys.argv[:1] == ["-m"] or Path(*sys.argv[:1]).name == "gptsweep":  # the command, not a program that imports the package
    from .starting import end_at_once

    end_at_once()

wait_briefly()  # before anything imports torch

_HOMES = {
    **dict.fromkeys(("GptsweepError", "ConfigError", "ModelError", "PromptError", "DeviceError", "ResultsError"), "errors"),
    **dict.fromkeys(("GPT", "GPTConfig"), "model"),
    **dict.fromkeys(("LM", "load", "sweep"), "session"),
    **dict.fromkeys(("Sweep", "read_sweep"), "frames"),
    "Sample": "records",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    # What needs torch or pandas is imported when it is first used: `--help` and a mistyped key must answer at once.
    if name == "__version__":
        return version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
