"""Compare ``python -m gptsweep.plan`` with real runs: the planned and the actual times of ten sweeps of mixed shapes.

    python benchmarks/plan.py [--only few_long greedy]

Each sweep is planned and then run, both as commands, in a temporary directory; the first plans calibrate the machine. The times
compared are the likely ones, of the whole command. It takes less than five minutes on an idle machine with two cores. On a busy
machine the figures mean little, because its speed changes from one minute to the next.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("the", "king", "is", "dead", "and", "all", "lords", "of", "land", "came", "to", "see", "his", "great", "house")
NEAR = 0.3

SWEEPS: dict[str, list[str]] = {
    "many_points": ["-m", "seed=range(0,150)", "sampling.num_samples=4", "sampling.max_new_tokens=20"],
    "few_long": ["-m", "sampling.temperature=0.7,1.1", "sampling.num_samples=200", "sampling.max_new_tokens=240"],
    "long_prompts": ["-m", "start=FILE:long.txt", "seed=1,2", "sampling.num_samples=150", "sampling.max_new_tokens=60"],
    "crop": ["-m", "seed=1,2", "sampling.num_samples=16", "sampling.max_new_tokens=300", "sampling.overflow=crop"],
    "extend": ["-m", "seed=1,2", "sampling.num_samples=64", "sampling.max_new_tokens=600", "sampling.overflow=extend"],
    "greedy": ["-m", "start=LINES:lines.txt", "seed=1,2", "sampling.temperature=0", "sampling.num_samples=1",
               "sampling.max_new_tokens=200"],
    "single": ["sampling.num_samples=1", "sampling.max_new_tokens=250"],
    "shared": ["-m", "sampling.temperature=0.7,0.8,0.9", "sampling.top_k=20,50,100", "sampling.num_samples=40",
               "sampling.max_new_tokens=200", "sampling.stop=[]"],
    "jsonl": ["-m", "start=JSONL:prompts.jsonl", "sampling.temperature=0.6,1.0", "sampling.num_samples=8",
              "sampling.max_new_tokens=120"],
    "gpt2_shape": ["-m", "model=resume", "model.out_dir=out", "model.meta=gpt2", "seed=1,2", "sampling.num_samples=16",
                   "sampling.max_new_tokens=60"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=list(SWEEPS), help="some of the sweeps")
    arguments = parser.parse_args()
    near = 0
    print(f"{'sweep':14} {'planned s':>10} {'range':>15} {'took s':>8} {'planned/took':>13}")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_files(place)
        for sweep in arguments.only:
            settings = SWEEPS[sweep]
            planned = command(place, "gptsweep.plan", "--json", "--machines", "1", *settings)
            if planned.returncode and "extend" in sweep:  # a model without positions beyond its context
                settings = [setting.replace("overflow=extend", "overflow=rebase") for setting in settings]
                planned = command(place, "gptsweep.plan", "--json", "--machines", "1", *settings)
            if planned.returncode:
                sys.exit(f"{sweep}: {planned.stderr}")
            seconds = json.loads(planned.stdout)["seconds"]["1"]
            began = time.perf_counter()
            ended = command(place, "gptsweep", "quiet=true", f"name={sweep}", *settings)
            took = time.perf_counter() - began
            if ended.returncode:
                sys.exit(f"{sweep}: {ended.stderr}")
            ratio = seconds["likely"] / took
            near += abs(ratio - 1) <= NEAR
            bounds = f"{seconds['together']:.1f} to {seconds['apart']:.1f}"
            print(f"{sweep:14} {seconds['likely']:10.1f} {bounds:>15} {took:8.1f} {ratio:13.2f}", flush=True)
    print(f"{near} of {len(arguments.only)} within {NEAR:.0%}")


def command(place: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", module, *arguments], cwd=place, capture_output=True, text=True)


def write_files(place: Path) -> None:
    """Write prompts, and a checkpoint of nanoGPT with GPT-2's vocabulary, a sixth of its size, and random weights."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch
    from model_files import save_nanogpt

    from gptsweep.models.gpt2 import GPT, GPTConfig

    words = random.Random(1)

    def text(count: int) -> str:
        return " ".join(words.choice(WORDS) for _ in range(count))

    (place / "long.txt").write_text(text(24))
    (place / "lines.txt").write_text("".join(f"{number} {text(3)}\n".lstrip("0123456789 ") for number in range(48)))
    (place / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text(2 + number)}) + "\n" for number in range(16)))
    torch.manual_seed(1)
    model = GPT(GPTConfig(n_layer=6, n_head=6, n_embd=384, block_size=256, vocab_size=50304))
    for weight in model.parameters():
        torch.nn.init.ones_(weight) if weight.ndim == 1 else torch.nn.init.normal_(weight, std=0.05)
    save_nanogpt(place / "out", model)


if __name__ == "__main__":
    main()
