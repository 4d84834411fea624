"""Compare families of samplers at equal tuning budget: assign points to families, and put the results of `budgets` into text.

Settings belong to one family if the same samplers truncate, as declared in `records.SAMPLERS`, or if they agree in keys that
the user chose. The settings that differ within a family are the ones that were tuned.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from ..errors import ResultsError
from ..records import SAMPLERS
from ..store.schema import SAMPLE_KEY
from .budgets import Comparison, Scores, compare_families
from .columns import label, plain
from .metrics import METRICS, Metric
from .stats import Floats, Ints, places_of, seeds_of

Direction = Literal["min", "max", "reference"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
MIN_HALVED = 12
"""The minimum number of prompts to halve by prompts; with fewer, samples are halved."""
MAX_CLUSTERS = 400
"""More clusters are merged into this many blocks to bound the cost; blocks of independent clusters are independent, too."""


def split_direction(text: str) -> tuple[str, Direction | None]:
    """Split ``METRIC:min``, ``METRIC:max`` or ``METRIC:reference`` into metric and direction; None if no direction is given."""
    name, _, given = text.rpartition(":")
    for direction in DIRECTIONS:
        if given == direction:
            return name, direction
    return text, None


@dataclass(frozen=True, slots=True)
class Aim:
    """What counts as best: ``metric`` at its lowest, at its highest, or closest to ``target``, the reference text's value."""

    metric: Metric
    direction: Direction
    target: float | None = None

    @classmethod
    def of(
        cls,
        text: str,
        reference: Mapping[str, float | None] | None = None,
        declared: Mapping[str, Metric] = METRICS,
        *,
        option: str = "metric",
    ) -> Aim:
        """Parse ``METRIC:min``, ``METRIC:max`` or ``METRIC:reference``; without a direction the metric's usual one applies.

        Args:
            text: as the user typed it.
            reference: the metrics of a reference text.
            declared: the metrics by name.
            option: the option to name in errors.

        Raises:
            ResultsError: there is no such metric, it has no usual direction, or the reference text lacks it.
        """
        name, direction = cls.split(text, declared, option=option)
        target = (reference or {}).get(name) if direction == "reference" else None
        if direction == "reference" and (target is None or not math.isfinite(target)):
            wanted = "there is no reference text with this metric; give one with --reference FILE:path"
            raise ResultsError(option, text, wanted)
        return cls(declared[name], direction, target)

    @staticmethod
    def split(text: str, declared: Mapping[str, Metric] = METRICS, *, option: str = "metric") -> tuple[str, Direction]:
        """Return the metric's name and the direction.

        Raises:
            ResultsError: there is no such metric, or no direction is given and it has no usual one.
        """
        name, given = split_direction(text)
        if name not in declared:
            raise ResultsError(option, name, f"must be one of {', '.join(declared)}")
        usual: dict[str, Direction] = {"lower": "min", "higher": "max"}
        direction = given or usual.get(declared[name].direction)
        if direction is None:
            raise ResultsError(option, text, f"has no best direction by itself; use {name}:min, {name}:max, {name}:reference")
        return name, direction

    def score(self, ratio: Floats) -> Floats:
        """Convert ratios to scores (higher is better); for an exponential metric the value is exp(-ratio)."""
        return self.ranked(np.exp(-ratio) if self.metric.exponential else ratio)

    def ranked(self, values: Floats) -> Floats:
        """Convert values of the metric to scores."""
        if self.target is not None:
            return np.asarray(-np.abs(values - self.target))
        return values if self.direction == "max" else -values

    def shown(self, score: float) -> float:
        """Convert a score for display: a value of the metric, or its distance from the target, clipped to what is possible."""
        value = score if self.direction == "max" else -score
        if self.target is not None or self.metric.unit == "share":
            value = max(value, 0.0) + 0.0  # no -0
        return min(value, 1.0) if self.metric.unit == "share" else value

    def __str__(self) -> str:
        what = self.metric.label
        if self.target is not None:
            return f"{what} nearest to the reference text's {self.target:.4g}"
        return f"{'highest' if self.direction == 'max' else 'lowest'} {what}"


