"""The interface between the program and a decoder: a `Backend` takes rows, yields completions, and states a few facts.

Code above `engine/` knows nothing else about a model: no layers, no hidden states, no weights. This module does not import
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..models.files.tokenizers import Tokenizer
from ..records import Completion, DeviceSettings, ModelSource, Prefix, Row, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Bounds on the rows of a run, known before it starts.

    Args:
        rows: the number of rows.
        prompt_tokens: the most tokens in a prompt.
        row_tokens: the most tokens in a row, prompt included.
        new_tokens: the most tokens that all rows sample together, without those of prefixes.
        windows: for how many of these the model reads a whole window again (`windows_read`).
        extends: whether a row continues past the context with ``overflow=extend``.
    """

    rows: int
    prompt_tokens: int
    row_tokens: int
    new_tokens: int
    windows: int = 0
    extends: bool = False

    @classmethod
    def of(cls, rows: Sequence[Row], block_size: int | None) -> Workload:
        """The bounds of rows that are all known."""
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
    """For how many of a row's first ``new_tokens`` the model reads a whole window again: with ``crop``, beyond the context.

    The first ``begun`` tokens exist already. ``block_size`` None: the context is unlimited.
    """
    if sampling.overflow != "crop" or block_size is None:
        return 0
    room = 1 + max(0, block_size - prompt_tokens)
    return max(0, new_tokens - room) - max(0, begun - room)


@dataclass(slots=True)
class BackendProgress:
    """A backend's progress.

    Args:
        rows_in_flight: rows being decoded.
        tokens: tokens sampled so far.
        tokens_total: tokens expected in total if no more rows stop early.
        windows, windows_total: for how many of these tokens a whole window is read again.
        window_seconds: the seconds for one of them, measured beforehand; None: not measured, because there are few.
        workers: for display, the other processes that decode; empty: there are none.
        unfinished: returns the rows that have started and not ended, each with its tokens so far. It may be called at any
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
        dtype: resolved, never ``auto``.
        device: ``cpu``, ``cuda`` or ``mps``.
        arithmetic: what the layers compute in, as `point_id` hashes it: ``dtype``, or another name where bits differ.
        threads: the number of CPU threads.
        made_by: what determines the bits of samples apart from `point_id`: if both are equal, so are the samples.
        versions: versions of the libraries that compute.
        step: the training step, resolved, never ``last``; None if the model has none.
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
        """The number of tokens that the model can read; None: unlimited."""

    @property
    def extends_to(self) -> int | None:
        """The limit with ``sampling.overflow=extend``; equal to ``block_size`` if the model cannot extend; None: unlimited."""

    @property
    def overflow(self) -> str:
        """The ``sampling.overflow`` that ``auto`` resolves to: what the model's own program does."""

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end a sample with ``sampling.stop_at_eot``."""

    @property
    def fingerprint(self) -> str:
        """A hash of the model's weights and shape."""

    @property
    def promise(self) -> bool:
        """Whether samples are batch-invariant: bit-identical whatever the other rows and ``max_rows`` are."""

    @property
    def max_rows(self) -> int | None:
        """The maximum number of rows decoded together; None: derived from free memory."""

    @property
    def provenance(self) -> Provenance:
        """What determines the bits of samples."""

    def resumes(self, prefix: Prefix) -> bool:
        """Whether a row can continue after ``prefix``, as far as the state of its random numbers is concerned."""

    def run(self, rows: Iterable[Row], workload: Workload, on_step: OnStep | None) -> Iterator[Completion]:
        """Yield a completion of each row as it finishes; its ``row`` is the object that was passed.

        Args:
            rows: consumed as there is room for them, and started in order.
            workload: their bounds.
            on_step: called after each step, once its completions have been yielded; an exception from it ends the run.

        Raises:
            MemoryError: not even one row fits.
            GptsweepError: an error that the user can fix.
        """


@runtime_checkable
class Scorer(Protocol):
    """A backend that can score text it did not sample."""

    def score(self, ids: Sequence[int], start: int, end: int) -> tuple[float, float]:
        """Mean log-probability and mean entropy, in nats, of tokens ``start`` to ``end`` given those before them."""


@runtime_checkable
class Featurizer(Protocol):
    """A backend that computes a feature vector of a text."""

    def features(self, ids: Sequence[int]) -> list[float]:
        """The hidden state after the last of ``ids``, ``[n_features]``; a text that is too long is cut at its end."""


class Backends(Protocol):
    """Opens models of one kind of backend."""

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        """Resolve ``auto`` to a dtype and a device type.

        Raises:
            DeviceError: the device or dtype is not available.
        """

    def open(self, source: ModelSource, settings: DeviceSettings) -> tuple[Backend, Tokenizer]:
        """Load a model.

        Raises:
            ModelError: there is no such model, or it cannot be read.
            DeviceError: the device, dtype or compiler is not available.
            MemoryError: it does not fit.
        """


@runtime_checkable
class Ships(Protocol):
    """`Backends` whose models can be opened on machines without their files."""

    def pack(self, source: ModelSource) -> tuple[object, Iterator[Any]]:
        """Split a model into a picklable outline without weights, and an iterator of picklable pieces of its weights.

        Raises:
            ModelError: there is no such model, or it cannot be read.
        """

    def receive(self, source: ModelSource, outline: object, weights: Sequence[Any]) -> None:
        """Accept the result of `pack`; the next `Backends.open` of this model reads no files."""
