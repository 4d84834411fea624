"""Rows run in Ray actors: one a worker, which keeps its model open. Imported only where Ray is chosen."""

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

_LOOK_SECONDS = 5.0
"""So often the pool looks whether the cluster has grown or shrunk."""
_REPORT_SECONDS = 0.5
_STARTS = 3
_PATIENCE_SECONDS = 10.0
_LONGEST_WAIT_SECONDS = 60.0
"""Where workers cannot even start, at most so long until the next is tried."""


class RayWorker(Worker):
    """A worker that knows its node.

    Args:
        backends: opens models.
        directory: relative paths begin there, as they do for the driver, where the node has such a directory.
    """

    def __init__(self, backends: Backends, directory: str) -> None:
        with suppress(OSError):
            os.chdir(directory)
        super().__init__(backends)

    def node(self) -> tuple[Place, str]:
        """Where the worker is, and the id of its Ray node."""
        return Place.here(), ray.get_runtime_context().get_node_id()

    def open_shipped(self, source: ModelSource, settings: DeviceSettings, outline: object, *weights: object) -> None:
        """As `open`, of a model whose weights come from the object store, which has them once a node."""
        backends = self._executor.backends
        assert isinstance(backends, Ships)
        backends.receive(source, outline, weights)
        self.open(source, settings)


@dataclass(slots=True)
class _Actor:
    """An actor, the report that it was asked for, and where it is, once that is known."""

    handle: Any
    asked: Any
    place: tuple[Place, str] | None = None


