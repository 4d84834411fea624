"""The kernels ``store`` and ``attend``: keys and values into their pages, and attention over them.

A word is what fills 32 bits: one float32, or two bfloat16. A page of keys is ``[head_size / per_word, PAGE, per_word]``, a page
of values ``[PAGE / per_word, head_size, per_word]``: a vector of words then lies across what is not summed over, and one
instruction widens it. Pages and vectors are equally wide. ``head_lanes``, a multiple of that width, stands for head_size.

Every sum is over one token's own positions, in an order that depends on that token alone.
"""

from __future__ import annotations

import itertools

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from .abi import HEADS, PAGE, TILE
from .intrinsics import (
    FAST,
    FLOATS,
    INT64,
    WORDS,
    compiled,
    exp,
    float32_at,
    floats_at,
    greatest_of,
    int32_at,
    int64_at,
    store_narrow,
    take,
    widen,
)

_I = types.int64


@compiled()
def _store_head(task, qkv, keys, values, token, head):
    """Write the keys and values of one head of a token into their page."""
    page, offset = int64_at(task.pages)[token], int64_at(task.offsets)[token]
    head_size, lanes = task.width // task.n_head, task.head_lanes
    per_word = _per_word(keys)
    begin = (page * task.n_head + head) * PAGE * lanes
    k = token * 3 * task.width + task.width + head * head_size
    v = k + task.width
    k_to = begin + offset * per_word
    v_to = begin + offset // per_word * per_word * lanes + offset % per_word
    for d in range(head_size):
        keys[k_to + d // per_word * per_word * PAGE + d % per_word] = qkv[k + d]
        values[v_to + d * per_word] = qkv[v + d]


@compiled()
def _store(task, qkv, keys, values):
    """Write the keys and values of every token into its place in its page."""
    while True:
        begin = take(task.next_unit, task.chunk)
        if begin >= task.n_tokens:
            return
        for token in range(begin, min(begin + task.chunk, task.n_tokens)):
            for head in range(task.n_head):
                _store_head(task, qkv, keys, values, token, head)


def _per_word(pointer):
    """How many numbers behind ``pointer`` fill 32 bits."""
    raise NotImplementedError


@overload(_per_word)
def _per_word_overload(pointer):
    per_word = 2 if pointer.dtype == types.uint16 else 1
    return lambda pointer: per_word


def _numbers_in_a_word(number):
    return 1 if number == ir.FloatType() else 2


def _load(builder, pointer, at):
    """The vector of words at ``pointer[at]``, widened: a float32 vector for each number of a word."""
    place = builder.bitcast(builder.gep(pointer, [at]), WORDS.as_pointer())
    bits = builder.load(place, align=2)
    if _numbers_in_a_word(pointer.type.pointee) == 1:
        return [builder.bitcast(bits, FLOATS)]
    low = builder.shl(bits, ir.Constant(WORDS, [16] * PAGE))
    high = builder.and_(bits, ir.Constant(WORDS, [0xFFFF0000] * PAGE))
    return [builder.bitcast(low, FLOATS), builder.bitcast(high, FLOATS)]


def _in_all_lanes(builder, pointer, at):
    """A float32 vector with ``pointer[at]`` in every lane."""
    undefined = ir.Constant(FLOATS, ir.Undefined)
    single = builder.insert_element(undefined, builder.load(builder.gep(pointer, [at])), ir.IntType(32)(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(WORDS, [0] * PAGE))


def _add_product(builder, total, pointer, at, vector):
    """``total += pointer[at] * vector``, rounded once (fma): its bits do not depend on the sums that are made beside it."""
    factors = _in_all_lanes(builder, pointer, at)
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), f"llvm.fma.v{PAGE}f32")
    builder.store(builder.call(fma, [factors, vector, builder.load(total)]), total)


