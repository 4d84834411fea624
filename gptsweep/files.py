"""Open files that others may have written: follow no symbolic links, open no pipes or devices."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import stat
import sys
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import yaml

from .display import say

_NOT_THROUGH = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a pipe without a writer would block
_PLAIN = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)

JSON_BYTES = 32 << 20
"""The largest file to parse as JSON; the parsed objects take up to 30 times its size."""
YAML_BYTES = 1 << 20
"""The largest file to parse as YAML; a config has a few thousand bytes."""
YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def open_file(path: str | Path, flags: int, mode: int = 0o666, *, links: bool = False, dir_fd: int | None = None) -> int:
    """`os.open` for regular files only.

    Args:
        path: the file.
        flags: as in `os.open`.
        mode: permissions of a new file.
        links: whether the last component of ``path`` may be a symbolic link. Never for writing: the link may lead to any file
            of the user.
        dir_fd: the directory that ``path`` is relative to.

    Raises:
        OSError: as `os.open`; ELOOP for a symbolic link, EINVAL for anything but a regular file.
    """
    try:
        fd = os.open(path, flags | _PLAIN | _NO_WAIT | (0 if links else _NOT_THROUGH), mode, dir_fd=dir_fd)
    except ValueError as error:  # the name is not a valid file name
        raise FileNotFoundError(errno.ENOENT, str(error), str(path)) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return fd


def open_to_read(path: Path) -> BufferedReader:
    """Open a regular file, also through a symbolic link: large files may be on another disk."""
    return os.fdopen(open_file(path, os.O_RDONLY, links=True), "rb")


def open_inside(path: Path) -> BinaryIO:
    """Open a regular file inside its directory; OSError for a pipe, a device, or a link that leads outside."""
    if path.is_symlink() and os.path.dirname(os.path.realpath(path)) != os.path.realpath(path.parent):
        raise PermissionError(errno.EPERM, "a symbolic link that leads elsewhere", str(path))
    return open_to_read(path)


def read_json(path: Path, most: int = JSON_BYTES, opened: Callable[[Path], BinaryIO] = open_to_read) -> Any:
    """Read a JSON file that others wrote.

    Args:
        path: the file.
        most: its maximum size in bytes.
        opened: opens it.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: it is not JSON, too deeply nested, or larger than ``most``.
    """
    with opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most / (1 << 20):g} MiB")
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_yaml(path: Path, most: int = YAML_BYTES, opened: Callable[[Path], BinaryIO] = open_to_read) -> Any:
    """Read a YAML file that others wrote: as `read_json`, but aliases raise ValueError.

    No program that writes such files uses aliases, and a few lines of them can expand to a billion values.
    """
    with opened(path) as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise ValueError(f"it is larger than {most / (1 << 20):g} MiB")
    try:
        if b"*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=YAML_LOADER)):
            raise ValueError("it has aliases")
        return yaml.load(text, Loader=YAML_LOADER)
    except (RecursionError, yaml.YAMLError) as error:
        raise ValueError(str(error)) from error


class LogFile(logging.FileHandler):
    """A log file that does not follow symbolic links; if its path is one, it says so and logs nothing."""

    def _open(self) -> Any:
        try:
            fd = open_file(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EINVAL, errno.ENXIO):
                raise
            say(f"gptsweep: no log in {self.baseFilename}: it is a symbolic link or not a regular file", error=True)
            return open(os.devnull, "w")
        return os.fdopen(fd, "a", encoding=self.encoding, errors=self.errors)


def user_cache(name: str) -> Path:
    """The user's cache directory for ``name``: ``$XDG_CACHE_HOME/gptsweep/<name>``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptsweep" / name


class OwnDirectory:
    """A directory that only the user can write to, for files that are trusted without checks; created if missing.

    If others could write to it, the user takes it over and its content is deleted. Files are opened relative to the open
    directory, so nobody can replace it between check and use.

    Raises:
        OSError: on enter; EPERM if it belongs to another user, ELOOP or ENOTDIR if it is a link or a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def __enter__(self) -> OwnDirectory:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        if sys.platform != "win32":  # where home directories and their content are private to the user
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | _NOT_THROUGH | _PLAIN)
            try:
                self._take(self._fd)
            except BaseException:
                os.close(self._fd)
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._fd is not None:
            os.close(self._fd)

    def _take(self, fd: int) -> None:
        about = os.fstat(fd)
        if about.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "It belongs to another user", str(self.path))
        if about.st_mode & 0o077:
            os.fchmod(fd, 0o700)
        if about.st_mode & 0o022:
            for name in os.listdir(fd):
                os.unlink(name, dir_fd=fd)

    def read(self, name: str) -> bytes:
        """The content of a file."""
        with os.fdopen(open_file(self._place(name), os.O_RDONLY, dir_fd=self._fd), "rb") as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """Replace a file atomically: a reader finds the old content or the new, complete."""
        temporary = f"{name}.{secrets.token_hex(4)}"
        fd = open_file(self._place(temporary), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._fd)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            os.replace(self._place(temporary), self._place(name), src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(self._place(temporary), dir_fd=self._fd)
            raise

    def _place(self, name: str) -> str | Path:
        return self.path / name if self._fd is None else name
