"""Read `start`: a prompt, or a file of prompts."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from .display import get_logger
from .errors import PromptError
from .records import Prompt

log = get_logger(__name__)

_FILES = ("FILE", "LINES", "JSONL")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def names_file(start: str) -> bool:
    """Whether ``start`` names a file of prompts."""
    return start.startswith(tuple(f"{kind}:" for kind in _FILES))


def unescaped(text: str) -> str:
    """Resolve the escapes in text that a user typed, for ``sampling.stop``, say."""
    return re.sub(r"\\([nrt\\])", lambda match: _ESCAPES[match[1]], text)


def unescaped_start(typed: str) -> str:
    """Resolve the escapes in ``start`` as typed; in a file name, a backslash is literal."""
    return typed if names_file(typed) else unescaped(typed)


def escaped(text: str) -> str:
    r"""``text`` as it is typed for ``start``: newlines, tabs and backslashes as ``\n``, ``\t`` and ``\\``."""
    return text.translate({ord(meant): f"\\{typed}" for typed, meant in _ESCAPES.items()})


def require_some_start(starts: Collection[str]) -> None:
    """Check, before a model is loaded, that at least one of these is a text or names an existing file.

    Raises:
        PromptError: none is; the error is that of the first.
    """
    errors = [_missing(start) for start in starts]
    if errors and all(errors):
        raise next(filter(None, errors))


def _missing(start: str) -> PromptError | None:
    kind, _, path = start.partition(":")
    there = kind not in _FILES or not path or os.path.lexists(os.path.expanduser(path))
    return None if there else PromptError("start", start, f"no such file (looked in {Path.cwd()})")


def read_prompts(start: str) -> tuple[Prompt, ...]:
    r"""The prompts that ``start`` denotes, in order; ids are ``"0"``, ``"1"``, … unless the file gives them.

    - ``FILE:path``: the file is one prompt, as in nanoGPT: UTF-8, ``\r\n`` becomes ``\n``, a final newline is kept.
    - ``LINES:path``: one prompt per line, without its newline; lines of only white space are skipped.
    - ``JSONL:path``: one JSON object per line, with ``prompt`` and optionally ``id`` (a string or an integer); other fields are
      ignored, blank lines are skipped.
    - anything else is the prompt itself.

    Raises:
        PromptError: the file cannot be read, a line is not as above, or there is no prompt.
    """
    kind, separator, path = start.partition(":")
    if not separator or kind not in _FILES:
        return (Prompt("0", start),)
    text = _read(start, path)
    if kind == "FILE":
        if text.startswith("\ufeff"):
            log.warning("%s starts with a byte order mark, which becomes part of the prompt, as in nanoGPT", path)
        if not text:
            raise PromptError("start", start, "the file is empty; a prompt needs at least one character")
        return (Prompt("0", text),)
    lines = text.removeprefix("\ufeff").split("\n")
    numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    if kind == "LINES":
        prompts = tuple(Prompt(str(place), line) for place, (_, line) in enumerate(numbered))
    else:
        prompts = tuple(_from_json(start, numbered))
    if not prompts:
        raise PromptError("start", start, "the file holds no prompt: every line is blank")
    return prompts


def read_reference(source: str) -> str:
    """Read the text of the setting ``reference``, ``FILE:path``, like a file of ``start``.

    Raises:
        PromptError: it does not name a file, or the file is not regular, not UTF-8 or empty.
    """
    kind, separator, path = source.partition(":")
    if not separator or kind != "FILE":
        there = f"; did you mean FILE:{source}?" if os.path.isfile(source) else ""
        other = "; a reference is a whole file, so not LINES: or JSONL:" if kind in ("LINES", "JSONL") else there
        raise PromptError("reference", source, f"must be FILE: and the path of a text file{other}")
    text = _read(source, path, "reference", regular=True)
    if not text.strip():
        raise PromptError("reference", source, "the file has no text; give a file with text")
    return text


def _read(start: str, path: str, key: str = "start", *, regular: bool = False) -> str:
    if not path:
        raise PromptError(key, start, "names no file; give a path after the colon")
    try:
        file = Path(path).expanduser()
        if regular and not stat.S_ISREG(file.stat().st_mode):
            raise PromptError(key, start, "is not a regular file; give a text file")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise PromptError(key, start, f"line {line} is not UTF-8 (byte {error.start} of the file); save it as UTF-8") from error
    except FileNotFoundError as error:
        raise PromptError(key, start, f"no such file (looked in {Path.cwd()})") from error
    except IsADirectoryError as error:
        raise PromptError(key, start, "is a directory; give a file") from error
    except OSError as error:
        raise PromptError(key, start, f"cannot be read: {error.strerror}") from error
    except (RuntimeError, ValueError) as error:  # an unknown home directory, or an invalid file name
        raise PromptError(key, start, f"cannot be read: {error}") from error


def _from_json(start: str, numbered: Iterator[tuple[int, str]]) -> Iterator[Prompt]:
    seen: dict[str, int] = {}
    for place, (number, line) in enumerate(numbered):

        def wrong(what: str, number: int = number) -> PromptError:
            return PromptError("start", start, f"line {number} {what}")

        try:
            fields: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise wrong(f'is not JSON ({reason}); each line is an object like {{"prompt": "Once"}}') from error
        if not isinstance(fields, dict):
            raise wrong('is not an object; each line is an object like {"prompt": "Once"}')
        if "prompt" not in fields:
            raise wrong(f"has no field 'prompt'; its fields are {', '.join(map(repr, fields)) or 'none'}")
        prompt, prompt_id = fields["prompt"], fields.get("id")
        if not isinstance(prompt, str) or not prompt:
            raise wrong(f"has the prompt {json.dumps(prompt)[:80]}; it must be a string of at least one character")
        if isinstance(prompt_id, bool) or not isinstance(prompt_id, (str, int, type(None))) or prompt_id == "":
            raise wrong(f"has the id {json.dumps(prompt_id)[:80]}; it must be a string or a whole number")
        name = str(place) if prompt_id is None else str(prompt_id)
        if name in seen:
            by_place = " (lines without an id are numbered from 0)" if prompt_id is None else ""
            raise wrong(f"has the id {name!r}, like line {seen[name]}{by_place}; ids must differ")
        seen[name] = number
        yield Prompt(name, prompt)
