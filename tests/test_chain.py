"""What a user would lose: samplers that do what their papers, ``transformers`` and llama.cpp say.

``data/llama_samplers.json`` holds what llama.cpp made of 64 rows of logits: see its ``source``.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import need_packed
from scipy import stats
from test_sampling import KERNELS, many, run
from torch import Tensor
from transformers.generation import logits_process as hf

import gptsweep
from gptsweep.engine.chain import Rows, chain
from gptsweep.engine.engine import Engine
from gptsweep.engine.history import LogitAdjustments, repeated
from gptsweep.engine.noise import noise_of
from gptsweep.engine.sampler import kernel_samples
from gptsweep.errors import ConfigError
from gptsweep.kernels.abi import ROW
from gptsweep.models.gpt2 import GPTConfig
from gptsweep.models.linear import PackedLinear, pack
from gptsweep.records import SAMPLERS, SETTINGS_OF_0_1, Prefix, Row, Sampling, active_steps, neutral_settings, steps_of

CASES = json.loads((Path(__file__).parent / "data" / "llama_samplers.json").read_text(encoding="utf-8"))["cases"]
NOT_A_NUMBER = {case["logits"][0] for case in CASES if len(case["order"]) > 1 and len(case["logits"]) in (30, 56)}
"""llama.cpp's top_n_sigma leaves -inf among the 20 that its top_k leaves there, so its typical_p sorts 20 distances of NaN:
nothing in the paper's sense, and what the C++ library's sort makes of it keeps every token."""
NEUTRAL = {name: declared.neutral for name, declared in SAMPLERS.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case["order"][:2]))
def test_it_leaves_what_llama_cpp_leaves(case: dict[str, Any]) -> None:
    order = ["temperature" if name == "dynatemp" else name for name in case["order"]]
    settings = {name: value for name, value in case["params"].items() if name != "dry_breakers"}
    if "xtc" in order:
        settings["xtc_probability"] = 1
    if len(order) > 1 and case["logits"][0] in NOT_A_NUMBER:
        del settings["typical_p"]
    found = gptsweep.distribution(
        case["logits"],
        completion_ids=case["history"],
        dry_breakers=case["params"].get("dry_breakers", []),
        order="llama" if len(order) > 1 else order,
        **settings,
    )
    expected = np.full(len(found), -np.inf)
    for token, logit in case["left"]:
        expected[token] = logit
    expected = np.exp(expected - expected.max())
    assert (found > 0).tolist() == (expected > 0).tolist()
    assert found == pytest.approx(expected / expected.sum(), abs=2e-5)


# -- transformers ------------------------------------------------------------------------------------------------------------

WARPERS: dict[str, Any] = {
    "temperature": hf.TemperatureLogitsWarper,
    "top_h": hf.TopHLogitsWarper,
    "top_k": hf.TopKLogitsWarper,
    "top_p": hf.TopPLogitsWarper,
    "min_p": hf.MinPLogitsWarper,
    "typical_p": hf.TypicalLogitsWarper,
    "epsilon_cutoff": hf.EpsilonLogitsWarper,
    "eta_cutoff": hf.EtaLogitsWarper,
}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0.37, 0.9, 1.7]),
    "top_h": st.floats(0.05, 0.95),
    "top_k": st.integers(1, 300),
    "top_p": st.floats(0.05, 0.99),
    "min_p": st.floats(0.01, 0.6),
    "typical_p": st.floats(0.05, 0.99),
    "epsilon_cutoff": st.floats(1e-4, 0.2),
    "eta_cutoff": st.floats(1e-4, 0.2),
}


def drawn(size: int, seed: int, scale: float = 3.0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


@settings(max_examples=120)
@given(
    st.integers(1, 400),
    st.integers(0, 2**32),
    st.lists(st.sampled_from(sorted(WARPERS)), unique=True, min_size=1, max_size=4),
    st.data(),
)
def test_it_leaves_what_transformers_leaves_in_any_order(size: int, seed: int, names: list[str], data: st.DataObject) -> None:
    logits = drawn(size, seed)
    values = {name: data.draw(VALUES[name], label=name) for name in names}
    scores, ids = logits[None], torch.zeros(1, 0, dtype=torch.int64)
    for name in names:
        scores = WARPERS[name](values[name])(ids, scores)
    found = gptsweep.distribution(logits, order=names, **values)
    assert found == pytest.approx(scores.softmax(-1)[0].numpy(), abs=1e-9)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 5), max_size=30), st.lists(st.integers(0, 5), max_size=30), st.integers(0, 4))
def test_penalties_and_bans_are_those_of_transformers(prompt: list[int], new: list[int], n: int) -> None:
    logits = drawn(9, len(prompt) + 40 * len(new))
    ids = torch.tensor([prompt + new], dtype=torch.int64)
    scores = hf.RepetitionPenaltyLogitsProcessor(1.3)(ids, logits[None]) if prompt + new else logits[None]
    scores = hf.NoRepeatNGramLogitsProcessor(n)(ids, scores) if n and prompt + new else scores
    scores = hf.SuppressTokensLogitsProcessor([2, 8])(ids, scores)
    scores = hf.MinNewTokensLengthLogitsProcessor(len(prompt), 10, 7)(ids, scores)
    scores = hf.TopKLogitsWarper(3)(ids, hf.TemperatureLogitsWarper(0.7)(ids, scores))
    settings: dict[str, Any] = {"repetition_penalty": 1.3, "no_repeat_ngram": n, "suppress_tokens": [8, 2], "temperature": 0.7}
    settings |= {"stop_token_ids": [7], "min_new_tokens": 10, "top_k": 3}
    found = gptsweep.distribution(logits, prompt_ids=prompt, completion_ids=new, **settings)
    assert found == pytest.approx(scores.softmax(-1)[0].float().numpy(), abs=1e-6)


def test_bans_of_every_token_ban_none() -> None:
    assert gptsweep.distribution([1.0, 1.0], completion_ids=[0, 1], no_repeat_ngram=1).tolist() == [0.5, 0.5]
    assert gptsweep.distribution([1.0, 1.0], completion_ids=[0], no_repeat_ngram=1).tolist() == [0.0, 1.0]


# -- repetitions -------------------------------------------------------------------------------------------------------------


def longest_repeats(text: list[int]) -> dict[int, int]:
    """The longest suffix of ``text`` that stood somewhere before a token, by that token."""
    found: dict[int, int] = {}
    for place, token in enumerate(text):
        length = 0
        while length < place and text[place - 1 - length] == text[len(text) - 1 - length]:
            length += 1
        found[token] = max(length, found.get(token, 0))
    return found


@settings(max_examples=80)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=25), st.integers(1, 30), st.integers(0, 9)), min_size=1, max_size=5)
)
def test_repetitions_of_all_rows_are_those_of_each(rows: list[tuple[list[int], int, int]]) -> None:
    texts = [np.array(text, np.int64) for text, _, _ in rows]
    found: dict[int, dict[int, int]] = {place: {} for place in range(len(rows))}
    for row, token, length in zip(*repeated(texts, [back for _, back, _ in rows], [most for *_, most in rows]), strict=True):
        assert int(token) not in found[int(row)]
        found[int(row)][int(token)] = int(length)
    for place, (text, back, most) in enumerate(rows):
        expected = {token: min(length, most) for token, length in longest_repeats(text[-back:]).items()}
        assert found[place] == {token: length for token, length in expected.items() if length or not most}


@settings(max_examples=80)
@given(
    st.lists(st.integers(0, 3), max_size=20),
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple), max_size=4),
    st.integers(1, 25),
)
def test_a_repetition_is_as_long_as_what_follows_the_last_breaker(
    text: list[int], breakers: list[tuple[int, ...]], look_back: int
) -> None:
    adjustments = LogitAdjustments(Sampling(dry_multiplier=1, max_new_tokens=20), 4, dry_breakers=tuple(breakers))
    for token in text:
        adjustments.add(token)
    expected = min(len(text), look_back)
    for begin in range(len(text) - 1, len(text) - 1 - expected, -1):  # llama.cpp's: the last that begins, then the longest
        ends = [len(breaker) for breaker in breakers if tuple(text[begin : begin + len(breaker)]) == breaker]
        if ends:
            expected = len(text) - begin - max(ends)
            break
    assert adjustments.unbroken(look_back) == expected


def test_a_repetition_of_any_length_costs_a_number() -> None:
    found = gptsweep.distribution([1.0, 0.0], completion_ids=[0] * 3000, dry_multiplier=1e6, dry_base=1e6)
    assert found.tolist() == [0.0, 1.0]


# -- state, coins and ends ---------------------------------------------------------------------------------------------------


@KERNELS
def test_mirostat_aims_at_its_surprise_and_goes_on_where_it_was(use_kernels: bool) -> None:
    logits = drawn(200, 3, 1.0).float()
    sampling = Sampling(temperature=1, top_k=None, mirostat_tau=2.5, mirostat_eta=0.3, max_new_tokens=200)
    (whole,) = run(logits, many(sampling, 1), use_kernels=use_kernels)
    assert whole.sampler_logprob_mean is not None
    assert -whole.sampler_logprob_mean / math.log(2) == pytest.approx(2.5, abs=0.1)
    logprobs = logits.double().log_softmax(-1)
    mu, total = 5.0, 0.0
    for place, token in enumerate(whole.token_ids):
        left = -logprobs / math.log(2) <= mu
        left[logprobs.argmax()] = True
        logprob = float(logprobs[token] - logprobs[left].logsumexp(-1))
        assert left[token]
        mu -= 0.3 * (-logprob / math.log(2) - 2.5)
        total += logprob
        if place == 80:
            prefix = Prefix(token_ids=whole.token_ids[:81], sampler_logprob=total)
    row = Row(prompt_ids=(0,), sampling=sampling, noise_key=11, prefix=prefix)
    (rest,) = run(logits, [row], use_kernels=use_kernels)
    assert rest.token_ids == whole.token_ids


@KERNELS
def test_the_coin_of_xtc_is_of_its_own_and_of_its_row(use_kernels: bool) -> None:
    logits = torch.tensor([4.0, 4.0, 3.9, 0.0, -1.0])
    settings: dict[str, Any] = {"temperature": 1.0, "top_k": None, "max_new_tokens": 1, "xtc_threshold": 0.2}
    of = {p: Sampling(**settings, xtc_probability=p) for p in (0.0, 0.3, 0.7, 1.0)}
    tokens = {p: [c.token_ids[0] for c in run(logits, many(of[p], 2000), use_kernels=use_kernels)] for p in of}
    differ = {p: {i for i in range(2000) if tokens[p][i] != tokens[0.0][i]} for p in of}
    assert differ[0.3] < differ[0.7] < differ[1.0]  # one coin: what 0.3 excludes, 0.7 excludes too
    assert all(tokens[0.7][i] in (tokens[0.0][i], tokens[1.0][i]) for i in range(2000))
    assert len(differ[0.3]) / len(differ[1.0]) == pytest.approx(0.3, abs=0.04)
    mixed = gptsweep.distribution(logits, xtc_probability=0.3, xtc_threshold=0.2)
    assert mixed == pytest.approx(
        0.7 * gptsweep.distribution(logits) + 0.3 * gptsweep.distribution(logits, xtc_probability=1, xtc_threshold=0.2)
    )


@pytest.mark.parametrize("change", [{"top_k": 1}, {"suppress_tokens": (0,)}])
def test_xtc_at_a_threshold_of_0_keeps_a_token_that_is_left(change: dict[str, Any]) -> None:
    p = gptsweep.distribution([0.2, 0.1, -0.1], xtc_probability=1, xtc_threshold=0, **change)
    assert p.tolist() == ([1, 0, 0] if "top_k" in change else [0, 0, 1])


@KERNELS
def test_a_sample_ends_where_it_repeats_itself(use_kernels: bool) -> None:
    logits = torch.zeros(4)
    for (n, k), seed in itertools.product([(1, 2), (2, 2), (3, 3), (1, 4)], range(6)):
        sampling = Sampling(temperature=1, top_k=None, stop_on_repetition=(n, k), max_new_tokens=300)
        row = Row(prompt_ids=(0,), sampling=sampling, noise_key=seed)
        (found,) = run(logits, [row], use_kernels=use_kernels)
        ids = found.token_ids

        def ends(count: int, ids: tuple[int, ...] = ids, n: int = n, k: int = k) -> bool:
            return any(count >= p * k and ids[count - p * k : count] == ids[count - p : count] * k for p in range(1, n + 1))

        assert found.finish_reason == ("repetition" if ends(len(ids)) else "length")
        assert not any(map(ends, range(len(ids))))
        row = Row(prompt_ids=(0,), sampling=sampling, noise_key=seed, prefix=Prefix(token_ids=ids[: len(ids) // 2]))
        assert run(logits, [row], use_kernels=use_kernels)[0].token_ids == ids


@KERNELS
def test_a_stop_token_ends_a_sample_but_not_before_min_new_tokens(use_kernels: bool) -> None:
    logits = torch.tensor([0.0, 0.0, 3.0])
    sampling = Sampling(temperature=1, top_k=None, stop_token_ids=[2], min_new_tokens=5, max_new_tokens=60)
    for found in run(logits, many(sampling, 20), use_kernels=use_kernels):
        assert found.finish_reason == "stop"
        assert found.token_ids.index(2) == len(found.token_ids) - 1 >= 5


def test_greedy_rows_take_the_likeliest_whatever_truncates() -> None:
    for change in ({"xtc_probability": 1.0}, {"typical_p": 0.1}, {"mirostat_tau": 1.0}, {"dynatemp_range": 1.0}):
        assert active_steps(Sampling(**NEUTRAL | {"temperature": 0} | change)) == ()  # type: ignore[arg-type]
    assert gptsweep.distribution([1.0, 3.0, 2.9], temperature=0, typical_p=0.1, xtc_probability=1).tolist() == [0, 1, 0]


# -- kernels -----------------------------------------------------------------------------------------------------------------

DRAWN: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0.0, 0.37, 0.8, 1.0, 1.9]),
    "top_k": st.sampled_from([None, 1, 3, 40]),
    "top_p": st.sampled_from([None, 0.137, 0.613, 0.9371]),
    "min_p": st.sampled_from([None, 0.0137, 0.31]),
    "typical_p": st.sampled_from([None, 0.137, 0.613, 0.9371, 1.0]),
    "epsilon_cutoff": st.sampled_from([0.0, 0.00337, 0.0731]),
    "eta_cutoff": st.sampled_from([0.0, 0.00337, 0.0731]),
    "top_n_sigma": st.sampled_from([None, 0.71, 1.53]),
    "xtc_probability": st.sampled_from([0.0, 0.5, 1.0]),
    "xtc_threshold": st.sampled_from([0.0, 0.0137, 0.13]),
    "dynatemp_range": st.sampled_from([0.0, 0.3, 3.0]),
    "dynatemp_exponent": st.sampled_from([0.7, 1.0]),
    "mirostat_tau": st.sampled_from([None, 0.0137, 2.31]),
    "repetition_penalty": st.sampled_from([1.0, 1.25]),
    "frequency_penalty": st.sampled_from([0.0, 0.5]),
    "logit_bias": st.sampled_from([(), ((0, 1.5),), ((0, 1e30), (1, -2.0))]),
    "dry_multiplier": st.sampled_from([0.0, 0.83, 1e6]),
    "dry_base": st.sampled_from([1.0, 1.75]),
    "dry_allowed_length": st.integers(1, 3),
    "dry_range": st.sampled_from([None, 1, 4, 9]),
    "no_repeat_ngram": st.integers(0, 3),
    "suppress_tokens": st.sampled_from([(), (0,), (0, 1)]),
    "stop_token_ids": st.sampled_from([(), (1,)]),
    "min_new_tokens": st.integers(0, 3),
}
ORDERS_DRAWN = st.one_of(
    st.just("hf"),
    st.just("llama"),
    st.permutations([step for step in steps_of(Sampling) if step not in ("top_h", "mirostat")]).map(tuple),
)


@st.composite
def rows_with_all_steps(draw: st.DrawFn) -> tuple[Tensor, list[Row]]:
    size = draw(st.one_of(st.integers(2, 200), st.sampled_from([64, 65, 1100, 5000])))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.randn(size, generator=generator) * draw(st.sampled_from([0.1, 1.0, 3.0, 30.0]))
    if draw(st.booleans()):
        logits = (logits * 2).round() / 2
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        order = draw(ORDERS_DRAWN)
        names = draw(st.lists(st.sampled_from(sorted(DRAWN)), unique=True, max_size=7))
        chosen = (
            NEUTRAL | {name: draw(DRAWN[name]) for name in names} | {"max_new_tokens": draw(st.integers(1, 5)), "logprobs": 2}
        )
        if order == "llama":
            chosen |= {"epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
        prompt = draw(st.lists(st.integers(0, min(size, 4) - 1), min_size=1, max_size=12))
        breakers = draw(st.sampled_from([(), ((0,),), ((1, 0), (1,))]))
        rows.append(Row(prompt_ids=tuple(prompt), sampling=Sampling(order=order, **chosen), dry_breakers=breakers,
                        noise_key=draw(st.integers(0, 2**64 - 1)), sample_index=draw(st.integers(0, 2**31))))  # fmt: skip
    return logits, rows


@settings(max_examples=150)
@given(rows_with_all_steps())
def test_kernels_choose_what_the_chain_chooses(case: tuple[Tensor, list[Row]]) -> None:
    logits, rows = case
    fast, slow = (run(logits, rows, use_kernels=use_kernels) for use_kernels in (True, False))
    for a, b in zip(fast, slow, strict=True):
        assert a.token_ids == b.token_ids
        assert [(c.rank, c.survivors, c.top_ids) for c in a.logprobs] == [(c.rank, c.survivors, c.top_ids) for c in b.logprobs]
        assert (a.logprob_mean, a.sampler_logprob_mean) == pytest.approx(
            (b.logprob_mean, b.sampler_logprob_mean), rel=1e-4, abs=1e-4
        )


@pytest.mark.parametrize("step", [0.0, 0.5, 100.0], ids=["apart", "ties", "all alike"])
@pytest.mark.parametrize("deviation", [0.1, 1.0, 3.0])
def test_kernels_choose_what_typical_sampling_leaves_of_many_tokens(deviation: float, step: float) -> None:
    logits = torch.randn(9_000, generator=torch.Generator().manual_seed(1)) * deviation
    logits = (logits / step).round() * step if step else logits
    rows = [
        Row(
            prompt_ids=(0,), noise_key=3, sampling=Sampling(**NEUTRAL | {"typical_p": p, "temperature": t, "max_new_tokens": 6})
        )
        for p in (0.01, 0.2, 0.9, 0.999)
        for t in (0.7, 1.0)
    ]
    fast, slow = (run(logits, rows, use_kernels=use_kernels) for use_kernels in (True, False))
    assert [each.token_ids for each in fast] == [each.token_ids for each in slow]
    found, wanted = ([each.sampler_logprob_mean for each in each_of] for each_of in (fast, slow))
    assert found == pytest.approx(wanted, rel=1e-5)


def test_kernels_have_all_but_what_is_slow_for_them() -> None:
    assert [name for name, chosen in EVERY.items() if not kernel_samples(Sampling(**{"top_k": None, **chosen}))] == ["top_h"]
    assert not kernel_samples(Sampling(order=("typical_p", "top_k", "temperature"), typical_p=0.5))
    assert not kernel_samples(Sampling(order=("top_k", "temperature", "penalties"), repetition_penalty=2))


# -- order -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ("other", "must be one of hf, llama"),
        (["top_k", "nothing"], "nothing is not one of logit_bias"),
        (["top_k", "top_k"], "names top_k twice"),
        (["temperature"], "has no top_k, which the settings use"),
        (["mirostat", "temperature", "top_k"], "mirostat comes last"),
    ],
)
def test_an_order_that_leaves_something_open_is_an_error(order: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Sampling(order=order)
    with pytest.raises(ConfigError, match="has no eta_cutoff, which the settings use"):
        Sampling(order="llama", eta_cutoff=0.1)


def test_the_order_changes_what_is_left() -> None:
    logits = drawn(50, 1)
    settings: dict[str, Any] = {"temperature": 2.0, "min_p": 0.2}
    hf_order, llama = (gptsweep.distribution(logits, order=order, **settings) for order in ("hf", "llama"))
    assert (hf_order > 0).sum() > (llama > 0).sum()
    assert gptsweep.distribution(logits, order=["min_p", "temperature"], **settings).tolist() == llama.tolist()


# -- frequencies -------------------------------------------------------------------------------------------------------------

EVERY: dict[str, dict[str, Any]] = {
    "typical_p": {"typical_p": 0.6},
    "epsilon_cutoff": {"epsilon_cutoff": 0.05},
    "eta_cutoff": {"eta_cutoff": 0.2},
    "top_n_sigma": {"top_n_sigma": 1.1},
    "top_h": {"top_h": 0.7},
    "xtc": {"xtc_probability": 0.5, "xtc_threshold": 0.08},
    "dynatemp": {"temperature": 1.2, "dynatemp_range": 0.8, "dynatemp_exponent": 1.3},
    "mirostat": {"mirostat_tau": 1.5},
    "dry": {"dry_multiplier": 0.8, "dry_allowed_length": 1},
    "no_repeat_ngram": {"no_repeat_ngram": 2},
    "suppress_tokens": {"suppress_tokens": [0, 3]},
    "min_new_tokens": {"min_new_tokens": 1, "stop_token_ids": [1]},
    "llama": {"order": "llama", "temperature": 1.4, "top_k": 9, "top_p": 0.9, "dry_multiplier": 0.5, "xtc_probability": 0.4,
              "top_n_sigma": 2.0, "repetition_penalty": 1.2},
}  # fmt: skip
PROMPT = (5, 1, 4, 2, 5, 1, 4, 3, 5, 1, 4)


@KERNELS
@pytest.mark.parametrize("name", EVERY)
def test_tokens_come_with_the_probabilities_of_the_chain(name: str, use_kernels: bool) -> None:
    logits = torch.tensor([2.0, 1.5, 1.5, 1.0, 0.9, 0.5, 0.0, -0.2, -0.5, -1.0, -1.0, -2.0, 0.3, 1.2])
    chosen = {"temperature": 1.0, "top_k": None, **EVERY[name]}
    count = 4000
    rows = many(Sampling(**chosen, max_new_tokens=1), count, PROMPT)
    observed = np.bincount([c.token_ids[0] for c in run(logits, rows, use_kernels=use_kernels)], minlength=len(logits))
    exact = gptsweep.distribution(logits, prompt_ids=PROMPT, **chosen)
    assert observed[exact == 0].sum() == 0
    assert stats.chisquare(observed[exact > 0], exact[exact > 0] * count).pvalue > 1e-4


def test_a_row_comes_out_the_same_to_the_bit_whatever_the_others_use() -> None:
    model = plain.peaked_gpt(GPTConfig(block_size=64, vocab_size=90, n_layer=1, n_head=2, n_embd=32))
    need_packed("float32")
    pack(model, PackedLinear)
    every = [Sampling(**{"temperature": 0.9, "top_k": None, **chosen}, max_new_tokens=16) for chosen in EVERY.values()]
    every += [Sampling(max_new_tokens=16), Sampling(temperature=0, no_repeat_ngram=3, max_new_tokens=16)]
    rows = [Row(prompt_ids=PROMPT, sampling=sampling, noise_key=3, sample_index=i) for i in range(2) for sampling in every]
    assert Engine(model, vocab_size=88).promise
    found = []
    for max_rows, order in ((1, rows), (64, rows), (7, rows[::-1])):
        made = {id(c.row): c for c in Engine(model, vocab_size=88, max_rows=max_rows).run(order)}
        found.append([made[id(row)] for row in rows])
    assert found[0] == found[1] == found[2]
    assert len({completion.token_ids for completion in found[0]}) > len(every)


@pytest.mark.usefixtures("threads")
def test_a_step_has_the_same_bits_on_any_number_of_threads_and_rows() -> None:
    logits = torch.randn(5, 50257, generator=torch.Generator().manual_seed(4)) * 3
    records = np.zeros(5, ROW)
    records["mirostat_mu"] = 6.0
    for chosen in EVERY.values():
        sampling = Sampling(**{"temperature": 0.9, "top_k": None, **chosen})
        adjustments = [LogitAdjustments(sampling, 50257, prompt_ids=PROMPT) for _ in range(5)]
        whole = Rows([sampling] * 5, adjustments, records, logits.device)
        torch.set_num_threads(1)
        expected = chain(logits, whole, torch.float64)
        torch.set_num_threads(2)
        assert torch.equal(chain(logits, whole, torch.float64), expected)
        assert torch.equal(chain(logits[[3, 1]], whole.of([3, 1]), torch.float64), expected[[3, 1]])


def test_in_the_arithmetic_of_mps_no_truncated_token_is_sampled() -> None:
    """Its float32 noise is made of as many words as it takes for the greatest u to round to 1 several times."""
    logits = torch.linspace(0, 8, 1000)[None]
    sampling = Sampling(temperature=1.3, top_k=None, order="llama", typical_p=0.9, top_n_sigma=1.5, xtc_probability=1.0)
    x = chain(logits, Rows([sampling], [None], np.zeros(1, ROW), logits.device), torch.float32)[0]
    words = torch.cat(
        [torch.full((2000, 1000), 2**32 - 1), torch.randint(2**32, (8000, 1000), generator=torch.Generator().manual_seed(0))]
    )
    for some in words.split(1000):  # 10^7 draws
        noise = noise_of(some, torch.float32)
        assert noise.isfinite().all()
        assert (x[(x + noise).argmax(-1)] > -torch.inf).all()


def test_every_step_is_drawn_above() -> None:
    drawn_steps = {step for chosen in EVERY.values() for step in active_steps(Sampling(**{"top_k": None, **chosen}))}
    assert drawn_steps >= {step for name in SAMPLERS for step in active_steps(Sampling(**{"top_k": None, **changed(name)}))}


def changed(name: str) -> dict[str, Any]:
    """A setting that is not neutral, and what it needs."""
    return next((chosen for chosen in EVERY.values() if chosen.get(name, NEUTRAL[name]) != NEUTRAL[name]), {})


def test_no_setting_since_0_1_is_on_by_default() -> None:
    assert tuple(Sampling().as_json()) == SETTINGS_OF_0_1
    assert tuple(Sampling(**neutral_settings(Sampling)).as_json()) == SETTINGS_OF_0_1
