"""What a user would lose: a row's bits, when the layers under it notice how many rows there are."""

from __future__ import annotations

import math

import plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import need_packed
from torch import Tensor, nn

from gptsweep.kernels import onednn
from gptsweep.kernels import runtime as kernels
from gptsweep.kernels.abi import GELU, GELU_TANH, NARROW_ROWS, NO_ACTIVATION, RELU_SQUARED
from gptsweep.models.gpt2 import GPT, GPTConfig
from gptsweep.models.linear import Int8Gemm, Int8Linear, Int8OneDnn, OneDnn, PackedLinear, can_pack, pack, row_invariant
from gptsweep.models.loading import layer_kinds

SHAPES = [(64, 192), (48, 37), (33, 65), (768, 2304), (3072, 768)]
ROWS = 300


def linear(n_in: int, n_out: int, dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    generator = torch.Generator().manual_seed(n_in * n_out)
    layer = nn.Linear(n_in, n_out, bias=bias)
    for parameter in layer.parameters():
        parameter.data.normal_(0, 0.1, generator=generator)
    return layer.to(dtype).requires_grad_(False)


def inputs(n: int, width: int) -> Tensor:
    # Heavy tails and rows of very different size, as in the residual stream.
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(n + width))
    return x * torch.logspace(-2, 1, n)[:, None] * (1 + 20 * (torch.arange(width) % 31 == 7))


LAYERS = {
    "float32": (PackedLinear, torch.float32),
    "bfloat16": (PackedLinear, torch.bfloat16),
    "float16": (PackedLinear, torch.float16),
    "int8": (Int8Linear, torch.float32),
}
KINDS = pytest.mark.parametrize("kind", LAYERS)


def made(kind: str, layer: nn.Linear, gelu: nn.GELU | None = None) -> PackedLinear | Int8Linear:
    packed, dtype = LAYERS[kind]
    need_packed(kind)
    return packed(layer.to(dtype), gelu)


SOME = (1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 129, 191, 200, 257, 300)


@KINDS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.inference_mode()
def test_a_row_has_the_same_bits_among_any_number_of_rows(kind: str, shape: tuple[int, int]) -> None:
    layer, x = made(kind, linear(*shape)), inputs(ROWS, shape[0])
    whole = layer(x)
    counts = SOME if shape[0] > 500 else range(1, ROWS + 1)
    assert [count for count in counts if not torch.equal(layer(x[:count]), whole[:count])] == []
    # Not only the first rows: each alone, and from the middle.
    assert [i for i in range(0, ROWS, 13) if not torch.equal(layer(x[i : i + 1]), whole[i : i + 1])] == []
    assert torch.equal(layer(x[101:240]), whole[101:240])


@KINDS
@pytest.mark.parametrize("shape", [(48, 37), (768, 2304)], ids=str)
@pytest.mark.usefixtures("threads")
@torch.inference_mode()
def test_two_threads_give_the_bits_of_one(kind: str, shape: tuple[int, int]) -> None:
    layer, x = made(kind, linear(*shape)), inputs(ROWS, shape[0])
    torch.set_num_threads(1)
    whole = layer(x)
    torch.set_num_threads(2)
    assert [count for count in (1, 2, 17, 64, 129, 300) if not torch.equal(layer(x[:count]), whole[:count])] == []


@KINDS
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.usefixtures("threads")
@torch.inference_mode()
def test_so_it_has_with_gelu_behind_the_layer(kind: str, approximate: str) -> None:
    # A width that fills no vector, so that rows begin and end anywhere in one.
    layer, x = made(kind, linear(48, 131), nn.GELU(approximate)), inputs(ROWS, 48)
    torch.set_num_threads(1)
    whole = layer(x)
    assert [count for count in range(1, ROWS + 1) if not torch.equal(layer(x[:count]), whole[:count])] == []
    assert [i for i in range(ROWS) if not torch.equal(layer(x[i : i + 1]), whole[i : i + 1])] == []
    torch.set_num_threads(2)
    assert torch.equal(layer(x), whole)


