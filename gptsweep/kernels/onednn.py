"""bfloat16 weights as oneDNN packs them: how they lie, the code that reads them, and the checks that this is so.

oneDNN multiplies a row with the same bits in any batch, but at a fraction of what memory delivers where there is one row, and
on some processors at half the speed of float32's multiplications. `Bf16Gemm` reads the same packed weights, adds in the same
order, and so gives the same bits at another speed.

oneDNN documents neither the layout nor the order. On processors with AVX-512 the weights lie ``[ceil(n_out / 64), n_in / 2, 64,
2]``. Of each pair of products oneDNN adds the second and then the first, in runs of so many inputs, and adds the runs up.
Nothing here trusts that. `Bf16Gemm.of` gives None, and oneDNN multiplies, where

- the packed buffer is smaller than that layout, or its size is not known: nothing is read beyond it;
- products in which great numbers cancel, so that every rounding shows, differ in one bit from oneDNN's (`_summed_together`);
- or a few rows through the layer itself do.

The multiplications are float32's, of bfloat16 made wide. No bit differs, unless a whole sum is below 1e-38: oneDNN's
instruction for pairs of bfloat16 makes it 0.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .abi import COLUMNS, PAGE, TILE_ROWS, TILES_TOGETHER

try:
    from .runtime import Kernel, has_wide_vectors
except ImportError:  # numba has no wheel for this platform
    Kernel = None  # type: ignore[assignment, misc]

ROWS_PACKED_FOR = 64
"""Rows that oneDNN is told to expect; it multiplies any number."""
_RUNS = (512, 1024, 2048, 4096)
"""Inputs that oneDNN may add up before it adds them to the rest."""
_AHEAD = 1024
"""Words by which weights are asked for before they are needed: what an idle memory channel delivers meanwhile. A prefetch that
reaches beyond the weights reads nothing and does not fault."""


def has_layers(dtype: torch.dtype) -> bool:
    """Whether oneDNN has packed layers of this floating-point dtype for this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


def pack(weight: Tensor) -> Tensor:
    """``weight [n_out, n_in]`` in oneDNN's layout."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_PACKED_FOR)
    return packed


def linear(rows: Tensor, packed: Tensor, bias: Tensor | None = None, activation: str = "none", approximate: str = "") -> Tensor:
    """``[rows, n_in] -> [rows, n_out]`` by oneDNN in the dtype of both, each row with the bits it has among any others."""
    # One row alone would take a matrix-vector product, which sums in another order.
    padded = rows.expand(2, -1).contiguous() if len(rows) == 1 else rows
    y: Tensor = torch.ops.mkldnn._linear_pointwise(padded, packed, bias, activation, [], approximate)
    return y[: len(rows)]


def packed_bytes(packed: Tensor) -> int | None:
    """The size of a packed weight's buffer, or None where torch does not say."""
    if not packed.is_mkldnn:
        return None
    try:
        return int(torch.ops.mkldnn._nbytes(packed))
    except (AttributeError, RuntimeError):  # a torch without this operation, or without it for this layout
        return None


