"""The kernel ``sample``: the next token of each row, from its logits, its settings and its counter-based noise.

The tokens are those of the plain sampler. Logits are scanned in blocks, each with its greatest: a block whose greatest cannot
survive a truncation, or cannot win with the greatest noise there is, is skipped whole.
"""

from __future__ import annotations

import numpy as np
from numba import carray, from_dtype

from .abi import ADJUSTMENT, BLOCK, ROW, STEPS
from .intrinsics import (
    FAST,
    compiled,
    exp,
    float32_at,
    float64_at,
    from_ordered,
    greatest_of,
    int64_at,
    ordered,
    pointer_to,
    take,
    uint8_at,
    uint32_at,
    widen,
)

_LEAST = np.float32(-3e38)
GUMBEL_MAX = 22.9
"""No noise is greater: -log(-log(u)) at the greatest u, 1 - 2**-33, is 22.87."""

_LISTED = 4096
"""Typical sampling lists no more tokens than this, if it can help it."""
LAST = 2**62
"""Above every token id."""
(
    _TEMPERATURE, _TOP_N_SIGMA, _TOP_K, _TOP_P, _MIN_P, _TYPICAL_P, _EPSILON_CUTOFF, _ETA_CUTOFF, _XTC, _MIROSTAT
) = range(1, len(STEPS) + 1)  # fmt: skip

_row_at, _adjustment_at = pointer_to(from_dtype(ROW)), pointer_to(from_dtype(ADJUSTMENT))


@compiled()
def _philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 (Salmon et al., SC'11): four uint32 words for a uint32 counter and key."""
    for _ in range(10):
        p0 = np.uint64(c0) * np.uint64(0xD2511F53)
        p1 = np.uint64(c2) * np.uint64(0xCD9E8D57)
        c0 = np.uint32(np.uint32(p1 >> np.uint64(32)) ^ c1 ^ k0)
        c2 = np.uint32(np.uint32(p0 >> np.uint64(32)) ^ c3 ^ k1)
        c1 = np.uint32(p1)
        c3 = np.uint32(p0)
        k0 = np.uint32(k0 + np.uint32(0x9E3779B9))
        k1 = np.uint32(k1 + np.uint32(0xBB67AE85))
    return c0, c1, c2, c3


@compiled()
def _gumbel(word):
    return -np.log(-np.log((np.float64(word) + 0.5) / 4294967296.0))


@compiled()
def _gumbel_of(row, token):
    """The noise of one token in one row."""
    key = np.uint64(row.noise_key)
    words = _philox(np.uint32(token // 4), np.uint32(row.position), np.uint32(row.sample_index), np.uint32(row.prompt_index),
                    np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32)))  # fmt: skip
    lane = token % 4
    return _gumbel(words[0] if lane == 0 else words[1] if lane == 1 else words[2] if lane == 2 else words[3])


@compiled()
def _block_words(row, block, words):
    """The noise words of all tokens of a block; `_gumbel_of`'s, a block at a time so that it vectorises."""
    key = np.uint64(row.noise_key)
    k0, k1 = np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32))
    position, sample, prompt = np.uint32(row.position), np.uint32(row.sample_index), np.uint32(row.prompt_index)
    quads = BLOCK // 4
    for i in range(quads):
        w0, w1, w2, w3 = _philox(np.uint32(block * quads + i), position, sample, prompt, k0, k1)
        words[i] = w0
        words[quads + i] = w1
        words[2 * quads + i] = w2
        words[3 * quads + i] = w3


@compiled()
def _blocks(vocab_size):
    return (vocab_size + BLOCK - 1) // BLOCK


@compiled()
def _first_block_with(tops, n_blocks, value):
    """The first block whose greatest is ``value``, or the last where none is, which NaN brings about."""
    block = 0
    while block < n_blocks - 1 and tops[block] != value:
        block += 1
    return block


