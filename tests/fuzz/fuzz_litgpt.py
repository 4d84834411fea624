"""A checkpoint directory of LitGPT: ``python tests/fuzz/fuzz_litgpt.py --seconds 600``.

The input is its files, see `lay_out`.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import torch
from checkpoints import load
from driver import END, instrumented, lay_out, run

with instrumented():
    from gptsweep.models.files.litgpt import open_litgpt
    from gptsweep.models.litgpt import LitGPT
from test_litgpt import WRITTEN, written

DIRECTORY = Path(tempfile.mkdtemp())
FILES = [DIRECTORY / name for name in ("model_config.yaml", "lit_model.pth", "tokenizer.json", "config.json")]


def target(data: bytes) -> None:
    lay_out(data, FILES)
    load(lambda: open_litgpt(str(DIRECTORY)))


def seeds() -> list[bytes]:
    """The small checkpoint, the same within the state of a training, and its config with every setting written out."""
    logging.disable()
    written(DIRECTORY)
    config, weights, tokenizer = (path.read_bytes() for path in FILES[:3])
    defaults = "".join(f"{name}: {value}\n" for name, value in LitGPT.DEFAULTS.items() if f"\n{name}:".encode() not in config)
    rare = b"rope_adjustments: {factor: 2.0}\nsliding_window_size: 8\nsliding_window_indices: [0, 1]\n"
    torch.save({"model": torch.load(WRITTEN / "lit_model.pth"), "step_count": 7}, FILES[1])
    state = FILES[1].read_bytes()
    return [
        END.join([config, weights, tokenizer, b""]),
        END.join([config + rare, state, tokenizer, b'{"bos_token_id": 1, "eos_token_id": [2]}']),
        END.join([config + defaults.encode(), weights, tokenizer, b""]),
        END.join([config, b"PK", tokenizer, b"{}"]),
    ]


if __name__ == "__main__":
    run(target, seeds())
