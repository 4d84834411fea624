"""GFLOP/s of linear layers alone, by those of this project's kernels and of oneDNN's layers that this CPU has.

    python benchmarks/layer_speed.py [--rows 1 2 8 16 64 256] [--layers 768x2304 3072x768 768x50257]

Layers are ``n_in x n_out``. Each runs repeatedly, so weights that fit into a cache are read from it; the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from gptsweep.kernels.onednn import Bf16Gemm, FloatGemm, has_layers
from gptsweep.models.linear import OneDnn


def gigaflops(run: Callable[[Tensor], Tensor], x: Tensor, n_out: int, repeats: int) -> float:
    """Measure the GFLOP/s of the product of ``x [rows, n_in]`` with ``n_out`` outputs."""
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
    for place, name in enumerate(args.layers):
        n_in, n_out = map(int, name.split("x"))
        ways = multiplications(torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(place)))
        if place == 0:
            print(f"| layer | rows | {' | '.join(ways)} |\n|---|---{'|---' * len(ways)}|")
        for rows in args.rows:
            x = torch.randn(rows, n_in, generator=torch.Generator().manual_seed(rows))
            speeds = [gigaflops(run, x.to(run.dtype), n_out, args.repeats) for run in ways.values()]
            print(f"| {name} | {rows} | " + " | ".join(f"{speed:.0f}" for speed in speeds) + " |", flush=True)


def multiplications(weight: Tensor) -> dict[str, FloatGemm | Bf16Gemm | OneDnn]:
    """The ways to multiply by ``weight``, by name."""
    ways: dict[str, FloatGemm | Bf16Gemm | OneDnn] = {"oneDNN, float32": OneDnn(weight, None, None)}
    for dtype in (torch.float32, torch.bfloat16):
        if gemm := FloatGemm.of(weight.to(dtype), None):
            ways[f"kernel `gemm`, {str(dtype).removeprefix('torch.')}"] = gemm
    if has_layers(torch.bfloat16):
        half = OneDnn(weight.bfloat16(), None, None)
        if half.gemm is not None:
            ways["kernel `linear`, bfloat16"] = half.gemm
            half.gemm = None
        ways["oneDNN, bfloat16"] = half
    return ways


if __name__ == "__main__":
    main()