@compiled(fastmath=FAST)
def _open(logits, begin, vocab_size, x, tops):
    """Widen a row's logits into ``x``, padded with -inf to whole blocks, and find each block's greatest; return the greatest"""
    n_blocks = _blocks(vocab_size)
    for i in range(vocab_size):
        x[i] = widen(logits[begin + i])
    for i in range(vocab_size, n_blocks * BLOCK):
        x[i] = np.float32(-np.inf)
    for block in range(n_blocks):
        tops[block] = greatest_of(x, block * BLOCK, BLOCK)
    return greatest_of(tops, 0, n_blocks)


@compiled(fastmath=FAST)
def _masses(x, vocab_size, greatest, inverse):
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
def _gather(x, tops, n_blocks, threshold, ids):
    """Put the ids of all logits of at least ``threshold`` into ``ids``, ascending; how many."""
    count = 0
    for block in range(n_blocks):
        if tops[block] >= threshold:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                ids[count] = i
                count += x[i] >= threshold
    return count


@compiled()
def _keep(x, ids, count, threshold):
    """Keep those of ``ids`` whose logits are at least ``threshold``; how many."""
    kept = 0
    for i in range(count):
        ids[kept] = ids[i]
        kept += np.float64(x[ids[i]]) >= threshold
    return kept


