"""A progress bar in a notebook cell, for calls from Python; on a terminal see `progress.Progress`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..engine.backend import BackendProgress
from .executors import InFlight, OnStep
from .meter import Meter

SECONDS = 0.25
"""The minimum interval between redraws; a shorter call shows no bar."""


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, which shows what IPython displays."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


class NotebookBar:
    """Context manager that shows a run's progress in a notebook cell.

    Args:
        samples: the total number of samples.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, samples: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._meter = Meter(started=clock(), rows_total=samples)
        self._shown_at = self._meter.started
        self._handle: Any = None

    def __enter__(self) -> NotebookBar:
        return self

    @property
    def on_step(self) -> OnStep | None:
        """The callback for each step; None outside of notebooks."""
        return self._step if in_notebook() else None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._handle is not None:
            self._show(self._meter.summary(self._clock()), None)

    def add_sample(self) -> None:
        """Count a finished sample."""
        self._meter.rows_done += 1

    def _step(self, progress: BackendProgress, in_flight: InFlight) -> None:
        meter, now = self._meter, self._clock()
        meter.expect_windows(progress.windows, progress.windows_total, progress.window_seconds)
        meter.rows_in_flight, meter.tokens, meter.tokens_total = progress.rows_in_flight, progress.tokens, progress.tokens_total
        meter.measure(now)
        if now - self._shown_at >= SECONDS:
            self._shown_at = now
            self._show(meter.line(now), meter.fraction)

    def _show(self, line: str, fraction: float | None) -> None:
        bar = "" if fraction is None else f'<progress value="{fraction:.3f}" max="1"></progress> '
        found = {"text/plain": line, "text/html": f"{bar}{line}"}
        if self._handle is None:
            self._handle = sys.modules["IPython"].display.display(found, raw=True, display_id=True)
        else:
            self._handle.update(found, raw=True)
