"""The ABI of the CPU kernels: the records that they read and write, and the sizes that both sides of a call go by.

Fields of a kernel's own record, in `TASKS`, are int64; those from ``next_unit`` on are addresses. Threads take ``chunk`` units
at a time from the counter at ``next_unit``, and ``scratch`` bytes for themselves from the one at ``next_scratch``. An
``epsilon`` and a ``cap`` are the bits of a float64 (`float64_bits`).
"""

from __future__ import annotations

import numpy as np

from ..records import SAMPLERS

PAGE = 16
"""Positions of a sequence whose keys and values lie together: as many as a vector register has float32."""
TILE = 8
"""Tokens whose attention reads a page together, where they see the same: as many as have two sums each in vector registers."""
HEADS = 4
"""Heads of a token that are attended to together: a sum has to wait for its own last addition, so many go on at once."""
MOST_HEADS = 8
"""Heads that share keys and values, of more than `HEADS` that do, and are attended to together, so that these are read once."""
COLUMNS = 64
"""Outputs that lie together in oneDNN's packed bfloat16 weights."""
TILE_ROWS = 12
"""Rows that go through a layer together: as many as have their sums over half of `COLUMNS` in vector registers."""
TILES_TOGETHER = 6
"""Tiles of rows that a thread widens at once, and takes through one block of weights after another."""
INT8_TILE_ROWS = 6
"""Rows that go through an int8 layer together: as many as have `PAGE` sums each in the 16 vector registers of AVX2."""
INT8_TILES_TOGETHER = 6
"""Tiles of rows that a thread takes through one block of int8 weights: fewer read weights more often, more wait longer."""
ZERO = 128
"""What stands for 0 in a row for oneDNN, which is fast for unsigned int8."""
SEGMENT = 4096
"""Numbers that ``rescale`` and ``activate`` work on at a time, so that a single long row keeps all threads busy."""
NO_ACTIVATION, GELU, GELU_TANH, RELU_SQUARED, SILU, SOFT_CAP = range(6)
"""What ``rescale`` and ``multiply`` do last, ``activate`` alone, and ``gate`` to what it multiplies by; `SOFT_CAP` only
``activate``."""
NO_NORM, NORM_BEFORE, NORM_AFTER = range(3)
"""Whether and when ``turn`` normalises heads: before or after it turns them."""
BLOCK = 64
"""Logits are scanned in blocks of this many: a block whose greatest logit cannot win is skipped whole."""


def float64_bits(number: float) -> int:
    """The int64 with the bits of a float64: how a record holds one."""
    return int(np.float64(number).view(np.int64))


_COUNTS = ("chunk", "scratch", "next_unit", "next_scratch")
_ATTEND = (
    *("n_tokens", "n_kept", "n_head", "n_kv_heads", "head_size", "head_lanes", "max_pages", "window", "most_scores"),
    *("stores", "wide", "q_stride", "k_stride", "v_stride", *_COUNTS),
    *("q", "k", "v", "keys", "values", "out", "pages", "offsets", "kept", "block_tables", "table_rows", "lengths"),
)
_LINEAR = ("n_rows", "n_in", "n_out", "summed", *_COUNTS, "x", "weight", "bias", "out")
_QUANTISE = ("n_rows", "width", "stride", *_COUNTS, "x", "quantised", "scales")
_MULTIPLY = (
    *("n_rows", "n_in", "n_out", "stride", "activation", *_COUNTS),
    *("x", "scales", "weight", "weight_scales", "bias", "out"),
)
_RESCALE = ("n_rows", "width", "activation", *_COUNTS, "y", "scales", "bias")
_ACTIVATE = ("n_numbers", "activation", "cap", *_COUNTS, "y")
_GATE = ("n_rows", "width", "activation", *_COUNTS, "x", "y")
_RMS_NORM = ("n_rows", "width", "stride", "epsilon", "wide_x", "wide_y", *_COUNTS, "x", "weight", "y")
_TURN = (
    *("n_tokens", "n_head", "n_kv_heads", "head_size", "turned", "pairs", "norm", "epsilon", "q_stride", "k_stride", *_COUNTS),
    *("q", "k", "cos", "sin", "q_weight", "k_weight"),
)
_SAMPLE = ("n_rows", "stride", "vocab_size", *_COUNTS, "logits", "rows", "order")
TASKS = {
    name: np.dtype([(field, np.int64) for field in fields])
    for name, fields in {
        "store": _ATTEND,
        "attend": _ATTEND,
        "linear": _LINEAR,
        "quantise": _QUANTISE,
        "multiply": _MULTIPLY,
        "rescale": _RESCALE,
        "activate": _ACTIVATE,
        "gate": _GATE,
        "rms_norm": _RMS_NORM,
        "turn": _TURN,
        "sample": _SAMPLE,
    }.items()
}
"""The record of each kernel."""

ADJUSTMENT = np.dtype([("id", "i8"), ("bias", "f8"), ("seen", "i8"), ("count", "i8"), ("banned_until", "i8")])
"""A token whose logit logit_bias or a penalty changes: ``seen`` in the prompt or completion, ``count`` in the completion. It is
not sampled at positions below ``banned_until``."""

STEPS = (
    *("temperature", "top_n_sigma", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "xtc"),
    "mirostat",
)
"""The steps that the kernel has, by their number in ``steps``, from 1 on; adjustments come before them."""

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
"""One row's settings and, from ``token`` on, what was chosen. A setting that is null has the number that its declaration
gives as ``off``; ``adjustments`` is the address of an `ADJUSTMENT` array; ``position`` counts the tokens of the completion;
``steps`` are `STEPS` in the row's order, the first in its lowest four bits, or 0: temperature, top_k, top_p and min_p in this
order. ``mirostat_mu`` is the greatest surprise, in bits, of a token that Mirostat leaves. ``text`` is the address of the ids of
prompt and completion where DRY or n-grams look at them, ``breaks`` that of a truth value for each token, and ``dry_most`` the
length up to which DRY tells repetitions apart. ``survivors`` is how many tokens could be sampled: those that no step dropped;
1 of a greedy row."""
