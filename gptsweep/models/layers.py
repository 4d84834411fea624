"""The building blocks of architectures: linear layers, activations, normalisations and rotary positions.

They are configured by plain values, so a model family is a choice of values. Linear layers compute in the dtype of their
weight; everything between them is float32.
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

from ..kernels.abi import GELU, GELU_TANH, RELU_SQUARED, SILU
from .fused import Fusable, FusedGate, FusedNorm, FusedSoftCap

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "relu_squared", "silu", "tanh"]


class Linear(nn.Linear):
    """A linear layer that accepts inputs of any dtype and computes in the dtype of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class Embedding(nn.Embedding):
    """An embedding that skips random initialisation on the meta device, where it imports torch._dynamo and takes 1.5 s."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


_VECTOR, _ONE_THREAD = 64, 32_704
"""The widest vector of torch's elementwise loops, and a multiple of it that torch leaves to one thread, both in elements."""


# -- activations -------------------------------------------------------------------------------------------------------------


class QuickGELU(nn.Module):
    """The sigmoid approximation of GELU, ``x * sigmoid(1.702 x)`` (Hendrycks and Gimpel, 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ByVectors(nn.Module):
    """A torch activation made batch invariant on a CPU: the bits of a result do not depend on its place in the batch.

    torch computes whole vectors one way and the few elements at the end of each thread's range another way. This module pads
    rows to whole vectors and passes torch pieces that it leaves to one thread, so every element goes through the vector code.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return cast(Tensor, self.activation(x))
        width = x.shape[-1]
        padded = F.pad(x, (0, -width % _VECTOR))
        pieces = [self.activation(piece) for piece in torch.split(padded.reshape(-1), _ONE_THREAD)]
        return torch.cat(pieces).view(padded.shape)[..., :width]


class RowwiseSiLU(nn.SiLU):
    """SiLU whose bits do not depend on an element's place in a vector; torch's own treats the last few differently."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))


class RowwiseQuickGELU(QuickGELU):
    """`QuickGELU` whose bits do not depend on an element's place in a vector."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-1.702 * x))


