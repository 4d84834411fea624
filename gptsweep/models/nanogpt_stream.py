"""The state of nanoGPT's random number generator after it has built its model, from which ``rng=torch`` starts."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .gpt2 import GPTConfig


def nanogpt_stream(config: GPTConfig, seed: int) -> torch.Generator:
    """Return the generator from which nanoGPT's ``sample.py`` draws its tokens.

    That program seeds torch and then builds its model. Initialising the weights, which the checkpoint then overwrites, consumes
    the beginning of the random stream.
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

    # torch's constructors draw first, then nanoGPT initialises everything again. The head shares the embedding's weight, which
    # is therefore drawn twice, and the residual projections get a further draw.
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