class Bf16Gemm:
    """Rows through packed bfloat16 weights by the kernel ``linear``, with oneDNN's bits.

    A row alone goes at the speed of memory, which oneDNN does not reach, and many go at that of float32's multiplications,
    which is twice that of oneDNN's on processors that have instructions for pairs of bfloat16 but half as many of them.

    Args:
        shape: ``(n_out, n_in)`` of the weight.
        packed: the weight, packed.
        bias: ``bfloat16 [n_out]``.
        summed: inputs that are added up before they are added to the rest.

    Raises:
        ValueError: the packed buffer is smaller than what would be read, or of unknown size.
    """

    def __init__(self, shape: torch.Size, packed: Tensor, bias: Tensor | None, summed: int) -> None:
        self.n_out, n_in = shape
        needed, found = 2 * n_in * COLUMNS * math.ceil(self.n_out / COLUMNS), packed_bytes(packed)
        if found is None or found < needed:
            raise ValueError(f"the packed weights are {found} bytes, and {needed} would be read")
        self.kernel = Kernel("linear", torch.bfloat16)
        self.kernel.set(
            n_in=n_in,
            n_out=self.n_out,
            summed=summed,
            scratch=4 * TILE_ROWS * (COLUMNS + TILES_TOGETHER * (n_in + PAGE)),
            weight=torch.ops.mkldnn.data_ptr(packed),
            bias=0 if bias is None else bias.data_ptr(),
        )

    @classmethod
    def of(cls, weight: Tensor, packed: Tensor, bias: Tensor | None) -> Bf16Gemm | None:
        """For a packed layer, or None where the weights cannot be read or oneDNN's sums cannot be repeated."""
        if packed.dtype != torch.bfloat16 or Kernel is None or not has_wide_vectors():
            return None
        summed = _summed_together(weight.shape[1])
        if summed is None:
            return None
        try:
            gemm = cls(weight.shape, packed, bias, summed)
        except ValueError:
            return None
        rows = torch.linspace(-2, 2, 3 * weight.shape[1]).sin().view(3, -1).bfloat16()
        return gemm if torch.equal(gemm(rows), linear(rows, packed, bias)) else None

    def __call__(self, rows: Tensor) -> Tensor:
        """``bfloat16 [rows, n_in] -> [rows, n_out]``."""
        n_rows = rows.shape[0]
        out = torch.empty(n_rows, self.n_out, dtype=torch.bfloat16)
        units = -(-self.n_out // COLUMNS) * -(-n_rows // (TILE_ROWS * TILES_TOGETHER))
        self.kernel(n_rows=n_rows, chunk=max(1, units // 32), x=rows.contiguous().data_ptr(), out=out.data_ptr())
        return out


@functools.cache
@torch.inference_mode()
def _summed_together(n_in: int) -> int | None:
    """How many products oneDNN adds up before it adds them to the rest, or None where that is not found.

    Tried on products in which great numbers cancel, so that every rounding on the way shows in the results.
    """
    if n_in % 2:
        return None
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2 * COLUMNS + 1, n_in, generator=generator)
    x = torch.randn(TILE_ROWS + 3, n_in, generator=generator)
    x[:, [0, -1]] = 2.0**11
    weight[:, 0] = 2.0**11
    weight[:, -1] = -(2.0**11)
    packed = pack(weight.bfloat16())
    bias = torch.randn(len(weight), generator=generator).bfloat16()
    rows = x.bfloat16()
    wanted = linear(rows, packed, bias)
    for summed in _RUNS:
        try:
            gemm = Bf16Gemm(weight.shape, packed, bias, summed)
        except ValueError:
            return None
        if all(torch.equal(gemm(rows[:count]), wanted[:count]) for count in range(1, len(rows) + 1)):
            return summed
    return None


@functools.cache
@torch.inference_mode()
def gemm_is_faster() -> bool:
    """Whether `Bf16Gemm` takes many rows through a layer in less time than oneDNN on this machine; a few ms, once.

    The bits are the same, so only the time depends on how this measurement goes.
    """
    weight, rows = torch.ones(1024, 768, dtype=torch.bfloat16), torch.ones(64, 768, dtype=torch.bfloat16)
    packed = pack(weight)
    gemm = Bf16Gemm.of(weight, packed, None)
    if gemm is None:
        return False
    ways: list[Callable[[Tensor], Tensor]] = [gemm, functools.partial(linear, packed=packed)]
    best = [math.inf, math.inf]
    for _ in range(5):
        for way, run in enumerate(ways):
            begin = time.perf_counter()
            run(rows)
            best[way] = min(best[way], time.perf_counter() - begin)
    return best[0] < best[1]


def multiply_tile(builder: Any, rows: int, vectors: int, x: Any, stride: Any, weight: Any, to: Any, n_words: Any) -> None:
    """Code that adds a run of ``2 * n_words`` products to ``to[row * COLUMNS :][: vectors * PAGE]``, for each of ``rows``.

    Args:
        builder: of LLVM's code, in numba's hands; the rest are its values, but for the two counts.
        rows: of the tile.
        vectors: registers of outputs; with all rows' they fill the 32 of AVX-512 but for what is multiplied.
        x: the rows, in float32, ``stride`` apart.
        weight: packed weights of the outputs, ``COLUMNS`` words for a pair of inputs.
    """
    # Only who compiles the loops needs numba, and it takes a second to import.
    from llvmlite import ir
    from numba.core import cgutils

    from .intrinsics import FLOATS, INT64, WORDS, floats_at

    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    zero = ir.Constant(FLOATS, [0.0] * PAGE)
    prefetch = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    prefetch = cgutils.get_or_insert_function(builder.module, prefetch, "llvm.prefetch.p0")
    # One block of assembly for a row and an input: it broadcasts the input and multiplies it with each register of weights.
    # LLVM on its own would load all of a tile's inputs first, and be out of registers. The sums are read and written in place
    # (tied), and the broadcast input has a register of its own before they are ("&": early).
    made = ir.LiteralStructType([FLOATS] * (vectors + 1))
    taken = ir.FunctionType(made, [FLOATS] * vectors + [x.type, INT64] + [FLOATS] * vectors)
    ties = [str(i) for i in range(vectors)]
    constraints = ",".join(["=v"] * vectors + ["=&v", *ties, "r", "r"] + ["v"] * vectors + ["~{memory}"])
    products = "".join(f"vfmadd231ps ${2 * vectors + 3 + i}, ${vectors}, ${i}\n" for i in range(vectors))
    row_bytes = builder.mul(stride, INT64(4))
    totals = [[cgutils.alloca_once(builder, FLOATS) for _ in range(vectors)] for _ in range(rows)]
    for total in itertools.chain(*totals):
        builder.store(zero, total)
    with cgutils.for_range_slice(builder, INT64(0), n_words, INT64(1), INT64) as (word, _):
        halves = []
        for i in range(vectors):
            place = builder.gep(weight, [builder.add(builder.mul(word, INT64(COLUMNS)), INT64(PAGE * i))])
            later = builder.bitcast(builder.gep(place, [INT64(_AHEAD)]), byte)
            builder.call(prefetch, [later, number(0), number(3), number(1)])
            bits = builder.load(builder.bitcast(place, WORDS.as_pointer()), align=4)
            high = builder.and_(bits, ir.Constant(WORDS, [0xFFFF0000] * PAGE))
            low = builder.shl(bits, ir.Constant(WORDS, [16] * PAGE))
            halves.append([builder.bitcast(low, FLOATS), builder.bitcast(high, FLOATS)])
        for half in (1, 0):  # oneDNN's order
            for row, sums in enumerate(totals):
                # Every third row has an address of its own, and the two after it are at one and two strides from that: there
                # are not general registers for more.
                offset = builder.add(builder.mul(word, INT64(2)), builder.mul(stride, INT64(row // 3 * 3)))
                base = builder.gep(x, [offset])
                address = f"{4 * half}(${2 * vectors + 1}" + (f",${2 * vectors + 2},{row % 3})" if row % 3 else ")")
                code = ir.InlineAsm(taken, f"vbroadcastss {address}, ${vectors}\n{products}", constraints)
                wide = [half_of[half] for half_of in halves]
                summed = builder.call(code, [builder.load(total) for total in sums] + [base, row_bytes, *wide])
                for i, total in enumerate(sums):
                    builder.store(builder.extract_value(summed, i), total)
    for row, sums in enumerate(totals):
        for i, total in enumerate(sums):
            place = floats_at(builder, to, INT64(row * COLUMNS + PAGE * i))
            builder.store(builder.fadd(builder.load(place, align=4), builder.load(total)), place, align=4)
