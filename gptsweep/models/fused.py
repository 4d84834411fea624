"""CPU kernels for the operations between linear layers. Each makes a single pass over its rows and is batch invariant.

A layer with such a kernel is `Fusable`; `linear.pack` calls `fuse` once the linear layers are packed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from ..kernels.abi import NO_NORM, NORM_AFTER, NORM_BEFORE, SEGMENT, SOFT_CAP, float64_bits

try:
    from ..kernels import runtime as kernels
except ImportError:  # numba has no wheel for this platform
    kernels = None  # type: ignore[assignment]


NormOfHeads = Literal["before", "after"] | None
"""Whether heads are normalised before or after rotation; None: not at all."""


class Fusable(ABC):
    """A layer that has a kernel for inference on a CPU."""

    @abstractmethod
    def fuse(self, dtype: torch.dtype) -> None:
        """Use a kernel from now on, next to linear layers whose inputs and outputs have the dtype ``dtype``."""


def fuse(model: nn.Module, dtype: torch.dtype) -> None:
    """Make every `Fusable` layer of ``model`` use its kernel, if there are kernels for ``dtype``."""
    if kernels is None or dtype not in (torch.float32, torch.bfloat16):
        return
    for module in model.modules():
        if isinstance(module, Fusable):
            module.fuse(dtype)


def _float32(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.detach().float().contiguous()


def _address(weight: Tensor | None) -> int:
    return 0 if weight is None else weight.data_ptr()


def _chunk(units: int) -> int:
    """Return how many units of work a thread takes at a time."""
    return -(-units // 32)


class FusedNorm:
    """RMS norm: ``[..., width] -> [..., width]``.

    Args:
        width: size of the normalised dimension.
        epsilon: added to the mean of squares.
        weight: ``float32 [width]``, or None.
        dtype: dtype of the linear layers; inputs of other dtypes are converted to float32.
        to: dtype of the result: ``dtype`` or float32.
    """

    def __init__(self, width: int, epsilon: float, weight: Tensor | None, dtype: torch.dtype, to: torch.dtype) -> None:
        self.width, self.weight, self.dtype, self.to = width, _float32(weight), dtype, to
        self.kernel = kernels.Kernel("rms_norm", dtype)
        address = _address(self.weight)
        self.kernel.set(width=width, epsilon=float64_bits(epsilon), weight=address, wide_y=to == torch.float32)

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.width)
        if rows.dtype not in (self.dtype, torch.float32) or rows.stride(1) != 1:
            rows = rows.float().contiguous()
        y = torch.empty(rows.shape, dtype=self.to)
        self.kernel(
            n_rows=len(rows),
            stride=rows.stride(0),
            chunk=_chunk(len(rows)),
            wide_x=rows.dtype == torch.float32,
            x=rows.data_ptr(),
            y=y.data_ptr(),
        )
        return y.view(x.shape)


class FusedRotary:
    """Rotary positions and RMS norm of each head, in place.

    Queries are ``[..., n_head, head_size]``, keys are ``[..., n_kv_heads, head_size]``.

    Args:
        head_size: size of a head.
        rotated: how many leading elements of each head are rotated, two at a time; 0: none.
        pairs: whether the two elements rotated together are adjacent, rather than ``rotated / 2`` apart.
        norm: whether a head is normalised before or after rotation.
        epsilon: of the norm.
        q_weight, k_weight: weights of the norm, ``float32 [head_size]`` each, or None.
        dtype: dtype of queries and keys, which is that of the linear layers.
    """

    def __init__(
        self,
        head_size: int,
        *,
        rotated: int,
        pairs: bool,
        norm: NormOfHeads,
        epsilon: float,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self.rotated, self.weights = rotated, (_float32(q_weight), _float32(k_weight))
        self.kernel = kernels.Kernel("rotate", dtype)
        self.kernel.set(
            head_size=head_size,
            rotated=rotated,
            pairs=pairs,
            norm={None: NO_NORM, "before": NORM_BEFORE, "after": NORM_AFTER}[norm],
            epsilon=float64_bits(epsilon),
            q_weight=_address(self.weights[0]),
            k_weight=_address(self.weights[1]),
            scratch=-(-4 * head_size // 64) * 64,
        )

    def __call__(self, queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Rotate and normalise in place. ``cos`` and ``sin`` of each token broadcast to ``float32 [..., 1, rotated / 2]``."""
        q, k = (heads.view(-1, *heads.shape[-2:]) for heads in (queries, keys))
        angles = (*queries.shape[:-2], 1, self.rotated // 2)
        cos, sin = (table[..., : self.rotated // 2].expand(angles).contiguous() for table in (cos, sin))
        self.kernel(
            n_tokens=len(q),
            n_head=q.shape[1],
            n_kv_heads=k.shape[1],
            q_stride=q.stride(0),
            k_stride=k.stride(0),
            chunk=_chunk(len(q)),
            q=q.data_ptr(),
            k=k.data_ptr(),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
        )


class FusedGate:
    """``activation(gate) * up``: ``[..., 2 * width] -> [..., width]``, the gate first, in the linear layers' dtype."""

    def __init__(self, activation: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.kernel = kernels.Kernel("gate", dtype)
        self.kernel.set(activation=activation)

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.to(self.dtype).reshape(-1, x.shape[-1]).contiguous()
        y = torch.empty(len(rows), rows.shape[1] // 2, dtype=self.dtype)
        self.kernel(n_rows=len(rows), width=y.shape[1], chunk=_chunk(len(rows)), x=rows.data_ptr(), y=y.data_ptr())
        return y.view(*x.shape[:-1], -1)


class FusedSoftCap:
    """``cap * tanh(x / cap)`` of a linear layer's output ``[..., width]``, in place where it has the linear layers' dtype."""

    def __init__(self, cap: float, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.kernel = kernels.Kernel("activate", dtype)
        self.kernel.set(activation=SOFT_CAP, cap=float64_bits(cap))

    def __call__(self, x: Tensor) -> Tensor:
        y = x.to(self.dtype).contiguous()
        self.kernel(n_numbers=y.numel(), chunk=_chunk(-(-y.numel() // SEGMENT)), y=y.data_ptr())
        return y
