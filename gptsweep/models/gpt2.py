"""The GPT-2 architecture (Radford et al., 2019): `forward()` for users, `hidden()` and `logits()` for the engine.

Parameters have nanoGPT's names (``transformer.h.0.attn.c_attn.weight``) and `torch.nn.Linear`'s ``[out, in]`` layout.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError, brief
from .architecture import Architecture, Attend, LinearLayer, is_size
from .files.weights import Stored, StoredTensor
from .hf_settings import HF_ACTIVATIONS
from .layers import ACTIVATIONS, Activation, Embedding, Linear
from .nanogpt_stream import nanogpt_stream


@dataclass(frozen=True, slots=True, kw_only=True)
class GPTConfig:
    """The shape of a GPT.

    ``vocab_size`` counts the rows of the embedding, padding included. ``activation`` is ``gelu`` (exact, as in nanoGPT),
    ``gelu_tanh`` (the original ``gelu_new``), or another that GPT-2 models on the hub use.
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
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd is {self.n_embd}, but must be a multiple of n_head, {self.n_head}")

    @property
    def head_size(self) -> int:
        """Width of one attention head: ``n_embd // n_head``."""
        return self.n_embd // self.n_head

    @property
    def n_kv_heads(self) -> int:
        """Number of heads of keys and values, which equals ``n_head``."""
        return self.n_head

    @property
    def windows(self) -> tuple[None, ...]:
        """The attention window of each layer: unlimited."""
        return (None,) * self.n_layer

    @property
    def n_hidden(self) -> int:
        """Width of the feed-forward layer: ``n_inner``, or ``4 * n_embd``."""
        return self.n_inner or 4 * self.n_embd


