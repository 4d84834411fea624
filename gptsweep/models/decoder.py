"""The decoder that most families of language models are: one definition, whose variations are values of its config.

A family is a subclass in a file of its own, which says what a ``config.json`` of it means and how its weights are named.
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
from .fused import Fusable, FusedTurn, NormOfHeads
from .hf_settings import HFSettings
from .layers import ROWWISE_ACTIVATIONS, Activation, Embedding, Gated, Linear, Norm, NormConfig, Rotary, RotaryConfig, Turns


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """The shape of a decoder.

    Args:
        vocab_size: rows of the embedding, padding included.
        block_size: positions that it was trained on.
        n_layer, n_head, n_kv_heads, head_size, n_embd, n_inner: its sizes; ``n_inner`` is the width of the feed-forward layer.
        norm: of the residual stream.
        norm_order: ``pre``: what goes into attention and into the feed-forward layer is normalised; ``post``: what comes out.
        parallel: attention and the feed-forward layer read the same stream, not one after the other.
        qk_norm: queries and keys are normalised, each head by itself, or all heads as one vector; null: they are not.
        rotary: how positions turn queries and keys.
        unrotated: the layers that do not do so.
        windows: for each layer how many positions a token sees, itself included; null: all.
        activation, gated: of the feed-forward layer.
        qkv_bias, out_bias, mlp_bias: which linear layers have a bias.
        tied_head: whether the head is the embedding.
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
                raise ValueError(f"{name} is {getattr(self, name)}, and must be at least 1")
        if self.n_head % self.n_kv_heads:
            raise ValueError(f"n_head is {self.n_head}, and must be a multiple of n_kv_heads, {self.n_kv_heads}")
        if self.rotary.size % 2 or not 0 < self.rotary.size <= self.head_size:
            raise ValueError(f"{self.rotary.size} numbers of a head are to be turned, of {self.head_size}, two by two")

    @property
    def kv_width(self) -> int:
        """Numbers in the keys, or values, of a token."""
        return self.n_kv_heads * self.head_size


class Attention(nn.Module, Fusable):
    """The projections around self-attention; who sees whom is the caller's `Attend`."""

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
        self.fused: FusedTurn | None = None

    def fuse(self, dtype: torch.dtype) -> None:
        if self.config.qk_norm != "head" or self.q_norm is None or self.k_norm is None:
            self.fused = None if self.rotary is None else self.fused_turn(dtype, None, None, None)
        elif self.config.norm.kind == "rms" and not self.config.norm.bias:
            self.fused = self.fused_turn(dtype, "before", self.q_norm.weight, self.k_norm.weight)

    def fused_turn(self, dtype: torch.dtype, norm: NormOfHeads, q_weight: Tensor | None, k_weight: Tensor | None) -> FusedTurn:
        """One pass that turns queries and keys, and normalises each head."""
        rotary = self.config.rotary
        return FusedTurn(
            self.config.head_size,
            turned=0 if self.rotary is None else rotary.size,
            pairs=rotary.pairs,
            norm=norm,
            epsilon=self.config.norm.epsilon,
            q_weight=q_weight,
            k_weight=k_weight,
            dtype=dtype,
        )

    def project(self, x: Tensor, turns: Turns) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[..., n_head, head_size]``, keys and values ``[..., n_kv_heads, head_size]`` of tokens."""
        config = self.config
        heads = config.n_head, config.n_kv_heads, config.n_kv_heads
        whole = self.qkv(x).split([count * config.head_size for count in heads], -1)
        q, k, v = (part.unflatten(-1, (count, config.head_size)) for part, count in zip(whole, heads, strict=True))
        q_norm, k_norm = self.q_norm, self.k_norm
        if config.qk_norm == "width" and q_norm is not None and k_norm is not None:
            q, k = q_norm(whole[0]).view(q.shape), k_norm(whole[1]).view(k.shape)
        if self.fused is not None:
            q, k = q.to(v.dtype), k.to(v.dtype)  # a norm that has no kernel gives float32
            self.fused(q, k, *turns)
            return q, k, v
        if config.qk_norm == "head" and q_norm is not None and k_norm is not None:
            q, k = q_norm(q), k_norm(k)
        if self.rotary is not None:
            q, k = self.rotary.turn(q, turns), self.rotary.turn(k, turns)
        return q, k, v


class MLP(nn.Module):
    """The feed-forward layer. A gated one's ``up`` gives the gate and what it gates in one go."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        activation = ROWWISE_ACTIVATIONS[config.activation]()
        self.up: nn.Module = Linear(config.n_embd, config.n_inner * (2 if config.gated else 1), bias=config.mlp_bias)
        self.activation: nn.Module = Gated(activation) if config.gated else activation
        self.down: nn.Module = Linear(config.n_inner, config.n_embd, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(self.activation(self.up(x))))


