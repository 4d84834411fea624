"""Compute the speed of a run and the time left from its counts. Nothing here prints."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..display import counted, duration

SPEED_SECONDS = 10.0
"""Time constant of the moving averages."""

SPEED_INTERVAL = 0.25
"""The shortest time over which the speed is measured."""


@dataclass(slots=True)
class _Average:
    """An exponential moving average over time, unbiased from its first value on."""

    _sum: float = 0.0
    _weight: float = 0.0

    def add(self, value: float, seconds: float) -> None:
        """Add a value that held for ``seconds``."""
        keep = math.exp(-seconds / SPEED_SECONDS)
        self._sum = keep * self._sum + (1 - keep) * value
        self._weight = keep * self._weight + (1 - keep)

    @property
    def value(self) -> float | None:
        """The average; None before the first `add`."""
        return self._sum / self._weight if self._weight else None


def _add_each(average: _Average, seconds: float, count: int) -> None:
    """Add the time of one token, from the ``seconds`` that ``count`` tokens took.

    The weight is the usual time of so many tokens, because a pause, such as a laptop's sleep, would outweigh all the rest.
    """
    each = seconds / count
    usual = average.value
    average.add(each, count * (each if usual is None else usual))


@dataclass(slots=True)
class _Mean:
    """The mean of all values."""

    _sum: float = 0.0
    _count: int = 0

    def add(self, total: float, count: int) -> None:
        """Add ``count`` values whose sum is ``total``."""
        self._sum += total
        self._count += count

    @property
    def value(self) -> float | None:
        """The mean; None before the first `add`."""
        return self._sum / self._count if self._count else None


@dataclass(slots=True)
class Meter:
    """The counts of a run, and what follows from them: the speed, the fraction done and the time left.

    A token for which the model reads a whole window again (``windows`` counts them) takes ten to a hundred times as long as
    another, so the two kinds are timed separately. The tokens of models that are not open yet are assumed to take as long as
    those of earlier models.
    """

    started: float
    rows_done: int = 0
    rows_total: int = 0
    rows_in_flight: int = 0
    tokens: int = 0
    tokens_total: int = 0
    points_done: int = 0
    points_total: int = 0
    windows: int = 0
    windows_total: int = 0
    tokens_ahead: int = 0
    windows_ahead: int = 0
    workers: str = ""
    _since: float | None = None
    _measured: tuple[float, int, int] | None = None
    _speed: _Average = field(default_factory=_Average)
    _token_seconds: _Average = field(default_factory=_Average)
    _window_seconds: _Average = field(default_factory=_Average)
    _any_token: _Mean = field(default_factory=_Mean)
    _any_window: _Mean = field(default_factory=_Mean)

    def begin_model(self) -> None:
        """See `Progress.begin_model`."""
        self._measured = None
        self._speed, self._token_seconds, self._window_seconds = _Average(), _Average(), _Average()

    def expect_windows(self, done: int, total: int, seconds: float | None, ahead: int = 0) -> None:
        """See `Progress.expect_windows`."""
        self.windows, self.windows_total, self.windows_ahead = done, total, ahead
        if seconds is not None and self._window_seconds.value is None:
            self._window_seconds.add(seconds, seconds)

    def measure(self, now: float) -> None:
        """Update the speed and the seconds per token of each kind. ``now`` is the time by the run's clock, in seconds.

        The first call of each model only starts the clock, so that loading it does not count.
        """
        if self._since is None:
            self._since = now
        if self._measured is None:
            self._measured = now, self.tokens, self.windows
        then, tokens_before, windows_before = self._measured
        tokens, windows, seconds = self.tokens - tokens_before, self.windows - windows_before, now - then
        if tokens == 0 or seconds < SPEED_INTERVAL:
            return
        self._speed.add(tokens / seconds, seconds)
        others = max(tokens - windows, 0)
        for_windows = seconds * self._share_of_windows(others, windows, seconds)
        if others:
            _add_each(self._token_seconds, seconds - for_windows, others)
            self._any_token.add(seconds - for_windows, others)
        if windows > 0:
            _add_each(self._window_seconds, for_windows, windows)
            self._any_window.add(for_windows, windows)
        self._measured = now, self.tokens, self.windows

    def _share_of_windows(self, others: int, windows: int, seconds: float) -> float:
        """The share of ``seconds`` spent on windows, from what is known of each kind of token."""
        if windows <= 0 or others == 0:
            return float(windows > 0)
        token, window = self._token_seconds.value, self._window_seconds.value
        if token is not None and window is not None:
            return windows * window / (windows * window + others * token)
        if token is not None:
            return max(1 - others * token / seconds, 0.0)
        return min(windows * window / seconds, 1.0) if window is not None else windows / (windows + others)

    @property
    def speed(self) -> float | None:
        """Tokens per second; None until it has been measured."""
        return self._speed.value

    @property
    def fraction(self) -> float:
        """The share of the time that has passed, from 0 to 1; while times are unknown, the share of tokens or of rows."""
        if not self.tokens_total:
            return min(self.rows_done / self.rows_total, 1.0) if self.rows_total else 0.0
        done, left = self._seconds_of(self.tokens - self.windows, self.windows), self._seconds_left()
        if done is None or left is None or done + left == 0:
            return min(self.tokens / self.tokens_total, 1.0)
        return done / (done + left)

    def _seconds_left(self) -> float | None:
        tokens, windows = self.tokens_total - self.tokens, self.windows_total - self.windows
        others_ahead = self.tokens_ahead - self.windows_ahead
        own = self._seconds_of(tokens - windows - others_ahead, windows - self.windows_ahead)
        ahead = self._seconds_ahead(others_ahead, self.windows_ahead)
        return None if own is None or ahead is None else own + ahead

    def _seconds_of(self, others: int, windows: int) -> float | None:
        """Seconds for tokens of the open model, at its own speed if that has been measured."""
        return _seconds(
            others, windows, _known(self._token_seconds, self._any_token), _known(self._window_seconds, self._any_window)
        )

    def _seconds_ahead(self, others: int, windows: int) -> float | None:
        """Seconds for tokens of models that are not open yet, at the mean speed of those so far."""
        return _seconds(
            others, windows, _known(self._any_token, self._token_seconds), _known(self._any_window, self._window_seconds)
        )

    def seconds_left(self, now: float) -> float | None:
        """Seconds to the end at this speed; None if that is not known yet."""
        if self.tokens_total:
            return self._seconds_left()
        if self.rows_done and self.rows_total:
            return self._decoding(now) / self.rows_done * max(self.rows_total - self.rows_done, 0)
        return None

    def line(self, now: float) -> str:
        """``12/80 rows, 64 in flight, 3/24 points, 1,234 tokens/s, 0:00:12 left``, without what is not known."""
        if not self.rows_total:
            return "starting"
        parts = [f"{self.rows_done:,}/{counted(self.rows_total, 'row')}", f"{self.rows_in_flight:,} in flight"]
        if self.points_total > 1:
            parts.append(f"{self.points_done:,}/{self.points_total:,} points")
        if self.speed is not None:
            parts.append(f"{self.speed:,.0f} tokens/s")
        left = self.seconds_left(now)
        if left is not None:
            parts.append(f"{duration(left)} left")
        if self.workers:
            parts.append(self.workers)
        return ", ".join(parts)

    def summary(self, now: float) -> str:
        """``80/80 rows, 40,000 tokens in 0:00:32 (1,250 tokens/s)``."""
        points = f" of {self.points_done:,}/{self.points_total:,} points" if self.points_total > 1 else ""
        seconds = self._decoding(now)
        rate = f" ({self.tokens / seconds:,.0f} tokens/s)" if self.tokens and seconds > 0 else ""
        took = duration(now - self.started)
        return f"{self.rows_done:,}/{counted(self.rows_total, 'row')}{points}, {counted(self.tokens, 'token')} in {took}{rate}"

    def _decoding(self, now: float) -> float:
        """Seconds since the first tokens were counted."""
        return now - (self.started if self._since is None else self._since)


def _known(first: _Average | _Mean, second: _Average | _Mean) -> float | None:
    return second.value if first.value is None else first.value


def _seconds(others: int, windows: int, token: float | None, window: float | None) -> float | None:
    """Seconds for tokens of both kinds, given the seconds of one; a window of unknown time counts as another token."""
    window = token if window is None else window
    if (token is None and others > 0) or (window is None and windows > 0):
        return None
    return max(others, 0) * (token or 0.0) + max(windows, 0) * (window or 0.0)
