"""MAUVE of a sweep's points against its reference text, with features from a model; see `analysis.mauve`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..analysis.mauve import MIN_TEXTS, VERSION, mauve
from ..analysis.metrics import MAUVE
from ..analysis.own_metrics import OwnMetric
from ..analysis.reference import read_reference_json
from ..engine.backend import Featurizer
from ..errors import ResultsError
from .rows import OpenModel


def mauve_metric(directory: Path, open_model: Callable[[], OpenModel], *, scored_the_text: bool = True) -> OwnMetric:
    """Make MAUVE against the reference text of ``directory`` a metric of points, for `Sweep.scored`.

    Features are those of completions without their prompts; empty completions are left out. Values are cached with a hash of
    the pieces of the text and of the model's identity.

    Args:
        directory: the sweep or run.
        open_model: loads the model; called only if there is something to compute.
        scored_the_text: whether this is the model that scored the text; another model is identified separately.

    Raises:
        ResultsError: there is no reference text.
        GptsweepError: as ``open_model``.
    """
    if (known := read_reference_json(directory)) is None:
        raise ResultsError("metric", MAUVE.name, "needs a reference text; give one with --reference FILE:path")
    opened = cache(open_model)
    made_by = {name: known["wanted"].get(name) for name in ("weights", "tokenizer", "dtype")}
    if not scored_the_text:
        made_by = {"weights": opened().fingerprint, "tokenizer": opened().tokenizer.fingerprint, "dtype": opened().dtype}
    reference = [str(piece["completion"]) for piece in known["samples"]]
    of_reference = cache(lambda: features_of(opened(), reference))

    def value_of(samples: Sequence[Mapping[str, Any]]) -> float | None:
        texts = [sample["completion"] for sample in samples if sample["completion"]]
        if min(len(texts), len(reference)) < MIN_TEXTS:
            return None
        value = mauve(features_of(opened(), texts), of_reference())
        return None if isinstance(value, str) else value

    source = json.dumps([VERSION, made_by, reference], sort_keys=True)
    return OwnMetric(MAUVE, value_of, hashlib.sha256(source.encode()).hexdigest(), MAUVE.name)


def features_of(model: OpenModel, texts: Sequence[str]) -> list[list[float]]:
    """Compute the features of texts that are not empty, ``[n, n_features]``.

    Raises:
        PromptError: a text has a character that is not in the model's vocabulary.
        ResultsError: the model's backend computes no features.
    """
    if not isinstance(backend := model.backend, Featurizer):
        raise ResultsError("metric", MAUVE.name, f"the backend of model={model.source.name} cannot compute features of text")
    known: dict[str, list[float]] = {}
    for text in texts:
        if text not in known:
            known[text] = backend.features(model.tokenizer.encode(text))
    return [known[text] for text in texts]