@KINDS
@torch.inference_mode()
def test_rows_that_are_parts_of_wider_ones_have_their_own_bits(kind: str) -> None:
    """A copy of them that was freed before the kernel read it had other numbers at its beginning."""
    layer, wide = made(kind, linear(33, 48)), inputs(64, 96).to(LAYERS[kind][1])
    for count in (1, 2, 3, 7, 16, 64):
        assert torch.equal(layer(wide[:count, :33]), layer(wide[:count, :33].contiguous()))


@KINDS
@torch.inference_mode()
def test_a_prompts_many_rows_have_the_bits_of_few(kind: str) -> None:
    layer, x = made(kind, linear(96, 288)), inputs(2048, 96)
    whole = layer(x)
    for count in (700, 1024, 1025, 2047):
        assert torch.equal(layer(x[:count]), whole[:count])
    assert torch.equal(layer(x[2000:2001]), whole[2000:2001])


@pytest.mark.parametrize(("kind", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2), ("float16", 2e-3)])
@pytest.mark.parametrize("approximate", ["none", "tanh", None])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_packed_layers_with_gelu_fused_are_torchs(kind: str, tolerance: float, approximate: str | None, bias: bool) -> None:
    layer, x = linear(96, 130, bias=bias), inputs(33, 96).clamp(-5, 5)
    gelu = None if approximate is None else nn.GELU(approximate)
    dtype = LAYERS[kind][1]
    rounded = nn.functional.linear(
        x.to(dtype).double(), layer.weight.to(dtype).double(), layer.bias.to(dtype).double() if bias else None
    )
    wanted = rounded if gelu is None else gelu(rounded)
    got = made(kind, layer, gelu)(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


@torch.inference_mode()
def test_exact_and_tanh_gelu_are_told_apart() -> None:
    layer, x = linear(64, 64), inputs(40, 64).clamp(-3, 3)
    exact, tanh = (made("float32", layer, nn.GELU(name))(x) for name in ("none", "tanh"))
    assert 1e-5 < (exact - tanh).abs().max() < 1e-2


@pytest.mark.parametrize("approximate", ["none", "tanh", None])
@torch.inference_mode()
def test_int8_layers_are_near_and_every_row_has_its_own_scale(approximate: str | None) -> None:
    layer, x = linear(256, 130), torch.randn(33, 256, generator=torch.Generator().manual_seed(0))
    gelu = None if approximate is None else nn.GELU(approximate)
    wanted = layer(x) if gelu is None else gelu(layer(x))
    packed = made("int8", layer, gelu)
    assert (packed(x) - wanted).pow(2).mean().sqrt() < 0.02 * wanted.std()
    loud = torch.cat([x, x[:1] * 1e4])
    assert torch.equal(packed(loud)[:33], packed(x))
    assert torch.isfinite(packed(torch.zeros(2, 256))).all()


def worst_int8(n_in: int, n_out: int) -> tuple[nn.Linear, Tensor]:
    """Weights and inputs that are all 1 or -1 once quantised as far as int8 goes: in turn, in pairs, and at random."""
    layer = linear(n_in, n_out)
    layer.weight.data = layer.weight.data.sign()
    layer.weight.data[: n_out // 2] = 1
    x = torch.randn(20, n_in, generator=torch.Generator().manual_seed(1)).sign()
    x[0], x[1], x[2, ::2], x[3, 2::4], x[3, 3::4] = 1, -1, -1, -1, -1
    return layer, x


@pytest.mark.parametrize("shape", [(64, 64), *SHAPES], ids=str)
@torch.inference_mode()
def test_int8_sums_are_exact_at_the_greatest_numbers(shape: tuple[int, int]) -> None:
    """CPUs without VNNI cut sums of pairs off at 16 bits: all ones of 64 x 64 gave 0.5 instead of 64."""
    layer, x = worst_int8(*shape)
    packed = made("int8", layer)
    torch.testing.assert_close(packed(x), layer.double()(x.double()).float(), rtol=1e-5, atol=1e-5 * shape[0])
    assert torch.equal(packed(x[5:6]), packed(x)[5:6])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 80),
    n_in=st.integers(1, 200),
    n_out=st.integers(1, 200),
    bias=st.booleans(),
    activation=st.sampled_from([NO_ACTIVATION, GELU, GELU_TANH, RELU_SQUARED]),
    greatest=st.booleans(),
    seed=st.integers(0, 2**32),
)
@torch.inference_mode()
def test_the_int8_gemm_has_the_bits_of_onednns_layer_with_vnni(
    rows: int, n_in: int, n_out: int, bias: bool, activation: int, greatest: bool, seed: int
) -> None:
    """So that a CPU without VNNI gives the samples of one with it."""
    generator = torch.Generator().manual_seed(seed)
    made("int8", linear(8, 8))  # or skip
    x = torch.randn(rows, n_in, generator=generator)
    weight = torch.randint(-128, 128, (n_out, n_in), dtype=torch.int8, generator=generator)
    if greatest:
        x, weight = x.sign(), torch.where(weight < 0, -128, 127).to(torch.int8)
        x[0], weight[0] = -1, -128
    layer = (weight, torch.rand(n_out, generator=generator), torch.randn(n_out, generator=generator) if bias else None)
    sums, scales = plain.int8_sums(x, weight)
    scaled = sums.float() * layer[1]
    got = Int8Gemm(*layer, activation)(x)
    with_vnni = Int8OneDnn(*layer, activation)
    with_vnni.sums = lambda _rows: scaled.clone()  # type: ignore[method-assign]
    assert torch.equal(got, with_vnni(x))
    if not bias and activation == NO_ACTIVATION:
        assert torch.equal(got, scaled * scales)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("threads")
