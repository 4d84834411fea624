"""Register ``hydra/sweeper=points`` and ``=random``: Hydra looks for sweepers only in ``hydra_plugins``.

Every start of Hydra imports this module, so it does not import torch.
"""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore

from gptsweep.multirun import sweepers


@dataclass
class PointsSweeperConf:
    """The config ``hydra.sweeper`` of ``hydra/sweeper=points``."""

    _target_: str = "hydra_plugins.gptsweep_sweepers.PointsSweeper"
    file: str | None = None
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


@dataclass
class RandomSweeperConf:
    """The config ``hydra.sweeper`` of ``hydra/sweeper=random``."""

    _target_: str = "hydra_plugins.gptsweep_sweepers.RandomSweeper"
    n: int = 64
    seed: int = 0
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


class PointsSweeper(sweepers.DesignSweeper):
    """`gptsweep.multirun.sweepers.DesignSweeper` over the points of a file."""


class RandomSweeper(sweepers.DesignSweeper):
    """`gptsweep.multirun.sweepers.DesignSweeper` over randomly drawn points."""


ConfigStore.instance().store(group="hydra/sweeper", name="points", node=PointsSweeperConf, provider="gptsweep")
ConfigStore.instance().store(group="hydra/sweeper", name="random", node=RandomSweeperConf, provider="gptsweep")
