"""Which settings may be the best: the set holds the best as often as it says, over the same pairs as every other comparison."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_sweep import made_samples, write_point, write_sweep

from gptsweep.analysis.best import paired, verdicts
from gptsweep.analysis.frames import read_sweep
from gptsweep.analysis.samplers import Aim
from gptsweep.analysis.stats import MIN_PAIRS, critical, resampled
from gptsweep.analysis.with_the_best import WithTheBest, among_the_best, with_the_best
from gptsweep.errors import ResultsError


def drawn(rng: np.random.Generator, truth: np.ndarray, prompts: int, missing: float = 0.0) -> WithTheBest:
    """The comparison of settings with these scores: common noise by prompt, each one's own, some samples missing."""
    size = len(truth)
    den = (rng.random((size, prompts)) >= missing).astype(float)
    own = rng.normal(size=(size, prompts)) * np.linspace(0.7, 1.3, size)[:, None]
    value = truth[:, None] + 0.8 * rng.normal(size=prompts) + own
    return with_the_best(value * den, den, np.arange(prompts), lambda ratio: ratio)


def test_the_set_holds_the_best_in_19_of_20_sweeps_and_so_do_all_intervals_together() -> None:
    rng, alike = np.random.default_rng(1), np.zeros(4)
    kept = np.mean([drawn(rng, alike, 20).may_be_best[0] for _ in range(200)])  # any of equals may be the best one
    assert 0.9 <= kept <= 0.98, kept
    truth = np.array([0.1, 0.0, 0.0, -0.3])
    behind = np.array([np.delete(truth, at).max() - truth[at] for at in range(len(truth))])
    found = [drawn(rng, truth, 40, missing=0.1) for _ in range(200)]
    assert np.mean([each.may_be_best[0] for each in found]) >= 0.95
    covered = np.mean([((each.low <= behind + 1e-9) & (behind - 1e-9 <= each.high)).all() for each in found])
    assert 0.9 <= covered <= 0.985, covered


