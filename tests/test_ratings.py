"""What people prefer, with its uncertainty: files of ratings are read, settings ranked, errors honest, raters held together."""

from __future__ import annotations

import io
import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_sweep import write_sweep
from rich.console import Console
from scipy.special import expit

from gptsweep import review
from gptsweep.analysis import rated
from gptsweep.analysis.frames import Sweep, read_sweep
from gptsweep.analysis.preference import Comparisons, agreement, bradley_terry, win_rates
from gptsweep.errors import ConfigError, ResultsError
from gptsweep.multirun.point import require_objective
from gptsweep.store.ratings import VERDICTS, Rating, read_ratings

STRENGTH = {0.0: -1.2, 0.5: 0.9, 1.0: 0.3}
"""What the simulated raters think of a temperature, in log-odds."""


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = [f"prompt {number}" for number in range(8)]
    root = tmp_path_factory.mktemp("sweeps") / "night"
    return write_sweep(root, temperature=tuple(STRENGTH), top_k=(50,), seed=(1, 2), num_samples=2, prompts=prompts, words=8)


def sample_ids(sweep: Sweep) -> pd.DataFrame:
    """The samples with their ids."""
    points = sweep.samples["point"].map(sweep.summary["point_id"])
    parts = (points, sweep.samples["prompt_index"], sweep.samples["sample_index"])
    return sweep.samples.assign(sample_id=[f"{a}-{b}-{c}" for a, b, c in zip(*parts, strict=True)])