class SquaredReLU(nn.Module):
    """``max(x, 0) ** 2`` (So et al., 2021, "Primer")."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


class Gated(nn.Module, Fusable):
    """``activation(gate) * up``: ``[..., 2 * width] -> [..., width]``, the gate first; SwiGLU with SiLU (Shazeer, 2020)."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.fused: FusedGate | None = None

    def fuse(self, dtype: torch.dtype) -> None:
        code = activation_code(self.activation)
        if code in (SILU, GELU, GELU_TANH):
            self.fused = FusedGate(code, dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused is not None:
            return self.fused(x)
        gate, up = x.float().chunk(2, -1)
        return cast(Tensor, self.activation(gate) * up)


class SoftCap(nn.Module, Fusable):
    """``cap * tanh(x / cap)`` of a linear layer's output, which it may change in place."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap
        self.fused: FusedSoftCap | None = None

    def fuse(self, dtype: torch.dtype) -> None:
        self.fused = FusedSoftCap(self.cap, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.cap * torch.tanh(x.float() / self.cap) if self.fused is None else self.fused(x)


ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": lambda: ByVectors(QuickGELU()),
    "relu": nn.ReLU,
    "relu_squared": SquaredReLU,
    "silu": lambda: ByVectors(nn.SiLU()),
    "tanh": nn.Tanh,
}
ROWWISE_ACTIVATIONS = ACTIVATIONS | {"quick_gelu": RowwiseQuickGELU, "silu": RowwiseSiLU}
"""`ACTIVATIONS`, but two of them by formulas that are batch invariant as they are. The two tables differ in the last bits, and
stored samples depend on them: GPT-2 uses `ACTIVATIONS`, other models use these."""


def activation_code(activation: nn.Module | None) -> int | None:
    """Return the code of an activation in the kernels, or None if they do not have it."""
    if isinstance(activation, nn.GELU):
        return GELU_TANH if activation.approximate == "tanh" else GELU
    return RELU_SQUARED if isinstance(activation, SquaredReLU) else SILU if isinstance(activation, nn.SiLU) else None


# -- normalisations ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NormConfig:
    """A normalisation: RMS norm or layer norm, with or without a learned weight and a bias."""

    kind: Literal["rms", "layer"]
    epsilon: float
    weight: bool = True
    bias: bool = False


class Norm(nn.Module, Fusable):
    """Normalisation of the last dimension. It computes in float32 whatever the dtype of the linear layers.

    With ``narrow`` the result may have the dtype of the linear layers, as only they or attention read it.
    """

    def __init__(self, config: NormConfig, width: int, *, narrow: bool = False) -> None:
        super().__init__()
        self.narrow = narrow
        self.fused: FusedNorm | None = None
        self.config = config
        self.width = width
        self.weight = nn.Parameter(torch.ones(width)) if config.weight else None
        self.bias = nn.Parameter(torch.zeros(width)) if config.bias else None

    def fuse(self, dtype: torch.dtype) -> None:
        if self.config.kind == "rms" and self.bias is None:
            to = dtype if self.narrow else torch.float32
            self.fused = FusedNorm(self.width, self.config.epsilon, self.weight, dtype, to)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused is not None:
            return self.fused(x)
        x = x.float()
        if self.config.kind == "layer":
            return F.layer_norm(x, (self.width,), self.weight, self.bias, self.config.epsilon)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.epsilon)
        x = x if self.weight is None else x * self.weight
        return x if self.bias is None else x + self.bias


# -- rotary positions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Divides all rotary frequencies by ``factor``."""

    factor: float
    amplitude: float = 1.0

    def frequencies(self, plain: Tensor, base: float) -> Tensor:
        """Scale the frequencies ``plain`` of unscaled rotary positions, ``float32 [size / 2]``."""
        return plain / self.factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """The rotary scaling of Llama 3.1: low frequencies are divided by ``factor``, high ones are kept.

    A frequency is low if it makes fewer than ``low`` turns in ``trained`` positions, and high if it makes more than ``high``.
    In between, the two are interpolated linearly in the number of turns.
    """

    factor: float
    low: float
    high: float
    trained: float
    amplitude: float = 1.0

    def frequencies(self, plain: Tensor, base: float) -> Tensor:
        """Scale the frequencies ``plain`` of unscaled rotary positions, ``float32 [size / 2]``."""
        waves = 2 * math.pi / plain
        share = (self.trained / waves - self.low) / (self.high - self.low)
        mixed = (1 - share) * plain / self.factor + share * plain
        stretched = torch.where(waves > self.trained / self.low, plain / self.factor, mixed)
        return torch.where(waves < self.trained / self.high, plain, stretched)


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al., 2023): low frequencies are divided by ``factor``, high ones are kept.

    In between, the two are interpolated linearly in the index of the frequency, from the one that makes ``fast`` turns in
    ``trained`` positions to the one that makes ``slow``. Cosines and sines are multiplied by ``amplitude``.
    """

    factor: float
    trained: float
    fast: float
    slow: float
    truncate: bool
    amplitude: float

    def bounds(self, size: int, base: float) -> tuple[float, float]:
        """Compute the indices of the frequencies between which the two are interpolated, of ``size / 2`` frequencies.

        Raises:
            ValueError, ArithmeticError: there are none, as with a base of 1.
        """

        def place(turns: float) -> float:
            return size * math.log(self.trained / (turns * 2 * math.pi)) / (2 * math.log(base))

        first, last = place(self.fast), place(self.slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        return max(first, 0), min(last, size - 1)

    def frequencies(self, plain: Tensor, base: float) -> Tensor:
        """Scale the frequencies ``plain`` of unscaled rotary positions, ``float32 [size / 2]``."""
        first, last = self.bounds(2 * len(plain), base)
        ramp = (torch.arange(len(plain), dtype=torch.float32) - first) / (last - first or 0.001)
        stretched = ramp.clamp(0, 1)
        return plain / self.factor * stretched + plain * (1 - stretched)


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryConfig:
    """Rotary positions (Su et al., 2021): the first ``size`` elements of a head are rotated, two at a time.

    The two elements rotated together are ``size / 2`` apart, or adjacent with ``pairs``. With ``backwards`` the angles are
    negated. With ``rounded`` cosines and sines are rounded to bfloat16, whatever the dtype of the model.
    """

    size: int
    base: float = 10_000.0
    pairs: bool = False
    backwards: bool = False
    rounded: bool = False
    scaling: LinearScaling | Llama3Scaling | YarnScaling | None = None

    def frequencies(self) -> Tensor:
        """Compute the angles between adjacent positions, ``float32 [size / 2]``, in radians."""
        # In float32, as in transformers: at late positions, the rounding of a frequency shows in the angle.
        plain = 1.0 / (self.base ** (torch.arange(0, self.size, 2, dtype=torch.float32) / self.size))
        return plain if self.scaling is None else self.scaling.frequencies(plain, self.base)


CosSin = tuple[Tensor, Tensor]
"""Cosines and sines of the angles of tokens, ``float32 [..., 1, size / 2]`` each, which broadcast over heads."""


class Rotary:
    """Rotates queries and keys by their positions.

    It looks up cosines and sines in tables, so a position has the same bits in every pass.
    """

    def __init__(self, config: RotaryConfig) -> None:
        self.config = config
        self.tables = torch.empty(2, 0, config.size // 2)

    @torch.inference_mode(False)
    def reserve(self, n_positions: int, device: torch.device) -> None:
        """Extend the tables to at least ``n_positions``, and move them to ``device``."""
        if self.tables.shape[1] >= n_positions and self.tables.device == device:
            return
        with torch.device("cpu"):
            angles = torch.arange(n_positions, dtype=torch.float32)[:, None] * self.config.frequencies()
            # Computed in float64 and rounded, the bits do not depend on how torch splits the work into vectors.
            amplitude = 1.0 if self.config.scaling is None else self.config.scaling.amplitude
            signed = -angles.double() if self.config.backwards else angles.double()
            tables = torch.stack([signed.cos(), signed.sin()]).float() * amplitude
            self.tables = (tables.bfloat16().float() if self.config.rounded else tables).to(device)

    def at(self, positions: Tensor) -> CosSin:
        """Look up the angles of positions, ``int64 [...]``, each below the number passed to `reserve`."""
        return self.tables[0][positions].unsqueeze(-2), self.tables[1][positions].unsqueeze(-2)

    def rotate(self, heads: Tensor, cos_sin: CosSin) -> Tensor:
        """Rotate queries or keys ``[..., heads, head_size]``; the result is float32."""
        cos, sin = cos_sin
        heads = heads.float()
        rotated, rest = heads[..., : self.config.size], heads[..., self.config.size :]
        if self.config.pairs:
            a, b = rotated.view(*rotated.shape[:-1], -1, 2).unbind(-1)
            rotated = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        else:
            a, b = rotated.chunk(2, -1)
            rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        return rotated if not rest.shape[-1] else torch.cat([rotated, rest], -1)
