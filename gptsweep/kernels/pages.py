"""The layout of a page of keys or values, and the products with one: scores of queries, and weighted sums of values.

A word is 32 bits: one float32 or two bfloat16. A page of keys is ``[head_size / per_word, PAGE, per_word]``, a page of values
``[PAGE / per_word, head_size, per_word]``. A vector of words thus runs along the dimension that is not summed over, and one
instruction widens it. A vector has as many lanes as a page has positions. ``head_lanes``, a multiple of that number, takes the
place of head_size.

Every sum runs over one token's own positions, in an order that depends on that token alone.
"""

from __future__ import annotations

import itertools

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from .abi import HEADS, NARROW_ROWS, PAGE, TILE
from .intrinsics import FLOATS, INT64, WORDS, compiled, floats_at, for_each_count

_I = types.int64


def per_word_of(pointer):
    """Return how many numbers behind ``pointer`` fill 32 bits."""
    raise NotImplementedError


@overload(per_word_of)
def _per_word_of_overload(pointer):
    per_word = 2 if pointer.dtype == types.uint16 else 1
    return lambda pointer: per_word


def _numbers_in_a_word(number):
    return 1 if number == ir.FloatType() else 2


def _load(builder, pointer, at):
    """Emit a load of the vector of words at ``pointer[at]``, widened: one float32 vector for each number of a word."""
    place = builder.bitcast(builder.gep(pointer, [at]), WORDS.as_pointer())
    bits = builder.load(place, align=2)
    if _numbers_in_a_word(pointer.type.pointee) == 1:
        return [builder.bitcast(bits, FLOATS)]
    low = builder.shl(bits, ir.Constant(WORDS, [16] * PAGE))
    high = builder.and_(bits, ir.Constant(WORDS, [0xFFFF0000] * PAGE))
    return [builder.bitcast(low, FLOATS), builder.bitcast(high, FLOATS)]


def _in_all_lanes(builder, pointer, at):
    """Emit a float32 vector with ``pointer[at]`` in every lane."""
    undefined = ir.Constant(FLOATS, ir.Undefined)
    single = builder.insert_element(undefined, builder.load(builder.gep(pointer, [at])), ir.IntType(32)(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(WORDS, [0] * PAGE))


def _add_product(builder, total, pointer, at, vector):
    """Emit ``total += pointer[at] * vector``, rounded once (fma): its bits do not depend on the sums computed beside it."""
    factors = _in_all_lanes(builder, pointer, at)
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), f"llvm.fma.v{PAGE}f32")
    builder.store(builder.call(fma, [factors, vector, builder.load(total)]), total)


