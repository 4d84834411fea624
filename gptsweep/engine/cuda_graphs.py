"""Decode steps of static shape, captured as CUDA graphs, because launching a step's kernels takes longer than running them.

The numbers of sequences and pages are padded to powers of two, so that a few graphs serve a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.abi import PAGE
from ..models.architecture import Model
from .attention import AttentionMetadata, seen_by
from .kv_cache import Ints, KVCache, pages_for

_FEWEST_SEQUENCES = 8
_FEWEST_PAGES = 4
_WARM_UPS = 3
"""Runs before a capture, in which libraries initialise and torch.compile compiles."""


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """A step of one shape: write ``inputs``, call ``run``, read ``hidden``.

    ``inputs``: ``int64 [sequences, 3 + pages]``, for each sequence its token, the one before it, its position and its pages.
    """

    inputs: Tensor
    run: Callable[[], None]
    hidden: Callable[[], Tensor]


class DecodeSteps:
    """`Model.hidden` for passes in which every sequence reads one token.

    Args:
        model: on its device, ready for inference.
        cache: the keys and values of its sequences. One of its pages is reserved for padding.
    """

    def __init__(self, model: Model, cache: KVCache) -> None:
        self.model, self.cache = model, cache
        self.spare = cache.take()
        self.device = cache.keys.device
        self._steps: dict[tuple[int, int], _Step] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def __call__(self, ids: Sequence[int], metadata: AttentionMetadata, before: Sequence[int] = ()) -> Tensor:
        """The hidden states ``float32 [sequences, n_embd]`` after one token of each; valid until the next call.

        ``before``: the tokens before these, for a model that `reads_previous`.
        """
        count = len(ids)
        pages = pages_for(int(metadata.positions.max()) + 1)
        shape = (_power_of_two(max(count, _FEWEST_SEQUENCES)), _power_of_two(max(pages, _FEWEST_PAGES)))
        if shape not in self._steps:
            self._steps[shape] = self._step(*shape)
        step = self._steps[shape]
        inputs = self._idle(*shape)
        inputs[:count, 0], inputs[: len(before), 1], inputs[:count, 2] = ids, before, metadata.positions
        inputs[:count, 3 : 3 + pages] = self.cache.block_tables[metadata.block_tables, :pages]
        step.inputs.copy_(torch.from_numpy(inputs))
        step.run()
        return step.hidden()[:count]

    def _idle(self, sequences: int, pages: int) -> Ints:
        """Inputs of padding sequences: token 0 at position 0 of the spare page."""
        inputs = np.zeros((sequences, 3 + pages), np.int64)
        inputs[:, 3:] = self.spare
        return inputs

    def _step(self, sequences: int, pages: int) -> _Step:
        inputs = torch.from_numpy(self._idle(sequences, pages)).to(self.device)
        made: list[Tensor] = []

        def run() -> None:
            made[:] = [self._hidden(inputs)]

        if self._pool is None:
            return _Step(inputs, run, lambda: made[0])
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(graph, pool=self._pool)
        # Its stream is the same for all captures: cuBLAS keeps a workspace of 32 MiB for each stream that it has met.
        stream, current = cast(torch.cuda.Stream, capture.capture_stream), torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                run()
        current.wait_stream(stream)
        with capture:
            run()
        return _Step(inputs, graph.replay, lambda: made[0])

    def _hidden(self, inputs: Tensor) -> Tensor:
        """One step on tensors only: no shape and no branch depends on their values."""
        ids, previous, positions, tables = inputs[:, 0], inputs[:, 1], inputs[:, 2], inputs[:, 3:]
        page = tables.gather(1, (positions // PAGE)[:, None])[:, 0]
        offset = positions % PAGE
        length = tables.shape[1] * PAGE
        masks = {window: seen_by(positions[:, None], length, window)[:, None, None] for window in set(self.cache.windows)}

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            self.cache.write(layer, keys, values, page, offset)
            q, (k, v) = queries.to(self.cache.keys.dtype)[:, :, None], self.cache.read(layer, tables)
            grouped = queries.shape[1] != self.cache.n_kv_heads
            mask = masks[self.cache.windows[layer]]
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
            return mixed.flatten(1).to(queries.dtype)

        extra = {"previous": previous} if self.model.reads_previous else {}
        return self.model.hidden(ids, positions, attend, **extra)


def _power_of_two(number: int) -> int:
    """The least power of two that is at least ``number``."""
    return 1 << (number - 1).bit_length()
