"""Where rows run: an `Executor` takes planned rows and yields samples. What crosses this seam is data, and pickles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from ...engine.backend import BackendProgress
from ...records import DeviceSettings, ModelSource, Prefix, Sample
from ..rows import OpenModel, Plan, SampleKey

InFlight = Callable[[], Iterator[tuple[SampleKey, Prefix]]]
"""Gives, at any moment, what each unfinished sample has so far."""

OnStep = Callable[[BackendProgress, InFlight], None]
"""Takes what was done so far; it may raise to end the run."""


@dataclass(frozen=True, slots=True, eq=False)
class MadeElsewhere:
    """A sample whose bits were decided by something else than what the model's provenance names."""

    sample: Sample
    made_by: Mapping[str, object]


Result = Sample | MadeElsewhere | Exception
"""What becomes of a planned sample; an error is that sample's alone."""


class Executor(Protocol):
    """Decides where rows run. It knows no run directory; whoever reads from it knows no model."""

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        """The dtype and the type of device that ``auto`` stands for, without a model.

        Raises:
            DeviceError: the device or dtype is not there.
        """

    def open(self, source: ModelSource, settings: DeviceSettings) -> OpenModel:
        """Make a model ready, or return the last one if it is the same.

        Raises:
            GptsweepError: there is no such model or device.
            MemoryError: it does not fit.
        """

    def run(self, model: OpenModel, plan: Plan, on_step: OnStep | None = None) -> Iterator[tuple[SampleKey, Result]]:
        """Run the rows of ``plan``, and yield each sample as it finishes, or the error that it cannot be made for.

        Raises:
            GptsweepError: what the user can mend.
            MemoryError: not even one row fits.
            RuntimeError: the backend ended and left rows out.
        """
