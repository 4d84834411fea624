"""The kernels of int8 layers: ``quantise`` and ``rescale`` around oneDNN's multiplication, and ``multiply`` in place of it.

On a CPU without VNNI, oneDNN adds pairs of products in 16 bits and clips sums that do not fit. ``multiply`` widens both factors
to 16 bits and adds pairs of products in 32 bits, with an instruction that vector units have had since SSE2 (``pmaddwd``). On
AVX2 that is 16 products per instruction, plus a second instruction to add them: twice the multiplications of float32.

The weights are laid out as ``[ceil(n_out / 16), ceil(n_in / 2), 16, 2]``, padded with zeros: see `models.linear.Int8Gemm`.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from .abi import COLUMNS, INT8_TILES_TOGETHER, NARROW_ROWS, PAGE, SEGMENT
from .activation import activate
from .intrinsics import FAST, INT64, WORDS, compiled, float32_at, for_each_count, int8_at, int16_at, int32_at, take

_ROUNDED, _ROUNDED_BITS = np.float32(12582912.0), np.int32(0x4B400000)
"""1.5 * 2**23: a float32 near it has no bits for a fraction, so adding it rounds to the nearest integer, ties to even."""
_INT16S, _INT8S = (ir.VectorType(ir.IntType(bits), 2 * PAGE) for bits in (16, 8))
"""Vectors with a pair of inputs for each of `PAGE` outputs."""


def quantise_by(at, zero):
    """Return the kernel that quantises rows of float32 to integers around ``zero``, with one scale per row.

    ``at`` makes pointers to these integers.
    """

    @compiled()
    def quantise_row(x, begin, width, quantised, to):
        """Write a row as ``round(127 * x / max(abs(x))) + zero``, and return its scale, ``max(abs(x)) / 127``."""
        bits = np.int32(0)
        for i in range(begin, begin + width):
            bits = max(bits, np.int32(np.float32(x[i]).view(np.int32) & np.int32(0x7FFFFFFF)))  # bits order as the floats do
        greatest = np.int32(bits).view(np.float32)
        inverse = np.float32(127) / greatest if greatest > np.float32(1e-30) else np.float32(0)
        for i in range(width):
            rounded = np.float32(np.float32(x[begin + i] * inverse) + _ROUNDED).view(np.int32)
            quantised[to + i] = np.int32(np.int32(rounded - _ROUNDED_BITS) + np.int32(zero))
        return greatest / np.float32(127)

    def quantise(tasks):
        task = carray(tasks, 1)[0]
        x, quantised, scales = float32_at(task.x), at(task.quantised), float32_at(task.scales)
        while True:
            begin = take(task.next_unit, task.chunk)
            if begin >= task.n_rows:
                return
            for row in range(begin, min(begin + task.chunk, task.n_rows)):
                scales[row] = quantise_row(x, row * task.width, task.width, quantised, row * task.stride)

    return quantise


@compiled(fastmath=FAST)
def _rescale(y, begin, end, scale, bias, column, has_bias, activation):
    """Set ``y = activation(scale * y + bias)`` in place, from ``begin`` to ``end``."""
    if has_bias:
        for i in range(end - begin):
            y[begin + i] = y[begin + i] * scale + bias[column + i]
    else:
        for i in range(begin, end):
            y[i] *= scale
    activate(y, begin, end, activation)


def rescale_float32(tasks):
    """Multiply each row of an int8 layer's result by the row's scale, and apply bias and activation, in place."""
    task = carray(tasks, 1)[0]
    y, scales, bias = float32_at(task.y), float32_at(task.scales), float32_at(task.bias)
    segments = (task.width + SEGMENT - 1) // SEGMENT
    while True:
        begin = take(task.next_unit, task.chunk)
        if begin >= task.n_rows * segments:
            return
        for unit in range(begin, min(begin + task.chunk, task.n_rows * segments)):
            row, column = unit // segments, unit % segments * SEGMENT
            first, last = row * task.width + column, row * task.width + min(column + SEGMENT, task.width)
            _rescale(y, first, last, scales[row], bias, column, task.bias != 0, task.activation)


@intrinsic
def _sum_products(_typing, rows, x, stride, weight, to, n_pairs):
    """``_sum_products(rows, x, stride, weight, to, n_pairs)``: write sums over ``n_pairs`` pairs to ``to[rows, PAGE]``.

    The ``rows`` rows of ``x``, at most `NARROW_ROWS`, begin ``stride`` apart. A pair is two inputs of each of `PAGE`
    outputs.
    """

    def codegen(_context, builder, _signature, args):
        rows, *others = args
        for_each_count(builder, rows, NARROW_ROWS, lambda count: _sum_products_of(builder, count, *others))

    return types.void(types.int64, x, types.int64, weight, to, types.int64), codegen


def _sum_products_of(builder, rows, x, stride, weight, to, n_pairs):
    """Emit the code of `_sum_products` for a fixed number of rows.

    LLVM turns the two products of a pair and their sum into one instruction.
    """
    first, second = (ir.Constant(WORDS, [2 * i + odd for i in range(PAGE)]) for odd in (0, 1))
    wide = ir.VectorType(WORDS.element, 2 * PAGE)
    unset = ir.Constant(WORDS, ir.Undefined)
    totals = [cgutils.alloca_once(builder, WORDS) for _ in range(rows)]
    for total in totals:
        builder.store(ir.Constant(WORDS, None), total)
    begins = [builder.gep(x, [builder.mul(stride, INT64(row))]) for row in range(rows)]
    with cgutils.for_range_slice(builder, INT64(0), n_pairs, INT64(1), INT64) as (pair, _):
        place = builder.gep(weight, [builder.mul(pair, INT64(2 * PAGE))])
        factors = builder.sext(builder.load(builder.bitcast(place, _INT8S.as_pointer()), align=1), _INT16S)
        for begin, total in zip(begins, totals, strict=True):
            place = builder.bitcast(builder.gep(begin, [builder.mul(pair, INT64(2))]), WORDS.element.as_pointer())
            word = builder.insert_element(unset, builder.load(place, align=2), INT64(0))
            inputs = builder.bitcast(builder.shuffle_vector(word, unset, ir.Constant(WORDS, None)), _INT16S)
            products = builder.mul(builder.sext(inputs, wide), builder.sext(factors, wide))
            sums = builder.add(*(builder.shuffle_vector(products, products, half) for half in (first, second)))
            builder.store(builder.add(builder.load(total), sums), total)
    for row, total in enumerate(totals):
        place = builder.bitcast(builder.gep(to, [INT64(row * PAGE)]), WORDS.as_pointer())
        builder.store(builder.load(total), place, align=4)


@compiled()
def _scale(sums, begin, out, to, count, scales, column):
    """Set ``out[to + i] = scales[column + i] * sums[begin + i]`` for ``i`` below ``count``."""
    for i in range(count):
        out[to + i] = np.float32(sums[begin + i]) * scales[column + i]


@compiled()
def _multiply_tile(task, sums, row, rows, block):
    """Multiply ``rows`` rows, from ``row`` on, by a block of `COLUMNS` outputs; apply scales, bias and activation."""
    out, weight_scales, row_scales = float32_at(task.out), float32_at(task.weight_scales), float32_at(task.scales)
    first, end = block * COLUMNS, min((block + 1) * COLUMNS, task.n_out)
    pairs = (task.n_in + 1) // 2
    for column in range(first, end, PAGE):
        x, weight = task.x + 2 * row * task.stride, task.weight + 2 * column * pairs
        _sum_products(rows, int16_at(x), task.stride, int8_at(weight), sums, pairs)
        for i in range(rows):
            to, count = (row + i) * task.n_out + column, min(PAGE, end - column)
            _scale(sums, i * PAGE, out, to, count, weight_scales, column)
    for i in range(row, row + rows):
        begin = i * task.n_out
        bias = float32_at(task.bias)
        _rescale(out, begin + first, begin + end, row_scales[i], bias, first, task.bias != 0, task.activation)


def multiply_int8(tasks):
    """Multiply int8 rows, stored in 16 bits, by packed int8 weights, to float32.

    A unit of work is some tiles of rows and a block of outputs.
    """
    task = carray(tasks, 1)[0]
    sums = int32_at(take(task.next_scratch, task.scratch))
    n_blocks = (task.n_out + COLUMNS - 1) // COLUMNS
    tiles = (task.n_rows + NARROW_ROWS - 1) // NARROW_ROWS
    groups = (tiles + INT8_TILES_TOGETHER - 1) // INT8_TILES_TOGETHER
    while True:
        begin = take(task.next_unit, task.chunk)
        if begin >= n_blocks * groups:
            return
        for unit in range(begin, min(begin + task.chunk, n_blocks * groups)):
            block, group = unit // groups, unit % groups
            for tile in range(group * tiles // groups, (group + 1) * tiles // groups):
                # Tiles are as equal as possible: a short last one would take as long as a full one.
                row, end = tile * task.n_rows // tiles, (tile + 1) * task.n_rows // tiles
                _multiply_tile(task, sums, row, end - row, block)
