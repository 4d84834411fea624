"""The cost of a busy core: the same work with torch's default threads, with gptsweep's, with passive ones, and on one thread.

    python benchmarks/shared_machine.py [--busy 1] [--repeats 7] [--dtype float32] [--spin 300 3000 10000]

Each way is a process of its own, started once. They run in turn, first on the machine as it is, then beside ``--busy``
processes that each occupy a core. `small` is the embedded model with 10 rows, with many short parallel regions per step;
`large` is a grid of 256 rows of GPT-2's shape with random weights. Ratios are of the fastest measurements, to limit the effect
of other processes; the first part needs an idle machine, and prints the load before it. ``--spin`` tries other values of
GOMP_SPINCOUNT. Only with `gptsweep's` and these does the number of threads follow the free cores.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache

import gptsweep  # before torch, which is imported below: it says how OpenMP's threads wait

ALL = {"OMP_NUM_THREADS": str(os.cpu_count())}
WAYS = {
    "torch's default": ALL | {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"},
    "gptsweep's": {},
    "short spin": ALL | {"GOMP_SPINCOUNT": "1000"},
    "passive": ALL | {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
SETTINGS = {name for way in WAYS.values() for name in way} | {"MKL_NUM_THREADS", "KMP_LIBRARY"}
WORKS = ("small", "large")
IDLE_BAR, BUSY_BAR = 0.98, 0.85


def serve(dtype: str) -> None:
    """Do the work that each line of standard input names, and print the seconds that it took."""
    from shapes import grid, random_model

    from gptsweep.engine.engine import Engine
    from gptsweep.models.loading import set_threads
    from gptsweep.records import DeviceSettings

    @cache
    def small() -> gptsweep.LM:
        return gptsweep.load(device="cpu", dtype=dtype)

    @cache
    def large() -> Engine:
        free_cores = set_threads(DeviceSettings(name="cpu"))
        return Engine(random_model("gpt2", dtype), vocab_size=50257, free_cores=free_cores)

    works: dict[str, Callable[[], object]] = {
        "small": lambda: small().generate("\n", num_samples=10, max_new_tokens=40),
        "large": lambda: list(large().run(grid(256, 32, 4))),
    }
    for line in sys.stdin:
        begin = time.perf_counter()
        works[line.strip()]()
        print(time.perf_counter() - begin, flush=True)


class Way:
    """A process whose threads wait in one way."""

    def __init__(self, settings: dict[str, str], dtype: str) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        command = [sys.executable, __file__, "--serve", "--dtype", dtype]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=kept | settings)

    def seconds(self, work: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{work}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Run ``count`` processes that occupy a core each."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(ways: dict[str, Way], work: str, repeats: int) -> dict[str, list[float]]:
    """Measure the seconds of each way ``repeats`` times, in turn."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            taken[name].append(way.seconds(work))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=1, help="processes that keep a core each")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each way")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "int8"), default="float32")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--spin", nargs="*", type=int, default=[], help="other values of GOMP_SPINCOUNT")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.dtype)
        return
    settings = WAYS | {f"GOMP_SPINCOUNT={count}": {"GOMP_SPINCOUNT": str(count)} for count in args.spin}
    ways = {name: Way(way, args.dtype) for name, way in settings.items()}
    try:
        for work in args.works:
            measure(ways, work, 1)  # and loaded
        for beside in (0, args.busy):
            load = os.getloadavg()[0]
            with busy(beside):
                for work in args.works:
                    taken = measure(ways, work, args.repeats)
                    against, bar = ("one thread", BUSY_BAR) if beside else ("torch's default", IDLE_BAR)
                    print(f"\n{work}, {args.dtype}, {os.cpu_count()} cores, {beside} busy beside it, load before {load:.1f}")
                    print(f"{'':22}{'fastest s':>10}{'median s':>10}   of the speed of {against}")
                    for name, seconds in taken.items():
                        ratio = min(taken[against]) / min(seconds)
                        held = f"  (bar {bar}: {'holds' if ratio >= bar else 'does not hold'})" if name == "gptsweep's" else ""
                        print(f"{name:22}{min(seconds):10.3f}{statistics.median(seconds):10.3f}   {ratio:.2f}{held}")
    finally:
        for way in ways.values():
            way.process.kill()


if __name__ == "__main__":
    main()
