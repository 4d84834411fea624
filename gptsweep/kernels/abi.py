"""The ABI of the CPU kernels: the records that they read and write, and the sizes that both sides of a call share.

All fields of a kernel's own record, in `TASKS`, are int64; those from ``next_unit`` on are addresses. Threads take ``chunk``
units of work at a time from the counter at ``next_unit``, and ``scratch`` bytes of memory of their own from the counter at
``next_scratch``. ``epsilon`` and ``cap`` hold the bits of a float64 (`float64_bits`).
"""

from __future__ import annotations

import numpy as np

from ..records import SAMPLERS

PAGE = 16
"""Positions of a sequence whose keys and values share a page: as many as a vector register holds float32 numbers."""
TILE = 8
"""Tokens that read a shared page together in attention: as many as can keep two sums each in vector registers."""
NARROW_ROWS = 6
"""Rows that read a shared page together, or are multiplied together, where vectors are narrower than AVX-512's: as many as can
keep `PAGE` sums each in the 16 vector registers of AVX2."""
HEADS = 4
"""Heads of a token that attend together: an addition to a sum waits for the one before it, so several sums run side by side."""
MOST_HEADS = 8
"""The most query heads that attend together where more than `HEADS` share keys and values, which are then read only once."""
COLUMNS = 64
"""Outputs in one block of oneDNN's packed bfloat16 weights."""
TILE_ROWS = 12
"""Rows that go through a layer together: as many as can keep their sums over half of `COLUMNS` in AVX-512's registers."""
TILES_TOGETHER = 6
"""Tiles of rows that a thread widens to float32 at once, then multiplies by one block of weights after another."""
GEMM_TILES_TOGETHER = 12, 48
"""The fewest and the most tiles that a thread widens at once in ``gemm``. Many read the weights seldom; few make more units of
work, for more threads."""
INT8_TILES_TOGETHER = 6
"""Tiles of rows that a thread multiplies by one block of int8 weights. Fewer would read the weights more often; more would make
larger units of work, for which the other threads wait longer at the end."""
ZERO = 128
"""The zero point of rows quantised for oneDNN, which is fast for unsigned int8 inputs."""
SEGMENT = 4096
"""Numbers that ``rescale`` and ``activate`` process at a time, so that even a single long row keeps all threads busy."""
NO_ACTIVATION, GELU, GELU_TANH, RELU_SQUARED, SILU, SOFT_CAP, BEFORE_TANH, AFTER_TANH = range(8)
"""Activations. ``gemm``, ``rescale`` and ``multiply`` apply one to their results, ``activate`` applies one alone, and ``gate``
applies one to the gate. Only ``activate`` knows `SOFT_CAP`. Where oneDNN computes the tanh of GELU's tanh form, ``gemm``
writes its argument (`BEFORE_TANH`), and ``activate`` computes the rest (`AFTER_TANH`)."""
NO_NORM, NORM_BEFORE, NORM_AFTER = range(3)
"""Whether ``rotate`` normalises heads, and whether it does so before or after it rotates them."""
BLOCK = 64
"""Logits are scanned in blocks of this many; a block whose greatest logit cannot win is skipped whole."""


def float64_bits(number: float) -> int:
    """Return the bits of a float64 as an int64, as a record holds them."""
    return int(np.float64(number).view(np.int64))


