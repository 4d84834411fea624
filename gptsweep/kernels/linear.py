"""The kernel ``linear``: multiplies rows by packed bfloat16 weights. `onednn` describes their layout and reads them.

A tile of rows is multiplied by a block of outputs with all its sums in vector registers. A thread widens some tiles of rows
once, and multiplies them by one block of weights after another.
"""

from __future__ import annotations

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from .abi import COLUMNS, PAGE, TILE_ROWS
from .intrinsics import (
    INT64,
    bfloat16_at,
    compiled,
    float32_at,
    for_each_count,
    int32_at,
    store_narrow,
    take,
    widen,
    widen_rows,
)
from .onednn import multiply_tile

_I = types.int64
_ROWS_OF_WIDE_TILES = 5
"""Up to this many rows keep their sums over all of `COLUMNS` in vector registers; more rows take one half at a time."""


@intrinsic
def _multiply(_typing, rows, x, stride, weight, to, n_words):
    """``_multiply(rows, x, stride, weight, to, n_words)``: add a run of products of a tile's rows to ``to[rows, COLUMNS]``.

    The ``rows`` rows of ``x``, at most `TILE_ROWS`, begin ``stride`` apart; ``weight`` has ``n_words`` pairs of inputs for each
    output.
    """

    def codegen(_context, builder, _signature, args):
        rows, x, stride, weight, to, n_words = args

        def emit(count):
            vectors = COLUMNS // PAGE if count <= _ROWS_OF_WIDE_TILES else COLUMNS // PAGE // 2
            for column in range(0, COLUMNS, vectors * PAGE):
                places = (builder.gep(pointer, [INT64(column)]) for pointer in (weight, to))
                multiply_tile(builder, count, vectors, x, stride, *places, n_words)

        for_each_count(builder, rows, TILE_ROWS, emit)

    return types.void(_I, x, _I, weight, to, _I), codegen


@compiled()
def _linear_tile(task, wide, stride, sums, first, rows, block):
    """Multiply ``rows`` rows, from ``first`` on and widened at ``wide``, by a block of `COLUMNS` outputs, to bfloat16."""
    out, bias = bfloat16_at(task.out), bfloat16_at(task.bias)
    weight = task.weight + block * COLUMNS * task.n_in * 2
    for i in range(rows * COLUMNS):
        sums[i] = np.float32(0)
    for run in range(0, task.n_in, task.summed):
        pairs = min(task.summed, task.n_in - run) // 2
        _multiply(rows, float32_at(wide + 4 * run), stride, int32_at(weight + 2 * COLUMNS * run), sums, pairs)
    columns = min(COLUMNS, task.n_out - block * COLUMNS)
    for row in range(rows):
        to = (first + row) * task.n_out + block * COLUMNS
        if task.bias:
            for i in range(columns):
                store_narrow(out, to + i, sums[row * COLUMNS + i] + widen(bias[block * COLUMNS + i]))
        else:
            for i in range(columns):
                store_narrow(out, to + i, sums[row * COLUMNS + i])


def linear_bfloat16(tasks):
    """Multiply rows by packed bfloat16 weights, to bfloat16.

    A unit of work is some tiles of rows and a block of outputs.
    """
    task = carray(tasks, 1)[0]
    scratch = take(task.next_scratch, task.scratch)
    sums, wide = float32_at(scratch), scratch + 4 * TILE_ROWS * COLUMNS
    stride = task.n_in + PAGE  # rows a power of two apart would compete for the same lines of the L1 cache
    n_blocks = (task.n_out + COLUMNS - 1) // COLUMNS
    tiles = (task.n_rows + TILE_ROWS - 1) // TILE_ROWS
    opened = -1
    while True:
        begin = take(task.next_unit, task.chunk)
        if begin >= n_blocks * task.groups:
            return
        for unit in range(begin, min(begin + task.chunk, n_blocks * task.groups)):
            group, block = unit // n_blocks, unit % n_blocks
            first, last = group * tiles // task.groups, (group + 1) * tiles // task.groups
            # Tiles are as equal as possible: a short last one would widen its weights for few rows.
            start, end = first * task.n_rows // tiles, last * task.n_rows // tiles
            if group != opened:
                widen_rows(bfloat16_at(task.x), start * task.n_in, end - start, task.n_in, float32_at(wide), stride)
                opened = group
            for tile in range(first, last):
                row, rows = tile * task.n_rows // tiles, (tile + 1) * task.n_rows // tiles - tile * task.n_rows // tiles
                _linear_tile(task, wide + 4 * stride * (row - start), stride, sums, row, rows, block)