class Block(nn.Module):
    """A transformer block around an attention that is done elsewhere: `project` before it, `finish` after it."""

    def __init__(self, config: DecoderConfig, rotary: Rotary | None) -> None:
        super().__init__()
        self.config = config
        narrow = config.norm_order == "pre"
        self.norm_1 = Norm(config.norm, config.n_embd, narrow=narrow)
        self.attn = Attention(config, rotary)
        self.norm_2 = Norm(config.norm, config.n_embd, narrow=narrow)
        self.mlp = MLP(config)

    def project(self, x: Tensor, turns: Turns) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the residual stream ``[..., n_embd]``, as `Attention.project` gives them."""
        return self.attn.project(x if self.config.norm_order == "post" else self.norm_1(x), turns)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual stream after this block, from the stream before it and what attention made: ``[..., n_embd]`` each."""
        if self.config.norm_order == "post":
            x = x + self.norm_1(self.attn.out(attended))
            return cast(Tensor, x + self.norm_2(self.mlp(x)))
        after = x + self.attn.out(attended)
        return cast(Tensor, after + self.mlp(self.norm_2(x if self.config.parallel else after)))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stored weight belongs in a block: the parameter, and which of its ``of`` parts, one under another, it is."""

    parameter: str
    part: int = 0
    of: int = 1


class Decoder(Architecture):
    """A decoder of one family; see the module. Parameters have the same names in all families."""

    EMBEDDING = "embed.weight"
    OVERFLOW = "extend"  # transformers' generate() goes on
    HEAD = "head.weight"

    SETTINGS: ClassVar[type[HFSettings]] = HFSettings
    """Reads the settings of the family's files."""
    DEFAULTS: ClassVar[Mapping[str, Any]]
    """What transformers takes for settings that a ``config.json`` of the family leaves out."""
    LAYERS: ClassVar[str] = "layers."
    """What names of stored weights begin with in a layer, before its number."""
    OUTSIDE: ClassVar[Mapping[str, str]]
    """The parameters outside the layers, by the names of stored weights."""
    INSIDE: ClassVar[Mapping[str, Place]]
    """Modules of a block, by their names in a layer of stored weights."""

    config: DecoderConfig

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.config = config
        self.rotary = Rotary(config.rotary)
        self.embed = Embedding(config.vocab_size, config.n_embd)
        turned = [None if layer in config.unrotated else self.rotary for layer in range(config.n_layer)]
        self.blocks = nn.ModuleList(Block(config, rotary) for rotary in turned)
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
        turns = self.rotary.at(positions)
        for layer, block in enumerate(cast(list[Block], list(self.blocks))):
            attended = attend(layer, *block.project(x, turns))
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
        turns = self.rotary.at(torch.arange(len(x), device=x.device))
        q, k, v = block.project(x, turns)
        return q, k, v, block.finish(x, q.flatten(1)), self.logits(x)

    def compile_blocks(self, mode: str | None) -> None:
        for block in cast(list[Block], list(self.blocks)):
            block.project = torch.compile(block.project, dynamic=True, mode=mode)  # type: ignore[method-assign]
            block.finish = torch.compile(block.finish, dynamic=True, mode=mode)  # type: ignore[method-assign]

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> Decoder:
        """Draw the weights: normal with deviation 0.02, residual projections scaled by 1/sqrt(2 n_layer); norms are neutral."""
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
            raise wrong(f"its {hf.FILE} cannot be ({error})") from error
        hf.finish()
        return config

    @classmethod
    @abstractmethod
    def config_of(cls, hf: HFSettings) -> DecoderConfig:
        """The shape that a ``config.json`` of the family describes."""

    @classmethod
    def weights_from_hf(
        cls,
        stored: Mapping[str, StoredTensor],
        settings: Mapping[str, Any],
        config: DecoderConfig,
        wrong: Callable[[str], ModelError],
    ) -> dict[str, Stored]:
        """Renamed; queries, keys and values become one weight, and so do the gate and what it gates."""
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
                raise wrong(f"of the weights that go together, {', '.join(names[parameter])} are there, and others are missing")
            if len({part.shape[1:] for part in there}) > 1 or len({part.dtype for part in there}) > 1:
                raise wrong(f"the weights {', '.join(names[parameter])} go together, and their widths or dtypes differ")
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
    """All queries, all keys, all values, from a weight in which each group of queries has its key and value behind it."""
    size, queries = config.head_size, config.n_head // config.n_kv_heads
    each = (queries + 2) * size
    if not qkv.shape or qkv.shape[0] != config.n_kv_heads * each:
        return qkv  # misshapen, and refused as such
    ends = {0: queries * size, queries * size: (queries + 1) * size, (queries + 1) * size: each}
    groups = range(0, qkv.shape[0], each)
    return Stacked(tuple(qkv.rows(group + begin, group + end) for begin, end in ends.items() for group in groups))
