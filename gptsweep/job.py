"""Hydra's own `run_job` with the same results for less work: how it copies configs, and how it writes them.

For each job Hydra copies its ``hydra`` node five times, the rest of the config once, and dumps them as YAML with an emitter in
Python: three quarters of what a point of a sweep would cost apart from decoding, though between two jobs little changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from types import FunctionType
from typing import Any

import yaml
from hydra.core import utils
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.base import Node


class JobConfig(DictConfig):
    """A config like any other, but quick to copy, where OmegaConf makes and checks each node anew."""

    @classmethod
    def of(cls, cfg: DictConfig) -> JobConfig:
        """A copy of ``cfg``, quick to copy itself; so is its ``hydra`` node, which Hydra copies without the rest."""
        job: JobConfig = _copied(cfg, cls)
        hydra = _copied(cfg._get_node("hydra"), cls)
        hydra.__dict__["_parent"] = job
        job.__dict__["_content"]["hydra"] = hydra
        return job

    def __deepcopy__(self, memo: dict[int, Any]) -> JobConfig:
        copy: JobConfig = _copied(self, JobConfig)
        return copy


def _copied(node: Any, kind: type[Any]) -> Any:
    """What ``copy.deepcopy(node)`` gives, as a ``kind``: new nodes and metadata, the same values in them."""
    copy, metadata = object.__new__(kind), object.__new__(type(node._metadata))
    metadata.__dict__.update(node._metadata.__dict__)
    metadata.flags = dict(metadata.flags)
    cache = metadata.resolver_cache
    metadata.resolver_cache = deepcopy(cache) if cache else defaultdict(dict)
    state = copy.__dict__
    state.update(node.__dict__, _metadata=metadata, _flags_cache=None)
    content = state.get("_content")
    children: Iterable[Any] = ()  # of a value, or of a container that is None, missing or an interpolation
    if isinstance(content, dict):
        state["_content"] = {key: _copied(child, type(child)) for key, child in content.items()}
        children = state["_content"].values()
    elif isinstance(content, list):
        children = state["_content"] = [_copied(child, type(child)) for child in content]
    elif isinstance(content, Node):  # of a union
        state["_content"] = _copied(content, type(content))
        children = [state["_content"]]
    for child in children:
        child.__dict__["_parent"] = copy
    return copy


class Yaml:
    """`OmegaConf.to_yaml`, which dumps only what has changed since it was last called; it keeps one text a key."""

    def __init__(self) -> None:
        self._last: dict[tuple[Any, ...], tuple[str, str]] = {}

    def text(self, cfg: Any) -> str:
        """The text that ``OmegaConf.to_yaml(cfg)`` returns."""
        container = OmegaConf.to_container(cfg, enum_to_str=True)
        if not (isinstance(container, dict) and container):
            return OmegaConf.to_yaml(cfg)
        return self._items(container, ())

    def _items(self, mapping: dict[Any, object], above: tuple[Any, ...]) -> str:
        return "".join(self._item(key, value, above) for key, value in mapping.items())

    def _item(self, key: Any, value: object, above: tuple[Any, ...]) -> str:
        """The lines of one item of a mapping. In block style they depend on nothing but the item and its depth."""
        place, seen = (*above, key), repr((key, value))
        last = self._last.get(place)
        if last is not None and last[0] == seen:
            return last[1]
        plain = isinstance(key, str) and key.isidentifier() and len(key) < 100  # not one that YAML marks with "?"
        if last is not None and plain and isinstance(value, dict) and value:
            head = _dumped({key: {"in": None}}, len(above)).partition("\n")[0]
            text = f"{head}\n{self._items(value, place)}"
        else:
            text = _dumped({key: value}, len(above))
        self._last[place] = seen, text
        return text

    def save(self, cfg: Any, filename: str, output_dir: Path) -> None:
        """Hydra's ``_save_config``."""
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / filename).write_text(self.text(cfg), encoding="utf-8")


def _dumped(item: dict[Any, object], depth: int) -> str:
    """An item of a mapping that lies in ``depth`` others, as OmegaConf dumps it."""
    for _ in range(depth):
        item = {"in": item}
    text: str = yaml.dump(item, default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=get_omega_conf_dumper())
    return text.split("\n", depth)[depth]


def run_job_with(yaml: Yaml) -> Callable[..., JobReturn]:
    """`hydra.core.utils.run_job`, the same code, with another ``_save_config``; Hydra's own is left as it is."""
    run_job = utils.run_job
    known = run_job.__globals__ | {"_save_config": yaml.save}
    return FunctionType(run_job.__code__, known, run_job.__name__, run_job.__defaults__, run_job.__closure__)
