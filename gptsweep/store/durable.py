"""Durable writes: append and sync, replace a file atomically, sync a directory."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import ResultsError
from ..files import open_file
from .schema import TEMPORARY

NOT_SUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.EBADF, errno.EIO, 524}
"""Errors of file systems that lack locks or cannot sync a directory; 524 is NFS's own ENOTSUPP."""

_SEAL_DIGITS = 16

_REMEDIES = {
    errno.ENOSPC: "free some space and run the same command again: finished samples are kept",
    errno.EDQUOT: "free some space and run the same command again: finished samples are kept",
    errno.EFBIG: "raise the file size limit (ulimit -f) and run the same command again: finished samples are kept",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EROFS: "choose a directory that can be written",
    errno.EACCES: "make it writable, or choose another directory",
    errno.EPERM: "make it writable, or choose another directory",
    errno.EEXIST: "a file is in the way: move it, or choose another directory",
    errno.ENOTDIR: "a file is in the way: move it, or choose another directory",
    errno.ENOENT: "give one that exists",
    errno.ELOOP: "a symbolic link is in the way: remove it, or choose another directory",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextlib.contextmanager
def refusals_as_results_errors(path: Path) -> Iterator[None]:
    """Turn each OSError into a `ResultsError` about ``path``: one line that says what would work."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "choose another directory")
        why = (error.strerror or str(error)).lower()
        raise ResultsError("name", str(path), f"{why}; {remedy}") from error


def atomic_write(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` atomically: at any moment a reader finds the complete old file or the complete new one.

    The new content is durable on return.

    Raises:
        ResultsError: it cannot be written; the old file is unchanged.
    """
    path = Path(path)
    with refusals_as_results_errors(path):
        replace(path, [data])
        sync_directory(path.parent)


def append(path: Path, data: bytes) -> int:
    """Append complete lines, fsync, and return the offset in bytes at which they start.

    Raises:
        OSError: they cannot be written; no partial line is left.
    """
    with os.fdopen(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab", buffering=0) as file:
        start = file.tell()
        try:
            write_all(file, data)
            os.fsync(file.fileno())
        except BaseException:
            written = os.fstat(file.fileno()).st_size - start
            with contextlib.suppress(OSError):
                file.truncate(start + data.rfind(b"\n", 0, written) + 1)
            raise
    return start


def write_all(file: BinaryIO, data: bytes) -> None:
    """Write all of ``data`` to an unbuffered file, whose ``write`` may write only a part."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def replace(path: Path, chunks: Iterable[bytes]) -> None:
    """Replace ``path`` atomically by a synced file; `sync_directory` makes its name durable. On OSError it is unchanged."""
    os.replace(write_temporary(path, chunks), path)


def write_temporary(path: Path, chunks: Iterable[bytes]) -> Path:
    """Write and fsync a file beside ``path``, and return its path; on failure it is removed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with open(temporary, "xb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def seal(body: bytes) -> bytes:
    """The end of a line of JSON that begins with ``body``: a checksum, which detects digits changed by a disk or an editor."""
    return b',"check":"%s"}\n' % hashlib.sha256(body).hexdigest()[:_SEAL_DIGITS].encode()


def sync_directory(directory: Path) -> None:
    """Make new names in ``directory`` durable, if the operating system and the file system support that."""
    if sys.platform == "win32":
        return
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
    finally:
        os.close(fd)
