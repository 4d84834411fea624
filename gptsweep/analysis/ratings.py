"""Ratings of a sweep's samples: which settings they compare, how those rank, and whether raters agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy

from ..display import counted
from ..errors import ResultsError
from ..store.ratings import Rating
from .preference import COVERAGE, Comparisons, Ranking, agreement, bradley_terry, win_rates
from .stats import MIN_PAIRS, Floats, Ints
from .with_the_best import WithTheBest, among_the_best

SCORES = {"left": 1.0, "right": 0.0, "tie": 0.5, "both_bad": 0.5}
"""The score of the left sample for each verdict; the right sample has 1 minus that."""


@dataclass(frozen=True, eq=False)
class Ratings:
    """Ratings of samples of this sweep.

    ``table`` has one row per rating: ``left`` and ``right`` (labels of ``Sweep.summary``), ``score`` of the left sample,
    ``both_bad``, ``prompt``, ``place`` (prompt, seed and sample_index of the left sample), ``pair`` (equal for ratings of the
    same two samples), ``judgement`` (the score of the sample whose id comes first), ``rater``, ``seconds``. ``notes`` report
    what was left out.
    """

    table: pd.DataFrame
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Sequence[Rating], points: pd.DataFrame, samples: pd.DataFrame) -> Ratings:
        """Select the ratings of these samples. If a rater rated the same two samples several times, the last one counts.

        Args:
            found: ratings from files.
            points: ``Sweep.summary``.
            samples: ``Sweep.samples``.

        Raises:
            ResultsError: there are none, or one compares completions of different prompts.
        """
        known = known_samples({name for each in found for name in (each.left, each.right)}, points, samples)
        here = [each for each in found if each.left in known and each.right in known]
        last = {(each.rater, frozenset((each.left, each.right))): each for each in here}
        rows = []
        for (_, pair), each in last.items():
            (left, prompt, place), (right, other, _) = known[each.left], known[each.right]
            if prompt != other:
                raise ResultsError("ratings", f"{each.left} {each.right}", "are completions of different prompts")
            if each.verdict != "skip":
                score, both_bad, (first, second) = SCORES[each.verdict], each.verdict == "both_bad", sorted(pair)
                judgement = score if first == each.left else 1 - score
                rows.append(
                    (left, right, score, both_bad, prompt, place, f"{first} {second}", judgement, each.rater, each.seconds)
                )
        if not rows:
            what = "skips all pairs" if here else "names no sample of this sweep" if found else "has no ratings"
            raise ResultsError("ratings", None, what)
        elsewhere, replaced, skipped = len(found) - len(here), len(here) - len(last), len(last) - len(rows)
        notes = [
            f"{counted(elsewhere, 'rating')} of samples that are not here" if elsewhere else "",
            f"{counted(replaced, 'rating')} replaced by a later one of the same rater" if replaced else "",
            f"{counted(skipped, 'pair')} skipped" if skipped else "",
        ]
        columns = ["left", "right", "score", "both_bad", "prompt", "place", "pair", "judgement", "rater", "seconds"]
        return cls(pd.DataFrame(rows, columns=columns), tuple(filter(None, notes)))

    def between(self, labels: pd.Index[Any], codes: Ints, settings: int) -> tuple[Comparisons, pd.DataFrame]:
        """Comparisons between different settings, and their rows of ``table``.

        Clusters are prompts. With fewer than `MIN_PAIRS` prompts, clusters are (prompt, seed, sample_index), and intervals then
        hold for these prompts only.

        Args:
            labels: of ``Sweep.summary``.
            codes: the setting of each label; ratings of other points are ignored.
            settings: the number of settings.
        """
        numbers = pd.Series(codes, labels)
        first, second = (self.table[side].map(numbers).to_numpy(float) for side in ("left", "right"))
        kept = ~np.isnan(first) & ~np.isnan(second) & (first != second)
        rows = self.table[kept]
        cluster = rows["prompt" if rows["prompt"].nunique() >= MIN_PAIRS else "place"].to_numpy(np.int64)
        sides = first[kept].astype(np.int64), second[kept].astype(np.int64)
        return Comparisons(*sides, rows["score"].to_numpy(float), cluster, settings), rows

    def preferences(self, labels: pd.Index[Any], codes: Ints, settings: int) -> tuple[Floats, Floats, Ints]:
        """The preference of each setting, its standard error, and its number of comparisons; arguments as in `between`."""
        found, _ = self.between(labels, codes, settings)
        n = np.bincount(np.concatenate([found.first, found.second]), minlength=settings).astype(np.int64)
        ranking = bradley_terry(found)
        return ranking.preference, ranking.preference_error, n

    def compared(self, labels: pd.Index[Any], codes: Ints, settings: int, a: int, b: int) -> dict[str, Any]:
        """A row of `Sweep.compare`: the change in preference from setting ``a`` to ``b``; ``pairs`` counts their ratings."""
        found, _ = self.between(labels, codes, settings)
        return contrast(bradley_terry(found), a, b)

    def contrasts(self, labels: pd.Index[Any], codes: Ints, settings: int) -> list[list[dict[str, Any]]]:
        """`compared` for every setting ``a`` (rows) and ``b`` (columns)."""
        ranking = bradley_terry(self.between(labels, codes, settings)[0])
        return [[contrast(ranking, a, b) for b in range(settings)] for a in range(settings)]

    def with_the_best(self, labels: pd.Index[Any], codes: Ints, settings: int, sign: int, best: int) -> WithTheBest:
        """`with_the_best.with_the_best` for preferences; ``sign`` is -1 if low is better."""
        return preferred(bradley_terry(self.between(labels, codes, settings)[0]), best, sign)

    def ranked(self, rows: pd.DataFrame) -> RankedSettings:
        """The settings of a `Sweep.group`, best first, without those that were not compared."""
        labels = [label for points in rows["points"] for label in points]
        codes = np.repeat(np.arange(len(rows)), [len(points) for points in rows["points"]]).astype(np.int64)
        found, compared = self.between(pd.Index(labels), codes, len(rows))
        ranking = bradley_terry(found)
        share, error, low, high, count = win_rates(found)
        setting = np.concatenate([found.first, found.second])
        score = np.concatenate([found.score, 1 - found.score])
        bad = np.concatenate([compared["both_bad"].to_numpy(bool)] * 2)
        tally = {name: np.bincount(setting[chosen], minlength=len(rows)) for name, chosen in (
            ("won", score == 1), ("tied", (score == 0.5) & ~bad), ("both_bad", bad), ("lost", score == 0))}  # fmt: skip
        table = rows[[str(name) for name in rows.columns[: list(rows.columns).index("points")]]].copy()
        table = table.assign(
            comparisons=count, **tally, win_rate=share, win_rate_se=error, win_rate_low=low, win_rate_high=high,
            strength=ranking.strength, strength_se=ranking.error, preference=ranking.preference,
            preference_se=ranking.preference_error, preference_low=ranking.preference_interval[0],
            preference_high=ranking.preference_interval[1],
        )  # fmt: skip
        table = table[found.met].sort_values("strength", ascending=False, kind="stable")
        best = preferred(ranking, int(table.index[0]) if len(table) else 0)
        known = best.independent >= MIN_PAIRS
        alike = [at != table.index[0] and bool(best.may_be_best[at] or not known[at]) for at in table.index]
        unit = "prompts" if compared["prompt"].nunique() >= MIN_PAIRS else "samples"
        return RankedSettings(table.assign(alike=alike), found.clusters, unit)

    @property
    def raters(self) -> dict[str, int]:
        """The number of ratings by each rater, in descending order."""
        return {str(name): int(count) for name, count in self.table["rater"].value_counts().items()}

    def agreement(self) -> tuple[float, int]:
        """Krippendorff's alpha of the raters, and the number of pairs judged by two or more; see `preference.agreement`.

        A judgement is one sample, the other, or neither.
        """
        units, judgements = (pd.factorize(self.table[name])[0].astype(np.int64) for name in ("pair", "judgement"))
        return agreement(units, judgements)

    @property
    def left_share(self) -> float:
        """Among ratings with a winner, the share that the left sample won; NaN if there are none."""
        decided = self.table["score"][self.table["score"] != SCORES["tie"]]
        return float(decided.mean())


@dataclass(frozen=True, eq=False)
class RankedSettings:
    """The result of `Ratings.ranked`.

    ``table`` has one row per setting: the settings, ``comparisons``, ``won``, ``tied``, ``both_bad``, ``lost``, ``win_rate``,
    ``strength``, ``preference``, with errors (``_se``) and intervals (``_low``, ``_high``), and ``alike``: whether the ratings
    cannot tell it from the first. ``clusters`` is the number of independent units (``unit``: prompts or samples).
    """

    table: pd.DataFrame
    clusters: int
    unit: str


def preferred(ranking: Ranking, best: int, sign: int = 1) -> WithTheBest:
    """`with_the_best.with_the_best` from the model of the ratings, with Bonferroni critical values."""
    met, clusters, size = ranking.comparisons.met, ranking.comparisons.clusters, ranking.comparisons.settings
    both = np.outer(met, met) & ~np.eye(size, dtype=bool)
    known = both & (clusters >= MIN_PAIRS)
    ahead = np.where(known, sign * (ranking.preference[None, :] - ranking.preference[:, None]), np.nan)
    limit = np.full(size, scipy.special.stdtrit(max(1, clusters - 1), 1 - (1 - COVERAGE) / max(1, int(met.sum()) - 1)))
    return among_the_best(ahead, ranking.difference_errors, limit, np.where(both[best], clusters, 0))


def contrast(ranking: Ranking, a: int, b: int) -> dict[str, Any]:
    """A row of `Sweep.compare` for two settings."""
    found = ranking.comparisons
    pairs = int((np.isin(found.first, (a, b)) | np.isin(found.second, (a, b))).sum())
    difference, low, high = ranking.difference(a, b)
    ends = {"a": float(ranking.preference[a]), "b": float(ranking.preference[b])}
    if not (found.met[a] and found.met[b]):
        return ends | {"difference": math.nan, "low": math.nan, "high": math.nan, "pairs": pairs, "differs": False,
                       "reason": "needs ratings of both"}  # fmt: skip
    enough = found.clusters >= MIN_PAIRS
    reason = "" if enough else f"ratings of {counted(found.clusters, 'sample')} are too few to tell; {MIN_PAIRS} can"
    return ends | {"difference": difference, "low": low if enough else math.nan, "high": high if enough else math.nan,
                   "pairs": pairs, "differs": enough and (low > 0 or high < 0), "reason": reason}  # fmt: skip


def known_samples(names: set[str], points: pd.DataFrame, samples: pd.DataFrame) -> dict[str, tuple[int, int, int]]:
    """For each of these samples: the label of its point, its prompt, and the number of its (prompt, seed, sample_index)."""
    wanted = {name.rsplit("-", 2)[0] for name in names}
    ids = points["point_id"].dropna() if "point_id" in points else pd.Series(dtype=object)
    ids = ids[ids.isin(wanted)].drop_duplicates()
    rows = samples[samples["point"].isin(ids.index)]
    rows = rows.assign(prompt=rows["prompt"].cat.codes)
    places = rows.groupby(["prompt", "seed", "prompt_index", "sample_index"], sort=True).ngroup()
    columns = (rows["prompt_index"], rows["sample_index"], rows["point"], rows["prompt"], places)
    known = {
        f"{point}-{prompt_index}-{sample_index}": (int(label), int(prompt), int(place))
        for point, prompt_index, sample_index, label, prompt, place in zip(rows["point"].map(ids), *columns, strict=True)
    }
    return {name: known[name] for name in names if name in known}