def _score_by(tokens, heads):
    """``score(q, q_at, keys, page, scores, at, stride, size)``: scores of the page at ``keys[page]``.

    For each of ``tokens``, whose queries lie behind one another, and of ``heads``, each a tile of queries and a page further:
    ``scores[at + (h * TILE + t) * stride + i] = q[q_at + (h * TILE + t) * size :][:size] @ page[h, :, i]``; even and odd places
    are summed apart first. Many sums go on beside one another, as each has to wait for its own last addition.
    """

    @intrinsic
    def score(_typing, q, q_at, keys, page, scores, at, stride, size):
        def codegen(_context, builder, _signature, args):
            q, q_at, keys, page, scores, at, stride, size = args
            rows = [(h, h * TILE + t) for h in range(heads) for t in range(tokens)]
            zero = ir.Constant(FLOATS, [0.0] * PAGE)
            totals = {row: [cgutils.alloca_once(builder, FLOATS) for _ in range(2)] for _, row in rows}
            for total in itertools.chain(*totals.values()):
                builder.store(zero, total)
            page_size = builder.mul(size, INT64(PAGE))
            pages = [builder.add(page, builder.mul(page_size, INT64(h))) for h in range(heads)]
            with cgutils.for_range_slice(builder, INT64(0), size, INT64(4), INT64) as (d, _):
                vectors = [[] for _ in pages]
                for begin, loaded in zip(pages, vectors, strict=True):
                    while len(loaded) < 4:
                        numbers = builder.mul(builder.add(d, INT64(len(loaded))), INT64(PAGE))
                        loaded += _load(builder, keys, builder.add(begin, numbers))
                for i in range(4):
                    for h, row in rows:
                        place = builder.add(builder.add(q_at, builder.mul(size, INT64(row))), builder.add(d, INT64(i)))
                        _add_product(builder, totals[row][i % 2], q, place, vectors[h][i])
            for row, (even, odd) in totals.items():
                place = builder.add(at, builder.mul(stride, INT64(row)))
                total = builder.fadd(builder.load(even), builder.load(odd))
                builder.store(total, floats_at(builder, scores, place), align=4)

        return types.void(q, _I, keys, _I, scores, _I, _I, _I), codegen

    return score


def _mix_by(tokens, heads):
    """``mix(weights, at, stride, values, page, mixed, to, size)``: adds the page at ``values[page]`` to what is mixed.

    For each of ``tokens`` and ``heads``, as in `_score_by`: ``mixed[to + (h * TILE + t) * size :][:size] +=
    weights[at + (h * TILE + t) * stride :][:PAGE] @ page[h]``, one position after another.
    """

    @intrinsic
    def mix(_typing, weights, at, stride, values, page, mixed, to, size):
        def codegen(_context, builder, _signature, args):
            weights, at, stride, values, page, mixed, to, size = args
            rows = [(h, h * TILE + t) for h in range(heads) for t in range(tokens)]
            totals = {row: cgutils.alloca_once(builder, FLOATS) for _, row in rows}
            per_word = _numbers_in_a_word(values.type.pointee)
            page_size = builder.mul(size, INT64(PAGE))
            pages = [builder.add(page, builder.mul(page_size, INT64(h))) for h in range(heads)]
            with cgutils.for_range_slice(builder, INT64(0), size, INT64(PAGE), INT64) as (d, _):
                places = {}
                for row, total in totals.items():
                    begin = builder.add(builder.add(to, builder.mul(size, INT64(row))), d)
                    places[row] = floats_at(builder, mixed, begin)
                    builder.store(builder.load(places[row], align=4), total)
                for word in range(0, PAGE, per_word):
                    numbers = builder.add(builder.mul(size, INT64(word)), builder.mul(d, INT64(per_word)))
                    vectors = [_load(builder, values, builder.add(begin, numbers)) for begin in pages]
                    for i in range(per_word):
                        for h, row in rows:
                            place = builder.add(builder.add(at, builder.mul(stride, INT64(row))), INT64(word + i))
                            _add_product(builder, totals[row], weights, place, vectors[h][i])
                for row, total in totals.items():
                    builder.store(builder.load(total), places[row], align=4)

        return types.void(weights, _I, _I, values, _I, mixed, _I, _I), codegen

    return mix


_FEWEST = 3
"""For fewer tokens than this, reading the pages for each of them takes less time than reading for a whole tile."""

_score_one, _score_heads, _score_tile = _score_by(1, 1), _score_by(1, HEADS), _score_by(TILE, 1)
_mix_one, _mix_heads, _mix_tile = _mix_by(1, 1), _mix_by(1, HEADS), _mix_by(TILE, 1)


@compiled()
def _page(task, tile, t, place):
    """The page that token ``t`` of a tile sees at ``place`` of its block table, or -1 where it sees none."""
    if int64_at(task.lengths)[tile + t] <= place * PAGE:
        return -1
    return np.int64(int32_at(task.block_tables)[int64_at(task.table_rows)[tile + t] * task.max_pages + place])


@compiled()
def _shared_places(task, tile, count):
    """How many leading pages all ``count`` tokens of a tile share. Sequences that differ in one page share no later one."""
    place = 0
    while True:
        page = _page(task, tile, 0, place)
        for t in range(1, count):
            if _page(task, tile, t, place) != page:
                page = -1
        if page < 0:
            return place
        place += 1


