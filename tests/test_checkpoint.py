"""Models from disk: every weight in its place, the right tokenizer, and one clear line where that cannot be."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import (
    TINY,
    hf_settings,
    hf_weights,
    nanogpt_contents,
    random_gpt,
    save_embedded,
    save_hf,
    save_meta,
    save_nanogpt,
)
from safetensors.torch import save_file

from gptsweep.engine.torch_backend import TorchBackends
from gptsweep.errors import GptsweepError, ModelError
from gptsweep.models import shipping
from gptsweep.models.checkpoint import Checkpoint, load_weights
from gptsweep.models.files.byte_pairs import BytePairTokenizer, byte_alphabet
from gptsweep.models.files.embedded import open_embedded
from gptsweep.models.files.tokenizers import CharTokenizer, GPT2Tokenizer, gpt2_ranks
from gptsweep.models.files.weights import StoredTensor
from gptsweep.models.gpt2 import GPT, GPTConfig
from gptsweep.models.registry import open_checkpoint
from gptsweep.records import DeviceSettings, ModelSource

REPOSITORY = Path(__file__).parent.parent
ELEVEN = "abcdefghijk"
GPT2_SIZED = dataclasses.replace(TINY, vocab_size=50257, n_embd=2, n_layer=1)


def loaded(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> GPT:
    model = checkpoint.laid_out()
    load_weights(checkpoint, model, dtype)
    return model


def resume(out_dir: Path | str, meta: Path | str | None = None) -> Checkpoint:
    return open_checkpoint(ModelSource(name="resume", out_dir=str(out_dir), meta=None if meta is None else str(meta)))


def hf(path: Path | str) -> Checkpoint:
    return open_checkpoint(ModelSource(name="hf", path=str(path)))


def assert_same_parameters(model: GPT, expected: GPT, dtype: torch.dtype = torch.float32) -> None:
    parameters = dict(model.named_parameters())
    assert list(parameters) == [name for name, _ in expected.named_parameters()]
    for name, wanted in expected.named_parameters():
        got = parameters[name]
        kept = torch.float32 if ".ln_" in name else dtype  # layer norms compute in float32
        assert got.dtype == kept
        assert got.device.type == "cpu"
        assert got.is_contiguous()
        assert not got.requires_grad
        assert torch.equal(got, wanted.to(kept)), name


def char_out_dir(out_dir: Path, model: GPT, **settings: Any) -> Path:
    save_meta(out_dir / "meta.pkl", ELEVEN)
    return save_nanogpt(out_dir, model, **settings)


def user_error(call: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.exit_status == 2
    return line


# --- nanoGPT --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("block_size", "vocab_size"), [(1, 11), (1000, 64)])
def test_a_nanogpt_checkpoint_loads_whole(
    tmp_path: Path, prefix: str, bias: bool, tied: bool, block_size: int, vocab_size: int
) -> None:
    config = GPTConfig(block_size=block_size, vocab_size=vocab_size, n_layer=3, n_head=3, n_embd=12, bias=bias, tied_head=tied)
    model = random_gpt(config)
    checkpoint = resume(char_out_dir(tmp_path, model, prefix=prefix))
    assert checkpoint.config == config
    got = loaded(checkpoint)
    assert_same_parameters(got, model)
    assert (got.lm_head.weight is got.transformer.wte.weight) == tied
    ids = torch.tensor([[5] * block_size])
    with torch.no_grad():
        assert torch.equal(got(ids), model(ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_arrive_in_the_wanted_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    model = random_gpt()
    assert_same_parameters(loaded(resume(char_out_dir(tmp_path, model)), dtype), model, dtype)


def test_a_checkpoint_saved_on_a_gpu_loads_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_gpt()
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        char_out_dir(tmp_path, model)
    assert b"cuda:0" in (tmp_path / "ckpt.pt").read_bytes()
    assert_same_parameters(loaded(resume(tmp_path)), model)


def test_a_cropped_position_table_loads_what_was_kept(tmp_path: Path) -> None:
    """nanoGPT's crop_block_size leaves a view of the longer table."""
    model = random_gpt(dataclasses.replace(TINY, block_size=20))
    contents = nanogpt_contents(model)
    contents["model"]["transformer.wpe.weight"] = model.transformer.wpe.weight[3:8]
    contents["model_args"]["block_size"] = 5
    save_meta(tmp_path / "meta.pkl", ELEVEN)
    torch.save(contents, tmp_path / "ckpt.pt")
    assert torch.equal(loaded(resume(tmp_path)).transformer.wpe.weight, model.transformer.wpe.weight[3:8])


