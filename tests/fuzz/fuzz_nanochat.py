"""nanochat's checkpoints and vocabulary: ``python tests/fuzz/fuzz_nanochat.py --seconds 600``.

The input is files, see `lay_out`.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from checkpoints import load
from driver import END, instrumented, lay_out, run

with instrumented():
    from gptsweep.models.files.nanochat import open_nanochat
from nanochat_twin import random_weights, save_nanochat
from test_nanochat_files import SMALL

PLACE = Path(tempfile.mkdtemp())
OUT_DIR = PLACE / "base_checkpoints" / "d2"
FILES = [OUT_DIR / "meta_000100.json", PLACE / "tokenizer" / "tokenizer.pkl", OUT_DIR / "model_000100.pt"]


def target(data: bytes) -> None:
    lay_out(data, FILES)
    if checkpoint := load(lambda: open_nanochat(str(OUT_DIR))):
        ids = checkpoint.tokenizer.encode("the rain <|bos|>")
        assert all(0 <= token < checkpoint.tokenizer.vocab_size for token in ids)
        checkpoint.tokenizer.decode(range(checkpoint.tokenizer.vocab_size))


def seeds() -> list[bytes]:
    """A checkpoint of each time of nanochat's."""
    logging.disable()
    found = []
    for era in "ABCDEF":
        save_nanochat(OUT_DIR, random_weights(era, SMALL), SMALL)
        found.append(END.join(path.read_bytes() for path in FILES))
    return found


if __name__ == "__main__":
    run(target, seeds())