@compiled()
def _split(x, ids, weights, count, target):
    """Put the likeliest of ``ids`` first, as few as weigh ``target`` together; how many those are.

    A quickselect by weight. The likelier is the one with the greater ``x``, and among equals the lower id. ``weights[i]``,
    above 0, belongs to ``ids[i]`` and moves with it.
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
    """The k-th greatest of the float32 whose `_mark` are in ``marks``: its bits, found from the highest on."""
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
    """A uint32 for a float32, ordered as they are."""
    return np.uint32(np.uint32(ordered(x)) ^ np.uint32(0x80000000))


@compiled()
def _weigh(x, ids, weights, count, greatest, temperature):
    """``weights = exp((x[ids] - greatest) / temperature)``; their sum."""
    mass = 0.0
    for i in range(count):
        weights[i] = np.exp((np.float64(x[ids[i]]) - greatest) / temperature)
        mass += weights[i]
    return mass


@compiled()
def _survivors(row, x, tops, vocab_size, greatest, ids, weights, marks):
    """Put the ids that top_k, top_p and min_p leave into ``ids``; how many, or -1 for the whole vocabulary."""
    temperature, n_blocks = row.temperature, _blocks(vocab_size)
    count = -1
    if 0 < row.top_k < vocab_size:
        # The k-th greatest of the blocks' greatest is at most the k-th greatest logit: few are left to select among.
        bound = _LEAST
        if row.top_k <= n_blocks:
            for block in range(n_blocks):
                marks[block] = _mark(tops[block])
            bound = _kth(marks, n_blocks, row.top_k)
        count = _gather(x, tops, n_blocks, bound, ids)
        for i in range(count):
            marks[i] = _mark(x[ids[i]])
        count = _keep(x, ids, count, np.float64(_kth(marks, count, min(row.top_k, count))))
    if row.top_p < 1:
        if count >= 0:
            target = row.top_p * _weigh(x, ids, weights, count, greatest, temperature)
        else:
            target = row.top_p * _masses(x, vocab_size, np.float32(greatest), np.float32(1 / temperature))[0]
            if not target < np.inf:
                return 0  # logits that are not numbers, of which no cut holds enough
            # A cut that holds enough mass spares looking at the whole vocabulary; which cut it is does not change the outcome.
            depth = 4.0
            while True:
                cut = max(np.float32(greatest - depth * temperature), _LEAST)
                count = _gather(x, tops, n_blocks, cut, ids)
                if _weigh(x, ids, weights, count, greatest, temperature) >= target or count == vocab_size or cut == _LEAST:
                    break
                depth *= 2
        count = _split(x, ids, weights, count, target)
    if row.min_p > 0:
        least = greatest + temperature * np.log(row.min_p)
        if count < 0:
            count = _gather(x, tops, n_blocks, max(np.float32(least), _LEAST), ids)
        count = _keep(x, ids, count, least)
    return count


@compiled()
def _gumbel_argmax(row, x, tops, vocab_size, words):
    """argmax(x / temperature + noise) over the whole vocabulary; only what can still win has its noise made."""
    temperature, n_blocks = row.temperature, _blocks(vocab_size)
    winner, best = -1, -np.inf
    start = _first_block_with(tops, n_blocks, greatest_of(tops, 0, n_blocks))
    quads = BLOCK // 4
    for step in range(n_blocks + 1):
        block = start if step == 0 else step - 1
        if step > 0 and block == start:
            continue
        needed = best - np.float64(tops[block]) / temperature
        if needed > GUMBEL_MAX:
            continue
        least = np.floor(np.exp(-np.exp(-needed)) * 4294967296.0) - 2.0
        cut = np.uint32(max(least, 0.0))
        _block_words(row, block, words)
        for place in range(BLOCK):
            if words[place] >= cut:
                token = block * BLOCK + place % quads * 4 + place // quads
                if token < vocab_size:
                    z = np.float64(x[token]) / temperature + _gumbel(words[place])
                    if z > best or (z == best and token < winner):
                        winner, best = token, z
    return winner


@compiled()
def _repetitions(text, n, lengths):
    """``lengths[k]``, for k from 1 to n: how many of the last ids of ``text[:n]`` stand before its k-th last (Z-algorithm)."""
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
    return min(row.dry_multiplier * row.dry_base ** np.float64(length - row.dry_allowed_length), 1e30)


@compiled()
def _change(x, tops, token, value):
    x[token] = np.float32(value)
    block = token // BLOCK
    tops[block] = greatest_of(x, block * BLOCK, BLOCK)


@compiled()
def _adjust(row, x, tops, marks, lengths, suppresses):
    """Apply logit_bias, the penalties, DRY and, if ``suppresses``, bans to the few tokens they touch.

    For DRY, ``marks`` holds the longest repetition that a token would go on with, of the tokens that are looked at alone.
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
    """Ban the tokens that would make ``no_repeat_ngram`` tokens come twice."""
    text = int64_at(row.text)
    _repetitions(text, row.n_text, lengths)
    for k in range(1, row.n_text + 1):
        if lengths[k] >= row.no_repeat_ngram - 1 and x[text[row.n_text - k]] > -np.inf:
            _change(x, tops, text[row.n_text - k], -np.inf)


@compiled()
def _adjust_and_ban(row, logits, begin, vocab_size, x, tops, marks, lengths):
    """`_adjust`, and bans; those of n-grams, and those of tokens, are left out where they leave no token."""
    for attempt in range(4):
        if attempt:
            _open(logits, begin, vocab_size, x, tops)
        _adjust(row, x, tops, marks, lengths, attempt % 2 == 0)
        if row.no_repeat_ngram and row.n_text and attempt < 2:
            _ban_repetitions(row, x, tops, lengths)
        if greatest_of(tops, 0, _blocks(vocab_size)) > -np.inf:
            break


# -- rows with other steps, or in another order --------------------------------------------------------------------------------
#
# Every step leaves the logits in a window: at least `low`, at most `high`; of those equal to `low` the ids up to `low_last`, of
# those equal to `high` the ids from `high_first` on. Nothing is gathered that a block's greatest logit can rule out.


@compiled()
def _up(value):
    """The least float32 that is not below ``value``."""
    near = np.float32(value)
    return from_ordered(np.int32(ordered(near) + 1)) if np.float64(near) < value else near


@compiled()
def _down(value):
    """The greatest float32 that is not above ``value``."""
    near = np.float32(value)
    return from_ordered(np.int32(ordered(near) - 1)) if np.float64(near) > value else near


