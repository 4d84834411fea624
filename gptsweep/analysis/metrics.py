"""Metrics of text: definition, unit and source of every metric in ``summary.csv``.

As in the sources, text is split in two ways. *Tokens* are the model's own token ids, as sampled (``token_ids``, without the
final end-of-text token of a sample that finished with ``eot``). *Words* are separated by whitespace in the completion
(`str.split`). The prompt never counts.

The value of a metric ``per`` sample is the mean over the point's samples; the column ``<name>_se`` has the standard error of
that mean. A metric ``per`` point is a property of all its samples together and depends on how much text there is, so compare it
only between points of equal ``num_samples`` and length. No metric defines quality by itself: both the lowest perplexity and the
highest diversity mean bad text (Holtzman et al. 2020, Table 1). The values of a reference text show what good text has.

A metric is a function and its declaration in `METRICS`: ``summary.csv``, ``objective``, groups, comparisons, the review and the
page read nothing else. Over many samples its value is the mean over samples, or over all their tokens (``pooled``); some
metrics are defined only for a point (``of_point``).

Sources: Li et al. 2016, A Diversity-Promoting Objective Function for Neural Conversation Models; Zhu et al. 2018, Texygen;
Welleck et al. 2019, Neural Text Generation with Unlikelihood Training; Holtzman et al. 2020, The Curious Case of Neural Text
Degeneration; Su et al. 2022, A Contrastive Framework for Neural Text Generation; Shaib et al. 2024, Standardizing the
Measurement of Text Diversity.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np

from .ngrams import Ngrams, ngrams
from .self_bleu import SELF_BLEU_REFERENCES, self_bleu

ZIPF_RANKS = 5_000
ZIPF_MIN_TYPES = 10
REPEAT_MAX_PHRASE = 90

Record = Mapping[str, Any]
"""A line of ``samples.jsonl``."""
Outcome = float | str
"""A metric's value, or the reason why there is none."""


class Text:
    """A sample as metrics read it; tokens and words are split once and shared by all metrics.

    Args:
        record: its line of ``samples.jsonl``; this class reads ``completion``, ``token_ids`` (a list) and ``finish_reason``.
    """

    def __init__(self, record: Record) -> None:
        self.record = record

    @cached_property
    def tokens(self) -> list[int]:
        """The sample's tokens without the end-of-text token that closed it."""
        ids: list[int] = self.record["token_ids"]
        return list(ids[:-1] if self.record["finish_reason"] == "eot" else ids)

    @cached_property
    def words(self) -> list[str]:
        """The words of the completion."""
        return str(self.record["completion"]).split()

    @cached_property
    def distinct_words(self) -> tuple[int, int, int]:
        """Numbers of distinct word 2-, 3- and 4-grams; `Texts.count_ngrams` sets them for all samples of a point at once."""
        two, three, four = (len(set(ngrams(self.words, n))) for n in (2, 3, 4))
        return two, three, four

    @cached_property
    def distinct_tokens(self) -> int:
        """The number of distinct token 4-grams; `Texts.count_ngrams` sets it for all samples of a point at once."""
        return len(set(ngrams(self.tokens, 4)))


