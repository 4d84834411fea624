"""What a user would lose: attention over what a token has seen, by itself and with its bits, whoever reads the same pages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptsweep.engine.attention import AttentionMetadata, paged_attention_by_kernels
from gptsweep.engine.kv_cache import KVCache, Span
from gptsweep.kernels import runtime as kernels
from gptsweep.kernels.abi import HEADS, PAGE, TILE
from gptsweep.models.gpt2 import GPTConfig


class Sequences:
    """Sequences that share a beginning, in one layer, and the queries, keys and values of each of their tokens."""

    def __init__(self, shared: int, own: list[int], n_head: int, head_size: int, dtype: torch.dtype) -> None:
        self.shared, self.own, self.dtype = shared, own, dtype
        self.config = GPTConfig(block_size=128, n_layer=1, n_head=n_head, n_embd=n_head * head_size)
        generator = torch.Generator().manual_seed(shared + sum(own))
        beginning = torch.randn(shared, 3 * self.config.n_embd, generator=generator)
        ends = [torch.randn(count, 3 * self.config.n_embd, generator=generator) for count in own]
        self.qkv = [torch.cat([beginning, end]).to(dtype) for end in ends]
        self.cache = KVCache(
            self.config,
            n_positions=128,
            n_pages=16 * len(own),
            n_block_tables=len(own),
            dtype=dtype,
            device=torch.device("cpu"),
        )
        self.store, self.kernel = (kernels.Kernel(name, dtype) for name in ("store", "attend"))

    def read(self) -> list[Tensor]:
        """What attention gives the last token of each sequence: the beginning read once, then token by token, all together."""
        if self.shared:
            self.attend([Span(0, 0, self.shared)], self.qkv[0][: self.shared])
            for table in range(1, len(self.own)):
                self.cache.fork(0, table, self.shared)
        out: dict[int, Tensor] = {}
        for step in range(max(self.own)):
            going = [table for table, count in enumerate(self.own) if step < count]
            at = self.shared + step
            made = self.attend([Span(table, at, at + 1) for table in going], torch.stack([self.qkv[t][at] for t in going]))
            out |= dict(zip(going, made, strict=True))
        return [out[table] for table in range(len(self.own))]

    def attend(self, spans: list[Span], qkv: Tensor) -> Tensor:
        self.cache.extend(spans)
        attend = paged_attention_by_kernels(self.cache, AttentionMetadata.of(spans), self.store, self.kernel)
        return attend(0, *qkv.unflatten(-1, (3, self.config.n_head, self.config.head_size)).unbind(-3))

    def alone(self, table: int) -> Tensor:
        """The same for one sequence in a cache of its own, read in one go."""
        other = Sequences(0, [self.shared + self.own[table]], self.config.n_head, self.config.head_size, self.dtype)
        return other.attend([Span(0, 0, len(self.qkv[table]))], self.qkv[table])[0]

    def plain(self, table: int) -> Tensor:
        """The formula, in float64: ``softmax(q @ K.T / sqrt(head_size)) @ V``."""
        q, keys, values = self.qkv[table].double().view(-1, 3, self.config.n_head, self.config.head_size).permute(1, 2, 0, 3)
        weights = (q[:, -1:] @ keys.mT / math.sqrt(self.config.head_size)).softmax(-1)
        return (weights @ values).flatten()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@settings(max_examples=25, deadline=None)
@given(
    shared=st.sampled_from([0, 1, PAGE - 1, PAGE, 2 * PAGE, 2 * PAGE + 3]),
    own=st.lists(st.integers(1, PAGE + 2), min_size=1, max_size=2 * TILE + 3),
    n_head=st.sampled_from([1, HEADS - 1, HEADS, HEADS + 1, 2 * HEADS]),
    head_size=st.sampled_from([4, 7, 16, 24, 64]),
)
def test_a_token_sees_its_own_past_with_the_same_bits_in_any_company(
    dtype: torch.dtype, shared: int, own: list[int], n_head: int, head_size: int
) -> None:
    sequences = Sequences(shared, own, n_head, head_size, dtype)
    together = sequences.read()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for table, made in enumerate(together):
        assert torch.equal(made, sequences.alone(table))
        np.testing.assert_allclose(made.double(), sequences.plain(table), rtol=tolerance, atol=tolerance)
