"""What the text of a point is like: definitions, units and sources of every metric in ``summary.csv``.

Two ways to cut a text are used, as the sources do. *Tokens* are the model's own token ids, as sampled (``token_ids``; the
closing end-of-text token of a sample that finished with ``eot`` is left out). *Words* are what whitespace separates in the
completion (`str.split`). The prompt is never counted.

A metric ``per`` sample is the mean over the point's samples, and ``<name>_se`` beside it is the standard error of that
mean. A metric ``per`` point is a property of all its samples taken together: it depends on how much text there is, so
compare it between points of equal ``num_samples`` and length. No metric is best by itself: the lowest perplexity and the
highest diversity are both bad text (Holtzman et al. 2020, Table 1); a reference text says where good text lies.

Sources: Li et al. 2016, A Diversity-Promoting Objective Function for Neural Conversation Models; Zhu et al. 2018, Texygen;
Welleck et al. 2019, Neural Text Generation with Unlikelihood Training; Holtzman et al. 2020, The Curious Case of Neural Text
Degeneration; Su et al. 2022, A Contrastive Framework for Neural Text Generation; Shaib et al. 2024, Standardizing the
Measurement of Text Diversity.
"""

from __future__ import annotations

import gzip
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np

SELF_BLEU_REFERENCES = 4
"""References a sample is held against in self-BLEU; fixed, because self-BLEU rises with their number."""
SELF_BLEU_GROUPS = 40
"""At most this many groups of ``SELF_BLEU_REFERENCES + 1`` samples are compared in one point, so that its cost is bounded."""
ZIPF_RANKS = 5_000
ZIPF_MIN_TYPES = 10
REPEAT_MAX_PHRASE = 90

Record = Mapping[str, Any]
"""A line of ``samples.jsonl``."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of ``summary.csv``: how people read it. ``unit`` is ``share`` (0 to 1), ``nats``, ``tokens`` or empty."""

    name: str
    label: str
    per: Literal["sample", "point"]
    unit: str
    meaning: str


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "perplexity",
            "Perplexity",
            "sample",
            "",
            "exp of minus the mean log-probability of a token, at temperature 1",
        ),
        Metric(
            "sampler_perplexity",
            "Sampler perplexity",
            "sample",
            "",
            "the same under the distribution that was sampled from",
        ),
        Metric(
            "logprob_mean", "Log-probability", "sample", "nats", "mean log-probability of a token at temperature 1, by sample"
        ),
        Metric(
            "sampler_logprob_mean",
            "Sampler log-probability",
            "sample",
            "nats",
            "mean log-probability of a token as it was sampled from, by sample",
        ),
        Metric(
            "entropy_mean", "Entropy", "sample", "nats", "mean entropy of the model's next-token distribution at temperature 1"
        ),
        Metric(
            "seq_rep_4", "Repetition (seq-rep-4)", "sample", "share", "share of a sample's token 4-grams that it already held"
        ),
        Metric(
            "diversity",
            "Diversity",
            "sample",
            "share",
            "product over n = 2, 3, 4 of the share of word n-grams that are distinct",
        ),
        Metric(
            "ends_repeating", "Ends repeating", "sample", "share", "share of samples that end in a phrase said again and again"
        ),
        Metric("distinct_1", "Distinct-1", "point", "share", "distinct words over all words of the point"),
        Metric("distinct_2", "Distinct-2", "point", "share", "distinct word pairs over all words of the point"),
        Metric("distinct_3", "Distinct-3", "point", "share", "distinct word triples over all words of the point"),
        Metric(
            "self_bleu_4",
            "Self-BLEU-4",
            "point",
            "share",
            f"BLEU-4 of a sample against {SELF_BLEU_REFERENCES} others of its prompt; high means alike",
        ),
        Metric("unique_samples", "Unique samples", "point", "share", "different completions of a prompt over its samples"),
        Metric(
            "zipf", "Zipf coefficient", "point", "", "slope of log frequency against log rank of tokens; human text is near 1"
        ),
        Metric("compression_ratio", "Compression ratio", "point", "", "bytes of all completions over their bytes after gzip"),
        Metric("completion_tokens_mean", "Length", "sample", "tokens", "mean number of sampled tokens"),
    )
}
"""Every metric by its column name, in the order they are shown."""

