"""Jobs from outside: which of them SLURM still has, how one of this machine is ended, and what a log says last."""

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
    """The user's jobs that wait or run, by id (``12``, or ``12_0`` in an array); None: SLURM does not answer.

    ``squeue`` knows them on every cluster. ``sacct``, which submitit asks, knows none where accounting is off, and says so on
    the terminal each time.
    """
    command = ["squeue", f"--user={os.getuid()}", "--array", "--noheader", "--format=%i"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return set(answer.stdout.split())


def last_line(path: Path) -> str:
    """The last line of a log that is not empty, shortened."""
    with contextlib.suppress(OSError), open_to_read(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES))
        if lines := file.read().decode(errors="replace").split("\n"):
            return one_line(next(filter(str.strip, reversed(lines)), "nothing in the log"))[:200]
    return "without a log"


def end_process(job: submitit.Job[None]) -> None:
    """End a job of this machine: submitit's own way lets it go on for a second."""
    process: Any = job._process  # type: ignore[attr-defined]
    with contextlib.suppress(psutil.Error):
        controller = psutil.Process(process.pid)
        controller.suspend()  # so that it starts nothing meanwhile
        for each in (*controller.children(recursive=True), controller):
            with contextlib.suppress(psutil.Error):
                each.kill()
    process.wait()