@compiled()
def _is_left(value, token, window):
    low, low_last, high, high_first = window
    return (value > low or (value == low and token <= low_last)) and (value < high or (value == high and token >= high_first))


@compiled()
def _few(tops, n_blocks, low):
    """Whether few blocks have a logit of ``low`` or more: then float64 costs nothing."""
    live = 0
    for block in range(n_blocks):
        live += tops[block] >= low
    return live <= 16


@compiled(fastmath=FAST)
def _block_mass(x, begin, low, high, greatest, inverse):
    """`_masses` of one block's logits from ``low`` to ``high``, and how many they are."""
    part = part_moment = part_count = np.float32(0)
    for i in range(begin, begin + BLOCK):
        value = x[i]
        shifted = min(max((value - greatest) * inverse, np.float32(-87)), np.float32(0))
        left = np.float32(1) if value >= low else np.float32(0)
        left = left if value <= high else np.float32(0)
        e = exp(shifted) * left
        part += e
        part_moment += e * shifted
        part_count += left
    return part, part_moment, part_count


@compiled()
def _left_masses(x, tops, n_blocks, window, greatest, temperature):
    """`_masses` of what is left, and how many tokens that is."""
    low, low_last, high, high_first = window
    mass = moment = 0.0
    count = 0
    few = low_last != LAST or high_first != 0 or _few(tops, n_blocks, low)
    for block in range(n_blocks):
        if tops[block] < low:
            continue
        if few:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                if _is_left(x[i], i, window):
                    shifted = (np.float64(x[i]) - np.float64(greatest)) / temperature
                    e = np.exp(shifted)
                    mass += e
                    moment += e * shifted
                    count += 1
        else:
            part, part_moment, some = _block_mass(x, block * BLOCK, low, high, greatest, np.float32(1 / temperature))
            mass += np.float64(part)
            moment += np.float64(part_moment)
            count += np.int64(some)
    return mass, moment, count


@compiled()
def _left_greatest(x, tops, n_blocks, window):
    """The greatest logit that is left, and the first id that has it."""
    best, first = np.float32(-np.inf), -1
    for block in range(n_blocks):
        if tops[block] >= window[0] and tops[block] > best:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                if x[i] > best and _is_left(x[i], i, window):
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
def _left_deviation(x, tops, n_blocks, window, greatest):
    """The standard deviation of the logits that are left, which are a whole window."""
    total = squares = 0.0
    count = 0
    few = _few(tops, n_blocks, window[0])
    for block in range(n_blocks):
        if tops[block] < window[0]:
            continue
        if few:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                left = _is_left(x[i], i, window)
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
def _gather_left(x, tops, n_blocks, window, ids):
    count = 0
    for block in range(n_blocks):
        if tops[block] >= window[0]:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                ids[count] = i
                count += _is_left(x[i], i, window)
    return count


@compiled()
def _quantile(keys, weights, count, target):
    """The least of ``keys`` up to which the weights reach ``target``; the greatest where they do not."""
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


