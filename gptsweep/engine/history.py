"""How a row's tokens so far affect the next: adjustments of single logits, and repetitions in the text."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels.abi import ADJUSTMENT
from ..records import Row, Sampling, active_steps

_FLOAT32_MAX_LOG = 88.7228391
NO_END = 2**62
"""A distance greater than the length of any text."""
_FOLLOWED = ("dry", "no_repeat_ngram")
"""Steps that depend on the order of the tokens."""


class LogitAdjustments:
    """Changes of logits by a row's logit_bias, penalties and bans, and the text that DRY and n-grams use; updated token by
    token.

    ``array`` has `ADJUSTMENT` records, of which the first ``len(self)`` are in use. It is never reallocated, because kernels
    get its address.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocab_size: int,
        *,
        prompt_ids: Sequence[int] = (),
        end_tokens: Sequence[int] = (),
        dry_breakers: tuple[tuple[int, ...], ...] = (),
    ) -> None:
        steps = active_steps(sampling)
        self._penalises = "penalties" in steps
        self._follows = any(step in steps for step in _FOLLOWED)
        ends = {*sampling.stop_token_ids, *(end_tokens if sampling.stop_at_eot else ())} if sampling.min_new_tokens else ()
        known = len(sampling.logit_bias) + len(sampling.suppress_tokens) + len(ends)
        seen = min(sampling.max_new_tokens + len(set(prompt_ids)), vocab_size) if self._penalises else 0
        self.array = np.zeros(known + seen, ADJUSTMENT)
        self._place: dict[int, int] = {}
        for token, addend in sampling.logit_bias:
            self._record(token)["bias"] = addend
        for token in ends:
            self._record(token)["banned_until"] = sampling.min_new_tokens
        for token in sampling.suppress_tokens:
            self._record(token)["banned_until"] = NO_END
        self._text = np.zeros(len(prompt_ids) + sampling.max_new_tokens if self._follows else 0, np.int64)
        self._length = 0
        self._breakers = _by_last_token(dry_breakers) if "dry" in steps else {}
        self.breaks = _single_tokens(dry_breakers, vocab_size if "dry" in steps else 0)
        """For each token id, whether it is a breaker by itself."""
        self._broken = -1, -1
        for token in prompt_ids:
            if self._penalises:
                self._record(token)["seen"] = 1
            if self._follows:
                self._follow(token)

    @classmethod
    def of(cls, row: Row, vocab_size: int) -> LogitAdjustments | None:
        """The adjustments of a row without tokens; None if none of its steps needs them."""
        adjusts = ("logit_bias", "penalties", "suppress_tokens", *_FOLLOWED)
        if not any(step in adjusts for step in active_steps(row.sampling)):
            return None
        return cls(
            row.sampling,
            vocab_size,
            prompt_ids=row.prompt_ids,
            end_tokens=row.end_tokens,
            dry_breakers=row.dry_breakers,
        )

    def __len__(self) -> int:
        return len(self._place)

    @property
    def records(self) -> npt.NDArray[Any]:
        """The `ADJUSTMENT` records in use."""
        return self.array[: len(self)]

    @property
    def text(self) -> npt.NDArray[np.int64]:
        """The ids of prompt and completion; maintained only if a step depends on their order."""
        return self._text[: self._length]

    def place(self, record: Any) -> None:
        """Write the addresses of the adjustments and the text into a row's `ROW` record."""
        record["adjustments"], record["text"] = self.array.ctypes.data, self._text.ctypes.data
        record["breaks"] = self.breaks.ctypes.data

    def update(self, record: Any, sampling: Sampling) -> None:
        """Write their current lengths into a row's `ROW` record."""
        record["n_adjustments"] = len(self)
        if self._follows:
            record["n_text"], record["dry_most"] = self._length, self.dry_most(sampling)

    def unbroken(self, look_back: int) -> int:
        """The maximum length of a repetition: the tokens since the last breaker that begins within ``look_back``."""
        begin, end = self._broken
        known = min(self._length, look_back)
        return self._length - 1 - end if begin >= self._length - known else known

    def dry_most(self, sampling: Sampling) -> int:
        """The length up to which DRY distinguishes repetitions: `unbroken`, or the length where the penalty stops growing, if
        less.

        It stops growing where llama.cpp's float32 would overflow.
        """
        if not sampling.dry_multiplier:
            return 0
        steps = int(_FLOAT32_MAX_LOG / math.log(sampling.dry_base)) if sampling.dry_base > 1.000001 else 0
        return min(self.unbroken(sampling.dry_range or NO_END), sampling.dry_allowed_length + steps)

    def add(self, token: int) -> None:
        """Add ``token``, which has just been sampled."""
        if self._penalises:
            record = self._record(token)
            record["seen"] = 1
            record["count"] += 1
        if self._follows:
            self._follow(token)

    def _record(self, token: int) -> Any:
        place = self._place.setdefault(token, len(self._place))
        self.array[place]["id"] = token
        return self.array[place]

    def _follow(self, token: int) -> None:
        self._text[self._length] = token
        self._length += 1
        for breaker in self._breakers.get(token, ()):
            begin = self._length - len(breaker)
            if begin >= 0 and (len(breaker) == 1 or tuple(self._text[begin : self._length].tolist()) == breaker):
                self._broken = max(self._broken, (begin, self._length - 1))


