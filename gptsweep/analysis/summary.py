"""From the samples of a point to its row of ``summary.csv``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..records import FINISH_REASONS


def summarise(settings: Mapping[str, object], samples: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """The row of ``summary.csv``: ``settings``, then counts, and means and standard deviations over the samples.

    Args:
        settings: the point's own columns, in their order.
        samples: lines of ``samples.jsonl``.

    Returns:
        ``settings``; ``num_prompts``, ``num_samples`` (over all prompts); ``finish_length``, ``finish_stop``, ``finish_eot``,
        ``finish_overflow``; ``prompt_tokens`` and ``completion_tokens`` (sums); ``logprob_mean``, ``logprob_std`` and the
        same for ``sampler_logprob`` and ``entropy`` in nats, over the samples that have one: the standard deviation with
        n - 1, as pandas has it. None where there are too few.
    """
    reasons = Counter(sample["finish_reason"] for sample in samples)
    row = dict(settings)
    row["num_prompts"] = len({sample["prompt_index"] for sample in samples})
    row["num_samples"] = len(samples)
    row.update({f"finish_{reason}": reasons[reason] for reason in FINISH_REASONS})
    for count in ("prompt_tokens", "completion_tokens"):
        row[count] = sum(sample[count] for sample in samples)
    for name in ("logprob", "sampler_logprob", "entropy"):
        values = [float(sample[f"{name}_mean"]) for sample in samples if sample[f"{name}_mean"] is not None]
        # fsum is exact, so that the order of the samples does not show.
        mean = math.fsum(values) / len(values) if values else None
        row[f"{name}_mean"] = mean
        row[f"{name}_std"] = (
            None
            if mean is None or len(values) < 2
            else math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
        )
    return row
