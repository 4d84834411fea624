"""What ``sampling.logprobs`` records: of a sampled token (`TokenLogprobs`), and of a whole sample (`SampleLogprobs`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

LOGPROB_DIGITS = 5
"""Decimals of the numbers in `TokenLogprobs`: float32 arithmetic gives no more."""


class TokenLogprobs(NamedTuple):
    """What was measured at one sampled token. Logarithms and entropies are in nats, to `LOGPROB_DIGITS` decimals.

    ``logprob`` and ``entropy`` are of the model's own distribution (temperature 1, nothing truncated or penalised) and
    ``sampler_logprob`` of the distribution sampled from, as for the means of `Completion`. ``rank`` counts from 1: one more
    than the tokens that the model finds likelier. ``survivors`` is how many tokens could be sampled, those that no step
    dropped; 1 where the choice was greedy. ``top_ids`` are the likeliest tokens in the model's own distribution, of equally
    likely ones the lower id first, and ``top_logprobs`` are theirs.
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
    """A line of ``logprobs.jsonl``, apart from the sample that it is of.

    Args:
        asked: ``sampling.logprobs``; a token has so many alternatives, or as many as there are ids.
        tokens: a record for each token of the sample.
        ends: for each token, how many characters of the completion are complete after it: token i is the text from
            ``ends[i - 1]`` to ``ends[i]``. Empty for a token whose character continues in the next, and for what was cut off.
        texts: of each id that occurs, by ascending id; bytes that are no character by themselves are U+FFFD.
    """

    asked: int
    tokens: tuple[TokenLogprobs, ...]
    ends: tuple[int, ...]
    texts: Mapping[int, str]
