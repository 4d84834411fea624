"""The config: the schema of every key a user types, and the one door from a composed config to a frozen `Point`.

The schema says names and types and goes into Hydra's ConfigStore; the values stand in ``conf/*.yaml``; the ranges are checked
by the records. No torch and no pandas here: ``--help`` and a mistyped key must answer at once.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf, StringNode
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from .errors import ConfigError
from .records import (
    DTYPES,
    EXAMPLES,
    MODELS,
    NOISES,
    ORDERS,
    OVERFLOWS,
    RNGS,
    SETTINGS_OF_0_1,
    DeviceSettings,
    ModelSource,
    Point,
    Sampling,
    neutral_settings,
    require,
)

_PACKAGED = Path(__file__).resolve().parent / "conf"
CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else _PACKAGED.parent.parent / "conf"
"""Absolute path of ``conf/``: inside the package in a wheel, beside it in a checkout."""

GROUPS = ("model", "device", "sampling", "experiment")
FILE_PREFIXES = ("FILE:", "LINES:", "JSONL:")
DIRECTORY_BYTES = 100
"""A point's directory name is no longer than this; a name that would be ends in a hash instead."""


@dataclass
class ModelConfig:
    """The group ``model``: what every choice has."""

    name: str = MISSING


@dataclass
class ResumeConfig(ModelConfig):
    """``model=resume``: a checkpoint of nanoGPT's train.py."""

    out_dir: str = MISSING
    file: str = MISSING
    meta: str | None = MISSING


@dataclass
class HubConfig(ModelConfig):
    """``model=hf``: a local directory or a hub id."""

    path: str | None = MISSING
    revision: str | None = MISSING


@dataclass
class NanochatConfig(ModelConfig):
    """``model=nanochat``: a checkpoint directory of nanochat."""

    out_dir: str = MISSING
    step: str = MISSING
    tokenizer: str | None = MISSING
    softcap: float | None = MISSING


@dataclass
class DeviceConfig:
    """The group ``device``."""

    name: str = MISSING
    dtype: str = MISSING
    compile: bool = MISSING
    threads: int | None = MISSING
    max_rows: int | None = MISSING


def sampling_schema(kind: type[Sampling]) -> Any:
    """The group ``sampling``: each setting of ``kind``, with the type in which it is typed."""
    entries: list[tuple[str, Any, Any]] = []
    for name, hint in get_type_hints(kind).items():
        typed = _TYPED.get(hint, hint)
        container = getattr(typed, "__origin__", None)
        # A file of settings that 0.1 wrote, or a user for it, does not name later ones.
        early = name in ("num_samples", *SETTINGS_OF_0_1)
        neutral = neutral_settings(kind)[name]
        if container in (dict, list):
            entries.append((name, typed, field(default_factory=partial(container, () if early else neutral))))
        else:
            entries.append((name, typed, field(default=MISSING if early else neutral)))
    return make_dataclass("SamplingConfig", entries, namespace={"__module__": __name__})  # where pickle finds it


_TYPED: dict[Any, Any] = {
    tuple[tuple[int, float], ...]: dict[int, float],
    tuple[int, ...]: list[int],
    tuple[str, ...]: list[Any],  # of strings; OmegaConf would make "1000.0" of 1e3
    str | tuple[str, ...]: Any,
}
"""The type of a key whose value the records hold in another."""
SamplingConfig = sampling_schema(Sampling)


@dataclass
class Config:
    """Everything a user can set, Hydra's own settings apart."""

    model: ModelConfig = field(default_factory=ModelConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)  # type: ignore[valid-type]  # made above
    start: str = MISSING
    seed: int = MISSING
    name: str = MISSING
    overwrite: bool = MISSING
    quiet: bool | None = MISSING
    objective: str | None = MISSING
    reference: str | None = MISSING
    compare_samplers: str | None = MISSING


MODEL_SCHEMAS: dict[str, type[ModelConfig]] = {"resume": ResumeConfig, "hf": HubConfig, "nanochat": NanochatConfig}
"""The choices of ``model`` that take more keys than the others, by name."""


def takes(model: str, key: str) -> bool:
    """Whether a choice of ``model`` has ``key``, which begins with ``model.``."""
    return key.removeprefix("model.") in {f.name for f in fields(MODEL_SCHEMAS.get(model, ModelConfig))}