class LayerNorm(nn.Module):
    """Layer normalisation with an optional bias. It computes in float32 whatever the dtype of the linear layers."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.epsilon = config.layer_norm_epsilon
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if config.bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class Attention(nn.Module):
    """The projections before and after self-attention. The caller's `Attend` computes the attention itself."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = 3, config.n_head, config.head_size
        self.c_attn: nn.Module = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj: nn.Module = Linear(config.n_embd, config.n_embd, bias=config.bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values, ``[..., n_head, head_size]`` each: views of one tensor. ``x`` is normalised."""
        queries, keys, values = self.c_attn(x).view(*x.shape[:-1], *self.heads).unbind(-3)
        return queries, keys, values


class MLP(nn.Module):
    """The feed-forward layer."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc: nn.Module = Linear(config.n_embd, config.n_hidden, bias=config.bias)
        self.gelu: nn.Module = ACTIVATIONS[config.activation]()
        self.c_proj: nn.Module = Linear(config.n_hidden, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    """A transformer block without attention: `project` comes before it, `finish` after it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config)
        self.attn = Attention(config)
        self.ln_2 = LayerNorm(config)
        self.mlp = MLP(config)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values from the residual stream: ``[..., n_embd] -> [..., n_head, head_size]`` each."""
        return self.attn.project(self.ln_1(x))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Compute the stream after this block from the stream before it and the attention output, ``[..., n_embd]`` each."""
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


class GPT(Architecture):
    """A GPT-2 language model.

    >>> model = GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=1, n_embd=4))
    >>> model(torch.zeros(2, 3, dtype=torch.long)).shape
    torch.Size([2, 3, 11])
    """

    TITLE = "GPT-2"
    EMBEDDING = "transformer.wte.weight"
    HEAD = "lm_head.weight"

    config: GPTConfig

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head: nn.Module = Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied_head:
            self.lm_head.weight = self.transformer.wte.weight

    @property
    def blocks(self) -> list[Block]:
        """The transformer blocks, first to last."""
        return cast(list[Block], list(self.transformer.h))

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend, keep: Tensor | None = None) -> Tensor:
        x: Tensor = self.transformer.wte(ids).float() + self.transformer.wpe(positions).float()
        for layer, block in enumerate(self.blocks):
            attended = attend(layer, *block.project(x))
            if keep is not None and layer == self.config.n_layer - 1:
                x = x[keep]
            x = block.finish(x, attended)
        return cast(Tensor, self.transformer.ln_f(x))

    def logits(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.lm_head(hidden))

    def linear_layers(self) -> Iterator[LinearLayer]:
        for block in self.blocks:
            yield LinearLayer(block.attn, "c_attn")
            yield LinearLayer(block.attn, "c_proj")
            yield LinearLayer(block.mlp, "c_fc", "gelu")
            yield LinearLayer(block.mlp, "c_proj")
        yield LinearLayer(self, "lm_head")

    def between_attentions(self, x: Tensor) -> tuple[Tensor, ...]:
        block = self.blocks[0]
        return *block.project(x), block.finish(x, x), self.logits(x)

    def compile_blocks(self, mode: str | None) -> None:
        for block in self.blocks:
            block.project = torch.compile(block.project, dynamic=True, mode=mode)  # type: ignore[method-assign]
            block.finish = torch.compile(block.finish, dynamic=True, mode=mode)  # type: ignore[method-assign]

    def torch_stream(self, seed: int) -> torch.Generator:
        return nanogpt_stream(self.config, seed)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> GPT:
        """Initialise the weights as GPT-2 does (Radford et al., 2019), and return the model.

        Matrices are normal with standard deviation 0.02, divided by ``sqrt(2 * n_layer)`` for residual projections. Norms have
        weight 1; biases are 0.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                deviation = 0.02 / math.sqrt(2 * self.config.n_layer) if name.endswith("c_proj.weight") else 0.02
                parameter.normal_(0.0, deviation, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        return self

    # -- how files describe it ---------------------------------------------------------------------------------------------

    @classmethod
    def config_from_hf(cls, settings: Mapping[str, Any], wrong: Callable[[str], ModelError]) -> GPTConfig:
        for name, usual in {"add_cross_attention": False, "quantization_config": None}.items():
            if settings.get(name, usual) != usual:
                raise wrong(f"its config.json has {name}={brief(settings[name])}, which gptsweep does not support")
        for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"):
            if not isinstance(settings.get(name, True), bool):
                raise wrong(f"its config.json has {name}={brief(settings[name])}, which is neither true nor false")
        activation = settings.get("activation_function", "gelu_new")
        if activation not in list(HF_ACTIVATIONS):  # a list, as a damaged config may hold an unhashable value
            raise wrong(f"its activation_function is {brief(activation)}; gptsweep supports {', '.join(HF_ACTIVATIONS)}")
        names = {"vocab_size": "vocab_size", "n_positions": "block_size", "n_layer": "n_layer", "n_head": "n_head"}
        names |= {"n_embd": "n_embd", "n_inner": "n_inner"}
        shape = {ours: settings[theirs] for theirs, ours in names.items() if settings.get(theirs) is not None}
        if odd := next((name for name, size in shape.items() if not is_size(size)), None):
            raise wrong(f"its config.json has {odd}={brief(shape[odd])}, which is not a whole number below 2**31")
        epsilon = settings.get("layer_norm_epsilon", 1e-5)
        if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 <= epsilon <= 1:
            raise wrong(f"its config.json has layer_norm_epsilon={brief(epsilon)}, which is not a number from 0 to 1")
        try:
            return GPTConfig(
                **shape,
                tied_head=settings.get("tie_word_embeddings", True),
                activation=HF_ACTIVATIONS[activation],
                layer_norm_epsilon=float(epsilon),
            )
        except (TypeError, ValueError) as error:
            raise wrong(f"its config.json is invalid ({error})") from error

    @classmethod
    def weights_from_hf(
        cls,
        stored: Mapping[str, StoredTensor],
        settings: Mapping[str, Any],
        config: GPTConfig,
        wrong: Callable[[str], ModelError],
    ) -> dict[str, Stored]:
        """Transpose the weights of transformers' ``Conv1D``, and fold a non-standard attention scale into the queries."""
        weights: dict[str, Stored] = {}
        for name, tensor in stored.items():
            own = tensor.transposed() if re.search(r"\.c_(attn|proj|fc)\.weight$", name) else tensor
            if layer := re.fullmatch(r"transformer\.h\.(\d{1,9})\.attn\.c_attn\.(weight|bias)", name):
                scale = 1.0 if settings.get("scale_attn_weights", True) else math.sqrt(config.head_size)
                scale /= int(layer[1]) + 1 if settings.get("scale_attn_by_inverse_layer_idx", False) else 1
                own = replace(own, scale=scale, scaled_rows=config.n_embd)
            weights[name] = own
        return weights

    @classmethod
    def own_name(cls, name: str) -> str:
        return f"transformer.{name}" if name.partition(".")[0] in ("wte", "wpe", "h", "ln_f") else name

    @classmethod
    def is_own(cls, name: str) -> bool:
        return name.startswith(("transformer.", "lm_head."))

    @classmethod
    def is_buffer(cls, name: str) -> bool:
        return re.search(r"\.attn\.(masked_)?bias$", name) is not None

    @classmethod
    def layer_weights(cls, config: GPTConfig) -> Iterator[str]:
        for layer in itertools.chain([config.n_layer - 1], range(config.n_layer)):
            yield f"transformer.h.{layer}.ln_1.weight"

    @classmethod
    def outline(cls, config: GPTConfig) -> dict[str, tuple[int, ...]]:
        return {
            cls.EMBEDDING: (config.vocab_size, config.n_embd),
            "transformer.wpe.weight": (config.block_size, config.n_embd),
            "transformer.h.0.mlp.c_fc.weight": (config.n_hidden, config.n_embd),
        }

    @classmethod
    def stays_float32(cls, name: str) -> bool:
        return ".ln_" in name

    @classmethod
    def identity(cls, config: GPTConfig) -> dict[str, Any]:
        """Return the shape without a title, to keep the fingerprints of version 0.1, which had one architecture."""
        return asdict(config)
