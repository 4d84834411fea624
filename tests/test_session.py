"""What a user would lose: the Python interface as documented, and run directories that fill up once and only once."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plain
import pytest
import torch
from model_files import save_hf, save_meta, save_nanogpt

import gptsweep
from gptsweep.analysis.metrics import METRICS
from gptsweep.api import LM, sampling_of
from gptsweep.engine import torch_backend
from gptsweep.engine.engine import Engine
from gptsweep.engine.torch_backend import TorchBackends
from gptsweep.errors import ConfigError, DeviceError, Interrupted, ModelError, PromptError, ResultsError
from gptsweep.models import linear, loading
from gptsweep.models.gpt2 import GPT, GPTConfig
from gptsweep.models.linear import can_pack
from gptsweep.models.loading import resolve_device, resolve_dtype
from gptsweep.models.registry import open_checkpoint
from gptsweep.multirun.point import objective_of, require_objective
from gptsweep.records import DeviceSettings, ModelSource, Point, Prompt, Row, Sampling, point_id
from gptsweep.run.executors.local import LocalExecutor
from gptsweep.run.jobs import Job, Outcome
from gptsweep.run.progress import Progress
from gptsweep.run.rows import Plan, Task, encoded
from gptsweep.run.session import run_jobs
from gptsweep.store.writer import PointWriter

CHARACTERS = "\n !,.ABCDEFGHIJKLMNOPabcdefghijklmnopqrstuvwxyzäß€"
CONFIG = GPTConfig(block_size=16, vocab_size=len(CHARACTERS) + 3, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture(scope="module")
def out_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nanoGPT checkpoint with the ``meta.pkl`` of its characters."""
    directory = save_nanogpt(tmp_path_factory.mktemp("out"), plain.peaked_gpt(CONFIG, seed=5).requires_grad_(True))
    save_meta(directory / "meta.pkl", CHARACTERS)
    return directory


@pytest.fixture(scope="module")
def lm(out_dir: Path) -> LM:
    return gptsweep.load(out_dir, device="cpu")


@pytest.fixture(scope="module")
def gpt2_like(tmp_path_factory: pytest.TempPathFactory) -> LM:
    """A model with GPT-2's vocabulary, and so an end-of-text token."""
    config = GPTConfig(block_size=16, vocab_size=50257, n_layer=1, n_head=1, n_embd=4, activation="gelu_tanh")
    return gptsweep.load(save_hf(tmp_path_factory.mktemp("hf"), plain.peaked_gpt(config)), device="cpu")


# -- Python ------------------------------------------------------------------------------------------------------------------


def test_the_example_of_the_readme_on_the_embedded_model() -> None:
    lm = gptsweep.load("shakespeare", device="auto", dtype="auto")
    samples = lm.generate("Once upon a time", num_samples=4, temperature=0.8, top_k=200, seed=1, max_new_tokens=20)
    assert [sample.sample_index for sample in samples] == [0, 1, 2, 3]
    assert all(len(sample.completion) == 20 for sample in samples)
    assert lm.model(torch.tensor([lm.tokenizer.encode("To be")])).shape == (1, 5, lm.model.config.vocab_size)


def test_samples_come_by_prompt_and_number_with_text_ids_and_means(lm: LM) -> None:
    samples = lm.generate(["AB", "a"], num_samples=3, max_new_tokens=9, temperature=1.2, seed=4)
    assert [(s.prompt, s.sample_index) for s in samples] == [(p, i) for p in ("AB", "a") for i in range(3)]
    for sample in samples:
        assert sample.completion == "".join(CHARACTERS[token] for token in sample.token_ids)
        assert sample.finish_reason == "length"
        assert sample.prompt_tokens == len(sample.prompt)
        assert sample.entropy_mean is not None
        assert sample.entropy_mean > 0
    assert len({s.token_ids for s in samples}) > 3


def test_generate_is_the_twin_of_full_recomputation(lm: LM, out_dir: Path) -> None:
    model = GPT(CONFIG).requires_grad_(False)
    model.load_state_dict(torch.load(out_dir / "ckpt.pt", weights_only=True)["model"])
    for index, sample in enumerate(lm.generate("ABBA", num_samples=4, temperature=1.1, top_k=30, max_new_tokens=30, seed=9)):
        settings = Sampling(temperature=1.1, top_k=30, max_new_tokens=30)
        row = Row(prompt_ids=tuple(map(CHARACTERS.index, "ABBA")), sampling=settings, noise_key=9, sample_index=index)
        assert list(sample.token_ids) == plain.decode(model, row, len(CHARACTERS)).token_ids