CHOICES = {
    "model.name": MODELS,
    "device.dtype": DTYPES,
    "sampling.overflow": OVERFLOWS,
    "sampling.rng": RNGS,
    "sampling.noise": NOISES,
}
_EXAMPLES: dict[Any, str] = {
    **EXAMPLES,
    list[Any]: 'a list of strings, such as ["\\n\\n"]',
    list[int]: "a list of whole numbers, such as [198,628]",
    Any: f"{', '.join(ORDERS)}, or a list of names such as [penalties,top_k,temperature]",
    dict[int, float]: "a mapping from token ids to numbers, such as {50256:-100}",
}


class TextNode(StringNode):
    """A key that holds text, and takes no number for it: what YAML and Hydra read as one is no longer what was written."""

    def _validate_and_convert_impl(self, value: Any) -> str:
        if isinstance(value, (bool, int, float)):
            raise ValidationError(f"{_told(value)} is {_KINDS[type(value)]}, and this must be text; {_IN_QUOTES}")
        text: str = super()._validate_and_convert_impl(value)
        return text

    def __deepcopy__(self, memo: dict[int, Any]) -> TextNode:
        copy = TextNode()
        self._deepcopy_impl(copy, memo)
        return copy


_KINDS = {bool: "true or false", int: "a number", float: "a number"}
_IN_QUOTES = 'put it in quotes, as in key: "1e3" in a file and \'key="1e3"\' on a command line'


