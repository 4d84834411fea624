"""The loops of the CPU kernels, and their machine code: attention, rows through a layer, sampling tokens.

Each works on one unit (some heads of a tile of tokens, a block of outputs of some rows, a row) at a time, and adds up what is a
row's in an order that depends on that row alone, so its bits depend neither on who else is in the batch nor on the threads.

numba takes ten seconds for them, so the package has what it makes of them (``scripts/compile_kernels.py``), and `kernels` comes
here only where that is of no use: after a change, and on other systems.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
from llvmlite import binding, ir
from numba import carray, cfunc, from_dtype, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils, config
from numba.extending import intrinsic, overload

from .abi import BLOCK, COLUMNS, EDIT, GELU, GELU_TANH, HEADS, PAGE, ROW, SEGMENT, TASKS, TILE, TILE_ROWS, TILES_TOGETHER

# Long loops go over pointers, not arrays: numba tests an array's index for "from the end", which keeps them from vectorising.
FAST = {"reassoc", "contract", "nsz", "arcp"}
_LEAST = np.float32(-3e38)
GUMBEL_MAX = 22.9
"""No noise is greater: -log(-log(u)) at the greatest u, 1 - 2**-33, is 22.87."""

_I, _INT64 = types.int64, ir.IntType(64)
_FLOATS, _WORDS = ir.VectorType(ir.FloatType(), PAGE), ir.VectorType(ir.IntType(32), PAGE)

_compiled_within = functools.partial(njit, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""For functions that only other kernels call: without the ways in from Python and C, numba compiles them in half the time."""


# -- numba intrinsics ------------------------------------------------------------------------------------------------------


