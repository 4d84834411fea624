"""self-BLEU-4: how similar the samples of one prompt are (Zhu et al. 2018, Texygen)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

SELF_BLEU_REFERENCES = 4
"""The number of references for each sample; fixed, because self-BLEU rises with it."""
SELF_BLEU_GROUPS = 40
"""The maximum number of groups of ``SELF_BLEU_REFERENCES + 1`` samples per point, to bound the cost."""

Grams = Sequence[Sequence[tuple[Any, ...]]]
"""The word 1- to 4-grams of a text."""


def ngrams(items: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    """All n-grams of ``items``, in order: ``max(0, len(items) - n + 1)`` of them."""
    return list(zip(*(items[start:] for start in range(n)), strict=False))


def self_bleu(prompts: Sequence[int], words: Sequence[Sequence[str]]) -> float | str:
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
    long_enough = [(prompt, every) for prompt, every in zip(prompts, words, strict=True) if len(every) >= 4]
    groups: list[tuple[list[Sequence[str]], int]] = []
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
    scores = []
    for texts, counted in chosen:
        scores += group_bleu([[ngrams(text, n) for n in (1, 2, 3, 4)] for text in texts])[size - counted :]
    return math.fsum(scores) / len(scores)


def group_bleu(group: Sequence[Grams]) -> list[float]:
    """BLEU-4 of each text against all others of the group.

    BLEU clips the count of an n-gram to its maximum count in one reference. If the k-th occurrence of an n-gram is treated as a
    separate item, the clipped count equals the number of items that any other text also has.
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
    """One item per gram, counting repeats: the gram itself, and (gram, k) for its k-th occurrence from the second on."""
    items: set[object] = set(grams)
    if len(items) < len(grams):
        items.update((gram, k) for gram, times in Counter(grams).items() for k in range(2, times + 1))
    return items
