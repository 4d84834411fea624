"""The model inside the package: ``model.safetensors``, and ``vocab.json``, a list of characters."""

from __future__ import annotations

import json
from pathlib import Path

from ...errors import ModelError
from ...records import ModelSource
from ..checkpoint import Checkpoint, checkpoint_of, fit
from ..gpt2 import GPT, GPTConfig
from .safetensors_file import read_safetensors
from .tokenizers import CharTokenizer

EMBEDDED = Path(__file__).parents[2] / "data" / "shakespeare"


def open_source(source: ModelSource) -> Checkpoint:
    """``model=shakespeare``."""
    return open_embedded(EMBEDDED)


def open_embedded(directory: Path) -> Checkpoint:
    """``model.safetensors``, with a `GPTConfig` as JSON in its metadata, and ``vocab.json``, a list of characters."""

    def wrong(what: str) -> ModelError:
        return ModelError("model", "shakespeare", f"{what}; install gptsweep again")

    if not (directory / "model.safetensors").is_file():
        raise wrong(f"the embedded model is not in {directory}")
    stored, metadata = read_safetensors(directory / "model.safetensors", "model", "shakespeare")
    try:
        config = GPTConfig(**json.loads(metadata["config"]))
        tokenizer = CharTokenizer(json.loads((directory / "vocab.json").read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise wrong(f"the embedded model in {directory} is damaged ({error})") from error
    return checkpoint_of(GPT, config, tokenizer, fit(GPT, config, stored, "model", "shakespeare"), "model", "shakespeare")
