"""What made which samples of a run directory: the kind of machine and the versions that decide their bits.

A point may be begun on one machine and finished or extended on another. ``origins.json`` holds its parts while it is
unfinished, then the manifest does.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ..files import read_json
from .schema import ORIGINS, Key


class Origins:
    """The parts of a run directory's samples: ``{"samples": [[prompt_index, first, last], …], "made_by": {…}}`` each.

    The last part made all samples that no other did; its ``samples`` are None.

    Args:
        directory: of the run.
        now: what decides the bits of samples made from now on, by name; None: nothing is kept.
    """

    def __init__(self, directory: Path, now: Mapping[str, Any] | None) -> None:
        self.path = directory / ORIGINS
        self.now = None if now is None else dict(now)
        self.parts: list[dict[str, Any]] = []
        self._begun = False
        self._added: list[tuple[dict[str, Any], set[Key]]] = []

    def read(self, manifest: Mapping[str, Any] | None, done: Collection[Key]) -> None:
        """Find the parts of the samples ``done``. Of those of version 0.1 little is known, of some nothing."""
        kept = _parts(_load(self.path)) or _parts((manifest or {}).get("parts"))
        if kept is None and done:
            kept = [{"samples": None, "made_by": _made_by_0_1(manifest or {})}]
        self.parts = kept or []

    def begin(self, done: Collection[Key]) -> bytes | None:
        """Samples beside ``done`` are made from here on: what ``origins.json`` has to say before the first is written."""
        if self.now is None or self._begun:
            return None
        self._begun = True
        left = set(done)
        for part in self.parts:
            own = left if part["samples"] is None else _within(left, part["samples"])
            left = left - own
            part["samples"] = _ranges(own)
        if self.parts and self.parts[-1]["made_by"] == self.now:
            self.parts[-1]["samples"] = None
        else:
            self.parts.append({"samples": None, "made_by": self.now})
        return self._file()

    def add(self, keys: Iterable[Key], made_by: Mapping[str, Any]) -> bytes | None:
        """Samples ``keys`` are made by something else than ``now``: what ``origins.json`` has to say then. After `begin`."""
        if self.now is None or made_by == self.now:
            return None
        part, own = next((each for each in self._added if each[0]["made_by"] == made_by), (None, set()))
        if part is None:
            part = {"samples": [], "made_by": dict(made_by)}
            self._added.append((part, own))
            self.parts.insert(-1, part)
        own.update(keys)
        part["samples"] = _ranges(own)
        return self._file()

    def settle(self, done: Collection[Key]) -> None:
        """Leave out what made none of the samples ``done`` in the end, if others made some beside it."""
        if self._added and self.parts[-1]["samples"] is None:
            named = [ranges for part in self.parts[:-1] for ranges in part["samples"]]
            if len(_within(done, named)) == len(done):
                self.parts.pop()

    def _file(self) -> bytes:
        return (json.dumps(self.parts) + "\n").encode()

    def change(self) -> str:
        """In which ways samples from now on are made otherwise than those that are there; empty where none is known."""
        differences = {
            f"{name} {_shown(part['made_by'][name])}, now {_shown(value)}": None
            for part in self.parts
            for name, value in (self.now or {}).items()
            if part["made_by"].get(name, value) != value
        }
        return "; ".join(differences)

    @property
    def promise(self) -> bool:
        """Whether every part kept the promise, and all were made in one way, as far as is known."""
        known: dict[str, Any] = {}
        ways = [part["made_by"] for part in self.parts]
        alike = all(known.setdefault(name, value) == value for way in ways for name, value in way.items())
        return alike and all(way.get("promise", True) for way in ways)


def _shown(value: object) -> object:
    return "none" if value == "" else value


def _load(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _parts(found: Any) -> list[dict[str, Any]] | None:
    """Parts as they were written, or None."""
    try:
        whole = bool(found) and all(
            isinstance(part["made_by"], dict)
            and (
                part["samples"] is None
                or all(len(each) == 3 and {type(number) for number in each} == {int} for each in part["samples"])
            )
            for part in found
        )
    except (KeyError, TypeError):
        return None
    return [dict(part) for part in found] if whole else None


def _made_by_0_1(manifest: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: manifest[name] for name in ("engine_version", "promise") if name in manifest}
    versions = manifest.get("versions")
    return known | ({"torch": versions["torch"]} if isinstance(versions, dict) and "torch" in versions else {})


def _ranges(keys: Iterable[Key]) -> list[list[int]]:
    ranges: list[list[int]] = []
    for prompt, of_prompt in groupby(sorted(keys), key=lambda key: key[0]):
        for _, sample in of_prompt:
            if ranges and ranges[-1][0] == prompt and ranges[-1][2] == sample - 1:
                ranges[-1][2] = sample
            else:
                ranges.append([prompt, sample, sample])
    return ranges


def _within(keys: Iterable[Key], ranges: Iterable[Sequence[int]]) -> set[Key]:
    """Those of the keys that lie in the ranges; nothing is written out, as a damaged file may name any number of samples."""
    by_prompt: dict[int, list[Sequence[int]]] = {}
    for each in ranges:
        by_prompt.setdefault(each[0], []).append(each)
    return {key for key in keys if any(first <= key[1] <= last for _, first, last in by_prompt.get(key[0], ()))}
