"""Metrics of a user's own: in the review, as objective, from Python; kept beside the points while code and samples last."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_sweep import made_samples, write_point, write_sweep
from omegaconf import OmegaConf
from sweeps import Run, save_checkpoint

import gptsweep
from gptsweep import review
from gptsweep.analysis.metrics import METRICS
from gptsweep.analysis.own_metrics import OwnMetric
from gptsweep.errors import ConfigError, ResultsError
from gptsweep.store.schema import SAMPLES, SCORES

SMALL = ("model=resume", "sampling.num_samples=6", "sampling.max_new_tokens=12", "start=a", "quiet=true", "name=s")
MODULE = """
calls = []

def vowels(sample: dict) -> float:
    "Vowels in a sample."
    calls.append(sample)
    return sum(letter in "aeiou" for letter in sample["completion"])

def variety(samples: list[dict]) -> float:
    calls.append(samples)
    return len({sample["completion"] for sample in samples})

def rare(sample: dict) -> float | None:
    return None if sample["sample_index"] else 1.0

def broken(sample: dict) -> float:
    return 1 / (sample["sample_index"] - 2)

def endless(sample: dict) -> float:
    return float("inf")

class Silent(Exception):
    def __str__(self):
        raise ValueError

def silent(sample: dict) -> float:
    raise Silent

def ends(sample: dict) -> float:
    raise SystemExit(3)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of metrics in the working directory."""
    name = f"metrics_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two temperatures, two seeds, six samples each."""
    return write_sweep(tmp_path / "outputs/sweeps/s", temperature=(0.5, 1.5), top_k=(5,), num_samples=6, words=12)


def calls_of(module: str) -> list[Any]:
    calls: list[Any] = sys.modules[module].calls  # type: ignore[attr-defined]
    return calls


def reviewed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = review.main(["outputs/sweeps/s", *arguments])
    return status, *capsys.readouterr()


def test_a_metric_of_ones_own_stands_beside_the_others(sweep: Path, module: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in sweep.glob(f"*/{SAMPLES}")}
    status, out, err = reviewed(capsys, "--metric", f"{module}:vowels,{module}:variety,perplexity", "--format", "json")
    assert status == 0, err
    rows = json.loads(out)
    found = gptsweep.read_sweep(sweep)
    vowels = found.samples["completion"].map(lambda text: sum(letter in "aeiou" for letter in text))
    for row in rows:
        own = found.samples["temperature"] == row["temperature"]
        assert row["vowels"] == pytest.approx(vowels[own].mean())
        assert row["vowels_n"] == 12
        assert row["vowels_se"] == pytest.approx(vowels[own].std() / np.sqrt(12))
        assert row["variety_n"] == 2
        assert row["perplexity"] > 1
    assert {path: path.read_bytes() for path in before} == before
    assert "vowels" not in (sweep / "sweep.csv").read_text()
    assert '"vowels"' in (sweep / "report.html").read_text()
    status, out, err = reviewed(capsys, "--metric", f"{module}:vowels", "--best", "vowels:max", "--format", "table")
    assert status == 0, err
    assert "★" in out


def test_values_are_computed_once_for_the_same_code_and_samples(sweep: Path, module: str) -> None:
    own = [OwnMetric.named(f"{module}:vowels"), OwnMetric.named(f"{module}:variety")]
    first = gptsweep.read_sweep(sweep).scored(*own)
    assert len(calls_of(module)) == 24 + 4
    again = gptsweep.read_sweep(sweep).scored(*own)
    assert len(calls_of(module)) == 28
    assert list(again.summary["vowels"]) == list(first.summary["vowels"])
    assert list(again.samples["vowels"]) == list(first.samples["vowels"])
    kept = json.loads(next(sweep.glob(f"*/{SCORES}")).read_text())
    assert set(kept) == {f"{module}:vowels", f"{module}:variety"}
    point = next(sweep.glob("sampling.temperature=0.5*"))
    scores = (point / SCORES).read_bytes()
    shutil.rmtree(point)
    write_point(point, made_samples(temperature=0.5, top_k=5, seed=int(point.name[-1]), num_samples=7, words=12))
    (point / SCORES).write_bytes(scores)
    gptsweep.read_sweep(sweep).scored(*own)
    assert len(calls_of(module)) == 28 + 7 + 1  # one point has other samples now
    path = Path(f"{module}.py")
    path.write_text(MODULE.replace('"aeiou"', '"aeiouy"'))
    del sys.modules[module]
    gptsweep.read_sweep(sweep).scored(OwnMetric.named(f"{module}:vowels"))
    assert len(calls_of(module)) == 25


def test_kept_values_that_are_damaged_or_a_strangers_are_computed_anew(sweep: Path, module: str) -> None:
    own = OwnMetric.named(f"{module}:vowels")
    true = list(gptsweep.read_sweep(sweep).scored(own).summary["vowels"])
    for path in sweep.glob(f"*/{SCORES}"):
        kept = json.loads(path.read_text())
        for values in ([1.0], ["1"] * 6, [True] * 6, [1e999] * 6, {"0": 1}, None):
            kept[own.key]["values"] = values
            path.write_text(json.dumps(kept))
            assert list(gptsweep.read_sweep(sweep).scored(own).summary["vowels"]) == true
        for text in ("", "[]", "{" * 10**5, '{"a": 1}'):
            path.write_text(text)
            assert list(gptsweep.read_sweep(sweep).scored(own).summary["vowels"]) == true
        path.unlink()
        path.mkdir()
    assert list(gptsweep.read_sweep(sweep).scored(own).summary["vowels"]) == true


