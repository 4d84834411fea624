"""The layers that architectures are made of: normalisations, rotary positions, attention's projections, feed-forward layers.

Each is described by data, so that a family of models is a choice of values. Linear layers compute in their weight's dtype;
everything between them is float32.
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
    """A linear layer that takes its input in any dtype and computes in its weight's."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class Embedding(nn.Embedding):
    """An embedding that draws nothing on the meta device, where the draw would cost 1.5 s (it imports torch._dynamo)."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


_VECTOR, _ONE_THREAD = 64, 32_704
"""Numbers that torch's loops take at once at most, and numbers, a multiple of that, that one thread takes alone."""


# -- activations -------------------------------------------------------------------------------------------------------------


class QuickGELU(nn.Module):
    """The approximation of GELU by a logistic function."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ByVectors(nn.Module):
    """An activation of torch's, on a CPU with the same bits wherever in a batch a number stands.

    torch takes the numbers vector by vector, and the last few of each thread's in another way. Here rows are padded to whole
    vectors, and given to torch in pieces that it leaves to one thread: every number has the bits that a vector gives it.
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
    """SiLU with the same bits wherever in a vector a number stands; torch's own computes the last few in another way."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))


class RowwiseQuickGELU(QuickGELU):
    """`QuickGELU`, as `RowwiseSiLU`."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-1.702 * x))


class SquaredReLU(nn.Module):
    """``max(x, 0) ** 2`` (So et al., 2021, "Primer")."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


class Gated(nn.Module, Fusable):
    """``activation(gate) * up`` of ``[..., 2 * width]``, the gate first; with SiLU it is SwiGLU (Shazeer, 2020)."""

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
    """``cap * tanh(x / cap)`` of what a linear layer made; it may be changed in place."""

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
"""The same, with formulas whose bits do not depend on the place either. Samples on disk have the bits of theirs: GPT-2's of
torch's activations, other models' of these."""


def activation_code(activation: nn.Module | None) -> int | None:
    """What kernels call an activation, or None where they do not have it."""
    if isinstance(activation, nn.GELU):
        return GELU_TANH if activation.approximate == "tanh" else GELU
    return RELU_SQUARED if isinstance(activation, SquaredReLU) else SILU if isinstance(activation, nn.SiLU) else None


# -- normalisations ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NormConfig:
    """A normalisation: of the root mean square, or of mean and variance; with a learned weight, and a bias, or without."""

    kind: Literal["rms", "layer"]
    epsilon: float
    weight: bool = True
    bias: bool = False


class Norm(nn.Module, Fusable):
    """A normalisation of the last dimension, in float32 whatever the linear layers' dtype.

    ``narrow``: the result may be in the linear layers' dtype, for they alone read it, or attention.
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
    """All waves are stretched by ``factor``."""

    factor: float
    amplitude: float = 1.0

    def frequencies(self, plain: Tensor, base: float) -> Tensor:
        """``float32 [size / 2]`` from those of plain rotary positions."""
        return plain / self.factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's: waves too long to be seen whole in ``trained`` positions are stretched by ``factor``, short ones stay.

    A wave is long if it goes into ``trained`` fewer than ``low`` times, short if more than ``high`` times; between them the
    two are mixed.
    """

    factor: float
    low: float
    high: float
    trained: float
    amplitude: float = 1.0

    def frequencies(self, plain: Tensor, base: float) -> Tensor:
        """``float32 [size / 2]`` from those of plain rotary positions."""
        waves = 2 * math.pi / plain
        share = (self.trained / waves - self.low) / (self.high - self.low)
        mixed = (1 - share) * plain / self.factor + share * plain
        stretched = torch.where(waves > self.trained / self.low, plain / self.factor, mixed)
        return torch.where(waves < self.trained / self.high, plain, stretched)


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al., 2023): as Llama 3.1's, but mixed by the place in the head, between waves that go ``fast`` and
    ``slow`` times into ``trained``; cosines and sines are multiplied by ``amplitude``.
    """

    factor: float
    trained: float
    fast: float
    slow: float
    truncate: bool
    amplitude: float

    def frequencies(self, plain: Tensor, base: float) -> Tensor:
        """``float32 [size / 2]`` from those of plain rotary positions."""
        size = 2 * len(plain)

        def place(turns: float) -> float:
            return size * math.log(self.trained / (turns * 2 * math.pi)) / (2 * math.log(base))

        first, last = place(self.fast), place(self.slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, size - 1)
        ramp = (torch.arange(len(plain), dtype=torch.float32) - first) / (last - first or 0.001)
        stretched = ramp.clamp(0, 1)
        return plain / self.factor * stretched + plain * (1 - stretched)


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryConfig:
    """Rotary positions (Su et al., 2021): the first ``size`` numbers of a head are turned, two by two, by angles.

    The two that are turned together are ``size / 2`` apart, or with ``pairs`` beside one another. ``backwards``: by minus the
    angles. ``rounded``: their cosines and sines are rounded to bfloat16, whatever the dtype of the model.
    """

    size: int
    base: float = 10_000.0
    pairs: bool = False
    backwards: bool = False
    rounded: bool = False
    scaling: LinearScaling | Llama3Scaling | YarnScaling | None = None

    def frequencies(self) -> Tensor:
        """``float32 [size / 2]``: by how much a position turns more than the one before it."""
        # In float32, as transformers does: at a late position a rounding of the frequency is seen in the angle.
        plain = 1.0 / (self.base ** (torch.arange(0, self.size, 2, dtype=torch.float32) / self.size))
        return plain if self.scaling is None else self.scaling.frequencies(plain, self.base)


Turns = tuple[Tensor, Tensor]
"""Cosines and sines of the angles of some tokens: ``float32 [..., 1, size / 2]`` each, to be held against heads."""


class Rotary:
    """The angles of rotary positions, and how they turn queries and keys.

    Cosines and sines stand in tables, so that a position has the same bits in every pass.
    """

    def __init__(self, config: RotaryConfig) -> None:
        self.config = config
        self.tables = torch.empty(2, 0, config.size // 2)

    @torch.inference_mode(False)
    def reserve(self, n_positions: int, device: torch.device) -> None:
        """Make the tables long enough for ``n_positions``."""
        if self.tables.shape[1] >= n_positions and self.tables.device == device:
            return
        with torch.device("cpu"):
            angles = torch.arange(n_positions, dtype=torch.float32)[:, None] * self.config.frequencies()
            # In float64, and rounded: then the bits do not depend on how a vector of them is cut up.
            amplitude = 1.0 if self.config.scaling is None else self.config.scaling.amplitude
            signed = -angles.double() if self.config.backwards else angles.double()
            tables = torch.stack([signed.cos(), signed.sin()]).float() * amplitude
            self.tables = (tables.bfloat16().float() if self.config.rounded else tables).to(device)

    def at(self, positions: Tensor) -> Turns:
        """The angles at ``int64 [...]``, each below what was reserved."""
        return self.tables[0][positions].unsqueeze(-2), self.tables[1][positions].unsqueeze(-2)

    def turn(self, heads: Tensor, turns: Turns) -> Tensor:
        """Queries or keys ``[..., heads, head_size]``, turned, in float32."""
        cos, sin = turns
        heads = heads.float()
        turned, rest = heads[..., : self.config.size], heads[..., self.config.size :]
        if self.config.pairs:
            a, b = turned.view(*turned.shape[:-1], -1, 2).unbind(-1)
            turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        else:
            a, b = turned.chunk(2, -1)
            turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        return turned if not rest.shape[-1] else torch.cat([turned, rest], -1)
