"""The kernel ``gemm``: multiplies rows by float32 or bfloat16 weights with AVX2 and FMA. See `onednn.FloatGemm`.

The weights are laid out as ``[ceil(n_out / 16), n_in, 16]``, padded with zeros. bfloat16 is widened as it is read, so products
are exact; sums are float32. A tile of rows has all its sums over a panel of 16 outputs in registers.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from .abi import BEFORE_TANH, NARROW_ROWS, PAGE
from .activation import activate, before_tanh
from .intrinsics import INT64, compiled, float32_at, for_each_count, store_narrow, take, widen_rows

_I = types.int64
_VECTOR = PAGE // 2
"""Numbers of float32 in a register."""
_AHEAD = 1024
"""How many bytes ahead weights are prefetched, so that a panel's first tile need not wait for memory. The next panel follows in
memory; beyond the last one, a prefetch reads nothing and does not fault."""


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
    """Emit the code of `_add_products` for a fixed number of rows.

    One block of assembly holds both loops, over four inputs at a time and over the rest. In loops of its own, LLVM computes
    addresses again and again: a quarter more instructions, which take time where another program has the core's other thread.
    """
    sums = 2 * rows
    numbers = ir.VectorType(ir.FloatType(), _VECTOR)
    # What the assembly returns: the sums, and what it uses and changes, which is of no further interest: four registers, the
    # addresses of rows 0 and 3 and of the weights, and the counts of both loops. It takes the sums and all but the registers.
    made = ir.LiteralStructType([numbers] * (sums + 4) + [INT64] * 5)
    taken = ir.FunctionType(made, [numbers] * sums + [INT64] * 6)
    ties = [*range(sums), *range(sums + 4, sums + 9)]
    constraints = ["=x"] * sums + ["=&x"] * 4 + ["=r"] * 5 + [str(i) for i in ties] + ["r", "~{memory}", "~{flags}"]
    registers = [f"${sums + i}" for i in range(4)]
    row_0, row_3, weights, fours, ones = (f"${sums + 4 + i}" for i in range(5))
    row_bytes = f"${2 * sums + 14}"
    narrow = weight.type.pointee == ir.IntType(16)
    input_bytes = PAGE * (2 if narrow else 4)
    rows_at = [f"({row_0 if row < 3 else row_3}{f',{row_bytes},{row % 3}' if row % 3 else ''})" for row in range(rows)]

    def multiply(i):
        """Yield the instructions for the ``i``-th input from the addresses on."""
        for half, register in enumerate(registers[:2]):
            place = f"{input_bytes * i + input_bytes // 2 * half}({weights})"
            if narrow:
                yield from (f"vpmovzxwd {place}, {register}", f"vpslld $$16, {register}, {register}")
            else:
                yield f"vmovups {place}, {register}"
        for row, place in enumerate(rows_at):
            factor = registers[2 + row % 2]
            yield f"vbroadcastss {4 * i}{place}, {factor}"
            yield from (f"vfmadd231ps {registers[half]}, {factor}, ${2 * row + half}" for half in range(2))

    def loop(count, inputs):
        """Yield a loop that runs ``count`` times, over ``inputs`` inputs at a time."""
        yield from (f"test {count}, {count}", "jz 2f", "1:")
        for i in range(inputs):
            yield from multiply(i)
        yield from (f"prefetcht0 {_AHEAD + line}({weights})" for line in range(0, input_bytes * inputs, 64))
        yield from (f"add $${4 * inputs}, {row_0}", f"add $${4 * inputs}, {row_3}")
        yield from (f"add $${input_bytes * inputs}, {weights}", f"dec {count}", "jnz 1b", "2:")

    code = "\n".join([*loop(fours, 4), *loop(ones, 1)])
    addresses = [builder.gep(x, [builder.mul(stride, INT64(row))]) for row in (0, 3)] + [builder.gep(weight, [begin])]
    counts = [builder.lshr(n_inputs, INT64(2)), builder.and_(n_inputs, INT64(3))]
    found = builder.call(
        ir.InlineAsm(taken, code, ",".join(constraints), side_effect=True),
        [ir.Constant(numbers, None)] * sums
        + [builder.ptrtoint(address, INT64) for address in addresses]
        + [*counts, builder.mul(stride, INT64(4))],
    )
    for i in range(sums):
        place = builder.bitcast(builder.gep(to, [INT64(_VECTOR * i)]), numbers.as_pointer())
        builder.store(builder.fadd(builder.load(place, align=4), builder.extract_value(found, i)), place, align=4)


@compiled()
def _store_tile(task, sums, rows, first, column, columns, out):
    """Add the bias to a tile's sums, write them to ``out`` from row ``first`` and ``column`` on, and apply the activation."""
    bias = float32_at(task.bias)
    for row in range(rows):
        to = (first + row) * task.n_out + column
        if task.bias:
            for i in range(columns):
                store_narrow(out, to + i, sums[row * PAGE + i] + bias[column + i])
        else:
            for i in range(columns):
                store_narrow(out, to + i, sums[row * PAGE + i])
        if task.activation == BEFORE_TANH:
            before_tanh(out, float32_at(task.tanh), to, to + columns)
        else:
            activate(out, to, to + columns, task.activation)


@compiled()
def _gemm(task, x, weight, out):
    """Multiply rows by packed weights. A unit of work is some tiles of rows and a panel of outputs."""
    scratch = take(task.next_scratch, task.scratch)
    sums, wide = float32_at(scratch), scratch + 4 * NARROW_ROWS * PAGE
    stride = task.n_in + PAGE  # rows a power of two apart would compete for the same lines of the L1 cache
    panels = (task.n_out + PAGE - 1) // PAGE
    tiles = (task.n_rows + NARROW_ROWS - 1) // NARROW_ROWS
    opened = -1
    while True:
        begin = take(task.next_unit, task.chunk)
        if begin >= panels * task.groups:
            return
        for unit in range(begin, min(begin + task.chunk, panels * task.groups)):
            group, panel = unit // panels, unit % panels
            # Groups and tiles are as equal as possible: a short last one would take as long as a full one.
            first, last = group * tiles // task.groups, (group + 1) * tiles // task.groups
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
                column = panel * PAGE
                if column + PAGE <= task.n_out:  # a constant number of columns takes vector instructions
                    _store_tile(task, sums, rows, row, column, PAGE, out)
                else:
                    _store_tile(task, sums, rows, row, column, task.n_out - column, out)


def gemm_by(at):
    """Return the kernel ``gemm`` whose rows, weights and results are at ``at``'s pointers."""

    def gemm(tasks):
        task = carray(tasks, 1)[0]
        _gemm(task, at(task.x), at(task.weight), at(task.out))

    return gemm