@dataclass(frozen=True, eq=False)
class SamplerComparison:
    """The result of `Sweep.compare_samplers`.

    ``families`` are names; family i tried ``settings[i]`` different settings. ``table`` and ``sentence`` present the result;
    ``comparison`` has it as arrays, in scores (higher is better). ``halved`` says what was halved: prompts, samples or seeds.
    ``notes`` report what was left out.
    """

    aim: Aim
    families: tuple[str, ...]
    settings: tuple[int, ...]
    comparison: Comparison
    halved: str
    notes: tuple[str, ...] = ()

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per family and budget.

        ``family``, ``settings`` (how many it tried), ``budget`` (n), ``held_out``: the expected best of n settings, chosen on
        one half and scored on the other, ``same_samples``: chosen and scored on the same samples; each with ``_low`` and
        ``_high``, a 95 % interval over prompts and samples. Units are the metric's; for ``:reference`` they are distances.
        ``ahead_of`` names the families it is ahead of at this budget.
        """
        rows = []
        for at, (name, count) in enumerate(zip(self.families, self.settings, strict=True)):
            for place in range(count):
                row: dict[str, Any] = {"family": name, "settings": count, "budget": place + 1}
                for column, curves in (("held_out", self.comparison.held_out), ("same_samples", self.comparison.same)):
                    low, high = sorted(self.aim.shown(float(end[place])) for end in (curves[at].low, curves[at].high))
                    mean = self.aim.shown(float(curves[at].mean[place]))
                    row |= {column: mean, f"{column}_low": low, f"{column}_high": high}
                beaten = [other for other in range(len(self.families)) if self.leads(at, other, place)]
                rows.append(row | {"ahead_of": ", ".join(self.families[other] for other in beaten)})
        return pd.DataFrame(rows)

    @cached_property
    def differences(self) -> pd.DataFrame:
        """One row per pair of families and budget.

        ``a``, ``b``, ``budget``, ``difference`` (held-out scores, positive if ``a`` is better), ``margin`` (the critical
        difference, 95 % over all rows together), ``ahead`` and ``ahead_here``: 1 if ``a`` is ahead, -1 if ``b`` is, else 0.
        ``ahead_here`` is about the settings that were tried, ``ahead`` about their families.
        """
        parts = [
            pd.DataFrame({
                "a": self.families[each.a], "b": self.families[each.b], "budget": np.arange(1, len(each.difference) + 1),
                "difference": each.difference, "margin": each.margin, "ahead": each.ahead, "ahead_here": each.ahead_here,
            })
            for each in self.comparison.contrasts
        ]  # fmt: skip
        columns = ["a", "b", "budget", "difference", "margin", "ahead", "ahead_here"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def leads(self, a: int, b: int, place: int, *, here: bool = False) -> bool:
        """Whether family ``a`` is ahead of ``b`` at budget ``place`` + 1; with ``here``, among the settings that were tried."""
        for each in self.comparison.contrasts:
            if {each.a, each.b} == {a, b} and place < len(each.ahead):
                return bool((each.ahead_here if here else each.ahead)[place] == (1 if each.a == a else -1))
        return False

    def leader(self, place: int, *, here: bool = False) -> int | None:
        """The family that is ahead of every other one that tried ``place`` + 1 settings; None if there is none."""
        there = [at for at, count in enumerate(self.settings) if count > place]
        for at in there if len(there) > 1 else []:
            if all(self.leads(at, other, place, here=here) for other in there if other != at):
                return at
        return None

    @property
    def budgets(self) -> int:
        """The largest budget at which two families can be compared: that of the second largest family."""
        return sorted(self.settings)[-2]

    @property
    def sentence(self) -> str:
        """State who is ahead at which budget, or that the data cannot tell, and for how many comparisons that holds."""
        if self.comparison.reason:
            return f"By {self.aim}, the data cannot tell which family is ahead: {self.comparison.reason}."
        leaders, here = (self.claims(here=each) for each in (False, True))
        if leaders:
            rest = "" if sum(map(len, leaders.values())) == self.budgets else "; at other budgets the data cannot tell"
            text = f"By {self.aim}, {self.phrase(leaders)}{rest}."
        else:
            text = f"By {self.aim}, the data cannot tell which family is ahead, at any budget{upto(self.budgets)}."
            if pairs := self.pair_claims():
                text += f" It can tell that {pairs}."
            elif here:
                tried = f"Among the settings tried here, {self.phrase(here)}"
                text += f" {tried}; but others of the same families may reverse that."
        count = len(self.comparison.contrasts)
        compared = f"{count} pairs of families" if count > 1 else "one pair of families"
        budgets = f"{self.budgets} {'budget' if self.budgets == 1 else 'budgets'}"
        return f"{text} Compared: {compared} at {budgets}, 95 % for all together."

    def claims(self, *, here: bool) -> dict[int, list[int]]:
        """For each family, the budgets at which it is ahead of all others."""
        found: dict[int, list[int]] = {}
        for place in range(self.budgets):
            if (at := self.leader(place, here=here)) is not None:
                found.setdefault(at, []).append(place + 1)
        return found

    def phrase(self, claims: dict[int, list[int]]) -> str:
        """State which families are ahead of all others, and with how many settings tried."""
        others = len(self.families) - 1
        parts = []
        for at, budgets in claims.items():
            rest = [name for other, name in enumerate(self.families) if other != at]
            of = listed(rest) if others <= 3 else "every other family"
            parts.append(f"{self.families[at]} is ahead of {of} with {ranges(budgets)} tried")
        return "; ".join(parts)

    def pair_claims(self) -> str:
        """State which families are ahead of which others if none is ahead of all."""
        found = []
        for a, b in itertools.permutations(range(len(self.families)), 2):
            budgets = [place + 1 for place in range(min(self.settings[a], self.settings[b])) if self.leads(a, b, place)]
            if budgets:
                found.append(f"{self.families[a]} is ahead of {self.families[b]} with {ranges(budgets)} tried")
        shown = found[:3]
        return "; ".join(shown) + (f"; and {len(found) - 3} more pairs differ" if len(found) > 3 else "")


def upto(most: int) -> str:
    """The range of budgets as text."""
    return f" from 1 to {most} tried settings" if most > 1 else ""


def ranges(budgets: Sequence[int]) -> str:
    """Ascending budgets as text: ``2 to 4 and 7 settings``."""
    runs: list[list[int]] = []
    for each in budgets:
        if runs and runs[-1][-1] == each - 1:
            runs[-1].append(each)
        else:
            runs.append([each])
    text = listed([part for run in runs for part in (map(str, run) if len(run) < 3 else [f"{run[0]} to {run[-1]}"])])
    return f"{text} {'setting' if list(budgets) == [1] else 'settings'}"


def listed(names: Sequence[str]) -> str:
    """Join names as in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def family_of(row: dict[Any, Any], by: Sequence[str] | None) -> tuple[tuple[int, ...], str]:
    """The sort key and name of a setting's family: its active truncations in order of declaration, or its values of ``by``."""
    if by is not None:
        return (), ", ".join(f"{key}={label(plain(row[key]))}" for key in by)
    truncations = [name for name, sampler in SAMPLERS.items() if sampler.truncates]
    on = [name for name in truncations if name in row and SAMPLERS[name].is_on(plain(row[name]))]
    return (len(on), *map(truncations.index, on)), " + ".join(on) or "no truncation"


