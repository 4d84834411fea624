"""Wall time of one sweep in three ways: the fused launcher, Hydra's basic launcher, and a loop like nanoGPT's.

    python benchmarks/sweep_speed.py [--shape gpt2] [--samples 8] [--tokens 64] [--slow-seeds 4] [--dtype float32]

24 points (3 temperatures x 2 top_k x 4 seeds), 8 samples each, of a model of GPT-2's shape with random weights, from a
checkpoint in nanoGPT's format. Each way is a command as users type it, timed with the start of its process and loading the
model. The loop is that of nanoGPT's sample.py: one process per point, one sample after another, and the whole context for each
token. The two slower ways run only ``--slow-seeds`` of the 4 seeds, and the loop generates only ``--loop-samples`` samples;
their times are scaled up.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from shapes import SHAPES
from torch.nn import functional as F

from gptsweep.models.gpt2 import GPT, GPTConfig

ROOT = Path(__file__).resolve().parents[1]
GPT2S = {name: shape.config for name, shape in SHAPES.items() if isinstance(shape.config, GPTConfig)}
SWEPT: dict[str, list[str]] = {
    "sampling.temperature": ["0.7", "0.85", "1.0"],
    "sampling.top_k": ["50", "200"],
    "seed": ["1", "2", "3", "4"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", *GPT2S), default="gpt2", help="tiny: 4 layers of 256, a minute in all")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="float32", help="of the first two; the loop runs in float32")
    parser.add_argument("--slow-seeds", type=int, default=4)
    parser.add_argument("--loop-samples", type=int, help="default: all")
    parser.add_argument("--loop", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loop:
        loop(float(arguments.loop[0]), int(arguments.loop[1]), arguments.samples, arguments.tokens)
        return
    tiny = GPTConfig(n_layer=4, n_head=4, n_embd=256, activation="gelu_tanh")
    config = GPT2S.get(arguments.shape, tiny)
    few = SWEPT | {"seed": SWEPT["seed"][: arguments.slow_seeds]}
    scale = len(SWEPT["seed"]) / arguments.slow_seeds
    with tempfile.TemporaryDirectory() as place:
        save(Path(place) / "out", config)
        sizes = [f"sampling.num_samples={arguments.samples}", f"sampling.max_new_tokens={arguments.tokens}"]
        common = [
            sys.executable,
            "-m",
            "gptsweep",
            "-m",
            "model=resume",
            f"device.dtype={arguments.dtype}",
            "quiet=true",
            *sizes,
        ]
        fused = timed([*common, *swept(SWEPT), "name=fused"], place)
        show("fused", fused, fused)
        show("basic launcher", scale * timed([*common, *swept(few), "hydra/launcher=basic", "name=basic"], place), fused)
        samples = arguments.loop_samples or arguments.samples
        own = [sys.executable, str(Path(__file__).resolve()), f"--samples={samples}", f"--tokens={arguments.tokens}", "--loop"]
        looped = 0.0
        for temperature, top_k, _ in itertools.product(*few.values()):
            whole, decoding = timed([*own, temperature, top_k], place), float((Path(place) / "seconds").read_text())
            looped += whole - decoding + decoding * arguments.samples / samples
        show("nanoGPT's loop", scale * looped, fused)


def swept(values: dict[str, list[str]]) -> list[str]:
    return [f"{key}={','.join(each)}" for key, each in values.items()]


def show(name: str, seconds: float, fused: float) -> None:
    print(f"{name:16} {seconds:9.1f} s   {seconds / fused:6.1f} x fused", flush=True)


def timed(command: list[str], place: str) -> float:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")])
    since = time.perf_counter()
    ended = subprocess.run(command, cwd=place, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(ended.stderr)
    return time.perf_counter() - since


def save(out_dir: Path, config: GPTConfig) -> None:
    """Write a checkpoint as nanoGPT's train.py does, without the optimizer's state."""
    out_dir.mkdir()
    model = GPT(config).initialise(torch.Generator().manual_seed(0))
    sizes = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size")}
    torch.save({"model": model.state_dict(), "model_args": sizes | {"dropout": 0.0}, "config": {}}, out_dir / "ckpt.pt")


@torch.inference_mode()
def loop(temperature: float, top_k: int, samples: int, tokens: int) -> None:
    """Do what nanoGPT's sample.py does for one point."""
    saved = torch.load("out/ckpt.pt", weights_only=True)
    model = GPT(GPTConfig(**{key: value for key, value in saved["model_args"].items() if key != "dropout"})).eval()
    model.load_state_dict(saved["model"])
    since = time.perf_counter()
    for _ in range(samples):
        ids = torch.tensor([[198]])
        for _ in range(tokens):
            hidden = model.hidden(ids, torch.arange(ids.shape[1]), model.attend_within)
            logits = model.logits(hidden[:, -1]) / temperature  # as in nanoGPT, at the last position only
            logits[logits < torch.topk(logits, top_k).values[:, [-1]]] = -torch.inf
            ids = torch.cat((ids, torch.multinomial(F.softmax(logits, dim=-1), num_samples=1)), dim=1)
    Path("seconds").write_text(str(time.perf_counter() - since))


if __name__ == "__main__":
    main()
