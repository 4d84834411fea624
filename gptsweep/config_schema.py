"""The schema of the config: every key that users type, with its type; default values are in ``conf/*.yaml``.

It is registered in Hydra's ConfigStore. This imports neither torch nor pandas: ``--help`` and errors must appear at once.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf, StringNode
from omegaconf.errors import ValidationError

from .records import (
    DTYPES,
    EXAMPLES,
    MODELS,
    NOISES,
    ORDERS,
    OVERFLOWS,
    RNGS,
    SAMPLERS,
    SETTINGS_OF_0_1,
    Sampling,
    neutral_settings,
)

_PACKAGED = Path(__file__).resolve().parent / "conf"
CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else _PACKAGED.parent.parent / "conf"
"""Absolute path of ``conf/``: inside the package in a wheel, beside it in a checkout."""

GROUPS = ("model", "device", "sampling", "experiment")
DIRECTORY_BYTES = 100
"""The longest name of a point's directory; a longer name is cut and ends in a hash."""


@dataclass
class ModelConfig:
    """The group ``model``: the keys that every choice has."""

    name: str = MISSING


@dataclass
class ResumeConfig(ModelConfig):
    """``model=resume``: a checkpoint of nanoGPT's train.py."""

    out_dir: str = MISSING
    file: str = MISSING
    meta: str | None = MISSING


@dataclass
class PathConfig(ModelConfig):
    """``model=llmc`` and ``model=litgpt``: a file of llm.c, a checkpoint directory of LitGPT."""

    path: str | None = MISSING


@dataclass
class HubConfig(PathConfig):
    """``model=hf``: a local directory or a hub id."""

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
    """The group ``sampling``: each setting of ``kind`` with the type that users type."""
    entries: list[tuple[str, Any, Any]] = []
    for name, hint in get_type_hints(kind).items():
        typed = _TYPED.get(hint, hint)
        container = getattr(typed, "__origin__", None)
        # Files of settings written for or by 0.1 do not name later settings.
        early = name in ("num_samples", *SETTINGS_OF_0_1)
        neutral = neutral_settings(kind)[name]
        if container in (dict, list):
            entries.append((name, typed, field(default_factory=partial(container, () if early else neutral))))
        else:
            entries.append((name, typed, field(default=MISSING if early else neutral)))
    return make_dataclass("SamplingConfig", entries, namespace={"__module__": __name__})  # so that pickle finds it


_TYPED: dict[Any, Any] = {
    tuple[tuple[int, float], ...]: dict[int, float],
    tuple[int, ...]: list[int],
    tuple[str, ...]: list[Any],  # of strings; list[str] would let OmegaConf turn 1e3 into "1000.0"
    str | tuple[str, ...]: Any,
}
"""The config's type of a setting whose type in the records differs."""
SamplingConfig = sampling_schema(Sampling)


@dataclass
class Config:
    """All settings of a user, apart from Hydra's own."""

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


MODEL_SCHEMAS: dict[str, type[ModelConfig]] = {
    "resume": ResumeConfig,
    "hf": HubConfig,
    "nanochat": NanochatConfig,
    "llmc": PathConfig,
    "litgpt": PathConfig,
}
"""The choices of ``model`` with additional keys, by name."""


def takes(model: str, key: str) -> bool:
    """Whether choice ``model`` accepts ``key``, which begins with ``model.``."""
    return key.removeprefix("model.") in {f.name for f in fields(MODEL_SCHEMAS.get(model, ModelConfig))}


CHOICES = {
    "model.name": MODELS,
    "device.dtype": DTYPES,
    "sampling.overflow": OVERFLOWS,
    "sampling.rng": RNGS,
    "sampling.noise": NOISES,
}
EXAMPLES_OF_KEYS: dict[Any, str] = {
    **EXAMPLES,
    list[Any]: 'a list of strings, such as ["\\n\\n"]',
    list[int]: "a list of whole numbers, such as [198,628]",
    Any: f"{', '.join(ORDERS)}, or a list of names such as [penalties,top_k,temperature]",
    dict[int, float]: "a mapping from token ids to numbers, such as {50256:-100}",
}


class TextNode(StringNode):
    """A text key that rejects numbers: what YAML and Hydra parse as a number no longer has the characters that were typed."""

    def _validate_and_convert_impl(self, value: Any) -> str:
        if isinstance(value, (bool, int, float)):
            raise ValidationError(f"{typed(value)} is {KINDS[type(value)]}, but this must be text; {_IN_QUOTES}")
        text: str = super()._validate_and_convert_impl(value)
        return text

    def __deepcopy__(self, memo: dict[int, Any]) -> TextNode:
        copy = TextNode()
        self._deepcopy_impl(copy, memo)
        return copy


KINDS = {bool: "true or false", int: "a number", float: "a number"}
_IN_QUOTES = 'put it in quotes, as in key: "1e3" in a file and \'key="1e3"\' on a command line'


def typed(value: object) -> str:
    """Format a value as users type it: ``true``, not ``True``."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def register() -> None:
    """Register the schemas with Hydra's ConfigStore and ``${gptsweep.…}`` with OmegaConf; idempotent."""
    store = ConfigStore.instance()
    store.store(name="gptsweep_config", node=whole_schema(), provider="gptsweep")
    for name, schema in MODEL_SCHEMAS.items():
        store.store(name=f"gptsweep_{name}", node=_with_text(OmegaConf.structured(schema)), provider="gptsweep")
    OmegaConf.register_new_resolver("gptsweep.conf_dir", lambda: str(CONF_DIR), replace=True)
    OmegaConf.register_new_resolver("gptsweep.point_dir", point_dir, replace=True)