@torch.inference_mode()
def test_the_int8_gemm_is_its_plain_twin_for_few_rows_and_many(shape: tuple[int, int]) -> None:
    made("int8", linear(8, 8))  # or skip
    x, weight = inputs(ROWS, shape[0]), linear(*shape).weight.mul(300).round().clamp(-127, 127).to(torch.int8)
    gemm = Int8Gemm(weight, torch.linspace(1, 2, shape[1]), None, NO_ACTIVATION)
    assert gemm.packed.nbytes <= (shape[0] + 1) * (shape[1] + 15), "a byte a weight"
    sums, scales = plain.int8_sums(x, weight)
    wanted = sums.float() * gemm.scales * scales
    for threads, count in ((1, 1), (2, 1), (2, 7), (1, 36), (2, 37), (2, 73), (1, ROWS), (2, ROWS)):
        torch.set_num_threads(threads)
        assert torch.equal(gemm(x[:count]), wanted[:count])


def test_int8_is_exact_where_onednn_cuts_its_sums_off(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = worst_int8(43, 29)  # a shape that nothing else tries
    made("int8", linear(8, 8))  # or skip
    monkeypatch.setattr(Int8OneDnn, "sums", lambda self, rows: torch.full((len(rows), len(self.scales)), 32767.0))
    packed = Int8Linear(layer)
    assert isinstance(packed.multiply, Int8Gemm)
    torch.testing.assert_close(packed(x), layer.double()(x.double()).float(), rtol=1e-5, atol=1e-5)


def bf16_gemm(layer: nn.Linear) -> tuple[onednn.Bf16Gemm, OneDnn]:
    """The kernel ``linear`` and oneDNN alone, for one layer."""
    need_packed("bfloat16")
    if not onednn.has_layers(torch.bfloat16):
        pytest.skip("oneDNN has no bfloat16 layers for this CPU")
    alone = OneDnn(layer.weight, layer.bias, None)
    gemm, alone.gemm = alone.gemm, None
    if gemm is None:
        pytest.skip("oneDNN's sums cannot be repeated on this CPU")
    return gemm, alone


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, ROWS),
    n_in=st.sampled_from([32, 96, 512, 544, 768, 1056, 3072]),
    n_out=st.integers(1, 200),
    bias=st.booleans(),
)
@torch.inference_mode()
def test_the_bf16_gemm_has_the_bits_of_onednns(rows: int, n_in: int, n_out: int, bias: bool) -> None:
    gemm, onednns = bf16_gemm(linear(n_in, n_out, torch.bfloat16, bias))
    x = inputs(rows, n_in).bfloat16()
    assert torch.equal(gemm(x), onednns(x))