_COUNTS = ("chunk", "scratch", "next_unit", "next_scratch")
_ATTEND = (
    *("n_tokens", "n_kept", "n_head", "n_kv_heads", "head_size", "head_lanes", "max_pages", "window", "most_scores"),
    *("stores", "wide", "wide_tiles", "q_stride", "k_stride", "v_stride", *_COUNTS),
    *("q", "k", "v", "keys", "values", "out", "pages", "offsets", "kept", "block_tables", "table_rows", "lengths"),
)
_LINEAR = ("n_rows", "groups", "n_in", "n_out", "summed", *_COUNTS, "x", "weight", "bias", "out")
_QUANTISE = ("n_rows", "width", "stride", *_COUNTS, "x", "quantised", "scales")
_MULTIPLY = (
    *("n_rows", "n_in", "n_out", "stride", "activation", *_COUNTS),
    *("x", "scales", "weight", "weight_scales", "bias", "out"),
)
_RESCALE = ("n_rows", "width", "activation", *_COUNTS, "y", "scales", "bias")
_ACTIVATE = ("n_numbers", "activation", "cap", *_COUNTS, "y", "tanh")
_GATE = ("n_rows", "width", "activation", *_COUNTS, "x", "y")
_RMS_NORM = ("n_rows", "width", "stride", "epsilon", "wide_x", "wide_y", *_COUNTS, "x", "weight", "y")
_ROTATE = (
    *("n_tokens", "n_head", "n_kv_heads", "head_size", "rotated", "pairs", "norm", "epsilon", "q_stride", "k_stride", *_COUNTS),
    *("q", "k", "cos", "sin", "q_weight", "k_weight"),
)
_SAMPLE = ("n_rows", "stride", "vocab_size", *_COUNTS, "logits", "rows", "order")
TASKS = {
    name: np.dtype([(field, np.int64) for field in fields])
    for name, fields in {
        "store": _ATTEND,
        "attend": _ATTEND,
        "linear": _LINEAR,
        "gemm": ("activation", *_LINEAR, "tanh"),
        "quantise": _QUANTISE,
        "multiply": _MULTIPLY,
        "rescale": _RESCALE,
        "activate": _ACTIVATE,
        "gate": _GATE,
        "rms_norm": _RMS_NORM,
        "rotate": _ROTATE,
        "sample": _SAMPLE,
    }.items()
}
"""The record of each kernel."""

ADJUSTMENT = np.dtype([("id", "i8"), ("bias", "f8"), ("seen", "i8"), ("count", "i8"), ("banned_until", "i8")])
"""A token whose logit is changed by logit_bias, a penalty or a ban. ``seen`` says whether the token occurs in the prompt or the
completion, ``count`` how often it occurs in the completion. It is not sampled at positions below ``banned_until``."""

STEPS = (
    *("temperature", "top_n_sigma", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "xtc"),
    "mirostat",
)
"""The steps that the kernel implements, numbered from 1 in a row's ``steps``; adjustments come before all of them."""

ROW = np.dtype(
    [
        ("logits_row", "i8"),
        *((name, declared.kernel) for name, declared in SAMPLERS.items() if declared.kernel),
        ("noise_key", "u8"),
        ("position", "i8"),
        ("sample_index", "i8"),
        ("prompt_index", "i8"),
        ("adjustments", "i8"),
        ("n_adjustments", "i8"),
        ("steps", "u8"),
        ("mirostat_mu", "f8"),
        ("text", "i8"),
        ("n_text", "i8"),
        ("breaks", "i8"),
        ("dry_most", "i8"),
        ("token", "i8"),
        ("survivors", "i8"),
        ("logprob", "f8"),
        ("sampler_logprob", "f8"),
        ("entropy", "f8"),
    ]
)
"""One row's settings and, from ``token`` on, its result.

A setting that is null holds the number that its declaration gives as ``off``. ``adjustments`` is the address of an array of
`ADJUSTMENT`. ``position`` counts the tokens of the completion so far. ``steps`` packs the numbers of the row's `STEPS` in their
order, four bits each, the first in the lowest four bits; 0 means temperature, top_k, top_p and min_p in this order.
``mirostat_mu`` is the greatest surprise, in bits, of a token that Mirostat keeps. ``text`` is the address of the ids of prompt
and completion, where DRY or n-gram bans need them. ``breaks`` is the address of a truth value for each token of the vocabulary,
and ``dry_most`` the length from which on DRY treats all repetitions alike. ``survivors`` counts the tokens that no step
dropped; it is 1 for a greedy row.
"""
