"""The errors that a user can cause and fix."""

from __future__ import annotations

import reprlib
import signal

from .display import counted, one_line


class GptsweepError(Exception):
    """A mistake that the user can fix: one line that names the key, its value and what would work.

    Args:
        key: the config key or argument at fault, as users type it (``sampling.top_k``, ``start``).
        value: the value given.
        wanted: what is wrong and what would work; no trailing full stop.
    """

    exit_status = 2

    def __init__(self, key: str, value: object, wanted: str) -> None:
        super().__init__(key, value, wanted)
        self.key = key
        self.value = value
        self.wanted = wanted

    def __str__(self) -> str:
        return f"{one_line(self.key)}={shown(self.value)}: {one_line(self.wanted)}"


def shown(value: object) -> str:
    """Format ``value`` as a user would type it on the command line, shortened to one line."""
    if value is None:
        text = "null"
    elif isinstance(value, int):
        text = _Brief().repr_int(value, 0) if value.bit_length() > _BITS else str(value)
    else:
        text = str(value) if isinstance(value, (str, float)) else _whole(value)
    text = one_line(text[:300])
    return text if len(text) <= 200 else text[:200] + "…"


_BITS = 1024
"""For integers with more bits, errors give the length: Python refuses to print one of 4,300 digits."""


def _whole(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # it contains such an integer
        return brief(value)


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 80, 80

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 128 else f"a number of {x.bit_length():,} bits"


def brief(value: object) -> str:
    """The `repr` of a value read from a file, shortened; it terminates for self-referential and huge values."""
    return _Brief().repr(value)


class ConfigError(GptsweepError):
    """A config key has a value outside its type, range or choices."""


class ModelError(GptsweepError):
    """A checkpoint, model directory or hub id cannot be loaded."""


class PromptError(GptsweepError):
    """A prompt cannot be read or encoded, or does not fit the model."""


class DeviceError(GptsweepError):
    """The requested device, dtype or compiler is not available."""


class ResultsError(GptsweepError):
    """A run directory cannot be written, is in use, or contains another point."""


class SweepError(Exception):
    """Some points of a sweep failed; the others are done.

    Args:
        failures: pairs of run directory and error.
        points: the number of points of the sweep.
        name: the sweep's name; the same command with it resumes.
    """

    exit_status = 1

    def __init__(self, failures: list[tuple[str, Exception]], points: int, name: str) -> None:
        super().__init__(failures, points, name)
        self.failures = failures
        self.points = points
        self.name = name

    def __str__(self) -> str:
        return f"{len(self.failures):,} of {counted(self.points, 'point')} failed"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a run between two steps; every finished sample is on disk.

    ``name`` is the name of the run or sweep (None if unknown); the same command with it resumes. ``unfinished`` is the number
    of unfinished samples that were saved.
    """

    def __init__(self, signal_number: int = signal.SIGINT, name: str | None = None, unfinished: int = 0) -> None:
        super().__init__(signal_number, name, unfinished)
        self.signal_number = signal_number
        self.name = name
        self.unfinished = unfinished


def describe(error: Exception) -> str:
    """Format an error as one line: the message of a user's mistake; for any other error its type, too."""
    if isinstance(error, OSError) and error.filename:
        return f"cannot write {error.filename}: {error.strerror}"
    return str(error) if isinstance(error, GptsweepError) else f"{type(error).__name__}: {error}"
