"""self-BLEU-4: how similar the samples of one prompt are (Zhu et al. 2018, Texygen)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from .ngrams import Ngrams, Numbers, is_first

SELF_BLEU_REFERENCES = 4
"""The number of references for each sample; fixed, because self-BLEU rises with it."""
SELF_BLEU_GROUPS = 40
"""The maximum number of groups of ``SELF_BLEU_REFERENCES + 1`` samples per point, to bound the cost."""


def self_bleu(prompts: Sequence[int], words: Ngrams) -> float | str:
    """self-BLEU-4 (Zhu et al. 2018): mean BLEU-4 of a sample with others of the same prompt as references.

    Zhu et al. use all others; here the references are the 4 others in a group of five, so that the value does not depend on the
    number of samples. Groups are consecutive samples of a prompt. If the samples do not divide evenly, the last group overlaps
    the one before, and only its new samples count as hypotheses. At most 40 groups are used, evenly spread over the point.
    Samples with fewer than 4 words are left out. BLEU is on words with uniform weights; a precision of zero counts as
    0.1 / n-grams (Chen and Cherry 2014, method 1, as in Texygen).

    Args:
        prompts: the prompt index of each sample; samples of one prompt are adjacent.
        words: the words of each sample.
    """
    size = SELF_BLEU_REFERENCES + 1
    long_enough = [number for number, length in enumerate(words.lengths.tolist()) if length >= 4]
    groups: list[tuple[list[int], int]] = []
    for _, of_prompt in groupby(long_enough, key=prompts.__getitem__):
        texts = list(of_prompt)
        if len(texts) >= size:
            groups += [(texts[start : start + size], size) for start in range(0, len(texts) - size + 1, size)]
            if left := len(texts) % size:
                groups.append((texts[-size:], left))
    if not groups:
        return f"needs {size} samples of one prompt with at least 4 words each"
    step = max(1.0, len(groups) / SELF_BLEU_GROUPS)
    chosen = [groups[int(place * step)] for place in range(min(len(groups), SELF_BLEU_GROUPS))]
    scores: list[float] = []
    for each, (_, counted) in zip(group_bleu(words, np.array([texts for texts, _ in chosen])), chosen, strict=True):
        scores += each[size - counted :]
    return math.fsum(scores) / len(scores)


def group_bleu(words: Ngrams, groups: Numbers) -> Iterator[list[float]]:
    """BLEU-4 of each text of each group against all others of the group.

    Args:
        words: the words of the texts.
        groups: [groups, size], the numbers of the texts of each group; each has 4 words or more.
    """
    matches = np.stack([_matches(words, groups, n) for n in (1, 2, 3, 4)], axis=-1)
    for group, of_group in zip(words.lengths[groups].tolist(), matches.tolist(), strict=True):
        scores = []
        for index, (length, matching) in enumerate(zip(group, of_group, strict=True)):
            logs = 0.0
            for n, same in enumerate(matching):
                logs += math.log((same or 0.1) / (length - n)) if same or n else -math.inf
            nearest = min(group[:index] + group[index + 1 :], key=lambda other: (abs(other - length), other))
            scores.append(math.exp(logs / 4 + min(0.0, 1 - nearest / length)))
        yield scores


def _matches(words: Ngrams, groups: Numbers, n: int) -> Numbers:
    """[groups, size], how many n-grams of each text match one of another text of the group.

    BLEU clips the count of an n-gram to its maximum count in one of the other texts.
    """
    size = groups.shape[1]
    codes, bound = words.codes(n, times=groups.size)
    counts = words.counts(n)
    begins = np.cumsum(counts) - counts
    lengths = counts[groups].ravel()
    member = np.repeat(np.arange(groups.size), lengths)
    places = np.arange(len(member)) + np.repeat(begins[groups].ravel() - np.cumsum(lengths) + lengths, lengths)
    # Equal n-grams of a group become neighbours, those of one text first.
    found, times = np.unique((member // size * bound + codes[places]) * size + member % size, return_counts=True)
    gram, text = np.divmod(found, size)
    alone = is_first(gram)
    alone[:-1] &= alone[1:]
    gram, text, times = gram[~alone], text[~alone], times[~alone]
    new = is_first(gram)
    row = np.cumsum(new) - 1
    table = np.zeros((np.count_nonzero(new), size), dtype=np.int64)
    table[row, text] = times
    second, first = np.sort(table, axis=1)[row, -2:].T
    clipped = np.minimum(times, np.where(times == first, second, first))
    matches = np.bincount(gram // bound * size + text, weights=clipped, minlength=groups.size)
    return matches.astype(np.int64).reshape(groups.shape)
