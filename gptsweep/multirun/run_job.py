"""Speed up Hydra's `run_job` without changing its results, by copying configs and writing YAML faster.

For each job Hydra copies the config's ``hydra`` node five times and the rest once, and dumps them as YAML with an emitter
written in Python. That would be three quarters of a point's time apart from decoding, though little changes between jobs.
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
    """A config that is quick to copy. OmegaConf's own copy creates and checks each node again."""

    @classmethod
    def of(cls, cfg: DictConfig) -> JobConfig:
        """Copy ``cfg`` to a `JobConfig`. Its ``hydra`` node becomes one, too, as Hydra copies it separately."""
        job: JobConfig = _copied(cfg, cls, None)
        job.__dict__["_content"]["hydra"] = _copied(cfg._get_node("hydra"), cls, job)
        return job

    def __deepcopy__(self, memo: dict[int, Any]) -> JobConfig:
        copy: JobConfig = _copied(self, JobConfig, self.__dict__["_parent"])
        return copy


def _copied(node: Any, kind: type[Any], parent: Any) -> Any:
    """Copy ``node`` as ``copy.deepcopy`` does, as a ``kind`` below ``parent``: new nodes and metadata with the same values."""
    copy, metadata = _new(kind), _new(type(node._metadata))
    metadata.__dict__.update(node._metadata.__dict__)
    metadata.flags = {**metadata.flags}
    state = copy.__dict__
    state.update(node.__dict__, _metadata=metadata, _parent=parent, _flags_cache=None)
    if "_content" not in state:  # a value node: sharing its value is safe, and it does not use the resolver cache
        return copy
    cache = metadata.resolver_cache
    metadata.resolver_cache = deepcopy(cache) if cache else defaultdict(dict)
    content = state["_content"]
    if isinstance(content, dict):
        state["_content"] = {key: _copied(child, type(child), copy) for key, child in content.items()}
    elif isinstance(content, list):
        state["_content"] = [_copied(child, type(child), copy) for child in content]
    elif isinstance(content, Node):  # a union node
        state["_content"] = _copied(content, type(content), copy)
    return copy  # other content is that of a None or missing container, and sharing it is safe


_new = object.__new__


class Yaml:
    """An `OmegaConf.to_yaml` that caches the text of each item, and dumps only items that changed since the last call."""

    def __init__(self) -> None:
        self._last: dict[tuple[Any, ...], tuple[str, str]] = {}

    def text(self, cfg: Any) -> str:
        """Return the same text as ``OmegaConf.to_yaml(cfg)``."""
        container = _plain(cfg)
        return self._items(container, ()) if container and isinstance(container, (dict, list)) else OmegaConf.to_yaml(cfg)

    def _items(self, container: dict[Any, Any] | list[Any], place: tuple[Any, ...]) -> str:
        if isinstance(container, dict):
            return "".join(self._item({key: value}, (*place, key)) for key, value in container.items())
        return "".join(self._item([value], (*place, index)) for index, value in enumerate(container))

    def _item(self, item: dict[Any, Any] | list[Any], place: tuple[Any, ...]) -> str:
        """Return the lines of one item of a container. In block style they depend only on the item and its depth."""
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
        """Write the config as Hydra's ``_save_config`` does."""
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / filename).write_text(self.text(cfg), encoding="utf-8")


def _plain(node: Any) -> Any:
    """Return the same as ``OmegaConf.to_container(node, enum_to_str=True)``."""
    value = node._value()
    if isinstance(value, dict):
        return {key.name if isinstance(key, Enum) else key: _plain(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_plain(child) for child in value]
    return value.name if isinstance(value, Enum) else value


def _dumped(item: dict[Any, Any] | list[Any], depth: int) -> str:
    """Dump an item of a container inside ``depth`` nested mappings as OmegaConf does."""
    for _ in range(depth):
        item = {"in": item}
    text: str = yaml.dump(item, default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=get_omega_conf_dumper())
    return text.split("\n", depth)[depth]
