"""Linear layers prepacked for a CPU, each with the activation behind it: oneDNN's blocked weights, and int8 weights.

The point of prepacking is speed and bits: a row of the result is the same however many rows are multiplied with it, which
`torch.nn.functional.linear` does not give. `row_invariant` checks that on the machine at hand.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from ..kernels import onednn
from ..kernels.abi import COLUMNS, INT8_TILE_ROWS, INT8_TILES_TOGETHER, NO_ACTIVATION, PAGE, RELU_SQUARED, SEGMENT, ZERO
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
    """

    def __init__(self, linear: nn.Linear, activation: nn.Module | None = None) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scales = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        quantised = (weight / scales[:, None]).round().to(torch.int8)
        exact = onednn_sums_exactly(min(len(weight), _OUTPUTS_TRIED), weight.shape[1])
        bias, code = None if linear.bias is None else linear.bias.detach(), activation_code(activation)
        way = Int8OneDnn if exact else Int8Gemm
        self.multiply = way(quantised, scales, bias, NO_ACTIVATION if code is None else code)

    def forward(self, x: Tensor) -> Tensor:
        y = self.multiply(x.reshape(-1, x.shape[-1]).contiguous())
        return y.view(*x.shape[:-1], -1)


class Int8OneDnn:
    """Rows through int8 weights by oneDNN, whose sums are exact on a CPU with VNNI: ``float32 [rows, n_in] -> [rows, n_out]``.

    Args:
        weight: ``int8 [n_out, n_in]``.
        scales: ``float32 [n_out]``, what 1 stands for in it.
        bias: ``float32 [n_out]``.
        activation: its code, applied to the result.
    """

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor | None, activation: int) -> None:
        self.scales, self.bias = scales, bias
        self.packed = torch.ops.onednn.qlinear_prepack(weight, [onednn.ROWS_PACKED_FOR, weight.shape[1]])
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.quantise, self.rescale = kernels.Kernel("quantise", torch.uint8), kernels.Kernel("rescale", torch.float32)
        self.rescale.set(activation=activation, bias=0 if bias is None else bias.data_ptr())

    def __call__(self, x: Tensor) -> Tensor:
        quantised, scales = _quantised(self.quantise, x, torch.empty(x.shape, dtype=torch.uint8))
        y = self.sums(quantised)
        n_rows, n_out = y.shape
        chunk = -(-n_rows * -(-n_out // SEGMENT) // 16)
        self.rescale(n_rows=n_rows, width=n_out, chunk=chunk, y=y.data_ptr(), scales=scales.data_ptr())
        return y

    def sums(self, rows: Tensor) -> Tensor:
        """``uint8 [rows, n_in] -> float32 [rows, n_out]``: the sums of products, times the weight's scales.

        CPUs without VNNI add pairs of products in 16 bits, which two of 255 and 127 overflow: a sum is cut off at 32,767.
        """
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(rows, 1.0, ZERO, self.packed, self.scales, self.zeros), *(None, 1.0, 0, torch.float32, "none", [], "")
        )
        return y


class Int8Gemm:
    """Rows through int8 weights by the kernel ``multiply``, whose sums are exact on every CPU, with the bits of `Int8OneDnn`.

    On AVX2 it takes half as long as float32 layers do; oneDNN on a CPU with VNNI takes a quarter.

    Args: as `Int8OneDnn`.
    """

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor | None, activation: int) -> None:
        self.n_out, n_in = weight.shape
        self.scales, self.bias = scales, bias
        pairs = -(-n_in // 2)
        padded = torch.zeros(-(-self.n_out // PAGE) * PAGE, 2 * pairs, dtype=torch.int8)
        padded[: self.n_out, :n_in] = weight
        self.packed = padded.view(-1, PAGE, pairs, 2).transpose(1, 2).contiguous()
        self.stride = 2 * pairs + PAGE  # rows a power of two apart would all want the same lines of the nearest cache
        self.quantise, self.multiply = kernels.Kernel("quantise", torch.int16), kernels.Kernel("multiply", torch.int8)
        self.multiply.set(
            n_in=n_in,
            n_out=self.n_out,
            stride=self.stride,
            activation=activation,
            scratch=4 * INT8_TILE_ROWS * PAGE,
            weight=self.packed.data_ptr(),
            weight_scales=scales.data_ptr(),
            bias=0 if bias is None else bias.data_ptr(),
        )

    def __call__(self, x: Tensor) -> Tensor:
        n_rows = len(x)
        # Weights are 0 where the last pair of a row has what was in memory.
        quantised, scales = _quantised(self.quantise, x, torch.empty(n_rows, self.stride, dtype=torch.int16))
        out = torch.empty(n_rows, self.n_out)
        units = -(-self.n_out // COLUMNS) * -(-n_rows // (INT8_TILE_ROWS * INT8_TILES_TOGETHER))
        places = {"x": quantised.data_ptr(), "scales": scales.data_ptr(), "out": out.data_ptr()}
        self.multiply(n_rows=n_rows, chunk=max(1, units // 32), **places)
        return out


def _quantised(kernel: kernels.Kernel, x: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
    """``to``, with the rows of ``x [rows, width]`` in int8 at the begin of its own; ``float32 [rows]``, what 1 stands for."""
    (n_rows, width), scales = x.shape, torch.empty(len(x))
    places = {"x": x.data_ptr(), "quantised": to.data_ptr(), "scales": scales.data_ptr()}
    kernel(n_rows=n_rows, width=width, stride=to.shape[1], chunk=-(-n_rows // 16), **places)
    return to, scales


@functools.cache
@torch.inference_mode()
def onednn_sums_exactly(n_out: int, n_in: int) -> bool:
    """Whether `Int8OneDnn` is exact on this CPU for layers of this shape, tried with the greatest numbers there are."""
    layer = Int8OneDnn(torch.full((n_out, n_in), 127, dtype=torch.int8), torch.ones(n_out), None, NO_ACTIVATION)
    return all(
        torch.allclose(layer.sums(rows), torch.tensor(127.0 * (number - ZERO) * n_in), rtol=1e-6)
        for number in (255, 0)
        for rows in (torch.full((count, n_in), number, dtype=torch.uint8) for count in (1, onednn.ROWS_PACKED_FOR))
    )


def int8_was_cut_off(model: Model) -> bool:
    """Whether the model has int8 layers whose sums version 0.1, which multiplied by oneDNN alone, cut off on this CPU."""
    layers = (getattr(place.parent, place.name) for place in model.linear_layers())
    return any(isinstance(layer, Int8Linear) and isinstance(layer.multiply, Int8Gemm) for layer in layers)


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