def compare_samplers(
    aim: Aim, points: pd.DataFrame, samples: pd.DataFrame | None, setting: Ints, by: Sequence[str] | None
) -> SamplerComparison:
    """Implement `Sweep.compare_samplers`.

    Args:
        aim: what counts as best.
        points: rows of ``Sweep.summary`` without copies.
        samples: for a metric per sample, `Sweep.measured` of these points without copies; None for a metric per point.
        setting: [points], equal for points that differ only in the seed.
        by: the keys whose values define a family; None: the samplers that truncate.

    Raises:
        ResultsError: there are not two families with a value of the metric.
    """
    name = aim.metric.name
    if samples is None:
        values = points[name].to_numpy(float)
        num, den = np.nan_to_num(values), (~np.isnan(values)).astype(float)
        at, cluster, prompt = setting, seeds_of(points), np.zeros(len(points), dtype=np.int64)
    else:
        num, den = (samples[f"{name}/{part}"].to_numpy(float) for part in ("num", "den"))
        at = samples["point"].map(dict(zip(points.index, setting, strict=True))).to_numpy(np.int64)
        cluster, prompt = places_of(samples[[*SAMPLE_KEY, "noise_of"]]), samples["prompt_index"].to_numpy(np.int64)
    have = den > 0
    num, den, at, cluster, prompt = (each[have] for each in (num, den, at, cluster, prompt))
    known, place = np.unique(at, return_inverse=True)
    rows = points.assign(setting=setting).drop_duplicates("setting").set_index("setting")
    found = [family_of(rows.loc[each].to_dict(), by) for each in known.tolist()]
    names = [name for _, name in found]
    families = [name for _, name in sorted(dict.fromkeys(found), key=lambda each: each[0])]
    if len(families) < 2:
        what = listed(by) if by else "truncations"
        there = f"there is one family here, {families[0]}" if families else "no point has this metric"
        raise ResultsError(
            "samplers", name, f"{there}: points with the same {what} are a family; use --by KEY to group by other keys"
        )
    family = np.array([families.index(each) for each in names], dtype=np.int64)
    prompts = len(np.unique(prompt))
    cluster, unit = blocks(cluster, prompt, by_prompt=prompts >= MIN_HALVED)
    size = len(unit)
    sums = [np.zeros((len(known), size)), np.zeros((len(known), size))]
    for total, each in zip(sums, (num, den), strict=True):
        np.add.at(total, (place, cluster), each)
    left_out = len(rows) - len(known)
    notes = [f"{left_out} settings have no value of {aim.metric.label} and are left out"] if left_out else []
    halved = "prompts" if prompts >= MIN_HALVED else "samples" if samples is not None else "seeds"
    counts = tuple(np.bincount(family, minlength=len(families)).tolist())
    compared = compare_families(Scores(sums[0], sums[1], unit, aim.score), family)
    return SamplerComparison(aim, tuple(families), counts, compared, halved, tuple(notes))


def blocks(cluster: Ints, prompt: Ints, *, by_prompt: bool) -> tuple[Ints, Ints]:
    """Merge clusters into at most `MAX_CLUSTERS` blocks.

    Args:
        cluster: [n], the cluster of each row.
        prompt: [n], its prompt.
        by_prompt: whether prompts are halved; then no block contains several prompts, unless there are too many prompts.

    Returns:
        [n], the block of each row, from 0; and [blocks], the unit that must stay in one half.
    """
    prompts, of_prompt = np.unique(prompt, return_inverse=True)
    if not by_prompt:
        _, block = np.unique(cluster, return_inverse=True)
        block %= MAX_CLUSTERS
        return block, np.arange(block.max(initial=-1) + 1)
    of_prompt %= MAX_CLUSTERS
    each = max(1, MAX_CLUSTERS // len(prompts))
    pairs, pair = np.unique(of_prompt * (cluster.max(initial=0) + 1) + cluster, return_inverse=True)
    owner = pairs // (cluster.max(initial=0) + 1)
    within = np.arange(len(pairs)) - np.searchsorted(owner, owner)
    found, block = np.unique(owner * each + within % each, return_inverse=True)
    return block[pair], found // each
