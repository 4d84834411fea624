"""A decoder-only transformer that covers most model families; they differ in the values of its config.

Each family is a subclass in its own file, which interprets the family's ``config.json`` and the names of its weights.
"""

from __future__ import annotations

import itertools
import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .architecture import Architecture, Attend, LinearLayer
from .files.weights import Stacked, Stored, StoredTensor
from .fused import Fusable, FusedRotary, NormOfHeads
from .hf_settings import HFSettings
from .layers import ROWWISE_ACTIVATIONS, Activation, CosSin, Embedding, Gated, Linear, Norm, NormConfig, Rotary, RotaryConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """The shape of a decoder.

    Args:
        vocab_size: rows of the embedding, padding included.
        block_size: length of the context that the model was trained on, in positions.
        n_layer, n_head, n_kv_heads, head_size, n_embd, n_inner: sizes; ``n_inner`` is the width of the feed-forward layer.
        norm: the normalisation of the residual stream.
        norm_order: ``pre`` normalises the inputs of attention and of the feed-forward layer, ``post`` their outputs.
        parallel: whether attention and the feed-forward layer read the same stream instead of following each other.
        qk_norm: normalise queries and keys per head (``head``), or all heads as one vector (``width``); None: not at all.
        rotary: the rotary position embedding.
        unrotated: indices of the layers without rotary positions.
        windows: the attention window of each layer, in positions, the token's own included; None: unlimited.
        activation, gated: the activation of the feed-forward layer, and whether it gates.
        qkv_bias, out_bias, mlp_bias: which linear layers have a bias.
        tied_head: whether the head and the embedding share one weight.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_kv_heads: int
    head_size: int
    n_embd: int
    n_inner: int
    norm: NormConfig
    norm_order: Literal["pre", "post"] = "pre"
    parallel: bool = False
    qk_norm: Literal["head", "width"] | None = None
    rotary: RotaryConfig
    unrotated: tuple[int, ...] = ()
    windows: tuple[int | None, ...]
    activation: Activation = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied_head: bool = False

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "block_size", "n_layer", "n_head", "n_kv_heads", "head_size", "n_embd", "n_inner")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.n_head % self.n_kv_heads:
            raise ValueError(f"n_head is {self.n_head}, but must be a multiple of n_kv_heads, {self.n_kv_heads}")
        if self.rotary.size % 2 or not 0 < self.rotary.size <= self.head_size:
            raise ValueError(
                f"the rotary size is {self.rotary.size}, but must be even, and from 2 to the head size, {self.head_size}"
            )

    @property
    def kv_width(self) -> int:
        """The size of a token's keys, or values, over all heads: ``n_kv_heads * head_size``."""
        return self.n_kv_heads * self.head_size


