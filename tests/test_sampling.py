"""What a user would lose: samples that come from the distribution the settings name, with the noise the seed names."""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import Any

import numpy as np
import plain
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numba import njit
from scipy import stats
from torch import Tensor
from transformers.generation import logits_process as hf

from gptsweep.engine.engine import Engine
from gptsweep.engine.noise import gumbel, noise_of, philox
from gptsweep.kernels import draw
from gptsweep.models.gpt2 import GPT, GPTConfig
from gptsweep.records import Completion, Row, Sampling
from gptsweep.run.sample_identity import independent_key

KERNELS = pytest.mark.parametrize("use_kernels", [True, False], ids=["kernels", "torch"])


class Unchanging(GPT):
    """A model whose logits are always the same."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(GPTConfig(block_size=8, vocab_size=len(logits), n_layer=1, n_head=1, n_embd=1))
        plain.in_dtype(self.requires_grad_(False), logits.dtype)
        self.always = logits

    def logits(self, hidden: Tensor) -> Tensor:
        return self.always.expand(*hidden.shape[:-1], -1).contiguous()


def run(logits: Tensor, rows: list[Row], *, use_kernels: bool, vocab_size: int | None = None) -> list[Completion]:
    """The completions of ``rows``, in their order, by a model that always gives ``logits``."""
    engine = Engine(Unchanging(logits), vocab_size=vocab_size or len(logits), use_kernels=use_kernels)
    found = {id(completion.row): completion for completion in engine.run(rows)}
    return [found[id(row)] for row in rows]


def many(sampling: Sampling, count: int, prompt_ids: tuple[int, ...] = (0,)) -> list[Row]:
    return [Row(prompt_ids=prompt_ids, sampling=sampling, noise_key=11, sample_index=i) for i in range(count)]


# -- noise -------------------------------------------------------------------------------------------------------------------

KNOWN_ANSWERS = [  # Random123's kat_vectors, philox4x32 10
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_random123s_known_answers(counter: Any, key: Any, words: Any) -> None:
    kernel = njit(lambda c0, c1, c2, c3, k0, k1: draw.philox(c0, c1, c2, c3, k0, k1))
    assert tuple(philox(torch.tensor(counter), torch.tensor(key)).tolist()) == words
    assert tuple(int(word) for word in kernel(*map(np.uint32, counter + key))) == words
    assert plain.philox4x32(counter, key) == words


@pytest.mark.parametrize("noise_key", [0, 1337, 2**32 - 1, 2**64 - 1])
def test_the_noise_of_a_token_is_the_formula_of_the_readme(noise_key: int) -> None:
    key = torch.tensor([[noise_key % 2**32, noise_key // 2**32]])
    position, sample_index, prompt_index = 7, 3, 2
    same = {"position": position, "sample_index": sample_index, "prompt_index": prompt_index}
    quads = torch.arange(3)
    noise = gumbel(quads, key=key.expand(3, 2), **{name: torch.full((3,), value) for name, value in same.items()})
    expected = [
        plain.gumbel(token, noise_key=noise_key, position=position, sample_index=sample_index, prompt_index=prompt_index)
        for token in range(12)
    ]
    assert noise.flatten().tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_noise_is_finite_and_true_to_its_formula_for_every_word(dtype: torch.dtype) -> None:
    """float32, the arithmetic of MPS, rounds the greatest u to 1; half of all samples of 500 tokens met infinite noise."""
    ends = torch.arange(2**21)  # float32 holds the rest of the words in so many ranges of u
    halves = torch.arange(-(2**20), 2**20) + 2**31
    powers = (2 ** torch.arange(32))[:, None] + torch.arange(-64, 64)
    words = torch.cat([ends, 2**32 - 1 - ends, halves, powers.flatten().clamp(0, 2**32 - 1)])
    words = torch.cat([words, torch.randint(2**32, (10**7 - len(words),), generator=torch.Generator().manual_seed(0))])
    for some in words.split(2**20):
        noise = noise_of(some, dtype)
        exact = -(-((some.double() + 0.5) / 2**32).log()).log()
        assert noise.dtype == dtype
        assert noise.isfinite().all()
        assert (noise.double() - exact).abs().max() < (3e-6 if dtype == torch.float32 else 1e-6)
    first, last = noise_of(torch.tensor([0, 2**32 - 1]), dtype).tolist()
    assert first == pytest.approx(-math.log(33 * math.log(2)), rel=1e-6)
    assert last == pytest.approx(33 * math.log(2), rel=1e-6)
    # No two of the words that win are the same in float32, as they would be if u were kept below 1 by force.
    assert len(noise_of(2**32 - 1 - torch.arange(4096), dtype).unique()) == 4096


@KERNELS
def test_the_token_is_the_argmax_of_logits_over_temperature_plus_noise(use_kernels: bool) -> None:
    logits = torch.linspace(-1, 1, 70)
    for temperature, noise_key in itertools.product((0.3, 1.0, 4.0), (5, 2**63 + 9)):
        sampling = Sampling(temperature=temperature, top_k=None, max_new_tokens=5)
        row = Row(prompt_ids=(1,), sampling=sampling, noise_key=noise_key, prompt_index=3, sample_index=4)
        (completion,) = run(logits, [row], use_kernels=use_kernels)
        for position, token in enumerate(completion.token_ids):
            z = [
                float(x) / temperature + plain.gumbel(i, noise_key=noise_key, position=position, sample_index=4, prompt_index=3)
                for i, x in enumerate(logits)
            ]
            assert token == max(range(70), key=z.__getitem__)


@KERNELS
def test_points_share_their_noise_over_temperature_and_truncation(use_kernels: bool) -> None:
    logits = torch.zeros(100)
    logits[:50] = -1e-9 if not use_kernels else -1e-7
    points = [
        Sampling(temperature=temperature, top_k=top_k, max_new_tokens=20)
        for temperature, top_k in itertools.product((0.5, 1.0, 2.0), (50, None))
    ]
    rows = [Row(prompt_ids=(0,), sampling=point, noise_key=1, sample_index=i) for i in range(10) for point in points]
    completions = run(logits, rows, use_kernels=use_kernels)
    tokens = np.array([c.token_ids for c in completions]).reshape(10, 3, 2, 20)
    # Logits all but equal: the temperature scales a difference of nothing, so common noise means equal tokens.
    assert (tokens[:, :1] == tokens).all()
    kept = tokens[..., 1, :] >= 50
    assert 0.3 < kept.mean() < 0.7
    # What top_k would have left anyway is chosen with and without it.
    assert (tokens[..., 0, :][kept] == tokens[..., 1, :][kept]).all()


def test_independent_noise_depends_on_the_seed_and_on_the_point() -> None:
    keys = {independent_key(seed, point) for seed in (1, 2) for point in ("0a", "0b")}
    assert len(keys) == 4
    assert independent_key(1, "0a") == int.from_bytes(hashlib.sha256(b"1 0a").digest()[:8], "little")


@KERNELS
def test_samples_and_prompts_have_noise_of_their_own(use_kernels: bool) -> None:
    sampling = Sampling(temperature=1, top_k=None, max_new_tokens=8)
    rows = [
        Row(prompt_ids=(0,), sampling=sampling, noise_key=key, sample_index=sample, prompt_index=prompt)
        for key, sample, prompt in itertools.product((1, 2, 1 + 2**32), (0, 1), (0, 1))
    ]
    assert len({c.token_ids for c in run(torch.zeros(100), rows, use_kernels=use_kernels)}) == len(rows)


# -- the distribution --------------------------------------------------------------------------------------------------------

VOCAB = 14
LOGITS = torch.tensor([2.0, 1.5, 1.5, 1.0, 0.9, 0.5, 0.0, -0.2, -0.5, -1.0, -1.0, -2.0, 0.3, 1.2])
PROMPT = (1, 4, 4, 8)

SETTINGS: dict[str, dict[str, Any]] = {
    "temperature 1": {},
    "temperature 0.5": {"temperature": 0.5},
    "temperature 2": {"temperature": 2.0},
    "top_k": {"top_k": 5},
    "top_k at a tie": {"top_k": 2},
    "top_k above the vocabulary": {"top_k": 200},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.2},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "repetition_penalty below 1": {"repetition_penalty": 0.6},
    "frequency_penalty": {"frequency_penalty": 0.9},
    "presence_penalty": {"presence_penalty": 1.1},
    "presence_penalty below 0": {"presence_penalty": -1.0},
    "logit_bias": {"logit_bias": ((0, -3.0), (11, 2.5))},
    "everything": {
        "temperature": 1.3, "top_k": 9, "top_p": 0.85, "min_p": 0.05, "repetition_penalty": 1.2, "frequency_penalty": 0.4,
        "presence_penalty": 0.3, "logit_bias": ((3, 1.0), (5, -0.5)),
    },
}  # fmt: skip


def exact(sampling: Sampling, new_ids: tuple[int, ...]) -> Tensor:
    """Probabilities of the token after ``new_ids`` by Hugging Face's processors; frequency and presence as vLLM's docs say."""
    ids = torch.tensor([[*PROMPT, *new_ids]])
    scores = LOGITS.double()[None].clone()
    for token, addend in sampling.logit_bias:
        scores[0, token] += addend
    if sampling.repetition_penalty != 1:
        scores = hf.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(ids, scores)
    counts = torch.bincount(torch.tensor(new_ids, dtype=torch.long), minlength=VOCAB)
    scores = scores - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)
    scores = hf.TemperatureLogitsWarper(sampling.temperature)(ids, scores)
    if sampling.top_k is not None:
        scores = hf.TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p is not None:
        scores = hf.TopPLogitsWarper(sampling.top_p)(ids, scores)
    if sampling.min_p is not None:
        scores = hf.MinPLogitsWarper(sampling.min_p)(ids, scores)
    return scores.softmax(-1)[0]


@KERNELS
@pytest.mark.parametrize("name", SETTINGS)
def test_two_tokens_come_with_the_probabilities_of_hugging_faces_processors(name: str, use_kernels: bool) -> None:
    sampling = Sampling(**{"temperature": 1.0, "top_k": None, "max_new_tokens": 2, **SETTINGS[name]})
    count = 4000 if use_kernels else 1000
    completions = run(LOGITS, many(sampling, count, PROMPT), use_kernels=use_kernels)
    first = exact(sampling, ())
    joint = torch.stack([first[token] * exact(sampling, (token,)) for token in range(VOCAB)]).flatten().numpy()
    observed = np.bincount([a * VOCAB + b for a, b in (c.token_ids for c in completions)], minlength=VOCAB**2)
    assert observed[joint == 0].sum() == 0
    # Cells expected fewer than five times go together, as the test asks.
    few = joint * count < 5
    expected = np.append(joint[~few], joint[few].sum()) * count
    found = np.append(observed[~few], observed[few].sum())
    some = expected > 0
    assert stats.chisquare(found[some], expected[some]).pvalue > 1e-4
    # And the means are those of the drawn tokens under the same probabilities.
    plainly = LOGITS.double().log_softmax(-1)
    entropy = -float((plainly.exp() * plainly).sum())
    for c in completions[:50]:
        a, b = c.token_ids
        assert c.sampler_logprob_mean == pytest.approx((math.log(first[a]) + math.log(exact(sampling, (a,))[b])) / 2, abs=1e-5)
        assert c.logprob_mean == pytest.approx(float(plainly[a] + plainly[b]) / 2, abs=1e-5)
        assert c.entropy_mean == pytest.approx(entropy, abs=1e-5)


@KERNELS
def test_greedy_takes_the_greatest_and_the_first_among_equals(use_kernels: bool) -> None:
    logits = torch.zeros(300)
    logits[[70, 199, 299]] = 2.0
    sampling = Sampling(temperature=0, max_new_tokens=3, top_k=1)
    (completion,) = run(logits, many(sampling, 1), use_kernels=use_kernels)
    assert completion.token_ids == (70, 70, 70)
    assert completion.sampler_logprob_mean == 0
    tired = Sampling(temperature=0, max_new_tokens=4, presence_penalty=1.0)
    (completion,) = run(logits, many(tired, 1), use_kernels=use_kernels)
    assert completion.token_ids == (70, 199, 299, 70)


@KERNELS
def test_a_vanishing_temperature_is_greedy(use_kernels: bool) -> None:
    logits = torch.tensor([0.0, 1.0, 0.999, -5.0])
    for truncation in ({}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}):
        sampling = Sampling(**{"temperature": 1e-6, "top_k": None, "max_new_tokens": 5, **truncation})
        assert {c.token_ids for c in run(logits, many(sampling, 20), use_kernels=use_kernels)} == {(1,) * 5}


@KERNELS
def test_the_narrowest_truncations_leave_the_greatest(use_kernels: bool) -> None:
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    top = int(logits.argmax())
    for truncation in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):
        sampling = Sampling(**{"temperature": 3.0, "top_k": None, "max_new_tokens": 3, **truncation})
        assert {c.token_ids for c in run(logits, many(sampling, 20), use_kernels=use_kernels)} == {(top,) * 3}


@KERNELS
def test_ids_of_a_padded_vocabulary_are_never_sampled(use_kernels: bool) -> None:
    logits = torch.zeros(80)
    logits[65:] = 50.0
    for changes in ({}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.5}, {"temperature": 0}, {"rng": "torch"}):
        sampling = Sampling(**{"temperature": 1.0, "top_k": None, "max_new_tokens": 4, **changes})
        completions = run(logits, many(sampling, 30), use_kernels=use_kernels, vocab_size=65)
        assert all(token < 65 for c in completions for token in c.token_ids)
        assert all(c.logprob_mean == pytest.approx(-math.log(65), abs=1e-5) for c in completions)


@KERNELS
def test_forbidden_tokens_do_not_hang_a_nucleus_that_wants_all_the_rest(use_kernels: bool) -> None:
    logits = torch.linspace(-2, 2, 130)
    forbidden = tuple((token, -1e30) for token in range(0, 130, 2))
    for top_p, temperature in itertools.product((0.5, 0.9999999, 1 - 1e-15), (1e-6, 1.0)):
        sampling = Sampling(temperature=temperature, top_k=None, top_p=top_p, logit_bias=forbidden, max_new_tokens=4)
        completions = run(logits, many(sampling, 10), use_kernels=use_kernels)
        assert all(token % 2 for c in completions for token in c.token_ids)


WAYS = pytest.mark.parametrize(
    ("use_kernels", "rng"), [(True, "counter"), (False, "counter"), (True, "torch")], ids=["kernels", "torch", "rng=torch"]
)


@WAYS
def test_a_nucleus_of_exactly_top_p_is_full(use_kernels: bool, rng: str) -> None:
    """Of n equally likely tokens, top_p = k / n keeps k; the log-probability of any of them says how many there are."""
    for size in (2, 3, 7, 10, 49, 64, 130):
        expected = [k for k in range(1, size) if math.ceil(k / size * size) == k]
        sampled = [Sampling(temperature=0.7, top_k=None, top_p=k / size, max_new_tokens=1, rng=rng) for k in expected]
        # The others are out of reach, so the nucleus is found among some of the vocabulary as well as among all of it.
        for logits in (torch.full((size,), 0.3), torch.cat([torch.full((size,), 0.3), torch.full((90,), -3e4)])):
            rows = [Row(prompt_ids=(0,), sampling=sampling, noise_key=key) for key, sampling in enumerate(sampled)]
            found = run(logits, rows, use_kernels=use_kernels)
            assert [round(math.exp(-completion.sampler_logprob_mean)) for completion in found] == expected  # type: ignore[operator]
            assert all(completion.token_ids[0] < k for completion, k in zip(found, expected, strict=True))


@WAYS
@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"])
def test_an_edited_logit_is_rounded_once_from_float64(name: str, use_kernels: bool, rng: str) -> None:
    """A token penalised once ties with one whose logit is the same sum by hand, so the lower id wins whichever it is."""
    generator = torch.Generator().manual_seed(1)
    for logit, amount in torch.rand(40, 2, generator=generator, dtype=torch.float64).tolist():
        before = float(np.float32(1.5 + logit))
        settings = {name: ((1, amount),) if name == "logit_bias" else amount + (name == "repetition_penalty")}
        after = {"repetition_penalty": before / (1 + amount), "logit_bias": before + amount}.get(name, before - amount)
        for lower in (0, 2):  # an id before the penalised token's, and one after
            logits = torch.full((3,), -9.0)
            logits[1], logits[lower] = before, after
            prompt = (1,) if name == "repetition_penalty" else (lower,)
            sampling = Sampling(temperature=0, max_new_tokens=2, rng=rng, **settings)  # type: ignore[arg-type]
            (found,) = run(logits, many(sampling, 1, prompt), use_kernels=use_kernels)
            tie = min(1, lower)
            penalised_at_first = name in ("repetition_penalty", "logit_bias")
            assert (found.token_ids[0] == tie) if penalised_at_first else (found.token_ids == (1, tie))


@pytest.mark.usefixtures("threads")
def test_the_entropy_of_a_stream_does_not_depend_on_threads() -> None:
    """torch adds up more than 32,768 numbers in as many parts as there are threads."""
    logits = torch.randn(50257, generator=torch.Generator().manual_seed(5)) * 2
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        rows = many(Sampling(temperature=1, top_k=None, max_new_tokens=1, rng="torch"), 1)
        found += [
            [run(logits + shift, rows, use_kernels=use_kernels)[0].entropy_mean for shift in torch.arange(12) / 7]
            for use_kernels in (True, False)
        ]
    assert found[0] == found[1] == found[2] == found[3]


def test_top_k_200_of_gpt2s_vocabulary() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(50304, generator=generator) * 3
    sampling = Sampling(temperature=0.9, top_k=200, max_new_tokens=6)
    rows = many(sampling, 20)
    fast = run(logits, rows, use_kernels=True, vocab_size=50257)
    slow = run(logits, rows, use_kernels=False, vocab_size=50257)
    assert [c.token_ids for c in fast] == [c.token_ids for c in slow]
    x = logits[:50257].tolist()
    p = plain.probabilities(x, sampling)
    assert len(p) == 200
    race = {
        token: math.log(p[token]) + plain.gumbel(token, noise_key=11, position=0, sample_index=0, prompt_index=0) for token in p
    }
    assert fast[0].token_ids[0] == max(race, key=race.__getitem__)
    assert len({token for c in fast for token in c.token_ids}) > 20


# -- fast equals slow --------------------------------------------------------------------------------------------------------


@st.composite
def logits_of_all_kinds(draw: st.DrawFn) -> Tensor:
    """Smooth, tied, flat, peaked; vocabularies that fill no block."""
    size = draw(st.one_of(st.integers(1, 300), st.sampled_from([63, 64, 65, 127, 128, 129, 1000, 4099])))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.randn(size, generator=generator) * draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 100.0, 10000.0]))
    if draw(st.booleans()):
        logits = (logits * 2).round() / 2
    return logits.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))


EXACT_SHARES = st.integers(2, 12).flatmap(lambda size: st.integers(1, size - 1).map(lambda k: k / size))


@st.composite
def sampling_of_all_kinds(draw: st.DrawFn, vocab_size: int, **fixed: Any) -> Sampling:
    """Any settings; addends and penalties exact in binary, so that ties stay ties in float32 and in float64."""
    off = draw(st.booleans())
    bias = (
        {}
        if off
        else draw(st.dictionaries(st.integers(0, vocab_size - 1), st.integers(-40, 40).map(lambda n: n / 4), max_size=4))
    )
    return Sampling(
        **{
            "temperature": draw(st.sampled_from([0.0, 0.25, 0.8, 1.0, 1.7, 5.0])),
            "top_k": draw(st.one_of(st.none(), st.integers(1, vocab_size + 5), st.sampled_from([1, 2, 50, 200]))),
            "top_p": draw(st.one_of(st.none(), st.integers(0, 1023).map(lambda n: (n + 0.437) / 1024), EXACT_SHARES)),
            "min_p": draw(st.sampled_from([None, None, 0.0, 0.0137, 0.3, 1.0])),
            "repetition_penalty": 1.0 if off else draw(st.sampled_from([1.0, 0.5, 2.0, 1.25])),
            "presence_penalty": 0.0 if off else draw(st.sampled_from([0.0, 1.5, -0.5])),
            "frequency_penalty": 0.0 if off else draw(st.sampled_from([0.0, 0.25, -1.0])),
            "logit_bias": tuple(sorted(bias.items())),
            "max_new_tokens": draw(st.integers(1, 4)),
            **fixed,
        }
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, int, list[Row]]:
    logits = draw(logits_of_all_kinds())
    vocab_size = draw(st.integers(max(1, len(logits) - 70), len(logits)))
    rows = [
        Row(
            prompt_ids=tuple(draw(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=6))),
            sampling=draw(sampling_of_all_kinds(vocab_size)),
            noise_key=draw(st.integers(0, 2**64 - 1)),
            prompt_index=draw(st.integers(0, 2**32 - 1)),
            sample_index=draw(st.integers(0, 2**32 - 1)),
        )
        for _ in range(draw(st.integers(1, 5)))
    ]
    return logits, vocab_size, rows


def close(a: float | None, b: float | None) -> bool:
    assert a is not None
    assert b is not None
    return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-5)


@settings(max_examples=80)
@given(cases())
def test_kernels_choose_what_plain_torch_chooses(case: tuple[Tensor, int, list[Row]]) -> None:
    logits, vocab_size, rows = case
    fast = run(logits, rows, use_kernels=True, vocab_size=vocab_size)
    slow = run(logits, rows, use_kernels=False, vocab_size=vocab_size)
    for a, b in zip(fast, slow, strict=True):
        assert a.token_ids == b.token_ids
        assert close(a.logprob_mean, b.logprob_mean)
        assert close(a.sampler_logprob_mean, b.sampler_logprob_mean)
        assert close(a.entropy_mean, b.entropy_mean)


FLAT = torch.zeros(60), 60, [Row(prompt_ids=(0,), sampling=Sampling(temperature=0.25, top_k=None, top_p=0.5, max_new_tokens=1),
                                 noise_key=4, prompt_index=225, sample_index=2545)]  # fmt: skip


@settings(max_examples=30)
@example(FLAT)
@given(cases())
def test_both_choose_what_the_twin_chooses(case: tuple[Tensor, int, list[Row]]) -> None:
    logits, vocab_size, rows = case
    x = logits[:vocab_size].double().tolist()
    for completion in run(logits, rows, use_kernels=True, vocab_size=vocab_size):
        row, chosen = completion.row, list(completion.token_ids)
        for position, token in enumerate(chosen):
            edited = plain.edited(x, row.sampling, row.prompt_ids, chosen[:position])
            p = plain.probabilities(edited, row.sampling)
            race = {
                t: math.log(p[t]) + plain.gumbel(t, noise_key=row.noise_key, position=position,
                                                 sample_index=row.sample_index, prompt_index=row.prompt_index)
                for t in p if p[t] > 0
            }  # fmt: skip
            assert race[token] >= max(race.values()) - 1e-6
