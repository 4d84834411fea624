"""Files where others may write, too: no symbolic link is followed, and no pipe or device is opened."""

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
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a pipe that nobody writes to would not return
_PLAIN = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)

JSON_BYTES = 32 << 20
"""The largest file that is parsed as JSON; Python's objects take up to 30 times its size."""
YAML_BYTES = 1 << 20
"""The largest file that is parsed as YAML: those of settings have a few thousand bytes."""
YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def open_file(path: str | Path, flags: int, mode: int = 0o666, *, links: bool = False, dir_fd: int | None = None) -> int:
    """`os.open` for regular files alone.

    Args:
        path: of the file.
        flags: those of `os.open`.
        mode: permissions of a file that is made.
        links: whether the last part of ``path`` may be a symbolic link. Not where the file is written: the link may lead to
            any file of the user's.
        dir_fd: of the directory that ``path`` starts from.

    Raises:
        OSError: as `os.open`; ELOOP for a symbolic link, EINVAL for what is no regular file.
    """
    try:
        fd = os.open(path, flags | _PLAIN | _NO_WAIT | (0 if links else _NOT_THROUGH), mode, dir_fd=dir_fd)
    except ValueError as error:  # no file can have that name
        raise FileNotFoundError(errno.ENOENT, str(error), str(path)) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return fd


def open_to_read(path: Path) -> BufferedReader:
    """Open a regular file, through a link, too: a large file may lie on another disk."""
    return os.fdopen(open_file(path, os.O_RDONLY, links=True), "rb")


def open_inside(path: Path) -> BinaryIO:
    """Open a regular file of this directory's own; an OSError for a pipe, a device, and a link that leads elsewhere."""
    if path.is_symlink() and os.path.dirname(os.path.realpath(path)) != os.path.realpath(path.parent):
        raise PermissionError(errno.EPERM, "a symbolic link that leads elsewhere", str(path))
    return open_to_read(path)


def read_json(path: Path, most: int = JSON_BYTES, opened: Callable[[Path], BinaryIO] = open_to_read) -> Any:
    """The contents of a JSON file that others wrote.

    Args:
        path: of the file.
        most: bytes that it may have.
        opened: opens it.

    Raises:
        OSError: it cannot be read, or is no regular file.
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
    """The contents of a YAML file that others wrote: as `read_json`, and a ValueError for one with aliases.

    No program that writes such files makes aliases, and a few lines of them name a thousand million values.
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
    """A log file that is not written through a symbolic link; where there is one, that is said, and no file is written."""

    def _open(self) -> Any:
        try:
            fd = open_file(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EINVAL, errno.ENXIO):
                raise
            say(f"gptsweep: no log in {self.baseFilename}: it is a symbolic link or no regular file", error=True)
            return open(os.devnull, "w")
        return os.fdopen(fd, "a", encoding=self.encoding, errors=self.errors)


def user_cache(name: str) -> Path:
    """The user's directory for what is kept between runs under ``name``: ``$XDG_CACHE_HOME/gptsweep/<name>``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptsweep" / name


class OwnDirectory:
    """A directory that nobody but the user can write to, for files that are trusted as they are; made where it is missing.

    One that others could write to becomes the user's own, and what was in it is removed. Files are named relative to the open
    directory, so that another one cannot be put in its place between the check and the use.

    Raises:
        OSError: on enter; EPERM where it belongs to another user, ELOOP or ENOTDIR where it is a link or a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def __enter__(self) -> OwnDirectory:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        if sys.platform != "win32":  # there a home directory, and what is made in it, is its user's alone
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
        """Replace a file, so that a reader finds the old one or the new one, whole."""
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