def test_weights_saved_as_views_of_any_layout_load(tmp_path: Path) -> None:
    model = random_gpt()
    contents = nanogpt_contents(model)
    for name, tensor in contents["model"].items():
        if tensor.dim() == 2 and "wte" not in name and "lm_head" not in name:
            contents["model"][name] = torch.cat([tensor, tensor], dim=1)[:, : tensor.shape[1]].t().contiguous().t()
    save_meta(tmp_path / "meta.pkl", ELEVEN)
    torch.save(contents, tmp_path / "ckpt.pt")
    assert_same_parameters(loaded(resume(tmp_path)), model)


def test_a_head_stored_apart_with_equal_values_is_tied_again(tmp_path: Path) -> None:
    model = random_gpt()
    contents = nanogpt_contents(model)
    contents["model"]["lm_head.weight"] = contents["model"]["lm_head.weight"].clone()
    save_meta(tmp_path / "meta.pkl", ELEVEN)
    torch.save(contents, tmp_path / "ckpt.pt")
    assert resume(tmp_path).config.tied_head


def test_attention_masks_of_old_checkpoints_are_left_out(tmp_path: Path) -> None:
    model = random_gpt()
    contents = nanogpt_contents(model)
    contents["model"] |= {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 7, 7) for layer in range(2)}
    save_meta(tmp_path / "meta.pkl", ELEVEN)
    torch.save(contents, tmp_path / "ckpt.pt")
    assert_same_parameters(loaded(resume(tmp_path)), model)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts the bytes read as Linux reports them")
def test_the_optimizer_state_is_never_read(tmp_path: Path) -> None:
    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    model = random_gpt(dataclasses.replace(TINY, n_embd=192, vocab_size=3000))
    size = sum(4 * parameter.numel() for parameter in model.parameters())
    save_meta(tmp_path / "meta.pkl", "".join(map(chr, range(3000))))
    save_nanogpt(tmp_path, model)
    assert (tmp_path / "ckpt.pt").stat().st_size > 2.9 * size
    before = bytes_read()
    checkpoint = resume(tmp_path)
    opened = bytes_read()
    loaded(checkpoint)
    assert opened - before < 1.1 * size  # hashed once
    assert bytes_read() - opened < 1.1 * size  # loaded once


def endless() -> list[Any]:
    """A list whose `repr` has 2**60 brackets."""
    found: list[Any] = []
    for _ in range(60):
        found = [found, found]
    return found


def _without(*names: str) -> Callable[[dict[str, Any]], None]:
    def damage(contents: dict[str, Any]) -> None:
        for name in names:
            contents["model"].pop(name, None)
            contents["model_args"].pop(name, None)
            contents.pop(name, None)

    return damage


def _with_args(**args: Any) -> Callable[[dict[str, Any]], None]:
    return lambda contents: contents["model_args"].update(args)


def _with_weight(name: str, tensor: torch.Tensor) -> Callable[[dict[str, Any]], None]:
    return lambda contents: contents["model"].update({name: tensor})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_without("model"), "has no 'model' and 'model_args'"),
        (_without("model_args"), "has no 'model' and 'model_args'"),
        (_without("n_head"), "have no n_head"),
        (_with_args(n_layer=2.5), "n_layer=2.5"),
        (_with_args(block_size=True), "block_size=True"),
        (_with_args(n_head=4), "must be a multiple of n_head"),
        (_with_args(n_layer=0), "n_layer is 0"),
        (_with_args(n_layer=3), "weights are missing: transformer.h.2.ln_1.weight"),
        (_with_args(n_layer=10**9), "weights are missing: transformer.h.999999999.ln_1.weight"),
        (_with_args(n_layer=10**12), "n_layer=1000000000000, which is not a whole number below 2**31"),
        (_with_args(n_layer=1 << 10**6), "n_layer=a number of 1,000,001 bits"),
        (_with_args(n_layer=endless()), "n_layer=[[[...]"),
        (_with_args(bias=endless()), "bias=[[[...]"),
        (_with_args(n_layer=1), "does not have: transformer.h.1.ln_1.weight"),
        (_with_args(vocab_size=12), "transformer.wte.weight has the shape [11, 6]"),
        (_with_args(block_size=9), "settings imply [9, 6]"),
        (_with_args(bias=False), "does not have: transformer.h.0.ln_1.bias"),
        (_without("transformer.h.0.attn.c_attn.bias"), "weights are missing: transformer.h.0.attn.c_attn.bias"),
        (_without("transformer.wte.weight", "lm_head.weight"), "weights are missing: transformer.wte.weight"),
        (_with_weight("transformer.h.0.rotary.freqs", torch.ones(2)), "does not have: transformer.h.0.rotary.freqs"),
        (_with_weight("transformer.ln_f.weight", torch.ones(6, dtype=torch.int8)), "torch.int8"),
    ],
)
def test_a_checkpoint_that_cannot_be_sampled_from_says_why(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], says: str
) -> None:
    contents = nanogpt_contents(random_gpt())
    damage(contents)
    save_meta(tmp_path / "meta.pkl", ELEVEN)
    torch.save(contents, tmp_path / "ckpt.pt")
    line = user_error(lambda: resume(tmp_path))
    assert line.startswith(f"model.out_dir={tmp_path}")
    assert says in line