@torch.inference_mode()
def test_the_bf16_gemm_is_its_plain_twin() -> None:
    layer, x = linear(608, 70, torch.bfloat16), inputs(27, 608).bfloat16()
    # Great numbers that cancel, so that every rounding before the last shows.
    x[:, [0, -1]] = layer.weight[:, 0] = 2.0**11
    layer.weight[:, -1] = -(2.0**11)
    gemm, _ = bf16_gemm(layer)
    together = onednn._summed_together(608)
    wanted = plain.bfloat16_product(x, layer.weight, layer.bias, together)
    assert torch.equal(gemm(x), wanted)
    # The order tells: sums in another are not the same bits.
    assert not torch.equal(plain.bfloat16_product(x, layer.weight, layer.bias, together // 2), wanted)


@pytest.mark.parametrize("reported", [None, 0, 2 * 46 * 128 - 1])
@torch.inference_mode()
def test_the_bf16_gemm_never_reads_beyond_the_packed_weights(reported: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer that may be smaller than the layout is oneDNN's alone to read."""
    monkeypatch.setattr(onednn, "packed_bytes", lambda _packed: reported)
    packed = torch.zeros(1)
    with pytest.raises(ValueError, match=f"the packed weights are {reported} bytes, and 11776 would be read"):
        onednn.Bf16Gemm(torch.Size([65, 46]), packed, None, 512)
    if onednn.has_layers(torch.bfloat16):
        layer = linear(46, 65, torch.bfloat16)
        assert OneDnn(layer.weight, layer.bias, None).gemm is None


def tiles(monkeypatch: pytest.MonkeyPatch, longest: int) -> None:
    """oneDNN as it is with AMX: few rows have another order of sums, and so have long sums on several threads."""

    def linear(rows: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
        threads = torch.get_num_threads()
        other = len(rows) not in onednn.InBatches.ROWS or (threads > 1 and packed.shape[1] > longest)
        sums = nn.functional.linear(rows.double(), packed.double(), None if bias is None else bias.double())
        return (sums + 1.0 * threads if other else sums).to(rows.dtype)

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(onednn, "has_layers", lambda dtype: True)
    monkeypatch.setattr(onednn, "pack", lambda weight: weight)
    monkeypatch.setattr(onednn, "linear", linear)
    monkeypatch.setattr(
        onednn, "linear_added", lambda rows, packed, total: (linear(rows, packed) + total.double()).to(rows.dtype)
    )
    monkeypatch.setattr(onednn, "_invariant_slices", onednn._invariant_slices.__wrapped__)


@torch.inference_mode()
def test_layers_that_are_multiplied_in_float32_need_no_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with AMX whose instructions ONEDNN_MAX_CPU_ISA limits has no bfloat16 layers to try."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(onednn, "has_layers", lambda dtype: dtype == torch.float32)
    monkeypatch.setattr(onednn, "_invariant_slices", None)
    assert layer_kinds(nn.Sequential(PackedLinear(linear(60, 37, torch.bfloat16)))) == ["PackedLinear in float32"]


@pytest.mark.parametrize(("longest", "slices"), [(100, 1), (40, 2), (15, 4), (1, None)])
@pytest.mark.usefixtures("threads")
@torch.inference_mode()
def test_where_sums_depend_on_the_number_of_rows_a_row_has_its_bits_in_any_batch(
    longest: int, slices: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    tiles(monkeypatch, longest)
    layer, x = linear(60, 37, torch.bfloat16), inputs(ROWS, 60).bfloat16()
    made = onednn.InBatches.of(layer.weight, layer.bias)
    if slices is None:
        assert made is None, "nothing helps, and nothing is promised"
        return
    assert made is not None
    assert [n_in for n_in, _ in made.slices] == [60 // slices] * slices
    whole = PackedLinear(layer)(x)
    wanted = layer.float()(x.float())
    assert ((whole.float() - wanted).abs() < 2**-6 * wanted.abs().amax(1, keepdim=True)).all()
    for count in (1, 31, 32, 33, 64, 127, 129, 256, ROWS):
        assert torch.equal(made(x[:count]), whole[:count])
    torch.set_num_threads(1)
    assert torch.equal(made(x), whole)
    assert torch.equal(PackedLinear(layer.bfloat16())(x), whole), "packed on one thread"
    assert layer_kinds(nn.Sequential(PackedLinear(layer))) == [f"PackedLinear in batches of {slices} slices"]


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, ROWS),
    n_in=st.one_of(st.integers(1, 200), st.sampled_from([768, 1025, 1536, 3072])),
    n_out=st.integers(2, 200),
    bias=st.booleans(),
    seed=st.integers(0, 2**32),
    groups=st.sampled_from([1, 2, 7]),
)
@torch.inference_mode()
def test_the_float_gemm_has_the_bits_of_onednns(rows: int, n_in: int, n_out: int, bias: bool, seed: int, groups: int) -> None:
    """So that a CPU without AVX-512 gives the samples that it gave before it had the kernel."""
    need_packed("float32")
    summed = onednn._float_sums(n_out, n_in)
    if summed is None:
        pytest.skip("oneDNN's sums cannot be repeated on this CPU")
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(rows, n_in, generator=generator), torch.randn(n_out, n_in, generator=generator)
    offsets = torch.randn(n_out, generator=generator) if bias else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn.FloatGemm, "_groups", lambda _self, n_rows: min(groups, -(-n_rows // NARROW_ROWS)))
        assert torch.equal(onednn.FloatGemm(weight, offsets, summed)(x), OneDnn(weight, offsets, None)(x))
        half, narrow = weight.bfloat16(), x.bfloat16()
        wanted = OneDnn(half.float(), offsets, None)(narrow.float()).bfloat16()
        assert torch.equal(onednn.FloatGemm(half, offsets, summed)(narrow), wanted)


@pytest.mark.parametrize("activation", [GELU, GELU_TANH, RELU_SQUARED])
@torch.inference_mode()
def test_the_float_gemm_applies_an_activation_in_bfloat16_as_the_kernel_that_does_nothing_else(activation: int) -> None:
    need_packed("float32")
    activate = kernels.Kernel("activate", torch.bfloat16)
    for n_out in (3, 16, 130):
        layer, x = linear(96, n_out, torch.bfloat16), 3 * inputs(33, 96).bfloat16()
        wanted = onednn.FloatGemm(layer.weight, layer.bias.float(), 512)(x)
        activate(activation=activation, n_numbers=wanted.numel(), chunk=1, y=wanted.data_ptr())
        assert torch.equal(onednn.FloatGemm(layer.weight, layer.bias.float(), 512, activation)(x), wanted)


@pytest.mark.parametrize(("activation", "gelu"), [(GELU, nn.GELU()), (GELU_TANH, nn.GELU("tanh"))])
@pytest.mark.usefixtures("threads")
@torch.inference_mode()
def test_the_float_gemms_gelu_has_the_bits_of_onednns_for_all_numbers(activation: int, gelu: nn.GELU) -> None:
    need_packed("float32")
    if not onednn._gelu_is_the_fused_one(activation, 130, 96, 512):
        pytest.skip("GELU stays fused on this CPU")
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0, -1.0]
    drawn = torch.randint(-(2**31), 2**31, (3000,), generator=torch.Generator().manual_seed(0)).int().view(torch.float32)
    numbers = torch.cat([torch.tensor(special), drawn, torch.linspace(-10, 10, 3000)])
    ones, zeros = torch.ones(131, 1), torch.zeros(len(numbers), 1)
    # The numbers are rows of one input with weights of 1, and then biases.
    cases = [(numbers[:, None], ones[:width], None) for width in (2, 9, 131)] + [(zeros[:3], zeros, numbers)]
    for rows, weight, bias in cases:
        wanted, gemm = OneDnn(weight, bias, gelu)(rows), onednn.FloatGemm(weight, bias, 512, activation)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(gemm(rows).view(torch.int32), wanted.view(torch.int32))
    with torch.inference_mode(False):
        assert torch.equal(gemm(rows).view(torch.int32), wanted.view(torch.int32))
    assert gemm(rows[:0]).shape == (0, len(numbers))


@pytest.mark.parametrize("kind", ["float32", "float16"])
@pytest.mark.parametrize("gelu", [nn.GELU(), nn.GELU("tanh")], ids=str)
@torch.inference_mode()
def test_a_layer_has_the_same_bits_where_gelu_stays_fused(kind: str, gelu: nn.GELU, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = linear(96, 130, LAYERS[kind][1]), inputs(33, 96).to(LAYERS[kind][1])
    found = made(kind, layer, gelu)(x)
    monkeypatch.setattr(onednn, "_gelu_is_the_fused_one", lambda *_: False)
    slow = made(kind, layer, gelu)
    assert isinstance(slow.multiply, OneDnn)
    assert torch.equal(slow(x), found)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@torch.inference_mode()
def test_results_of_any_size_have_the_same_bits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones are in memory of numpy's."""
    layer, x = made(kind, linear(48, 37, LAYERS[kind][1])), inputs(33, 48).to(LAYERS[kind][1])
    found = layer(x)
    monkeypatch.setattr(onednn, "_KEPT_BY_MALLOC", 0)
    large = layer(x)
    assert (large.dtype, large.shape) == (found.dtype, found.shape)
    assert torch.equal(large, found)


def test_all_threads_have_work_and_weights_are_read_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    need_packed("float32")
    gemm = onednn.FloatGemm(torch.ones(768, 2), None, 512)
    for threads, groups in ((2, [0, 1, 1, 1, 4]), (64, [0, 1, 1, 4, 6])):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert [gemm._groups(rows) for rows in (0, 1, 72, 256, 1024)] == groups


@pytest.mark.usefixtures("threads")
@torch.inference_mode()
def test_the_float_gemm_is_its_plain_twin() -> None:
    need_packed("float32")
    layer, x = linear(300, 40, torch.bfloat16), inputs(80, 300).bfloat16()
    x[:, [0, -1]] = layer.weight[:, 0] = 2.0**11
    layer.weight[:, -1] = -(2.0**11)
    wanted = plain.float_product(x, layer.weight, layer.bias.float(), 128)
    for dtype in (torch.float32, torch.bfloat16):
        gemm = onednn.FloatGemm(layer.weight.to(dtype), layer.bias.float(), 128)
        for threads, count in ((1, 1), (2, 1), (2, 7), (1, 72), (2, 73), (1, 80), (2, 80)):
            torch.set_num_threads(threads)
            assert torch.equal(gemm(x[:count].to(dtype)), wanted[:count].to(dtype))
        assert gemm.packed.nbytes == 48 * 300 * dtype.itemsize
    # The order tells: sums in another are not the same bits.
    assert not torch.equal(plain.float_product(x, layer.weight, layer.bias.float(), 64), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@torch.inference_mode()
def test_a_layer_has_the_same_bits_where_onednns_sums_are_unknown(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = linear(96, 130, dtype), inputs(33, 96).to(dtype)
    found = PackedLinear(layer)(x)
    monkeypatch.setattr(onednn, "_float_sums", lambda _n_out, _n_in: None)
    slow = PackedLinear(layer)
    assert isinstance(slow.multiply, OneDnn)
    assert torch.equal(slow(x), found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_size_of_packed_weights_is_that_of_whole_blocks_and_unknown_of_anything_else(dtype: str) -> None:
    if not onednn.has_layers(LAYERS[dtype][1]):
        pytest.skip(f"oneDNN has no {dtype} layers for this CPU")
    for n_in, n_out in SHAPES:
        weight = linear(n_in, n_out, LAYERS[dtype][1]).weight
        found = onednn.packed_bytes(onednn.pack(weight.detach()))
        assert found is not None
        assert found >= weight.nbytes
    assert onednn.packed_bytes(torch.zeros(3)) is None


WIDENED = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@pytest.fixture
def no_layers_of_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU for which oneDNN has float32's layers alone."""
    monkeypatch.setattr(onednn, "has_layers", lambda dtype: dtype == torch.float32)


@WIDENED
@pytest.mark.parametrize("activation", [None, nn.GELU("tanh"), nn.GELU("none")], ids=str)
@pytest.mark.usefixtures("no_layers_of_16_bits")
@torch.inference_mode()
def test_a_cpu_without_layers_of_16_bits_rounds_float32s_sums_once(dtype: torch.dtype, activation: nn.GELU | None) -> None:
    layer, x = linear(96, 130, dtype), inputs(33, 96).clamp(-5, 5).to(dtype)
    wanted = layer.double()(x.double())
    packed = PackedLinear(layer.to(dtype), activation)
    assert (packed.dtype, packed.multiplied_in) == (dtype, torch.float32)
    assert not isinstance(packed.multiply, OneDnn) or packed.multiply.gemm is None
    y = packed(x)
    assert y.dtype == dtype
    eps = torch.finfo(dtype).eps
    if activation is None:
        torch.testing.assert_close(y.double(), wanted, rtol=0.51 * eps, atol=1e-4)
    else:
        torch.testing.assert_close(
            y.double(), activation(wanted), rtol=1.1 * eps, atol=0.02 if dtype == torch.bfloat16 else 2e-3
        )
    assert [i for i in range(33) if not torch.equal(packed(x[i : i + 1]), y[i : i + 1])] == []


@WIDENED
@pytest.mark.usefixtures("no_layers_of_16_bits")
def test_a_model_of_widened_layers_keeps_the_promise_and_says_what_it_has(dtype: torch.dtype) -> None:
    model = plain.peaked_gpt(GPTConfig(block_size=8, vocab_size=67, n_layer=1, n_head=2, n_embd=32), dtype=dtype)
    assert can_pack(dtype)
    pack(model)
    assert row_invariant(model)
    assert layer_kinds(model) == ["PackedLinear in float32"]


def test_which_gemm_is_faster_does_not_matter_to_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = made("bfloat16", linear(96, 130), nn.GELU("tanh")), inputs(33, 96)
    found = []
    for faster in (True, False):
        monkeypatch.setattr(onednn, "gemm_is_faster", lambda faster=faster: faster)
        found.append(layer(x))
    assert torch.equal(*found)


@KINDS
def test_a_packed_model_says_that_it_is_row_invariant(kind: str) -> None:
    config = GPTConfig(block_size=8, vocab_size=67, n_layer=1, n_head=2, n_embd=32)
    packed, dtype = LAYERS[kind]
    model = plain.peaked_gpt(config, dtype=dtype)
    assert not row_invariant(model)
    need_packed(kind)
    pack(model, packed)
    assert row_invariant(model)


def test_a_layer_that_notices_its_company_is_found_out() -> None:
    model = plain.peaked_gpt(GPTConfig(block_size=8, vocab_size=67, n_layer=1, n_head=2, n_embd=32))
    pack(model)

    class Noticing(PackedLinear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 + 1e-6 * (len(x) < 4))

    for name in ("c_attn", "c_proj"):
        found = getattr(model.blocks[0].attn, name)
        found.__class__ = Noticing
        assert not row_invariant(model)
        found.__class__ = PackedLinear
    assert row_invariant(model)
    model.lm_head.__class__ = Noticing
    assert not row_invariant(model)


def test_packing_twice_is_refused() -> None:
    model = GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=8)).requires_grad_(False)
    pack(model)
    with pytest.raises(TypeError, match="PackedLinear is not a linear layer"):
        pack(model)
