"""Find the tensors in a file that `torch.save` wrote, without PyTorch's own readers."""

from __future__ import annotations

import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any

import torch

from ...errors import brief
from .pickles import Inert, Maker, Named, PickleError, read_pickle
from .weights import MOST_DIMENSIONS, StoredTensor, WeightFile

_LIST_BYTES = 16 << 20
"""The largest directory of a zip archive that is read."""
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_DTYPES = {str(dtype): dtype for dtype in (*_STORAGES.values(), torch.float8_e4m3fn, torch.float8_e5m2)}


@dataclass(frozen=True, slots=True)
class Storage:
    """The data behind tensors of a `TorchFile`: ``length`` elements of ``dtype``, stored under ``key``."""

    key: str
    dtype: torch.dtype
    length: int

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.length * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class View:
    """A tensor of a `TorchFile` as its pickle describes it; ``offset`` and ``stride`` are in elements."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class TorchFile:
    """A file that `torch.save` wrote, in either of its formats.

    ``contents`` is what was saved, with a `View` for each tensor and an `Inert` record for each object. It reads no tensor data
    and runs no code in the file. It does not use PyTorch's parsers, which abort the process on some damaged files.

    Raises:
        ModelError: the file cannot be read, is truncated, or was not written by `torch.save`.
    """

    def __init__(self, path: Path, key: str, value: str) -> None:
        self._file = WeightFile.at(path, key, value)
        self._storages: dict[str, Storage] = {}
        self._offsets: dict[str, int] = {}
        try:
            with self._file.open() as file:
                start = file.read(len(_LEGACY_TORCH))
                file.seek(0)
                if start == _LEGACY_TORCH:
                    self.contents: Any = self._read_legacy(file)
                elif start.startswith(b"PK"):
                    self.contents = self._read_archive(file)
                else:
                    raise self._file.wrong("is empty" if not start else "is not a checkpoint that torch.save wrote")
        except (PickleError, OSError, struct.error, RuntimeError) as error:
            raise self._file.wrong(f"is damaged or not a checkpoint ({error})") from error

    def stored(self, name: str, tensor: View) -> StoredTensor:
        """Locate the data of a tensor of ``contents``; ``name`` is for errors.

        Raises:
            ModelError: the file does not hold the data, or holds less than the tensor's sizes need.
        """
        storage = tensor.storage
        if (start := self._offsets.get(storage.key)) is None:
            raise self._file.wrong(
                f"does not hold the data of {name:.80}, or holds it compressed; write it again with torch.save"
            )
        stored = StoredTensor(
            self._file, start + tensor.offset * tensor.dtype.itemsize, tensor.dtype, tensor.shape, tensor.stride
        )
        if stored.offset + stored.nbytes > start + storage.nbytes:
            raise self._file.wrong(f"is damaged: the weight {name:.80} reaches beyond its data")
        return stored

    def tensors(self, weights: Mapping[Any, Any]) -> Iterator[tuple[str, StoredTensor]]:
        """Yield the name and place of each tensor of a state dict in ``contents``, skipping values that are not tensors.

        Raises:
            ModelError: a tensor is sparse, quantised or of a subclass, and so has no plain data.
        """
        for name, tensor in weights.items():
            if isinstance(tensor, View):
                yield str(name), self.stored(str(name), tensor)
            elif isinstance(tensor, Inert) and tensor.path.startswith("torch."):
                what = f"holds {brief(name)} as {tensor.path}; gptsweep reads plain tensors, neither sparse nor quantised"
                raise self._file.wrong(what)

    def _read_archive(self, file: BufferedReader) -> Any:
        """Read the format since PyTorch 1.6: a zip archive of a pickle and the uncompressed data of each storage."""
        try:
            entries = {entry.filename: entry for entry in zipfile.ZipFile(_Bounded(file)).infolist()}
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
            what = "is truncated, or still being written; wait for the training to finish its checkpoint, or copy it again"
            raise self._file.wrong(what) from error
        root = next((name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")), None)
        if root is None:
            raise self._file.wrong("is damaged or not a checkpoint (it is an archive without data.pkl)")
        if (order := entries.get(f"{root}/byteorder")) is not None:
            file.seek(self._place(file, order))
            if (written := file.read(min(order.file_size, 16))) != sys.byteorder.encode():
                raise self._file.wrong(f"has the byte order {written!r}, but this machine has {sys.byteorder!r}")
        pickled = entries[f"{root}/data.pkl"]
        file.seek(self._place(file, pickled))
        contents = read_pickle(file, pickled.file_size, _MAKERS, self._storage)
        for key, storage in self._storages.items():
            entry = entries.get(f"{root}/data/{key}")
            if entry is not None and entry.compress_type == zipfile.ZIP_STORED and storage.nbytes <= entry.file_size:
                self._offsets[key] = self._place(file, entry)
        return contents

    def _place(self, file: BufferedReader, entry: zipfile.ZipInfo) -> int:
        """Return the offset at which the data of a file in the archive begins."""
        if not 0 <= entry.header_offset < self._file.size:
            raise self._file.wrong("is damaged: its list of files does not fit its contents")
        file.seek(entry.header_offset)
        signature, flags, name, extra = struct.unpack("<4s2xH18xHH", file.read(30))
        start: int = entry.header_offset + 30 + name + extra
        if signature != b"PK\x03\x04" or start + entry.file_size > self._file.size:
            raise self._file.wrong("is damaged: its list of files does not fit its contents")
        if entry.compress_type != zipfile.ZIP_STORED or flags & 1:
            raise self._file.wrong("was repacked and compressed by another program; write it again with torch.save")
        return start

    def _read_legacy(self, file: BufferedReader) -> Any:
        """Read the format before PyTorch 1.6: five pickles, of which the fourth is what was saved, and then the storages."""
        read_pickle(file, 64)
        read_pickle(file, 64)
        system = read_pickle(file, 4096)
        if isinstance(system, dict) and system.get("little_endian", True) is not (sys.byteorder == "little"):
            raise self._file.wrong(f"has another byte order than this machine ({sys.byteorder})")
        contents = read_pickle(file, self._file.size, _MAKERS, self._storage)
        keys = read_pickle(file, self._file.size)
        if not isinstance(keys, list) or not all(isinstance(key, str) and key in self._storages for key in keys):
            raise self._file.wrong("is damaged: its list of storages does not fit its contents")
        for key in keys:
            (length,) = struct.unpack("<q", file.read(8))
            storage = self._storages[key]
            start = file.tell()
            if length != storage.length or start + storage.nbytes > self._file.size:
                raise self._file.wrong("ends in the middle of a weight: it is truncated or damaged")
            self._offsets[key] = start
            file.seek(start + storage.nbytes)
        return contents

    def _storage(self, saved: Any) -> Storage:
        """Return the storage of a persistent id: ``("storage", type, key, location, length)``, and a view in old files."""
        if not isinstance(saved, tuple) or len(saved) not in (5, 6) or saved[0] != "storage" or any(saved[5:]):
            raise PickleError("the pickle in it refers to data in a way that torch.save does not")
        _, kind, key, _, length, *_ = saved
        dtype = _STORAGES.get(kind.path.rpartition(".")[2]) if isinstance(kind, Named) else None
        if dtype is None:
            raise PickleError(f"the pickle in it has data of the type {kind.path if isinstance(kind, Named) else 'unknown'}")
        key = str(key) if type(key) is int else key  # LitGPT's conversion writes integers
        if not isinstance(key, str) or not _is_size(length):
            raise PickleError("the pickle in it refers to data in a way that torch.save does not")
        return self._storages.setdefault(key, Storage(key, dtype, length))


class _Bounded(RawIOBase):
    """An archive for `zipfile` that refuses to read a directory longer than `_LIST_BYTES`, whatever length it claims."""

    def __init__(self, file: BufferedReader) -> None:
        super().__init__()
        self._file = file

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        if size > _LIST_BYTES:
            raise zipfile.BadZipFile("its list of files is too long")
        return self._file.read(size if size >= 0 else _LIST_BYTES)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _view(storage: Any, offset: Any, shape: Any, stride: Any, *_rest: Any) -> View:
    """Make a `View` from the arguments of ``torch._utils._rebuild_tensor_v2``, or of the older ``_rebuild_tensor``."""
    if not isinstance(storage, Storage):
        raise TypeError
    return _typed_view(storage, storage.dtype, offset, shape, stride)


def _view_of_bytes(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_rest: Any
) -> View:
    """Make a `View` from the arguments of ``torch._utils._rebuild_tensor_v3``."""
    known = _DTYPES.get(dtype.path) if isinstance(dtype, Named) else None
    if not isinstance(storage, Storage) or known is None:
        raise TypeError
    return _typed_view(storage, known, offset, shape, stride)


def _typed_view(storage: Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any) -> View:
    sizes = isinstance(shape, tuple) and isinstance(stride, tuple) and all(map(_is_size, (offset, *shape, *stride)))
    if not sizes or len(shape) != len(stride) or len(shape) > MOST_DIMENSIONS:
        raise ValueError
    return View(storage, dtype, offset, shape, stride)


def _parameter(data: Any, *_rest: Any) -> View:
    if not isinstance(data, View):
        raise TypeError
    return data


_MAKERS: Mapping[str, Maker] = {
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_tensor_v3": _view_of_bytes,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
