"""Draw random points that are spread evenly: a scrambled Sobol sequence over intervals and lists.

A Sobol sequence covers a space more evenly than independent draws do, and so does each of its prefixes. So a sweep can be
extended by more points without changing the first ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, ValueType

from ..config_schema import keys
from ..records import require
from .points_file import MAX_POINTS

_STEPS = 10_000
"""Numbers are rounded to a decimal place with at least this many steps over the interval, to keep directory names short."""

Axis = Callable[[float], str]
"""Maps a number in [0, 1) to an override."""


def axes_of(overrides: Sequence[Override]) -> dict[str, Axis]:
    """Return the axes to draw from, by key: values written as ``interval(…)``, ``choice(…)``, ``range(…)`` or ``glob(…)``.

    Plain values separated by commas are not drawn.

    Raises:
        ConfigError: an interval is empty or invalid, its key takes no number, or a list is empty, shuffled or tagged.
    """
    last = {override.get_key_element(): override for override in overrides}
    return {
        key: _axis(override)
        for key, override in last.items()
        if override.is_sweep_override() and override.value_type is not ValueType.SIMPLE_CHOICE_SWEEP
    }


def draw(n: int, seed: int, axes: Iterable[Axis]) -> list[list[str]]:
    """Draw ``n`` points, each with one override per axis. Equal points are returned only once, so there may be fewer.

    Args:
        n: how many points to draw. A larger ``n`` adds points and keeps the first ones.
        seed: seed of the scrambling.
        axes: the axes from `axes_of`.

    Raises:
        ConfigError: ``n`` or ``seed`` is out of its range, or there is no axis.
    """
    axes = list(axes)
    require(1 <= n <= MAX_POINTS, "hydra.sweeper.n", n, f"must be from 1 to {MAX_POINTS:,}")
    require(0 <= seed < 2**64, "hydra.sweeper.seed", seed, "must be from 0 to 2**64 - 1")
    require(bool(axes), "hydra.sweeper.n", n, "has nothing to draw from; give a key interval(…), choice(…) or range(…)")
    from scipy.stats import qmc  # imported late: it takes a second, which other sweeps and errors need not wait for

    sequence = qmc.Sobol(len(axes), rng=seed).random_base2((n - 1).bit_length())[:n]
    points = ((axis(float(u)) for axis, u in zip(axes, row, strict=True)) for row in sequence)
    return [list(point) for point in dict.fromkeys(map(tuple, points))]


def ends(axis: Axis) -> list[str]:
    """Return the first and the last override that an axis can draw."""
    return [axis(0.0), axis(math.nextafter(1, 0))]


def _axis(override: Override) -> Axis:
    name, value = override.get_key_element(), override.value()

    def check(holds: bool, wanted: str) -> None:
        require(holds, override.key_or_group, override.get_value_string(), wanted)

    if isinstance(value, IntervalSweep):
        kind = keys().get(override.key_or_group)
        check(kind in (None, *_NUMBERS, *_WHOLE), "cannot be drawn from an interval; use choice(…)")
        check(value.tags <= {"log"}, "accepts only the tag log")
        assert value.start is not None
        assert value.end is not None
        low, high, log = value.start, value.end, "log" in value.tags
        check(math.isfinite(high - low) and low < high, "must have its first number below its second")
        check(low > 0 or not log, "with the tag log must begin above 0")
        whole = kind in _WHOLE or (isinstance(low, int) and isinstance(high, int))
        check(not whole or (low == int(low) and high == int(high)), "must go from a whole number to a whole number")
        if whole:
            first, last = int(low), int(high)
            return lambda u: f"{name}={min(last, math.floor(_between(first, last + 1, u, log=log)))}"
        return lambda u: f"{name}={_rounded(low, high, u, log=log)}"
    check(not getattr(value, "shuffle", False), "cannot be shuffled; points are drawn at random anyway")
    check(not getattr(value, "tags", None), "accepts no tag; tag(log, interval(…)) draws log-uniformly")
    listed = list(override.sweep_string_iterator())
    check(bool(listed), "must contain at least one value")
    return lambda u: f"{name}={listed[int(u * len(listed))]}"


_WHOLE: tuple[Any, ...] = (int, int | None)
_NUMBERS: tuple[Any, ...] = (float, float | None)


def _between(low: float, high: float, u: float, *, log: bool) -> float:
    return float(low * (high / low) ** u) if log else low + (high - low) * u


def _rounded(low: float, high: float, u: float, *, log: bool) -> float:
    value = _between(low, high, u, log=log)
    width = value * math.log(high / low) if log else high - low
    return min(high, max(low, round(value, math.ceil(math.log10(_STEPS) - math.log10(width)))))