def test_a_file_that_is_no_checkpoint_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ckpt.pt"
    whole = io.BytesIO()
    torch.save(nanogpt_contents(random_gpt()), whole)
    path.write_bytes(b"")
    assert "is empty" in user_error(lambda: resume(tmp_path))
    path.write_bytes(whole.getvalue()[:1000])
    assert "is truncated" in user_error(lambda: resume(tmp_path))
    path.write_text("{}")
    assert "is not a checkpoint" in user_error(lambda: resume(tmp_path))
    torch.save([1, 2], path)
    assert "has no 'model'" in user_error(lambda: resume(tmp_path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/hello", "hello")
    assert "is damaged or not a checkpoint" in user_error(lambda: resume(tmp_path))
    path.unlink()
    path.mkdir()
    assert "Not a regular file" in user_error(lambda: resume(tmp_path))
    monkeypatch.chdir(tmp_path)
    path.rmdir()
    assert "there is no ckpt.pt in this directory; give the out_dir" in user_error(lambda: resume(tmp_path))
    save_nanogpt(tmp_path / "out-night", random_gpt())
    assert "no such directory" in user_error(lambda: resume("nowhere"))
    assert "there is one in out-night" in user_error(lambda: resume("nowhere"))
    assert "is a file, not a directory" in user_error(lambda: resume("out-night/ckpt.pt"))


def test_a_checkpoint_in_the_format_before_pytorch_1_6_loads(tmp_path: Path) -> None:
    model = random_gpt()
    save_meta(tmp_path / "meta.pkl", ELEVEN)
    torch.save(nanogpt_contents(model), tmp_path / "ckpt.pt", _use_new_zipfile_serialization=False)
    assert_same_parameters(loaded(resume(tmp_path)), model)
    whole = (tmp_path / "ckpt.pt").read_bytes()
    for cut in (len(whole) - 1, len(whole) - 500, 300, 40):
        (tmp_path / "ckpt.pt").write_bytes(whole[:cut])
        user_error(lambda: resume(tmp_path))


def test_a_checkpoint_packed_anew_loads_if_it_is_not_compressed(tmp_path: Path) -> None:
    model = random_gpt()
    char_out_dir(tmp_path, model)
    with zipfile.ZipFile(tmp_path / "ckpt.pt") as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "ckpt.pt", "w", compression) as archive:
            for name, data in reversed(entries):
                archive.writestr(name, data)
        if compression == zipfile.ZIP_STORED:
            assert_same_parameters(loaded(resume(tmp_path)), model)
        else:
            assert "was repacked and compressed" in user_error(lambda: resume(tmp_path))


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return char_out_dir(tmp_path_factory.mktemp("intact"), random_gpt())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_checkpoint_is_an_error_of_one_line_or_loads(intact: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = (intact / "ckpt.pt").read_bytes()
    pickled = whole.index(b"PK\x03\x04", 4)  # the pickle is the archive's first file, where damage does most
    place = data.draw(st.one_of(st.integers(0, pickled), st.integers(0, len(whole) - 1)))
    if data.draw(st.booleans()):
        damaged = whole[:place]
    else:
        damaged = whole[:place] + bytes([data.draw(st.integers(0, 255))]) + whole[place + 1 :]
    save_meta(tmp_path / "meta.pkl", ELEVEN)
    (tmp_path / "ckpt.pt").write_bytes(damaged)
    try:
        loaded(resume(tmp_path))
    except GptsweepError as error:
        line = str(error)
    else:
        line = ""  # the damage lies where it cannot be told: in a number, in the optimizer's state
    assert "\n" not in line


def test_a_checkpoint_replaced_by_training_is_not_loaded_half_old_half_new(tmp_path: Path) -> None:
    checkpoint = resume(char_out_dir(tmp_path, random_gpt(seed=1)))
    save_nanogpt(tmp_path, random_gpt(seed=2))
    os.utime(tmp_path / "ckpt.pt", ns=(1, 1))
    assert "was replaced while it was being read" in user_error(lambda: loaded(checkpoint))
    (tmp_path / "ckpt.pt").unlink()
    assert "cannot be read" in user_error(lambda: loaded(checkpoint))


# --- meta.pkl -------------------------------------------------------------------------------------------------------------


def test_meta_pkl_is_found_where_nanogpt_users_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_nanogpt(Path("elsewhere/out"), random_gpt(), dataset="shakespeare_char")
    places = [  # from the last place looked in to the first
        Path("elsewhere/data/shakespeare_char/meta.pkl"),
        Path("data/shakespeare_char/meta.pkl"),
        Path("elsewhere/out/meta.pkl"),
    ]
    for shift, place in enumerate(places):
        characters = ELEVEN[shift:] + ELEVEN[:shift]
        save_meta(place, characters)
        tokenizer = resume("elsewhere/out").tokenizer
        assert isinstance(tokenizer, CharTokenizer)
        assert tokenizer.decode(range(11)) == characters
    given_path = save_meta(Path("mine.pkl"), ELEVEN[::-1])
    assert resume("elsewhere/out", given_path).tokenizer.decode([0]) == "k"


def test_a_meta_pkl_that_was_asked_for_and_is_not_there_is_an_error(tmp_path: Path) -> None:
    char_out_dir(tmp_path, random_gpt())
    line = user_error(lambda: resume(tmp_path, tmp_path / "other.pkl"))
    assert line.startswith(f"model.meta={tmp_path}/other.pkl: cannot be read (No such file or directory)")


def test_without_meta_pkl_the_text_is_gpt2s_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    padded = dataclasses.replace(GPT2_SIZED, vocab_size=50304)
    checkpoint = resume(save_nanogpt(tmp_path, random_gpt(padded), dataset="openwebtext"))
    assert isinstance(checkpoint.tokenizer, GPT2Tokenizer)
    assert checkpoint.config.vocab_size == 50304
    assert checkpoint.tokenizer.vocab_size == 50257  # the padding is never sampled
    assert "no meta.pkl found" in caplog.text
    assert "data/openwebtext/meta.pkl" in caplog.text
    assert "GPT-2 encoding" in caplog.text


def test_a_character_model_without_its_meta_pkl_is_not_read_as_gpt2(tmp_path: Path) -> None:
    save_nanogpt(tmp_path, random_gpt(), dataset="shakespeare_char")
    line = user_error(lambda: resume(tmp_path))
    assert line.startswith("model.meta=null: no meta.pkl found (")
    assert "data/shakespeare_char/meta.pkl" in line


def test_a_meta_pkl_of_other_data_is_refused(tmp_path: Path) -> None:
    save_nanogpt(tmp_path, random_gpt())
    meta = save_meta(tmp_path / "meta.pkl", "abcdefghijkl")
    assert f"model.meta={meta}: has 12 characters, more than the 11" in user_error(lambda: resume(tmp_path))


@pytest.mark.parametrize("dataset", ["../secrets", "/secrets", "a/../../secrets", "..", "a\\..\\b", "", "a/", "a\nb", 7])
def test_a_dataset_name_does_not_lead_out_of_the_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    looked: list[Path] = []
    contents = nanogpt_contents(random_gpt())
    contents["config"]["dataset"] = dataset
    Path("out").mkdir()
    torch.save(contents, "out/ckpt.pt")
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: looked.append(path) or is_file(path))  # type: ignore[func-returns-value]
    user_error(lambda: resume("out"))
    assert looked == [Path("out/meta.pkl")]


# --- fingerprint ----------------------------------------------------------------------------------------------------------


def test_the_same_checkpoint_has_the_same_fingerprint_anywhere(tmp_path: Path) -> None:
    first = resume(char_out_dir(tmp_path / "a", random_gpt()))
    shutil.copytree(tmp_path / "a", tmp_path / "b/c")
    assert resume(tmp_path / "b/c").fingerprint == first.fingerprint
    assert len(first.fingerprint) == 64
    contents = nanogpt_contents(random_gpt(), prefix="_orig_mod.", dataset="other") | {"iter_num": 6, "optimizer": {}}
    torch.save(contents, tmp_path / "b/c/ckpt.pt")
    assert resume(tmp_path / "b/c").fingerprint == first.fingerprint


def test_weights_that_are_shipped_are_the_same_without_the_files_and_one_bit_of_them_shows(tmp_path: Path) -> None:
    checkpoint = resume(char_out_dir(tmp_path / "a", random_gpt()))
    wanted, fingerprint = loaded(checkpoint).state_dict(), checkpoint.fingerprint
    outline, contents = pickle.dumps(checkpoint), pickle.dumps(list(shipping.pack(checkpoint)))
    shutil.rmtree(tmp_path / "a")
    arrived = shipping.unpack(pickle.loads(outline), pickle.loads(contents))
    assert arrived.fingerprint == fingerprint
    found = loaded(arrived).state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in wanted.items())
    (damaged := pickle.loads(contents))[-1][0] ^= 1
    assert shipping.unpack(pickle.loads(outline), damaged).fingerprint != fingerprint