class Texts(list[Text]):
    """The samples of a point; their n-grams are counted together."""

    @cached_property
    def words(self) -> Ngrams:
        """The word n-grams of all samples."""
        return Ngrams.of_words([text.words for text in self])

    @cached_property
    def tokens(self) -> Ngrams:
        """The token n-grams of all samples."""
        return Ngrams.of_tokens([text.tokens for text in self])

    def count_ngrams(self) -> None:
        """Set ``distinct_words`` and ``distinct_tokens`` of every sample."""
        for text, tokens, *words in zip(
            self, self.tokens.distinct(4), *(self.words.distinct(n) for n in (2, 3, 4)), strict=True
        ):
            text.distinct_tokens = tokens
            text.distinct_words = words[0], words[1], words[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric: how it is computed and how it is displayed. One of ``field``, ``of_sample`` and ``of_point`` gives the value.

    Args:
        name: its column in ``summary.csv``.
        label: its display name.
        meaning: a one-line definition.
        unit: ``share`` (0 to 1), ``nats``, ``tokens`` or empty.
        field: the field of a line of ``samples.jsonl`` that has the sample's value.
        of_sample: computes the value of a sample; None if it has none.
        of_point: computes the value of a point from its samples, or returns the reason why there is none.
        pooled: the mean weights every token equally instead of every sample.
        exponential: the metric is exp(-mean) of those values.
        needs: what a sample needs to have a value; shown after "needs".
        deviation: the column of ``summary.csv`` with the standard deviation over samples. Without it, ``<name>_se`` has the
            standard error of the mean.
        rated: the value comes from ratings of pairs of samples, and only settings have one.
        direction: what ``--best`` looks for unless the user says; with ``none`` the user must say.
        default: whether it is shown if the user names no metrics.
        axis: its axis in the plot of quality against diversity, if it has one.
    """

    name: str
    label: str
    meaning: str
    unit: Literal["", "share", "nats", "tokens"] = ""
    field: str = ""
    of_sample: Callable[[Text], float | None] | None = None
    of_point: Callable[[Texts], Outcome] | None = None
    pooled: bool = False
    exponential: bool = False
    needs: str = "a sample"
    deviation: str = ""
    rated: bool = False
    direction: Literal["lower", "higher", "none"] = "none"
    default: bool = False
    axis: Literal["", "x", "y"] = ""

    @property
    def per(self) -> Literal["sample", "point", "pair"]:
        """What has a value: a sample, only a point, or a setting through pairs of samples."""
        return "pair" if self.rated else "sample" if self.of_point is None else "point"

    @property
    def spread(self) -> str:
        """The column of ``summary.csv`` that measures the spread over samples; empty if samples have no value."""
        return "" if self.per != "sample" else self.deviation or f"{self.name}_se"

    def value(self, text: Text) -> float | None:
        """The value of one sample, before ``exponential``."""
        found: float | None = text.record[self.field] if self.of_sample is None else self.of_sample(text)
        return found


def seq_rep_4(text: Text) -> float | None:
    """seq-rep-4 (Welleck et al. 2019): 1 - (distinct 4-grams) / (4-grams) of one sequence of model tokens."""
    every = len(text.tokens) - 3
    return 1 - text.distinct_tokens / every if every > 0 else None


def word_diversity(text: Text) -> float | None:
    """Diversity (Su et al. 2022): the product over n = 2, 3, 4 of 1 - rep-n, where rep-n = 1 - (distinct word n-grams) /
    (word n-grams) of one text. All n-grams count; the published code omits the last."""
    if (words := len(text.words)) < 4:
        return None
    two, three, four = text.distinct_words
    return two / (words - 1) * (three / (words - 2)) * (four / (words - 3))


def ends_repeating(tokens: Sequence[int]) -> bool:
    """Whether a sequence of model tokens ends in a repeated phrase (Holtzman et al. 2020, and their published code).

    Among phrase lengths up to 90, take the one that repeats most often at the end (the shortest if several do). It counts if it
    occurs at least twice in a row and has at least 3 tokens, or if it occurs more than 50 times, whatever its length.
    """
    best_length, best_times = 0, 1
    end = len(tokens)
    longest = min(REPEAT_MAX_PHRASE, end // 2)
    if not longest or (last := tokens[-1]) not in (before := tokens[end - 1 - longest : end - 1]):
        return False
    for length in [length for length, token in enumerate(reversed(before), start=1) if token == last]:
        if end < length * (best_times + 1):
            continue
        phrase, times = tokens[end - length :], 1
        while end >= length * (times + 1) and tokens[end - length * (times + 1) : end - length * times] == phrase:
            times += 1
        if times > best_times:
            best_length, best_times = length, times
    return best_times > 1 and (best_length >= 3 or best_times > 50)


def distinct(texts: Texts, n: int) -> Outcome:
    """distinct-n (Li et al. 2016): distinct n-grams of all texts together, divided by the number of *words* of all texts."""
    total = len(texts.words.items)
    return texts.words.distinct_together(n) / total if total else "needs a sample of at least 1 word"


def unique_share(texts: Sequence[Text]) -> Outcome:
    """Distinct completions divided by samples; equal completions of different prompts count as distinct."""
    different = {(text.record["prompt_index"], text.record["completion"]) for text in texts}
    return len(different) / len(texts) if texts else "needs a sample"


def zipf(tokens: Ngrams) -> Outcome:
    """Zipf coefficient (Holtzman et al. 2020): the negative slope of the least-squares line of log frequency against log rank,
    over the 5,000 most frequent model tokens of all samples together."""
    counts = -np.sort(-np.bincount(tokens.items))[:ZIPF_RANKS]
    if len(counts) < ZIPF_MIN_TYPES:
        return f"needs {ZIPF_MIN_TYPES} different tokens"
    rank = np.log(np.arange(1, len(counts) + 1))
    frequency = np.log(counts.astype(np.float64))
    rank -= rank.mean()
    return max(0.0, -float(rank @ (frequency - frequency.mean()) / (rank @ rank)))


def compression_ratio(texts: Sequence[str]) -> Outcome:
    """Compression ratio (Shaib et al. 2024): UTF-8 bytes of all texts joined by spaces, divided by their size after gzip."""
    data = " ".join(texts).encode("utf-8", "replace")
    return len(data) / len(gzip.compress(data, mtime=0)) if data.strip() else "needs a sample with text"


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="perplexity",
            label="Perplexity",
            meaning="exp of minus the mean log-probability of a token, at temperature 1",
            field="logprob_mean",
            pooled=True,
            exponential=True,
            needs="a sample of at least 1 token",
            default=True,
            axis="x",
        ),
        Metric(
            name="sampler_perplexity",
            label="Sampler perplexity",
            meaning="the same under the distribution that was sampled from",
            field="sampler_logprob_mean",
            pooled=True,
            exponential=True,
            needs="a sample of at least 1 token",
        ),
        Metric(
            name="logprob_mean",
            label="Log-probability",
            meaning="mean log-probability of a token at temperature 1, by sample",
            unit="nats",
            field="logprob_mean",
            deviation="logprob_std",
        ),
        Metric(
            name="sampler_logprob_mean",
            label="Sampler log-probability",
            meaning="mean log-probability of a token as it was sampled from, by sample",
            unit="nats",
            field="sampler_logprob_mean",
            deviation="sampler_logprob_std",
        ),
        Metric(
            name="entropy_mean",
            label="Entropy",
            meaning="mean entropy of the model's next-token distribution at temperature 1",
            unit="nats",
            field="entropy_mean",
            deviation="entropy_std",
            default=True,
        ),
        Metric(
            name="seq_rep_4",
            label="Repetition (seq-rep-4)",
            meaning="share of a sample's token 4-grams that it contains earlier",
            unit="share",
            of_sample=seq_rep_4,
            needs="a sample of at least 4 tokens",
            direction="lower",
            default=True,
        ),
        Metric(
            name="diversity",
            label="Diversity",
            meaning="product over n = 2, 3, 4 of the share of word n-grams that are distinct",
            unit="share",
            of_sample=word_diversity,
            needs="a sample of at least 4 words",
            direction="higher",
            default=True,
            axis="y",
        ),
        Metric(
            name="ends_repeating",
            label="Ends repeating",
            meaning="share of samples that end in a phrase repeated over and over",
            unit="share",
            of_sample=lambda text: float(ends_repeating(text.tokens)),
            direction="lower",
            default=True,
        ),
        *(
            Metric(
                name=f"distinct_{n}",
                label=f"Distinct-{n}",
                meaning=f"distinct {what} over all words of the point",
                unit="share",
                of_point=partial(distinct, n=n),
                direction="higher",
            )
            for n, what in ((1, "words"), (2, "word pairs"), (3, "word triples"))
        ),
        Metric(
            name="self_bleu_4",
            label="Self-BLEU-4",
            meaning=f"BLEU-4 of a sample against {SELF_BLEU_REFERENCES} others of its prompt; high means alike",
            unit="share",
            of_point=lambda texts: self_bleu([text.record["prompt_index"] for text in texts], texts.words),
            direction="lower",
            default=True,
        ),
        Metric(
            name="unique_samples",
            label="Unique samples",
            meaning="different completions of a prompt over its samples",
            unit="share",
            of_point=unique_share,
            direction="higher",
        ),
        Metric(
            name="zipf",
            label="Zipf coefficient",
            meaning="slope of log frequency against log rank of tokens; human text is near 1",
            of_point=lambda texts: zipf(texts.tokens),
        ),
        Metric(
            name="compression_ratio",
            label="Compression ratio",
            meaning="bytes of all completions over their bytes after gzip",
            of_point=lambda texts: compression_ratio([str(text.record["completion"]) for text in texts]),
            direction="lower",
        ),
        Metric(
            name="completion_tokens_mean",
            label="Length",
            meaning="mean number of sampled tokens",
            unit="tokens",
            field="completion_tokens",
            default=True,
        ),
    )
}
"""Every metric by column name, in display order."""

MAUVE = Metric(
    name="mauve",
    label="MAUVE",
    meaning="how close the texts of a point are to the reference text, by hidden states of a model; from 0 (far) to 1 (close)",
    unit="share",
    of_point=lambda texts: "needs --metric mauve, and a reference text",
    needs="20 samples of a point and as many pieces of a reference text",
    direction="higher",
)
"""The metric that needs a model: the review computes it on request and caches it beside the point."""

PREFERENCE = Metric(
    name="preference",
    label="Preference",
    meaning="share of wins that raters would give a setting if it met every other one equally often",
    unit="share",
    rated=True,
    needs="ratings of its samples",
    direction="higher",
    default=True,
)
"""The metric that needs raters: the review computes it from their files."""
