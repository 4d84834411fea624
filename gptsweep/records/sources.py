"""Which model to load, and where to run it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .checks import LIMIT, coerce_fields, one_of, require

MODELS = ("shakespeare", "resume", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "hf", "nanochat", "llmc", "litgpt")
PLACE_KEYS = {"resume": "out_dir", "hf": "path", "nanochat": "out_dir", "llmc": "path", "litgpt": "path"}
"""The setting with the location of a user's model, by name of the model."""
_PATHS = {
    "hf": "a local directory or a hub id",
    "llmc": "the .bin that llm.c wrote, such as gpt2_124M.bin",
    "litgpt": "a checkpoint directory of LitGPT, such as out/pretrain/final",
}
NANOGPT_FILE = "ckpt.pt"
"""The default checkpoint file in an ``out_dir``."""
GPT2_META = "gpt2"
"""A value for ``meta`` instead of a path: GPT-2's encoding."""
LAST_STEP = "last"
"""A value for ``step`` instead of a number: the latest."""
DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")
DTYPE_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Which model to load: the config group ``model``, with the keys of all its choices.

    Raises:
        ConfigError: a value is wrong, or the model needs a ``path`` that is not set.
    """

    name: str = "shakespeare"
    out_dir: str = "out"
    meta: str | None = None
    path: str | None = None
    file: str = NANOGPT_FILE
    step: str = LAST_STEP
    tokenizer: str | None = None
    softcap: float | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        coerce_fields(self, "model.")
        one_of("model", self.name, MODELS)
        counted = self.step.isascii() and self.step.isdecimal() and len(self.step) <= 18
        require(self.step == LAST_STEP or counted, "model.step", self.step, f"must be a step of the training, or {LAST_STEP}")
        object.__setattr__(self, "step", str(int(self.step)) if counted else self.step)
        soft = self.softcap is None or 0 < self.softcap < math.inf
        require(soft, "model.softcap", self.softcap, "must be a positive number, or null for the checkpoint's own")
        named = bool(self.file) and "\0" not in self.file
        require(named, "model.file", self.file, f"must be the name of a file in model.out_dir, such as {NANOGPT_FILE}")
        if self.name in _PATHS:
            require(bool(self.path), "model.path", self.path, f"model={self.name} needs {_PATHS[self.name]}")
        wanted = "must be a branch, a tag or a commit of the model on the hub; null is its main branch"
        require(self.revision is None or bool(self.revision.strip()), "model.revision", self.revision, wanted)

    @property
    def place(self) -> str | None:
        """The location of the model as the user gave it; None for a model with a name of its own."""
        key = PLACE_KEYS.get(self.name)
        return None if key is None else getattr(self, key)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """Where and in which arithmetic a model runs: the config group ``device``.

    ``name`` is ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. ``threads`` None: torch's own. ``max_rows`` None: planned
    from memory.

    Raises:
        ConfigError: a value is wrong. Whether the machine has the device is checked when a model is loaded.
    """

    name: str = "auto"
    dtype: str = "auto"
    compile: bool = False
    threads: int | None = None
    max_rows: int | None = None

    def __post_init__(self) -> None:
        coerce_fields(self, "device.")
        object.__setattr__(self, "dtype", DTYPE_ALIASES.get(self.dtype, self.dtype))
        kind, _, index = self.name.partition(":")
        require(
            self.name in ("auto", "cpu", "mps") or (kind == "cuda" and (index.isdecimal() or self.name == "cuda")),
            "device.name",
            self.name,
            "must be auto, cpu, cuda, cuda:N or mps",
        )
        one_of("device.dtype", self.dtype, DTYPES)
        for name in ("threads", "max_rows"):
            value = getattr(self, name)
            require(value is None or 1 <= value < LIMIT, f"device.{name}", value, "must be at least 1 and below 2**31, or null")