def test_sample_i_is_the_same_however_many_there_are(lm: LM) -> None:
    for rng in ("counter", "torch"):
        many = lm.generate("A", num_samples=6, max_new_tokens=12, rng=rng)
        few = lm.generate("A", num_samples=2, max_new_tokens=12, rng=rng)
        assert few == [dataclasses.replace(s, sampling=few[0].sampling) for s in many[:2]]


def test_stop_strings_and_end_of_text_end_a_sample_and_are_not_in_it(lm: LM, gpt2_like: LM) -> None:
    texts = [s.completion for s in lm.generate("A", num_samples=20, temperature=1.5, max_new_tokens=20)]
    stop = texts[0][5:7]
    stopped = lm.generate("A", num_samples=20, temperature=1.5, max_new_tokens=20, stop=stop)
    assert [s.completion for s in stopped] == [text.split(stop)[0] for text in texts]
    assert [s.finish_reason for s in stopped] == ["stop" if stop in text else "length" for text in texts]
    (ended,) = gpt2_like.generate("Hello", stop_at_eot=True, logit_bias={50256: 1000.0}, max_new_tokens=5)
    assert (ended.completion, ended.finish_reason, ended.token_ids) == ("", "eot", (50256,))
    (going_on,) = gpt2_like.generate("Hello", logit_bias={50256: 1000.0}, max_new_tokens=5)
    assert (going_on.completion, going_on.finish_reason) == ("<|endoftext|>" * 5, "length")


def test_a_sweep_greater_than_a_batch_shares_what_its_points_have_in_common(out_dir: Path, passes: list[int]) -> None:
    def tokens_read(max_rows: int) -> tuple[int, pd.DataFrame]:
        passes.clear()
        lm = gptsweep.load(out_dir, device="cpu", max_rows=max_rows)
        settings = {"temperature": [0.8, 0.9], "top_k": [5, 20], "seed": [1, 2], "num_samples": 12, "max_new_tokens": 8}
        frame = gptsweep.sweep(lm, start="A", **settings)
        return sum(passes), frame

    (together, frame), (in_turns, same) = tokens_read(96), tokens_read(12)
    pd.testing.assert_frame_equal(frame, same)
    assert together < in_turns < 96 * 8 / 4  # point after point it would be near a half


def test_a_sweep_is_a_frame_of_every_combination_each_as_by_itself(lm: LM) -> None:
    frame = gptsweep.sweep(
        lm, start="A", temperature=[0.7, 1.0], top_k=[5, None], seed=[1, 2, 3], num_samples=2, max_new_tokens=6
    )
    assert isinstance(frame, pd.DataFrame)
    assert len(frame) == 2 * 2 * 3 * 2
    order = ["seed", "temperature", "top_k", "sample_index"]
    expected = [(s, t, k, i) for s in (1, 2, 3) for t in (0.7, 1.0) for k in (5, None) for i in range(2)]
    assert set(frame[order].replace({float("nan"): None}).itertuples(index=False, name=None)) == set(expected)
    for _, line in frame.iterrows():
        top_k = None if pd.isna(line.top_k) else int(line.top_k)
        alone = lm.generate("A", num_samples=2, seed=line.seed, temperature=line.temperature, top_k=top_k, max_new_tokens=6)
        assert list(alone[line.sample_index].token_ids) == line.token_ids


def test_a_frame_from_python_has_the_columns_of_the_review(lm: LM, out_dir: Path, tmp_path: Path) -> None:
    settings = {"num_samples": 6, "max_new_tokens": 30, "temperature": 1.1, "start": "A b"}
    frame = gptsweep.sweep(lm, seed=[1, 2], **settings)
    settle(*(Job(point(out_dir, seed=seed, **settings), tmp_path / str(seed)) for seed in (1, 2)))
    summary = gptsweep.read_sweep(tmp_path).summary.set_index("seed")
    assert set(METRICS) <= set(frame)
    for seed, rows in frame.groupby("seed"):
        for name, metric in METRICS.items():
            reported = summary.loc[seed, name]
            if name.endswith("perplexity"):  # of all tokens: these samples are equally long
                assert np.exp(np.log(rows[name]).mean()) == pytest.approx(reported)
            elif metric.per == "point":
                assert rows[name].nunique(dropna=False) == 1
                assert rows[name].iloc[0] == pytest.approx(reported, nan_ok=True)
            else:
                assert rows[name].mean() == pytest.approx(reported, nan_ok=True)


