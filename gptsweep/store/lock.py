"""A directory lock: one process at a time.

`filelock` is not used because it leaves its file behind on release, does not name the holder, and on a file system without
locks raises, or falls back to a file that outlives a killed process.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from ..display import get_logger
from ..errors import ResultsError
from ..files import open_file
from .durable import NOT_SUPPORTED, refusals_as_results_errors
from .schema import LOCK

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = get_logger(__name__)


class DirectoryLock:
    """A lock for one process at a time; the system frees it when the process ends in any way.

    The lock is on an open file, so a file left by a killed process locks nothing. It is removed on release.

    Args:
        directory: the directory to lock.
        name: the lock file: `LOCK` for a run directory, `SWEEP_LOCK` for a sweep's.
    """

    def __init__(self, directory: Path, name: str = LOCK) -> None:
        self.directory = directory
        self._name = name
        self._file: BinaryIO | None = None

    def acquire(self) -> None:
        """Take the lock, or raise `ResultsError` at once if another process has it."""
        path = self.directory / self._name
        while True:
            file = os.fdopen(open_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "a+b", buffering=0)
            try:
                if not _try_lock(file):
                    raise self._taken(file)
                # The previous holder may have removed this file after we opened it and before we locked it.
                current = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
            except FileNotFoundError:
                current = False
            except BaseException:
                file.close()
                raise
            if current:
                break
            file.close()
        self._file = file
        with contextlib.suppress(OSError):  # the name is only for another process's error, and the disk may be full
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())

    def release(self) -> None:
        """Release the lock; does nothing if it is not held."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.directory / self._name)
            self._file.close()
            self._file = None

    def _taken(self, file: BinaryIO) -> ResultsError:
        file.seek(0)
        holder = file.read(200).decode(errors="replace") or "another process"
        return ResultsError("name", str(self.directory), f"in use by {holder}; wait until it ends, or give another name")

    def __enter__(self) -> DirectoryLock:
        with refusals_as_results_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.release()


def _try_lock(file: BinaryIO) -> bool:
    """Lock an open file without waiting; return whether that succeeded."""
    try:
        if sys.platform == "win32":
            file.seek(1 << 30)  # far beyond the text: Windows does not let others read a locked byte
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        _warn_no_locks(os.fstat(file.fileno()).st_dev)
    return True


@cache
def _warn_no_locks(_device: int) -> None:
    """Warn once per file system, not for each of a thousand points."""
    log.warning("this file system has no locks; make sure that no two processes write to the same directory")
