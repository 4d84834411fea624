"""The plain sampler chain: each step of sampling as a function of logits, in torch, on all rows at once.

These formulas are the reference; the kernel ``sample`` computes the same faster on a CPU. A step is named as its settings
declare in `records.Sampling`. It gets only the rows that use it, so a row's result does not depend on the other rows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..records import Sampling, active_steps, samplers_of, step_order, steps_of
from .history import NO_END, LogitAdjustments, repeated
from .noise import coin, precise_dtype


class Rows:
    """The inputs of the steps: each row's settings, its adjustments, and its record.

    Args:
        sampling: the settings.
        adjustments: the adjustments of each row, None for rows without.
        records: `ROW` records.
        device: the device of the logits.
    """

    def __init__(
        self,
        sampling: Sequence[Sampling],
        adjustments: Sequence[LogitAdjustments | None],
        records: npt.NDArray[Any],
        device: torch.device,
    ) -> None:
        self.sampling, self.adjustments, self.records, self.device = sampling, adjustments, records, device

    def of(self, places: Sequence[int]) -> Rows:
        """Select some of the rows."""
        sampling, adjustments = [self.sampling[i] for i in places], [self.adjustments[i] for i in places]
        return Rows(sampling, adjustments, self.records[list(places)], self.device)

    def tensor(self, values: Any) -> Tensor:
        """Convert numbers to a tensor in the dtype that sampling computes in."""
        return torch.from_numpy(np.ascontiguousarray(values, np.float64)).to(self.device, precise_dtype(self.device))

    def integers(self, values: Any) -> Tensor:
        """Convert integers or booleans to a tensor."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def column(self, setting: str) -> Tensor:
        """A numeric setting of every row, ``[rows, 1]``."""
        return self.tensor([getattr(sampling, setting) for sampling in self.sampling])[:, None]

    def noise_at(self) -> dict[str, Tensor]:
        """The arguments of `noise.gumbel` that determine the rows' noise."""
        keys = self.records["noise_key"].astype(np.uint64)
        halves = np.stack([keys & np.uint64(0xFFFFFFFF), keys >> np.uint64(32)], -1).astype(np.int64)
        counters = ("position", "sample_index", "prompt_index")
        return {"key": self.integers(halves)} | {name: self.integers(self.records[name].astype(np.int64)) for name in counters}

    def adjusted_tokens(self) -> tuple[tuple[Tensor, Tensor], npt.NDArray[Any]]:
        """The tokens that an adjustment changes: their indices in ``[rows, vocab_size]``, and their `ADJUSTMENT` records."""
        rows = np.repeat(np.arange(len(self.adjustments)), [0 if a is None else len(a) for a in self.adjustments])
        records = np.concatenate([a.records for a in self.adjustments if a is not None])
        return (self.integers(rows), self.integers(records["id"])), records

    def repeated(self, look_back: Sequence[int], most: Sequence[int]) -> tuple[npt.NDArray[Any], ...]:
        """The tokens that would extend a repetition: `history.repeated` for the texts of the rows."""
        texts = [adjustments.text for adjustments in self.adjustments if adjustments is not None]
        return repeated(texts, look_back, most)


Step = Callable[[Tensor, Rows], Tensor]
"""A pure function of logits ``[rows, vocab_size]`` that returns adjusted ones; an excluded token has -inf."""

CHAIN: dict[str, Step] = {}
"""The function of each step, by name."""


def step(function: Step) -> Step:
    """Register a function as the step of its name."""
    CHAIN[function.__name__] = function
    return function


def chain(logits: Tensor, rows: Rows, dtype: torch.dtype) -> Tensor:
    """Apply each row's steps to its logits; the softmax of the result is the distribution to sample from.

    Adjustments that come first are computed in `precise_dtype` and rounded once to float32, unless the logits are float64.

    Args:
        logits: ``[rows, vocab_size]``, floating point.
        rows: their settings.
        dtype: the dtype of the result, and of the steps after the adjustments.
    """
    orders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, sampling in enumerate(rows.sampling):
        orders[step_order(sampling)].append(place)
    if len(orders) == 1:
        return _in_order(logits, rows, dtype)
    result = torch.empty_like(logits, dtype=dtype)
    for places in orders.values():
        result[places] = _in_order(logits[places], rows.of(places), dtype)
    return result


