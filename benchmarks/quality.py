"""What a dtype costs in quality: mean log-probability of the embedded model's validation text, and the error of logits.

    python benchmarks/quality.py --text tinyshakespeare.txt

The text's last tenth, in windows of the model's context; and logits of GPT-2's shape with random weights, against float32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from shapes import random_model
from torch import Tensor

import gptsweep

DTYPES = ("float32", "bfloat16", "float16", "int8")


@torch.inference_mode()
def mean_logprob(lm: gptsweep.LM, ids: Tensor) -> float:
    """Mean log-probability in nats per token of ``ids [windows, block_size + 1]``, given the first token of each window."""
    total = 0.0
    for window in ids.split(16):
        logprobs = lm.model(window[:, :-1]).double().log_softmax(-1)
        total += float(logprobs.gather(-1, window[:, 1:, None]).sum())
    return total / ids[:, 1:].numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="the text that the embedded model was trained on")
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    reference = None
    for dtype in DTYPES:
        lm = gptsweep.load(dtype=dtype, device="cpu")
        ids = torch.tensor(lm.tokenizer.encode(text[len(text) * 9 // 10 :]))
        step = 257  # each window of 256 characters by itself
        windows = ids[: len(ids) // step * step].view(-1, step)
        found = mean_logprob(lm, windows)
        reference = found if reference is None else reference
        print(f"shakespeare {dtype:9} {found:.4f} nats a token over {windows[:, 1:].numel():,}, {found / reference - 1:+.2%}")
    prompt = torch.randint(0, 50257, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact = random_model("gpt2", "float32")(prompt).double()
        for dtype in DTYPES[1:]:
            error = random_model("gpt2", dtype)(prompt).double() - exact
            print(f"gpt2 shape  {dtype:9} logits: rms error {error.std() / exact.std():.2%} of their deviation")


if __name__ == "__main__":
    main()
