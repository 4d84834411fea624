"""Format values of metrics for display: in the terminal, on the rating page and in notebooks."""

from __future__ import annotations

import math
from typing import Any

from .metrics import Metric


def number(metric: Metric, value: Any) -> str:
    """Format a value: three decimals for shares, three significant digits otherwise."""
    if value is None or not math.isfinite(value):
        return "–"
    if metric.unit == "share":
        return f"{value:.3f}"
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def like(metric: Metric, value: float, shown: float) -> str:
    """Format an error or a bound with as many decimals as the value beside it."""
    return "–" if not math.isfinite(value) else f"{value:.{len(number(metric, shown).partition('.')[2])}f}"