def compared_pair_by_pair(num: np.ndarray, den: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> WithTheBest:
    """The plain twin: a table of every two settings, whose clusters are the pairs."""
    size, rows = len(num), resampled(num.shape[1])
    ahead, spread, limit = np.full((size, size), np.nan), np.full((size, size), np.nan), np.zeros(size)
    shared = ((den[:, None] > 0) & (den > 0)).sum(axis=-1)
    for i in range(size):
        known, most = (shared[i] >= MIN_PAIRS) & (np.arange(size) != i), np.zeros(len(rows))
        for j in np.flatnonzero(known):
            both = (den[i] > 0) & (den[j] > 0)
            with np.errstate(invalid="ignore"):
                moved = np.subtract(*(score((rows @ (num[at] * both)) / (rows @ (den[at] * both))) for at in (j, i)))
            ahead[i, j] = np.subtract(*(score((num[at] * both).sum() / (den[at] * both).sum()) for at in (j, i)))
            moved = moved[~np.isnan(moved)] - np.nanmean(moved), np.flatnonzero(~np.isnan(moved))
            spread[i, j] = moved[0].std() * np.sqrt(shared[i, j] / (shared[i, j] - 1))
            if spread[i, j] > 0:
                most[moved[1]] = np.maximum(most[moved[1]], moved[0] / moved[0].std())
        if known.any():
            limit[i] = critical(most, int(shared[i][known].min()))
    return among_the_best(ahead, spread, limit, shared[:, 0])


@pytest.mark.parametrize(("size", "pairs", "missing"), [(3, 8, 0.0), (11, 7, 0.0), (9, 9, 0.1)])
def test_settings_compared_together_are_as_each_two_alone(
    size: int, pairs: int, missing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptsweep.analysis.with_the_best.TOGETHER", 4)
    rng = np.random.default_rng(size)
    den = rng.integers(1, 4, (size, pairs)) * (rng.random((size, pairs)) >= missing)
    value = np.linspace(0, 0.9, size)[:, None] + rng.normal(size=pairs) + 0.5 * rng.normal(size=(size, pairs))
    num, den = value * den, den.astype(float)
    num[1], den[1] = num[0], den[0]  # two that are one and the same
    for score in (lambda ratio: ratio, lambda ratio: -np.exp(-ratio)):
        found, twin = with_the_best(num, den, np.arange(pairs), score), compared_pair_by_pair(num, den, score)
        assert found.may_be_best.tolist() == twin.may_be_best.tolist()
        assert found.independent.tolist() == twin.independent.tolist()
        for one, other in ((found.low, twin.low), (found.high, twin.high)):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_many_points_are_compared_over_more_than_one_sample_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptsweep.analysis.sweep.MAX_SAMPLES", 8)
    sweep = read_sweep(write_sweep(tmp_path / "s", temperature=(0.0, 0.5, 1.0), top_k=(5, 50), seed=(1,), num_samples=8))
    found = verdicts(sweep, sweep.group(), Aim.of("perplexity:min", None, sweep.declared))
    assert "unclear" not in found.marks


def test_what_is_far_behind_is_out_and_too_few_pairs_say_nothing() -> None:
    found = drawn(np.random.default_rng(2), np.array([3.0, 0.0, -1.0]), 30)
    assert found.may_be_best.tolist() == [True, False, False]
    assert found.high[0] == 0.0
    assert found.low[0] < -2
    few = drawn(np.random.default_rng(2), np.array([3.0, 0.0, -1.0]), 5)
    assert not few.may_be_best.any()
    assert np.isnan(few.high).all()


def test_the_best_by_what_no_point_has_is_an_error(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path / "s", temperature=[0.5, 1.0], top_k=[5], seed=[1], num_samples=2))
    with pytest.raises(ResultsError, match="best=self_bleu_4: no point has this metric"):
        verdicts(sweep, sweep.group(), Aim.of("self_bleu_4:min", None, sweep.declared))


def test_differences_are_those_of_the_same_pairs_as_everywhere(tmp_path: Path) -> None:
    """Samples of very different lengths, empty ones, copies, a missing seed, a setting that rows leave open."""
    rng = random.Random(3)
    for temperature, top_k, seed in [(t, k, s) for t in (0.2, 0.5, 1.2) for k in (5, 50) for s in (1, 2, 3)]:
        samples = []
        made = made_samples(temperature=temperature, top_k=top_k, seed=seed, num_samples=3, words=40, prompts=("a", "b"))
        for sample in made:
            cut = rng.choice([0, 3, 20, 40])
            more = {} if cut else {"logprob_mean": None}
            text = " ".join(sample.completion.split()[:cut])
            samples.append(replace(sample, token_ids=sample.token_ids[:cut], completion=text, **more))
        if (temperature, top_k, seed) != (1.2, 5, 2):
            write_point(tmp_path / "s" / f"{temperature} {top_k} {seed}", samples)
        if seed == 1:
            write_point(tmp_path / "s" / f"{temperature} {top_k} {seed} again", samples)
    sweep = read_sweep(tmp_path / "s")
    for keys in (["temperature", "top_k"], ["temperature"]):
        rows = sweep.group(keys)
        for name in ("perplexity", "seq_rep_4", "distinct_1"):
            aim = Aim.of(f"{name}:max", None, sweep.declared)
            num, den, clusters = paired(sweep, rows, aim)
            assert len(clusters) == num.shape[1]
            for a, b in ((0, 1), (0, len(rows) - 1)):
                both = (den[a] > 0) & (den[b] > 0)
                means = [aim.score((num[at] * both).sum() / (den[at] * both).sum()) for at in (a, b)]
                compared = sweep.compare(*(rows.loc[at, keys].to_dict() for at in (a, b))).loc[name]
                assert [*means] == pytest.approx([compared["a"], compared["b"]]), (name, keys)
            assert verdicts(sweep, rows, aim).marks.count("best") == 1
