"""CPU kernels for what torch has no fast operation: attention over paged keys and values, and choosing the next tokens.

Each kernel is plain loops, compiled by numba once per machine. It works on one unit (a head of a token, a row) at a time, in an
order that depends on that unit alone, so the bits of a row depend neither on who else is in the batch nor on the thread count.

The compiled loops run inside torch's own OpenMP threads: a second pool beside torch's would fight its spinning workers for the
cores at every one of the dozens of small calls of a step.

`sampling.choose` and `cache.attend` are the same operations in plain torch.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, cfunc, from_dtype, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic, overload

from .sampling import EDIT, ROW

# Places in flat arrays are cast to uint64: a signed index that numba cannot prove positive may mean "from the end", and the
# test for that keeps loops from vectorising (27 ns a position of attention against 180).
FAST = {"reassoc", "contract", "nsz", "arcp"}
BLOCK = 64
"""Logits are scanned in blocks of this many: a block whose greatest logit cannot win is skipped whole."""
_LEAST = np.float32(-3e38)
GUMBEL_MAX = 22.9
"""No noise is greater: -log(-log(u)) at the greatest u, 1 - 2**-33, is 22.87."""

_ADDRESS = "i8"
ATTEND = np.dtype(
    [(name, "i8") for name in ("n_tokens", "n_kept", "width", "n_head", "page_size", "max_pages", "chunk")]
    + [(name, _ADDRESS) for name in ("next_unit", "qkv", "keys", "values", "out")]
    + [(name, _ADDRESS) for name in ("pages", "offsets", "kept", "tables", "table_rows", "lengths")]
)
CHOOSE = np.dtype(
    [(name, "i8") for name in ("n_rows", "stride", "vocab_size", "chunk")]
    + [(name, _ADDRESS) for name in ("next_unit", "logits", "rows", "order")]
)


_compiled_within = functools.partial(njit, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""For functions that only other kernels call: without the ways in from Python and C, numba compiles them in half the time."""


# -- words for numba that numba does not have --------------------------------------------------------------------------------


