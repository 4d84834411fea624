"""The ``.bin`` of llm.c: ``python tests/fuzz/fuzz_llmc.py --seconds 600``.

The input is the first numbers of the header, then the length of the file; its weights are zeros.
"""

from __future__ import annotations

import logging
import struct
import tempfile
from pathlib import Path

from checkpoints import load
from driver import instrumented, run

with instrumented():
    from gptsweep.models.files.llmc import open_llmc

PATH = Path(tempfile.mkdtemp()) / "model.bin"
NUMBERS = struct.Struct("<8i")
LENGTH = struct.Struct("<I")
MOST = 1 << 25


def target(data: bytes) -> None:
    header, length = data[: -LENGTH.size], data[-LENGTH.size :].ljust(LENGTH.size, b"\0")
    PATH.write_bytes(header)
    with PATH.open("r+b") as file:
        file.truncate(LENGTH.unpack(length)[0] % MOST)
    load(lambda: open_llmc(str(PATH)))


def seeds() -> list[bytes]:
    """A model of each dtype, and one of two layers without padding."""
    logging.disable()
    found = []
    for version, layers, rows in ((3, 1, 50304), (5, 1, 50304), (5, 2, 50257)):
        width, context = 2, 4
        weights = width * (rows + context + 2) + layers * (12 * width**2 + 13 * width)
        length = 1024 + {3: 4, 5: 2}[version] * weights
        found.append(NUMBERS.pack(20240326, version, context, 50257, layers, 1, width, rows) + LENGTH.pack(length))
    return found


if __name__ == "__main__":
    run(target, seeds())
