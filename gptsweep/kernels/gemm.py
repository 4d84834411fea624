"""The kernel ``gemm``: multiplies rows by float32 or bfloat16 weights with AVX2's vector registers. See `onednn.FloatGemm`.

The weights are laid out as ``[ceil(n_out / 16), n_in, 16]``, padded with zeros. bfloat16 is widened as it is read, so products
are exact; sums are float32. A tile of rows has all its sums over a panel of 16 outputs in registers.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from .abi import GEMM_TILES_TOGETHER, NARROW_ROWS, PAGE
from .intrinsics import FLOATS, INT64, WORDS, compiled, float32_at, floats_at, for_each_count, store_narrow, take, widen_rows

_I = types.int64
_HALVES = ir.VectorType(ir.IntType(16), PAGE)


@intrinsic
def _add_products(_typing, rows, x, stride, weight, begin, to, n_inputs):
    """``_add_products(rows, x, stride, weight, begin, to, n_inputs)``: add ``n_inputs`` products to ``to[rows, PAGE]``.

    The ``rows`` rows of ``x``, at most `NARROW_ROWS`, begin ``stride`` apart. ``weight``, from ``begin`` on, has `PAGE`
    outputs for each input.
    """

    def codegen(_context, builder, _signature, args):
        rows, *others = args
        for_each_count(builder, rows, NARROW_ROWS, lambda count: _add_products_of(builder, count, *others))

    return types.void(_I, x, _I, weight, _I, to, _I), codegen


def _add_products_of(builder, rows, x, stride, weight, begin, to, n_inputs):
    """Emit the code of `_add_products` for a fixed number of rows."""
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), f"llvm.fma.v{PAGE}f32")
    everywhere, unset = ir.Constant(WORDS, None), ir.Constant(FLOATS, ir.Undefined)
    totals = [cgutils.alloca_once(builder, FLOATS) for _ in range(rows)]
    for total in totals:
        builder.store(ir.Constant(FLOATS, None), total)
    inputs = [builder.gep(x, [builder.mul(stride, INT64(row))]) for row in range(rows)]
    panel = builder.gep(weight, [begin])
    with cgutils.for_range_slice(builder, INT64(0), n_inputs, INT64(1), INT64) as (i, _):
        factors = _widened(builder, builder.gep(panel, [builder.mul(i, INT64(PAGE))]))
        for row, total in zip(inputs, totals, strict=True):
            number = builder.insert_element(unset, builder.load(builder.gep(row, [i])), INT64(0))
            repeated = builder.shuffle_vector(number, unset, everywhere)
            builder.store(builder.call(fma, [repeated, factors, builder.load(total)]), total)
    for row, total in enumerate(totals):
        place = floats_at(builder, to, INT64(row * PAGE))
        builder.store(builder.fadd(builder.load(place, align=4), builder.load(total)), place, align=4)


def _widened(builder, place):
    """Emit the `PAGE` weights at ``place`` as float32."""
    if place.type.pointee == ir.FloatType():
        return builder.load(builder.bitcast(place, FLOATS.as_pointer()), align=4)
    bits = builder.zext(builder.load(builder.bitcast(place, _HALVES.as_pointer()), align=2), WORDS)
    return builder.bitcast(builder.shl(bits, ir.Constant(WORDS, [16] * PAGE)), FLOATS)


@compiled()
def _store_tile(task, sums, rows, first, column, out):
    """Add the bias to a tile's sums, and write them to ``out`` from row ``first`` and ``column`` on."""
    bias = float32_at(task.bias)
    columns = min(PAGE, task.n_out - column)
    for row in range(rows):
        to = (first + row) * task.n_out + column
        if task.bias:
            for i in range(columns):
                store_narrow(out, to + i, sums[row * PAGE + i] + bias[column + i])
        else:
            for i in range(columns):
                store_narrow(out, to + i, sums[row * PAGE + i])


@compiled()
def _gemm(task, x, weight, out):
    """Multiply rows by packed weights. A unit of work is some tiles of rows and a panel of outputs."""
    scratch = take(task.next_scratch, task.scratch)
    sums, wide = float32_at(scratch), scratch + 4 * NARROW_ROWS * PAGE
    stride = task.n_in + PAGE  # rows a power of two apart would compete for the same lines of the L1 cache
    panels = (task.n_out + PAGE - 1) // PAGE
    tiles = (task.n_rows + NARROW_ROWS - 1) // NARROW_ROWS
    groups = (tiles + GEMM_TILES_TOGETHER - 1) // GEMM_TILES_TOGETHER
    opened = -1
    while True:
        begin = take(task.next_unit, task.chunk)
        if begin >= panels * groups:
            return
        for unit in range(begin, min(begin + task.chunk, panels * groups)):
            group, panel = unit // panels, unit % panels
            # Groups and tiles are as equal as possible: a short last one would take as long as a full one.
            first, last = group * tiles // groups, (group + 1) * tiles // groups
            start, end = first * task.n_rows // tiles, last * task.n_rows // tiles
            if group != opened:
                widen_rows(x, start * task.n_in, end - start, task.n_in, float32_at(wide), stride)
                opened = group
            for tile in range(first, last):
                row, rows = tile * task.n_rows // tiles, (tile + 1) * task.n_rows // tiles - tile * task.n_rows // tiles
                for i in range(rows * PAGE):
                    sums[i] = np.float32(0)
                for run in range(0, task.n_in, task.summed):
                    inputs = float32_at(wide + 4 * (stride * (row - start) + run))
                    n_inputs = min(task.summed, task.n_in - run)
                    _add_products(rows, inputs, stride, weight, (panel * task.n_in + run) * PAGE, sums, n_inputs)
                _store_tile(task, sums, rows, row, panel * PAGE, out)


def gemm_by(at):
    """Return the kernel ``gemm`` whose rows, weights and results are at ``at``'s pointers."""

    def gemm(tasks):
        task = carray(tasks, 1)[0]
        _gemm(task, at(task.x), at(task.weight), at(task.out))

    return gemm
