"""The kernel ``activate``, and the activations that it shares with ``rescale``.

oneDNN's own GELU takes three times as long. These are approximations that vectorise, exact to about float32.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from .abi import GELU, GELU_TANH, SEGMENT
from .intrinsics import FAST, bfloat16_at, compiled, exp, store_narrow, take, widen


@compiled(fastmath=FAST)
def _gelu_tanh(x):
    """GELU's tanh form, ``x * sigmoid(sqrt(8 / pi) * (x + 0.044715 * x**3))`` (Hendrycks and Gimpel, 2016)."""
    u = np.float32(1.5957691216) * x * (np.float32(1) + np.float32(0.044715) * x * x)
    e = exp(-abs(u))
    return x * (np.float32(1) if u >= 0 else e) / (np.float32(1) + e)


@compiled(fastmath=FAST)
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
    half_beyond = np.float32(0.5) * p * t * exp(-z * z) if z < np.float32(9) else np.float32(0)
    return x * (np.float32(1) - half_beyond if x >= 0 else half_beyond)


@compiled(fastmath=FAST)
def activate(y, begin, end, activation):
    """``y = activation(y)`` in place, from ``begin`` to ``end``."""
    if activation == GELU_TANH:
        for i in range(begin, end):
            store_narrow(y, i, _gelu_tanh(widen(y[i])))
    elif activation == GELU:
        for i in range(begin, end):
            store_narrow(y, i, _gelu(widen(y[i])))


def activate_bfloat16(tasks):
    """The activation of what a linear layer made, in place."""
    task = carray(tasks, 1)[0]
    y = bfloat16_at(task.y)
    segments = (task.n_numbers + SEGMENT - 1) // SEGMENT
    while True:
        begin = take(task.next_unit, task.chunk)
        if begin >= segments:
            return
        for segment in range(begin, min(begin + task.chunk, segments)):
            activate(y, segment * SEGMENT, min((segment + 1) * SEGMENT, task.n_numbers), task.activation)
