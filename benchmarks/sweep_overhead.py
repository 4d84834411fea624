"""What a point of a sweep costs apart from decoding: composing, directories, logs, files. Fused and basic side by side.

    python benchmarks/sweep_overhead.py [--points 100 1000 10000] [--basic-points 100]

A sweep over seeds of a two-layer model, a sample of one token a point, each in a process of its own. ``startup`` (imports, the
model, compiling kernels) is not counted; everything else of the command is, ``sweep.csv`` and ``report.html`` included.
``compose`` is one composition by Hydra in the same process: 40 ms on an idle machine, so it tells how busy this one is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[100, 1000], help="sweep sizes, fused")
    parser.add_argument("--basic-points", type=int, nargs="*", default=[100], help="sweep sizes, hydra/launcher=basic")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]))))
        return
    print("launcher  points  ms/point  CPU ms/point  compose ms  memory MB  grown MB")
    sizes = [("fused", n) for n in arguments.points] + [("basic", n) for n in arguments.basic_points]
    for launcher, points in sizes:
        with tempfile.TemporaryDirectory() as place:
            paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
            program = [sys.executable, str(Path(__file__).resolve()), "--one", launcher, str(points)]
            ended = subprocess.run(
                program,
                cwd=place,
                env=os.environ | {"PYTHONPATH": paths},
                capture_output=True,
                text=True,
            )
        if ended.returncode:
            sys.exit(ended.stderr)
        found = json.loads(ended.stdout.splitlines()[-1])
        print(
            f"{launcher:8} {points:7,} {found['wall']:9.1f} {found['cpu']:13.1f} {found['compose']:11.1f}"
            f" {found['memory']:10.0f} {found['grown']:9.0f}",
            flush=True,
        )


def measure(launcher: str, points: int) -> dict[str, float]:
    """One sweep in this process, after a sweep of two points that warms everything up; milliseconds a point, megabytes."""
    from sweeps import save_checkpoint

    from gptsweep.__main__ import main as command

    save_checkpoint(Path("out"), seed=1)

    def sweep(name: str, seeds: int) -> None:
        settings = ("sampling.num_samples=1", "sampling.max_new_tokens=1", "quiet=true", f"hydra/launcher={launcher}")
        sys.argv = ["gptsweep", "-m", "model=resume", f"seed=range(0,{seeds})", *settings, f"name={name}"]
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            status = command()
        if status:
            sys.exit(f"the sweep ended with status {status}")

    sweep("warm", 2)
    compose = compose_milliseconds()
    before = peak_megabytes()
    wall, cpu = time.perf_counter(), time.process_time()
    sweep("measured", points)
    return {
        "wall": (time.perf_counter() - wall) / points * 1e3,
        "cpu": (time.process_time() - cpu) / points * 1e3,
        "compose": compose,
        "memory": peak_megabytes(),
        "grown": peak_megabytes() - before,
    }


def compose_milliseconds(times: int = 10) -> float:
    """CPU time of one composition by Hydra."""
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from gptsweep.config_schema import CONF_DIR

    hydra = Hydra.create_main_hydra2("gptsweep", create_config_search_path(str(CONF_DIR)))
    since = time.process_time()
    for _ in range(times):
        hydra.config_loader.load_configuration("config", ["model=resume", "seed=1"], RunMode.RUN)
    GlobalHydra.instance().clear()
    return (time.process_time() - since) / times * 1e3


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