def test_points_of_ones_own_are_crossed_with_the_other_settings(lm: LM) -> None:
    short = {"num_samples": 1, "max_new_tokens": 2}
    points = [{"temperature": 0.5, "top_k": 5}, {"temperature": 1.5, "top_k": None, "start": "b"}]
    frame = gptsweep.sweep(lm, points=points, start="A", seed=[1, 2], **short)
    columns = ["temperature", "top_k", "prompt", "seed"]
    rows = [(0.5, 5, "A", 1), (0.5, 5, "A", 2), (1.5, None, "b", 1), (1.5, None, "b", 2)]
    assert list(frame[columns].astype(object).replace({np.nan: None}).itertuples(index=False, name=None)) == rows
    table = pd.DataFrame(points).fillna({"start": "A"})
    pd.testing.assert_frame_equal(gptsweep.sweep(lm, points=table, seed=[1, 2], **short), frame)
    with pytest.raises(ConfigError, match="top_k=3: is also a setting of points; give it in one place only"):
        gptsweep.sweep(lm, points=points, top_k=3)
    with pytest.raises(ConfigError, match=r"sampling\.topk=3: no such setting; did you mean top_k\?"):
        gptsweep.sweep(lm, points=[{"topk": 3}])
    for wrong in ([], [3], 3, {"top_k": 3}, pd.DataFrame({"top_k": []})):
        with pytest.raises(ConfigError, match="points="):
            gptsweep.sweep(lm, points=wrong)  # type: ignore[arg-type]


def test_rng_torch_points_with_different_numbers_of_samples_keep_their_streams(lm: LM) -> None:
    frame = gptsweep.sweep(lm, start="A", rng="torch", seed=[1, 2], num_samples=[2, 3], max_new_tokens=8, temperature=1.5)
    for seed, of_seed in frame.groupby("seed"):
        wanted = [
            list(s.token_ids)
            for s in lm.generate("A", seed=seed, num_samples=3, rng="torch", max_new_tokens=8, temperature=1.5)
        ]
        assert len({tuple(ids) for ids in wanted}) == 3
        assert sorted(of_seed.token_ids) == sorted(wanted[:2] + wanted)


def test_independent_noise_tells_points_apart_and_common_noise_does_not(lm: LM) -> None:
    def noise_keys(**sampling: Any) -> set[int]:
        prompts = encoded(lm, (gptsweep.records.Prompt("0", "A"),))
        points = [Point(sampling=Sampling(temperature=t, **sampling), seed=3) for t in (0.5, 0.6)]
        return {Task.of(lm, point, prompts).noise_key for point in points}

    assert noise_keys(noise="common") == {3}
    assert len(noise_keys(noise="independent")) == 2
    # Twice the same point is the same noise.
    assert noise_keys(noise="independent") == noise_keys(noise="independent")


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"overflow": "stop"}, PromptError, "a prompt has 17 tokens, but the model reads at most 16; shorten it"),
        ({"logit_bias": {99: 1.0}}, ConfigError, "sampling.logit_bias=99: token ids of model=resume are below 50"),
        ({"stop_at_eot": True}, ConfigError, "sampling.stop_at_eot=True: model=resume has no end-of-text token"),
        ({"temperatur": 1.0}, ConfigError, "sampling.temperatur=1.0: no such setting; did you mean temperature?"),
        ({"sed": 1}, ConfigError, "sampling.sed=1: no such setting; did you mean seed?"),
        ({"zzz": 1.0}, ConfigError, "sampling.zzz=1.0: no such setting; there are chat_template"),
        ({"temperature": "hot"}, ConfigError, "sampling.temperature=hot: must be a number"),
        ({"temperature": True}, ConfigError, "sampling.temperature=True: must be a number"),
        ({"temperature": 10**400}, ConfigError, "must be a number"),
        ({"top_k": 5.5}, ConfigError, "sampling.top_k=5.5: must be a whole number, or null"),
        ({"top_k": float("nan")}, ConfigError, "sampling.top_k=nan: must be a whole number, or null"),
        ({"top_k": pd.NA}, ConfigError, "must be a whole number, or null"),
        ({"top_k": 2**64}, ConfigError, "must be below 2**63"),
        ({"top_k": 10**5000}, ConfigError, "sampling.top_k=a number of 16,610 bits: must be"),
        ({"logit_bias": {10**5000: 1}}, ConfigError, "must map token ids"),
        ({"stop": [10**5000]}, ConfigError, "must be a string, or several"),
        ({"num_samples": 2**63}, ConfigError, "below 2**31"),
        ({"max_new_tokens": 2**63}, ConfigError, "below 2**31"),
        ({"logit_bias": {2**63: 1}}, ConfigError, "must map token ids"),
        ({"logit_bias": "the"}, ConfigError, "must map token ids to numbers"),
        ({"seed": "one"}, ConfigError, "seed=one: must be a whole number"),
        ({"seed": 2**64}, ConfigError, "seed=18446744073709551616: must be from 0"),
        ({"stop": [3]}, ConfigError, "sampling.stop=[3]: must be a string, or several"),
        ({"stop_at_eot": 1}, ConfigError, "sampling.stop_at_eot=1: must be true or false"),
        ({"rng": 3}, ConfigError, "sampling.rng=3: must be text"),
        ({"temperature": -1}, ConfigError, "sampling.temperature=-1.0: must be 0"),
        ({"seed": -1}, ConfigError, "seed=-1: must be from 0"),
        ({"num_samples": 0}, ConfigError, "sampling.num_samples=0: must be at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_clear_line(lm: LM, settings: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error) as raised:
        lm.generate("A" * 17, **settings)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("prompts", "says"),
    [(5, "prompts=5: must be one value"), ([5], "prompts=5: must be a string"), (b"A", "prompts="), ({"A": 1}, "prompts=")],
)
def test_prompts_of_a_wrong_type_are_one_clear_line(lm: LM, prompts: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        lm.generate(prompts)


def test_a_keyword_that_is_none_says_which_was_meant(lm: LM) -> None:
    with pytest.raises(ConfigError, match=r"dtpe=int8: no such setting; did you mean dtype\?"):
        gptsweep.load(dtpe="int8")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="foo=1: no such setting; there are model, device, dtype, "):
        gptsweep.load(foo=1)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"sampling\.sart=a: no such setting; did you mean start\?"):
        gptsweep.sweep(lm, sart="a")