@compiled()
def _typical(p, x, tops, n_blocks, window, greatest, temperature, ids, keys, weights):
    """The window of the tokens whose surprise is nearest to the entropy, as many as weigh ``p`` of all together."""
    mass, moment, count = _left_masses(x, tops, n_blocks, window, greatest, temperature)
    low, low_last, high, high_first = window
    top = np.float64(greatest)
    # Of x, the surprise is off by |(x - greatest) / temperature - center|.
    center = moment / mass
    target = p * mass
    near, far = 0.0, np.inf
    within = 0.0
    if count > _LISTED:
        tried = 1.0
        for _ in range(12):
            floor, ceiling = _up(top + temperature * (center - tried)), _down(top + temperature * (center + tried))
            inner = (
                max(low, floor),
                low_last if low >= floor else LAST,
                min(high, ceiling),
                high_first if high <= ceiling else 0,
            )
            reached = _left_masses(x, tops, n_blocks, inner, greatest, temperature)[0]
            if reached < target:
                near, within = tried, reached
            else:
                far = tried
            if far < np.inf and (near > 0 or tried < 0.02):
                if far - near < 0.02:
                    break
                tried = (near + far) / 2
            else:
                tried = tried / 2 if far < np.inf else tried * 2
    floor, ceiling = max(low, _up(top + temperature * (center - far))), min(high, _down(top + temperature * (center + far)))
    listed = _gather_left(
        x, tops, n_blocks, (floor, low_last if floor == low else LAST, ceiling, high_first if ceiling == high else 0), ids
    )
    found = 0
    for place in range(listed):
        shifted = (np.float64(x[ids[place]]) - top) / temperature
        off = abs(shifted - center)
        if off > near or near == 0.0:
            keys[found] = off
            weights[found] = np.exp(shifted)
            found += 1
    if found == 0:
        return window
    last = _quantile(keys, weights, found, target - within)
    floor, ceiling = np.float32(np.inf), np.float32(-np.inf)
    for place in range(listed):
        if abs((np.float64(x[ids[place]]) - top) / temperature - center) <= last:
            floor, ceiling = min(floor, x[ids[place]]), max(ceiling, x[ids[place]])
    return (floor, low_last if floor == low else LAST, ceiling, high_first if ceiling == high else 0)


@compiled()
def _nucleus(p, x, tops, n_blocks, window, greatest, temperature, ids, weights):
    """The window of the fewest likeliest tokens that weigh ``p`` of all together."""
    low, low_last, high, high_first = window
    mass = _left_masses(x, tops, n_blocks, window, greatest, temperature)[0]
    target = p * mass
    depth = 4.0
    while True:
        cut = max(np.float32(np.float64(greatest) - depth * temperature), low)
        inner = (cut, low_last if cut == low else LAST, high, high_first)
        count = _gather_left(x, tops, n_blocks, inner, ids)
        if _weigh(x, ids, weights, count, np.float64(greatest), temperature) >= target or cut == low:
            break
        depth *= 2
    count = _split(x, ids, weights, count, target)
    floor = np.float32(np.inf)
    for i in range(count):
        floor = min(floor, x[ids[i]])
    last = -1
    for i in range(count):
        if x[ids[i]] == floor:
            last = max(last, ids[i])
    return (floor, last, high, high_first)


@compiled()
def _kth_greatest(x, tops, n_blocks, k, ids, marks):
    """The k-th greatest logit of a row, and ties make it no smaller."""
    bound = _LEAST
    if k <= n_blocks:
        for block in range(n_blocks):
            marks[block] = _mark(tops[block])
        bound = _kth(marks, n_blocks, k)
    count = _gather(x, tops, n_blocks, bound, ids)
    for i in range(count):
        marks[i] = _mark(x[ids[i]])
    return _kth(marks, count, min(k, count))


@compiled()
def _exclude_top(row, x, tops, n_blocks, window, greatest, temperature, mass):
    """XTC's window."""
    key = np.uint64(row.noise_key)
    word = _philox(np.uint32(0), np.uint32(row.position), np.uint32(row.sample_index),
                   np.uint32(np.uint32(row.prompt_index) | np.uint32(0x80000000)),
                   np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32)))[0]  # fmt: skip
    if (np.float64(word) + 0.5) / 4294967296.0 >= row.xtc_probability:
        return window
    low, low_last, high, high_first = window
    bound = _up(np.float64(greatest) + temperature * (np.log(row.xtc_threshold) + np.log(mass)))
    floor = max(low, bound)
    inner = (floor, low_last if floor == low else LAST, high, high_first)
    least, last, count = np.float32(np.inf), -1, 0
    for block in range(n_blocks):
        if tops[block] >= floor:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                if _is_left(x[i], i, inner):
                    count += 1
                    if x[i] <= least:
                        least, last = x[i], i
    return (low, low_last, least, last) if count > 1 else window


