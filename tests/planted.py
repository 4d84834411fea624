"""Scores of sweeps whose truth is known: families of settings that are the same by construction, or differ by a known size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gptsweep.analysis.budgets import Comparison, Scores, compare_families


@dataclass(frozen=True, kw_only=True)
class Planted:
    """How sweeps are made. Sizes are in standard deviations of what settings of one family are worth.

    Args:
        families: how many; all draw their settings from one distribution.
        settings: of each family.
        clusters: independent samples of each setting, shared by all settings as common random numbers are.
        lead: what every setting of the first family is worth more.
        spread: the standard deviation of settings; 0: all are worth the same.
        noise: of one sample, apart from what all settings share.
        shared: of one sample, the same for all settings.
        liking: of one sample, the same for the settings of a family, so that a draw of samples may suit a family.
        same_settings: every family has the same settings, not only the same distribution of them.
    """

    families: int = 2
    settings: int = 12
    clusters: int = 48
    lead: float = 0.0
    spread: float = 1.0
    noise: float = 3.0
    shared: float = 2.0
    liking: float = 0.0
    same_settings: bool = False

    def sweep(self, rng: np.random.Generator) -> tuple[Scores, npt.NDArray[np.int64]]:
        """One sweep: scores, higher is better, and the family of each setting."""
        worth = rng.normal(0, self.spread, (self.families, self.settings))
        if self.same_settings:
            worth[:] = worth[0]
        worth[0] += self.lead
        family = np.repeat(np.arange(self.families), self.settings)
        values = worth.reshape(-1, 1) + self.shared * rng.normal(size=self.clusters)
        values = values + self.noise * rng.normal(size=(len(family), self.clusters))
        values += self.liking * rng.normal(size=(self.families, self.clusters))[family]
        return Scores(values, np.ones_like(values), np.arange(self.clusters), lambda ratio: ratio), family

    def compared(self, sweeps: int, seed: int = 1) -> list[Comparison]:
        """Comparisons of so many sweeps."""
        rng = np.random.default_rng(seed)
        return [compare_families(*self.sweep(rng)) for _ in range(sweeps)]


def leads(found: Comparison) -> bool:
    """Whether it says that any family is ahead of any other, at any budget."""
    return any(each.ahead.any() for each in found.contrasts)
