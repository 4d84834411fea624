"""What a user would lose: attention over what a token has seen, by itself and with its bits, whoever reads the same pages."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptsweep.engine.attention import AttentionMetadata, paged_attention, paged_attention_by_kernels
from gptsweep.engine.kv_cache import KVCache, Span
from gptsweep.kernels import runtime as kernels
from gptsweep.kernels.abi import PAGE, TILE

LONGEST = 128


@dataclass(frozen=True)
class Shape:
    """What attention has to know of a model: a `CacheShape` of one layer, and how many heads its queries have."""

    n_head: int
    n_kv_heads: int
    head_size: int
    window: int | None = None
    n_layer: int = 1

    @property
    def windows(self) -> tuple[int | None, ...]:
        return (self.window,)


class Sequences:
    """Sequences that share a beginning, in one layer, and the queries, keys and values of each of their tokens.

    ``wide_tiles``: read shared pages as kernels do on processors with AVX-512.
    """

    def __init__(
        self, shared: int, own: list[int], shape: Shape, dtype: torch.dtype, inputs: torch.dtype, *, wide_tiles: bool = False
    ) -> None:
        self.shared, self.own, self.shape, self.dtype, self.inputs = shared, own, shape, dtype, inputs
        self.wide_tiles = wide_tiles
        self.heads = (shape.n_head, shape.n_kv_heads, shape.n_kv_heads)
        width = sum(self.heads) * shape.head_size
        generator = torch.Generator().manual_seed(shared + sum(own))
        beginning = torch.randn(shared, width, generator=generator)
        ends = [torch.randn(count, width, generator=generator) for count in own]
        self.qkv = [torch.cat([beginning, end]).to(inputs) for end in ends]
        self.cache = KVCache(
            shape,
            n_positions=LONGEST,
            n_pages=16 * len(own),
            n_block_tables=len(own),
            dtype=dtype,
            device=torch.device("cpu"),
        )
        random.Random(len(own)).shuffle(self.cache._free)  # in a cache with others a sequence's pages lie anywhere
        self.store, self.kernel = (kernels.Kernel(name, dtype) for name in ("store", "attend"))
        self.kernel.set(wide_tiles=wide_tiles)

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

    def attend(self, spans: list[Span], qkv: Tensor, *, by_kernels: bool = True) -> Tensor:
        self.cache.extend(spans)
        metadata = AttentionMetadata.of(spans)
        attend = (
            paged_attention_by_kernels(self.cache, metadata, self.store, self.kernel)
            if by_kernels
            else paged_attention(self.cache, metadata)
        )
        parts = qkv.split([count * self.shape.head_size for count in self.heads], -1)
        return attend(0, *(part.unflatten(-1, (-1, self.shape.head_size)) for part in parts))

    def alone(self, table: int) -> Sequences:
        """The same sequence in a cache of its own, not yet read, and the other kind of tiles."""
        own = [self.shared + self.own[table]]
        return Sequences(0, own, self.shape, self.dtype, self.inputs, wide_tiles=not self.wide_tiles)

    def read_alone(self, table: int) -> Tensor:
        """What its last token is given there, where all its tokens are read in one go."""
        return self.alone(table).attend([Span(0, 0, len(self.qkv[table]))], self.qkv[table])[0]

    def plain(self, table: int) -> Tensor:
        """The formula, in float64, of what is in the cache: ``softmax(q @ K.T / sqrt(head_size)) @ V`` over the window."""
        rounded = self.qkv[table].to(self.dtype).double()
        q, keys, values = rounded.view(len(rounded), -1, self.shape.head_size).transpose(0, 1).split(self.heads)
        window = slice(-(self.shape.window or LONGEST), None)
        sharing = self.shape.n_head // self.shape.n_kv_heads
        keys, values = (part[:, window].repeat_interleave(sharing, 0) for part in (keys, values))
        weights = (q[:, -1:] @ keys.mT / math.sqrt(self.shape.head_size)).softmax(-1)
        return (weights @ values).flatten()


HEADS_OF = [(1, 1), (3, 1), (4, 1), (5, 1), (1, 2), (2, 2), (3, 2), (3, 3), (2, 4), (1, 7), (1, 11)]
"""Heads of keys and values, and how many heads of queries share each."""


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    n_kv_heads, sharing = draw(st.sampled_from(HEADS_OF))
    head_size = draw(st.sampled_from([1, 8, 16, 17, 64, 80, 128]))
    window = draw(st.one_of(st.none(), st.integers(1, 3 * PAGE), st.sampled_from([PAGE, 2 * PAGE, LONGEST, 10**6])))
    return Shape(n_kv_heads * sharing, n_kv_heads, head_size, window)


@pytest.mark.parametrize(
    ("dtype", "inputs"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)],
    ids=["float32", "bfloat16", "float32 to bfloat16"],
)
@settings(max_examples=40, deadline=None)
@given(
    shared=st.sampled_from([0, 1, PAGE - 1, PAGE, 2 * PAGE, 2 * PAGE + 3, 5 * PAGE + 1]),
    own=st.lists(st.integers(1, PAGE + 2), min_size=1, max_size=2 * TILE + 3),
    shape=shapes(),
    wide_tiles=st.booleans(),
)
def test_a_token_sees_its_own_past_with_the_same_bits_in_any_company(
    dtype: torch.dtype, inputs: torch.dtype, shared: int, own: list[int], shape: Shape, wide_tiles: bool
) -> None:
    sequences = Sequences(shared, own, shape, dtype, inputs, wide_tiles=wide_tiles)
    together = sequences.read()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for table, made in enumerate(together):
        assert torch.equal(made, sequences.read_alone(table))
        np.testing.assert_allclose(made.double(), sequences.plain(table), rtol=tolerance, atol=tolerance)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 3 * PAGE), min_size=1, max_size=4), shape=shapes())
def test_kernels_attend_as_plain_torch_does(lengths: list[int], shape: Shape) -> None:
    made = []
    for by_kernels in (True, False):
        sequences = Sequences(0, lengths, shape, torch.float32, torch.float32)
        spans = [Span(table, 0, length) for table, length in enumerate(lengths)]
        made.append(sequences.attend(spans, torch.cat(sequences.qkv), by_kernels=by_kernels))
    np.testing.assert_allclose(*made, rtol=1e-4, atol=1e-5)


def test_queries_keys_and_values_may_lie_apart() -> None:
    shape = Shape(6, 3, 20)
    sequences = Sequences(0, [PAGE + 3], shape, torch.float32, torch.float32)
    spans = [Span(0, 0, PAGE + 3)]
    sequences.cache.extend(spans)
    attend = paged_attention_by_kernels(sequences.cache, AttentionMetadata.of(spans), sequences.store, sequences.kernel)
    q, k, v = (part.unflatten(-1, (-1, 20)) for part in sequences.qkv[0].split([120, 60, 60], -1))
    together = attend(0, q, k, v)
    apart = attend(0, q.contiguous(), k.transpose(0, 1).contiguous().transpose(0, 1), v.contiguous())
    assert torch.equal(together, apart)
