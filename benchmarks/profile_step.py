"""Where a decode step's time goes: linear layers, attention, choosing tokens, the small operations, and Python between them.

    python benchmarks/profile_step.py [--rows 256] [--dtype bfloat16] [--shape gpt2] [--independent]

The model has random weights of the given shape, the rows one 32-token prompt; steps are measured once all rows are in flight.
Rows that have drawn the same tokens are one sequence; `sequences` is their mean number. `limit` times the linear layers alone,
on the same number of rows, and `share` is how much of the step they are. `entropy` is the mean at temperature 1.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from shapes import SHAPES, grid, random_model
from torch import nn

from gptsweep.engine.engine import Engine
from gptsweep.kernels import runtime as kernels
from gptsweep.models import linear
from gptsweep.models.decoder import Decoder
from gptsweep.models.gpt2 import GPT, LayerNorm
from gptsweep.models.layers import Norm


def timed(spent: dict[str, float], part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, its time added to ``spent[part]``."""

    def run(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[part] += time.perf_counter() - begin

    return run


def linear_limit(model: GPT | Decoder, rows: int, repeats: int) -> float:
    """Seconds that the linear layers of one step take alone."""
    config = model.config
    if isinstance(model, GPT):
        layers = [
            layer
            for block in model.blocks
            for layer in (
                (block.attn.c_attn, config.n_embd),
                (block.attn.c_proj, config.n_embd),
                (block.mlp.c_fc, config.n_embd),
                (block.mlp.c_proj, config.n_hidden),
            )
        ]
    else:
        layers = [
            layer
            for block in model.blocks
            for layer in (
                (block.attn.qkv, config.n_embd),
                (block.attn.out, config.n_head * config.head_size),
                (block.mlp.up, config.n_embd),
                (block.mlp.down, config.n_inner),
            )
        ]
    layers.append((head_of(model), config.n_embd))
    dtype = getattr(head_of(model), "dtype", torch.float32)
    inputs = {width: torch.randn(rows, width, dtype=dtype) for _, width in layers}

    def step() -> None:
        for layer, width in layers:
            layer(inputs[width])

    with torch.inference_mode():
        step()
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            step()
            times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def head_of(model: GPT | Decoder) -> nn.Module:
    """The layer that makes logits."""
    return model.lm_head if isinstance(model, GPT) else model.head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16", "int8"), default="bfloat16")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens a row")
    parser.add_argument("--top-k", type=int, default=200, help="0: no truncation")
    parser.add_argument("--independent", action="store_true", help="each row has noise of its own")
    args = parser.parse_args()
    model = random_model(args.shape, args.dtype)
    spent: dict[str, float] = defaultdict(float)
    layer = linear.Int8Linear if args.dtype == "int8" else linear.PackedLinear
    limit = linear_limit(model, args.rows, 5)
    plain = {
        (cls, name): getattr(cls, name)
        for cls, name in ((layer, "forward"), (LayerNorm, "forward"), (Norm, "forward"), (kernels.Kernel, "__call__"))
    }
    names = {"store": "attention", "attend": "attention", "turn": "turn", "gate": "gate", "sample": "sampling"}
    engine = Engine(model, vocab_size=model.config.vocab_size, max_rows=args.rows)

    def call(kernel: Any, **fields: Any) -> None:
        run = plain[kernels.Kernel, "__call__"]
        # The kernel of a linear layer or of a norm is timed with its layer.
        (timed(spent, names[kernel.name], run) if kernel.name in names else run)(kernel, **fields)

    layer.forward = timed(spent, "blocks", plain[layer, "forward"])  # type: ignore[method-assign]
    head = head_of(model)
    head.forward = timed(spent, "head", partial(plain[layer, "forward"], head))
    for norm in (LayerNorm, Norm):
        norm.forward = timed(spent, "norm", plain[norm, "forward"])  # type: ignore[method-assign]
    kernels.Kernel.__call__ = call  # type: ignore[method-assign]
    model.hidden = timed(spent, "hidden", model.hidden)  # type: ignore[method-assign]
    sequences: list[int] = []
    logits = model.logits

    def counted(hidden: torch.Tensor) -> torch.Tensor:
        sequences.append(len(hidden))
        return logits(hidden)

    model.logits = counted  # type: ignore[method-assign]
    steps: list[tuple[float, dict[str, float]]] = []
    begin = time.perf_counter()

    def on_step(_: object) -> None:
        nonlocal begin
        now = time.perf_counter()
        steps.append((now - begin, dict(spent)))
        spent.clear()
        begin = now

    rows = grid(args.rows, args.prompt, args.tokens, args.top_k or None, independent=args.independent)
    entropies = [completion.entropy_mean or 0.0 for completion in engine.run(rows, on_step=on_step)]
    steps = steps[2:]
    total = sum(seconds for seconds, _ in steps)
    parts: dict[str, float] = defaultdict(float)
    for _, step in steps:
        for part, seconds in step.items():
            parts[part] += seconds
    inside = parts.pop("hidden") - parts["blocks"]
    parts["small operations"] = inside - sum(parts[part] for part in ("attention", "norm", "turn", "gate"))
    parts["linear"] = parts.pop("blocks") + parts.pop("head")
    parts["bookkeeping"] = total - sum(parts.values())
    noise = "independent" if args.independent else "common"
    told = f"{args.rows} rows of {noise} noise, prompt {args.prompt}, {torch.get_num_threads()} threads"
    print(f"{args.shape} {args.dtype}, {told}")
    print(f"{'entropy':18}{statistics.fmean(entropies):9.2f} nats")
    print(f"{'sequences':18}{statistics.fmean(sequences[2:]):9.1f}")
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"{part:18}{1e3 * seconds / len(steps):9.2f} ms{seconds / total:8.1%}")
    step = total / len(steps)
    print(f"{'step':18}{1e3 * step:9.2f} ms   {args.rows / step:,.0f} tokens/s")
    print(f"{'limit':18}{1e3 * limit:9.2f} ms   share {limit / step:.2f}")


if __name__ == "__main__":
    main()