@lru_cache(16)
def _by_last_token(breakers: tuple[tuple[int, ...], ...]) -> Mapping[int, list[tuple[int, ...]]]:
    found: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for breaker in breakers:
        found[breaker[-1]].append(breaker)
    return dict(found)


@lru_cache(16)
def _single_tokens(breakers: tuple[tuple[int, ...], ...], vocab_size: int) -> npt.NDArray[np.bool_]:
    found = np.zeros(vocab_size, np.bool_)
    found[[token for token, *rest in breakers if not rest and token < vocab_size]] = True
    return found


def repeated(
    texts: Sequence[npt.NDArray[np.int64]], look_back: Sequence[int], most: Sequence[int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The tokens that would extend a repetition of the end of a text, for all texts at once.

    Args:
        texts: token ids, one array per row.
        look_back: for each text, how many of its last tokens count.
        most: for each text, the length beyond which repetitions are treated as equal; 0 finds every token, with length 0.

    Returns:
        Row, token and length, sorted by row and token without duplicates: ``length`` is the greatest number of last tokens of
        the text that also occur, followed by ``token``, earlier in it.
    """
    longest = min(max(map(len, texts), default=0), max(look_back, default=0))
    ids = np.full((len(texts), longest + 1), -1, np.int64)  # one extra, so that the first token has a predecessor
    for place, (text, back) in enumerate(zip(texts, look_back, strict=True)):
        count = min(len(text), back)
        ids[place, longest + 1 - count :] = text[len(text) - count :]
    limit = np.array(most, np.int64)
    lengths = np.zeros((len(texts), longest), np.int64)
    row, end = np.nonzero((ids[:, :-1] == ids[:, -1:]) & (ids[:, :-1] >= 0) & (limit[:, None] > 0))
    length = 1
    while len(row):
        lengths[row, end] = length
        longer = (end >= length) & (limit[row] > length)
        row, end = row[longer], end[longer]
        same = (ids[row, end - length] == ids[row, longest - length]) & (ids[row, end - length] >= 0)
        row, end = row[same], end[same]
        length += 1
    row, end = np.nonzero(((lengths > 0) | (limit[:, None] == 0)) & (ids[:, 1:] >= 0))
    token, length_of = ids[row, end + 1], lengths[row, end]
    order = np.lexsort((length_of, token, row))
    row, token, length_of = row[order], token[order], length_of[order]
    last = np.append((row[1:] != row[:-1]) | (token[1:] != token[:-1]), True)[: len(row)]
    return row[last], token[last], length_of[last]
