"""Scans of logits in blocks, each with its greatest logit, and windows of logits: what all steps of ``sample`` build on.

A window holds the tokens that previous steps left: those with logits of at least ``low`` and at most ``high``. Of tokens whose
logit equals ``low``, it holds ids up to ``low_last``; of those whose logit equals ``high``, ids from ``high_first`` on. A block
whose greatest logit is below ``low`` is skipped.
"""

from __future__ import annotations

import numpy as np

from .abi import BLOCK
from .intrinsics import FAST, compiled, exp, from_ordered, greatest_of, ordered, widen

LEAST = np.float32(-3e38)
LAST = 2**62
"""Greater than every token id."""
FEW = 16
"""With this few blocks left, computing in float64 costs nothing."""
LONG = 16 * BLOCK
"""Logits that are summed in float32 before their sum is added in float64."""


@compiled()
def blocks(vocab_size):
    """Return the number of blocks of ``vocab_size`` logits."""
    return (vocab_size + BLOCK - 1) // BLOCK


@compiled()
def first_block_with(tops, n_blocks, value):
    """Return the first block whose greatest logit is ``value``, or the last block where none is, as happens with NaN."""
    block = 0
    while block < n_blocks - 1 and tops[block] != value:
        block += 1
    return block


@compiled(fastmath=FAST)
def open_row(logits, begin, vocab_size, x, tops):
    """Widen a row's logits into ``x``, padded with -inf to whole blocks; find each block's greatest; return the greatest."""
    n_blocks = blocks(vocab_size)
    for i in range(vocab_size):
        x[i] = widen(logits[begin + i])
    for i in range(vocab_size, n_blocks * BLOCK):
        x[i] = np.float32(-np.inf)
    for block in range(n_blocks):
        tops[block] = greatest_of(x, block * BLOCK, BLOCK)
    return greatest_of(tops, 0, n_blocks)


@compiled(fastmath=FAST)
def masses(x, vocab_size, greatest, inverse):
    """Return the sums over the vocabulary of ``e = exp((x - greatest) * inverse)``, and of ``e`` times that exponent."""
    mass = moment = 0.0
    for begin in range(0, vocab_size, 1024):
        part = part_moment = np.float32(0)
        for i in range(begin, min(begin + 1024, vocab_size)):
            shifted = (x[i] - greatest) * inverse
            e = exp(shifted)
            part += e
            part_moment += e * shifted
        mass += np.float64(part)
        moment += np.float64(part_moment)
    return mass, moment


@compiled()
def gather(x, tops, n_blocks, threshold, ids):
    """Put the ids of all logits of at least ``threshold`` into ``ids``, ascending, and return their number."""
    count = 0
    for block in range(n_blocks):
        if tops[block] >= threshold:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                ids[count] = i
                count += x[i] >= threshold
    return count


@compiled()
def up(value):
    """Return the least float32 that is not below ``value``."""
    near = np.float32(value)
    return from_ordered(np.int32(ordered(near) + 1)) if np.float64(near) < value else near


@compiled()
def down(value):
    """Return the greatest float32 that is not above ``value``."""
    near = np.float32(value)
    return from_ordered(np.int32(ordered(near) - 1)) if np.float64(near) > value else near


@compiled()
def is_left(value, token, window):
    """Return whether the window holds a token with this logit, ``value``."""
    low, low_last, high, high_first = window
    return (value > low or (value == low and token <= low_last)) and (value < high or (value == high and token >= high_first))


@compiled()
def live_blocks(tops, n_blocks, low):
    """Count the blocks that have a logit of at least ``low``."""
    live = 0
    for block in range(n_blocks):
        live += tops[block] >= low
    return live


@compiled(fastmath=FAST)
def _mass_between(x, begin, end, low, high, greatest, inverse):
    """Return `masses` of those logits of ``x[begin:end]`` that lie from ``low`` to ``high``, and their number."""
    part = part_moment = part_count = np.float32(0)
    for i in range(begin, end):
        value = x[i] if x[i] >= low else np.float32(-np.inf)
        value = value if value <= high else np.float32(-np.inf)
        shifted = max((value - greatest) * inverse, np.float32(-87))  # exp(-87) is as good as 0
        e = exp(shifted)
        part += e
        part_moment += e * shifted
        part_count += np.float32(1) if value >= low else np.float32(0)
    return part, part_moment, part_count


