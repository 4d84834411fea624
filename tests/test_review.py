"""The command people decide with: right rows, right marks, one line for a mistake, and nothing executed."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from made_sweep import made_samples, write_point, write_report, write_sweep
from rich.console import Console

from gptsweep import review
from gptsweep.analysis.frames import read_sweep
from gptsweep.analysis.row_filter import where
from gptsweep.errors import ResultsError


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweeps") / "night")


def csv_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> pd.DataFrame:
    assert review.main([*arguments, "--no-report"]) == 0
    return pd.read_csv(io.StringIO(capsys.readouterr().out))


def table_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert review.main([*arguments, "--format", "table", "--no-report"]) == 0
    return capsys.readouterr().out


def test_a_pipe_gets_csv_with_mean_error_and_n(sweep_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = csv_of(capsys, str(sweep_dir), "--metric", "perplexity,self_bleu_4")
    assert list(table.columns) == [
        "temperature", "top_k", "num_points", "num_samples",
        "perplexity", "perplexity_se", "perplexity_n", "self_bleu_4", "self_bleu_4_se", "self_bleu_4_n",
    ]  # fmt: skip
    assert len(table) == 9
    assert set(table["num_samples"]) == {20}
    assert set(table["self_bleu_4_n"]) == {2}


def test_json_has_null_for_what_is_empty(sweep_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert review.main([str(sweep_dir), "--format", "json", "--no-report"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["top_k"] for row in rows[:3]] == [5, 50, None]


def test_sort_where_and_group_do_what_they_say(sweep_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = csv_of(capsys, str(sweep_dir), "--sort=-perplexity")
    assert table["perplexity"].is_monotonic_decreasing
    table = csv_of(capsys, str(sweep_dir), "--where", "temperature < 1 and top_k == 50")
    assert list(table["temperature"]) == [0, 0.5]
    table = csv_of(capsys, str(sweep_dir), "--group", "temperature")
    assert list(table["num_samples"]) == [60, 60, 60]


def test_the_table_shows_only_what_was_swept_and_what_it_does(sweep_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = table_of(capsys, str(sweep_dir))
    assert "18 points (18 complete), 180 samples" in text
    assert "top_p" not in text
    assert "0.0 → 1.0" in text or "0 → 1" in text
    assert "Perplexity" in text


def test_best_is_named_only_on_demand_and_what_ties_with_it_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_sweep(
        tmp_path / "s", temperature=[0.5, 1.0], top_k=[50, 200], seed=[1]
    )  # 98 words: 50 and 200 differ a little
    assert "★" not in table_of(capsys, str(root))
    table = csv_of(capsys, str(root), "--best", "completion_tokens_mean:max")
    assert list(table["verdict"]) == ["best", "alike", "alike", "alike"]
    table = csv_of(capsys, str(root), "--best", "perplexity:max")
    assert list(table["verdict"]) == ["differs", "differs", "differs", "best"]
    assert "★" in table_of(capsys, str(root), "--best", "perplexity:min")


def test_best_is_a_set_and_what_chance_alone_would_find_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_sweep(tmp_path / "s", temperature=[0.5, 1.0], top_k=[50, 51], seed=[1], num_samples=12)

    def output_of(*arguments: str) -> str:
        assert review.main([str(root), "--no-report", "--format", "table", *arguments]) == 0
        return " ".join(capsys.readouterr().out.split())

    text = output_of("--best", "completion_tokens_mean:min")
    best = "best: temperature=0.5, top_k=50; these samples cannot tell it from 3 other settings: "
    behind = [f"{each} (behind by at most 0)" for each in ("temperature=0.5, top_k=51", "temperature=1, top_k=50")]
    assert best + "; ".join([*behind, "temperature=1, top_k=51 (behind by at most 0)"]) in text
    assert "; 95 % for all 4 settings together" in text
    text = output_of("--best", "perplexity:min", "--metric", "perplexity,seq_rep_4")
    assert "best: temperature=0.5, top_k=50; no other setting is as good" in text
    assert "of 4 comparisons 0.2 would differ by chance alone" in text  # two settings, two metrics
    compared = read_sweep(root).compare(0, 3)
    counted = (compared["reason"].eq("") & compared["difference"].notna()).sum()
    assert f"of {counted} comparisons {counted / 20:.3g} would" in output_of("--diff", "0", "3", "--samples", "0")


def test_perplexity_is_not_taken_for_a_comparison_of_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "multirun.yaml").write_text("hydra: {}\n")
    for file, temperature in (("ckpt.pt", 0.5), ("ckpt_2000.pt", 0.6)):
        write_point(tmp_path / f"file={file}", made_samples(temperature=temperature, top_k=5, seed=1), file=file)
    note = "Perplexity: each model measures its own samples"
    text = table_of(capsys, str(tmp_path), "--metric", "perplexity,seq_rep_4")
    assert note in text
    assert "--best METRIC:min" in text
    assert "Perplexity, Entropy: each model measures" in write_report(tmp_path).read_text(encoding="utf-8")
    assert "each model" not in table_of(capsys, str(tmp_path), "--metric", "seq_rep_4")
    assert "each model" not in table_of(capsys, str(tmp_path), "--where", "file == 'ckpt.pt'")


def test_diff_compares_points_named_by_row_settings_or_directory(sweep_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_settings = csv_of(capsys, str(sweep_dir), "--diff", "temperature=0.5,top_k=null", "temperature=1.0,top_k=null")
    by_row = csv_of(capsys, str(sweep_dir), "--diff", "5", "8")
    assert by_settings.equals(by_row)
    assert set(by_settings["pairs"]) >= {20}
    one, other = "sampling.temperature=0.5,sampling.top_k=50,seed=1", "sampling.temperature=1.0,sampling.top_k=50,seed=1"
    by_directory = csv_of(capsys, str(sweep_dir), "--diff", str(sweep_dir / one), other)
    assert by_directory.set_index("metric").loc["perplexity", "pairs"] == 10
    assert review.main([str(sweep_dir), "--diff", "1" * 5000, "0"]) == 2
    assert "is not a row; there are rows 0 to 8" in capsys.readouterr().err


def test_diff_shows_samples_side_by_side_and_obeys_none_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = "same start \x1b[31m\x1b]0;owned\x07 [bold]x[/bold] \u202e\u2028" + "again and " * 5
    for temperature, ending in ((0.5, "one"), (1.0, "two")):
        samples = made_samples(temperature=temperature, top_k=5, seed=1, text=bad + ending, num_samples=2)
        write_point(tmp_path / "s" / f"t{temperature}", samples)
    text = table_of(capsys, str(tmp_path / "s"), "--diff", "temperature=0.5", "temperature=1")
    assert "▸" in text
    assert "⟨×5⟩" in text
    assert r"\x1b" in text.replace("\n", "")
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[bold]" in text


def test_it_brings_the_files_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_sweep(tmp_path / "s", temperature=[0.5], top_k=[5], seed=[1, 2])
    (root / "sweep.csv").write_text("seed,status,error,directory\n9,failed,out of memory,seed=9\n")
    assert review.main([str(root)]) == 0
    assert (root / "report.html").is_file()
    table = pd.read_csv(root / "sweep.csv")
    assert sorted(table["seed"]) == [1, 2, 9]
    assert list(table.set_index("seed").loc[[1, 9], "status"]) == ["complete", "failed"]
    assert table["perplexity"].notna().sum() == 2
    assert "out of memory" in capsys.readouterr().err
    assert review.main([str(root)]) == 0
    assert pd.read_csv(root / "sweep.csv").equals(table)


def test_a_directory_that_cannot_be_written_still_gets_its_table(
    sweep_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ResultsError("name", "night", "read-only file system")

    monkeypatch.setattr(review, "write_sweep_csv", refuse)
    assert review.main([str(sweep_dir)]) == 0
    found = capsys.readouterr()
    assert "perplexity" in found.out
    assert "no report" in found.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--metric", "perplexty"], "must be one of perplexity"),
        (["--sort", "nothing"], "is not a column here"),
        (["--group", "colour"], "is not a setting here"),
        (["--best", "perplexity"], "use perplexity:min, perplexity:max, perplexity:reference"),
        (["--diff", "99", "0"], "rows 0 to 8"),
        (["--diff", "temperature=0.7", "0"], "temperature has 0, 0.5, 1"),
        (["--diff", "colour=red", "0"], "not a setting"),
        (["--where", "temperature < 'hot'"], "compares text with a number"),
        (["--where", "temperature > 9"], "is true for none of the 18 points"),
        (["--wrong"], "unrecognized arguments"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    sweep_dir: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = review.main([str(sweep_dir), "--no-report", *arguments])
    except SystemExit as stopped:
        status = stopped.code  # type: ignore[assignment]
    assert status == 2
    found = capsys.readouterr()
    assert says in found.err
    assert found.err.count("\n") == 1
    assert found.out == ""


def test_a_reader_that_stops_reading_is_no_error(sweep_dir: Path) -> None:
    command = f"{sys.executable} -m gptsweep.review {sweep_dir} --no-report | head -1"
    found = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=900, check=False)
    assert found.stdout.startswith("temperature,")
    assert "Traceback" not in found.stderr


def test_a_single_run_is_reviewed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_point(tmp_path / "run", made_samples(temperature=0.5, top_k=5, seed=1))
    assert "1 point (1 complete), 10 samples" in table_of(capsys, str(tmp_path / "run"))


def test_a_sweep_that_has_only_begun_is_reviewed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    point = tmp_path / "s" / "sampling.temperature=0.5,seed=1"
    (point / ".hydra").mkdir(parents=True)
    (tmp_path / "s" / "multirun.yaml").write_text("{}")
    assert "1 missing" in table_of(capsys, str(tmp_path / "s"))
    lines = [sample.line() for sample in made_samples(temperature=0.5, top_k=5, seed=1)]
    (point / "samples.partial.jsonl").write_text("".join(lines[:3]))
    assert "1 partial" in table_of(capsys, str(tmp_path / "s"))


def test_where_reads_null_lists_arithmetic_and_chains() -> None:
    table = pd.DataFrame(
        {
            "t": [0.0, 0.5, 1.0],
            "k": pd.array([5, None, 50], dtype="Int64"),
            "m": ["gpt2", "hf", "gpt2"],
            "on": [True, False, True],
        }
    )
    for expression, wanted in {
        "t < 1": [True, True, False],
        "0 < t <= 1": [False, True, True],
        "k == null": [False, True, False],
        "null == k": [False, True, False],
        "k is not None and t > 0": [False, False, True],
        "k in (5, null)": [True, True, False],
        "k not in [5]": [False, True, True],
        "k < 10": [True, False, False],
        "not m == 'gpt2' or t == 0": [True, True, False],
        "t * 2 - 1 >= 0": [False, True, True],
        "-t < 0": [False, True, True],
        "on": [True, False, True],
        "on == false": [False, True, False],
    }.items():
        assert list(where(table, expression)) == wanted, expression


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('touch /tmp/owned')", "t.__class__ == 1", "(lambda: 1)()", "t[0] == 1", "[x for x in t]",
        "f'{t}'",
        "t := 3", "t", "1", "t is 1",
        "k < null", "t == 1 +", "9**9**9**9 > t", "'a' * 9 == 3", "nothing == 1", "", "t in k", "(" * 500,
    ],
)  # fmt: skip
def test_where_executes_nothing(expression: str) -> None:
    table = pd.DataFrame({"t": [0.0], "k": [1]})
    with pytest.raises(ResultsError):
        where(table, expression)


def test_plots_are_files(sweep_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert review.main([str(sweep_dir), "--no-report", "--plots", str(tmp_path), "--metric", "perplexity,diversity"]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"heat-perplexity.svg", "curve-diversity.png", "scatter-perplexity-diversity.svg"} <= names
    assert (tmp_path / "heat-perplexity.svg").read_text().startswith("<?xml")
    assert (tmp_path / "curve-diversity.png").read_bytes().startswith(b"\x89PNG")
    cell = read_sweep(sweep_dir).group().iloc[0]
    assert f"<!-- {cell['diversity']:.3f} -->" in (tmp_path / "heat-diversity.svg").read_text()  # digits as in the table


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        review.main(["--help"])
    assert "--diff temperature=0.5" in capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize("arguments", [[], ["--metric", "perplexity,diversity,zipf,self_bleu_4"], ["--diff", "0", "1"]])
def test_tables_fit_the_terminal_and_cut_no_number(tmp_path: Path, width: int, arguments: list[str]) -> None:
    long = {"start": "a prompt that is much longer than a column of a table, whatever the terminal " * 3}
    root = tmp_path / "s"
    for temperature in (0.123456, 0.5):
        for k, extra in ((5, {}), (None, long)):
            samples = made_samples(temperature=temperature, top_k=k, seed=1, num_samples=4)
            write_point(root / f"t{temperature}k{k}", samples, repetition_penalty=1.0625 if k else 1.0, **extra)
    wide, narrow = (Console(width=each, file=io.StringIO(), record=True, highlight=False) for each in (1000, width))
    for console in (wide, narrow):
        options = ["--format", "table", "--no-report", "--samples", "0", "--best", "perplexity:min", *arguments]
        review.review(review.parser().parse_args([str(root), *options]), console)
    shown = narrow.export_text()
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    numbers = re.compile(r"(?<![\w.])[-+±\[]*\d+\.\d+")
    known = {found.strip("±[") for found in numbers.findall(wide.export_text())}
    assert {found.strip("±[") for found in numbers.findall(shown)} <= known
    for label in ("Perplexity", *(["Zipf"] if "zipf" in str(arguments) else [])):
        assert label in shown, "what was asked for is there"
