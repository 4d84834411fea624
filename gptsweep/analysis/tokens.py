"""Per-token measurements from ``logprobs.jsonl``, joined with the samples: one row per token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..display import get_logger
from ..store.logprobs import COUNTS, NUMBERS, has_logprobs, read_logprobs

log = get_logger(__name__)


def logprobs_of(samples: pd.DataFrame, directories: Mapping[int, Path]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the lines of ``logprobs.jsonl`` that belong to samples, with the label of the sample; log what cannot be read.

    A line whose tokens differ from those of its sample is skipped.

    Args:
        samples: rows of ``Sweep.samples``.
        directories: run directories by label of the point.
    """
    measured = {label: directory for label, directory in directories.items() if has_logprobs(directory)}
    if not measured:
        return
    problems: list[str] = []
    for point, rows in samples.groupby("point", sort=False):
        directory = measured.get(int(str(point)))
        if directory is None:
            continue
        places = rows[["prompt_index", "sample_index"]].itertuples(index=False, name=None)
        labels = dict(zip(places, rows.index, strict=True))
        sampled = dict(zip(rows.index, rows["token_ids"], strict=True))
        found: dict[int, dict[str, Any]] = {}
        for key, line in read_logprobs(directory, problems=problems):
            label = labels.get(key)
            if label is not None and line["token_ids"] == sampled[label].tolist():
                found[label] = line
        yield from sorted(found.items())
    for problem in problems:
        log.warning("%s", problem)


def token_frame(samples: pd.DataFrame, directories: Mapping[int, Path]) -> pd.DataFrame:
    """Build `Sweep.tokens`."""
    columns: dict[str, list[Any]] = {name: [] for name in ("sample", "position", "token_id", "text", "begin", "end")}
    columns |= {name: [] for name in (*NUMBERS, *COUNTS, "top_ids", "top_logprobs", "top_texts")}
    for label, line in logprobs_of(samples, directories):
        ids, texts = line["token_ids"], line["texts"]
        columns["sample"] += [label] * len(ids)
        columns["position"] += range(len(ids))
        columns["token_id"] += ids
        columns["text"] += [texts[str(token)] for token in ids]
        columns["begin"] += [0, *line["ends"][:-1]][: len(ids)]
        columns["end"] += line["ends"]
        for name in (*NUMBERS, *COUNTS, "top_ids", "top_logprobs"):
            columns[name] += line[name]
        columns["top_texts"] += [[texts[str(token)] for token in likeliest] for likeliest in line["top_ids"]]
    whole = ("sample", "position", "token_id", "begin", "end", *COUNTS)
    types: dict[str, Any] = dict.fromkeys(whole, np.int64) | dict.fromkeys(NUMBERS, np.float64)
    frame = pd.DataFrame(columns).astype(types)
    about = samples.loc[frame["sample"], ["point", "prompt_index", "seed", "sample_index"]].reset_index(drop=True)
    return pd.concat([frame[["sample"]], about, frame.drop(columns="sample")], axis=1)
