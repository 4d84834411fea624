"""The records of ``sampling.logprobs`` for sampled tokens: ranks, and the likeliest tokens at each position.

Ranks and alternatives come from comparing logits, without rounding. Log-probabilities are that of the sampled token, as
measured when it was sampled, plus differences of logits. So a record is batch-invariant if the logits are, and its sums are
those of the sample's means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..records import LOGPROB_DIGITS, TokenLogprobs


def token_logprobs(logits: Tensor, records: npt.NDArray[Any], alternatives: Sequence[int]) -> list[TokenLogprobs]:
    """The records of tokens that have just been sampled.

    Args:
        logits: ``[sequences, vocab_size]``, floating point; ``records["logits_row"]`` is each row's index into them.
        records: `ROW` records ``[rows]``.
        alternatives: the number of alternatives that each row requests; fewer if the vocabulary is smaller.
    """
    read, place = np.unique(records["logits_row"], return_inverse=True)  # rows that share a sequence share their alternatives
    x = logits[torch.from_numpy(read).to(logits.device)].float()
    ids, values = likeliest(x, min(max(alternatives), x.shape[-1]))
    at = torch.from_numpy(place).to(x.device)
    own = x[at, torch.from_numpy(records["token"].copy()).to(x.device)]
    ranks = torch.stack([1 + (x[each] > logit).sum() for each, logit in zip(place.tolist(), own, strict=True)]).tolist()
    above = (values.double()[at] - own.double()[:, None]).cpu().numpy() + records["logprob"][:, None]
    top_logprobs = (above.round(LOGPROB_DIGITS) + 0.0).tolist()
    top_ids = ids.tolist()
    measured = (records[name].tolist() for name in ("logprob", "sampler_logprob", "entropy", "survivors"))
    return [
        TokenLogprobs(
            logprob=_rounded(logprob),
            sampler_logprob=_rounded(sampler_logprob),
            rank=rank,
            entropy=_rounded(entropy),
            survivors=survivors,
            top_ids=tuple(top_ids[shared][:n]),
            top_logprobs=tuple(tops[:n]),
        )
        for logprob, sampler_logprob, entropy, survivors, rank, shared, tops, n in zip(
            *measured, ranks, place.tolist(), top_logprobs, alternatives, strict=True
        )
    ]


def likeliest(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The ``n`` largest logits of each row in descending order, lower ids first among equals.

    Args:
        x: ``float32 [rows, vocab_size]``.
        n: at most vocab_size.

    Returns:
        Ids ``int64 [rows, n]`` and logits ``float32 [rows, n]``.
    """
    values, ids = x.topk(n)
    # topk may choose any of several equal logits; only the last one chosen can be equal to one left out.
    tied = ((x >= values[:, -1:]).sum(-1) > n).nonzero()[:, 0].tolist()
    for row in tied:
        least = values[row, -1]
        first = (x[row] == least).nonzero()[:, 0][: int((values[row] == least).sum())]
        ids[row, n - len(first) :] = first
    by_id = ids.argsort(-1)
    ids, values = ids.gather(-1, by_id), values.gather(-1, by_id)
    order = values.argsort(stable=True, dim=-1, descending=True)
    return ids.gather(-1, order), values.gather(-1, order)


def _rounded(number: float) -> float:
    return round(number, LOGPROB_DIGITS) + 0.0  # turns -0.0 into 0.0
