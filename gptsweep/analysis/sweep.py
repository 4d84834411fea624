"""A sweep as tables: group its points, compare two of them, compare its samplers, add user-defined metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..display import counted
from ..errors import ConfigError, ResultsError
from ..store.ratings import Rating
from ..store.schema import MEANS, SAMPLE_KEY, STATUSES
from . import stats as compare
from .columns import ordered
from .metrics import METRICS, PREFERENCE, Metric, Outcome
from .own_metrics import FIELDS, OwnMetric
from .ratings import Ratings
from .samplers import Aim, SamplerComparison, compare_samplers
from .summary import metric_reasons, sample_mean
from .sweep_html import sweep_html
from .tokens import token_frame

if TYPE_CHECKING:
    import xarray

MAX_SAMPLES = 10_000
MAX_TEXT = 6_000_000
"""The maximum number of samples, and of their characters, to compare pair by pair. Beyond that, (prompt, seed, sample_index)
combinations are left out evenly."""

PointChoice = int | str | Mapping[str, Any]
"""A point: its row in ``summary``, its ``directory``, or settings shared by all points meant, as ``{"temperature": 0.7}``."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """A sweep as `frames.read_sweep` reads it.

    ``summary`` has one row per point: settings, metrics, ``status`` (complete, partial, failed, missing), ``error``,
    ``directory``. ``samples`` has one row per sample; ``point`` is the row of its point in ``summary``, ``token_ids`` contains
    int32 arrays. ``settings`` names the settings columns, ``swept`` those that differ between points. ``problems`` says, one
    line each, what could not be read and in which file; ``damaged_lines`` counts the unreadable lines of samples. ``declared``
    has the metrics by name, user-defined ones (`scored`) last; ``directories`` maps labels of ``summary`` to run directories;
    ``ratings`` has the ratings of samples (`rated`).
    """

    summary: pd.DataFrame
    samples: pd.DataFrame
    settings: tuple[str, ...]
    swept: tuple[str, ...]
    problems: tuple[str, ...] = ()
    damaged_lines: int = 0
    declared: Mapping[str, Metric] = field(default_factory=lambda: METRICS)
    directories: Mapping[int, Path] = field(default_factory=dict)
    ratings: Ratings | None = None

    @cached_property
    def _textual(self) -> tuple[compare.Floats, compare.Mask]:
        """`compare.text_values` of the samples, filled on demand, and a mask of those already computed."""
        return np.full((len(self.samples), len(compare.textual())), np.nan), np.zeros(len(self.samples), dtype=bool)

    def measured(self, points: pd.DataFrame) -> pd.DataFrame:
        """`compare.sample_values` of the samples of these rows of ``summary``, with two columns that identify clusters.

        ``copy_of`` is equal for samples of copies of one point, ``noise_of`` for samples drawn from the same noise.
        """
        chosen = self.samples["point"].isin(points.index).to_numpy(bool)
        values, known = self._textual
        new = chosen & ~known
        values[new] = compare.text_values(self.samples[new])
        known |= new
        found = compare.sample_values(self.samples[chosen], values[chosen], self.declared)
        for name, numbers in (("copy_of", compare.identities(points)), ("noise_of", compare.noises(points))):
            found[name] = found["point"].map(dict(zip(points.index, numbers, strict=True))).astype("int64")
        return found

    def _repr_html_(self) -> str:
        return sweep_html(self)

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """Measurements at each token of samples made with ``sampling.logprobs``: one row per token, read at first use.

        ``sample`` is the row of its sample in ``samples``; ``position`` counts the tokens of a completion from 0; ``begin`` and
        ``end`` delimit its characters in the completion. ``logprob``, ``sampler_logprob``, ``rank``, ``entropy``,
        ``survivors``, ``top_ids`` and ``top_logprobs`` are as in `gptsweep.records.TokenLogprobs`; ``text`` and ``top_texts``
        are the texts of the ids.
        """
        return token_frame(self.samples, self.directories)

    @property
    def headline(self) -> str:
        """The numbers of points, by status, and of samples: ``12 points (11 complete, 1 failed), 960 samples``."""
        found = self.summary["status"].value_counts()
        statuses = ", ".join(f"{found[status]} {status}" for status in STATUSES if status in found)
        return f"{counted(len(self.summary), 'point')} ({statuses}), {counted(len(self.samples), 'sample')}"

    @property
    def metrics(self) -> list[str]:
        """The metrics that have a value somewhere in ``summary``, in display order."""
        return [name for name in self.declared if name in self.summary and self.summary[name].notna().any()]

    def points(self, choice: PointChoice) -> pd.DataFrame:
        """The rows of ``summary`` that ``choice`` selects.

        Raises:
            ResultsError: it selects none.
        """
        table = self.summary
        if isinstance(choice, Mapping):
            chosen = np.ones(len(table), dtype=bool)
            for name, value in choice.items():
                if name not in self.settings:
                    raise ResultsError("point", name, f"is not a setting here; swept: {', '.join(self.swept) or 'none'}")
                column = table[name]
                chosen &= (column.isna() if value is None else (column == value).fillna(False)).to_numpy(bool)
            table = table[chosen]
        elif isinstance(choice, str):
            names = table["directory"]
            table = table[(names == choice) | names.str.endswith("/" + choice)]
        else:
            table = table[table.index == choice]
        if table.empty:
            shown = ",".join(f"{name}={value}" for name, value in choice.items()) if isinstance(choice, Mapping) else choice
            raise ResultsError("point", shown, "is not a point of this sweep; give a row number, a directory, or settings")
        return table

    def group(self, by: Sequence[str] | None = None) -> pd.DataFrame:
        """Group points that agree in ``by``; by default in all swept settings except the seed.

        Returns:
            One row per group with the settings ``by``, ``points`` (labels), ``num_points``, ``num_samples``, and for every
            metric its mean, ``<metric>_se`` and ``<metric>_n``. A metric per sample is averaged over all samples of the group,
            and n counts samples; a metric per point is averaged over its points, and n counts points. Samples and points found
            in several directories count once. Errors are over independent clusters (see the module `stats`): different prompts,
            seeds or sample_index for metrics per sample, seeds for metrics per point; with one seed the latter have no error.

        Raises:
            ResultsError: ``by`` names a column that is not a setting.
        """
        keys = [key for key in self.swept if key != "seed"] if by is None else list(by)
        for key in keys:
            if key not in self.settings:
                raise ResultsError("group", key, f"is not a setting here; swept: {', '.join(self.swept) or 'none'}")
        table = self.summary
        codes = np.zeros(len(table), dtype=np.int64)
        if keys:
            codes[:] = table.groupby(keys, dropna=False, sort=False).ngroup()
        _, first, counts = np.unique(codes, return_index=True, return_counts=True)
        points = np.split(table.index.to_numpy()[np.argsort(codes, kind="stable")], np.cumsum(counts)[:-1])
        columns: dict[str, Any] = {key: table[key].array.take(first) for key in keys}
        columns["points"] = [tuple(each.tolist()) for each in points]
        # Keep one copy of each point, the one with the most samples.
        order = np.argsort(-table["num_samples"].to_numpy(), kind="stable")
        copies = pd.DataFrame({"group": codes, "copy_of": compare.identities(table)}).iloc[order].duplicated().sort_index()
        alone, own = table[~copies.to_numpy()], codes[~copies.to_numpy()]
        columns["num_points"] = np.bincount(own, minlength=len(counts))
        names = {per: [name for name in self.metrics if self.declared[name].per == per] for per in ("sample", "point")}
        found = {name: compare.per_point(name, alone, own, len(counts)) for name in names["point"]}
        if compare.shares(table, codes):
            samples = self.measured(table)
            samples["group"] = samples["point"].map(dict(zip(table.index, codes, strict=True)))
            samples = samples[~samples.duplicated(["group", "copy_of", "prompt_index", "seed", "sample_index"])]
            at = samples["group"].to_numpy(np.int64)
            clusters = compare.places_of(samples[[*SAMPLE_KEY, "noise_of"]])
            columns["num_samples"] = np.bincount(at, minlength=len(counts))
            found |= {
                name: compare.per_sample(self.declared[name], samples, at, len(counts), clusters) for name in names["sample"]
            }
        else:
            columns["num_samples"] = np.bincount(codes, weights=table["num_samples"]).astype(int)
            found |= {name: compare.from_summaries(self.declared[name], table, codes, len(counts)) for name in names["sample"]}
        if self.ratings:
            found[PREFERENCE.name] = self.ratings.preferences(table.index, codes, len(counts))
        for name in self.metrics:
            columns[name], columns[f"{name}_se"], columns[f"{name}_n"] = found[name]
        return pd.DataFrame(columns)

    def compare(self, a: PointChoice, b: PointChoice) -> pd.DataFrame:
        """The change from ``a`` to ``b`` in every metric, in units of the metric. Unknown points raise `ResultsError`.

        Samples are paired by prompt, seed, sample_index and every swept setting that ``a`` and ``b`` leave open. With common
        noise, a pair shares its random numbers, so its difference is much less noisy than that of two means. Intervals are 95 %
        percentile bootstrap intervals (2,000 resamples, always the same), which draw pairs that share noise, or a sample,
        together. Metrics per point are paired by point; points of one seed are drawn together.

        Returns:
            One row per metric: ``a``, ``b`` (means over the pairs), ``difference`` (b - a), ``low``, ``high``, ``pairs``,
            ``differs`` (whether the interval excludes 0) and ``reason`` (why there is no interval, or no verdict).
        """
        first, second = self.points(a), self.points(b)
        fixed = set(a if isinstance(a, Mapping) else self.swept) | set(b if isinstance(b, Mapping) else self.swept)
        left_open = [key for key in self.swept if key not in fixed and key != "seed"]
        place = ["prompt_index", "sample_index", "seed"]
        sides = [self.measured(points).drop_duplicates(["copy_of", *place]) for points in (first, second)]
        pairs = sides[0].merge(sides[1], on=[*left_open, *place], suffixes=("_a", "_b"))
        pairs["cluster"] = compare.linked(pairs, place)
        rows = compare.paired_samples(pairs, self.declared)
        shared = [key for key in (*left_open, "seed") if key in self.settings]
        points = [each.assign(copy_of=compare.identities(each), noise_of=compare.noises(each)) for each in (first, second)]
        points = [each.sort_values("num_samples", ascending=False, kind="stable").drop_duplicates("copy_of") for each in points]
        both = points[0].merge(points[1], how="inner" if shared else "cross", on=shared or None, suffixes=("_a", "_b"))
        both["cluster"] = compare.linked(both, [*({"seed"} & set(shared))])
        rows |= {name: compare.paired_points(both, name) for name in self.metrics if self.declared[name].per == "point"}
        if self.ratings:
            by = list(a) if isinstance(a, Mapping) and isinstance(b, Mapping) and set(a) == set(b) else None
            rows[PREFERENCE.name] = self.ratings.compared(*self._settings_of(first, second, by))
        table = pd.DataFrame.from_dict({name: rows[name] for name in self.declared if name in rows}, orient="index")
        table.index.name = "metric"
        return table

    def _settings_of(
        self, first: pd.DataFrame, second: pd.DataFrame, by: Sequence[str] | None
    ) -> tuple[pd.Index[Any], npt.NDArray[np.int64], int, int, int]:
        """The points, the setting of each, the number of settings, and the settings that ``first`` and ``second`` are."""
        keys = [key for key in self.swept if key != "seed"] if by is None else list(by)
        codes = np.zeros(len(self.summary), dtype=np.int64)
        if keys:
            codes[:] = compare.places_of(self.summary[keys])
        count = int(codes.max(initial=0)) + 1
        for number, points in ((count, first), (count + 1, second)):
            codes[self.summary.index.isin(points.index)] = number
        return self.summary.index, codes, count + 2, count, count + 1

    def effect(self, key: str) -> pd.DataFrame:
        """The effect of a swept setting: `compare` from its lowest value to its highest; unset counts as highest."""
        values = ordered(self.summary[key])
        return self.compare({key: values[0]}, {key: values[-1]})

    def compare_samplers(
        self, metric: str, by: Sequence[str] | None = None, *, reference: Mapping[str, float | None] | None = None
    ) -> SamplerComparison:
        """Find which family of samplers is ahead if each is tuned equally long, by the expected best of n tried settings.

        Settings (points that differ in more than the seed) are grouped by the samplers that truncate. The expected best of n =
        1 to N settings of a family is computed exactly, without replacement; the best is chosen on one half of the prompts or
        samples and scored on the other. The module `budgets` has formulas and sources.

        Args:
            metric: ``METRIC:min``, ``METRIC:max`` or ``METRIC:reference`` (closest to the reference text).
            by: settings whose values define a family, instead of the samplers that truncate.
            reference: the metrics of a reference text, as in `Reference`.

        Raises:
            ResultsError: a name is wrong, or there is only one family.
        """
        aim = Aim.of(metric, reference, self.declared)
        if aim.metric.per == "pair":
            raise ResultsError(
                "metric", metric, "comes from ratings of pairs of settings, so families of samplers have no value"
            )
        for key in by or ():
            if key not in self.settings:
                raise ResultsError("by", key, f"is not a setting here; swept: {', '.join(self.swept) or 'none'}")
        order = np.argsort(-self.summary["num_samples"].to_numpy(), kind="stable")
        whole = self.summary.iloc[order]
        points = whole[~pd.Series(compare.identities(whole), whole.index).duplicated()].sort_index()
        keys = [key for key in self.swept if key != "seed" or key in (by or ())]
        setting = compare.places_of(points[keys]) if keys else np.zeros(len(points), dtype=np.int64)
        samples = self.measured(points) if aim.metric.per == "sample" else None
        return compare_samplers(aim, points, samples, setting, by)

    def scored(self, *metrics: Callable[[Any], float | None] | OwnMetric) -> Sweep:
        """Return the sweep with user-defined metrics, which every table, comparison and page then includes.

        Args:
            metrics: functions of one argument, a sample (annotated as ``dict``) or the samples of a point (as ``list``); see
                `own_metrics`. Values are cached beside the samples, and recomputed only if code or samples change.

        Raises:
            ConfigError: a function's argument is not annotated so, or a metric or column has its name.
            ResultsError: a function fails; the error names the sample.
        """
        found = self
        for each in metrics:
            metric = each if isinstance(each, OwnMetric) else OwnMetric.of(each)
            found = found._with(metric)
        return found

    def rated(self, ratings: Sequence[Rating]) -> Sweep:
        """Return the sweep with ratings of its samples: tables, comparisons and pages then include the metric ``preference``.

        Args:
            ratings: by any number of raters, from `store.ratings.read_ratings`. In ``summary`` a point has the preference of
                its setting, over all seeds.

        Raises:
            ResultsError: see `Ratings.of`.
        """
        found = Ratings.of(ratings, self.summary, self.samples)
        index, codes, count, *_ = self._settings_of(self.summary[:0], self.summary[:0], None)
        summary = self.summary.assign(**{PREFERENCE.name: found.preferences(index, codes, count)[0][codes]})
        return replace(self, summary=summary, declared={PREFERENCE.name: PREFERENCE, **self.declared}, ratings=found)

    def _with(self, own: OwnMetric) -> Sweep:
        metric, samples = own.metric, self.samples.sort_values(list(SAMPLE_KEY), kind="stable")
        if metric.name in {*self.summary, *self.samples} - {metric.name if metric.name in self.declared else None}:
            raise ConfigError("metric", own.key, "is the name of a column; rename the function")
        values = pd.Series(np.nan, samples.index)
        outcomes: dict[Any, tuple[Outcome | None, Outcome | None]] = {}
        for point, rows in samples.groupby("point", sort=False):
            number = own.values(records_of(rows), self.directories.get(int(str(point))))
            if metric.per == "point":
                outcomes[point] = number[0], None
            else:
                values[rows.index] = np.array(number, dtype=float)
                outcomes[point] = sample_mean([value for value in number if value is not None], metric)
        columns = [metric.name, metric.spread][: 1 + bool(metric.spread)]
        cells = {
            column: [
                None if isinstance(cell := outcomes.get(point, (None, None))[at], str) else cell for point in self.summary.index
            ]
            for at, column in enumerate(columns)
        }
        summary = self.summary.assign(**{column: pd.Series(cell, self.summary.index, float) for column, cell in cells.items()})
        table = self.samples if metric.per == "point" else self.samples.assign(**{metric.name: values})
        return replace(self, summary=summary, samples=table, declared={**self.declared, metric.name: metric})

    def only(self, chosen: npt.NDArray[np.bool_]) -> Sweep:
        """Return the sweep with only these points; labels do not change."""
        summary = self.summary[chosen]
        return replace(self, summary=summary, samples=self.samples[self.samples["point"].isin(summary.index)])

    def thinned(self, least: int = 1) -> Sweep:
        """Return the sweep with as many samples as fit on a page: the same for every point, at least ``least`` of each."""
        samples = self.samples
        size = samples["completion"].str.len().sum()
        share = min(1.0, MAX_SAMPLES / max(1, len(samples)), MAX_TEXT / max(1, size))
        if share == 1.0:
            return self
        places = samples.groupby(["sample_index", "prompt_index", "seed"], sort=True).ngroup()
        kept = min(int(places.max()) + 1, max(least, int((places.max() + 1) * share)))
        chosen = np.linspace(0, int(places.max()), kept).round().astype(int)
        return replace(self, samples=samples[places.isin(chosen)])

    def reasons(self) -> dict[str, str]:
        """For each metric that is empty somewhere, the reason at the first such point."""
        empty = {name: self.summary[name].isna() for name in self.declared if name in self.summary}
        first = {name: self.summary.index[where][0] for name, where in empty.items() if where.any()}
        of_point = {point: self._reasons_at(point) for point in dict.fromkeys(first.values())}
        found: dict[str, str] = {}
        for name, point in first.items():
            own = f"needs {self.declared[name].needs}"
            found[name] = of_point[point].get(name) or ("not in the point's summary" if name in METRICS else own)
        return found

    def _reasons_at(self, point: int) -> dict[str, str]:
        """Why metrics of one point are empty, by name."""
        samples = self.samples[self.samples["point"] == point]
        if not len(samples):
            return dict.fromkeys(self.declared, "has no samples yet")
        records: Any = samples.astype(dict.fromkeys(MEANS, object)).where(samples.notna(), None).to_dict("records")
        return metric_reasons(records)

    def failures(self) -> list[str]:
        """One line for each failed point, at most a hundred."""
        failed = self.summary[self.summary["status"] == "failed"]
        lines = [
            f"{row['directory']}: {row['error'] if pd.notna(row['error']) else 'failed'}"
            for _, row in failed.head(100).iterrows()
        ]
        return [*lines, f"{len(failed) - 100} more points failed"] if len(failed) > 100 else lines

    def to_xarray(self) -> xarray.Dataset:
        """The metrics as an `xarray.Dataset` with the swept settings as dimensions; an unset value is labelled ``null``.

        Raises:
            ResultsError: xarray is not installed, or two points have the same settings.
        """
        try:
            import xarray as _  # noqa: F401  an optional dependency
        except ImportError as error:
            raise ResultsError("to_xarray", "xarray", "is not installed; pip install xarray") from error
        keys = list(self.swept) or ["point_id"]
        table = self.summary.copy()
        for key in keys:
            if table[key].isna().any():
                table[key] = table[key].astype(object).where(table[key].notna(), "null")
        if table.duplicated(keys).any():
            raise ResultsError("to_xarray", ", ".join(keys), "does not identify every point; read one sweep at a time")
        wide = table.set_index(keys)[[*self.metrics, "num_samples"]]
        dataset: xarray.Dataset = wide.astype(float).to_xarray()
        return dataset


def records_of(samples: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of ``Sweep.samples`` as dictionaries with the fields of ``samples.jsonl``, in Python's own types."""
    columns = {name: samples[name].tolist() for name in FIELDS}
    columns["token_ids"] = [ids.tolist() for ids in samples["token_ids"]]
    for name in MEANS:
        columns[name] = [None if np.isnan(value) else value for value in columns[name]]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
