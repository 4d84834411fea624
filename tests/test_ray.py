"""A real Ray on this machine, of several raylets: workers, raylets and the driver are killed while a sweep runs."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
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

import psutil
import pytest
import ray
from omegaconf import OmegaConf
from ray._private import services
from ray._private.node import Node
from ray.cluster_utils import Cluster
from sweeps import Run, samples_of, save_checkpoint
from table_sweeps import files, jobs, lines, settle
from tables import ShippedTables, Table, Tables, scripted
from test_remote import Threads

from gptsweep.engine import torch_backend
from gptsweep.engine.torch_backend import TorchBackends
from gptsweep.records import DeviceSettings
from gptsweep.run.executors.ray import RayPool, _request_report
from gptsweep.run.executors.remote import RemoteExecutor
from gptsweep.run.jobs import Outcome
from gptsweep.run.progress import Progress
from gptsweep.run.session import run_jobs
from gptsweep.store.unfinished import Unfinished

pytestmark = pytest.mark.xdist_group("ray")  # one process starts Ray

QUICK = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
SAMPLES = 18


AGENTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


@contextlib.contextmanager
def without_waiting_for_agents() -> Iterator[None]:
    """A raylet ends itself where its agents, which no test needs, do not start within 15 s: so it gets their ports before."""
    start = services.start_raylet

    def start_with_ports(*arguments: Any, **named: Any) -> Any:
        given = inspect.signature(start).bind(*arguments, **named).arguments
        with contextlib.ExitStack() as stack:
            for agent in AGENTS:
                free = stack.enter_context(socket.socket())
                free.bind(("", 0))
                name = f"{agent}_{given['node_id']}"
                (Path(given["session_dir"]) / name).write_text(str(free.getsockname()[1]))
        return start(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "start_raylet", start_with_ports)
        yield


def add_node(cluster: Cluster, cpus: int, **settings: Any) -> None:
    """Start a raylet; in the main thread, as Ray sets signal handlers."""
    with without_waiting_for_agents():
        cluster.add_node(num_cpus=cpus, object_store_memory=80 << 20, **settings)


def _command_of(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


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
    raylets = [process for process in psutil.Process().children(recursive=True) if "ray" in " ".join(_command_of(process))]
    _, alive = psutil.wait_procs(raylets, timeout=120)
    assert not [process.cmdline() for process in alive]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where directories say what happens to rows."""
    return tmp_path_factory.mktemp("script")


@pytest.fixture(scope="module")
def pool(cluster: Cluster, script: Path) -> Iterator[RayPool]:
    """Two actors, whose rows take a tenth of a second each."""
    made = RayPool(Tables(Table(before_row=partial(scripted, script, 0.1))), workers=2)
    yield made
    made.close()


def wait_for(what: Callable[[], object]) -> None:
    """Return when it is so.

    Raises:
        AssertionError: it is not within five minutes.
    """
    deadline = time.monotonic() + 300
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def sweeping(root: Path, executor: RemoteExecutor, script: Path) -> Iterator[None]:
    """Run the sweep of `jobs` in a thread; what is in the block happens meanwhile, when some of its samples are there."""
    held = script / "held"
    held.mkdir()
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.extend(settle(root, executor)), daemon=True)
    thread.start()
    try:
        wait_for(lambda: lines(root) >= 2)
        yield
    finally:
        held.rmdir()
    thread.join(600)
    assert [outcome.error for outcome in outcomes] == [None] * 3


def pids(pool: RayPool) -> list[int]:
    """The processes of the actors whose place is known."""
    return [actor.place[0].pid for actor in list(pool._actors.values()) if actor.place is not None]


def test_a_killed_worker_loses_nothing_and_the_others_stay_for_the_next_batch(
    tmp_path: Path, pool: RayPool, script: Path, whole: dict[str, bytes]
) -> None:
    executor = RemoteExecutor(pool, shards=9)
    with sweeping(tmp_path / "there", executor, script):
        before = pids(pool)
        os.kill(before[0], signal.SIGKILL)
    assert files(tmp_path / "there") == whole
    settle(tmp_path / "again", executor)
    assert files(tmp_path / "again") == whole
    assert set(before[1:]) <= set(pids(pool)), "whoever was not killed has the model open still"


