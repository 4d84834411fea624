"""numba intrinsics: what the loops of all kernels share and numba lacks.

Names without an underscore are for the other modules of this package. Long loops run over pointers, not arrays: numba checks
whether an array's index is negative, and that check keeps loops from vectorising.
"""

from __future__ import annotations

import functools

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from .abi import PAGE

FAST = {"reassoc", "contract", "nsz", "arcp"}
"""LLVM may reorder sums: at compile time, so the order is the same for any batch. NaN and infinity keep their meaning."""

INT64 = ir.IntType(64)
FLOATS, WORDS = ir.VectorType(ir.FloatType(), PAGE), ir.VectorType(ir.IntType(32), PAGE)
"""Vectors of float32 numbers, and of 32-bit words."""

compiled = functools.partial(njit, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""The decorator of functions that only kernels call: without entry points for Python and C, numba takes half the time."""


def pointer_to(pointed):
    """Return an intrinsic that turns an int64 address into a pointer to ``pointed``."""

    @intrinsic
    def pointer(_typing, _address):
        def codegen(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(pointed)(types.int64), codegen

    return pointer


int64_at, int32_at = pointer_to(types.int64), pointer_to(types.int32)
int16_at, int8_at, uint8_at = pointer_to(types.int16), pointer_to(types.int8), pointer_to(types.uint8)
float64_at, uint32_at = pointer_to(types.float64), pointer_to(types.uint32)
float32_at, bfloat16_at = pointer_to(types.float32), pointer_to(types.uint16)


@intrinsic
def take(_typing, _address, _count):
    """``take(address, count)``: atomically add ``count`` to the int64 at ``address``, and return its previous value."""

    def codegen(_context, builder, _signature, args):
        counter = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def fma(_typing, _factor, _other, _term):
    """``fma(factor, other, term)``: ``factor * other + term`` in float32, rounded once on every processor."""

    def codegen(_context, builder, _signature, args):
        number = ir.FloatType()
        of = cgutils.get_or_insert_function(builder.module, ir.FunctionType(number, [number] * 3), "llvm.fma.f32")
        return builder.call(of, args)

    return types.float32(types.float32, types.float32, types.float32), codegen


def widen(x):
    """Return a stored number as float32. bfloat16 is stored as its 16 bits, float32 as itself."""
    raise NotImplementedError


@overload(widen)
def _widen_overload(x):
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


def narrowed(x, to):
    """Return float32 ``x`` as the pointer ``to`` stores it: bfloat16 is rounded to nearest, ties to even."""
    raise NotImplementedError


@overload(narrowed)
def _narrowed_overload(x, to):
    if to.dtype == types.uint16:

        def narrow(x, to):
            bits = np.float32(x).view(np.uint32)
            odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
            return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

        return narrow
    return lambda x, to: x


@compiled()
def store_narrow(to, at, x):
    """Set ``to[at] = x``, rounded as by `narrowed`."""
    to[at] = narrowed(x, to)


@compiled()
def widen_rows(x, begin, count, width, wide, stride):
    """Set ``wide[i * stride :][:width] = x[begin + i * width :][:width]`` for ``count`` rows."""
    for row in range(count):
        for i in range(width):
            wide[row * stride + i] = widen(x[begin + row * width + i])


@compiled()
def ordered(x):
    """Map a float32 to an int32 of the same order: LLVM vectorises a maximum of integers, but not of floats that may be NaN."""
    bits = np.float32(x).view(np.int32)
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@compiled()
def from_ordered(number):
    """Return the float32 that `ordered` maps to ``number``."""
    return np.int32(number ^ np.int32(np.int32(number >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@compiled()
def greatest_of(x, begin, count):
    """Return the greatest of ``x[begin : begin + count]``; where some are NaN, any one of them or NaN."""
    top = ordered(np.float32(-np.inf))
    for i in range(begin, begin + count):
        top = max(top, ordered(x[i]))
    return from_ordered(top)


@compiled(fastmath=FAST)
def exp(x):
    """Compute exp of a float32 of at most 0, to about 1 ulp (Cephes' expf), at least 1.6e-38. Unlike libm's, it vectorises."""
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


def for_each_count(builder, count, most, emit):
    """Emit code that depends on ``count``, from 1 to ``most``: ``emit(n)`` emits that of n."""
    done = builder.append_basic_block()
    switch = builder.switch(count, done)
    for n in range(1, most + 1):
        block = builder.append_basic_block()
        switch.add_case(count.type(n), block)
        builder.position_at_end(block)
        emit(n)
        builder.branch(done)
    builder.position_at_end(done)


def floats_at(builder, pointer, at):
    """Emit the address of ``pointer[at]`` as a pointer to a vector of float32."""
    return builder.bitcast(builder.gep(pointer, [at]), FLOATS.as_pointer())
