"""The page's data on tokens: each token's text, its probability, and the likeliest alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..analysis.sweep import Sweep
from ..analysis.tokens import logprobs_of
from ..store.logprobs import has_logprobs
from ..store.schema import SAMPLE_KEY

MAX_TOKENS = 100_000
"""The maximum number of tokens whose measurements a page contains: about 10 MB."""
ALTERNATIVES = 8
"""The maximum number of alternatives per token on a page."""


def token_columns(sweep: Sweep, samples: pd.DataFrame) -> dict[str, Any] | None:
    """The measured tokens of the samples on the page; None if no sample was made with ``sampling.logprobs``.

    For each (prompt, seed, sample_index), tokens of all points are included or of none, up to the limit.

    Args:
        sweep: the sweep of the samples.
        samples: rows of ``Sweep.samples`` in the page's order.

    Returns:
        ``texts``, without duplicates; and ``of``, for each sample None or its tokens: ``text`` and ``tops`` are indices into
        ``texts``, ``ends`` counts UTF-16 code units as JavaScript does, logarithms are in nats.
    """
    if not any(map(has_logprobs, sweep.directories.values())):
        return None
    order = samples.groupby(list(SAMPLE_KEY), sort=True).ngroup()
    tokens = samples["completion_tokens"].groupby(order).sum().sort_index().cumsum()
    held = samples[order.isin(tokens.index[tokens <= MAX_TOKENS]).to_numpy(bool)]
    texts: dict[str, int] = {}
    place = {label: number for number, label in enumerate(samples.index)}
    found: list[dict[str, Any] | None] = [None] * len(samples)
    for label, line in logprobs_of(held, sweep.directories):
        found[place[label]] = _tokens(line, str(samples["completion"].loc[label]), texts)
    return {"texts": list(texts), "of": found} if texts else None


def _tokens(line: dict[str, Any], completion: str, texts: dict[str, int]) -> dict[str, Any]:
    """One sample's tokens; new texts are added to ``texts``."""
    known = {token: texts.setdefault(text, len(texts)) for token, text in line["texts"].items()}
    return {
        "text": [known[str(token)] for token in line["token_ids"]],
        "ends": _in_utf16(completion, line["ends"]),
        "tops": [[known[str(token)] for token in ids[:ALTERNATIVES]] for ids in line["top_ids"]],
        "logprob": [round(value, 3) for value in line["logprob"]],
        "sampler": [round(value, 3) for value in line["sampler_logprob"]],
        "entropy": [round(value, 2) for value in line["entropy"]],
        "top": [[round(value, 3) for value in values[:ALTERNATIVES]] for values in line["top_logprobs"]],
        "rank": line["rank"],
        "left": line["survivors"],
    }


def _in_utf16(text: str, ends: Sequence[int]) -> list[int]:
    """Convert offsets in a text to UTF-16 code units."""
    wide = [place for place, character in enumerate(text) if ord(character) > 0xFFFF]
    return [end + sum(place < end for place in wide) for end in ends] if wide else list(ends)
