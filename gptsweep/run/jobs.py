"""Jobs and their outcomes, and what can be found out about them without loading a model."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..analysis.summary import summarise, text_metrics
from ..display import get_logger
from ..errors import DeviceError, GptsweepError
from ..prompts import read_prompts
from ..records import AUTO, OVERFLOWS, Point
from ..store.reader import read_manifest
from ..store.schema import SAMPLING_KEYS
from ..store.writer import PointWriter
from .executors import Executor
from .manifest import model_of, wanted_settings

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A point and its run directory. ``overwrite``: whether the samples of another point there are replaced."""

    point: Point
    directory: Path
    overwrite: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The outcome of a job: the row of its ``summary.csv``, or the error that it failed with."""

    job: Job
    summary: Mapping[str, Any] | None = None
    error: Exception | None = None


def work_ahead(groups: Mapping[Any, Sequence[Job]]) -> list[tuple[int, int]]:
    """Estimate the number of rows, and the most tokens, that each group still has to generate.

    Args:
        groups: the jobs of each model, in the order in which the models are opened.

    Returns:
        Rows and tokens by group, from the files on disk; 0 for the first group, which is opened next.
    """
    prompts: dict[str, int] = {}
    ahead = [(0, 0)]
    for group in itertools.islice(groups.values(), 1, None):
        rows = tokens = 0
        for job in group:
            start, sampling = job.point.start, job.point.sampling
            if start not in prompts:
                try:
                    prompts[start] = len(read_prompts(start))
                except GptsweepError:  # the session reports it when the point is due
                    prompts[start] = 0
            wanted = prompts[start] * sampling.num_samples
            manifest = read_manifest(job.directory) or {}
            recorded = manifest.get("logprobs", 0)
            enough = isinstance(recorded, int) and recorded >= sampling.logprobs
            if manifest.get("status") != "complete" or manifest.get("lines") != wanted or not enough:
                rows += wanted
                tokens += wanted * sampling.max_new_tokens
        ahead.append((rows, tokens))
    return ahead[: len(groups)]


def without_model(jobs: Iterable[Job], failure: Exception, executor: Executor) -> Iterator[Outcome]:
    """Yield the outcomes of jobs whose model cannot be loaded: ``failure``, unless a job was finished earlier."""
    for job in jobs:
        try:
            summary = finished(job, executor)
        except (GptsweepError, OSError):
            summary = None
        if summary is not None:
            log.warning("%s was finished earlier and stays as it is; its model cannot be loaded now", job.directory)
        yield Outcome(job, summary=summary, error=failure if summary is None else None)


def finished(job: Job, executor: Executor) -> Mapping[str, Any] | None:
    """Return the row of ``summary.csv`` of a job that was finished earlier, and so needs no model; otherwise None.

    Without the model the point_id is not known, so the model's name, the settings and the prompts are compared instead.

    Raises:
        GptsweepError: the prompts cannot be read, or the directory is in use.
    """
    directory, point = job.directory, job.point
    manifest = read_manifest(directory) or {}
    if manifest.get("status") != "complete" or not isinstance(identity := manifest.get("point_id"), str):
        return None
    prompts = read_prompts(point.start)
    with PointWriter(directory, identity, logprobs=point.sampling.logprobs) as writer:
        samples = writer.samples()
        if point.sampling.overflow == AUTO and samples and samples[0].get("overflow") in OVERFLOWS:
            # Only the model knows what `auto` resolves to.
            point = replace(point, sampling=replace(point.sampling, overflow=samples[0]["overflow"]))
        settings = wanted_settings(executor, point)
        known = {"model": model_of(point.model), "dtype": settings["dtype"], "device": settings["device"]}
        there = {(sample["prompt_index"], prompts[sample["prompt_index"]].text == sample["prompt"])
                 for sample in samples if sample["prompt_index"] < len(prompts)}  # fmt: skip
        requested = itertools.product(range(len(prompts)), range(point.sampling.num_samples))
        if (
            not writer.complete
            or {name: manifest.get(name) for name in known} != known
            or there != {(index, True) for index in range(len(prompts))}
            or not writer.done.issuperset(requested)
            or {name: value for name, value in samples[0].items() if name in SAMPLING_KEYS} != point.sampling.as_json()
            or samples[0]["seed"] != point.seed
        ):
            return None
    row = summarise({"point_id": identity, **settings}, samples)
    return {**row, "tokens_per_second": manifest.get("tokens_per_second"), **text_metrics(samples)}


def disk_full(error: Exception) -> bool:
    """Whether ``error`` means that nothing more can be written."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)


def with_advice(error: Exception, key: str, value: object) -> Exception:
    """Return ``error``, or, if memory ran out, an error about ``key`` that says what would work."""
    if not isinstance(error, MemoryError):
        return error
    what = "does not fit in memory, even one row at a time; use a smaller model, dtype or sampling.max_new_tokens"
    short = DeviceError(key, value, what)
    short.__cause__ = error
    return short
