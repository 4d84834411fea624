"""Escape text for display: characters that control a terminal, or that hide or reorder the text around them.

Names of weights, directories and files, table cells and generated text come from strangers. All of it passes through `visible`
or `one_line` on its way to a terminal, a log or an error message: lines through `say`, log records through `get_logger`.
"""

from __future__ import annotations

import argparse
import codecs
import io
import logging
import os
import re
import sys
import traceback
from datetime import timedelta
from typing import Any, NoReturn

UNSAFE = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters except tab and newline; every escape sequence begins with one
    r"\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u3164\uffa0\ufeff"  # invisible
    r"\u200e\u200f\u2028-\u202e\u2060-\u206f\ufff9-\ufffb"  # direction, line and paragraph separators, annotations
    r"\ud800-\udfff\ufdd0-\ufdef\U000e0000-\U000e0fff"  # lone surrogates, noncharacters, tags
)
"""A regular expression's character class, without brackets. It omits joiners (U+200C, U+200D): words and emoji need them."""

_UNSAFE = re.compile(f"[{UNSAFE}]")
_UNSAFE_IN_A_LINE = re.compile(f"[\t\n{UNSAFE}]")


def visible(text: str) -> str:
    """``text`` with every unsafe character as a backslash escape; newlines and tabs stay."""
    return _UNSAFE.sub(_escaped, text)


def one_line(text: str) -> str:
    """`visible` with newlines and tabs escaped, too."""
    return _UNSAFE_IN_A_LINE.sub(_escaped, text)


def shown_text(prompt: str, completion: str, *, chat_template: bool) -> str:
    """Return a sample as text to show: the prompt and what continues it. An answer to a turn begins a line of its own."""
    return f"{prompt}\n{completion}" if chat_template else prompt + completion


def counted(number: int, one: str, more: str | None = None) -> str:
    """A count with its noun: ``1 sample`` or ``1,234 samples``."""
    return f"{number:,} {one if number == 1 else more or f'{one}s'}"


def duration(seconds: float) -> str:
    """``0:01:05``: to the nearest second."""
    return str(timedelta(seconds=round(seconds)))


def say(line: str, *, error: bool = False) -> None:
    """Print one line on standard output or standard error; a closed reader is not an error.

    Raises:
        OSError: see `write_out`.
    """
    if not error:
        write_out(one_line(line) + "\n")
        return
    try:
        print(one_line(line), file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)


def write_out(text: str) -> None:
    """Write ``text`` unchanged to standard output and flush.

    Raises:
        OSError: the write failed; BrokenPipeError if the reader has closed the pipe. Later output is discarded.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as refused:
        drop(sys.stdout)
        raise type(refused)(refused.errno, refused.strerror, STDOUT) from refused


STDOUT = "standard output"
"""The file name in errors about standard output."""


def ready_streams() -> None:
    """Let standard output and error accept any text: closed streams discard it, others escape what they cannot encode."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            # Otherwise the next file opened would get its descriptor, and a library's output would go into that file.
            setattr(sys, name, open(_hold(number), "w", encoding="utf-8", errors=_STAND_INS, closefd=False))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_STAND_INS)


def drop(stream: io.TextIOBase | Any) -> None:
    """Discard pending and future output of ``stream``."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


def get_logger(name: str) -> logging.Logger:
    """`logging.getLogger` with a filter that makes each record one line of visible text, except for tracebacks."""
    logger = logging.getLogger(name)
    if not any(isinstance(each, Visible) for each in logger.filters):
        logger.addFilter(Visible())
    return logger


class Visible(logging.Filter):
    """Makes every record visible text, including what a library logs of a user's settings."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        text = message.lstrip("\t")  # Hydra indents with them
        record.msg, record.args = message[: len(message) - len(text)] + one_line(text), None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = visible("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return True


def _hold(number: int) -> int:
    """A descriptor of the null device: ``number`` itself unless it is in use again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.fstat(number)
    except OSError:
        os.dup2(nowhere, number)
        os.close(nowhere)
        return number
    return nowhere


_STAND_INS = "gptsweep.stand_ins"
_ASCII = {
    "★": "*",
    "≈": "~",
    "±": "+-",
    "–": "-",
    "−": "-",
    "→": "->",
    "…": "...",
    "▸": ">",
    "⟨": "<",
    "⟩": ">",
    "×": "x",
    "·": "-",
}


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    """A handler for `codecs.register_error`: our own symbols in ASCII, all other characters as backslash escapes."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(_ASCII.get(each) or each.encode("unicode_escape").decode() for each in missing), error.end


codecs.register_error(_STAND_INS, _stand_in)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like those of ``gptsweep``."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        self.exit(2, f"{self.prog.removeprefix('python -m ')}: error: {one_line(message)}; see --help\n")
