"""What a user would lose: normalisations, gates and rotated heads as their formulas say, with a row's bits in any batch."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gptsweep.models.decoder import Attention, DecoderConfig
from gptsweep.models.fused import fuse
from gptsweep.models.layers import (
    ACTIVATIONS,
    ROWWISE_ACTIVATIONS,
    Activation,
    ByVectors,
    Gated,
    Norm,
    NormConfig,
    Rotary,
    RotaryConfig,
    SoftCap,
)
from gptsweep.models.linear import Int8Linear, PackedLinear, goes_with

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def fused(module: nn.Module, dtype: torch.dtype) -> Any:
    """A copy of ``module`` that computes by its kernel."""
    made = copy.deepcopy(module)
    fuse(made, dtype)
    return made


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(made: Tensor, plain: Tensor, dtype: torch.dtype) -> None:
    np.testing.assert_allclose(made.float(), plain.float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 70),
    width=st.sampled_from([1, 7, 16, 24, 80, 576, 1024]),
    weight=st.booleans(),
    narrow=st.booleans(),
    wide=st.booleans(),
    apart=st.booleans(),
)
@torch.inference_mode()
def test_rms_norm(dtype: torch.dtype, rows: int, width: int, weight: bool, narrow: bool, wide: bool, apart: bool) -> None:
    norm = Norm(NormConfig(kind="rms", epsilon=1e-3, weight=weight), width, narrow=narrow)
    if norm.weight is not None:
        norm.weight.copy_(drawn(width, seed=1))
    x = (3 * drawn(rows, 2 * width)[:, :width]).to(torch.float32 if wide else dtype)
    x = x if apart else x.contiguous()
    by_kernel = fused(norm, dtype)
    made = by_kernel(x)
    assert made.dtype == (dtype if narrow else torch.float32)
    assert_close(made, norm(x), dtype if narrow else torch.float32)
    assert torch.equal(by_kernel(x[rows - 1 :]), made[rows - 1 :])
    assert torch.equal(by_kernel(x.contiguous()), made)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["silu", "quick_gelu", "tanh", "relu"])
@torch.inference_mode()
def test_an_activation_without_a_kernel(dtype: torch.dtype, name: Activation) -> None:
    """Of GPT-2s of other makers: a row alone, and in batches of 2 to 64, has the same bits; those of torch in whole vectors."""
    activation, before = ACTIVATIONS[name](), torch.get_num_threads()
    plain = activation.activation if isinstance(activation, ByVectors) else activation
    try:
        for width, threads in itertools.product((1, 20, 52, 3073), (1, 2, 3)):
            x = (5 * drawn(64, width)).to(dtype)
            torch.set_num_threads(threads)
            whole = activation(x)
            for rows in (1, 2, 3, 7, 16, 33):
                for begin in (0, 64 - rows):
                    assert torch.equal(activation(x[begin : begin + rows]), whole[begin : begin + rows])
            torch.set_num_threads(1)
            assert torch.equal(whole[:2], plain(x[:2].flatten().repeat_interleave(64))[::64].view(2, -1))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 70), width=st.sampled_from([1, 7, 16, 40, 1536]))
@torch.inference_mode()
def test_a_gate(dtype: torch.dtype, name: Activation, rows: int, width: int) -> None:
    gated = Gated(ROWWISE_ACTIVATIONS[name]())
    x = (5 * drawn(rows, 2 * width)).to(dtype)
    by_kernel = fused(gated, dtype)
    made = by_kernel(x)
    assert by_kernel.fused is not None
    assert made.dtype == dtype
    np.testing.assert_allclose(made.float(), gated(x).float(), rtol=2 * TOLERANCE[dtype], atol=1e-5)
    assert torch.equal(by_kernel(x[rows - 1 :]), made[rows - 1 :])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 70), width=st.sampled_from([1, 7, 16, 329, 5000]), cap=st.sampled_from([1.5, 15.0, 30.0]))
@torch.inference_mode()
def test_a_soft_cap(dtype: torch.dtype, rows: int, width: int, cap: float) -> None:
    capped = SoftCap(cap)
    x = (20 * drawn(rows, width)).to(dtype)
    by_kernel = fused(capped, dtype)
    made = by_kernel(x.clone())
    assert made.dtype == dtype
    np.testing.assert_allclose(made.float(), capped(x).float(), rtol=2 * TOLERANCE[dtype], atol=1e-5)
    assert torch.equal(by_kernel(x[rows - 1 :].clone()), made[rows - 1 :])
    ends = torch.tensor([torch.inf, -torch.inf, 1e30, 0.0, torch.nan]).to(dtype)
    assert torch.equal(by_kernel(ends.clone())[:4].float(), torch.tensor([cap, -cap, cap, 0.0]))
    assert by_kernel(ends)[4].isnan()


@pytest.mark.parametrize("layer", [PackedLinear, Int8Linear])
@torch.inference_mode()
def test_squared_relu_behind_a_linear_layer(layer: type[PackedLinear] | type[Int8Linear]) -> None:
    linear, squared = nn.Linear(24, 5000), ACTIVATIONS["relu_squared"]()
    x = drawn(17, 24)
    assert goes_with(squared, torch.float32)
    packed = layer(linear, squared)
    made = packed(x)
    np.testing.assert_allclose(made, squared(layer(linear)(x)), rtol=1e-5, atol=1e-6)
    assert torch.equal(packed(x[3:5]), made[3:5])


def attention_of(shared: Rotary | None, **settings: Any) -> Attention:
    """Projections around attention, with drawn weights of the norms."""
    config = DecoderConfig(vocab_size=8, block_size=64, n_layer=1, n_embd=16, n_inner=16, windows=(None,), **settings)
    torch.manual_seed(0)
    attention = Attention(config, shared)
    for norm in (attention.q_norm, attention.k_norm):
        if norm is not None and norm.weight is not None:
            norm.weight.data.normal_()
    return attention.requires_grad_(False)


@st.composite
def attentions(draw: st.DrawFn) -> Attention:
    n_kv_heads, sharing = draw(st.sampled_from([(1, 1), (1, 4), (2, 2), (3, 3), (4, 1)]))
    head_size = draw(st.sampled_from([8, 20, 64, 80, 128]))
    rotated = draw(st.sampled_from([head_size, head_size // 4 // 2 * 2 or 2]))
    rotary = RotaryConfig(size=rotated, base=100.0, pairs=draw(st.booleans()))
    return attention_of(
        draw(st.sampled_from([Rotary(rotary), None])),
        n_head=n_kv_heads * sharing,
        n_kv_heads=n_kv_heads,
        head_size=head_size,
        norm=NormConfig(kind="rms", epsilon=1e-5, weight=draw(st.booleans())),
        qk_norm=draw(st.sampled_from([None, "head", "width"])),
        rotary=rotary,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=25, deadline=None)
@given(attention=attentions(), rows=st.integers(1, 40))
def test_queries_and_keys_are_normalised_and_rotated(dtype: torch.dtype, attention: Attention, rows: int) -> None:
    assert_projects_by_kernel(dtype, attention, rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("qk_norm", ["head", "width"])
def test_queries_of_a_norm_without_a_kernel_are_rotated(dtype: torch.dtype, qk_norm: str) -> None:
    """In bfloat16 the kernel read the float32 that such a norm gives as bfloat16."""
    rotary = RotaryConfig(size=8, base=100.0)
    norm = NormConfig(kind="layer", epsilon=1e-5, weight=True)
    attention = attention_of(Rotary(rotary), n_head=4, n_kv_heads=2, head_size=8, norm=norm, qk_norm=qk_norm, rotary=rotary)
    assert_projects_by_kernel(dtype, attention, 9)


@torch.inference_mode()
def assert_projects_by_kernel(dtype: torch.dtype, attention: Attention, rows: int) -> None:
    """The kernel gives what the plain layers give, and a row alone what it gives among others."""
    attention.qkv.to(dtype)
    x = drawn(rows, 16).to(dtype)
    rotary = Rotary(attention.config.rotary)
    rotary.reserve(64, x.device)
    cos_sin = rotary.at(torch.arange(rows).flip(0))
    by_kernel = fused(attention, dtype)
    # Rows of a plain linear layer may differ in a batch; what is tested here comes after it.
    projected = attention.qkv(x)
    made = {}
    for name, module in (("plain", attention), ("kernel", by_kernel)):
        module.qkv = nn.Identity()
        made[name] = module.project(projected.clone(), cos_sin)
    for plain, kernel in zip(made["plain"], made["kernel"], strict=True):
        assert_close(kernel, plain, dtype)
    last = tuple(angles[rows - 1 :] for angles in cos_sin)
    for alone, together in zip(by_kernel.project(projected[rows - 1 :].clone(), last), made["kernel"], strict=True):
        assert torch.equal(alone, together[rows - 1 :])
