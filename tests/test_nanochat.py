"""nanochat's models: the logits and tokens of its own code, of every era; and the same in any batch, from any step."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nanochat_twin import CONSTANTS, DATA, SHAPE, random_weights, save_nanochat, twin_logits
from plain import UNDECIDED, decode

import gptsweep
from gptsweep.engine import model_runner
from gptsweep.engine.engine import Engine
from gptsweep.records import Row, Sampling

PATTERNS: tuple[str | None, ...] = (None, "L", "SSL", "SL")


def loaded(era: str, pattern: str | None = None, seed: int = 0, **settings: Any) -> tuple[gptsweep.LM, dict[str, Any], Any]:
    """A random checkpoint of an era, loaded in float32, with what its files hold."""
    shape = SHAPE | ({} if pattern is None else {"window_pattern": pattern})
    weights = random_weights(era, shape, seed)
    directory = save_nanochat(Path("base_checkpoints/d3"), weights, shape)
    settings |= {"softcap": 20} if era == "D" else {}
    return gptsweep.load(directory, dtype="float32", device="cpu", **settings), weights, shape


def ids_of(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SHAPE["vocab_size"], (count,), generator=generator).tolist()


@pytest.mark.parametrize("era", ["A", "B", "C", "F"])
def test_logits_and_greedy_tokens_are_those_of_nanochats_own_code(era: str) -> None:
    expected = json.loads((DATA / era / "expected.json").read_text())
    lm = gptsweep.load(DATA / era, dtype="float32", device="cpu")
    with torch.inference_mode():
        logits = lm.model(torch.tensor([expected["ids"]]))[0]
    for place, name in (199, "logits_200"), (-1, "logits_last"):
        assert (logits[place] - torch.tensor(expected[name])).abs().max() < 1e-4
    greedy = Row(prompt_ids=tuple(expected["prompt"]), sampling=Sampling(max_new_tokens=60, temperature=0.0), noise_key=0)
    warm = [
        Row(prompt_ids=tuple(expected["prompt"][:count]), sampling=Sampling(max_new_tokens=9), noise_key=count)
        for count in (1, 2, 64, 65, 150)
    ]
    (found,) = [completion for completion in lm.engine.run([*warm, greedy]) if completion.row is greedy]
    assert list(found.token_ids) == expected["greedy"]
    assert lm.tokenizer.encode(expected["text"])[1:] == expected["text_ids"]
    assert lm.generate(expected["text"], max_new_tokens=1)[0].prompt_tokens == 1 + len(expected["text_ids"])


@pytest.mark.parametrize("era", list(CONSTANTS))
def test_logits_of_every_era_are_those_of_its_plain_twin(era: str) -> None:
    for pattern in PATTERNS if "short" in CONSTANTS[era] else (None,):
        lm, weights, shape = loaded(era, pattern)
        ids = ids_of(280)
        with torch.inference_mode():
            found = lm.model(torch.tensor([ids]))[0]
        assert found.shape == (280, SHAPE["vocab_size"])
        assert (found - twin_logits(weights, shape, era, ids)).abs().max() < 1e-4


def test_no_two_eras_are_alike() -> None:
    ids = ids_of(280)
    shape = SHAPE | {"window_pattern": "SSL"}
    of_c, of_e = random_weights("C", shape), random_weights("E", shape)
    for weights, eras in (of_c, "CD"), (of_e, "EF"):
        weights = weights | {name: weight for name, weight in random_weights("F", shape).items() if "smear" in name}
        weights["backout_lambda"] = torch.zeros(1)
        a, b = (twin_logits(weights, shape, era, ids) for era in eras)
        assert (a - b).abs().max() > 1e-2


def short_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are read a few tokens at a time."""
    monkeypatch.setattr(model_runner, "_TOKENS_PER_PASS", 7)


