"""The embedded model's text behaves as text from language models does: Holtzman et al. 2020, Figures 8 and 9."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

import gptsweep
from gptsweep.analysis.summary import text_metrics

TEMPERATURES = (0.0, 0.5, 1.0, 1.5)
TOP_K = (1, 10, 65)
SLACK = 0.07
"""How far a step may go the wrong way by chance: eight samples of 200 characters stand behind each point."""

Grid = dict[tuple[float, int], dict[str, float | None]]


@pytest.fixture(scope="module")
def grid() -> Grid:
    lm = gptsweep.load("shakespeare", device="cpu")
    settings = {"temperature": TEMPERATURES, "top_k": TOP_K}
    samples = gptsweep.sweep(lm, num_samples=8, max_new_tokens=200, seed=1, **settings)
    return {point: text_metrics(of_point.to_dict("records")) for point, of_point in samples.groupby([*settings])}


def along(grid: Grid, name: str, points: Sequence[tuple[float, int]]) -> list[float]:
    values = [grid[point][name] for point in points]
    assert None not in values
    return values  # type: ignore[return-value]


def rises(values: Sequence[float], slack: float) -> bool:
    return all(later > earlier - slack for earlier, later in itertools.pairwise(values)) and values[-1] > values[0] + slack


@pytest.mark.parametrize("top_k", TOP_K[1:])
def test_perplexity_rises_and_repetition_falls_with_temperature(grid: Grid, top_k: int) -> None:
    points = [(temperature, top_k) for temperature in TEMPERATURES]
    perplexity, repetition = along(grid, "perplexity", points), along(grid, "seq_rep_4", points)
    greedy, *sampled = perplexity  # greedy text is a single text: its place among the lowest is chance
    assert sampled == sorted(sampled)
    assert sampled[-1] > 1.4 * sampled[0]
    assert greedy < sampled[1]
    assert rises([-each for each in repetition], SLACK)


def test_perplexity_rises_and_repetition_falls_with_top_k(grid: Grid) -> None:
    points = [(1.0, top_k) for top_k in TOP_K]
    perplexity, repetition = along(grid, "perplexity", points), along(grid, "seq_rep_4", points)
    assert rises(perplexity, SLACK * perplexity[0])
    assert rises([-each for each in repetition], SLACK)


def test_greedy_text_is_one_text_and_sampled_text_is_not(grid: Grid) -> None:
    assert grid[0.0, 65] == grid[0.0, 1] == grid[1.0, 1]
    assert grid[0.0, 65]["unique_samples"] == 1 / 8
    assert grid[1.0, 65]["unique_samples"] == 1
    assert grid[0.0, 65]["self_bleu_4"] == pytest.approx(1)
    assert grid[1.0, 65]["self_bleu_4"] < 0.2  # type: ignore[operator]
