"""What a user would lose: which sampler is ahead at equal tuning budget, found where it is so and not where it is luck."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sweep import made_samples, write_point
from planted import Planted, leads
from rich.console import Console
from sweeps import Run, save_checkpoint

from gptsweep import review
from gptsweep.analysis.budgets import compare_families, expected_best, expected_chosen, halves, rank_weights
from gptsweep.analysis.comparison_request import ComparisonRequest, read_request
from gptsweep.analysis.frames import read_sweep
from gptsweep.analysis.samplers import MAX_CLUSTERS, blocks, family_of
from gptsweep.config_schema import CONF_DIR
from gptsweep.errors import ResultsError
from gptsweep.records import SAMPLERS, Sampling
from gptsweep.store import schema

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=7)


@given(SCORES, st.randoms(use_true_random=False))
def test_the_expected_best_is_the_mean_over_all_choices_of_settings(scores: list[float], random: Any) -> None:
    other = [float(random.randint(-3, 3)) for _ in scores]
    best, chosen = [], []
    for n in range(1, len(scores) + 1):
        choices = list(itertools.combinations(range(len(scores)), n))
        best.append(np.mean([max(scores[i] for i in choice) for choice in choices]))
        chosen.append(np.mean([
            np.mean([scores[i] for i in choice if other[i] == max(other[j] for j in choice)]) for choice in choices
        ]))  # fmt: skip
    assert expected_best(np.array(scores)) == pytest.approx(best)
    assert expected_chosen(np.array([other]), np.array([scores]))[0] == pytest.approx(chosen)


def test_the_expected_best_is_that_of_settings_tried_at_random() -> None:
    rng = np.random.default_rng(3)
    scores = rng.gumbel(size=24)
    tried = scores[rng.random((40_000, 24)).argsort(axis=1)]
    best = np.maximum.accumulate(tried, axis=1)
    error = best.std(axis=0) / np.sqrt(len(best))
    assert (np.abs(best.mean(axis=0) - expected_best(scores)) <= 4 * error + 1e-9).all()


def test_a_family_of_a_thousand_settings_has_finite_weights() -> None:
    weights = rank_weights(1000)
    assert np.allclose(weights.sum(axis=1), 1)
    assert np.allclose(weights[0], 1 / 1000)
    assert weights[-1].tolist() == [0.0] * 999 + [1.0]


@given(st.lists(st.integers(0, 9), min_size=2, max_size=40))
def test_what_belongs_together_is_in_one_half(unit: list[int]) -> None:
    for first in halves(np.array(unit)):
        inside = set(np.array(unit)[first])
        assert not inside & set(np.array(unit)[~first])
        assert len(inside) == len(set(unit)) // 2


def test_the_best_of_settings_that_are_alike_is_not_flattered() -> None:
    found = Planted(spread=0.0, settings=16).compared(8)
    same, held_out = (np.mean([each.mean[-1] for one in found for each in getattr(one, name)]) for name in ("same", "held_out"))
    error = 3.0 / np.sqrt(48)  # of the mean of one setting
    assert same > error  # every setting is worth 0
    assert abs(held_out) < 0.5 * error


@pytest.mark.parametrize(
    "planted",
    [
        Planted(same_settings=True, settings=8),
        Planted(noise=0.3, settings=8),
        Planted(family_noise=2.0, clusters=12, settings=8, same_settings=True),
    ],
    ids=["the same settings", "settings drawn anew", "samples that suit one family"],
)
def test_families_that_are_the_same_cannot_be_told_apart(planted: Planted) -> None:
    assert sum(map(leads, planted.compared(16))) <= 2  # of 200, 2 % at most: benchmarks/equal_budget.py


def test_a_family_that_is_ahead_is_found_and_no_other() -> None:
    found = Planted(lead=3.0, families=3, settings=8).compared(6)
    assert all(each.ahead[0] == 1 for one in found for each in one.contrasts if each.a == 0)
    assert not any((each.ahead == -1).any() for one in found for each in one.contrasts)
    assert not any(each.ahead.any() for one in found for each in one.contrasts if each.a > 0)


def test_what_is_equal_to_the_last_bit_but_one_is_no_difference() -> None:
    scores, family = Planted(settings=4).sweep(np.random.default_rng(1))
    scores.num[4:] = scores.num[:4] * (1 + 1e-15)
    (found,) = compare_families(scores, family).contrasts
    assert not found.ahead.any()
    assert not found.ahead_here.any()


@given(st.integers(1, 900), st.integers(1, 30), st.booleans())
@settings(max_examples=30)
def test_blocks_of_clusters_are_few_and_of_one_prompt(samples: int, prompts: int, by_prompt: bool) -> None:
    prompt = np.repeat(np.arange(prompts), samples)
    cluster = np.arange(len(prompt))[::-1].copy()
    block, unit = blocks(cluster, prompt, by_prompt=by_prompt)
    assert len(unit) == len(np.unique(block)) == block.max() + 1 <= MAX_CLUSTERS
    if by_prompt:
        assert all(len(set(prompt[block == each])) == 1 for each in np.unique(block))
        assert all(unit[each] == prompt[block == each][0] for each in np.unique(block))


def test_the_samplers_that_truncate_name_the_family() -> None:
    on = {"top_k": 5, "top_p": 0.9, "min_p": 0.1}
    assert {name for name, sampler in SAMPLERS.items() if sampler.truncates} >= set(on)
    for name in (name for name, sampler in SAMPLERS.items() if sampler.truncates):
        row = {each: sampler.off for each, sampler in SAMPLERS.items()} | {"temperature": 0.5}
        assert family_of(row, None)[1] == "no truncation"
        assert family_of(row | {name: on.get(name, 0.123)}, None)[1] == name
    assert family_of(on | {"repetition_penalty": 1.3}, None)[1] == "top_k + top_p + min_p"
    assert family_of(on | {"model": "gpt2"}, ["model", "top_k"])[1] == "model=gpt2, top_k=5"


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four settings each of top_p and min_p, two seeds; min_p at lower temperatures, so at lower perplexity."""
    root = tmp_path_factory.mktemp("sweeps") / "samplers"
    root.mkdir()
    (root / "multirun.yaml").write_text("hydra: {}\n")
    for name, value in itertools.product(("top_p", "min_p"), (0.2, 0.4, 0.6, 0.8)):
        temperature = value if name == "min_p" else value + 0.1
        for seed in (1, 2):
            sampling = Sampling(temperature=temperature, top_k=None, max_new_tokens=40, **{name: value})  # type: ignore[arg-type]
            made = made_samples(temperature=temperature, top_k=None, seed=seed, num_samples=6)
            samples = [replace(each, sampling=sampling, point_id=f"{name}{value}{seed}") for each in made]
            write_point(root / f"{name}={value},seed={seed}", samples)
    write_point(root / "copy", samples)
    return root


