"""oneDNN's linear layers, and multiplications that have the same bits but are faster, with the checks that the bits are right.

oneDNN gives a row the same bits in any batch. But where there is one row it reaches only a fraction of the memory bandwidth,
with AVX2 alone it multiplies float32 at two thirds of the CPU's peak, and on some processors with AVX-512 it multiplies
bfloat16 at half the speed of float32. `FloatGemm` and `Bf16Gemm` add in the same order, and so give the same bits.

oneDNN documents no order. It sums runs of a fixed number of inputs, product after product, and adds up the runs. `FloatGemm`
has weights in a layout of its own, and is used where no bit differs from oneDNN's on products in which large numbers cancel, so
that every rounding shows (`_float_sums`). GELU behind a float32 layer is oneDNN's own as well, or its tanh is.

`Bf16Gemm` reads the weights that oneDNN packed, whose layout is not documented either. On processors with AVX-512 it is
``[ceil(n_out / 64), n_in / 2, 64, 2]``, and oneDNN adds the second product of each pair before the first. The code here takes
none of this for granted. `Bf16Gemm.of` returns None, and oneDNN multiplies, where

- the packed buffer is smaller than that layout or of unknown size, so that nothing is read beyond it;
- any bit differs from oneDNN's on products in which large numbers cancel;
- or any bit differs for a few rows through the layer itself.

Its multiplications are those of float32, on widened bfloat16. No bit differs unless a whole sum is below 1e-38, which oneDNN's
instruction for pairs of bfloat16 flushes to 0.

The module is long because the multiplications and the checks against oneDNN, which use each other, stay together.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .abi import (
    AFTER_TANH,
    BEFORE_TANH,
    COLUMNS,
    GELU,
    GELU_TANH,
    GEMM_TILES_TOGETHER,
    NARROW_ROWS,
    NO_ACTIVATION,
    PAGE,
    SEGMENT,
    TILE_ROWS,
    TILES_TOGETHER,
)

try:
    from .runtime import Kernel, has_fused_vectors, has_wide_vectors
except ImportError:  # numba has no wheel for this platform
    Kernel = None  # type: ignore[assignment, misc]

ROWS_PACKED_FOR = 64
"""Rows that oneDNN is told to expect; it multiplies any number of them."""
_RUNS = (512, 1024, 2048, 4096)
"""Numbers of inputs that oneDNN may add up before it adds them to the rest."""
_OUTPUTS_TRIED = 256
"""The most outputs of a layer whose sums `FloatGemm` compares with oneDNN's."""
_MOST_OUTPUTS_TRIED = 8192
"""The most outputs of a layer for which `InBatches` tries how oneDNN adds up: more have the same order."""
_LEAST_CORES = 4
"""Layers are tried on as many threads as the machine has cores, but at least on this many, so that small machines agree."""
_KEPT_BY_MALLOC = 2**25
"""Bytes of the largest block that glibc's malloc keeps for the next call."""
_UNITS_A_THREAD = 4
"""Units of a multiplication for each thread, so that none waits long for the last one."""
_NUMBERS_TRIED = 2**14
"""How many float32 numbers, evenly spaced among all bit patterns, `FloatGemm` compares GELU on."""
_AHEAD = 1024
"""How many words ahead weights are prefetched: as many as an otherwise idle memory channel delivers meanwhile. A prefetch that
reaches beyond the weights reads nothing and does not fault."""


def has_layers(dtype: torch.dtype) -> bool:
    """Return whether oneDNN has packed layers of this floating-point dtype for this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


def pack(weight: Tensor) -> Tensor:
    """Return ``weight [n_out, n_in]`` in oneDNN's packed layout."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_PACKED_FOR)
    return packed


def linear(rows: Tensor, packed: Tensor, bias: Tensor | None = None, activation: str = "none", approximate: str = "") -> Tensor:
    """Map ``[rows, n_in] -> [rows, n_out]`` with oneDNN, in the dtype of both; a row has the same bits in any batch."""
    # For a single row oneDNN would take a matrix-vector product, which sums in another order.
    padded = rows.expand(2, -1).contiguous() if len(rows) == 1 else rows
    y: Tensor = torch.ops.mkldnn._linear_pointwise(padded, packed, bias, activation, [], approximate)
    return y[: len(rows)]


