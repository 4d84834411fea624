"""Read a model as `transformers` saves it: ``config.json``, safetensors or ``pytorch_model.bin``, and the tokenizer's files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ...display import get_logger
from ...errors import ModelError, brief
from ...files import JSON_BYTES, read_json
from ...records import ModelSource
from ..architecture import Architecture, Config
from ..checkpoint import Checkpoint, by_name, checkpoint_of, fit
from ..registry import ARCHITECTURES, architecture_of
from .hf_tokenizer import read_hf_tokenizer
from .pickles import mapping_of
from .places import ModelFiles, config_of, files_of
from .safetensors_file import read_safetensors
from .tokenizers import GPT2Tokenizer, Tokenizer
from .torch_file import TorchFile
from .weights import Stored, StoredTensor

log = get_logger(__name__)

GPT2_PADDED_VOCAB = 50304
"""GPT-2's 50,257 tokens rounded up to a multiple of 64, as nanoGPT pads its embedding."""


def open_source(source: ModelSource) -> Checkpoint:
    """Open ``model=hf``, or ``model=gpt2`` and its larger versions."""
    return open_hf(files_of(source), None if source.name == "hf" else GPT2Tokenizer())


def open_hf(files: ModelFiles, tokenizer: Tokenizer | None = None) -> Checkpoint:
    """Open a model as `transformers` saves it.

    Args:
        files: the files of the model.
        tokenizer: its tokenizer; None: read it from ``files``.

    Raises:
        ModelError: a file is missing or damaged, or `ARCHITECTURES` lacks the model's architecture.
    """
    settings = json_in(config_of(files), files)
    architecture, config, fitting = model_of(settings, _tensors(files), files.key, files.value)
    tokenizer = tokenizer or tokenizer_in(files, settings, config.vocab_size)
    return checkpoint_of(architecture, config, tokenizer, fitting, files.key, files.value)


def model_of(
    settings: Any, tensors: Iterable[tuple[str, StoredTensor]], key: str, value: str
) -> tuple[type[Architecture], Config, dict[str, Stored]]:
    """Interpret a ``config.json`` and the weights that belong to it.

    Args:
        settings: the contents of ``config.json``.
        tensors: weights with transformers' names.
        key, value: name the model in errors.

    Returns:
        The architecture, its config, and the weights by the names of its parameters.

    Raises:
        ModelError: `ARCHITECTURES` lacks the architecture, or a setting or weight does not fit it.
    """
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        *others, last = (f"'{name}'" for name in ARCHITECTURES)
        runs = f"{', '.join(others)} or {last}"
        what = f"its config.json names the architecture {brief(kind)}; gptsweep supports model_type {runs}"
        raise ModelError(key, value, what)
    architecture = architecture_of(kind)
    wrong = partial(ModelError, key, value)
    config = architecture.config_from_hf(settings, wrong)
    named = by_name(tensors, architecture.own_name, key, value)
    stored = architecture.weights_from_hf(named, settings, config, wrong)
    return architecture, config, fit(architecture, config, stored, key, value)


def json_in(path: Path, files: ModelFiles) -> Any:
    """Read one of the model's JSON files.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(files.key, files.value, f"its {path.name} cannot be read ({error})") from error


def _tensors(files: ModelFiles) -> Iterable[tuple[str, StoredTensor]]:
    """Yield the tensors of the first kind of weight file that the model has, in one file or in shards."""
    for whole in ("model.safetensors", "pytorch_model.bin"):
        if (path := files.find(whole)) is not None:
            yield from _file(path, files)
            return
        if (index := files.find(f"{whole}.index.json")) is not None:
            yield from _shards(index, files, whole.rpartition(".")[2])
            return
    raise files.absent("model.safetensors, model.safetensors.index.json or pytorch_model.bin")


def _shards(index: Path, files: ModelFiles, kind: str) -> Iterable[tuple[str, StoredTensor]]:
    places = json_in(index, files)
    places = places.get("weight_map") if isinstance(places, dict) else None
    shards: list[Any] = list(places.values()) if isinstance(places, dict) else [None]
    if not all(isinstance(shard, str) and re.fullmatch(rf"\w[\w.-]*\.{kind}", shard) for shard in shards):
        raise ModelError(files.key, files.value, f"its {index.name} is damaged (a shard is not a plain file name)")
    for shard in sorted(set(shards)):
        if (path := files.find(shard)) is None:
            raise files.absent(shard)
        yield from _file(path, files)


def _file(path: Path, files: ModelFiles) -> Iterable[tuple[str, StoredTensor]]:
    if path.suffix == ".safetensors":
        return read_safetensors(path, files.key, files.value)[0].items()
    file = TorchFile(path, files.key, files.value)
    if (weights := mapping_of(file.contents)) is None:
        raise ModelError(files.key, files.value, f"{path} holds no named weights")
    return file.tensors(weights)


def tokenizer_in(files: ModelFiles, settings: Mapping[str, Any], vocab_size: int) -> Tokenizer:
    """Read the tokenizer of a model whose ``config.json`` holds ``settings`` and whose embedding has ``vocab_size`` rows.

    A GPT-2 model without tokenizer files gets GPT-2's encoding if the size of its vocabulary allows.

    Raises:
        ModelError: there is no tokenizer, it is damaged, or gptsweep does not support its kind.
    """
    found = read_hf_tokenizer(_sized(files), config=settings, limit=vocab_size, key=files.key, value=files.value)
    if found is not None:
        if files.unreachable:
            what = "some of its files are not in the cache"
            log.warning("%s: %s and %s; end tokens or a chat template may be missing", files.value, what, files.unreachable)
        return found
    what = "tokenizer.json, or vocab.json with merges.txt"
    gpt2 = GPT2Tokenizer()
    if files.unreachable:
        raise files.absent(what)
    if settings.get("model_type") != "gpt2":  # Pythia's vocabulary has the size of GPT-2's
        raise files.absent(what)
    if not gpt2.vocab_size <= vocab_size <= GPT2_PADDED_VOCAB:
        raise files.absent(f"{what}, and its vocabulary of {vocab_size} is not GPT-2's")
    log.warning("%s has no %s: GPT-2 encoding", files.value, what)
    return gpt2


def _sized(files: ModelFiles) -> Callable[[str], Path | None]:
    """Wrap ``files.find`` to refuse files that are too large for a tokenizer."""

    def find(name: str) -> Path | None:
        path = files.find(name)
        if path is not None and path.stat().st_size > JSON_BYTES:
            raise ModelError(files.key, files.value, f"its {name} is larger than {JSON_BYTES >> 20} MiB")
        return path

    return find
