"""Where nanoGPT's stream of random numbers stands when its model has been built: samples with ``rng=torch`` begin there."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .gpt2 import GPTConfig


def nanogpt_stream(config: GPTConfig, seed: int) -> torch.Generator:
    """The stream that nanoGPT's ``sample.py`` draws its tokens from.

    That program seeds torch and then builds its model, whose first weights (overwritten by the checkpoint's) use up the
    beginning of the stream.
    """
    generator = torch.Generator()
    generator.set_state(_state_after_nanogpt_weights(config, seed))
    return generator


@functools.lru_cache(maxsize=64)
def _state_after_nanogpt_weights(config: GPTConfig, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    width, hidden = config.n_embd, config.n_hidden
    embedding, positions = (config.vocab_size, width), (config.block_size, width)
    layers = [(3 * width, width), (width, width), (hidden, width), (width, hidden)] * config.n_layer
    residual = [(width, width), (width, hidden)] * config.n_layer

    def normal(*shape: int) -> None:
        torch.empty(shape, dtype=torch.float32).normal_(generator=generator)

    def uniform(*shape: int) -> None:
        torch.empty(shape, dtype=torch.float32).uniform_(generator=generator)

    # First what torch's constructors draw, then nanoGPT's draws over that: the head is the embedding once more, and the
    # residual projections are drawn a second time.
    normal(*embedding)
    normal(*positions)
    for outputs, inputs in layers:
        uniform(outputs, inputs)
        if config.bias:
            uniform(outputs)
    uniform(*embedding)
    for shape in (embedding, positions, *layers, embedding, *residual):
        normal(*shape)
    return generator.get_state()
