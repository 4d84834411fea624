"""The seam between the program and whatever decodes: a `Backend` takes rows, yields completions, and states a few facts.

Nothing above `engine/` knows more of a model than this: no layers, no hidden states, no weights. The module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..models.files.tokenizers import Tokenizer
from ..records import Completion, DeviceSettings, ModelSource, Prefix, Row, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Bounds on the rows of a run, known before the first.

    How many rows, the most tokens in a prompt and in a whole row, the most new tokens of all rows together, those of prefixes
    left out, and for how many of those the model reads a whole window again (`windows_read`); whether a row goes on past the
    context with ``overflow=extend``.
    """

    rows: int
    prompt_tokens: int
    row_tokens: int
    new_tokens: int
    windows: int = 0
    extends: bool = False

    @classmethod
    def of(cls, rows: Sequence[Row], block_size: int | None) -> Workload:
        """The bounds of rows that are all there."""
        return cls(
            rows=len(rows),
            prompt_tokens=max((len(row.prompt_ids) for row in rows), default=1),
            row_tokens=max((len(row.prompt_ids) + row.sampling.max_new_tokens for row in rows), default=1),
            new_tokens=sum(row.sampling.max_new_tokens - row.begun for row in rows),
            windows=sum(
                windows_read(row.sampling, len(row.prompt_ids), row.sampling.max_new_tokens, block_size, row.begun)
                for row in rows
            ),
            extends=any(row.sampling.overflow == "extend" for row in rows),
        )


def windows_read(sampling: Sampling, prompt_tokens: int, new_tokens: int, block_size: int | None, begun: int = 0) -> int:
    """For how many of a row's first ``new_tokens`` the model reads a whole window again: with ``crop``, past the context.

    The first ``begun`` of them are there already. ``block_size`` None: the context has no end.
    """
    if sampling.overflow != "crop" or block_size is None:
        return 0
    room = 1 + max(0, block_size - prompt_tokens)
    return max(0, new_tokens - room) - max(0, begun - room)


@dataclass(slots=True)
class BackendProgress:
    """What a backend has done: rows now in flight, tokens sampled so far, and at the end if no row stops early from here on.

    ``windows`` counts those of the tokens for which a whole window was read again. ``window_seconds`` is what reading one
    takes, as measured beforehand; None: there are too few of them, or nobody watches.

    ``workers`` says for the display who decodes, where that is not this process.

    ``unfinished`` gives the rows that were begun and have not ended, each with what it has so far. It may be called at any
    moment, also after an error has ended the run.
    """

    rows_in_flight: int = 0
    tokens: int = 0
    tokens_total: int = 0
    windows: int = 0
    windows_total: int = 0
    window_seconds: float | None = None
    workers: str = ""
    unfinished: Callable[[], list[tuple[Row, Prefix]]] = list


OnStep = Callable[[BackendProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How a backend computes.

    Args:
        dtype: as resolved, never ``auto``.
        device: ``cpu``, ``cuda`` or ``mps``.
        arithmetic: what the layers compute in, as `point_id` takes it: ``dtype``, or a name of its own where bits differ.
        threads: CPU threads.
        made_by: what decides the bits of samples beside what `point_id` names: if it is equal, so are they.
        versions: of the libraries that compute.
        step: of the training, as resolved, never ``last``; None: the model has no such thing.
    """

    dtype: str
    device: str
    arithmetic: str
    threads: int
    made_by: Mapping[str, object]
    versions: Mapping[str, str]
    step: int | None = None


class Backend(Protocol):
    """Decodes rows of one model."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""

    @property
    def block_size(self) -> int | None:
        """How many tokens the model reads; None: there is no limit."""

    @property
    def extends_to(self) -> int | None:
        """How many it reads with ``sampling.overflow=extend``, ``block_size`` where it cannot; None: any number."""

    @property
    def overflow(self) -> str:
        """The ``sampling.overflow`` that ``auto`` stands for: what the model's own program does."""

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end a sample with ``sampling.stop_at_eot``."""

    @property
    def fingerprint(self) -> str:
        """A hash of the model's weights and shape."""

    @property
    def promise(self) -> bool:
        """Whether samples are batch-invariant: the same to the bit whatever the other rows and ``max_rows``."""

    @property
    def max_rows(self) -> int | None:
        """Rows decoded together at most; None: planned from memory."""

    @property
    def provenance(self) -> Provenance:
        """What decides the bits of samples."""

    def resumes(self, prefix: Prefix) -> bool:
        """Whether a row can go on after ``prefix``, as far as the state of its random numbers is concerned."""

    def run(self, rows: Iterable[Row], workload: Workload, on_step: OnStep | None) -> Iterator[Completion]:
        """Yield a completion of every row as it finishes; its ``row`` is the object that was given.

        Args:
            rows: taken as there is room for them, and started in that order.
            workload: their bounds.
            on_step: called after each step, its completions yielded; what it raises ends the run.

        Raises:
            MemoryError: not even one row fits.
            GptsweepError: what the user can mend.
        """


@runtime_checkable
class Scorer(Protocol):
    """A backend that can score text that it did not sample."""

    def score(self, ids: Sequence[int], start: int, end: int) -> tuple[float, float]:
        """Mean log-probability and mean entropy, in nats, of the tokens ``start`` to ``end`` after those before them."""


@runtime_checkable
class Featurizer(Protocol):
    """A backend that can say in numbers what a text is like."""

    def features(self, ids: Sequence[int]) -> list[float]:
        """The model's hidden state behind the last of ``ids``, ``[n_features]``; of the ids, the first that it can read."""


class Backends(Protocol):
    """Opens models of one kind of backend."""

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        """The dtype and the type of device that ``auto`` stands for.

        Raises:
            DeviceError: the device or dtype is not there.
        """

    def open(self, source: ModelSource, settings: DeviceSettings) -> tuple[Backend, Tokenizer]:
        """Load a model.

        Raises:
            ModelError: there is no such model, or it cannot be read.
            DeviceError: the device, dtype or compiler is not there.
            MemoryError: it does not fit.
        """


@runtime_checkable
class Ships(Protocol):
    """`Backends` whose models can be opened where their files are not."""

    def pack(self, source: ModelSource) -> tuple[object, Iterator[Any]]:
        """A model without its weights, which pickles, and the weights, piece by piece, which pickle, too.

        Raises:
            ModelError: there is no such model, or it cannot be read.
        """

    def receive(self, source: ModelSource, outline: object, weights: Sequence[Any]) -> None:
        """Take what `pack` made of a model: the next `Backends.open` of it looks for no files."""
