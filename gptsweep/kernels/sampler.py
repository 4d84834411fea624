"""The kernel ``sample``: draws the next token of each row from its logits, its settings and its counter-based noise.

The tokens are those of the plain sampler. `penalties` changes logits, `truncation` finds which tokens are left, `draw` picks
one.
"""

from __future__ import annotations

import numpy as np
from numba import carray, from_dtype

from .abi import BLOCK, ROW
from .draw import gumbel_argmax, gumbel_of
from .intrinsics import FAST, compiled, float32_at, float64_at, greatest_of, int64_at, pointer_to, take, uint32_at, widen
from .penalties import adjust_and_ban
from .scan import LAST, LEAST, blocks, first_block_with, left_greatest, left_masses, masses, open_row
from .selection import weigh
from .truncation import survivors, window_of

_row_at = pointer_to(from_dtype(ROW))
_WHOLE = (np.float32(-np.inf), LAST, np.float32(np.inf), 0)
"""The window that contains all logits."""


@compiled()
def _sample_in_window(row, x, tops, ids, weights, marks, words, keys, e, vocab_size):
    """Do the same as `_sample_one` for a row with ``steps``."""
    n_blocks = blocks(vocab_size)
    window, temperature = window_of(row, x, tops, vocab_size, ids, weights, marks, keys, e)
    greatest, first = left_greatest(x, tops, n_blocks, window)
    if first < 0:
        return -1, 0.0, 0
    mass, _, count = left_masses(x, tops, n_blocks, window, greatest, temperature)
    token = gumbel_argmax(row, x, tops, vocab_size, window, temperature, first // BLOCK, words)
    return token, (np.float64(x[token]) - np.float64(greatest)) / temperature - np.log(mass), count


@compiled()
def _sample_one(row, x, tops, ids, weights, marks, words, vocab_size):
    """Sample a row's next token from its adjusted logits.

    Return the token, its log-probability under the distribution that it was sampled from, and the number of tokens left in that
    distribution, or -1 for all that no adjustment bans.
    """
    n_blocks = blocks(vocab_size)
    greatest = greatest_of(tops, 0, n_blocks)
    if row.temperature == 0:
        block = first_block_with(tops, n_blocks, greatest)
        for i in range(block * BLOCK, (block + 1) * BLOCK):
            if x[i] == greatest:
                return i, 0.0, 1
    count = survivors(row, x, tops, vocab_size, np.float64(greatest), ids, weights, marks)
    if count < 0:
        mass = masses(x, vocab_size, greatest, np.float32(1 / row.temperature))[0]
        start = first_block_with(tops, n_blocks, greatest)
        token = gumbel_argmax(row, x, tops, vocab_size, _WHOLE, row.temperature, start, words)
    else:
        mass = weigh(x, ids, weights, count, np.float64(greatest), row.temperature)
        token, best = -1, -np.inf
        for i in range(count):
            z = np.float64(x[ids[i]]) / row.temperature + gumbel_of(row, ids[i])
            if z > best:
                token, best = ids[i], z
    return token, (np.float64(x[token]) - np.float64(greatest)) / row.temperature - np.log(mass), count


@compiled(fastmath=FAST)
def _possible(x, vocab_size):
    """Count the logits that are not -inf."""
    count = np.int32(0)
    for i in range(vocab_size):
        count += np.int32(x[i] >= LEAST)
    return np.int64(count)


@compiled()
def _sample(task, logits):
    """Sample the next token of every row."""
    vocab_size = task.vocab_size
    rows = carray(_row_at(task.rows), task.n_rows)
    order = carray(int64_at(task.order), task.n_rows)
    n_blocks = blocks(vocab_size)
    places = (n_blocks + 1) * BLOCK
    scratch = take(task.next_scratch, task.scratch)
    ids, weights = int64_at(scratch), float64_at(scratch + 8 * places)
    keys = float64_at(scratch + 28 * places + 4 * BLOCK)
    lengths = int64_at(scratch + 36 * places + 4 * BLOCK)
    x, marks = float32_at(scratch + 16 * places), uint32_at(scratch + 20 * places)
    e = float32_at(scratch + 20 * places)  # shares the memory of ``marks``: no step needs both
    tops, words = float32_at(scratch + 24 * places), uint32_at(scratch + 24 * places + 4 * n_blocks)
    opened = -1
    greatest = np.float32(0)
    mass = moment = 0.0
    while True:
        begin = take(task.next_unit, task.chunk)
        if begin >= task.n_rows:
            return
        for unit in range(begin, min(begin + task.chunk, task.n_rows)):
            row = rows[order[unit]]
            if row.logits_row != opened:
                greatest = open_row(logits, row.logits_row * task.stride, vocab_size, x, tops)
                mass, moment = masses(x, vocab_size, greatest, np.float32(1))
                opened = row.logits_row
            if row.n_adjustments or row.n_text:
                adjust_and_ban(row, logits, row.logits_row * task.stride, vocab_size, x, tops, marks, lengths)
                opened = -1
            if row.steps:
                token, logprob, left = _sample_in_window(row, x, tops, ids, weights, marks, words, keys, e, vocab_size)
            else:
                token, logprob, left = _sample_one(row, x, tops, ids, weights, marks, words, vocab_size)
            row.token, row.sampler_logprob, row.survivors = token, logprob, left
            if left < 0:
                row.survivors = vocab_size if opened >= 0 else _possible(x, vocab_size)
            raw = np.float64(widen(logits[row.logits_row * task.stride + token])) if token >= 0 else np.nan
            row.logprob = raw - np.float64(greatest) - np.log(mass)
            row.entropy = np.log(mass) - moment / mass


def sample_by(at):
    """Return the kernel ``sample`` for logits of the dtype of ``at``'s pointers."""

    def sample(tasks):
        task = carray(tasks, 1)[0]
        _sample(task, at(task.logits))

    return sample
