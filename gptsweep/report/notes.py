"""Notes on what the numbers of a sweep can be compared with."""

from __future__ import annotations

from collections.abc import Sequence

from ..analysis.sweep import Sweep
from ..store.schema import MEANS, MODEL_COLUMNS

NEXT_STEPS = "to mark the best: --best METRIC:min, METRIC:max or METRIC:reference; to read samples: --diff 0 1"
"""The end of a review without ``--best`` and ``--diff``."""


def models_note(sweep: Sweep, names: Sequence[str]) -> str:
    """State which of the metrics ``names`` do not compare the models of a sweep; empty if there is no such metric."""
    chosen = [name for name in ("model", *MODEL_COLUMNS) if name in sweep.swept]
    several = any(sweep.summary[name].nunique(dropna=False) > 1 for name in chosen)
    measured = [sweep.declared[name].label for name in names if sweep.declared[name].field in MEANS]
    if not several or not measured:
        return ""
    return f"{', '.join(measured)}: each model measures its own samples, so this does not say which model writes better"