def _in_order(logits: Tensor, rows: Rows, dtype: torch.dtype) -> Tensor:
    """`chain` for rows with the same order of steps."""
    x = logits.to(precise_dtype(logits.device))
    rounded = torch.float64 if logits.dtype == torch.float64 else torch.float32
    active = [active_steps(sampling) for sampling in rows.sampling]
    kind = type(rows.sampling[0])
    begun = False
    for name in step_order(rows.sampling[0]):
        if not begun and not samplers_of(kind)[steps_of(kind)[name][0]].adjusts:
            x, begun = x.to(rounded).to(dtype), True
        places = [place for place, steps in enumerate(active) if name in steps]
        if len(places) == len(active):
            x = CHAIN[name](x, rows)
        elif places:
            x = x.index_put((torch.tensor(places, device=x.device),), CHAIN[name](x[places], rows.of(places)))
    return x if begun else x.to(rounded).to(dtype)


# -- adjustments -------------------------------------------------------------------------------------------------------------


@step
def logit_bias(x: Tensor, rows: Rows) -> Tensor:
    """Add values to the logits of single tokens, as OpenAI does."""
    at, records = rows.adjusted_tokens()
    return x.index_put(at, x[at] + rows.tensor(records["bias"]))


@step
def penalties(x: Tensor, rows: Rows) -> Tensor:
    """Penalise tokens that have occurred.

    ``repetition_penalty`` is Hugging Face's (Keskar et al. 2019), for tokens of prompt and completion: a positive logit is
    divided by it, a negative one multiplied. ``frequency_penalty`` (subtracted once per occurrence) and ``presence_penalty``
    (once per token) are OpenAI's and vLLM's, for the completion only.
    """
    at, records = rows.adjusted_tokens()
    repetition, frequency, presence = (
        rows.column(name)[at[0], 0] for name in ("repetition_penalty", "frequency_penalty", "presence_penalty")
    )
    seen, count = rows.tensor(records["seen"]), rows.tensor(records["count"])
    value = x[at]
    value = torch.where(seen > 0, torch.where(value < 0, value * repetition, value / repetition), value)
    return x.index_put(at, value - (count * frequency + (count > 0).to(value.dtype) * presence))


@step
def dry(x: Tensor, rows: Rows) -> Tensor:
    """ "Don't repeat yourself" (p-e-w 2024), as in llama.cpp, over prompt and completion.

    A token that would extend a repetition of n tokens loses ``multiplier * base ** (n - allowed_length)`` if n is at least
    ``allowed_length``; of several repetitions the longest counts. A repetition does not extend across a breaker, and breakers
    are not penalised.
    """
    multiplier, base, allowed = (
        np.array([getattr(sampling, f"dry_{name}") for sampling in rows.sampling])
        for name in ("multiplier", "base", "allowed_length")
    )
    look_back = [sampling.dry_range or NO_END for sampling in rows.sampling]
    adjustments = [each for each in rows.adjustments if each is not None]
    most = [each.dry_most(sampling) for each, sampling in zip(adjustments, rows.sampling, strict=True)]
    row, token, length = rows.repeated(look_back, most)
    breaks = np.stack([each.breaks for each in adjustments])
    counts = (length >= allowed[row]) & ~breaks[row, token]
    row, token, length = row[counts], token[counts], length[counts]
    loss = np.minimum(multiplier[row] * base[row] ** (length - allowed[row]), _GREATEST_LOSS)
    at = rows.integers(row), rows.integers(token)
    return x.index_put(at, x[at] - rows.tensor(loss).to(x.dtype))


@step
def no_repeat_ngram(x: Tensor, rows: Rows) -> Tensor:
    """Ban tokens that would repeat an n-gram of prompt and completion, as in ``transformers``; if that bans all, ban none."""
    before = np.array([sampling.no_repeat_ngram - 1 for sampling in rows.sampling])
    row, token, length = rows.repeated([NO_END] * len(before), before.tolist())
    row, token = row[length >= before[row]], token[length >= before[row]]
    return _banned(x, rows.integers(row), rows.integers(token))


@step
def suppress_tokens(x: Tensor, rows: Rows) -> Tensor:
    """Ban tokens everywhere, or up to some position, as in ``transformers``."""
    (row, token), records = rows.adjusted_tokens()
    banned = rows.integers(records["banned_until"]) > rows.integers(rows.records["position"].astype(np.int64))[row]
    spare = torch.where(banned, token, x.shape[-1])  # tokens that are not banned go to an extra column, for static shapes
    return _banned(x, row, spare)


