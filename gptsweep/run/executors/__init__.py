"""Executors decide where rows run: an `Executor` takes planned rows and yields samples, plain data that can be pickled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from ...engine.backend import BackendProgress
from ...records import DeviceSettings, ModelSource, Prefix, Sample
from ..rows import OpenModel, Plan, SampleKey

InFlight = Callable[[], Iterator[tuple[SampleKey, Prefix]]]
"""Iterates over the unfinished samples, each with what has been sampled of it so far."""

OnStep = Callable[[BackendProgress, InFlight], None]
"""Called after each step with the progress so far. It may raise to end the run."""


@dataclass(frozen=True, slots=True, eq=False)
class MadeElsewhere:
    """A sample made with other hardware or software than the model's provenance names; ``made_by`` says which."""

    sample: Sample
    made_by: Mapping[str, object]


Result = Sample | MadeElsewhere | Exception
"""The result of a planned sample. An error concerns only that sample."""


class Executor(Protocol):
    """Decides where rows run. It does not know run directories, and its caller does not handle models."""

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        """Return the dtype and the device type that ``settings`` resolve to, without loading a model.

        Raises:
            DeviceError: the device or dtype is not available.
        """

    def open(self, source: ModelSource, settings: DeviceSettings) -> OpenModel:
        """Load a model, or return the last one if it is the same.

        Raises:
            GptsweepError: the model or device is not available.
            MemoryError: the model does not fit.
        """

    def run(self, model: OpenModel, plan: Plan, on_step: OnStep | None = None) -> Iterator[tuple[SampleKey, Result]]:
        """Run the rows of ``plan``, and yield each sample, or the error that prevented it, as soon as it is known.

        Raises:
            GptsweepError: an error that the user can fix.
            MemoryError: not even one row fits.
            RuntimeError: the backend ended before all rows were finished.
        """
