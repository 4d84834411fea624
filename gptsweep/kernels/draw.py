"""The draw of a token: counter-based Gumbel noise, and the token that wins with it."""

from __future__ import annotations

import numpy as np

from .abi import BLOCK
from .intrinsics import compiled, exp
from .scan import blocks, is_left

GUMBEL_MAX = 22.9
"""An upper bound of the noise: -log(-log(u)) at the greatest u, 1 - 2**-33, is 22.87."""


@compiled()
def philox(c0, c1, c2, c3, k0, k1):
    """Compute Philox4x32-10 (Salmon et al., SC'11): four uint32 words from a counter of four uint32 and a key of two."""
    for _ in range(10):
        p0 = np.uint64(c0) * np.uint64(0xD2511F53)
        p1 = np.uint64(c2) * np.uint64(0xCD9E8D57)
        c0 = np.uint32(np.uint32(p1 >> np.uint64(32)) ^ c1 ^ k0)
        c2 = np.uint32(np.uint32(p0 >> np.uint64(32)) ^ c3 ^ k1)
        c1 = np.uint32(p1)
        c3 = np.uint32(p0)
        k0 = np.uint32(k0 + np.uint32(0x9E3779B9))
        k1 = np.uint32(k1 + np.uint32(0xBB67AE85))
    return c0, c1, c2, c3


@compiled()
def _gumbel(word):
    """Return the Gumbel noise of a uint32 word: -log(-log(u)) with u = (word + 0.5) / 2**32."""
    return -np.log(-np.log((np.float64(word) + 0.5) / 4294967296.0))


@compiled()
def gumbel_of(row, token):
    """Return the noise of one token in one row."""
    key = np.uint64(row.noise_key)
    words = philox(np.uint32(token // 4), np.uint32(row.position), np.uint32(row.sample_index), np.uint32(row.prompt_index),
                    np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32)))  # fmt: skip
    lane = token % 4
    return _gumbel(words[0] if lane == 0 else words[1] if lane == 1 else words[2] if lane == 2 else words[3])


@compiled()
def _block_words(row, block, words):
    """Fill ``words`` with the words of `gumbel_of` for all tokens of a block: a whole block at a time vectorises."""
    key = np.uint64(row.noise_key)
    k0, k1 = np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32))
    position, sample, prompt = np.uint32(row.position), np.uint32(row.sample_index), np.uint32(row.prompt_index)
    quads = BLOCK // 4
    for i in range(quads):
        w0, w1, w2, w3 = philox(np.uint32(block * quads + i), position, sample, prompt, k0, k1)
        words[i] = w0
        words[quads + i] = w1
        words[2 * quads + i] = w2
        words[3 * quads + i] = w3


@compiled()
def _least_word(needed):
    """Return a word such that all words below it give less noise than ``needed``.

    Noise g comes from u = exp(-exp(-g)), which is at least 1 - exp(-g).
    """
    if not needed > 0:
        return np.uint32(0)
    above = np.float64(exp(np.float32(-needed))) * 1.000001
    return np.uint32(max((1.0 - above) * 4294967296.0 - 2.0, 0.0))


@compiled()
def gumbel_argmax(row, x, tops, vocab_size, window, temperature, start, words):
    """Return argmax(x / temperature + noise) over a window: the lowest id among equals, or -1 where the window is empty.

    Noise is computed only for blocks that can still win. ``start``, the block with the greatest logit, comes first.
    """
    n_blocks, quads = blocks(vocab_size), BLOCK // 4
    winner, best = -1, -np.inf
    for step in range(n_blocks + 1):
        block = start if step == 0 else step - 1
        if tops[block] < window[0] or (step > 0 and block == start):
            continue
        needed = best - np.float64(min(tops[block], window[2])) / temperature
        if needed > GUMBEL_MAX:
            continue
        _block_words(row, block, words)
        greatest = np.uint32(0)
        for place in range(BLOCK):
            greatest = max(greatest, words[place])
        cut = _least_word(needed)
        if greatest < cut:
            continue
        for place in range(BLOCK):
            if words[place] >= cut:
                token = block * BLOCK + place % quads * 4 + place // quads
                if token < vocab_size and is_left(x[token], token, window):
                    z = np.float64(x[token]) / temperature + _gumbel(words[place])
                    if z > best or (z == best and token < winner):
                        winner, best = token, z
    return winner
