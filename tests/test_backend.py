"""The seams around the engine: a whole sweep through another backend, without torch, and what crosses is data."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import table_sweeps
from table_sweeps import files, jobs
from tables import HOW, LETTERS, Table, Tables

from gptsweep.errors import ConfigError, DeviceError, GptsweepError, Interrupted, ModelError, PromptError, ResultsError
from gptsweep.models.files.tokenizers import CharTokenizer
from gptsweep.records import DeviceSettings, ModelSource, Point, Prefix, Prompt, Row, Sampling
from gptsweep.run.executors.local import LocalExecutor
from gptsweep.run.jobs import Outcome
from gptsweep.run.rows import OpenModel, Plan, Task, encoded


def settle(root: Path, tables: Tables, **sampling: Any) -> list[Outcome]:
    """Every outcome, in the order of the points."""
    return table_sweeps.settle(root, LocalExecutor(tables), jobs(root, **sampling))


def main() -> None:
    """A sweep with files, one of its points failing, then resumed and extended; run by the test below in a new process."""
    root = Path(sys.argv[1])

    def fail(row: Row) -> None:
        if row.noise_key == 2:
            raise RuntimeError("broken row")

    outcomes = settle(root, Tables(Table(before_row=fail)))
    assert [type(outcome.error) for outcome in outcomes] == [type(None), RuntimeError, type(None)]
    resumed = Table()
    assert all(outcome.error is None for outcome in settle(root, Tables(resumed)))
    assert {row.noise_key for row in resumed.decoded} == {2}
    assert all(outcome.error is None for outcome in settle(root, Tables(Table()), num_samples=3))
    importlib.import_module("gptsweep.multirun.point")  # as a driver of workers does for Hydra's jobs
    loaded = {"torch", "gptsweep.models.gpt2", "gptsweep.engine.engine"} & sys.modules.keys()
    print(json.dumps({"loaded": sorted(loaded), "lines": {k: v.count(b"\n") for k, v in files(root).items()}}))


def test_a_whole_sweep_runs_on_another_backend_without_torch(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "import test_backend; test_backend.main()", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    ended = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {"loaded": [], "lines": {f"seed={seed}": 3 for seed in (1, 2, 3)}}
    for name in ("seed=1", "seed=2", "seed=3"):
        assert json.loads((tmp_path / name / "manifest.json").read_text())["weights"] == "table"


def test_rows_that_a_backend_forgets_fail_their_points_alone(tmp_path: Path) -> None:
    table = Table(forgets=(1,))
    outcomes = settle(tmp_path, Tables(table))
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    assert all("the backend ended without 1 of" in str(outcome.error) for outcome in failed)
    assert 1 <= len(failed) < 3
    whole = tmp_path / "whole"
    assert all(outcome.error is None for outcome in settle(whole, Tables()))
    assert all(outcome.error is None for outcome in settle(tmp_path, Tables()))
    assert {name: text for name, text in files(tmp_path).items() if name != "whole"} == files(whole)


def test_a_model_that_cannot_be_opened_fails_its_points_and_leaves_finished_ones(tmp_path: Path) -> None:
    settle(tmp_path, Tables())
    before = files(tmp_path)
    for error, kind in ((ModelError("model", "x", "is gone"), ModelError), (MemoryError("9 bytes"), DeviceError)):
        assert [outcome.error for outcome in settle(tmp_path, Tables(error=error))] == [None] * 3
        fresh = settle(tmp_path / kind.__name__, Tables(error=error))
        assert [type(outcome.error) for outcome in fresh] == [kind] * 3
    assert files(tmp_path) == before


def test_a_backend_that_hangs_is_ended_by_a_second_ctrl_c_and_nothing_is_lost(tmp_path: Path) -> None:
    calls = iter(range(10))

    def watchdog(row: Row) -> None:
        """In place of a user before a run that hangs at its third row."""
        while next(calls) >= 2:
            signal.raise_signal(signal.SIGINT)

    table = Table(before_row=watchdog)
    with pytest.raises(Interrupted) as ended:
        settle(tmp_path, Tables(table))
    assert len(table.decoded) == 2
    assert ended.value.unfinished == 1, "the row in flight"
    again, whole = Table(), tmp_path / "whole"
    settle(tmp_path, Tables(again))
    assert len(again.decoded) == 4
    assert sum(row.prefix is not None for row in again.decoded) == 1
    settle(whole, Tables())
    assert {name: text for name, text in files(tmp_path).items() if name != "whole"} == files(whole)


def test_what_crosses_the_seams_pickles() -> None:
    model = OpenModel(ModelSource(), DeviceSettings(), Table(), CharTokenizer(LETTERS))
    prompts = encoded(model, (Prompt("0", "ab"), Prompt("1", "c")))
    point = Point(sampling=Sampling(num_samples=2, max_new_tokens=3, stop=("h",), logit_bias=((1, 2.0),)))
    tasks = [Task.of(model, point, prompts)]
    prefixes = [{(0, 1): Prefix(token_ids=(1,), logprob=-1.0, stream=b"state")}]
    plan = Plan.of(model, tasks, prefixes=prefixes)
    copy: Plan = pickle.loads(pickle.dumps(plan))
    assert list(copy.rows()) == list(plan.rows())
    assert (copy.recipients, copy.workload, copy.prefixes) == (plan.recipients, plan.workload, plan.prefixes)
    made = list(LocalExecutor(Tables()).run(model, plan))
    assert list(LocalExecutor(Tables()).run(model, copy)) == made
    assert pickle.loads(pickle.dumps(made)) == made
    completions = list(Table().run([row for row, _ in plan.rows()], plan.workload, None))
    assert pickle.loads(pickle.dumps(completions)) == completions
    assert pickle.loads(pickle.dumps(HOW)) == HOW


@pytest.mark.parametrize("kind", [ConfigError, ModelError, PromptError, DeviceError, ResultsError])
def test_errors_that_cross_the_seams_pickle(kind: type[GptsweepError]) -> None:
    error = kind("sampling.top_k", 0, "must be at least 1")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.value) == (kind, str(error), 0)
    stopped = pickle.loads(pickle.dumps(Interrupted(signal.SIGTERM, "night", 3)))
    assert (stopped.signal_number, stopped.name, stopped.unfinished) == (signal.SIGTERM, "night", 3)
