"""A wrong metric makes people pick the wrong setting: known answers, independent libraries, and properties."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sweep import write_sweep
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from scipy import stats

from gptsweep import review
from gptsweep.analysis import metrics, ngrams, self_bleu
from gptsweep.analysis.frames import read_sweep
from gptsweep.analysis.metrics import METRICS, Metric
from gptsweep.analysis.summary import metric_reasons, text_metrics, token_mean
from gptsweep.multirun.point import require_objective

WORDS = ["the", "king", "is", "dead", "long", "live", "the", "king", "and", "all", "his", "men", "who", "loved", "him", "so"]


def sample(text: str, index: int = 0, prompt: int = 0, **changes: Any) -> dict[str, Any]:
    """A line of samples.jsonl whose tokens are its words, numbered by their letters."""
    tokens = [sum(map(ord, word)) for word in text.split()]
    line: dict[str, Any] = {
        "prompt_index": prompt,
        "sample_index": index,
        "seed": 1,
        "completion": text,
        "token_ids": tokens,
        "finish_reason": "length",
        "logprob_mean": -2.0 if tokens else None,
        "sampler_logprob_mean": -1.0 if tokens else None,
    } | changes
    return {"completion_tokens": len(line["token_ids"])} | line


def numbered(*texts: str) -> list[dict[str, Any]]:
    return [sample(text, index) for index, text in enumerate(texts)]


texts = st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)


def test_perplexity_weighs_every_token_the_same() -> None:
    rows = [sample("a b c", 0, logprob_mean=-1.0), sample("a", 1, logprob_mean=-3.0)]
    found = text_metrics(rows)
    assert found["perplexity"] == pytest.approx(math.exp((3 * 1 + 3) / 4))
    assert found["sampler_perplexity"] == pytest.approx(math.e)


def test_perplexity_error_agrees_with_resampling() -> None:
    rng = np.random.default_rng(0)
    logprob, tokens = rng.normal(-2, 0.3, 400), rng.integers(20, 60, 400)
    _, error = token_mean(list(zip(logprob.tolist(), tokens.tolist(), strict=True)), METRICS["perplexity"])
    draws = rng.integers(0, 400, (2000, 400))
    again = np.exp(-(logprob * tokens)[draws].sum(1) / tokens[draws].sum(1))
    assert error == pytest.approx(again.std(), rel=0.1)


def test_distinct_counts_ngrams_over_words_as_li_2016_does() -> None:
    found = text_metrics(numbered("a b a b", "a b c"))
    # 7 words; distinct: a b c; ab ba bc; aba bab abc
    assert found["distinct_1"] == pytest.approx(3 / 7)
    assert found["distinct_2"] == pytest.approx(3 / 7)
    assert found["distinct_3"] == pytest.approx(3 / 7)


def test_seq_rep_is_the_share_of_repeated_token_4_grams_per_sequence() -> None:
    # 1 2 1 2 1 2 1: 4-grams 1212 2121 1212 2121, half of them repeats; 1 2 3 4: none; 1 2 3: too short to say
    rows = [sample("x", i, token_ids=ids) for i, ids in enumerate([[1, 2, 1, 2, 1, 2, 1], [1, 2, 3, 4], [1, 2, 3]])]
    found = text_metrics(rows)
    assert found["seq_rep_4"] == pytest.approx(0.25)
    assert found["seq_rep_4_se"] == pytest.approx(0.25)


def test_diversity_counts_the_last_ngram_too() -> None:
    # a b a b: bigrams ab ba ab, 2 of 3 distinct; trigrams aba bab; one 4-gram. Without its last n-grams it would be 1.
    assert text_metrics(numbered("a b a b"))["diversity"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("tokens", "ends"),
    [
        ([9, 1, 2, 3, 1, 2, 3], True),  # a phrase of three, twice
        ([1, 2, 3, 1, 2, 3, 9], False),  # but not at the end
        ([9, 1, 2, 1, 2, 1, 2], False),  # a phrase of two counts only beyond 50 times
        ([1, 2] * 51, True),
        ([7] * 50, False),
        ([7] * 51, True),
        ([1, 2, 3], False),
        ([], False),
    ],
)
def test_ends_repeating_on_cases_by_hand(tokens: list[int], ends: bool) -> None:
    assert metrics.ends_repeating(tokens) is ends


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=4), st.integers(0, 60))
@settings(max_examples=150, deadline=None)
def test_ends_repeating_agrees_with_its_plain_definition(head: list[int], phrase: list[int], times: int) -> None:
    tokens = head + phrase * times

    def in_a_row(length: int) -> int:
        pieces = [tokens[max(0, end - length) : end] for end in range(len(tokens), 0, -length)]
        count = 0
        while count < len(pieces) and pieces[count] == pieces[0] and len(pieces[count]) == length:
            count += 1
        return max(1, count)

    runs = [in_a_row(length) for length in range(1, 91)]
    most = max(runs)
    assert metrics.ends_repeating(tokens) == (most > 1 and (runs.index(most) + 1 >= 3 or most > 50))


def test_closing_end_of_text_token_hides_no_repetition() -> None:
    rows = [sample("x", token_ids=[1, 2, 3, 1, 2, 3, 50256], finish_reason="eot")]
    assert text_metrics(rows)["ends_repeating"] == 1


@pytest.mark.parametrize("bound", [1 << 62, 9], ids=["codes fit", "codes are given anew"])
@given(group=st.lists(st.lists(st.sampled_from(WORDS), max_size=12), max_size=5), far=st.sampled_from([1, 1 << 20]))
@settings(max_examples=60, deadline=None)
def test_ngrams_are_counted_as_sets_of_tuples_count_them(bound: int, group: list[list[str]], far: int) -> None:
    tokens = [[WORDS.index(word) * far for word in words] for words in group]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "_BOUND", bound)
        for fast in (ngrams.Ngrams.of_words(group), ngrams.Ngrams.of_tokens(tokens)):
            assert sorted(np.bincount(fast.items)) == sorted(Counter(word for words in group for word in words).values())
            for n in (1, 2, 3, 4):
                sets = [set(ngrams.ngrams(words, n)) for words in group]
                assert fast.distinct(n) == list(map(len, sets))
                assert fast.distinct_together(n) == len(set().union(*sets))
        rows = [
            sample(" ".join(words), number, token_ids=ids)
            for number, (words, ids) in enumerate(zip(group, tokens, strict=True))
        ]
        together = metrics.Texts(map(metrics.Text, rows))
        together.count_ngrams()
        for text, alone in zip(together, map(metrics.Text, rows), strict=True):
            assert (text.distinct_words, text.distinct_tokens) == (alone.distinct_words, alone.distinct_tokens)


@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=4, max_size=30).map(" ".join), min_size=5, max_size=5))
@settings(max_examples=60, deadline=None)
def test_self_bleu_agrees_with_nltk_and_sacrebleu(group: list[str]) -> None:
    mine = text_metrics(numbered(*group))["self_bleu_4"]
    theirs, also = [], []
    for index, text in enumerate(group):
        others = group[:index] + group[index + 1 :]
        smooth = SmoothingFunction(epsilon=0.1).method1
        theirs.append(sentence_bleu([o.split() for o in others], text.split(), smoothing_function=smooth))
        bleu = sacrebleu.metrics.BLEU(tokenize="none", smooth_method="floor", smooth_value=0.1, effective_order=False)
        also.append(bleu.sentence_score(text, others).score / 100)
    assert mine == pytest.approx(np.mean(theirs))
    if all(set(text.split()) & set(" ".join(group[:i] + group[i + 1 :]).split()) for i, text in enumerate(group)):
        assert mine == pytest.approx(np.mean(also))  # sacrebleu gives text without one common word some credit too


def plain_matches(texts: list[list[str]], number: int, n: int) -> int:
    """The n-grams of one text, each clipped to how often another text has it."""
    counts = [Counter(ngrams.ngrams(text, n)) for text in texts]
    own = counts.pop(number)
    return sum(min(times, max(other[gram] for other in counts)) for gram, times in own.items())


@given(st.lists(st.lists(st.sampled_from(WORDS[:5]), min_size=4, max_size=12), min_size=5, max_size=7))
@settings(max_examples=60, deadline=None)
def test_self_bleu_is_that_of_counted_tuples_to_the_bit(texts: list[list[str]]) -> None:
    groups = [list(range(5)), list(range(len(texts) - 5, len(texts)))]
    scores = []
    for group in groups:
        for number, text in enumerate(chosen := [texts[each] for each in group]):
            found = [plain_matches(chosen, number, n) for n in (1, 2, 3, 4)]
            logs = [math.log((same or 0.1) / (len(text) - n)) if same or n else -math.inf for n, same in enumerate(found)]
            others = sorted(map(len, chosen[:number] + chosen[number + 1 :]))
            nearest = min(others, key=lambda other: abs(other - len(text)))
            scores.append(math.exp(sum(logs) / 4 + min(0.0, 1 - nearest / len(text))))
    fast = self_bleu.group_bleu(ngrams.Ngrams.of_words(texts), np.array(groups))
    assert [score for group in fast for score in group] == scores


def test_self_bleu_does_not_depend_on_how_many_samples_there_are() -> None:
    rng = random.Random(0)
    rows = numbered(*(" ".join(rng.choices(WORDS, k=30)) for _ in range(400)))
    few, many = text_metrics(rows[:100])["self_bleu_4"], text_metrics(rows)["self_bleu_4"]
    assert few is not None
    assert few == pytest.approx(many, rel=0.1)


def test_self_bleu_compares_samples_of_one_prompt_only() -> None:
    rows = [sample("long live the king of all", i, prompt=i % 5) for i in range(20)]
    assert text_metrics(rows)["self_bleu_4"] is None
    assert "5 samples of one prompt" in metric_reasons(rows)["self_bleu_4"]


def test_every_sample_is_a_hypothesis_once_when_groups_do_not_come_out_even() -> None:
    rows = numbered(*["a b c d e"] * 5, "v w x y z", "f g h i j")
    assert text_metrics(rows)["self_bleu_4"] == pytest.approx(5 / 7, abs=0.02)


@given(st.lists(st.lists(st.integers(0, 400), max_size=80), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_zipf_agrees_with_scipy(tokens: list[list[int]]) -> None:
    counts = sorted(Counter(token for each in tokens for token in each).values(), reverse=True)
    mine = metrics.zipf(ngrams.Ngrams.of_tokens(tokens))
    if len(counts) < metrics.ZIPF_MIN_TYPES:
        assert isinstance(mine, str)
    else:
        assert mine == pytest.approx(-stats.linregress(np.log(np.arange(1, len(counts) + 1)), np.log(counts)).slope, abs=1e-12)


def test_zipf_of_a_zipfian_text_is_one() -> None:
    tokens = [token for rank in range(1, 200) for token in [rank] * round(20_000 / rank)]
    assert metrics.zipf(ngrams.Ngrams.of_tokens([tokens])) == pytest.approx(1, abs=0.01)


def test_compression_ratio_is_bytes_over_gzip_bytes() -> None:
    found = text_metrics(numbered("é" * 500, "b"))["compression_ratio"]
    assert found == 1002 / len(gzip.compress(("é" * 500 + " b").encode()))


def test_unique_samples_counts_within_a_prompt() -> None:
    rows = [sample("a", 0), sample("a", 1), sample("a", 0, prompt=1), sample("b", 1, prompt=1)]
    assert text_metrics(rows)["unique_samples"] == 3 / 4


def test_what_cannot_be_computed_is_empty_and_says_why() -> None:
    for rows in ([], numbered(""), numbered("a b")):
        found, reasons = text_metrics(rows), metric_reasons(rows)
        assert {name for name, value in found.items() if value is None} == set(reasons)
        assert all(value is None or math.isfinite(value) for value in found.values())
        assert all(reason.startswith("needs ") for reason in reasons.values())
    assert reasons["seq_rep_4"] == "needs a sample of at least 4 tokens"
    assert reasons["perplexity_se"] == "needs two samples"


def test_every_column_is_described() -> None:
    reported = {"logprob_mean", "sampler_logprob_mean", "entropy_mean"}
    assert {name for name in text_metrics([]) if not name.endswith("_se")} | reported == set(METRICS)
    per_sample = {name for name, metric in METRICS.items() if metric.per == "sample"} - reported
    assert {name.removesuffix("_se") for name in text_metrics([]) if name.endswith("_se")} == per_sample


@given(st.lists(texts, max_size=12), st.randoms())
@settings(max_examples=50, deadline=None)
def test_order_of_samples_changes_nothing(group: list[str], rng: random.Random) -> None:
    rows = [sample(text, index, prompt=index % 2) for index, text in enumerate(group)]
    shuffled = rng.sample(rows, len(rows))
    assert text_metrics(shuffled) == text_metrics(rows)


@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=6, max_size=20).map(" ".join), min_size=4, max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_sample_and_its_copy_match_each_other_perfectly(group: list[str]) -> None:
    rows = numbered(*group, group[0])
    (copied,) = self_bleu.group_bleu(ngrams.Ngrams.of_words([row["completion"].split() for row in rows]), np.array([range(5)]))
    assert copied[0] == copied[4] == pytest.approx(1)


def test_duplicated_samples_raise_self_bleu_and_lower_uniqueness() -> None:
    rng = random.Random(0)
    for size in (5, 8, 10):
        rows = numbered(*(" ".join(rng.choices(WORDS, k=20)) for _ in range(size)))
        before, after = text_metrics(rows), text_metrics(rows * 2)
        assert before["self_bleu_4"] < 0.5 < after["self_bleu_4"]  # type: ignore[operator]
        assert (before["unique_samples"], after["unique_samples"]) == (1, 0.5)
        assert after["distinct_1"] == pytest.approx(before["distinct_1"] / 2)  # type: ignore[operator]


def test_lone_surrogates_and_nul_do_not_stop_a_sweep() -> None:
    assert text_metrics(numbered("a \ud800 \0 b", "c"))["distinct_1"] == 1


def test_a_perplexity_beyond_all_numbers_is_empty_and_says_why() -> None:
    samples = [sample | {"logprob_mean": -800.0} for sample in numbered("a b", "c d")]
    assert text_metrics(samples)["perplexity"] is None
    assert metric_reasons(samples)["perplexity"] == "is greater than a number can be"


VOWELS = Metric(
    name="vowels",
    label="Vowels",
    meaning="share of the letters that are vowels",
    unit="share",
    of_sample=lambda text: sum(map(str(text.record["completion"]).count, "aeiou")) / max(1, len(text.record["completion"])),
    direction="higher",
    default=True,
)
LONGEST = Metric(
    name="longest",
    label="Longest",
    meaning="words of the longest sample",
    of_point=lambda texts: float(max((len(text.words) for text in texts), default=0)),
)
TWIN = Metric(name="surprise", label="Surprise", meaning="as perplexity", field="logprob_mean", pooled=True, exponential=True)


@pytest.mark.parametrize("toy", [VOWELS, LONGEST, TWIN], ids=lambda toy: toy.name)
def test_a_metric_is_one_declaration(
    toy: Metric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new one is in summaries, groups, comparisons, the terminal, the page and ``objective``, and changes no file."""
    monkeypatch.setitem(METRICS, toy.name, toy)
    write_sweep(tmp_path, temperature=(0.5, 1.0), top_k=(5,), seed=tuple(range(8)), num_samples=2)
    name = toy.name
    require_objective(name)
    sweep = read_sweep(tmp_path)
    assert sweep.summary[name].notna().all()
    assert (f"{name}_se" in sweep.summary) is (toy.per == "sample")
    lines = [json.loads(line) for line in (tmp_path / sweep.summary["directory"][0] / "samples.jsonl").open()]
    assert sweep.summary[name][0] == pytest.approx(text_metrics(lines)[name])
    group = sweep.group()
    assert group[f"{name}_n"].tolist() == ([16, 16] if toy.per == "sample" else [8, 8])
    assert (group[f"{name}_se"] > 0).any() or toy is LONGEST
    row = sweep.effect("temperature").loc[name]
    assert row["a"] == pytest.approx(group[name][0])
    assert row["pairs"] == (16 if toy.per == "sample" else 8)
    if toy is TWIN:
        same = [sweep.group()["perplexity"], sweep.effect("temperature").loc["perplexity"]]
        assert group[name].tolist() == same[0].tolist()
        assert row.drop("reason").tolist() == same[1].drop("reason").tolist()
    assert review.main([str(tmp_path), "--format", "table", "--metric", name, "--best", f"{name}:max"]) == 0
    shown = capsys.readouterr().out
    assert toy.label in shown
    assert "★" in shown
    assert review.main([str(tmp_path), "--format", "csv", "--no-report"]) == 0
    assert (name in capsys.readouterr().out.splitlines()[0].split(",")) is toy.default
    status = review.main([str(tmp_path), "--format", "csv", "--no-report", "--best", name])
    assert status == (2 if toy.direction == "none" else 0)
    page = (tmp_path / "report.html").read_text()
    assert f'"name":"{name}","label":"{toy.label}"' in page
