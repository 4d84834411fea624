"""Makes ``hydra/launcher=fused`` and ``=fused_ray`` known: Hydra takes launchers from ``hydra_plugins`` alone.

Every Hydra start imports this, so it imports neither torch nor Ray.
"""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore

from gptsweep.multirun import elsewhere, launcher


@dataclass
class FusedLauncherConf:
    """``hydra.launcher`` with ``hydra/launcher=fused``."""

    _target_: str = "hydra_plugins.gptsweep_launcher.FusedLauncher"


@dataclass
class RayFusedLauncherConf:
    """``hydra.launcher`` with ``hydra/launcher=fused_ray``."""

    _target_: str = "hydra_plugins.gptsweep_launcher.RayFusedLauncher"
    shards: int | None = None
    workers: int | None = None
    address: str | None = None
    resources: dict[str, float] | None = None
    runtime_env: dict[str, Any] | None = None
    heartbeat_s: float = elsewhere.HEARTBEAT_SECONDS
    strict: bool = False


class FusedLauncher(launcher.FusedLauncher):
    """`gptsweep.multirun.launcher.FusedLauncher` under the name that Hydra wants."""


class RayFusedLauncher(elsewhere.RayFusedLauncher):
    """`gptsweep.multirun.elsewhere.RayFusedLauncher` under the name that Hydra wants."""


ConfigStore.instance().store(group="hydra/launcher", name="fused", node=FusedLauncherConf, provider="gptsweep")
ConfigStore.instance().store(group="hydra/launcher", name="fused_ray", node=RayFusedLauncherConf, provider="gptsweep")
