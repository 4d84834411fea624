"""A sweep of three points over a table: its jobs and its files. It imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tables import Tables

from gptsweep.records import Point, Sampling
from gptsweep.run.executors import Executor
from gptsweep.run.executors.local import LocalExecutor
from gptsweep.run.jobs import Job, Outcome
from gptsweep.run.progress import Progress
from gptsweep.run.session import run_jobs
from gptsweep.store.unfinished import Unfinished


def jobs(root: Path, **sampling: Any) -> list[Job]:
    settings = {"num_samples": 2, "max_new_tokens": 4, **sampling}
    points = [Point(sampling=Sampling(**settings), start="ab", seed=seed) for seed in (1, 2, 3)]
    return [Job(point, root / f"seed={point.seed}") for point in points]


def settle(root: Path, executor: Executor, wanted: list[Job] | None = None, *, strict: bool = False) -> list[Outcome]:
    """Run jobs, and return their outcomes in the order of the jobs."""
    wanted = jobs(root, num_samples=6) if wanted is None else wanted
    with Progress(quiet=True) as progress:
        outcomes = run_jobs(wanted, progress, executor, Unfinished(root), strict=strict)
        found = {outcome.job: outcome for outcome in outcomes}
    return [found[job] for job in wanted]


def files(root: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(root.glob("*/samples.jsonl"))}


def lines(root: Path) -> int:
    """The number of samples on disk, over all points of a sweep."""
    return sum(path.read_bytes().count(b"\n") for path in root.glob("*/samples*.jsonl"))


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """The files of the sweep of `jobs` when it runs in this process."""
    settle(tmp_path / "whole", LocalExecutor(Tables()))
    return files(tmp_path / "whole")