def _told(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def register() -> None:
    """Put the schemas into Hydra's ConfigStore, and ``${gptsweep.…}`` into OmegaConf; may be called again."""
    store = ConfigStore.instance()
    store.store(name="gptsweep_config", node=_schema(), provider="gptsweep")
    for name, schema in MODEL_SCHEMAS.items():
        store.store(name=f"gptsweep_{name}", node=_with_text(OmegaConf.structured(schema)), provider="gptsweep")
    OmegaConf.register_new_resolver("gptsweep.conf_dir", lambda: str(CONF_DIR), replace=True)
    OmegaConf.register_new_resolver("gptsweep.point_dir", point_dir, replace=True)


def _schema() -> DictConfig:
    schema = _with_text(OmegaConf.structured(Config))
    # Hydra closes every mapping of a composed config to new keys; this one is all keys of the user's own.
    OmegaConf.set_struct(schema.sampling.logit_bias, False)
    return schema


def _with_text(schema: DictConfig) -> DictConfig:
    """``schema`` with a `TextNode` for each key that holds text."""
    for key, node in schema._content.items():  # type: ignore[union-attr]  # no public way sets a node of one's own
        if isinstance(node, DictConfig):
            _with_text(node)
        elif type(node) is StringNode and key != "step":  # `step: 2000` in a file is what it looks like
            text = TextNode(node._value(), key=key, parent=schema, is_optional=node._is_optional())
            schema.__dict__["_content"][key] = text
    return schema


def point_dir(override_dirname: str) -> str:
    """The directory name of a sweep's point, from Hydra's ``key=value,key=value`` of its overrides.

    A name that is short and plain stays as it is. One that is not (long, or with slashes, quotes, spaces) is cut down to what
    every file system takes and ends in a hash of the whole, so two points never share one. A number for text, ``start='42'``,
    is named without its quotes.
    """
    override_dirname = re.sub(
        r"(?<=[=\[,])'([^',\]]*)'(?=[,\]]|$)",
        lambda match: match[1] if is_plain_number(match[1]) else match[0],
        override_dirname,
    )
    plain = re.sub(r"[^A-Za-z0-9._=,+-]", "_", override_dirname).rstrip(".")
    if plain == override_dirname and len(plain) <= DIRECTORY_BYTES:
        return plain or "defaults"
    tail = "-" + hashlib.sha256(override_dirname.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return plain[: DIRECTORY_BYTES - len(tail)].rstrip("_") + tail


def point_from_config(cfg: DictConfig) -> Point:
    """The frozen `Point` that ``cfg`` describes, with or without Hydra's own ``hydra`` node in it.

    In ``start`` (unless it names a file) and in lists of texts such as ``sampling.stop``, a backslash with n, r, t or another
    backslash stands for the character, as neither a shell nor Hydra reads it so.

    Raises:
        ConfigError: a name, type or range is wrong; one line with the key, the value and what would work.
    """
    values = _plain_values(cfg)
    sampling, start, name = values["sampling"], values["start"], values["name"]
    require(
        bool(name.strip(".")) and name.isprintable() and not set(name) & set("/\\") and len(name.encode()) <= 200,
        "name",
        name,
        "must be one directory name of at most 200 bytes; hydra.run.dir and hydra.sweep.dir take a whole path",
    )
    for setting, given in sampling.items():
        if list_of_text(f"sampling.{setting}"):
            sampling[setting] = _texts_typed(f"sampling.{setting}", given)
    return Point(
        model=ModelSource(**values["model"]),
        device=DeviceSettings(**values["device"]),
        sampling=Sampling(**sampling),
        start=start if start.startswith(FILE_PREFIXES) else unescaped(start),
        seed=values["seed"],
    )


def _texts_typed(key: str, given: list[Any]) -> tuple[str, ...]:
    for text in given:
        if isinstance(text, (bool, int, float)):
            raise ConfigError(key, given, f"{_told(text)} is {_KINDS[type(text)]}; put it in quotes")
        require(isinstance(text, str), key, given, f"must be {_EXAMPLES[list[Any]]}")
    return tuple(map(unescaped, given))


def _plain_values(cfg: DictConfig) -> dict[str, Any]:
    """``cfg`` as plain nested values: every key of the schema with a value of its type, and no other key."""
    try:
        if OmegaConf.get_type(cfg) is not Config:  # not composed by Hydra: read back from a file, say
            cfg = _with_schema(cfg)
        values = {str(key): _plain(cfg, str(key)) for key in cfg if key != "hydra"}
    except OmegaConfBaseException as error:
        raise from_omegaconf(error, cfg) from error
    schemas: dict[str, Any] = {"": Config}
    schemas |= {f"{name}.": OmegaConf.get_type(cfg[name]) for name in ("model", "device", "sampling")}
    model = values["model"]["name"]
    if schemas["model."] is not MODEL_SCHEMAS.get(model, ModelConfig):
        raise ConfigError("model.name", model, f"is set by the choice of model; write model={model}")
    for prefix, schema in schemas.items():  # `+key=value` adds what the schema does not have
        given = values[prefix[:-1]] if prefix else values
        for extra in given.keys() - {f.name for f in fields(schema)}:
            raise unknown_key(f"{prefix}{extra}", given[extra])
    return values


def _plain(cfg: DictConfig, key: str) -> Any:
    node = cfg[key]
    return OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if OmegaConf.is_config(node) else node


def _with_schema(cfg: DictConfig) -> DictConfig:
    schema = _schema()
    schema.model = MODEL_SCHEMAS.get(OmegaConf.select(cfg, "model.name"), ModelConfig)
    typed = OmegaConf.merge(schema, OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]))
    assert isinstance(typed, DictConfig)
    return typed


@cache
def keys() -> dict[str, Any]:
    """Every key of every choice as a user types it, with its type."""
    sections = {"model": (ModelConfig, *MODEL_SCHEMAS.values()), "device": (DeviceConfig,), "sampling": (SamplingConfig,)}
    found: dict[str, Any] = {key: hint for key, hint in get_type_hints(Config).items() if key not in sections}
    for section, schemas in sections.items():
        for schema in schemas:
            found |= {f"{section}.{name}": hint for name, hint in get_type_hints(schema).items()}
    return found


def is_text(key: str) -> bool:
    """Whether ``key`` is one whose value is text."""
    return keys()[key] in (str, str | None)


def list_of_text(key: str) -> bool:
    """Whether ``key`` is one whose value is a list of texts."""
    return bool(keys()[key] == list[Any])


def is_optional(key: str) -> bool:
    """Whether ``key`` may be null."""
    return type(None) in getattr(keys()[key], "__args__", ())


def is_plain_number(text: str) -> bool:
    """Whether ``text`` is a number or a truth value exactly as Python writes it, as ``42``, ``0.5`` and ``True``."""
    for kind in (int, float):
        try:
            if str(kind(text)) == text:
                return True
        except ValueError:
            pass
    return text in ("True", "False")


