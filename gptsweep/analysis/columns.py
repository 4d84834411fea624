"""Convert CSV and JSON cells and lines of samples to typed columns of data frames, and back to plain values."""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..store.schema import ABOUT, COUNTS, MEANS, MODEL_COLUMNS, SAMPLE_KEY
from .metrics import METRICS

TEXT_COLUMNS = ("sweep", "model", "start", "stop", "logit_bias", "device", "dtype", "prompt", *ABOUT)
"""Columns that stay text even if every cell looks like a number."""


OWN_SAMPLES_NOTE = "each model measures its own samples, so this does not say which model writes better"
"""Of a metric that the model itself measures (`MEANS`), in a table of `several_models`."""


def several_models(table: pd.DataFrame, columns: Collection[str]) -> bool:
    """Return whether the rows of ``table`` differ in the model, by those of its ``columns`` that name one."""
    models = [name for name in ("model", *MODEL_COLUMNS) if name in columns]
    return bool(models) and len(table[models].drop_duplicates()) > 1


def spread_columns() -> list[str]:
    """The columns of ``summary.csv`` that measure spread over samples: standard deviations, then standard errors."""
    found = [metric for metric in METRICS.values() if metric.spread]
    return [metric.spread for metric in sorted(found, key=lambda metric: not metric.deviation)]


def ordered(column: pd.Series[Any]) -> list[Any]:
    """The distinct values of a setting: numbers in ascending order, then texts, then unset."""
    return sorted(
        {plain(value) for value in column},
        key=lambda each: (each is None, isinstance(each, str), each if each is not None else 0),
    )


def plain(value: Any) -> Any:
    """A cell as a Python value; None if it is empty."""
    if pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def label(value: Any) -> str:
    """A setting's value as a user types it."""
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)


def keys_of(rows: pd.DataFrame) -> list[str]:
    """The settings columns of a table made by `Sweep.group`."""
    return [str(name) for name in rows.columns[: list(rows.columns).index("points")]]


def typed(columns: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Make a data frame from CSV or JSON cells; the type of each column (integer, float, bool, text) is inferred."""
    return pd.DataFrame({name: typed_column(name, cells) for name, cells in columns.items()})


def typed_column(name: str, cells: Sequence[Any]) -> pd.Series[Any]:
    """Convert one column: text if its name says so or a cell is not a number; integers stay integers beside empty cells."""
    known = [value for value in cells if value is not None]
    if name in COUNTS:
        counts = pd.Series(pd.to_numeric(pd.Series(cells, dtype=object), errors="coerce"), dtype="float64")
        return counts.where(counts.abs() < 2**53).fillna(0).astype("int64")  # a larger count comes from a damaged file
    if name in METRICS or name in spread_columns() or (not known and name not in TEXT_COLUMNS):
        return pd.Series(pd.to_numeric(pd.Series(cells, dtype=object), errors="coerce"), dtype="float64")
    if name not in TEXT_COLUMNS and known:
        if all(str(value) in ("True", "False") for value in known):
            return pd.Series([None if value is None else str(value) == "True" for value in cells],
                             dtype="bool" if len(known) == len(cells) else "boolean")  # fmt: skip
        try:
            numbers = [None if value is None else float(value) for value in cells]
            whole = all(number is None or number.is_integer() for number in numbers) and all("." not in str(v) for v in known)
            if whole:
                ints = [None if value is None else int(value) for value in cells]
                large = max(value for value in ints if value is not None) >= 2**63
                kind = ("UInt64" if large else "Int64") if len(known) < len(cells) else ("uint64" if large else "int64")
                return pd.Series(ints, dtype=kind)
            return pd.Series(numbers, dtype="float64")
        except (ValueError, OverflowError):  # OverflowError: an integer beyond 64 bits
            pass
    return strings([None if value is None else str(value) for value in cells])


def strings(texts: Sequence[str | None]) -> pd.Series[Any]:
    """A text column. A lone surrogate, which neither Arrow nor UTF-8 can encode, becomes ``?``."""
    whole = [text if text is None or text.isascii() else text.encode("utf-8", "replace").decode() for text in texts]
    return pd.Series(whole, dtype="str")


class Columns:
    """Collect samples column by column, because a million dictionaries would not fit into memory."""

    def __init__(self) -> None:
        self.point = array("q")
        self.place = {name: array("Q" if name == "seed" else "q") for name in SAMPLE_KEY}
        self.reported = {name: array("d") for name in MEANS}
        self.prompt_tokens = array("q")
        self.ends = array("q", [0])
        self.tokens = array("i")
        self.completions: list[str] = []
        self.shared: dict[str, tuple[dict[str, int], array[int]]] = {
            name: ({}, array("i")) for name in ("prompt", "prompt_id", "finish_reason")
        }

    def add(self, number: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Append the samples of point ``number``."""
        self.point.extend([number] * len(samples))
        for name, places in self.place.items():
            places.extend([sample[name] for sample in samples])
        for name, values in self.reported.items():
            values.extend([math.nan if sample[name] is None else sample[name] for sample in samples])
        self.prompt_tokens.extend([sample["prompt_tokens"] for sample in samples])
        for sample in samples:
            self.tokens.extend(sample["token_ids"])
            self.ends.append(len(self.tokens))
        self.completions += [sample["completion"] for sample in samples]
        for name, (known, codes) in self.shared.items():
            codes.extend([known.setdefault(sample[name], len(known)) for sample in samples])

    def frame(self, settings: pd.DataFrame) -> pd.DataFrame:
        """Return the samples as a data frame, with the settings of their points in extra columns."""
        point = np.frombuffer(self.point, dtype=np.int64)
        ends = np.frombuffer(self.ends, dtype=np.int64)
        tokens = np.frombuffer(self.tokens, dtype=np.int32) if self.tokens else np.empty(0, np.int32)
        ids = np.empty(len(point), dtype=object)
        for row, (start, end) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
            ids[row] = tokens[start:end]
        seeds = np.frombuffer(self.place["seed"], dtype=np.uint64)
        columns: dict[str, Any] = {"point": point}
        for name in map(str, settings):
            columns[name] = settings[name].array.take(point)
        for name in ("prompt_id", "prompt"):
            columns[name] = self.categories(name)
        for name in ("prompt_index", "sample_index"):
            columns[name] = np.frombuffer(self.place[name], dtype=np.int64)
        columns["seed"] = seeds if len(seeds) and seeds.max() >= 2**63 else seeds.astype(np.int64)
        columns["completion"] = strings(self.completions)
        columns["finish_reason"] = self.categories("finish_reason")
        columns["prompt_tokens"] = np.frombuffer(self.prompt_tokens, dtype=np.int64)
        columns["completion_tokens"] = np.diff(ends)
        columns["token_ids"] = ids
        columns |= {name: np.frombuffer(values, dtype=np.float64) for name, values in self.reported.items()}
        return pd.DataFrame(columns, copy=False)

    def categories(self, name: str) -> pd.Categorical:
        """Return a column with few distinct texts as a categorical."""
        known, codes = self.shared[name]
        return pd.Categorical.from_codes(np.frombuffer(codes, dtype=np.int32), categories=pd.Index(strings(list(known))))
