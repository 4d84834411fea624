"""Overrides as a user types them: for a key that holds text, the characters typed are the value.

Hydra's grammar reads ``start=1e3`` as a number, ``start=true`` as a truth value and ``start=str(x)`` as a call: the prompt
would be ``1000.0``, ``True`` or ``x``. Here such values are put in quotes before Hydra sees them. A value that Hydra reads as
it was typed is left alone, so that the directories of a sweep keep their names.
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
    """``argument``, a ``key=value``, so written that Hydra takes the characters typed for the value of a key that holds text.

    In a sweep, and in lists, commas separate values, quotes hold them together and ``\\,`` is a comma, as in Hydra's grammar.
    In one run all characters count, but for quotes around the whole that Hydra needs.

    Raises:
        ConfigError: quotes around ``start`` that Hydra does not need: they may be meant or not.
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
            key, value, f"Hydra takes these quotes away; type {bare} for the text in them, or {whole} for all of it"
        )
    return argument


def how_to_quote(key: str, value: str) -> str:
    """How to type ``value``, which Hydra cannot read, as text: for an error message."""
    if list_of_text(key) and (items := re.fullmatch(r"\s*\[(.*)\]\s*", value, re.DOTALL)):
        line = f"{key}=[{','.join(quoted(item.strip()) for item in items[1].split(','))}]"
        what = "put each string in quotes"
    else:
        is_prompt = key == "start" and not names_file(value)
        line = f"{key}={quoted(escaped(unescaped(value)) if is_prompt else value)}"
        what = "to take it as text, quote it twice"
    if line.isprintable() and len(line) <= _LONGEST_HINT:
        return f"{what}: {shlex.quote(line)}"
    return "put it in a file, and give start=FILE:path" if key == "start" else "put it in quotes"


def quoted(text: str) -> str:
    """``text`` in quotes that Hydra takes away again. Single ones do not count in the names of directories: see `point_dir`."""
    return str(QuotedString(text, Quote.single if is_plain_number(text) else Quote.double).with_quotes())


def written(text: str) -> str:
    """``text`` written so that Hydra reads these characters: as it is where possible, else in quotes."""
    return text if _reading(text) == text else quoted(text)


def _swept(key: str, value: str) -> str:
    """The values of a sweep, each of which that Hydra would read as something else in quotes."""
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
        return raw if changed in (None, inside) else changed or raw  # Hydra's functions take no note of quotes
    if call and call[1] in _SWEEPS:
        return raw
    return raw if optional and raw.lower() == "null" else _in_grammar(raw)


def _range(raw: str) -> list[object]:
    """The numbers of Hydra's ``range(…)``; none where it is not one."""
    try:
        override = _parser().parse_override(f"key={raw}")
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
    """One value of several: a backslash in front of a character of the grammar takes away what that means."""
    raw = raw.strip(" \t")
    if _inside_quotes(raw) is not None:
        return raw
    text = re.sub(r"\\([\\()\[\]{}:=, \t])", lambda match: match[0] if match[1] == "\\" else match[1], raw)
    return raw if _reading(raw) == text else quoted(text)


def _each(value: str, change: Callable[[str], str]) -> str | None:
    """``value`` with its parts, between the commas that stand in no bracket, changed; None where Hydra reads no parts."""
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
    # What stands in no grammar of Hydra's parts nothing: a letter in its place keeps the places of the commas.
    lexer = OverrideLexer(InputStream(_NOT_IN_GRAMMAR.sub("x", value)))
    lexer.removeErrorListeners()
    lexer.addErrorListener(_Strict())
    lexer.mode(OverrideLexer.VALUE_MODE)
    depth = 0
    while (token := lexer.nextToken()).type != Token.EOF:
        depth += (token.type in _OPEN) - (token.type in _CLOSE)
        if depth < 0:
            raise HydraException("a bracket is closed that was not opened")
        if token.type == OverrideLexer.COMMA and depth == 0:
            yield token.start, token.stop + 1
    if depth:
        raise HydraException("a bracket is not closed")


class _Strict(ErrorListener):  # type: ignore[misc]  # antlr4 has no types
    def syntaxError(self, *arguments: object) -> None:  # noqa: N802 - the name is antlr's
        raise HydraException(str(arguments[-2]))


def _inside_quotes(value: str) -> str | None:
    """The text of a value that is one string in quotes, None for any other."""
    if value[:1] not in ("'", '"') or value[:1] != value[-1:]:
        return None
    read = _parsed(value)
    return read.text if isinstance(read, QuotedString) else None


def _reading(value: str) -> object:
    """What Hydra reads an unquoted value as, None where it cannot."""
    read = _parsed(value)
    return None if isinstance(read, QuotedString) else read


def _parsed(value: str) -> object:
    try:
        override = _parser().parse_override(f"key={value}")
    except (HydraException, ValueError):  # ValueError: a number of more digits than Python reads
        return None
    return None if override.is_sweep_override() else override._value


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()