def test_a_model_that_was_shipped_opens_without_its_files(tmp_path: Path) -> None:
    source = ModelSource(name="resume", out_dir=str(char_out_dir(tmp_path / "a", random_gpt())))
    outline, weights = TorchBackends().pack(source)
    packed = pickle.dumps((outline, list(weights)))
    fingerprint = outline.fingerprint
    shutil.rmtree(source.out_dir)
    there = TorchBackends()
    there.receive(source, *pickle.loads(packed))
    assert there.open(source, DeviceSettings(name="cpu"))[0].fingerprint == fingerprint
    with pytest.raises(ModelError):
        there.open(source, DeviceSettings(name="cpu"))


def test_another_model_has_another_fingerprint(tmp_path: Path) -> None:
    seen = {resume(char_out_dir(tmp_path / "a", random_gpt())).fingerprint}
    model = random_gpt()
    bits = model.transformer.h[1].mlp.c_proj.bias.data.view(torch.int32)
    bits[0] ^= 1
    seen.add(resume(char_out_dir(tmp_path / "bit", model)).fingerprint)
    seen.add(resume(char_out_dir(tmp_path / "heads", random_gpt(dataclasses.replace(TINY, n_head=1)))).fingerprint)
    seen.add(resume(char_out_dir(tmp_path / "half", random_gpt().to(torch.bfloat16))).fingerprint)
    assert len(seen) == 4
    gpt2 = random_gpt(GPT2_SIZED)
    for name, changes in {"a": {}, "b": {"activation_function": "gelu"}, "c": {"layer_norm_epsilon": 1e-6}}.items():
        seen.add(hf(save_hf(tmp_path / "hf" / name, gpt2, **changes)).fingerprint)
    assert len(seen) == 7


