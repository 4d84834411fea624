"""How long `gptsweep.read_sweep` takes, and what memory: ``python benchmarks/read_sweep.py [POINTS] [SAMPLES_A_POINT]``."""

from __future__ import annotations

import hashlib
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from gptsweep.analysis.frames import read_sweep
from gptsweep.analysis.summary import summary_of
from gptsweep.records import Sample, Sampling


def write_point(directory: Path, temperature: float, seed: int, num_samples: int, rng: random.Random) -> None:
    """Write a complete point with ``num_samples`` samples of 64 tokens, about 250 characters each."""
    directory.mkdir(parents=True)
    samples = []
    for index in range(num_samples):
        ids = tuple(rng.choices(range(50_257), k=64))
        samples.append(
            Sample(
                point_id=f"{seed:016x}", prompt_id="0", prompt_index=0, sample_index=index, seed=seed,
                sampling=Sampling(temperature=temperature), model="gpt2", prompt="Once upon a time",
                completion=" ".join(f"w{token % 997}" for token in ids), finish_reason="length", prompt_tokens=4, token_ids=ids,
                logprob_mean=-3.0, sampler_logprob_mean=-2.0, entropy_mean=3.0,
            )
        )  # fmt: skip
    data = "".join(sample.line() for sample in samples).encode()
    (directory / "samples.jsonl").write_bytes(data)
    row = {"model": "gpt2", "start": "Once upon a time", "seed": seed, "temperature": temperature}
    row |= summary_of([sample.as_json() for sample in samples[:5]]) | {"num_samples": num_samples}
    cells = ["" if value is None else str(value) for value in row.values()]
    (directory / "summary.csv").write_text(f"{','.join(row)}\n{','.join(cells)}\n")
    manifest = {"status": "complete", "sha256": hashlib.sha256(data).hexdigest(), "lines": num_samples}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def main(points: int = 1_000, num_samples: int = 100) -> None:
    """Write a sweep into a temporary directory, read it once, and print the seconds and the peak memory."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as root:
        for number in range(points):
            write_point(Path(root) / f"seed={number}", 0.1 * (number % 20), number, num_samples, rng)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, cpu = time.perf_counter(), time.process_time()
        sweep = read_sweep(root)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = f"{len(sweep.summary):,} points, {len(sweep.samples):,} samples: {seconds:.1f} s ({cpu:.1f} s of CPU)"
    print(f"{read}, peak {peak / 2**20:.2f} GiB ({before / 2**20:.2f} GiB before)")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
