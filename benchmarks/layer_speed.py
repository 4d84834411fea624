"""GFLOP/s of bfloat16 layers alone, by this project's kernel and by oneDNN, and of oneDNN's float32 layers.

    python benchmarks/layer_speed.py [--rows 1 2 8 16 64 256] [--layers 768x2304 3072x768 768x50257]

Layers are ``n_in x n_out``; each is run again and again, so that weights that fit a cache lie in it; the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gptsweep.models.linear import PackedLinear


def gigaflops(run: Callable[[Tensor], Tensor], x: Tensor, n_out: int, repeats: int) -> float:
    """Of the product of ``x [rows, n_in]`` with ``n_out`` outputs."""
    run(x)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run(x)
        times.append(time.perf_counter() - begin)
    return 2 * x.numel() * n_out / statistics.median(times) / 1e9


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 8, 16, 64, 256])
    parser.add_argument("--layers", nargs="+", default=["768x2304", "3072x768", "768x50257"])
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    print("| layer | rows | kernel | oneDNN | oneDNN, float32 |\n|---|---|---|---|---|")
    for name in args.layers:
        n_in, n_out = map(int, name.split("x"))
        layer = nn.Linear(n_in, n_out)
        single, half = PackedLinear(layer), PackedLinear(layer.bfloat16())
        if half.gemm is None:
            raise SystemExit(f"{name}: this CPU's oneDNN adds in an order that the kernel does not have")
        for rows in args.rows:
            x = torch.randn(rows, n_in, generator=torch.Generator().manual_seed(rows))
            speeds = [gigaflops(run, x.bfloat16(), n_out, args.repeats) for run in (half.gemm, half.onednn)]
            speeds.append(gigaflops(single.onednn, x, n_out, args.repeats))
            print(f"| {name} | {rows} | " + " | ".join(f"{speed:.0f}" for speed in speeds) + " |", flush=True)


if __name__ == "__main__":
    main()
