"""Run rows in Ray actors. Each actor is a worker that keeps its model open. Imported only if Ray is chosen."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...display import get_logger, one_line
from ...engine.backend import Backends, Ships
from ...errors import ConfigError
from ...records import DeviceSettings, ModelSource
from .remote import Gone
from .shards import Work
from .worker import Place, Report, Worker

log = get_logger(__name__)

_CHECK_SECONDS = 5.0
"""How often the pool checks the size of the cluster."""
_REPORT_SECONDS = 0.5
_REPORTS = "reports"
"""Reports have a thread of an actor of their own, so that rows given meanwhile do not wait; other calls keep their order."""
_STARTS = 3
_LOG_WAITING_SECONDS = 10.0
_LONGEST_WAIT_SECONDS = 60.0
"""The longest wait before another attempt if workers fail to start."""


class RayWorker(Worker):
    """A worker in a Ray actor.

    Args:
        backends: loads models.
        directory: the driver's working directory. If the node has it, the actor changes to it, so relative paths mean the same.
    """

    def __init__(self, backends: Backends, directory: str) -> None:
        with suppress(OSError):
            os.chdir(directory)
        super().__init__(backends)

    def node(self) -> tuple[Place, str]:
        """Return the worker's process and the id of its Ray node."""
        return Place.here(), ray.get_runtime_context().get_node_id()

    def open_shipped(self, source: ModelSource, settings: DeviceSettings, outline: object, *weights: object) -> None:
        """Open a model as `open` does, with weights from Ray's object store, which holds one copy per node."""
        backends = self._executor.backends
        assert isinstance(backends, Ships)
        backends.receive(source, outline, weights)
        self.open(source, settings)


@dataclass(slots=True)
class _Actor:
    """An actor, the reference to its next message, and its process and node once they are known."""

    handle: Any
    pending: Any
    place: tuple[Place, str] | None = None


