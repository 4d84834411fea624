"""Text as it may be shown: characters that a terminal obeys, or that hide or reorder what stands beside them, are escaped.

Names of weights, directories and files, cells of tables and generated text come from strangers. Whatever of them goes to a
terminal, a log or an error message goes through `visible` or `one_line`: lines with `say`, log records by `get_logger`.
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
    r"\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline; they begin every escape sequence
    r"\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u3164\uffa0\ufeff"  # shown as nothing
    r"\u200e\u200f\u2028-\u202e\u2060-\u206f\ufff9-\ufffb"  # direction, line and paragraph separators, annotations
    r"\ud800-\udfff\ufdd0-\ufdef\U000e0000-\U000e0fff"  # lone surrogates, noncharacters, tags
)
"""The inside of a character class. Joiners (U+200C, U+200D) are not in it: words and emoji are spelled with them."""

_UNSAFE = re.compile(f"[{UNSAFE}]")
_UNSAFE_IN_A_LINE = re.compile(f"[\t\n{UNSAFE}]")


def visible(text: str) -> str:
    """``text`` with every unsafe character as a backslash escape; newlines and tabs stay."""
    return _UNSAFE.sub(_escaped, text)


def one_line(text: str) -> str:
    """`visible` with newlines and tabs escaped, too."""
    return _UNSAFE_IN_A_LINE.sub(_escaped, text)


def counted(number: int, one: str, more: str | None = None) -> str:
    """``1 sample`` or ``1,234 samples``: a count and what it counts, for people."""
    return f"{number:,} {one if number == 1 else more or f'{one}s'}"


def duration(seconds: float) -> str:
    """``0:01:05``: to the nearest second."""
    return str(timedelta(seconds=round(seconds)))


def say(line: str, *, error: bool = False) -> None:
    """Print one line on standard output, or on standard error, where nobody need be there to read it.

    Raises:
        OSError: as from `write_out`.
    """
    if not error:
        write_out(one_line(line) + "\n")
        return
    try:
        print(one_line(line), file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)


def write_out(text: str) -> None:
    """Write ``text`` to standard output as it is, now.

    Raises:
        OSError: it cannot be written; BrokenPipeError where its reader has gone. What follows goes nowhere.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as refused:
        drop(sys.stdout)
        raise type(refused)(refused.errno, refused.strerror, STDOUT) from refused


STDOUT = "standard output"
"""The file name in the error of a standard output that cannot be written."""


def ready_streams() -> None:
    """Make standard output and error take any text: closed ones swallow it, others show what their encoding lacks in ASCII."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            # Its descriptor would be that of the next file opened, and what a library prints would go in there.
            setattr(sys, name, open(_hold(number), "w", encoding="utf-8", errors=_STAND_INS, closefd=False))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_STAND_INS)


def drop(stream: io.TextIOBase | Any) -> None:
    """Let what is still to be written to ``stream``, and all that follows, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


def get_logger(name: str) -> logging.Logger:
    """`logging.getLogger`, whose records are one line of visible text, tracebacks apart, whatever handler takes them."""
    logger = logging.getLogger(name)
    if not any(isinstance(each, Visible) for each in logger.filters):
        logger.addFilter(Visible())
    return logger


class Visible(logging.Filter):
    """Lets a logger or a handler take lines of visible text alone: what a library logs of a user's settings, too."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        text = message.lstrip("\t")  # Hydra indents with them
        record.msg, record.args = message[: len(message) - len(text)] + one_line(text), None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = visible("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return True


def _hold(number: int) -> int:
    """A descriptor that leads nowhere: ``number`` itself, unless something has been opened with it since."""
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
    """For `codecs.register_error`: our own signs in ASCII, everything else as a backslash escape."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(_ASCII.get(each) or each.encode("unicode_escape").decode() for each in missing), error.end


codecs.register_error(_STAND_INS, _stand_in)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


class Parser(argparse.ArgumentParser):
    """The options of a command beside ``gptsweep`` itself, whose errors are one line, as those are."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and stop with status 2."""
        self.exit(2, f"{self.prog.removeprefix('python -m ')}: error: {one_line(message)}; see --help\n")
