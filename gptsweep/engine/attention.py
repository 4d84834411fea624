"""Attention over the pages of a `KVCache`: in plain torch, and with kernels on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.abi import HEADS, MOST_HEADS, PAGE, TILE
from ..models.architecture import Attend
from .kv_cache import Ints, KVCache, Span

if TYPE_CHECKING:  # numba has no wheel for some platforms
    from ..kernels.runtime import Kernel


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Where the tokens of one forward pass are, sequence after sequence.

    ``block_tables`` and ``positions`` are ``int64 [tokens]``: each token's block table and its position in the sequence.
    ``kept`` is ``int64 [sequences]``: the index in the pass of each sequence's last token.
    """

    block_tables: Ints
    positions: Ints
    kept: Ints

    @classmethod
    def of(cls, spans: Sequence[Span]) -> AttentionMetadata:
        """The tokens of ``spans``, in order."""
        tables, begins, ends = np.array(spans, np.int64).T
        counts = ends - begins
        kept = counts.cumsum() - 1
        positions = np.arange(kept[-1] + 1) - np.repeat(kept + 1 - ends, counts)
        return cls(np.repeat(tables, counts), positions, kept)


def paged_attention(cache: KVCache, metadata: AttentionMetadata) -> Attend:
    """Attention of each token of ``metadata`` over its own past, in plain torch; in the last layer for kept tokens only.

    Every token sums over as many positions as the longest in the pass, so its bits depend on the batch.
    """
    device, dtype = cache.keys.device, cache.keys.dtype
    tables = torch.from_numpy(cache.block_tables).to(device)
    pages = torch.from_numpy(cache.block_tables[metadata.block_tables, metadata.positions // PAGE].astype(np.int64)).to(device)
    offsets = torch.from_numpy(metadata.positions % PAGE).to(device)

    def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        cache.write(layer, keys, values, pages, offsets)
        q = queries.to(dtype)
        grouped = queries.shape[1] != cache.n_kv_heads
        wanted = metadata.kept if layer == cache.n_layer - 1 else np.arange(len(metadata.positions))
        out = torch.empty(len(wanted), queries[0].numel(), dtype=queries.dtype, device=device)
        for some in np.array_split(np.arange(len(wanted)), -(-len(wanted) // 64)):
            tokens = wanted[some]
            length = int(metadata.positions[tokens].max()) + 1
            seen = tables[metadata.block_tables[tokens], : -(-length // PAGE)].long()
            k, v = (read[:, :, :length] for read in cache.read(layer, seen))
            own = torch.from_numpy(metadata.positions[tokens]).to(device)[:, None]
            mask = seen_by(own, length, cache.windows[layer])[:, None, None]
            mixed = F.scaled_dot_product_attention(q[tokens][:, :, None], k, v, attn_mask=mask, enable_gqa=grouped)
            out[some] = mixed.flatten(1).to(queries.dtype)
        return out

    return attend


def seen_by(positions: Tensor, length: int, window: int | None) -> Tensor:
    """Which positions below ``length`` the tokens at ``positions [tokens, 1]`` attend to: ``bool [tokens, length]``.

    ``window``: the number of most recent positions, including the token's own; None: all.
    """
    others = torch.arange(length, device=positions.device)
    past = others <= positions
    return past if window is None else past & (others > positions - window)


def paged_attention_by_kernels(cache: KVCache, metadata: AttentionMetadata, store: Kernel, attend_kernel: Kernel) -> Attend:
    """`paged_attention` with kernels: each token sums over its own length only, so its bits do not depend on the batch.

    Queries, keys and values may have the cache's dtype or float32, and are rounded to the cache's dtype.

    Args:
        cache: the keys and values, to which the pass adds its own.
        metadata: where the tokens of the pass are.
        store: the kernel ``store`` for the cache's dtype.
        attend_kernel: the kernel ``attend`` for that dtype.
    """
    n_kv_heads, lanes, max_pages = cache.n_kv_heads, cache.keys.shape[-1], cache.block_tables.shape[1]
    n_tokens = len(metadata.positions)
    layer_bytes = cache.keys[0].numel() * cache.keys.element_size()
    most_positions = max_pages * PAGE
    # A window may begin and end within a page, and tokens that share their pages begin in two that follow each other.
    widest = max(most_positions if window is None else window for window in cache.windows)
    most_scores = min(max_pages, widest // PAGE + 3) * PAGE
    shape = {
        "n_tokens": n_tokens,
        "n_kv_heads": n_kv_heads,
        "head_size": cache.head_size,
        "head_lanes": lanes,
        "pages": cache.block_tables[metadata.block_tables, metadata.positions // PAGE].astype(np.int64),
        "offsets": metadata.positions % PAGE,
    }
    alone = len(metadata.kept) == n_tokens  # no token attends to another of this pass, so each is stored right before use
    if not alone:
        store.set(**shape, chunk=16)
    attend_kernel.set(**shape, max_pages=max_pages, most_scores=most_scores, block_tables=cache.block_tables, stores=alone)

    def keep(tokens: Ints, n_head: int) -> None:
        # Heads that one kernel call attends to together, and the number of such groups.
        sharing = n_head // n_kv_heads
        together = max(1, HEADS // sharing)
        heads, groups = together * min(sharing, MOST_HEADS), math.ceil(n_kv_heads / together) * math.ceil(sharing / MOST_HEADS)
        attend_kernel.set(
            n_kept=len(tokens),
            kept=tokens,
            table_rows=metadata.block_tables[tokens],
            lengths=metadata.positions[tokens] + 1,
            n_head=n_head,
            chunk=math.ceil(len(tokens) / TILE * groups / 32),
            # One thread's memory for the heads of a tile: queries, mixed values, scores and their sums.
            scratch=4 * heads * TILE * (2 * lanes + most_scores + 1),
        )

    def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        last, n_head = layer == cache.n_layer - 1, queries.shape[1]
        if last:
            keep(metadata.kept, n_head)
        elif layer == 0:
            keep(np.arange(n_tokens), n_head)
        q, k, v = _as_kernels_read(cache.keys.dtype, queries, keys, values)
        out = torch.empty(len(metadata.kept) if last else n_tokens, n_head * cache.head_size, dtype=q.dtype)
        inputs = {
            "k": k.data_ptr(),
            "v": v.data_ptr(),
            "k_stride": k.stride(0),
            "v_stride": v.stride(0),
            "wide": k.dtype != cache.keys.dtype,
            "keys": cache.keys.data_ptr() + layer * layer_bytes,
            "values": cache.values.data_ptr() + layer * layer_bytes,
        }
        if not alone:
            store(**inputs)
        window = cache.windows[layer]
        attend_kernel(
            **inputs,
            q=q.data_ptr(),
            q_stride=q.stride(0),
            window=most_positions if window is None else window,
            out=out.data_ptr(),
        )
        return out

    return attend


def _as_kernels_read(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """Convert to ``[tokens, heads, head_size]`` with contiguous heads, all in ``dtype`` or all in float32."""
    wide = all(tensor.dtype == torch.float32 for tensor in tensors)
    made = [tensor if wide else tensor.to(dtype) for tensor in tensors]
    return [tensor if tensor.stride()[1:] == (tensor.shape[2], 1) else tensor.contiguous() for tensor in made]
