"""The registry of architectures and file formats, one line each.

An entry has the form ``module:attribute``. Its module is imported only when a model needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from ..errors import ModelError
from ..records import PLACE_KEYS

if TYPE_CHECKING:
    from ..records import ModelSource
    from .architecture import Architecture
    from .checkpoint import Checkpoint

_GPT2S = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")

ARCHITECTURES = {
    "gpt2": "gptsweep.models.gpt2:GPT",
    "gpt_neox": "gptsweep.models.gpt_neox:GPTNeoX",
    "llama": "gptsweep.models.llama:Llama",
    "mistral": "gptsweep.models.mistral:Mistral",
    "olmo2": "gptsweep.models.olmo2:Olmo2",
    "qwen2": "gptsweep.models.qwen:Qwen2",
    "qwen3": "gptsweep.models.qwen:Qwen3",
    "smollm3": "gptsweep.models.smollm3:SmolLM3",
}
"""Subclasses of `Architecture`, by the ``model_type`` of a Hugging Face ``config.json``."""

FORMATS = {
    "shakespeare": "gptsweep.models.files.embedded:open_source",
    "resume": "gptsweep.models.files.nanogpt:open_source",
    **dict.fromkeys(("hf", *_GPT2S), "gptsweep.models.files.hf:open_source"),
    "nanochat": "gptsweep.models.files.nanochat:open_source",
    "llmc": "gptsweep.models.files.llmc:open_source",
    "litgpt": "gptsweep.models.files.litgpt:open_source",
}
"""Functions that open a `ModelSource` as a `Checkpoint`, by the name in ``model=NAME``."""

PLACES = {
    "resume": "gptsweep.models.files.places:find_nanogpt",
    **dict.fromkeys(("hf", *_GPT2S), "gptsweep.models.files.places:find_hf"),
    "nanochat": "gptsweep.models.files.nanochat_directory:find_nanochat",
    "llmc": "gptsweep.models.files.places:find_llmc",
    "litgpt": "gptsweep.models.files.places:find_litgpt",
}
"""Functions that check, without importing torch, that a model's first files exist; for formats whose files may be missing."""


def architecture_of(model_type: str) -> type[Architecture]:
    """Import and return the class that `ARCHITECTURES` has for a ``model_type``."""
    return cast("type[Architecture]", _imported(ARCHITECTURES[model_type]))


def require_some(sources: Collection[ModelSource]) -> None:
    """Check, without importing torch, that at least one of the models exists. All are looked up in parallel.

    Raises:
        ModelError: none does. It is the error of the first model.
    """
    with ThreadPoolExecutor() as pool:
        errors = list(pool.map(_missing, sources))
    if errors and all(errors):
        raise next(filter(None, errors))


def _missing(source: ModelSource) -> ModelError | None:
    if source.name in PLACES:
        try:
            with _readable(source):
                _imported(PLACES[source.name])(source)
        except ModelError as error:
            return error
    return None


def open_checkpoint(source: ModelSource, *, hashed: bool = True) -> Checkpoint:
    """Find a model, download it if necessary, and read everything but its weights.

    Args:
        source: names the model.
        hashed: whether to compute the fingerprint now, which reads the weights to hash them. Otherwise they are not read.

    Raises:
        ModelError: there is no such model, it cannot be fetched or read, or `ARCHITECTURES` lacks its architecture.
    """
    open_source = cast("Callable[[ModelSource], Checkpoint]", _imported(FORMATS[source.name]))
    with _readable(source):
        checkpoint = open_source(source)
        if hashed:
            _ = checkpoint.fingerprint
        return checkpoint


@contextmanager
def _readable(source: ModelSource) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # such as a name that is too long, or an unknown home directory
        key = PLACE_KEYS.get(source.name)
        key, value = ("model", source.name) if key is None else (f"model.{key}", source.place)
        raise ModelError(key, value, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _imported(entry: str) -> Any:
    module, _, name = entry.partition(":")
    return getattr(import_module(module), name)
