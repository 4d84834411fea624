"""``ckpt.pt`` in both formats of PyTorch: ``python tests/fuzz/fuzz_checkpoint.py --seconds 600``."""

from __future__ import annotations

import argparse
import io
import logging
import tempfile
from pathlib import Path

import torch
from checkpoints import load
from driver import instrumented, run

with instrumented():
    from gptsweep.models.files.nanogpt import open_nanogpt
    from gptsweep.models.gpt2 import GPTConfig
from model_files import random_gpt, save_meta

OUT_DIR = Path(tempfile.mkdtemp())
SHAPE = GPTConfig(block_size=2, vocab_size=5, n_layer=1, n_head=1, n_embd=2)


def target(data: bytes) -> None:
    (OUT_DIR / "ckpt.pt").write_bytes(data)
    load(lambda: open_nanogpt(str(OUT_DIR)))


def seeds() -> list[bytes]:
    logging.disable()
    save_meta(OUT_DIR / "meta.pkl", "abcde")
    names = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size")
    arguments = {name: getattr(SHAPE, name) for name in names}
    found = []
    for saved in (arguments, argparse.Namespace(**arguments)):
        contents = {"model": random_gpt(SHAPE).state_dict(), "model_args": saved, "config": {"dataset": "x"}}
        for is_archive in (True, False):
            buffer = io.BytesIO()
            torch.save(contents, buffer, _use_new_zipfile_serialization=is_archive)
            found.append(buffer.getvalue())
    return found


if __name__ == "__main__":
    run(target, seeds())
