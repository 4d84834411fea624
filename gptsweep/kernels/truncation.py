"""The truncations: find which window of a row's logits its steps leave, in their order.

`survivors` is for rows with only top_k, top_p and min_p, in transformers' order: it lists the few tokens that are left.
"""

from __future__ import annotations

import numpy as np

from .abi import BLOCK, STEPS
from .draw import philox
from .intrinsics import FAST, compiled, exp
from .scan import (
    LAST,
    LEAST,
    LONG,
    blocks,
    down,
    gather,
    gather_left,
    is_left,
    left_deviation,
    left_greatest,
    left_masses,
    live_blocks,
    masses,
    up,
)
from .selection import keep, kth_greatest, quantile, split, weigh

_LISTED = 128
"""Typical sampling tries to list no more tokens than this."""
_PASSES = 24
"""The most passes that it makes for that: where many tokens have the same logit, the list does not get shorter."""
(
    _TEMPERATURE, _TOP_N_SIGMA, _TOP_K, _TOP_P, _MIN_P, _TYPICAL_P, _EPSILON_CUTOFF, _ETA_CUTOFF, _XTC, _MIROSTAT
) = range(1, len(STEPS) + 1)  # fmt: skip


@compiled()
def survivors(row, x, tops, vocab_size, greatest, ids, weights, marks):
    """Put the ids that top_k, top_p and min_p leave into ``ids``; return their number, or -1 for the whole vocabulary."""
    temperature, n_blocks = row.temperature, blocks(vocab_size)
    count = -1
    if 0 < row.top_k < vocab_size:
        least, count = kth_greatest(x, tops, n_blocks, row.top_k, ids, marks)
        count = keep(x, ids, count, np.float64(least))
    if row.top_p < 1:
        if count >= 0:
            target = row.top_p * weigh(x, ids, weights, count, greatest, temperature)
        else:
            target = row.top_p * masses(x, vocab_size, np.float32(greatest), np.float32(1 / temperature))[0]
            if not target < np.inf:
                return 0  # NaN among the logits: no cut holds enough mass
            # A cut that holds enough mass saves looking at the whole vocabulary; the choice of cut does not change the result.
            depth = 4.0
            while True:
                cut = max(np.float32(greatest - depth * temperature), LEAST)
                count = gather(x, tops, n_blocks, cut, ids)
                if weigh(x, ids, weights, count, greatest, temperature) >= target or count == vocab_size or cut == LEAST:
                    break
                depth *= 2
        count = split(x, ids, weights, count, target)
    if row.min_p > 0:
        least = greatest + temperature * np.log(row.min_p)
        if count < 0:
            count = gather(x, tops, n_blocks, max(np.float32(least), LEAST), ids)
        count = keep(x, ids, count, least)
    return count


@compiled(fastmath=FAST)
def _weights(x, size, low, high, greatest, inverse, into):
    """Set ``into`` to ``e = exp((x - greatest) * inverse)`` for logits from ``low`` to ``high``, and almost to 0 for others.

    Return the sums of ``e`` and of ``e`` times that exponent, and the number of logits from ``low`` to ``high``.
    """
    mass = moment = 0.0
    count = 0
    for begin in range(0, size, LONG):
        part = part_moment = part_count = np.float32(0)
        for i in range(begin, min(begin + LONG, size)):
            value = x[i] if x[i] >= low else np.float32(-np.inf)
            value = value if value <= high else np.float32(-np.inf)
            shifted = max((value - greatest) * inverse, np.float32(-87))  # exp(-87) is as good as 0
            e = exp(shifted)
            into[i] = e
            part += e
            part_moment += e * shifted
            part_count += np.float32(1) if value >= low else np.float32(0)
        mass += np.float64(part)
        moment += np.float64(part_moment)
        count += np.int64(part_count)
    return mass, moment, count


@compiled(fastmath=FAST)
def _within(x, e, size, low, high):
    """Return the sum of ``e`` over the logits from ``low`` to ``high``, and their number."""
    mass = 0.0
    total = 0
    for begin in range(0, size, LONG):
        part = count = np.float32(0)
        for i in range(begin, min(begin + LONG, size)):
            value, weight = x[i], e[i]
            inside = np.float32(1) if value >= low else np.float32(0)
            inside = inside if value <= high else np.float32(0)
            part += weight * inside
            count += inside
        mass += np.float64(part)
        total += np.int64(count)
    return mass, total


