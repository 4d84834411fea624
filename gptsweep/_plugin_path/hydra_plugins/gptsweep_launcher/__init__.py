"""Makes ``hydra/launcher=fused`` known: Hydra takes launchers from ``hydra_plugins`` alone. Every Hydra start imports this."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore

from gptsweep.multirun import launcher


@dataclass
class FusedLauncherConf:
    """``hydra.launcher`` with ``hydra/launcher=fused``."""

    _target_: str = "hydra_plugins.gptsweep_launcher.FusedLauncher"


class FusedLauncher(launcher.FusedLauncher):
    """`gptsweep.multirun.launcher.FusedLauncher` under the name that Hydra wants."""


ConfigStore.instance().store(group="hydra/launcher", name="fused", node=FusedLauncherConf, provider="gptsweep")
