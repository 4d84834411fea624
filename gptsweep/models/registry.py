"""The architectures and file formats that there are: one line each.

Each stands as ``module:attribute``, and is imported when a model needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from ..errors import ModelError

if TYPE_CHECKING:
    from ..records import ModelSource
    from .architecture import Architecture
    from .checkpoint import Checkpoint

ARCHITECTURES = {
    "gpt2": "gptsweep.models.gpt2:GPT",
    "llama": "gptsweep.models.llama:Llama",
}
"""Subclasses of `Architecture`, by the ``model_type`` of a Hugging Face ``config.json``."""

FORMATS = {
    "shakespeare": "gptsweep.models.files.embedded:open_source",
    "resume": "gptsweep.models.files.nanogpt:open_source",
    "hf": "gptsweep.models.files.hub:open_path",
    **dict.fromkeys(("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"), "gptsweep.models.files.hub:open_gpt2"),
}
"""Functions from a `ModelSource` to a `Checkpoint`, by the name that a user gives: ``model=NAME``."""


def architecture_of(model_type: str) -> type[Architecture]:
    """The class of an entry of `ARCHITECTURES`."""
    return cast("type[Architecture]", _imported(ARCHITECTURES[model_type]))


def open_checkpoint(source: ModelSource) -> Checkpoint:
    """Find the model, fetching it where need be, and read all but its weights, which are only hashed.

    Raises:
        ModelError: there is no such model, it cannot be fetched or read, or it has no architecture of `ARCHITECTURES`.
    """
    open_source = cast("Callable[[ModelSource], Checkpoint]", _imported(FORMATS[source.name]))
    try:
        return open_source(source)
    except (OSError, RuntimeError) as error:  # a name that is too long, a home directory that is not known
        places = {"resume": ("model.out_dir", source.out_dir), "hf": ("model.path", source.path)}
        key, value = places.get(source.name, ("model", source.name))
        raise ModelError(key, value, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _imported(entry: str) -> Any:
    module, _, name = entry.partition(":")
    return getattr(import_module(module), name)