def _banned(x: Tensor, row: Tensor, token: Tensor) -> Tensor:
    mask = torch.zeros(x.shape[0], x.shape[1] + 1, dtype=torch.bool, device=x.device)
    left = x.masked_fill(mask.index_put((row, token), torch.tensor(True, device=x.device))[:, :-1], -torch.inf)
    return torch.where((left > -torch.inf).any(-1, keepdim=True), left, x)


# -- temperature and truncation ----------------------------------------------------------------------------------------------


@step
def temperature(x: Tensor, rows: Rows) -> Tensor:
    """Divide logits by the temperature.

    With ``dynatemp_range`` the temperature depends on the entropy, as in llama.cpp: from ``temperature - range`` (at least 0)
    if one token is certain to ``temperature + range`` if the remaining tokens are equally likely.
    """
    temperature = rows.column("temperature")
    if any(sampling.dynatemp_range for sampling in rows.sampling):
        spread, exponent = rows.column("dynatemp_range"), rows.column("dynatemp_exponent")
        left = (x > -torch.inf).sum(-1, keepdim=True).to(temperature.dtype)
        share = (_entropy(x.to(temperature.dtype).log_softmax(-1)) / left.log()).clamp(0, 1)
        least = (temperature - spread).clamp(min=0)
        varied = (least + (temperature + spread - least) * share**exponent).clamp(min=_LEAST_TEMPERATURE)
        temperature = torch.where((spread > 0) & (left > 1), varied, temperature)
    return x / temperature.to(x.dtype)


@step
def top_n_sigma(x: Tensor, rows: Rows) -> Tensor:
    """Keep logits within n standard deviations (of the remaining logits) of the largest (Tang et al. 2024), as in llama.cpp."""
    left = x > -torch.inf
    count = left.sum(-1, keepdim=True)
    mean = summed(x.where(left, torch.zeros_like(x))) / count
    deviation = (summed((x - mean).where(left, torch.zeros_like(x)) ** 2) / count).sqrt()
    return x.masked_fill(x < x.amax(-1, keepdim=True) - rows.column("top_n_sigma").to(x.dtype) * deviation, -torch.inf)


@step
def top_h(x: Tensor, rows: Rows) -> Tensor:
    """Keep the likeliest tokens while their entropy is at most this share of the entropy of the 100 likeliest (Baghaei
    Potraghloo et al. 2025), as in ``transformers``; the likeliest is always kept."""
    share = rows.column("top_h")
    top, ids = x.topk(min(_TOP_H_TOKENS, x.shape[-1]))
    entropies = torch.special.entr(top.to(share.dtype).softmax(-1))
    dropped = entropies.cumsum(-1) > share * entropies.sum(-1, keepdim=True)
    dropped[:, 0] = False
    return x.masked_fill(torch.ones_like(x, dtype=torch.bool).scatter(-1, ids, dropped), -torch.inf)


@step
def top_k(x: Tensor, rows: Rows) -> Tensor:
    """Keep the k largest logits, and ties with the k-th, as nanoGPT does."""
    k = [min(sampling.top_k or x.shape[-1], x.shape[-1]) for sampling in rows.sampling]
    places = torch.tensor(k, device=x.device)[:, None] - 1
    return x.masked_fill(x < x.topk(max(k)).values.gather(-1, places), -torch.inf)


@step
def top_p(x: Tensor, rows: Rows) -> Tensor:
    """Keep the smallest set of likeliest tokens whose mass reaches p, lower ids first among equals (Holtzman et al. 2020).

    A token is kept while those before it weigh less than p times the total, where a weight is ``exp(x - max)``. Equal logits
    have weight 1, whose sums are exact; rounded probabilities could miss a mass of exactly p.
    """
    p = rows.column("top_p")
    exponents, order = x.to(p.dtype).sort(stable=True, dim=-1, descending=True)
    reached = (exponents - exponents[:, :1]).exp().cumsum(-1)
    before = torch.cat([torch.zeros_like(reached[:, :1]), reached[:, :-1]], -1)
    dropped = (before >= p * reached[:, -1:]) & (p < 1)
    return x.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)


@step
def min_p(x: Tensor, rows: Rows) -> Tensor:
    """Keep tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024)."""
    return x.masked_fill(x < x.amax(-1, keepdim=True) + rows.column("min_p").log().to(x.dtype), -torch.inf)


