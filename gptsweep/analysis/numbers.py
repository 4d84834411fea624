"""Format values of metrics for display in the terminal and in notebooks; the page's ``names.js`` formats them alike."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from .metrics import Metric

DATA_DIGITS = 7
"""Significant digits of the page's data. They are more than are shown, so that rounding twice seldom changes a shown digit."""


def number(metric: Metric, value: Any) -> str:
    """Format a value: three decimals for shares, three significant digits otherwise."""
    if value is None or not math.isfinite(value):
        return "–"
    if metric.unit == "share":
        return _fixed(value, 3)
    if value == 0:
        return "0"
    decimals = 2 - math.floor(math.log10(abs(value)))
    if 1e-4 <= abs(value) < 1e6:
        return _fixed(value, max(0, decimals))
    return f"{_rounded(value, decimals):.2e}"


def like(metric: Metric, value: float, shown: float) -> str:
    """Format an error or a bound with as many decimals as the value beside it."""
    if not math.isfinite(value):
        return "–"
    beside = number(metric, shown)
    return number(metric, value) if "e" in beside else _fixed(value, len(beside.partition(".")[2]))


def _fixed(value: float, decimals: int) -> str:
    rounded = _rounded(value, decimals)
    return f"{rounded if rounded else abs(rounded):.{decimals}f}"  # a zero has no sign


def _rounded(value: float, decimals: int) -> Decimal:
    """Round as the page does, which has `DATA_DIGITS` of a value and rounds halves away from zero."""
    return Decimal(float(f"{value:.{DATA_DIGITS}g}")).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
