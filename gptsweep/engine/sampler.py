"""From logits to the next token: by the plain chain and the Gumbel-max trick in torch, by the kernel, or as nanoGPT does."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.abi import BLOCK, ROW, STEPS
from ..records import SAMPLERS, Row, Sampling, active_steps, samplers_of, steps_of
from .chain import Rows, chain, mirostat_mu, summed
from .history import LogitAdjustments
from .noise import gumbel, precise_dtype

if TYPE_CHECKING:  # numba has no wheel for some platforms
    from ..kernels.runtime import Kernel

_RECORDED = tuple((name, SAMPLERS[name].off) for name in ROW.names or () if name in SAMPLERS)
"""The samplers in `ROW`, in order, and the values that represent None."""


def row_record(row: Row) -> tuple[Any, ...]:
    """The `ROW` record of a row without tokens."""
    settings = [(getattr(row.sampling, name), off) for name, off in _RECORDED]
    return (
        0,
        *(off if value is None else value for value, off in settings),
        *(row.noise_key, 0, row.sample_index, row.prompt_index, 0, 0),
        *(_kernel_steps(row.sampling), 0.0, 0, 0, 0, 0),
        *(-1, 0, 0.0, 0.0, 0.0),
    )


_ADJUSTING = ("logit_bias", "penalties", "dry")
_IN_ORDER = ("temperature", "top_k", "top_p", "min_p")
_AFTER_TOP_K = ("typical_p", "top_p", "xtc", "mirostat")
"""Steps after which the kernel no longer knows the k largest remaining logits."""


@lru_cache(4096)
def kernel_samples(sampling: Sampling) -> bool:
    """Whether the kernel ``sample`` has every step that a row uses, in the row's order; adjustments must come first."""
    declared, steps = samplers_of(type(sampling)), steps_of(type(sampling))
    active = active_steps(sampling)
    if any(declared[name].kernel is None for step in active for name in steps[step]):
        return False
    adjusting = [step for step in active if declared[steps[step][0]].adjusts]
    summing = [step for step in adjusting if step in _ADJUSTING]
    before_top_k = active[: active.index("top_k")] if "top_k" in active else ()
    return (
        list(active[: len(adjusting)]) == adjusting
        and summing == sorted(summing, key=_ADJUSTING.index)
        and not set(_AFTER_TOP_K).intersection(before_top_k)
    )


def _kernel_steps(sampling: Sampling) -> int:
    """The ``steps`` of a row's `ROW` record."""
    active = [step for step in active_steps(sampling) if step in STEPS] if kernel_samples(sampling) else []
    places = [_IN_ORDER.index(step) if step in _IN_ORDER else -1 for step in active]
    if (places == sorted(places) and -1 not in places and not sampling.dynatemp_range) or not active:
        return 0
    return sum(STEPS.index(step) + 1 << 4 * place for place, step in enumerate(active))


# -- sampling ----------------------------------------------------------------------------------------------------------------


def sample(logits: Tensor, records: npt.NDArray[Any], rows: Rows) -> None:
    """Sample the next token of every row, and write it and its statistics into its record.

    The token is argmax(x + noise) for the logits x after `chain`; for a greedy row argmax(x).

    Args:
        logits: ``[sequences, vocab_size]``, floating point; ``records["logits_row"]`` is each row's index into them.
        records: `ROW` records.
        rows: the settings of the rows, in the same order. ``survivors`` is written if a row requests logprobs.
    """
    device, precise = logits.device, precise_dtype(logits.device)
    own = logits[rows.integers(records["logits_row"].astype(np.int64))]
    logprobs = own.to(precise).log_softmax(-1)
    x = chain(own, rows, precise)
    greedy = torch.tensor([sampling.temperature == 0 for sampling in rows.sampling], device=device)
    token = torch.where(greedy, x.argmax(-1), (x + _noise(x, rows)).argmax(-1))
    of_token = token[:, None]
    found = torch.stack([
        token.to(precise),  # exact: both dtypes represent every token id
        logprobs.gather(-1, of_token)[:, 0],
        x.log_softmax(-1).gather(-1, of_token)[:, 0].masked_fill(greedy, 0.0),
        -summed(logprobs.exp() * logprobs)[:, 0],
    ]).cpu()  # fmt: skip
    for name, values in zip(("token", "logprob", "sampler_logprob", "entropy"), found.numpy(), strict=True):
        records[name] = values
    if any(sampling.logprobs for sampling in rows.sampling):
        records["survivors"] = (x > -torch.inf).sum(-1).masked_fill(greedy, 1).cpu().numpy()


