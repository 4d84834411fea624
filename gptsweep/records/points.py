"""A point as the user specified it, and its id."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

from .checks import coerce_fields, require
from .rows import Prompt
from .sampling import Sampling
from .sources import DeviceSettings, ModelSource

ENGINE_VERSION = 3
"""The version of the arithmetic, which every `point_id` includes: incremented when a point's tokens change. A new setting
changes neither this nor the schema version: ids and lines name it only if it is not neutral."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of a sweep as configured; nothing has been read from disk yet. ``start`` is as `prompts.read_prompts` reads it.

    Raises:
        ConfigError: a field has the wrong type, or the seed is not from 0 to 2**64 - 1.
    """

    model: ModelSource = field(default_factory=ModelSource)
    device: DeviceSettings = field(default_factory=DeviceSettings)
    sampling: Sampling = field(default_factory=Sampling)
    start: str = "\n"
    seed: int = 1337

    def __post_init__(self) -> None:
        coerce_fields(self, "")
        require(0 <= self.seed < 2**64, "seed", self.seed, "must be from 0 to 2**64 - 1")


def point_id(point: Point, *, prompts: tuple[Prompt, ...], weights: str, tokenizer: str, dtype: str, device_type: str) -> str:
    """A hash, sixteen hex digits, of everything that determines the point's tokens, and of nothing else.

    Args:
        point: the settings, without `UNDECIDING` ones, rows, threads and names.
        prompts: the prompts that ``point.start`` denotes.
        weights: fingerprint of the model's weights and shapes.
        tokenizer: fingerprint of the vocabulary.
        dtype: the resolved dtype, never ``auto``; ``int8 in halves`` on a CPU where 0.1 cut off int8 sums.
        device_type: ``cpu``, ``cuda`` or ``mps``.
    """
    decides = {
        "engine_version": ENGINE_VERSION,
        "weights": weights,
        "tokenizer": tokenizer,
        "prompts": [asdict(prompt) for prompt in prompts],
        "sampling": point.sampling.as_json(),
        "seed": point.seed,
        "dtype": dtype,
        "device_type": device_type,
        "compile": point.device.compile,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
