"""Logits scanned in blocks, each with its greatest, and windows of them: what every step of the kernel ``sample`` stands on.

A window is what the steps before left: logits of at least ``low`` and at most ``high``; of those equal to ``low`` the ids up
to ``low_last``, of those equal to ``high`` the ids from ``high_first`` on. A block whose greatest is below ``low`` is skipped.
"""

from __future__ import annotations

import numpy as np

from .abi import BLOCK
from .intrinsics import FAST, compiled, exp, from_ordered, greatest_of, ordered, widen

LEAST = np.float32(-3e38)
LAST = 2**62
"""Above every token id."""
FEW = 16
"""With so few blocks left, float64 costs nothing."""
LONG = 16 * BLOCK
"""Logits that are summed in float32 together."""


@compiled()
def blocks(vocab_size):
    return (vocab_size + BLOCK - 1) // BLOCK


@compiled()
def first_block_with(tops, n_blocks, value):
    """The first block whose greatest is ``value``, or the last where none is, which NaN brings about."""
    block = 0
    while block < n_blocks - 1 and tops[block] != value:
        block += 1
    return block


@compiled(fastmath=FAST)
def open_row(logits, begin, vocab_size, x, tops):
    """Widen a row's logits into ``x``, padded with -inf to whole blocks, and find each block's greatest; return the greatest"""
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
    """With ``e = exp((x - greatest) * inverse)``: the sums over the vocabulary of ``e``, and of ``e`` times that exponent."""
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
    """Put the ids of all logits of at least ``threshold`` into ``ids``, ascending; how many."""
    count = 0
    for block in range(n_blocks):
        if tops[block] >= threshold:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                ids[count] = i
                count += x[i] >= threshold
    return count


@compiled()
def up(value):
    """The least float32 that is not below ``value``."""
    near = np.float32(value)
    return from_ordered(np.int32(ordered(near) + 1)) if np.float64(near) < value else near


@compiled()
def down(value):
    """The greatest float32 that is not above ``value``."""
    near = np.float32(value)
    return from_ordered(np.int32(ordered(near) - 1)) if np.float64(near) > value else near


@compiled()
def is_left(value, token, window):
    low, low_last, high, high_first = window
    return (value > low or (value == low and token <= low_last)) and (value < high or (value == high and token >= high_first))


@compiled()
def live_blocks(tops, n_blocks, low):
    """How many blocks have a logit of ``low`` or more."""
    live = 0
    for block in range(n_blocks):
        live += tops[block] >= low
    return live


@compiled(fastmath=FAST)
def _mass_between(x, begin, end, low, high, greatest, inverse):
    """`masses` of the logits ``x[begin:end]`` from ``low`` to ``high``, and how many they are."""
    part = part_moment = part_count = np.float32(0)
    for i in range(begin, end):
        value = x[i] if x[i] >= low else np.float32(-np.inf)
        value = value if value <= high else np.float32(-np.inf)
        shifted = max((value - greatest) * inverse, np.float32(-87))  # which is as good as nothing
        e = exp(shifted)
        part += e
        part_moment += e * shifted
        part_count += np.float32(1) if value >= low else np.float32(0)
    return part, part_moment, part_count


@compiled()
def left_masses(x, tops, n_blocks, window, greatest, temperature):
    """`masses` of what is left, and how many tokens that is."""
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
    step = LONG if 2 * live > n_blocks else BLOCK  # where most blocks are live, looking for those that are not costs more
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
    top = ordered(np.float32(-np.inf))
    for i in range(size):
        value = x[i] if x[i] >= low else np.float32(-np.inf)
        value = value if value <= high else np.float32(-np.inf)
        top = max(top, ordered(value))
    return from_ordered(top)


@compiled()
def left_greatest(x, tops, n_blocks, window):
    """The greatest logit that is left, and the first id that has it."""
    best, first = np.float32(-np.inf), -1
    if window[2] < np.inf and window[3] == 0 and 2 * live_blocks(tops, n_blocks, window[0]) > n_blocks:
        # The greatest of a block says nothing, as it may be above the window: in most of the blocks one has to look.
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
    """The standard deviation of the logits that are left, which are a whole window."""
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
    count = 0
    for block in range(n_blocks):
        if tops[block] >= window[0]:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                ids[count] = i
                count += is_left(x[i], i, window)
    return count