def _noise(x: Tensor, rows: Rows) -> Tensor:
    """The Gumbel noise of the tokens that are left in ``x [rows, vocab_size]``; 0 for most others.

    Noise for a whole vocabulary would take most of a step on a GPU, and truncation usually leaves few tokens.
    """
    n_rows, vocab_size = x.shape
    n_quads = -(-vocab_size // 4)
    left = F.pad(x > -torch.inf, (0, 4 * n_quads - vocab_size)).view(n_rows, n_quads, 4).any(-1)
    row, quad = left.nonzero(as_tuple=True)
    noise = torch.zeros(n_rows, n_quads, 4, dtype=x.dtype, device=x.device)
    noise[row, quad] = gumbel(quad, **{name: values[row] for name, values in rows.noise_at().items()})
    return noise.view(n_rows, -1)[:, :vocab_size]


def chained_probabilities(
    logits: Tensor,
    sampling: Sampling,
    prompt_ids: tuple[int, ...],
    completion_ids: tuple[int, ...],
    dry_breakers: tuple[tuple[int, ...], ...],
) -> Tensor:
    """The distribution ``[vocab_size]`` that `sample` draws from: the softmax of one row's logits after `chain`.

    XTC's coin is averaged over; Mirostat is at its first token.
    """
    if 0 < (excludes := sampling.xtc_probability) < 1:
        never, always = (
            chained_probabilities(logits, replace(sampling, xtc_probability=p), prompt_ids, completion_ids, dry_breakers)
            for p in (0.0, 1.0)
        )
        return (1 - excludes) * never + excludes * always
    adjustments = LogitAdjustments(sampling, len(logits), prompt_ids=prompt_ids, dry_breakers=dry_breakers)
    for token in completion_ids:
        adjustments.add(token)
    record = np.zeros(1, ROW)
    record["position"], record["mirostat_mu"] = len(completion_ids), mirostat_mu(sampling, 0, 0.0)
    x = chain(logits[None], Rows([sampling], [adjustments], record, logits.device), precise_dtype(logits.device))[0]
    if sampling.temperature == 0:
        return torch.zeros_like(x).index_fill(0, x.argmax(), 1.0)
    return x.softmax(-1)


def sample_by_kernel(
    kernel: Kernel, logits: Tensor, rows: npt.NDArray[Any], order: npt.NDArray[np.int64], vocab_size: int
) -> None:
    """`sample` with a kernel, for ``rows[order]``, in place.

    Args:
        kernel: ``sample`` for the dtype of ``logits``.
        logits: ``[sequences, at least vocab_size]``.
        rows: `ROW` records; their ``adjustments`` are addresses of arrays that must stay alive.
        order: ``[rows]``, indices into ``rows``; rows with the same logits are adjacent.
        vocab_size: ids from here on are never sampled.
    """
    places = (-(-vocab_size // BLOCK) + 1) * BLOCK
    longest = int(rows["n_text"][order].max(initial=0))
    kernel(
        n_rows=len(order),
        stride=logits.shape[-1],
        vocab_size=vocab_size,
        logits=logits.data_ptr(),
        rows=rows,
        order=order,
        chunk=max(1, len(order) // 32),
        # ids, weights, logits, marks, the maximum of each block, noise words, keys, lengths of repetitions
        scratch=36 * places + 4 * BLOCK + 8 * (longest + 1),
    )


def stream_at(state: bytes) -> torch.Generator:
    """A random stream that continues from the saved state of another.

    Raises:
        RuntimeError: ``state`` is not the state of a torch generator.
    """
    generator = torch.Generator()
    generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    return generator


def nanogpt_sample(logits: Tensor, rows: Rows, generator: torch.Generator) -> tuple[int, float, int]:
    """Draw the next token as nanoGPT's ``generate`` does: top_k, a softmax over the vocabulary, ``multinomial``.

    Args:
        logits: ``float32 [vocab_size]``, on the CPU like the stream, so that a seed gives one text on any device.
        rows: the row's settings, of which nanoGPT has temperature and top_k.
        generator: the stream that all samples draw from in turn.

    Returns:
        The token, its log-probability under the distribution drawn from, and the number of tokens in that distribution.
    """
    x = chain(logits[None], rows, torch.float32)[0]
    if rows.sampling[0].temperature == 0:
        return int(x.argmax()), 0.0, 1
    token = int(torch.multinomial(x.softmax(-1), 1, generator=generator))
    return token, float(x.double().log_softmax(-1)[token]), int((x > -torch.inf).sum())
