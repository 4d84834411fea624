"""What a sweep keeps: through a rerun, a change of mind, a failure, a signal, a kill, a full disk."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from sweeps import Run, samples_of, save_checkpoint

import gptsweep
from gptsweep.engine import engine, torch_backend
from gptsweep.engine.engine import Engine
from gptsweep.records import Row
from gptsweep.run import flush_pace, session
from gptsweep.store import keyed_lines, schema
from gptsweep.store import writer as results

SMALL = ("model=resume", "sampling.num_samples=2", "sampling.max_new_tokens=6", "quiet=true")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "out", seed=1)
    return tmp_path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Every row that an engine was asked to run."""
    rows: list[Row] = []
    real = Engine.run

    def noted(self: Engine, given: Any, *arguments: Any) -> Any:
        if not arguments:  # the engine's own, that times a window
            return real(self, given)

        def each() -> Any:
            for row in given:
                rows.append(row)
                yield row

        return real(self, each(), *arguments)

    monkeypatch.setattr(Engine, "run", noted)
    return rows


def table(sweep: Path) -> list[dict[str, str]]:
    with (sweep / schema.SWEEP).open(newline="") as file:
        return list(csv.DictReader(file))


# -- identical work ----------------------------------------------------------------------------------------------------------


def test_greedy_points_that_differ_in_nothing_that_matters_are_decoded_once(run: Run, place: Path, decoded: list[Row]) -> None:
    greedy = ("sampling.temperature=0", "seed=1,2", "sampling.top_k=3,null", *SMALL)
    assert run("-m", *greedy, "name=g").status == 0
    assert len(decoded) == 1
    together = samples_of(place / "outputs/sweeps/g")
    assert run("-m", *greedy, "name=h", "hydra/launcher=basic").status == 0
    assert samples_of(place / "outputs/sweeps/h") == together
    assert len(together) == 4


def test_points_with_equal_ids_are_decoded_once(run: Run, place: Path, decoded: list[Row]) -> None:
    (place / "a.txt").write_text("abc")
    assert run("-m", "start=abc,FILE:a.txt", "seed=1", *SMALL, "name=e").status == 0
    assert len(decoded) == 2
    one, two = samples_of(place / "outputs/sweeps/e").values()
    assert one == two


# -- going on ----------------------------------------------------------------------------------------------------------------


def test_the_same_command_again_redoes_nothing(run: Run, place: Path, decoded: list[Row]) -> None:
    assert run("-m", "seed=1,2", *SMALL, "name=n").status == 0
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in place.glob("outputs/sweeps/n/*/[sm]*")}
    assert len(files) == 6
    decoded.clear()
    assert run("-m", "seed=1,2", *SMALL, "name=n").status == 0
    assert not decoded
    assert files == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_value_added_to_a_sweep_runs_its_points_alone(run: Run, place: Path, decoded: list[Row]) -> None:
    assert run("-m", "seed=1,2,3", *SMALL, "name=n").status == 0
    before = samples_of(place / "outputs/sweeps/n")
    decoded.clear()
    assert run("-m", "seed=1,2,3,4", *SMALL, "name=n").status == 0
    assert {row.noise_key for row in decoded} == {4}
    after = samples_of(place / "outputs/sweeps/n")
    assert len(after) == 4
    assert before.items() < after.items()


def test_points_of_an_earlier_sweep_of_the_same_name_stay_in_the_table(run: Run, place: Path) -> None:
    assert run("-m", "seed=1,2", *SMALL, "name=n").status == 0
    assert run("-m", "seed=3", *SMALL, "name=n").status == 0
    assert sorted(row["seed"] for row in table(place / "outputs/sweeps/n")) == ["1", "2", "3"]
    assert {row["status"] for row in table(place / "outputs/sweeps/n")} == {"complete"}
    assert len(gptsweep.read_sweep("outputs/sweeps/n").samples) == 6


def test_more_samples_are_added_to_those_that_are_there(run: Run, place: Path, decoded: list[Row]) -> None:
    assert run("-m", "seed=1,2", *SMALL, "name=n").status == 0
    before = samples_of(place / "outputs/sweeps/n")
    decoded.clear()
    assert run("-m", "seed=1,2", *SMALL, "sampling.num_samples=5", "name=n").status == 0
    assert sorted(row.sample_index for row in decoded) == [2, 2, 3, 3, 4, 4]
    after = samples_of(place / "outputs/sweeps/n")
    assert all(after[name].startswith(lines) and after[name].count(b"\n") == 5 for name, lines in before.items())
    assert {row["num_samples"] for row in table(place / "outputs/sweeps/n")} == {"5"}


