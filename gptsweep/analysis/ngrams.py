"""Count the n-grams of all texts of a point at once: of their words, or of their tokens.

Each n-gram is encoded as an integer, equal for equal n-grams only, so the counts are those of sets of tuples in a fifth of the
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BOUND = 1 << 62
"""While the bound is below this, products fit into int64 without renumbering."""
_SPARSE = 16
"""Up to this many times as many possible values as values, a table renumbers them; beyond, a sort."""

Numbers = NDArray[np.int64]


def ngrams(items: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    """All n-grams of ``items``, in order: ``max(0, len(items) - n + 1)`` of them."""
    return list(zip(*(items[start:] for start in range(n)), strict=False))


class Ngrams:
    """The n-grams of several texts, for n = 1, 2, …

    Args:
        items: the words or tokens of all texts, one text after another, as numbers from 0.
        lengths: the number of items of each text.
    """

    def __init__(self, items: Numbers, lengths: Sequence[int]) -> None:
        self.items, self._kinds = _numbered(items)
        self.lengths: Numbers = np.fromiter(lengths, np.int64, len(lengths))
        self._left = np.repeat(np.cumsum(self.lengths), self.lengths) - np.arange(len(items))
        self._owners = np.repeat(np.arange(len(lengths)), self.lengths)

    @classmethod
    def of_words(cls, texts: Sequence[Sequence[str]]) -> Ngrams:
        """The n-grams of the words of each text."""
        every = list(chain.from_iterable(texts))
        number = {word: number for number, word in enumerate(dict.fromkeys(every))}
        return cls(np.fromiter(map(number.__getitem__, every), np.int64, len(every)), list(map(len, texts)))

    @classmethod
    def of_tokens(cls, texts: Sequence[Sequence[int]]) -> Ngrams:
        """The n-grams of the token ids of each text."""
        lengths = list(map(len, texts))
        return cls(np.fromiter(chain.from_iterable(texts), np.int64, sum(lengths)), lengths)

    def counts(self, n: int) -> Numbers:
        """[texts], the number of n-grams of ``n`` items in each text."""
        return np.maximum(self.lengths - (n - 1), 0)

    def distinct(self, n: int) -> list[int]:
        """The number of distinct n-grams of ``n`` items in each text."""
        codes, bound = self.codes(n, times=len(self.lengths))
        keys = np.sort(self._owners[self._left >= n] * bound + codes)
        found: list[int] = np.bincount(keys[is_first(keys)] // bound, minlength=len(self.lengths)).tolist()
        return found

    def distinct_together(self, n: int) -> int:
        """The number of distinct n-grams of ``n`` items in all texts together."""
        return int(np.count_nonzero(is_first(np.sort(self.codes(n)[0]))))

    def codes(self, n: int, times: int = 1) -> tuple[Numbers, int]:
        """The codes of all n-grams of ``n`` items, text by text, and an upper bound on them; n-grams do not cross texts.

        Args:
            n: the number of items.
            times: the bound times this number fits into int64, too.
        """
        codes, bound = self.items, self._kinds
        for length in range(2, n + 1):
            if bound * self._kinds >= _BOUND:
                codes, bound = _numbered(codes)
            codes, bound = codes[:-1] * self._kinds + self.items[length - 1 :], bound * self._kinds
        if bound * max(1, times) >= _BOUND:
            codes, bound = _numbered(codes)
        return codes[self._left[: len(codes)] >= n], bound


def is_first(values: Numbers) -> NDArray[np.bool_]:
    """[n], whether each of some sorted values is the first one like it."""
    first = np.ones(len(values), dtype=bool)
    first[1:] = values[1:] != values[:-1]
    return first


def _numbered(values: Numbers) -> tuple[Numbers, int]:
    """Renumber values densely from 0, and return an upper bound."""
    if not len(values):
        return values, 1
    bound = int(values.max()) + 1
    if bound > _SPARSE * len(values):
        kinds, numbers = np.unique(values, return_inverse=True)
        return numbers.astype(np.int64, copy=False), len(kinds)
    seen = np.flatnonzero(np.bincount(values))
    number = np.empty(bound, dtype=np.int64)
    number[seen] = np.arange(len(seen))
    return number[values], len(seen)
