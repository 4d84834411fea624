"""The kernels ``quantise`` and ``rescale``: what goes before and after oneDNN's multiplication of int8."""

from __future__ import annotations

import numpy as np
from numba import carray

from .abi import SEGMENT
from .activation import activate
from .intrinsics import FAST, compiled, float32_at, take, uint8_at

_ROUNDED, _ROUNDED_BITS = np.float32(12582912.0), np.int32(0x4B400000)
"""1.5 * 2**23: a float32 near it has no place for a fraction, so adding it rounds to nearest even."""


@compiled()
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


def quantise_float32(tasks):
    """Rows of float32 as unsigned int8 around 128, with a scale for each."""
    task = carray(tasks, 1)[0]
    x, quantised, scales = float32_at(task.x), uint8_at(task.quantised), float32_at(task.scales)
    while True:
        begin = take(task.next_unit, task.chunk)
        if begin >= task.n_rows:
            return
        for row in range(begin, min(begin + task.chunk, task.n_rows)):
            scales[row] = _quantise_row(x, quantised, row * task.width, task.width)


@compiled(fastmath=FAST)
def _rescale(y, begin, end, scale, bias, column, has_bias, activation):
    """``y = activation(scale * y + bias)`` in place, from ``begin`` to ``end``."""
    if has_bias:
        for i in range(end - begin):
            y[begin + i] = y[begin + i] * scale + bias[column + i]
    else:
        for i in range(begin, end):
            y[i] *= scale
    activate(y, begin, end, activation)


def rescale_float32(tasks):
    """What an int8 layer made of rows, times the scale of each, with bias and activation."""
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