# --- Hugging Face ---------------------------------------------------------------------------------------------------------


SHAPES: list[dict[str, Any]] = [
    {"n_layer": 3, "n_head": 2, "n_embd": 8, "n_positions": 9, "scale_attn_by_inverse_layer_idx": True, "vocab_size": 50257},
    {"n_layer": 2, "n_head": 2, "n_embd": 10, "n_positions": 9, "scale_attn_weights": False, "reorder_and_upcast_attn": True},
    {"n_layer": 1, "n_head": 1, "n_embd": 3, "n_positions": 1, "vocab_size": 50257},
    {"n_layer": 3, "n_head": 5, "n_embd": 35, "n_positions": 33, "vocab_size": 50259, "n_inner": 17},
    {"n_layer": 2, "n_head": 2, "n_embd": 10, "n_positions": 9, "activation_function": "gelu", "layer_norm_epsilon": 0.1},
    {"n_layer": 2, "n_head": 4, "n_embd": 8, "n_positions": 64, "activation_function": "gelu_pytorch_tanh"},
    {"n_layer": 2, "n_head": 3, "n_embd": 12, "n_positions": 64, "tie_word_embeddings": False},
    {"n_layer": 2, "n_head": 3, "n_embd": 12, "n_positions": 20, "activation_function": "gelu_fast"},
    *(
        {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 5, "activation_function": name}
        for name in ("gelu_accurate", "gelu_python_tanh", "quick_gelu", "relu", "silu", "swish", "tanh")
    ),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
def test_logits_equal_those_of_transformers(tmp_path: Path, shape: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).eval()
    for parameter in theirs.parameters():
        parameter.data.normal_(0.0, 0.2)
    theirs.save_pretrained(tmp_path, max_shard_size="300KB")
    ours = loaded(hf(tmp_path))
    ids = torch.randint(shape.get("vocab_size", 50257), (3, shape["n_positions"]))
    with torch.no_grad():
        expected = theirs(ids).logits
        assert expected.std() > 0.1
        assert (ours(ids) - expected).abs().max() < 1e-4
    assert (ours.lm_head.weight is ours.transformer.wte.weight) == shape.get("tie_word_embeddings", True)


def test_the_hubs_gpt2_layout_loads_whole(tmp_path: Path) -> None:
    """Names without prefix, causal masks stored beside the weights."""
    model = random_gpt(GPT2_SIZED)
    save_hf(tmp_path, model)
    masks = {"h.0.attn.bias": torch.ones(1, 1, 7, 7), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(hf_weights(model) | masks, tmp_path / "model.safetensors")
    got = loaded(hf(tmp_path))
    assert got.config.activation == "gelu_tanh"
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), model.parameters(), strict=True))