class Attention(nn.Module, Fusable):
    """The projections before and after self-attention. The caller's `Attend` computes the attention itself."""

    def __init__(self, config: DecoderConfig, rotary: Rotary | None) -> None:
        super().__init__()
        width = config.n_head * config.head_size
        self.config, self.rotary = config, rotary
        self.qkv: nn.Module = Linear(config.n_embd, width + 2 * config.kv_width, bias=config.qkv_bias)
        self.out: nn.Module = Linear(width, config.n_embd, bias=config.out_bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm is not None:
            whole = config.qk_norm == "width"
            self.q_norm = Norm(config.norm, width if whole else config.head_size, narrow=True)
            self.k_norm = Norm(config.norm, config.kv_width if whole else config.head_size, narrow=True)
        self.fused: FusedRotary | None = None

    def fuse(self, dtype: torch.dtype) -> None:
        if self.config.qk_norm != "head" or self.q_norm is None or self.k_norm is None:
            self.fused = None if self.rotary is None else self.fused_rotary(dtype, None, None, None)
        elif self.config.norm.kind == "rms" and not self.config.norm.bias:
            self.fused = self.fused_rotary(dtype, "before", self.q_norm.weight, self.k_norm.weight)

    def fused_rotary(
        self, dtype: torch.dtype, norm: NormOfHeads, q_weight: Tensor | None, k_weight: Tensor | None
    ) -> FusedRotary:
        """Make the kernel that rotates queries and keys and normalises each head in one pass."""
        rotary = self.config.rotary
        return FusedRotary(
            self.config.head_size,
            rotated=0 if self.rotary is None else rotary.size,
            pairs=rotary.pairs,
            norm=norm,
            epsilon=self.config.norm.epsilon,
            q_weight=q_weight,
            k_weight=k_weight,
            dtype=dtype,
        )

    def project(self, x: Tensor, cos_sin: CosSin) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries ``[..., n_head, head_size]``, keys and values ``[..., n_kv_heads, head_size]``."""
        config = self.config
        heads = config.n_head, config.n_kv_heads, config.n_kv_heads
        whole = self.qkv(x).split([count * config.head_size for count in heads], -1)
        q, k, v = (part.unflatten(-1, (count, config.head_size)) for part, count in zip(whole, heads, strict=True))
        q_norm, k_norm = self.q_norm, self.k_norm
        if config.qk_norm == "width" and q_norm is not None and k_norm is not None:
            q, k = q_norm(whole[0]).view(q.shape), k_norm(whole[1]).view(k.shape)
        if self.fused is not None:
            q, k = q.to(v.dtype), k.to(v.dtype)  # a norm without a kernel returns float32
            self.fused(q, k, *cos_sin)
            return q, k, v
        if config.qk_norm == "head" and q_norm is not None and k_norm is not None:
            q, k = q_norm(q), k_norm(k)
        if self.rotary is not None:
            q, k = self.rotary.rotate(q, cos_sin), self.rotary.rotate(k, cos_sin)
        return q, k, v


class MLP(nn.Module):
    """The feed-forward layer. If it is gated, ``up`` computes the gate and the gated values in one product."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        activation = ROWWISE_ACTIVATIONS[config.activation]()
        self.up: nn.Module = Linear(config.n_embd, config.n_inner * (2 if config.gated else 1), bias=config.mlp_bias)
        self.activation: nn.Module = Gated(activation) if config.gated else activation
        self.down: nn.Module = Linear(config.n_inner, config.n_embd, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(self.activation(self.up(x))))


class Block(nn.Module):
    """A transformer block without attention: `project` comes before it, `finish` after it."""

    def __init__(self, config: DecoderConfig, rotary: Rotary | None) -> None:
        super().__init__()
        self.config = config
        narrow = config.norm_order == "pre"
        self.norm_1 = Norm(config.norm, config.n_embd, narrow=narrow)
        self.attn = Attention(config, rotary)
        self.norm_2 = Norm(config.norm, config.n_embd, narrow=narrow)
        self.mlp = MLP(config)

    def project(self, x: Tensor, cos_sin: CosSin) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values from the residual stream ``[..., n_embd]``; see `Attention.project`."""
        return self.attn.project(x if self.config.norm_order == "post" else self.norm_1(x), cos_sin)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Compute the residual stream after this block, ``[..., n_embd]``.

        Args:
            x: the stream before the block, ``[..., n_embd]``.
            attended: the output of attention, ``[..., n_head * head_size]``.
        """
        if self.config.norm_order == "post":
            x = x + self.norm_1(self.attn.out(attended))
            return cast(Tensor, x + self.norm_2(self.mlp(x)))
        after = x + self.attn.out(attended)
        return cast(Tensor, after + self.mlp(self.norm_2(x if self.config.parallel else after)))


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a stored weight in a block: part ``part`` of the ``of`` parts stacked along the rows of ``parameter``."""

    parameter: str
    part: int = 0
    of: int = 1


class Decoder(Architecture):
    """The base class of a family of decoders. Parameters have the same names in all families."""

    EMBEDDING = "embed.weight"
    OVERFLOW = "extend"  # transformers' generate() goes beyond the trained context
    HEAD = "head.weight"

    SETTINGS: ClassVar[type[HFSettings]] = HFSettings
    """The reader of the family's settings."""
    DEFAULTS: ClassVar[Mapping[str, Any]]
    """The values that transformers assumes for settings missing from the family's ``config.json``."""
    LAYERS: ClassVar[str] = "layers."
    """The prefix, before the layer's number, of the names of stored weights in a layer."""
    OUTSIDE: ClassVar[Mapping[str, str]]
    """The names of the parameters outside the layers, by the names of the stored weights."""
    INSIDE: ClassVar[Mapping[str, Place]]
    """The places in a block, by the names of modules in a stored layer."""

    config: DecoderConfig

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.config = config
        self.rotary = Rotary(config.rotary)
        self.embed = Embedding(config.vocab_size, config.n_embd)
        rotaries = [None if layer in config.unrotated else self.rotary for layer in range(config.n_layer)]
        self.blocks = nn.ModuleList(Block(config, rotary) for rotary in rotaries)
        self.norm = Norm(config.norm, config.n_embd)
        self.head: nn.Module = Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.embed.weight

    @property
    def extends_to(self) -> int | None:
        return None

    @property
    def windows(self) -> tuple[int | None, ...]:
        return self.config.windows

    def reserve(self, n_positions: int) -> None:
        self.rotary.reserve(n_positions, self.embedding.device)

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend, keep: Tensor | None = None) -> Tensor:
        x: Tensor = self.embed(ids).float()
        cos_sin = self.rotary.at(positions)
        for layer, block in enumerate(cast(list[Block], list(self.blocks))):
            attended = attend(layer, *block.project(x, cos_sin))
            if keep is not None and layer == self.config.n_layer - 1:
                x = x[keep]
            x = block.finish(x, attended)
        return cast(Tensor, self.norm(x))

    def logits(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.head(hidden))

    def linear_layers(self) -> Iterator[LinearLayer]:
        for block in cast(list[Block], list(self.blocks)):
            yield LinearLayer(block.attn, "qkv")
            yield LinearLayer(block.attn, "out")
            yield LinearLayer(block.mlp, "up", "activation")
            yield LinearLayer(block.mlp, "down")
        yield LinearLayer(self, "head")

    def between_attentions(self, x: Tensor) -> tuple[Tensor, ...]:
        block = cast(Block, self.blocks[0])
        self.reserve(len(x))
        cos_sin = self.rotary.at(torch.arange(len(x), device=x.device))
        q, k, v = block.project(x, cos_sin)
        return q, k, v, block.finish(x, q.flatten(1)), self.logits(x)

    def compile_blocks(self, mode: str | None) -> None:
        for block in cast(list[Block], list(self.blocks)):
            block.project = torch.compile(block.project, dynamic=True, mode=mode)  # type: ignore[method-assign]
            block.finish = torch.compile(block.finish, dynamic=True, mode=mode)  # type: ignore[method-assign]

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> Decoder:
        """Initialise the weights as GPT-2 does (Radford et al., 2019), and return the model.

        Matrices are normal with standard deviation 0.02, divided by ``sqrt(2 * n_layer)`` for residual projections. Norms have
        weight 1; biases are 0.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                residual = name.endswith(("attn.out.weight", "mlp.down.weight"))
                deviation = 0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02
                parameter.normal_(0.0, deviation, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        return self

    # -- how files describe it ---------------------------------------------------------------------------------------------

    @classmethod
    def config_from_hf(cls, settings: Mapping[str, Any], wrong: Callable[[str], ModelError]) -> DecoderConfig:
        hf = cls.SETTINGS(settings, cls.DEFAULTS, wrong)
        try:
            config = cls.config_of(hf)
        except (ValueError, ArithmeticError) as error:
            raise wrong(f"its {hf.FILE} is invalid ({error})") from error
        hf.finish()
        return config

    @classmethod
    @abstractmethod
    def config_of(cls, hf: HFSettings) -> DecoderConfig:
        """Read the shape from a ``config.json`` of the family.

        Raises:
            ModelError: a setting is wrong, or gptsweep does not support it.
            ValueError: the sizes contradict each other.
        """

    @classmethod
    def weights_from_hf(
        cls,
        stored: Mapping[str, StoredTensor],
        settings: Mapping[str, Any],
        config: DecoderConfig,
        wrong: Callable[[str], ModelError],
    ) -> dict[str, Stored]:
        """Rename the weights, and stack those of queries, keys and values, and those of the gate and the gated values."""
        weights: dict[str, Stored] = {}
        stacks: dict[str, list[StoredTensor | None]] = {}
        names: dict[str, list[str]] = {}
        for name, tensor in stored.items():
            layer = re.fullmatch(rf"{re.escape(cls.LAYERS)}(\d{{1,9}})\.(.+)\.(weight|bias)", name)
            place = cls.INSIDE.get(layer[2]) if layer is not None else None
            if layer is None or place is None:
                weights[cls.OUTSIDE.get(name, name)] = tensor
                continue
            parameter = f"blocks.{int(layer[1])}.{place.parameter}.{layer[3]}"
            stacks.setdefault(parameter, [None] * place.of)[place.part] = tensor
            names.setdefault(parameter, []).append(name)
        for parameter, parts in stacks.items():
            there = [part for part in parts if part is not None]
            if len(there) < len(parts):
                raise wrong(f"of the weights that belong together, only {', '.join(names[parameter])} are present")
            if len(parts) > 1 and not all(part.shape for part in there):
                raise wrong(f"of the weights {', '.join(names[parameter])}, some are single numbers")
            if len({part.shape[1:] for part in there}) > 1 or len({part.dtype for part in there}) > 1:
                raise wrong(f"the weights {', '.join(names[parameter])} belong together, but their widths or dtypes differ")
            weights[parameter] = there[0] if len(there) == 1 else Stacked(tuple(there))
        return weights

    @classmethod
    def is_own(cls, name: str) -> bool:
        return name.startswith(("blocks.", "embed.", "norm.", "head.", cls.LAYERS))

    @classmethod
    def is_buffer(cls, name: str) -> bool:
        return re.search(r"\.rotary_emb\.inv_freq$", name) is not None

    @classmethod
    def layer_weights(cls, config: DecoderConfig) -> Iterator[str]:
        for layer in itertools.chain([config.n_layer - 1], range(config.n_layer)):
            yield f"blocks.{layer}.attn.out.weight"

    @classmethod
    def outline(cls, config: DecoderConfig) -> dict[str, tuple[int, ...]]:
        return {
            cls.EMBEDDING: (config.vocab_size, config.n_embd),
            "blocks.0.attn.out.weight": (config.n_embd, config.n_head * config.head_size),
            "blocks.0.attn.qkv.weight": (config.n_head * config.head_size + 2 * config.kv_width, config.n_embd),
            "blocks.0.mlp.down.weight": (config.n_embd, config.n_inner),
        }

    @classmethod
    def stays_float32(cls, name: str) -> bool:
        return "norm" in name


def by_kind(qkv: StoredTensor, config: DecoderConfig) -> Stored:
    """Reorder the rows of a weight from groups (queries, key, value) to all queries, all keys, all values.

    A weight with a wrong number of rows is returned as it is.
    """
    size, queries = config.head_size, config.n_head // config.n_kv_heads
    each = (queries + 2) * size
    if not qkv.shape or qkv.shape[0] != config.n_kv_heads * each:
        return qkv  # `fit` reports its shape
    ends = {0: queries * size, queries * size: (queries + 1) * size, (queries + 1) * size: each}
    groups = range(0, qkv.shape[0], each)
    return Stacked(tuple(qkv.rows(group + begin, group + end) for begin, end in ends.items() for group in groups))
