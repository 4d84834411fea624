"""Linear layers with prepacked weights for a CPU, each with its activation: oneDNN's blocked layout, and int8.

Prepacking brings speed and batch invariance: the bits of a row do not depend on the number of rows, unlike with
`torch.nn.functional.linear`. `row_invariant` checks this on the machine at hand.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from ..kernels import onednn
from ..kernels.abi import COLUMNS, INT8_TILES_TOGETHER, NARROW_ROWS, NO_ACTIVATION, PAGE, RELU_SQUARED, SEGMENT, ZERO
from .architecture import Model
from .fused import fuse
from .layers import activation_code

try:
    from ..kernels import runtime as kernels
except ImportError:  # numba has no wheel for this platform
    kernels = None  # type: ignore[assignment]

_OUTPUTS_TRIED = 1024
_MEASURED_ROWS = (1, 2, 3, 7, 15, 16, 17, 31, 33, 64)


class PackedLinear(nn.Module):
    """A linear layer with prepacked weights, for inference on a CPU.

    If oneDNN has no 16-bit layers for the CPU, 16-bit weights are multiplied in float32. As in a 16-bit layer, products are
    exact, sums are float32, and the result is rounded once.

    Args:
        linear: the layer to pack; its weight is not needed afterwards.
        activation: the activation to apply to the result; `goes_with` must accept it.

    Attributes:
        dtype: dtype of the inputs and results.
        multiplied_in: dtype of the multiplication: ``dtype`` or float32.
    """

    def __init__(self, linear: nn.Linear, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.dtype = linear.weight.dtype
        self.multiplied_in = multiplied_in(self.dtype)
        weight = linear.weight.detach()
        bias = None if linear.bias is None else linear.bias.detach().to(self.multiplied_in)
        in_float32 = self.multiplied_in == torch.float32
        gemm = onednn.FloatGemm.of(weight, bias, activation_code(activation) or NO_ACTIVATION) if in_float32 else None
        # In bfloat16 oneDNN's GELU takes three times as long, and no kernel could reproduce its bits.
        may_fuse = gemm is None and (self.dtype != torch.bfloat16 or kernels is None)
        fused = activation if may_fuse and isinstance(activation, nn.GELU) else None
        batched = None if in_float32 or fused is not None else onednn.InBatches.of(weight, bias)
        self.multiply = gemm or batched or OneDnn(weight.to(self.multiplied_in), bias, fused)
        self.activate = _kernel_of(activation, self.dtype) if gemm is None and fused is None else None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.to(self.dtype).reshape(-1, x.shape[-1])
        y = self.multiply(rows.to(self.multiply.dtype)).to(self.dtype)
        if self.activate is not None:
            self.activate(n_numbers=y.numel(), chunk=-(-y.numel() // (16 * SEGMENT)), y=y.data_ptr())
        return y.view(*x.shape[:-1], -1)


class OneDnn:
    """Multiplies rows by weights in oneDNN's own layout: ``[rows, n_in] -> [rows, n_out]``, in the weights' dtype.

    Args:
        weight: ``[n_out, n_in]``.
        bias: ``[n_out]``, or None.
        gelu: an activation to apply to the result, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: nn.GELU | None) -> None:
        self.dtype, self.bias = weight.dtype, bias
        self.packed = onednn.pack(weight)
        self.activation, self.approximate = ("none", "") if gelu is None else ("gelu", gelu.approximate)
        self.gemm = onednn.Bf16Gemm.of(weight, self.packed, bias) if gelu is None else None

    def __call__(self, rows: Tensor) -> Tensor:
        if self.gemm is not None and (len(rows) == 1 or onednn.gemm_is_faster()):
            return self.gemm(rows)
        return onednn.linear(rows, self.packed, self.bias, self.activation, self.approximate)


def _kernel_of(activation: nn.Module | None, dtype: torch.dtype) -> kernels.Kernel | None:
    """Return the kernel of a layer's activation, None if it has no activation."""
    if activation is None:
        return None
    kernel = kernels.Kernel("activate", dtype)
    kernel.set(activation=activation_code(activation))
    return kernel


