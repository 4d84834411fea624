"""What the benchmarks share: models of GPT-2's shapes with random weights, and grids of rows."""

from __future__ import annotations

import itertools

import torch

from gptsweep.models.gpt2 import GPT, GPTConfig, LayerNorm
from gptsweep.models.linear import Int8Linear, pack
from gptsweep.records import Row, Sampling

SHAPES = {
    "gpt2": GPTConfig(activation="gelu_tanh"),
    "gpt2-medium": GPTConfig(n_layer=24, n_head=16, n_embd=1024, activation="gelu_tanh"),
    "gpt2-large": GPTConfig(n_layer=36, n_head=20, n_embd=1280, activation="gelu_tanh"),
    "gpt2-xl": GPTConfig(n_layer=48, n_head=25, n_embd=1600, activation="gelu_tanh"),
}


def random_model(shape: str, dtype: str) -> GPT:
    """A packed model with GPT-2's initial weights, drawn from one seed."""
    model = GPT(SHAPES[shape]).initialise(torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    if dtype == "int8":
        pack(model, Int8Linear)
        return model
    model.to(getattr(torch, dtype))
    for module in model.modules():
        if isinstance(module, LayerNorm):
            module.float()
    pack(model)
    return model


def grid(rows: int, prompt_tokens: int, new_tokens: int, top_k: int | None = 200) -> list[Row]:
    """Rows of a sweep over 4 temperatures x 2 top_k x 2 seeds, as many samples a point as it takes; one shared prompt.

    In the order in which a sweep starts them: of the points of a seed the first sample, then the next.
    """
    prompt = tuple(torch.randint(0, 50257, (prompt_tokens,), generator=torch.Generator().manual_seed(1)).tolist())
    settings = itertools.product((1, 2), range(-(-rows // 16)), (0.7, 0.8, 0.9, 1.0), (top_k, top_k and top_k // 4))
    made = [
        Row(
            prompt_ids=prompt,
            sampling=Sampling(temperature=temperature, top_k=k, max_new_tokens=new_tokens),
            noise_key=seed,
            sample_index=sample,
        )
        for seed, sample, temperature, k in settings
    ]
    return made[:rows]