def _score_by(tokens, heads, group):
    """Return ``score(q, q_at, keys, page, scores, at, stride, size)``: the scores of the pages from ``keys[page]`` on.

    It serves ``tokens`` tokens, whose queries are contiguous, and ``heads`` heads, whose queries lie a tile apart. Each
    ``group`` of heads reads one page. For head h, token t and position i, it sets

        scores[at + (h * TILE + t) * stride + i] = q[q_at + (h * TILE + t) * size :][:size] @ page[h // group, :, i]

    Even and odd dimensions are summed separately first. Many sums run side by side, as each addition has to wait for the one
    before it in its sum.
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
            pages = [builder.add(page, builder.mul(page_size, INT64(i))) for i in range(heads // group)]
            with cgutils.for_range_slice(builder, INT64(0), size, INT64(4), INT64) as (d, _):
                vectors = [[] for _ in pages]
                for begin, loaded in zip(pages, vectors, strict=True):
                    while len(loaded) < 4:
                        numbers = builder.mul(builder.add(d, INT64(len(loaded))), INT64(PAGE))
                        loaded += _load(builder, keys, builder.add(begin, numbers))
                for i in range(4):
                    for h, row in rows:
                        place = builder.add(builder.add(q_at, builder.mul(size, INT64(row))), builder.add(d, INT64(i)))
                        _add_product(builder, totals[row][i % 2], q, place, vectors[h // group][i])
            for row, (even, odd) in totals.items():
                place = builder.add(at, builder.mul(stride, INT64(row)))
                total = builder.fadd(builder.load(even), builder.load(odd))
                builder.store(total, floats_at(builder, scores, place), align=4)

        return types.void(q, _I, keys, _I, scores, _I, _I, _I), codegen

    return score


def _mix_by(tokens, heads, group):
    """Return ``mix(weights, at, stride, values, page, mixed, to, size)``: adds the weighted pages from ``values[page]`` on.

    For each of ``tokens`` and ``heads``, as in `_score_by`, it adds, one position after another,

        mixed[to + (h * TILE + t) * size :][:size] += weights[at + (h * TILE + t) * stride :][:PAGE] @ page[h // group]
    """

    @intrinsic
    def mix(_typing, weights, at, stride, values, page, mixed, to, size):
        def codegen(_context, builder, _signature, args):
            weights, at, stride, values, page, mixed, to, size = args
            rows = [(h, h * TILE + t) for h in range(heads) for t in range(tokens)]
            totals = {row: cgutils.alloca_once(builder, FLOATS) for _, row in rows}
            per_word = _numbers_in_a_word(values.type.pointee)
            page_size = builder.mul(size, INT64(PAGE))
            pages = [builder.add(page, builder.mul(page_size, INT64(i))) for i in range(heads // group)]
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
                            _add_product(builder, totals[row], weights, place, vectors[h // group][i])
                for row, total in totals.items():
                    builder.store(builder.load(total), places[row], align=4)

        return types.void(weights, _I, _I, values, _I, mixed, _I, _I), codegen

    return mix


@intrinsic
def _score_rows(_typing, rows, q, q_at, keys, page, scores, at, stride, size):
    """``_score_rows(rows, q, q_at, keys, page, scores, at, stride, size)``: scores of one page for consecutive rows.

    For each row r of ``rows``, at most `NARROW_ROWS`, it sets

        scores[at + r * stride + i] = q[q_at + r * size :][:size] @ page[:, i]

    in the order of `_score_by`. All even dimensions are summed before the odd ones, so that only half of the sums are in
    registers at a time.
    """

    def codegen(_context, builder, _signature, args):
        rows, q, q_at, keys, page, scores, at, stride, size = args
        places = builder.gep(q, [q_at]), builder.gep(keys, [page]), builder.gep(scores, [at])
        for_each_count(builder, rows, NARROW_ROWS, lambda count: _score_rows_of(builder, count, *places, stride, size))

    return types.void(_I, q, _I, keys, _I, scores, _I, _I, _I), codegen


def _score_rows_of(builder, rows, q, page, scores, stride, size):
    """Emit the code of `_score_rows` for a fixed number of rows."""
    totals = [[cgutils.alloca_once(builder, FLOATS) for _ in range(2)] for _ in range(rows)]
    begins = [builder.gep(q, [builder.mul(size, INT64(row))]) for row in range(rows)]
    for odd in range(2):
        for sums in totals:
            builder.store(ir.Constant(FLOATS, [0.0] * PAGE), sums[odd])
        with cgutils.for_range_slice(builder, INT64(0), size, INT64(2), INT64) as (even, _):
            d = builder.add(even, INT64(odd))
            if _numbers_in_a_word(page.type.pointee) == 1:
                (vector,) = _load(builder, page, builder.mul(d, INT64(PAGE)))
            else:
                vector = _load(builder, page, builder.mul(even, INT64(PAGE)))[odd]
            for begin, sums in zip(begins, totals, strict=True):
                _add_product(builder, sums[odd], begin, d, vector)
    for row, sums in enumerate(totals):
        place = floats_at(builder, scores, builder.mul(stride, INT64(row)))
        builder.store(builder.fadd(*map(builder.load, sums)), place, align=4)


@intrinsic
def _mix_rows(_typing, rows, weights, at, stride, values, page, mixed, to, size):
    """``_mix_rows(rows, weights, at, stride, values, page, mixed, to, size)``: add one weighted page to consecutive rows.

    For each row r of ``rows``, at most `NARROW_ROWS`, it adds, in the order of `_mix_by`,

        mixed[to + r * size :][:size] += weights[at + r * stride :][:PAGE] @ page
    """

    def codegen(_context, builder, _signature, args):
        rows, weights, at, stride, values, page, mixed, to, size = args
        places = builder.gep(weights, [at]), builder.gep(values, [page]), builder.gep(mixed, [to])
        for_each_count(builder, rows, NARROW_ROWS, lambda count: _mix_rows_of(builder, count, *places, stride, size))

    return types.void(_I, weights, _I, _I, values, _I, mixed, _I, _I), codegen


def _mix_rows_of(builder, rows, weights, page, mixed, stride, size):
    """Emit the code of `_mix_rows` for a fixed number of rows."""
    totals = [cgutils.alloca_once(builder, FLOATS) for _ in range(rows)]
    begins = [builder.gep(weights, [builder.mul(stride, INT64(row))]) for row in range(rows)]
    per_word = _numbers_in_a_word(page.type.pointee)
    with cgutils.for_range_slice(builder, INT64(0), size, INT64(PAGE), INT64) as (d, _):
        places = [floats_at(builder, mixed, builder.add(builder.mul(size, INT64(row)), d)) for row in range(rows)]
        for place, total in zip(places, totals, strict=True):
            builder.store(builder.load(place, align=4), total)
        column = builder.gep(page, [builder.mul(d, INT64(per_word))])
        with cgutils.for_range_slice(builder, INT64(0), INT64(PAGE), INT64(per_word), INT64) as (position, _):
            for i, vector in enumerate(_load(builder, column, builder.mul(size, position))):
                for begin, total in zip(begins, totals, strict=True):
                    _add_product(builder, total, begin, builder.add(position, INT64(i)), vector)
        for place, total in zip(places, totals, strict=True):
            builder.store(builder.load(total), place, align=4)


score_tile, mix_tile = _score_by(TILE, 1, 1), _mix_by(TILE, 1, 1)
_score_pages, _score_pairs = _score_by(1, HEADS, 1), _score_by(1, HEADS, 2)
_score_1, _score_2, _score_3, _score_4 = (_score_by(1, heads, heads) for heads in range(1, 5))
_mix_pages, _mix_pairs = _mix_by(1, HEADS, 1), _mix_by(1, HEADS, 2)
_mix_1, _mix_2, _mix_3, _mix_4 = (_mix_by(1, heads, heads) for heads in range(1, 5))


@compiled()
def score(q, q_at, keys, page, scores, at, stride, size, n_pages, group):
    """Compute one token's scores, as in `_score_by`, for ``n_pages`` contiguous pages with ``group`` heads for each."""
    if n_pages * group == HEADS and n_pages == HEADS:
        _score_pages(q, q_at, keys, page, scores, at, stride, size)
        return
    if n_pages * group == HEADS and n_pages == 2:
        _score_pairs(q, q_at, keys, page, scores, at, stride, size)
        return
    for i in range(n_pages):
        for h in range(i * group, (i + 1) * group, HEADS):
            heads = min(HEADS, (i + 1) * group - h)
            begin, to = q_at + h * TILE * size, at + h * TILE * stride
            if heads == 4:
                _score_4(q, begin, keys, page + i * PAGE * size, scores, to, stride, size)
            elif heads == 3:
                _score_3(q, begin, keys, page + i * PAGE * size, scores, to, stride, size)
            elif heads == 2:
                _score_2(q, begin, keys, page + i * PAGE * size, scores, to, stride, size)
            else:
                _score_1(q, begin, keys, page + i * PAGE * size, scores, to, stride, size)


@compiled()
def mix(weights, at, stride, values, page, mixed, to, size, n_pages, group):
    """Add one token's weighted values, as in `_mix_by`, of ``n_pages`` contiguous pages with ``group`` heads for each."""
    if n_pages * group == HEADS and n_pages == HEADS:
        _mix_pages(weights, at, stride, values, page, mixed, to, size)
        return
    if n_pages * group == HEADS and n_pages == 2:
        _mix_pairs(weights, at, stride, values, page, mixed, to, size)
        return
    for i in range(n_pages):
        for h in range(i * group, (i + 1) * group, HEADS):
            heads = min(HEADS, (i + 1) * group - h)
            begin, target = at + h * TILE * stride, to + h * TILE * size
            if heads == 4:
                _mix_4(weights, begin, stride, values, page + i * PAGE * size, mixed, target, size)
            elif heads == 3:
                _mix_3(weights, begin, stride, values, page + i * PAGE * size, mixed, target, size)
            elif heads == 2:
                _mix_2(weights, begin, stride, values, page + i * PAGE * size, mixed, target, size)
            else:
                _mix_1(weights, begin, stride, values, page + i * PAGE * size, mixed, target, size)


@compiled()
def score_rows(rows, q, q_at, keys, page, scores, at, stride, size):
    """Compute the scores of one page for any number of consecutive rows, as in `_score_rows`."""
    tiles = (rows + NARROW_ROWS - 1) // NARROW_ROWS
    for tile in range(tiles):
        row = tile * rows // tiles
        count = (tile + 1) * rows // tiles - row
        _score_rows(count, q, q_at + row * size, keys, page, scores, at + row * stride, stride, size)


@compiled()
def mix_rows(rows, weights, at, stride, values, page, mixed, to, size):
    """Add one weighted page to any number of consecutive rows, as in `_mix_rows`."""
    tiles = (rows + NARROW_ROWS - 1) // NARROW_ROWS
    for tile in range(tiles):
        row = tile * rows // tiles
        count = (tile + 1) * rows // tiles - row
        _mix_rows(count, weights, at + row * stride, stride, values, page, mixed, to + row * size, size)
