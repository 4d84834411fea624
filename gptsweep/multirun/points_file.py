"""Read a file of points: CSV, JSON lines or YAML, with one point per line and one config key per column.

A value means the same as after ``key=`` on the command line, except that Hydra's sweep syntax and interpolations are not
interpreted: for a key that holds text, the characters are the value.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException

from ..config import unknown_key, wanted
from ..config_schema import GROUPS, is_optional, is_text, keys, list_of_text, takes
from ..errors import ConfigError, shown
from ..files import JSON_BYTES, YAML_LOADER, open_to_read
from ..records import coerce
from .overrides import as_typed, parser, written

MAX_POINTS = 100_000
"""The most points of a sweep; more would take too long to plan."""

_KEY = "hydra.sweeper.file"
_CHOICE = re.compile(r"[\w-]+")
_TOKEN = re.compile(r"[0-9]{1,10}")
_YAML_DEPTH = 8
_Line = tuple[int, dict[str, Any]]


def read_points(file: str | None) -> dict[tuple[str, ...], int]:
    """Read the points of a file, each as overrides, in their order, with the numbers of their lines.

    Args:
        file: a path that ends in ``.csv`` (the first line names the keys), ``.jsonl`` (an object per line) or ``.yaml`` (a
            list of mappings). Blank lines are skipped. An empty cell means null.

    Raises:
        ConfigError: the file cannot be read, or contains no point, the same point twice, or more than `MAX_POINTS`; or a line
            has the wrong number of cells, an unknown key, or a value of the wrong type.
    """
    if not file:
        raise ConfigError(_KEY, file, "must name a CSV, JSONL or YAML file with one point per line")
    readers: dict[str, Callable[[str], Iterator[_Line]]] = {
        ".csv": _csv, ".jsonl": _jsonl, ".yaml": _yaml, ".yml": _yaml,
    }  # fmt: skip
    suffix = Path(file).suffix.lower()
    if suffix not in readers:
        raise ConfigError(_KEY, file, "must end in .csv, .jsonl or .yaml")
    found: dict[tuple[str, ...], int] = {}
    number = 0
    try:
        for number, values in readers[suffix](_text(file)):
            overrides = (_override(key, value, values) for key, value in values.items())
            point = tuple(_as_swept(line) for line in overrides if line is not None)
            if point in found:
                raise _FileError(f"is the same point as line {found[point]}")
            found[point] = number
            if len(found) > MAX_POINTS:
                raise _FileError(f"is point {MAX_POINTS + 1:,}; a sweep has at most {MAX_POINTS:,}")
    except _FileError as error:
        place = f"line {error.number or number} " if error.number or number else ""
        raise ConfigError(_KEY, file, f"{place}{error}") from error
    if not found:
        raise ConfigError(_KEY, file, "has no points; give one per line")
    return found


def in_its_line(error: ConfigError, file: str | None, point: Sequence[str]) -> ConfigError:
    """Add to an error the line of the file in which the wrong value occurs; return other errors unchanged.

    Args:
        error: says what is wrong with a key of ``point``.
        file: the file of points.
        point: overrides, which may begin with those of a line.
    """
    for columns, number in read_points(file).items():
        if tuple(point[: len(columns)]) == columns and error.key in {column.partition("=")[0] for column in columns}:
            return ConfigError(_KEY, file, f"line {number} has {error.key}={shown(error.value)}: {error.wanted}")
    return error


class _FileError(ValueError):
    """Raised for a fault in a file or in one of its lines; ``number`` counts lines from 1, 0 means none."""

    def __init__(self, what: str, number: int = 0) -> None:
        super().__init__(what)
        self.number = number


def _text(file: str) -> str:
    try:
        with open_to_read(Path(file).expanduser()) as opened:
            content = opened.read(JSON_BYTES + 1)
    except FileNotFoundError as error:
        raise _FileError(f"no such file (looked in {Path.cwd()})") from error
    except (OSError, RuntimeError) as error:
        raise _FileError(f"cannot be read: {getattr(error, 'strerror', error)}") from error
    if len(content) > JSON_BYTES:
        raise _FileError(f"is larger than {JSON_BYTES >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _FileError("is not UTF-8; save it as UTF-8", content.count(b"\n", 0, error.start) + 1) from error


def _csv(text: str) -> Iterator[_Line]:
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [name.strip() for name in next(lines, [])]
        _check_keys(names, 1)
        for cells in lines:
            if cells and len(cells) != len(names):
                raise _FileError(f"has {len(cells):,} cells, but the first line has {len(names):,} names", lines.line_num)
            if cells:
                yield lines.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise _FileError(f"is not CSV ({error})", lines.line_num) from error


def _jsonl(text: str) -> Iterator[_Line]:
    wanted = 'each line is an object like {"sampling.top_k": 50}'
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            pairs = json.loads(line, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            raise _FileError(f"is not JSON ({error}); {wanted}", number) from error
        if not isinstance(pairs, _Pairs):
            raise _FileError(f"is not an object; {wanted}", number)
        _check_keys([key for key, _ in pairs], number)
        yield number, dict(pairs)


class _Pairs(list[tuple[Any, Any]]):
    """The items of a mapping as written, in which a key may occur twice."""


def _yaml(text: str) -> Iterator[_Line]:
    wanted = "is not a list of mappings, such as - {sampling.top_k: 50}"
    try:
        depth = 0
        for event in yaml.parse(text, Loader=YAML_LOADER):  # checks the depth first, as composing recurses
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _YAML_DEPTH:
                what = "has an alias; write each value out" if depth <= _YAML_DEPTH else "is nested too deeply"
                raise _FileError(what, event.start_mark.line + 1)  # type: ignore[union-attr]  # the mark is always set
        rows = yaml.compose(text, Loader=YAML_LOADER)
    except yaml.YAMLError as error:
        raise _FileError(f"is not YAML ({' '.join(str(error).split())})") from error
    if rows is not None and not isinstance(rows, yaml.SequenceNode):
        raise _FileError(wanted)
    for row in rows.value if rows is not None else ():
        number = row.start_mark.line + 1
        if not isinstance(row, yaml.MappingNode):
            raise _FileError(wanted, number)
        pairs = [(key.value, _constructed(value, number)) for key, value in row.value]
        _check_keys([key for key, _ in pairs], number)
        yield number, dict(pairs)


def _constructed(node: Any, number: int) -> Any:
    loader = YAML_LOADER("")
    try:
        value = loader.construct_document(node)
    except (ValueError, yaml.YAMLError) as error:
        raise _FileError(f"is not YAML ({' '.join(str(error).split())})", number) from error
    finally:
        loader.dispose()
    return _Pairs(value.items()) if isinstance(value, dict) else value


def _check_keys(names: list[Any], number: int) -> None:
    for name in names:
        if not isinstance(name, str):
            raise _FileError("has a list or a mapping as a key", number)
        if name not in GROUPS and name not in keys():
            raise _FileError(f"has the key {shown(name)}: {unknown_key(name, None).wanted}", number)
    if len(names) > len(set(names)):
        raise _FileError("has a key twice", number)


def _override(key: str, value: Any, point: dict[str, Any]) -> str | None:
    """Write ``key=value`` for Hydra; None if the value is empty and the point's model does not take the key."""
    holds_text = key in GROUPS or is_text(key)
    if value == "" or (isinstance(value, str) and not value.strip() and not holds_text):
        value = None
    if key.startswith("model.") and "model" in point and not takes(str(point["model"]), key):
        if value is None:
            return None
        raise _wrong(key, value, unknown_key(key, value).wanted)
    if key in GROUPS:
        if not isinstance(value, str) or not _CHOICE.fullmatch(value):
            raise _wrong(key, value, "must be the name of a choice")
        return f"{key}={value}"
    if isinstance(value, str) and not holds_text:
        value = _cell(key, value)
    if value is None or (value == "null" and is_optional(key)):
        if not is_optional(key):
            raise _wrong(key, value, f"{(wanted(key) or '').partition(';')[0]}, and may not be empty")
        return f"{key}=null"
    return f"{key}={_written(key, value)}"


