"""The models of known shapes with random weights, and the grids of rows, that the benchmarks share.

With GPT-2's initial weights, logits would be nearly flat, and points that share noise would diverge later than with a trained
model. So the layers' weights are three times as large, and the last norm's weight gives the logits a standard deviation with
which their mean entropy at temperature 1 is about that of GPT-2 on text, 3.5 nats; `profile_step.py` and `peers.py` print it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from random import Random

import torch

from gptsweep.models.decoder import Decoder, DecoderConfig
from gptsweep.models.gpt2 import GPT, GPTConfig
from gptsweep.models.layers import NormConfig, RotaryConfig
from gptsweep.models.linear import Int8Linear, pack
from gptsweep.models.llama import Llama
from gptsweep.models.qwen import Qwen3
from gptsweep.records import Row, Sampling

_LARGER = 3.0
"""The factor by which the weights of linear layers in blocks exceed GPT-2's initial ones."""
_DEVIATION = 0.02
"""The standard deviation of the weights of the embedding, which is also the head."""


@dataclass(frozen=True)
class Shape:
    """An architecture and its sizes; ``logits``: the standard deviation of its logits."""

    architecture: type[GPT] | type[Llama]
    config: GPTConfig | DecoderConfig
    logits: float = 4.55


SHAPES = {
    "gpt2": Shape(GPT, GPTConfig(activation="gelu_tanh")),
    "gpt2-medium": Shape(GPT, GPTConfig(n_layer=24, n_head=16, n_embd=1024, activation="gelu_tanh")),
    "gpt2-large": Shape(GPT, GPTConfig(n_layer=36, n_head=20, n_embd=1280, activation="gelu_tanh")),
    "gpt2-xl": Shape(GPT, GPTConfig(n_layer=48, n_head=25, n_embd=1600, activation="gelu_tanh")),
    "nanogpt-char": Shape(
        GPT, GPTConfig(block_size=256, vocab_size=65, n_layer=4, n_head=6, n_embd=192, activation="gelu_tanh"), logits=2.5
    ),
    "smollm2-135m": Shape(
        Llama,
        DecoderConfig(
            vocab_size=49152,
            block_size=8192,
            n_layer=30,
            n_head=9,
            n_kv_heads=3,
            head_size=64,
            n_embd=576,
            n_inner=1536,
            norm=NormConfig(kind="rms", epsilon=1e-5),
            rotary=RotaryConfig(size=64, base=1e5),
            windows=(None,) * 30,
            tied_head=True,
        ),
    ),
    "qwen3-0.6b": Shape(
        Qwen3,
        DecoderConfig(
            vocab_size=151936,
            block_size=40960,
            n_layer=28,
            n_head=16,
            n_kv_heads=8,
            head_size=128,
            n_embd=1024,
            n_inner=3072,
            norm=NormConfig(kind="rms", epsilon=1e-6),
            qk_norm="head",
            rotary=RotaryConfig(size=128, base=1e6),
            windows=(None,) * 28,
            tied_head=True,
        ),
        logits=4.93,
    ),
}
LEAST_VOCABULARY = 49152
"""Ids below this are in the vocabulary of every shape."""


def random_weights(shape: str) -> GPT | Decoder:
    """A model in float32, not packed, with random weights from one seed."""
    wanted = SHAPES[shape]
    model = wanted.architecture(wanted.config).initialise(torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    model.eval().requires_grad_(False)
    for block in model.blocks:
        for parameter in block.parameters():
            if parameter.dim() > 1:
                parameter.mul_(_LARGER)
    last = model.transformer.ln_f if isinstance(model, GPT) else model.norm
    assert last.weight is not None
    last.weight.mul_(wanted.logits / (_DEVIATION * math.sqrt(wanted.config.n_embd)))
    return model


def random_model(shape: str, dtype: str) -> GPT | Decoder:
    """The model of `random_weights`, packed in a dtype."""
    model = random_weights(shape)
    if dtype == "int8":
        pack(model, Int8Linear)
        return model
    for name, parameter in model.named_parameters():
        if not model.stays_float32(name):
            parameter.data = parameter.data.to(getattr(torch, dtype))
    pack(model)
    return model


def grid(rows: int, prompt_tokens: int, new_tokens: int, top_k: int | None = 200, *, independent: bool = False) -> list[Row]:
    """``rows`` rows of a sweep over 4 temperatures x 2 top_k x 2 seeds, with one shared prompt.

    They have the order in which a sweep starts them: the first sample of each point of a seed, then the second. Points of a
    seed share their noise, and rows are one sequence while they sample the same tokens. ``independent``: each row has noise of
    its own.
    """
    prompt = tuple(Random(1).choices(range(LEAST_VOCABULARY), k=prompt_tokens))
    settings = itertools.product((1, 2), range(-(-rows // 16)), (0.7, 0.8, 0.9, 1.0), (top_k, top_k and top_k // 4))
    made = [
        Row(
            prompt_ids=prompt,
            sampling=Sampling(temperature=temperature, top_k=k, max_new_tokens=new_tokens),
            noise_key=1000 + row if independent else seed,
            sample_index=sample,
        )
        for row, (seed, sample, temperature, k) in enumerate(settings)
    ]
    return made[:rows]
