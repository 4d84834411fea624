"""An executor of one's own: a Hydra plugin of one file. ``hydra/launcher=in_reverse`` runs the last rows' samples first."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore

from gptsweep.multirun.launcher import FusedLauncher
from gptsweep.records import DeviceSettings, ModelSource, Sample
from gptsweep.run.executors import OnStep
from gptsweep.run.rows import OpenModel, Plan, SampleKey

PLANS: list[Plan] = []
"""What was run here, for the test."""


class InReverse:
    """Yields what a process elsewhere would send back: pickled, and in another order."""

    def __init__(self) -> None:
        from gptsweep.engine.torch_backend import TorchBackends
        from gptsweep.run.executors.local import LocalExecutor

        self.there = LocalExecutor(TorchBackends())

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        return self.there.resolve(settings)

    def open(self, source: ModelSource, settings: DeviceSettings) -> OpenModel:
        return self.there.open(source, settings)

    def run(self, model: OpenModel, plan: Plan, on_step: OnStep | None = None) -> Iterator[tuple[SampleKey, Sample]]:
        PLANS.append(plan)
        samples = list(self.there.run(model, pickle.loads(pickle.dumps(plan)), on_step))
        yield from pickle.loads(pickle.dumps(samples[::-1]))


class InReverseLauncher(FusedLauncher):
    """Runs the rows of a sweep by `InReverse`."""

    def executor(self) -> InReverse:
        return InReverse()


@dataclass
class InReverseConf:
    _target_: str = "hydra_plugins.in_reverse.InReverseLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="in_reverse", node=InReverseConf, provider="in_reverse")