def linear_added(rows: Tensor, packed: Tensor, total: Tensor) -> Tensor:
    """Return ``total [rows, n_out]`` plus the linear layer's result for ``rows``, rounded once."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, total, packed, None, "add")
    return y


class InBatches:
    """oneDNN's bfloat16 layers made batch invariant on a CPU with AMX: ``[rows, n_in] -> [rows, n_out]``.

    With AMX, oneDNN chooses instructions by the number of rows, and adds up long sums on several threads. Batches of one of
    a few numbers of rows, the last one padded with zeros, have one order of sums; so have slices of the inputs. A slice's
    result is rounded to bfloat16 before the next one is added to it.

    Args:
        weight: ``bfloat16 [n_out, n_in]``.
        bias: ``bfloat16 [n_out]``, or None.
        slices: how many slices the inputs are cut into.
    """

    ROWS: ClassVar[tuple[int, ...]] = (32, 64, 128)
    """The numbers of rows in a batch. Fewer rows have another order of sums, and on several threads so have more."""
    SLICES: ClassVar[tuple[int, ...]] = (1, 2, 4, 8)

    def __init__(self, weight: Tensor, bias: Tensor | None, slices: int) -> None:
        self.dtype, self.bias = weight.dtype, bias
        self.slices = [(part.shape[1], pack(part.contiguous())) for part in weight.chunk(slices, 1)]

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> InBatches | None:
        """Return the layer, or None where oneDNN's own is invariant or this one would not be."""
        if weight.dtype != torch.bfloat16 or not torch.cpu.get_capabilities().get("amx_bf16"):
            return None
        slices = _invariant_slices(min(len(weight), _MOST_OUTPUTS_TRIED), weight.shape[1])
        return None if slices is None else cls(weight, bias, slices)

    def __call__(self, rows: Tensor) -> Tensor:
        """Map ``[rows, n_in] -> [rows, n_out]``."""
        outs = [self._batch(batch) for batch in rows.split(self.ROWS[-1])]
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _batch(self, rows: Tensor) -> Tensor:
        """Multiply at most `ROWS[-1]` rows."""
        padding = next(size for size in self.ROWS if size >= len(rows)) - len(rows)
        padded = nn.functional.pad(rows, (0, 0, 0, padding)) if padding else rows
        inputs = padded.split([n_in for n_in, _ in self.slices], 1)
        total = linear(inputs[0].contiguous(), self.slices[0][1], self.bias)
        for some, (_, packed) in zip(inputs[1:], self.slices[1:], strict=True):
            total = linear_added(some.contiguous(), packed, total)
        return total[: len(rows)]


