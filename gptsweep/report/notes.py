"""Notes on what the numbers of a sweep can be compared with."""

from __future__ import annotations

from collections.abc import Sequence

from ..analysis.columns import OWN_SAMPLES_NOTE, several_models
from ..analysis.sweep import Sweep
from ..store.schema import MEANS

NEXT_STEPS = "to mark the best: --best METRIC:min, METRIC:max or METRIC:reference; to read samples: --diff 0 1"
"""The end of a review without ``--best`` and ``--diff``."""


def models_note(sweep: Sweep, names: Sequence[str]) -> str:
    """State which of the metrics ``names`` do not compare the models of a sweep; empty if there is no such metric."""
    measured = [sweep.declared[name].label for name in names if sweep.declared[name].field in MEANS]
    return f"{', '.join(measured)}: {OWN_SAMPLES_NOTE}" if measured and several_models(sweep.summary, sweep.swept) else ""
