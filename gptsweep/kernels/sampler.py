"""The kernel ``sample``: the next token of each row, from its logits, its settings and its counter-based noise.

The tokens are those of the plain sampler. Logits are scanned in blocks, each with its greatest: a block whose greatest cannot
survive a truncation, or cannot win with the greatest noise there is, is skipped whole.
"""

from __future__ import annotations

import numpy as np
from numba import carray, from_dtype

from .abi import ADJUSTMENT, BLOCK, ROW
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
    uint32_at,
    widen,
)

_LEAST = np.float32(-3e38)
GUMBEL_MAX = 22.9
"""No noise is greater: -log(-log(u)) at the greatest u, 1 - 2**-33, is 22.87."""

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
def _adjust(row, x, tops):
    """Apply logit_bias and the penalties to the few tokens they touch."""
    adjustments = carray(_adjustment_at(row.adjustments), row.n_adjustments)
    for i in range(row.n_adjustments):
        adjustment = adjustments[i]
        value = np.float64(x[adjustment.id]) + adjustment.bias
        if adjustment.seen:
            value = value * row.repetition_penalty if value < 0 else value / row.repetition_penalty
        if adjustment.count:
            value -= adjustment.count * row.frequency_penalty + row.presence_penalty
        x[adjustment.id] = np.float32(value)
        block = adjustment.id // BLOCK
        tops[block] = greatest_of(x, block * BLOCK, BLOCK)


@compiled()
def _sample_one(row, x, tops, ids, weights, marks, words, vocab_size):
    """The next token of a row from its adjusted logits, and its log-probability under the distribution sampled from."""
    greatest = greatest_of(tops, 0, _blocks(vocab_size))
    if row.temperature == 0:
        block = _first_block_with(tops, _blocks(vocab_size), greatest)
        for i in range(block * BLOCK, (block + 1) * BLOCK):
            if x[i] == greatest:
                return i, 0.0
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
    return token, (np.float64(x[token]) - np.float64(greatest)) / row.temperature - np.log(mass)


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
            if row.n_adjustments:
                _adjust(row, x, tops)
                opened = -1
            token, row.sampler_logprob = _sample_one(row, x, tops, ids, weights, marks, words, vocab_size)
            row.token = token
            raw = np.float64(widen(logits[row.logits_row * task.stride + token])) if token >= 0 else np.nan
            row.logprob = raw - np.float64(greatest) - np.log(mass)
            row.entropy = np.log(mass) - moment / mass


def sample_by(at):
    def sample(tasks):
        task = carray(tasks, 1)[0]
        _sample(task, at(task.logits))

    return sample
