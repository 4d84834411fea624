"""The kernels ``activate`` and ``gate``, and the activations that they share with ``rescale``.

oneDNN's own GELU takes three times as long. The functions here are approximations that vectorise and are accurate to about
float32's precision.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from .abi import AFTER_TANH, GELU, GELU_TANH, RELU_SQUARED, SEGMENT, SILU, SOFT_CAP
from .intrinsics import FAST, compiled, exp, float32_at, fma, store_narrow, take, widen


@compiled(fastmath=FAST)
def _gelu_tanh(x):
    """Compute GELU's tanh form, ``x * sigmoid(sqrt(8 / pi) * (x + 0.044715 * x**3))`` (Hendrycks and Gimpel, 2016)."""
    u = np.float32(1.5957691216) * x * (np.float32(1) + np.float32(0.044715) * x * x)
    e = exp(-abs(u))
    return x * (np.float32(1) if u >= 0 else e) / (np.float32(1) + e)


@compiled(fastmath=FAST)
def _gelu(x):
    """Compute GELU, ``x * (1 + erf(x / sqrt(2))) / 2``, with erf to within 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    z = abs(x) * np.float32(0.7071067812)
    t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * z)
    p = np.float32(1.061405429)
    p = p * t + np.float32(-1.453152027)
    p = p * t + np.float32(1.421413741)
    p = p * t + np.float32(-0.284496736)
    p = p * t + np.float32(0.254829592)
    # The probability of a standard normal variable above |x|; 0 before it becomes subnormal, which is slow to compute.
    half_beyond = np.float32(0.5) * p * t * exp(-z * z) if z < np.float32(9) else np.float32(0)
    return x * (np.float32(1) - half_beyond if x >= 0 else half_beyond)


@compiled(fastmath=FAST)
def _relu_squared(x):
    """Compute ``max(x, 0) ** 2`` (So et al., 2021)."""
    return x * max(x, np.float32(0))


@compiled(fastmath=FAST)
def _silu(x):
    """Compute ``x * sigmoid(x)``."""
    e = exp(-abs(x))
    return x * (np.float32(1) if x >= 0 else e) / (np.float32(1) + e)


@compiled(fastmath=FAST)
def activate(y, begin, end, activation):
    """Set ``y = activation(y)`` in place, from ``begin`` to ``end``."""
    if activation == GELU_TANH:
        for i in range(begin, end):
            store_narrow(y, i, _gelu_tanh(widen(y[i])))
    elif activation == GELU:
        for i in range(begin, end):
            store_narrow(y, i, _gelu(widen(y[i])))
    elif activation == RELU_SQUARED:
        for i in range(begin, end):
            store_narrow(y, i, _relu_squared(widen(y[i])))


@compiled(fastmath=FAST)
def _soft_cap(y, begin, end, cap):
    """Set ``y = cap * tanh(y / cap)`` in place, from ``begin`` to ``end``."""
    for i in range(begin, end):
        x = widen(y[i])
        e = exp(np.float32(-2) * abs(x) / cap)
        share = (np.float32(1) - e) / (np.float32(1) + e)
        store_narrow(y, i, cap * (share if x >= 0 else -share))


@compiled()
def before_tanh(y, to, begin, end):
    """Set ``to = sqrt(2 / pi) * (y + 0.044715 * y**3)``, from ``begin`` to ``end``, with oneDNN's roundings."""
    for i in range(begin, end):
        x = widen(y[i])
        to[i] = fma(x * x, np.float32(0.044715), np.float32(1)) * x * np.float32(0.7978845608)


@compiled()
def _after_tanh(y, tanh, begin, end):
    """Set ``y = y * (1 + tanh) / 2`` in place, from ``begin`` to ``end``, with oneDNN's roundings."""
    for i in range(begin, end):
        store_narrow(y, i, (tanh[i] + np.float32(1)) * np.float32(0.5) * widen(y[i]))


@compiled()
def _activate(task, y):
    """Apply the activation to the output of a linear layer, in place."""
    segments = (task.n_numbers + SEGMENT - 1) // SEGMENT
    cap = np.float32(np.int64(task.cap).view(np.float64))
    while True:
        begin = take(task.next_unit, task.chunk)
        if begin >= segments:
            return
        for segment in range(begin, min(begin + task.chunk, segments)):
            first, end = segment * SEGMENT, min((segment + 1) * SEGMENT, task.n_numbers)
            if task.activation == SOFT_CAP:
                _soft_cap(y, first, end, cap)
            elif task.activation == AFTER_TANH:
                _after_tanh(y, float32_at(task.tanh), first, end)
            else:
                activate(y, first, end, task.activation)


@compiled(fastmath=FAST)
def _gate_row(x, gate, up, y, to, count, activation):
    """Set ``y[to + i] = activation(x[gate + i]) * x[up + i]`` for ``i`` below ``count``."""
    if activation == SILU:
        for i in range(count):
            store_narrow(y, to + i, _silu(widen(x[gate + i])) * widen(x[up + i]))
    elif activation == GELU_TANH:
        for i in range(count):
            store_narrow(y, to + i, _gelu_tanh(widen(x[gate + i])) * widen(x[up + i]))
    elif activation == GELU:
        for i in range(count):
            store_narrow(y, to + i, _gelu(widen(x[gate + i])) * widen(x[up + i]))


@compiled()
def _gate(task, x, y):
    """Map rows ``[n_rows, 2 * width]``, the gate first, to ``[n_rows, width]``: SwiGLU where the activation is SiLU."""
    while True:
        begin = take(task.next_unit, task.chunk)
        if begin >= task.n_rows:
            return
        for row in range(begin, min(begin + task.chunk, task.n_rows)):
            gate = row * 2 * task.width
            _gate_row(x, gate, gate + task.width, y, row * task.width, task.width, task.activation)


def activate_by(at):
    """Return the kernel ``activate`` for the dtype of ``at``'s pointers."""

    def activate(tasks):
        task = carray(tasks, 1)[0]
        _activate(task, at(task.y))

    return activate


def gate_by(at):
    """Return the kernel ``gate`` for the dtype of ``at``'s pointers."""

    def gate(tasks):
        task = carray(tasks, 1)[0]
        _gate(task, at(task.x), at(task.y))

    return gate