def simulated(sweep: Sweep, rater: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Ratings by a rater of `STRENGTH`, one tie in six."""
    rng = random.Random(f"{rater}/{seed}")
    places = [rows.to_dict("records") for _, rows in sample_ids(sweep).groupby(["prompt_index", "seed", "sample_index"])]
    found = []
    for _ in range(count):
        left, right = rng.sample(rng.choice(places), 2)
        better = rng.random() < expit(STRENGTH[left["temperature"]] - STRENGTH[right["temperature"]])
        verdict = rng.choice(["tie", "both_bad"]) if rng.random() < 1 / 6 else "left" if better else "right"
        found.append(
            {"left": left["sample_id"], "right": right["sample_id"], "verdict": verdict, "seconds": 4.5, "rater": rater}
        )
    return found


def write_lines(path: Path, lines: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def files(sweep_dir: Path) -> list[str]:
    sweep = read_sweep(sweep_dir)
    return [str(write_lines(sweep_dir.parent / f"{name}.jsonl", simulated(sweep, name, 150))) for name in ("ann", "bob")]


def csv_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> pd.DataFrame:
    assert review.main([*arguments, "--format", "csv", "--no-report"]) == 0
    return pd.read_csv(io.StringIO(capsys.readouterr().out))


# ------------------------------------------------------------------------------------------------------- the statistics


def drawn(
    rng: np.random.Generator, strength: Sequence[float], prompts: int, each: int, ties: float, prompt_effect: float
) -> Comparisons:
    """Comparisons of random pairs; a prompt suits some settings better (``prompt_effect``: how much, in log-odds)."""
    settings, n = len(strength), prompts * each
    cluster = np.repeat(np.arange(prompts), each)
    first = rng.integers(settings, size=n)
    second = (first + rng.integers(1, settings, size=n)) % settings
    worth = np.asarray(strength) + prompt_effect * rng.normal(size=(prompts, settings))
    won = rng.random(n) < expit(worth[cluster, first] - worth[cluster, second])
    return Comparisons(first, second, np.where(rng.random(n) < ties, 0.5, won), cluster, settings)


def expected(strength: Sequence[float], ties: float, prompt_effect: float) -> list[float]:
    """The true preferences of `drawn`."""
    noise = prompt_effect * math.sqrt(2) * np.random.default_rng(0).normal(size=20_000)
    win = [[ties / 2 + (1 - ties) * expit(a - b + noise).mean() for b in strength] for a in strength]
    return [(sum(row) - row[at]) / (len(strength) - 1) for at, row in enumerate(win)]


def test_intervals_cover_the_truth_and_the_best_is_found() -> None:
    strength, rng = [1.2, 0.4, -0.4, -1.2], np.random.default_rng(1)
    prompts, each, ties, prompt_effect = 20, 5, 0.2, 0.7
    truth = np.array(expected(strength, ties, prompt_effect))
    preferred, won, apart, best = [], [], [], 0
    for _ in range(500):
        found = drawn(rng, strength, prompts, each, ties, prompt_effect)
        ranking = bradley_terry(found)
        for kept, (low, high) in ((preferred, ranking.preference_interval), (won, win_rates(found)[2:4])):
            kept.append((low <= truth) & (truth <= high))
        _, low, high = ranking.difference(0, 1)
        apart.append(low <= truth[1] - truth[0] <= high)
        best += int(ranking.strength.argmax() == 0)
    for covered in (np.mean(preferred, axis=0), np.mean(won, axis=0), np.mean(apart)):
        assert np.all((covered >= 0.9) & (covered <= 0.98)), covered
    assert best > 450


def test_strengths_are_those_of_a_library() -> None:
    choix = pytest.importorskip("choix", reason="needs choix")
    found = drawn(np.random.default_rng(3), [0.8, 0.1, 0.0, -0.9], 10, 8, 0.25, 0.0)
    wins = np.zeros((4, 4))
    for a, b, score in zip(found.first, found.second, found.score, strict=True):
        wins[a, b] += score
        wins[b, a] += 1 - score
    assert bradley_terry(found, prior=0).strength == pytest.approx(choix.ilsr_pairwise_dense(wins), abs=1e-6)
    # Comparisons counted twice, so that a tie is a win for each; its penalty is alpha times the sum of squares.
    twice = [pair for a, b, score in zip(found.first, found.second, found.score, strict=True)
             for pair in [(a, b)] * round(2 * score) + [(b, a)] * round(2 - 2 * score)]  # fmt: skip
    mine = bradley_terry(found, prior=0.5).strength
    assert mine == pytest.approx(choix.opt_pairwise(4, twice, alpha=0.5, tol=1e-10), abs=1e-5)


def test_a_setting_that_won_everything_or_met_nobody_has_an_honest_place() -> None:
    ones = np.ones(6)
    found = Comparisons(np.zeros(6, np.int64), np.array([1, 2, 1, 2, 1, 2]), ones, np.arange(6), 4)
    ranking = bradley_terry(found)
    assert ranking.strength.argmax() == 0
    assert np.isfinite(ranking.strength).all()
    assert np.isnan(ranking.preference[3])
    low, high = ranking.preference_interval
    assert 0.5 < low[0] < ranking.preference[0] < high[0] < 1
    share, _, low, high, count = win_rates(found)
    assert (share[0], high[0], count[0]) == (1.0, pytest.approx(1.0), 6)
    assert low[0] < 0.7
    alone = Comparisons(np.array([0]), np.array([1]), np.array([1.0]), np.array([0]), 2)
    low, high = bradley_terry(alone).preference_interval
    assert (low[0], high[0]) == (0, 1)
    assert np.isnan([*bradley_terry(alone).error, *bradley_terry(alone).preference_error]).all()


def test_agreement_is_krippendorffs() -> None:
    rows = [  # the example of Krippendorff 2011, section C: four observers, twelve units, nominal alpha 0.743
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]  # fmt: skip
    judged = [(unit, value) for row in rows for unit, value in enumerate(row) if value is not None]
    alpha, units = agreement(np.array([unit for unit, _ in judged]), np.array([value for _, value in judged]))
    assert (alpha, units) == (pytest.approx(0.743, abs=5e-4), 11)
    assert math.isnan(agreement(np.array([0, 1]), np.array([0, 1]))[0])


# ------------------------------------------------------------------------------------------------------------ the review


def test_ratings_rank_settings_and_are_a_metric(sweep_dir: Path, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    table = csv_of(capsys, str(sweep_dir), "--ratings", *files, "--metric", "preference,perplexity", "--best", "preference")
    assert table["preference"].rank(ascending=False).tolist() == [3, 1, 2]
    assert (table["preference_low"] < table["preference"]).all()
    assert (table["preference"] < table["preference_high"]).all()
    assert table["preference_n"].sum() == 2 * (table["won"].sum() + table["tied"].sum() / 2 + table["both_bad"].sum() / 2)
    assert table["won"].sum() == table["lost"].sum()
    assert list(table["verdict"])[0:2] == ["differs", "best"]
    assert table["strength"].rank().tolist() == table["preference"].rank().tolist()
    assert np.array(table["strength"]) - np.array(list(STRENGTH.values())) == pytest.approx(0, abs=0.5)


def test_the_terminal_says_who_rated_and_whether_they_agree(
    sweep_dir: Path, files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise ResultsError("ratings", None, "no space")

    assert review.main([str(sweep_dir), "--ratings", *files, "--format", "table", "--no-report"]) == 0
    text = capsys.readouterr().out
    assert "by 2 raters (" in text
    assert "Krippendorff's alpha 0." in text
    assert "interval over 8 prompts" in " ".join(text.split())
    assert "the left sample won" in text
    narrow = Console(width=50, file=io.StringIO(), record=True)
    review.review(review.parser().parse_args([str(sweep_dir), "--ratings", *files, "--format", "table", "--no-report"]), narrow)
    blocks = narrow.export_text().split("Which setting is preferred")[1]
    assert blocks.index("# 1  temperature=0.5") < blocks.index("# 2  temperature=1") < blocks.index("# 0  temperature=0")
    monkeypatch.setattr(rated, "save_ratings", refused)
    assert review.main([str(sweep_dir), "--ratings", *files, "--format", "table"]) == 0
    assert "could not save the ratings: ratings=null: no space" in capsys.readouterr().err
    first = text.split("Which setting is preferred")[1]
    assert first.index(" 0.5 ") < first.index(" 1 ") < first.index(" 0 ")


def test_groups_and_comparisons_have_the_preference(sweep_dir: Path, files: list[str]) -> None:
    sweep = read_sweep(sweep_dir).rated([each for name in files for each in read_ratings(Path(name))])
    row = sweep.compare({"temperature": 0.0}, {"temperature": 0.5}).loc["preference"]
    table = sweep.group().set_index("temperature")
    assert [row["a"], row["b"]] == pytest.approx([table.loc[0.0, "preference"], table.loc[0.5, "preference"]])
    assert row["differs"]
    assert 0 < row["low"] < row["difference"] < row["high"]
    assert sweep.ratings is not None
    of_either = sweep.ratings.table[["left", "right"]].isin(sweep.summary.index[sweep.summary["temperature"] < 1])
    assert row["pairs"] == of_either.any(axis=1).sum()
    change = sweep.effect("temperature").loc["preference", "difference"]
    assert change == pytest.approx(table.loc[1.0, "preference"] - row["a"])
    with pytest.raises(ResultsError, match="so families of samplers have no value"):
        sweep.compare_samplers("preference")


def test_ratings_within_one_setting_rank_nothing_and_one_cluster_has_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_sweep(tmp_path / "s", temperature=(0.5, 1.0), top_k=(5,), seed=(1, 2), num_samples=2, words=8)
    ids = sample_ids(read_sweep(root)).set_index(["temperature", "seed", "sample_index"])["sample_id"]
    within = {"left": ids[0.5, 1, 0], "right": ids[0.5, 2, 0], "verdict": "left"}
    across = {"left": ids[0.5, 1, 0], "right": ids[1.0, 1, 0], "verdict": "left"}
    path = write_lines(tmp_path / "me.jsonl", [within])
    assert review.main([str(root), "--ratings", str(path), "--format", "table", "--no-report"]) == 0
    assert "no rating compares two of these settings" in capsys.readouterr().out
    assert "preference" not in csv_of(capsys, str(root), "--ratings", str(path))
    write_lines(path, [across])
    assert review.main([str(root), "--ratings", str(path), "--format", "table", "--no-report"]) == 0
    assert "nan" not in capsys.readouterr().out
    row = csv_of(capsys, str(root), "--ratings", str(path)).iloc[0]
    assert row[["preference_se", "strength_se"]].isna().all()
    assert row["strength"] > 0


def test_later_reviews_have_the_ratings_until_they_are_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_sweep(tmp_path / "s", temperature=(0.5, 1.0), top_k=(5,), seed=(1,), num_samples=8, words=8)
    ratings = simulated(read_sweep(root), "ann", 30)
    given = write_lines(tmp_path / "me.jsonl", [{k: v for k, v in line.items() if k != "rater"} for line in ratings])
    assert review.main([str(root), "--ratings", str(given)]) == 0
    assert '"rater": "me"' in (root / "ratings.jsonl").read_text()
    assert "preference" in capsys.readouterr().out
    assert "preference" not in (root / "sweep.csv").read_text()
    assert '"name":"preference"' in (root / "report.html").read_text()
    assert review.main([str(root)]) == 0
    assert "preference" in capsys.readouterr().out
    (root / "ratings.jsonl").write_text("{")
    assert review.main([str(root)]) == 0
    found = capsys.readouterr()
    assert "no ratings" in found.err
    assert "preference" not in found.out
    assert review.main([str(root), "--ratings", "null"]) == 0
    assert not (root / "ratings.jsonl").exists()
    assert review.main([str(root), "--best", "preference"]) == 2
    assert "give them with --ratings FILE" in capsys.readouterr().err


def test_of_one_raters_verdicts_on_a_pair_the_last_one_counts(sweep_dir: Path) -> None:
    sweep = read_sweep(sweep_dir)
    [a, b] = sample_ids(sweep).drop_duplicates("temperature")["sample_id"].head(2)
    found = sweep.rated([
        Rating(a, b, "left", "ann"), Rating(b, a, "left", "ann"), Rating(a, b, "skip", "bob"),
        Rating("x-0-0", b, "left", "ann"),
    ]).ratings  # fmt: skip
    assert found is not None
    assert found.table["score"].tolist() == [1.0]
    assert found.notes == (
        "1 rating of samples that are not here", "1 rating replaced by a later one of the same rater", "1 pair skipped",
    )  # fmt: skip


GOOD: dict[str, Any] = {"left": "a-0-0", "right": "b-0-0", "verdict": "left"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "line 1: is not JSON"), (b"\xff\xfe", "is not JSON"), (b"[" * 100_000, "is not JSON"),
        (b"[]", "must be an object"),
        (b"{}", "left must be a string"), (json.dumps(GOOD | {"left": 3}).encode(), "left must be a string"),
        (json.dumps(GOOD | {"right": "x" * 300}).encode(), "right must be a string of at most 200"),
        (json.dumps(GOOD | {"verdict": "A"}).encode(), "verdict must be one of " + ", ".join(VERDICTS)),
        (json.dumps(GOOD | {"verdict": ["left"]}).encode(), "verdict must be one of"),
        (json.dumps(GOOD | {"right": "a-0-0"}).encode(), "are the same sample"),
        (json.dumps(GOOD | {"seconds": -1}).encode(), "seconds must be a number"),
        (json.dumps(GOOD | {"seconds": True}).encode(), "seconds must be a number"),
        (json.dumps(GOOD | {"rater": {"a": 1}}).encode(), "rater must be a string"),
        (json.dumps(GOOD).encode() + b"\n{", "line 2: is not JSON"),
        (json.dumps(GOOD).encode(), "names no sample of this sweep"), (b"", "has no ratings"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_one_line(
    sweep_dir: Path, tmp_path: Path, content: bytes, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.jsonl").write_bytes(content)
    assert review.main([str(sweep_dir), "--no-report", "--ratings", str(tmp_path / "r.jsonl")]) == 2
    found = capsys.readouterr()
    assert says in found.err
    assert found.err.count("\n") == 1
    assert found.out == ""


def test_no_pipe_or_directory_is_read_and_no_name_reaches_the_terminal_as_it_is(
    sweep_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path, tmp_path / "missing.jsonl", Path("/dev/zero")):
        assert review.main([str(sweep_dir), "--no-report", "--ratings", str(path)]) == 2
        assert "cannot be read" in capsys.readouterr().err
    lines = simulated(read_sweep(sweep_dir), "\x1b[31mred\u202e", 20)
    path = write_lines(tmp_path / "r.jsonl", lines)
    assert review.main([str(sweep_dir), "--no-report", "--format", "table", "--ratings", str(path)]) == 0
    assert "\x1b" not in (text := capsys.readouterr().out)
    assert "\u202e" not in text


def test_completions_of_different_prompts_are_no_pair(sweep_dir: Path) -> None:
    sweep = read_sweep(sweep_dir)
    a, b = sample_ids(sweep).drop_duplicates("prompt_index")["sample_id"].head(2)
    with pytest.raises(ResultsError, match="completions of different prompts"):
        sweep.rated([Rating(a, b, "left", "ann")])


def test_the_judge_of_the_documentation_writes_ratings(
    sweep_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "rating.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)

    def answer(request: Any) -> io.BytesIO:
        a, b = json.loads(request.data)["messages"][0]["content"].split("\n\nA: ")[1].split("\n\nB: ")
        answer = "A" if a > b else "B is better"
        return io.BytesIO(json.dumps({"choices": [{"message": {"content": answer}}]}).encode())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", answer)
    exec(code.replace("outputs/sweeps/night", str(sweep_dir)), {})
    found = read_ratings(tmp_path / "judge.jsonl")
    assert {each.verdict for each in found} == {"left", "right"}
    assert read_sweep(sweep_dir).rated(found).ratings is not None
    [line] = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "one.jsonl").write_text(line)
    assert read_ratings(tmp_path / "one.jsonl")[0].rater == "ann"


def test_tuning_on_people_is_refused_before_any_work() -> None:
    with pytest.raises(ConfigError, match="needs people's ratings"):
        require_objective("preference")