def choices(group: str) -> list[str]:
    """The choices of a group that ``conf/`` holds, the default first."""
    defaults = re.findall(r"^  - \w+: ([\w-]+)$", (CONF_DIR / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    return sorted((path.stem for path in (CONF_DIR / group).glob("*.yaml")), key=lambda name: (name not in defaults, name))


def meant(key: str) -> str | None:
    """The key or group that a mistyped ``key`` was likely to be: one whose last part is the same, or nearly."""
    section, _, leaf = key.rpartition(".")
    by_leaf: dict[str, str] = {"init_from": "model"}  # nanoGPT's name
    for name in sorted([*GROUPS, *keys()], key=lambda name: name.startswith(f"{section}.")):  # its own section's win
        by_leaf[name.rpartition(".")[2]] = name
    near = difflib.get_close_matches(leaf, by_leaf, n=1)
    return by_leaf[near[0]] if near else None


def unknown_key(key: str, value: object) -> ConfigError:
    """The error for a key that the config, or the chosen model, does not have."""
    if key.startswith("model.") and (takers := [f"model={name}" for name in MODEL_SCHEMAS if takes(name, key)]):
        others = f", and {' and '.join(takers[1:])}" if takers[1:] else ""
        return ConfigError(key, value, f"only {takers[0]} takes it{others}")
    if key.startswith("hydra."):
        return ConfigError(key, value, "no such key; --cfg hydra shows Hydra's")
    if near := meant(key):
        return ConfigError(key, value, f"no such key; did you mean {near}?")
    section = key.partition(".")[0] + "."
    names = [name.removeprefix(section) for name in keys() if name.startswith(section)]
    names = names or [name for name in (*GROUPS, *keys()) if "." not in name]
    return ConfigError(key, value, f"no such key; there are {', '.join(names)}")


def from_omegaconf(error: OmegaConfBaseException, value: object) -> ConfigError:
    """What OmegaConf refused, in a user's words.

    Args:
        error: says the key, and whether its name, its type or an interpolation in it is wrong.
        value: what was given: the value itself, or the config that holds it.
    """
    key = error.full_key or "config"
    if isinstance(value, DictConfig):
        value = _raw(value, key)
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        return unknown_key(key, value)
    if isinstance(error, MissingMandatoryValue):
        stands = "" if value is None else "; Hydra takes ??? for a value that is missing: as a prompt it must stand in a file"
        return ConfigError(key.removesuffix(".name"), value, f"must be given{stands if key == 'start' else ''}")
    if isinstance(error, (InterpolationResolutionError, GrammarParseError)):
        return ConfigError(key, value, rf"{str(error.msg).splitlines()[0]}; write \${{ where no interpolation is meant")
    return ConfigError(key, value, wanted(key) or str(error.msg).splitlines()[0])


def wanted(key: str) -> str | None:
    """What the type of ``key`` (or of the mapping that it is an entry of) asks for, in words; None for a key not ours."""
    while key not in keys():
        key, dot, _ = key.rpartition(".")
        if not dot:
            return None
    if key in CHOICES:
        return f"must be one of {', '.join(CHOICES[key])}"
    hint, optional = keys()[key], is_optional(key)
    kind = next(kind for kind in _EXAMPLES if kind == hint or (optional and kind in hint.__args__))
    in_quotes = "; put a number, true or false in quotes" if kind is str else ""
    return f"must be {_EXAMPLES[kind]}" + (", or null" if optional else "") + in_quotes


def _raw(cfg: DictConfig, key: str) -> object:
    """The value of ``key`` as it was given, interpolations and all; None where there is none."""
    value: Any = OmegaConf.to_container(cfg, resolve=False)
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def unescaped(text: str) -> str:
    """The text that was meant, from what was typed for ``start`` or for a string of ``sampling.stop``."""
    return re.sub(r"\\([nrt\\])", lambda match: _ESCAPES[match[1]], text)


def escaped(text: str) -> str:
    r"""``text`` as it is typed for ``start``: newlines, tabs and backslashes as ``\n``, ``\t`` and ``\\``."""
    return text.translate({ord(meant): f"\\{typed}" for typed, meant in _ESCAPES.items()})
