"""Where a decode step's time goes: linear layers, attention, sampling, small operations, and Python in between.

    python benchmarks/profile_step.py [--rows 256] [--dtype bfloat16] [--shape gpt2] [--independent]
    python benchmarks/profile_step.py --sampling typical_p=0.9              # with more settings
    python benchmarks/profile_step.py --sampling each                      # sampling alone, with each sampler

The model has random weights and the given shape, and the rows share a prompt of 32 tokens; steps are measured once all rows are
in flight. Rows that have sampled the same tokens are one sequence; `sequences` is their mean number. `limit` is the time of the
linear layers alone on the same number of rows, and `share` is their share of the step. `entropy` is the mean at temperature 1.

`--sampling each` samples from random logits with the standard deviation `--deviation`, after a text of 1,000 tokens, on one
thread, and counts its CPU time: with each sampler in addition to top_k 200, which is the default, and with each alone. `times`
is the multiple of the time of top_k 200 alone, and `bar` the most that it should be in addition to top_k. Alone, each sampler
samples from all tokens, as `none` does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import yaml
from shapes import SHAPES, grid, random_model
from torch import nn

from gptsweep.engine.engine import Engine
from gptsweep.engine.history import LogitAdjustments
from gptsweep.engine.sampler import row_record, sample_by_kernel
from gptsweep.kernels import runtime as kernels
from gptsweep.kernels.abi import ROW
from gptsweep.models import linear
from gptsweep.models.decoder import Decoder
from gptsweep.models.gpt2 import GPT, LayerNorm
from gptsweep.models.layers import Norm
from gptsweep.records import Row, Sampling


def timed(spent: dict[str, float], part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``function`` to add its time to ``spent[part]``."""

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
    """The layer that computes the logits."""
    return model.lm_head if isinstance(model, GPT) else model.head


VOCABULARY = 50257
EACH: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({}, ""),
    "typical_p": ({"typical_p": 0.9}, "2"),
    "epsilon_cutoff": ({"epsilon_cutoff": 3e-4}, "2"),
    "eta_cutoff": ({"eta_cutoff": 3e-4}, "2"),
    "top_n_sigma": ({"top_n_sigma": 2.0}, "2"),
    "min_p": ({"min_p": 0.1}, "2"),
    "xtc": ({"xtc_probability": 0.5}, "2"),
    "dry": ({"dry_multiplier": 0.8}, "3"),
    "no_repeat_ngram": ({"no_repeat_ngram": 3}, "3"),
    "mirostat": ({"mirostat_tau": 5.0}, ""),
    "dynatemp": ({"dynatemp_range": 0.3}, ""),
}
"""Each sampler's settings, and the multiple of the time of top_k 200 that it may take."""


def each_sampler(rows: int, deviation: float) -> None:
    """Print the time of sampling a token with each sampler, and its ratio to that of top_k 200."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, VOCABULARY, generator=generator) * deviation
    text = tuple(torch.randint(VOCABULARY, (1000,), generator=generator).tolist())
    print(f"{rows} rows of {VOCABULARY:,} logits of deviation {deviation:g}\n")
    print(f"{'us a row':18}{'top_k 200':>10}{'times':>7}{'bar':>5}{'alone':>10}{'times':>7}")
    least = 0.0
    for name, (chosen, bar) in EACH.items():
        beside, alone = (time_of_choosing(Sampling(top_k=top_k, **chosen), logits, text) for top_k in (200, None))
        least = least or beside
        print(f"{name:18}{1e6 * beside:10.1f}{beside / least:7.2f}{bar:>5}{1e6 * alone:10.1f}{alone / least:7.2f}")


def time_of_choosing(sampling: Sampling, logits: torch.Tensor, text: tuple[int, ...]) -> float:
    """The CPU time of a row in seconds, the least of seven measurements.

    Args:
        sampling: the settings of all rows.
        logits: ``[rows, vocab_size]``.
        text: the prompt.
    """
    kernel, rows = kernels.Kernel("sample", logits.dtype), len(logits)
    row = Row(prompt_ids=text, sampling=sampling, noise_key=1)
    adjustments = [LogitAdjustments.of(row, logits.shape[-1]) for _ in range(rows)]
    records = np.array([row_record(replace(row, sample_index=i)) for i in range(rows)], ROW)
    records["logits_row"], records["mirostat_mu"] = np.arange(rows), 10.0
    for record, adjustment in zip(records, adjustments, strict=True):
        if adjustment is not None:
            adjustment.place(record)
            adjustment.update(record, sampling)
    seconds = []
    for _ in range(7):
        records["position"] += 1
        begin = time.thread_time()
        sample_by_kernel(kernel, logits, records, np.arange(rows), logits.shape[-1])
        seconds.append(time.thread_time() - begin)
    return min(seconds) / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16", "int8"), default="bfloat16")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens a row")
    parser.add_argument("--top-k", type=int, default=200, help="0: no truncation")
    parser.add_argument("--independent", action="store_true", help="each row has noise of its own")
    parser.add_argument("--sampling", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the rows; each: see above")
    parser.add_argument("--deviation", type=float, default=3.0, help="of the logits of --sampling each")
    args = parser.parse_args()
    if args.sampling == ["each"]:
        each_sampler(args.rows, args.deviation)
        return
    chosen = {key: yaml.safe_load(value) for key, _, value in (setting.partition("=") for setting in args.sampling)}
    model = random_model(args.shape, args.dtype)
    spent: dict[str, float] = defaultdict(float)
    layer = linear.Int8Linear if args.dtype == "int8" else linear.PackedLinear
    limit = linear_limit(model, args.rows, 5)
    plain = {
        (cls, name): getattr(cls, name)
        for cls, name in ((layer, "forward"), (LayerNorm, "forward"), (Norm, "forward"), (kernels.Kernel, "__call__"))
    }
    names = {"store": "attention", "attend": "attention", "rotate": "rotate", "gate": "gate", "sample": "sampling"}
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
    rows = [replace(row, sampling=replace(row.sampling, **chosen)) for row in rows]
    entropies = [completion.entropy_mean or 0.0 for completion in engine.run(rows, on_step=on_step)]
    steps = steps[2:]
    total = sum(seconds for seconds, _ in steps)
    parts: dict[str, float] = defaultdict(float)
    for _, step in steps:
        for part, seconds in step.items():
            parts[part] += seconds
    inside = parts.pop("hidden") - parts["blocks"]
    parts["small operations"] = inside - sum(parts[part] for part in ("attention", "norm", "rotate", "gate"))
    parts["linear"] = parts.pop("blocks") + parts.pop("head")
    parts["bookkeeping"] = total - sum(parts.values())
    noise = "independent" if args.independent else "common"
    setup = f"{args.rows} rows of {noise} noise, prompt {args.prompt}, {torch.get_num_threads()} threads"
    print(f"{args.shape} {args.dtype}, {setup}")
    print(f"{'entropy':18}{statistics.fmean(entropies):9.2f} nats")
    print(f"{'sequences':18}{statistics.fmean(sequences[2:]):9.1f}")
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"{part:18}{1e3 * seconds / len(steps):9.2f} ms{seconds / total:8.1%}")
    step = total / len(steps)
    print(f"{'step':18}{1e3 * step:9.2f} ms   {args.rows / step:,.0f} tokens/s")
    print(f"{'limit':18}{1e3 * limit:9.2f} ms   share {limit / step:.2f}")


if __name__ == "__main__":
    main()
