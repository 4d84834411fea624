"""Declarations of samplers, and what is derived from them: neutral values and the order of steps."""

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

    The config's schema, validation, the kernels' record, the row in docs/settings.md and the settings hashed by `point_id` are
    derived from it. A sampler is one *step* of sampling, which is named like its setting if it has only one; `engine.chain` has
    the function of each step, which processes all rows at once.

    Args:
        place: the rank of the step; steps are applied in ascending order.
        neutral: the value without effect; the default of every setting that 0.1 did not have.
        checks: pairs of a condition on the value, and the end of the error if it does not hold.
        sentence: its description in docs/settings.md.
        step: the step that the setting belongs to; empty: a step of the same name.
        switches: whether a value that is not neutral activates the step. False: it only parametrises the step.
        adjusts: whether the step changes the logits of some tokens, also for greedy rows. False: it determines which tokens
            remain, and their probabilities.
        kernel: the NumPy type of the setting's field in the kernels' `ROW` record; empty: the kernel gets it elsewhere; None:
            no kernel has the step, and the plain chain samples the rows that use it.
        off: the value that represents None in that record.
        truncates: whether it excludes tokens. The active truncating samplers name a point's family in a comparison of
            samplers; of a sampler's several settings, only the one that activates it declares this.
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
        """Whether the sampler has an effect at this value of its setting."""
        return value is not None and value != self.neutral and value != self.off


def sampler(**declaration: Any) -> dict[str, Sampler]:
    """The metadata of a sampler's field."""
    return {"sampler": Sampler(**declaration)}


def _cached(function: Callable[[type[Any]], _T]) -> Callable[[type[Any]], _T]:
    """`functools.cache` for functions of a class: mypy confuses the ``__hash__`` of a data class with that of its instances."""
    return cast(Callable[[type[Any]], _T], cache(function))


@_cached
def samplers_of(kind: type[Any]) -> dict[str, Sampler]:
    """The declarations of samplers' settings by name. ``kind`` is `Sampling` or a subclass."""
    return {f.name: f.metadata["sampler"] for f in fields(kind) if "sampler" in f.metadata}


@_cached
def neutral_settings(kind: type[Any]) -> dict[str, Any]:
    """The neutral value of each setting: as declared for samplers, the default for others."""
    declared = samplers_of(kind)
    return {f.name: declared[f.name].neutral if f.name in declared else f.default for f in fields(kind)}


@_cached
def steps_of(kind: type[Any]) -> dict[str, tuple[str, ...]]:
    """The steps of sampling in order, each with the names of its settings."""
    steps: dict[str, list[str]] = defaultdict(list)
    for name, declared in sorted(samplers_of(kind).items(), key=lambda item: item[1].place):
        steps[declared.step or name].append(name)
    return {step: tuple(names) for step, names in steps.items()}