def test_the_table_has_the_expected_best_of_the_means_of_settings(sweep_dir: Path) -> None:
    sweep = read_sweep(sweep_dir)
    found = sweep.compare_samplers("perplexity:min")
    assert found.families == ("top_p", "min_p")
    assert found.settings == (4, 4)
    means = sweep.group()
    for name in found.families:
        rows = found.table[found.table["family"] == name]
        values = means.loc[means[name].notna(), "perplexity"].to_numpy(float)
        assert list(rows["same_samples"]) == pytest.approx(list(-expected_best(-values)))
        assert list(rows["budget"]) == [1, 2, 3, 4]
        assert (rows["held_out"] >= rows["same_samples"] - 1e-9).all()
        assert ((rows["held_out_low"] <= rows["held_out"]) & (rows["held_out"] <= rows["held_out_high"])).all()
    assert len(found.differences) == 4


def test_distance_from_a_reference_is_what_is_small(sweep_dir: Path) -> None:
    sweep = read_sweep(sweep_dir)
    goal = float(sweep.group()["perplexity"].iloc[0])
    table = sweep.compare_samplers("perplexity:reference", reference={"perplexity": goal}).table
    assert table["same_samples"].min() == pytest.approx(0, abs=1e-9)
    assert (table.filter(regex="held_out|same") >= 0).all(axis=None)


