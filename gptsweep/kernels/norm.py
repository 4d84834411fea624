"""The kernels ``rms_norm`` and ``rotate``: RMS normalisation of rows, and rotary positions of heads with or without it.

Each sum runs over one row, or one head of a token, in float32 and in an order that depends on its length alone.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from .abi import NORM_AFTER, NORM_BEFORE
from .intrinsics import FAST, compiled, float32_at, store_narrow, take, widen


@compiled(fastmath=FAST)
def _inverse_rms(x, at, width, epsilon):
    """Compute ``1 / sqrt(mean(x ** 2) + epsilon)`` of ``x[at : at + width]``."""
    total = np.float32(0)
    for i in range(at, at + width):
        total += widen(x[i]) * widen(x[i])
    return np.float32(1) / np.sqrt(total / np.float32(width) + np.float32(np.int64(epsilon).view(np.float64)))


@compiled(fastmath=FAST)
def _norm_row(x, at, weight, has_weight, y, to, width, epsilon):
    """Set ``y[to:] = weight * x[at:] / rms(x[at:])`` (Zhang and Sennrich, 2019); ``x`` and ``y`` may be the same."""
    scale = _inverse_rms(x, at, width, epsilon)
    if has_weight:
        for i in range(width):
            store_narrow(y, to + i, widen(x[at + i]) * scale * weight[i])
    else:
        for i in range(width):
            store_narrow(y, to + i, widen(x[at + i]) * scale)


@compiled()
def _norm_rows(task, x, y):
    """Divide each row by its root mean square; the rows of ``x`` begin ``stride`` apart, those of ``y`` are contiguous."""
    while True:
        begin = take(task.next_unit, task.chunk)
        if begin >= task.n_rows:
            return
        for row in range(begin, min(begin + task.chunk, task.n_rows)):
            weight, has_weight = float32_at(task.weight), task.weight != 0
            _norm_row(x, row * task.stride, weight, has_weight, y, row * task.width, task.width, task.epsilon)


@compiled(fastmath=FAST)
def _rotate_row(x, cos, sin, at, rotated, pairs):
    """Rotate the first ``rotated`` numbers of ``x`` in place, pair by pair, by angles whose cosines begin at ``cos[at]``.

    The numbers of a pair are adjacent if ``pairs`` is set, else ``rotated // 2`` apart (rotary positions: Su et al., 2021).
    """
    half = rotated // 2
    if pairs:
        for i in range(half):
            a, b = x[2 * i], x[2 * i + 1]
            x[2 * i], x[2 * i + 1] = a * cos[at + i] - b * sin[at + i], b * cos[at + i] + a * sin[at + i]
    else:
        for i in range(half):
            a, b = x[i], x[half + i]
            x[i], x[half + i] = a * cos[at + i] - b * sin[at + i], b * cos[at + i] + a * sin[at + i]


@compiled()
def _rotate_heads(task, x, begin, heads, weights, token, scratch):
    """Normalise and rotate, in place, the heads of one token that begin at ``x[begin]``."""
    size, weight = task.head_size, float32_at(weights)
    for head in range(heads):
        at = begin + head * size
        if task.norm == NORM_BEFORE:
            _norm_row(x, at, weight, weights != 0, scratch, 0, size, task.epsilon)
        else:
            for i in range(size):
                scratch[i] = widen(x[at + i])
        _rotate_row(scratch, float32_at(task.cos), float32_at(task.sin), token * (task.rotated // 2), task.rotated, task.pairs)
        if task.norm == NORM_AFTER:
            _norm_row(scratch, 0, weight, weights != 0, x, at, size, task.epsilon)
        else:
            for i in range(size):
                store_narrow(x, at + i, scratch[i])


@compiled()
def _rotate(task, q, k):
    """Normalise and rotate the queries and keys of all tokens, in place."""
    scratch = float32_at(take(task.next_scratch, task.scratch))
    while True:
        begin = take(task.next_unit, task.chunk)
        if begin >= task.n_tokens:
            return
        for token in range(begin, min(begin + task.chunk, task.n_tokens)):
            _rotate_heads(task, q, token * task.q_stride, task.n_head, task.q_weight, token, scratch)
            _rotate_heads(task, k, token * task.k_stride, task.n_kv_heads, task.k_weight, token, scratch)


def rms_norm_by(at):
    """Return the kernel ``rms_norm`` for rows of float32 or of the dtype of ``at``'s pointers."""

    def rms_norm(tasks):
        task = carray(tasks, 1)[0]
        if task.wide_x and task.wide_y:
            _norm_rows(task, float32_at(task.x), float32_at(task.y))
        elif task.wide_x:
            _norm_rows(task, float32_at(task.x), at(task.y))
        elif task.wide_y:
            _norm_rows(task, at(task.x), float32_at(task.y))
        else:
            _norm_rows(task, at(task.x), at(task.y))

    return rms_norm


def rotate_by(at):
    """Return the kernel ``rotate`` for the dtype of ``at``'s pointers."""

    def rotate(tasks):
        task = carray(tasks, 1)[0]
        _rotate(task, at(task.q), at(task.k))

    return rotate