def test_a_model_that_is_none_is_one_clear_line() -> None:
    with pytest.raises(ModelError, match="model=nope: is not a known model, a directory, or a hub id"):
        gptsweep.load("nope")
    with pytest.raises(ModelError, match=r"model=gpt2-medum: .*did you mean gpt2-medium\?"):
        gptsweep.load("gpt2-medum")
    with pytest.raises(ModelError, match="model=5: must be a directory"):
        gptsweep.load(5)  # type: ignore[arg-type]
    for name in ("a" * 5000, "b" * 300 + "/c", "~nobody-there/model"):
        with pytest.raises(ModelError, match=re.escape(name[:150])):
            gptsweep.load(name)
    package = str(Path(gptsweep.__file__).parent)
    with pytest.raises(ModelError, match=r"model\.file=aaa.*: cannot be read: File name too long; give a file in "):
        gptsweep.load(package, file="a" * 300)
    for name in (os.devnull, "report"):
        with pytest.raises(ModelError, match=rf"model\.file={name}: cannot be read: Not a regular file; give a file in "):
            gptsweep.load(package, file=name)
    with pytest.raises(ModelError, match=r"model\.out_dir=aaa.*: cannot be read: File name too long"):
        open_checkpoint(ModelSource(name="resume", out_dir="a" * 300))
    with pytest.raises(ModelError, match="lm=shakespeare: must be a loaded model"):
        gptsweep.sweep("shakespeare")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"device\.threads=two: must be a whole number, or null"):
        gptsweep.load("shakespeare", threads="two")  # type: ignore[arg-type]


def test_a_setting_is_the_same_whatever_type_its_value_has(lm: LM) -> None:
    plain_settings = Sampling(temperature=1.0, top_k=50, top_p=0.5, logit_bias=((3, 1.0),), stop=("a",), num_samples=2)
    same = [
        {"temperature": 1, "top_k": 50.0, "top_p": 0.5, "logit_bias": {3: 1}, "stop": "a", "num_samples": 2},
        {"temperature": np.float64(1), "top_k": np.int32(50), "top_p": np.float32(0.5), "num_samples": np.uint8(2),
         "logit_bias": {np.int64(3): np.float32(1)}, "stop": np.array(["a"])},
        {"temperature": torch.tensor(1.0), "top_k": torch.tensor(50), "top_p": np.array(0.5), "num_samples": 2.0,
         "logit_bias": [(3.0, 1)], "stop": pd.Series(["a"])},
    ]  # fmt: skip
    prompts = encoded(lm, (gptsweep.records.Prompt("0", "A"),))
    for settings in same:
        sampling = sampling_of(**settings)
        assert repr(sampling) == repr(plain_settings)
        points = [Point(sampling=found, seed=seed) for found, seed in ((plain_settings, 3), (sampling, np.uint64(3)))]  # type: ignore[arg-type]
        assert len({Task.of(lm, point, prompts).point_id for point in points}) == 1


