"""Convert a composed config to a frozen `Point`, and report wrong keys and values.

The records check the ranges of values. This imports neither torch nor pandas: errors for mistyped keys must appear at once.
"""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from .config_schema import (
    CHOICES,
    EXAMPLES_OF_KEYS,
    GROUPS,
    KINDS,
    MODEL_SCHEMAS,
    Config,
    ModelConfig,
    is_optional,
    keys,
    list_of_text,
    takes,
    typed,
    whole_schema,
)
from .errors import ConfigError
from .prompts import unescaped, unescaped_start
from .records import DeviceSettings, ModelSource, Point, Sampling, require


def point_from_config(cfg: DictConfig) -> Point:
    """Convert ``cfg``, with or without Hydra's own ``hydra`` node, to a frozen `Point`.

    In ``start`` (unless it names a file) and in lists of texts such as ``sampling.stop``, a backslash followed by n, r, t or
    a backslash is an escape, because neither a shell nor Hydra interprets it.

    Raises:
        ConfigError: a name, type or range is wrong; one line with the key, the value and what would work.
    """
    values = _plain_values(cfg)
    sampling, start, name = values["sampling"], values["start"], values["name"]
    require(
        bool(name.strip(".")) and name.isprintable() and not set(name) & set("/\\") and len(name.encode()) <= 200,
        "name",
        name,
        "must be one directory name of at most 200 bytes; hydra.run.dir and hydra.sweep.dir take a full path",
    )
    for setting, given in sampling.items():
        if list_of_text(f"sampling.{setting}"):
            sampling[setting] = _texts_typed(f"sampling.{setting}", given)
    return Point(
        model=ModelSource(**values["model"]),
        device=DeviceSettings(**values["device"]),
        sampling=Sampling(**sampling),
        start=unescaped_start(start),
        seed=values["seed"],
    )


def _texts_typed(key: str, given: list[Any]) -> tuple[str, ...]:
    for text in given:
        if isinstance(text, (bool, int, float)):
            raise ConfigError(key, given, f"{typed(text)} is {KINDS[type(text)]}; put it in quotes")
        require(isinstance(text, str), key, given, f"must be {EXAMPLES_OF_KEYS[list[Any]]}")
    return tuple(map(unescaped, given))


def _plain_values(cfg: DictConfig) -> dict[str, Any]:
    """Convert ``cfg`` to plain nested values, checking that it has every key of the schema with its type and no other key."""
    try:
        if OmegaConf.get_type(cfg) is not Config:  # not composed by Hydra, but loaded from a file, say
            cfg = _with_schema(cfg)
        values = {str(key): _plain(cfg, str(key)) for key in cfg if key != "hydra"}
    except OmegaConfBaseException as error:
        raise from_omegaconf(error, cfg) from error
    schemas: dict[str, Any] = {"": Config}
    schemas |= {f"{name}.": OmegaConf.get_type(cfg[name]) for name in ("model", "device", "sampling")}
    model = values["model"]["name"]
    if schemas["model."] is not MODEL_SCHEMAS.get(model, ModelConfig):
        raise ConfigError("model.name", model, f"is set by the choice of model; write model={model}")
    for prefix, schema in schemas.items():  # `+key=value` adds keys that the schema lacks
        given = values[prefix[:-1]] if prefix else values
        for extra in given.keys() - {f.name for f in fields(schema)}:
            raise unknown_key(f"{prefix}{extra}", given[extra])
    return values


def _plain(cfg: DictConfig, key: str) -> Any:
    node = cfg[key]
    return OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if OmegaConf.is_config(node) else node


def _with_schema(cfg: DictConfig) -> DictConfig:
    schema = whole_schema()
    schema.model = MODEL_SCHEMAS.get(OmegaConf.select(cfg, "model.name"), ModelConfig)
    typed = OmegaConf.merge(schema, OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]))
    assert isinstance(typed, DictConfig)
    return typed


def meant(key: str) -> str | None:
    """The key or group that the user probably meant by a mistyped ``key``: one with (nearly) the same last part."""
    section, _, leaf = key.rpartition(".")
    by_leaf: dict[str, str] = {"init_from": "model"}  # nanoGPT's name
    for name in sorted([*GROUPS, *keys()], key=lambda name: name.startswith(f"{section}.")):  # the same section wins
        by_leaf[name.rpartition(".")[2]] = name
    near = difflib.get_close_matches(leaf, by_leaf, n=1)
    return by_leaf[near[0]] if near else None


def unknown_key(key: str, value: object) -> ConfigError:
    """The error for a key that the config, or the chosen model, does not have."""
    if key.startswith("model.") and (takers := [f"model={name}" for name in MODEL_SCHEMAS if takes(name, key)]):
        others = f", and {' and '.join(takers[1:])}" if takers[1:] else ""
        return ConfigError(key, value, f"only {takers[0]} accepts it{others}")
    if key.startswith("hydra."):
        return ConfigError(key, value, "no such key; --cfg hydra shows Hydra's")
    if near := meant(key):
        return ConfigError(key, value, f"no such key; did you mean {near}?")
    section = key.partition(".")[0] + "."
    names = [name.removeprefix(section) for name in keys() if name.startswith(section)]
    names = names or [name for name in (*GROUPS, *keys()) if "." not in name]
    return ConfigError(key, value, f"no such key; there are {', '.join(names)}")


def from_omegaconf(error: OmegaConfBaseException, value: object) -> ConfigError:
    """Convert an OmegaConf error to a `ConfigError`.

    Args:
        error: names the key, and whether its name, its type or an interpolation in it is wrong.
        value: the value given, or the config that contains it.
    """
    key = error.full_key or "config"
    if isinstance(value, DictConfig):
        value = _raw(value, key)
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        return unknown_key(key, value)
    if isinstance(error, MissingMandatoryValue):
        stands = "" if value is None else "; Hydra reads ??? as a missing value: put such a prompt into a file"
        return ConfigError(key.removesuffix(".name"), value, f"must be given{stands if key == 'start' else ''}")
    if isinstance(error, (InterpolationResolutionError, GrammarParseError)):
        return ConfigError(key, value, rf"{str(error.msg).splitlines()[0]}; write \${{ where no interpolation is meant")
    return ConfigError(key, value, wanted(key) or str(error.msg).splitlines()[0])


def wanted(key: str) -> str | None:
    """The error text for the type of ``key`` (or of the mapping that contains it); None if it is not our key."""
    while key not in keys():
        key, dot, _ = key.rpartition(".")
        if not dot:
            return None
    if key in CHOICES:
        return f"must be one of {', '.join(CHOICES[key])}"
    hint, optional = keys()[key], is_optional(key)
    kind = next(kind for kind in EXAMPLES_OF_KEYS if kind == hint or (optional and kind in hint.__args__))
    in_quotes = "; put a number, true or false in quotes" if kind is str else ""
    return f"must be {EXAMPLES_OF_KEYS[kind]}" + (", or null" if optional else "") + in_quotes


def _raw(cfg: DictConfig, key: str) -> object:
    """The value of ``key`` as given, with interpolations unresolved; None if there is none."""
    value: Any = OmegaConf.to_container(cfg, resolve=False)
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
