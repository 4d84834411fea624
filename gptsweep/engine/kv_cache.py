"""Paged keys and values, and the block tables that map a sequence's positions to pages; used by `attention`.

A page has `PAGE` positions of one sequence in every layer. Sequences with equal beginnings share pages: a fork copies a block
table, not keys and values, and a shared page is copied only when a sequence writes to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..kernels.abi import PAGE
from ..models.architecture import CacheShape

Ints = npt.NDArray[np.int64]


class Span(NamedTuple):
    """Consecutive tokens of one sequence that a step reads: positions ``begin`` to ``end``, exclusive."""

    block_table: int
    begin: int
    end: int


class KVCache:
    """Pages of keys and values, and the block tables of the sequences that use them.

    Args:
        shape: layers, heads and head size of the model's keys and values.
        n_positions: the maximum number of positions of a sequence.
        n_pages: the total number of pages.
        n_block_tables: the maximum number of sequences; a block table is identified by its index.
        dtype: the dtype of keys and values.
        device: their device.

    Attributes:
        windows: for each layer, how many positions a token attends to, including its own; None: all.
        keys, values: ``[layers, pages, heads, PAGE, padded head size]``; kernels use their own layout within a page.
        block_tables: ``int32 [n_block_tables, pages of the longest sequence]``, pages by position.
        page_count: ``int64 [n_block_tables]``, how many of them are in use.
    """

    def __init__(
        self,
        shape: CacheShape,
        *,
        n_positions: int,
        n_pages: int,
        n_block_tables: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.n_layer, self.n_kv_heads, self.head_size = shape.n_layer, shape.n_kv_heads, shape.head_size
        self.windows = tuple(shape.windows)
        # The head size is padded because kernels read whole vectors.
        pools = (self.n_layer, n_pages, self.n_kv_heads, PAGE, PAGE * pages_for(self.head_size))
        # Zeros: plain attention multiplies values beyond a sequence's end by 0, and NaN times 0 is NaN.
        self.keys, self.values = (_zeros(pools, dtype, device) for _ in range(2))
        self.block_tables = np.zeros((n_block_tables, pages_for(n_positions)), np.int32)
        self.page_count = np.zeros(n_block_tables, np.int64)
        self._users = np.zeros(n_pages, np.int32)
        self._free = list(range(n_pages - 1, -1, -1))

    @property
    def free_pages(self) -> int:
        """The number of pages that no sequence uses."""
        return len(self._free)

    def take(self) -> int:
        """Remove a page from the pool permanently and return it."""
        page = self._free.pop()
        self._users[page] = 1
        return page

    def write(self, layer: int, keys: Tensor, values: Tensor, pages: Tensor, offsets: Tensor) -> None:
        """Write keys and values of tokens into their pages.

        Args:
            layer: the model's layer.
            keys, values: ``[tokens, n_kv_heads, head_size]``.
            pages: ``int64 [tokens]``.
            offsets: ``int64 [tokens]``, positions within the page.
        """
        for pool, new in ((self.keys, keys), (self.values, values)):
            pool[layer, ..., : self.head_size][pages, :, offsets] = new.to(pool.dtype)

    def read(self, layer: int, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values in ``pages [sequences, n]``: ``[sequences, n_kv_heads, n * PAGE, head_size]`` each."""
        keys, values = (pool[layer, ..., : self.head_size][pages] for pool in (self.keys, self.values))
        return keys.transpose(1, 2).flatten(2, 3), values.transpose(1, 2).flatten(2, 3)

    def extend(self, spans: Sequence[Span]) -> None:
        """Give each span's sequence exclusive pages for the span's positions.

        Args:
            spans: at most one per sequence.

        Raises:
            IndexError: no page is free.
        """
        tables, begins, ends = np.array(spans, np.int64).T
        first, counts, needed = begins // PAGE, self.page_count[tables], -(-ends // PAGE)
        shared = (first < counts) & (self._users[self.block_tables[tables, first]] > 1)
        for block_table, place in zip(tables[shared].tolist(), first[shared].tolist(), strict=True):
            if self._users[self.block_tables[block_table, place]] > 1:  # the last remaining user writes to it without a copy
                self._unshare(block_table, place)
        grown = counts < needed
        for block_table, count, end in zip(tables[grown].tolist(), counts[grown].tolist(), needed[grown].tolist(), strict=True):
            pages = [self._free.pop() for _ in range(count, end)]
            self._users[pages] = 1
            self.block_tables[block_table, count:end] = pages
        self.page_count[tables] = needed

    def _unshare(self, block_table: int, place: int) -> None:
        page, copy = int(self.block_tables[block_table, place]), self._free.pop()
        self.keys[:, copy] = self.keys[:, page]
        self.values[:, copy] = self.values[:, page]
        self._users[page] -= 1
        self._users[copy] = 1
        self.block_tables[block_table, place] = copy

    def fork(self, source: int, target: int, length: int) -> None:
        """Make the empty ``target`` share the pages of the first ``length`` positions of ``source``."""
        count = pages_for(length)
        self.block_tables[target, :count] = self.block_tables[source, :count]
        self.page_count[target] = count
        self._users[self.block_tables[source, :count]] += 1

    def release(self, block_table: int) -> None:
        """Empty a block table, and free the pages that no other sequence uses."""
        pages = self.block_tables[block_table, : self.page_count[block_table]]
        self._users[pages] -= 1
        self._free.extend(pages[self._users[pages] == 0].tolist())
        self.page_count[block_table] = 0


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU the system provides memory page by page on first write, while `torch.zeros` writes all of it at once."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros((*shape[:-1], shape[-1] * dtype.itemsize), np.uint8)).view(dtype)


def page_bytes(shape: CacheShape, dtype: torch.dtype) -> int:
    """Bytes of a page: keys and values of `PAGE` positions in every layer, the head size padded."""
    return 2 * shape.n_layer * shape.n_kv_heads * PAGE * PAGE * pages_for(shape.head_size) * dtype.itemsize


def pages_for(positions: int) -> int:
    """The number of pages for this many positions."""
    return -(-positions // PAGE)
