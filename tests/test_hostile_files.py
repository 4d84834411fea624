"""A checkpoint from a stranger neither hangs, nor crashes, nor fills memory, and one that is good and odd is read."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import io
import json
import os
import pickle
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import TINY, hf_weights, nanogpt_contents, random_gpt, save_hf, save_meta, save_nanogpt
from omegaconf import OmegaConf
from sweeps import Run, samples_of, save_checkpoint
from test_checkpoint import ELEVEN, GPT2_SIZED, assert_same_parameters, endless, hf, loaded, resume, user_error

from gptsweep.models.files.pickles import PickleError, elements_of, mapping_of, read_pickle
from gptsweep.models.gpt2 import GPT


def saved(contents: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(contents, buffer, **how)
    return buffer.getvalue()


def out_dir_of(directory: Path, content: bytes, name: str = "ckpt.pt") -> Path:
    directory.mkdir(exist_ok=True)
    save_meta(directory / "meta.pkl", ELEVEN)
    (directory / name).write_bytes(content)
    return directory


def packed(content: bytes, changes: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of `torch.save` with some of its files replaced or left out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for entry in old.infolist():
            data = changes.get(entry.filename.partition("/")[2], old.read(entry))
            if data is not None:
                new.writestr(entry.filename, data)
    return buffer.getvalue()


# --- hostile --------------------------------------------------------------------------------------------------------------


def _with_weights(change: Callable[[dict[str, Any]], None]) -> bytes:
    contents = nanogpt_contents(random_gpt())
    change(contents["model"])
    return saved(contents)


def _repeated(weights: dict[str, Any]) -> None:
    weights |= {f"transformer.h.{layer}.ln_1.weight": torch.zeros(1).expand(1 << 40) for layer in range(2)}


def _sparse(weights: dict[str, Any]) -> None:
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"].detach().to_sparse()


HOSTILE = {
    "byte order": (packed(saved(nanogpt_contents(random_gpt())), {"byteorder": b"big"}), "byte order b'big'"),
    "byte order of another length": (
        packed(saved(nanogpt_contents(random_gpt())), {"byteorder": b"\xff" * 4096}),
        "byte order b'\\xff\\xff",
    ),
    "deflated": (
        packed(saved(nanogpt_contents(random_gpt())), {"data/0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED),
        "was repacked and compressed",
    ),
    "stride 0": (_with_weights(_repeated), "its weights would take"),
    "sparse": (_with_weights(_sparse), "neither sparse nor quantised"),
    "short data": (packed(saved(nanogpt_contents(random_gpt())), {"data/0": b"1234"}), "does not hold the data of"),
    "no data": (packed(saved(nanogpt_contents(random_gpt())), {"data/0": None}), "does not hold the data of"),
    "no pickle": (packed(saved(nanogpt_contents(random_gpt())), {"data.pkl": None}), "archive without data.pkl"),
    "memo index": (packed(saved([1]), {"data.pkl": b"\x80\x02Nr\xff\xff\xff\x7f."}), "has no 'model' and 'model_args'"),
    "endless model": (saved({"model": endless(), "model_args": {}}), "has no 'model' and 'model_args'"),
    "endless args": (saved({"model": {}, "model_args": endless()}), "are not a dictionary"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint_is_one_line(tmp_path: Path, name: str) -> None:
    content, says = HOSTILE[name]
    line = user_error(lambda: resume(out_dir_of(tmp_path, content)))
    assert says in line
    assert len(line) < 1000


def test_an_endless_dataset_name_is_not_shown_to_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    contents = nanogpt_contents(random_gpt())
    contents["config"]["dataset"] = endless()
    resume(out_dir_of(tmp_path, saved(contents)))
    assert "dataset name [[[...]" in caplog.text


def test_a_view_beyond_its_data_is_refused(tmp_path: Path) -> None:
    content = saved(nanogpt_contents(random_gpt()))
    wte = b"K\x00K\x0bK\x06\x86q"  # offset 0, shape (11, 6)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert wte in pickled
    moved = packed(content, {"data.pkl": pickled.replace(wte, b"K\x01" + wte[2:], 1)})
    assert "reaches beyond its data" in user_error(lambda: resume(out_dir_of(tmp_path, moved)))


def test_a_file_of_an_archive_that_lies_beyond_its_end_is_refused(tmp_path: Path) -> None:
    content = packed(saved(nanogpt_contents(random_gpt())), {"version": None, ".data/serialization_id": None})
    for offset in (len(content), 2**63):
        extra = struct.pack("<2HQ", 1, 8, offset)  # the offset of a large archive
        entry = content.index(b"PK\x01\x02")
        name, old, comment = struct.unpack_from("<3H", content, entry + 28)
        assert content[entry + 46 : entry + 46 + name].endswith(b"data.pkl")
        assert (old, comment) == (0, 0)
        moved = bytearray(content[: entry + 46 + name] + extra + content[entry + 46 + name :])
        struct.pack_into("<H", moved, entry + 30, len(extra))
        struct.pack_into("<L", moved, entry + 42, 0xFFFFFFFF)
        end = moved.rindex(b"PK\x05\x06")
        struct.pack_into("<L", moved, end + 12, struct.unpack_from("<L", moved, end + 12)[0] + len(extra))
        line = user_error(lambda moved=bytes(moved): resume(out_dir_of(tmp_path, moved)))  # type: ignore[misc]
        assert "is damaged" in line


def test_an_archive_that_claims_a_list_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = out_dir_of(tmp_path, b"PK\x03\x04") / "ckpt.pt"
    with path.open("r+b") as file:  # sparse: it takes no space on the disk
        size = 3 << 30
        file.seek(size)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, size - 4, 4, 0))
    assert "is truncated" in user_error(lambda: resume(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes in directories")
def test_pipes_devices_and_sockets_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        for place in ("pipe", "socket", "/dev/zero"):
            out_dir = Path(f"out-{Path(place).name}")
            out_dir.mkdir()
            (out_dir / "ckpt.pt").symlink_to(Path(place).absolute())
            assert "cannot be read" in user_error(lambda out_dir=out_dir: resume(out_dir))  # type: ignore[misc]
            good = save_nanogpt(Path(f"good-{Path(place).name}"), random_gpt())
            assert "cannot be read" in user_error(lambda good=good, place=place: resume(good, place))  # type: ignore[misc]
            model = save_hf(Path(f"hf-{Path(place).name}"), random_gpt(GPT2_SIZED))
            for name in ("config.json", "model.safetensors"):
                (model / name).unlink()
                (model / name).symlink_to(Path(place).absolute())
                user_error(lambda model=model: hf(model))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", b"[" * 100_000, "nested too deeply"),
        ("config.json", b'{"model_type": "gpt2", "n_layer": ' + b"9" * 5000 + b"}", "cannot be read"),
        ("config.json", b" " * (32 << 20) + b"{}", "larger than 32 MiB"),
        ("config.json", b"\xff\xfe", "cannot be read"),
        ("model.safetensors", struct.pack("<Q", 1 << 40) + b"{}", "its header would have"),
        ("model.safetensors", struct.pack("<Q", 100_000) + b"[" * 100_000, "not a safetensors file"),
        ("tokenizer.json", b" " * (33 << 20), "its tokenizer.json is larger than 32 MiB"),
        ("vocab.json", b'{"a": 9999999999999}', ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_model_directory_is_one_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    save_hf(tmp_path, random_gpt(GPT2_SIZED))
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / name).write_bytes(content)
    line = user_error(lambda: hf(tmp_path))
    assert says in line
    assert len(line) < 1000


def test_a_bad_model_leaves_the_points_of_the_others_alone(tmp_path: Path, run: Run) -> None:
    save_checkpoint(Path("good"), seed=1)
    bad = save_checkpoint(Path("bad"), seed=2) / "ckpt.pt"
    bad.write_bytes(packed(bad.read_bytes(), {"byteorder": b"big"}))
    os.mkfifo(save_checkpoint(Path("pipe"), seed=2) / "other.pt")
    line = ["-m", "name=s", "model=resume", "sampling.num_samples=1", "sampling.max_new_tokens=2", "quiet=true"]
    ended = run(*line, "model.out_dir=bad,good", "model.file=ckpt.pt")
    assert ended.status == 1
    assert "byte order" in ended.err
    assert len(samples_of(Path("outputs/sweeps/s"))) == 1
    ended = run(*line, "model.out_dir=pipe", "model.file=ckpt.pt,other.pt")
    assert ended.status == 1
    assert "Not a regular file" in ended.err
    assert len(samples_of(Path("outputs/sweeps/s"))) == 2


BYTES = st.one_of(
    st.sampled_from([bytes([operation]) for operation in b"}])(NtusaeRb012Qo\x81\x85\x86\x93\x94"]),
    st.sampled_from([b"K\x01", b"X\x01\0\0\0a", b"q\x00", b"h\x00", b"cm\nn\n", b"\x8c\x04itos", b"U\x01a"]),
    st.binary(max_size=6),
)


@settings(max_examples=300)
@given(st.lists(BYTES, max_size=60))
def test_any_pickle_is_read_or_refused(operations: list[bytes]) -> None:
    content = b"".join(operations) + b"."
    try:
        found = read_pickle(io.BufferedReader(io.BytesIO(content)), len(content))  # type: ignore[arg-type]
    except PickleError:
        return
    mapping_of(found), elements_of(found)


# --- good and odd ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Arguments:
    """What a fork of nanoGPT may keep its settings in."""

    block_size: Any = 7
    vocab_size: Any = 11
    n_layer: Any = 2
    n_head: Any = 2
    n_embd: Any = 6
    bias: Any = True


SIZES = dataclasses.asdict(Arguments())


@pytest.mark.parametrize(
    "arguments",
    [
        Arguments(),
        argparse.Namespace(**SIZES),
        OmegaConf.create(SIZES),
        collections.OrderedDict(SIZES),
        {name: np.int64(size) for name, size in SIZES.items()} | {"bias": np.bool_(True)},
    ],
    ids=["dataclass", "Namespace", "DictConfig", "OrderedDict", "NumPy"],
)
@pytest.mark.parametrize("is_archive", [True, False])
def test_a_checkpoint_may_hold_objects_beside_its_weights(tmp_path: Path, arguments: Any, is_archive: bool) -> None:
    model = random_gpt()
    others = {
        "best_val_loss": np.float64(1.5),
        "path": Path("out"),
        "rng": np.random.default_rng().bit_generator.state,
        "grad": torch.sparse_coo_tensor([[0]], [1.0], (2,), check_invariants=True),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "config": argparse.Namespace(dataset="letters", out=Path("x")),
        "arguments": Arguments,
    }
    contents = nanogpt_contents(model) | others | {"model_args": arguments}
    out_dir = out_dir_of(tmp_path / "out", saved(contents, _use_new_zipfile_serialization=is_archive))
    (out_dir / "meta.pkl").unlink()
    save_meta(tmp_path / "data/letters/meta.pkl", ELEVEN)
    checkpoint = resume(out_dir)
    assert checkpoint.config == TINY
    assert_same_parameters(loaded(checkpoint), model)


def test_nothing_that_a_checkpoint_names_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "trap"), "w")

    for is_archive in (True, False):
        contents = nanogpt_contents(random_gpt()) | {"extra": Trap()}
        resume(out_dir_of(tmp_path, saved(contents, _use_new_zipfile_serialization=is_archive)))
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "base_model.model.", "_orig_mod.module.", "module._orig_mod.", "model._orig_mod."]
)
def test_what_wrappers_put_before_the_names_of_weights_is_left_out(tmp_path: Path, prefix: str) -> None:
    model = random_gpt()
    assert_same_parameters(loaded(resume(out_dir_of(tmp_path, saved(nanogpt_contents(model, prefix=prefix))))), model)


def test_a_merged_peft_model_loads_and_an_adapter_says_to_merge_it(tmp_path: Path) -> None:
    model = random_gpt(GPT2_SIZED)
    weights = {f"base_model.model.transformer.{name}": tensor for name, tensor in hf_weights(model).items()}
    name = "base_model.model.transformer.h.0.attn.c_attn.weight"
    weights["base_model.model.transformer.h.0.attn.c_attn.base_layer.weight"] = weights.pop(name)
    save_hf(tmp_path, model)
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert_equal(loaded(hf(tmp_path)), model)
    torch.save(weights | {name.replace("weight", "lora_A.default.weight"): torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert "merge_and_unload" in user_error(lambda: hf(tmp_path))
    torch.save(weights | {"h.0.ln_1.weight": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert "holds the weight transformer.h.0.ln_1.weight twice" in user_error(lambda: hf(tmp_path))
    (tmp_path / "config.json").rename(tmp_path / "adapter_config.json")
    assert "is a PEFT adapter without its model" in user_error(lambda: hf(tmp_path))


def assert_equal(model: GPT, expected: GPT) -> None:
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize("is_archive", [True, False])
def test_pytorch_model_bin_is_read_whole_and_in_shards(tmp_path: Path, is_archive: bool) -> None:
    model = random_gpt(GPT2_SIZED)
    save_hf(tmp_path, model)
    safe = hf(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    how = {"_use_new_zipfile_serialization": is_archive}
    torch.save(hf_weights(model), tmp_path / "pytorch_model.bin", **how)
    assert_equal(loaded(hf(tmp_path)), model)
    assert hf(tmp_path).fingerprint == safe.fingerprint
    (tmp_path / "pytorch_model.bin").unlink()
    shards = {f"pytorch_model-0000{part}-of-00002.bin": dict(list(hf_weights(model).items())[part - 1 :: 2]) for part in (1, 2)}
    for name, shard in shards.items():
        torch.save(shard, tmp_path / name, **how)
    index = {"weight_map": {weight: name for name, shard in shards.items() for weight in shard}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_equal(loaded(hf(tmp_path)), model)
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../x.bin"}}')
    assert "is damaged (a shard is not a plain file name)" in user_error(lambda: hf(tmp_path))


def test_weights_are_those_that_torch_load_reads(tmp_path: Path) -> None:
    """Views, shared and transposed storages, every dtype of a weight, both formats: bit for bit."""
    from gptsweep.models.files.torch_file import TorchFile

    base = torch.randn(6, 8)
    tensors = {
        "whole": base, "rows": base[2:4], "columns": base[:, 3], "transposed": base.t(), "strided": base[::2, 1::3],
        "scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "parameter": torch.nn.Parameter(base[0]),
        "half": base.half(), "bfloat16": base.bfloat16(), "double": base.double(), "long": torch.arange(5),
        "bool": base > 0, "byte": torch.arange(7, dtype=torch.uint8), "short": torch.arange(7, dtype=torch.int16),
    }  # fmt: skip
    for is_archive in (True, False):
        path = tmp_path / "tensors.pt"
        torch.save(tensors, path, _use_new_zipfile_serialization=is_archive)
        file, theirs = TorchFile(path, "key", "value"), torch.load(path)
        assert file.contents.keys() == theirs.keys()
        for name, view in file.contents.items():
            stored = file.stored(name, view)
            read = stored.read(torch.empty(max(stored.nbytes, 1), dtype=torch.uint8))
            assert read.dtype == theirs[name].dtype
            assert read.stride() == theirs[name].stride()
            assert torch.equal(read, theirs[name]), name


# --- which checkpoint, which vocabulary -----------------------------------------------------------------------------------


def test_a_vocabulary_that_is_not_the_checkpoints_is_refused(tmp_path: Path) -> None:
    gpt2 = random_gpt(dataclasses.replace(GPT2_SIZED, vocab_size=50304))
    out_dir = save_nanogpt(tmp_path, gpt2)
    meta = save_meta(tmp_path / "meta.pkl", "".join(map(chr, range(32, 97))))
    line = user_error(lambda: resume(out_dir))
    assert line.startswith(f"model.meta={meta}: has 65 tokens, but the checkpoint in {out_dir} has 50304, more than")
    assert "model.meta=gpt2" in line
    assert resume(out_dir, "gpt2").tokenizer.vocab_size == 50257
    meta.write_bytes(pickle.dumps({"tokenizer": "tiktoken"}))
    assert resume(out_dir).tokenizer.vocab_size == 50257
    meta.unlink()
    large = save_nanogpt(tmp_path / "large", random_gpt(dataclasses.replace(GPT2_SIZED, vocab_size=60000)))
    assert "vocabulary of 60000 is not GPT-2's" in user_error(lambda: resume(large))
    assert resume(large, "gpt2").tokenizer.vocab_size == 50257
    small = save_nanogpt(tmp_path / "small", random_gpt())
    assert "more than the 11 of the checkpoint" in user_error(lambda: resume(small, "gpt2"))
