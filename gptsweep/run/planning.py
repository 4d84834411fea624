"""Estimate what jobs take: rows, tokens, disk, memory and time, from the shapes of their models. Nothing is written."""

from __future__ import annotations

import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from ..display import counted, duration, get_logger
from ..engine.backend import OnStep, Provenance, Workload, windows_read
from ..engine.engine import available_memory, cache_dtype, cache_pages, planned_rows
from ..engine.kv_cache import page_bytes
from ..errors import GptsweepError
from ..models.architecture import Architecture
from ..models.checkpoint import Checkpoint
from ..models.files.tokenizers import Tokenizer
from ..models.loading import bytes_of_weight, resolve_device, resolve_dtype, set_threads, stored_dtype
from ..models.registry import open_checkpoint
from ..prompts import read_prompts
from ..records import Completion, DeviceSettings, ModelSource, Point, Prefix, Row, Sample
from ..store.reader import read_manifest, read_samples
from ..store.schema import SAMPLING_KEYS, key_of
from .calibrations import overhead_here, speed_here
from .estimate import Seconds, seconds_of, shapes, shard
from .overhead import Overhead, sample_seconds
from .rows import Finished, Key, OpenModel, Plan, Prompts, Task, encoded

log = get_logger(__name__)

TEXT = "It was a bright cold day, and the clocks in the tower of the old town were striking; nobody had asked them to. "
"""Text for estimating the bytes of a token in a file, if the model's vocabulary has its characters."""
_CHECK_BYTES = 16
_LOADED_BYTES_A_SECOND = 1e9
"""The assumed speed of reading, hashing and packing weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """The facts of a `Backend` whose weights are not loaded."""

    vocab_size: int
    block_size: int | None
    extends_to: int | None
    overflow: str
    end_tokens: tuple[int, ...]
    max_rows: int | None
    provenance: Provenance
    fingerprint: str = ""
    promise: bool = True

    def resumes(self, prefix: Prefix) -> bool:
        """Return False: there is no model."""
        return False

    def run(self, rows: Iterable[Row], workload: Workload, on_step: OnStep | None) -> Iterator[Completion]:
        """Raise NotImplementedError: there is no model."""
        raise NotImplementedError("a plan runs no rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """The remaining rows of one model, and what they take.

    ``new_tokens`` is the most that they sample, and for ``windows`` of these the model reads a whole window again.
    ``overflowing`` rows may exceed the context. ``sample_seconds`` is the driver's work on the samples. ``seconds`` is the
    decoding time by number of machines.
    """

    name: str
    rows: int
    prompt_tokens: int
    new_tokens: int
    windows: int
    overflowing: int
    max_rows: int
    weight_bytes: int
    cache_bytes: int
    free_bytes: int
    sample_bytes: int
    sample_seconds: float
    seconds: Mapping[int, Seconds]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """What a sweep takes. ``samples`` counts all samples, ``done`` those on disk; the rest is about the remaining ones."""

    points: int
    points_done: int
    samples: int
    done: int
    models: tuple[ModelPlan, ...]
    overhead: Overhead
    process_bytes: int
    free_disk: int
    free_files: int | None
    note: str

    @property
    def points_left(self) -> int:
        """The number of points that are not complete."""
        return self.points - self.points_done

    @property
    def files(self) -> int:
        """The number of files and directories that will be created."""
        return math.ceil(self.points_left * self.overhead.files)

    @property
    def disk_bytes(self) -> int:
        """The bytes that the results will take on disk."""
        each = self.overhead.file_bytes + self.overhead.row_bytes
        return sum(model.sample_bytes for model in self.models) + math.ceil(self.points_left * each)

    @property
    def worker_bytes(self) -> int:
        """The most memory that a worker takes, with the largest model, in bytes."""
        return self.process_bytes + max((model.weight_bytes + model.cache_bytes for model in self.models), default=0)

    def seconds(self, machines: int) -> Seconds:
        """The time of the whole command on this many machines. The driver's own work is done by one of them."""
        fixed = self.overhead.command + self.points_left * self.overhead.point
        fixed += sum(model.weight_bytes / _LOADED_BYTES_A_SECOND for model in self.models)
        total = Seconds(0.0, 0.0, 0.0)
        for model in self.models:
            own = model.seconds[machines].plus(model.sample_seconds)
            total = Seconds(total.apart + own.apart, total.likely + own.likely, total.together + own.together)
        return total.plus(fixed)

    def limits(self, machines: int) -> list[tuple[str, float]]:
        """The resources and the share of each that the sweep takes, the scarcest first; above 1 there is too little."""
        found = [("disk", self.disk_bytes / max(1, self.free_disk))]
        found += [
            ("memory", (self.process_bytes + model.weight_bytes + model.cache_bytes) / max(1, model.free_bytes))
            for model in self.models
        ]
        if self.free_files:
            found.append(("number of files", self.files / self.free_files))
        decoding = sum(model.seconds[machines].likely for model in self.models)
        if decoding:
            driver = sum(model.sample_seconds for model in self.models) + self.points_left * self.overhead.point
            found.append((f"driver's write rate with {counted(machines, 'machine')}", driver / decoding))
        return sorted(found, key=lambda limit: -limit[1])

    def lines(self) -> list[tuple[str, str]]:
        """The plan as text: pairs of a name and a value."""
        rows = sum(model.rows for model in self.models)
        prompt_tokens, new_tokens = (sum(getattr(m, name) for m in self.models) for name in ("prompt_tokens", "new_tokens"))
        found = [("note", self.note)] if self.note else []
        done = f", {self.points_done:,} of them done" if self.points_done else ""
        found.append(("points", f"{self.points:,}{done}"))
        kept = f", {self.done:,} of them on disk" if self.done else ""
        found.append(("samples", f"{self.samples:,}{kept}"))
        if not self.models:
            return [*found, ("left", "nothing: every sample is on disk")]
        same = self.samples - self.done - rows
        found.append(("rows", f"{rows:,}" + (f"; {counted(same, 'sample')} come out like others" if same else "")))
        found.append(("tokens", f"{prompt_tokens:,} of prompts, at most {new_tokens:,} new"))
        found.append(("disk", f"at most {size(self.disk_bytes)} in {counted(self.files, 'file')}; {size(self.free_disk)} free"))
        for model in self.models:
            name = f"memory of {model.name}" if len(self.models) > 1 else "memory"
            found.append(
                (
                    name,
                    f"a worker at most {size(self.process_bytes + model.weight_bytes + model.cache_bytes)}: weights"
                    f" {size(model.weight_bytes)}, keys and values of {counted(model.max_rows, 'row')}"
                    f" {size(model.cache_bytes)}, Python and torch {size(self.process_bytes)}",
                )
            )
        machines = sorted(self.models[0].seconds)
        for count in machines:
            time = self.seconds(count)
            bounds = f" ({_at_most(time.together)} to {_at_most(time.apart)})" if time.apart > 1.1 * time.together else ""
            found.append(("time here" if count == 1 else f"on {count} of these", f"at most {_at_most(time.likely)}{bounds}"))
        if self.seconds(1).apart > 1.1 * self.seconds(1).together:
            found.append(("", "in brackets: if rows that share noise never diverge, and if they diverge at once"))
        for model in self.models:
            if model.overflowing:
                more = f": crop reads a whole window for {counted(model.windows, 'token')}" if model.windows else ""
                found.append(("context", f"{counted(model.overflowing, 'row')} of {model.name} may exceed it{more}"))
        (first, share), *_ = self.limits(machines[-1])
        found.append(("bottleneck", f"{first}: {share:.1%} of what is available" + (", too little" if share > 1 else "")))
        return found

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON-compatible data."""
        machines = sorted(self.models[0].seconds) if self.models else []
        return {
            **asdict(self),
            "files": self.files,
            "disk_bytes": self.disk_bytes,
            "worker_bytes": self.worker_bytes,
            "seconds": {count: asdict(self.seconds(count)) for count in machines},
            "limits": dict(self.limits(machines[-1])) if machines else {},
        }


def planned(jobs: Sequence[tuple[Point, Path]], machines: Sequence[int], note: str = "") -> SweepPlan:
    """Plan a sweep.

    Args:
        jobs: its points, each with its run directory.
        machines: the numbers of machines for which to estimate the time, besides one.
        note: the first line of the plan, if not empty.

    Raises:
        GptsweepError: a model is missing or cannot be read, or does not support a setting or a prompt.
    """
    counts = sorted({1, *machines})
    groups: dict[tuple[ModelSource, DeviceSettings], list[tuple[Point, Path]]] = defaultdict(list)
    for point, directory in jobs:
        groups[point.model, point.device].append((point, directory))
    models, samples, done, points_done = [], 0, 0, 0
    for (source, settings), group in groups.items():
        checkpoint = open_checkpoint(source, hashed=False)
        shape = checkpoint.laid_out()
        model = outline(checkpoint, shape, source, settings)
        prompts: dict[tuple[str, bool], Prompts] = {}
        tasks, wanted = [], []
        for point, directory in group:
            request = point.start, point.sampling.chat_template
            if request not in prompts:
                prompts[request] = encoded(model, read_prompts(request[0]), chat_template=request[1])
            task = Task.of(model, point, prompts[request])
            keys = set(task.keys)
            there = keys & on_disk(directory, task)
            samples, done = samples + len(keys), done + len(there)
            points_done += there == keys
            if there != keys:
                tasks.append(task)
                wanted.append(sorted(keys - there))
        if tasks:
            models.append(_model_plan(checkpoint, shape, model, tasks, wanted, counts))
    root = _existing(jobs[0][1])
    return SweepPlan(
        points=len(jobs),
        points_done=points_done,
        samples=samples,
        done=done,
        models=tuple(models),
        overhead=overhead_here(),
        process_bytes=psutil.Process().memory_info().rss,
        free_disk=shutil.disk_usage(root).free,
        free_files=os.statvfs(root).f_favail if hasattr(os, "statvfs") else None,
        note=note,
    )


def outline(checkpoint: Checkpoint, shape: Architecture, source: ModelSource, settings: DeviceSettings) -> OpenModel:
    """Make a model with a shape and a tokenizer but without weights.

    Raises:
        DeviceError: the device or dtype is not available.
    """
    device = resolve_device(settings.name)
    dtype = resolve_dtype(settings.dtype, device)
    set_threads(settings)
    how = Provenance(
        dtype=dtype, device=device.type, arithmetic=dtype, threads=torch.get_num_threads(), made_by={}, versions={}
    )
    backend = Outline(
        vocab_size=checkpoint.tokenizer.vocab_size, block_size=shape.block_size, extends_to=shape.extends_to,
        overflow=shape.OVERFLOW, end_tokens=checkpoint.tokenizer.end_ids, max_rows=settings.max_rows, provenance=how,
    )  # fmt: skip
    return OpenModel(source, settings, backend, checkpoint.tokenizer)


def on_disk(directory: Path, task: Task) -> set[Key]:
    """The keys of the samples that a run directory has of a point, as far as is known without the model's weights."""
    manifest = read_manifest(directory) if directory.is_dir() else None
    wanted = len(task.prompts) * task.point.sampling.num_samples
    if manifest is not None and manifest.get("status") == "complete" and manifest.get("lines") == wanted:
        return set(task.keys)
    try:
        samples = read_samples(directory)[0]
    except GptsweepError:  # there is none
        return set()
    settings = task.point.sampling.as_json()
    return {
        key_of(sample)
        for sample in samples
        if sample["seed"] == task.point.seed
        and sample["model"] == task.point.model.name
        and sample["prompt_index"] < len(task.prompts)
        and sample["prompt"] == task.prompts[sample["prompt_index"]].text
        and {name: value for name, value in sample.items() if name in SAMPLING_KEYS} == settings
    }