def test_any_collection_is_swept_over(lm: LM) -> None:
    short = {"start": "A", "num_samples": 1, "max_new_tokens": 1}
    frame = gptsweep.sweep(lm, **short, temperature=[0.5, 1.0], top_k=[5, 20], seed=[1, 2])
    for values in (
        {"temperature": np.linspace(0.5, 1, 2), "top_k": pd.Series([5, 20]), "seed": range(1, 3)},
        {"temperature": torch.tensor([0.5, 1.0]), "top_k": iter((5.0, 20.0)), "seed": (seed for seed in (1, 2))},
        {"temperature": frame["temperature"].unique(), "top_k": pd.Index([5, 20]), "seed": {1: "", 2: ""}.keys()},
    ):
        pd.testing.assert_frame_equal(gptsweep.sweep(lm, **short, **values), frame)
    some = gptsweep.sweep(lm, **short, top_k=[5, None])
    for column in (some["top_k"], some["top_k"].astype("Int64").unique()):
        pd.testing.assert_frame_equal(gptsweep.sweep(lm, **short, top_k=column), some)
    assert len(gptsweep.sweep(lm, **short, stop=[["a"], []], logit_bias=[{3: 1}, {}])) == 4
    assert len(gptsweep.sweep(lm, **short, stop=["a", "b"], logit_bias={3: 1})) == 1
    with pytest.raises(ConfigError, match=re.escape("sampling.temperature=[]: must be a number")):
        gptsweep.sweep(lm, **short, temperature=[])


def test_a_dtype_answers_to_its_short_name(lm: LM) -> None:
    for short, name in (("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")):
        assert DeviceSettings(dtype=short) == DeviceSettings(dtype=name)


def test_unknown_characters_and_empty_prompts_are_reported(lm: LM) -> None:
    with pytest.raises(PromptError, match="Z"):
        lm.generate("AZ")
    with pytest.raises(PromptError, match="empty"):
        lm.generate(["A", ""])
    assert lm.generate([], overflow="stop") == []


# -- devices -----------------------------------------------------------------------------------------------------------------