def _pointer_to(pointed):
    """An intrinsic that makes an int64 a pointer to ``pointed``, for `carray`."""

    @intrinsic
    def pointer(_typing, _address):
        def codegen(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(pointed)(types.int64), codegen

    return pointer


_int64_at, _int32_at = _pointer_to(types.int64), _pointer_to(types.int32)
_uint8_at = _pointer_to(types.uint8)
_float64_at, _uint32_at = _pointer_to(types.float64), _pointer_to(types.uint32)
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
            to[at] = np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

        return store

    def store_as_is(to, at, x):
        to[at] = x

    return store_as_is


@_compiled_within()
def _ordered(x):
    """An int32 for a float32, ordered as they are: LLVM makes vectors of a maximum of integers, of one with NaN it does not."""
    bits = np.float32(x).view(np.int32)
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@_compiled_within()
def _from_ordered(number):
    """The float32 that `_ordered` made ``number`` of."""
    return np.int32(number ^ np.int32(np.int32(number >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@_compiled_within()
def _greatest(x, begin, count):
    """The greatest of ``x[begin : begin + count]``; with NaN among them one of them or NaN."""
    top = _ordered(np.float32(-np.inf))
    for i in range(begin, begin + count):
        top = max(top, _ordered(x[i]))
    return _from_ordered(top)


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
#
# A word is what fills 32 bits: a number of float32, two of bfloat16. A page of keys is [head_size / per_word, PAGE, per_word],
# a page of values [PAGE / per_word, head_size, per_word]: a vector of words then lies across what is not summed over, and is
# widened by one instruction. Pages and vectors are equally wide, and `head_lanes`, a multiple of it, stands for head_size.


@_compiled_within()
def _store_head(task, qkv, keys, values, token, head):
    """Write the keys and values of one head of a token into their page."""
    page, offset = _int64_at(task.pages)[token], _int64_at(task.offsets)[token]
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


@_compiled_within()
def _store(task, qkv, keys, values):
    """Write the keys and values of every token into its place in its page."""
    while True:
        begin = _take(task.next_unit, task.chunk)
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
    place = builder.bitcast(builder.gep(pointer, [at]), _WORDS.as_pointer())
    bits = builder.load(place, align=2)
    if _numbers_in_a_word(pointer.type.pointee) == 1:
        return [builder.bitcast(bits, _FLOATS)]
    low = builder.shl(bits, ir.Constant(_WORDS, [16] * PAGE))
    high = builder.and_(bits, ir.Constant(_WORDS, [0xFFFF0000] * PAGE))
    return [builder.bitcast(low, _FLOATS), builder.bitcast(high, _FLOATS)]


def _in_all_lanes(builder, pointer, at):
    """A float32 vector with ``pointer[at]`` in every lane."""
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    single = builder.insert_element(undefined, builder.load(builder.gep(pointer, [at])), ir.IntType(32)(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(_WORDS, [0] * PAGE))


def _add_product(builder, total, pointer, at, vector):
    """``total += pointer[at] * vector``, rounded once: a sum is the same bits whoever's is made beside it."""
    factors = _in_all_lanes(builder, pointer, at)
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), f"llvm.fma.v{PAGE}f32")
    builder.store(builder.call(fma, [factors, vector, builder.load(total)]), total)


def _floats_at(builder, pointer, at):
    return builder.bitcast(builder.gep(pointer, [at]), _FLOATS.as_pointer())


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
            zero = ir.Constant(_FLOATS, [0.0] * PAGE)
            totals = {row: [cgutils.alloca_once(builder, _FLOATS) for _ in range(2)] for _, row in rows}
            for total in itertools.chain(*totals.values()):
                builder.store(zero, total)
            page_size = builder.mul(size, _INT64(PAGE))
            pages = [builder.add(page, builder.mul(page_size, _INT64(h))) for h in range(heads)]
            with cgutils.for_range_slice(builder, _INT64(0), size, _INT64(4), _INT64) as (d, _):
                vectors = [[] for _ in pages]
                for begin, loaded in zip(pages, vectors, strict=True):
                    while len(loaded) < 4:
                        numbers = builder.mul(builder.add(d, _INT64(len(loaded))), _INT64(PAGE))
                        loaded += _load(builder, keys, builder.add(begin, numbers))
                for i in range(4):
                    for h, row in rows:
                        place = builder.add(builder.add(q_at, builder.mul(size, _INT64(row))), builder.add(d, _INT64(i)))
                        _add_product(builder, totals[row][i % 2], q, place, vectors[h][i])
            for row, (even, odd) in totals.items():
                place = builder.add(at, builder.mul(stride, _INT64(row)))
                total = builder.fadd(builder.load(even), builder.load(odd))
                builder.store(total, _floats_at(builder, scores, place), align=4)

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
            totals = {row: cgutils.alloca_once(builder, _FLOATS) for _, row in rows}
            per_word = _numbers_in_a_word(values.type.pointee)
            page_size = builder.mul(size, _INT64(PAGE))
            pages = [builder.add(page, builder.mul(page_size, _INT64(h))) for h in range(heads)]
            with cgutils.for_range_slice(builder, _INT64(0), size, _INT64(PAGE), _INT64) as (d, _):
                places = {}
                for row, total in totals.items():
                    begin = builder.add(builder.add(to, builder.mul(size, _INT64(row))), d)
                    places[row] = _floats_at(builder, mixed, begin)
                    builder.store(builder.load(places[row], align=4), total)
                for word in range(0, PAGE, per_word):
                    numbers = builder.add(builder.mul(size, _INT64(word)), builder.mul(d, _INT64(per_word)))
                    vectors = [_load(builder, values, builder.add(begin, numbers)) for begin in pages]
                    for i in range(per_word):
                        for h, row in rows:
                            place = builder.add(builder.add(at, builder.mul(stride, _INT64(row))), _INT64(word + i))
                            _add_product(builder, totals[row], weights, place, vectors[h][i])
                for row, total in totals.items():
                    builder.store(builder.load(total), places[row], align=4)

        return types.void(weights, _I, _I, values, _I, mixed, _I, _I), codegen

    return mix


_FEWEST = 3
"""Tokens that are read one by one in less time than it takes to read for a whole tile are fewer."""

_score_one, _score_heads, _score_tile = _score_by(1, 1), _score_by(1, HEADS), _score_by(TILE, 1)
_mix_one, _mix_heads, _mix_tile = _mix_by(1, 1), _mix_by(1, HEADS), _mix_by(TILE, 1)


@_compiled_within()
def _page(task, tile, t, place):
    """The page that token ``t`` of a tile sees at ``place`` of its table, or -1 where it sees none."""
    if _int64_at(task.lengths)[tile + t] <= place * PAGE:
        return -1
    return np.int64(_int32_at(task.tables)[_int64_at(task.table_rows)[tile + t] * task.max_pages + place])


@_compiled_within()
def _shared_places(task, tile, count):
    """How many pages all ``count`` tokens of a tile see, from the first on; sequences that part share no page after."""
    place = 0
    while True:
        page = _page(task, tile, 0, place)
        for t in range(1, count):
            if _page(task, tile, t, place) != page:
                page = -1
        if page < 0:
            return place
        place += 1


@_compiled_within(fastmath=FAST)
def _softmax(scores, at, length):
    """Make ``scores[at : at + length]`` weights of a softmax, all but the division by their sum, which is returned."""
    greatest = _greatest(scores, at, length)
    total = np.float32(0)
    for i in range(at, at + length):
        weight = _exp(scores[i] - greatest)
        scores[i] = weight
        total += weight
    for i in range(at + length, at + (length + PAGE - 1) // PAGE * PAGE):
        scores[i] = np.float32(0)
    return total


@_compiled_within()
def _attend(task, qkv, keys, values, out):
    """Softmax attention of every kept token over its own past, some heads of a tile of tokens at a time.

    Heads of a page lie together, and are read in one go. Tokens of a tile that see the same page read it together; what is
    computed for each is the same as alone.
    """
    width, n_head, size = task.width, task.n_head, task.head_lanes
    kept, lengths = _int64_at(task.kept), _int64_at(task.lengths)
    head_size = width // n_head
    scale = np.float32(1 / np.sqrt(head_size))
    page_size, stride = PAGE * size, task.max_pages * PAGE
    scratch = _take(task.next_scratch, task.scratch)
    rows = HEADS * TILE
    q, mixed = _float32_at(scratch), _float32_at(scratch + 4 * rows * size)
    scores, totals = _float32_at(scratch + 8 * rows * size), _float32_at(scratch + 8 * rows * size + 4 * rows * stride)
    for i in range(rows * size):
        q[i] = np.float32(0)
    tiles, groups = (task.n_kept + TILE - 1) // TILE, (n_head + HEADS - 1) // HEADS
    while True:
        begin = _take(task.next_unit, task.chunk)
        if begin >= tiles * groups:
            return
        for unit in range(begin, min(begin + task.chunk, tiles * groups)):
            tile, first = unit // groups * TILE, unit % groups * HEADS
            count, heads = min(TILE, task.n_kept - tile), min(HEADS, n_head - first)
            for t in range(count):
                for h in range(heads):
                    at = kept[tile + t] * 3 * width + (first + h) * head_size
                    for d in range(head_size):
                        q[(h * TILE + t) * size + d] = scale * _widen(qkv[at + d])
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
                        _store_narrow(out, to + d, mixed[row * size + d] / totals[row])


# -- rows through a linear layer -----------------------------------------------------------------------------------------------
#
# This reads oneDNN's packed bfloat16 weights in place, [n_out / 64, n_in / 2, 64, 2], and adds in its order: of each pair of
# products the second and then the first, in runs of so many inputs, runs to one another. Its multiplications are float32's, of
# bfloat16 made wide, which on some processors take half the time of oneDNN's instruction for pairs. No bit differs, unless a
# whole sum is below 1e-38: that instruction makes it 0.

binding.initialize_native_asmparser()  # numba compiles no assembly by itself

_AHEAD = 1024
"""Words by which weights are asked for before they are needed: what an idle memory channel delivers meanwhile."""
_ROWS_OF_WIDE_TILES = 5
"""As many rows have all of `COLUMNS` in vector registers; more have half of them at a time."""


def _multiply_tile(builder, rows, vectors, x, stride, weight, to, n_words):
    """Code that adds to ``to[row * COLUMNS :][: vectors * PAGE]`` a run of ``2 * n_words`` products, for each of ``rows``."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    zero = ir.Constant(_FLOATS, [0.0] * PAGE)
    prefetch = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    prefetch = cgutils.get_or_insert_function(builder.module, prefetch, "llvm.prefetch.p0")
    # One block of assembly for a row and an input: LLVM would load all of a tile's inputs first, and be out of registers.
    made = ir.LiteralStructType([_FLOATS] * (vectors + 1))
    taken = ir.FunctionType(made, [_FLOATS] * vectors + [x.type, _INT64] + [_FLOATS] * vectors)
    ties = [str(i) for i in range(vectors)]
    constraints = ",".join(["=v"] * vectors + ["=&v", *ties, "r", "r"] + ["v"] * vectors + ["~{memory}"])
    products = "".join(f"vfmadd231ps ${2 * vectors + 3 + i}, ${vectors}, ${i}\n" for i in range(vectors))
    row_bytes = builder.mul(stride, _INT64(4))
    totals = [[cgutils.alloca_once(builder, _FLOATS) for _ in range(vectors)] for _ in range(rows)]
    for total in itertools.chain(*totals):
        builder.store(zero, total)
    with cgutils.for_range_slice(builder, _INT64(0), n_words, _INT64(1), _INT64) as (word, _):
        halves = []
        for i in range(vectors):
            place = builder.gep(weight, [builder.add(builder.mul(word, _INT64(COLUMNS)), _INT64(PAGE * i))])
            later = builder.bitcast(builder.gep(place, [_INT64(_AHEAD)]), byte)
            builder.call(prefetch, [later, number(0), number(3), number(1)])
            bits = builder.load(builder.bitcast(place, _WORDS.as_pointer()), align=4)
            high = builder.and_(bits, ir.Constant(_WORDS, [0xFFFF0000] * PAGE))
            low = builder.shl(bits, ir.Constant(_WORDS, [16] * PAGE))
            halves.append([builder.bitcast(low, _FLOATS), builder.bitcast(high, _FLOATS)])
        for half in (1, 0):
            for row, sums in enumerate(totals):
                # A third of the rows have an address of their own; there are not registers for more.
                offset = builder.add(builder.mul(word, _INT64(2)), builder.mul(stride, _INT64(row // 3 * 3)))
                base = builder.gep(x, [offset])
                place = f"{4 * half}(${2 * vectors + 1}" + (f",${2 * vectors + 2},{row % 3})" if row % 3 else ")")
                code = ir.InlineAsm(taken, f"vbroadcastss {place}, ${vectors}\n{products}", constraints)
                wide = [half_of[half] for half_of in halves]
                summed = builder.call(code, [builder.load(total) for total in sums] + [base, row_bytes, *wide])
                for i, total in enumerate(sums):
                    builder.store(builder.extract_value(summed, i), total)
    for row, sums in enumerate(totals):
        for i, total in enumerate(sums):
            place = _floats_at(builder, to, _INT64(row * COLUMNS + PAGE * i))
            builder.store(builder.fadd(builder.load(place, align=4), builder.load(total)), place, align=4)


@intrinsic
def _multiply(_typing, rows, x, stride, weight, to, n_words):
    """``_multiply(rows, x, stride, weight, to, n_words)``: adds a run of products of a tile's rows to ``to[rows, COLUMNS]``.

    ``rows``, at most `TILE_ROWS`, of ``x`` begin ``stride`` apart; ``weight`` has ``n_words`` pairs of inputs of each output.
    """

    def codegen(_context, builder, _signature, args):
        rows, x, stride, weight, to, n_words = args
        done = builder.append_basic_block()
        switch = builder.switch(rows, done)
        for count in range(1, TILE_ROWS + 1):
            block = builder.append_basic_block()
            switch.add_case(rows.type(count), block)
            builder.position_at_end(block)
            vectors = COLUMNS // PAGE if count <= _ROWS_OF_WIDE_TILES else COLUMNS // PAGE // 2
            for column in range(0, COLUMNS, vectors * PAGE):
                places = (builder.gep(pointer, [_INT64(column)]) for pointer in (weight, to))
                _multiply_tile(builder, count, vectors, x, stride, *places, n_words)
            builder.branch(done)
        builder.position_at_end(done)

    return types.void(_I, x, _I, weight, to, _I), codegen


@_compiled_within()
def _widen_rows(x, begin, count, width, wide, stride):
    """``wide[i * stride :][:width] = x[begin + i * width :][:width]`` for ``count`` rows."""
    for row in range(count):
        for i in range(width):
            wide[row * stride + i] = _widen(x[begin + row * width + i])


@_compiled_within()
def _linear_tile(task, wide, stride, made, first, rows, block):
    """``rows`` of them from ``first`` on, at ``wide``, through a block of `COLUMNS` outputs, to bfloat16."""
    out, bias = _bfloat16_at(task.out), _bfloat16_at(task.bias)
    weight = task.weight + block * COLUMNS * task.n_in * 2
    for i in range(rows * COLUMNS):
        made[i] = np.float32(0)
    for run in range(0, task.n_in, task.summed):
        pairs = min(task.summed, task.n_in - run) // 2
        _multiply(rows, _float32_at(wide + 4 * run), stride, _int32_at(weight + 2 * COLUMNS * run), made, pairs)
    columns = min(COLUMNS, task.n_out - block * COLUMNS)
    for row in range(rows):
        to = (first + row) * task.n_out + block * COLUMNS
        if task.bias:
            for i in range(columns):
                _store_narrow(out, to + i, made[row * COLUMNS + i] + _widen(bias[block * COLUMNS + i]))
        else:
            for i in range(columns):
                _store_narrow(out, to + i, made[row * COLUMNS + i])


def _linear_bfloat16(tasks):
    """Rows through a layer of packed bfloat16 weights, to bfloat16: some tiles of rows, a block of outputs at a time."""
    task = carray(tasks, 1)[0]
    scratch = _take(task.next_scratch, task.scratch)
    made, wide = _float32_at(scratch), scratch + 4 * TILE_ROWS * COLUMNS
    stride = task.n_in + PAGE  # rows a power of two apart would all want the same lines of the nearest cache
    n_blocks = (task.n_out + COLUMNS - 1) // COLUMNS
    tiles = (task.n_rows + TILE_ROWS - 1) // TILE_ROWS
    groups = (tiles + TILES_TOGETHER - 1) // TILES_TOGETHER
    opened = -1
    while True:
        begin = _take(task.next_unit, task.chunk)
        if begin >= n_blocks * groups:
            return
        for unit in range(begin, min(begin + task.chunk, n_blocks * groups)):
            group, block = unit // n_blocks, unit % n_blocks
            first, last = group * TILES_TOGETHER, min((group + 1) * TILES_TOGETHER, tiles)
            # Tiles are as equal as can be: a short last one would make its weights wide for few rows.
            start, end = first * task.n_rows // tiles, last * task.n_rows // tiles
            if group != opened:
                _widen_rows(_bfloat16_at(task.x), start * task.n_in, end - start, task.n_in, _float32_at(wide), stride)
                opened = group
            for tile in range(first, last):
                row, rows = tile * task.n_rows // tiles, (tile + 1) * task.n_rows // tiles - tile * task.n_rows // tiles
                _linear_tile(task, wide + 4 * stride * (row - start), stride, made, row, rows, block)


# -- around a linear layer ---------------------------------------------------------------------------------------------------

_ROUNDED, _ROUNDED_BITS = np.float32(12582912.0), np.int32(0x4B400000)
"""1.5 * 2**23: a float32 near it has no place for a fraction, so adding it rounds to nearest even."""


@_compiled_within()
def _quantise_row(x, quantised, begin, width):
    """Write a row as ``round(127 * x / greatest) + 128``; what 1 stands for."""
    bits = np.int32(0)
    for i in range(begin, begin + width):
        bits = max(bits, np.int32(np.float32(x[i]).view(np.int32) & np.int32(0x7FFFFFFF)))  # ordered as the floats are
    greatest = np.int32(bits).view(np.float32)
    inverse = np.float32(127) / greatest if greatest > np.float32(1e-30) else np.float32(0)
    for i in range(begin, begin + width):
        rounded = np.float32(np.float32(x[i] * inverse) + _ROUNDED).view(np.int32)
        quantised[i] = np.uint8(np.int32(rounded - _ROUNDED_BITS) + np.int32(128))
    return greatest / np.float32(127)


def _quantise_float32(tasks):
    """Rows of float32 as unsigned int8 around 128, with a scale for each."""
    task = carray(tasks, 1)[0]
    x, quantised, scales = _float32_at(task.x), _uint8_at(task.quantised), _float32_at(task.scales)
    while True:
        begin = _take(task.next_unit, task.chunk)
        if begin >= task.n_rows:
            return
        for row in range(begin, min(begin + task.chunk, task.n_rows)):
            scales[row] = _quantise_row(x, quantised, row * task.width, task.width)


@_compiled_within(fastmath=FAST)
def _gelu_tanh(x):
    """GELU's tanh form, ``x * sigmoid(sqrt(8 / pi) * (x + 0.044715 * x**3))`` (Hendrycks and Gimpel, 2016)."""
    u = np.float32(1.5957691216) * x * (np.float32(1) + np.float32(0.044715) * x * x)
    e = _exp(-abs(u))
    return x * (np.float32(1) if u >= 0 else e) / (np.float32(1) + e)


@_compiled_within(fastmath=FAST)
def _gelu(x):
    """GELU, ``x * (1 + erf(x / sqrt(2))) / 2``; erf to 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    z = abs(x) * np.float32(0.7071067812)
    t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * z)
    p = np.float32(1.061405429)
    p = p * t + np.float32(-1.453152027)
    p = p * t + np.float32(1.421413741)
    p = p * t + np.float32(-0.284496736)
    p = p * t + np.float32(0.254829592)
    # Of a normal variable beyond |x|, both sides; 0 before it is so small that a processor takes its time.
    half_beyond = np.float32(0.5) * p * t * _exp(-z * z) if z < np.float32(9) else np.float32(0)
    return x * (np.float32(1) - half_beyond if x >= 0 else half_beyond)


@_compiled_within(fastmath=FAST)
def _activate(y, begin, end, activation):
    """``y = activation(y)`` in place, from ``begin`` to ``end``."""
    if activation == GELU_TANH:
        for i in range(begin, end):
            _store_narrow(y, i, _gelu_tanh(_widen(y[i])))
    elif activation == GELU:
        for i in range(begin, end):
            _store_narrow(y, i, _gelu(_widen(y[i])))


def _activate_bfloat16(tasks):
    """The activation of what a linear layer made, in place."""
    task = carray(tasks, 1)[0]
    y = _bfloat16_at(task.y)
    segments = (task.n_numbers + SEGMENT - 1) // SEGMENT
    while True:
        begin = _take(task.next_unit, task.chunk)
        if begin >= segments:
            return
        for segment in range(begin, min(begin + task.chunk, segments)):
            _activate(y, segment * SEGMENT, min((segment + 1) * SEGMENT, task.n_numbers), task.activation)


@_compiled_within(fastmath=FAST)
def _rescale(y, begin, end, scale, bias, column, has_bias, activation):
    """``y = activation(scale * y + bias)`` in place, from ``begin`` to ``end``."""
    if has_bias:
        for i in range(end - begin):
            y[begin + i] = y[begin + i] * scale + bias[column + i]
    else:
        for i in range(begin, end):
            y[i] *= scale
    _activate(y, begin, end, activation)


def _rescale_float32(tasks):
    """What an int8 layer made of rows, times the scale of each, with bias and activation."""
    task = carray(tasks, 1)[0]
    y, scales, bias = _float32_at(task.y), _float32_at(task.scales), _float32_at(task.bias)
    segments = (task.width + SEGMENT - 1) // SEGMENT
    while True:
        begin = _take(task.next_unit, task.chunk)
        if begin >= task.n_rows * segments:
            return
        for unit in range(begin, min(begin + task.chunk, task.n_rows * segments)):
            row, column = unit // segments, unit % segments * SEGMENT
            first, last = row * task.width + column, row * task.width + min(column + SEGMENT, task.width)
            _rescale(y, first, last, scales[row], bias, column, task.bias != 0, task.activation)


# -- sampling tokens -------------------------------------------------------------------------------------------------------


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


@_compiled_within()
def _blocks(vocab_size):
    return (vocab_size + BLOCK - 1) // BLOCK


@_compiled_within()
def _first_block_with(tops, n_blocks, value):
    """The first block whose greatest is ``value``, or the last where none is, which NaN brings about."""
    block = 0
    while block < n_blocks - 1 and tops[block] != value:
        block += 1
    return block


@_compiled_within(fastmath=FAST)
def _open(logits, begin, vocab_size, x, tops):
    """Widen a row's logits into ``x``, padded with -inf to whole blocks, and find each block's greatest; return the greatest"""
    n_blocks = _blocks(vocab_size)
    for i in range(vocab_size):
        x[i] = _widen(logits[begin + i])
    for i in range(vocab_size, n_blocks * BLOCK):
        x[i] = np.float32(-np.inf)
    for block in range(n_blocks):
        tops[block] = _greatest(x, block * BLOCK, BLOCK)
    return _greatest(tops, 0, n_blocks)


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
def _gather(x, tops, n_blocks, threshold, ids):
    """Put the ids of all logits of at least ``threshold`` into ``ids``, ascending; how many."""
    count = 0
    for block in range(n_blocks):
        if tops[block] >= threshold:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                ids[count] = i
                count += x[i] >= threshold
    return count


@_compiled_within()
def _keep(x, ids, count, threshold):
    """Keep those of ``ids`` whose logits are at least ``threshold``; how many."""
    kept = 0
    for i in range(count):
        ids[kept] = ids[i]
        kept += np.float64(x[ids[i]]) >= threshold
    return kept


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
    return _from_ordered(np.int32(found ^ np.uint32(0x80000000)))


@_compiled_within()
def _mark(x):
    """A uint32 for a float32, ordered as they are."""
    return np.uint32(np.uint32(_ordered(x)) ^ np.uint32(0x80000000))


@_compiled_within()
def _weigh(x, ids, weights, count, greatest, temperature):
    """``weights = exp((x[ids] - greatest) / temperature)``; their sum."""
    mass = 0.0
    for i in range(count):
        weights[i] = np.exp((np.float64(x[ids[i]]) - greatest) / temperature)
        mass += weights[i]
    return mass


@_compiled_within()
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


@_compiled_within()
def _gumbel_argmax(row, x, tops, vocab_size, words):
    """argmax(x / temperature + noise) over the whole vocabulary; only what can still win has its noise made."""
    temperature, n_blocks = row.temperature, _blocks(vocab_size)
    winner, best = -1, -np.inf
    start = _first_block_with(tops, n_blocks, _greatest(tops, 0, n_blocks))
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
        tops[block] = _greatest(x, block * BLOCK, BLOCK)


@_compiled_within()
def _sample_one(row, x, tops, ids, weights, marks, words, vocab_size):
    """The next token of a row from its edited logits, and its log-probability under the distribution sampled from."""
    greatest = _greatest(tops, 0, _blocks(vocab_size))
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


@_compiled_within()
def _sample(task, logits):
    """Sample the next token of every row."""
    vocab_size = task.vocab_size
    rows = carray(_row_at(task.rows), task.n_rows)
    order = carray(_int64_at(task.order), task.n_rows)
    n_blocks = _blocks(vocab_size)
    places = (n_blocks + 1) * BLOCK
    scratch = _take(task.next_scratch, task.scratch)
    ids, weights = _int64_at(scratch), _float64_at(scratch + 8 * places)
    x, marks = _float32_at(scratch + 16 * places), _uint32_at(scratch + 20 * places)
    tops, words = _float32_at(scratch + 24 * places), _uint32_at(scratch + 24 * places + 4 * n_blocks)
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
            token, row.sampler_logprob = _sample_one(row, x, tops, ids, weights, marks, words, vocab_size)
            row.token = token
            raw = np.float64(_widen(logits[row.logits_row * task.stride + token])) if token >= 0 else np.nan
            row.logprob = raw - np.float64(greatest) - np.log(mass)
            row.entropy = np.log(mass) - moment / mass


# -- machine code ------------------------------------------------------------------------------------------------------------


def _store_by(at):
    def store(tasks):
        task = carray(tasks, 1)[0]
        _store(task, at(task.qkv), at(task.keys), at(task.values))

    return store


def _attend_by(at):
    def attend(tasks):
        task = carray(tasks, 1)[0]
        _attend(task, at(task.qkv), at(task.keys), at(task.values), at(task.out))

    return attend


def _sample_by(at):
    def sample(tasks):
        task = carray(tasks, 1)[0]
        _sample(task, at(task.logits))

    return sample


LOOPS = {
    **{
        (name, dtype): kernel_by(at)
        for name, kernel_by in {"store": _store_by, "attend": _attend_by, "sample": _sample_by}.items()
        for dtype, at in {"float32": _float32_at, "bfloat16": _bfloat16_at}.items()
    },
    ("linear", "bfloat16"): _linear_bfloat16,
    ("quantise", "float32"): _quantise_float32,
    ("rescale", "float32"): _rescale_float32,
    ("activate", "bfloat16"): _activate_bfloat16,
}


def module_of(name: str, dtype: str, symbol: str) -> binding.ModuleRef:
    """LLVM's code, hardly optimised, of a kernel ``void symbol(void *task)`` that needs nothing but the C library."""
    task = from_dtype(TASKS[name])
    level, config.OPT = config.OPT, config._OptLevel("0")  # type: ignore[attr-defined]
    try:
        made = cfunc(types.void(types.CPointer(task)), error_model="numpy")(LOOPS[name, dtype])
        module = binding.parse_assembly(made._library.get_llvm_str())  # type: ignore[attr-defined]
    finally:
        config.OPT = level  # type: ignore[attr-defined]
    # numba's own way in from C goes through Python, for errors that these loops do not have.
    pointer = ir.IntType(8).as_pointer()
    entry = ir.Module()
    entry.triple = module.triple
    loops = ir.Function(entry, ir.FunctionType(ir.IntType(32), [pointer] * 3), made.native_name.removeprefix("cfunc."))
    builder = ir.IRBuilder(ir.Function(entry, ir.FunctionType(ir.VoidType(), [pointer]), symbol).append_basic_block())
    result, error = (builder.bitcast(builder.alloca(pointer), pointer) for _ in range(2))
    builder.call(loops, [result, error, builder.function.args[0]])
    builder.ret_void()
    module.link_in(binding.parse_assembly(str(entry)))
    for place, value in enumerate([*module.functions, *module.global_variables]):
        if not value.is_declaration and value.name != symbol:
            value.linkage, value.name = "internal", f"_{place}"
    # A quarter as much code is left; nothing yet is of one processor more than of another.
    options = binding.create_pipeline_tuning_options(speed_level=1)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    any_processor = binding.Target.from_triple(binding.get_process_triple()).create_target_machine()
    builder = binding.create_pass_builder(any_processor, options)
    builder.getModulePassManager().run(module, builder)
    return module