def test_an_actor_takes_rows_while_its_report_waits(pool: RayPool, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = next(actor for actor in pool._actors.values() if actor.place is not None)
    monkeypatch.setattr("gptsweep.run.executors.ray._REPORT_SECONDS", 600)
    report, other = _request_report(actor.handle), actor.handle.resolve.remote(DeviceSettings())
    ready, _ = ray.wait([report, other], timeout=300)
    assert ready == [other]
    while not ray.wait([report], timeout=0.1)[0]:
        ray.get(actor.handle.stop.remote(1))


def test_a_worker_that_stands_still_is_killed_and_replaced(
    tmp_path: Path, pool: RayPool, script: Path, whole: dict[str, bytes]
) -> None:
    with sweeping(tmp_path / "there", RemoteExecutor(pool, shards=9, heartbeat_s=4), script):
        stopped = pids(pool)[0]
        os.kill(stopped, signal.SIGSTOP)
    assert files(tmp_path / "there") == whole
    wait_for(lambda: not psutil.pid_exists(stopped))


def test_a_worker_that_runs_out_of_memory_loses_nothing(
    tmp_path: Path, pool: RayPool, script: Path, whole: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    (script / "memory").mkdir()
    assert all(outcome.error is None for outcome in settle(tmp_path / "there", RemoteExecutor(pool, shards=9)))
    assert files(tmp_path / "there") == whole
    assert len(list((script / "memory").iterdir())) == 3
    assert "dropped its rows: MemoryError" in caplog.text
    assert " ended (" in caplog.text


def test_a_driver_that_is_killed_goes_on_where_it_was(
    tmp_path: Path, cluster: Cluster, pool: RayPool, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "there"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    driver = subprocess.Popen([sys.executable, "-m", "ray_driver", cluster.address, str(root)], env=environment)
    try:
        wait_for(lambda: lines(root) >= 2 or driver.poll() is not None)
    finally:
        driver.kill()
        driver.wait()
    kept = lines(root)
    assert 2 <= kept < SAMPLES
    rows: list[int] = []
    give = pool.give
    monkeypatch.setattr(pool, "give", lambda worker, work: rows.append(len(work.rows)) or give(worker, work))
    assert all(outcome.error is None for outcome in settle(root, RemoteExecutor(pool, shards=9)))
    assert files(root) == whole
    assert sum(rows) == SAMPLES - kept, "what was finished was not made again"


def test_weights_that_are_shipped_are_read_by_the_driver_alone(
    tmp_path: Path, cluster: Cluster, whole: dict[str, bytes]
) -> None:
    shipping = RayPool(ShippedTables(), workers=1, resources={"CPU": 0.0}, ship_weights=True)
    try:
        assert all(outcome.error is None for outcome in settle(tmp_path / "there", RemoteExecutor(shipping)))
    finally:
        shipping.close()
    assert files(tmp_path / "there") == whole


SWEEP = (
    "-m", "model=resume", "start=ab", "sampling.max_new_tokens=4", "sampling.num_samples=3", "quiet=true",
    "hydra/launcher=fused_ray", "hydra.launcher.workers=1",
)  # fmt: skip
TUNED = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "objective=logprob_mean")
TEMPERATURE = "sampling.temperature=interval(0.5,1.5)"


@pytest.mark.parametrize(
    "sweeper",
    [
        (*TUNED, TEMPERATURE),
        ("hydra/sweeper=random", "hydra.sweeper.n=3", "hydra.sweeper.max_batch_size=1", TEMPERATURE),
        ("hydra/sweeper=points", "hydra.sweeper.file=points.csv", "hydra.sweeper.max_batch_size=1"),
        ("seed=1,2,3", "hydra.sweeper.max_batch_size=1"),
    ],
    ids=["optuna", "random", "points", "basic"],
)
def test_a_worker_keeps_its_model_from_batch_to_batch(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweeper: tuple[str, ...]
) -> None:
    workers = Threads(lambda _: TorchBackends(), workers=1)
    real, opened = torch_backend.load_model, []
    monkeypatch.setattr(torch_backend, "load_model", lambda *which: opened.append(which) or real(*which))
    monkeypatch.setattr("gptsweep.run.executors.ray.RayPool", lambda *_, **__: workers)
    (tmp_path / "points.csv").write_text("seed\n1\n2\n3\n")
    save_checkpoint(tmp_path / "out", seed=1)
    if sweeper[0] == TUNED[0]:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    assert run(*SWEEP, *sweeper, "name=n").status == 0
    assert len(samples_of(tmp_path / "outputs/sweeps/n")) == 3
    assert len(workers.given) >= 3, "three batches"
    assert (len(opened), next(workers.numbers)) == (1, 2)


@pytest.mark.slow
def test_the_command_tunes_on_ray_by_one_override_and_its_actor_stays_from_batch_to_batch(
    run: Run, tmp_path: Path, pool: RayPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    pools: list[RayPool] = []
    opened: list[object] = []
    close, open_model = RayPool.close, RayPool.open
    monkeypatch.setattr(RayPool, "close", lambda own: pools.append(own) or close(own))
    monkeypatch.setattr(RayPool, "open", lambda own, *which: opened.append(which) or open_model(own, *which))
    save_checkpoint(tmp_path / "out", seed=1)
    sweep = (*SWEEP, *TUNED, "hydra.sweeper.sampler.seed=1", TEMPERATURE)
    assert run(*sweep, "name=there", "hydra.launcher.resources={CPU:0}").status == 0
    assert run(*(each for each in sweep if "launcher" not in each), "name=here").status == 0
    here, there = (tmp_path / "outputs/sweeps" / name for name in ("here", "there"))
    assert len(samples_of(here)) == 3
    assert samples_of(there) == samples_of(here)
    assert OmegaConf.load(there / "optimization_results.yaml") == OmegaConf.load(here / "optimization_results.yaml")
    assert (there / "report.html").exists()
    (only,) = pools
    assert (len(opened), next(only._numbers)) == (1, 2), "one model was opened, in one actor"


def test_a_worker_that_does_not_stop_is_ended_and_the_next_batch_does_not_wait_for_it(
    tmp_path: Path,
    pool: RayPool,
    script: Path,
    whole: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gptsweep.run.executors.remote._STOP_SECONDS", 0.2)
    executor = RemoteExecutor(pool, shards=2, heartbeat_s=30)
    (script / "held").mkdir()
    with Progress(quiet=True) as progress:
        outcomes = run_jobs(jobs(tmp_path / "there", num_samples=6), progress, executor, Unfinished(tmp_path / "there"))
        next(outcomes)
        wait_for((script / "waits").exists)
        outcomes.close()  # type: ignore[attr-defined]
    assert "did not stop within 0.2 s" in caplog.text
    (script / "held").rmdir()
    settle(tmp_path / "there", executor)
    assert files(tmp_path / "there") == whole
    assert "no sign of life" not in caplog.text


def test_raylets_that_are_killed_until_none_is_left_lose_nothing(
    tmp_path: Path, cluster: Cluster, pool: RayPool, script: Path, whole: dict[str, bytes]
) -> None:
    root = tmp_path / "there"
    first, second = list(cluster.worker_nodes)
    with sweeping(root, RemoteExecutor(pool, shards=9), script):
        before = lines(root)
        end_raylet(cluster, first)
        wait_for(lambda: lines(root) > before)
        end_raylet(cluster, second)
        wait_for(lambda: not pids(pool))
        assert lines(root) < SAMPLES
        add_node(cluster, 2)
    assert files(root) == whole


def end_raylet(cluster: Cluster, node: Node) -> None:
    """Kill a raylet, then whatever else belongs to its node."""
    os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)
