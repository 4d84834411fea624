"""Descriptions of a run in its files: settings in ``summary.csv`` and ``sweep.csv``, provenance in ``manifest.json``."""

from __future__ import annotations

import platform

from ..errors import DeviceError
from ..records import NANOGPT_FILE, PLACE_KEYS, ModelSource, Point
from ..version import own_version
from .executors import Executor
from .rows import OpenModel, Task


def settings_of(point: Point, *, dtype: str, device: str) -> dict[str, object]:
    """The settings columns of ``summary.csv`` and ``sweep.csv``; ``dtype`` and ``device`` are resolved."""
    model = point.model
    where: dict[str, dict[str, object]] = {
        "resume": {"out_dir": model.out_dir, "file": model.file},
        "hf": {"path": model.path, **_revision(model)},
        "nanochat": {"out_dir": model.out_dir, "step": model.step, "softcap": model.softcap},
        "llmc": {"path": model.path},
        "litgpt": {"path": model.path},
    }
    return {
        "model": model.name,
        **where.get(model.name, {}),
        "start": point.start,
        "seed": point.seed,
        **point.sampling.as_json(),
        "dtype": dtype,
        "device": device,
    }


def deciding_settings(model: OpenModel, task: Task) -> dict[str, object]:
    """The settings that determine the tokens of a point, by the names users type."""
    point = task.point
    return {
        "model": point.model.name,
        "start": task.prompts[0].text if task.prompts else point.start,
        "seed": point.seed,
        **{f"sampling.{name}": value for name, value in point.sampling.as_json().items()},
        "device.dtype": model.dtype,
        "device": model.device_type,
        "device.compile": point.device.compile,
        "weights": model.fingerprint,
        "tokenizer": model.tokenizer.fingerprint,
    }


def wanted_settings(executor: Executor, point: Point) -> dict[str, object]:
    """`settings_of` for a point whose model is not loaded."""
    try:
        dtype, device = executor.resolve(point.device)
    except DeviceError:
        dtype, device = point.device.dtype, point.device.name
    return settings_of(point, dtype=dtype, device=device)


def model_of(model: ModelSource) -> dict[str, object]:
    """A model as ``manifest.json`` describes it."""
    other: dict[str, object] = {"file": model.file} if model.name == "resume" and model.file != NANOGPT_FILE else {}
    other |= {"step": model.step, "softcap": model.softcap} if model.name == "nanochat" else {}
    out_dir = model.out_dir if PLACE_KEYS.get(model.name) == "out_dir" else None
    return {"name": model.name, "out_dir": out_dir, **other, "path": model.path, **_revision(model)}


def _revision(model: ModelSource) -> dict[str, object]:
    return {} if model.revision is None else {"revision": model.revision}


def provenance(model: OpenModel, task: Task) -> dict[str, object]:
    """The provenance of a point's samples: the content of ``manifest.json`` apart from counts and hashes."""
    how = model.backend.provenance
    return {
        "promise": model.promise,
        "model": model_of(task.point.model),
        **({} if how.step is None else {"step": how.step}),
        "weights": model.fingerprint,
        "tokenizer": model.tokenizer.fingerprint,
        "device": how.device,
        "dtype": how.dtype,
        "arithmetic": how.arithmetic,
        "compile": task.point.device.compile,
        **({} if model.backend.overflow == "crop" else {"default_overflow": model.backend.overflow}),
        "threads": how.threads,
        "versions": {"gptsweep": own_version(), **how.versions, "python": platform.python_version()},
        "machine": platform.platform(),
    }
