"""``hydra/launcher=fused_ray`` and ``fused_slurm``: fused launchers that run rows in other processes, here or elsewhere.

Ray and submitit are imported only if they are chosen, and only after the sweep's config has been checked.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ..errors import ConfigError
from .launcher import FusedLauncher
from .sweep_files import end_with_sweep

if TYPE_CHECKING:
    from ..engine.backend import Backends
    from ..run.executors import Executor

HEARTBEAT_SECONDS = 300.0
_MAPPINGS = {"resources": "{CPU:4}", "runtime_env": "{pip:[gptsweep]}", "additional_parameters": "{constraint:epyc}"}
"""The settings that must be mappings or null, with an example of each."""
_NEEDED = {"RayFusedLauncher": ("fused_ray", "ray", "ray"), "SlurmFusedLauncher": ("fused_slurm", "submitit", "slurm")}
"""The name, the required module and the pip extra of each launcher, by its class."""
_CLUSTERS = ("slurm", "local")
_SIGNAL_SECONDS = 90
"""How long before its time limit a job is signalled, if the limit is not short. SLURM may do it a minute earlier still."""
_JOBS = 8
"""The number of jobs on a cluster if the config does not set it."""


def require_launcher(config: DictConfig) -> None:
    """Check that the module of the chosen launcher is installed, without importing it, and that its settings are in range.

    Raises:
        ConfigError: the module is missing, or a setting is out of range.
    """
    settings = config.hydra.launcher
    needed = _NEEDED.get(settings._target_.rpartition(".")[2])
    if needed is None:
        return
    choice, module, extra = needed
    if importlib.util.find_spec(module) is None:
        raise ConfigError("hydra/launcher", choice, f"needs {module}: pip install 'gptsweep[{extra}]'")
    for name, or_null in {"shards": ", or null", "workers": ", or null", "timeout_min": "", "cpus_per_task": ""}.items():
        value = settings.get(name)
        if value is not None and value < 1:
            raise ConfigError(f"hydra.launcher.{name}", value, f"must be at least 1{or_null}")
    if (gpus := settings.get("gpus_per_node")) is not None and gpus < 0:
        raise ConfigError("hydra.launcher.gpus_per_node", gpus, "must be 0 or more, or null")
    if (memory := settings.get("mem_gb")) is not None and not 0 < memory < math.inf:
        raise ConfigError("hydra.launcher.mem_gb", memory, "must be a number above 0, or null")
    if (cluster := settings.get("cluster")) is not None and cluster not in _CLUSTERS:
        raise ConfigError("hydra.launcher.cluster", cluster, f"must be {' or '.join(_CLUSTERS)}, or null for slurm")
    if not 0 < settings.heartbeat_s < math.inf:
        raise ConfigError("hydra.launcher.heartbeat_s", settings.heartbeat_s, "must be a number of seconds above 0")
    for name, example in _MAPPINGS.items():
        value = settings.get(name)
        if value is not None and not OmegaConf.is_dict(value):
            raise ConfigError(f"hydra.launcher.{name}", value, f"must be a mapping, such as {example}, or null")
    for name, amount in (settings.get("resources") or {}).items():
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0 <= amount < math.inf:
            raise ConfigError(f"hydra.launcher.resources.{name}", amount, "must be 0 or more")


class RayFusedLauncher(FusedLauncher):
    """Runs the rows of a sweep in Ray actors.

    Args:
        shards: how many shards to cut a batch of points into; None: several per worker.
        workers: how many actors to run; None: as many as the cluster has room for.
        address: the cluster to join, see `ray.init`; None: start Ray on this machine.
        resources: what an actor reserves, by Ray's names; None: one CPU, and one GPU if the cluster has any.
        runtime_env: see `ray.init`.
        ship_weights: whether this process reads the model and sends it to the actors through Ray's object store.
        heartbeat_s: a worker that is silent for this many seconds is killed.
        strict: whether to refuse workers on another kind of machine, and unfinished points from one.
    """

    def __init__(
        self,
        *,
        shards: int | None = None,
        workers: int | None = None,
        address: str | None = None,
        resources: Mapping[str, float] | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        ship_weights: bool = False,
        heartbeat_s: float = HEARTBEAT_SECONDS,
        strict: bool = False,
    ) -> None:
        super().__init__(strict=strict)
        self._shards, self._heartbeat_s = shards, heartbeat_s
        self._pool: dict[str, Any] = {
            "workers": workers,
            "address": address,
            "resources": plain(resources),
            "runtime_env": plain(runtime_env),
            "ship_weights": ship_weights,
        }

    def executor(self) -> Executor:
        """Override `FusedLauncher.executor`."""
        # Imported late: Ray, and torch if this process reads a model.
        from ..run.executors.ray import RayPool
        from ..run.executors.remote import RemoteExecutor
        from ..run.executors.worker import TorchInWorkers

        backends: Backends = TorchInWorkers()
        if self._pool["ship_weights"]:
            from ..engine.torch_backend import TorchBackends

            backends = TorchBackends()
        pool = RayPool(backends, **self._pool)
        end_with_sweep(pool.close)
        return RemoteExecutor(pool, shards=self._shards, heartbeat_s=self._heartbeat_s, strict=self._strict)


class SlurmFusedLauncher(FusedLauncher):
    """Runs the rows of a sweep in SLURM jobs, or in processes on this machine, through submitit.

    Args:
        shards: how many shards to cut a batch of points into; None: several per job.
        workers: how many jobs to run; None: as many as shards, or 8. On this machine, never more than its CPUs allow.
        cluster: ``slurm`` or ``local``; None: ``slurm``.
        partition: the partition of the cluster.
        timeout_min: time limit of a job in minutes. After it the job is requeued and resumes.
        cpus_per_task: how many CPUs a job reserves, and how many threads it computes with.
        gpus_per_node: how many GPUs a job reserves.
        mem_gb: how much memory a job reserves, in GB.
        setup: shell commands to run before a job's own.
        additional_parameters: further parameters of ``sbatch``, by name.
        heartbeat_s: see `RayFusedLauncher`.
        strict: see `RayFusedLauncher`.
    """

    def __init__(
        self,
        *,
        shards: int | None = None,
        workers: int | None = None,
        cluster: str | None = None,
        partition: str | None = None,
        timeout_min: int = 60,
        cpus_per_task: int = 1,
        gpus_per_node: int | None = None,
        mem_gb: float | None = None,
        setup: Sequence[str] | None = None,
        additional_parameters: Mapping[str, Any] | None = None,
        heartbeat_s: float = HEARTBEAT_SECONDS,
        strict: bool = False,
    ) -> None:
        super().__init__(strict=strict)
        self._shards, self._heartbeat_s, self._threads = shards, heartbeat_s, cpus_per_task
        self._cluster = cluster or _CLUSTERS[0]
        room = max(1, (os.cpu_count() or 1) // cpus_per_task) if self._cluster == "local" else shards or _JOBS
        self._workers = workers or min(shards or room, room)
        of_any = {
            "timeout_min": timeout_min,
            "cpus_per_task": cpus_per_task,
            "gpus_per_node": gpus_per_node,
            "mem_gb": mem_gb,
        }
        more = {"requeue": True, **(plain(additional_parameters) or {})}  # by SLURM itself, where a node is taken away
        delay = min(_SIGNAL_SECONDS, 20 * timeout_min)
        of_slurm = {"partition": partition, "signal_delay_s": delay, "additional_parameters": more}
        of_its_own = {"setup": plain(setup), **(of_slurm if self._cluster == "slurm" else {})}
        parameters = {**of_any, **{f"{self._cluster}_{name}": value for name, value in of_its_own.items()}}
        self._parameters = {name: value for name, value in parameters.items() if value is not None}

    def executor(self) -> Executor:
        """Override `FusedLauncher.executor`."""
        # Imported late: submitit.
        from ..run.executors.remote import RemoteExecutor
        from ..run.executors.slurm import SlurmPool
        from ..run.executors.worker import TorchInWorkers

        assert self.config is not None
        pool = SlurmPool(
            TorchInWorkers(),
            Path(str(self.config.hydra.sweep.dir)),
            workers=self._workers,
            cluster=self._cluster,
            threads=self._threads,
            heartbeat_s=self._heartbeat_s,
            parameters={"name": str(self.config.hydra.job.name), **self._parameters},
        )
        end_with_sweep(pool.close)
        return RemoteExecutor(pool, shards=self._shards, heartbeat_s=self._heartbeat_s, strict=self._strict)


def plain(settings: Any) -> Any:
    """Convert settings from OmegaConf to plain Python containers."""
    return OmegaConf.to_container(settings, resolve=True) if OmegaConf.is_config(settings) else settings
