"""Weights where they lie: which bytes of which file make up each tensor, of PyTorch and safetensors files.

Files are read with plain reads into fresh memory, never mapped: a mapped page counts as resident until it is let go, and a
training that replaces its checkpoint would kill the reader of a mapped one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import ModelError, brief
from ...files import open_to_read
from .pickles import Inert, Maker, Named, PickleError, read_pickle

_CHUNK = 1 << 20
_HEADER_BYTES = 16 << 20
"""The largest list of the files in an archive, and the largest header of a safetensors file, that is read."""
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
_DTYPES = {str(dtype): dtype for dtype in (*_STORAGES.values(), *_SAFETENSORS_DTYPES.values())}


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


def read_safetensors(path: Path, key: str, value: str) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata; nothing but the header is read.

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
                pass  # the library checks the header against the file's length, and the places of the tensors
            header = json.loads(opened.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError, struct.error) as error:
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


@dataclass(frozen=True, slots=True)
class Storage:
    """What a tensor of a `TorchFile` is a view of: ``length`` elements of ``dtype``, which the file holds under ``key``."""

    key: str
    dtype: torch.dtype
    length: int

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.length * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class View:
    """A tensor of a `TorchFile`, as its pickle describes it; ``offset`` and ``stride`` count elements."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class TorchFile:
    """A file that `torch.save` wrote, in either of its formats, read by this package alone.

    ``contents`` is what was saved, with a `View` for each tensor and inert records for objects. No tensor's data is read, no
    code of the file is run, and none of PyTorch's parsers sees the file: they end the process over some damaged ones.

    Raises:
        ModelError: the file cannot be read, is truncated, or is not such a file.
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
        """Where the data of a tensor of ``contents`` lies; ``name`` is for errors.

        Raises:
            ModelError: it does not lie in the file, or not where its sizes say.
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
        """Where each tensor of a state dict in ``contents`` lies; what is no tensor is left out.

        Raises:
            ModelError: a tensor is of a kind that has no plain data: sparse, quantised, a subclass.
        """
        for name, tensor in weights.items():
            if isinstance(tensor, View):
                yield str(name), self.stored(str(name), tensor)
            elif isinstance(tensor, Inert) and tensor.path.startswith("torch."):
                what = f"holds {brief(name)} as {tensor.path}; gptsweep reads plain tensors, neither sparse nor quantised"
                raise self._file.wrong(what)

    def _read_archive(self, file: BufferedReader) -> Any:
        """The format since PyTorch 1.6: a zip archive of a pickle and, uncompressed, the data of each storage."""
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
                raise self._file.wrong(f"has its numbers in the byte order {written!r}, and this machine in {sys.byteorder!r}")
        pickled = entries[f"{root}/data.pkl"]
        file.seek(self._place(file, pickled))
        contents = read_pickle(file, pickled.file_size, _MAKERS, self._storage)
        for key, storage in self._storages.items():
            entry = entries.get(f"{root}/data/{key}")
            if entry is not None and entry.compress_type == zipfile.ZIP_STORED and storage.nbytes <= entry.file_size:
                self._offsets[key] = self._place(file, entry)
        return contents

    def _place(self, file: BufferedReader, entry: zipfile.ZipInfo) -> int:
        """Where in the archive the data of one of its files begins."""
        if not 0 <= entry.header_offset < self._file.size:
            raise self._file.wrong("is damaged: its list of files does not fit its contents")
        file.seek(entry.header_offset)
        signature, flags, name, extra = struct.unpack("<4s2xH18xHH", file.read(30))
        start: int = entry.header_offset + 30 + name + extra
        if signature != b"PK\x03\x04" or start + entry.file_size > self._file.size:
            raise self._file.wrong("is damaged: its list of files does not fit its contents")
        if entry.compress_type != zipfile.ZIP_STORED or flags & 1:
            raise self._file.wrong("was packed anew and compressed by another program; write it again with torch.save")
        return start

    def _read_legacy(self, file: BufferedReader) -> Any:
        """The format before PyTorch 1.6: five pickles (the third of them what was saved), then the data of each storage."""
        read_pickle(file, 64)
        read_pickle(file, 64)
        system = read_pickle(file, 4096)
        if isinstance(system, dict) and system.get("little_endian", True) is not (sys.byteorder == "little"):
            raise self._file.wrong(f"was written on a machine of another byte order than this one's ({sys.byteorder})")
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
        """The storage that a persistent id names: ``("storage", type, key, location, length)``, and a view in old files."""
        if not isinstance(saved, tuple) or len(saved) not in (5, 6) or saved[0] != "storage" or any(saved[5:]):
            raise PickleError("the pickle in it refers to data in a way that torch.save does not")
        _, kind, key, _, length, *_ = saved
        dtype = _STORAGES.get(kind.path.rpartition(".")[2]) if isinstance(kind, Named) else None
        if dtype is None:
            raise PickleError(f"the pickle in it has data of the type {kind.path if isinstance(kind, Named) else 'unknown'}")
        if not isinstance(key, str) or not _is_size(length):
            raise PickleError("the pickle in it refers to data in a way that torch.save does not")
        return self._storages.setdefault(key, Storage(key, dtype, length))


class _Bounded(RawIOBase):
    """An archive whose list of files is read at once by `zipfile`, however long the archive says that it is."""

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
        if size > _HEADER_BYTES:
            raise zipfile.BadZipFile("its list of files is too long")
        return self._file.read(size if size >= 0 else _HEADER_BYTES)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _view(storage: Any, offset: Any, shape: Any, stride: Any, *_rest: Any) -> View:
    """The arguments of ``torch._utils._rebuild_tensor_v2``, or of the older ``_rebuild_tensor``."""
    if not isinstance(storage, Storage):
        raise TypeError
    return _typed_view(storage, storage.dtype, offset, shape, stride)


def _view_of_bytes(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_rest: Any
) -> View:
    """The arguments of ``torch._utils._rebuild_tensor_v3``."""
    known = _DTYPES.get(dtype.path) if isinstance(dtype, Named) else None
    if not isinstance(storage, Storage) or known is None:
        raise TypeError
    return _typed_view(storage, known, offset, shape, stride)


def _typed_view(storage: Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any) -> View:
    sizes = isinstance(shape, tuple) and isinstance(stride, tuple) and all(map(_is_size, (offset, *shape, *stride)))
    if not sizes or len(shape) != len(stride) or len(shape) > 8:
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
