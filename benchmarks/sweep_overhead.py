"""The cost of a sweep's point apart from decoding: composing, directories, logs, files; with the fused and the basic launcher.

    python benchmarks/sweep_overhead.py [--points 100 1000 10000] [--basic-points 100]
    python benchmarks/sweep_overhead.py --added smollm2-135m [--dtype bfloat16]   # beyond the engine's own time

Each sweep is over seeds of a two-layer model, with one sample of one token per point, in a process of its own. ``startup``
(imports, the model, compiling kernels) is not counted; everything else is, including ``sweep.csv`` and ``report.html``.
``compose`` is one composition by Hydra in the same process: 40 ms on an idle machine, so it shows how busy this one is.

``--added`` generates 256 samples of 64 tokens at 16 points with a model of the given shape, by `gptsweep.sweep` and by a
command. It prints the wall time outside the engine's steps: of the call alone, and of the whole process.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[100, 1000], help="sweep sizes, fused")
    parser.add_argument("--basic-points", type=int, nargs="*", default=[100], help="sweep sizes, hydra/launcher=basic")
    parser.add_argument("--added", metavar="SHAPE", help="one of `shapes.SHAPES`")
    parser.add_argument("--dtype", default="bfloat16", help="of --added")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--by", choices=BY, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.by:
        print(json.dumps(BY[arguments.by](Path(arguments.added), arguments.dtype)))
        return
    if arguments.added:
        added(arguments.added, arguments.dtype)
        return
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
    """Run one sweep in this process, after a warm-up of two points: milliseconds per point, and megabytes."""
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


PROMPT = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it was"
SWEPT: dict[str, list[float]] = {"temperature": [0.7, 0.8, 0.9, 1.0], "top_k": [200, 50], "seed": [1, 2]}
SIZES = {"num_samples": 16, "max_new_tokens": 64}


def added(shape: str, dtype: str) -> None:
    """Print the time that `gptsweep.sweep` and a whole command add to the engine's own."""
    from peer_models import write_hf

    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "model"
        write_hf(directory, shape)
        print("by       engine s   call, outside its steps   whole process, outside its steps")
        for by in BY:
            program = [sys.executable, str(Path(__file__).resolve()), "--by", by, "--added", str(directory), "--dtype", dtype]
            began = time.perf_counter()
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            ended = subprocess.run(program, cwd=place, env=environment, capture_output=True, text=True)
            process = time.perf_counter() - began
            if ended.returncode:
                sys.exit(ended.stderr)
            found = json.loads(ended.stdout.splitlines()[-1])
            engine, call = found["engine"], found["wall"] - found["engine"]
            whole = process - engine
            print(f"{by:8} {engine:8.1f} {call:12.2f} s {call / engine:7.1%} {whole:22.2f} s {whole / engine:7.1%}", flush=True)


def by_sweep(directory: Path, dtype: str) -> dict[str, float]:
    """Seconds of one `gptsweep.sweep` of a loaded model, and of the engine's steps in it."""
    import gptsweep

    lm = gptsweep.load(directory, device="cpu", dtype=dtype)
    engine, began = engine_seconds(), time.perf_counter()
    gptsweep.sweep(lm, start=PROMPT, **SWEPT, **SIZES)  # type: ignore[arg-type]
    return {"wall": time.perf_counter() - began, "engine": engine()}


def by_command(directory: Path, dtype: str) -> dict[str, float]:
    """Seconds of one command, which loads the model itself, and of the engine's steps in it."""
    keys = SWEPT | {name: [size] for name, size in SIZES.items()}
    settings = [f"{'' if key == 'seed' else 'sampling.'}{key}={','.join(map(str, each))}" for key, each in keys.items()]
    model = ["model=hf", f"model.path={directory}", f"device.dtype={dtype}", "device.name=cpu", f"start='{PROMPT}'"]
    sys.argv = ["-m", "-m", *model, *settings, "quiet=true", "name=added"]  # as while `python -m gptsweep` is imported
    from gptsweep.__main__ import main as command

    began = time.perf_counter()
    engine = engine_seconds()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        status = command()
    if status:
        sys.exit(f"the sweep ended with status {status}")
    return {"wall": time.perf_counter() - began, "engine": engine()}


BY: dict[str, Callable[[Path, str], dict[str, float]]] = {"sweep": by_sweep, "command": by_command}


def engine_seconds() -> Callable[[], float]:
    """A function that returns how long the engine's steps have taken since this call."""
    from gptsweep.engine.engine import Engine

    steps, spent = Engine.steps, 0.0

    def timed(self: Engine, *args: Any, **kwargs: Any) -> Iterator[Any]:
        nonlocal spent
        made = steps(self, *args, **kwargs)
        while True:
            began = time.perf_counter()
            step = next(made, None)
            spent += time.perf_counter() - began
            if step is None:
                return
            yield step

    Engine.steps = timed  # type: ignore[method-assign]
    return lambda: spent


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
