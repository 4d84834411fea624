"""How many samples per second a driver takes from workers: unpickling, lines, summaries, manifests and syncs, without a model.

    python benchmarks/ingest.py [--workers 1 4 16] [--points 100] [--samples 200] [--tokens 100]

Workers are processes with canned samples, pickled beforehand, which they stream over pipes as fast as they are read. The driver
is the real one: the session and the store write them to run directories, with every sync and every metric. Each line is a run
in a process of its own. ``wall/s`` is in samples per second; ``CPU/s`` is in samples per second of the driver's own CPU time,
the rate on an idle machine whose disk takes no time. ``grown`` is how much the driver's memory grows from a quarter of the
samples to the last, and ``plan`` how much jobs, points and rows took before.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path

import psutil

from gptsweep.engine.backend import BackendProgress, Provenance
from gptsweep.models.files.tokenizers import CharTokenizer
from gptsweep.records import DeviceSettings, ModelSource, Point, Sample, Sampling
from gptsweep.run.executors import OnStep
from gptsweep.run.jobs import Job
from gptsweep.run.progress import Progress
from gptsweep.run.rows import Finished, OpenModel, Plan, SampleKey
from gptsweep.run.session import run_jobs

BATCH = 64
"""The number of samples that a worker sends at a time."""
CANNED = 256
"""The number of different texts."""
LETTERS = "abcdefghijklmnopqrstuvwxyz .,;:'!?\nABCDEFGHIJKLMNOPQRSTUVWXYZ"
HOW = Provenance(dtype="float32", device="cpu", arithmetic="float32", threads=1, made_by={"canned": 1}, versions={})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--samples", type=int, default=200, help="of each point")
    parser.add_argument("--tokens", type=int, default=100, help="of each sample")
    parser.add_argument("--directory", help="where run directories go: the disk counts; by default the temporary directory")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory(dir=arguments.directory) as place:
            print(json.dumps(measure(Path(place), arguments)))
        return
    print("workers  samples  wall/s   CPU/s  us/sample  disk B/sample  plan B/sample  grown B/sample")
    for workers in arguments.workers:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", str(workers)]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            sys.exit(ended.stderr)
        found = json.loads(ended.stdout.splitlines()[-1])
        print(
            f"{workers:7} {found['samples']:8,} {found['wall']:7,.0f} {found['cpu']:7,.0f} {1e6 / found['cpu']:10.1f}"
            f" {found['disk']:14,.0f} {found['plan']:14,.0f} {found['grown']:15,.0f}",
            flush=True,
        )


def measure(root: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Do one run in this process: samples per second of wall time and of CPU time, and bytes per sample."""
    before = memory()
    jobs = []
    for number in range(arguments.points):  # they share noise, so a message holds samples of up to 64 points
        temperature = 0.5 + number / arguments.points
        sampling = Sampling(num_samples=arguments.samples, max_new_tokens=arguments.tokens, temperature=temperature)
        jobs.append(Job(Point(sampling=sampling, start="a"), root / f"point={number}"))
    executor = Streaming(arguments.one, arguments.tokens)
    with Progress(quiet=True) as progress:
        failed = [outcome.error for outcome in run_jobs(jobs, progress, executor) if outcome.error is not None]
    wall, cpu = time.perf_counter() - executor.began[0], time.process_time() - executor.began[1]
    if failed:
        raise failed[0]
    samples = arguments.points * arguments.samples
    return {
        "samples": samples,
        "wall": samples / wall,
        "cpu": samples / cpu,
        "disk": sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / samples,
        "plan": (executor.planned - before) / samples,
        "grown": (memory() - executor.at_quarter) / (samples * 3 / 4),
    }


def memory() -> int:
    """The resident memory of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)


class Canned:
    """The facts of a backend; its rows run elsewhere."""

    vocab_size = len(LETTERS)
    block_size: int | None = None
    extends_to: int | None = None
    overflow = "crop"
    end_tokens: tuple[int, ...] = ()
    fingerprint = "canned"
    promise = True
    max_rows: int | None = None
    provenance = HOW


class Streaming:
    """An executor whose workers stream canned samples; ``began`` is the time when they started to."""

    def __init__(self, workers: int, tokens: int) -> None:
        self.workers, self.tokens = workers, tokens
        self.began = 0.0, 0.0
        self.planned = self.at_quarter = 0

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        return "float32", "cpu"

    def open(self, source: ModelSource, settings: DeviceSettings) -> OpenModel:
        return OpenModel(source, settings, Canned(), CharTokenizer(LETTERS))  # type: ignore[arg-type]

    def run(self, model: OpenModel, plan: Plan, on_step: OnStep | None = None) -> Iterator[tuple[SampleKey, Sample]]:
        self.planned = memory()
        context = multiprocessing.get_context("fork")
        share = -(-len(plan.recipients) // self.workers)
        pipes, processes = [], []
        for first in range(0, len(plan.recipients), share):
            ours, theirs = context.Pipe()
            keys = [key for each in plan.recipients[first : first + share] for key in each]
            processes.append(context.Process(target=stream, args=(theirs, model, plan, keys, self.tokens), daemon=True))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        for pipe in pipes:  # every worker has its samples ready
            pipe.recv()
        self.began = time.perf_counter(), time.process_time()
        for pipe in pipes:
            pipe.send(None)
        progress = BackendProgress(tokens_total=plan.workload.new_tokens)
        taken = 0
        while pipes:
            for pipe in wait(pipes):
                assert isinstance(pipe, Connection)
                try:
                    batch = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    pipes.remove(pipe)
                    continue
                progress.tokens += len(batch) * self.tokens
                for (place, key), finished in batch:
                    yield (place, key), plan.tasks[place].sample(key, finished)
                taken += len(batch)
                if not self.at_quarter and taken >= plan.workload.rows / 4:
                    self.at_quarter = memory()
                if on_step is not None:
                    on_step(progress, lambda: iter(()))
        for process in processes:
            process.join()


def stream(pipe: Connection, model: OpenModel, plan: Plan, keys: list[SampleKey], tokens: int) -> None:
    """Run a worker: prepare the messages, wait for the driver's signal, and send them."""
    numbers = random.Random(keys[0][0])
    texts = [tuple(numbers.randrange(len(LETTERS)) for _ in range(tokens)) for _ in range(CANNED)]
    messages = []
    for first in range(0, len(keys), BATCH):
        some = keys[first : first + BATCH]
        batch = [(key, finished(model, numbers.choice(texts))) for key in some]
        messages.append(pickle.dumps(batch, protocol=pickle.HIGHEST_PROTOCOL))
    pipe.send(None)
    pipe.recv()
    for message in messages:
        pipe.send_bytes(message)
    pipe.close()
    os._exit(0)


def finished(model: OpenModel, ids: tuple[int, ...]) -> Finished:
    """A finished row with canned text."""
    return Finished(model.tokenizer.decode(ids), ids, "length", -1.2345678901234567, -1.1234567890123456, 1.3456789012345678)


if __name__ == "__main__":
    main()
