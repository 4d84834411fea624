"""Watch and end jobs: list those in SLURM's queue, kill one on this machine, and read the end of a log."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Any

import psutil
import submitit

from ...display import one_line
from ...files import open_to_read

_ANSWER_SECONDS = 20.0
_LOG_BYTES = 4096


def jobs_in_queue() -> set[str] | None:
    """Return the ids of the user's pending and running jobs (``12``, or ``12_0`` in an array); None if SLURM does not answer.

    It asks ``squeue``, which works on every cluster. ``sacct``, which submitit asks, knows no jobs if accounting is off, and
    complains on the terminal each time.
    """
    command = ["squeue", f"--user={os.getuid()}", "--array", "--noheader", "--format=%i"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return set(answer.stdout.split())


def last_line(path: Path) -> str:
    """Return the last non-empty line of a log, shortened to 200 characters."""
    with contextlib.suppress(OSError), open_to_read(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES))
        if lines := file.read().decode(errors="replace").split("\n"):
            return one_line(next(filter(str.strip, reversed(lines)), "nothing in the log"))[:200]
    return "without a log"


def end_process(job: submitit.Job[None]) -> None:
    """Kill a job on this machine at once; submitit's own way lets it run for another second."""
    process: Any = job._process  # type: ignore[attr-defined]
    with contextlib.suppress(psutil.Error):
        controller = psutil.Process(process.pid)
        controller.suspend()  # so that it starts no further processes
        for each in (*controller.children(recursive=True), controller):
            with contextlib.suppress(psutil.Error):
                each.kill()
    process.wait()
