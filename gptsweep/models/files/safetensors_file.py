"""Read the header of a safetensors file."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .weights import MOST_DIMENSIONS, StoredTensor, WeightFile

_HEADER_BYTES = 16 << 20
"""The largest header that is read."""
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def read_safetensors(path: Path, key: str, value: str) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return the tensors of a safetensors file by name, and its metadata. Only the header is read.

    Raises:
        ModelError: the file cannot be read, is truncated, or is not a safetensors file.
    """
    file = WeightFile.at(path, key, value)
    try:
        with file.open() as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > min(_HEADER_BYTES, file.size):
                raise ValueError(f"its header would have {length} bytes")
            with safe_open(path, framework="numpy"):
                pass  # opening makes the library check the header and the places of the tensors against the file's length
            header = json.loads(opened.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError, struct.error) as error:
        raise file.wrong(f"is truncated or not a safetensors file ({error}); fetch or write it again") from error
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        if (dtype := _DTYPES.get(entry["dtype"])) is None:
            raise file.wrong(f"holds {name:.80} as {entry['dtype']}; gptsweep reads weights in F32, F16, BF16 and F64")
        shape = tuple(entry["shape"])
        if len(shape) > MOST_DIMENSIONS:
            raise file.wrong(f"holds {name:.80} with {len(shape):,} dimensions; gptsweep reads up to {MOST_DIMENSIONS}")
        stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        tensors[name] = StoredTensor(file, 8 + length + entry["data_offsets"][0], dtype, shape, stride)
    return tensors, metadata
