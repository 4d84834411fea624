"""The language models of nanochat, from all versions of its code.

They are decoders with RMS norms without weights, one of them after the embedding; rotary positions with negated angles; queries
and keys normalised after rotation; squared ReLU; and a soft cap on the logits. Later versions mix the token's embedding into
each layer, add its value embedding to the values of some layers, and add the previous token's embedding to the first input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from .architecture import Attend, LinearLayer
from .decoder import Attention, Block, Decoder, DecoderConfig, Place
from .hf_settings import HFSettings
from .layers import CosSin, Embedding, Linear, Norm, Rotary, SoftCap

_POSITIONS = 10
"""The length of nanochat's tables of rotary positions, in contexts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NanochatConfig(DecoderConfig):
    """The shape of a nanochat model.

    Args:
        softcap: logits are ``softcap * tanh(logit / softcap)``.
        sharpness: factor on the normalised queries and on the normalised keys.
        mixed: whether each layer's input is a learned combination of the residual stream and the embedding.
        value_layers: indices of the layers whose values have a value embedding of the token added.
        gate_channels, gate_scale: the gate of a value embedding reads the first ``gate_channels`` elements of the layer's
            input, and is at most ``gate_scale``.
        smear_channels: how many elements of the embedding the gate of the previous token's embedding reads; 0: that embedding
            is not added.
        backout: whether a learned multiple of the stream after the middle layer is subtracted from the final stream.
    """

    softcap: float
    sharpness: float = 1.0
    mixed: bool = False
    value_layers: tuple[int, ...] = ()
    gate_channels: int = 0
    gate_scale: float = 0.0
    smear_channels: int = 0
    backout: bool = False

    def __post_init__(self) -> None:
        DecoderConfig.__post_init__(self)
        if max(self.gate_channels, self.smear_channels) > self.n_embd:
            most = max(self.gate_channels, self.smear_channels)
            raise ValueError(f"n_embd is {self.n_embd}, but its gates read {most} channels")


