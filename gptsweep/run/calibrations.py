"""Measurements of this machine, cached in ``$XDG_CACHE_HOME/gptsweep/plan``: one file each, named by a hash of its name."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from ..display import get_logger
from ..engine.calibration import Speed, calibrated, shape_of
from ..errors import ResultsError
from ..files import user_cache
from ..models.checkpoint import Checkpoint
from ..records import Sampling, active_steps, is_number
from ..store.durable import atomic_write
from ..version import own_version
from .overhead import Overhead, measured

log = get_logger(__name__)


def overhead_here() -> Overhead:
    """Return what a command and a point cost on this machine, measured now or earlier."""
    return Overhead(
        **_cached({"of": "overhead"}, lambda: asdict(measured()), cacheable=lambda found: not Overhead(**found).is_borrowed)
    )


def speed_here(checkpoint: Checkpoint, *, device: torch.device, dtype: str, sampling: Sampling, threads: int) -> Speed:
    """Return the speed of a model of this shape on this machine with these steps of sampling, measured now or earlier."""
    name = {
        "of": "speed",
        "as": "mean step of a usual round",
        "shape": shape_of(checkpoint.architecture, checkpoint.config),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": dtype,
        "threads": threads,
        "sampling": [*active_steps(sampling), sampling.temperature > 0, sampling.rng],
    }

    def measure() -> dict[str, Any]:
        log.info("measuring how fast this machine is, once: up to 30 s")
        speed = calibrated(
            checkpoint.architecture, checkpoint.config, device=device, dtype=dtype, sampling=sampling,
            vocab_size=checkpoint.tokenizer.vocab_size,
        )  # fmt: skip
        return asdict(speed)

    found = _cached(name, measure)
    return Speed(**{**found, "steps": tuple((int(count), float(seconds)) for count, seconds in found["steps"])})


def _cached(
    name: Mapping[str, Any],
    measure: Callable[[], dict[str, Any]],
    cacheable: Callable[[dict[str, Any]], bool] = lambda _found: True,
) -> dict[str, Any]:
    """Return what was measured under this name, on this machine and with these versions; if nothing was, measure it now.

    A new measurement is cached if ``cacheable`` says so.
    """
    machine = {
        "processor": platform.processor() or platform.machine(),
        "host": platform.node(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "gptsweep": own_version(),
    }
    text = json.dumps({**machine, **name}, sort_keys=True, default=str)
    path = user_cache("plan") / f"{name['of']}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    try:
        cached = json.loads(path.read_bytes())
        if cached["of"] == text and all(is_number(leaf, 0, math.inf) for leaf in _leaves(cached["measured"])):
            return dict(cached["measured"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the file is missing or damaged
    found = measure()
    if not cacheable(found):
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps({"of": text, "measured": found}).encode())
    except (OSError, ResultsError) as error:
        log.warning("could not save the calibration: %s", error)
    return found


def _leaves(value: Any) -> list[Any]:
    """Return the values in nested dicts, lists and tuples."""
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in _leaves(each)]
    return [leaf for each in value for leaf in _leaves(each)] if isinstance(value, (list, tuple)) else [value]
