"""What an architecture is: to the engine a `Model`, to whoever loads one an `Architecture`.

An architecture is one file with a subclass of `Architecture`, and one line in `registry.ARCHITECTURES`.
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
"""``attend(layer, queries, keys, values) -> [..., n_head * head_size]``: how tokens of one layer see one another and the past.

Queries are ``[..., n_head, head_size]``, keys and values ``[..., n_kv_heads, head_size]``, of tokens whose positions the
attention knows."""

NO_TOKEN = -1
"""In the place of a token's id where there is none."""

_GREATEST_SIZE = 2**31 - 1


class Config(Protocol):
    """The shape of a model: a frozen dataclass.

    ``vocab_size`` counts the rows of the embedding, padding included; ``tied_head``: whether the head is the embedding.
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
    """What a cache of keys and values has to know of a model."""

    @property
    def n_layer(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def head_size(self) -> int: ...
    @property
    def windows(self) -> Sequence[int | None]:
        """For each layer how many positions a token sees, itself included; None: all."""


class LinearLayer(NamedTuple):
    """Where a linear layer stands: an attribute of ``parent``, and the one that holds the activation behind it, if any."""

    parent: nn.Module
    name: str
    activation: str | None = None


class Model(CacheShape, Protocol):
    """All that the engine asks of a model. ``block_size`` is the most positions that it reads; None: any number."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def block_size(self) -> int | None: ...
    @property
    def extends_to(self) -> int | None:
        """The most positions that it reads with ``overflow=extend``, ``block_size`` where it cannot; None: any number."""

    @property
    def n_head(self) -> int: ...

    @property
    def embedding(self) -> Tensor:
        """``[vocab_size, n_embd]``; its device and dtype are the model's."""

    def reserve(self, n_positions: int) -> None:
        """Prepare for positions below ``n_positions``: must be called before `hidden` reads one."""

    @property
    def reads_previous(self) -> bool:
        """Whether what `hidden` makes of a token depends on the one before it, apart from attention."""

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend, keep: Tensor | None = None) -> Tensor:
        """The residual stream after the last block, normalised; float32 throughout.

        Args:
            ids: ``int64 [...]``.
            positions: ``int64``, broadcastable to ``ids``.
            attend: how tokens see one another.
            keep: ``int64 [kept]``, for ids of one dimension: which tokens are wanted; ``attend`` gives just those in the last
                layer. None: all.

        A model that `reads_previous` is given ``previous`` by that name, too: ``int64``, as ``ids``, for each token the one
        before it in its sequence, `NO_TOKEN` for the first.

        Returns:
            ``float32 [..., n_embd]``, or ``[kept, n_embd]``.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., n_embd] -> [..., vocab_size]``."""

    def linear_layers(self) -> Iterator[LinearLayer]:
        """The layers that may be replaced by packed ones."""

    def between_attentions(self, x: Tensor) -> tuple[Tensor, ...]:
        """``[rows, n_embd]`` through one layer of each shape, without attention: to see whether rows change one another."""

    def torch_stream(self, seed: int) -> torch.Generator:
        """The stream that ``rng=torch`` draws tokens from."""


class Architecture(nn.Module, ABC):
    """A `Model` that can be loaded: its weights' names and shapes, and how files of others describe it.

    Subclasses fill in the abstract methods here and those of `Model`. Weights have the names that `named_parameters` gives.
    """

    TITLE: ClassVar[str]
    """What errors call the architecture."""
    EMBEDDING: ClassVar[str]
    HEAD: ClassVar[str]
    """Names of the two weights that are one where the head is tied."""

    OVERFLOW: ClassVar[str] = "crop"
    """The ``sampling.overflow`` that does what the architecture's own program does at the end of the context."""

    config: Config

    @abstractmethod
    def __init__(self, config: Any) -> None:
        """On the meta device this must draw nothing."""
        super().__init__()

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
        """Logits of the next token at every place of ``ids``.

        Args:
            ids: ``int64 [batch, time]``, with ``1 <= time <= extends_to``.

        Returns:
            ``[batch, time, vocab_size]`` in the model's dtype.

        Raises:
            ValueError: ``time`` is longer than what the model reads.
        """
        time = ids.shape[-1]
        if self.extends_to is not None and time > self.extends_to:
            raise ValueError(f"ids has {time} tokens a row, more than the model's block_size, {self.extends_to}")
        self.reserve(time)
        positions = torch.arange(time, device=ids.device)
        asked: dict[str, Any] = {}
        if self.reads_previous:
            asked["previous"] = F.pad(ids[..., :-1], (1, 0), value=NO_TOKEN)
        return self.logits(self.hidden(ids, positions, self.attend_within, **asked))

    def attend_within(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention inside each row: ``[batch, time, n_head, head_size] -> [batch, time, n_head * head_size]``."""
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
        """The shape that a ``config.json`` describes.

        Args:
            settings: what the file holds.
            wrong: makes the error for what it says.

        Raises:
            ModelError: it describes a model that this architecture is not.
        """

    @classmethod
    def weights_from_hf(
        cls,
        stored: Mapping[str, StoredTensor],
        settings: Mapping[str, Any],
        config: Any,
        wrong: Callable[[str], ModelError],
    ) -> dict[str, Stored]:
        """Weights as `transformers` saves them, in this architecture's layout; they may be too many, too few or misshapen.

        Args:
            stored: by the names that `own_name` gives.
            settings: what ``config.json`` holds.
            config: the shape that it describes.
            wrong: makes the error for weights that cannot be put together.
        """
        return dict(stored)

    @classmethod
    def own_name(cls, name: str) -> str:
        """The name here of a weight that files of others call ``name``."""
        return name

    @classmethod
    @abstractmethod
    def is_own(cls, name: str) -> bool:
        """Whether a weight of this name belongs to the language model, so that one too many is an error."""

    @classmethod
    def is_buffer(cls, name: str) -> bool:
        """Whether files hold under this name what is no weight and may be left out: a mask, say."""
        return False

    @classmethod
    @abstractmethod
    def layer_weights(cls, config: Any) -> Iterator[str]:
        """A weight of each layer: looked for one by one, as a damaged config may ask for 2**31 layers."""

    @classmethod
    @abstractmethod
    def outline(cls, config: Any) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights that show how large a model ``config`` asks for, before one is laid out."""

    @classmethod
    @abstractmethod
    def stays_float32(cls, name: str) -> bool:
        """Whether a weight is float32 whatever the model's dtype."""

    @classmethod
    def identity(cls, config: Any) -> dict[str, Any]:
        """What the fingerprint of a model holds beside its weights."""
        return {"architecture": cls.TITLE, **asdict(config)}

    @abstractmethod
    def compile_blocks(self, mode: str | None) -> None:
        """Let `torch.compile` compile the layers, when they are first called."""


def is_size(value: object) -> bool:
    """Whether ``value``, out of somebody's file, is a whole number that a size may be held against."""
    return type(value) is int and abs(value) <= _GREATEST_SIZE
