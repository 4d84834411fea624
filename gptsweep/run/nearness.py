"""MAUVE of the points of a sweep against its reference text: the features by a model, the rest by `analysis.mauve`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from ..analysis.mauve import MIN_TEXTS, VERSION, mauve
from ..analysis.metrics import MAUVE
from ..analysis.own_metrics import OwnMetric
from ..engine.backend import Featurizer
from ..errors import ResultsError
from .rows import OpenModel


def mauve_metric(
    pieces: Sequence[Mapping[str, Any]], made_by: Mapping[str, Any], open_model: Callable[[], OpenModel]
) -> OwnMetric:
    """MAUVE as a metric of points, see `Sweep.scored`.

    Texts are read from their first token, without the prompts that they continue. Empty ones are left out.

    Args:
        pieces: of the reference text, as ``reference.json`` has them.
        made_by: what names the model, beside the pieces, in the hash that kept values carry.
        open_model: loads the model; called if there is something to compute.
    """
    opened = cache(open_model)
    reference = [str(piece["completion"]) for piece in pieces]
    of_reference = cache(lambda: features_of(opened(), reference))

    def nearness(samples: Sequence[Mapping[str, Any]]) -> float | None:
        texts = [sample["completion"] for sample in samples if sample["completion"]]
        if min(len(texts), len(reference)) < MIN_TEXTS:
            return None
        value = mauve(features_of(opened(), texts), of_reference())
        return None if isinstance(value, str) else value

    source = json.dumps([VERSION, dict(made_by), reference], sort_keys=True)
    return OwnMetric(MAUVE, nearness, hashlib.sha256(source.encode()).hexdigest(), MAUVE.name)


def features_of(model: OpenModel, texts: Sequence[str]) -> list[list[float]]:
    """Features of texts that are not empty, ``[n, n_features]``.

    Raises:
        PromptError: a text has a character that the model does not know.
        ResultsError: the model's backend gives no features.
    """
    if not isinstance(backend := model.backend, Featurizer):
        raise ResultsError("metric", MAUVE.name, f"model={model.source.name} runs where no features of a text can be had")
    known: dict[str, list[float]] = {}
    for text in texts:
        if text not in known:
            known[text] = backend.features(model.tokenizer.encode(text))
    return [known[text] for text in texts]