@compiled(fastmath=FAST)
def _reaches(x, begin, outer_low, outer_high, inner_low, inner_high):
    """Return whether a block has logits from ``outer_low`` to ``outer_high`` outside ``inner_low`` to ``inner_high``."""
    count = np.float32(0)
    for i in range(begin, begin + BLOCK):
        value = x[i]
        some = np.float32(1) if value >= outer_low else np.float32(0)
        some = some if value <= outer_high else np.float32(0)
        less = np.float32(1) if value >= inner_low else np.float32(0)
        less = less if value <= inner_high else np.float32(0)
        count += some - less
    return count > 0


@compiled()
def _gather_ring(x, tops, n_blocks, window, outer, inner, ids):
    """Put the ids of the window's tokens with logits within ``outer`` but not ``inner`` into ``ids``; return their number."""
    count = 0
    for block in range(n_blocks):
        begin = block * BLOCK
        if tops[block] < outer[0] or not _reaches(x, begin, outer[0], outer[1], inner[0], inner[1]):
            continue
        for i in range(begin, begin + BLOCK):
            ids[count] = i
            ring = outer[0] <= x[i] <= outer[1] and not inner[0] <= x[i] <= inner[1]
            count += ring and is_left(x[i], i, window)
    return count


@compiled()
def _typical(p, x, tops, n_blocks, window, greatest, temperature, ids, keys, weights, e):
    """Return the window of the tokens whose surprise is nearest to the entropy, as few as hold ``p`` of the mass.

    Where many tokens are left, first find two distances from the entropy that enclose the cut-off with few tokens between them,
    and list only those. ``e`` is scratch memory of one float32 per token. Locally typical sampling: Meister et al., 2023.
    """
    low, low_last, high, high_first = window
    top, nothing = np.float64(greatest), (np.float32(np.inf), np.float32(-np.inf))
    size = n_blocks * BLOCK
    narrows = low_last == LAST and high_first == 0 and 2 * live_blocks(tops, n_blocks, low) > n_blocks
    if narrows:
        mass, moment, count = _weights(x, size, low, high, greatest, np.float32(1 / temperature), e)
    else:
        mass, moment, count = left_masses(x, tops, n_blocks, window, greatest, temperature)
    # The surprise of x differs from the entropy by |(x - greatest) / temperature - center|.
    center = moment / mass
    target = p * mass
    near, within, n_near, inner = 0.0, 0.0, 0, nothing
    far, n_far, outer = np.inf, count, (low, high)
    # Regula falsi by the Illinois rule (Dowell and Jarratt 1971), on the mass that either end lacks or has in excess.
    lacks, exceeds, tried, side = target, 0.0, 1.0, 0
    for _ in range(_PASSES):
        if not narrows or n_far - n_near <= _LISTED:
            break
        ring = (max(low, up(top + temperature * (center - tried))), min(high, down(top + temperature * (center + tried))))
        reached, inside = _within(x, e, size, ring[0], ring[1])
        if reached < target:
            near, within, n_near, inner, lacks = tried, reached, inside, ring, target - reached
            exceeds, side = exceeds * (0.5 if side < 0 else 1.0), -1
        else:
            far, n_far, outer, exceeds = tried, inside, ring, reached - target
            lacks, side = lacks * (0.5 if side > 0 else 1.0), 1
        tried = tried * 2 if far == np.inf else near + (far - near) * min(max(lacks / (lacks + exceeds), 0.02), 0.98)
    listed = _gather_ring(x, tops, n_blocks, window, outer, inner, ids)
    if listed == 0:
        return window
    for place in range(listed):
        shifted = (np.float64(x[ids[place]]) - top) / temperature
        keys[place] = abs(shifted - center)
        weights[place] = np.exp(shifted)
    last = quantile(keys, weights, listed, target - within)
    floor, ceiling = inner
    for place in range(listed):
        value = x[ids[place]]
        if abs((np.float64(value) - top) / temperature - center) <= last:
            floor, ceiling = min(floor, value), max(ceiling, value)
    return (floor, low_last if floor == low else LAST, ceiling, high_first if ceiling == high else 0)


@compiled()
def _nucleus(p, x, tops, n_blocks, window, greatest, temperature, ids, weights):
    """Return the window of the fewest likeliest tokens that hold ``p`` of the mass (Holtzman et al., 2020)."""
    low, low_last, high, high_first = window
    mass = left_masses(x, tops, n_blocks, window, greatest, temperature)[0]
    target = p * mass
    depth = 4.0
    while True:
        cut = max(np.float32(np.float64(greatest) - depth * temperature), low)
        inner = (cut, low_last if cut == low else LAST, high, high_first)
        count = gather_left(x, tops, n_blocks, inner, ids)
        if weigh(x, ids, weights, count, np.float64(greatest), temperature) >= target or cut == low:
            break
        depth *= 2
    count = split(x, ids, weights, count, target)
    floor = np.float32(np.inf)
    for i in range(count):
        floor = min(floor, x[ids[i]])
    last = -1
    for i in range(count):
        if x[ids[i]] == floor:
            last = max(last, ids[i])
    return (floor, last, high, high_first)


