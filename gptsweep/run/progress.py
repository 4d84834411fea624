"""The progress of a run: a bar and the finished samples on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import IO, Any, cast

from rich.console import Console, RenderableType
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, ProgressColumn, Task
from rich.progress import Progress as Bar
from rich.text import Text

from ..display import STDOUT, drop, get_logger, one_line, visible, write_out
from ..errors import ResultsError
from .meter import Meter

log = get_logger(__name__)

RULE = "---------------"
"""The line that nanoGPT's ``sample.py`` prints between samples."""

TEXT_SECONDS = 0.25
LOG_SECONDS = 10.0
LONGEST_LOG_SECONDS = 300.0


class Progress:
    """Context manager that shows the progress of a run.

    A terminal shows a bar with rows done, rows in flight, points done, tokens per second and the time left; log lines and
    finished samples, each with its label, go above it. If standard output is not a terminal, finished samples are written to it
    as ``sample.py`` does, and the bar is on standard error if that is a terminal. Without a bar, as with ``TERM=dumb``, a log
    line comes after 10 s, then at intervals that grow with the run, up to 5 minutes. Every run ends with one log line.

    Args:
        quiet: whether to show no samples.
        samples_each: for a run of one point, the number of samples of each prompt: a pipe then gets them in order. None: as
            they finish.
        live_text: whether to show the text of an unfinished sample, on one line below the bar.
        stream: the output, a terminal or not; None: standard output and error as they are on enter.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        samples_each: int | None = None,
        live_text: bool = False,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.quiet = quiet
        self.samples_each = samples_each
        self.live_text = live_text
        self.refusal: OSError | None = None
        """Why standard output takes no more samples: BrokenPipeError if its reader has closed the pipe."""
        self._held: dict[tuple[int, int], str] = {}
        self._shown: set[tuple[int, int]] = set()
        self._next = 0, 0
        self._stream = stream
        self._clock = clock
        self._meter = Meter(started=clock())
        self._console: Console | None = None
        self._bar: _Bar | None = None
        self._text_at = 0.0
        self._log_at = 0.0

    def __enter__(self) -> Progress:
        stream = self._stream or self._where()
        self._meter = Meter(started=self._clock())
        self._log_at = self._meter.started + LOG_SECONDS
        # rich is not asked, because FORCE_COLOR, which build servers set, makes it take any pipe for a terminal.
        if _is_terminal(stream):
            terminal = cast(IO[str], _Terminal(stream))
            self._console = Console(file=terminal, force_terminal=True, highlight=False, markup=False, emoji=False)
            if not self._console.is_dumb_terminal:
                self._start_bar(self._console)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            for handler in _stream_handlers():
                handler.setStream(_behind_proxy(handler.stream))
        self._console = None
        if self._meter.rows_total:
            log.info("%s: %s", "done" if error is None else "stopped", self._meter.summary(self._clock()))

    def update(
        self,
        *,
        rows_done: int | None = None,
        rows_total: int | None = None,
        rows_in_flight: int | None = None,
        tokens: int | None = None,
        tokens_total: int | None = None,
        points_done: int | None = None,
        points_total: int | None = None,
        tokens_ahead: int | None = None,
    ) -> None:
        """Set the counts; cheap enough for every decode step. A count that is None stays as it was.

        Args:
            rows_done: samples finished so far in this run.
            rows_total: samples that this run generates.
            rows_in_flight: samples being decoded.
            tokens: tokens sampled so far in this run, including those of rows in flight.
            tokens_total: tokens expected at the end: those of finished rows, and ``max_new_tokens`` of every other row. With it
                the bar moves before the first row finishes.
            points_done: points of the sweep whose files are written.
            points_total: points of the sweep.
            tokens_ahead: how many of ``tokens_total`` belong to models that are not open yet.
        """
        given = {
            "rows_done": rows_done,
            "rows_total": rows_total,
            "rows_in_flight": rows_in_flight,
            "tokens": tokens,
            "tokens_total": tokens_total,
            "points_done": points_done,
            "points_total": points_total,
            "tokens_ahead": tokens_ahead,
        }
        meter = self._meter
        for name, count in given.items():
            if count is not None:
                setattr(meter, name, count)
        now = self._clock()
        if tokens is not None:
            meter.measure(now)
        if self._bar is None and now >= self._log_at:
            self._log_at = now + min(max(LOG_SECONDS, (now - meter.started) / 10), LONGEST_LOG_SECONDS)
            log.info("%s", meter.line(now))

    def show_workers(self, workers: str) -> None:
        """Describe the other processes that decode; empty: there are none."""
        self._meter.workers = workers

    def begin_model(self) -> None:
        """Start measuring another model: loading it does not count, and it has a speed of its own."""
        self._meter.begin_model()

    def expect_windows(self, done: int, total: int, seconds: float | None, ahead: int = 0) -> None:
        """Set for how many tokens the model reads a whole window again. Call it before the `update` that counts these tokens.

        Args:
            done: how many of the tokens so far.
            total: how many of the tokens expected at the end.
            seconds: the time for one, if it is known beforehand.
            ahead: how many of ``total`` belong to models that are not open yet.
        """
        self._meter.expect_windows(done, total, seconds, ahead)

    def show_sample(self, text: str, place: tuple[int, int], label: str) -> None:
        """Show a finished sample: above the bar with its label, or on standard output as ``sample.py`` does; nothing if quiet.

        Args:
            text: prompt and completion.
            place: its ``(prompt_index, sample_index)``.
            label: the heading, such as its point.
        """
        if self.quiet:
            return
        if self._console is not None and (self._stream or _is_terminal(sys.stdout)):
            self._shown.add(place)
            encoding = self._console.encoding
            heading = Text(printable(one_line(label), encoding), style="bold cyan")
            self._console.print(Text.assemble(heading, f"\n{printable(text, encoding)}\n{RULE}"), soft_wrap=True)
        elif self._stream is None and self.samples_each is None:
            self._write(f"{one_line(label)}\n{text}")
        elif self._stream is None:
            self._held[place] = text
            while self._next in self._held:
                self._write(self._held.pop(self._next))
                prompt, sample = self._next
                self._next = (prompt, sample + 1) if sample + 1 < (self.samples_each or 0) else (prompt + 1, 0)

    @property
    def text_due(self) -> bool:
        """Whether to call `show_text` now: a few times a second, if there is a bar and the text is wanted."""
        return self.live_text and self._bar is not None and self._clock() >= self._text_at

    def show_text(self, text: str) -> None:
        """Show the end of an unfinished sample's text, on one line below the bar."""
        if self._bar is not None and self._console is not None:
            self._text_at = self._clock() + TEXT_SECONDS
            self._bar.text = printable(one_line(text[-500:]), self._console.encoding)[1 - self._console.width :]

    def write_rest(self, samples: Iterable[tuple[tuple[int, int], str, str]]) -> None:
        """Write the samples that standard output does not have yet, such as those that were on disk before the run.

        Args:
            samples: place, text and label of every sample, in order.

        Raises:
            ResultsError: standard output could not be written, and not because its reader closed the pipe.
        """
        self._held.clear()
        if not self.quiet and self._stream is None:
            terminal = _is_terminal(sys.stdout)
            for place, text, label in samples:
                if place[1] < (self.samples_each or 0):
                    if terminal and place not in self._shown:
                        self.show_sample(text, place, label)
                    elif not terminal and place >= self._next:
                        self._write(text)
        if self.refusal is not None and not isinstance(self.refusal, BrokenPipeError):
            why = f"cannot be written: {self.refusal.strerror}; the results of the run are complete"
            raise ResultsError("stdout", STDOUT, why) from self.refusal

    def _write(self, text: str) -> None:
        if self.refusal is None:
            try:
                write_out(f"{text}\n{RULE}\n")
            except OSError as refusal:  # the run continues, as its files have every sample
                self.refusal = refusal

    def _where(self) -> IO[str]:
        if _is_terminal(sys.stdout) or not _is_terminal(sys.stderr):
            return sys.stdout
        try:
            piped = stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode)
        except OSError:  # a replacement for the stream, without a descriptor
            piped = False
        # A pipe may end on the same terminal, as with `| tee`.
        return sys.stdout if piped and not self.quiet else sys.stderr

    def _start_bar(self, console: Console) -> None:
        meter, clock = self._meter, self._clock
        bar = 24 if console.width >= 110 else 10
        self._bar = _Bar(
            _Fraction(meter, bar_width=bar),
            _Line(meter, clock, console.width - bar - 1),
            console=console,
            transient=True,
            refresh_per_second=4,
            redirect_stdout=_is_terminal(sys.stdout),
            redirect_stderr=_is_terminal(sys.stderr),
        )
        self._bar.add_task("", total=1.0)
        self._bar.start()
        # Existing handlers write to the terminal directly and would break the bar.
        for handler in _stream_handlers():
            stream = _behind_proxy(handler.stream)
            if _is_terminal(stream):
                handler.setStream(FileProxy(console, stream))


