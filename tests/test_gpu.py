"""What a user with a GPU would lose. Skipped where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import plain
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nanochat_twin import CONSTANTS, DATA
from sweeps import Run, samples_of, save_checkpoint
from test_chain import rows_with_all_steps
from test_engine import (
    ANY_OVERFLOW,
    CONFIG,
    POOL,
    VOCAB,
    assert_is_twin,
    decoders,
    row,
    rows_of_all_kinds,
    twin_of,
    until,
)
from test_engine import run as completions
from test_families import SHAPES, TOLERANCE, config_of, peaked, saved
from test_model import ids_for
from test_nanochat import loaded as nanochat_of
from test_sampling import Unchanging
from torch import Tensor

import gptsweep
from gptsweep.engine import engine as engine_module
from gptsweep.engine.engine import Engine
from gptsweep.errors import DeviceError
from gptsweep.models.decoder import DecoderConfig
from gptsweep.models.loading import load_model, resolve_device
from gptsweep.records import DeviceSettings, ModelSource, Row, Sampling

drawn_on_one_gpu = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


# -- the engine --------------------------------------------------------------------------------------------------------------


def test_it_gives_what_the_twins_are(gpu: str) -> None:
    unpacked = plain.peaked_gpt(CONFIG)
    engine = Engine(plain.peaked_gpt(CONFIG).to(gpu), vocab_size=VOCAB)
    assert not engine.promise
    settings = {"repetition_penalty": 1.2, "top_p": 0.9, "max_new_tokens": 30}
    rows = [
        row(POOL[i], sample_index=i, overflow=overflow, temperature=i % 3 / 2, **settings)
        for i in range(len(POOL)) for overflow in ("crop", "stop", "rebase")
    ]  # fmt: skip
    for completion in completions(engine, rows):
        assert_is_twin(completion, twin_of(unpacked, completion.row))


@drawn_on_one_gpu
@given(decoders(), st.lists(rows_of_all_kinds(ANY_OVERFLOW), min_size=1, max_size=5), st.sampled_from([None, 1, 2]))
def test_any_architecture_gives_what_its_twin_is(
    gpu: str, config: DecoderConfig, rows: list[Row], max_rows: int | None
) -> None:
    twin = plain.peaked_decoder(config)
    engine = Engine(plain.peaked_decoder(config).to(gpu), vocab_size=VOCAB, max_rows=max_rows, stop_matcher=until)
    for completion in completions(engine, rows):
        assert_is_twin(completion, twin_of(twin, completion.row))


@settings(drawn_on_one_gpu, max_examples=60)
@given(rows_with_all_steps())
def test_every_sampler_chooses_what_it_does_on_a_cpu(gpu: str, case: tuple[Tensor, list[Row]]) -> None:
    logits, rows = case
    there = completions(Engine(Unchanging(logits.to(gpu)).to(gpu), vocab_size=len(logits)), rows)
    here = completions(Engine(Unchanging(logits), vocab_size=len(logits), use_kernels=False), rows)
    for a, b in zip(there, here, strict=True):
        assert a.token_ids == b.token_ids
        assert [(c.rank, c.survivors, c.top_ids) for c in a.logprobs] == [(c.rank, c.survivors, c.top_ids) for c in b.logprobs]
        assert a.sampler_logprob_mean == pytest.approx(b.sampler_logprob_mean, rel=1e-4, abs=1e-4)


# -- models ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_greedy_tokens_are_transformers(gpu: str, shape: str, tmp_path: Path) -> None:
    theirs = peaked(config_of(shape))
    model = load_model(
        ModelSource(name="hf", path=str(saved(tmp_path, theirs))), DeviceSettings(name=gpu, dtype="float32")
    ).model
    ids = torch.stack(ids_for(model.config, 40, 40, 40))
    with torch.inference_mode():
        wanted = theirs(ids).logits
        assert (model(ids.to(gpu)).cpu() - wanted).abs().max() < TOLERANCE


@pytest.mark.parametrize("era", list(CONSTANTS))
def test_every_era_of_nanochat_decodes_as_its_logits_say(gpu: str, era: str) -> None:
    lm, _, _ = nanochat_of(era)
    on_gpu = gptsweep.load("base_checkpoints/d3", dtype="float32", device=gpu, **({"softcap": 20} if era == "D" else {}))
    rows = [
        Row(prompt_ids=(5, 3, 9, 2, 7)[:count], sampling=Sampling(max_new_tokens=12, temperature=t), noise_key=1)
        for count in (1, 3, 5)
        for t in (0.0, 1.0)
    ]
    for completion in completions(on_gpu.engine, rows):
        assert_is_twin(completion, plain.decode(lm.model, completion.row, lm.tokenizer.vocab_size))


@pytest.mark.parametrize("era", ["A", "B", "C", "F"])
def test_logits_are_those_of_nanochats_own_code(gpu: str, era: str) -> None:
    expected = json.loads((DATA / era / "expected.json").read_text())
    lm = gptsweep.load(DATA / era, dtype="float32", device=gpu)
    with torch.inference_mode():
        logits = lm.model(torch.tensor([expected["ids"]], device=gpu))[0].cpu()
    for place, name in (199, "logits_200"), (-1, "logits_last"):
        assert (logits[place] - torch.tensor(expected[name])).abs().max() < 1e-4
    greedy = Row(prompt_ids=tuple(expected["prompt"]), sampling=Sampling(max_new_tokens=60, temperature=0.0), noise_key=0)
    (found,) = lm.engine.run([greedy])
    assert list(found.token_ids) == expected["greedy"]


# -- the command and Python --------------------------------------------------------------------------------------------------


@pytest.fixture
def out_dir(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "out", 0)


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_every_dtype_of_a_gpu_generates_and_a_seed_gives_one_text(gpu: str, dtype: str) -> None:
    lm = gptsweep.load(device=gpu, dtype=dtype)
    assert not lm.promise
    texts = [[sample.completion for sample in lm.generate("ROMEO:", num_samples=8, max_new_tokens=20)] for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 8


def texts_of(out_dir: Path, device: str, *, compiled: bool = False, **sampling: Any) -> list[str]:
    """Samples in float32 of the model in ``out_dir``."""
    lm = gptsweep.load(out_dir, dtype="float32", device=device, compile=compiled)
    return [sample.completion for sample in lm.generate("a", num_samples=4, max_new_tokens=30, **sampling)]


def test_nanogpts_stream_gives_the_text_of_a_cpu(gpu: str, out_dir: Path) -> None:
    assert texts_of(out_dir, gpu, rng="torch") == texts_of(out_dir, "cpu", rng="torch")


def test_compiled_layers_give_the_samples_of_the_others(gpu: str, out_dir: Path) -> None:
    assert texts_of(out_dir, gpu, compiled=True) == texts_of(out_dir, gpu)


def test_a_sweep_resumes_and_its_manifests_name_the_gpu(gpu: str, run: Run, out_dir: Path, tmp_path: Path) -> None:
    arguments = (
        "-m", "model=resume", f"model.out_dir={out_dir}", f"device={gpu}", "start=a", "sampling.max_new_tokens=20",
        "sampling.num_samples=3", "sampling.temperature=0,0.8,1.2", "seed=1,2", "name=once", "reference=null",
    )  # fmt: skip
    first = run(*arguments)
    assert first.status == 0, first.err
    sweep = tmp_path / "outputs" / "sweeps" / "once"
    before = samples_of(sweep)
    assert len(before) == 6
    manifest = json.loads(next(sweep.glob("*/manifest.json")).read_text())
    assert (manifest["device"], manifest["promise"]) == (gpu, False)
    lost = next(sweep.glob("*/samples.jsonl"))
    lost.write_bytes(b"".join(lost.read_bytes().splitlines(keepends=True)[:1]))
    (lost.parent / "summary.csv").unlink()
    again = run(*arguments)
    assert again.status == 0, again.err
    assert {name: text.count(b"\n") for name, text in samples_of(sweep).items()} == dict.fromkeys(before, 3)
    assert (sweep / "report.html").exists()


def test_scores_and_features_are_those_of_a_cpu(gpu: str, out_dir: Path) -> None:
    backends = [gptsweep.load(out_dir, device=device, dtype="float32").backend for device in (gpu, "cpu")]
    ids = tuple(i % len("abcdefghijklmno") for i in range(30))
    scores, features = [each.score(ids, 4, 30) for each in backends], [each.features(ids) for each in backends]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert features[0] == pytest.approx(features[1], abs=1e-4)


def test_a_gpu_that_is_not_there_and_int8_are_reported(gpu: str, run: Run, out_dir: Path) -> None:
    if gpu == "cuda":
        with pytest.raises(DeviceError, match=r"device.name=cuda:99: is not available; this machine has cpu, cuda:0"):
            resolve_device("cuda:99")
    ended = run("model=resume", f"model.out_dir={out_dir}", f"device={gpu}", "device.dtype=int8", "start=a")
    assert ended.status == 2
    assert "device.dtype=int8: int8 needs a CPU" in ended.err


def test_auto_is_the_gpu(gpu: str) -> None:
    assert resolve_device("auto").type == gpu


def test_memory_is_planned_from_what_the_gpu_has_free(gpu: str) -> None:
    assert engine_module.available_memory(torch.device(gpu)) > 1e8
