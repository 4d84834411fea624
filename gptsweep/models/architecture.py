"""The interfaces of a model: `Model` is what the engine uses, `Architecture` is what the loader uses.

To add an architecture, write one file with a subclass of `Architecture` and add one line to `registry.ARCHITECTURES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError
from .files.weights import Stored, StoredTensor

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Computes attention in one layer: ``attend(layer, queries, keys, values) -> [..., n_head * head_size]``.

Queries are ``[..., n_head, head_size]``, keys and values are ``[..., n_kv_heads, head_size]``. The callable knows the positions
of the tokens, and reads the keys and values of earlier ones from the cache."""

NO_TOKEN = -1
"""Stands for a missing token id, such as the one before the first token of a sequence."""

_GREATEST_SIZE = 2**31 - 1


class Config(Protocol):
    """The shape of a model: a frozen dataclass.

    ``vocab_size`` counts the rows of the embedding, padding included. ``tied_head`` says whether the head and the embedding
    share one weight.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def vocab_size(self) -> int: ...
    @property
    def block_size(self) -> int | None: ...
    @property
    def n_layer(self) -> int: ...
    @property
    def n_head(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def head_size(self) -> int: ...
    @property
    def tied_head(self) -> bool: ...


class CacheShape(Protocol):
    """What the KV cache needs to know about a model."""

    @property
    def n_layer(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def head_size(self) -> int: ...
    @property
    def windows(self) -> Sequence[int | None]:
        """The attention window of each layer, in positions, the token's own included; None: unlimited."""


class LinearLayer(NamedTuple):
    """The place of a linear layer in a model.

    ``name`` is its attribute in ``parent``. ``activation`` is the attribute that holds the activation applied to its output,
    if there is one.
    """

    parent: nn.Module
    name: str
    activation: str | None = None


class Model(CacheShape, Protocol):
    """Everything the engine needs from a model. ``block_size`` is the longest context in positions; None: unlimited."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def block_size(self) -> int | None: ...
    @property
    def extends_to(self) -> int | None:
        """The longest context with ``overflow=extend``; equals ``block_size`` if the model cannot extend; None: unlimited."""

    @property
    def n_head(self) -> int: ...

    @property
    def embedding(self) -> Tensor:
        """The token embedding, ``[vocab_size, n_embd]``; its device and dtype are those of the model."""

    def reserve(self, n_positions: int) -> None:
        """Prepare for positions below ``n_positions``. Call it before `hidden` reads such a position."""

    @property
    def reads_previous(self) -> bool:
        """Whether `hidden` needs the id of the previous token, apart from attention."""

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend, keep: Tensor | None = None) -> Tensor:
        """Compute the normalised residual stream after the last block. The stream is float32 throughout.

        Args:
            ids: token ids, ``int64 [...]``.
            positions: position of each token, ``int64``, broadcastable to ``ids``.
            attend: computes attention.
            keep: ``int64 [kept]``, indices of the tokens to return, if ``ids`` has one dimension. In the last layer ``attend``
                then returns only these. None: all.

        A model with `reads_previous` also takes the keyword argument ``previous``: for each token the id of the token before it
        in its sequence, `NO_TOKEN` for the first; ``int64``, shaped like ``ids``.

        Returns:
            ``float32 [..., n_embd]``, or ``[kept, n_embd]``.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the head: ``[..., n_embd] -> [..., vocab_size]``."""

    def linear_layers(self) -> Iterator[LinearLayer]:
        """Yield the linear layers that packed ones may replace."""

    def between_attentions(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run ``x``, ``[rows, n_embd]``, through one layer of each shape, without attention, to test for batch invariance."""

    def torch_stream(self, seed: int) -> torch.Generator:
        """Return the random number generator that ``rng=torch`` draws tokens from."""


