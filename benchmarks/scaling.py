"""The cost of an executor relative to the local one on the same cores: one sweep locally, on Ray, and through submitit.

    python benchmarks/scaling.py [--seconds 60] [--shards 1 2 4] [--executors ray slurm]

Each line is one command, timed from start to end, on as many cores as there are shards. The local executor computes with as
many threads as cores, a worker with one. The sweep takes one thread ``--seconds``. ``overhead`` is the time of the whole
command relative to the local one, ``first`` the time until a sample is on disk. In the last line of an executor, a worker is
killed in the middle: ``overhead`` is then relative to the same run undisturbed, so it is the cost of the lost shard. ``same``
says whether every ``samples.jsonl`` has the bytes of the local run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

LAUNCHERS = {
    "local": [],
    "ray": ["hydra/launcher=fused_ray"],
    "slurm": ["hydra/launcher=fused_slurm", "hydra.launcher.cluster=local"],
}
WORKERS = ("ray::RayWorker", "submitit.core._submit")
"""Text that occurs in the command line of a worker, by executor."""


@dataclass(frozen=True)
class Ended:
    seconds: float
    first: float
    files: dict[str, bytes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="what the sweep takes one thread, about")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--executors", nargs="+", choices=[*LAUNCHERS][1:], default=[*LAUNCHERS][1:])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        samples = sized(place, arguments.seconds)
        print(f"4 points of {samples} samples of 200 tokens, {os.cpu_count()} cores")
        print("executor  shards  cores  seconds  first  overhead  same")
        local, whole = {}, {}
        for shards in arguments.shards:
            local[shards] = run(place, "local", shards, samples)
            show("local", shards, local[shards], None, local[shards])
        for executor in arguments.executors:
            for shards in arguments.shards:
                whole[executor, shards] = run(place, executor, shards, samples)
                show(executor, shards, whole[executor, shards], local[shards], local[shards])
            shards = arguments.shards[-1]
            undisturbed = whole[executor, shards]
            middle = (undisturbed.first + undisturbed.seconds) / 2
            lost = run(place, executor, shards, samples, kill_after=middle)
            show(f"{executor}*", shards, lost, undisturbed, local[shards])
        print("* a worker killed in the middle")


def sized(place: Path, seconds: float) -> int:
    """The number of samples per point for a sweep of about ``seconds`` on one thread."""
    few = 32
    run(place, "local", 1, few)  # fills the caches
    run(place, "local", 1, few)
    manifests = [json.loads(path.read_text()) for path in (place / "outputs/sweeps/run").glob("*/manifest.json")]
    return max(few, round(seconds * manifests[0]["tokens_per_second"] / 200 / 4))


def run(place: Path, executor: str, shards: int, samples: int, kill_after: float | None = None) -> Ended:
    """Run one command on as many cores as shards."""
    cores = sorted(os.sched_getaffinity(0))[:shards]
    settings = ["-m", "name=run", "quiet=true", "overwrite=true", "seed=1,2,3,4", f"sampling.num_samples={samples}",
                "sampling.max_new_tokens=200", f"device.threads={len(cores) if executor == 'local' else 1}",
                *LAUNCHERS[executor], *([f"hydra.launcher.workers={shards}"] if executor != "local" else [])]  # fmt: skip
    sweep = place / "outputs/sweeps/run"
    subprocess.run(["rm", "-rf", str(sweep)], check=True)
    began = time.perf_counter()
    with (place / "log").open("w") as log:
        command = subprocess.Popen([sys.executable, "-m", "gptsweep", *settings], cwd=place, stdout=log, stderr=log,
                                   preexec_fn=lambda: os.sched_setaffinity(0, cores))  # fmt: skip
    first = 0.0
    while command.poll() is None:
        time.sleep(0.05)
        now = time.perf_counter() - began
        if not first and any(path.stat().st_size for path in sweep.glob("*/samples*.jsonl")):
            first = now
        if kill_after is not None and now >= kill_after:
            kill_after = None
            kill_worker(command.pid)
    if command.returncode:
        sys.exit((place / "log").read_text())
    files = {path.parent.name: path.read_bytes() for path in sweep.glob("*/samples.jsonl")}
    return Ended(time.perf_counter() - began, first, files)


def kill_worker(pid: int) -> None:
    """Kill one of a command's workers."""
    workers = [
        each for each in psutil.Process(pid).children(recursive=True) if any(n in " ".join(each.cmdline()) for n in WORKERS)
    ]
    if not workers:
        sys.exit("there is no worker to kill")
    os.kill(workers[-1].pid, signal.SIGKILL)


def show(executor: str, shards: int, ended: Ended, against: Ended | None, local: Ended) -> None:
    overhead = "" if against is None else f"{ended.seconds / against.seconds - 1:+.1%}"
    same = "yes" if ended.files == local.files else "NO"
    cores = min(shards, len(os.sched_getaffinity(0)))
    print(f"{executor:8} {shards:7} {cores:6} {ended.seconds:8.1f} {ended.first:6.1f} {overhead:>9} {same:>5}", flush=True)


if __name__ == "__main__":
    main()
