"""Check and convert the fields of records, and raise errors for wrong values."""

from __future__ import annotations

from functools import cache
from numbers import Real
from typing import Any, get_type_hints

from ..errors import ConfigError

LIMIT = 2**31
"""Upper bound of counts and token ids: they are counters of the noise, and 32-bit integers in files and libraries."""
EXAMPLES: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
"""How errors name the values of each type."""


def is_number(value: object, least: float, below: float) -> bool:
    """Whether ``value``, read from an untrusted file, is a number from ``least`` to below ``below``; a boolean is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value < below


def require(holds: bool, key: str, value: object, wanted: str) -> None:
    """Raise `ConfigError` unless ``holds``."""
    if not holds:
        raise ConfigError(key, value, wanted)


def one_of(key: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless ``value`` is one of ``choices``."""
    require(value in choices, key, value, f"must be one of {', '.join(choices)}")


def coerce(key: str, value: Any, kind: type, *, optional: bool = False) -> Any:
    """Convert ``value`` to a plain Python value of ``kind``, so that ``1`` and ``1.0``, or NumPy's and Python's, are equal.

    Args:
        key: the name of the value in the error.
        value: a Python value, or a scalar of NumPy, pandas or torch.
        kind: ``int`` (also accepts integral floats), ``float`` (also accepts ints), ``bool`` or ``str``.
        optional: whether None is allowed.

    Raises:
        ConfigError: ``value`` is not of ``kind``. Text is never parsed as a number, nor a bool accepted as one.
    """
    if optional and value is None:
        return None
    given: object = value
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if kind in (int, float) and isinstance(value, Real) and not isinstance(value, bool):
        number: Any = value
        try:
            if kind is float or int(number) == number:
                return kind(number)
        except (OverflowError, ValueError):  # infinity and NaN are not integers, and 10**400 is not a float
            pass
    elif kind in (bool, str) and isinstance(value, kind):
        return kind(value)
    raise ConfigError(key, given, f"must be {EXAMPLES[kind]}" + (", or null" if optional else ""))


@cache
def _scalars(record: Any) -> tuple[tuple[str, type, bool], ...]:
    """The scalar fields of a record: name, type, and whether None is allowed."""
    hints = get_type_hints(record).items()
    return tuple((name, kind, hint != kind) for name, hint in hints for kind in EXAMPLES if hint in (kind, kind | None))


def coerce_fields(record: Any, section: str) -> None:
    """Convert the scalar fields of a frozen record to plain Python values of their types."""
    kind_of_record: Any = type(record)
    for name, kind, optional in _scalars(kind_of_record):
        object.__setattr__(record, name, coerce(section + name, getattr(record, name), kind, optional=optional))
