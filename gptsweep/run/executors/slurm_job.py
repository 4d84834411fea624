"""The program of a SLURM job: a worker that receives requests and answers through files. It restarts after a preemption."""

from __future__ import annotations

import os
import pickle
import secrets
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from submitit.helpers import DelayedSubmission

from ...engine.backend import Backends
from ...errors import describe
from ...files import open_file
from ...records import Row
from .job_files import MESSAGES, REQUESTS, Lines, add_line, fields_of, model_hash, packed, row_hash, unpacked, write_snapshot
from .shards import Work
from .worker import Failure, Place, Report, Worker

DRIVER = "driver"
"""The file in a run's directory that the driver touches every few seconds as a heartbeat."""
_REPORT_SECONDS = 0.25
_HEARTBEAT_SECONDS = 1.0
_STOP_SECONDS = 20.0
"""How long a job waits for its last step before it is requeued; submitit allows 90 s."""


@dataclass
class WorkerJob:
    """The callable that submitit pickles and runs in the job.

    Args:
        backends: pickled `Backends`, unpickled only after the number of threads is set.
        directory: the job's directory with the files of `job_files`, inside the run's directory.
        threads: how many threads to compute with, unless ``OMP_NUM_THREADS`` is set.
        driver_timeout_s: if the driver is silent for this many seconds, the job ends once its rows are finished.
    """

    backends: bytes
    directory: Path
    threads: int
    driver_timeout_s: float
    _server: _Server | None = field(default=None, init=False)

    def __call__(self) -> None:
        """Serve requests until the job is to end.

        Raises:
            Exception: what ended the worker.
        """
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))
        self._server = _Server(pickle.loads(self.backends), self.directory, self.driver_timeout_s)
        signal.signal(signal.SIGTERM, self._end)  # submitit ignores it, until SIGKILL comes half a minute later
        self._server.wait()
        if self._server.error is not None:
            raise self._server.error

    def _end(self, *_: object) -> None:
        """End the job before SLURM kills it: it was cancelled, or is requeued without the signal that submitit waits for."""
        if self._server is not None:
            self._server.end("SLURM ends its job")

    def checkpoint(self) -> DelayedSubmission:
        """Stop, and return what to run when the job is requeued. submitit calls this before a preemption or a timeout."""
        if self._server is not None:
            self._server.end("its job was preempted, or its time is over")
        return DelayedSubmission(replace(self))


class _Server:
    """Serves the driver's requests in one start of a job; a requeued job has several.

    It runs in its own thread, so that a signal, which Python handles in the main thread, cannot interrupt a write.
    """

    def __init__(self, backends: Backends, directory: Path, driver_timeout_s: float) -> None:
        self.error: Exception | None = None
        self._id = secrets.token_hex(8)
        self._directory, self._driver_timeout = directory, driver_timeout_s
        self._requests = Lines(directory / REQUESTS)
        self._backends = backends
        self._ending = ""
        self._over = False
        self._batch = 0
        self._rows: dict[int, Row] = {}
        """The unfinished rows, by number."""
        self._model_hash: str | None = None
        self._started_at = self._sent_at = self._checked_at = self._driver_seen_at = time.monotonic()
        self._driver_mtime = 0
        threading.Thread(target=self._run, name="job", daemon=True).start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it has ended, by polling: a lock could deadlock if a signal arrives while another call waits."""
        until = None if seconds is None else time.monotonic() + seconds
        while not self._over and (until is None or time.monotonic() < until):
            time.sleep(_REPORT_SECONDS / 4)

    def end(self, why: str) -> None:
        """End it between two steps, after writing its state."""
        self._ending = why
        self.wait(2 * _STOP_SECONDS)

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            if isinstance(error, FileNotFoundError) and self._sent_at > self._started_at and not self._directory.exists():
                return  # the sweep has ended, and its files with it
            self.error = error
            with suppress(OSError):
                self._send(ended=describe(error), counts=True)
        finally:
            self._over = True

    def _serve(self) -> None:
        here = Place.here()
        self._send(started=[here.host, here.pid])
        worker = Worker(self._backends)
        while True:
            for request in self._requests.read():
                if request.get("to") == self._id:
                    self._handle(worker, request)
                elif request.get("to") == "all":  # the only request to all is "end"
                    self._ending = "it was no longer needed"
            if self._ending:
                self._send_report(worker.stop(_STOP_SECONDS), ended=self._ending, counts=False)
                return
            self._send_report(worker.report(_REPORT_SECONDS))
            if self._driver_is_gone() and not self._rows:
                self._send(ended="its driver is gone", counts=False)
                return

    def _handle(self, worker: Worker, request: Mapping[str, Any]) -> None:
        action, value = request["action"], unpacked(request["value"])
        if action == "resolve":
            try:
                self._send(resolved=packed((value, worker.resolve(value))))
            except Exception as error:
                self._send(resolved=packed((value, Failure.of(error))))
        elif action == "open":
            worker.open(*value)
        elif action == "give":
            work: Work
            self._batch, work = value
            self._rows = dict(work.rows)
            worker.give(work)
        elif action == "stop":
            number, seconds = value
            last = worker.stop(seconds)
            self._send_report(last, stopped=number, idle=not last.busy)
            self._rows.clear()

    def _send_report(self, report: Report, **more: object) -> None:
        """Write a report if it has anything new, and otherwise a heartbeat every second."""
        quiet = not (more or report.opened or report.finished or report.failure or report.unfinished is not None)
        if quiet and time.monotonic() - self._sent_at < _HEARTBEAT_SECONDS:
            return
        if report.opened is not None and not isinstance(report.opened.model, Failure):
            self._model_hash = model_hash(*report.opened.model)
        own = [(number, finished) for number, finished in report.finished if number in self._rows]
        rows = [(number, row_hash(self._rows.pop(number)), fields_of(finished)) for number, finished in own]
        if report.failure is not None:
            self._rows.clear()
        snapshot = report.unfinished is not None and write_snapshot(self._directory, self._batch, report.unfinished)
        rest = packed(replace(report, finished=(), unfinished=None))
        self._send(
            batch=self._batch, rows=rows, maker=self._model_hash, left=len(self._rows), snapshot=snapshot, report=rest, **more
        )

    def _send(self, **fields: object) -> None:
        add_line(self._directory / MESSAGES, {"process": self._id, **fields})
        self._sent_at = time.monotonic()

    def _driver_is_gone(self) -> bool:
        now = time.monotonic()
        if now - self._checked_at >= _HEARTBEAT_SECONDS:
            self._checked_at = now
            with suppress(OSError):
                fd = open_file(self._directory.parent / DRIVER, os.O_RDONLY)  # opened, so that NFS asks the server
                try:
                    touched = os.fstat(fd).st_mtime_ns
                finally:
                    os.close(fd)
                if touched != self._driver_mtime:
                    self._driver_mtime, self._driver_seen_at = touched, now
        return now - self._driver_seen_at > self._driver_timeout
