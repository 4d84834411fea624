"""Prepare a process that runs the command: Ctrl-C during start-up, and how often Python looks for garbage.

An import that is interrupted would print a page of traceback, where the command prints one line and ends with status 130.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from types import FrameType

_NEW_OBJECTS = 200_000
"""How many more containers may be created than freed before Python looks for garbage; its own default is 700 to 2,000."""


def collect_seldom() -> None:
    """Make Python look for reference cycles seldom, and not when the process ends.

    A start creates a million objects, nearly all of which stay until the end. Looking through them again and again would take
    a tenth of a short command's time.
    """
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)


def end_at_once() -> None:
    """Let Ctrl-C end the process at once until everything is imported; after that it raises `KeyboardInterrupt` as usual.

    An import may swallow the exception or leave modules half initialised, and there is nothing to lose yet.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    if hasattr(sys.modules.get("gptsweep.multirun.point"), "run_point"):
        signal.default_int_handler(number, frame)
    os.write(2, b"gptsweep: stopped; nothing was begun yet\n")
    os._exit(128 + number)
