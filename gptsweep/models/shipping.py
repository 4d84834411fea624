"""Pack the weights of a checkpoint into byte arrays for processes that cannot see its files, and unpack them there."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BufferedReader
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint
from .files.weights import Stacked, Stored, StoredTensor, WeightFile, parts_of

Place = tuple[WeightFile, int, int]
"""The place of a tensor: its file, the offset of its first byte, and its size in bytes."""


def pack(checkpoint: Checkpoint) -> Iterator[NDArray[np.uint8]]:
    """Read the tensors one at a time and yield the bytes of each, ``uint8 [nbytes]``.

    Raises:
        ModelError: a file has changed since the checkpoint was opened.
    """
    for file, offset, size in _places(checkpoint):
        content = np.empty(size, np.uint8)
        with file.open() as opened:
            opened.seek(offset)
            if opened.readinto(content.data) != size:
                raise file.wrong("ends in the middle of a weight: it is truncated")
        yield content


def unpack(checkpoint: Checkpoint, contents: Sequence[NDArray[np.uint8]]) -> Checkpoint:
    """Return ``checkpoint`` with its weights in memory instead of in files.

    Args:
        checkpoint: the checkpoint that was packed.
        contents: what `pack` yielded.

    Returns:
        A checkpoint whose fingerprint is computed anew.
    """
    places = _places(checkpoint)
    held = {place: _HeldFile.of(place, content) for place, content in zip(places, contents, strict=True)}
    weights = {name: _held(stored, held) for name, stored in checkpoint.weights.items()}
    return replace(checkpoint, weights=weights, digests={})


def _places(checkpoint: Checkpoint) -> list[Place]:
    return list(dict.fromkeys(_place(part) for stored in checkpoint.weights.values() for part in parts_of(stored)))


def _place(part: StoredTensor) -> Place:
    return part.file, part.offset, part.nbytes


def _held(stored: Stored, files: Mapping[Place, WeightFile]) -> Stored:
    parts = tuple(replace(part, file=files[_place(part)]) for part in parts_of(stored))
    return Stacked(parts) if isinstance(stored, Stacked) else parts[0]


@dataclass(frozen=True, slots=True)
class _HeldFile(WeightFile):
    """A file of which the bytes from offset ``begin`` on are in memory."""

    begin: int = 0
    content: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, place: Place, content: NDArray[np.uint8]) -> _HeldFile:
        """Make a file that holds the bytes of one tensor at their original offset."""
        file, begin, _ = place
        return cls(file.path, file.key, file.value, file.size, file.modified_ns, begin, content)

    def open(self) -> BufferedReader:
        """Open the bytes in memory for reading, as `WeightFile.open` opens a file."""
        return BufferedReader(_Bytes(memoryview(self.content), self.begin))


class _Bytes(io.RawIOBase):
    """A raw reader over the bytes of a file from offset ``begin`` on, without a copy."""

    def __init__(self, content: memoryview, begin: int) -> None:
        self._content, self._begin, self._position = content, begin, begin

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only from the beginning")
        self._position = offset
        return offset

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        first = self._position - self._begin
        data = self._content[first : first + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