def goes_with(activation: nn.Module | None, dtype: torch.dtype) -> bool:
    """Return whether packed layers of ``dtype`` can apply the activation themselves."""
    if isinstance(activation, nn.GELU):
        return True
    return activation_code(activation) == RELU_SQUARED and kernels is not None and dtype in (torch.float32, torch.bfloat16)


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and a scale per output channel, for inference on a CPU.

    Each row of the input is quantised to int8 with its own scale: a scale per batch would break batch invariance. The integer
    sums are exact; everything else is float32.

    Args:
        linear: the float32 layer to quantise; its weight is not needed afterwards.
        activation: the activation to apply to the result; `goes_with` must accept it.
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
    """Multiplies rows by int8 weights with oneDNN: ``float32 [rows, n_in] -> [rows, n_out]``. Sums are exact with VNNI.

    Args:
        weight: quantised weights, ``int8 [n_out, n_in]``.
        scales: quantisation step of each output channel, ``float32 [n_out]``.
        bias: ``float32 [n_out]``, or None.
        activation: code of the activation to apply to the result.
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
        """Sum the products and multiply by the weights' scales: ``uint8 [rows, n_in] -> float32 [rows, n_out]``.

        CPUs without VNNI add pairs of products in 16 bits and saturate: 2 * 255 * 127 exceeds 32,767.
        """
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(rows, 1.0, ZERO, self.packed, self.scales, self.zeros), *(None, 1.0, 0, torch.float32, "none", [], "")
        )
        return y


class Int8Gemm:
    """Multiplies rows by int8 weights with the kernel ``multiply``. Sums are exact on every CPU, with the bits of `Int8OneDnn`.

    On AVX2 it takes half the time of float32 layers; `Int8OneDnn` with VNNI takes a quarter. The arguments are those of
    `Int8OneDnn`.
    """

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor | None, activation: int) -> None:
        self.n_out, n_in = weight.shape
        self.scales, self.bias = scales, bias
        pairs = -(-n_in // 2)
        padded = torch.zeros(-(-self.n_out // PAGE) * PAGE, 2 * pairs, dtype=torch.int8)
        padded[: self.n_out, :n_in] = weight
        self.packed = padded.view(-1, PAGE, pairs, 2).transpose(1, 2).contiguous()
        self.stride = 2 * pairs + PAGE  # rows a power of two apart would compete for the same lines of the L1 cache
        self.quantise, self.multiply = kernels.Kernel("quantise", torch.int16), kernels.Kernel("multiply", torch.int8)
        self.multiply.set(
            n_in=n_in,
            n_out=self.n_out,
            stride=self.stride,
            activation=activation,
            scratch=4 * NARROW_ROWS * PAGE,
            weight=self.packed.data_ptr(),
            weight_scales=scales.data_ptr(),
            bias=0 if bias is None else bias.data_ptr(),
        )

    def __call__(self, x: Tensor) -> Tensor:
        n_rows = len(x)
        # For an odd `n_in`, the last pair of a row holds an uninitialised number; its weight is 0.
        quantised, scales = _quantised(self.quantise, x, torch.empty(n_rows, self.stride, dtype=torch.int16))
        out = onednn.empty_results(n_rows, self.n_out, torch.float32)
        units = -(-self.n_out // COLUMNS) * -(-n_rows // (NARROW_ROWS * INT8_TILES_TOGETHER))
        places = {"x": quantised.data_ptr(), "scales": scales.data_ptr(), "out": out.data_ptr()}
        self.multiply(n_rows=n_rows, chunk=max(1, units // 32), **places)
        return out


def _quantised(kernel: kernels.Kernel, x: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each row of ``x [rows, width]`` into the start of the same row of ``to``, and return ``to`` and the scales.

    The scales are ``float32 [rows]``, the quantisation step of each row.
    """
    (n_rows, width), scales = x.shape, torch.empty(len(x))
    places = {"x": x.data_ptr(), "quantised": to.data_ptr(), "scales": scales.data_ptr()}
    kernel(n_rows=n_rows, width=width, stride=to.shape[1], chunk=-(-n_rows // 16), **places)
    return to, scales


@functools.cache
@torch.inference_mode()
def onednn_sums_exactly(n_out: int, n_in: int) -> bool:
    """Test whether `Int8OneDnn` is exact on this CPU for layers of this shape, with the most extreme inputs and weights."""
    layer = Int8OneDnn(torch.full((n_out, n_in), 127, dtype=torch.int8), torch.ones(n_out), None, NO_ACTIVATION)
    return all(
        torch.allclose(layer.sums(rows), torch.tensor(127.0 * (number - ZERO) * n_in), rtol=1e-6)
        for number in (255, 0)
        for rows in (torch.full((count, n_in), number, dtype=torch.uint8) for count in (1, onednn.ROWS_PACKED_FOR))
    )


def int8_was_cut_off(model: Model) -> bool:
    """Return whether the model has int8 layers whose sums saturated on this CPU in version 0.1, which used only oneDNN."""
    layers = (getattr(place.parent, place.name) for place in model.linear_layers())
    return any(isinstance(layer, Int8Linear) and isinstance(layer.multiply, Int8Gemm) for layer in layers)


def multiplied_in(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a `PackedLinear` of ``dtype`` multiplies: float32 if oneDNN has no layers of that dtype."""
    return dtype if onednn.has_layers(dtype) else torch.float32


def kept_in(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a `PackedLinear` of ``dtype`` keeps its weights."""
    return dtype if dtype == torch.bfloat16 and onednn.FloatGemm.is_for_this_cpu() else multiplied_in(dtype)


def kind_of(layer: nn.Module) -> str:
    """Return the name of a layer's class, and what else determines its bits: float32 in place of 16 bits, or slices."""
    how = ""
    if isinstance(layer, PackedLinear) and layer.multiplied_in != layer.dtype:
        how = " in float32"
    elif isinstance(layer, PackedLinear) and isinstance(layer.multiply, onednn.InBatches):
        how = f" in batches of {len(layer.multiply.slices)} slices"
    return type(layer).__name__ + how


def has_int8_layers(model: Model) -> bool:
    """Return whether the model has an `Int8Linear`."""
    return any(isinstance(getattr(place.parent, place.name), Int8Linear) for place in model.linear_layers())


def pack(model: Model, layer: type[PackedLinear] | type[Int8Linear] = PackedLinear) -> None:
    """Replace the linear layers of ``model`` by ``layer``, one at a time and in place, and fuse the operations in between."""
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
    """Return ``module`` as an `nn.Linear`.

    Raises:
        TypeError: it is another module, such as a packed layer.
    """
    if not isinstance(module, nn.Linear):
        raise TypeError(f"{type(module).__name__} is not a linear layer with weights of its own")
    return module


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether this CPU has packed layers of ``dtype``: `Int8Linear` for int8, `PackedLinear` for others."""
    if dtype == torch.int8:
        return onednn.has_layers(torch.float32) and kernels is not None and torch.backends.quantized.engine in ("x86", "onednn")
    return onednn.has_layers(torch.float32) and dtype in (torch.float32, torch.bfloat16, torch.float16)


@torch.inference_mode()
def row_invariant(model: Model) -> bool:
    """Test whether the model's layers are batch invariant: a row has the same bits whatever the number of rows.

    It runs one block, which takes a few milliseconds.
    """
    layers = [getattr(place.parent, place.name) for place in model.linear_layers()]
    if not all(isinstance(layer, (PackedLinear, Int8Linear)) for layer in layers):
        return False  # `torch.nn.functional.linear` is not invariant, though rounding to 16 bits can hide it in a short test
    most, width = _MEASURED_ROWS[-1], model.embedding.shape[1]
    x = torch.linspace(-2, 2, most * width, device=model.embedding.device).sin().view(most, -1)
    whole = model.between_attentions(x)
    return all(
        torch.equal(alone, together[:count])
        for count in _MEASURED_ROWS[:-1]
        for alone, together in zip(model.between_attentions(x[:count]), whole, strict=True)
    )