class NanochatAttention(Attention):
    """The projections before and after self-attention. In some layers a value embedding of the token is added to the values."""

    config: NanochatConfig

    def __init__(self, config: NanochatConfig, rotary: Rotary, layer: int) -> None:
        super().__init__(config, rotary)
        self.head_norm = Norm(config.norm, config.head_size)
        self.value_embed = self.value_gate = None
        if layer in config.value_layers:
            self.value_embed = Embedding(config.vocab_size, config.kv_width)
            self.value_gate = cast(nn.Module, Linear(config.gate_channels, config.n_kv_heads, bias=False))

    def fuse(self, dtype: torch.dtype) -> None:
        sharpness = torch.full((self.config.head_size,), self.config.sharpness)
        self.fused = self.fused_rotary(dtype, "after", sharpness, sharpness)

    def project_token(self, x: Tensor, cos_sin: CosSin, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values of the tokens ``ids``, ``int64 [...]``; see `Attention.project`."""
        q, k, v = super().project(x, cos_sin)
        if self.fused is None:
            q, k = (self.head_norm(heads) * self.config.sharpness for heads in (q, k))
        if self.value_embed is not None and self.value_gate is not None:
            gate = self.config.gate_scale * sigmoid(self.value_gate(x[..., : self.config.gate_channels]))
            v = v + gate.unsqueeze(-1) * self.value_embed(ids).float().view(v.shape)
        return q, k, v


class NanochatBlock(Block):
    """A transformer block whose values may depend on the token id."""

    attn: NanochatAttention

    def __init__(self, config: NanochatConfig, rotary: Rotary, layer: int) -> None:
        super().__init__(config, rotary)
        self.attn = NanochatAttention(config, rotary, layer)

    def project_token(self, x: Tensor, cos_sin: CosSin, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values from the residual stream ``[..., n_embd]`` of the tokens ``ids``."""
        return self.attn.project_token(self.norm_1(x), cos_sin, ids)


class Nanochat(Decoder):
    """A nanochat language model."""

    TITLE = "nanochat"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    LAYERS = "transformer.h."
    OUTSIDE: ClassVar[Mapping[str, str]] = {
        "transformer.wte.weight": "embed.weight",
        "lm_head.weight": "head.weight",
        "resid_lambdas": "stream_shares",
        "x0_lambdas": "embedding_shares",
        "smear_gate.weight": "smear_gate.weight",
        "smear_lambda": "smear_share",
        "backout_lambda": "backout_share",
    }
    INSIDE: ClassVar[Mapping[str, Place]] = {
        "attn.c_q": Place("attn.qkv", 0, 3),
        "attn.c_k": Place("attn.qkv", 1, 3),
        "attn.c_v": Place("attn.qkv", 2, 3),
        "attn.c_proj": Place("attn.out"),
        "attn.value_embed": Place("attn.value_embed"),
        "attn.ve_gate": Place("attn.value_gate"),
        "mlp.c_fc": Place("mlp.up"),
        "mlp.c_proj": Place("mlp.down"),
    }

    config: NanochatConfig

    def __init__(self, config: NanochatConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(NanochatBlock(config, self.rotary, layer) for layer in range(config.n_layer))
        self.soft_cap = SoftCap(config.softcap)
        if config.mixed:
            self.stream_shares = nn.Parameter(torch.ones(config.n_layer))
            self.embedding_shares = nn.Parameter(torch.zeros(config.n_layer))
        if config.smear_channels:
            self.smear_gate: nn.Module = Linear(config.smear_channels, 1, bias=False)
            self.smear_share = nn.Parameter(torch.zeros(1))
        if config.backout:
            self.backout_share = nn.Parameter(torch.zeros(1))

    @property
    def extends_to(self) -> int:
        return _POSITIONS * self.config.block_size

    @property
    def reads_previous(self) -> bool:
        return self.config.smear_channels > 0

    def hidden(
        self, ids: Tensor, positions: Tensor, attend: Attend, keep: Tensor | None = None, previous: Tensor | None = None
    ) -> Tensor:
        config = self.config
        x = self._embedded(ids, previous)
        start, middle, cos_sin = x, None, self.rotary.at(positions)
        for layer, block in enumerate(cast(list[NanochatBlock], list(self.blocks))):
            if config.mixed:
                x = self.stream_shares[layer] * x + self.embedding_shares[layer] * start
            attended = attend(layer, *block.project_token(x, cos_sin, ids))
            if keep is not None and layer == config.n_layer - 1:
                x = x[keep]
                middle = None if middle is None else middle[keep]
            x = block.finish(x, attended)
            if config.backout and layer == config.n_layer // 2:
                middle = x
        if middle is not None:
            x = x - self.backout_share * middle
        return cast(Tensor, self.norm(x))

    def _embedded(self, ids: Tensor, previous: Tensor | None) -> Tensor:
        """Compute normalised embeddings, ``float32 [..., n_embd]``, and add the gated embedding of the previous token."""
        x = cast(Tensor, self.norm(self.embed(ids).float()))
        if not self.reads_previous:
            return x
        if previous is None:
            raise ValueError("this model needs the token before each one")
        before = self.norm(self.embed(previous.clamp_min(0)).float())
        gate = self.smear_share * sigmoid(self.smear_gate(x[..., : self.config.smear_channels]))
        return cast(Tensor, x + torch.where((previous >= 0).unsqueeze(-1), gate, 0.0) * before)

    def logits(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.soft_cap(self.head(hidden)))

    def linear_layers(self) -> Iterator[LinearLayer]:
        yield from super().linear_layers()
        for block in cast(list[NanochatBlock], list(self.blocks)):
            if block.attn.value_gate is not None:
                yield LinearLayer(block.attn, "value_gate")
        if self.reads_previous:
            yield LinearLayer(self, "smear_gate")

    def between_attentions(self, x: Tensor) -> tuple[Tensor, ...]:
        block = cast(NanochatBlock, self.blocks[-1])  # the last block has a value embedding if any block does
        self.reserve(len(x))
        positions = torch.arange(len(x), device=x.device)
        ids = positions % self.vocab_size
        q, k, v = block.project_token(x, self.rotary.at(positions), ids)
        return q, k, v, block.finish(x, q.flatten(1)), self.logits(x), self._embedded(ids, torch.zeros_like(ids))

    def compile_blocks(self, mode: str | None) -> None:
        for block in cast(list[NanochatBlock], list(self.blocks)):
            block.project_token = torch.compile(block.project_token, dynamic=True, mode=mode)  # type: ignore[method-assign]
            block.finish = torch.compile(block.finish, dynamic=True, mode=mode)  # type: ignore[method-assign]

    # -- how files describe it ---------------------------------------------------------------------------------------------

    @classmethod
    def config_of(cls, hf: HFSettings) -> DecoderConfig:
        raise hf.refuse("model_type", "but gptsweep reads only nanochat's own checkpoints: model=nanochat")

    @classmethod
    def is_own(cls, name: str) -> bool:
        return True

    @classmethod
    def stays_float32(cls, name: str) -> bool:
        return name.endswith(("_share", "_shares"))


def sigmoid(x: Tensor) -> Tensor:
    """Compute the logistic function in float32, batch invariant. torch's own has other bits for the last few elements."""
    return 0.5 + 0.5 * torch.tanh(0.5 * x.float())