def test_too_few_seeds_for_a_metric_per_point_are_reported(sweep_dir: Path) -> None:
    found = read_sweep(sweep_dir).compare_samplers("self_bleu_4")
    assert "cannot tell" in found.sentence
    assert "2 independent samples are too few" in found.sentence
    assert found.table["held_out"].notna().all()
    assert found.table["held_out_low"].isna().all()


def test_other_keys_make_families(sweep_dir: Path) -> None:
    found = read_sweep(sweep_dir).compare_samplers("diversity", ["seed"])
    assert found.families == ("seed=1", "seed=2")
    assert found.settings == (8, 8)


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_comparison_fits_the_terminal(sweep_dir: Path, width: int) -> None:
    options = review.parser().parse_args([str(sweep_dir), "--samplers", "--metric", "perplexity:min", "--format", "table",
                                          "--no-report"])  # fmt: skip
    file = io.StringIO()
    review.review(options, Console(file=file, width=width, markup=False, highlight=False))
    text = file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    assert text.count("top_p") >= 2
    assert "…" not in text
    for value in read_sweep(sweep_dir).compare_samplers("perplexity:min").table["held_out"]:
        assert f"{value:.2f} [" in text


def test_other_programs_get_the_table_and_the_sentence(sweep_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert review.main([str(sweep_dir), "--samplers", "--metric", "diversity,perplexity:min", "--no-report"]) == 0
    out, err = capsys.readouterr()
    table = pd.read_csv(io.StringIO(out))
    assert len(table) == 16
    assert set(table["metric"]) == {"highest Diversity", "lowest Perplexity"}
    assert err.count("95 % for all together") == 2
    assert review.main([str(sweep_dir), "--samplers", "--metric", "diversity", "--format", "json", "--no-report"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["family"] == "top_p"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samplers"], "say what is best"),
        (["--samplers", "--metric", "perplexity"], "use perplexity:min"),
        (["--samplers", "--metric", "perplexity:reference"], "no reference text"),
        (["--samplers", "--metric", "nothing:max"], "must be one of"),
        (["--samplers", "--metric", "diversity", "--by", "model"], "one family here, model=shakespeare"),
        (["--samplers", "--metric", "diversity", "--by", "banana"], "is not a setting here"),
        (["--samplers", "--metric", "diversity", "--where", "min_p > 0"], "one family here, min_p"),
        (["--samplers", "--metric", "diversity", "--best", "diversity"], "cannot be combined with --samplers"),
        (["--by", "seed"], "needs --samplers"),
    ],
)
def test_a_mistake_is_one_line(sweep_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert review.main([str(sweep_dir), *arguments, "--no-report"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_sweep_without_samples_has_nothing_to_compare(tmp_path: Path) -> None:
    write_point(tmp_path / "s" / "a", made_samples(temperature=0.5, top_k=5, seed=1, num_samples=1, words=2))
    with pytest.raises(ResultsError, match="no point has this metric"):
        read_sweep(tmp_path / "s").compare_samplers("diversity")


def page_samplers(directory: Path) -> Any:
    """The comparisons on the page."""
    found = re.search(r'"samplers":(\[.*?\]),"min_pairs"', (directory / "report.html").read_text())
    assert found
    return json.loads(found[1])


def test_a_sweep_ends_with_the_comparison_that_its_setting_asks_for(run: Run, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "out", seed=1)
    small = ("-m", "name=s", "model=resume", "sampling.num_samples=6", "sampling.max_new_tokens=6", "sampling.top_k=3,4",
             "sampling.min_p=null,0.1")  # fmt: skip
    ended = run(*small, "compare_samplers=perplexity:min")
    assert ended.status == 0
    assert "By lowest Perplexity, " in " ".join(ended.err.split())
    directory = tmp_path / "outputs" / "sweeps" / "s"
    names = ["top_k", "top_k + min_p"]
    assert [family["name"] for family in page_samplers(directory)[0]["families"]] == names
    assert read_request(directory) == ComparisonRequest(("perplexity:min",))
    assert review.main([str(directory), "--format", "csv"]) == 0
    assert [family["name"] for family in page_samplers(directory)[0]["families"]] == names
    assert review.main([str(directory), "--samplers", "--metric", "seq_rep_4", "--by", "top_k"]) == 0
    assert [family["name"] for family in page_samplers(directory)[0]["families"]] == ["top_k=3", "top_k=4"]


def test_a_sweep_ends_with_the_comparison_by_a_metric_of_ones_own_and_by_mauve(run: Run, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "out", seed=1)
    (tmp_path / "text.txt").write_text("abc no de\nhij " * 100)
    own = "def vowels(sample: dict) -> float:\n    return sample['completion'].count('a')\n"
    (tmp_path / "own_for_comparison.py").write_text(own)
    ended = run(
        "-m", "name=s", "model=resume", "sampling.num_samples=24", "sampling.max_new_tokens=6", "sampling.top_k=null,4",
        "reference=FILE:text.txt", "compare_samplers='mauve:max,own_for_comparison:vowels:reference,perplexity:min'",
    )  # fmt: skip
    assert ended.status == 0
    message = " ".join(ended.err.split())
    assert all(f"By {aim}, " in message for aim in ("highest MAUVE", "lowest Perplexity"))
    assert "By vowels nearest to the reference text's " in message
    directory = tmp_path / "outputs" / "sweeps" / "s"
    assert [family["name"] for family in page_samplers(directory)[1]["families"]] == ["no truncation", "top_k"]
    assert all("own_for_comparison:vowels" in path.read_text() for path in directory.glob(f"*/{schema.SCORES}"))
    assert read_request(directory) == ComparisonRequest(("perplexity:min",))  # what later pages know; results name no function


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nowhere_at_all:vowels:max", "compare_samplers=nowhere_at_all:vowels: cannot be imported"),
        ("mauve:max", "give one with reference=FILE:path"),
        ("mauve:reference", "use mauve:max"),
        ("perplexity", "use perplexity:min"),
        ("banana:max", "banana must be one of"),
        ("perplexity:reference", "give one with reference=FILE:path"),
        ("''", "must be METRIC:min"),
    ],
)
def test_a_mistaken_setting_is_reported_before_any_work(run: Run, tmp_path: Path, value: str, message: str) -> None:
    ended = run("-m", "name=s", "sampling.top_k=3,4", f"compare_samplers={value}")
    assert ended.status == 2
    assert message in ended.err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", '{"metrics": []}', '{"metrics": [1], "by": null}', '{"metrics": ["os:system"], "by": null}',
     '{"metrics": ["diversity"], "by": 3}', '{"metrics": ["diversity"], "by": []}', "[" * 100_000],
)  # fmt: skip
def test_a_damaged_record_of_what_was_asked_for_costs_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "samplers.json").write_text(text)
    assert read_request(tmp_path) is None


