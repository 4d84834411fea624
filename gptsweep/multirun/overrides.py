"""Quote overrides so that, for a key that holds text, the value is exactly what the user typed.

Hydra's grammar reads ``start=1e3`` as a number, ``start=true`` as a boolean and ``start=str(x)`` as a call, so the prompt would
be ``1000.0``, ``True`` or ``x``. This module puts such values in quotes before Hydra sees them. A value that Hydra reads as
typed stays unquoted, so that the directories of a sweep keep their names.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache, partial

from antlr4 import InputStream, Token
from antlr4.error.ErrorListener import ErrorListener
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import OverrideLexer

from ..config_schema import is_optional, is_plain_number, is_text, keys, list_of_text
from ..errors import ConfigError
from ..prompts import escaped, names_file, unescaped

_OPEN = {OverrideLexer.POPEN, OverrideLexer.BRACKET_OPEN, OverrideLexer.BRACE_OPEN}
_CLOSE = {OverrideLexer.PCLOSE, OverrideLexer.BRACKET_CLOSE, OverrideLexer.BRACE_CLOSE}
_SWEEPS = {"shuffle", "sort", "tag", "range", "interval", "glob"}
_NOT_IN_GRAMMAR = re.compile(r"[^\w\s/\\+.$%*@?|()\[\]{},:='\"-]|[^\x00-\x7f]")
_LONGEST_HINT = 160


def as_typed(argument: str, *, sweeping: bool) -> str:
    """Rewrite ``argument``, a ``key=value``, so that for a key that holds text Hydra reads exactly the typed characters.

    In a sweep and in lists, commas separate values, quotes group them, and ``\\,`` is a literal comma, as in Hydra's grammar.
    In a single run every character counts, except for quotes around the whole value that Hydra needs.

    Raises:
        ConfigError: ``start`` has quotes that Hydra does not need, so they may or may not belong to the prompt.
    """
    prefix, equals, value = argument.partition("=")
    key = prefix.lstrip("+")
    if not equals or key not in keys():
        return argument
    if list_of_text(key):
        return f"{prefix}={_each(value, _list) or value}"
    if not is_text(key) or (is_optional(key) and value.lower() == "null"):
        return argument
    if sweeping:
        return f"{prefix}={_swept(key, value)}"
    if (inside := _inside_quotes(value)) is None:
        return f"{prefix}={written(value)}"
    if key == "start" and _reading(inside) == inside:
        bare, whole = shlex.quote(f"start={inside}"), shlex.quote(f"start={quoted(value)}")
        raise ConfigError(
            key, value, f"Hydra removes these quotes; type {bare} for the text inside them, or {whole} to keep them"
        )
    return argument


def how_to_quote(key: str, value: str) -> str:
    """Say, for an error message, how to type ``value``, which Hydra cannot parse, as text."""
    if list_of_text(key) and (items := re.fullmatch(r"\s*\[(.*)\]\s*", value, re.DOTALL)):
        line = f"{key}=[{','.join(quoted(item.strip()) for item in items[1].split(','))}]"
        what = "put each string in quotes"
    else:
        is_prompt = key == "start" and not names_file(value)
        line = f"{key}={quoted(escaped(unescaped(value)) if is_prompt else value)}"
        what = "to take it as text, quote it twice"
    if line.isprintable() and len(line) <= _LONGEST_HINT:
        return f"{what}: {shlex.quote(line)}"
    return "put it in a file and use start=FILE:path" if key == "start" else "put it in quotes"


def quoted(text: str) -> str:
    """Put ``text`` in quotes that Hydra removes. Single quotes do not appear in the names of directories; see `point_dir`."""
    return str(QuotedString(text, Quote.single if is_plain_number(text) else Quote.double).with_quotes())


def written(text: str) -> str:
    """Write ``text`` so that Hydra reads exactly these characters: unquoted if possible, else in quotes."""
    return text if _reading(text) == text else quoted(text)


def _swept(key: str, value: str) -> str:
    """Quote those values of a sweep that Hydra would not read as typed."""
    sweep = _each(value, partial(_element, optional=is_optional(key)))
    if sweep is None:  # Hydra cannot tell where a value ends
        return value if "," in value else quoted(value)
    return quoted(value) if "," not in value and sweep == value.strip() != value else sweep


def _element(raw: str, *, optional: bool = False) -> str:
    call = re.match(r"\s*(\w+)\s*\(", raw)
    if call and call[1] == "range" and (values := _range(raw)):
        return ",".join(quoted(str(value)) for value in values)
    if call and call[1] == "choice" and raw.rstrip().endswith(")"):
        inside = raw[call.end() : raw.rindex(")")]
        changed = _each(inside, partial(_element, optional=optional))
        return raw if changed in (None, inside) else changed or raw  # Hydra's functions ignore quotes
    if call and call[1] in _SWEEPS:
        return raw
    return raw if optional and raw.lower() == "null" else _in_grammar(raw)


def _range(raw: str) -> list[object]:
    """Return the numbers of Hydra's ``range(…)``; an empty list if it is not a valid one."""
    try:
        override = parser().parse_override(f"key={raw}")
    except HydraException:
        return []
    return list(override.sweep_iterator()) if override.is_range_sweep() else []


