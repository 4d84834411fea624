"""Count distinct word n-grams for all texts of a point at once.

Each n-gram is encoded as an integer, equal for equal n-grams only, so the counts are those of sets of tuples in a fifth of the
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

_BOUND = 1 << 62
"""While the bound is below this, products fit into int64 without renumbering."""

Numbers = NDArray[np.int64]


class WordRuns:
    """The word n-grams of several texts, for n = 1, 2, …

    Args:
        texts: the words of each text.
    """

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        every = list(chain.from_iterable(texts))
        number = {word: number for number, word in enumerate(dict.fromkeys(every))}
        self._kinds = max(1, len(number))
        self._words: Numbers = np.fromiter(map(number.__getitem__, every), np.int64, len(every))
        self._lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        self._left = np.repeat(np.cumsum(self._lengths), self._lengths) - np.arange(len(every))
        self._owners = np.repeat(np.arange(len(texts)), self._lengths)

    def distinct(self, n: int) -> list[int]:
        """The number of distinct n-grams of ``n`` words in each text."""
        runs, bound = self._runs(n)
        if bound * max(1, len(self._lengths)) >= _BOUND:
            runs, bound = _numbered(runs)
        keys = np.sort(self._owners[self._left >= n] * bound + runs)
        first = np.ones(len(keys), dtype=np.int64)
        first[1:] = keys[1:] != keys[:-1]
        before = np.concatenate([[0], np.cumsum(first)])
        found: list[int] = np.diff(before[np.cumsum(np.maximum(self._lengths - (n - 1), 0))], prepend=0).tolist()
        return found

    def distinct_together(self, n: int) -> int:
        """The number of distinct n-grams of ``n`` words in all texts together."""
        runs = np.sort(self._runs(n)[0])
        return int(np.count_nonzero(runs[1:] != runs[:-1])) + bool(len(runs))

    def _runs(self, n: int) -> tuple[Numbers, int]:
        """The code of each n-gram and an upper bound on the codes; n-grams do not cross texts."""
        runs, bound = self._words, self._kinds
        for length in range(2, n + 1):
            if bound * self._kinds >= _BOUND:
                runs, bound = _numbered(runs)
            runs, bound = runs[:-1] * self._kinds + self._words[length - 1 :], bound * self._kinds
        return runs[self._left[: len(runs)] >= n], bound


def _numbered(values: Numbers) -> tuple[Numbers, int]:
    """Renumber values densely from 0, and return an upper bound."""
    kinds, numbers = np.unique(values, return_inverse=True)
    return numbers.astype(np.int64, copy=False), max(1, len(kinds))
