"""Hydra's own `run_job` with the same results for less work: how it copies configs, and how it writes them.

For each job Hydra copies its ``hydra`` node five times, the rest of the config once, and dumps them as YAML with an emitter in
Python: three quarters of what a point of a sweep would cost apart from decoding, though between two jobs little changes.
"""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.base import Node


class JobConfig(DictConfig):
    """A config like any other, but quick to copy, where OmegaConf makes and checks each node anew."""

    @classmethod
    def of(cls, cfg: DictConfig) -> JobConfig:
        """A copy of ``cfg``, quick to copy itself; so is its ``hydra`` node, which Hydra copies without the rest."""
        job: JobConfig = _copied(cfg, cls, None)
        job.__dict__["_content"]["hydra"] = _copied(cfg._get_node("hydra"), cls, job)
        return job

    def __deepcopy__(self, memo: dict[int, Any]) -> JobConfig:
        copy: JobConfig = _copied(self, JobConfig, self.__dict__["_parent"])
        return copy


def _copied(node: Any, kind: type[Any], parent: Any) -> Any:
    """What ``copy.deepcopy(node)`` gives, as a ``kind``, below ``parent``: new nodes and metadata, the same values in them."""
    copy, metadata = _new(kind), _new(type(node._metadata))
    metadata.__dict__.update(node._metadata.__dict__)
    metadata.flags = {**metadata.flags}
    state = copy.__dict__
    state.update(node.__dict__, _metadata=metadata, _parent=parent, _flags_cache=None)
    if "_content" not in state:  # a value: it is as good as a copy, and has no use for the cache of resolvers
        return copy
    cache = metadata.resolver_cache
    metadata.resolver_cache = deepcopy(cache) if cache else defaultdict(dict)
    content = state["_content"]
    if isinstance(content, dict):
        state["_content"] = {key: _copied(child, type(child), copy) for key, child in content.items()}
    elif isinstance(content, list):
        state["_content"] = [_copied(child, type(child), copy) for child in content]
    elif isinstance(content, Node):  # of a union
        state["_content"] = _copied(content, type(content), copy)
    return copy  # any other content, that of a container that is None or missing, is as good as a copy


_new = object.__new__


class Yaml:
    """`OmegaConf.to_yaml`, which dumps only what has changed since it was last called; it keeps one text an item."""

    def __init__(self) -> None:
        self._last: dict[tuple[Any, ...], tuple[str, str]] = {}

    def text(self, cfg: Any) -> str:
        """The text that ``OmegaConf.to_yaml(cfg)`` returns."""
        container = _plain(cfg)
        return self._items(container, ()) if container and isinstance(container, (dict, list)) else OmegaConf.to_yaml(cfg)

    def _items(self, container: dict[Any, Any] | list[Any], place: tuple[Any, ...]) -> str:
        if isinstance(container, dict):
            return "".join(self._item({key: value}, (*place, key)) for key, value in container.items())
        return "".join(self._item([value], (*place, index)) for index, value in enumerate(container))

    def _item(self, item: dict[Any, Any] | list[Any], place: tuple[Any, ...]) -> str:
        """The lines of one item of a container. In block style they depend on nothing but the item and its depth."""
        last, seen = self._last.get(place), repr(item)
        if last is not None and last[0] == seen:
            return last[1]
        depth, key = len(place) - 1, place[-1]
        text = None
        if last is not None and isinstance(item, dict) and isinstance(key, str) and key.isidentifier() and len(key) < 100:
            value = item[key]
            if value and isinstance(value, (dict, list)):
                text = _dumped({key: {"in": None}}, depth).partition("\n")[0] + "\n" + self._items(value, place)
        text = text or _dumped(item, depth)
        self._last[place] = seen, text
        return text

    def save(self, cfg: Any, filename: str, output_dir: Path) -> None:
        """Hydra's ``_save_config``."""
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / filename).write_text(self.text(cfg), encoding="utf-8")


def _plain(node: Any) -> Any:
    """What ``OmegaConf.to_container(node, enum_to_str=True)`` returns."""
    value = node._value()
    if isinstance(value, dict):
        return {key.name if isinstance(key, Enum) else key: _plain(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_plain(child) for child in value]
    return value.name if isinstance(value, Enum) else value


def _dumped(item: dict[Any, Any] | list[Any], depth: int) -> str:
    """An item of a container that lies in ``depth`` mappings, as OmegaConf dumps it."""
    for _ in range(depth):
        item = {"in": item}
    text: str = yaml.dump(item, default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=get_omega_conf_dumper())
    return text.split("\n", depth)[depth]