@compiled()
def _exclude_top(row, x, tops, n_blocks, window, greatest, temperature, mass):
    """Return XTC's window.

    With probability ``xtc_probability``, it lacks the tokens of at least probability ``xtc_threshold``, except the least likely
    of them.
    """
    key = np.uint64(row.noise_key)
    word = philox(np.uint32(0), np.uint32(row.position), np.uint32(row.sample_index),
                   np.uint32(np.uint32(row.prompt_index) | np.uint32(0x80000000)),
                   np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32)))[0]  # fmt: skip
    if (np.float64(word) + 0.5) / 4294967296.0 >= row.xtc_probability:
        return window
    low, low_last, high, high_first = window
    bound = up(np.float64(greatest) + temperature * (np.log(row.xtc_threshold) + np.log(mass)))
    floor = max(low, bound)
    inner = (floor, low_last if floor == low else LAST, high, high_first)
    least, last, count = np.float32(np.inf), -1, 0
    for block in range(n_blocks):
        if tops[block] >= floor:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                if is_left(x[i], i, inner):
                    count += 1
                    if x[i] <= least:
                        least, last = x[i], i
    return (low, low_last, least, last) if count > 1 else window


@compiled()
def _raised(window, floor):
    """Return a window without the logits below ``floor``."""
    low, _, high, high_first = window
    return (floor, LAST, high, high_first) if floor > low else window


@compiled()
def window_of(row, x, tops, vocab_size, ids, weights, marks, keys, e):
    """Return the window that the steps of a row leave, in their order, and the temperature."""
    n_blocks = blocks(vocab_size)
    window = (LEAST, LAST, np.float32(np.inf), 0)
    temperature = 1.0
    steps = row.steps
    while steps:
        step = steps & np.uint64(15)
        steps = steps >> np.uint64(4)
        greatest, first = left_greatest(x, tops, n_blocks, window)
        top = np.float64(greatest)
        if first < 0:
            break  # the logits are NaN
        if step == _TEMPERATURE:
            temperature = row.temperature
            if row.dynatemp_range > 0:
                mass, moment, count = left_masses(x, tops, n_blocks, window, greatest, 1.0)
                if count > 1:
                    share = min(max((np.log(mass) - moment / mass) / np.log(np.float64(count)), 0.0), 1.0)
                    least = max(temperature - row.dynatemp_range, 0.0)
                    varied = least + (temperature + row.dynatemp_range - least) * share**row.dynatemp_exponent
                    temperature = max(varied, 1e-6)
        elif step == _TOP_N_SIGMA:
            deviation = left_deviation(x, tops, n_blocks, window, greatest)
            window = _raised(window, up(top - row.top_n_sigma * deviation))
        elif step == _TOP_K:
            if row.top_k < vocab_size:
                window = _raised(window, kth_greatest(x, tops, n_blocks, row.top_k, ids, marks)[0])
        elif step == _TOP_P:
            if row.top_p < 1:
                window = _nucleus(row.top_p, x, tops, n_blocks, window, greatest, temperature, ids, weights)
        elif step == _MIN_P:
            if row.min_p > 0:
                window = _raised(window, up(top + temperature * np.log(row.min_p)))
        elif step == _TYPICAL_P:
            if row.typical_p < 1:
                window = _typical(row.typical_p, x, tops, n_blocks, window, greatest, temperature, ids, keys, weights, e)
        else:
            mass, moment, count = left_masses(x, tops, n_blocks, window, greatest, temperature)
            if step == _XTC:
                window = _exclude_top(row, x, tops, n_blocks, window, greatest, temperature, mass)
                continue
            if step == _EPSILON_CUTOFF:
                least = np.log(row.epsilon_cutoff)
            elif step == _ETA_CUTOFF:
                entropy = np.log(mass) - moment / mass
                least = min(np.log(row.eta_cutoff), np.log(row.eta_cutoff) / 2 - entropy)
            else:
                least = -np.log(2.0) * row.mirostat_mu
            floor = top + temperature * (least + np.log(mass))
            if floor <= top:
                window = _raised(window, up(floor))
            elif step == _MIROSTAT:
                window = (greatest, first, greatest, first)
            else:
                window = _raised(window, greatest)
    return window, temperature
