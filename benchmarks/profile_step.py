"""Where a decode step's time goes: linear layers, attention, choosing tokens, the small operations, and Python between them.

    python benchmarks/profile_step.py [--rows 256] [--dtype bfloat16] [--shape gpt2]

The model has random weights of the given shape, the rows one 32-token prompt; steps are measured once all rows are in flight.
`limit` times the linear layers alone, on the same number of rows, and `share` is how much of the step they are.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from shapes import SHAPES, grid, random_model

from gptsweep.engine.engine import Engine
from gptsweep.kernels import runtime as kernels
from gptsweep.models import linear
from gptsweep.models.gpt2 import GPT, LayerNorm


def timed(spent: dict[str, float], part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, its time added to ``spent[part]``."""

    def run(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[part] += time.perf_counter() - begin

    return run


def linear_limit(model: GPT, rows: int, repeats: int) -> float:
    """Seconds that the linear layers of one step take alone."""
    config = model.config
    dtype = getattr(model.lm_head, "dtype", torch.float32)
    inputs = {n: torch.randn(rows, n, dtype=dtype) for n in (config.n_embd, config.n_hidden)}

    def step() -> None:
        for block in model.blocks:
            block.attn.c_attn(inputs[config.n_embd])
            block.attn.c_proj(inputs[config.n_embd])
            block.mlp.c_proj(block.mlp.c_fc(inputs[config.n_embd]))
        model.lm_head(inputs[config.n_embd])

    with torch.inference_mode():
        step()
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            step()
            times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16", "int8"), default="bfloat16")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens a row")
    parser.add_argument("--top-k", type=int, default=200, help="0: no truncation")
    args = parser.parse_args()
    model = random_model(args.shape, args.dtype)
    spent: dict[str, float] = defaultdict(float)
    layer = linear.Int8Linear if args.dtype == "int8" else linear.PackedLinear
    limit = linear_limit(model, args.rows, 5)
    plain = {
        (cls, name): getattr(cls, name)
        for cls, name in ((layer, "forward"), (LayerNorm, "forward"), (kernels.Kernel, "__call__"))
    }
    names = {"store": "attention", "attend": "attention", "sample": "sampling"}
    engine = Engine(model, vocab_size=model.config.vocab_size, max_rows=args.rows)

    def call(kernel: Any, **fields: Any) -> None:
        run = plain[kernels.Kernel, "__call__"]
        # The kernel of a linear layer is timed with its layer.
        (timed(spent, names[kernel.name], run) if kernel.name in names else run)(kernel, **fields)

    layer.forward = timed(spent, "blocks", plain[layer, "forward"])  # type: ignore[method-assign]
    model.lm_head.forward = timed(spent, "head", partial(plain[layer, "forward"], model.lm_head))
    LayerNorm.forward = timed(spent, "norm", plain[LayerNorm, "forward"])  # type: ignore[method-assign]
    kernels.Kernel.__call__ = call  # type: ignore[method-assign]
    model.hidden = timed(spent, "hidden", model.hidden)  # type: ignore[method-assign]
    steps: list[tuple[float, dict[str, float]]] = []
    begin = time.perf_counter()

    def on_step(_: object) -> None:
        nonlocal begin
        now = time.perf_counter()
        steps.append((now - begin, dict(spent)))
        spent.clear()
        begin = now

    for _ in engine.run(grid(args.rows, args.prompt, args.tokens, args.top_k or None), on_step=on_step):
        pass
    steps = steps[2:]
    total = sum(seconds for seconds, _ in steps)
    parts: dict[str, float] = defaultdict(float)
    for _, step in steps:
        for part, seconds in step.items():
            parts[part] += seconds
    inside = parts.pop("hidden") - parts["blocks"]
    parts["small operations"] = inside - parts["attention"] - parts["norm"]
    parts["linear"] = parts.pop("blocks") + parts.pop("head")
    parts["bookkeeping"] = total - sum(parts.values())
    print(f"{args.shape} {args.dtype}, {args.rows} rows, prompt {args.prompt}, {torch.get_num_threads()} threads")
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"{part:18}{1e3 * seconds / len(steps):9.2f} ms{seconds / total:8.1%}")
    step = total / len(steps)
    print(f"{'step':18}{1e3 * step:9.2f} ms   {args.rows / step:,.0f} tokens/s")
    print(f"{'limit':18}{1e3 * limit:9.2f} ms   share {limit / step:.2f}")


if __name__ == "__main__":
    main()