class _Terminal:
    """A terminal to which writing never fails: once it has been closed, output to it is discarded, and the run goes on."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        device = _device(stream)
        standard = [each for each in (sys.__stdout__, sys.__stderr__) if each is not None]
        self._all = [stream, *(each for each in standard if device is not None and _device(each) == device)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._discard()

    def _discard(self) -> None:
        for stream in self._all:
            drop(stream)


class _Bar(Bar):
    """The bar with a line of text below it."""

    text = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.text:
            yield Text(self.text, style="dim", no_wrap=True, overflow="ellipsis")


class _Fraction(BarColumn):
    """The bar, which reads the meter at each refresh rather than at each update."""

    def __init__(self, meter: Meter, bar_width: int) -> None:
        super().__init__(bar_width=bar_width)
        self._meter = meter

    def render(self, task: Task) -> Any:
        task.completed = self._meter.fraction
        return super().render(task)


class _Line(ProgressColumn):
    """The counts beside the bar, without those that do not fit."""

    def __init__(self, meter: Meter, clock: Callable[[], float], width: int) -> None:
        super().__init__()
        self._meter = meter
        self._clock = clock
        self._width = width

    def render(self, task: Task) -> Text:
        parts, workers = self._meter.line(self._clock()).split(", "), self._meter.workers
        if workers and self._is_too_long(parts):
            parts[-1] = parts[-1].partition(" of ")[0]  # without the speed of each worker: the time left matters more
        while self._is_too_long(parts) and len(parts) > (3 if workers else 2):
            del parts[1]
        if workers and self._is_too_long(parts):
            parts[-1] = parts[-1].partition(" (")[0]  # without the count of restarted workers
        if workers and self._is_too_long(parts) and len(parts) > 2:
            parts.pop()
        return Text(", ".join(parts), no_wrap=True, overflow="ellipsis")

    def _is_too_long(self, parts: Sequence[str]) -> bool:
        return len(", ".join(parts)) > self._width


def printable(text: str, encoding: str = "utf-8") -> str:
    """Escape control characters, except newline and tab, and characters that ``encoding`` lacks, with backslashes."""
    return visible(text).encode(encoding, "backslashreplace").decode(encoding)


def _is_terminal(stream: IO[str]) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # a replacement that is not a complete file, or a closed stream
        return False


def _device(stream: IO[str]) -> int | None:
    """Return the number of the device that a stream writes to, None for a replacement without a descriptor."""
    try:
        return os.fstat(stream.fileno()).st_rdev
    except (AttributeError, OSError, ValueError):
        return None


def _behind_proxy(stream: IO[str]) -> IO[str]:
    return stream.rich_proxied_file if isinstance(stream, FileProxy) else stream


def _stream_handlers() -> list[logging.StreamHandler[Any]]:
    """Return the handlers of all loggers that write to a stream, not to a file."""
    loggers = [
        logging.getLogger(),
        *(item for item in logging.root.manager.loggerDict.values() if isinstance(item, logging.Logger)),
    ]
    handlers = {id(handler): handler for logger in loggers for handler in logger.handlers}
    return [h for h in handlers.values() if isinstance(h, logging.StreamHandler) and not isinstance(h, logging.FileHandler)]
