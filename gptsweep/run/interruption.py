"""Ctrl-C, SIGTERM and SIGHUP end a run between two steps, so that everything finished is on disk."""

from __future__ import annotations

import signal
import threading
from typing import Any

from ..errors import Interrupted

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that end a run; SIGHUP comes when its terminal is closed, and Windows has none."""


class Interruption:
    """While entered, these signals ask the run to end at its next step; a second Ctrl-C ends it at once.

    A signal that is ignored, as ``nohup`` ignores SIGHUP, stays ignored.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            handled = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise Interrupted(number)
        self._signal = number

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self._signal is not None:
            raise Interrupted(self._signal)
