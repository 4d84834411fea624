"""Lines of a point's samples in two files: appended to one as they arrive, finally written to the other in order."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import NamedTuple

from .durable import append, sync_directory, write_temporary
from .schema import Key


class Place(NamedTuple):
    """The location of a sample's complete line."""

    file: str
    offset: int
    length: int


class KeyedLines:
    """An index of the lines of samples. Memory grows by a key and a location per sample, not by its text.

    Args:
        directory: the run directory.
        whole: the name of a finished point's file.
        partial: the name of the file that lines are appended to.
    """

    def __init__(self, directory: Path, whole: str, partial: str) -> None:
        self.directory, self.whole, self.partial = directory, whole, partial
        self.places: dict[Key, Place] = {}

    @property
    def finished(self) -> bool:
        """Whether the partial file has no lines."""
        return all(place.file == self.whole for place in self.places.values())

    def append(self, lines: Mapping[Key, bytes]) -> None:
        """Append lines to the partial file; they are durable on return."""
        offset = append(self.directory / self.partial, b"".join(lines.values()))
        if offset == 0:
            sync_directory(self.directory)
        for key, line in lines.items():
            self.places[key] = Place(self.partial, offset, len(line))
            offset += len(line)

    def line(self, key: Key) -> bytes:
        """The line of one sample."""
        place = self.places[key]
        with open(self.directory / place.file, "rb") as file:
            file.seek(place.offset)
            return file.read(place.length)

    def items(self) -> Generator[tuple[Key, bytes], None, None]:
        """The keys of all samples in order, each with its line."""
        with contextlib.ExitStack() as stack:
            names = {place.file for place in self.places.values()}
            files = {name: stack.enter_context(open(self.directory / name, "rb")) for name in names}
            for key, place in sorted(self.places.items()):
                files[place.file].seek(place.offset)
                yield key, files[place.file].read(place.length)

    def settle(self, before: Callable[[], None]) -> None:
        """Write all lines to the final file, in order, unless it already has them.

        Args:
            before: called before that file changes.
        """
        whole, partial = self.directory / self.whole, self.directory / self.partial
        if self._is_ordered(self.whole):
            return
        if self._is_ordered(self.partial):
            before()
            os.replace(partial, whole)
        else:
            with contextlib.closing(self.items()) as items:
                temporary = write_temporary(whole, (line for _, line in items))
            before()
            os.replace(temporary, whole)
        offset = 0
        for key, place in sorted(self.places.items()):
            self.places[key] = Place(self.whole, offset, place.length)
            offset += place.length

    def _is_ordered(self, name: str) -> bool:
        """Whether file ``name`` contains exactly the lines of all samples, in order."""
        offset = 0
        for _, place in sorted(self.places.items()):
            if place.file != name or place.offset != offset:
                return False
            offset += place.length
        path = self.directory / name
        return path.exists() and path.stat().st_size == offset