def test_shards_are_put_together(tmp_path: Path) -> None:
    model = random_gpt(GPT2_SIZED)
    save_hf(tmp_path, model)
    (tmp_path / "model.safetensors").unlink()
    weights = sorted(hf_weights(model).items())
    shards = {"model-1-of-2.safetensors": dict(weights[:5]), "model-2-of-2.safetensors": dict(weights[5:])}
    for name, shard in shards.items():
        save_file(shard, tmp_path / name)
    index = {"weight_map": {weight: name for name, shard in shards.items() for weight in shard}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    got = loaded(hf(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), model.parameters(), strict=True))
    (tmp_path / "model-2-of-2.safetensors").unlink()
    assert "the directory has no model-2-of-2.safetensors" in user_error(lambda: hf(tmp_path))
    index["weight_map"]["wte.weight"] = "../model.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "is damaged (a shard is not a plain file name)" in user_error(lambda: hf(tmp_path))


def test_a_head_that_differs_from_the_embedding_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As transformers 5 does it: what is stored counts for more than tie_word_embeddings."""
    caplog.set_level(logging.INFO)
    model = random_gpt(dataclasses.replace(GPT2_SIZED, tied_head=False))
    got = loaded(hf(save_hf(tmp_path, model, tie_word_embeddings=True)))
    assert torch.equal(got.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(got.lm_head.weight, got.transformer.wte.weight)
    assert "they are not tied" in caplog.text


def test_a_tied_weight_may_be_stored_under_either_name(tmp_path: Path) -> None:
    model = random_gpt(GPT2_SIZED)
    save_hf(tmp_path, model)
    weights = hf_weights(model)
    weights["lm_head.weight"] = weights.pop("wte.weight")
    save_file(weights, tmp_path / "model.safetensors")
    assert torch.equal(loaded(hf(tmp_path)).transformer.wte.weight, model.transformer.wte.weight)
    (tmp_path / "config.json").write_text(json.dumps(hf_settings(GPT2_SIZED) | {"tie_word_embeddings": False}))
    assert "weights are missing: transformer.wte.weight" in user_error(lambda: hf(tmp_path))


def test_heads_for_other_purposes_are_left_out(tmp_path: Path) -> None:
    model = random_gpt(GPT2_SIZED)
    save_hf(tmp_path, model)
    save_file(hf_weights(model) | {"v_head.summary.weight": torch.ones(1, 2)}, tmp_path / "model.safetensors")
    hf(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "mamba"}, "names the architecture 'mamba'"),
        ({"model_type": None}, "names the architecture None"),
        ({"scale_attn_weights": "no"}, "scale_attn_weights='no', which is neither true nor false"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
        ({"activation_function": "mish"}, "activation_function is 'mish'"),
        ({"activation_function": ["gelu"]}, "activation_function is ['gelu']"),
        ({"n_embd": "many"}, "n_embd='many'"),
        ({"n_head": 0}, "n_head is 0"),
        ({"n_inner": 5}, "mlp.c_fc.weight has the shape [8, 2]"),
        ({"n_layer": 2}, "weights are missing: transformer.h.1.ln_1.weight"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon='small', which is not a number from 0 to 1"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon=nan"),
        ({"layer_norm_epsilon": 10**400}, "layer_norm_epsilon=a number of 1,329 bits"),
        ({"n_embd": 2**63}, "n_embd=9223372036854775808, which is not a whole number below 2**31"),
        ({"n_inner": 2**31 - 1}, "mlp.c_fc.weight has the shape [8, 2]"),
        ({"n_positions": 2**31 - 1}, "transformer.wpe.weight has the shape [7, 2]"),
        ({"n_layer": 2**31 - 1}, "weights are missing: transformer.h.2147483646.ln_1.weight"),
    ],
)
def test_a_model_that_is_not_gpt2_is_a_clear_error(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    line = user_error(lambda: hf(save_hf(tmp_path, random_gpt(GPT2_SIZED), **changes)))
    assert line.startswith(f"model.path={tmp_path}")
    assert says in line


def test_a_damaged_model_directory_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    directory = save_hf(tmp_path / "model", random_gpt(GPT2_SIZED))
    weights = directory / "model.safetensors"
    whole = weights.read_bytes()
    for cut in (0, 5, 100, len(whole) - 1):
        weights.write_bytes(whole[:cut])
        assert "is truncated or not a safetensors file" in user_error(lambda: hf(directory))
    weights.write_bytes(b"\xff" * 100)
    assert "is truncated or not a safetensors file" in user_error(lambda: hf(directory))
    weights.unlink()
    assert "no model.safetensors, model.safetensors.index.json or pytorch_model.bin" in user_error(lambda: hf(directory))
    (directory / "config.json").write_text("{")
    assert "its config.json cannot be read" in user_error(lambda: hf(directory))
    (directory / "config.json").write_text("[]")
    assert "names the architecture None" in user_error(lambda: hf(directory))
    (directory / "config.json").unlink()
    assert "the directory has no config.json" in user_error(lambda: hf(directory))
    assert "no such directory" in user_error(lambda: hf("a/b/c"))
    Path("file").touch()
    assert "is a file" in user_error(lambda: hf("file"))


# --- Hugging Face tokenizers ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``vocab.json`` and ``merges.txt`` of a byte-level BPE that the tokenizers library learnt from this repository."""
    tokenizers = pytest.importorskip("tokenizers")
    directory = tmp_path_factory.mktemp("vocabulary")
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    lines = (REPOSITORY / "gptsweep/models/gpt2.py").read_text().split("\n")
    tokenizer.train_from_iterator(lines, vocab_size=600, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.save_model(str(directory))
    return directory


def test_a_directory_without_tokenizer_is_gpt2s_only_if_it_can_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(hf(save_hf(tmp_path / "a", random_gpt(GPT2_SIZED))).tokenizer, GPT2Tokenizer)
    assert "GPT-2 encoding" in caplog.text
    save_hf(tmp_path / "b", random_gpt(TINY))
    assert "its vocabulary of 11 is not GPT-2's" in user_error(lambda: hf(tmp_path / "b"))
    (tmp_path / "a/tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    assert "its tokenizer, a BertTokenizer, has neither" in user_error(lambda: hf(tmp_path / "a"))


def test_gpt2s_own_tokenizer_files_give_gpt2s_tokens(tmp_path: Path) -> None:
    save_hf(tmp_path, random_gpt(dataclasses.replace(GPT2_SIZED, vocab_size=50258)), eos_token_id=50257)
    write_gpt2_vocabulary(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|sep|>": 50257, "[PAD]": 50258}))
    tokenizer = hf(tmp_path).tokenizer
    assert isinstance(tokenizer, GPT2Tokenizer)
    assert tokenizer.encode("Hello<|sep|> world<|endoftext|>") == [15496, 50257, 995, 50256]
    assert tokenizer.encode("[PAD]") == GPT2Tokenizer().encode("[PAD]")  # beyond the embedding: plain text
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (50258, 50257)
    assert tokenizer.fingerprint != GPT2Tokenizer().fingerprint


@pytest.mark.parametrize("form", ["vocab.json", "tokenizer.json"])
def test_a_models_own_vocabulary_gives_the_tokens_of_transformers(tmp_path: Path, trained_vocabulary: Path, form: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2Tokenizer.from_pretrained(trained_vocabulary)
    theirs.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["<|user|>", "<|user|>x"]})
    save_hf(tmp_path, random_gpt(dataclasses.replace(TINY, vocab_size=len(theirs))), eos_token_id=0)
    if form == "tokenizer.json":
        theirs.save_pretrained(tmp_path)
    else:
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(trained_vocabulary / name, tmp_path)
        added = {token: number for token, number in theirs.get_added_vocab().items() if token != "<|endoftext|>"}
        (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    tokenizer = hf(tmp_path).tokenizer
    assert isinstance(tokenizer, BytePairTokenizer)
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (len(theirs), 0)
    texts = [
        "def forward(self, x):\n    return x",
        "  two  spaces ",
        "naïve 🙂 日本語\t\n",
        "<|user|>x hi<|user|> it's<|endoftext|>",
        "",
    ]
    for text in texts:
        assert tokenizer.encode(text) == theirs.encode(text), text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path, trained_vocabulary: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2Tokenizer.from_pretrained(trained_vocabulary)
    save_hf(tmp_path, random_gpt(dataclasses.replace(TINY, vocab_size=len(theirs))))
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    good = json.loads(path.read_text())
    assert isinstance(hf(tmp_path).tokenizer, BytePairTokenizer)
    for change, says in [
        ({"normalizer": {"type": "Lowercase"}}, "normalizer.type='Lowercase'"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "pre_tokenizer.type='Metaspace'"),
        ({"model": good["model"] | {"type": "Unigram"}}, "model.type='Unigram'"),
        ({"model": good["model"] | {"byte_fallback": True}}, "model.byte_fallback=True"),
        ({"model": good["model"] | {"vocab": {}}}, "vocabulary"),
        ({"model": {}}, "vocabulary files are damaged (KeyError: 'merges')"),
        ({"model": good["model"] | {"merges": [["a", "qqq"]]}}, "its merges make b'aqqq'"),
        ({"model": good["model"] | {"vocab": good["model"]["vocab"] | {"a": 700}}}, "goes up to id 700, beyond the model's"),
        ({"model": good["model"] | {"vocab": good["model"]["vocab"] | {"a": 5}}}, "gives two tokens the same id"),
    ]:
        path.write_text(json.dumps(good | change))
        assert says in user_error(lambda: hf(tmp_path))
    path.write_text("{")
    assert "its tokenizer.json cannot be read" in user_error(lambda: hf(tmp_path))


def write_gpt2_vocabulary(directory: Path) -> None:
    """GPT-2's ``vocab.json`` and ``merges.txt``: merges are found again by encoding each token with the ranks below its own."""
    spelling = {byte: character for character, byte in byte_alphabet().items()}
    ranks = gpt2_ranks()
    merges = []
    for token, rank in ranks.items():
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], rank))
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append(" ".join("".join(spelling[byte] for byte in part) for part in parts))
    vocabulary = {"".join(spelling[byte] for byte in token): rank for token, rank in ranks.items()} | {"<|endoftext|>": 50256}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def test_each_stored_weight_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, hashed = StoredTensor.sha256, []
    monkeypatch.setattr(StoredTensor, "sha256", lambda self: hashed.append(self) or real(self))
    directory = save_nanogpt(tmp_path, random_gpt(dataclasses.replace(TINY, tied_head=False)))
    save_meta(directory / "meta.pkl", ELEVEN)
    checkpoint = resume(directory)
    assert not checkpoint.config.tied_head
    assert checkpoint.fingerprint
    assert len(hashed) == len(set(hashed)) == len(checkpoint.weights)


