"""Stored weights: which bytes of which file make up each tensor.

Files are read into fresh memory, never mapped. Mapped pages count as resident memory, and a training that overwrites its
checkpoint could kill a process that has it mapped.
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

MOST_DIMENSIONS = 8
"""The most dimensions that a stored tensor may have; weights have up to four."""

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A weight file in the state in which its list of tensors was read; ``key`` and ``value`` name it in errors."""

    path: Path
    key: str
    value: str
    size: int
    modified_ns: int

    @classmethod
    def at(cls, path: Path, key: str, value: str) -> WeightFile:
        """Record the state of the file at ``path``.

        Raises:
            ModelError: it cannot be read.
        """
        try:
            with open_to_read(path) as file:
                state = os.fstat(file.fileno())
        except OSError as error:
            raise ModelError(key, value, f"{path} cannot be read ({error.strerror})") from error
        return cls(path, key, value, state.st_size, state.st_mtime_ns)

    def open(self) -> BufferedReader:
        """Open the file for reading.

        Raises:
            ModelError: it cannot be read, or has changed since its list of tensors was read.
        """
        try:
            file = open_to_read(self.path)
        except OSError as error:
            raise self.wrong(f"cannot be read ({error.strerror})") from error
        state = os.fstat(file.fileno())
        if (state.st_size, state.st_mtime_ns) != (self.size, self.modified_ns):
            file.close()
            raise self.wrong("was replaced while it was being read, perhaps by a training run; run again")
        return file

    def wrong(self, what: str) -> ModelError:
        """Return the error that says what is wrong with this file."""
        return ModelError(self.key, self.value, f"{self.path} {what}")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file: the ``offset`` of its first element is in bytes, ``stride`` in elements, as in `torch.as_strided`.

    Whoever loads it must multiply its first ``scaled_rows`` rows by ``scale``.
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
        """The number of bytes from the first element to the last, inclusive."""
        if 0 in self.shape:
            return 0
        return (1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))) * self.dtype.itemsize

    def transposed(self) -> StoredTensor:
        """Return a view of the same bytes with the dimensions in reverse order."""
        return replace(self, shape=self.shape[::-1], stride=self.stride[::-1])

    def rows(self, begin: int, end: int) -> StoredTensor:
        """Return a view of the rows from ``begin`` up to but excluding ``end``."""
        offset = self.offset + begin * self.stride[0] * self.dtype.itemsize
        return replace(self, offset=offset, shape=(end - begin, *self.shape[1:]))

    def read(self, scratch: Tensor) -> Tensor:
        """Read the tensor into ``scratch``, ``uint8 [at least nbytes]``, and return a view in the stored dtype and layout.

        Raises:
            ModelError: the file has changed or is truncated.
        """
        flat = scratch[: self.nbytes]
        with self.file.open() as file:
            file.seek(self.offset)
            if file.readinto(flat.numpy().data) != self.nbytes:
                raise self.file.wrong("ends in the middle of a weight: it is truncated")
        return flat.view(self.dtype).as_strided(self.shape, self.stride)

    def sha256(self) -> str:
        """Compute the SHA-256 of the stored bytes, in hexadecimal.

        Raises:
            ModelError: the file has changed or is truncated.
        """
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
    """A weight stored as several tensors, stacked along the first dimension, such as queries, keys and values.

    All ``parts`` have the same dtype, and the same shape except for the first dimension.
    """

    parts: tuple[StoredTensor, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The stored dtype."""
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the stacked weight."""
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])


Stored = StoredTensor | Stacked
"""Where a weight is stored."""


def parts_of(stored: Stored) -> tuple[StoredTensor, ...]:
    """Return the stored tensors of a weight, in the order in which they are stacked."""
    return stored.parts if isinstance(stored, Stacked) else (stored,)
