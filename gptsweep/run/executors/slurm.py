"""Run rows in jobs that submitit submits: on SLURM, or as processes on this machine. Imported only if it is chosen.

A job is a worker that keeps its model open and takes shards as long as there are any. Driver and jobs communicate through files
(`job_files`). A job that is preempted or reaches its time limit writes its state and is requeued; a job that ends is replaced.
Jobs left behind by a killed driver are ended, and the rows that they finished are not run again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import submitit

from ...display import counted, get_logger
from ...engine.backend import Backends
from ...errors import ConfigError
from ...records import DeviceSettings, ModelSource
from ..rows import Finished
from .job_control import Cluster, SubmissionError, last_line
from .job_files import (
    MESSAGES,
    REQUESTS,
    Lines,
    add_line,
    finished_of,
    finished_rows,
    model_hash,
    packed,
    read_snapshot,
    row_hash,
    unpacked,
)
from .remote import Gone
from .shards import TRIES, Work
from .slurm_job import DRIVER, WorkerJob
from .worker import Failure, Report, WorkerError

log = get_logger(__name__)

FOLDER = ".submitit"
"""The folder in a sweep's directory with each job's log, where users of submitit look, and the message files in ``workers``."""
_TOKEN = re.compile(r"[0-9a-f]{16}")
_HEARTBEAT_SECONDS = 5.0
_POLL_SECONDS = 0.05
_LONGEST_WAIT_SECONDS = 60.0


@dataclass(slots=True, eq=False)
class _Job:
    """A job and its latest start. A requeued job starts several times; each start is a worker of its own.

    Args:
        job: submitit's job.
        directory: the directory with its files (`job_files`).
        messages: reads the messages that it sends.
        seen_at: when it was submitted, or the message of its latest start arrived, by the monotonic clock.
        pending: why it is in SLURM's queue, such as ``Resources``; empty: it runs, or nothing is known.
        worker: name of the running worker; empty: none is running.
        process: the id of its latest start, in its files; empty: it has not started.
        model_hash: the `job_files.model_hash` of its open model; empty: none is open yet.
        batch: the number of its latest batch; 0: it has had none.
        left: the unfinished rows of that batch.
        stopped: the number of the last stop request that it obeyed.
        last: its last report, without finished rows.
    """

    job: submitit.Job[None]
    directory: Path
    messages: Lines
    seen_at: float = field(default_factory=time.monotonic)
    pending: str = ""
    worker: str = ""
    process: str = ""
    model_hash: str = ""
    batch: int = 0
    left: set[int] = field(default_factory=set)
    stopped: int = 0
    last: Report = field(default_factory=Report)

    def send(self, action: str, value: object) -> None:
        add_line(self.directory / REQUESTS, {"to": self.process, "action": action, "value": packed(value)})


class SlurmPool:
    """Keeps a number of jobs running. Implements `Pool`.

    Args:
        backends: loads models in the jobs.
        directory: the sweep's directory, on a file system that driver and jobs share.
        workers: how many jobs to run.
        cluster: ``slurm``, or ``local`` for processes on this machine.
        threads: how many threads a job computes with.
        heartbeat_s: if this process is silent for this many seconds, a job ends once its rows are finished.
        parameters: see `submitit.AutoExecutor.update_parameters`.

    Raises:
        ConfigError: SLURM is not available.
    """

    several = True
    may_grow = False

    def __init__(
        self,
        backends: Backends,
        directory: Path,
        *,
        workers: int,
        cluster: str = "slurm",
        threads: int = 1,
        heartbeat_s: float = 300.0,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder = directory.absolute() / FOLDER
        self._cluster = Cluster(cluster, self._folder / "%j", parameters or {})
        self._workers, self._threads, self._driver_timeout = workers, threads, heartbeat_s
        self._backends = pickle.dumps(backends)
        self._run = self._folder / "workers" / secrets.token_hex(8)
        self._earlier = [path for path in self._run.parent.glob("*") if _TOKEN.fullmatch(path.name)]
        self._earlier_messages = [Lines(file) for path in self._earlier for file in path.glob(f"*/{MESSAGES}")]
        self._recovered: dict[tuple[str, str], Finished] = {}
        """Rows that jobs of earlier drivers finished, by `row_hash` and `model_hash`."""
        self._run.mkdir(parents=True)
        (self._run / DRIVER).touch()
        for requests in self._run.parent.glob(f"*/*/{REQUESTS}"):
            with contextlib.suppress(OSError):
                add_line(requests, {"to": "all", "action": "end"})
        self._jobs: list[_Job] = []
        self._numbers = itertools.count(1)
        self._submitted = False
        self._not_before = 0.0
        self._failed_starts = self._stops = 0
        self._model: tuple[ModelSource, DeviceSettings] | None = None
        self._resolving: list[DeviceSettings] = []
        self._resolved: dict[DeviceSettings, tuple[str, str] | Failure] = {}
        self._buffered: list[tuple[str, Report | Gone]] = []
        self._closing = threading.Event()
        threading.Thread(target=self._heartbeat, name="heartbeat", daemon=True).start()

    @property
    def waiting_for(self) -> str:
        """Implement `Pool.waiting_for`."""
        notes = "; ".join(filter(None, [self.pending(), "see squeue --me"]))
        return "a process to start" if self._cluster.local else f"SLURM to start a job of this sweep ({notes})"

    def wanted(self) -> int:
        """Implement `Pool.wanted`."""
        return self._workers

    def pending(self) -> str:
        """Implement `Pool.pending`: such as ``2 pending: Priority + Resources``, with SLURM's names of the reasons."""
        reasons = sorted(job.pending for job in self._jobs if job.pending)
        return f"{len(reasons):,} pending: {' + '.join(dict.fromkeys(reasons))}" if reasons else ""

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        """Implement `Pool.resolve`."""
        if settings not in self._resolved:
            self._resolving.append(settings)
            for job in self._alive():
                job.send("resolve", settings)
            since, waited = time.monotonic(), set[str]()
            while settings not in self._resolved:
                self._fill()
                self._buffered += self._collect()
                time.sleep(_POLL_SECONDS)
                if time.monotonic() - since > 2 * _HEARTBEAT_SECONDS and not self._alive() and self.waiting_for not in waited:
                    waited.add(self.waiting_for)
                    log.info("waiting for a worker: %s", self.waiting_for)
            self._resolving.remove(settings)
        found = self._resolved[settings]
        if isinstance(found, Failure):
            del self._resolved[settings]
            raise found.raised()
        return found

    def open(self, source: ModelSource, settings: DeviceSettings) -> None:
        """Implement `Pool.open`."""
        self._model = source, settings
        for job in self._alive():
            job.send("open", self._model)
        self._fill()

    def give(self, worker: str, work: Work) -> None:
        """Implement `Pool.give`."""
        for job in self._alive():
            if job.worker == worker:
                self._recover()
                keys = [(number, (row_hash(row) or "", job.model_hash)) for number, row in work.rows] if self._recovered else []
                known = {number: self._recovered.pop(key) for number, key in keys if key in self._recovered}
                if known:
                    self._buffered.append((worker, replace(job.last, finished=tuple(known.items()))))
                rows = tuple((number, row) for number, row in work.rows if number not in known)
                job.batch += 1
                job.left = {number for number, _ in rows}
                if rows:
                    job.send("give", (job.batch, Work(rows, replace(work.workload, rows=len(rows)))))

    def poll(self, seconds: float) -> list[tuple[str, Report | Gone]]:
        """Implement `Pool.poll`."""
        self._fill()
        found, self._buffered = self._buffered, []
        until = time.monotonic() + seconds
        while not found:
            found = self._collect()
            left = until - time.monotonic()
            if found or left <= 0:
                break
            time.sleep(min(left, _POLL_SECONDS) if self._cluster.local else left)
        return found

    def stop(self, seconds: float) -> list[tuple[str, Report | Gone]]:
        """Implement `Pool.stop`."""
        self._stops += 1
        stopping = [job for job in self._alive() if job.left]
        for job in stopping:
            job.send("stop", (self._stops, seconds))
        until = time.monotonic() + seconds + 1
        found, self._buffered = self._buffered, []
        while late := [job for job in stopping if job.worker and job.stopped < self._stops]:
            if time.monotonic() > until:
                break
            found += self._collect()
            time.sleep(_POLL_SECONDS)
        for job in late:
            found.append((job.worker, Gone(f"it did not stop within {seconds:g} s", counts=False)))
            self._end_jobs(job)
        return found

    def kill(self, worker: str) -> None:
        """Implement `Pool.kill`."""
        for job in self._alive():
            if job.worker == worker:
                self._end_jobs(job)

    def refuse(self, worker: str) -> None:
        """Implement `Pool.refuse`."""
        self._workers -= sum(job.worker == worker for job in self._alive())
        self.kill(worker)

    def close(self) -> None:
        """Implement `Pool.close`."""
        self._closing.set()
        self._workers = 0
        self._end_jobs(*self._jobs)
        for path in [self._run, *(self._earlier if not self._recovered else [])]:
            shutil.rmtree(path, ignore_errors=True)

    def _recover(self) -> None:
        """Collect the rows that jobs of earlier drivers have finished, including jobs that are still ending."""
        for messages in self._earlier_messages:
            new = {(row, model): finished for row, model, finished in finished_rows(messages)}
            if new:
                log.info("found %s of an earlier run's jobs", counted(len(new), "finished row"))
                self._recovered |= new

    def _heartbeat(self) -> None:
        while not self._closing.wait(_HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._run / DRIVER)

    def _alive(self) -> list[_Job]:
        return [job for job in self._jobs if job.worker]

    def _fill(self) -> None:
        """Submit the jobs that are missing, in one batch.

        Raises:
            ConfigError: SLURM rejects the first batch.
        """
        missing = self._workers - len(self._jobs)
        if missing <= 0 or time.monotonic() < self._not_before:
            return
        directories = [self._run / f"{next(self._numbers)}" for _ in range(missing)]
        for directory in directories:
            directory.mkdir()
            (directory / REQUESTS).touch()  # so that NFS does not cache their absence
            (directory / MESSAGES).touch()
        calls = [WorkerJob(self._backends, directory, self._threads, self._driver_timeout) for directory in directories]
        try:
            jobs = self._cluster.submit(calls)
        except SubmissionError as error:
            if not self._submitted:
                raise ConfigError("hydra.launcher.cluster", self._cluster.name, f"rejects the jobs: {error}") from error
            log.warning("cannot submit a job now, trying again in a minute: %s", error)
            self._not_before = time.monotonic() + _LONGEST_WAIT_SECONDS
            return
        self._submitted = True
        self._jobs += [_Job(job, path, Lines(path / MESSAGES)) for job, path in zip(jobs, directories, strict=True)]

    def _collect(self) -> list[tuple[str, Report | Gone]]:
        """Read the jobs' messages without waiting.

        Raises:
            ConfigError: several jobs ended before they began.
        """
        found: list[tuple[str, Report | Gone]] = []
        queue = self._cluster.queue([job.job for job in self._jobs])  # before reading the lines, so that no last line is missed
        for job in list(self._jobs):
            for line in job.messages.read():
                found += self._handle(job, line)
            if queue is None or job.seen_at >= queue.queried:
                continue
            waits = queue.jobs.get(job.job.job_id)
            job.pending = waits or ""
            if waits and job.worker:
                found.append((job.worker, Gone(f"SLURM has put its job back into the queue: {waits}", counts=False)))
                job.worker = ""
            elif waits is None:
                self._jobs.remove(job)
                why = f"its log is {job.job.paths.stderr}"
                if job.worker:
                    found.append((job.worker, Gone(f"its job ended without a message; {why}")))
                elif not job.process:
                    self._failed_starts += 1
                    self._not_before = time.monotonic() + min(2.0**self._failed_starts, _LONGEST_WAIT_SECONDS)
                    found.append((f"job {job.job.job_id}", Gone(f"before it began; {why}")))
                    self._require_some(job)
        return found

    def _require_some(self, job: _Job) -> None:
        """Give up if `TRIES` jobs have ended before they began: their setup is wrong, and more would only burden the cluster.

        Raises:
            ConfigError: they have.
        """
        if self._failed_starts >= TRIES and not self._alive():
            path = job.job.paths.stderr
            what = f"{counted(self._failed_starts, 'job')} ended before they began ({last_line(path)}); see {path}"
            raise ConfigError("hydra.launcher.cluster", self._cluster.name, what)

    def _handle(self, job: _Job, line: Mapping[str, Any]) -> Iterator[tuple[str, Report | Gone]]:
        """Handle a line of a job, and yield the messages in it."""
        if "started" in line:
            if job.worker:
                yield job.worker, Gone("its job was started again", counts=False)
            host, pid = line["started"]
            job.process, job.worker = line["process"], f"{next(self._numbers)} ({host}:{pid}, job {job.job.job_id})"
            job.seen_at, job.pending = time.monotonic(), ""
            job.batch, job.left, job.model_hash, job.last = 0, set(), "", Report()
            self._failed_starts = 0
            for settings in self._resolving:
                job.send("resolve", settings)
            if self._model is not None:
                job.send("open", self._model)
            yield job.worker, job.last
        elif line["process"] != job.process or not job.worker:
            return
        elif "resolved" in line:
            settings, answer = unpacked(line["resolved"])
            self._resolved.setdefault(settings, answer)
        elif "report" in line:
            yield job.worker, self._report(job, line)
        if "ended" in line:
            yield job.worker, Gone(line["ended"], counts=line["counts"])
            job.worker = ""

    def _report(self, job: _Job, line: Mapping[str, Any]) -> Report:
        try:
            report: Report = unpacked(line["report"])
        except Exception as error:  # unpickling can raise anything
            report = replace(job.last, failure=Failure(WorkerError(f"its error cannot be read: {error!r}"), ""))
        own = line["batch"] == job.batch
        numbers = {number for number, *_ in line["rows"] if own} & job.left
        finished = tuple((number, finished_of(fields)) for number, _, fields in line["rows"] if number in numbers)
        job.left -= numbers
        unfinished = read_snapshot(job.directory, job.batch) if own and line["snapshot"] else None
        failure = report.failure if own else None
        if report.opened is not None and not isinstance(report.opened.model, Failure):
            job.model_hash = model_hash(*report.opened.model)
        if "stopped" in line:
            job.left.clear()
            job.stopped = line["stopped"] if line["idle"] else 0
        elif own and not line["left"] and job.left and failure is None:
            failure = Failure(WorkerError(f"its message about {counted(len(job.left), 'row')} is damaged"), "")
        if failure is not None:
            job.left.clear()
        job.last = replace(report, opened=None, failure=None)
        return replace(report, finished=finished, unfinished=unfinished, failure=failure)

    def _end_jobs(self, *jobs: _Job) -> None:
        """End jobs, even if they do not respond."""
        for job in jobs:
            self._jobs.remove(job)
            job.worker = ""
            with contextlib.suppress(OSError):
                add_line(job.directory / REQUESTS, {"to": "all", "action": "end"})
        self._cluster.end([job.job for job in jobs])