def test_a_comparison_that_cannot_be_had_costs_no_page(
    sweep_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_point(tmp_path / "s" / "a", made_samples(temperature=0.5, top_k=5, seed=1))
    ComparisonRequest(("diversity",), ("banana\x1b[31m",)).save(tmp_path / "s")
    assert review.main([str(tmp_path / "s"), "--format", "csv"]) == 0
    err = capsys.readouterr().err
    assert "no comparison of samplers: by=banana\\x1b[31m: is not a setting here" in err
    assert page_samplers(tmp_path / "s") == []


def test_the_design_of_the_experiment_tries_every_family_equally_often() -> None:
    table = pd.read_csv(CONF_DIR / "experiment" / "samplers.csv")
    settings = [
        {str(key).removeprefix("sampling."): None if pd.isna(value) else value for key, value in row.items()}
        for row in table.to_dict("records")
    ]
    names = [family_of(row, None)[1] for row in settings]
    assert set(Counter(names).values()) == {12}
    assert set(names) == {"no truncation", "top_k", "top_p", "min_p", "typical_p", "top_n_sigma", "eta_cutoff",
                          "xtc_probability", "mirostat_tau"}  # fmt: skip
    assert "no truncation" in names
    assert not any("+" in name for name in names)
    assert all(0.5 <= row["temperature"] <= 1.5 for row in settings)
