"""From logits to the next token, in plain torch: penalties, truncation, and the Gumbel-max trick.

Formulas here are the reference; the kernel ``sample`` computes the same faster on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..kernels.abi import ADJUSTMENT, BLOCK, ROW
from ..records import SAMPLERS, Row, Sampling
from .noise import gumbel, precise_dtype

if TYPE_CHECKING:  # numba has no wheel for some platforms
    from ..kernels.runtime import Kernel

_SUMMED_AT_ONCE = 32768
"""torch splits longer sums among its threads, so their bits would depend on the number of threads."""


_RECORDED = tuple((name, SAMPLERS[name].off) for name in ROW.names or () if name in SAMPLERS)
"""The samplers in `ROW`, in its order, and what stands for None."""


def row_record(row: Row) -> tuple[Any, ...]:
    """The `ROW` record of a row that has no token yet."""
    settings = [(getattr(row.sampling, name), off) for name, off in _RECORDED]
    return (
        0,
        *(off if value is None else value for value, off in settings),
        *(row.noise_key, 0, row.sample_index, row.prompt_index, 0, 0),
        *(-1, 0.0, 0.0, 0.0),
    )


class LogitAdjustments:
    """What logit_bias and the penalties change in a row's logits, kept up to date as the row grows.

    ``array`` holds `ADJUSTMENT` records, the first ``len(self)`` of which are in use; ``capacity`` is how many of them the
    penalties may need. Its memory stays where it is, as kernels are given its address.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int], capacity: int) -> None:
        self._penalises = sampling.penalises
        self._place: dict[int, int] = {}
        self.array = np.zeros(len(sampling.logit_bias) + capacity, ADJUSTMENT)
        for token, addend in sampling.logit_bias:
            self._record(token)["bias"] = addend
        if sampling.penalises:
            for token in prompt_ids:
                self._record(token)["seen"] = 1

    def __len__(self) -> int:
        return len(self._place)

    def add(self, token: int) -> None:
        """Count ``token``, which has just been sampled."""
        if self._penalises:
            record = self._record(token)
            record["seen"] = 1
            record["count"] += 1

    def _record(self, token: int) -> Any:
        place = self._place.setdefault(token, len(self._place))
        self.array[place]["id"] = token
        return self.array[place]


# -- sampling ----------------------------------------------------------------------------------------------------------------


def sample(
    logits: Tensor, rows: np.ndarray[Any, np.dtype[Any]], adjustments: list[np.ndarray[Any, np.dtype[Any]] | None]
) -> None:
    """Sample the next token of every row, and write it and its statistics into ``rows``.

    The order is Hugging Face's and vLLM's: logit_bias, repetition, frequency and presence penalty, temperature, top_k, top_p,
    min_p; then argmax(logits / temperature + noise).

    Args:
        logits: ``[sequences, vocab_size]``, floating point; ``rows["logits_row"]`` is the index of a row's.
        rows: `ROW` records.
        adjustments: the row's `ADJUSTMENT` records, or None.
    """
    device, precise = logits.device, precise_dtype(logits.device)

    def column(name: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(rows[name])).to(device, precise)

    def integers(name: str) -> Tensor:
        return torch.from_numpy(rows[name].astype(np.int64)).to(device)

    raw = logits.to(precise)[integers("logits_row")]
    logprobs = raw.log_softmax(-1)
    x = raw.clone()
    for i, adjustment in enumerate(adjustments):
        if adjustment is not None:
            x[i] = adjusted(x[i], rows[i], adjustment)
    temperature = column("temperature")[:, None]
    greedy = temperature == 0
    scaled = truncated(x / temperature.where(~greedy, torch.ones_like(temperature)), rows)
    keys = rows["noise_key"].astype(np.uint64)
    halves = np.stack([keys & np.uint64(0xFFFFFFFF), keys >> np.uint64(32)], -1).astype(np.int64)
    noise = gumbel(x.shape[-1], key=torch.from_numpy(halves).to(device), position=integers("position"),
                   sample_index=integers("sample_index"), prompt_index=integers("prompt_index"))  # fmt: skip
    token = torch.where(greedy[:, 0], x.argmax(-1), (scaled + noise).argmax(-1))
    sampler = scaled.log_softmax(-1).gather(-1, token[:, None])[:, 0].masked_fill(greedy[:, 0], 0.0)
    rows["token"] = token.cpu().numpy()
    rows["logprob"] = logprobs.gather(-1, token[:, None])[:, 0].cpu().numpy()
    rows["sampler_logprob"] = sampler.cpu().numpy()
    rows["entropy"] = -summed(logprobs.exp() * logprobs).cpu().numpy()


