"""What a user of llm.c would lose: its checkpoints in float32 and bfloat16, and one line for a file that is none."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeps import Run, samples_of
from test_checkpoint import user_error
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import gptsweep
from gptsweep.models.registry import open_checkpoint
from gptsweep.records import ModelSource

VOCAB, PADDED, CONTEXT = 50257, 50304, 24
KINDS = (
    *("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias"),
    *("ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
)
"""The weights of a layer, in the order of llm.c's file: each stands there for all layers, then the next."""


def small_gpt2(n_layer: int = 2, n_embd: int = 12, seed: int = 0) -> GPT2LMHeadModel:
    """transformers' GPT-2 with few and random weights, whose logits have a standard deviation of a few."""
    sizes = {"n_positions": CONTEXT, "n_layer": n_layer, "n_head": 2, "n_embd": n_embd, "vocab_size": VOCAB}
    model = GPT2LMHeadModel(GPT2Config(**sizes, attn_implementation="eager")).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.5, generator=generator)
    return model


def save(path: Path, model: GPT2LMHeadModel, version: int = 3, padding: float = 0.0) -> Path:
    """``model`` as llm.c writes it: a header of 256 int32, then all weights as ``[out, in]``, in the dtype of ``version``."""
    state, config = model.transformer.state_dict(), model.config
    dtype = {3: torch.float32, 5: torch.bfloat16}[version]

    def raw(weight: Tensor) -> bytes:
        return weight.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()

    header = [20240326, version, config.n_positions, VOCAB, config.n_layer, config.n_head, config.n_embd, PADDED]
    parts = [struct.pack("<256i", *header, *[0] * 248), raw(state["wte.weight"])]
    parts += [raw(torch.full((PADDED - VOCAB, config.n_embd), padding)), raw(state["wpe.weight"])]
    for kind in KINDS:
        is_conv = kind.startswith(("attn", "mlp")) and kind.endswith("weight")  # transformers has these as [in, out]
        for layer in range(config.n_layer):
            weight = state[f"h.{layer}.{kind}"]
            parts.append(raw(weight.t() if is_conv else weight))
    path.write_bytes(b"".join([*parts, raw(state["ln_f.weight"]), raw(state["ln_f.bias"])]))
    return path


@pytest.mark.parametrize("version", [3, 5])
def test_a_checkpoint_of_llm_c_gives_transformers_logits_and_greedy_tokens(version: int, tmp_path: Path) -> None:
    theirs = small_gpt2()
    path = save(tmp_path / "gpt2_tiny.bin", theirs, version, padding=100.0)  # rows that are no tokens are never looked at
    if version == 5:
        for parameter in theirs.parameters():
            parameter.copy_(parameter.bfloat16())
    lm = gptsweep.load(path, device="cpu", dtype="float32")
    assert (lm.source.name, lm.backend.vocab_size, lm.backend.block_size) == ("llmc", VOCAB, CONTEXT)
    prompt = "Once upon a time, far away"
    ids = torch.tensor([lm.tokenizer.encode(prompt)])
    with torch.inference_mode():
        wanted = theirs(ids).logits
        assert wanted.std() > 1
        assert (lm.model(ids) - wanted).abs().max() < 1e-4
        tokens = theirs.generate(ids, do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0)
    (sample,) = lm.generate(prompt, temperature=0, max_new_tokens=12)
    assert list(sample.token_ids) == tokens[0, ids.shape[1] :].tolist()


def test_a_sweep_over_checkpoints_of_a_training(run: Run) -> None:
    Path("log").mkdir()
    for seed in range(2):
        save(Path(f"log/model_0000000{seed}.bin"), small_gpt2(1, 4, seed))
    small = ("name=s", "quiet=true", "sampling.num_samples=1", "sampling.max_new_tokens=3", "start=a", "seed=1,2")
    ended = run("-m", "model=llmc", "model.path=log/model_00000000.bin,log/model_00000001.bin", *small)
    assert ended.status == 0, ended.err
    found = gptsweep.read_sweep("outputs/sweeps/s")
    assert found.swept == ("path", "seed")
    assert len(samples_of(Path("outputs/sweeps/s"))) == 4
    ended = run("model=llmc", "model.path=log", "name=r")
    assert ended.status == 2
    assert (
        "model.path=log: is a directory; give a .bin that llm.c wrote, such as model_00000000.bin, model_00000001.bin"
        in ended.err
    )
    assert "model.path=x.bin: no such file in " in run("model=llmc", "model.path=x.bin", "name=r").err


# -- damaged files -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("tiny") / "tiny.bin", small_gpt2(1, 2), version=5)


def refused(path: Path, content: bytes, **header: int) -> str:
    """The error for a file; ``header`` replaces its numbers: ``at_2`` the third."""
    changed = bytearray(content)
    for name, number in header.items():
        struct.pack_into("<i", changed, 4 * int(name.removeprefix("at_")), number)
    path.write_bytes(changed)
    line = user_error(lambda: open_checkpoint(ModelSource(name="llmc", path=str(path))))
    assert len(line) < 1000
    return line


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"at_0": 20240803}, "does not begin with the number 20240326 of llm.c's GPT-2 checkpoints, but with 20240803"),
        ({"at_1": 2}, "has version 2, but gptsweep reads 3 (float32) and 5 (bfloat16)"),
        ({"at_1": 3}, "bytes, but its header implies 403,960: it is truncated"),
        ({"at_2": 0}, "is damaged: in its header, block_size is 0"),
        ({"at_2": 23}, "but its header implies 202,488: it is damaged"),
        ({"at_3": 50000}, "has a vocabulary of 50000 tokens, but GPT-2's encoding has 50257"),
        ({"at_4": 2**31 - 1}, "is damaged: its header has 2147483647 layers"),
        ({"at_4": 10_000, "at_6": 2**31 - 2}, "it is truncated"),
        ({"at_5": 3}, "n_embd is 2, but must be a multiple of n_head, 3"),
        ({"at_6": -2}, "n_embd is -2"),
        ({"at_7": 50256}, "50256 rows for 50257 tokens"),
    ],
    ids=str,
)
def test_a_header_that_cannot_be_is_refused(tmp_path: Path, tiny: Path, header: dict[str, int], says: str) -> None:
    assert says in refused(tmp_path / "x.bin", tiny.read_bytes(), **header)


@given(length=st.integers(0, 202_491) | st.integers(0, 1100), more=st.booleans())
@settings(max_examples=20)
def test_a_file_of_another_length_is_refused(tiny: Path, length: int, more: bool) -> None:
    whole = tiny.read_bytes()
    assert len(whole) == 202_492
    path = tiny.with_name("x.bin")
    assert str(path) in refused(path, whole + bytes(length + 1) if more else whole[:length])


@given(st.dictionaries(st.integers(2, 7).map("at_{}".format), st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=4))
@settings(max_examples=20)
def test_sizes_that_the_file_does_not_have_are_refused(tiny: Path, header: dict[str, int]) -> None:
    start = struct.pack("<256i", 20240326, 3, CONTEXT, VOCAB, 1, 2, 2, PADDED, *[0] * 248)
    refused(tiny.with_name("y.bin"), start + bytes(1000), **header)
