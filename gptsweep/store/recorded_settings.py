"""Settings of a point that has no summary yet: from Hydra's records, and from the name of its directory."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import open_inside, read_yaml
from ..prompts import unescaped_start
from .schema import COLUMN_OF_KEY, SAMPLING_KEYS, column_name, column_of_setting

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser


def is_setting(value: object) -> bool:
    """Whether a value read from YAML is a final setting: not an interpolation, nor an ``auto`` that was resolved later."""
    return value != "auto" and isinstance(value, (str, int, float, list, dict, type(None))) and "${" not in str(value)


def read_recorded(path: Path) -> Any:
    """Read a YAML file of Hydra's; None if it is missing or cannot be read."""
    if path.parent.is_symlink():
        return None
    try:
        return read_yaml(path, opened=open_inside)
    except (OSError, ValueError):
        return None


def configured(path: Path) -> dict[str, Any]:
    """The columns set in Hydra's record of a composed config."""
    config = read_recorded(path)
    if not isinstance(config, dict):
        return {}
    groups = {name: config[name] if isinstance(config.get(name), dict) else {} for name in ("model", "device", "sampling")}
    found = {key: value for key, value in groups["sampling"].items() if key in SAMPLING_KEYS}
    for key, name in COLUMN_OF_KEY.items():
        group, _, leaf = key.partition(".")
        if leaf in groups[group]:
            found[name] = groups[group][leaf]
    found |= {"model": groups["model"]["name"]} if "name" in groups["model"] else {}
    return found | {key: as_point(key, config[key]) for key in ("start", "seed") if key in config}


def overridden(path: Path) -> dict[str, Any]:
    """The columns set in Hydra's record of a command line."""
    lines = read_recorded(path)
    found = [read_override(line) for line in lines if isinstance(line, str)] if isinstance(lines, list) else []
    return {column: value for key, column, value in filter(None, found) if column_of_setting(key)}


@lru_cache(maxsize=4096)  # the points of a sweep share their overrides
def read_override(line: str) -> tuple[str, str, Any] | None:
    """Key, column and value of an override in Hydra's syntax; None if it cannot be parsed or has several values."""
    # Imported late: readers of finished points need not wait for Hydra.
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException

    try:
        override = _parser().parse_override(line)
    except (HydraException, TypeError, ValueError, RecursionError):
        return None
    if override.is_sweep_override():
        return None
    key, value = override.key_or_group, override.value()
    column = column_name(key)
    return key, column, as_point(column, value.text if isinstance(value, QuotedString) else value)


@cache
def _parser() -> OverridesParser:
    from hydra.core.override_parser.overrides_parser import OverridesParser  # late: as above

    return OverridesParser.create()


def as_point(name: str, value: Any) -> Any:
    """Convert a value of a config to the type that the point has."""
    return unescaped_start(value) if name == "start" and isinstance(value, str) else value


def is_shortened(name: str) -> bool:
    """Whether `config_schema.point_dir` has cut a directory's name and ended it in a hash."""
    return re.search(r"-[0-9a-f]{12}$", name) is not None


def named_settings(directory: Path) -> dict[str, Any]:
    """The columns in a directory's name, if it consists of overrides."""
    pairs = [] if is_shortened(directory.name) else [pair.partition("=") for pair in directory.name.split(",")]
    return {name: None if value == "null" else value for key, _, value in pairs if value and (name := column_of_setting(key))}
