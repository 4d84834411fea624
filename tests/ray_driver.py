"""A sweep of tables on Ray, in a process that a test kills: ``python -m ray_driver ADDRESS DIRECTORY``. It imports no torch."""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path

import ray
from table_sweeps import jobs
from tables import Table, Tables, pause

from gptsweep.run.executors.ray import RayPool
from gptsweep.run.executors.remote import RemoteExecutor
from gptsweep.run.progress import Progress
from gptsweep.run.session import run_jobs


def main(address: str, root: Path) -> None:
    ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    pool = RayPool(Tables(Table(before_row=partial(pause, 0.5))), workers=1, resources={"CPU": 0.0})
    with Progress(quiet=True) as progress:
        list(run_jobs(jobs(root, num_samples=6), progress, RemoteExecutor(pool, shards=9)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