@compiled()
def left_masses(x, tops, n_blocks, window, greatest, temperature):
    """Return `masses` of the tokens that the window holds, and their number."""
    low, low_last, high, high_first = window
    mass = moment = 0.0
    count = 0
    live = live_blocks(tops, n_blocks, low)
    if low_last != LAST or high_first != 0 or live <= FEW:
        for block in range(n_blocks):
            if tops[block] < low:
                continue
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                if is_left(x[i], i, window):
                    shifted = (np.float64(x[i]) - np.float64(greatest)) / temperature
                    e = np.exp(shifted)
                    mass += e
                    moment += e * shifted
                    count += 1
        return mass, moment, count
    step = LONG if 2 * live > n_blocks else BLOCK  # where most blocks are live, skipping the others costs more
    for begin in range(0, n_blocks * BLOCK, step):
        if step == BLOCK and tops[begin // BLOCK] < low:
            continue
        end = min(begin + step, n_blocks * BLOCK)
        part, part_moment, some = _mass_between(x, begin, end, low, high, greatest, np.float32(1 / temperature))
        mass += np.float64(part)
        moment += np.float64(part_moment)
        count += np.int64(some)
    return mass, moment, count


@compiled(fastmath=FAST)
def _greatest_between(x, size, low, high):
    """Return the greatest of ``x[:size]`` that lies from ``low`` to ``high``, or -inf."""
    top = ordered(np.float32(-np.inf))
    for i in range(size):
        value = x[i] if x[i] >= low else np.float32(-np.inf)
        value = value if value <= high else np.float32(-np.inf)
        top = max(top, ordered(value))
    return from_ordered(top)


@compiled()
def left_greatest(x, tops, n_blocks, window):
    """Return the greatest logit of the tokens that the window holds, and the first id that has it, or -inf and -1."""
    best, first = np.float32(-np.inf), -1
    if window[2] < np.inf and window[3] == 0 and 2 * live_blocks(tops, n_blocks, window[0]) > n_blocks:
        # A block's greatest logit says nothing, as it may lie above the window: most blocks have to be scanned.
        top = _greatest_between(x, n_blocks * BLOCK, window[0], window[2])
        for i in range(n_blocks * BLOCK):
            if x[i] == top and is_left(x[i], i, window):
                return top, i
        return best, first
    for block in range(n_blocks):
        if tops[block] >= window[0] and tops[block] > best:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                if x[i] > best and is_left(x[i], i, window):
                    best, first = x[i], i
    return best, first


@compiled(fastmath=FAST)
def _block_squares(x, begin, low, high, greatest):
    """Return the sums of ``x - greatest`` and its square over a block's logits from ``low`` to ``high``, and their number."""
    total = squares = count = np.float32(0)
    for i in range(begin, begin + BLOCK):
        value = x[i]
        left = np.float32(1) if value >= low else np.float32(0)
        left = left if value <= high else np.float32(0)
        below = (max(value, np.float32(-3e38)) - greatest) * left
        total += below
        squares += below * below
        count += left
    return total, squares, count


@compiled()
def left_deviation(x, tops, n_blocks, window, greatest):
    """Return the standard deviation of the logits that the window holds.

    Where many blocks are left, tokens whose logit equals ``low`` or ``high`` all count.
    """
    total = squares = 0.0
    count = 0
    few = live_blocks(tops, n_blocks, window[0]) <= FEW
    for block in range(n_blocks):
        if tops[block] < window[0]:
            continue
        if few:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                left = is_left(x[i], i, window)
                below = np.float64(x[i]) - np.float64(greatest) if left else 0.0
                total += below
                squares += below * below
                count += left
        else:
            part, part_squares, some = _block_squares(x, block * BLOCK, window[0], window[2], greatest)
            total += np.float64(part)
            squares += np.float64(part_squares)
            count += np.int64(some)
    mean = total / count
    return np.sqrt(max(squares / count - mean * mean, 0.0))


@compiled()
def gather_left(x, tops, n_blocks, window, ids):
    """Put the ids of the tokens that the window holds into ``ids``, ascending, and return their number."""
    count = 0
    for block in range(n_blocks):
        if tops[block] >= window[0]:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                ids[count] = i
                count += is_left(x[i], i, window)
    return count
