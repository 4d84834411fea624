"""From points to outcomes: plan rows, hand them to an executor, and put what comes back on disk.

A point becomes a `Task` (prompts read and encoded, point_id known), tasks become a `Plan` of rows, and an executor runs the
plan of each loaded model. Rows that would come out the same are run once and delivered to each task that wants them.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..analysis.summary import summarise, text_metrics
from ..display import counted, get_logger, shown_text
from ..engine.backend import BackendProgress
from ..errors import GptsweepError, Interrupted, ResultsError
from ..models.files.generated_text import text_so_far
from ..prompts import read_prompts
from ..records import DeviceSettings, ModelSource, Prefix, Sample
from ..store.reader import read_manifest
from ..store.unfinished import Unfinished
from ..store.writer import PointWriter
from .executors import Executor, InFlight, MadeElsewhere
from .flush_pace import FlushPace
from .interruption import Interruption
from .jobs import Job, Outcome, disk_full, with_advice, without_model, work_ahead
from .manifest import provenance, settings_of
from .open_points import OpenPoints, sample_of
from .progress import Progress
from .rows import Key, OpenModel, Plan, Prompts, Task, encoded

log = get_logger(__name__)

_SIGPIPE = 13  # Windows has no name for it
_SHOWN = 80
"""Characters of a prompt, and tokens of a sample, that a line of progress is made of."""

_MORE = "sample more than requested: it stays, and counts", "samples more than requested: they stay, and count"
_STRANGE = (
    "unfinished sample does not fit its point and will be sampled from the beginning",
    "unfinished samples do not fit their points and will be sampled from the beginning",
)


def run_jobs(
    jobs: Sequence[Job],
    progress: Progress,
    executor: Executor,
    unfinished: Unfinished | None = None,
    *,
    strict: bool = False,
) -> Iterator[Outcome]:
    """Run jobs, those with the same model and device in one batched pass, and yield each job's outcome as it is settled.

    What is on disk already is not made again. An error of one job leaves the others alone. Ctrl-C, SIGTERM and SIGHUP end the
    run between two steps of the engine, with every finished sample on disk, and what the others have in ``unfinished``.

    Args:
        jobs: what to run; those with the same model and device begin as `_starting_order` says.
        progress: shows how far they are.
        executor: runs the rows; the last model may stay open in it for the next call.
        unfinished: where samples that were begun go on from, and are kept; None makes them from their beginning.
        strict: whether a point fails that would have samples made in two ways, by another kind of machine, say.

    Raises:
        Interrupted: the user (or, as SIGTERM, the system) wants it to end.
    """
    groups: dict[tuple[ModelSource, DeviceSettings], list[Job]] = defaultdict(list)
    for job in jobs:
        groups[job.point.model, job.point.device].append(job)
    ahead = work_ahead(groups)
    done = _Done(points_total=len(jobs), rows_ahead=sum(rows for rows, _ in ahead), tokens_ahead=sum(made for _, made in ahead))
    with Interruption() as interruption:
        for ((source, device), group), (rows, tokens) in zip(groups.items(), ahead, strict=True):
            done.rows_ahead -= rows
            done.tokens_ahead -= tokens
            try:
                model = executor.open(source, device)
            except Exception as error:  # of any kind: the other models' points go on
                failure = with_advice(error, "model", source.name)
                yield from without_model(group, failure, executor)
                progress.update(rows_total=done.rows_total + done.rows_ahead)
                continue
            progress.begin_model()
            yield from _Batch(model, executor, progress, done, interruption, unfinished, strict).run(group)
            del model  # before the next is loaded: two need not fit


@dataclass(slots=True)
class _Done:
    """Counts over all groups of a run."""

    points_total: int
    points: int = 0
    rows: int = 0
    rows_total: int = 0
    tokens: int = 0
    windows: int = 0
    rows_ahead: int = 0
    tokens_ahead: int = 0


class _Batch:
    """Jobs of one loaded model, on their way to disk."""

    def __init__(
        self,
        model: OpenModel,
        executor: Executor,
        progress: Progress,
        done: _Done,
        interruption: Interruption,
        unfinished: Unfinished | None,
        strict: bool,
    ) -> None:
        self.model, self.executor, self.progress, self.done = model, executor, progress, done
        self.interruption, self.unfinished, self.strict = interruption, unfinished, strict
        self.jobs: dict[Task, Job] = {}
        self.missing: dict[Task, set[Key]] = {}
        self.fresh: dict[Task, list[Sample | MadeElsewhere]] = defaultdict(list)
        self.failing: dict[Task, Exception] = {}
        self.pace = FlushPace()
        self.broken: dict[Task, Exception] = {}
        self.readable: set[str] = set()
        self.restored = False
        self.prefixes: dict[Task, dict[Key, Prefix]] = defaultdict(dict)
        self.in_flight: tuple[Sequence[Task], InFlight] | None = None
        self.points = OpenPoints(model, self.jobs)
        self.made_by = model.backend.provenance.made_by
        self.changes: set[str] = set()
        self.started = time.perf_counter()
        self.tokens_before, self.windows_before = done.tokens, done.windows

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Settle every job."""
        try:
            yield from self._plan(jobs)
            self._restore()
            self.done.rows_total += sum(map(len, self.missing.values()))
            try:
                yield from self._decode(list(self.missing))
            except Exception as error:
                if len(self.missing) > 1 and not disk_full(error):
                    log.warning("%s; going on with one point at a time", error)
                    yield from self._decode_singly()
                else:
                    yield from [self._failed(task, error) for task in list(self.missing)]
            self._show(0)
        except BaseException as ended:
            with contextlib.suppress(GptsweepError, OSError):  # which may be why the run ends
                self._flush()
            kept = self._keep()
            if isinstance(ended, Interrupted):
                ended.unfinished = kept
            raise
        else:
            self._keep()
        finally:
            self.points.close_all()

    def _plan(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Make tasks of the jobs and find what is missing on disk; yield the outcomes of those that fail, or lack nothing."""
        prompts: dict[tuple[str, bool], Prompts] = {}
        for job in jobs:
            point = job.point
            try:
                request = point.start, point.sampling.chat_template
                if request not in prompts:
                    prompts[request] = encoded(self.model, read_prompts(request[0]), chat_template=request[1])
                task = Task.of(self.model, point, prompts[request])
                self.jobs[task] = job
                writer = self.points.writer(task)
                wanted = set(task.keys)
                missing = wanted - writer.done
                self.readable.add(task.point_id)
                if more := len(writer.done - wanted):
                    log.info("%s has %s", job.directory, counted(more, *_MORE))
                if missing:
                    self._say_change(writer)
                    self.missing[task] = missing
                elif writer.complete:
                    speed = (read_manifest(job.directory) or {}).get("tokens_per_second")
                    summary = self._summary(task, writer.samples(), speed)
                    self.points.close(task)
                    yield self._settled(Outcome(job, summary=summary))
                else:
                    speed = (read_manifest(job.directory) or {}).get("tokens_per_second")
                    yield self._settled(Outcome(job, summary=self._finish(task, speed)))
            except Exception as error:
                yield self._settled(Outcome(job, error=with_advice(error, "start", point.start)))

    def _say_change(self, writer: PointWriter) -> None:
        """Log, once for each change, that points go on where another machine or version left them.

        Raises:
            ResultsError: with ``strict`` they may not.
        """
        if not writer.done or not (change := writer.change):
            return
        if self.strict:
            what = f"its samples were made in another environment ({change}), which hydra.launcher.strict=true forbids"
            raise ResultsError("name", str(writer.directory), f"{what}; resume it where it began, or without strict")
        if change not in self.changes:
            self.changes.add(change)
            log.warning(
                "%s goes on in another environment (%s), so bits may differ (promise: false)",
                writer.directory, change,
            )  # fmt: skip

    def _restore(self) -> None:
        """Read the tokens that unfinished samples have so far; what does not fit a point is not used."""
        if self.unfinished is None:
            return
        found = self.unfinished.read(self.readable, self.made_by)
        self.restored = True
        refused = 0
        for task in self.missing:
            for key, prefix in found.get(task.point_id, {}).items():
                if task.can_resume(self.model, key, prefix):
                    self.prefixes[task][key] = prefix
                else:
                    refused += 1
        if refused:
            log.warning("%s: %s", self.unfinished.path, counted(refused, *_STRANGE))
        if count := sum(map(len, self.prefixes.values())):
            log.info("%s", counted(count, "unfinished sample resumed", "unfinished samples resumed"))

    def _keep(self) -> int:
        """Write the tokens that unfinished samples have so far; return how many samples they are."""
        if self.unfinished is None or not self.restored:
            return 0
        self._note()
        prefixes = {(task.point_id, key): prefix for task, some in self.prefixes.items() for key, prefix in some.items()}
        self.unfinished.write(prefixes)
        return len(prefixes)

    def _note(self) -> None:
        """Update ``prefixes`` from the samples in flight."""
        if self.in_flight is not None:
            tasks, unfinished = self.in_flight
            for (place, key), prefix in unfinished():
                self.prefixes[tasks[place]][key] = prefix

    def _decode(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Make what is missing of these tasks, and settle each when it is whole."""
        self._note()
        self.in_flight = None
        self.started, self.tokens_before, self.windows_before = time.perf_counter(), self.done.tokens, self.done.windows
        wanted = [sorted(self.missing[task]) for task in tasks]
        plan = Plan.of(self.model, tasks, wanted, [self.prefixes[task] for task in tasks])

        def on_step(progress: BackendProgress, unfinished: InFlight) -> None:
            self.in_flight = tasks, unfinished
            self._on_step(progress)

        for (place, key), result in self.executor.run(self.model, plan, on_step):
            task = tasks[place]
            yield from self._failures()
            missing = self.missing.get(task, set())
            if key in missing:
                missing.discard(key)
                if isinstance(result, Exception):
                    self.failing[task] = result
                else:
                    self.fresh[task].append(result)
                    self.pace.add()
                    self.done.rows += 1
                    if not self.progress.quiet:
                        sample = sample_of(result)
                        text = shown_text(sample.prompt, sample.completion, chat_template=sample.sampling.chat_template)
                        self.progress.show_sample(text, key, self._label(task, sample))
                if not missing:
                    failure = self.failing.pop(task, None)
                    yield self._finished(task) if failure is None else self._failed(task, failure)
            else:
                self.prefixes[task].pop(key, None)
        self._flush()
        yield from self._failures()

    def _label(self, task: Task, sample: Sample) -> str:
        """The label of a sample that is shown: its point, its prompt and its number, as far as there are several."""
        point = f"{self.jobs[task].directory.name}: " if self.done.points_total > 1 else ""
        prompt = f"prompt {sample.prompt_id}, " if len(task.prompts) > 1 else ""
        return f"{point}{prompt}sample {sample.sample_index}"

    def _failures(self) -> Iterator[Outcome]:
        """Settle the points whose samples could not be written."""
        while self.broken:
            yield self._failed(*self.broken.popitem())

    def _decode_singly(self) -> Iterator[Outcome]:
        """`_decode` each task by itself, after an error in one of them ended the batch."""
        for task in list(self.missing):
            try:
                yield from self._decode([task])
            except Exception as error:
                yield self._failed(task, error)

    def _on_step(self, backend: BackendProgress) -> None:
        keeps = self.unfinished is not None and self.unfinished.due
        if keeps or self.pace.due:
            self._flush()
        self.done.tokens = self.tokens_before + backend.tokens
        self.done.windows = self.windows_before + backend.windows
        # Models that are not open yet are taken to have as many windows a token as this one.
        ahead = self.done.tokens_ahead * backend.windows_total // max(backend.tokens_total, 1)
        windows_total = self.windows_before + backend.windows_total + ahead
        self.progress.expect_windows(self.done.windows, windows_total, backend.window_seconds, ahead)
        self.progress.show_workers(backend.workers)
        self._show(backend.rows_in_flight, self.tokens_before + backend.tokens_total + self.done.tokens_ahead)
        if self.progress.text_due and self.in_flight is not None:
            tasks, unfinished = self.in_flight
            for (place, key), prefix in itertools.islice(unfinished(), 1):
                task = tasks[place]
                made = text_so_far(self.model.tokenizer, prefix.token_ids, _SHOWN)
                self.progress.show_text(task.prompts[key[0]].text[-_SHOWN:] + made)
        if keeps:
            self._keep()
        if isinstance(self.progress.refusal, BrokenPipeError):
            raise Interrupted(_SIGPIPE)  # as `| head` ends any other program
        self.interruption.check()

    def _show(self, rows_in_flight: int, tokens_total: int | None = None) -> None:
        self.progress.update(
            rows_done=self.done.rows,
            rows_total=self.done.rows_total + self.done.rows_ahead,
            rows_in_flight=rows_in_flight,
            tokens=self.done.tokens,
            tokens_total=tokens_total,
            tokens_ahead=self.done.tokens_ahead,
            points_done=self.done.points,
            points_total=self.done.points_total,
        )

    def _flush(self) -> None:
        """Put the samples that have finished on disk.

        Raises:
            ResultsError: the disk is full: no point has a future. Any other error is its own point's.
        """
        self.pace.begin()
        while self.fresh:
            task, samples = self.fresh.popitem()
            try:
                self.points.add(task, samples)
                for sample in samples:
                    self.prefixes[task].pop(sample_of(sample).key, None)
            except ResultsError as error:
                if disk_full(error):
                    raise
                self.broken[task] = error
        self.pace.end()

    def _finished(self, task: Task) -> Outcome:
        try:
            outcome = Outcome(self.jobs[task], summary=self._finish(task))
        except Exception as error:
            return self._failed(task, error)
        del self.missing[task]
        self.prefixes.pop(task, None)
        return self._settled(outcome)

    def _failed(self, task: Task, error: Exception) -> Outcome:
        self.missing.pop(task, None)
        with contextlib.suppress(GptsweepError, OSError):  # keep what can be kept
            self.points.add(task, self.fresh.pop(task, []))
        return self._settled(Outcome(self.jobs[task], error=with_advice(error, "device.max_rows", self.model.backend.max_rows)))

    def _settled(self, outcome: Outcome) -> Outcome:
        self.done.points += 1
        if outcome.error is not None and not isinstance(outcome.error, (GptsweepError, OSError)):
            log.error("%s failed", outcome.job.directory, exc_info=outcome.error)  # a bug keeps its traceback
        return outcome

    def _finish(self, task: Task, known_speed: float | None = None) -> Mapping[str, Any]:
        """Write the files of a point whose samples are all there."""
        self.points.add(task, self.fresh.pop(task, []))
        writer = self.points.writer(task)
        seconds = time.perf_counter() - self.started
        tokens = self.done.tokens - self.tokens_before
        speed = tokens / seconds if tokens else known_speed
        summary = self._summary(task, writer.samples(), speed)
        writer.finish(summary, {**provenance(self.model, task), "seconds": seconds, "tokens_per_second": speed})
        self.points.close(task)
        return summary

    def _summary(self, task: Task, samples: Sequence[Mapping[str, Any]], speed: float | None) -> dict[str, object]:
        """The row of ``summary.csv``. ``tokens_per_second`` is how fast the batch decoded that the point was part of."""
        settings = {"point_id": task.point_id, **settings_of(task.point, dtype=self.model.dtype, device=self.model.device_type)}
        return {**summarise(settings, samples), "tokens_per_second": speed, **text_metrics(samples)}
