"""Run rows in this process, one group of points with the same model after another."""

from __future__ import annotations

from collections.abc import Iterator

from ...engine.backend import BackendProgress, Backends
from ...records import DeviceSettings, ModelSource, Prefix, Row, Sample
from ..rows import Finished, OpenModel, Plan, SampleKey
from . import OnStep


class LocalExecutor:
    """Runs rows in this process, and keeps the last model open for the next call.

    Args:
        backends: loads models.
    """

    def __init__(self, backends: Backends) -> None:
        self.backends = backends
        self.last: OpenModel | None = None
        """The open model, if any."""

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        """Implement `Executor.resolve`."""
        return self.backends.resolve(settings)

    def open(self, source: ModelSource, settings: DeviceSettings) -> OpenModel:
        """Implement `Executor.open`."""
        if self.last is None or (self.last.source, self.last.device) != (source, settings):
            self.last = None  # free it first: the memory may not hold two models
            self.last = OpenModel(source, settings, *self.backends.open(source, settings))
        return self.last

    def run(self, model: OpenModel, plan: Plan, on_step: OnStep | None = None) -> Iterator[tuple[SampleKey, Sample]]:
        """Implement `Executor.run`."""
        waiting: dict[int, tuple[Row, list[SampleKey]]] = {}

        def rows() -> Iterator[Row]:
            for row, recipients in plan.rows():
                waiting[id(row)] = row, recipients
                yield row

        def in_flight(progress: BackendProgress) -> Iterator[tuple[SampleKey, Prefix]]:
            for row, prefix in progress.unfinished():
                if id(row) in waiting:  # otherwise it has just finished
                    yield waiting[id(row)][1][0], prefix

        def step(progress: BackendProgress) -> None:
            assert on_step is not None
            on_step(progress, lambda: in_flight(progress))

        finished = 0
        for completion in model.backend.run(rows(), plan.workload, None if on_step is None else step):
            _, recipients = waiting.pop(id(completion.row))
            finished += 1
            made = Finished.of(model.tokenizer, completion)
            for place, key in recipients:
                yield (place, key), plan.tasks[place].sample(key, made)
        if forgotten := plan.workload.rows - finished:
            raise RuntimeError(f"the backend ended without {forgotten:,} of {plan.workload.rows:,} rows")
