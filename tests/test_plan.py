"""What `python -m gptsweep.plan` says of a sweep: its counts are those of the run, and nothing is written."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sweeps import Run, samples_of, save_checkpoint

from gptsweep import plan
from gptsweep.engine import calibration
from gptsweep.engine.calibration import Speed, attended, extrapolated
from gptsweep.records import Row, Sampling
from gptsweep.run import calibrations, overhead, planning
from gptsweep.run.estimate import RowShape, batches, seconds_of, shard, sharing
from gptsweep.run.overhead import Overhead

SPEED = Speed(steps=((1, 1.0), (4, 2.0), (16, 8.0)), row=0.1, position=0.0, prompt_token=0.5)
OVERHEAD = Overhead(command=5.0, point=0.5, files=7.0, file_bytes=900.0, row_bytes=100.0)
SMALL = ("model=resume", "sampling.max_new_tokens=6", "sampling.num_samples=3")

Planning = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Run) -> Planning:
    """Plans a sweep of a tiny model on a machine whose speed is known; the exit status, and the plan."""
    save_checkpoint(tmp_path / "out", seed=1)
    monkeypatch.setattr(planning, "overhead_here", lambda: OVERHEAD)
    monkeypatch.setattr(planning, "speed_here", lambda *_, **__: SPEED)

    def command(*arguments: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["plan"])
        before = sorted(os.walk(tmp_path))
        status = plan.main(["--json", *arguments])
        assert sorted(os.walk(tmp_path)) == before, "a plan writes nothing"
        out = capsys.readouterr()
        return status, json.loads(out.out) if status == 0 else {"error": out.err}

    return command


def test_a_plan_counts_what_a_run_makes_and_a_resumed_one_plans_the_rest(planned: Planning, run: Run, tmp_path: Path) -> None:
    sweep = ("-m", *SMALL, "name=s", "sampling.temperature=0,0.8", "seed=1,2", "start=ab")
    status, whole = planned("--machines", "2", *sweep)
    assert status == 0
    (model,) = whole["models"]
    # Greedy samples are one, whatever their seed.
    assert (whole["points"], whole["samples"], whole["done"], model["rows"]) == (4, 12, 0, 7)
    assert (model["prompt_tokens"], model["new_tokens"]) == (14, 42)
    assert (whole["files"], list(whole["seconds"])) == (28, ["1", "2"])
    assert run(*sweep, "sampling.num_samples=2").status == 0
    _, rest = planned(*sweep)
    assert (rest["points_done"], rest["done"], rest["models"][0]["rows"]) == (0, 8, 3)
    assert run(*sweep).status == 0
    lines = b"".join(samples_of(tmp_path / "outputs" / "sweeps" / "s").values())
    assert model["sample_bytes"] == pytest.approx(len(lines) + 16 * lines.count(b"\n"), rel=0.05)
    _, nothing = planned(*sweep)
    assert (nothing["points_done"], nothing["models"], nothing["disk_bytes"]) == (4, [], 0)


def test_designs_and_single_runs_are_planned_and_mistakes_end_with_status_2(planned: Planning) -> None:
    drawn = ("-m", *SMALL, "hydra/sweeper=random", "hydra.sweeper.n=5", "sampling.top_p=interval(0.5,1)")
    assert planned(*drawn)[1]["points"] == 5
    assert planned(*SMALL)[1]["points"] == 1
    for wrong, named in (("sampling.top_k=-1", "sampling.top_k"), ("model.out_dir=nowhere", "nowhere")):
        status, found = planned(*SMALL, wrong)
        assert (status, found["error"].count("\n")) == (2, 1)
        assert named in found["error"]


def test_a_plan_fits_narrow_terminals() -> None:
    model = planning.ModelPlan(
        name="resume", rows=10**6, prompt_tokens=10**9, new_tokens=10**9, windows=10**8, overflowing=10**6, max_rows=256,
        weight_bytes=14 * 10**9, cache_bytes=10**10, free_bytes=10**10, sample_bytes=10**12, sample_seconds=1e4,
        seconds={1: planning.Seconds(3e6, 2e6, 1e6), 64: planning.Seconds(3e5, 2e5, 1e5)},
    )  # fmt: skip
    found = planning.SweepPlan(
        points=10**6, points_done=3, samples=10**7, done=5, models=(model,), overhead=OVERHEAD, process_bytes=10**9,
        free_disk=10**11, free_files=10**6, note="OptunaSweeper chooses points as it goes, so they are not known beforehand",
    )  # fmt: skip
    for width in (60, 80):
        text = io.StringIO()
        plan.show(found.lines(), Console(file=text, width=width))
        assert max(map(len, text.getvalue().splitlines())) <= width
        assert "bottleneck" in text.getvalue()
        assert "disk: " in text.getvalue()


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 8))
@settings(max_examples=50)
def test_steps_are_those_of_rows_that_take_free_places_in_turn(lengths: list[int], max_rows: int) -> None:
    waiting, running, steps = list(lengths), list[int](), dict[int, int]()
    while waiting or running:
        while waiting and len(running) < max_rows:
            running.append(waiting.pop(0))
        steps[len(running)] = steps.get(len(running), 0) + 1
        running = [left - 1 for left in running if left > 1]
    assert {size: count for count, size in batches(lengths, max_rows)} == steps


def test_time_lies_between_rows_that_never_part_and_rows_that_part_at_once() -> None:
    rows = [RowShape(prompt_tokens=4, new_tokens=50, windows=0, group=i // 4, prompt="p") for i in range(16)]
    apart, likely, together = sharing(rows)
    assert (apart, together) == (1, 1 / 4)
    assert together < likely < apart
    found = seconds_of(rows, SPEED, 16, None)
    assert found.apart == pytest.approx(50 * 8.0 + 4 * 0.5)
    assert found.together == pytest.approx(50 * (2.0 + 12 * 0.1) + 4 * 0.5)
    assert found.together < found.likely < found.apart
    assert {row.group for row in shard(rows, 3)} == {0, 3}
    windows = [RowShape(prompt_tokens=8, new_tokens=5, windows=3, group=0, prompt="p")]
    assert seconds_of(windows, SPEED, 1, 10).apart == pytest.approx(5 * 1.0 + 8 * 0.5 + 3 * 10 * 0.5)


def test_a_speed_is_read_between_measured_batches_and_of_more_layers() -> None:
    assert [SPEED.step(n) for n in (1, 2.5, 4, 10, 16, 28)] == pytest.approx([1, 1.5, 2, 5, 8, 14])
    more = Speed(steps=((1, 2.0), (4, 3.0)), row=0.2, position=0.5, prompt_token=0.75)
    assert extrapolated(SPEED, more, (1, 3), 5) == Speed(steps=((1, 3.0), (4, 4.0)), row=0.2, position=1.0, prompt_token=1.0)


@settings(max_examples=30)
@given(length=st.integers(0, 200), windows=st.lists(st.one_of(st.none(), st.integers(1, 100)), min_size=1, max_size=4))
def test_the_positions_that_layers_attend_to_are_those_of_their_windows(length: int, windows: list[int | None]) -> None:
    each = [sum(min(place + 0.5, window or math.inf) for place in range(length)) for window in windows]
    assert attended(length, windows) == pytest.approx(sum(each) / len(each), abs=0.2)


def test_greedy_rows_are_measured_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[Row]] = []
    engine = SimpleNamespace(vocab_size=5, run=lambda rows, *_: ran.append(rows) or [])
    for temperature, alike in ((0.0, False), (0.0, True), (1.0, False)):
        with contextlib.suppress(IndexError, statistics.StatisticsError):  # it makes no steps
            calibration._seconds(engine, Sampling(temperature=temperature), 16, 8, share=1.0, alike=alike)  # type: ignore[arg-type]
    different = [{(row.prompt_ids, row.noise_key * row.sampling.temperature) for row in rows} for rows in ran]
    assert list(map(len, different)) == [16, 1, 16]
    assert {len(row.prompt_ids) for rows in ran for row in rows} == {8}


def test_a_calibration_ends_in_time_on_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(overhead, "_timed", lambda place, points, limit: 8.0 if points == 2 else None)
    assert overhead.measured(10.0).command == 8.0
    monkeypatch.undo()
    assert overhead.measured(0.1).command == 0.1, "the command does not end in a tenth of a second"
    assert "this machine is busy" in caplog.text


def test_what_a_busy_machine_could_not_measure_is_measured_next_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(overhead, "_timed", lambda place, points, limit: 8.0 if points == 2 else None)
    assert calibrations.overhead_here().is_borrowed
    monkeypatch.setattr(calibrations, "measured", lambda: OVERHEAD)
    assert calibrations.overhead_here() == OVERHEAD


def test_a_calibration_is_kept_and_a_damaged_one_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def measured() -> Overhead:
        calls.append(1)
        return OVERHEAD

    monkeypatch.setattr(calibrations, "measured", measured)
    assert [calibrations.overhead_here() for _ in range(2)] == [OVERHEAD] * 2
    assert len(calls) == 1
    (path,) = (tmp_path / "gptsweep" / "plan").iterdir()
    for damage in ("{", path.read_text().replace("5.0", "-5.0"), "[]"):
        path.write_text(damage)
        assert calibrations.overhead_here() == OVERHEAD
    assert len(calls) == 4
