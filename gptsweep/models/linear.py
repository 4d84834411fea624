"""Linear layers prepacked for a CPU, each with the activation behind it: oneDNN's blocked weights, and int8 weights.

The point of prepacking is speed and bits: a row of the result is the same however many rows are multiplied with it, which
`torch.nn.functional.linear` does not give. `row_invariant` checks that on the machine at hand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import DeviceError
from ..kernels import onednn
from ..kernels.abi import NO_ACTIVATION, RELU_SQUARED, SEGMENT
from .architecture import Model
from .fused import fuse
from .layers import activation_code

try:
    from ..kernels import runtime as kernels
except ImportError:  # numba has no wheel for this platform
    kernels = None  # type: ignore[assignment]

_OUTPUTS_TRIED = 1024
_MEASURED_ROWS = (1, 2, 3, 7, 16, 33, 64)


class PackedLinear(nn.Module):
    """A linear layer in oneDNN's own weight layout, for inference on a CPU.

    Where oneDNN has no layers of 16 bits for the CPU, weights of 16 bits are widened to float32 and multiplied there: products
    are exact, sums are in float32, and the result is rounded once, as in layers of 16 bits. Weights then take 4 bytes each.

    Args:
        linear: the layer; its weight is no longer needed afterwards.
        activation: to apply to the result; one of those that `goes_with` says.

    Attributes:
        dtype: of the layer's inputs and results.
        multiplied_in: that dtype, or float32.
    """

    def __init__(self, linear: nn.Linear, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.dtype = linear.weight.dtype
        self.multiplied_in = multiplied_in(self.dtype)
        self.packed = onednn.pack(linear.weight.detach().to(self.multiplied_in))
        self.bias = None if linear.bias is None else linear.bias.detach().to(self.multiplied_in)
        gelu = activation if isinstance(activation, nn.GELU) else None
        # oneDNN's GELU takes three times as long, and with it `Bf16Gemm` would not have the bits of oneDNN's layer.
        if gelu is not None and (self.dtype != torch.bfloat16 or kernels is None):
            self.activate, self.activation, self.approximate = None, "gelu", gelu.approximate
        else:
            self.activate, self.activation, self.approximate = _kernel_of(activation, self.dtype), "none", ""
        self.gemm = onednn.Bf16Gemm.of(linear.weight, self.packed, self.bias) if self.activation == "none" else None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.to(self.dtype).reshape(-1, x.shape[-1])
        alone = rows.shape[0] == 1
        y = self.gemm(rows) if self.gemm is not None and (alone or onednn.gemm_is_faster()) else self.onednn(rows)
        if self.activate is not None:
            self.activate(n_numbers=y.numel(), chunk=-(-y.numel() // (16 * SEGMENT)), y=y.data_ptr())
        return y.view(*x.shape[:-1], -1)

    def onednn(self, rows: Tensor) -> Tensor:
        """``[rows, n_in] -> [rows, n_out]`` by oneDNN, in the layer's dtype."""
        y = onednn.linear(rows.to(self.multiplied_in), self.packed, self.bias, self.activation, self.approximate)
        return y.to(self.dtype)


def _kernel_of(activation: nn.Module | None, dtype: torch.dtype) -> kernels.Kernel | None:
    """The kernel of the activation behind a layer."""
    if activation is None:
        return None
    kernel = kernels.Kernel("activate", dtype)
    kernel.set(activation=activation_code(activation))
    return kernel


def goes_with(activation: nn.Module | None, dtype: torch.dtype) -> bool:
    """Whether packed layers of ``dtype`` can apply the activation themselves."""
    if isinstance(activation, nn.GELU):
        return True
    return activation_code(activation) == RELU_SQUARED and kernels is not None and dtype in (torch.float32, torch.bfloat16)


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, a scale for each output channel, for inference on a CPU.

    Each row of the input is quantised to int8 with a scale of its own: one scale for a batch would let rows change their
    neighbours. The integer sums are exact, and everything around them is float32.

    Args:
        linear: the layer, in float32; its weight is no longer needed afterwards.
        activation: to apply to the result; one of those that `goes_with` says.

    Raises:
        DeviceError: no way of multiplying is exact on this CPU.
    """

    def __init__(self, linear: nn.Linear, activation: nn.Module | None = None) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.scales = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        quantised = (weight / self.scales[:, None]).round().to(torch.int8)
        self.multiply = _int8_product(min(len(weight), _OUTPUTS_TRIED), weight.shape[1])
        self.packed = _packed_int8(quantised)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.quantise, self.rescale = (kernels.Kernel(name, torch.float32) for name in ("quantise", "rescale"))
        code = activation_code(activation)
        self.rescale.set(
            activation=NO_ACTIVATION if code is None else code, bias=0 if self.bias is None else self.bias.data_ptr()
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        n_rows, n_in = rows.shape
        quantised, scales = torch.empty(n_rows, n_in, dtype=torch.uint8), torch.empty(n_rows)
        places = {"x": rows.data_ptr(), "quantised": quantised.data_ptr(), "scales": scales.data_ptr()}
        self.quantise(n_rows=n_rows, width=n_in, chunk=-(-n_rows // 16), **places)
        y = self.multiply(quantised, self.packed, self.scales, self.zeros)
        n_out = y.shape[1]
        chunk = -(-n_rows * -(-n_out // SEGMENT) // 16)
        self.rescale(n_rows=n_rows, width=n_out, chunk=chunk, y=y.data_ptr(), scales=scales.data_ptr())
        return y.view(*x.shape[:-1], -1)


_ZERO = 128
"""What stands for 0 in a quantised row: oneDNN is fast for unsigned inputs, so int8 is shifted into uint8."""

Int8Product = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``uint8 [rows, n_in], packed int8 weights, float32 [n_out] -> float32 [rows, n_out]``: the sums times the scales. The last
argument is zeros, ``int64 [n_out]``: what oneDNN is to take from each weight."""


