"""What a person reads off a sweep must be what is in its files, mid-sweep and after a crash too."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_sweep import made_samples, write_point, write_sweep

from gptsweep import compare
from gptsweep.errors import ResultsError
from gptsweep.frames import read_sweep
from gptsweep.metrics import METRICS


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


def test_after_a_crash_what_is_whole_is_read_and_what_is_damaged_is_said(tmp_path: Path) -> None:
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


def test_grouping_over_seeds_equals_the_mean_over_all_samples(sweep_dir: Path) -> None:
    sweep = read_sweep(sweep_dir)
    row = sweep.group(["temperature"]).iloc[1]
    samples = sweep.samples[sweep.samples["temperature"] == 0.5]
    assert row["num_samples"] == row["entropy_mean_n"] == len(samples)
    assert row["entropy_mean"] == pytest.approx(samples["entropy_mean"].mean())
    assert row["entropy_mean_se"] == pytest.approx(samples["entropy_mean"].sem())
    weights = samples["completion_tokens"]
    assert row["perplexity"] == pytest.approx(math.exp(-(samples["logprob_mean"] * weights).sum() / weights.sum()))
    assert row["perplexity_se"] == pytest.approx(row["perplexity"] * samples["logprob_mean"].sem())  # equal lengths
    points = sweep.summary[sweep.summary["temperature"] == 0.5]
    assert row["self_bleu_4"] == pytest.approx(points["self_bleu_4"].mean())
    assert row["self_bleu_4_se"] == pytest.approx(points["self_bleu_4"].sem())
    assert row["self_bleu_4_n"] == 6


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
    assert row["low"] == pytest.approx(difference.mean() - 1.96 * difference.sem(), abs=0.2 * difference.sem())
    assert row["high"] == pytest.approx(difference.mean() + 1.96 * difference.sem(), abs=0.2 * difference.sem())
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
        pairs = pd.DataFrame(index=range(40))
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


def test_xarray_has_the_swept_settings_as_dimensions(sweep_dir: Path) -> None:
    pytest.importorskip("xarray")
    data = read_sweep(sweep_dir).to_xarray()
    assert dict(data.sizes) == {"temperature": 3, "top_k": 3, "seed": 2}
    assert data["perplexity"].sel(temperature=1.0, top_k="null", seed=1) > data["perplexity"].sel(
        temperature=0.0, top_k="null", seed=1
    )
