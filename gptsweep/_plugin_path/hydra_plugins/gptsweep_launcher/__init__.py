"""Register ``hydra/launcher=fused``, ``fused_ray`` and ``fused_slurm``: Hydra looks for launchers only in ``hydra_plugins``.

Every start of Hydra imports this module, so it imports neither torch nor Ray nor submitit.
"""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore

from gptsweep.multirun import elsewhere, launcher


@dataclass
class FusedLauncherConf:
    """The config ``hydra.launcher`` of ``hydra/launcher=fused``."""

    _target_: str = "hydra_plugins.gptsweep_launcher.FusedLauncher"


@dataclass
class RayFusedLauncherConf:
    """The config ``hydra.launcher`` of ``hydra/launcher=fused_ray``."""

    _target_: str = "hydra_plugins.gptsweep_launcher.RayFusedLauncher"
    shards: int | None = None
    workers: int | None = None
    address: str | None = None
    resources: Any = None  # a mapping; typed Any, as OmegaConf lets no command line fill an optional dict that is None
    runtime_env: Any = None
    ship_weights: bool = False
    heartbeat_s: float = elsewhere.HEARTBEAT_SECONDS
    strict: bool = False


@dataclass
class SlurmFusedLauncherConf:
    """The config ``hydra.launcher`` of ``hydra/launcher=fused_slurm``."""

    _target_: str = "hydra_plugins.gptsweep_launcher.SlurmFusedLauncher"
    shards: int | None = None
    workers: int | None = None
    cluster: str | None = None
    partition: str | None = None
    timeout_min: int = 60
    cpus_per_task: int = 1
    gpus_per_node: int | None = None
    mem_gb: float | None = None
    setup: list[str] | None = None
    additional_parameters: Any = None
    heartbeat_s: float = elsewhere.HEARTBEAT_SECONDS
    strict: bool = False


class FusedLauncher(launcher.FusedLauncher):
    """`gptsweep.multirun.launcher.FusedLauncher` under the name that Hydra requires."""


class RayFusedLauncher(elsewhere.RayFusedLauncher):
    """`gptsweep.multirun.elsewhere.RayFusedLauncher` under the name that Hydra requires."""


class SlurmFusedLauncher(elsewhere.SlurmFusedLauncher):
    """`gptsweep.multirun.elsewhere.SlurmFusedLauncher` under the name that Hydra requires."""


ConfigStore.instance().store(group="hydra/launcher", name="fused", node=FusedLauncherConf, provider="gptsweep")
ConfigStore.instance().store(group="hydra/launcher", name="fused_ray", node=RayFusedLauncherConf, provider="gptsweep")
ConfigStore.instance().store(group="hydra/launcher", name="fused_slurm", node=SlurmFusedLauncherConf, provider="gptsweep")
