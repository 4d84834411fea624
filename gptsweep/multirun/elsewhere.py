"""``hydra/launcher=fused_ray``: the fused launcher whose rows run in other processes, on this machine or on many.

Ray is imported only where it is chosen, and when a sweep's config is known to be right.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ..errors import ConfigError
from .launcher import FusedLauncher
from .sweep_files import end_with_sweep

if TYPE_CHECKING:
    from ..run.executors import Executor

HEARTBEAT_SECONDS = 300.0


def require_launcher(config: DictConfig) -> None:
    """See, without importing it, that what the chosen launcher runs on is installed, and that its settings are in range.

    Raises:
        ConfigError: it is not, or one is not.
    """
    settings = config.hydra.launcher
    needed = {"RayFusedLauncher": ("fused_ray", "ray", "ray")}.get(settings._target_.rpartition(".")[2])
    if needed is None:
        return
    choice, module, extra = needed
    if importlib.util.find_spec(module) is None:
        raise ConfigError("hydra/launcher", choice, f"needs {module}: pip install 'gptsweep[{extra}]'")
    for name in ("shards", "workers"):
        value = settings.get(name)
        if value is not None and value < 1:
            raise ConfigError(f"hydra.launcher.{name}", value, "must be at least 1, or null")
    if not 0 < settings.heartbeat_s < math.inf:
        raise ConfigError("hydra.launcher.heartbeat_s", settings.heartbeat_s, "must be a number of seconds above 0")
    for name, amount in (settings.get("resources") or {}).items():
        if not 0 <= amount < math.inf:
            raise ConfigError(f"hydra.launcher.resources.{name}", amount, "must be 0 or more")


class RayFusedLauncher(FusedLauncher):
    """Runs the rows of a sweep in Ray actors.

    Args:
        shards: how many shards a batch of points is cut into; None: several a worker.
        workers: how many actors; None: as many as the cluster has room for.
        address: of a cluster to join, as of `ray.init`; None starts Ray on this machine.
        resources: what an actor takes, by Ray's names; None: a CPU, and a GPU where the cluster has any.
        runtime_env: as of `ray.init`.
        heartbeat_s: a worker that gives no sign of life for so many seconds is ended.
        strict: whether workers, and unfinished points, of another kind of machine are refused.
    """

    def __init__(
        self,
        *,
        shards: int | None = None,
        workers: int | None = None,
        address: str | None = None,
        resources: Mapping[str, float] | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        heartbeat_s: float = HEARTBEAT_SECONDS,
        strict: bool = False,
    ) -> None:
        super().__init__(strict=strict)
        self._shards, self._heartbeat_s = shards, heartbeat_s
        self._pool = {"workers": workers, "address": address, "resources": plain(resources), "runtime_env": plain(runtime_env)}

    def executor(self) -> Executor:
        """As `FusedLauncher.executor`."""
        # Late: torch and Ray.
        from ..engine.torch_backend import TorchBackends
        from ..run.executors.ray import RayPool
        from ..run.executors.remote import RemoteExecutor

        pool = RayPool(TorchBackends(), **self._pool)
        end_with_sweep(pool.close)
        return RemoteExecutor(pool, shards=self._shards, heartbeat_s=self._heartbeat_s, strict=self._strict)


def plain(settings: Any) -> Any:
    """Settings as Python's own containers."""
    return OmegaConf.to_container(settings, resolve=True) if OmegaConf.is_config(settings) else settings