def _model_plan(
    checkpoint: Checkpoint,
    shape: Architecture,
    model: OpenModel,
    tasks: Sequence[Task],
    wanted: Sequence[Sequence[Key]],
    machines: Sequence[int],
) -> ModelPlan:
    plan = Plan.of(model, tasks, wanted)
    dtype, device = model.dtype, resolve_device(model.device.name)
    block_size = shape.block_size
    cached = cache_dtype(stored_dtype(dtype), int8=dtype == "int8", use_kernels=device.type == "cpu")
    free = available_memory(device)
    max_rows = min(model.device.max_rows or planned_rows(shape, plan.workload, cached, free), plan.workload.rows)
    windows = [_windows(plan, each[0], block_size) for each in plan.recipients]
    rows = shapes(plan, windows)
    sampling = tasks[0].point.sampling
    speed = speed_here(checkpoint, device=device, dtype=dtype, sampling=sampling, threads=model.backend.provenance.threads)
    bytes_of = _line_bytes(model.tokenizer, tasks[0])
    keys = [key for each in plan.recipients for key in each]
    lengths = [tasks[place].point.sampling.max_new_tokens for place, _ in keys]
    sample = _typical_sample(model.tokenizer, tasks[0], sum(lengths) // len(lengths))
    return ModelPlan(
        name=model.source.name,
        rows=len(rows),
        prompt_tokens=sum(row.prompt_tokens for row in rows),
        new_tokens=plan.workload.new_tokens,
        windows=plan.workload.windows,
        overflowing=sum(block_size is not None and row.prompt_tokens + row.new_tokens > block_size + 1 for row in rows),
        max_rows=max_rows,
        weight_bytes=_weight_bytes(shape, dtype, device),
        cache_bytes=cache_pages(shape, plan.workload, max_rows) * page_bytes(shape, cached),
        free_bytes=free,
        sample_bytes=math.ceil(sum(bytes_of[0] + _prompt_bytes(tasks[p], k) + bytes_of[1] * n
                                   for (p, k), n in zip(keys, lengths, strict=True))),
        sample_seconds=sample_seconds([sample] * 32) * len(keys),
        seconds={count: seconds_of(shard(rows, count), speed, max_rows, block_size, shape.windows) for count in machines},
    )  # fmt: skip


def _windows(plan: Plan, sample: tuple[int, Key], block_size: int | None) -> int:
    place, key = sample
    task = plan.tasks[place]
    sampling, prompt_tokens = task.point.sampling, len(task.prompt_ids[key[0]])
    if sampling.overflow == "rebase" and block_size is not None:
        # A full context is cut to its last half, which is read again: in total one window for every block_size tokens.
        return max(0, prompt_tokens + sampling.max_new_tokens - block_size) // block_size
    return windows_read(sampling, prompt_tokens, sampling.max_new_tokens, block_size)


def _weight_bytes(model: Architecture, dtype: str, device: torch.device) -> int:
    """The bytes of the loaded parameters; see `bytes_of_weight` for those of linear layers."""
    stored = stored_dtype(dtype)
    total = sum(p.numel() * (4 if model.stays_float32(name) else stored.itemsize) for name, p in model.named_parameters())
    linear: int = sum(getattr(layer.parent, layer.name).weight.numel() for layer in model.linear_layers())
    return total + linear * (bytes_of_weight(dtype, device) - stored.itemsize)


def _typical_sample(tokenizer: Tokenizer, task: Task, tokens: int, key: Key = (0, 0)) -> Sample:
    """A sample of ``tokens`` tokens whose text has a typical length for this tokenizer."""
    try:
        ids = tuple(tokenizer.encode(TEXT))
    except GptsweepError:
        ids = tuple(range(0, tokenizer.vocab_size, max(1, tokenizer.vocab_size // 100)))
    ids = (ids * (1 + tokens // len(ids)))[:tokens]
    return task.sample(key, Finished(tokenizer.decode(ids), ids, "length", -1 / 3, -1 / 7, 4 / 3))


def _line_bytes(tokenizer: Tokenizer, task: Task) -> tuple[float, float]:
    """The bytes of a line of ``samples.jsonl`` without prompt and tokens but with its checksum, and the bytes per token."""
    short, long = (len(_typical_sample(tokenizer, task, tokens).line()) for tokens in (1, 201))
    each = (long - short) / 200
    return short - each - _prompt_bytes(task, (0, 0)) + _CHECK_BYTES, each


def _prompt_bytes(task: Task, key: Key) -> int:
    return len(task.prompts[key[0]].text)


def _existing(path: Path) -> Path:
    """The nearest existing directory at or above ``path``."""
    return next(each for each in (path, *path.parents) if each.is_dir())


def size(count: float) -> str:
    """Format a number of bytes, such as ``1.2 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _at_most(seconds: float) -> str:
    return duration(math.ceil(seconds))
