"""What a person reads off a sweep must be what is in its files, mid-sweep and after a crash too."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from made_sweep import made_samples, write_point, write_sweep

from gptsweep.analysis import stats as compare
from gptsweep.analysis.columns import ordered
from gptsweep.analysis.frames import read_sweep
from gptsweep.analysis.metrics import METRICS
from gptsweep.analysis.sweep import Sweep
from gptsweep.errors import ResultsError


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweeps") / "night")


def test_every_point_and_sample_is_there_with_its_type(sweep_dir: Path) -> None:
    sweep = read_sweep(sweep_dir)
    assert (len(sweep.summary), len(sweep.samples)) == (18, 180)
    assert sweep.swept == ("temperature", "top_k", "seed")
    assert sweep.summary["temperature"].dtype == "float64"
    assert sweep.summary["top_k"].dtype == "Int64"
    assert sweep.summary["top_k"].isna().sum() == 6
    assert set(sweep.summary["status"]) == {"complete"}
    assert sweep.problems == ()
    first = sweep.samples.iloc[0]
    line = json.loads((sweep_dir / sweep.summary["directory"][0] / "samples.jsonl").read_text().splitlines()[0])
    for name, value in line.items():
        if name in first and value not in (None, [], {}):
            assert list(first[name]) == value if name == "token_ids" else first[name] == value, name
    assert first["token_ids"].dtype == np.int32
    assert (sweep.samples["point"].map(sweep.summary["temperature"]) == sweep.samples["temperature"]).all()


def test_summary_is_read_as_written(sweep_dir: Path) -> None:
    sweep = read_sweep(sweep_dir)
    for _, row in sweep.summary.iterrows():
        written = pd.read_csv(sweep_dir / str(row["directory"]) / "summary.csv").iloc[0]
        for name in METRICS:
            assert row[name] == pytest.approx(written[name], nan_ok=True)


def test_a_single_run_and_a_directory_of_runs_are_read_too(tmp_path: Path) -> None:
    for temperature in (0.5, 0.9):
        write_point(tmp_path / "runs" / f"t{temperature}", made_samples(temperature=temperature, top_k=5, seed=1))
    assert len(read_sweep(tmp_path / "runs" / "t0.5").summary) == 1
    both = read_sweep(tmp_path / "runs")
    assert both.swept == ("temperature",)
    assert list(both.summary["directory"]) == ["t0.5", "t0.9"]


def test_several_sweeps_are_told_apart_by_name(tmp_path: Path) -> None:
    a = write_sweep(tmp_path / "a", temperature=[0.5], top_k=[5], seed=[1])
    b = write_sweep(tmp_path / "b", temperature=[0.5], top_k=[5], seed=[1])
    for sweep in (read_sweep(a, b), read_sweep(tmp_path)):
        assert sweep.swept == ("sweep",)
        assert list(sweep.summary["sweep"]) == ["a", "b"]
    other = write_sweep(tmp_path / "other/a", temperature=[0.5], top_k=[5], seed=[1])
    assert list(read_sweep(a, other).summary["sweep"]) == sorted([str(a), str(other)])


def test_results_in_the_working_directory_have_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sweep(tmp_path / "b", temperature=[0.5], top_k=[5], seed=[1])
    write_sweep(tmp_path, temperature=[0.5], top_k=[5], seed=[2])
    monkeypatch.chdir(tmp_path)
    sweep = read_sweep(".")
    assert sorted(sweep.summary["sweep"]) == sorted(["b", tmp_path.name])


def test_an_empty_text_stands_with_the_texts() -> None:
    assert ordered(pd.Series([None, "b", "", 2, 1], dtype=object)) == [1, 2, "", "b", None]


def crashed(tmp_path: Path) -> Path:
    """A sweep of three points: one complete, one whose process was killed while it wrote, one that never started."""
    root = write_sweep(tmp_path / "s", temperature=[0.5], top_k=[5], seed=[1])
    directory = root / "sampling.temperature=0.5,sampling.top_k=5,seed=2"
    (directory / ".hydra").mkdir(parents=True)
    (directory / ".hydra" / "overrides.yaml").write_text("- sampling.temperature=0.5\n- sampling.top_k=5\n- seed=2\n")
    lines = [sample.line() for sample in made_samples(temperature=0.5, top_k=5, seed=2)]
    lines[2] = lines[2].replace("{", "", 1)
    (directory / "samples.partial.jsonl").write_text("".join(lines[:6]) + lines[6][:40])
    (root / "sweep.csv").write_text(
        "temperature,top_k,seed,status,error,directory\n"
        '0.5,5,1,complete,,"sampling.temperature=0.5,sampling.top_k=5,seed=1"\n'
        '0.5,5,2,partial,,"sampling.temperature=0.5,sampling.top_k=5,seed=2"\n'
        "0.5,5,3,failed,out of memory,\"sampling.temperature=0.5,sampling.top_k=5,seed=3\"\n"
    )  # fmt: skip
    return root


def test_after_a_crash_what_is_whole_is_read_and_what_is_damaged_is_reported(tmp_path: Path) -> None:
    sweep = read_sweep(crashed(tmp_path))
    table = sweep.summary.set_index("seed")
    assert list(table["status"]) == ["complete", "partial", "failed"]
    assert list(table["num_samples"]) == [10, 5, 0]
    assert table.loc[3, "error"] == "out of memory"
    assert sweep.swept == ("seed",)
    assert math.isfinite(table.loc[2, "perplexity"])
    assert sweep.damaged_lines == 2
    [problem] = sweep.problems
    assert "samples.partial.jsonl" in problem
    assert "2 damaged lines of 7" in problem


def test_points_that_wait_for_their_turn_are_missing_under_their_own_settings(tmp_path: Path) -> None:
    root = write_sweep(tmp_path / "s", temperature=[0.5], top_k=[5], seed=[1])
    waiting = root / "sampling.temperature=0.9,sampling.top_k=null,seed=1"
    waiting.mkdir()
    (waiting / ".lock").write_text("")
    table = read_sweep(root).summary
    assert list(table["status"]) == ["complete", "missing"]
    assert list(table["temperature"]) == [0.5, 0.9]
    assert list(table["top_k"].isna()) == [False, True]


def test_text_changed_after_the_manifest_was_written_is_noticed(tmp_path: Path) -> None:
    root = write_sweep(tmp_path / "s", temperature=[0.5], top_k=[5], seed=[1])
    [path] = root.glob("*/samples.jsonl")
    path.write_text(path.read_text().replace("the", "teh"))
    sweep = read_sweep(root)
    assert "manifest" in sweep.problems[0]
    assert sweep.summary["status"][0] == "partial"


def test_a_manifest_of_one_line_vouches_for_one_line(tmp_path: Path) -> None:
    write_point(tmp_path / "run", made_samples(temperature=0.5, top_k=5, seed=1, text="the end", num_samples=1))
    path = tmp_path / "run" / "samples.jsonl"
    path.write_text(path.read_text().replace("the", "teh"))
    assert read_sweep(tmp_path / "run").problems[0].endswith("samples.jsonl: differs from the 1 line that its manifest records")


@pytest.mark.parametrize(
    "damage",
    [
        ('"token_ids": [', '"token_ids": ["x", '),
        ('"token_ids": [', '"token_ids": [99999999999, '),
        ('"seed": 1', '"seed": -1'),
        ('"prompt_index"', '"prompt_indx"'),
        ('"completion": "', '"completion": 3, "x": "'),
        ('"logprob_mean": -', '"logprob_mean": "'),
        ("{", "[" * 100_000),
        ('"model"', '"mod\xff'),
    ],
)
def test_a_line_that_is_damaged_in_any_way_is_counted_and_costs_no_other(tmp_path: Path, damage: tuple[str, str]) -> None:
    root = write_sweep(tmp_path / "s", temperature=[0.5], top_k=[5], seed=[1])
    [path] = root.glob("*/samples.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    assert damage[0] in lines[4]
    lines[4] = lines[4].replace(*damage, 1)
    path.write_text("".join(lines), encoding="latin-1")
    sweep = read_sweep(root)
    assert (len(sweep.samples), sweep.damaged_lines) == (9, 1)
    assert any("1 damaged line of 10" in problem and str(path) in problem for problem in sweep.problems)


@pytest.mark.parametrize("broken", ["summary.csv", "manifest.json"])
def test_a_broken_small_file_costs_no_samples(tmp_path: Path, broken: str) -> None:
    root = write_sweep(tmp_path / "s", temperature=[0.5], top_k=[5], seed=[1])
    [path] = root.glob(f"*/{broken}")
    path.write_bytes(b"\xff\xfe{")
    sweep = read_sweep(root)
    assert len(sweep.samples) == 10
    assert math.isfinite(sweep.summary["perplexity"][0])


@pytest.mark.parametrize("text", ["a\ud800b", "nul\0nul", "\u2028 \u202e", "emoji \U0001f600", ""])
def test_any_text_survives(tmp_path: Path, text: str) -> None:
    write_point(tmp_path / "p", made_samples(temperature=0.5, top_k=5, seed=2**64 - 1, text=text, num_samples=2))
    sweep = read_sweep(tmp_path / "p")
    assert sweep.samples["completion"][0] == text.replace("\ud800", "?")
    assert sweep.samples["seed"][0] == 2**64 - 1


def test_a_wrong_path_says_what_would_work(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="is not a directory"):
        read_sweep(tmp_path / "nowhere")
    with pytest.raises(ResultsError, match="holds no run yet"):
        read_sweep(tmp_path)
    for wrong in (None, 5, b"sweep", ["sweep"]):
        with pytest.raises(ResultsError, match="must be the path of a sweep"):
            read_sweep(wrong)  # type: ignore[arg-type]


def test_grouping_over_seeds_equals_the_mean_over_all_samples(sweep_dir: Path) -> None:
    sweep = read_sweep(sweep_dir)
    row = sweep.group(["temperature"]).iloc[1]
    samples = sweep.samples[sweep.samples["temperature"] == 0.5]
    assert row["num_samples"] == row["entropy_mean_n"] == len(samples)
    assert row["entropy_mean"] == pytest.approx(samples["entropy_mean"].mean())
    shared = samples.groupby(["prompt_index", "seed", "sample_index"])  # by the three values of top_k
    assert row["entropy_mean_se"] == pytest.approx(shared["entropy_mean"].mean().sem())
    weights = samples["completion_tokens"]
    assert row["perplexity"] == pytest.approx(math.exp(-(samples["logprob_mean"] * weights).sum() / weights.sum()))
    assert row["perplexity_se"] == pytest.approx(row["perplexity"] * shared["logprob_mean"].mean().sem())  # equal lengths
    points = sweep.summary[sweep.summary["temperature"] == 0.5]
    assert row["self_bleu_4"] == pytest.approx(points["self_bleu_4"].mean())
    assert row["self_bleu_4_se"] == pytest.approx(points.groupby("seed")["self_bleu_4"].mean().sem())
    assert row["self_bleu_4_n"] == 6


def test_a_table_made_of_summaries_is_that_of_the_samples(tmp_path: Path) -> None:
    for seed, (words, count) in enumerate([(40, 7), (25, 10), (60, 4)]):
        write_point(tmp_path / f"{seed}", made_samples(temperature=0.5, top_k=5, seed=seed, words=words, num_samples=count))
    sweep = read_sweep(tmp_path)
    row = sweep.group([]).iloc[0]
    samples = sweep.measured(sweep.summary)
    for name in (name for name, metric in METRICS.items() if metric.per == "sample"):
        one = np.zeros(len(samples), dtype=np.int64)
        mean, error, n = compare.per_sample(METRICS[name], samples, one, 1, np.arange(len(samples)))
        if name in row:
            assert (row[name], row[f"{name}_se"], row[f"{name}_n"]) == pytest.approx((mean[0], error[0], n[0])), name


def test_copies_of_a_run_count_once(tmp_path: Path) -> None:
    samples = made_samples(temperature=0.5, top_k=5, seed=1)
    for name in "abcd":
        write_point(tmp_path / name, samples)
    alone, four = (read_sweep(path).group().iloc[0] for path in (tmp_path / "a", tmp_path))
    assert (four["num_points"], four["num_samples"]) == (1, 10)
    assert [*four["points"]] == [0, 1, 2, 3]
    for name in alone.index.drop(["points"]):
        assert four[name] == pytest.approx(alone[name], nan_ok=True), name
    half = tmp_path / "half"
    half.mkdir()  # of a copy that stopped, too
    (half / "samples.partial.jsonl").write_text("".join(sample.line() for sample in samples[:5]))
    assert read_sweep(tmp_path).group()["num_samples"].tolist() == [10]


def test_copies_of_a_point_are_compared_once(tmp_path: Path) -> None:
    for name, temperature in (("a", 0.5), ("b", 0.5), ("c", 1.0), ("d", 1.0)):
        write_point(tmp_path / name, made_samples(temperature=temperature, top_k=5, seed=1))
    table = read_sweep(tmp_path).compare({"temperature": 0.5}, {"temperature": 1.0})
    assert table.loc["perplexity", "pairs"] == 10
    assert table.loc["self_bleu_4", "pairs"] == 1


def drawn_sweep(rng: np.random.Generator, noise: str) -> Sweep:
    """Two temperatures, three top_k, two seeds, 12 samples; means are 0; points share their noise, or do not."""
    seeds, count = 2, 12
    shared = rng.normal(size=(seeds, count))
    points, samples = [], []
    for temperature, top_k, seed in itertools.product((0.5, 1.0), (1, 2, 3), range(seeds)):
        own = rng.normal(size=count)
        values = (shared[seed] + 0.3 * own) * (2 * temperature) if noise == "common" else own
        about = {"temperature": temperature, "top_k": top_k, "seed": seed}
        measured = {"entropy_mean": values.mean(), "entropy_std": values.std(ddof=1), "self_bleu_4": values.mean()}
        counts = {"num_samples": count, "completion_tokens": 10 * count, "point_id": str(about)}
        samples += [{"point": len(points), **about, "sample_index": place, "entropy_mean": value}
                    for place, value in enumerate(values)]  # fmt: skip
        points.append(about | measured | counts | {"noise": noise})
    frame = pd.DataFrame(samples).assign(
        prompt_index=0,
        completion="a b",
        finish_reason="length",
        completion_tokens=10,
        logprob_mean=-1.0,
        sampler_logprob_mean=-1.0,
    )
    frame["token_ids"] = pd.Series([np.arange(3)] * len(frame), dtype=object)
    keys = ("temperature", "top_k", "seed")
    return Sweep(pd.DataFrame(points), frame, (*keys, "noise"), keys)


def test_the_error_of_a_ratio_holds_the_truth_as_often_as_it_says() -> None:
    """1,000 sweeps of six points that share the noise of 40 samples, whose lengths differ; the true ratio is 0.

    Were the samples of all points counted as independent, 1.96 errors would hold it in 57 % of them.
    """
    rng = np.random.default_rng(7)
    clusters, codes = np.tile(np.arange(40), 6), np.zeros(240, dtype=np.int64)
    means, errors, naive = [], [], []
    for _ in range(1000):
        lengths = np.tile(rng.integers(5, 60, 40), 6).astype(float)
        values = np.tile(rng.normal(size=40), 6) + 0.3 * rng.normal(size=240)
        mean, error, n = compare.ratio(values * lengths, lengths, codes, 1, clusters)
        means.append(mean[0])
        errors.append(error[0])
        naive.append(compare.ratio(values * lengths, lengths, codes, 1, np.arange(240))[1][0])
        assert n[0] == 240
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.06)
    assert 0.92 <= np.mean(np.abs(means) < 1.96 * np.array(errors)) <= 0.97
    assert np.mean(np.abs(means) < 1.96 * np.array(naive)) < 0.65


@pytest.mark.parametrize("noise", ["common", "independent"])
def test_an_interval_holds_the_truth_as_often_as_it_says(noise: str) -> None:
    """40 sweeps whose true differences are 0."""
    rng = np.random.default_rng(8)
    rows = [drawn_sweep(rng, noise).compare({"temperature": 0.5}, {"temperature": 1.0}) for _ in range(40)]
    assert sum(row.loc["entropy_mean", "low"] <= 0 <= row.loc["entropy_mean", "high"] for row in rows) >= 33
    assert {row.loc["entropy_mean", "pairs"] for row in rows} == {72}


@pytest.mark.parametrize("noise", ["common", "independent"])
def test_a_group_counts_as_independent_what_draws_its_own_noise(noise: str) -> None:
    sweep = drawn_sweep(np.random.default_rng(1), noise)
    row = sweep.group([]).iloc[0]
    shared = ["seed", "sample_index"] if noise == "common" else ["point", "sample_index"]
    assert row["entropy_mean_se"] == pytest.approx(sweep.samples.groupby(shared)["entropy_mean"].mean().sem())


def test_seeds_are_what_is_independent_of_a_metric_of_whole_points() -> None:
    sweep = drawn_sweep(np.random.default_rng(1), "common")
    row = sweep.group([]).iloc[0]
    assert (row["self_bleu_4_n"], row["num_points"]) == (12, 12)
    assert row["self_bleu_4_se"] == pytest.approx(sweep.summary.groupby("seed")["self_bleu_4"].mean().sem())
    pairs = sweep.compare({"temperature": 0.5}, {"temperature": 1.0}).loc["self_bleu_4"]
    assert pairs["pairs"] == 6
    assert pairs["reason"].startswith("6 pairs share the noise of 2")
    alone = drawn_sweep(np.random.default_rng(1), "independent")
    assert alone.compare({"temperature": 0.5}, {"temperature": 1.0}).loc["self_bleu_4", "reason"] == ""
    one_with_three = alone.compare({"temperature": 0.5, "top_k": 1}, {"temperature": 1.0}).loc["self_bleu_4"]
    assert one_with_three["reason"].startswith("6 pairs share the noise of 2")


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 3), st.integers(-1, 3)), max_size=12))
def test_pairs_with_a_sample_or_noise_in_common_are_one_cluster(rows: list[tuple[int, int, int]]) -> None:
    pairs = pd.DataFrame(rows, columns=["seed", "noise_of_a", "noise_of_b"], dtype=np.int64)
    clusters: list[set[int]] = []
    for number, (seed, *noises) in enumerate(rows):
        mine = {number} | {other for other in range(number) if rows[other][0] == seed and {*rows[other][1:]} & {*noises}}
        meets = [cluster for cluster in clusters if cluster & mine]
        clusters = [cluster for cluster in clusters if cluster not in meets] + [mine.union(*meets)]
    found = compare.linked(pairs, ["seed"])
    assert sorted(map(sorted, clusters)) == sorted(np.flatnonzero(found == each).tolist() for each in set(found.tolist()))
    seeds = pairs["seed"].to_numpy()
    assert seeds[np.argsort(found, kind="stable")].tolist() == sorted(seeds.tolist())


def test_default_groups_are_the_swept_settings_without_the_seed(sweep_dir: Path) -> None:
    table = read_sweep(sweep_dir).group()
    assert len(table) == 9
    assert set(table["num_points"]) == {2}
    assert table["top_k"].isna().sum() == 3


def test_one_point_has_no_error_for_a_property_of_the_whole_point(tmp_path: Path) -> None:
    row = read_sweep(write_sweep(tmp_path / "s", temperature=[0.5], top_k=[5], seed=[1])).group().iloc[0]
    assert math.isnan(row["self_bleu_4_se"])
    assert row["entropy_mean_se"] > 0


def test_compare_pairs_over_everything_left_open(sweep_dir: Path) -> None:
    sweep = read_sweep(sweep_dir)
    table = sweep.compare({"temperature": 0.5}, {"temperature": 1.0})
    assert table.loc["perplexity", "pairs"] == 60  # 3 top_k, 2 seeds, 10 samples
    assert table.loc["self_bleu_4", "pairs"] == 6
    row = table.loc["entropy_mean"]
    wide = sweep.samples.pivot_table(
        index=[sweep.samples["top_k"].fillna(-1), "seed", "sample_index"], columns="temperature", values="entropy_mean"
    )
    difference = wide[1.0] - wide[0.5]
    assert row["difference"] == pytest.approx(difference.mean())
    error = difference.groupby(level=["seed", "sample_index"]).mean().sem()  # the values of top_k share their noise
    assert row["low"] == pytest.approx(difference.mean() - 1.96 * error, abs=0.2 * error)
    assert row["high"] == pytest.approx(difference.mean() + 1.96 * error, abs=0.2 * error)
    assert row["differs"]
    assert not table.loc["completion_tokens_mean", "differs"]


def test_common_noise_makes_a_pair_tighter_than_two_means(sweep_dir: Path) -> None:
    sweep = read_sweep(sweep_dir)
    row = sweep.compare({"temperature": 0.5, "top_k": 5}, {"temperature": 0.5, "top_k": 50}).loc["entropy_mean"]
    groups = sweep.group().set_index("temperature").loc[0.5]
    unpaired = 2 * 1.96 * math.hypot(*groups["entropy_mean_se"].iloc[:2])
    assert row["high"] - row["low"] < 0.5 * unpaired


def test_points_are_named_by_number_directory_or_settings(sweep_dir: Path) -> None:
    sweep = read_sweep(sweep_dir)
    directory = str(sweep.summary["directory"][3])
    for choice in (3, directory, {"temperature": 0.0, "top_k": 50, "seed": 2}):
        assert list(sweep.points(choice).index) == [3]
    assert len(sweep.points({"top_k": None})) == 6
    for wrong in (99, "nothing", {"temperature": 7}, {"temprature": 0.5}):
        with pytest.raises(ResultsError):
            sweep.points(wrong)


def test_few_pairs_are_never_called_a_difference(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path / "s", top_k=[5], seed=[1], num_samples=3))
    table = sweep.compare({"temperature": 0.0}, {"temperature": 1.0})
    assert not table["differs"].any()
    assert "too few" in table.loc["perplexity", "reason"]
    assert table["reason"].astype(bool).all()


def test_no_difference_is_claimed_where_there_is_none() -> None:
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(100):
        pairs = pd.DataFrame({"cluster": range(40)})
        for name, metric in METRICS.items():
            for side in "ab":
                pairs[f"{name}/num_{side}"] = rng.normal(size=40) if metric.per == "sample" else 0.0
                pairs[f"{name}/den_{side}"] = 1.0
        wrong += compare.paired_samples(pairs)["entropy_mean"]["differs"]
    assert wrong <= 14  # 5 expected; P(more than 14) is below 1 in 4,000


def test_many_pairs_cost_no_more_and_say_the_same() -> None:
    rng = np.random.default_rng(0)
    sums = rng.normal(size=(2, 2, 2, 20_001))
    blocks = compare.in_blocks(sums)
    assert blocks.shape[-1] == compare.MAX_BLOCKS
    assert blocks.sum(axis=-1) == pytest.approx(sums.sum(axis=-1))


def test_xarray_has_the_swept_settings_as_dimensions(sweep_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    data = read_sweep(sweep_dir).to_xarray()
    assert dict(data.sizes) == {"temperature": 3, "top_k": 3, "seed": 2}
    assert data["perplexity"].sel(temperature=1.0, top_k="null", seed=1) > data["perplexity"].sel(
        temperature=0.0, top_k="null", seed=1
    )
    for copy in "ab":
        shutil.copytree(next(sweep_dir.glob("*/samples.jsonl")).parent, tmp_path / copy)
    with pytest.raises(ResultsError, match="does not identify every point"):
        read_sweep(tmp_path).to_xarray()


def stopped_point(root: Path, name: str, *, temperature: float = 0.9, prompt: str = "Hi, there") -> Path:
    """A point that stopped after two samples."""
    directory = root / name
    directory.mkdir(parents=True)
    samples = made_samples(temperature=temperature, top_k=5, seed=1, prompts=(prompt,), num_samples=2)
    (directory / "samples.partial.jsonl").write_text("".join(sample.line() for sample in samples))
    return directory


SHORTENED = "model.out_dir=_data_runs_long_name,sampling.temperature=0.9,start=Hi_there-0123456789ab"
TYPED = {"start": "a \"b\", c: d\\n# 'e'", "out_dir": "/data/runs, old/2023_02_14"}
"""Values as a config holds them: what a hand-made split would cut at commas, colons, quotes and sharps."""


def row_of(root: Path, name: str) -> pd.Series[Any]:
    table = read_sweep(root).summary
    return table[table["directory"] == name].iloc[0]


@pytest.mark.parametrize("source", ["config", "overrides"])
def test_a_stopped_point_has_the_values_that_its_config_says(tmp_path: Path, source: str) -> None:
    directory = stopped_point(tmp_path / "s", SHORTENED)
    (directory / ".hydra").mkdir()
    if source == "config":
        config: Any = {
            "model": {"name": "resume", "out_dir": TYPED["out_dir"]}, "start": TYPED["start"], "seed": 7,
            "device": {"name": "auto", "dtype": "bfloat16"}, "sampling": {"top_k": 50, "stop": ["a, b"]},
        }  # fmt: skip
    else:
        out_dir = f"model.out_dir='{TYPED['out_dir']}'"
        config = ["start='a \"b\", c: d\\n# \\'e\\''", out_dir, "device.dtype=bfloat16", "++x=1", "]["]
    (directory / ".hydra" / f"{source}.yaml").write_text(yaml.safe_dump(config))
    row = row_of(tmp_path / "s", SHORTENED)
    assert (row["start"], row["out_dir"]) == ("a \"b\", c: d\n# 'e'", TYPED["out_dir"])
    assert (row["dtype"], row["temperature"], row["top_k"], row["seed"]) == ("bfloat16", 0.9, 5, 1)  # the samples' come first
    assert row["status"] == "partial"
    assert pd.isna(row.get("device"))


@pytest.mark.parametrize("source", ["manifest", "sweep.csv", "written by 0.1", "nothing", "name"])
def test_no_setting_is_read_off_a_shortened_name(tmp_path: Path, source: str) -> None:
    root = tmp_path / "s"
    name = "model.out_dir=old,sampling.temperature=0.9" if source == "name" else SHORTENED
    directory = stopped_point(root, name)
    write_point(root / "whole", made_samples(temperature=0.5, top_k=5, seed=1), out_dir="new")
    wanted: Any = None
    if source == "manifest":
        wanted = "there"
        manifest = {"status": "partial", "model": {"name": "resume", "out_dir": wanted}}
        (directory / "manifest.json").write_text(json.dumps(manifest))
    elif source in ("sweep.csv", "written by 0.1"):
        wanted = "there" if source == "sweep.csv" else None
        cell = "Hi, there" if wanted else "Hi_there-0123456789ab"
        row = {"out_dir": wanted, "start": cell, "num_samples": 2, "status": "partial", "directory": SHORTENED}
        pd.DataFrame([row]).to_csv(root / "sweep.csv", index=False)
    elif source == "name":
        wanted = "old"
    row = row_of(root, name)
    assert row["start"] == "Hi, there"  # the prompt of its samples, where nothing else says it
    assert pd.isna(row["out_dir"]) if wanted is None else row["out_dir"] == wanted
    assert row["temperature"] == 0.9


def test_a_failed_point_shows_what_was_typed(tmp_path: Path) -> None:
    directory = tmp_path / "s" / SHORTENED
    (directory / ".hydra").mkdir(parents=True)
    (directory / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(["start='one\\ntwo\\t\"three\"'", "seed=1"]))
    (tmp_path / "s" / "sweep.csv").write_text(f'seed,start,status,error,directory\n1,"one\\ntwo",failed,boom,"{SHORTENED}"\n')
    row = row_of(tmp_path / "s", SHORTENED)
    assert (row["start"], row["status"], row["error"]) == ('one\ntwo\t"three"', "failed", "boom")


def test_results_lead_to_no_file_that_is_not_theirs(tmp_path: Path) -> None:
    """A stranger's sweep: links to other results and back to itself, pipes for files, rows that name directories elsewhere."""
    write_point(tmp_path / "private", made_samples(temperature=0.1, top_k=5, seed=1, text="secret"))
    root = write_sweep(tmp_path / "s", temperature=[0.5], top_k=[5], seed=[1])
    (root / "above").symlink_to(root)
    (root / "out").symlink_to(tmp_path / "private")
    for name in ("samples.jsonl", "manifest.json", "summary.csv"):
        (root / "linked").mkdir(exist_ok=True)
        (root / "linked" / name).symlink_to(tmp_path / "private" / name)
    (root / "pipes" / ".hydra").mkdir(parents=True)
    for name in ("samples.jsonl", "samples.partial.jsonl", "manifest.json", "summary.csv", ".hydra/config.yaml"):
        os.mkfifo(root / "pipes" / name)
    (root / "devices" / ".hydra").mkdir(parents=True)
    (root / "devices" / ".hydra" / "overrides.yaml").symlink_to("/dev/zero")
    (root / "deep" / ".hydra").mkdir(parents=True)
    (root / "deep" / ".hydra" / "config.yaml").write_text("[" * 100_000)
    names = ("../private", str(tmp_path / "private"), "x/../../private")
    rows = [{"seed": 1, "status": "complete", "directory": name} for name in names]
    pd.DataFrame(rows).to_csv(root / "sweep.csv", index=False)
    sweep = read_sweep(root)
    assert "secret" not in set(sweep.samples["completion"])
    assert len(sweep.samples) == 10
    assert sweep.summary["num_samples"].sum() == 10
    assert len(read_sweep(root / "out").samples) == 10  # named by the user