class RayPool:
    """Keeps actors running: as many as there is room for, or as many as wanted.

    A cluster that was started here ends with `close`; one that was joined loses the actors.

    Args:
        backends: opens models, in the actors.
        workers: how many actors; None: as many as the cluster has room for.
        address: as of `ray.init`; None starts Ray on this machine.
        resources: what an actor takes: ``CPU``, ``GPU``, and custom ones; None: a CPU, and a GPU where the cluster has any.
        runtime_env: as of `ray.init`.
        ship_weights: whether this process reads a model, and actors have it from the object store.
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
        self._refused = self._unborn = 0
        self._not_before = 0.0
        self._room, self._looked = 0, -_LOOK_SECONDS
        self._kept: list[tuple[str, Report | Gone]] = []
        self._model: tuple[ModelSource, DeviceSettings] | None = None
        needs = ", ".join(f"{name} {amount:g}" for name, amount in self._resources.items())
        self.several = True
        self.may_grow = workers is None and address is not None
        self.waiting_for = f"one starts when the cluster has {needs} free"

    def wanted(self) -> int:
        """As `Pool.wanted`."""
        if self._workers is not None:
            return self._workers - self._refused
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            self._room = sum(self._fits(node["Resources"]) for node in ray.nodes() if node["Alive"])
        return max(self._room - self._refused, 0 if self._refused else 1)

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        """As `Pool.resolve`."""
        while settings not in self._resolved:
            self._fill()
            asked = [actor.handle.resolve.remote(settings) for actor in self._actors.values()]
            ready, _ = ray.wait(asked, num_returns=1, timeout=_PATIENCE_SECONDS)
            if not ready and not any(actor.place for actor in self._actors.values()):
                log.info("waiting for a worker: %s", self.waiting_for)
            for ref in ready:
                try:
                    self._resolved[settings] = ray.get(ref)
                except RayTaskError as error:
                    raise error.cause from None
                except RayError:
                    self._kept += self.news(0)
        return self._resolved[settings]

    def open(self, source: ModelSource, settings: DeviceSettings) -> None:
        """As `Pool.open`."""
        if self._ships is not None and self._shipped[0] != source:
            assert isinstance(self._ships, Ships)
            self._shipped = None, []  # before the next: two need not fit
            outline, weights = self._ships.pack(source)
            self._shipped = source, [ray.put(outline), *map(ray.put, weights)]
        self._model = source, settings
        for actor in self._actors.values():
            self._open(actor.handle)
        self._fill()

    def give(self, worker: str, work: Work) -> None:
        """As `Pool.give`."""
        if worker in self._actors:
            self._actors[worker].handle.give.remote(work)

    def news(self, seconds: float) -> list[tuple[str, Report | Gone]]:
        """As `Pool.news`."""
        self._fill()
        found, self._kept = self._kept, []
        seconds = 0.0 if found else seconds
        asked = {actor.asked: name for name, actor in self._actors.items()}
        if not asked:
            time.sleep(seconds)
            return found
        ready, _ = ray.wait(list(asked), num_returns=1, timeout=seconds)
        if ready:  # and whatever else is there
            ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
        for ref in ready:
            name = asked[ref]
            actor = self._actors.pop(name)
            try:
                said = ray.get(ref)
            except Exception as error:  # Ray's, or what an actor's constructor raised
                self._end(actor)
                if actor.place is None:
                    self._unborn += 1
                    self._not_before = time.monotonic() + min(2.0**self._unborn, _LONGEST_WAIT_SECONDS)
                found.append((name, Gone(_brief(error))))
                continue
            if isinstance(said, Report):
                found.append((name, said))
            else:
                actor.place, self._unborn = said, 0
                name = f"{name} ({said[0]})"
            actor.asked = actor.handle.report.remote(_REPORT_SECONDS)
            self._actors[name] = actor
        return found

    def stop(self, seconds: float) -> list[tuple[str, Report | Gone]]:
        """As `Pool.stop`."""
        stopping = {name: actor.handle.stop.remote(seconds) for name, actor in self._actors.items() if actor.place is not None}
        found: list[tuple[str, Report | Gone]] = []
        if stopping:
            ray.wait(list(stopping.values()), num_returns=len(stopping), timeout=seconds + 1)
        for name, asked in stopping.items():
            actor = self._actors[name]
            why = f"it did not stop within {seconds:g} s"
            try:
                last = ray.get(asked, timeout=0)
                before = ray.get(actor.asked, timeout=seconds)
                actor.asked = actor.handle.report.remote(_REPORT_SECONDS)
                found += [(name, report) for report in (before, last) if isinstance(report, Report)]
                if not last.busy:
                    continue
            except GetTimeoutError:
                pass
            except Exception as error:  # of an actor that has ended
                why = _brief(error)
            self.kill(name)
            found.append((name, Gone(why, counts=False)))
        return found

    def kill(self, worker: str) -> None:
        """As `Pool.kill`."""
        if (actor := self._actors.pop(worker, None)) is not None:
            self._end(actor)

    def refuse(self, worker: str) -> None:
        """As `Pool.refuse`."""
        self._refused += worker in self._actors
        self.kill(worker)

    def close(self) -> None:
        """As `Pool.close`."""
        for name in list(self._actors):
            self.kill(name)
        if self._started:
            ray.shutdown()

    def _fits(self, node: Mapping[str, float]) -> int:
        """How many actors a node has room for, nothing else running there."""
        takes = {name: amount for name, amount in self._resources.items() if amount > 0}
        return min((int(node.get(name, 0) // amount) for name, amount in takes.items()), default=1)

    def _fill(self) -> None:
        """Start actors where some are missing."""
        worker: Any = ray.remote(RayWorker)
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
        if actor.place is not None:  # Ray asks a process to end itself, which one that stands still does not
            place, node = actor.place
            here = NodeAffinitySchedulingStrategy(node, soft=False)
            _kill.options(num_cpus=0, scheduling_strategy=here).remote(place.pid, place.started)


def _brief(error: Exception) -> str:
    """The line of an error that says most: Ray's have pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return one_line(lines[-1 if "creation task" in lines[0] else 0])[:300]


@ray.remote
def _kill(pid: int, started: float) -> None:
    with suppress(psutil.Error, OSError):
        if psutil.Process(pid).create_time() == started:
            os.kill(pid, signal.SIGKILL)


def _init(address: str | None, runtime_env: Mapping[str, Any] | None) -> None:
    """`ray.init`, quiet, with the signal handlers left as they are: a run ends between two steps.

    Raises:
        ConfigError: there is no cluster at the address, or Ray does not start here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    here: dict[str, Any] = {"include_dashboard": False} if address is None else {}
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
        except Exception as error:  # of many kinds; on a busy machine Ray gives up on itself after 30 s
            ray.shutdown()
            if not left:
                what = "no cluster answers there" if address is not None else "Ray does not start here"
                raise ConfigError("hydra.launcher.address", address, f"{what}: {_brief(error)}") from error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
