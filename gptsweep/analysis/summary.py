"""Compute a point's row of ``summary.csv`` from its samples: counts and every metric."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..records import FINISH_REASONS, FINISH_REASONS_OF_0_1
from .metrics import METRICS, Metric, Outcome, Record, Text, Texts


def summary_of(samples: Sequence[Record]) -> dict[str, Any]:
    """Counts and metrics of a point's samples, as in ``summary.csv``."""
    return summarise({}, samples) | text_metrics(samples)


def summarise(settings: Mapping[str, object], samples: Sequence[Record]) -> dict[str, object]:
    """The first columns of ``summary.csv``: ``settings``, then counts, and means and standard deviations over the samples.

    Args:
        settings: the point's own columns, in order.
        samples: lines of ``samples.jsonl``.

    Returns:
        ``settings``; ``num_prompts``, ``num_samples`` (over all prompts); ``finish_length``, ``finish_stop``, ``finish_eot``,
        ``finish_overflow``, and, if any, ``finish_repetition``; ``prompt_tokens`` and ``completion_tokens`` (sums);
        ``logprob_mean``, ``logprob_std`` and the same for every metric that has a ``deviation``, over the samples with a value.
        The standard deviation has n - 1 in the denominator, as in pandas. None where there are too few samples.
    """
    reasons = Counter(sample["finish_reason"] for sample in samples)
    row = dict(settings)
    row["num_prompts"] = len({sample["prompt_index"] for sample in samples})
    row["num_samples"] = len(samples)
    row.update({f"finish_{end}": reasons[end] for end in FINISH_REASONS if reasons[end] or end in FINISH_REASONS_OF_0_1})
    for count in ("prompt_tokens", "completion_tokens"):
        row[count] = sum(sample[count] for sample in samples)
    for metric in METRICS.values():
        if metric.deviation:
            values = [float(value) for sample in samples if (value := metric.value(Text(sample))) is not None]
            # fsum is exact, so that the result does not depend on the order of the samples.
            mean = math.fsum(values) / len(values) if values else None
            row[metric.name] = mean
            row[metric.deviation] = (
                None
                if mean is None or len(values) < 2
                else math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
            )
    return row


def text_metrics(samples: Sequence[Record]) -> dict[str, float | None]:
    """Every metric of one point that `summarise` does not give.

    The result does not depend on the order of ``samples``. ``None`` marks a metric that cannot be computed; `metric_reasons`
    says why.

    Args:
        samples: lines of ``samples.jsonl``; read are ``prompt_index``, ``seed``, ``sample_index``, ``completion``,
            ``token_ids``, ``finish_reason`` and each metric's ``field``.
    """
    return {name: None if isinstance(outcome, str) else outcome for name, outcome in outcomes(samples).items()}


def metric_reasons(samples: Sequence[Record]) -> dict[str, str]:
    """Why `text_metrics` leaves metrics of these samples empty, by name."""
    return {name: outcome for name, outcome in outcomes(samples).items() if isinstance(outcome, str)}


def outcomes(samples: Sequence[Record]) -> dict[str, Outcome]:
    """The value or reason of every metric of `text_metrics` and of its standard error: metrics per sample, then per point."""
    texts = Texts(Text(sample) for sample in sorted(samples, key=place))
    texts.count_ngrams()
    found: dict[str, Outcome] = {}
    for metric in METRICS.values():
        if metric.per == "sample" and not metric.deviation:
            known = [(value, text) for text in texts if (value := metric.value(text)) is not None]
            if metric.pooled:
                tokens = [(value, count) for value, text in known if (count := len(text.record["token_ids"]))]
                found[metric.name], found[metric.spread] = token_mean(tokens, metric)
            else:
                found[metric.name], found[metric.spread] = sample_mean([value for value, _ in known], metric)
    for metric in METRICS.values():
        if metric.of_point is not None:
            found[metric.name] = metric.of_point(texts)
    return found


def place(sample: Record) -> tuple[int, int, int, str]:
    """Sort key of a sample within its point."""
    return sample["prompt_index"], sample["seed"], sample["sample_index"], sample["completion"]


def sample_mean(values: Sequence[float], metric: Metric) -> tuple[Outcome, Outcome]:
    """Mean over samples, and its standard error (n - 1 in the variance)."""
    if not values:
        return f"needs {metric.needs}", f"needs {metric.needs}"
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return scaled(mean, None, metric)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return scaled(mean, (math.sqrt(variance / len(values)), 1.0), metric)


def token_mean(values: Sequence[tuple[float, int]], metric: Metric) -> tuple[Outcome, Outcome]:
    """Mean over samples weighted by tokens, and its standard error.

    The error is that of the ratio (sum of value times tokens) / (sum of tokens) over samples, to first order.

    Args:
        values: value and number of tokens of each sample.
        metric: the metric.
    """
    if not values:
        return f"needs {metric.needs}", f"needs {metric.needs}"
    total = sum(tokens for _, tokens in values)
    mean = math.fsum(value * tokens for value, tokens in values) / total
    if (n := len(values)) == 1:
        return scaled(mean, None, metric)
    squares = math.fsum((tokens * (value - mean)) ** 2 for value, tokens in values)
    return scaled(mean, (math.sqrt(squares * n / (n - 1)), total), metric)


def scaled(mean: float, error: tuple[float, float] | None, metric: Metric) -> tuple[Outcome, Outcome]:
    """Mean and error on the metric's own scale; ``error`` is (numerator, denominator), None if there is one sample."""
    try:
        value = math.exp(-mean) if metric.exponential else mean
    except OverflowError:
        return "is greater than a number can be", "is greater than a number can be"
    if error is None:
        return value, "needs two samples"
    return value, (value if metric.exponential else 1.0) * error[0] / error[1]
