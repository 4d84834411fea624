"""What a user would lose: a look inside each sample that is right, survives what samples survive, and costs them no byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from model_files import save_llama
from sweeps import Run, samples_of, save_checkpoint
from test_sweep_resume import decoded  # noqa: F401  the fixture
from transformers import LlamaForCausalLM

import gptsweep
from gptsweep.api import LM
from gptsweep.engine.logprobs import likeliest
from gptsweep.errors import ConfigError
from gptsweep.records import LOGPROB_DIGITS, Row, Sample
from gptsweep.store.durable import seal
from gptsweep.store.logprobs import parsed

SMALL = ("model=resume", "start=ab", "sampling.max_new_tokens=6", "sampling.num_samples=3", "quiet=true", "device=cpu")
ON = "sampling.logprobs=3"
ROUNDED = 0.51 * 10**-LOGPROB_DIGITS


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokens are single bytes, which are seldom characters."""
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def lm(bytewise: Path) -> LM:
    return gptsweep.load(bytewise, device="cpu")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "out", seed=1)
    return tmp_path


def logprobs_in(directory: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in directory.glob("**/logprobs.jsonl")}


# -- the values --------------------------------------------------------------------------------------------------------------


def logits_at(bytewise: Path, lm: LM, sample: Sample) -> torch.Tensor:
    """The logits of transformers at each token of a sample, ``[tokens, vocab_size]``."""
    prompt = lm.tokenizer.encode(sample.prompt)
    model = LlamaForCausalLM.from_pretrained(bytewise, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([[*prompt, *sample.token_ids]])).logits[0, len(prompt) - 1 : -1]


def test_values_are_those_of_transformers(bytewise: Path, lm: LM) -> None:
    [sample] = lm.generate("Once", max_new_tokens=20, temperature=1.4, top_k=None, logprobs=4, seed=3)
    assert sample.logprobs is not None
    logs = logits_at(bytewise, lm, sample).double().log_softmax(-1)
    for token, found, row in zip(sample.token_ids, sample.logprobs.tokens, logs, strict=True):
        assert found.logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert found.entropy == pytest.approx(-(row.exp() * row).sum().item(), abs=1e-4)
        assert abs(found.rank - 1 - int((row > row[token]).sum())) <= int(((row - row[token]).abs() < 1e-5).sum()) - 1
        assert found.top_logprobs == pytest.approx(row.topk(4).values.tolist(), abs=1e-4)
        assert row[list(found.top_ids)].tolist() == pytest.approx(row.topk(4).values.tolist(), abs=1e-4)


@pytest.mark.parametrize("rng", ["counter", "torch"])
@pytest.mark.parametrize(
    "sampling", [{"top_k": 7}, {"top_p": 0.6, "order": "llama"}, {"temperature": 0}, {"top_h": 0.5, "logit_bias": {3: -1e30}}]
)
def test_the_sampler_and_its_survivors_are_those_of_the_distribution(
    bytewise: Path, lm: LM, rng: str, sampling: dict[str, object]
) -> None:
    if rng == "torch" and len(sampling) > 1:
        pytest.skip("nanoGPT has temperature and top_k alone")
    settings = {"temperature": 0.9, "top_k": None, "max_new_tokens": 8, "logprobs": 2} | sampling
    [sample] = lm.generate("Once", rng=rng, **settings)
    assert sample.logprobs is not None
    for token, found, row in zip(sample.token_ids, sample.logprobs.tokens, logits_at(bytewise, lm, sample), strict=True):
        chances = gptsweep.distribution(row, **{name: value for name, value in settings.items() if name != "max_new_tokens"})
        assert found.survivors == np.count_nonzero(chances)
        assert found.sampler_logprob == pytest.approx(np.log(chances[token]), abs=1e-4)


