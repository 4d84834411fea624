"""A model on disk: its shape, its tokenizer, and where each of its parameters is stored.

The modules of `files` read these three from one file format each. `fit` checks the weights against the shape; `fingerprint`
hashes both.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from ..display import get_logger
from ..errors import ModelError
from .architecture import Architecture, Config
from .files.places import MERGE, some_of
from .files.tokenizers import Tokenizer
from .files.weights import Stored, StoredTensor, parts_of

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model on disk whose weights have not been read yet.

    ``weights`` maps each parameter of ``architecture(config)`` to its place on disk; a tied head has no entry. ``step`` is the
    training step, if the format records one. ``digests`` holds the hashes of tensors that have been hashed already.
    """

    architecture: type[Architecture]
    config: Config
    tokenizer: Tokenizer
    weights: Mapping[str, Stored]
    step: int | None = None
    digests: Mapping[StoredTensor, str] = field(default_factory=dict, repr=False, compare=False)

    def laid_out(self) -> Architecture:
        """Build the model without weights, its parameters on the meta device."""
        return self.architecture.laid_out(self.config)

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 of the shape and the stored weights. It does not depend on file paths or on other contents of the files.

        The first access reads every weight.
        """
        parts = itertools.chain.from_iterable(map(parts_of, self.weights.values()))
        digests = {**self.digests, **_digests(part for part in parts if part not in self.digests)}
        content: dict[str, list[object]] = {}
        for name, weight in self.weights.items():
            hashed = [_hashed(part, digests[part]) for part in parts_of(weight)]
            content[name] = hashed[0] if len(hashed) == 1 else [*hashed]
        decides = json.dumps({"config": self.architecture.identity(self.config), "weights": content}, sort_keys=True)
        return hashlib.sha256(decides.encode()).hexdigest()


def load_weights(checkpoint: Checkpoint, model: Architecture, dtype: torch.dtype) -> None:
    """Replace the meta-device parameters of ``model``, as `Checkpoint.laid_out` returns it, by CPU parameters read from disk.

    They have the dtype ``dtype``, or float32 where `Architecture.stays_float32` says so. Tensors are read one at a time, so the
    peak memory is the model plus its largest stored tensor. No parameter requires a gradient; a tied head stays tied.

    Raises:
        ModelError: a file has changed since the checkpoint was opened.
    """
    # All tensors share one buffer: one buffer each would fragment the heap, and the allocator could not return that memory.
    parts = itertools.chain.from_iterable(map(parts_of, checkpoint.weights.values()))
    scratch = torch.empty(max(part.nbytes for part in parts), dtype=torch.uint8)
    for name, stored in checkpoint.weights.items():
        module, _, leaf = name.rpartition(".")
        weight = torch.empty(stored.shape, dtype=torch.float32 if model.stays_float32(name) else dtype)
        rows = 0
        for part in parts_of(stored):
            values = part.read(scratch)
            weight[rows : rows + part.shape[0]] = values
            if part.scale != 1:
                weight[rows : rows + part.scaled_rows] = values[: part.scaled_rows].float() * part.scale
            rows += part.shape[0]
        setattr(model.get_submodule(module), leaf, nn.Parameter(weight, requires_grad=False))
    if checkpoint.config.tied_head:
        module, _, leaf = model.HEAD.rpartition(".")
        setattr(model.get_submodule(module), leaf, model.get_parameter(model.EMBEDDING))


def by_name(
    tensors: Iterable[tuple[str, StoredTensor]], own_name: Callable[[str], str], key: str, value: str
) -> dict[str, StoredTensor]:
    """Index tensors by the architecture's own names, without the prefixes that torch.compile, DDP and PEFT add.

    Args:
        tensors: pairs of a name in the file and a tensor.
        own_name: `Architecture.own_name`.
        key, value: name the model in errors.

    Raises:
        ModelError: two tensors end up with the same name, or the file holds an adapter that is not merged into the model.
    """
    found: dict[str, StoredTensor] = {}
    for full, tensor in tensors:
        if ".lora_" in full or ".modules_to_save." in full:
            raise ModelError(key, value, f"holds a PEFT adapter beside the weights ({full:.80}); {MERGE}")
        name = re.sub(r"^(module\.|base_model\.|model\.)+", "", full.replace("_orig_mod.", "")).replace(".base_layer.", ".")
        name = own_name(name)
        if name in found:
            raise ModelError(key, value, f"holds the weight {name:.80} twice, under names with different prefixes")
        found[name] = tensor
    return found


def fit(
    architecture: type[Architecture], config: Config, stored: Mapping[str, Stored], key: str, value: str
) -> dict[str, Stored]:
    """Select the weights of ``architecture(config)`` from ``stored`` and check them. The result always includes the head.

    Raises:
        ModelError: a weight is missing, has another shape than ``config`` implies, is not floating-point, or does not belong to
            the model; or the weights together claim more bytes than their files hold.
    """

    def wrong(what: str) -> ModelError:
        return ModelError(key, value, what)

    weights = dict(stored)
    embedding, head = architecture.EMBEDDING, architecture.HEAD
    if config.tied_head:  # a file may hold either of the two, or both
        for name, twin in ((embedding, head), (head, embedding)):
            if name not in weights and twin in weights:
                weights[name] = weights[twin]

    def require(shapes: Mapping[str, tuple[int, ...]]) -> None:
        if missing := [name for name in shapes if name not in weights]:
            raise wrong(f"weights are missing: {some_of(missing)}")
        for name, shape in shapes.items():
            if weights[name].shape != shape:
                has = f"the weight {name} has the shape {list(weights[name].shape)}"
                raise wrong(f"{has}, but the model's settings imply {list(shape)}")
            if weights[name].dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
                raise wrong(f"the weight {name} is stored as {weights[name].dtype}; quantised weights cannot be loaded")

    # By its strides, a tensor can be a view that repeats a few stored numbers any number of times.
    places = {replace(part, scale=1.0) for weight in stored.values() for part in parts_of(weight)}
    whole = sum(math.prod(place.shape) * place.dtype.itemsize for place in places)
    if whole > (held := sum(file.size for file in {place.file for place in places})):
        raise wrong(f"its weights would take {whole:,} bytes, but the file holds only {held:,}")
    # Check the outline first: a damaged config may ask for a model too large to build even on the meta device.
    if (absent := next((name for name in architecture.layer_weights(config) if name not in weights), None)) is not None:
        raise wrong(f"weights are missing: {absent}")
    require(architecture.outline(config))
    parameters = architecture.laid_out(replace(config, tied_head=False)).named_parameters()
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters}
    require(shapes)
    others = [name for name in stored if name not in shapes and not architecture.is_buffer(name)]
    if strange := [name for name in others if architecture.is_own(name)]:
        raise wrong(f"it has weights that a {architecture.TITLE} with its settings does not have: {some_of(strange)}")
    if others:
        log.info("ignoring weights outside the language model: %s", some_of(others))
    return {name: weights[name] for name in shapes}


def checkpoint_of(
    architecture: type[Architecture],
    config: Config,
    tokenizer: Tokenizer,
    fitting: Mapping[str, Stored],
    key: str,
    value: str,
) -> Checkpoint:
    """Build a `Checkpoint` from the weights that `fit` returned, and find out whether the head is tied.

    If head and embedding are stored separately and look alike, both are hashed to compare them.

    Raises:
        ModelError: the tokenizer has more tokens than the embedding has rows.
    """
    weights = dict(fitting)
    if tokenizer.vocab_size > config.vocab_size:
        has = f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's embedding has {config.vocab_size} rows"
        raise ModelError(key, value, f"{has}; it belongs to another model")
    head, embedding = (parts_of(weights[name]) for name in (architecture.HEAD, architecture.EMBEDDING))
    tied, digests = head == embedding, {}
    if not tied and [_hashed(part, "") for part in head] == [_hashed(part, "") for part in embedding]:
        digests = _digests((*head, *embedding))
        tied = [digests[part] for part in head] == [digests[part] for part in embedding]
    if tied:
        del weights[architecture.HEAD]
    elif config.tied_head:
        log.info("the head and the embedding are stored with different values: they are not tied")
    config = replace(config, tied_head=tied)
    return Checkpoint(architecture=architecture, config=config, tokenizer=tokenizer, weights=weights, digests=digests)


def _digests(parts: Iterable[StoredTensor]) -> dict[StoredTensor, str]:
    """Compute the SHA-256 of each tensor, in parallel."""
    places = list(dict.fromkeys(parts))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(places, pool.map(StoredTensor.sha256, places), strict=True))


def _hashed(part: StoredTensor, digest: str) -> list[object]:
    """Return the entry of a tensor in the fingerprint."""
    scale = [] if part.scale == 1 else [part.scale]
    return [str(part.dtype), part.shape, part.stride, digest, *scale]
