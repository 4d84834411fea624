"""The GPT-2 architecture, defined once: `forward()` for users, `hidden()` and `logits()` for the engine.

Parameter names are nanoGPT's (``transformer.h.0.attn.c_attn.weight``), weights in `torch.nn.Linear`'s ``[out, in]`` layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "tanh"]
Attend = Callable[[int, Tensor], Tensor]
"""``attend(layer, qkv [..., 3 * n_embd]) -> [..., n_embd]``: how tokens of one layer see one another and the past."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GPTConfig:
    """The shape of a GPT.

    ``vocab_size`` counts the rows of the embedding, padding included. ``activation`` is ``gelu`` (exact, nanoGPT's),
    ``gelu_tanh`` (GPT-2's own ``gelu_new``), or one that GPT-2s of other makers have.
    """

    block_size: int = 1024
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_inner: int | None = None
    bias: bool = True
    tied_head: bool = True
    activation: Activation = "gelu"
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, and must be at least 1")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd is {self.n_embd}, and must be a multiple of n_head, {self.n_head}")

    @property
    def head_size(self) -> int:
        """Width of one attention head: ``n_embd // n_head``."""
        return self.n_embd // self.n_head

    @property
    def n_hidden(self) -> int:
        """Width of the feed-forward layer: ``n_inner``, or ``4 * n_embd``."""
        return self.n_inner or 4 * self.n_embd


class LayerNorm(nn.Module):
    """Layer normalisation with an optional bias, in float32 whatever the linear layers' dtype."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.epsilon = config.layer_norm_epsilon
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if config.bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class Linear(nn.Linear):
    """A linear layer that takes its input in any dtype and computes in its weight's."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class Embedding(nn.Embedding):
    """An embedding that draws nothing on the meta device, where the draw would cost 1.5 s (it imports torch._dynamo)."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Attention(nn.Module):
    """The projections around self-attention; who sees whom is the caller's `Attend`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_attn: nn.Module = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj: nn.Module = Linear(config.n_embd, config.n_embd, bias=config.bias)


class QuickGELU(nn.Module):
    """The approximation of GELU by a logistic function."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class MLP(nn.Module):
    """The feed-forward layer."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc: nn.Module = Linear(config.n_embd, config.n_hidden, bias=config.bias)
        self.gelu: nn.Module = _ACTIVATIONS[config.activation]()
        self.c_proj: nn.Module = Linear(config.n_hidden, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    """A transformer block around an attention that is done elsewhere: `project` before it, `finish` after it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config)
        self.attn = Attention(config)
        self.ln_2 = LayerNorm(config)
        self.mlp = MLP(config)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values of the residual stream: ``[..., n_embd] -> [..., 3 * n_embd]``."""
        return cast(Tensor, self.attn.c_attn(self.ln_1(x)))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual stream after this block, from the stream before it and what attention made: ``[..., n_embd]`` each."""
        x = x + self.attn.c_proj(attended)
        return cast(Tensor, x + self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    """Everything below the head."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = LayerNorm(config)


class GPT(nn.Module):
    """A GPT-2 language model.

    >>> model = GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=1, n_embd=4))
    >>> model(torch.zeros(2, 3, dtype=torch.long)).shape
    torch.Size([2, 3, 11])
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head: nn.Module = Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied_head:
            self.lm_head.weight = self.transformer.wte.weight

    @property
    def blocks(self) -> list[Block]:
        """The transformer's blocks, first to last."""
        return cast(list[Block], list(self.transformer.h))

    @property
    def embedding(self) -> Tensor:
        """``[vocab_size, n_embd]``; its device and dtype are the model's."""
        return self.transformer.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the next token at every place of ``ids``.

        Args:
            ids: ``int64 [batch, time]``, with ``1 <= time <= block_size``.

        Returns:
            ``[batch, time, vocab_size]`` in the model's dtype.

        Raises:
            ValueError: ``time`` is longer than the model's ``block_size``.
        """
        time = ids.shape[-1]
        if time > self.config.block_size:
            raise ValueError(f"ids has {time} tokens a row, more than the model's block_size, {self.config.block_size}")
        positions = torch.arange(time, device=ids.device)
        return self.logits(self.hidden(ids, positions, self.attend_within))

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend, keep: Tensor | None = None) -> Tensor:
        """The residual stream after the last block, normalised; float32 throughout.

        Args:
            ids: ``int64 [...]``.
            positions: ``int64``, broadcastable to ``ids``.
            attend: how tokens see one another.
            keep: ``int64 [kept]``, for ids of one dimension: which tokens are wanted; ``attend`` gives just those in the last
                layer. None: all.

        Returns:
            ``float32 [..., n_embd]``, or ``[kept, n_embd]``.
        """
        x: Tensor = self.transformer.wte(ids).float() + self.transformer.wpe(positions).float()
        for layer, block in enumerate(self.blocks):
            attended = attend(layer, block.project(x))
            if keep is not None and layer == self.config.n_layer - 1:
                x = x[keep]
            x = block.finish(x, attended)
        return cast(Tensor, self.transformer.ln_f(x))

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., n_embd] -> [..., vocab_size]``."""
        return cast(Tensor, self.lm_head(hidden))

    def attend_within(self, _layer: int, qkv: Tensor) -> Tensor:
        """Causal attention inside each row: ``[batch, time, 3 * n_embd] -> [batch, time, n_embd]``."""
        q, k, v = self.heads(qkv)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(-2, -3).flatten(-2)

    def heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split ``[batch, time, 3 * n_embd]`` into queries, keys and values, ``[batch, n_head, time, head_size]`` each."""
        batch, time, _ = qkv.shape
        q, k, v = qkv.view(batch, time, 3, self.config.n_head, self.config.head_size).permute(2, 0, 3, 1, 4)
        return q, k, v

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> GPT:
        """Draw the weights as GPT-2 does: normal with deviation 0.02, residual projections scaled by 1/sqrt(2 n_layer)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                deviation = 0.02 / math.sqrt(2 * self.config.n_layer) if name.endswith("c_proj.weight") else 0.02
                parameter.normal_(0.0, deviation, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        return self