def _pointer_to(pointed):
    """A word that makes an int64 a pointer to ``pointed``, for `carray`."""

    @intrinsic
    def pointer(_typing, _address):
        def codegen(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(pointed)(types.int64), codegen

    return pointer


_int64_at, _int32_at = _pointer_to(types.int64), _pointer_to(types.int32)
_float32_at, _bfloat16_at = _pointer_to(types.float32), _pointer_to(types.uint16)
_row_at, _edit_at = _pointer_to(from_dtype(ROW)), _pointer_to(from_dtype(EDIT))


@intrinsic
def _take(_typing, _address, _count):
    """``_take(address, count)``: atomically add ``count`` to the int64 there, and return what it was before."""

    def codegen(_context, builder, _signature, args):
        counter = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


def _widen(x):
    """A stored number as float32. bfloat16 is stored as its 16 bits, float32 as itself."""
    raise NotImplementedError


@overload(_widen)
def _widen_overload(x):
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


def _store_narrow(to, at, x):
    """``to[at] = x``, rounded to nearest even where ``to`` is bfloat16."""
    raise NotImplementedError


@overload(_store_narrow)
def _store_narrow_overload(to, at, x):
    if to.dtype == types.uint16:

        def store(to, at, x):
            bits = np.float32(x).view(np.uint32)
            odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
            to[np.uint64(at)] = np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

        return store

    def store_as_is(to, at, x):
        to[np.uint64(at)] = x

    return store_as_is


@_compiled_within(fastmath=FAST)
def _exp(x):
    """exp of a float32 at most 0, to about 1 ulp (Cephes' expf); never below 1.6e-38. Unlike libm's, it vectorises."""
    x = max(x, np.float32(-87.0))
    n = np.int32(x * np.float32(1.44269504) - np.float32(0.5))
    r = x - np.float32(n) * np.float32(0.693359375) + np.float32(n) * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * np.int32(np.int32(n + np.int32(127)) << np.int32(23)).view(np.float32)


# -- attention ---------------------------------------------------------------------------------------------------------------


@_compiled_within(fastmath=FAST)
def _store(task, qkv, keys, values):
    """Write the keys and values of every token into its place in its page."""
    pages = carray(_int64_at(task.pages), task.n_tokens)
    offsets = carray(_int64_at(task.offsets), task.n_tokens)
    width, n_head, page_size = task.width, task.n_head, task.page_size
    head_size = width // n_head
    while True:
        begin = _take(task.next_unit, task.chunk)
        if begin >= task.n_tokens:
            return
        for token in range(begin, min(begin + task.chunk, task.n_tokens)):
            for head in range(n_head):
                to = ((pages[token] * n_head + head) * page_size + offsets[token]) * head_size
                k = token * 3 * width + width + head * head_size
                for d in range(head_size):
                    keys[np.uint64(to + d)] = qkv[np.uint64(k + d)]
                    values[np.uint64(to + d)] = qkv[np.uint64(k + width + d)]


@_compiled_within(fastmath=FAST)
def _score(q, keys, base, count, scores, first):
    """``scores[first:first + count] = keys @ q`` for one page of one head; the greatest of them."""
    size = q.size
    greatest = np.float32(-np.inf)
    for i in range(0, count - 3, 4):
        k0 = base + i * size
        k1, k2, k3 = k0 + size, k0 + 2 * size, k0 + 3 * size
        s0 = s1 = s2 = s3 = np.float32(0)
        for d in range(size):
            s0 += q[d] * _widen(keys[np.uint64(k0 + d)])
            s1 += q[d] * _widen(keys[np.uint64(k1 + d)])
            s2 += q[d] * _widen(keys[np.uint64(k2 + d)])
            s3 += q[d] * _widen(keys[np.uint64(k3 + d)])
        scores[first + i] = s0
        scores[first + i + 1] = s1
        scores[first + i + 2] = s2
        scores[first + i + 3] = s3
        greatest = max(max(greatest, max(s0, s1)), max(s2, s3))
    for i in range(count // 4 * 4, count):
        k0 = base + i * size
        s0 = np.float32(0)
        for d in range(size):
            s0 += q[d] * _widen(keys[np.uint64(k0 + d)])
        scores[first + i] = s0
        greatest = max(greatest, s0)
    return greatest


@_compiled_within(fastmath=FAST)
def _mix(weights, first, values, base, count, mixed):
    """``mixed += weights[first:first + count] @ values`` for one page of one head."""
    size = mixed.size
    for i in range(0, count - 3, 4):
        v0 = base + i * size
        v1, v2, v3 = v0 + size, v0 + 2 * size, v0 + 3 * size
        w0, w1, w2, w3 = weights[first + i], weights[first + i + 1], weights[first + i + 2], weights[first + i + 3]
        for d in range(size):
            low = w0 * _widen(values[np.uint64(v0 + d)]) + w1 * _widen(values[np.uint64(v1 + d)])
            mixed[d] += low + (w2 * _widen(values[np.uint64(v2 + d)]) + w3 * _widen(values[np.uint64(v3 + d)]))
    for i in range(count // 4 * 4, count):
        v0 = base + i * size
        w0 = weights[first + i]
        for d in range(size):
            mixed[d] += w0 * _widen(values[np.uint64(v0 + d)])


@_compiled_within(fastmath=FAST)
def _attend(task, qkv, keys, values, out):
    """Softmax attention of every kept token over its own past, one (token, head) at a time."""
    width, n_head, page_size, max_pages = task.width, task.n_head, task.page_size, task.max_pages
    kept = carray(_int64_at(task.kept), task.n_kept)
    table_rows = carray(_int64_at(task.table_rows), task.n_kept)
    lengths = carray(_int64_at(task.lengths), task.n_kept)
    size = width // n_head
    scale = np.float32(1 / np.sqrt(size))
    scores = np.empty(max_pages * page_size, np.float32)
    q = np.empty(size, np.float32)
    mixed = np.empty(size, np.float32)
    units = task.n_kept * n_head
    while True:
        begin = _take(task.next_unit, task.chunk)
        if begin >= units:
            return
        for unit in range(begin, min(begin + task.chunk, units)):
            place, head = unit // n_head, unit % n_head
            table = carray(_int32_at(task.tables + 4 * max_pages * table_rows[place]), max_pages)
            length = lengths[place]
            at = kept[place] * 3 * width + head * size
            for d in range(size):
                q[d] = scale * _widen(qkv[np.uint64(at + d)])
            greatest = np.float32(-np.inf)
            for first in range(0, length, page_size):
                base = (np.int64(table[first // page_size]) * n_head + head) * page_size * size
                greatest = max(greatest, _score(q, keys, base, min(page_size, length - first), scores, first))
            total = np.float32(0)
            for i in range(length):
                weight = _exp(scores[i] - greatest)
                scores[i] = weight
                total += weight
            for d in range(size):
                mixed[d] = np.float32(0)
            for first in range(0, length, page_size):
                base = (np.int64(table[first // page_size]) * n_head + head) * page_size * size
                _mix(scores, first, values, base, min(page_size, length - first), mixed)
            to = place * width + head * size
            for d in range(size):
                _store_narrow(out, to + d, mixed[d] / total)


# -- choosing tokens ---------------------------------------------------------------------------------------------------------


@_compiled_within()
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


@_compiled_within()
def _gumbel(word):
    return -np.log(-np.log((np.float64(word) + 0.5) / 4294967296.0))


@_compiled_within()
def _gumbel_of(row, token):
    """The noise of one token in one row."""
    key = np.uint64(row.noise_key)
    words = _philox(np.uint32(token // 4), np.uint32(row.position), np.uint32(row.sample_index), np.uint32(row.prompt_index),
                    np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32)))  # fmt: skip
    lane = token % 4
    return _gumbel(words[0] if lane == 0 else words[1] if lane == 1 else words[2] if lane == 2 else words[3])


@_compiled_within()
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


@_compiled_within(fastmath=FAST)
def _top_of_block(x, block):
    top = np.float32(-np.inf)
    for i in range(block * BLOCK, (block + 1) * BLOCK):
        top = max(top, x[i])
    return top


@_compiled_within(fastmath=FAST)
def _greatest(tops):
    greatest = tops[0]
    for block in range(tops.size):
        greatest = max(greatest, tops[block])
    return greatest


@_compiled_within()
def _first_block_with(tops, value):
    block = 0
    while tops[block] != value:
        block += 1
    return block


@_compiled_within(fastmath=FAST)
def _open(logits, begin, vocab_size, x, tops):
    """Widen a row's logits into ``x``, padded with -inf to whole blocks, and find each block's greatest; return the greatest"""
    for i in range(vocab_size):
        x[i] = _widen(logits[np.uint64(begin + i)])
    for i in range(vocab_size, x.size):
        x[i] = np.float32(-np.inf)
    for block in range(tops.size):
        tops[block] = _top_of_block(x, block)
    return _greatest(tops)


@_compiled_within(fastmath=FAST)
def _masses(x, vocab_size, greatest, inverse):
    """With ``e = exp((x - greatest) * inverse)``: the sums over the vocabulary of ``e``, and of ``e`` times that exponent."""
    mass = moment = 0.0
    for begin in range(0, vocab_size, 1024):
        part = part_moment = np.float32(0)
        for i in range(begin, min(begin + 1024, vocab_size)):
            shifted = (x[i] - greatest) * inverse
            e = _exp(shifted)
            part += e
            part_moment += e * shifted
        mass += np.float64(part)
        moment += np.float64(part_moment)
    return mass, moment


@_compiled_within()
def _gather(x, tops, threshold, ids):
    """Put the ids of all logits of at least ``threshold`` into ``ids``, ascending; how many."""
    count = 0
    for block in range(tops.size):
        if tops[block] >= threshold:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                ids[count] = i
                count += x[i] >= threshold
    return count


@_compiled_within()
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


@_compiled_within()
def _kth(x, ids, weights, count, k):
    """The k-th greatest of ``x[ids]``."""
    for i in range(count):
        weights[i] = 1.0
    kept = _split(x, ids, weights, count, np.float64(k))
    least = x[ids[0]]
    for i in range(kept):
        least = min(least, x[ids[i]])
    return least


@_compiled_within()
def _weigh(x, ids, weights, count, greatest, temperature):
    """``weights = exp((x[ids] - greatest) / temperature)``; their sum."""
    mass = 0.0
    for i in range(count):
        weights[i] = np.exp((np.float64(x[ids[i]]) - greatest) / temperature)
        mass += weights[i]
    return mass


@_compiled_within()
def _survivors(row, x, tops, vocab_size, greatest, ids, weights):
    """Put the ids that top_k, top_p and min_p leave into ``ids``; how many, or -1 for the whole vocabulary."""
    temperature = row.temperature
    count = -1
    if 0 < row.top_k < vocab_size:
        # The k-th greatest of the blocks' greatest is at most the k-th greatest logit: few are left to select among.
        bound = _LEAST
        if row.top_k <= tops.size:
            for block in range(tops.size):
                ids[block] = block
            bound = _kth(tops, ids, weights, tops.size, row.top_k)
        count = _gather(x, tops, bound, ids)
        count = _gather(x, tops, _kth(x, ids, weights, count, row.top_k), ids)
    if row.top_p < 1:
        if count >= 0:
            target = row.top_p * _weigh(x, ids, weights, count, greatest, temperature)
        else:
            target = row.top_p * _masses(x, vocab_size, np.float32(greatest), np.float32(1 / temperature))[0]
            # A cut that holds enough mass spares looking at the whole vocabulary; which cut it is does not change the outcome.
            depth = 4.0
            while True:
                cut = max(np.float32(greatest - depth * temperature), _LEAST)
                count = _gather(x, tops, cut, ids)
                if _weigh(x, ids, weights, count, greatest, temperature) >= target or count == vocab_size or cut == _LEAST:
                    break
                depth *= 2
        count = _split(x, ids, weights, count, target)
    if row.min_p > 0:
        least = greatest + temperature * np.log(row.min_p)
        if count < 0:
            count = _gather(x, tops, max(np.float32(least), _LEAST), ids)
        kept = 0
        for i in range(count):
            if np.float64(x[ids[i]]) >= least:
                ids[kept] = ids[i]
                kept += 1
        count = kept
    return count


@_compiled_within()
def _race(row, x, tops, vocab_size, words):
    """argmax(x / temperature + noise) over the whole vocabulary; only what can still win has its noise made."""
    temperature = row.temperature
    winner, best = -1, -np.inf
    start = _first_block_with(tops, _greatest(tops))
    quads = BLOCK // 4
    for step in range(tops.size + 1):
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


@_compiled_within()
def _edit(row, x, tops):
    """Apply logit_bias and the penalties to the few tokens they touch."""
    edits = carray(_edit_at(row.edits), row.n_edits)
    for i in range(row.n_edits):
        edit = edits[i]
        value = np.float64(x[edit.id]) + edit.bias
        if edit.seen:
            value = value * row.repetition_penalty if value < 0 else value / row.repetition_penalty
        if edit.count:
            value -= edit.count * row.frequency_penalty + row.presence_penalty
        x[edit.id] = np.float32(value)
        block = edit.id // BLOCK
        tops[block] = _top_of_block(x, block)


@_compiled_within()
def _choose_one(row, x, tops, ids, weights, words, vocab_size):
    """The next token of a row from its edited logits, and its log-probability under the distribution sampled from."""
    greatest = _greatest(tops)
    if row.temperature == 0:
        block = _first_block_with(tops, greatest)
        for i in range(block * BLOCK, (block + 1) * BLOCK):
            if x[i] == greatest:
                return i, 0.0
    count = _survivors(row, x, tops, vocab_size, np.float64(greatest), ids, weights)
    if count < 0:
        mass = _masses(x, vocab_size, greatest, np.float32(1 / row.temperature))[0]
        token = _race(row, x, tops, vocab_size, words)
    else:
        mass = _weigh(x, ids, weights, count, np.float64(greatest), row.temperature)
        token, best = -1, -np.inf
        for i in range(count):
            z = np.float64(x[ids[i]]) / row.temperature + _gumbel_of(row, ids[i])
            if z > best:
                token, best = ids[i], z
    return token, (np.float64(x[token]) - np.float64(greatest)) / row.temperature - np.log(mass)


@_compiled_within()
def _choose(task, logits):
    """Choose the next token of every row."""
    vocab_size = task.vocab_size
    rows = carray(_row_at(task.rows), task.n_rows)
    order = carray(_int64_at(task.order), task.n_rows)
    n_blocks = (vocab_size + BLOCK - 1) // BLOCK
    x = np.empty(n_blocks * BLOCK, np.float32)
    tops = np.empty(n_blocks, np.float32)
    ids = np.empty(n_blocks * BLOCK + 1, np.int64)
    weights = np.empty(n_blocks * BLOCK + 1, np.float64)
    words = np.empty(BLOCK, np.uint32)
    opened = -1
    greatest = np.float32(0)
    mass = moment = 0.0
    while True:
        begin = _take(task.next_unit, task.chunk)
        if begin >= task.n_rows:
            return
        for unit in range(begin, min(begin + task.chunk, task.n_rows)):
            row = rows[order[unit]]
            if row.logits_row != opened:
                greatest = _open(logits, row.logits_row * task.stride, vocab_size, x, tops)
                mass, moment = _masses(x, vocab_size, greatest, np.float32(1))
                opened = row.logits_row
            if row.n_edits:
                _edit(row, x, tops)
                opened = -1
            token, row.sampler_logprob = _choose_one(row, x, tops, ids, weights, words, vocab_size)
            row.token = token
            raw = np.float64(_widen(logits[row.logits_row * task.stride + token])) if token >= 0 else np.nan
            row.logprob = raw - np.float64(greatest) - np.log(mass)
            row.entropy = np.log(mass) - moment / mass


# -- from Python -------------------------------------------------------------------------------------------------------------

_ATTEND, _CHOOSE, _ANY = from_dtype(ATTEND), from_dtype(CHOOSE), 1 << 60


def _store_float32(tasks):
    task = carray(tasks, 1)[0]
    _store(
        task, carray(_float32_at(task.qkv), _ANY), carray(_float32_at(task.keys), _ANY), carray(_float32_at(task.values), _ANY)
    )


def _attend_float32(tasks):
    task = carray(tasks, 1)[0]
    _attend(
        task,
        carray(_float32_at(task.qkv), _ANY),
        carray(_float32_at(task.keys), _ANY),
        carray(_float32_at(task.values), _ANY),
        carray(_float32_at(task.out), _ANY),
    )


def _choose_float32(tasks):
    task = carray(tasks, 1)[0]
    _choose(task, carray(_float32_at(task.logits), _ANY))


def _store_bfloat16(tasks):
    task = carray(tasks, 1)[0]
    _store(
        task,
        carray(_bfloat16_at(task.qkv), _ANY),
        carray(_bfloat16_at(task.keys), _ANY),
        carray(_bfloat16_at(task.values), _ANY),
    )


def _attend_bfloat16(tasks):
    task = carray(tasks, 1)[0]
    _attend(
        task,
        carray(_bfloat16_at(task.qkv), _ANY),
        carray(_bfloat16_at(task.keys), _ANY),
        carray(_bfloat16_at(task.values), _ANY),
        carray(_bfloat16_at(task.out), _ANY),
    )


def _choose_bfloat16(tasks):
    task = carray(tasks, 1)[0]
    _choose(task, carray(_bfloat16_at(task.logits), _ANY))


_KERNELS: dict[tuple[str, torch.dtype], tuple[Callable[..., None], Any]] = {
    ("store", torch.float32): (_store_float32, _ATTEND),
    ("store", torch.bfloat16): (_store_bfloat16, _ATTEND),
    ("attend", torch.float32): (_attend_float32, _ATTEND),
    ("attend", torch.bfloat16): (_attend_bfloat16, _ATTEND),
    ("choose", torch.float32): (_choose_float32, _CHOOSE),
    ("choose", torch.bfloat16): (_choose_bfloat16, _CHOOSE),
}


@functools.cache
def _compiled(name: str, dtype: torch.dtype) -> Any:
    """The machine code of a kernel, from numba's cache on disk where one can be written."""
    loops, task = _KERNELS[name, dtype]
    signature = types.void(types.CPointer(task))
    try:
        return cfunc(signature, cache=True, error_model="numpy")(loops)
    except (RuntimeError, OSError):  # numba found no directory to cache in, or no space
        return cfunc(signature, error_model="numpy")(loops)


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP runtime that torch itself runs on, or None where it is not GNU's or cannot be found."""
    folder = Path(torch.__file__).parent
    for path in [*sorted((folder / "lib").glob("libgomp*")), *sorted(folder.with_name("torch.libs").glob("libgomp*"))]:
        try:
            library = ctypes.CDLL(str(path))
            library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            library.GOMP_parallel.restype = None
        except (OSError, AttributeError):
            continue
        return library
    return None


class Kernel:
    """A compiled kernel; called with the fields of its task record, arrays for addresses welcome."""

    def __init__(self, name: str, dtype: torch.dtype, record: np.dtype[Any]) -> None:
        self.name = name
        self._task = np.zeros((), record)
        self._next_unit = np.zeros(1, np.int64)
        self._task["next_unit"] = self._next_unit.ctypes.data
        compiled = _compiled(name, dtype)
        self._serial = compiled.ctypes
        self._address = compiled.address
        self._data = self._task.ctypes.data
        self._openmp = _openmp()

    def __call__(self, **fields: Any) -> None:
        for field, value in fields.items():
            self._task[field] = value.ctypes.data if isinstance(value, np.ndarray) else value
        self._next_unit[0] = 0
        threads = torch.get_num_threads()
        if self._openmp is None or threads == 1:
            self._serial(ctypes.cast(self._data, self._serial.argtypes[0]))
        else:
            self._openmp.GOMP_parallel(self._address, self._data, threads, 0)
