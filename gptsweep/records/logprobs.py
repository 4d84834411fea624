"""The records of ``sampling.logprobs``: for one sampled token (`TokenLogprobs`) and for a sample (`SampleLogprobs`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

LOGPROB_DIGITS = 5
"""Decimals of the numbers in `TokenLogprobs`: float32 arithmetic is no more precise."""


class TokenLogprobs(NamedTuple):
    """Measurements at one sampled token. Logarithms and entropies are in nats, rounded to `LOGPROB_DIGITS` decimals.

    ``logprob`` and ``entropy`` refer to the model's own distribution (temperature 1, nothing truncated or penalised),
    ``sampler_logprob`` to the distribution sampled from, like the means of `Completion`. ``rank`` is 1 plus the number of
    tokens that the model finds likelier. ``survivors`` is the number of tokens that no step excluded; 1 for a greedy choice.
    ``top_ids`` are the likeliest tokens in the model's own distribution (lower ids first among equals) and ``top_logprobs``
    their log-probabilities.
    """

    logprob: float
    sampler_logprob: float
    rank: int
    entropy: float
    survivors: int
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleLogprobs:
    """A line of ``logprobs.jsonl``, without the identity of its sample.

    Args:
        alternatives: ``sampling.logprobs``, the number of alternatives per token (fewer if the vocabulary is smaller).
        tokens: one record per token of the sample.
        ends: for each token, the number of completed characters after it: token i is the text from ``ends[i - 1]`` to
            ``ends[i]``. Empty for a token whose character continues in the next one, and for text that was cut off.
        texts: the text of each id that occurs, by ascending id; bytes that are not a character by themselves are U+FFFD.
    """

    alternatives: int
    tokens: tuple[TokenLogprobs, ...]
    ends: tuple[int, ...]
    texts: Mapping[int, str]
