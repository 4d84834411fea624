"""The plain chain: what each step of sampling makes of logits, in torch, on all rows at once.

Formulas here are the reference; the kernel ``sample`` computes the same faster on a CPU. A step has the name that its settings
declare in `records.Sampling`. It gets the rows that use it, so what a row comes to does not depend on the other rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..records import Sampling, active_steps, samplers_of, steps_of
from .noise import precise_dtype


class Rows:
    """What the steps go by: each row's settings, and its adjustments.

    Args:
        sampling: the settings.
        adjustments: the `ADJUSTMENT` records of the rows that have some, None for the others.
        device: of the logits.
    """

    def __init__(
        self, sampling: Sequence[Sampling], adjustments: Sequence[npt.NDArray[Any] | None], device: torch.device
    ) -> None:
        self.sampling, self.adjustments, self.device = sampling, adjustments, device

    def of(self, places: Sequence[int]) -> Rows:
        """Some of the rows."""
        return Rows([self.sampling[i] for i in places], [self.adjustments[i] for i in places], self.device)

    def tensor(self, values: Any) -> Tensor:
        """Numbers in the dtype that sampling computes in."""
        return torch.from_numpy(np.ascontiguousarray(values, np.float64)).to(self.device, precise_dtype(self.device))

    def column(self, setting: str) -> Tensor:
        """A setting that is a number in every row, ``[rows, 1]``."""
        return self.tensor([getattr(sampling, setting) for sampling in self.sampling])[:, None]

    def adjusted_tokens(self) -> tuple[tuple[Tensor, Tensor], npt.NDArray[Any]]:
        """The tokens that some adjustment changes: their places in ``[rows, vocab_size]``, and their `ADJUSTMENT` records."""
        each = [adjustments for adjustments in self.adjustments if adjustments is not None]
        rows = np.repeat(np.arange(len(self.adjustments)), [0 if a is None else len(a) for a in self.adjustments])
        records = np.concatenate(each)
        return (torch.from_numpy(rows).to(self.device), torch.from_numpy(records["id"].copy()).to(self.device)), records


Step = Callable[[Tensor, Rows], Tensor]
"""A pure function from logits ``[rows, vocab_size]`` to what the step makes of them; a token that is dropped has -inf."""

CHAIN: dict[str, Step] = {}
"""The function of each step."""


def step(function: Step) -> Step:
    """Enter a function under its own name."""
    CHAIN[function.__name__] = function
    return function


def chain(logits: Tensor, rows: Rows, dtype: torch.dtype) -> Tensor:
    """What the steps of each row make of its logits: their softmax is the distribution to sample from.

    Adjustments that come first are computed in `precise_dtype`, and rounded to float32 together.

    Args:
        logits: ``[rows, vocab_size]``, floating point.
        rows: their settings.
        dtype: what the steps after the adjustments compute in, and the result has.
    """
    x = logits.to(precise_dtype(logits.device))
    orders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, sampling in enumerate(rows.sampling):
        orders[tuple(steps_of(type(sampling)))].append(place)
    if len(orders) == 1:
        return _in_order(x, rows, dtype)
    result = torch.empty_like(x, dtype=dtype)
    for places in orders.values():
        result[places] = _in_order(x[places], rows.of(places), dtype)
    return result


def _in_order(x: Tensor, rows: Rows, dtype: torch.dtype) -> Tensor:
    """`chain` for rows with the same order of steps."""
    active = [active_steps(sampling) for sampling in rows.sampling]
    kind = type(rows.sampling[0])
    begun = False
    for name, settings in steps_of(kind).items():
        if not begun and not any(samplers_of(kind)[setting].adjusts for setting in settings):
            x, begun = _rounded(x, dtype), True
        places = [place for place, steps in enumerate(active) if name in steps]
        if len(places) == len(active):
            x = CHAIN[name](x, rows)
        elif places:
            x = x.index_put((torch.tensor(places, device=x.device),), CHAIN[name](x[places], rows.of(places)))
    return x if begun else _rounded(x, dtype)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.float().to(dtype)


# -- adjustments -------------------------------------------------------------------------------------------------------------


@step
def logit_bias(x: Tensor, rows: Rows) -> Tensor:
    """Addends of single tokens, as OpenAI has them."""
    at, records = rows.adjusted_tokens()
    return x.index_put(at, x[at] + rows.tensor(records["bias"]))


@step
def penalties(x: Tensor, rows: Rows) -> Tensor:
    """Penalties of tokens that came before.

    ``repetition_penalty`` is Hugging Face's (Keskar et al. 2019), over prompt and completion: a positive logit is divided by
    it, a negative one multiplied. ``frequency_penalty`` (a count at a time) and ``presence_penalty`` are OpenAI's and vLLM's,
    over the completion alone.
    """
    at, records = rows.adjusted_tokens()
    repetition, frequency, presence = (
        rows.column(name)[at[0], 0] for name in ("repetition_penalty", "frequency_penalty", "presence_penalty")
    )
    seen, count = rows.tensor(records["seen"]), rows.tensor(records["count"])
    value = x[at]
    value = torch.where(seen > 0, torch.where(value < 0, value * repetition, value / repetition), value)
    return x.index_put(at, value - (count * frequency + (count > 0).to(value.dtype) * presence))


# -- temperature and truncation ----------------------------------------------------------------------------------------------


@step
def temperature(x: Tensor, rows: Rows) -> Tensor:
    """Logits over temperature."""
    return x / rows.column("temperature").to(x.dtype)


@step
def top_k(x: Tensor, rows: Rows) -> Tensor:
    """The k greatest, and ties with the k-th, as nanoGPT keeps them."""
    k = [min(sampling.top_k or x.shape[-1], x.shape[-1]) for sampling in rows.sampling]
    places = torch.tensor(k, device=x.device)[:, None] - 1
    return x.masked_fill(x < x.topk(max(k)).values.gather(-1, places), -torch.inf)


@step
def top_p(x: Tensor, rows: Rows) -> Tensor:
    """The fewest likeliest tokens whose mass reaches p, the lower id first among equals (Holtzman et al. 2020).

    A token is kept while those before it weigh less than p times all of them, where a weight is ``exp(x - max)``. Equal logits
    have the weight 1, whose sums are exact; probabilities would be rounded first, and miss a mass of exactly p.
    """
    p = rows.column("top_p")
    exponents, order = x.to(p.dtype).sort(stable=True, dim=-1, descending=True)
    reached = (exponents - exponents[:, :1]).exp().cumsum(-1)
    before = torch.cat([torch.zeros_like(reached[:, :1]), reached[:, :-1]], -1)
    dropped = (before >= p * reached[:, -1:]) & (p < 1)
    return x.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)


@step
def min_p(x: Tensor, rows: Rows) -> Tensor:
    """Tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024)."""
    return x.masked_fill(x < x.amax(-1, keepdim=True) + rows.column("min_p").log().to(x.dtype), -torch.inf)
