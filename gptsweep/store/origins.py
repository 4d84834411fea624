"""Which kind of machine and which versions, as far as they determine bits, made which samples of a run directory.

A point may be started on one machine and finished or extended on another. While it is unfinished, ``origins.json`` records
this, afterwards the manifest.
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

    The last part has ``samples`` None: it made all samples that are in no other part.

    Args:
        directory: the run directory.
        now: what determines the bits of samples made from now on, by name; None: nothing is recorded.
    """

    def __init__(self, directory: Path, now: Mapping[str, Any] | None) -> None:
        self.path = directory / ORIGINS
        self.now = None if now is None else dict(now)
        self.parts: list[dict[str, Any]] = []
        self._begun = False
        self._added: list[tuple[dict[str, Any], set[Key]]] = []

    def read(self, manifest: Mapping[str, Any] | None, done: Collection[Key]) -> None:
        """Load the parts of the samples ``done``. For samples of version 0.1 little is known, for some nothing."""
        kept = _parts(_load(self.path)) or _parts((manifest or {}).get("parts"))
        if kept is None and done:
            kept = [{"samples": None, "made_by": _made_by_0_1(manifest or {})}]
        self.parts = kept or []

    def begin(self, done: Collection[Key]) -> bytes | None:
        """Start a part for samples other than ``done``; return the content that ``origins.json`` needs before the first."""
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
        """Record that samples ``keys`` were made by something else than ``now``; return ``origins.json``. After `begin`."""
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
        """Drop the last part if the other parts made all samples ``done``."""
        if self._added and self.parts[-1]["samples"] is None:
            named = [ranges for part in self.parts[:-1] for ranges in part["samples"]]
            if len(_within(done, named)) == len(done):
                self.parts.pop()

    def _file(self) -> bytes:
        return (json.dumps(self.parts) + "\n").encode()

    def change(self) -> str:
        """How samples from now on differ in origin from existing ones; empty if nothing is known to differ."""
        differences = {
            f"{name} {_shown(part['made_by'][name])}, now {_shown(value)}": None
            for part in self.parts
            for name, value in (self.now or {}).items()
            if part["made_by"].get(name, value) != value
        }
        return "; ".join(differences)

    @property
    def promise(self) -> bool:
        """Whether every part kept the promise and all samples have the same origin, as far as is known."""
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
    """Validate parts read from a file, or return None."""
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
    """The keys that lie in the ranges; ranges are not expanded, because a damaged file may name any number of samples."""
    by_prompt: dict[int, list[Sequence[int]]] = {}
    for each in ranges:
        by_prompt.setdefault(each[0], []).append(each)
    return {key for key in keys if any(first <= key[1] <= last for _, first, last in by_prompt.get(key[0], ()))}