@compiled()
def _raised(window, floor):
    """A window without what is below ``floor``."""
    low, _, high, high_first = window
    return (floor, LAST, high, high_first) if floor > low else window


@compiled()
def _window(row, x, tops, vocab_size, ids, weights, marks, keys):
    """What the steps of a row leave, in their order, and the temperature."""
    n_blocks = _blocks(vocab_size)
    window = (_LEAST, LAST, np.float32(np.inf), 0)
    temperature = 1.0
    steps = row.steps
    while steps:
        step = steps & np.uint64(15)
        steps = steps >> np.uint64(4)
        greatest, first = _left_greatest(x, tops, n_blocks, window)
        top = np.float64(greatest)
        if first < 0:
            break  # logits that are not numbers
        if step == _TEMPERATURE:
            temperature = row.temperature
            if row.dynatemp_range > 0:
                mass, moment, count = _left_masses(x, tops, n_blocks, window, greatest, 1.0)
                if count > 1:
                    share = min(max((np.log(mass) - moment / mass) / np.log(np.float64(count)), 0.0), 1.0)
                    least = max(temperature - row.dynatemp_range, 0.0)
                    varied = least + (temperature + row.dynatemp_range - least) * share**row.dynatemp_exponent
                    temperature = max(varied, 1e-6)
        elif step == _TOP_N_SIGMA:
            deviation = _left_deviation(x, tops, n_blocks, window, greatest)
            window = _raised(window, _up(top - row.top_n_sigma * deviation))
        elif step == _TOP_K:
            if row.top_k < vocab_size:
                window = _raised(window, _kth_greatest(x, tops, n_blocks, row.top_k, ids, marks))
        elif step == _TOP_P:
            if row.top_p < 1:
                window = _nucleus(row.top_p, x, tops, n_blocks, window, greatest, temperature, ids, weights)
        elif step == _MIN_P:
            if row.min_p > 0:
                window = _raised(window, _up(top + temperature * np.log(row.min_p)))
        elif step == _TYPICAL_P:
            if row.typical_p < 1:
                window = _typical(row.typical_p, x, tops, n_blocks, window, greatest, temperature, ids, keys, weights)
        else:
            mass, moment, count = _left_masses(x, tops, n_blocks, window, greatest, temperature)
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
                window = _raised(window, _up(floor))
            elif step == _MIROSTAT:
                window = (greatest, first, greatest, first)
            else:
                window = _raised(window, greatest)
    return window, temperature


@compiled()
def _left_argmax(row, x, tops, vocab_size, window, temperature, words):
    """`_gumbel_argmax` over what is left."""
    n_blocks, quads = _blocks(vocab_size), BLOCK // 4
    winner, best = -1, -np.inf
    for block in range(n_blocks):
        if tops[block] < window[0]:
            continue
        needed = best - np.float64(min(tops[block], window[2])) / temperature
        if needed > GUMBEL_MAX:
            continue
        least = np.floor(np.exp(-np.exp(-needed)) * 4294967296.0) - 2.0
        cut = np.uint32(max(least, 0.0))
        _block_words(row, block, words)
        for place in range(BLOCK):
            if words[place] >= cut:
                token = block * BLOCK + place % quads * 4 + place // quads
                if token < vocab_size and _is_left(x[token], token, window):
                    z = np.float64(x[token]) / temperature + _gumbel(words[place])
                    if z > best or (z == best and token < winner):
                        winner, best = token, z
    return winner


