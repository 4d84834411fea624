"""Changes to a row's logits before any truncation: logit_bias, penalties, DRY, and bans."""

from __future__ import annotations

import numpy as np
from numba import carray, from_dtype

from .abi import ADJUSTMENT, BLOCK
from .intrinsics import compiled, greatest_of, int64_at, pointer_to, uint8_at
from .scan import blocks, open_row

_adjustment_at = pointer_to(from_dtype(ADJUSTMENT))


@compiled()
def _repetitions(text, n, lengths):
    """Set ``lengths[k]``, for k from 1 to n, to how many of the last ids of ``text[:n]`` also precede its k-th last id.

    This is the Z-algorithm, on the reversed text.
    """
    left = right = 0
    for k in range(1, n):
        length = min(lengths[k - left], right - k) if k < right else 0
        while k + length < n and text[n - 1 - length] == text[n - 1 - k - length]:
            length += 1
        lengths[k] = length
        if k + length > right:
            left, right = k, k + length
    lengths[n] = 0


@compiled()
def _dry_loss(row, length):
    """Return what DRY subtracts from the logit of a token that would continue a repetition of ``length`` tokens."""
    return min(row.dry_multiplier * row.dry_base ** np.float64(length - row.dry_allowed_length), 1e30)


@compiled()
def _change(x, tops, token, value):
    """Set the logit of a token, and update the greatest logit of its block."""
    x[token] = np.float32(value)
    block = token // BLOCK
    tops[block] = greatest_of(x, block * BLOCK, BLOCK)


@compiled()
def _adjust(row, x, tops, marks, lengths, suppresses):
    """Apply logit_bias, the penalties, DRY and, if ``suppresses``, bans to the few tokens that they affect.

    For DRY, ``marks`` holds the longest repetition that a token would continue. It is valid only for the tokens that occur
    here.
    """
    adjustments = carray(_adjustment_at(row.adjustments), row.n_adjustments)
    text, breaks = int64_at(row.text), uint8_at(row.breaks)
    look_back = min(row.n_text, row.dry_range) if row.dry_multiplier > 0 else 0
    if look_back:
        _repetitions(int64_at(row.text + 8 * (row.n_text - look_back)), look_back, lengths)
        for i in range(row.n_adjustments):
            marks[adjustments[i].id] = 0
        for k in range(1, look_back + 1):
            marks[text[row.n_text - k]] = 0
        for k in range(1, look_back + 1):
            token, length = text[row.n_text - k], np.uint32(min(lengths[k], row.dry_most))
            if length >= row.dry_allowed_length and not breaks[token]:
                marks[token] = max(marks[token], length)
    for i in range(row.n_adjustments):
        adjustment = adjustments[i]
        value = np.float64(x[adjustment.id]) + adjustment.bias
        if adjustment.seen:
            value = value * row.repetition_penalty if value < 0 else value / row.repetition_penalty
        if adjustment.count:
            value -= adjustment.count * row.frequency_penalty + row.presence_penalty
        if look_back and marks[adjustment.id]:
            value -= _dry_loss(row, marks[adjustment.id])
            marks[adjustment.id] = 0
        if suppresses and row.position < adjustment.banned_until:
            value = -np.inf
        _change(x, tops, adjustment.id, value)
    for k in range(1, look_back + 1):
        token = text[row.n_text - k]
        if marks[token]:
            _change(x, tops, token, np.float64(x[token]) - _dry_loss(row, marks[token]))
            marks[token] = 0


@compiled()
def _ban_repetitions(row, x, tops, lengths):
    """Ban the tokens that would repeat a sequence of ``no_repeat_ngram`` tokens."""
    text = int64_at(row.text)
    _repetitions(text, row.n_text, lengths)
    for k in range(1, row.n_text + 1):
        if lengths[k] >= row.no_repeat_ngram - 1 and x[text[row.n_text - k]] > -np.inf:
            _change(x, tops, text[row.n_text - k], -np.inf)


@compiled()
def adjust_and_ban(row, logits, begin, vocab_size, x, tops, marks, lengths):
    """Apply `_adjust` and n-gram bans; drop the bans of tokens, of n-grams, or both where they would leave no token."""
    for attempt in range(4):
        if attempt:
            open_row(logits, begin, vocab_size, x, tops)
        _adjust(row, x, tops, marks, lengths, attempt % 2 == 0)
        if row.no_repeat_ngram and row.n_text and attempt < 2:
            _ban_repetitions(row, x, tops, lengths)
        if greatest_of(tops, 0, blocks(vocab_size)) > -np.inf:
            break
