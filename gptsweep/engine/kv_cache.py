"""Keys and values of what has been read, in pages; `attention` reads them.

A page holds `PAGE` positions of one sequence in every layer. Sequences that begin alike share pages: a fork copies a page
table, not keys and values, and a shared page is copied only when someone is about to write into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..kernels.abi import PAGE
from ..models.gpt2 import GPTConfig

Ints = npt.NDArray[np.int64]


class Span(NamedTuple):
    """Consecutive tokens of one sequence that a step reads: table ``table``, positions ``begin`` to ``end`` exclusive."""

    table: int
    begin: int
    end: int


class KVCache:
    """Pages of keys and values, and the page tables of the sequences that use them.

    Args:
        config: the model's shape.
        n_pages: pages in all.
        n_tables: sequences that can be held at once.
        dtype: of the keys and values.
        device: where they are.
    """

    def __init__(self, config: GPTConfig, *, n_pages: int, n_tables: int, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config
        # How a page is laid out is for the attention alone to know; kernels want whole vectors.
        shape = (config.n_layer, n_pages, config.n_head, PAGE, PAGE * pages_for(config.head_size))
        # Zeros, as `paged_attention` gives what lies beyond a sequence's end the weight 0, which NaN would survive.
        self.keys, self.values = (_zeros(shape, dtype, device) for _ in range(2))
        self.tables = np.zeros((n_tables, -(-config.block_size // PAGE)), np.int32)
        self.page_count = np.zeros(n_tables, np.int64)
        self._users = np.zeros(n_pages, np.int32)
        self._free = list(range(n_pages - 1, -1, -1))

    @property
    def free_pages(self) -> int:
        """Pages that nobody uses."""
        return len(self._free)

    def take(self) -> int:
        """A page for the caller's own use, for good."""
        page = self._free.pop()
        self._users[page] = 1
        return page

    def write(self, layer: int, qkv: Tensor, pages: Tensor, offsets: Tensor) -> Tensor:
        """Put keys and values of tokens into their pages, position by position; kernels lay them out in another way.

        Args:
            layer: of the model.
            qkv: ``[tokens, 3 * n_embd]``.
            pages: ``int64 [tokens]``.
            offsets: ``int64 [tokens]``, in the page.

        Returns:
            The queries, ``[tokens, n_head, head_size]`` in the dtype of the cache.
        """
        q, k, v = qkv.view(-1, 3, self.config.n_head, self.config.head_size).to(self.keys.dtype).unbind(1)
        for pool, new in ((self.keys, k), (self.values, v)):
            pool[layer, ..., : self.config.head_size][pages, :, offsets] = new
        return q

    def read(self, layer: int, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that `write` put into ``pages [sequences, n]``: ``[sequences, n_head, n * PAGE, head_size]`` each."""
        keys, values = (pool[layer, ..., : self.config.head_size][pages] for pool in (self.keys, self.values))
        return keys.transpose(1, 2).flatten(2, 3), values.transpose(1, 2).flatten(2, 3)

    def extend(self, spans: Sequence[Span]) -> None:
        """Give each span's sequence pages of its own for the span's positions; there is one span of a sequence at most."""
        tables, begins, ends = np.array(spans, np.int64).T
        first, counts, needed = begins // PAGE, self.page_count[tables], -(-ends // PAGE)
        shared = (first < counts) & (self._users[self.tables[tables, first]] > 1)
        for table, place in zip(tables[shared].tolist(), first[shared].tolist(), strict=True):
            if self._users[self.tables[table, place]] > 1:  # not so for the last of those that shared it
                self._unshare(table, place)
        grown = counts < needed
        for table, count, end in zip(tables[grown].tolist(), counts[grown].tolist(), needed[grown].tolist(), strict=True):
            pages = [self._free.pop() for _ in range(count, end)]
            self._users[pages] = 1
            self.tables[table, count:end] = pages
        self.page_count[tables] = needed

    def _unshare(self, table: int, place: int) -> None:
        page, copy = int(self.tables[table, place]), self._free.pop()
        self.keys[:, copy] = self.keys[:, page]
        self.values[:, copy] = self.values[:, page]
        self._users[page] -= 1
        self._users[copy] = 1
        self.tables[table, place] = copy

    def fork(self, source: int, target: int, length: int) -> None:
        """Let ``target``, which is empty, begin with the first ``length`` positions of ``source``."""
        count = -(-length // PAGE)
        self.tables[target, :count] = self.tables[source, :count]
        self.page_count[target] = count
        self._users[self.tables[source, :count]] += 1

    def release(self, table: int) -> None:
        """Forget a sequence; its pages that nobody else uses become free."""
        pages = self.tables[table, : self.page_count[table]]
        self._users[pages] -= 1
        self._free.extend(pages[self._users[pages] == 0].tolist())
        self.page_count[table] = 0


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU in memory that is not there before it is written to, which `torch.zeros` does at once."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    words = {2: np.int16, 4: np.int32}[dtype.itemsize]
    return torch.from_numpy(np.zeros(shape, words)).view(dtype)


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


def pages_for(positions: int) -> int:
    """How many pages hold this many positions."""
    return -(-positions // PAGE)
