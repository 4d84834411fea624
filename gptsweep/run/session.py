"""Run these points: the one loop that the command, the launcher and the Python interface call.

A point becomes a `Task` (prompts read and encoded, point_id known), tasks become rows, and rows go through one engine per
loaded model. Rows that would come out the same are run once and delivered to each task that wants them.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import itertools
import os
import platform
import signal
import sys
import threading
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ..analysis.metrics import METRICS
from ..analysis.summary import summarise, text_metrics
from ..config import point_from_config
from ..display import get_logger
from ..engine.backend import BackendProgress, Workload, windows_read
from ..engine.engine import Engine, out_of_memory
from ..engine.noise import independent_key
from ..engine.sampler import stream_at
from ..errors import ConfigError, DeviceError, GptsweepError, Interrupted, ModelError, PromptError, ResultsError
from ..models.files.tokenizers import Tokenizer, completion_text, stop_matcher
from ..models.gpt2 import GPT
from ..models.loading import layer_kinds, load_model, resolve_device, resolve_dtype
from ..prompts import read_prompts
from ..records import (
    ENGINE_VERSION,
    MODELS,
    NANOGPT_FILE,
    Completion,
    DeviceSettings,
    ModelSource,
    Point,
    Prefix,
    Prompt,
    Row,
    Sample,
    Sampling,
    coerce,
    point_id,
)
from ..store.reader import read_manifest, read_samples
from ..store.unfinished import Unfinished
from ..store.writer import PointWriter
from .progress import Progress

if TYPE_CHECKING:
    import pandas as pd

if sys.platform != "win32":
    import resource

log = get_logger(__name__)

_SIGPIPE = 13  # Windows has no name for it
_OPEN_POINTS = 200
"""Points whose directories are held open at once, at most: each takes a file descriptor, of which a process has few."""
_POINTS_TOGETHER = 64
"""Points that share noise whose samples are started side by side: with 256 rows in flight, four samples of each."""


# -- a loaded model ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class LM:
    """A loaded language model: `generate` text, or write your own loop on ``model(ids)``.

    ``model`` maps ``int64 [batch, time]`` to logits ``[batch, time, vocab_size]``; it is for inference. ``dtype`` and
    ``device_type`` are resolved, never ``auto``. ``arithmetic`` is what the layers compute in, as `point_id` takes it:
    ``dtype``, or ``int8 in halves`` on a CPU where 0.1 cut off the sums of int8 layers, for its samples are other ones.
    ``promise``: whether samples are the same to the bit whatever the batch.
    """

    source: ModelSource
    device: DeviceSettings
    model: GPT
    tokenizer: Tokenizer
    fingerprint: str
    engine: Engine
    dtype: str
    device_type: str
    arithmetic: str

    @property
    def promise(self) -> bool:
        """Whether samples are the same to the bit whatever else is in the batch, on this machine and torch build."""
        return self.engine.promise

    def generate(
        self, prompts: str | Sequence[str], *, num_samples: int = 1, seed: int = 1337, **sampling: Any
    ) -> list[Sample]:
        """Continue one prompt or several.

        Args:
            prompts: the text to continue; ``FILE:``, ``LINES:`` and ``JSONL:`` are not read here.
            num_samples: completions of each prompt.
            seed: from 0 to 2**64 - 1.
            **sampling: any key of the config group ``sampling`` (``temperature=0.8, top_k=200, max_new_tokens=500, …``).

        Returns:
            `Sample` records ordered by prompt and sample: ``.completion`` is the text, ``.token_ids`` what was sampled.

        Raises:
            ConfigError: a setting is out of its range.
            PromptError: a prompt is empty, cannot be encoded, or does not fit with ``overflow="stop"``.
        """
        texts = [prompts] if isinstance(prompts, str) else _listed("prompts", prompts)
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise ConfigError("prompts", wrong[0], "must be a text, or several")
        point = Point(
            model=self.source, device=self.device, sampling=sampling_of(num_samples=num_samples, **sampling), seed=seed
        )
        task = Task.of(self, point, encoded(self, tuple(Prompt(str(i), text) for i, text in enumerate(texts))))
        return sorted((sample for _, sample in generate(self, [task])), key=lambda sample: sample.key)


def load(
    model: str | os.PathLike[str] = "shakespeare",
    *,
    device: str = "auto",
    dtype: str = "auto",
    compile: bool = False,
    threads: int | None = None,
    max_rows: int | None = None,
    meta: str | None = None,
    file: str = NANOGPT_FILE,
) -> LM:
    """Load a model.

    Args:
        model: ``shakespeare``, ``gpt2``, ``gpt2-medium``, ``gpt2-large``, ``gpt2-xl``; a nanoGPT ``out_dir`` (a directory
            with ``ckpt.pt``); or a directory or hub id with ``config.json`` and safetensors of the GPT-2 architecture.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``, ``int8``.
        compile: whether to use `torch.compile`.
        threads: CPU threads; None is torch's own.
        max_rows: rows decoded together; None plans from memory.
        meta: path of the ``meta.pkl`` of a nanoGPT checkpoint, where it is not found by itself; ``gpt2`` is GPT-2's encoding.
        file: the checkpoint in a nanoGPT ``out_dir``, where it is not ``ckpt.pt``.

    Raises:
        ModelError: there is no such model, or it cannot be read.
        DeviceError: the device, dtype or compiler is not there.
    """
    if not isinstance(model, (str, os.PathLike)):
        raise ModelError("model", model, f"must be a directory, or one of {', '.join(MODELS)}")
    name = os.fspath(model)
    directory = Path(name)
    saved = (directory / file).exists() or (any(directory.glob("*.pt")) and not (directory / "config.json").exists())
    if file != NANOGPT_FILE or saved:
        source = ModelSource(name="resume", out_dir=name, meta=meta, file=file)
    elif name in ("resume", "hf") or Path(name).is_dir() or "/" in name:
        source = ModelSource(name="hf", path=name)
    elif name in MODELS:
        source = ModelSource(name=name)
    else:
        near = difflib.get_close_matches(name, MODELS, n=1)
        meant = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(MODELS)}"
        raise ModelError("model", name, f"is no model, no directory here, and no hub id such as owner/name{meant}")
    settings = DeviceSettings(name=device, dtype=dtype, compile=compile, threads=threads, max_rows=max_rows)
    return open_model(source, settings)


def open_model(source: ModelSource, settings: DeviceSettings) -> LM:
    """Load the model of a point. `load` is the same with fewer words."""
    loaded = load_model(source, settings)
    engine = Engine(loaded.model, vocab_size=loaded.tokenizer.vocab_size, max_rows=settings.max_rows)
    if not engine.promise:
        log.warning("on this device samples may differ with the number of rows decoded together (promise: false)")
    return LM(
        source=source,
        device=settings,
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        fingerprint=loaded.fingerprint,
        engine=engine,
        dtype=loaded.dtype,
        device_type=loaded.device.type,
        arithmetic=loaded.arithmetic,
    )


def sampling_of(**settings: Any) -> Sampling:
    """`Sampling` from keyword arguments as a user writes them: lists and dicts welcome."""
    known = sorted(Sampling.__dataclass_fields__)
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, [*known, "start", "seed"], n=1)
            what = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"sampling.{name}", value, f"no such setting; {what}")
    return Sampling(**settings)


# -- points to rows ----------------------------------------------------------------------------------------------------------


Prompts = tuple[tuple[Prompt, ...], tuple[tuple[int, ...], ...]]
"""Prompts, and their token ids."""


def encoded(lm: LM, prompts: tuple[Prompt, ...]) -> Prompts:
    """The prompts with their token ids.

    Raises:
        PromptError: a prompt has a character that the model does not know.
    """
    return prompts, tuple(tuple(lm.tokenizer.encode(prompt.text)) for prompt in prompts)


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A point with its prompts read and encoded: ready for the engine of the model it belongs to."""

    point: Point
    prompts: tuple[Prompt, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    point_id: str
    noise_key: int

    @classmethod
    def of(cls, lm: LM, point: Point, prompts: Prompts) -> Task:
        """Hold a point and its prompts against the model.

        Raises:
            PromptError: a prompt does not fit.
            ConfigError: a setting does not go with the model.
        """
        sampling = point.sampling
        texts, prompt_ids = prompts
        block_size = lm.model.config.block_size
        if sampling.overflow == "stop" and (longest := max(map(len, prompt_ids), default=0)) > block_size:
            what = f"a prompt has {longest} tokens, and the model reads {block_size}; shorten it, or use sampling.overflow=crop"
            raise PromptError("start", point.start, what)
        if sampling.stop_at_eot and lm.tokenizer.eot_id is None:
            raise ConfigError(
                "sampling.stop_at_eot", True, f"model={lm.source.name} has no end-of-text token; use sampling.stop"
            )
        for token, _ in sampling.logit_bias:
            if token >= lm.tokenizer.vocab_size:
                wanted = f"token ids of model={lm.source.name} are below {lm.tokenizer.vocab_size}"
                raise ConfigError("sampling.logit_bias", token, wanted)
        identity = point_id(point, prompts=texts, weights=lm.fingerprint, tokenizer=lm.tokenizer.fingerprint,
                            dtype=lm.arithmetic, device_type=lm.device_type)  # fmt: skip
        key = point.seed if sampling.noise == "common" else independent_key(point.seed, identity)
        return cls(point, texts, prompt_ids, identity, key)

    @property
    def keys(self) -> Iterator[tuple[int, int]]:
        """``(prompt_index, sample_index)`` of every sample the point asks for, in the order of the file."""
        return itertools.product(range(len(self.prompts)), range(self.point.sampling.num_samples))

    def row(self, lm: LM, key: tuple[int, int], prefix: Prefix | None = None) -> Row:
        """The row of one sample, which goes on after ``prefix``."""
        sampling = self.point.sampling
        return Row(
            prompt_ids=self.prompt_ids[key[0]],
            sampling=sampling,
            noise_key=self.noise_key,
            prompt_index=key[0],
            sample_index=key[1],
            eot_id=lm.tokenizer.eot_id,
            new_stop_matcher=partial(stop_matcher, lm.tokenizer, sampling.stop) if sampling.stop else None,
            prefix=prefix,
        )

    def goes_on(self, lm: LM, key: tuple[int, int], prefix: Prefix) -> bool:
        """Whether ``prefix`` can be what one sample of the point has before it is finished."""
        sampling, ids = self.point.sampling, prefix.token_ids
        if key[0] >= len(self.prompts) or (prefix.stream is None) != (sampling.rng == "counter"):
            return False
        try:
            if prefix.stream is not None:
                stream_at(prefix.stream)
        except RuntimeError:
            return False
        return (
            len(ids) < sampling.max_new_tokens
            and max(ids, default=0) < lm.tokenizer.vocab_size
            and not (sampling.stop_at_eot and lm.tokenizer.eot_id in ids)
            and not (sampling.stop and any(map(stop_matcher(lm.tokenizer, sampling.stop), ids)))
            and not (sampling.overflow == "stop" and len(self.prompt_ids[key[0]]) + len(ids) > lm.model.config.block_size)
        )

    def outcome_key(self, key: tuple[int, int]) -> object:
        """Equal for samples that come out the same: greedy ones whatever their seed, equal points' whatever their names."""
        sampling = _deciding(self.point.sampling)
        if sampling.temperature == 0:
            return self.prompt_ids[key[0]], sampling
        return self.prompt_ids[key[0]], sampling, self.noise_key, key

    def sample(self, lm: LM, key: tuple[int, int], completion: Completion) -> Sample:
        """The line of ``samples.jsonl`` that a completion makes."""
        sampling, prompt = self.point.sampling, self.prompts[key[0]]
        eot_id = lm.tokenizer.eot_id if sampling.stop_at_eot else None
        return Sample(
            point_id=self.point_id,
            prompt_id=prompt.id,
            prompt_index=key[0],
            sample_index=key[1],
            seed=self.point.seed,
            sampling=sampling,
            model=self.point.model.name,
            prompt=prompt.text,
            completion=completion_text(lm.tokenizer, completion.token_ids, sampling.stop, eot_id),
            finish_reason=completion.finish_reason,
            prompt_tokens=len(self.prompt_ids[key[0]]),
            token_ids=completion.token_ids,
            logprob_mean=completion.logprob_mean,
            sampler_logprob_mean=completion.sampler_logprob_mean,
            entropy_mean=completion.entropy_mean,
        )


@lru_cache
def _deciding(sampling: Sampling) -> Sampling:
    """The settings without what does not decide the tokens of a sample. Rows share the result: there may be millions."""
    if sampling.temperature == 0:
        return replace(sampling, noise="common", num_samples=1, top_k=None, top_p=None, min_p=None)
    if sampling.rng == "counter":
        return replace(sampling, noise="common", num_samples=1)
    return replace(sampling, noise="common")  # a stream is run whole, by one point, or its draws come in pieces


Wanted = tuple[Task, tuple[int, int]]
"""A sample of a task, by its ``(prompt_index, sample_index)``."""

Prefixes = Mapping[Task, Mapping[tuple[int, int], Prefix]]
"""What unfinished samples have so far."""

OnStep = Callable[[BackendProgress, Callable[[], Iterator[tuple[Wanted, Prefix]]]], None]
"""Takes what the engine has done, and a function that tells at any moment what each unfinished sample has."""


def generate(
    lm: LM,
    tasks: Sequence[Task],
    wanted: Mapping[Task, Sequence[tuple[int, int]]] | None = None,
    on_step: OnStep | None = None,
    prefixes: Prefixes | None = None,
) -> Iterator[tuple[Task, Sample]]:
    """Run the samples of ``tasks`` in one batched pass, and yield each as it finishes.

    Args:
        lm: the model of all of them.
        tasks: what to run; `_starting_order` says what begins first.
        wanted: the samples to make of each task; None: all.
        on_step: called after each step of the engine.
        prefixes: what samples go on after.
    """
    prefixes = prefixes or {}
    deliveries: dict[object, list[Wanted]] = defaultdict(list)
    for task, key in _starting_order(tasks, wanted, prefixes):
        deliveries[task.outcome_key(key)].append((task, key))
    outcomes: dict[int, tuple[Row, object]] = {}

    def begun(recipients: Iterable[Wanted]) -> Prefix | None:
        if not prefixes:
            return None
        return next((prefixes[task][key] for task, key in recipients if key in prefixes.get(task, ())), None)

    def tokens_begun(recipients: Iterable[Wanted]) -> int:
        return 0 if (prefix := begun(recipients)) is None else len(prefix.token_ids)

    workload = Workload(
        rows=len(deliveries),
        prompt_tokens=max((len(ids) for task in tasks for ids in task.prompt_ids), default=1),
        row_tokens=max((len(ids) + t.point.sampling.max_new_tokens for t in tasks for ids in t.prompt_ids), default=1),
        new_tokens=sum(
            recipients[0][0].point.sampling.max_new_tokens - tokens_begun(recipients) for recipients in deliveries.values()
        ),
        windows=sum(_windows_read(lm, *recipients[0], tokens_begun(recipients)) for recipients in deliveries.values()),
    )

    def rows() -> Iterator[Row]:
        waiting = deque(deliveries)
        while waiting:
            outcome = waiting.popleft()
            task, key = deliveries[outcome][0]
            row = task.row(lm, key, begun(deliveries[outcome]))
            outcomes[id(row)] = row, outcome
            yield row

    def step(progress: BackendProgress) -> None:
        def unfinished() -> Iterator[tuple[Wanted, Prefix]]:
            for row, prefix in progress.unfinished():
                if id(row) in outcomes:  # else it is being delivered
                    yield deliveries[outcomes[id(row)][1]][0], prefix

        assert on_step is not None
        on_step(progress, unfinished)

    for completion in lm.engine.run(rows(), workload, None if on_step is None else step):
        _, outcome = outcomes.pop(id(completion.row))
        for task, key in deliveries.pop(outcome):
            yield task, task.sample(lm, key, completion)


def _windows_read(lm: LM, task: Task, key: tuple[int, int], begun: int) -> int:
    sampling = task.point.sampling
    return windows_read(sampling, len(task.prompt_ids[key[0]]), sampling.max_new_tokens, lm.model.config.block_size, begun)


def _starting_order(
    tasks: Sequence[Task], wanted: Mapping[Task, Sequence[tuple[int, int]]] | None, prefixes: Prefixes
) -> Iterator[Wanted]:
    """Samples in the order in which to start them: of some points that share noise, the same sample beside one another.

    Their ids are equal until their settings make a difference, and for so long they are computed once. A stream's samples
    come one after another instead, those already there included unless a prefix says where the stream is.
    """
    with_noise: dict[int, list[Task]] = defaultdict(list)
    streams: dict[Task, list[object]] = {}
    firsts: dict[object, int] = {}
    for task in tasks:
        if task.point.sampling.rng == "counter":
            with_noise[task.noise_key].append(task)
        else:
            deciding = _deciding(task.point.sampling), task.noise_key
            streams[task] = [(*deciding, prompt, ids) for prompt, ids in enumerate(task.prompt_ids)]
            for stream, first in zip(streams[task], _firsts(task, wanted, prefixes.get(task, {})), strict=True):
                firsts[stream] = min(first, firsts.get(stream, first))
    for task, each in streams.items():
        yield from ((task, key) for key in task.keys if key[1] >= firsts[each[key[0]]])
    for alike in with_noise.values():
        for begin in range(0, len(alike), _POINTS_TOGETHER):
            together = alike[begin : begin + _POINTS_TOGETHER]
            some = ((task, key) for task in together for key in (task.keys if wanted is None else wanted[task]))
            yield from sorted(some, key=itemgetter(1))


def _firsts(
    task: Task, wanted: Mapping[Task, Sequence[tuple[int, int]]] | None, prefixes: Mapping[tuple[int, int], Prefix]
) -> list[int]:
    """By prompt, the first sample to draw from its stream: the latest that has a prefix, if none before it is wanted."""
    samples = task.point.sampling.num_samples
    lowest: dict[int, int] = {}
    for prompt, sample in task.keys if wanted is None else wanted[task]:
        lowest[prompt] = min(sample, lowest.get(prompt, sample))
    latest = dict(sorted(prefixes))
    begins = [(lowest.get(prompt, samples), latest.get(prompt, 0)) for prompt in range(len(task.prompts))]
    return [samples if low == samples else last if last <= low else 0 for low, last in begins]


# -- rows to run directories -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A point, and the run directory that its results belong in."""

    point: Point
    directory: Path
    overwrite: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of a job: the row of its ``summary.csv``, or the error that it failed with."""

    job: Job
    summary: Mapping[str, Any] | None = None
    error: Exception | None = None


def run_jobs(
    jobs: Sequence[Job], progress: Progress, models: Models | None = None, unfinished: Unfinished | None = None
) -> Iterator[Outcome]:
    """Run jobs, those with the same model and device in one batched pass, and yield each job's outcome as it is settled.

    What is on disk already is not made again. An error of one job leaves the others alone; Ctrl-C and SIGTERM end the run
    between two steps of the engine, with every finished sample on disk, and what the others have in ``unfinished``.

    Args:
        jobs: what to run; those with the same model and device begin as `_starting_order` says.
        progress: shows how far they are.
        models: keeps the last model for the next call; None keeps none.
        unfinished: where samples that were begun go on from, and are kept; None makes them from their beginning.

    Raises:
        Interrupted: the user (or, as SIGTERM, the system) wants it to end.
    """
    groups: dict[tuple[ModelSource, DeviceSettings], list[Job]] = defaultdict(list)
    for job in jobs:
        groups[job.point.model, job.point.device].append(job)
    done = _Done(points_total=len(jobs), groups=len(groups))
    models = models or Models()
    with Interruption() as interruption:
        for (source, device), group in groups.items():
            try:
                lm = models.open(source, device)
            except Exception as error:  # of any kind: the other models' points go on
                failure = mendable(error, "model", source.name)
                yield from _without_model(group, failure)
                continue
            yield from _Batch(lm, progress, done, interruption, unfinished).run(group)
            del lm  # before the next is loaded: two need not fit


def _without_model(jobs: Iterable[Job], failure: Exception) -> Iterator[Outcome]:
    """The outcomes of jobs whose model cannot be loaded: those that were finished earlier stay so."""
    for job in jobs:
        try:
            summary = finished(job)
        except (GptsweepError, OSError):
            summary = None
        if summary is not None:
            log.warning("%s was finished earlier, and stays as it is; now its model cannot be loaded", job.directory)
        yield Outcome(job, summary=summary, error=failure if summary is None else None)


class Models:
    """Opens models, and keeps the last one open for whoever wants it next."""

    def __init__(self) -> None:
        self._last: LM | None = None

    def open(self, source: ModelSource, settings: DeviceSettings) -> LM:
        """As `open_model`, which see."""
        if self._last is None or (self._last.source, self._last.device) != (source, settings):
            self._last = None
            self._last = open_model(source, settings)
        return self._last


@dataclass(slots=True)
class _Done:
    """Counts over all groups of a run."""

    points_total: int
    groups: int
    points: int = 0
    rows: int = 0
    rows_total: int = 0
    tokens: int = 0
    windows: int = 0


class _Batch:
    """Jobs of one loaded model, on their way to disk."""

    def __init__(
        self, lm: LM, progress: Progress, done: _Done, interruption: Interruption, unfinished: Unfinished | None
    ) -> None:
        self.lm, self.progress, self.done, self.interruption, self.unfinished = lm, progress, done, interruption, unfinished
        self.jobs: dict[Task, Job] = {}
        self.missing: dict[Task, set[tuple[int, int]]] = {}
        self.fresh: dict[Task, list[Sample]] = defaultdict(list)
        self.broken: dict[Task, Exception] = {}
        self.readable: set[str] = set()
        self.restored = False
        self.prefixes: dict[Task, dict[tuple[int, int], Prefix]] = defaultdict(dict)
        self.in_flight: Callable[[], Iterable[tuple[Wanted, Prefix]]] = list
        self.writers: OrderedDict[Task, PointWriter] = OrderedDict()
        self.open_points = open_points()
        self.made_by = made_by(lm)
        self.changes: set[str] = set()
        self.started = time.perf_counter()
        self.tokens_before, self.windows_before = done.tokens, done.windows

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Settle every job."""
        try:
            yield from self._plan(jobs)
            self._restore()
            self.done.rows_total += sum(map(len, self.missing.values()))
            try:
                yield from self._decode(list(self.missing))
            except Exception as error:
                if len(self.missing) > 1 and not disk_full(error):
                    log.warning("%s; going on with one point at a time", error)
                    yield from self._decode_singly()
                else:
                    yield from [self._failed(task, error) for task in list(self.missing)]
            self._show(0)
        except BaseException as ended:
            kept = self._keep()
            if isinstance(ended, Interrupted):
                ended.unfinished = kept
            raise
        else:
            self._keep()
        finally:
            while self.writers:
                self.writers.popitem()[1].__exit__(None, None, None)

    def _plan(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Make tasks of the jobs and see what is on disk; the outcomes of those that fail here, or have nothing left to do."""
        prompts: dict[str, Prompts] = {}
        for job in jobs:
            point = job.point
            try:
                if point.start not in prompts:
                    prompts[point.start] = encoded(self.lm, read_prompts(point.start))
                task = Task.of(self.lm, point, prompts[point.start])
                self.jobs[task] = job
                writer = self._writer(task)
                wanted = set(task.keys)
                missing = wanted - writer.done
                self.readable.add(task.point_id)
                if more := len(writer.done - wanted):
                    log.info("%s has %d samples more than asked for: they stay, and count", job.directory, more)
                if missing:
                    self.missing[task] = missing
                    self._say_change(writer)
                elif writer.complete:
                    speed = (read_manifest(job.directory) or {}).get("tokens_per_second")
                    summary = self._summary(task, writer.samples(), speed)
                    self._close(task)
                    yield self._settled(Outcome(job, summary=summary))
                else:
                    speed = (read_manifest(job.directory) or {}).get("tokens_per_second")
                    yield self._settled(Outcome(job, summary=self._finish(task, speed)))
            except Exception as error:
                yield self._settled(Outcome(job, error=mendable(error, "start", point.start)))

    def _say_change(self, writer: PointWriter) -> None:
        """Once for all points that another machine or version left in the same way."""
        if writer.done and (change := writer.change) and change not in self.changes:
            self.changes.add(change)
            log.warning(
                "%s goes on where its samples are made otherwise (%s), so bits may differ (promise: false)",
                writer.directory, change,
            )  # fmt: skip

    def _restore(self) -> None:
        """Find what unfinished samples have so far; what cannot be theirs is not trusted."""
        if self.unfinished is None:
            return
        found = self.unfinished.read(self.readable, self.made_by)
        self.restored = True
        refused = 0
        for task in self.missing:
            for key, prefix in found.get(task.point_id, {}).items():
                if task.goes_on(self.lm, key, prefix):
                    self.prefixes[task][key] = prefix
                else:
                    refused += 1
        if refused:
            log.warning(
                "%s: %d unfinished samples do not fit their points; they are made from their beginning",
                self.unfinished.path,
                refused,
            )
        if count := sum(map(len, self.prefixes.values())):
            log.info("%d unfinished samples go on where they were", count)

    def _keep(self) -> int:
        """Put what unfinished samples have so far on disk; how many they are."""
        if self.unfinished is None or not self.restored:
            return 0
        self._note()
        prefixes = {(task.point_id, key): prefix for task, some in self.prefixes.items() for key, prefix in some.items()}
        self.unfinished.write(prefixes)
        return len(prefixes)

    def _note(self) -> None:
        """Take over what samples in flight have."""
        for (task, key), prefix in self.in_flight():
            self.prefixes[task][key] = prefix

    def _decode(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Make what is missing of these tasks, and settle each when it is whole."""
        self._note()
        self.in_flight = list
        self.started, self.tokens_before, self.windows_before = time.perf_counter(), self.done.tokens, self.done.windows
        wanted = {task: sorted(self.missing[task]) for task in tasks}
        for task, sample in generate(self.lm, tasks, wanted, self._on_step, self.prefixes):
            yield from self._failures()
            missing = self.missing.get(task, set())
            if sample.key in missing:
                missing.discard(sample.key)
                self.fresh[task].append(sample)
                self.done.rows += 1
                self.progress.show_sample(sample.prompt + sample.completion, sample.key, self._label(task, sample))
                if not missing:
                    yield self._finished(task)
            else:
                self.prefixes[task].pop(sample.key, None)
        self._flush()
        yield from self._failures()

    def _label(self, task: Task, sample: Sample) -> str:
        """What a sample shown among others is a sample of."""
        point = f"{self.jobs[task].directory.name}: " if self.done.points_total > 1 else ""
        prompt = f"prompt {sample.prompt_id}, " if len(task.prompts) > 1 else ""
        return f"{point}{prompt}sample {sample.sample_index}"

    def _failures(self) -> Iterator[Outcome]:
        """Settle the points whose samples could not be written."""
        while self.broken:
            yield self._failed(*self.broken.popitem())

    def _decode_singly(self) -> Iterator[Outcome]:
        """`_decode` each task by itself: something in one of them ended the batch."""
        for task in list(self.missing):
            try:
                yield from self._decode([task])
            except Exception as error:
                yield self._failed(task, error)

    def _on_step(self, engine: BackendProgress, in_flight: Callable[[], Iterable[tuple[Wanted, Prefix]]]) -> None:
        self.in_flight = in_flight
        self._flush()
        self.done.tokens = self.tokens_before + engine.tokens
        self.done.windows = self.windows_before + engine.windows
        windows_total = self.windows_before + engine.windows_total
        self.progress.expect_windows(self.done.windows, windows_total, engine.window_seconds)
        self._show(engine.rows_in_flight, self.tokens_before + engine.tokens_total if self.done.groups == 1 else None)
        if self.progress.text_due:
            for (task, key), prefix in itertools.islice(in_flight(), 1):
                text = task.prompts[key[0]].text[-80:] + self.lm.tokenizer.decode(prefix.token_ids[-80:])
                self.progress.show_text(text)
        if self.unfinished is not None and self.unfinished.due:
            self._keep()
        if isinstance(self.progress.refusal, BrokenPipeError):
            raise Interrupted(_SIGPIPE)  # as `| head` ends any other program
        self.interruption.check()

    def _show(self, rows_in_flight: int, tokens_total: int | None = None) -> None:
        self.progress.update(
            rows_done=self.done.rows,
            rows_total=self.done.rows_total,
            rows_in_flight=rows_in_flight,
            tokens=self.done.tokens,
            tokens_total=tokens_total,
            points_done=self.done.points,
            points_total=self.done.points_total,
        )

    def _flush(self) -> None:
        """Put the samples that finished in the last step on disk.

        Raises:
            ResultsError: the disk is full: no point has a future. Any other error is its own point's.
        """
        while self.fresh:
            task, samples = self.fresh.popitem()
            try:
                self._writer(task).add(samples)
                for sample in samples:
                    self.prefixes[task].pop(sample.key, None)
            except ResultsError as error:
                if disk_full(error):
                    raise
                self.broken[task] = error

    def _finished(self, task: Task) -> Outcome:
        try:
            outcome = Outcome(self.jobs[task], summary=self._finish(task))
        except Exception as error:
            return self._failed(task, error)
        del self.missing[task]
        self.prefixes.pop(task, None)
        return self._settled(outcome)

    def _failed(self, task: Task, error: Exception) -> Outcome:
        self.missing.pop(task, None)
        with contextlib.suppress(GptsweepError, OSError):  # keep what can be kept
            self._writer(task).add(self.fresh.pop(task, []))
        return self._settled(Outcome(self.jobs[task], error=mendable(error, "device.max_rows", self.lm.engine.max_rows)))

    def _settled(self, outcome: Outcome) -> Outcome:
        self.done.points += 1
        if outcome.error is not None and not isinstance(outcome.error, (GptsweepError, OSError)):
            log.error("%s failed", outcome.job.directory, exc_info=outcome.error)  # a bug keeps its traceback
        return outcome

    def _finish(self, task: Task, known_speed: float | None = None) -> Mapping[str, Any]:
        """Write the files of a point whose samples are all there."""
        writer = self._writer(task)
        writer.add(self.fresh.pop(task, []))
        seconds = time.perf_counter() - self.started
        tokens = self.done.tokens - self.tokens_before
        speed = tokens / seconds if tokens else known_speed
        summary = self._summary(task, writer.samples(), speed)
        writer.finish(summary, {**provenance(self.lm, task), "seconds": seconds, "tokens_per_second": speed})
        self._close(task)
        return summary

    def _summary(self, task: Task, samples: Sequence[Mapping[str, Any]], speed: float | None) -> dict[str, object]:
        """The row of ``summary.csv``. ``tokens_per_second`` is how fast the batch decoded that the point was part of."""
        settings = {"point_id": task.point_id, **settings_of(task.point, dtype=self.lm.dtype, device=self.lm.device_type)}
        return {**summarise(settings, samples), "tokens_per_second": speed, **text_metrics(samples)}

    def _writer(self, task: Task) -> PointWriter:
        """The open writer of a task; the one longest unused is closed when there are many."""
        if task not in self.writers:
            if len(self.writers) >= self.open_points:
                self.writers.popitem(last=False)[1].__exit__(None, None, None)
            job = self.jobs[task]
            writer = PointWriter(
                job.directory,
                task.point_id,
                overwrite=job.overwrite,
                made_by=self.made_by,
                settings=deciding_settings(self.lm, task),
            )
            self.writers[task] = writer.__enter__()
        self.writers.move_to_end(task)
        return self.writers[task]

    def _close(self, task: Task) -> None:
        self.writers.pop(task).__exit__(None, None, None)


def open_points() -> int:
    """How many points may be held open: a quarter of the files that this process may open, as it needs others, too."""
    if sys.platform == "win32":
        return _OPEN_POINTS
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _OPEN_POINTS if limit == resource.RLIM_INFINITY else max(1, min(_OPEN_POINTS, limit // 4))


def finished(job: Job) -> Mapping[str, Any] | None:
    """The row of ``summary.csv`` of a job that needs no model, as its directory holds all of its samples; None of any other.

    Without the model there is no point_id to hold against the directory's; model, settings and prompts must be the same.
    """
    directory, point = job.directory, job.point
    manifest = read_manifest(directory) or {}
    if manifest.get("status") != "complete" or not isinstance(identity := manifest.get("point_id"), str):
        return None
    settings, prompts = wanted_settings(point), read_prompts(point.start)
    known = {"model": model_of(point.model), "dtype": settings["dtype"], "device": settings["device"]}
    with PointWriter(directory, identity) as writer:
        samples = writer.samples()
        there = {(sample["prompt_index"], prompts[sample["prompt_index"]].text == sample["prompt"])
                 for sample in samples if sample["prompt_index"] < len(prompts)}  # fmt: skip
        asked = itertools.product(range(len(prompts)), range(point.sampling.num_samples))
        if (
            not writer.complete
            or {name: manifest.get(name) for name in known} != known
            or there != {(index, True) for index in range(len(prompts))}
            or not writer.done.issuperset(asked)
            or samples[0] | point.sampling.as_json() | {"seed": point.seed} != samples[0]
        ):
            return None
    row = summarise({"point_id": identity, **settings}, samples)
    return {**row, "tokens_per_second": manifest.get("tokens_per_second"), **text_metrics(samples)}


def disk_full(error: Exception) -> bool:
    """Whether ``error`` says that nothing can be written any more."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)


def mendable(error: Exception, key: str, value: object) -> Exception:
    """``error``, or in its place words on what to do about too little memory."""
    if not out_of_memory(error):
        return error
    what = "does not fit in memory, not even one row at a time; take a smaller model, dtype or sampling.max_new_tokens"
    short = DeviceError(key, value, what)
    short.__cause__ = error
    return short


def settings_of(point: Point, *, dtype: str, device: str) -> dict[str, object]:
    """The columns of ``summary.csv`` and ``sweep.csv`` that say what was asked for; ``dtype`` and ``device`` as resolved."""
    model = point.model
    nanogpt = {"out_dir": model.out_dir, "file": model.file}
    where = nanogpt if model.name == "resume" else {"path": model.path} if model.name == "hf" else {}
    return {
        "model": model.name,
        **where,
        "start": point.start,
        "seed": point.seed,
        **point.sampling.as_json(),
        "dtype": dtype,
        "device": device,
    }


def deciding_settings(lm: LM, task: Task) -> dict[str, object]:
    """What decides the tokens of a point, by the names a user types."""
    point = task.point
    return {
        "model": point.model.name,
        "start": task.prompts[0].text if task.prompts else point.start,
        "seed": point.seed,
        **{f"sampling.{name}": value for name, value in point.sampling.as_json().items()},
        "device.dtype": lm.dtype,
        "device": lm.device_type,
        "device.compile": point.device.compile,
        "weights": lm.fingerprint,
        "tokenizer": lm.tokenizer.fingerprint,
    }


def wanted_settings(point: Point) -> dict[str, object]:
    """`settings_of` a point whose model is not loaded."""
    try:
        device = resolve_device(point.device.name)
        return settings_of(point, dtype=resolve_dtype(point.device.dtype, device), device=device.type)
    except DeviceError:
        return settings_of(point, dtype=point.device.dtype, device=point.device.name)


def model_of(model: ModelSource) -> dict[str, object]:
    """A model as ``manifest.json`` names it."""
    other = {"file": model.file} if model.name == "resume" and model.file != NANOGPT_FILE else {}
    return {"name": model.name, "out_dir": model.out_dir if model.name == "resume" else None, **other, "path": model.path}


def provenance(lm: LM, task: Task) -> dict[str, object]:
    """Where a point's samples come from: what ``manifest.json`` says beside counts and hashes."""
    model, device = task.point.model, task.point.device
    return {
        "promise": lm.promise,
        "model": model_of(model),
        "weights": lm.fingerprint,
        "tokenizer": lm.tokenizer.fingerprint,
        "device": lm.device_type,
        "dtype": lm.dtype,
        "arithmetic": lm.arithmetic,
        "compile": device.compile,
        "threads": torch.get_num_threads(),
        **_environment(),
    }


_INSTRUCTIONS = ("avx", "amx", "fma", "f16c", "neon", "sve", "sme", "asimd", "bf16", "fp16", "i8mm", "dot")
_LIMITS = (
    "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR",
)  # fmt: skip
"""Environment variables that have libraries compute in another way than the processor would let them."""


def made_by(lm: LM) -> dict[str, object]:
    """What decides the bits of a model's samples beside what `point_id` names: if it is equal, so are they."""
    return {
        "torch": torch.__version__,
        "engine_version": ENGINE_VERSION,
        "promise": lm.promise,
        "layers": ",".join(layer_kinds(lm.model)),
        **_machine(lm.model.embedding.device),
    }


@cache
def _machine(device: torch.device) -> dict[str, object]:
    """The kind of a machine, as far as it decides bits."""
    if device.type == "cuda":
        return {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    able = torch.cpu.get_capabilities()
    instructions = [name for name, has in able.items() if has is True and name.startswith(_INSTRUCTIONS)]
    return {
        "processor": able.get("cpu_name") or platform.processor() or platform.machine(),
        "instructions": " ".join(sorted(instructions)),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "limits": " ".join(f"{name}={os.environ[name]}" for name in _LIMITS if name in os.environ),
    }


@cache
def _environment() -> dict[str, object]:
    versions = {"gptsweep": version("gptsweep"), "torch": torch.__version__, "python": platform.python_version()}
    return {"versions": versions, "machine": platform.platform()}


class Interruption:
    """While entered, Ctrl-C and SIGTERM ask the run to end at its next step; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self._asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: object) -> None:
        if self._asked is not None and number == signal.SIGINT:
            raise Interrupted(number)
        self._asked = number

    def check(self) -> None:
        """Raise `Interrupted` if the run was asked to end."""
        if self._asked is not None:
            raise Interrupted(self._asked)


# -- from Hydra and from Python ----------------------------------------------------------------------------------------------

prepared: ContextVar[Mapping[Path, Outcome]] = ContextVar("prepared")
"""Outcomes, by run directory, of points that a launcher has run together before it runs Hydra's jobs one by one."""


def run_job(cfg: DictConfig, directory: Path) -> float | None:
    """One point of the command: its results into ``directory``; the value of ``objective``, if one is named.

    Raises:
        GptsweepError: anything the user can mend.
        Interrupted: Ctrl-C or SIGTERM; finished samples are on disk.
    """
    require_objective(cfg.objective)
    outcome = prepared.get({}).get(directory)
    if outcome is None:
        job = Job(point_from_config(cfg), directory, cfg.overwrite)
        alone = HydraConfig.get().mode is not RunMode.MULTIRUN
        samples_each = job.point.sampling.num_samples if alone else None
        try:
            quiet = not alone if cfg.quiet is None else cfg.quiet
            unfinished = Unfinished(directory)
            with in_directory(HydraConfig.get().runtime.cwd), Progress(quiet=quiet, samples_each=samples_each) as progress:
                (outcome,) = run_jobs([job], progress, None, unfinished)
            if alone and outcome.error is None:
                progress.write_rest(stored_texts(directory))
        except Interrupted as stopped:
            raise Interrupted(stopped.signal_number, cfg.name, stopped.unfinished) from None
    if outcome.error is not None:
        raise outcome.error
    return None if cfg.objective is None else objective_of(outcome.summary or {}, cfg.objective)


def stored_texts(directory: Path) -> Iterator[tuple[tuple[int, int], str]]:
    """Place and text of the samples in a run directory, in their order."""
    for sample in read_samples(directory)[0]:
        yield (sample["prompt_index"], sample["sample_index"]), sample["prompt"] + sample["completion"]


@contextlib.contextmanager
def in_directory(path: str) -> Iterator[None]:
    """Where the command was given: ``hydra.job.chdir`` leads a job elsewhere, and relative paths mean the same in every run."""
    before = os.getcwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def require_objective(name: str | None) -> None:
    """See that ``objective`` is a measured column of ``summary.csv``, before any work.

    Raises:
        ConfigError: it is not.
    """
    columns = [*summarise({}, []), "tokens_per_second", *text_metrics([])]
    if name is not None and name not in columns:
        raise ConfigError("objective", name, f"must be one of {', '.join(columns)}")


def objective_of(summary: Mapping[str, Any], name: str) -> float:
    """The value of a column of ``summary.csv``.

    Raises:
        ConfigError: the column is empty, as too few samples leave some.
    """
    if summary[name] is None:
        raise ConfigError("objective", name, "has no value for this point; more samples, or longer ones, may give it one")
    return float(summary[name])


def sweep(lm: LM, *, start: str | Sequence[str] = "\n", seed: int | Sequence[int] = 1337, **sampling: Any) -> pd.DataFrame:
    """Generate every combination of settings in one batched pass.

    Args:
        lm: a loaded model.
        start: a prompt, or ``FILE:``, ``LINES:`` or ``JSONL:`` and a path; several sweep over them.
        seed: a seed, or several.
        **sampling: keys of the config group ``sampling``; several values sweep over them (of ``stop``, a list of lists). They
            may come in a list, a range, a generator, an array or a column of a frame.

    Returns:
        A row a sample, with the columns of ``samples.jsonl`` and then those of the review: every metric of
        `gptsweep.analysis.metrics`. One per sample (``diversity``, say) is that of the row's sample; one per point
        (``self_bleu_4``) is that of all samples of its point, and stands in each of their rows, so that means over groups are
        means over points. Points come in the order of the arguments, the last varying fastest.

    Raises:
        ConfigError, PromptError: as from `LM.generate`.
    """
    import pandas as pd  # late: half a second that only this function needs

    if not isinstance(lm, LM):
        raise ModelError("lm", lm, "must be a loaded model: gptsweep.sweep(gptsweep.load(…), …)")
    axes = {name: _axis(name, values) for name, values in {"start": start, "seed": seed, **sampling}.items()}
    lists = list(axes.values())
    tasks = []
    for combination in itertools.product(*lists):
        settings = dict(zip(axes, combination, strict=True))
        text, number = coerce("start", settings.pop("start"), str), settings.pop("seed")
        point = Point(model=lm.source, device=lm.device, sampling=sampling_of(**settings), start=text, seed=number)
        tasks.append(Task.of(lm, point, encoded(lm, read_prompts(text))))
    places = {task: place for place, task in enumerate(tasks)}
    samples = sorted(((places[task], sample.key, sample) for task, sample in generate(lm, tasks)), key=lambda found: found[:2])
    records: list[dict[str, Any]] = []
    for _, of_point in itertools.groupby(samples, key=itemgetter(0)):
        lines = [sample.as_json() for _, _, sample in of_point]
        common = {
            name: value for name, value in text_metrics(lines).items() if name in METRICS and METRICS[name].per == "point"
        }
        for line in lines:
            own = text_metrics([line])
            records.append(line | {name: common.get(name, own.get(name, line.get(name))) for name in METRICS})
    return pd.DataFrame(records).astype(dict.fromkeys(METRICS, float) if records else {})


def _axis(name: str, values: Any) -> list[Any]:
    """The values of an argument of `sweep`: those of a collection, of which ``stop`` and ``logit_bias`` are one value each."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        return [values]
    listed = _listed(name, values)
    kinds = {"stop": (list, tuple), "logit_bias": (Mapping,)}.get(name, (object,))
    if not any(isinstance(value, kinds) for value in listed):
        return [listed]
    return listed


def _listed(name: str, values: Any) -> list[Any]:
    """What a collection holds: a list, a generator, a range, an array, a column of a frame.

    Raises:
        ConfigError: it is none, or holds nothing.
    """
    if isinstance(values, (bytes, Mapping)) or not isinstance(values, Iterable):
        raise ConfigError(name, values, "must be one value, or a list of them")
    return list(values)