@pytest.mark.parametrize(("era", "how"), [*((era, "kernels") for era in CONSTANTS), ("F", "plain"), ("F", "graphs")])
def test_decoding_in_a_mixed_batch_gives_what_reading_everything_anew_does(
    era: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_prefill(monkeypatch)
    lm, _, _ = loaded(era, "SSL" if "short" in CONSTANTS[era] else None)
    prompt = ids_of(140)
    rows = [
        Row(
            prompt_ids=tuple(prompt[:count]),
            sampling=Sampling(max_new_tokens=4, temperature=temperature),
            noise_key=3,
            sample_index=sample,
        )
        for count in (1, 2, 17, 140)
        for temperature, sample in ((0.0, 0), (0.9, 0), (0.9, 1))
    ]
    engine = Engine(lm.model, vocab_size=SHAPE["vocab_size"], max_rows=5, use_kernels=how == "kernels")
    engine.use_graphs = how == "graphs"
    for completion in engine.run(rows):
        twin = decode(lm.model, completion.row, SHAPE["vocab_size"])
        sure = next((at for at, margin in enumerate(twin.margins) if margin < UNDECIDED), len(twin.margins))
        assert list(completion.token_ids[:sure]) == twin.token_ids[:sure]
        if sure == len(twin.margins):
            assert completion.logprob_mean == pytest.approx(sum(twin.logprobs) / len(twin.logprobs), abs=1e-4)


@settings(max_examples=10)
@given(data=st.data())
def test_a_sample_is_the_same_alone_and_in_a_batch(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    era = data.draw(st.sampled_from(list(CONSTANTS)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("nanochat"))
        lm, _, _ = loaded(era, data.draw(st.sampled_from(PATTERNS)) if era != "A" else None)
    assert lm.promise
    prompts = [tuple(ids_of(data.draw(st.integers(1, 40)), seed)) for seed in range(3)]
    rows = [
        Row(prompt_ids=prompt, sampling=Sampling(max_new_tokens=8, temperature=1.1), noise_key=1, sample_index=sample)
        for prompt in (*prompts, prompts[0] + prompts[1])
        for sample in range(3)
    ]
    together = {completion.row: completion for completion in lm.engine.run(rows)}
    chosen = data.draw(st.sampled_from(rows))
    (alone,) = lm.engine.run([chosen])
    assert alone == together[chosen]


def test_a_window_that_moves_has_no_token_before_its_first(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SHAPE | {"sequence_len": 12}
    weights = random_weights("F", shape)
    lm = gptsweep.load(save_nanochat(Path("base/d3"), weights, shape), dtype="float32", device="cpu")
    for overflow in ("crop", "rebase"):
        sampling = Sampling(max_new_tokens=20, temperature=0.0, overflow=overflow)
        row = Row(prompt_ids=tuple(ids_of(9)), sampling=sampling, noise_key=0)
        (found,) = lm.engine.run([row])
        twin = decode(lm.model, row, SHAPE["vocab_size"])
        assert min(twin.margins) > UNDECIDED
        assert list(found.token_ids) == twin.token_ids


@pytest.mark.parametrize("era", ["B", "C", "F"])
def test_past_the_context_a_sample_goes_on_as_nanochat_does_for_ten_times_as_far(era: str) -> None:
    shape = SHAPE | {"sequence_len": 12} | ({"window_pattern": "SL"} if era != "B" else {})
    weights = random_weights(era, shape)
    lm = gptsweep.load(save_nanochat(Path("base/d3"), weights, shape), dtype="float32", device="cpu")
    sampling = Sampling(max_new_tokens=200, temperature=0.0, overflow="extend")
    prompt = ids_of(9)
    (found,) = lm.engine.run([Row(prompt_ids=tuple(prompt), sampling=sampling, noise_key=0)])
    assert (found.finish_reason, len(found.token_ids)) == ("overflow", 120 - 9 + 1)
    logits = twin_logits(weights, shape, era, [*prompt, *found.token_ids[:-1]])[8:]
    best = logits.topk(2)
    sure = best.values[:, 0] - best.values[:, 1] > UNDECIDED
    assert sure.sum() > 100
    assert torch.equal(best.indices[sure, 0], torch.tensor(found.token_ids)[sure])
    assert lm.generate("the", max_new_tokens=15)[0].sampling.overflow == "extend"  # what auto stands for


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_dtypes_compute_about_the_same(dtype: str) -> None:
    _, weights, shape = loaded("F")
    ids = ids_of(60)
    wanted = twin_logits(weights, shape, "F", ids).log_softmax(-1)
    other = gptsweep.load("base_checkpoints/d3", dtype=dtype, device="cpu")
    with torch.inference_mode():
        found = other.model(torch.tensor([ids]))[0].float().log_softmax(-1)
    kept = wanted > wanted.max(-1, keepdim=True).values - 5
    assert (found - wanted)[kept].abs().mean() < 0.2


def test_the_log_says_the_era_the_soft_cap_and_what_stands_before_a_prompt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    loaded("C")
    assert "step 100, as nanochat's code of 2026-01-16 computes: soft cap 15" in caplog.text
    assert "model.softcap=20" in caplog.text
    assert "'<|bos|>' before each prompt" in caplog.text
    caplog.clear()
    loaded("D")
    assert "soft cap 20" in caplog.text
    assert "model.softcap=20" not in caplog.text