def whole_schema() -> DictConfig:
    """The schema of all keys, with a `TextNode` for each that holds text."""
    schema = _with_text(OmegaConf.structured(Config))
    # Hydra forbids new keys in every mapping of a composed config; the keys of this one are the user's.
    OmegaConf.set_struct(schema.sampling.logit_bias, False)
    return schema


def _with_text(schema: DictConfig) -> DictConfig:
    """``schema`` with a `TextNode` for each key that holds text."""
    for key, node in schema._content.items():  # type: ignore[union-attr]  # no public way sets a node of one's own
        if isinstance(node, DictConfig):
            _with_text(node)
        elif type(node) is StringNode and key != "step":  # `step: 2000` in a file needs no quotes
            text = TextNode(node._value(), key=key, parent=schema, is_optional=node._is_optional())
            schema.__dict__["_content"][key] = text
    return schema


def point_dir(override_dirname: str, sweep_dir: str = "") -> str:
    """Derive the name of a point's directory from Hydra's ``key=value,key=value`` of its overrides.

    Sampler settings come first, then the seed, the model, other settings of ``sampling``, the rest, and the prompt:
    ``temperature=0.7,top_k=50,seed=3``. Short plain names stay as they are. Other names (long, or with slashes, quotes or
    spaces) are reduced to what every file system accepts and end in a hash of the full name, so names never collide.
    A number given as text, ``start='42'``, is named without its quotes.

    Args:
        override_dirname: Hydra's ``override_dirname``.
        sweep_dir: the sweep's directory. If the point already has a directory there under its name of earlier versions (with
            ``sampling.`` before settings, in alphabetical order), that name is kept.
    """
    plain = re.sub(
        r"(?<=[=\[,])'([^',\]]*)'(?=[,\]]|$)",
        lambda match: match[1] if is_plain_number(match[1]) else match[0],
        override_dirname,
    )
    overrides = sorted(_split(plain), key=_place_in_name)
    short = ",".join(override.removeprefix("sampling.") for override in overrides)
    before = _directory_name(plain, plain)
    there = bool(sweep_dir) and os.path.isdir(os.path.join(sweep_dir, before))
    return before if there else _directory_name(short, plain)


def _directory_name(text: str, whole: str) -> str:
    """``text`` if every file system accepts it, else a reduced form and a hash of ``whole``."""
    plain = re.sub(r"[^A-Za-z0-9._=,+-]", "_", text).rstrip(".")
    if plain == text and len(plain) <= DIRECTORY_BYTES:
        return plain or "defaults"
    tail = "-" + hashlib.sha256(whole.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return plain[: DIRECTORY_BYTES - len(tail)].rstrip("_") + tail


def _split(override_dirname: str) -> list[str]:
    """The overrides, split at commas outside quotes and brackets."""
    parts = [""]
    quote, depth = "", 0
    for place, character in enumerate(override_dirname):
        if quote:
            quote = "" if character == quote and override_dirname[place - 1] != "\\" else quote
        elif character in ("'", '"'):
            quote = character
        elif character == "," and depth <= 0:
            parts.append("")
            continue
        else:
            depth += (character in "([{") - (character in ")]}")
        parts[-1] += character
    return parts


def _place_in_name(override: str) -> int:
    """The rank of an override in the name of a directory; overrides of equal rank keep their order."""
    key, places = override.partition("=")[0], _places()
    return places.get(key, len(places) + (key == "start"))  # a prompt may be long, and cutting removes what follows it


@cache
def _places() -> dict[str, int]:
    others = [f"sampling.{name}" for name in neutral_settings(Sampling) if name not in SAMPLERS]
    model = ["model", "model.step", "model.revision", "model.file", "device.dtype"]
    keys_in_order = [*(f"sampling.{name}" for name in SAMPLERS), "seed", *model, *others]
    return {key: place for place, key in enumerate(keys_in_order)}


@cache
def keys() -> dict[str, Any]:
    """Every key of every choice, as users type it, with its type."""
    sections = {"model": (ModelConfig, *MODEL_SCHEMAS.values()), "device": (DeviceConfig,), "sampling": (SamplingConfig,)}
    found: dict[str, Any] = {key: hint for key, hint in get_type_hints(Config).items() if key not in sections}
    for section, schemas in sections.items():
        for schema in schemas:
            found |= {f"{section}.{name}": hint for name, hint in get_type_hints(schema).items()}
    return found


def is_text(key: str) -> bool:
    """Whether the value of ``key`` is text."""
    return keys()[key] in (str, str | None)


def list_of_text(key: str) -> bool:
    """Whether the value of ``key`` is a list of texts."""
    return bool(keys()[key] == list[Any])


def is_optional(key: str) -> bool:
    """Whether ``key`` may be null."""
    return type(None) in getattr(keys()[key], "__args__", ())


def is_plain_number(text: str) -> bool:
    """Whether ``text`` is a number or a truth value exactly as Python prints it: ``42``, ``0.5``, ``True``."""
    for kind in (int, float):
        try:
            if str(kind(text)) == text:
                return True
        except ValueError:
            pass
    return text in ("True", "False")


def choices(group: str) -> list[str]:
    """The choices of a group in ``conf/``, the default first."""
    defaults = re.findall(r"^  - \w+: ([\w-]+)$", (CONF_DIR / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    return sorted((path.stem for path in (CONF_DIR / group).glob("*.yaml")), key=lambda name: (name not in defaults, name))