STANDARD_ERROR = {"logprob_mean": "logprob_std", "sampler_logprob_mean": "sampler_logprob_std", "entropy_mean": "entropy_std"}
"""Metrics whose spread is written as a standard deviation over samples; the others have ``<name>_se``."""

Outcome = float | str
"""A metric's value, or the reason why there is none."""


def text_metrics(samples: Sequence[Record]) -> dict[str, float | None]:
    """The text metrics of one point: every metric here but the ones that the sampler itself reports.

    The result does not depend on the order of ``samples``. ``None`` stands where a metric cannot be computed; for the reason
    see `metric_reasons`.

    Args:
        samples: lines of ``samples.jsonl``; read are ``prompt_index``, ``seed``, ``sample_index``, ``completion``,
            ``token_ids``, ``finish_reason``, ``logprob_mean`` and ``sampler_logprob_mean``.
    """
    return {name: None if isinstance(outcome, str) else outcome for name, outcome in outcomes(samples).items()}


def metric_reasons(samples: Sequence[Record]) -> dict[str, str]:
    """Why the metrics that `text_metrics` leaves empty for these samples are empty, by name."""
    return {name: outcome for name, outcome in outcomes(samples).items() if isinstance(outcome, str)}


def outcomes(samples: Sequence[Record]) -> dict[str, Outcome]:
    """Value or reason of every text metric, standard errors included."""
    samples = sorted(samples, key=place)
    texts = [str(sample["completion"]) for sample in samples]
    words = [text.split() for text in texts]
    tokens = [text_tokens(sample) for sample in samples]
    grams = [[ngrams(each, n) for n in (1, 2, 3, 4)] for each in words]
    prompts = [sample["prompt_index"] for sample in samples]

    found: dict[str, Outcome] = {}
    for name, key in (("perplexity", "logprob_mean"), ("sampler_perplexity", "sampler_logprob_mean")):
        found[name], found[f"{name}_se"] = perplexity([(sample[key], len(sample["token_ids"])) for sample in samples])
    for name, values, wanted in (
        ("seq_rep_4", [seq_rep(each) for each in tokens], "a sample of at least 4 tokens"),
        ("diversity", [word_diversity(each) for each in grams], "a sample of at least 4 words"),
        ("ends_repeating", [float(ends_repeating(each)) for each in tokens], "a sample"),
        ("completion_tokens_mean", [float(len(sample["token_ids"])) for sample in samples], "a sample"),
    ):
        found[name], found[f"{name}_se"] = mean_and_error([value for value in values if value is not None], wanted)
    for n in (1, 2, 3):
        found[f"distinct_{n}"] = distinct(words, [each[n - 1] for each in grams])
    found["self_bleu_4"] = self_bleu(prompts, grams)
    found["unique_samples"] = len(set(zip(prompts, texts, strict=True))) / len(texts) if texts else "needs a sample"
    found["zipf"] = zipf(tokens)
    found["compression_ratio"] = compression_ratio(texts)
    return found


def place(sample: Record) -> tuple[int, int, int, str]:
    """Where a sample stands among those of its point, whatever order it came in."""
    return sample["prompt_index"], sample["seed"], sample["sample_index"], sample["completion"]


def text_tokens(sample: Record) -> list[int]:
    """The sample's tokens without the end-of-text token that closed it."""
    ids: list[int] = list(sample["token_ids"])
    return ids[:-1] if sample["finish_reason"] == "eot" else ids


