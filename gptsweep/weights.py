"""Weights where they lie: which bytes of which file make up each tensor, of PyTorch and safetensors files.

Files are read with plain reads into fresh memory, never mapped: a mapped page counts as resident until it is let go, and a
training that replaces its checkpoint would kill the reader of a mapped one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import ModelError

_CHUNK = 1 << 20
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_SAFETENSORS_DTYPES = {
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


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file as it was when its list of tensors was read; ``key`` and ``value`` name it in errors."""

    path: Path
    key: str
    value: str
    size: int
    modified_ns: int

    @classmethod
    def at(cls, path: Path, key: str, value: str) -> WeightFile:
        """Note the state of the file at ``path``."""
        try:
            state = path.stat()
        except OSError as error:
            raise ModelError(key, value, f"{path} cannot be read ({error.strerror})") from error
        return cls(path, key, value, state.st_size, state.st_mtime_ns)

    def open(self) -> BufferedReader:
        """The file, opened to read.

        Raises:
            ModelError: it is not the file any more whose list of tensors was read.
        """
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise self.wrong(f"cannot be read ({error.strerror})") from error
        state = os.fstat(file.fileno())
        if (state.st_size, state.st_mtime_ns) != (self.size, self.modified_ns):
            file.close()
            raise self.wrong("was replaced while it was being read, by a training perhaps; run again")
        return file

    def wrong(self, what: str) -> ModelError:
        """The error that says what is wrong with this file."""
        return ModelError(self.key, self.value, f"{self.path} {what}")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file: ``offset`` of its first element in bytes, ``stride`` in elements as in `torch.as_strided`."""

    file: WeightFile
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes from the first element to the last, both included."""
        if 0 in self.shape:
            return 0
        return (1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))) * self.dtype.itemsize

    def transposed(self) -> StoredTensor:
        """The same bytes, with the dimensions in reverse order."""
        return replace(self, shape=self.shape[::-1], stride=self.stride[::-1])

    def read(self, scratch: Tensor) -> Tensor:
        """The tensor in its stored dtype and layout, on top of ``scratch``, ``uint8 [at least nbytes]``."""
        flat = scratch[: self.nbytes]
        with self.file.open() as file:
            file.seek(self.offset)
            if file.readinto(flat.numpy().data) != self.nbytes:
                raise self.file.wrong("ends in the middle of a weight: it is truncated")
        return flat.view(self.dtype).as_strided(self.shape, self.stride)

    def sha256(self) -> str:
        """Hash of the stored bytes, as hex digits."""
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(_CHUNK, self.nbytes)))
        left = self.nbytes
        with self.file.open() as file:
            file.seek(self.offset)
            while left:
                if not (count := file.readinto(buffer[:left])):
                    raise self.file.wrong("ends in the middle of a weight: it is truncated")
                digest.update(buffer[:count])
                left -= count
        return digest.hexdigest()


def read_safetensors(path: Path, key: str, value: str) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata; nothing but the header is read.

    Raises:
        ModelError: the file cannot be read, is truncated, or is not a safetensors file.
    """
    file = WeightFile.at(path, key, value)
    try:
        with safe_open(path, framework="numpy"):
            pass  # the library checks the header against the file's length, and the places of the tensors
        with file.open() as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise file.wrong(f"is truncated or not a safetensors file ({error}); fetch or write it again") from error
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        if (dtype := _SAFETENSORS_DTYPES.get(entry["dtype"])) is None:
            raise file.wrong(f"holds {name} as {entry['dtype']}; gptsweep reads weights in F32, F16, BF16 and F64")
        shape = tuple(entry["shape"])
        stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        tensors[name] = StoredTensor(file, 8 + length + entry["data_offsets"][0], dtype, shape, stride)
    return tensors, metadata


class TorchFile:
    """A file that `torch.save` wrote: ``contents`` with every tensor on the meta device; no tensor's data is read.

    Raises:
        ModelError: the file cannot be read, is truncated, is not such a file, or holds more than tensors and plain values.
    """

    def __init__(self, path: Path, key: str, value: str) -> None:
        self._file = WeightFile.at(path, key, value)
        with self._file.open() as file:
            start = file.read(len(_LEGACY_TORCH))
        if not zipfile.is_zipfile(path):
            raise self._file.wrong(_not_a_zip(start, path))
        try:
            self.contents: Any = torch.load(path, map_location="meta", weights_only=True)
            self._records = _records(path)
        except pickle.UnpicklingError as error:
            refused = re.search(r"GLOBAL (\S+)", str(error))
            what = f"the object {refused[1]}" if refused else "objects"
            raise self._file.wrong(f"holds {what} beside tensors and plain values, which gptsweep does not load") from error
        except Exception as error:  # a damaged pickle can raise anything
            raise self._file.wrong(f"is damaged or not a checkpoint ({str(error).splitlines()[0]})") from error

    def stored(self, tensor: Tensor) -> StoredTensor:
        """Where the data of a tensor of ``contents`` lies.

        Raises:
            ModelError: it does not lie in the file as `torch.save` would have put it.
        """
        storage = tensor.untyped_storage()
        start = storage._checkpoint_offset  # set by torch.load for the meta device
        # torch works out offsets from how it writes files itself; in a file packed anew by another program they would be wrong.
        if start is None or self._records.get(start, -1) < storage.nbytes():
            raise self._file.wrong("was packed anew by another program; write it again with torch.save(torch.load(path), path)")
        offset = start + int(tensor.storage_offset()) * tensor.dtype.itemsize
        return StoredTensor(self._file, offset, tensor.dtype, tuple(tensor.shape), tuple(map(int, tensor.stride())))


def _records(path: Path) -> Mapping[int, int]:
    """Size by offset of the data of each uncompressed file in the zip archive at ``path``."""
    records = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for entry in archive.infolist():
            if entry.compress_type == zipfile.ZIP_STORED:
                file.seek(entry.header_offset + 26)
                name, extra = struct.unpack("<HH", file.read(4))
                records[entry.header_offset + 30 + name + extra] = entry.file_size
    return records


def _not_a_zip(start: bytes, path: Path) -> str:
    if not start:
        return "is empty"
    if start.startswith(b"PK"):
        return "is truncated, or still being written; wait for the training to finish its checkpoint, or copy it again"
    if start == _LEGACY_TORCH:
        convert = f"import torch; p = {str(path)!r}; torch.save(torch.load(p, map_location='cpu'), p)"
        return f'is in the format of PyTorch before 1.6; write it anew with: python -c "{convert}"'
    return "is not a checkpoint that torch.save wrote"
