"""Counter-based noise: Philox words, and Gumbel noise made from them, in plain torch.

The noise of a token depends only on its key, token id, position, sample_index and prompt_index, so it does not depend on the
batch. Points of a sweep with equal keys share it. ``kernels`` computes the same on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10: a random function from counters to words.

    Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3. SC'11.

    Args:
        counter: ``int64 [..., 4]``, each below 2**32.
        key: ``int64 [..., 2]``, likewise.

    Returns:
        ``int64 [..., 4]``, each uniform below 2**32.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return torch.stack((c0, c1, c2, c3), -1)


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """The high and low 32 bits of ``a * b``, computed in halves so that no product overflows int64."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def gumbel(quad: Tensor, *, key: Tensor, position: Tensor, sample_index: Tensor, prompt_index: Tensor) -> Tensor:
    """Gumbel noise of four tokens with ids from ``4 * quad`` on: ``-log(-log u)`` with ``u = (word + 0.5) / 2**32``.

    Args:
        quad: ``int64 [n]``.
        key: ``int64 [n, 2]``, the low and the high half of the noise key.
        position, sample_index, prompt_index: ``int64 [n]``.

    Returns:
        ``float64 [n, 4]`` (``float32`` on MPS, which has no float64).
    """
    words = philox(torch.stack([quad, position, sample_index, prompt_index], -1), key)
    return noise_of(words, precise_dtype(key.device))


def coin(*, key: Tensor, position: Tensor, sample_index: Tensor, prompt_index: Tensor, dtype: torch.dtype) -> Tensor:
    """One number per row, uniform in (0, 1), from words that no token's noise uses: the fourth counter has its top bit set.

    Args:
        key: ``int64 [rows, 2]``, the low and the high half of the noise key.
        position, sample_index, prompt_index: ``int64 [rows]``.
        dtype: the dtype of the result, ``[rows]``.
    """
    counter = torch.stack([torch.zeros_like(position), position, sample_index, prompt_index | 2**31], -1)
    return (philox(counter, key)[:, 0].to(dtype) + 0.5) / 2**32


def noise_of(words: Tensor, dtype: torch.dtype) -> Tensor:
    """``-log(-log u)`` with ``u = (word + 0.5) / 2**32``: finite, and accurate to all digits of ``dtype``.

    Args:
        words: ``int64``, each below 2**32.
        dtype: float64, or float32, in which the largest u would round to 1 and its noise to infinity.
    """
    u = (words.to(dtype) + 0.5) / 2**32
    if dtype == torch.float64:
        return -torch.log(-torch.log(u))
    below_one = ((2**32 - 1 - words).to(dtype) + 0.5) / 2**32  # 1 - u is exact in float32 where u is not
    return -torch.log(torch.where(words < 2**31, -torch.log(u), -torch.log1p(-below_one)))


def precise_dtype(device: torch.device) -> torch.dtype:
    """The dtype that sampling computes in on ``device``: float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
