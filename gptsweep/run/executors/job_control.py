"""Submit, watch and end jobs through submitit: on SLURM, or as processes on this machine."""

from __future__ import annotations

import io
import math
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from ...display import counted, get_logger, one_line
from ...errors import ConfigError
from ...files import open_to_read

log = get_logger(__name__)

_QUEUE_SECONDS = 30.0
"""How often SLURM is asked which jobs are in its queue."""
_SOON_SECONDS = 5.0
"""How long after jobs are submitted SLURM is asked for the first time."""
_ANSWER_SECONDS = 20.0
_REASON_LENGTH = 40
"""Some of SLURM's reasons are sentences, and the display has one line for all."""
_LOG_BYTES = 4096
_JOB_VARIABLES = ("SLURM_", "SLURMD_", "SBATCH_CPU_BIND", "SBATCH_MEM_BIND")
"""How the environment variables begin that SLURM sets in a job. Its owner may have set others of ``SBATCH_``."""


@dataclass(frozen=True, slots=True)
class Queue:
    """The jobs that have not ended.

    Args:
        queried: when the cluster was asked, by the monotonic clock. It does not cover jobs submitted or started later.
        jobs: by id (``12``, or ``12_0`` in an array), why the job has to wait, or nothing if it has started.
    """

    queried: float
    jobs: Mapping[str, str]


class SubmissionError(Exception):
    """The cluster takes no jobs, for the reason that the message gives in one line."""


class Cluster:
    """Submits, watches and ends jobs.

    Args:
        name: ``slurm``, or ``local`` for processes on this machine.
        folder: a directory for each job's log, with ``%j`` for the job's id.
        parameters: see `submitit.AutoExecutor.update_parameters`.

    Raises:
        ConfigError: SLURM is not available.
    """

    def __init__(self, name: str, folder: Path, parameters: Mapping[str, Any]) -> None:
        self.name, self.local = name, name == "local"
        try:
            self.executor = submitit.AutoExecutor(folder, cluster=name)
        except RuntimeError as error:
            raise ConfigError("hydra.launcher.cluster", name, f"{one_line(str(error))}; local needs no SLURM") from error
        self.executor.update_parameters(**parameters)
        self._answers: queue.SimpleQueue[Queue | None] = queue.SimpleQueue()
        self._querying = False
        self._next = math.inf

    def submit(self, calls: Sequence[Callable[[], None]]) -> list[submitit.Job[None]]:
        """Submit a job for each call, in one batch.

        Raises:
            SubmissionError: the cluster does not take them.
        """
        try:
            # submitit prints what sbatch says, and raises it, too.
            with _blocked_interrupts(), _hidden_job(), redirect_stderr(io.StringIO()), self.executor.batch():
                jobs = [self.executor.submit(call) for call in calls]
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            lines = [line.removeprefix("sbatch: error: ") for line in str(error).splitlines()]
            raise SubmissionError(one_line("; ".join(lines))[-300:]) from error
        self._next = min(self._next, time.monotonic() + _SOON_SECONDS)
        return jobs

    def queue(self, jobs: Sequence[submitit.Job[None]]) -> Queue | None:
        """Return which of ``jobs`` have not ended; None without a new answer. It never waits, as SLURM may be slow."""
        if self.local:
            return Queue(math.inf, {job.job_id: "" for job in jobs if not job.done()})
        found = None
        if self._querying:
            with suppress(queue.Empty):
                found = self._answers.get_nowait()
                self._querying = False
        if jobs and not self._querying and time.monotonic() >= self._next:
            self._querying, self._next = True, time.monotonic() + _QUEUE_SECONDS
            threading.Thread(target=lambda: self._answers.put(_query_queue()), name="squeue", daemon=True).start()
        return found

    def end(self, jobs: Sequence[submitit.Job[None]]) -> None:
        """End jobs at once, whether they respond or not."""
        if self.local:
            for job in jobs:
                _end_process(job)
        elif jobs:
            # One call for all: while SLURM does not answer, each takes ten seconds.
            why = _cancel([job.job_id for job in jobs])
            if why:
                log.warning("%s cannot be cancelled now (%s), and will end without it", counted(len(jobs), "job"), why)


def last_line(path: Path) -> str:
    """Return the last non-empty line of a log, shortened to 200 characters."""
    with suppress(OSError), open_to_read(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES))
        if lines := file.read().decode(errors="replace").split("\n"):
            return one_line(next(filter(str.strip, reversed(lines)), "nothing in the log"))[:200]
    return "without a log"


def _query_queue() -> Queue | None:
    """Ask ``squeue``, which works on every cluster; None if SLURM does not answer.

    ``sacct``, which submitit asks, knows no jobs if accounting is off, and complains on the terminal each time.
    """
    queried = time.monotonic()
    command = ["squeue", f"--user={os.getuid()}", "--array", "--noheader", "--format=%i|%t|%r"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True)
        found = [line.strip().split("|", 2) for line in answer.stdout.splitlines()]
        jobs = {
            job: one_line(reason.replace(", ", ","))[:_REASON_LENGTH] if state == "PD" else "" for job, state, reason in found
        }
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return Queue(queried, jobs)


def _cancel(ids: Sequence[str]) -> str:
    """Cancel jobs of SLURM, and return in one line why that did not work; empty: it did, or they have ended long ago."""
    try:
        ended = subprocess.run(["scancel", *ids], capture_output=True, text=True, timeout=_ANSWER_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        return one_line(str(error))
    wrong = {line.rpartition(": ")[2]: None for line in ended.stderr.splitlines() if "Invalid job id" not in line}
    return one_line("; ".join(wrong))[-300:] if ended.returncode else ""


def _end_process(job: submitit.Job[None]) -> None:
    """Kill a job on this machine at once; submitit's own way lets it run for another second."""
    process: Any = job._process  # type: ignore[attr-defined]
    with suppress(psutil.Error):
        controller = psutil.Process(process.pid)
        controller.suspend()  # so that it starts no further processes
        for each in (*controller.children(recursive=True), controller):
            with suppress(psutil.Error):
                each.kill()
    process.wait()


@contextmanager
def _hidden_job() -> Iterator[None]:
    """Hide the job that this process runs in, if any: srun refuses some of its settings beside those of the new jobs."""
    own = (
        [name for name in os.environ if name.startswith(_JOB_VARIABLES) and name != "SLURM_CONF"]
        if "SLURM_JOB_ID" in os.environ
        else []
    )
    hidden = {name: os.environ.pop(name) for name in own}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _blocked_interrupts() -> Iterator[None]:
    """Block SIGINT in the processes started within, so that only the driver receives the terminal's Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