def _list(raw: str) -> str:
    found = re.fullmatch(r"(\s*\[)(.*)(\]\s*)", raw, re.DOTALL)
    if not found or not found[2].strip():
        return raw
    inner = _each(found[2], _in_grammar)
    return raw if inner is None else f"{found[1]}{inner}{found[3]}"


def _in_grammar(raw: str) -> str:
    """Write one of several values. A backslash before a special character of the grammar makes it literal."""
    raw = raw.strip(" \t")
    if _inside_quotes(raw) is not None:
        return raw
    text = re.sub(r"\\([\\()\[\]{}:=, \t])", lambda match: match[0] if match[1] == "\\" else match[1], raw)
    return raw if _reading(raw) == text else quoted(text)


def _each(value: str, change: Callable[[str], str]) -> str | None:
    """Apply ``change`` to the parts of ``value`` between top-level commas; return None if Hydra cannot split it."""
    try:
        commas = list(_commas(value))
    except HydraException:
        return None
    changed, begin = "", 0
    for start, end in [*commas, (len(value), len(value))]:
        part = value[begin:start]
        changed += (change(part) if part.strip() else part) + value[start:end]
        begin = end
    return changed


def _commas(value: str) -> Iterator[tuple[int, int]]:
    # Characters outside Hydra's grammar separate nothing; replacing each by a letter keeps the positions of the commas.
    lexer = OverrideLexer(InputStream(_NOT_IN_GRAMMAR.sub("x", value)))
    lexer.removeErrorListeners()
    lexer.addErrorListener(_Strict())
    lexer.mode(OverrideLexer.VALUE_MODE)
    depth = 0
    while (token := lexer.nextToken()).type != Token.EOF:
        depth += (token.type in _OPEN) - (token.type in _CLOSE)
        if depth < 0:
            raise HydraException("a bracket is closed but never opened")
        if token.type == OverrideLexer.COMMA and depth == 0:
            yield token.start, token.stop + 1
    if depth:
        raise HydraException("a bracket is never closed")


class _Strict(ErrorListener):  # type: ignore[misc]  # antlr4 has no types
    def syntaxError(self, *arguments: object) -> None:  # noqa: N802 - the name is antlr's
        raise HydraException(str(arguments[-2]))


def _inside_quotes(value: str) -> str | None:
    """Return the text of a value that is a single quoted string, else None."""
    if value[:1] not in ("'", '"') or value[:1] != value[-1:]:
        return None
    read = _parsed(value)
    return read.text if isinstance(read, QuotedString) else None


def _reading(value: str) -> object:
    """Return what Hydra parses an unquoted value as, None if it is quoted or cannot be parsed."""
    read = _parsed(value)
    return None if isinstance(read, QuotedString) else read


def _parsed(value: str) -> object:
    try:
        override = parser().parse_override(f"key={value}")
    except (HydraException, ValueError):  # ValueError: a number of more digits than Python reads
        return None
    return None if override.is_sweep_override() else override._value


@cache
def parser() -> OverridesParser:
    """Return Hydra's parser of overrides, for those whose config groups do not matter."""
    return OverridesParser.create()