@compiled()
def _sample_in_window(row, x, tops, ids, weights, marks, words, keys, vocab_size):
    """As `_sample_one`, for a row with ``steps``."""
    n_blocks = _blocks(vocab_size)
    window, temperature = _window(row, x, tops, vocab_size, ids, weights, marks, keys)
    greatest, first = _left_greatest(x, tops, n_blocks, window)
    if first < 0:
        return -1, 0.0, 0
    mass, _, count = _left_masses(x, tops, n_blocks, window, greatest, temperature)
    token = _left_argmax(row, x, tops, vocab_size, window, temperature, words)
    return token, (np.float64(x[token]) - np.float64(greatest)) / temperature - np.log(mass), count


@compiled()
def _sample_one(row, x, tops, ids, weights, marks, words, vocab_size):
    """The next token of a row from its adjusted logits, its log-probability under the distribution sampled from, and how many
    tokens that has; -1 for all that no adjustment bans."""
    greatest = greatest_of(tops, 0, _blocks(vocab_size))
    if row.temperature == 0:
        block = _first_block_with(tops, _blocks(vocab_size), greatest)
        for i in range(block * BLOCK, (block + 1) * BLOCK):
            if x[i] == greatest:
                return i, 0.0, 1
    count = _survivors(row, x, tops, vocab_size, np.float64(greatest), ids, weights, marks)
    if count < 0:
        mass = _masses(x, vocab_size, greatest, np.float32(1 / row.temperature))[0]
        token = _gumbel_argmax(row, x, tops, vocab_size, words)
    else:
        mass = _weigh(x, ids, weights, count, np.float64(greatest), row.temperature)
        token, best = -1, -np.inf
        for i in range(count):
            z = np.float64(x[ids[i]]) / row.temperature + _gumbel_of(row, ids[i])
            if z > best:
                token, best = ids[i], z
    return token, (np.float64(x[token]) - np.float64(greatest)) / row.temperature - np.log(mass), count


@compiled(fastmath=FAST)
def _possible(x, vocab_size):
    """How many logits are not -inf."""
    count = np.int32(0)
    for i in range(vocab_size):
        count += np.int32(x[i] >= _LEAST)
    return np.int64(count)


@compiled()
def _sample(task, logits):
    """Sample the next token of every row."""
    vocab_size = task.vocab_size
    rows = carray(_row_at(task.rows), task.n_rows)
    order = carray(int64_at(task.order), task.n_rows)
    n_blocks = _blocks(vocab_size)
    places = (n_blocks + 1) * BLOCK
    scratch = take(task.next_scratch, task.scratch)
    ids, weights = int64_at(scratch), float64_at(scratch + 8 * places)
    keys = float64_at(scratch + 28 * places + 4 * BLOCK)
    lengths = int64_at(scratch + 36 * places + 4 * BLOCK)
    x, marks = float32_at(scratch + 16 * places), uint32_at(scratch + 20 * places)
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
                greatest = _open(logits, row.logits_row * task.stride, vocab_size, x, tops)
                mass, moment = _masses(x, vocab_size, greatest, np.float32(1))
                opened = row.logits_row
            if row.n_adjustments or row.n_text:
                _adjust_and_ban(row, logits, row.logits_row * task.stride, vocab_size, x, tops, marks, lengths)
                opened = -1
            if row.steps:
                token, logprob, left = _sample_in_window(row, x, tops, ids, weights, marks, words, keys, vocab_size)
            else:
                token, logprob, left = _sample_one(row, x, tops, ids, weights, marks, words, vocab_size)
            row.token, row.sampler_logprob, row.survivors = token, logprob, left
            if left < 0:
                row.survivors = vocab_size if opened >= 0 else _possible(x, vocab_size)
            raw = np.float64(widen(logits[row.logits_row * task.stride + token])) if token >= 0 else np.nan
            row.logprob = raw - np.float64(greatest) - np.log(mass)
            row.entropy = np.log(mass) - moment / mass


def sample_by(at):
    def sample(tasks):
        task = carray(tasks, 1)[0]
        _sample(task, at(task.logits))

    return sample