def test_differences_and_effects_have_it_too(sweep: Path, module: str) -> None:
    found = gptsweep.read_sweep(sweep).scored(OwnMetric.named(f"{module}:vowels"), OwnMetric.named(f"{module}:rare"))
    change = found.compare({"temperature": 0.5}, {"temperature": 1.5})
    by = found.samples.groupby("temperature")["vowels"].mean()
    assert change.loc["vowels", "difference"] == pytest.approx(by[1.5] - by[0.5])
    assert change.loc["vowels", "pairs"] == 12
    assert change.loc["rare", "pairs"] == 2
    assert set(METRICS) | {"vowels", "rare"} == set(found.declared)
    assert "vowels" not in gptsweep.read_sweep(sweep).declared
    assert found.only(found.summary["temperature"] == 0.5).group()["vowels"].tolist() == pytest.approx([by[0.5]])
    comparison = found.compare_samplers("vowels:max", by=["temperature"])
    assert "highest vowels" in comparison.sentence


def test_an_error_names_the_sample(sweep: Path, module: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = reviewed(capsys, "--metric", f"{module}:broken")
    assert status == 2
    assert f"metric={module}:broken: sample 0-2 of outputs/sweeps/s/" in err
    assert "ZeroDivisionError: division by zero" in err
    status, _, err = reviewed(capsys, "--metric", f"{module}:endless")
    assert "gives inf, which is not finite; return None where there is no value" in err
    for name, message in {"silent": "Silent", "ends": "SystemExit: 3"}.items():
        status, _, err = reviewed(capsys, "--metric", f"{module}:{name}")
        assert (status, err.rstrip().endswith(f": {message}")) == (2, True)
    with pytest.raises(ResultsError, match=r"12 samples of .*|6 samples of .*KeyError"):
        gptsweep.read_sweep(sweep).scored(wrong_key)
    with pytest.raises(ConfigError, match="must take one argument that is annotated"):
        gptsweep.read_sweep(sweep).scored(nothing)  # type: ignore[arg-type]


def test_a_function_without_a_file_is_computed_each_time(sweep: Path) -> None:
    for value in (1.0, 2.0):
        typed: dict[str, Any] = {}
        exec(f"def typed(sample: dict):\n    return {value}", typed)
        assert set(gptsweep.read_sweep(sweep).scored(typed["typed"]).samples["typed"]) == {value}


def wrong_key(samples: list) -> float:  # type: ignore[type-arg]
    return float(samples[0]["text"])


def nothing() -> float:
    return 1


def no_annotation(sample):  # type: ignore[no-untyped-def]
    return 1


def of_text(sample: str) -> float:
    return 1


def two(sample: dict, other: int) -> float:  # type: ignore[type-arg]
    return 1


def perplexity(sample: dict) -> float:  # type: ignore[type-arg]
    return 1


def prompt(sample: dict) -> float:  # type: ignore[type-arg]
    return 1


def of_sequence(samples: Sequence[dict]) -> float:  # type: ignore[type-arg]
    return len(samples)


def test_what_is_no_metric_is_refused_in_one_line(sweep: Path, module: str) -> None:
    for function in (no_annotation, of_text, two, print):
        with pytest.raises(ConfigError, match=r"must take one argument that is annotated, \(sample: dict\) or"):
            OwnMetric.of(function)
    with pytest.raises(ConfigError, match="must have a name of its own"):
        OwnMetric.of(perplexity)
    with pytest.raises(ConfigError, match="is the name of a column"):
        gptsweep.read_sweep(sweep).scored(prompt)
    Path("a_script.py").write_text("import sys\nsys.exit(3)\n")
    for text, wrong in [
        ("a_script:f", "cannot be imported: SystemExit: 3"),
        ("nowhere_at_all:f", "cannot be imported: ModuleNotFoundError"),
        (f"{module}:nothing", f"{module} has no function nothing"),
        (f"{module}:calls", f"{module} has no function calls"),
        (":f", "must be module:function"),
        ("a:b:c", "must be module:function"),
    ]:
        with pytest.raises(ConfigError, match=wrong):
            OwnMetric.named(text)
    assert list(gptsweep.read_sweep(sweep).scored(of_sequence).summary["of_sequence"]) == [6] * 4
    offset = 2

    def shifted(sample: dict) -> float:  # type: ignore[type-arg]
        return offset

    own = OwnMetric.of(shifted)
    assert own.source == ""  # it holds a value that its code does not show, so nothing is kept
    gptsweep.read_sweep(sweep).scored(own)
    assert not any("shifted" in path.read_text() for path in sweep.glob(f"*/{SCORES}"))


def test_a_review_imports_nothing_that_results_name(sweep: Path, module: str, capsys: pytest.CaptureFixture[str]) -> None:
    for path in [path.parent for path in sweep.glob(f"*/{SAMPLES}")]:
        (path / ".hydra").mkdir()
        (path / ".hydra" / "config.yaml").write_text(f"objective: {module}:vowels\n")
        (path / SCORES).write_text(json.dumps({f"{module}:vowels": {"source": "", "samples": "", "values": [1]}}))
    assert reviewed(capsys)[0] == 0
    assert module not in sys.modules


def test_a_run_returns_it_as_objective(run: Run, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    save_checkpoint(tmp_path / "out", seed=1)
    ended = run(
        "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", f"objective={module}:vowels",
        "sampling.temperature=interval(0.5,1.5)", *SMALL,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    best = OmegaConf.load("outputs/sweeps/s/optimization_results.yaml")
    found = gptsweep.read_sweep("outputs/sweeps/s").scored(OwnMetric.named(f"{module}:vowels"))
    assert best.best_value == pytest.approx(found.summary["vowels"].min())
    assert len(calls_of(module)) == 24  # kept by the run, and read by the review
    ended = run(*SMALL, f"objective={module}:nothing")
    assert ended.status == 2
    assert f"objective={module}:nothing: {module} has no function nothing" in ended.err