@functools.cache
@torch.inference_mode()
def _invariant_slices(n_out: int, n_in: int) -> int | None:
    """Find the least number of slices with which `InBatches` is invariant for layers of this shape on this machine.

    It does not depend on the number of threads in use. None: oneDNN's own layers of this shape are invariant, or no number of
    slices helps.
    """
    generator = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(n, n_in, generator=generator).bfloat16() for n in (n_out, InBatches.ROWS[-1] * 3 // 2))
    if _is_invariant(functools.partial(linear, packed=pack(weight)), rows, (1, 2, 8, 15, 16, 17, 31, 64, 100, 128)):
        return None
    counts = (1, InBatches.ROWS[0] + 1, InBatches.ROWS[1] + 1)
    return next((n for n in InBatches.SLICES if _is_invariant(InBatches(weight, None, n), rows, counts)), None)


def _is_invariant(multiply: Callable[[Tensor], Tensor], rows: Tensor, counts: Sequence[int]) -> bool:
    """Return whether rows have the same bits among the first ``counts`` of them, at other places, and on 1, 2, 4, … threads."""
    wanted, usual, cores = multiply(rows), torch.get_num_threads(), max(_LEAST_CORES, os.cpu_count() or 1)
    try:
        for power in range(cores.bit_length()):
            torch.set_num_threads(2**power)
            if not torch.equal(multiply(rows.roll(7, 0)).roll(-7, 0), wanted):
                return False
            if not all(torch.equal(multiply(rows[:count]), wanted[:count]) for count in counts):
                return False
    finally:
        torch.set_num_threads(usual)
    return True


def packed_bytes(packed: Tensor) -> int | None:
    """Return the size of a packed weight's buffer in bytes, or None where torch does not report it."""
    if not packed.is_mkldnn:
        return None
    try:
        return int(torch.ops.mkldnn._nbytes(packed))
    except (AttributeError, RuntimeError):  # a torch without this operation, or without it for this layout
        return None


def empty_results(n_rows: int, n_out: int, dtype: torch.dtype) -> Tensor:
    """Return memory for a layer's results, ``[n_rows, n_out]`` of unknown numbers.

    glibc's malloc asks the system for each block of over 32 MiB anew. torch gets it in small pages, which takes as long
    as some layers do for the logits of a step. numpy gets it in huge pages.
    """
    if n_rows * n_out * dtype.itemsize <= _KEPT_BY_MALLOC:
        return torch.empty(n_rows, n_out, dtype=dtype)
    return torch.from_numpy(np.empty((n_rows, n_out * dtype.itemsize), np.uint8)).view(dtype)


class _Gemm:
    """Multiplication of rows by packed weights with a kernel: ``[rows, n_in] -> [rows, n_out]``, both in one dtype.

    Args:
        dtype: the dtype of rows and results.
        shape: ``(n_out, n_in)`` of the weight.
        summed: how many inputs are added up before they are added to the rest.
        weight: address of the packed weights.
        bias: ``[n_out]``, or None.
    """

    name: ClassVar[str]
    """The kernel."""
    columns: ClassVar[int]
    """Outputs in a block of packed weights."""
    tile_rows: ClassVar[int]
    tiles_together: ClassVar[tuple[int, int]]
    """The fewest and the most tiles of rows that a thread multiplies by a block before it goes on to the next block."""

    def __init__(self, dtype: torch.dtype, shape: torch.Size, summed: int, weight: int, bias: Tensor | None) -> None:
        self.dtype, (self.n_out, n_in) = dtype, shape
        self.blocks = -(-self.n_out // self.columns)
        self.kernel = Kernel(self.name, dtype)
        self.kernel.set(
            n_in=n_in,
            n_out=self.n_out,
            summed=summed,
            scratch=4 * self.tile_rows * (self.columns + self.tiles_together[1] * (n_in + PAGE)),
            weight=weight,
            bias=0 if bias is None else bias.data_ptr(),
        )

    def __call__(self, rows: Tensor) -> Tensor:
        """Map ``[rows, n_in] -> [rows, n_out]``."""
        return self.multiplied(rows)

    def multiplied(self, rows: Tensor, **places: int) -> Tensor:
        """Run the kernel: ``[rows, n_in] -> [rows, n_out]``. ``places`` are more addresses for it."""
        rows, n_rows = rows.contiguous(), len(rows)
        out = empty_results(n_rows, self.n_out, self.dtype)
        groups = self._groups(n_rows)
        places |= {"x": rows.data_ptr(), "out": out.data_ptr()}
        self.kernel(n_rows=n_rows, groups=groups, chunk=max(1, groups * self.blocks // 32), **places)
        return out

    def _groups(self, n_rows: int) -> int:
        """Choose into how many groups rows are cut, each of which reads all weights: as few as keep all threads busy."""
        most, least = (-(-n_rows // (self.tile_rows * tiles)) for tiles in self.tiles_together)
        return min(max(least, -(-_UNITS_A_THREAD * torch.get_num_threads() // self.blocks)), most)


class _TanhBuffer(threading.local):
    """Memory for the arguments of oneDNN's tanh. torch calls it only for tensors in oneDNN's layout, here one of plain rows.

    One buffer per calling thread, shared by all layers so that it stays in cache.
    """

    def __init__(self) -> None:
        self.numbers = torch.empty((0, 0))

    def of(self, shape: torch.Size) -> Tensor:
        """Return a tensor of this shape, valid until the next call; its numbers are undefined."""
        if self.numbers.shape != shape:
            with torch.inference_mode(False):  # a tensor made in inference mode may be changed in it alone
                self.numbers = torch.empty(shape, layout=torch._mkldnn)  # type: ignore[attr-defined]
        return self.numbers


_tanh_buffer = _TanhBuffer()


class FloatGemm(_Gemm):
    """Multiplication of rows by float32 or bfloat16 weights with the kernel ``gemm``, which gives oneDNN's bits in float32.

    bfloat16 takes two bytes a weight. It is widened as it is read, and the result is rounded once.

    Args:
        weight: ``[n_out, n_in]``; its dtype is that of rows and results.
        bias: ``float32 [n_out]``, or None.
        summed: how many inputs are added up before they are added to the rest.
        activation: code of the activation to apply to the result. In float32, GELU has oneDNN's bits.
    """

    name, columns, tile_rows, tiles_together = "gemm", PAGE, NARROW_ROWS, GEMM_TILES_TOGETHER

    def __init__(self, weight: Tensor, bias: Tensor | None, summed: int, activation: int = NO_ACTIVATION) -> None:
        missing = -len(weight) % PAGE
        padded = nn.functional.pad(weight, (0, 0, 0, missing)) if missing else weight
        self.packed, self.bias = padded.view(-1, PAGE, weight.shape[1]).transpose(1, 2).contiguous(), bias
        super().__init__(weight.dtype, weight.shape, summed, self.packed.data_ptr(), bias)
        self.gelu = activation if activation in (GELU, GELU_TANH) and weight.dtype == torch.float32 else None
        if self.gelu is not None:
            activation = BEFORE_TANH if self.gelu == GELU_TANH else NO_ACTIVATION
        self.after_tanh = Kernel("activate", weight.dtype) if self.gelu == GELU_TANH else None
        self.kernel.set(activation=activation)

    def __call__(self, rows: Tensor) -> Tensor:
        """Map ``[rows, n_in] -> [rows, n_out]``."""
        if self.after_tanh is None or not len(rows):
            y = self.multiplied(rows)
            return torch.ops.aten.gelu_(y) if self.gelu == GELU and len(rows) else y
        tanh = _tanh_buffer.of(torch.Size((len(rows), self.n_out)))
        place = torch.ops.mkldnn.data_ptr(tanh)
        y = self.multiplied(rows, tanh=place)
        torch.tanh_(tanh)
        counts = {"n_numbers": y.numel(), "chunk": -(-y.numel() // (16 * SEGMENT))}
        self.after_tanh(activation=AFTER_TANH, **counts, y=y.data_ptr(), tanh=place)
        return y

    @staticmethod
    def is_for_this_cpu() -> bool:
        """Return whether the kernel may be faster than oneDNN here: it is written for AVX2 and FMA, but not for AVX-512."""
        return Kernel is not None and has_fused_vectors() and not has_wide_vectors()

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, activation: int = NO_ACTIVATION) -> FloatGemm | None:
        """Return the multiplication for a layer, or None on CPUs with AVX-512 or without AVX2, and where oneDNN's bits differ.

        Weights of another 16-bit dtype than bfloat16 are widened.
        """
        if not cls.is_for_this_cpu():
            return None
        n_out, n_in = min(len(weight), _OUTPUTS_TRIED), weight.shape[1]
        summed = _float_sums(n_out, n_in)
        if summed is None:
            return None
        in_bfloat16 = weight.dtype == torch.bfloat16
        needs_onednns = activation in (GELU, GELU_TANH) and not in_bfloat16
        if needs_onednns and not _gelu_is_the_fused_one(activation, n_out, n_in, summed):
            return None
        return cls(weight if in_bfloat16 else weight.float(), bias, summed, activation)


@functools.cache
@torch.inference_mode()
def _gelu_is_the_fused_one(activation: int, n_out: int, n_in: int, summed: int) -> bool:
    """Test whether `FloatGemm` with GELU gives the bits of oneDNN's layers with GELU fused."""
    if n_out == 1:  # torch computes GELU of a single number with other code
        return False
    numbers = torch.arange(-(2**31), 2**31, 2**32 // _NUMBERS_TRIED + 1).int().view(torch.float32)
    numbers = numbers[numbers.isfinite()]
    nothing = torch.zeros(len(numbers), 1)  # the weight of a layer whose results are its biases
    approximate = "tanh" if activation == GELU_TANH else "none"
    for rows, weight, bias in [(nothing[:2], nothing, numbers), _cancelling(n_out, n_in)]:
        try:
            gemm = FloatGemm(weight, bias, summed, activation)
            if not _same_bits(gemm, rows, linear(rows, pack(weight), bias, "gelu", approximate)):
                return False
        except RuntimeError:  # an operation that this build of torch lacks
            return False
    return True


@functools.cache
@torch.inference_mode()
def _float_sums(n_out: int, n_in: int) -> int | None:
    """Find how many products oneDNN adds up in float32 before it adds them to the rest; None where that cannot be found."""
    rows, weight, bias = _cancelling(n_out, n_in)
    wanted = linear(rows, pack(weight), bias)
    return next((summed for summed in _RUNS if _same_bits(FloatGemm(weight, bias, summed), rows, wanted)), None)


class Bf16Gemm(_Gemm):
    """Multiplication of rows by packed bfloat16 weights with the kernel ``linear``, which gives the same bits as oneDNN.

    A single row runs at memory bandwidth, which oneDNN does not reach. Many rows run at the speed of float32 multiplications.
    That is twice oneDNN's speed on processors that have instructions for pairs of bfloat16 but execute half as many of them.

    Args:
        shape: ``(n_out, n_in)`` of the weight.
        packed: the packed weight.
        bias: ``bfloat16 [n_out]``.
        summed: how many inputs are added up before they are added to the rest.

    Raises:
        ValueError: the packed buffer is smaller than what would be read, or of unknown size.
    """

    name, columns, tile_rows, tiles_together = "linear", COLUMNS, TILE_ROWS, (TILES_TOGETHER, TILES_TOGETHER)

    def __init__(self, shape: torch.Size, packed: Tensor, bias: Tensor | None, summed: int) -> None:
        n_out, n_in = shape
        needed, found = 2 * n_in * COLUMNS * math.ceil(n_out / COLUMNS), packed_bytes(packed)
        if found is None or found < needed:
            raise ValueError(f"the packed weights are {found} bytes, and {needed} would be read")
        super().__init__(torch.bfloat16, shape, summed, torch.ops.mkldnn.data_ptr(packed), bias)

    @classmethod
    def of(cls, weight: Tensor, packed: Tensor, bias: Tensor | None) -> Bf16Gemm | None:
        """Return the multiplication for a packed layer, or None where its weights cannot be read or oneDNN's sums differ."""
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


@functools.cache
@torch.inference_mode()
def _summed_together(n_in: int) -> int | None:
    """Find how many products oneDNN adds up in bfloat16 before it adds them to the rest; None where that cannot be found."""
    if n_in % 2:
        return None
    rows, weight, bias = (tensor.bfloat16() for tensor in _cancelling(2 * COLUMNS + 1, n_in))
    packed = pack(weight)
    wanted = linear(rows, packed, bias)
    for summed in _RUNS:
        try:
            gemm = Bf16Gemm(weight.shape, packed, bias, summed)
        except ValueError:
            return None
        if _same_bits(gemm, rows, wanted):
            return summed
    return None


def _cancelling(n_out: int, n_in: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw rows, weight and bias of a layer in float32, with large numbers in the first and last input that cancel."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n_out, n_in, generator=generator)
    rows = torch.randn(TILE_ROWS + 3, n_in, generator=generator)
    rows[:, [0, -1]] = 2.0**11
    weight[:, 0] = 2.0**11
    weight[:, -1] = -(2.0**11)
    return rows, weight, torch.randn(n_out, generator=generator)


def _same_bits(gemm: Callable[[Tensor], Tensor], rows: Tensor, wanted: Tensor) -> bool:
    """Return whether ``gemm`` maps ``rows`` to ``wanted``, however many of them there are."""
    return all(torch.equal(gemm(rows[:count]), wanted[:count]) for count in range(1, len(rows) + 1))


@functools.cache
@torch.inference_mode()
def gemm_is_faster() -> bool:
    """Measure whether `Bf16Gemm` takes many rows through a layer in less time than oneDNN on this machine; a few ms, once.

    The bits are the same, so only the speed depends on the outcome.
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
    """Emit code that adds a run of ``2 * n_words`` products to ``to[row * COLUMNS :][: vectors * PAGE]``, for each of ``rows``.

    Args:
        builder: numba's builder of LLVM code; the other arguments, except the two counts, are its values.
        rows: number of rows in the tile.
        vectors: registers of outputs per row; those of all rows nearly fill the 32 of AVX-512 and leave room for the factors.
        x: the rows, in float32, ``stride`` apart.
        weight: packed weights of the outputs, ``COLUMNS`` words for a pair of inputs.
    """
    # Imported here because only the compilation of the loops needs numba, which takes a second to import.
    from llvmlite import ir
    from numba.core import cgutils

    from .intrinsics import FLOATS, INT64, WORDS, floats_at

    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    zero = ir.Constant(FLOATS, [0.0] * PAGE)
    prefetch = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    prefetch = cgutils.get_or_insert_function(builder.module, prefetch, "llvm.prefetch.p0")
    # One block of assembly for a row and an input: it broadcasts the input and multiplies it by each register of weights.
    # LLVM on its own would load all of a tile's inputs first and run out of registers. The sums are read and written in place
    # (tied). The broadcast input is written before they are read, so it needs a register of its own ("&": early clobber).
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
                # Every third row has an address of its own; the next two rows are one and two strides from it. There are not
                # enough general-purpose registers for more addresses.
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