def test_means_are_those_of_the_sample_and_nothing_else_changes(lm: LM) -> None:
    for sample in lm.generate(["a", "bc"], num_samples=2, max_new_tokens=9, logprobs=1):
        assert sample.logprobs is not None
        for name in ("logprob", "sampler_logprob", "entropy"):
            values = [getattr(token, name) for token in sample.logprobs.tokens]
            assert np.mean(values) == pytest.approx(getattr(sample, f"{name}_mean"), abs=ROUNDED)
    with_them, without = (lm.generate("a", max_new_tokens=9, logprobs=n) for n in (2, 0))
    assert [sample.line() for sample in with_them] == [sample.line() for sample in without]
    assert without[0].logprobs is None


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=3), st.integers(1, 6))
@example([[0, 0, 0, 0, 0, 0]], 2)
def test_of_equally_likely_tokens_the_lower_id_comes_first(rows: list[list[int]], n: int) -> None:
    ids, values = likeliest(torch.tensor(rows, dtype=torch.float32), n)
    assert ids.tolist() == [sorted(range(6), key=lambda token: (-row[token], token))[:n] for row in rows]
    assert values.tolist() == [sorted(row, reverse=True)[:n] for row in rows]


def test_texts_of_tokens_make_up_the_completion_whatever_its_bytes(lm: LM) -> None:
    samples = lm.generate("a", num_samples=4, max_new_tokens=30, temperature=1.5, top_k=None, logprobs=2)
    samples += lm.generate(
        "a", num_samples=8, max_new_tokens=30, temperature=1.5, top_k=None, logprobs=2, stop=["e", "m", "\x00"]
    )
    for sample in samples:
        found = sample.logprobs
        assert found is not None
        assert list(found.ends) == sorted(found.ends)
        assert len(found.ends) == len(sample.token_ids)
        assert found.ends[-1] == len(sample.completion)
        assert {token: lm.tokenizer.decode([token]) for token in found.texts} == found.texts
    assert any(sample.finish_reason == "stop" for sample in samples)


@pytest.mark.parametrize("logprobs", [-1, 1001, 2.5])
def test_a_number_of_alternatives_that_makes_no_sense_is_an_error(logprobs: float) -> None:
    with pytest.raises(ConfigError, match="logprobs"):
        gptsweep.records.Sampling(logprobs=logprobs)  # type: ignore[arg-type]


# -- the file ----------------------------------------------------------------------------------------------------------------


def test_samples_keep_every_byte_and_the_tokens_are_a_frame(run: Run, place: Path) -> None:
    sweep = ("-m", *SMALL, "seed=1,2", "sampling.temperature=0,1")
    assert run(*sweep, "name=without").status == 0
    assert run(*sweep, "name=with", ON).status == 0
    sweeps = place / "outputs/sweeps"
    assert samples_of(sweeps / "with") == samples_of(sweeps / "without")
    assert not logprobs_in(sweeps / "without")
    assert {path.name for path in (sweeps / "with").iterdir()} == {path.name for path in (sweeps / "without").iterdir()}
    found = gptsweep.read_sweep(sweeps / "with")
    tokens = found.tokens
    assert len(tokens) == found.samples["completion_tokens"].sum() > 0
    assert gptsweep.read_sweep(sweeps / "without").tokens.empty
    for label, rows in tokens.groupby("sample"):
        sample = found.samples.loc[label]
        assert rows["token_id"].tolist() == sample["token_ids"].tolist()
        assert (
            "".join(sample["completion"][begin:end] for begin, end in zip(rows["begin"], rows["end"], strict=True))
            == (sample["completion"])
        )
        assert rows["text"].str.cat() == sample["completion"]
        assert rows["logprob"].mean() == pytest.approx(sample["logprob_mean"], abs=ROUNDED)
        assert rows["point"].unique().tolist() == [sample["point"]]
    assert set(tokens["top_ids"].str.len()) == set(tokens["top_texts"].str.len()) == {3}


