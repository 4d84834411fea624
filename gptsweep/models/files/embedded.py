"""Read the model that ships with the package."""

from __future__ import annotations

import json
from pathlib import Path

from ...errors import ModelError
from ...records import ModelSource
from ..checkpoint import Checkpoint, checkpoint_of
from .hf import model_of
from .safetensors_file import read_safetensors
from .tokenizers import CharTokenizer

EMBEDDED = Path(__file__).parents[2] / "data" / "shakespeare"


def open_source(source: ModelSource) -> Checkpoint:
    """Open ``model=shakespeare``."""
    return open_embedded(EMBEDDED)


def open_embedded(directory: Path) -> Checkpoint:
    """Open ``model.safetensors``, whose metadata holds a ``config.json``, and ``vocab.json``, a list of characters.

    Raises:
        ModelError: a file is missing or damaged.
    """

    def wrong(what: str) -> ModelError:
        return ModelError("model", "shakespeare", f"{what}; install gptsweep again")

    if not (directory / "model.safetensors").is_file():
        raise wrong(f"the embedded model is not in {directory}")
    stored, metadata = read_safetensors(directory / "model.safetensors", "model", "shakespeare")
    try:
        settings = json.loads(metadata["config"])
        tokenizer = CharTokenizer(json.loads((directory / "vocab.json").read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise wrong(f"the embedded model in {directory} is damaged ({error})") from error
    architecture, config, fitting = model_of(settings, stored.items(), "model", "shakespeare")
    return checkpoint_of(architecture, config, tokenizer, fitting, "model", "shakespeare")
