"""Simulated scores of sweeps with a known truth: families of settings that are equal, or differ by a known effect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gptsweep.analysis.budgets import Comparison, Scores, compare_families


@dataclass(frozen=True, kw_only=True)
class Planted:
    """The parameters of a simulation. Effects are in standard deviations over the settings of one family.

    Args:
        families: the number of families; all draw their settings from one distribution.
        settings: the number of settings of each family.
        clusters: the number of samples of each setting; all settings share them, like common random numbers.
        lead: the amount by which the true scores of the first family are higher.
        spread: the standard deviation of true scores over settings; 0: all are equal.
        noise: the standard deviation of a sample's own noise.
        shared: the standard deviation of the noise of a sample that all settings share.
        family_noise: the standard deviation of the noise of a sample that the settings of a family share.
        same_settings: whether all families have the same settings, not only the same distribution of settings.
    """

    families: int = 2
    settings: int = 12
    clusters: int = 48
    lead: float = 0.0
    spread: float = 1.0
    noise: float = 3.0
    shared: float = 2.0
    family_noise: float = 0.0
    same_settings: bool = False

    def sweep(self, rng: np.random.Generator) -> tuple[Scores, npt.NDArray[np.int64]]:
        """Simulate one sweep: scores (higher is better), and the family of each setting."""
        truth = rng.normal(0, self.spread, (self.families, self.settings))
        if self.same_settings:
            truth[:] = truth[0]
        truth[0] += self.lead
        family = np.repeat(np.arange(self.families), self.settings)
        values = truth.reshape(-1, 1) + self.shared * rng.normal(size=self.clusters)
        values = values + self.noise * rng.normal(size=(len(family), self.clusters))
        values += self.family_noise * rng.normal(size=(self.families, self.clusters))[family]
        return Scores(values, np.ones_like(values), np.arange(self.clusters), lambda ratio: ratio), family

    def compared(self, sweeps: int, seed: int = 1) -> list[Comparison]:
        """Simulate ``sweeps`` sweeps, and compare the families of each."""
        rng = np.random.default_rng(seed)
        return [compare_families(*self.sweep(rng)) for _ in range(sweeps)]


def leads(found: Comparison) -> bool:
    """Whether a comparison finds any family ahead of any other, at any budget."""
    return any(each.ahead.any() for each in found.contrasts)
