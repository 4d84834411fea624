"""Kill a sweep (SIGKILL) at random moments, run it again each time, and compare the bytes at the end.

Tokens are counted in memory that outlives the processes: a kill costs those since unfinished samples were last written.

This is a program of its own because it forks, which a process that has started torch's threads cannot. It prints its results as
JSON.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sweeps import samples_of

from gptsweep.__main__ import main
from gptsweep.engine.scheduler import Scheduler
from gptsweep.records import Completion
from gptsweep.run.executors.local import LocalExecutor
from gptsweep.store.unfinished import SECONDS, Unfinished

SWEEP = (
    *("-m", "model=resume", "seed=1,2,3", "sampling.rng=counter,torch", "sampling.num_samples=3"),
    *("sampling.max_new_tokens=24", "sampling.overflow=rebase", "sampling.logprobs=2"),
)
ROWS = 2
STEPS = 4
"""The number of steps between writes of unfinished samples; here the clock counts steps instead of seconds."""

counts = np.frombuffer(mmap.mmap(-1, 16), np.int64)
"""Steps and tokens of this process and all its children."""


def count() -> None:
    real = Scheduler.postprocess

    def postprocess(scheduler: Scheduler) -> list[Completion]:
        finished = real(scheduler)
        counts[:] += 1, len(scheduler.running) + len(finished)
        return finished

    Scheduler.postprocess = postprocess  # type: ignore[method-assign]
    Unfinished.__init__.__defaults__ = (lambda: int(counts[0]) * SECONDS / STEPS,)  # type: ignore[misc]


def sweep_here(name: str) -> int:
    sys.argv = ["gptsweep", *SWEEP, "quiet=true", f"device.max_rows={ROWS}", "device.threads=1", f"name={name}"]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return main()


def start(name: str) -> tuple[int, int]:
    """Run the sweep in a child; return its process id, and a pipe that gets a byte when decoding begins."""
    begun, signal_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.close(begun)
            run = LocalExecutor.run

            def reporting(*arguments: Any) -> Any:
                os.write(signal_end, b"!")
                return run(*arguments)

            LocalExecutor.run = reporting  # type: ignore[method-assign]
            status = sweep_here(name)
        finally:
            os._exit(status)
    os.close(signal_end)
    return pid, begun


def after_steps(pid: int, number: float) -> None:
    """Wait until ``number`` more steps are done, or the child has ended."""
    until = counts[0] + number
    while counts[0] < until and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.001)


def finish(started: tuple[int, int]) -> float:
    """Wait for the end, and return the seconds since decoding began."""
    pid, begun = started
    os.read(begun, 1)
    os.close(begun)
    since = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return time.monotonic() - since


def logprobs_of(sweep: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sweep.glob("*/logprobs.jsonl")}


def state(sweep: Path) -> tuple[int, int]:
    """The number of points with a manifest, and the bytes of samples."""
    size = sum(path.stat().st_size for path in sweep.glob("*/samples*"))
    return len(list(sweep.glob("*/manifest.json"))), size


def run(kills: int) -> dict[str, int]:
    sweeps = Path("outputs/sweeps")
    torch.set_num_threads(1)  # starts no pool of threads, which a forked child would lack
    count()
    assert sweep_here("whole") == 0  # and everything is imported and compiled before the fork
    whole, inside = samples_of(sweeps / "whole"), logprobs_of(sweeps / "whole")
    assert len(whole) == len(inside) == 6
    tokens = int(counts[1])
    steps = int(counts[0])
    seconds = finish(start("timed"))
    counts[:] = 0
    chance = random.Random(7)
    done, number = 0, 0
    moments = set()
    while done < kills:
        sweep = sweeps / f"killed{number}"
        pid, begun = start(sweep.name)
        os.read(begun, 1)
        os.close(begun)
        after_steps(pid, chance.uniform(0, 0.4) * steps)  # steps, because seconds depend on the machine's load
        time.sleep(chance.uniform(0, 0.05) * seconds)
        os.kill(pid, signal.SIGKILL)
        done += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        moments.add(state(sweep))
        if len(list(sweep.glob("*/manifest.json"))) == 6 or done == kills:
            finish(start(sweep.name))
            assert samples_of(sweep) == whole
            assert logprobs_of(sweep) == inside
            number += 1
    twice = int(counts[1]) - number * tokens
    assert twice <= done * (STEPS + 1) * ROWS
    return {"kills": done, "sweeps": number, "moments": len(moments), "tokens": tokens, "twice": twice}


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]))))
