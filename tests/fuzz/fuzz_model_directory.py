"""``config.json``, safetensors and tokenizer files: ``python tests/fuzz/fuzz_model_directory.py --seconds 600``.

The input is a whole directory, see `lay_out`.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path

from checkpoints import load
from driver import END, instrumented, lay_out, run

with instrumented():
    from gptsweep.models.files.hf import open_hf
    from gptsweep.models.files.places import LocalFiles
    from gptsweep.models.gpt2 import GPTConfig
from model_files import hf_settings, random_gpt, save_hf

DIRECTORY = Path(tempfile.mkdtemp())
NAMES = ("config.json", "model.safetensors", "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")
FILES = [DIRECTORY / name for name in NAMES]
SHAPE = GPTConfig(block_size=2, vocab_size=5, n_layer=1, n_head=1, n_embd=2, activation="gelu_tanh")


def target(data: bytes) -> None:
    lay_out(data, FILES)
    if checkpoint := load(lambda: open_hf(LocalFiles(DIRECTORY, "model.path", "model"))):
        checkpoint.tokenizer.decode(range(checkpoint.tokenizer.vocab_size))


def seeds() -> list[bytes]:
    logging.disable()
    save_hf(DIRECTORY, random_gpt(SHAPE))
    weights = (DIRECTORY / "model.safetensors").read_bytes()
    config = json.dumps(hf_settings(SHAPE)).encode()
    vocabulary, merges = {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}, "#version: 0.2\na b\n"
    whole = {
        "added_tokens": [{"id": 3, "content": "<|endoftext|>", "special": True}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["a b"]},
    }
    small = [json.dumps(vocabulary).encode(), merges.encode(), b'{"add_prefix_space": true}']
    return [
        END.join([config, weights, json.dumps(whole).encode(), *small]),
        END.join([config, weights, b"", *small]),
        END.join([b'{"model_type": "gpt2"}', weights, b"", b"", b"", b""]),
    ]


if __name__ == "__main__":
    run(target, seeds())