def sample_by_kernel(
    kernel: Kernel, logits: Tensor, rows: npt.NDArray[Any], order: npt.NDArray[np.int64], vocab_size: int
) -> None:
    """`sample` by a kernel, for ``rows[order]``, in place.

    Args:
        kernel: ``sample`` in the dtype of ``logits``.
        logits: ``[sequences, at least vocab_size]``.
        rows: `ROW` records; their ``adjustments`` are the addresses of arrays that still live.
        order: ``[rows]``, places in ``rows``; those with the same logits one after another.
        vocab_size: ids from here on are never sampled.
    """
    places = (-(-vocab_size // BLOCK) + 1) * BLOCK
    kernel(
        n_rows=len(order),
        stride=logits.shape[-1],
        vocab_size=vocab_size,
        logits=logits.data_ptr(),
        rows=rows,
        order=order,
        chunk=max(1, len(order) // 32),
        scratch=28 * places + 4 * BLOCK,  # ids, weights, logits, marks, the greatest of each block, noise words
    )


def adjusted(x: Tensor, row: Any, adjustment: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
    """One row's logits ``[vocab_size]`` after logit_bias and the penalties, computed in float64 and rounded to float32.

    ``repetition_penalty`` is Hugging Face's (Keskar et al. 2019), over prompt and completion: a positive logit is divided by
    it, a negative one multiplied. ``frequency_penalty`` (a count at a time) and ``presence_penalty`` are OpenAI's and vLLM's,
    over the completion alone.
    """
    precise = precise_dtype(x.device)
    ids = torch.from_numpy(adjustment["id"].copy()).to(x.device)
    bias, seen, count = (torch.from_numpy(adjustment[name].copy()).to(x.device, precise) for name in ("bias", "seen", "count"))
    value = x[ids].to(precise) + bias
    penalty = float(row["repetition_penalty"])
    value = torch.where(seen > 0, torch.where(value < 0, value * penalty, value / penalty), value)
    # Make the flag a number first: torch multiplies a bool by a Python float in float32.
    present = (count > 0).to(precise)
    value = value - (count * float(row["frequency_penalty"]) + present * float(row["presence_penalty"]))
    return x.index_put((ids,), value.float().to(x.dtype))


def truncated(scaled: Tensor, rows: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
    """Logits over temperature ``[rows, vocab_size]`` with what top_k, top_p and min_p drop set to -inf.

    ``top_k`` keeps ties with the k-th, as nanoGPT does. ``top_p`` (Holtzman et al. 2020) keeps the fewest likeliest tokens
    whose mass reaches p, the lower id first among equals. ``min_p`` (Nguyen et al. 2024) keeps what is at least min_p times
    as likely as the likeliest.
    """
    vocab_size = scaled.shape[-1]
    for i, row in enumerate(rows):
        x = scaled[i]
        if 0 < row["top_k"] < vocab_size:
            x = x.masked_fill(x < x.topk(int(row["top_k"])).values[-1], -torch.inf)
        scaled[i] = truncated_tail(x, float(row["top_p"]), float(row["min_p"]))
    return scaled


def truncated_tail(x: Tensor, top_p: float, min_p: float) -> Tensor:
    """``x [vocab_size]`` with what top_p, then min_p drop set to -inf; 1 and 0 switch them off.

    A token is kept while those before it weigh less than ``top_p`` times all of them, where a weight is ``exp(x - max)``. Equal
    logits have the weight 1, whose sums are exact; probabilities would be rounded first, and miss a mass of exactly ``top_p``.
    """
    if top_p < 1:
        order = torch.argsort(x, descending=True, stable=True)
        exponents = x.to(precise_dtype(x.device))
        weights = (exponents[order] - exponents.max()).exp()
        reached = weights.cumsum(-1)
        before = torch.cat([torch.zeros_like(reached[:1]), reached[:-1]])
        x = x.index_fill(0, order[before >= top_p * reached[-1]], -torch.inf)
    if min_p > 0:
        x = x.masked_fill(x < x.max() + math.log(min_p), -torch.inf)
    return x


def summed(x: Tensor) -> Tensor:
    """The sums over the last axis, with the same bits on any number of threads."""
    return torch.stack([x[..., i : i + _SUMMED_AT_ONCE].sum(-1) for i in range(0, x.shape[-1], _SUMMED_AT_ONCE)]).sum(0)


def stream_at(state: bytes) -> torch.Generator:
    """A random stream that continues from the state of another.

    Raises:
        RuntimeError: ``state`` is not the state of a torch generator.
    """
    generator = torch.Generator()
    generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    return generator


def nanogpt_sample(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[int, float]:
    """The next token as nanoGPT's ``generate`` draws it: top_k, a softmax over the whole vocabulary, ``multinomial``.

    Args:
        logits: ``float32 [vocab_size]``, penalties applied; on the CPU, as the stream is: a seed means one text on any device.
        sampling: the row's settings; top_p and min_p, which nanoGPT does not have, come after top_k.
        generator: the stream that all samples draw from in turn.

    Returns:
        The token, and its log-probability under the distribution drawn from.
    """
    if sampling.temperature == 0:
        return int(logits.argmax()), 0.0
    scaled = logits / sampling.temperature
    if sampling.top_k is not None:
        threshold = scaled.topk(min(sampling.top_k, len(scaled))).values[-1]
        scaled = scaled.masked_fill(scaled < threshold, -torch.inf)
    scaled = truncated_tail(scaled, sampling.top_p or 1.0, sampling.min_p or 0.0)
    token = int(torch.multinomial(scaled.softmax(-1), 1, generator=generator))
    return token, float(scaled.double().log_softmax(-1)[token])