@step
def typical_p(x: Tensor, rows: Rows) -> Tensor:
    """Keep the tokens whose surprise is closest to the entropy, until their mass reaches p, and ties with the last (Meister et
    al. 2022), as in ``transformers``."""
    p = rows.column("typical_p")
    logprobs = x.to(p.dtype).log_softmax(-1)
    distance = (logprobs + _entropy(logprobs)).abs()
    ordered, order = distance.sort(stable=True, dim=-1)
    last = (logprobs.exp().gather(-1, order).cumsum(-1) < p).sum(-1, keepdim=True).clamp(max=x.shape[-1] - 1)
    return x.masked_fill((distance > ordered.gather(-1, last)) & (p < 1), -torch.inf)


@step
def epsilon_cutoff(x: Tensor, rows: Rows) -> Tensor:
    """Keep tokens at least this likely, and the likeliest (Hewitt et al. 2022), as in ``transformers``."""
    epsilon = rows.column("epsilon_cutoff")
    return _at_least(x, x.to(epsilon.dtype).log_softmax(-1), epsilon.log())


@step
def eta_cutoff(x: Tensor, rows: Rows) -> Tensor:
    """Keep tokens at least as likely as the lesser of eta and ``sqrt(eta) * exp(-entropy)``, and the likeliest (Hewitt et al.
    2022), as in ``transformers``."""
    eta = rows.column("eta_cutoff")
    logprobs = x.to(eta.dtype).log_softmax(-1)
    return _at_least(x, logprobs, torch.minimum(eta.log(), eta.log() / 2 - _entropy(logprobs)))


def _at_least(x: Tensor, logprobs: Tensor, least: Tensor) -> Tensor:
    return x.masked_fill((logprobs < least) & (x < x.amax(-1, keepdim=True)), -torch.inf)


@step
def xtc(x: Tensor, rows: Rows) -> Tensor:
    """Exclude top choices (p-e-w 2024), as in llama.cpp: if the row's coin says so, of the tokens at least ``xtc_threshold``
    likely keep only the least likely, the highest id among equals."""
    probability, threshold = rows.column("xtc_probability"), rows.column("xtc_threshold")
    likely = (x.to(threshold.dtype).log_softmax(-1) >= threshold.log()) & (x > -torch.inf)  # for a threshold of 0
    least = x.where(likely, torch.full_like(x, torch.inf)).amin(-1, keepdim=True)
    last = x.shape[-1] - 1 - (likely & (x == least)).flip(-1).to(torch.int8).argmax(-1, keepdim=True)
    falls = coin(**rows.noise_at(), dtype=probability.dtype)[:, None] < probability
    dropped = likely & falls & (likely.sum(-1, keepdim=True) > 1)
    return x.masked_fill(dropped.scatter(-1, last, False), -torch.inf)


@step
def mirostat(x: Tensor, rows: Rows) -> Tensor:
    """Mirostat 2.0 (Basu et al. 2021): keep tokens whose surprise, in bits, is at most mu, and the likeliest.

    mu starts at twice ``mirostat_tau``; each token changes it by ``mirostat_eta`` times the error of its surprise
    (`mirostat_mu`).
    """
    mu = rows.tensor(rows.records["mirostat_mu"])[:, None]
    dropped = x.to(mu.dtype).log_softmax(-1) < -math.log(2) * mu
    return x.masked_fill(dropped.scatter(-1, x.argmax(-1, keepdim=True), False), -torch.inf)


def mirostat_mu(sampling: Sampling, tokens: int, sampler_logprob: float) -> float:
    """Mirostat's mu after this many tokens, from the sum of their log-probabilities under the distribution sampled from."""
    tau = sampling.mirostat_tau or 0.0
    return 2 * tau + sampling.mirostat_eta * (sampler_logprob / math.log(2) + tokens * tau)


# -- shared small parts ------------------------------------------------------------------------------------------------------

_GREATEST_LOSS = 1e30
_LEAST_TEMPERATURE = 1e-6
_TOP_H_TOKENS = 100
_SUMMED_AT_ONCE = 32768
"""torch splits longer sums among its threads, so their bits depend on the number of threads."""


def summed(x: Tensor) -> Tensor:
    """Sums over the last axis, ``[..., 1]``, with the same bits on any number of threads."""
    parts = [x[..., i : i + _SUMMED_AT_ONCE].sum(-1, keepdim=True) for i in range(0, x.shape[-1], _SUMMED_AT_ONCE)]
    return torch.stack(parts).sum(0)


def _entropy(logprobs: Tensor) -> Tensor:
    """In nats, ``[rows, 1]``."""
    return summed(torch.special.entr(logprobs.exp()))
