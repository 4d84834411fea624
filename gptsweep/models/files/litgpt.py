"""Read a checkpoint directory of LitGPT: ``lit_model.pth``, ``model_config.yaml``, and Hugging Face tokenizer files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import ModelError
from ...files import read_yaml
from ...records import ModelSource
from ..checkpoint import Checkpoint, by_name, checkpoint_of, fit
from ..litgpt import LitGPT
from .hf import json_in, tokenizer_in
from .pickles import mapping_of
from .places import LITGPT_CONFIG, LITGPT_WEIGHTS, PATH, LocalFiles, litgpt_directory
from .torch_file import TorchFile


def open_source(source: ModelSource) -> Checkpoint:
    """Open ``model=litgpt``."""
    return open_litgpt(source.path or "")


def open_litgpt(path: str) -> Checkpoint:
    """Open the directory ``path`` as LitGPT writes it after conversion, pretraining, fine-tuning or merging LoRA.

    Raises:
        ModelError: a file is missing or damaged, or gptsweep does not support this kind of model.
    """
    wrong = partial(ModelError, PATH, path)
    directory = litgpt_directory(path)
    settings = _settings(directory / LITGPT_CONFIG, wrong)
    file = TorchFile(directory / LITGPT_WEIGHTS, PATH, path)
    contents = mapping_of(file.contents) or {}
    # Training saves the weights together with optimizer and data state; conversion saves only the weights.
    weights = mapping_of(contents.get("model")) if "model" in contents else contents
    if not weights:
        raise wrong(f"its {LITGPT_WEIGHTS} holds no named weights")
    named = by_name(file.tensors(weights), LitGPT.own_name, PATH, path)
    config = LitGPT.config_from_hf(settings, wrong)
    fitting = fit(LitGPT, config, LitGPT.weights_from_hf(named, settings, config, wrong), PATH, path)
    files = LocalFiles(directory, PATH, path)
    described = {} if (found := files.find("config.json")) is None else json_in(found, files)
    tokenizer = tokenizer_in(files, described if isinstance(described, dict) else {}, config.vocab_size)
    return checkpoint_of(LitGPT, config, tokenizer, fitting, PATH, path)


def _settings(path: Path, wrong: Callable[[str], ModelError]) -> dict[str, Any]:
    try:
        settings = read_yaml(path)
    except (OSError, ValueError) as error:
        raise wrong(f"its {path.name} cannot be read ({error})") from error
    if not isinstance(settings, dict):
        raise wrong(f"its {path.name} holds no named settings")
    return settings