def whole_product(rows: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor, zero: int = _ZERO) -> Tensor:
    """An `Int8Product` by oneDNN, exact on a CPU with VNNI.

    Others add pairs of products in 16 bits, which two products of 255 and 127 overflow: the sum is cut off at 32,767.
    """
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        *(rows, 1.0, zero, packed, scales, zeros), *(None, 1.0, 0, torch.float32, "none", [], "")
    )
    return y


def product_of_halves(rows: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """An `Int8Product` that is exact on every CPU: a row is parted in two of numbers up to 128, whose pairs fit 16 bits.

    The two sums are added before they are scaled, so the results are those of `whole_product` where that is exact. Twice as
    many rows go through the layer, which takes about as long as float32 does.
    """
    lesser = rows >> 1
    y = whole_product(torch.cat([lesser, rows - lesser]), packed, torch.ones_like(scales), zeros, _ZERO // 2)
    return y[: len(rows)].add_(y[len(rows) :]).mul_(scales)


def _packed_int8(weight: Tensor) -> Tensor:
    """``int8 [n_out, n_in]`` as oneDNN likes it."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight, [onednn.ROWS_PACKED_FOR, weight.shape[1]])
    return packed


@functools.cache
@torch.inference_mode()
def _int8_product(n_out: int, n_in: int) -> Int8Product:
    """The fastest `Int8Product` that is exact on this CPU for layers of this shape, tried with the greatest numbers there are.

    Raises:
        DeviceError: there is none.
    """
    packed = _packed_int8(torch.full((n_out, n_in), 127, dtype=torch.int8))
    scales, zeros = torch.ones(n_out), torch.zeros(n_out, dtype=torch.int64)
    for multiply in (whole_product, product_of_halves):
        if all(
            torch.allclose(multiply(rows, packed, scales, zeros), torch.tensor(127.0 * (number - _ZERO) * n_in), rtol=1e-6)
            for number in (255, 0)
            for rows in (torch.full((count, n_in), number, dtype=torch.uint8) for count in (1, onednn.ROWS_PACKED_FOR))
        ):
            return multiply
    raise DeviceError("device.dtype", "int8", "oneDNN's int8 products overflow on this CPU; try bfloat16")


def multiplies_in_halves(model: Model) -> bool:
    """Whether the model has int8 layers whose sums `whole_product` would cut off on this CPU."""
    layers = (getattr(place.parent, place.name) for place in model.linear_layers())
    return any(isinstance(layer, Int8Linear) and layer.multiply is product_of_halves for layer in layers)


def multiplied_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a `PackedLinear` of ``dtype`` holds its weights: float32 where oneDNN has no such layers."""
    return dtype if onednn.has_layers(dtype) else torch.float32


def is_widened(layer: nn.Module) -> bool:
    """Whether the layer has weights of 16 bits, and multiplies them in float32."""
    return isinstance(layer, PackedLinear) and layer.multiplied_in != layer.dtype


def has_int8_layers(model: Model) -> bool:
    """Whether the model's linear layers are `Int8Linear`."""
    return any(isinstance(getattr(place.parent, place.name), Int8Linear) for place in model.linear_layers())


def pack(model: Model, layer: type[PackedLinear] | type[Int8Linear] = PackedLinear) -> None:
    """Replace the linear layers of ``model`` by ``layer``, one at a time, in place, and fuse what lies between them."""
    for parent, name, activation in model.linear_layers():
        linear = as_linear(getattr(parent, name))
        behind = None if activation is None else getattr(parent, activation)
        applied = behind if goes_with(behind, linear.weight.dtype) else None
        setattr(parent, name, layer(linear, applied))
        if activation is not None and applied is not None:
            setattr(parent, activation, nn.Identity())
    if isinstance(model, nn.Module):
        fuse(model, model.embedding.dtype)


def as_linear(module: nn.Module) -> nn.Linear:
    """``module``, which must be a layer not yet packed."""
    if not isinstance(module, nn.Linear):
        raise TypeError(f"{type(module).__name__} is not a linear layer with weights of its own")
    return module


def can_pack(dtype: torch.dtype) -> bool:
    """Whether there are packed layers of this dtype for this CPU: `PackedLinear`, or with int8 `Int8Linear`."""
    if dtype == torch.int8:
        return onednn.has_layers(torch.float32) and kernels is not None and torch.backends.quantized.engine in ("x86", "onednn")
    return onednn.has_layers(torch.float32) and dtype in (torch.float32, torch.bfloat16, torch.float16)


@torch.inference_mode()
def row_invariant(model: Model) -> bool:
    """Whether each of the model's layers gives a row the same bits whatever the number of rows: a few ms on one block."""
    layers = [getattr(place.parent, place.name) for place in model.linear_layers()]
    if not all(isinstance(layer, (PackedLinear, Int8Linear)) for layer in layers):
        return False  # `torch.nn.functional.linear` is not, and rounding to 16 bits can hide that from a few rows
    most, width = _MEASURED_ROWS[-1], model.embedding.shape[1]
    x = torch.linspace(-2, 2, most * width, device=model.embedding.device).sin().view(most, -1)
    whole = model.between_attentions(x)
    return all(
        torch.equal(alone, together[:count])
        for count in _MEASURED_ROWS[:-1]
        for alone, together in zip(model.between_attentions(x[:count]), whole, strict=True)
    )
