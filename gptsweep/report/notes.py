"""Notes on what the numbers of a sweep can be compared with."""

from __future__ import annotations

from collections.abc import Sequence

from ..analysis.sweep import Sweep
from ..store.schema import COLUMN_OF_KEY, MEANS

MODEL_COLUMNS = {"model", *(column for key, column in COLUMN_OF_KEY.items() if key.startswith("model."))}
"""The settings that choose a model."""
NEXT_STEPS = "to mark the best: --best METRIC:min, METRIC:max or METRIC:reference; to read samples: --diff 0 1"
"""What a review says that was not asked for either."""


def models_note(sweep: Sweep, names: Sequence[str]) -> str:
    """State which of the metrics ``names`` do not compare the models of a sweep; empty if there is no such metric."""
    if MODEL_COLUMNS.isdisjoint(sweep.swept):
        return ""
    measured = [sweep.declared[name].label for name in names if sweep.declared[name].field in MEANS]
    if not measured:
        return ""
    whose = "each model measures its own samples, and the first one the reference text"
    return f"{', '.join(measured)}: {whose}, so this does not say which model writes better"
