"""Weights where they lie: which bytes of which file make up each tensor.

Files are read with plain reads into fresh memory, never mapped: a mapped page counts as resident until it is let go, and a
training that replaces its checkpoint would kill the reader of a mapped one.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from ...errors import ModelError
from ...files import open_to_read

_CHUNK = 1 << 20


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
            with open_to_read(path) as file:
                state = os.fstat(file.fileno())
        except OSError as error:
            raise ModelError(key, value, f"{path} cannot be read ({error.strerror})") from error
        return cls(path, key, value, state.st_size, state.st_mtime_ns)

    def open(self) -> BufferedReader:
        """The file, opened to read.

        Raises:
            ModelError: it is not the file any more whose list of tensors was read.
        """
        try:
            file = open_to_read(self.path)
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
    """A tensor in a file: ``offset`` of its first element in bytes, ``stride`` in elements as in `torch.as_strided`.

    The first ``scaled_rows`` of its rows are to be multiplied by ``scale``.
    """

    file: WeightFile
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    scale: float = 1.0
    scaled_rows: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes from the first element to the last, both included."""
        if 0 in self.shape:
            return 0
        return (1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))) * self.dtype.itemsize

    def transposed(self) -> StoredTensor:
        """The same bytes, with the dimensions in reverse order."""
        return replace(self, shape=self.shape[::-1], stride=self.stride[::-1])

    def rows(self, begin: int, end: int) -> StoredTensor:
        """Its rows from ``begin`` up to ``end``, which is left out."""
        offset = self.offset + begin * self.stride[0] * self.dtype.itemsize
        return replace(self, offset=offset, shape=(end - begin, *self.shape[1:]))

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


@dataclass(frozen=True, slots=True)
class Stacked:
    """A weight that files hold in several, one under another: queries, keys and values, say.

    ``parts`` have one dtype, and one shape but for the first dimension.
    """

    parts: tuple[StoredTensor, ...]

    @property
    def dtype(self) -> torch.dtype:
        """As stored."""
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])


Stored = StoredTensor | Stacked
"""Where a weight is stored."""


def parts_of(stored: Stored) -> tuple[StoredTensor, ...]:
    """The tensors that a weight is made of, one under another."""
    return stored.parts if isinstance(stored, Stacked) else (stored,)