# -- before anything is done -------------------------------------------------------------------------------------------------


def test_two_points_that_would_share_a_directory_are_refused(run: Run, place: Path) -> None:
    ended = run("-m", "seed=1,2", *SMALL, "name=n", "hydra.sweep.subdir=same")
    assert ended.status == 2
    assert "seed=1 and seed=2 would share this directory" in ended.err
    assert not (place / "outputs").exists()


def test_a_mistake_in_the_last_combination_is_found_before_the_first_runs(run: Run, place: Path) -> None:
    (place / "mine/experiment").mkdir(parents=True)
    (place / "mine/experiment/good.yaml").write_text("# @package _global_\nsampling: {top_k: 3}\n")
    (place / "mine/experiment/odd.yaml").write_text("# @package _global_\nsampling: {top_k: '${seed}'}\n")
    ended = run("-m", "--config-dir", "mine", "experiment=good,odd", "seed=1,0", *SMALL, "name=n")
    assert (ended.status, ended.err) == (2, "gptsweep: error: sampling.top_k=0: must be at least 1, or null to switch it off\n")
    assert not (place / "outputs").exists()


# -- one process, and the table of what is on disk ---------------------------------------------------------------------------


HOLD = """
import sys
from pathlib import Path
from gptsweep.store.lock import DirectoryLock
from gptsweep.store.schema import SWEEP_LOCK
with DirectoryLock(Path(sys.argv[1]), SWEEP_LOCK):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_in_a_sweep_is_refused_and_marks_nothing_failed(run: Run, place: Path, decoded: list[Row]) -> None:
    assert run("-m", "seed=1,2", *SMALL, "name=n").status == 0
    sweep = place / "outputs/sweeps/n"
    before = {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file()}
    decoded.clear()
    point = next(path.name for path in sweep.iterdir() if path.is_dir())
    command = [sys.executable, "-c", HOLD, str(sweep)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for arguments in (
            ("-m", "seed=1,2,3", *SMALL, "name=n"),
            ("-m", "seed=1,2,3", *SMALL, "name=n", "hydra/launcher=basic"),
            ("seed=1", *SMALL, f'hydra.run.dir="{sweep}/{point}"'),
        ):
            ended = run(*arguments)
            assert ended.status == 2
            assert re.fullmatch(rf"gptsweep: error: name=\S+/n: in use by process {holder.pid} on .*\n", ended.err)
        holder.kill()
    assert not decoded
    assert {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file() and path.name[0] != "."} == {
        path: data for path, data in before.items() if path.name[0] != "."
    }
    assert run("-m", "seed=1,2,3", *SMALL, "name=n").status == 0
    assert not list(sweep.glob(".*"))


def test_a_vanished_model_leaves_finished_points_finished(run: Run, place: Path) -> None:
    save_checkpoint(place / "two", seed=2)
    sweep = ("-m", "model.out_dir=out,two", "seed=1,2", *SMALL, "name=n")
    assert run(*sweep).status == 0
    before = table(place / "outputs/sweeps/n")
    (place / "two/ckpt.pt").rename(place / "away")
    ended = run(*sweep)
    assert ended.status == 0
    assert ended.err.count("was finished earlier and stays as it is; its model cannot be loaded now") == 2
    assert table(place / "outputs/sweeps/n") == before
    for changed in (("seed=1,2,3",), ("seed=1,2", "sampling.num_samples=3"), ("seed=1,2", "start=a")):
        ended = run("-m", "model=resume", "model.out_dir=two", *SMALL[1:], *changed, "name=n")
        assert ended.status == 1, changed
        rows = table(place / "outputs/sweeps/n")
        complete = {row["directory"] for row in rows if row["status"] == "complete"}
        assert complete >= {row["directory"] for row in before}
        assert complete == {path.parent.name for path in place.glob("outputs/sweeps/n/*/manifest.json")}


def test_the_table_says_what_is_on_disk_whatever_it_said_before(run: Run, place: Path) -> None:
    assert run("-m", "seed=1,2,3,4", *SMALL, "name=n").status == 0
    sweep = place / "outputs/sweeps/n"
    whole = {row["directory"]: row for row in table(sweep)}
    one, two, three, four = sorted(whole)
    text = (sweep / schema.SWEEP).read_text().replace("complete", "missing")
    lines = text.splitlines(keepends=True)
    (sweep / schema.SWEEP).write_text("".join(line for line in lines if one not in line))
    (sweep / two / schema.SUMMARY).write_text("rubbish")
    (sweep / three / schema.MANIFEST).unlink()
    (sweep / four / schema.SAMPLES).unlink()
    (sweep / four / schema.MANIFEST).unlink()
    assert run("-m", "seed=5", *SMALL, "name=n").status == 0
    rows = {row["directory"]: row for row in table(sweep)}
    statuses = [rows[name]["status"] for name in (one, two, three, four)]
    assert statuses == ["complete", "partial", "partial", "missing"]
    assert rows[one] == whole[one] | {key: rows[one][key] for key in rows[one].keys() - whole[one].keys()}
    assert {name: rows[name]["seed"] for name in whole} == {name: row["seed"] for name, row in whole.items()}
    assert run("-m", "seed=1,2,3,4", *SMALL, "name=n").status == 0
    assert {row["status"] for row in table(sweep)} == {"complete"}
    assert {row["directory"]: row["logprob_mean"] for row in table(sweep)}.items() >= {
        name: row["logprob_mean"] for name, row in whole.items()
    }.items()


def test_a_single_run_that_goes_on_in_a_sweep_is_in_its_table(run: Run, place: Path) -> None:
    assert run("-m", "seed=1,2", *SMALL, "name=n").status == 0
    sweep = place / "outputs/sweeps/n"
    point = next(row["directory"] for row in table(sweep) if row["seed"] == "2")
    assert run(*SMALL, "seed=2", "sampling.num_samples=4", f'hydra.run.dir="outputs/sweeps/n/{point}"').status == 0
    assert {row["seed"]: row["num_samples"] for row in table(sweep)} == {"1": "2", "2": "4"}


def test_fewer_samples_asked_for_than_there_are_leave_all_in_file_and_table(
    run: Run, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("-m", "seed=1,2", *SMALL, "sampling.num_samples=5", "name=n").status == 0
    before = table(place / "outputs/sweeps/n")
    ended = run("-m", "seed=1,2", *SMALL, "name=n")
    assert ended.status == 0
    assert ended.err.count("has 3 samples more than requested: they stay, and count") == 2
    assert table(place / "outputs/sweeps/n") == before
    assert len(gptsweep.read_sweep("outputs/sweeps/n").samples) == 10


def test_few_open_files_are_enough_for_many_points(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened: list[int] = []
    real = results.PointWriter.add
    with monkeypatch.context() as patch:
        patch.setattr(
            results.PointWriter, "add", lambda *given: opened.append(len(os.listdir("/proc/self/fd"))) or real(*given)
        )
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 30, before[1]))
        try:
            ended = run("-m", "seed=range(50)", *SMALL, "sampling.max_new_tokens=2", "name=n")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert ended.status == 0, ended.err
    assert len(samples_of(place / "outputs/sweeps/n")) == 50
    assert max(opened) < used + 30


def test_a_directory_whose_name_is_too_long_fails_its_own_points_alone(run: Run, place: Path) -> None:
    long = "x" * 300
    sweep = ("-m", f"start=a,{long.replace('x', 'b')}", *SMALL, "name=n", "hydra.sweep.subdir=${hydra.job.override_dirname}")
    for _ in range(2):
        ended = run(*sweep)
        assert ended.status == 1
        assert "1 of 2 points failed" in ended.err
        assert "ile name too long" in ended.err
        assert sorted(row["status"] for row in table(place / "outputs/sweeps/n")) == ["complete", "failed"]
        assert (place / "outputs/sweeps/n/report.html").exists()
    found = gptsweep.read_sweep("outputs/sweeps/n")
    assert sorted(found.summary["status"]) == ["complete", "failed"]


# -- other launchers and places ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_other_launchers_leave_the_files_of_a_sweep_too(run: Run, place: Path, launcher: str) -> None:
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (place / "bad.txt").write_text("Z")
    sweep = ("-m", "start=a,FILE:bad.txt", "seed=1,2", *SMALL, "name=n")
    jobs = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    ended = run(*sweep, f"hydra/launcher={launcher}", *jobs)
    assert ended.status == 2
    rows = table(place / "outputs/sweeps/n")
    assert sorted(row["status"] for row in rows) == ["complete"] * 2 + ["failed"] * 2
    assert all(("Z" in row["error"]) == (row["status"] == "failed") for row in rows)
    assert (place / "outputs/sweeps/n/report.html").exists()
    assert not list((place / "outputs/sweeps/n").glob(".*"))
    fused = table_of(run, place, sweep)
    ours = {row["directory"]: row for row in rows}
    for row in fused:
        assert {key: value for key, value in row.items() if key != "tokens_per_second"} == {
            key: value for key, value in ours[row["directory"]].items() if key != "tokens_per_second"
        }


def table_of(run: Run, place: Path, sweep: tuple[str, ...]) -> list[dict[str, str]]:
    """The table that our own launcher writes."""
    run(*sweep[:-1], "name=fused")
    return table(place / "outputs/sweeps/fused")


def test_a_sweep_beside_the_working_directory_is_one_batch(
    run: Run, place: Path, decoded: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "here").mkdir()
    monkeypatch.chdir(place / "here")
    real, opened = torch_backend.load_model, []
    monkeypatch.setattr(torch_backend, "load_model", lambda *which: opened.append(which) or real(*which))
    for where in ("../x", "y/../../here/./y"):
        opened.clear()
        assert run("-m", "seed=1,2", *SMALL, "model.out_dir=../out", f"hydra.sweep.dir={where}").status == 0
        assert len(opened) == 1
        directories = [row["directory"] for row in table(place / "here" / where)]
        assert all((place / "here" / where / name / schema.MANIFEST).exists() for name in directories)
        assert {os.path.dirname(name) for name in directories} == {""}


@pytest.mark.parametrize("how", [(), ("-m",), ("-m", "hydra/launcher=basic")])
def test_a_job_that_changes_directory_finds_the_files_of_one_that_does_not(run: Run, place: Path, how: tuple[str, ...]) -> None:
    (place / "prompt.txt").write_text("abc")
    sweep = (*how, "start=FILE:prompt.txt", *SMALL, "hydra.run.dir=r", "hydra.sweep.dir=r")
    ended = run(*sweep, "hydra.job.chdir=true")
    assert (ended.status, place.cwd()) == (0, place), ended.err
    assert set(samples_of(place / "r").values()) != set()
    assert run(*sweep[:-2], "hydra.run.dir=s", "hydra.sweep.dir=s").status == 0
    assert list(samples_of(place / "r").values()) == list(samples_of(place / "s").values())


# -- failure -----------------------------------------------------------------------------------------------------------------


def test_a_point_that_fails_leaves_the_others_alone(run: Run, place: Path) -> None:
    save_checkpoint(place / "two", seed=2)
    (place / "bad.jsonl").write_text('{"prompt": 3}\n')
    sweep = ("-m", "model.out_dir=out,none,two", "start=a,JSONL:bad.jsonl", *SMALL, "name=n")
    ended = run(*sweep)
    assert ended.status == 1
    lines = ended.err.splitlines()
    assert lines[-1] == (
        "gptsweep: error: 4 of 6 points failed; to retry: "
        "python -m gptsweep -m model.out_dir=out,none,two start=a,JSONL:bad.jsonl model=resume "
        "sampling.num_samples=2 sampling.max_new_tokens=6 quiet=true name=n"
    )
    failures = lines[-3:-1]  # an error that points share is printed once
    assert all(line.startswith("outputs/sweeps/n/") for line in failures)
    assert sorted(line.count(" and 1 more: ") for line in failures) == [1, 1]
    assert len(samples_of(place / "outputs/sweeps/n")) == 2
    rows = table(place / "outputs/sweeps/n")
    assert sorted(row["status"] for row in rows) == ["complete"] * 2 + ["failed"] * 4
    assert {row["out_dir"] for row in rows if row["status"] == "failed"} == {"out", "none", "two"}
    assert all(("bad.jsonl" in row["error"] or "none" in row["error"]) == (row["status"] == "failed") for row in rows)
    save_checkpoint(place / "none", seed=3)
    (place / "bad.jsonl").write_text('{"prompt": "b"}\n')
    assert run(*sweep).status == 0
    assert len(samples_of(place / "outputs/sweeps/n")) == 6
    assert {row["status"] for row in table(place / "outputs/sweeps/n")} == {"complete"}


def test_a_sweep_without_a_name_says_under_which_name_to_retry(run: Run, place: Path) -> None:
    (place / "none").mkdir()
    (place / "none/ckpt.pt").touch()
    last = run("-m", "model=resume", "model.out_dir=none", "seed=1,2").err.splitlines()[-1]
    [directory] = place.glob("outputs/sweeps/*")
    assert last.endswith(f"python -m gptsweep -m model=resume model.out_dir=none seed=1,2 name={directory.name}")


def test_a_point_that_fails_in_one_batch_leaves_the_next_batches_alone(run: Run, place: Path) -> None:
    sweep = ("-m", "model.out_dir=none,out", "seed=1,2", *SMALL, "name=n", "hydra.sweeper.max_batch_size=1")
    ended = run(*sweep)
    assert ended.status == 1
    assert "2 of 4 points failed" in ended.err
    assert [row["status"] for row in table(place / "outputs/sweeps/n")] == ["failed", "failed", "complete", "complete"]


def test_a_model_stays_loaded_from_batch_to_batch(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, opened = torch_backend.load_model, []
    monkeypatch.setattr(torch_backend, "load_model", lambda *which: opened.append(which) or real(*which))
    assert run("-m", "seed=1,2,3", *SMALL, "name=n", "hydra.sweeper.max_batch_size=1").status == 0
    assert len(opened) == 1
    assert len(samples_of(place / "outputs/sweeps/n")) == 3


def test_optunas_sweeper_tunes_the_objective(run: Run, place: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    ended = run(
        "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", "objective=logprob_mean",
        "sampling.temperature=interval(0.5,1.5)", "sampling.top_k=choice(3,9)", *SMALL, "name=n", "quiet=null",
    )  # fmt: skip
    assert ended.status == 0
    assert ended.err.count("python -m gptsweep.review outputs/sweeps/n") == 1  # after the first rows, once
    best = OmegaConf.load(place / "outputs/sweeps/n/optimization_results.yaml")
    assert best.best_value == pytest.approx(min(float(row["logprob_mean"]) for row in table(place / "outputs/sweeps/n")))


def test_out_of_memory_halves_the_rows_in_flight(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("-m", "seed=1,2,3", *SMALL, "name=a").status == 0
    real, sizes = engine.KVCache, []

    def small(*arguments: Any, **settings: Any) -> Any:
        sizes.append(settings["n_block_tables"])
        if settings["n_block_tables"] > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return real(*arguments, **settings)

    monkeypatch.setattr(engine, "KVCache", small)
    assert run("-m", "seed=1,2,3", *SMALL, "name=b").status == 0
    assert len(sizes) > 1
    assert samples_of(place / "outputs/sweeps/a") == samples_of(place / "outputs/sweeps/b")


def test_a_point_too_large_for_memory_fails_alone(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Engine.run

    def limited(self: Engine, rows: Any, workload: Any, on_step: Any) -> Any:
        if workload.row_tokens > 10:
            raise MemoryError
        return real(self, rows, workload, on_step)

    monkeypatch.setattr(Engine, "run", limited)
    ended = run("-m", "sampling.max_new_tokens=6,20", "seed=1,2", "model=resume", "sampling.num_samples=2", "name=n")
    assert ended.status == 1
    assert "does not fit in memory" in ended.err
    assert "2 of 4 points failed" in ended.err
    assert len(samples_of(place / "outputs/sweeps/n")) == 2


def test_a_bug_in_one_point_is_reported_with_its_traceback(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = session.text_metrics

    def broken(samples: Any) -> Any:
        return 1 / 0 if samples and samples[0]["seed"] == 2 else real(samples)

    monkeypatch.setattr(session, "text_metrics", broken)
    ended = run("-m", "seed=1,2,3", *SMALL, "name=n")
    assert ended.status == 1
    assert "in broken" in ended.err
    assert re.search(r"^outputs/sweeps/n/seed=2,[^:]*: ZeroDivisionError: division by zero$", ended.err, re.MULTILINE)
    assert len(samples_of(place / "outputs/sweeps/n")) == 2


# -- signals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status", "sweep"),
    [(signal.SIGINT, 130, True), (signal.SIGINT, 130, False), (signal.SIGTERM, 143, True), (signal.SIGHUP, 129, False)],
)
def test_a_signal_keeps_what_is_finished_and_says_how_to_go_on(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int, sweep: bool
) -> None:
    command = ("-m", "seed=1,2,3", *SMALL, "device.max_rows=1") if sweep else (*SMALL, "device.max_rows=1")
    where = place / ("outputs/sweeps" if sweep else "outputs/runs")
    assert run(*command, "name=whole").status == 0
    real, added = results.PointWriter.add, []

    def interrupted(self: results.PointWriter, samples: Any, *more: Any) -> None:
        real(self, samples, *more)
        added.extend(samples)
        if len(added) == (3 if sweep else 1):
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(results.PointWriter, "add", interrupted)
        patch.setattr(flush_pace, "SHARE", 1.0)  # on a slow disk two samples would come at once
        ended = run(*command)
    assert ended.status == status
    [directory] = [path for path in where.iterdir() if path.name != "whole"]
    last = ended.err.splitlines()[-1]
    assert last.startswith("gptsweep: stopped; to go on: python -m gptsweep ")
    assert last.endswith(f"device.max_rows=1 name={directory.name}")
    kept = gptsweep.read_sweep(directory)
    assert len(kept.samples) == len(added) > 0
    if sweep:
        assert [row["status"] for row in table(directory)] == ["complete", "partial", "missing"]
    assert run(*command, f"name={directory.name}").status == 0
    assert samples_of(directory) == samples_of(where / "whole") or not sweep
    assert sorted(samples_of(directory).values()) == sorted(samples_of(where / "whole").values())


# -- kill -9 and a full disk -------------------------------------------------------------------------------------------------


def test_a_sweep_killed_at_any_moment_goes_on_to_the_same_bytes(place: Path) -> None:
    driver = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed_sweep.py")), "12"],
        cwd=place,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(gptsweep.__file__).parents[1]), str(Path(__file__).parent)])},
    )
    assert driver.returncode == 0, driver.stderr[-3000:]
    result = json.loads(driver.stdout.splitlines()[-1])
    assert result["kills"] == 12
    assert result["moments"] >= 3


def test_a_full_disk_loses_nothing_that_was_finished(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("-m", "seed=1,2,3", *SMALL, "name=whole").status == 0
    appended, finished = keyed_lines.append, []

    def full(path: Path, data: bytes) -> int:
        if len(finished) >= 3:
            raise OSError(28, "No space left on device")
        offset = appended(path, data)
        finished.extend(data.splitlines())  # on a busy machine two samples may come at once
        return offset

    with monkeypatch.context() as patch:
        patch.setattr(keyed_lines, "append", full)
        ended = run("-m", "seed=1,2,3", *SMALL, "device.max_rows=1", "name=full")
    assert ended.status == 1
    assert "no space left on device; free some space and run the same command again" in ended.err
    assert 3 <= len(finished) < 6
    assert len(gptsweep.read_sweep("outputs/sweeps/full").samples) == len(finished)
    assert run("-m", "seed=1,2,3", *SMALL, "name=full").status == 0
    assert samples_of(place / "outputs/sweeps/full") == samples_of(place / "outputs/sweeps/whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 160 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is left to root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full_loses_nothing_either(run: Run, place: Path, small_disk: Path) -> None:
    sweep = (
        "-m",
        "model=resume",
        "seed=1,2,3",
        "sampling.num_samples=100",
        "sampling.max_new_tokens=3",
        "quiet=true",
        "name=n",
    )
    ended = run(*sweep, f"hydra.sweep.dir={small_disk}/n")
    assert ended.status == 1
    assert "no space left on device; free some space and run the same command again" in ended.err
    kept = samples_kept(small_disk)
    assert kept
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert run(*sweep, f"hydra.sweep.dir={small_disk}/n").status == 0
    assert run(*sweep, "hydra.sweep.dir=whole").status == 0
    assert samples_of(small_disk / "n") == samples_of(place / "whole")
    assert kept < samples_kept(small_disk)


def samples_kept(disk: Path) -> set[bytes]:
    """Every whole line of samples."""
    lines = {line for path in disk.glob("**/samples*.jsonl") for line in path.read_bytes().splitlines(keepends=True)}
    return {line for line in lines if line.endswith(b"}\n")}


def test_a_sweep_shows_no_samples_and_ends_with_the_first_rows_and_the_command_for_the_rest(run: Run, place: Path) -> None:
    sweep = ("-m", "model=resume", "sampling.num_samples=2", "sampling.max_new_tokens=6", "name=n")
    ended = run(*sweep, f"sampling.temperature={','.join(str(1 + step / 10) for step in range(12))}", "seed=1,2")
    assert (ended.status, ended.out) == (0, "Results: outputs/sweeps/n\n"), "what programs read holds nothing else"
    assert re.search(r"# +temperature +samples +Perplexity", ended.err)
    assert re.search(r"^7 +1.7 +4 ", ended.err, re.MULTILINE)
    assert "\n8 " not in ended.err
    assert "4 more settings" in ended.err
    assert "\npython -m gptsweep.review outputs/sweeps/n\n" in ended.err
    assert "gptsweep.review" not in run(*sweep, "seed=1,2", "quiet=true").err
