"""Linear layers prepacked for a CPU: oneDNN's blocked weights, with GELU fused into the layer before it, and int8 weights.

The point of prepacking is speed and bits: a row of the result is the same however many rows are multiplied with it, which
`torch.nn.functional.linear` does not give. `row_invariant` checks that on the machine at hand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .model import GPT

_ROWS_PACKED_FOR = 64
_MEASURED_ROWS = (1, 2, 3, 7, 16, 33, 64)


class PackedLinear(nn.Module):
    """A linear layer in oneDNN's own weight layout, for inference on a CPU.

    Args:
        linear: the layer; its weight is no longer needed afterwards.
        gelu: the activation to apply to the result, fused.
    """

    def __init__(self, linear: nn.Linear, gelu: nn.GELU | None = None) -> None:
        super().__init__()
        self.dtype = linear.weight.dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS_PACKED_FOR)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.activation = "none" if gelu is None else "gelu"
        self.approximate = "" if gelu is None else gelu.approximate

    def forward(self, x: Tensor) -> Tensor:
        rows = x.to(self.dtype).reshape(-1, x.shape[-1])
        # One row alone would take a matrix-vector product, which sums in another order.
        padded = rows.expand(2, -1).contiguous() if len(rows) == 1 else rows
        y: Tensor = torch.ops.mkldnn._linear_pointwise(padded, self.packed, self.bias, self.activation, [], self.approximate)
        return y[: len(rows)].view(*x.shape[:-1], -1)


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, a scale for each output channel, for inference on a CPU.

    Each row of the input is quantised to int8 with a scale of its own: one scale for a batch would let rows change their
    neighbours. The integer sums are exact, and everything around them is float32.

    Args:
        linear: the layer, in float32; its weight is no longer needed afterwards.
        gelu: the activation to apply to the result.
    """

    _ZERO = 128  # oneDNN is fast for unsigned inputs, so int8 is shifted into uint8

    def __init__(self, linear: nn.Linear, gelu: nn.GELU | None = None) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.scales = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        quantised = (weight / self.scales[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(quantised, [_ROWS_PACKED_FOR, weight.shape[1]])
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scale = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
        quantised = (rows / scale).round_().add_(self._ZERO).to(torch.uint8)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(quantised, 1.0, self._ZERO, self.packed, self.scales, self.zeros),
            *(None, 1.0, 0, torch.float32, "none", [], ""),
        )
        y *= scale
        if self.bias is not None:
            y += self.bias
        if self.gelu is not None:
            y = _tanh_gelu(y) if self.gelu.approximate == "tanh" else self.gelu(y)
        return y.view(*x.shape[:-1], -1)


def _tanh_gelu(x: Tensor) -> Tensor:
    """GELU's tanh form. The bits of torch's own depend on where in a tensor a number lies: it rounds the last few of each
    thread's share in another way."""
    y = x * x
    return y.mul_(0.044715).add_(1).mul_(x).mul_(math.sqrt(2 / math.pi)).tanh_().add_(1).mul_(x).mul_(0.5)


def pack(model: GPT, layer: type[PackedLinear] | type[Int8Linear] = PackedLinear) -> None:
    """Replace the linear layers of ``model`` by ``layer``, one at a time, in place."""
    for block in model.blocks:
        block.attn.c_attn = layer(as_linear(block.attn.c_attn))
        block.attn.c_proj = layer(as_linear(block.attn.c_proj))
        gelu = block.mlp.gelu
        block.mlp.c_fc = layer(as_linear(block.mlp.c_fc), gelu if isinstance(gelu, nn.GELU) else None)
        block.mlp.gelu = nn.Identity()
        block.mlp.c_proj = layer(as_linear(block.mlp.c_proj))
    model.lm_head = layer(as_linear(model.lm_head))


def as_linear(module: nn.Module) -> nn.Linear:
    """``module``, which must be a layer not yet packed."""
    if not isinstance(module, nn.Linear):
        raise TypeError(f"{type(module).__name__} is not a linear layer with weights of its own")
    return module


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN has prepacked layers of this dtype for this CPU."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.int8:
        return torch.backends.quantized.engine in ("x86", "onednn")
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


@torch.inference_mode()
def row_invariant(model: GPT) -> bool:
    """Whether each of the model's layers gives a row the same bits whatever the number of rows: a few ms on one block."""
    if not isinstance(model.lm_head, (PackedLinear, Int8Linear)):
        return False  # `torch.nn.functional.linear` is not, and rounding to 16 bits can hide that from a few rows
    block, device = model.blocks[0], model.embedding.device
    x = torch.linspace(-2, 2, _MEASURED_ROWS[-1] * model.config.n_embd, device=device).sin().view(_MEASURED_ROWS[-1], -1)

    def run(rows: Tensor) -> tuple[Tensor, ...]:
        return block.project(rows), block.finish(rows, rows), model.logits(rows)

    whole = run(x)
    return all(
        torch.equal(alone, together[:count])
        for count in _MEASURED_ROWS[:-1]
        for alone, together in zip(run(x[:count]), whole, strict=True)
    )