def test_devices_and_dtypes_that_are_not_there_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "cuda:3", "mps"):
        with pytest.raises(DeviceError, match=f"device.name={name}: is not available; this machine has cpu"):
            resolve_device(name)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="this machine has cpu, cuda:0, cuda:1"):
        resolve_device("cuda:2")
    assert resolve_dtype("auto", torch.device("cpu")) == resolve_dtype("auto", torch.device("mps")) == "float32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert resolve_dtype("auto", torch.device("cuda")) == "float16"
    with pytest.raises(DeviceError, match=r"device\.dtype=int8: int8 needs a CPU"):
        resolve_dtype("int8", torch.device("cuda"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_every_dtype_of_a_cpu_generates(out_dir: Path, dtype: str) -> None:
    lm = gptsweep.load(out_dir, device="cpu", dtype=dtype, max_rows=3)
    assert lm.dtype == dtype
    samples = lm.generate("AB", num_samples=5, max_new_tokens=20)
    assert all(len(sample.token_ids) == 20 for sample in samples)
    assert lm.promise == can_pack(getattr(torch, dtype)), "no more than this CPU can keep, and no less"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_cpu_without_packed_layers_of_a_dtype_generates_and_promises_nothing(
    out_dir: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "can_pack", lambda _dtype: False)
    one = dataclasses.replace(point(out_dir), device=DeviceSettings(name="cpu", dtype=dtype))
    (outcome,) = settle(Job(one, tmp_path / "a"))
    assert outcome.error is None
    assert len(lines(tmp_path / "a")) == 3
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["promise"] is False
    assert "samples may differ with the number of rows decoded together (promise: false)" in caplog.text


def test_int8_that_had_to_be_mended_is_not_taken_for_what_was_wrong(out_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where int8 sums overflowed in 0.1 the samples differ, so the points do; with VNNI both stay as they are."""
    if not can_pack(torch.int8):
        pytest.skip("oneDNN has no int8 layers for this CPU")
    ids, arithmetic = [], []
    for exact in (True, False):
        monkeypatch.setattr(linear, "onednn_sums_exactly", lambda *_shape, exact=exact: exact)
        lm = gptsweep.load(out_dir, device="cpu", dtype="int8")
        arithmetic.append(lm.arithmetic)
        ids.append(lm.generate("AB", max_new_tokens=2)[0].point_id)
        assert lm.dtype == "int8"
    assert arithmetic == ["int8", "int8 in halves"]
    assert ids[0] != ids[1]
    point = Point(model=lm.source, device=lm.device, sampling=Sampling(num_samples=1, max_new_tokens=2))
    known = {"weights": lm.fingerprint, "tokenizer": lm.tokenizer.fingerprint, "device_type": "cpu"}
    assert ids[0] == point_id(point, prompts=(Prompt("0", "AB"),), dtype="int8", **known)


def test_the_thread_count_is_set(out_dir: Path, threads: None) -> None:
    gptsweep.load(out_dir, device="cpu", threads=2)
    assert torch.get_num_threads() == 2


@pytest.fixture
def small_dir(tmp_path: Path) -> Path:
    """One layer: compiling takes long enough."""
    config = dataclasses.replace(CONFIG, n_layer=1)
    save_nanogpt(tmp_path, plain.peaked_gpt(config, seed=5).requires_grad_(True))
    save_meta(tmp_path / "meta.pkl", CHARACTERS)
    return tmp_path


def test_no_compiler_is_one_clear_line(small_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch._inductor.config as inductor  # late: a second of imports

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch.compiler.reset()
    with (
        inductor.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(DeviceError, match=r"device.compile=True: torch.compile does not work here .*g\+\+") as raised,
    ):
        gptsweep.load(small_dir, device="cpu", compile=True)
    assert "\n" not in str(raised.value)
    torch.compiler.reset()


@pytest.mark.skipif(not any(os.access(Path(p) / "g++", os.X_OK) for p in os.get_exec_path()), reason="no g++ on this machine")
def test_a_compiled_model_generates_what_a_plain_one_does(small_dir: Path) -> None:
    compiled, plainly = (gptsweep.load(small_dir, device="cpu", compile=compile) for compile in (True, False))
    settings = {"num_samples": 3, "max_new_tokens": 8, "seed": 3}
    assert [s.token_ids for s in compiled.generate("AB", **settings)] == [
        s.token_ids for s in plainly.generate("AB", **settings)
    ]


# -- run directories ---------------------------------------------------------------------------------------------------------


def point(out_dir: Path, **sampling: Any) -> Point:
    known = {"start": "A", "seed": 1}
    outer = {name: sampling.pop(name, value) for name, value in known.items()}
    settings = {"num_samples": 3, "max_new_tokens": 8, "temperature": 1.2, **sampling}
    source = ModelSource(name="resume", out_dir=str(out_dir))
    return Point(model=source, device=DeviceSettings(name="cpu"), sampling=Sampling(**settings), **outer)


def settle(*jobs: Job) -> list[Outcome]:
    """The outcomes of ``jobs``, in their order."""
    with Progress(quiet=True) as progress:
        found = {outcome.job: outcome for outcome in run_jobs(jobs, progress, LocalExecutor(TorchBackends()))}
    assert len(found) == len(jobs)
    return [found[job] for job in jobs]


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]


def test_a_run_leaves_samples_summary_and_manifest(out_dir: Path, tmp_path: Path, lm: LM) -> None:
    (outcome,) = settle(Job(point(out_dir), tmp_path / "a"))
    assert outcome.error is None
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"samples.jsonl", "summary.csv", "manifest.json"}
    wanted = lm.generate("A", num_samples=3, max_new_tokens=8, temperature=1.2, seed=1)
    assert [line["token_ids"] for line in lines(tmp_path / "a")] == [list(sample.token_ids) for sample in wanted]
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["lines"] == 3
    assert manifest["promise"] is True
    row = pd.read_csv(tmp_path / "a" / "summary.csv").iloc[0]
    assert row["num_samples"] == 3
    assert row["finish_length"] == 3
    assert row["completion_tokens"] == 24
    assert outcome.summary is not None
    assert row["logprob_mean"] == pytest.approx(outcome.summary["logprob_mean"])


def test_again_redoes_nothing_and_changes_no_byte(out_dir: Path, tmp_path: Path, passes: list[int]) -> None:
    job = Job(point(out_dir), tmp_path / "a")
    (first,) = settle(job)
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    passes.clear()
    (second,) = settle(job)
    assert passes == []
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert second.summary == first.summary


def test_a_point_extended_on_another_kind_of_machine_says_so_and_promises_nothing(
    out_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def manifest(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((tmp_path / name / "manifest.json").read_text())
        return found

    names = ("a", "b")
    settle(*(Job(point(out_dir, num_samples=2), tmp_path / name) for name in names))
    assert all(manifest(name)["promise"] is True for name in names)
    (part,) = manifest("a")["parts"]
    assert part["made_by"]["torch"] == torch.__version__
    assert part["made_by"]["processor"]
    machine = torch_backend._machine
    monkeypatch.setattr(torch_backend, "_machine", lambda device: machine(device) | {"instructions": "other"})
    settle(*(Job(point(out_dir, num_samples=2), tmp_path / name) for name in names))
    assert all(manifest(name)["promise"] is True for name in names), "nothing was made"
    settle(*(Job(point(out_dir, num_samples=3), tmp_path / name) for name in names))
    assert all(manifest(name)["promise"] is False for name in names)
    assert caplog.text.count("now other), so bits may differ (promise: false)") == 1
    assert [part["samples"] for part in manifest("a")["parts"]] == [[[0, 0, 1]], None]


@pytest.mark.parametrize("rng", ["counter", "torch"])
def test_more_samples_extend_a_point_and_are_those_of_a_fresh_run(out_dir: Path, tmp_path: Path, rng: str) -> None:
    settle(Job(point(out_dir, rng=rng, num_samples=2), tmp_path / "a"))
    earlier = (tmp_path / "a" / "samples.jsonl").read_bytes()
    settle(Job(point(out_dir, rng=rng, num_samples=5), tmp_path / "a"))
    settle(Job(point(out_dir, rng=rng, num_samples=5), tmp_path / "b"))
    extended = (tmp_path / "a" / "samples.jsonl").read_bytes()
    assert extended.startswith(earlier)
    assert extended == (tmp_path / "b" / "samples.jsonl").read_bytes()


def test_greedy_points_of_different_seeds_are_decoded_once(
    out_dir: Path, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    run = Engine.run

    def counted(self: Engine, *arguments: Any) -> Any:
        rows.append(arguments[1].rows)
        return run(self, *arguments)

    monkeypatch.setattr(Engine, "run", counted)
    jobs = [
        Job(point(out_dir, temperature=0, seed=seed, top_k=top_k), tmp_path / f"{seed}-{top_k}")
        for seed in (1, 2, 3) for top_k in (None, 5)
    ]  # fmt: skip
    settle(*jobs)
    assert rows == [1]
    assert sum(passes) == 8
    texts = {tuple(line["token_ids"]) for job in jobs for line in lines(job.directory)}
    assert len(texts) == 1


def test_equal_points_in_two_directories_are_decoded_once(out_dir: Path, tmp_path: Path, passes: list[int]) -> None:
    settle(Job(point(out_dir), tmp_path / "a"))
    once = sum(passes)
    passes.clear()
    settle(Job(point(out_dir), tmp_path / "b"), Job(point(out_dir), tmp_path / "c"))
    assert sum(passes) == once
    a, b, c = ((tmp_path / name / "samples.jsonl").read_bytes() for name in "abc")
    assert a == b == c


def test_an_error_of_one_job_leaves_the_others_alone(out_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "missing").mkdir()
    nowhere = dataclasses.replace(point(out_dir), model=ModelSource(name="resume", out_dir=str(tmp_path / "missing")))
    settle(Job(point(out_dir, seed=99), tmp_path / "taken"))
    outcomes = settle(
        Job(point(out_dir, start="Z"), tmp_path / "unknown"),
        Job(nowhere, tmp_path / "nowhere"),
        Job(point(out_dir, logit_bias=((1000, 1.0),)), tmp_path / "bias"),
        Job(point(out_dir, seed=5), tmp_path / "taken"),
        Job(point(out_dir), tmp_path / "good"),
    )
    assert [type(outcome.error) for outcome in outcomes] == [PromptError, ModelError, ConfigError, ResultsError, type(None)]
    assert len(lines(tmp_path / "good")) == 3
    assert {line["seed"] for line in lines(tmp_path / "taken")} == {99}


def test_a_directory_that_cannot_be_written_fails_its_own_point_once(
    out_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, refused = PointWriter.add, []

    def sometimes(self: PointWriter, samples: Any, *more: Any) -> None:
        if self.directory.name == "bad" and samples and not refused:
            refused.append(samples)
            raise ResultsError("name", str(self.directory), "cannot be written just now")
        add(self, samples, *more)

    monkeypatch.setattr(PointWriter, "add", sometimes)
    # Samples of different lengths, so that some are written before the last is there.
    settings = {"num_samples": 12, "stop": ("e", "a", "i"), "max_new_tokens": 20, "temperature": 1.5}
    bad, good = Job(point(out_dir, **settings), tmp_path / "bad"), Job(point(out_dir, seed=2, **settings), tmp_path / "good")
    with Progress(quiet=True) as progress:
        outcomes = list(run_jobs([bad, good], progress, LocalExecutor(TorchBackends())))
    assert refused
    assert sorted((o.job.directory.name, type(o.error)) for o in outcomes if o.error) == [("bad", ResultsError)]
    assert len(outcomes) == 2
    assert not (tmp_path / "bad" / "manifest.json").exists()
    assert len(lines(tmp_path / "good")) == 12
    monkeypatch.undo()
    settle(bad)
    settle(dataclasses.replace(bad, directory=tmp_path / "fresh"))
    assert (tmp_path / "bad" / "samples.jsonl").read_bytes() == (tmp_path / "fresh" / "samples.jsonl").read_bytes()


@pytest.fixture
def quiet_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.CRITICAL):
        yield caplog


def test_what_finished_before_sigterm_is_kept_and_the_rest_comes_out_the_same(
    out_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_log: pytest.LogCaptureFixture
) -> None:
    settings = {"num_samples": 8, "max_new_tokens": 12, "temperature": 1.5}
    whole, cut = (Job(point(out_dir, **settings), tmp_path / name) for name in ("whole", "cut"))
    whole, cut = (
        dataclasses.replace(job, point=dataclasses.replace(job.point, device=DeviceSettings(name="cpu", max_rows=2)))
        for job in (whole, cut)
    )
    settle(whole)

    class Impatient(Progress):
        def update(self, **counts: Any) -> None:
            super().update(**counts)
            if counts["rows_done"] == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted), Impatient(quiet=True) as progress:
        list(run_jobs([cut], progress, LocalExecutor(TorchBackends())))
    assert not (cut.directory / "manifest.json").exists()
    kept = (cut.directory / "samples.partial.jsonl").read_text().splitlines()
    assert len(kept) == 4
    counts: list[int] = []
    run = LocalExecutor.run

    def watched(self: LocalExecutor, model: Any, plan: Plan, *rest: Any) -> Any:
        counts.append(plan.workload.rows)
        return run(self, model, plan, *rest)

    monkeypatch.setattr(LocalExecutor, "run", watched)
    settle(cut)
    assert counts == [4]
    assert (cut.directory / "samples.jsonl").read_bytes() == (whole.directory / "samples.jsonl").read_bytes()


def test_an_objective_is_a_number_of_the_summary() -> None:
    summary = {"logprob_mean": -1.5, "lines": 3, "model": "gpt2", "distinct_2": None, "flag": True}
    assert objective_of(summary, "logprob_mean") == -1.5
    assert objective_of(summary, "lines") == 3.0
    with pytest.raises(ConfigError, match="objective=distinct_2: has no value for this point"):
        objective_of(summary, "distinct_2")
    require_objective("entropy_mean")
    require_objective(None)
    with pytest.raises(ConfigError, match=r"objective=perplexitty: must be one of .*logprob_mean"):
        require_objective("perplexitty")


def test_a_directory_that_holds_another_point_names_the_setting_that_differs(out_dir: Path, tmp_path: Path) -> None:
    source, device = ModelSource(name="resume", out_dir=str(out_dir)), DeviceSettings(name="cpu")

    def run_with(seed: int, **sampling: Any) -> Outcome:
        settings = Sampling(num_samples=1, max_new_tokens=2, **sampling)
        point = Point(model=source, device=device, sampling=settings, start="A", seed=seed)
        (outcome,) = run_jobs([Job(point, tmp_path / "x")], Progress(quiet=True), LocalExecutor(TorchBackends()))
        return outcome

    assert run_with(1, temperature=0.5).error is None
    assert "another point (sampling.temperature=0.5 there and 0.7 here)" in str(run_with(1, temperature=0.7).error)
    assert "another point (seed=1 there and 2 here)" in str(run_with(2, temperature=0.5).error)