def _cell(key: str, cell: str) -> Any:
    """Parse a cell for a key that does not hold text."""
    try:
        override = parser().parse_override(as_typed(f"{key}={cell.strip()}", sweeping=False))
    except (HydraException, ValueError) as error:
        raise _wrong(key, cell, wanted(key)) from error
    return cell if override.is_sweep_override() else override.value()


def _written(key: str, value: Any) -> str:
    """Write a value other than null as it appears after ``key=``."""
    hint = keys()[key]  # only sampling.order has the type Any: a text or a list of texts
    if (is_text(key) or hint is Any) and isinstance(value, str):
        return _text_as_value(value)
    if (list_of_text(key) or hint is Any) and isinstance(value, list) and all(isinstance(text, str) for text in value):
        return f"[{','.join(map(_text_as_value, value))}]"
    if hint == list[int] and isinstance(value, list):
        return f"[{','.join(str(_checked(key, number, int)) for number in value)}]"
    if hint == dict[int, float]:
        pairs = value if isinstance(value, _Pairs) else list(value.items()) if isinstance(value, dict) else [(None, None)]
        addends = [(_checked(key, _whole(token), int), _checked(key, addend, float)) for token, addend in pairs]
        return f"{{{','.join(f'{token}:{addend}' for token, addend in addends)}}}"
    for kind in (int, float, bool):
        if hint in (kind, kind | None):
            return str(_checked(key, value, kind)).lower()
    raise _wrong(key, value, wanted(key))


def _checked(key: str, value: Any, kind: type) -> Any:
    try:
        number = coerce(key, value, kind)
    except ConfigError as error:
        raise _wrong(key, value, wanted(key)) from error
    return value if kind is float else number  # 1 and 1.0 name different directories, as in a sweep on the command line


def _whole(token: Any) -> Any:
    return int(token) if isinstance(token, str) and _TOKEN.fullmatch(token) else token


def _text_as_value(text: str) -> str:
    """Write ``text`` so that Hydra and OmegaConf read it back unchanged, with ``${`` escaped."""
    return written(re.sub(r"(\\*)\$\{", r"\1\1\\${", text))


def _wrong(key: str, value: object, what: str | None) -> _FileError:
    return _FileError(f"has {key}={shown(value)}: {what}")


def _as_swept(line: str) -> str:
    """Write an override as Hydra's own sweeper does, so that a point's directory does not depend on where it comes from."""
    override = parser().parse_override(line)
    return f"{override.key_or_group}={override.get_value_element_as_str()}"
