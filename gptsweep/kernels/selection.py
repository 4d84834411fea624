"""Selections among listed tokens: the k-th greatest, the likeliest that weigh enough, the nearest that weigh enough.

Each takes time in proportion to the number of listed tokens: nothing is sorted.
"""

from __future__ import annotations

import numpy as np

from .intrinsics import compiled, from_ordered, ordered
from .scan import LEAST, gather


@compiled()
def keep(x, ids, count, threshold):
    """Keep those of ``ids`` whose logits are at least ``threshold``, and return their number."""
    kept = 0
    for i in range(count):
        ids[kept] = ids[i]
        kept += np.float64(x[ids[i]]) >= threshold
    return kept


@compiled()
def split(x, ids, weights, count, target):
    """Move the fewest likeliest of ``ids`` that weigh ``target`` together to the front, and return their number.

    This is a quickselect by weight. The likelier token is the one with the greater ``x``, and among equals the one with the
    lower id. ``weights[i]``, above 0, belongs to ``ids[i]`` and moves with it.
    """
    low, high = 0, count
    reached = 0.0
    while high - low > 1:
        last = high - 1
        middle = (low + high) // 2
        ids[middle], ids[last] = ids[last], ids[middle]
        weights[middle], weights[last] = weights[last], weights[middle]
        pivot = ids[last]
        top = x[pivot]
        place = low
        weight = 0.0
        for i in range(low, last):
            value = x[ids[i]]
            if value > top or (value == top and ids[i] < pivot):
                ids[i], ids[place] = ids[place], ids[i]
                weights[i], weights[place] = weights[place], weights[i]
                weight += weights[place]
                place += 1
        ids[place], ids[last] = ids[last], ids[place]
        weights[place], weights[last] = weights[last], weights[place]
        if reached + weight >= target:
            high = place
        elif reached + weight + weights[place] >= target:
            return place + 1
        else:
            reached += weight + weights[place]
            low = place + 1
    return high


@compiled()
def _kth(marks, count, k):
    """Return the k-th greatest of the float32 numbers whose `_mark` are in ``marks``, found bit by bit from the highest bit."""
    found = np.uint32(0)
    for place in range(32):
        tried = np.uint32(found | np.uint32(np.uint32(0x80000000) >> np.uint32(place)))
        reached = np.int32(0)
        for i in range(count):
            reached += np.int32(marks[i] >= tried)
        if reached >= k:
            found = tried
    return from_ordered(np.int32(found ^ np.uint32(0x80000000)))


@compiled()
def _mark(x):
    """Map a float32 to a uint32 of the same order."""
    return np.uint32(np.uint32(ordered(x)) ^ np.uint32(0x80000000))


@compiled()
def kth_greatest(x, tops, n_blocks, k, ids, marks):
    """Return the k-th greatest logit of a row, and how many ids that may reach it are now in ``ids``, ascending."""
    # The k-th greatest of the blocks' maxima is at most the k-th greatest logit, so few logits are left to select from.
    bound = LEAST
    if k <= n_blocks:
        for block in range(n_blocks):
            marks[block] = _mark(tops[block])
        bound = _kth(marks, n_blocks, k)
    count = gather(x, tops, n_blocks, bound, ids)
    for i in range(count):
        marks[i] = _mark(x[ids[i]])
    return _kth(marks, count, min(k, count)), count


@compiled()
def weigh(x, ids, weights, count, greatest, temperature):
    """Set ``weights = exp((x[ids] - greatest) / temperature)``, and return their sum."""
    mass = 0.0
    for i in range(count):
        weights[i] = np.exp((np.float64(x[ids[i]]) - greatest) / temperature)
        mass += weights[i]
    return mass


@compiled()
def quantile(keys, weights, count, target):
    """Return the least of ``keys`` up to which the weights sum to at least ``target``; the greatest where they do not."""
    low, high = 0, count
    reached = 0.0
    while high - low > 1:
        pivot = keys[(low + high) // 2]
        less, place, greater = low, low, high
        below = equal = 0.0
        while place < greater:
            if keys[place] < pivot:
                below += weights[place]
                keys[place], keys[less] = keys[less], keys[place]
                weights[place], weights[less] = weights[less], weights[place]
                less += 1
                place += 1
            elif keys[place] > pivot:
                greater -= 1
                keys[place], keys[greater] = keys[greater], keys[place]
                weights[place], weights[greater] = weights[greater], weights[place]
            else:
                equal += weights[place]
                place += 1
        if reached + below >= target and less > low:
            high = less
        elif reached + below + equal >= target or greater == count:
            return pivot
        else:
            reached += below + equal
            low = greater
    return keys[min(low, count - 1)]