# --- the embedded model ---------------------------------------------------------------------------------------------------


def test_the_embedded_form_loads_whole(tmp_path: Path) -> None:
    model = random_gpt(dataclasses.replace(TINY, activation="gelu_tanh"))
    checkpoint = open_embedded(save_embedded(tmp_path, model, list(ELEVEN)))
    assert checkpoint.config == model.config
    assert checkpoint.tokenizer.encode("cab") == [2, 0, 1]
    assert_same_parameters(loaded(checkpoint), model)


def test_a_damaged_embedded_model_says_to_install_again(tmp_path: Path) -> None:
    assert "install gptsweep again" in user_error(lambda: open_embedded(tmp_path))
    save_embedded(tmp_path, random_gpt(), list(ELEVEN))
    (tmp_path / "vocab.json").unlink()
    assert "install gptsweep again" in user_error(lambda: open_embedded(tmp_path))


def test_the_package_holds_a_model_that_loads() -> None:
    checkpoint = open_checkpoint(ModelSource())
    model = loaded(checkpoint)
    assert checkpoint.tokenizer.decode(checkpoint.tokenizer.encode("First Citizen:\n")) == "First Citizen:\n"
    assert torch.isfinite(model(torch.tensor([[0, 1, 2]]))).all()


# --- memory ---------------------------------------------------------------------------------------------------------------

