"""Handle Ctrl-C during start-up: one line and status 130, where an interrupted import would print a page of traceback."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


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
