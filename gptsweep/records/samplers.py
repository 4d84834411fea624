"""Declarations of samplers, and what follows from them: neutral values, and the order of steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, TypeVar, cast

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """The declaration of a sampler's setting: the metadata of its field in `Sampling`.

    The config's schema, validation, the kernels' record, the row in docs/settings.md and what a `point_id` hashes follow. A
    sampler is one *step* of sampling, named like its setting where it has only one; `engine.chain` has the function of
    each step, on all rows at once.

    Args:
        place: where the step stands among the others; steps are applied in ascending order.
        neutral: the value that changes nothing: the default of a setting that 0.1 did not have.
        checks: each a condition on the value, and the end of the error if it does not hold.
        sentence: what docs/settings.md says of it.
        step: the step that the setting belongs to; empty: its own name.
        switches: whether a value that is not neutral switches the step on. False: it only says how the step works.
        adjusts: whether the step changes the logits of some tokens, as it does for greedy rows too. False: it says which
            tokens are left, and how likely.
        kernel: the NumPy type of the setting's field in the kernels' `ROW` record; empty: the kernel has it from elsewhere;
            None: the kernel does not have the step, and rows that use it are sampled by the plain chain.
        off: what stands for None in that record.
        truncates: whether it takes tokens out of the choice. The samplers that do and are on name the family of a point in a
            comparison of samplers; of several settings of one sampler only the one that switches it on is declared so.
    """

    place: int
    neutral: object
    checks: tuple[tuple[Callable[[Any], bool], str], ...]
    sentence: str
    step: str = ""
    switches: bool = True
    adjusts: bool = False
    kernel: str | None = None
    off: float | None = None
    truncates: bool = False

    def is_on(self, value: object) -> bool:
        """Whether it does anything at this value of its setting: one that is neither neutral nor stands for that."""
        return value is not None and value != self.neutral and value != self.off


def sampler(**declaration: Any) -> dict[str, Sampler]:
    """The metadata of a sampler's field."""
    return {"sampler": Sampler(**declaration)}


def _cached(function: Callable[[type[Any]], _T]) -> Callable[[type[Any]], _T]:
    """`cache` for functions of a class: mypy takes the ``__hash__`` of a data class for that of its instances."""
    return cast(Callable[[type[Any]], _T], cache(function))


@_cached
def samplers_of(kind: type[Any]) -> dict[str, Sampler]:
    """The declarations of the samplers' settings by their names. ``kind`` is `Sampling`, or a class that adds to it."""
    return {f.name: f.metadata["sampler"] for f in fields(kind) if "sampler" in f.metadata}


@_cached
def neutral_settings(kind: type[Any]) -> dict[str, Any]:
    """The value of each setting that changes nothing: a sampler's as declared, another's default."""
    declared = samplers_of(kind)
    return {f.name: declared[f.name].neutral if f.name in declared else f.default for f in fields(kind)}


@_cached
def steps_of(kind: type[Any]) -> dict[str, tuple[str, ...]]:
    """The steps of sampling in their order, each with the names of its settings."""
    steps: dict[str, list[str]] = defaultdict(list)
    for name, declared in sorted(samplers_of(kind).items(), key=lambda item: item[1].place):
        steps[declared.step or name].append(name)
    return {step: tuple(names) for step, names in steps.items()}