class RayPool:
    """Keeps a number of actors running. Implements `Pool`.

    `close` ends the actors, and also the cluster if it was started here rather than joined.

    Args:
        backends: loads models in the actors.
        workers: how many actors to run; None: as many as the cluster has room for.
        address: see `ray.init`; None: start Ray on this machine.
        resources: what an actor reserves: ``CPU``, ``GPU`` and custom resources; None: one CPU, and one GPU if the cluster has
            any.
        runtime_env: see `ray.init`.
        ship_weights: whether this process reads the model and sends it to the actors through the object store.

    Raises:
        ConfigError: there is no cluster at the address, or Ray does not start.
    """

    def __init__(
        self,
        backends: Backends,
        *,
        workers: int | None = None,
        address: str | None = None,
        resources: Mapping[str, float] | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        ship_weights: bool = False,
    ) -> None:
        self._started = not ray.is_initialized()
        if self._started:
            _init(address, runtime_env)
        self._backends = ray.put(backends)
        self._ships = backends if ship_weights else None
        self._shipped: tuple[ModelSource | None, list[Any]] = None, []
        self._workers = workers
        have = ray.cluster_resources()
        self._resources = dict(resources or ({"CPU": 1.0, "GPU": 1.0} if have.get("GPU") else {"CPU": 1.0}))
        self._actors: dict[str, _Actor] = {}
        self._resolved: dict[DeviceSettings, tuple[str, str]] = {}
        self._numbers = itertools.count(1)
        self._refused = self._failed_starts = 0
        self._not_before = 0.0
        self._room, self._checked_at = 0, -_CHECK_SECONDS
        self._buffered: list[tuple[str, Report | Gone]] = []
        self._model: tuple[ModelSource, DeviceSettings] | None = None
        needs = ", ".join(f"{name} {amount:g}" for name, amount in self._resources.items())
        self.several = True
        self.may_grow = workers is None and address is not None
        self.waiting_for = f"one starts when the cluster has {needs} free"

    def wanted(self) -> int:
        """Implement `Pool.wanted`."""
        if self._workers is not None:
            return self._workers - self._refused
        if time.monotonic() - self._checked_at >= _CHECK_SECONDS:
            self._checked_at = time.monotonic()
            self._room = sum(self._fits(node["Resources"]) for node in ray.nodes() if node["Alive"])
        return max(self._room - self._refused, 0 if self._refused else 1)

    def pending(self) -> str:
        """Implement `Pool.pending`."""
        return ""

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        """Implement `Pool.resolve`."""
        while settings not in self._resolved:
            self._fill()
            answers = [actor.handle.resolve.remote(settings) for actor in self._actors.values()]
            ready, _ = ray.wait(answers, num_returns=1, timeout=_LOG_WAITING_SECONDS)
            if not ready and not any(actor.place for actor in self._actors.values()):
                log.info("waiting for a worker: %s", self.waiting_for)
            for ref in ready:
                try:
                    self._resolved[settings] = ray.get(ref)
                except RayTaskError as error:
                    raise error.cause from None
                except RayError:
                    self._buffered += self.poll(0)
        return self._resolved[settings]

    def open(self, source: ModelSource, settings: DeviceSettings) -> None:
        """Implement `Pool.open`."""
        if self._ships is not None and self._shipped[0] != source:
            assert isinstance(self._ships, Ships)
            self._shipped = None, []  # free it first: the object store may not hold two models
            outline, weights = self._ships.pack(source)
            self._shipped = source, [ray.put(outline), *map(ray.put, weights)]
        self._model = source, settings
        for actor in self._actors.values():
            self._open(actor.handle)
        self._fill()

    def give(self, worker: str, work: Work) -> None:
        """Implement `Pool.give`."""
        if worker in self._actors:
            self._actors[worker].handle.give.remote(work)

    def poll(self, seconds: float) -> list[tuple[str, Report | Gone]]:
        """Implement `Pool.poll`."""
        self._fill()
        found, self._buffered = self._buffered, []
        seconds = 0.0 if found else seconds
        pending = {actor.pending: name for name, actor in self._actors.items()}
        if not pending:
            time.sleep(seconds)
            return found
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=seconds)
        if ready:  # collect all others that are ready, too
            ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0)
        for ref in ready:
            name = pending[ref]
            actor = self._actors.pop(name)
            try:
                message = ray.get(ref)
            except Exception as error:  # an error of Ray's, or one that the actor's constructor raised
                self._end(actor)
                if actor.place is None:
                    self._failed_starts += 1
                    self._not_before = time.monotonic() + min(2.0**self._failed_starts, _LONGEST_WAIT_SECONDS)
                found.append((name, Gone(_brief(error))))
                continue
            if isinstance(message, Report):
                found.append((name, message))
            else:
                actor.place, self._failed_starts = message, 0
                name = f"{name} ({message[0]})"
            actor.pending = _request_report(actor.handle)
            self._actors[name] = actor
        return found

    def stop(self, seconds: float) -> list[tuple[str, Report | Gone]]:
        """Implement `Pool.stop`."""
        stopping = {name: actor.handle.stop.remote(seconds) for name, actor in self._actors.items() if actor.place is not None}
        found: list[tuple[str, Report | Gone]] = []
        if stopping:
            ray.wait(list(stopping.values()), num_returns=len(stopping), timeout=seconds + 1)
        for name, ref in stopping.items():
            actor = self._actors[name]
            why = f"it did not stop within {seconds:g} s"
            try:
                last = ray.get(ref, timeout=0)
                before = ray.get(actor.pending, timeout=seconds)
                actor.pending = _request_report(actor.handle)
                reports = [report for report in (before, last) if isinstance(report, Report)]
                found += [(name, report) for report in sorted(reports, key=lambda report: report.tokens)]
                if not last.busy:
                    continue
            except GetTimeoutError:
                pass
            except Exception as error:  # the actor has ended
                why = _brief(error)
            self.kill(name)
            found.append((name, Gone(why, counts=False)))
        return found

    def kill(self, worker: str) -> None:
        """Implement `Pool.kill`."""
        if (actor := self._actors.pop(worker, None)) is not None:
            self._end(actor)

    def refuse(self, worker: str) -> None:
        """Implement `Pool.refuse`."""
        self._refused += worker in self._actors
        self.kill(worker)

    def close(self) -> None:
        """Implement `Pool.close`."""
        for name in list(self._actors):
            self.kill(name)
        if self._started:
            ray.shutdown()

    def _fits(self, node: Mapping[str, float]) -> int:
        """Return how many actors fit on a node on which nothing else runs."""
        takes = {name: amount for name, amount in self._resources.items() if amount > 0}
        return min((int(node.get(name, 0) // amount) for name, amount in takes.items()), default=1)

    def _fill(self) -> None:
        """Start the actors that are missing."""
        remote: Any = ray.remote  # its types lack the groups
        worker = remote(concurrency_groups={_REPORTS: 1})(RayWorker)
        custom = {name: amount for name, amount in self._resources.items() if name not in ("CPU", "GPU")}
        while len(self._actors) < self.wanted() and time.monotonic() >= self._not_before:
            handle = worker.options(
                num_cpus=self._resources.get("CPU", 0),
                num_gpus=self._resources.get("GPU", 0),
                resources=custom,
                max_restarts=0,
                max_task_retries=0,
            ).remote(self._backends, os.getcwd())
            if self._model is not None:
                self._open(handle)
            self._actors[f"{next(self._numbers)}"] = _Actor(handle, handle.node.remote())

    def _open(self, handle: Any) -> None:
        assert self._model is not None
        source, shipped = self._shipped
        (handle.open if source is None else handle.open_shipped).remote(*self._model, *shipped)

    def _end(self, actor: _Actor) -> None:
        with suppress(Exception):
            ray.kill(actor.handle)
        if actor.place is not None:  # Ray asks the process to end itself, which does not work if it hangs
            place, node = actor.place
            here = NodeAffinitySchedulingStrategy(node, soft=False)
            _kill.options(num_cpus=0, scheduling_strategy=here).remote(place.pid, place.started)


def _request_report(handle: Any) -> Any:
    """Ask an actor for a report."""
    return handle.report.options(concurrency_group=_REPORTS).remote(_REPORT_SECONDS)


def _brief(error: Exception) -> str:
    """Return the most informative line of an error, as Ray's errors are pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return one_line(lines[-1 if "creation task" in lines[0] else 0])[:300]


@ray.remote
def _kill(pid: int, started: float) -> None:
    with suppress(psutil.Error, OSError):
        if psutil.Process(pid).create_time() == started:
            os.kill(pid, signal.SIGKILL)


def _init(address: str | None, runtime_env: Mapping[str, Any] | None) -> None:
    """Call `ray.init` quietly, and restore the signal handlers, so that an interrupt still ends a run between two steps.

    Raises:
        ConfigError: there is no cluster at the address, or Ray does not start here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # Its actors take new processes, so those that Ray keeps ready, one a CPU, would cost a start of Python each for nothing.
    idle = {"prestart_worker_first_driver": False, "enable_worker_prestart": False}
    here: dict[str, Any] = {"include_dashboard": False, "_system_config": idle} if address is None else {}
    for left in reversed(range(_STARTS if address is None else 1)):
        try:
            ray.init(
                address="local" if address is None else address,
                runtime_env=None if runtime_env is None else dict(runtime_env),
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                **here,
            )
            return
        except Exception as error:  # of many kinds; on a busy machine Ray's start can time out after 30 s
            ray.shutdown()
            if not left:
                what = "no cluster answers there" if address is not None else "Ray does not start here"
                raise ConfigError("hydra.launcher.address", address, f"{what}: {_brief(error)}") from error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