class Architecture(nn.Module, ABC):
    """A `Model` that can be loaded from files: it knows the names and shapes of its weights, and other projects' formats.

    Subclasses implement the abstract methods here and those of `Model`. Weights have the names that `named_parameters` yields.
    """

    TITLE: ClassVar[str]
    """The name of the architecture in error messages."""
    EMBEDDING: ClassVar[str]
    HEAD: ClassVar[str]
    """The names of the embedding and the head, which share one weight if the head is tied."""

    OVERFLOW: ClassVar[str] = "crop"
    """The ``sampling.overflow`` that matches what the architecture's reference implementation does when the context is full."""

    config: Config

    @abstractmethod
    def __init__(self, config: Any) -> None:
        """Build the modules. On the meta device this must not draw random numbers."""
        super().__init__()

    @classmethod
    def laid_out(cls, config: Any) -> Architecture:
        """Build the model without weights, its parameters on the meta device."""
        with torch.device("meta"):
            return cls(config)

    @abstractmethod
    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend, keep: Tensor | None = None) -> Tensor: ...
    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor: ...
    @abstractmethod
    def linear_layers(self) -> Iterator[LinearLayer]: ...
    @abstractmethod
    def between_attentions(self, x: Tensor) -> tuple[Tensor, ...]: ...

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def block_size(self) -> int | None:
        return self.config.block_size

    @property
    def n_layer(self) -> int:
        return self.config.n_layer

    @property
    def n_head(self) -> int:
        return self.config.n_head

    @property
    def n_kv_heads(self) -> int:
        return self.config.n_kv_heads

    @property
    def head_size(self) -> int:
        return self.config.head_size

    @property
    def extends_to(self) -> int | None:
        return self.block_size

    @property
    def windows(self) -> Sequence[int | None]:
        return (None,) * self.n_layer

    def reserve(self, n_positions: int) -> None:
        return None

    @property
    def reads_previous(self) -> bool:
        return False

    @property
    def embedding(self) -> Tensor:
        return self.get_parameter(self.EMBEDDING)

    def torch_stream(self, seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def forward(self, ids: Tensor) -> Tensor:
        """Compute the next-token logits at every position of ``ids``.

        Args:
            ids: ``int64 [batch, time]``, with ``1 <= time <= extends_to``.

        Returns:
            ``[batch, time, vocab_size]`` in the model's dtype.

        Raises:
            ValueError: ``time`` exceeds ``extends_to``.
        """
        time = ids.shape[-1]
        if self.extends_to is not None and time > self.extends_to:
            raise ValueError(f"ids has {time} tokens a row, more than the model's block_size, {self.extends_to}")
        self.reserve(time)
        positions = torch.arange(time, device=ids.device)
        extra: dict[str, Any] = {}
        if self.reads_previous:
            extra["previous"] = F.pad(ids[..., :-1], (1, 0), value=NO_TOKEN)
        return self.logits(self.hidden(ids, positions, self.attend_within, **extra))

    def attend_within(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Compute causal attention in each row: ``[batch, time, n_head, head_size] -> [batch, time, n_head * head_size]``."""
        q, k, v = (heads.to(values.dtype).transpose(-2, -3) for heads in (queries, keys, values))
        window, time = self.windows[layer], queries.shape[-3]
        seen: dict[str, Any] = {"is_causal": True}
        if window is not None and window < time:
            ones = torch.ones(time, time, dtype=torch.bool, device=q.device)
            seen = {"attn_mask": ones.tril() & ones.triu(1 - window)}
        grouped = self.n_kv_heads != self.n_head
        return F.scaled_dot_product_attention(q, k, v, **seen, enable_gqa=grouped).transpose(-2, -3).flatten(-2)

    # -- how files describe it ---------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def config_from_hf(cls, settings: Mapping[str, Any], wrong: Callable[[str], ModelError]) -> Config:
        """Read the model's shape from a ``config.json``.

        Args:
            settings: the contents of the file.
            wrong: makes a `ModelError` from a message.

        Raises:
            ModelError: the file describes a model that this class cannot run.
        """

    @classmethod
    def weights_from_hf(
        cls,
        stored: Mapping[str, StoredTensor],
        settings: Mapping[str, Any],
        config: Any,
        wrong: Callable[[str], ModelError],
    ) -> dict[str, Stored]:
        """Convert weights from the layout of `transformers` to this architecture's. `checkpoint.fit` checks the result.

        Args:
            stored: the weights, by the names that `own_name` returns.
            settings: the contents of ``config.json``.
            config: the shape read from it.
            wrong: makes a `ModelError` from a message.

        Raises:
            ModelError: weights that belong together do not match.
        """
        return dict(stored)

    @classmethod
    def own_name(cls, name: str) -> str:
        """Translate the name of a weight in another project's file to its name in this architecture."""
        return name

    @classmethod
    @abstractmethod
    def is_own(cls, name: str) -> bool:
        """Return whether a weight of this name belongs to the language model; an unexpected one is then an error."""

    @classmethod
    def is_buffer(cls, name: str) -> bool:
        """Return whether ``name`` is a buffer rather than a weight, such as an attention mask, and may be ignored."""
        return False

    @classmethod
    @abstractmethod
    def layer_weights(cls, config: Any) -> Iterator[str]:
        """Yield the name of one weight of each layer. It is lazy, as a damaged config may ask for 2**31 layers."""

    @classmethod
    @abstractmethod
    def outline(cls, config: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a few weights that fix the model's size, to be checked before any module is built."""

    @classmethod
    @abstractmethod
    def stays_float32(cls, name: str) -> bool:
        """Return whether a weight stays float32 whatever the model's dtype."""

    @classmethod
    def identity(cls, config: Any) -> dict[str, Any]:
        """Return what goes into the model's fingerprint besides its weights."""
        return {"architecture": cls.TITLE, **asdict(config)}

    @abstractmethod
    def compile_blocks(self, mode: str | None) -> None:
        """Wrap the layers in `torch.compile`; each is compiled on its first call."""


def is_size(value: object) -> bool:
    """Return whether ``value``, read from an untrusted file, is an integer of at most 2**31 - 1 in magnitude."""
    return type(value) is int and abs(value) <= _GREATEST_SIZE
