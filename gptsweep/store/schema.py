"""The names of files, columns and fields of results, each defined once; and the validity of a line of samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..records import FINISH_REASONS, FINISH_REASONS_OF_0_1, SETTINGS_OF_0_1, UNDECIDING, Sampling, neutral_settings

SAMPLES = "samples.jsonl"
PARTIAL = "samples.partial.jsonl"
LOGPROBS = "logprobs.jsonl"
LOGPROBS_PARTIAL = "logprobs.partial.jsonl"
SUMMARY = "summary.csv"
MANIFEST = "manifest.json"
ORIGINS = "origins.json"
UNFINISHED = "unfinished.jsonl"
SWEEP = "sweep.csv"
REPORT = "report.html"
REFERENCE = "reference.json"
COMPARISONS = "samplers.json"
SCORES = "scores.json"
RATINGS = "ratings.jsonl"
FAILURES = ".failures.jsonl"
"""Failures of jobs that may have run in other processes; kept until the end of the sweep."""
LOCK = ".lock"
SWEEP_LOCK = ".sweep.lock"
TEMPORARY = ".tmp"
HYDRA = ".hydra"
MULTIRUN = "multirun.yaml"

COUNTS = ("num_prompts", "num_samples", "prompt_tokens", "completion_tokens", *(f"finish_{end}" for end in FINISH_REASONS))
"""Columns of ``summary.csv`` with counts; they follow the settings."""
RARE_COUNTS = tuple(f"finish_{end}" for end in FINISH_REASONS if end not in FINISH_REASONS_OF_0_1)
"""Count columns that are present only if they are above 0."""
STATE = ("status", "error", "directory")
"""Columns of ``sweep.csv`` with the outcome of a point."""
ABOUT = ("point_id", *STATE)
"""Columns that identify a point and its state; not settings."""
STATUSES = ("complete", "partial", "failed", "missing")

SAMPLE_KEY = ("prompt_index", "seed", "sample_index")
"""Fields that distinguish the samples of one setting."""
MEANS = ("logprob_mean", "sampler_logprob_mean", "entropy_mean")
"""Fields of a line with the engine's measurements, in nats; each may be null."""
SAMPLING_KEYS = tuple(each.name for each in fields(Sampling) if each.name not in UNDECIDING)
SETTINGS_SINCE_0_1 = {
    name: list(neutral) if isinstance(neutral, tuple) else neutral
    for name, neutral in neutral_settings(Sampling).items()
    if name in SAMPLING_KEYS and name not in SETTINGS_OF_0_1
}
"""Values of settings that a line does not name, as in JSON."""
COLUMN_OF_KEY = {
    "device.dtype": "dtype", "device.name": "device", "model.out_dir": "out_dir", "model.file": "file", "model.path": "path",
    "model.meta": "meta", "model.step": "step", "model.softcap": "softcap", "model.tokenizer": "tokenizer",
    "model.revision": "revision",
}  # fmt: skip
"""Columns whose name differs from the key that users type by more than the prefix ``sampling.``."""
MODEL_COLUMNS = tuple(column for key, column in COLUMN_OF_KEY.items() if key.startswith("model."))
"""The settings that choose a model, beside ``model``."""

Key = tuple[int, int]
"""``(prompt_index, sample_index)``: the key of a sample in its point."""

_GREATEST = 1e30
"""No mean of logarithms comes near it, and its square does not overflow."""


def column_name(key: str) -> str:
    """The column of a key that users type: ``sampling.top_k`` is ``top_k``."""
    return COLUMN_OF_KEY.get(key, key.removeprefix("sampling."))


def column_of_setting(key: str) -> str | None:
    """The column of a key; None if the key is not a setting of points."""
    name = column_name(key)
    return name if name in (*SAMPLING_KEYS, *COLUMN_OF_KEY.values(), "model", "start", "seed") else None


def key_of(sample: Mapping[str, Any]) -> Key:
    """The key of a line of ``samples.jsonl``."""
    return sample["prompt_index"], sample["sample_index"]


def is_whole(sample: Any) -> bool:
    """Whether all fields used anywhere are present, with their types and within their ranges."""
    try:
        return (
            type(sample["completion"])
            is type(sample["prompt"])
            is type(sample["prompt_id"])
            is type(sample["finish_reason"])
            is str
            and type(prompt := sample["prompt_index"]) is type(index := sample["sample_index"]) is int
            and 0 <= prompt < 2**63
            and 0 <= index < 2**63
            and type(read := sample["prompt_tokens"]) is type(seed := sample["seed"]) is int
            and 0 <= read < 2**63
            and 0 <= seed < 2**64
            and type(ids := sample["token_ids"]) is list
            and set(map(type, ids)) <= {int}
            and 0 <= min(ids, default=0) <= max(ids, default=0) < 2**31
            and sample["completion_tokens"] == len(ids)
            and all(
                (mean := sample[name]) is None or (type(mean) in (float, int) and -_GREATEST < mean < _GREATEST)
                for name in MEANS
            )
        )
    except (KeyError, TypeError):
        return False