@compiled(fastmath=FAST)
def _softmax(scores, at, length):
    """Make ``scores[at : at + length]`` weights of a softmax, all but the division by their sum, which is returned."""
    greatest = greatest_of(scores, at, length)
    total = np.float32(0)
    for i in range(at, at + length):
        weight = exp(scores[i] - greatest)
        scores[i] = weight
        total += weight
    for i in range(at + length, at + (length + PAGE - 1) // PAGE * PAGE):
        scores[i] = np.float32(0)
    return total


@compiled()
def _attend(task, qkv, keys, values, out):
    """Softmax attention of every kept token over its own past, some heads of a tile of tokens at a time.

    Heads of a page lie together, and are read in one go. Tokens of a tile that see the same page read it together; what is
    computed for each is the same as alone.
    """
    width, n_head, size = task.width, task.n_head, task.head_lanes
    kept, lengths = int64_at(task.kept), int64_at(task.lengths)
    head_size = width // n_head
    scale = np.float32(1 / np.sqrt(head_size))
    page_size, stride = PAGE * size, task.max_pages * PAGE
    scratch = take(task.next_scratch, task.scratch)
    rows = HEADS * TILE
    q, mixed = float32_at(scratch), float32_at(scratch + 4 * rows * size)
    scores, totals = float32_at(scratch + 8 * rows * size), float32_at(scratch + 8 * rows * size + 4 * rows * stride)
    for i in range(rows * size):
        q[i] = np.float32(0)
    tiles, groups = (task.n_kept + TILE - 1) // TILE, (n_head + HEADS - 1) // HEADS
    while True:
        begin = take(task.next_unit, task.chunk)
        if begin >= tiles * groups:
            return
        for unit in range(begin, min(begin + task.chunk, tiles * groups)):
            tile, first = unit // groups * TILE, unit % groups * HEADS
            count, heads = min(TILE, task.n_kept - tile), min(HEADS, n_head - first)
            for t in range(count):
                for h in range(heads):
                    at = kept[tile + t] * 3 * width + (first + h) * head_size
                    for d in range(head_size):
                        q[(h * TILE + t) * size + d] = scale * widen(qkv[at + d])
                    if task.stores:
                        _store_head(task, qkv, keys, values, kept[tile + t], first + h)
            shared = _shared_places(task, tile, count) if count >= _FEWEST else 0
            for place in range(shared):
                page = (_page(task, tile, 0, place) * n_head + first) * page_size
                for h in range(heads):
                    at = h * TILE * stride + place * PAGE
                    _score_tile(q, h * TILE * size, keys, page + h * page_size, scores, at, stride, size)
            for t in range(count):
                for place in range(shared, (lengths[tile + t] + PAGE - 1) // PAGE):
                    page, at = (_page(task, tile, t, place) * n_head + first) * page_size, t * stride + place * PAGE
                    if heads == HEADS:
                        _score_heads(q, t * size, keys, page, scores, at, stride, size)
                        continue
                    for h in range(heads):
                        row = h * TILE * stride
                        _score_one(q, (h * TILE + t) * size, keys, page + h * page_size, scores, row + at, stride, size)
            for h in range(heads):
                for t in range(count):
                    row = h * TILE + t
                    totals[row] = _softmax(scores, row * stride, lengths[tile + t])
            for i in range(rows * size):
                mixed[i] = np.float32(0)
            for place in range(shared):
                page = (_page(task, tile, 0, place) * n_head + first) * page_size
                for h in range(heads):
                    at = h * TILE * stride + place * PAGE
                    _mix_tile(scores, at, stride, values, page + h * page_size, mixed, h * TILE * size, size)
            for t in range(count):
                for place in range(shared, (lengths[tile + t] + PAGE - 1) // PAGE):
                    page, at = (_page(task, tile, t, place) * n_head + first) * page_size, t * stride + place * PAGE
                    if heads == HEADS:
                        _mix_heads(scores, at, stride, values, page, mixed, t * size, size)
                        continue
                    for h in range(heads):
                        row = h * TILE * stride
                        _mix_one(scores, row + at, stride, values, page + h * page_size, mixed, (h * TILE + t) * size, size)
            for t in range(count):
                for h in range(heads):
                    row, to = h * TILE + t, (tile + t) * width + (first + h) * head_size
                    for d in range(head_size):
                        store_narrow(out, to + d, mixed[row * size + d] / totals[row])


def store_by(at):
    def store(tasks):
        task = carray(tasks, 1)[0]
        _store(task, at(task.qkv), at(task.keys), at(task.values))

    return store


def attend_by(at):
    def attend(tasks):
        task = carray(tasks, 1)[0]
        _attend(task, at(task.qkv), at(task.keys), at(task.values), at(task.out))

    return attend