def ngrams(items: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    """All runs of ``n`` items, in order: ``max(0, len(items) - n + 1)`` of them."""
    return list(zip(*(items[start:] for start in range(n)), strict=False))


def mean_and_error(values: Sequence[float], wanted: str) -> tuple[Outcome, Outcome]:
    """Mean, and standard error of the mean (n - 1 in the variance)."""
    if not values:
        return f"needs {wanted}", f"needs {wanted}"
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, "needs two samples"
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def perplexity(samples: Iterable[tuple[float | None, int]]) -> tuple[Outcome, Outcome]:
    """exp(-mean log-probability of a token), every token of the point counting the same, and its standard error.

    The error is that of the ratio (sum of log-probability) / (sum of tokens) over samples, to first order.

    Args:
        samples: mean log-probability in nats and number of tokens, by sample.
    """
    known = [(logprob, tokens) for logprob, tokens in samples if logprob is not None and tokens]
    if not known:
        return "needs a sample of at least 1 token", "needs a sample of at least 1 token"
    total = sum(tokens for _, tokens in known)
    mean = math.fsum(logprob * tokens for logprob, tokens in known) / total
    try:
        value = math.exp(-mean)
    except OverflowError:
        return "is greater than a number can be", "is greater than a number can be"
    n = len(known)
    if n == 1:
        return value, "needs two samples"
    squares = math.fsum((tokens * (logprob - mean)) ** 2 for logprob, tokens in known)
    return value, value * math.sqrt(squares * n / (n - 1)) / total


def seq_rep(tokens: Sequence[int], n: int = 4) -> float | None:
    """seq-rep-n (Welleck et al. 2019): 1 - (distinct n-grams) / (n-grams) of one sequence of model tokens."""
    every = ngrams(tokens, n)
    return 1 - len(set(every)) / len(every) if every else None


def word_diversity(grams: Sequence[Sequence[tuple[Any, ...]]]) -> float | None:
    """Diversity (Su et al. 2022): the product over n = 2, 3, 4 of 1 - rep-n, where rep-n = 1 - (distinct word n-grams) /
    (word n-grams) of one text, all of its n-grams counted (the published code leaves out the last).

    Args:
        grams: the text's word 1- to 4-grams.
    """
    return math.prod(len(set(every)) / len(every) for every in grams[1:]) if grams[3] else None


def ends_repeating(tokens: Sequence[int]) -> bool:
    """Whether a sequence of model tokens ends in a repeated phrase (Holtzman et al. 2020, and their published code).

    Of the phrase lengths up to 90, the one that stands most often in a row at the end is taken (the shortest of equals); it
    counts if it stands there at least twice and has at least 3 tokens, or more than 50 times whatever its length.
    """
    best_length, best_times = 0, 1
    end = len(tokens)
    for length in range(1, min(REPEAT_MAX_PHRASE, end // 2) + 1):
        if end < length * (best_times + 1) or tokens[end - 1] != tokens[end - 1 - length]:
            continue
        phrase, times = tokens[end - length :], 1
        while end >= length * (times + 1) and tokens[end - length * (times + 1) : end - length * times] == phrase:
            times += 1
        if times > best_times:
            best_length, best_times = length, times
    return best_times > 1 and (best_length >= 3 or best_times > 50)


def distinct(words: Sequence[Sequence[str]], grams: Iterable[Iterable[tuple[Any, ...]]]) -> Outcome:
    """distinct-n (Li et al. 2016): distinct n-grams of all texts together over the number of *words* of all texts."""
    total = sum(map(len, words))
    return len(set[object]().union(*grams)) / total if total else "needs a sample of at least 1 word"


def self_bleu(prompts: Sequence[int], grams: Sequence[Sequence[Sequence[tuple[Any, ...]]]]) -> Outcome:
    """self-BLEU-4 (Zhu et al. 2018): mean BLEU-4 of a sample against others of the same prompt as references.

    Zhu et al. use all others; here each sample has the 4 others of its group of five, so that the value means the same for
    any number of samples. Groups are consecutive samples of a prompt, in order; where they do not come out even the last group
    reaches back, and only its new samples count as hypotheses. At most 40 groups, evenly spread over the point, are used.
    Samples of fewer than 4 words are left out. BLEU on words, uniform weights, a precision of zero counted as 0.1 / n-grams
    (Chen and Cherry 2014, method 1, as in Texygen).

    Args:
        prompts: prompt index by sample, equal ones side by side.
        grams: word 1- to 4-grams by sample.
    """
    size = SELF_BLEU_REFERENCES + 1
    long_enough = [(prompt, every) for prompt, every in zip(prompts, grams, strict=True) if every[3]]
    groups: list[tuple[list[Sequence[Sequence[tuple[Any, ...]]]], int]] = []
    for _, members in groupby(long_enough, key=lambda member: member[0]):
        texts = [every for _, every in members]
        if len(texts) >= size:
            groups += [(texts[start : start + size], size) for start in range(0, len(texts) - size + 1, size)]
            if left := len(texts) % size:
                groups.append((texts[-size:], left))
    if not groups:
        return f"needs {size} samples of one prompt with at least 4 words each"
    step = max(1.0, len(groups) / SELF_BLEU_GROUPS)
    chosen = [groups[int(place * step)] for place in range(min(len(groups), SELF_BLEU_GROUPS))]
    scores = [score for group, counted in chosen for score in group_bleu(group)[size - counted :]]
    return math.fsum(scores) / len(scores)


def group_bleu(group: Sequence[Sequence[Sequence[tuple[Any, ...]]]]) -> list[float]:
    """BLEU-4 of each text against all others of the group.

    An n-gram counts at most as often as one of the others holds it. With its k-th occurrence in a text as an item of its own,
    the clipped count is the number of the text's items that any other text has too.
    """
    lengths = [len(grams[0]) for grams in group]
    logs = [0.0] * len(group)
    for n in range(4):
        items = [numbered(grams[n]) for grams in group]
        once: set[object] = set()
        shared: set[object] = set()
        for each in items:
            shared |= once & each
            once |= each
        for index, each in enumerate(items):
            matches = len(each & shared)
            logs[index] += math.log((matches or 0.1) / len(each)) if matches or n else -math.inf
    scores = []
    for index, length in enumerate(lengths):
        nearest = min(lengths[:index] + lengths[index + 1 :], key=lambda other: (abs(other - length), other))
        scores.append(math.exp(logs[index] / 4 + min(0.0, 1 - nearest / length)))
    return scores


def numbered(grams: Sequence[tuple[Any, ...]]) -> set[object]:
    """As many items as ``grams``: each gram, and for its k-th occurrence from the second on the pair of the two."""
    items: set[object] = set(grams)
    if len(items) < len(grams):
        items.update((gram, k) for gram, times in Counter(grams).items() for k in range(2, times + 1))
    return items


def zipf(tokens: Iterable[Sequence[int]]) -> Outcome:
    """Zipf coefficient (Holtzman et al. 2020): minus the slope of the least-squares line of log frequency against log rank,
    over the 5,000 most frequent model tokens of all samples together."""
    counts = sorted(Counter(token for each in tokens for token in each).values(), reverse=True)[:ZIPF_RANKS]
    if len(counts) < ZIPF_MIN_TYPES:
        return f"needs {ZIPF_MIN_TYPES} different tokens"
    rank = np.log(np.arange(1, len(counts) + 1))
    frequency = np.log(np.asarray(counts, dtype=np.float64))
    rank -= rank.mean()
    return max(0.0, -float(rank @ (frequency - frequency.mean()) / (rank @ rank)))


def compression_ratio(texts: Sequence[str]) -> Outcome:
    """Compression ratio (Shaib et al. 2024): UTF-8 bytes of all texts, a space between, over their bytes after gzip."""
    data = " ".join(texts).encode("utf-8", "replace")
    return len(data) / len(gzip.compress(data, mtime=0)) if data.strip() else "needs a sample with text"