MEASURE = """
import sys, torch
from pathlib import Path
from gptsweep.models.checkpoint import load_weights
from gptsweep.models.files.embedded import open_embedded
from gptsweep.models.gpt2 import GPT

def status(name):
    lines = Path("/proc/self/status").read_text().split("\\n")
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

def load(directory):
    checkpoint = open_embedded(Path(directory))
    model = checkpoint.laid_out()
    load_weights(checkpoint, model, getattr(torch, sys.argv[3]))
    return model

load(sys.argv[1])  # a tiny one first: what the libraries set up once does not count
before = status("VmRSS")
size = sum(p.numel() * p.element_size() for p in load(sys.argv[2]).parameters())
print((status("VmHWM") - before) / size)
"""


@pytest.fixture(scope="module")
def small_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2 XL's depth and proportions at a sixtieth of its size."""
    config = GPTConfig(n_layer=48, n_head=25, n_embd=200, vocab_size=6000, block_size=128)
    return save_embedded(tmp_path_factory.mktemp("xl"), random_gpt(config), [chr(0x4E00 + token) for token in range(6000)])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory as Linux reports it")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_needs_little_more_memory_than_the_model(tmp_path: Path, small_xl: Path, dtype: str) -> None:
    tiny = save_embedded(tmp_path, random_gpt(), list(ELEVEN))
    command = [sys.executable, "-c", MEASURE, str(tiny), str(small_xl), dtype]
    found = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert 1.0 < float(found.stdout) <= 1.2
