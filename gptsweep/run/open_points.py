"""Points with open files: limit their number, since each needs a file descriptor, and close the least recently used."""

from __future__ import annotations

import itertools
import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from ..records import Sample
from ..store.writer import PointWriter
from .executors import MadeElsewhere
from .jobs import Job
from .manifest import deciding_settings
from .rows import OpenModel, Task

if sys.platform != "win32":
    import resource

_OPEN_POINTS = 200


class OpenPoints:
    """The points of one model, opened on demand.

    Args:
        model: the model that samples them.
        jobs: the job of each task; may grow.
    """

    def __init__(self, model: OpenModel, jobs: Mapping[Task, Job]) -> None:
        self._model, self._jobs = model, jobs
        self._made_by = model.backend.provenance.made_by
        self._writers: OrderedDict[Task, PointWriter] = OrderedDict()
        self._most = most_open_points()

    def writer(self, task: Task) -> PointWriter:
        """The open writer of a task; if many are open, the least recently used one is closed."""
        if task not in self._writers:
            if len(self._writers) >= self._most:
                self._writers.popitem(last=False)[1].__exit__(None, None, None)
            job = self._jobs[task]
            writer = PointWriter(
                job.directory,
                task.point_id,
                overwrite=job.overwrite,
                made_by=self._made_by,
                settings=deciding_settings(self._model, task),
                logprobs=task.point.sampling.logprobs,
            )
            self._writers[task] = writer.__enter__()
        self._writers.move_to_end(task)
        return self._writers[task]

    def add(self, task: Task, results: Iterable[Sample | MadeElsewhere]) -> None:
        """Write samples to disk, with their origin if it differs from that of the model in this process."""
        for made_by, some in itertools.groupby(results, lambda each: each.made_by if isinstance(each, MadeElsewhere) else None):
            self.writer(task).add(list(map(sample_of, some)), made_by)

    def close(self, task: Task) -> None:
        """Close a task's files."""
        self._writers.pop(task).__exit__(None, None, None)

    def close_all(self) -> None:
        """Close the files that are open."""
        while self._writers:
            self._writers.popitem()[1].__exit__(None, None, None)


def sample_of(result: Sample | MadeElsewhere) -> Sample:
    """The sample that an executor yielded, whatever its origin."""
    return result.sample if isinstance(result, MadeElsewhere) else result


def most_open_points() -> int:
    """The maximum number of open points: a quarter of this process's file descriptors, as others are needed, too."""
    if sys.platform == "win32":
        return _OPEN_POINTS
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _OPEN_POINTS if limit == resource.RLIM_INFINITY else max(1, min(_OPEN_POINTS, limit // 4))
