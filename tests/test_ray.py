"""A real Ray on this machine, of several raylets: workers and the driver are killed while a sweep runs."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from numpy.typing import NDArray
from ray._private import services
from ray.cluster_utils import Cluster
from sweeps import save_checkpoint
from tables import Table, Tables, pause
from test_backend import files
from test_remote import settle

from gptsweep.engine.torch_backend import TorchBackends
from gptsweep.models.checkpoint import Checkpoint
from gptsweep.records import ModelSource, Point, Sampling
from gptsweep.run.executors.local import LocalExecutor
from gptsweep.run.executors.ray import RayPool
from gptsweep.run.executors.remote import RemoteExecutor
from gptsweep.run.jobs import Job

pytestmark = pytest.mark.xdist_group("ray")  # one process starts Ray

QUICK = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
SAMPLES = 18


AGENTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


@contextlib.contextmanager
def without_waiting_for_agents() -> Iterator[None]:
    """A raylet ends itself where its agents, which no test needs, do not start within 15 s: it is told their ports before."""
    start = services.start_raylet

    def told(*arguments: Any, **named: Any) -> Any:
        given = inspect.signature(start).bind(*arguments, **named).arguments
        with contextlib.ExitStack() as stack:
            for agent in AGENTS:
                free = stack.enter_context(socket.socket())
                free.bind(("", 0))
                name = f"{agent}_{given['node_id']}"
                (Path(given["session_dir"]) / name).write_text(str(free.getsockname()[1]))
        return start(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "start_raylet", told)
        yield


def add_node(cluster: Cluster, cpus: int, **settings: Any) -> None:
    """Start a raylet."""
    with without_waiting_for_agents():
        cluster.add_node(num_cpus=cpus, object_store_memory=80 << 20, **settings)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without a CPU, and two nodes with one each, each a raylet of its own. Nothing of it stays."""
    context = pytest.MonkeyPatch()
    context.setenv("RAY_USAGE_STATS_ENABLED", "0")
    context.setenv("PYTHONPATH", str(Path(__file__).parent))
    made = Cluster()
    try:
        add_node(made, 0, include_dashboard=False, _system_config=QUICK)
        for _ in range(2):
            add_node(made, 1)
        ray.init(address=made.address, log_to_driver=False, logging_level=logging.CRITICAL)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        context.undo()
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
    assert not [process.cmdline() for process in alive if "ray" in " ".join(process.cmdline())]


@pytest.fixture(scope="module")
def pool(cluster: Cluster) -> Iterator[RayPool]:
    """Two actors, whose rows take a tenth of a second each."""
    made = RayPool(Tables(Table(before_row=partial(pause, 0.1))), workers=2)
    yield made
    made.close()


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """What the sweep leaves when it runs here."""
    settle(tmp_path / "whole", LocalExecutor(Tables()))
    return files(tmp_path / "whole")


def lines(root: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in root.glob("*/samples*.jsonl"))


def sweep_while(root: Path, executor: RemoteExecutor, do: Callable[[], None]) -> None:
    """Run the sweep of `jobs`, and do something when some of its samples are there."""

    def wait() -> None:
        while lines(root) < 2:
            time.sleep(0.02)
        do()

    thread = threading.Thread(target=wait)
    thread.start()
    assert all(outcome.error is None for outcome in settle(root, executor))
    thread.join()


def pids(pool: RayPool) -> list[int]:
    """The processes of the actors that have said where they are."""
    return [actor.place[0].pid for actor in list(pool._actors.values()) if actor.place is not None]


def test_a_killed_worker_loses_nothing_and_the_others_stay_for_the_next_batch(
    tmp_path: Path, pool: RayPool, whole: dict[str, bytes]
) -> None:
    executor = RemoteExecutor(pool, shards=9)
    before: list[int] = []

    def kill() -> None:
        before.extend(pids(pool))
        os.kill(before[0], signal.SIGKILL)

    sweep_while(tmp_path / "there", executor, kill)
    assert files(tmp_path / "there") == whole
    settle(tmp_path / "again", executor)
    assert files(tmp_path / "again") == whole
    assert set(before[1:]) <= set(pids(pool)), "whoever was not killed has the model open still"


def test_a_worker_that_stands_still_is_killed_and_replaced(tmp_path: Path, pool: RayPool, whole: dict[str, bytes]) -> None:
    stopped: list[int] = []

    def stop() -> None:
        stopped.append(pids(pool)[0])
        os.kill(stopped[0], signal.SIGSTOP)

    sweep_while(tmp_path / "there", RemoteExecutor(pool, shards=9, heartbeat_s=4), stop)
    assert files(tmp_path / "there") == whole
    deadline = time.monotonic() + 20
    while psutil.pid_exists(stopped[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(stopped[0])


def test_a_driver_that_is_killed_goes_on_where_it_was(
    tmp_path: Path, cluster: Cluster, pool: RayPool, whole: dict[str, bytes]
) -> None:
    root = tmp_path / "there"
    program = f"import test_ray; test_ray.drive({cluster.address!r}, {str(root)!r})"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    for name in list(pool._actors):  # a CPU each
        pool.kill(name)
    driver = subprocess.Popen([sys.executable, "-c", program], env=environment)
    try:
        while lines(root) < 2 and driver.poll() is None:
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()
    kept = lines(root)
    assert 2 <= kept < SAMPLES
    made = settle(root, executor := RemoteExecutor(pool, shards=9))
    assert all(outcome.error is None for outcome in made)
    assert files(root) == whole
    assert executor._tokens <= 4 * (SAMPLES - kept), "what was finished was not made again"


class ReadOnce(TorchBackends):
    """Opens models whose files are gone once they are packed."""

    def pack(self, source: ModelSource) -> tuple[Checkpoint, Iterator[NDArray[np.uint8]]]:
        outline, weights = super().pack(source)
        read = list(weights)
        shutil.rmtree(source.out_dir)
        return outline, iter(read)


def test_weights_that_are_shipped_are_read_by_the_driver_alone(tmp_path: Path, cluster: Cluster, pool: RayPool) -> None:
    source = ModelSource(name="resume", out_dir=str(save_checkpoint(tmp_path / "out", seed=1)))
    point = Point(model=source, start="a", sampling=Sampling(num_samples=4, max_new_tokens=3))
    settle(tmp_path, LocalExecutor(TorchBackends()), [Job(point, tmp_path / "here" / "seed")])
    for name in list(pool._actors):  # a CPU each
        pool.kill(name)
    shipping = RayPool(ReadOnce(), workers=1, ship_weights=True)
    try:
        (outcome,) = settle(tmp_path, RemoteExecutor(shipping), [Job(point, tmp_path / "there" / "seed")])
    finally:
        shipping.close()
    assert outcome.error is None
    assert files(tmp_path / "there") == files(tmp_path / "here"), "the fingerprint of what was shipped is in each point_id"


def drive(address: str, root: str) -> None:
    """The driver of the test above, in its own process."""
    ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    settle(Path(root), RemoteExecutor(RayPool(Tables(Table(before_row=partial(pause, 0.5))), workers=2), shards=9))