def test_a_finished_point_gets_what_is_missing_and_no_more(run: Run, place: Path, decoded: list[Row]) -> None:  # noqa: F811
    one = place / "outputs/runs/one"
    assert run(*SMALL, ON, "name=fresh").status == 0
    fresh = logprobs_in(place / "outputs/runs")["fresh"]
    assert run(*SMALL, "name=one").status == 0
    before = (one / "samples.jsonl").read_bytes()
    decoded.clear()
    assert run(*SMALL, "name=one", ON).status == 0
    assert len(decoded) == 3
    assert (one / "logprobs.jsonl").read_bytes() == fresh
    assert (one / "samples.jsonl").read_bytes() == before
    assert json.loads((one / "manifest.json").read_text())["logprobs"] == 3
    decoded.clear()
    for enough in ("sampling.logprobs=3", "sampling.logprobs=1", "sampling.logprobs=0"):
        assert run(*SMALL, "name=one", enough).status == 0
    assert not decoded
    assert (one / "logprobs.jsonl").read_bytes() == fresh
    assert run(*SMALL, "name=one", "sampling.logprobs=4").status == 0
    assert len(decoded) == 3
    assert {len(parsed(line)["top_ids"][0]) for line in (one / "logprobs.jsonl").open("rb")} == {4}  # type: ignore[index]
    decoded.clear()
    assert run(*SMALL, "name=one", "sampling.logprobs=4", "sampling.num_samples=5").status == 0
    assert len(decoded) == 2
    assert len((one / "logprobs.jsonl").read_bytes().splitlines()) == 5


def test_a_damaged_or_torn_line_is_made_again(run: Run, place: Path, decoded: list[Row]) -> None:  # noqa: F811
    assert run(*SMALL, ON, "name=one").status == 0
    one = place / "outputs/runs/one"
    whole = (one / "logprobs.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (one / "logprobs.jsonl").write_bytes(lines[0].replace(b'"rank":[', b'"rank":[7') + lines[1])
    (one / "logprobs.partial.jsonl").write_bytes(lines[2][:-9])
    assert [len(rows) for _, rows in gptsweep.read_sweep(one).tokens.groupby("sample")] == [6]
    decoded.clear()
    assert run(*SMALL, ON, "name=one").status == 0
    assert [row.sample_index for row in decoded] == [0, 2]
    assert (one / "logprobs.jsonl").read_bytes() == whole
    assert not (one / "logprobs.partial.jsonl").exists()


def test_samples_that_come_out_otherwise_get_no_foreign_values(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*SMALL, "name=one").status == 0
    one = place / "outputs/runs/one"
    before = {path.name: path.read_bytes() for path in one.glob("*.js*")}
    monkeypatch.setattr("gptsweep.store.writer.json.loads", lambda line: json.JSONDecoder().decode(_other(line)))
    ended = run(*SMALL, ON, "name=one")
    assert ended.status == 2
    assert "another kind of machine" in ended.err
    assert {path.name: path.read_bytes() for path in one.glob("*.js*")} == before


def _other(line: bytes) -> str:
    """A line of samples whose first token is another."""
    return line.decode().replace('"token_ids": [', '"token_ids": [0, ', 1)


def test_overwritten_points_leave_no_old_values(run: Run, place: Path) -> None:
    assert run(*SMALL, ON, "name=one").status == 0
    assert run(*SMALL, "name=one", "seed=2", "overwrite=true").status == 0
    assert not (place / "outputs/runs/one/logprobs.jsonl").exists()


@settings(max_examples=60)
@given(st.data())
def test_no_line_of_a_stranger_is_taken_for_values(data: st.DataObject) -> None:
    line = b'{"schema_version":1,"point_id":"p","prompt_index":0,"sample_index":0,"alternatives":1,"token_ids":[1],"ends":[1],'
    line += b'"logprob":[-1.0],"sampler_logprob":[-1.0],"entropy":[1.0],"rank":[2],"survivors":[5],"top_ids":[[0]],'
    line += b'"top_logprobs":[[-0.5]],"texts":{"0":"a","1":"b"}'
    assert parsed(_sealed(line)) is not None
    assert parsed(_sealed(line)[:-9]) is None
    name, value = data.draw(st.sampled_from(sorted(json.loads(line + b"}").items())))
    strange = data.draw(st.sampled_from([None, [], {}, "x", -1, [["7"]], [None], [1e400], [[0], [0]], [True], 2**31, [1e200]]))
    if value != strange and name not in ("schema_version", "point_id"):
        assert parsed(_sealed(json.dumps(json.loads(line + b"}") | {name: strange}).encode()[:-1])) is None


def _sealed(body: bytes) -> bytes:
    return body + seal(body)
