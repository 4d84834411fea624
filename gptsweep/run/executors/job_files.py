"""The files through which a driver and its jobs exchange messages, on a file system that both can access.

A file has one writer, which appends lines of JSON, each with a checksum, and closes the file after each line, so that a reader
that opens it later sees the line, even on NFS. An incomplete line is read later. A damaged line is skipped, and its rows start
again.

Finished rows are plain JSON, because a restarted driver reads those of its predecessor's jobs from a directory that it cannot
trust. Everything else is pickled, and read only from directories that the reader's own run created.
"""

from __future__ import annotations

import base64
import hashlib
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from ...errors import ResultsError
from ...files import open_file
from ...models.files.tokenizers import Tokenizer
from ...records import FINISH_REASONS, Prefix, Row, SampleLogprobs
from ...store.durable import atomic_write, seal, write_all
from ...store.unfinished import token_logprobs
from ..rows import Finished
from .worker import Facts

REQUESTS, MESSAGES, SNAPSHOT = "requests.jsonl", "messages.jsonl", "unfinished.pickle"
"""The files in a job's directory: the driver's requests, the job's messages, and the state of its unfinished rows."""

_MEANS = ("logprob_mean", "sampler_logprob_mean", "entropy_mean")
_READ_BYTES = 64 << 20
"""The number of bytes read from a file at a time."""


def add_line(path: Path, fields: Mapping[str, Any]) -> None:
    """Append a line with a checksum to an existing file.

    Raises:
        OSError: the file does not exist, or the disk is full.
    """
    body = orjson.dumps(fields)[:-1]
    with os.fdopen(open_file(path, os.O_WRONLY | os.O_APPEND), "ab", buffering=0) as file:
        # Start with a newline, as the previous line is incomplete if its writer was killed.
        write_all(file, b"\n" + body + seal(body))


class Lines:
    """Reads the lines of a growing file.

    Args:
        path: path of the file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the complete, undamaged lines that were added since the last call."""
        while data := self._more():
            for line in data.splitlines(keepends=True):
                self._offset += len(line)
                if (fields := _parsed(line)) is not None:
                    yield fields

    def _more(self) -> bytes:
        with suppress(OSError), os.fdopen(open_file(self._path, os.O_RDONLY), "rb") as file:
            file.seek(self._offset)
            data = file.read(_READ_BYTES)
            if len(data) == _READ_BYTES and b"\n" not in data:
                return data + file.readline()
            return data[: data.rfind(b"\n") + 1]
        return b""


def _parsed(line: bytes) -> dict[str, Any] | None:
    body = line[: -len(seal(b""))]
    if line != body + seal(body):
        return None
    with suppress(ValueError):
        found = orjson.loads(line)
        return found if isinstance(found, dict) else None
    return None


def packed(value: object) -> str:
    """Pickle a value into a string, for a field of a line."""
    return base64.b64encode(pickle.dumps(value)).decode()


def unpacked(field: str) -> Any:
    """Unpickle a field that `packed` made. Use it only on trusted fields: unpickling can run any code."""
    return pickle.loads(base64.b64decode(field))


def write_snapshot(directory: Path, batch: int, unfinished: tuple[tuple[int, Prefix], ...]) -> bool:
    """Store the state of a job's unfinished rows, and return whether that succeeded.

    Args:
        directory: the job's directory.
        batch: the number of the batch that the rows belong to.
        unfinished: pairs of a row's number and its prefix.
    """
    body = pickle.dumps((batch, unfinished))
    with suppress(OSError, ResultsError):
        atomic_write(directory / SNAPSHOT, hashlib.sha256(body).digest() + body)
        return True
    return False


def read_snapshot(directory: Path, batch: int) -> tuple[tuple[int, Prefix], ...] | None:
    """Read what `write_snapshot` stored last; None if it is missing, damaged, or of another batch."""
    with suppress(OSError), os.fdopen(open_file(directory / SNAPSHOT, os.O_RDONLY), "rb") as file:
        data = file.read()
        digest, body = data[:32], data[32:]
        if hashlib.sha256(body).digest() == digest:
            number, unfinished = pickle.loads(body)
            return unfinished if number == batch else None
    return None


def row_hash(row: Row) -> str | None:
    """Hash everything but the model that determines a row's tokens. None if earlier rows of its random stream do, too."""
    if row.sampling.rng != "counter":
        return None
    return hashlib.sha256(repr(replace(row, prefix=None)).encode()).hexdigest()[:32]


def model_hash(model: Facts, tokenizer: Tokenizer) -> str:
    """Hash the model and everything else that determines the bits of its samples."""
    how = model.provenance
    decides = model.fingerprint, tokenizer.fingerprint, how.arithmetic, how.device, dict(how.made_by)
    return hashlib.sha256(orjson.dumps(decides, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def fields_of(finished: Finished) -> dict[str, Any]:
    """Convert a finished row to JSON-compatible fields."""
    fields = {name: getattr(finished, name) for name in ("text", "token_ids", "finish_reason", *_MEANS)}
    if (own := finished.logprobs) is not None:
        tokens = list(map(tuple, own.tokens))
        fields["logprobs"] = {"asked": own.alternatives, "tokens": tokens, "ends": own.ends, "texts": list(own.texts.items())}
    return fields


def finished_of(fields: Mapping[str, Any]) -> Finished:
    """Convert the fields that `fields_of` returned back to a finished row.

    Raises:
        ValueError, KeyError, TypeError: the fields do not describe one.
    """
    text, ids, reason, own = fields["text"], fields["token_ids"], fields["finish_reason"], fields.get("logprobs")
    means = {name: fields[name] for name in _MEANS}
    kinds = {type(each) for each in means.values()}
    if type(text) is not str or reason not in FINISH_REASONS or not kinds <= {float, type(None)}:
        raise ValueError("a field has the wrong type")
    logprobs = None
    if own is not None:
        texts = dict(own["texts"])
        _require_counts([own["asked"], *own["ends"], *texts])
        if not all(type(each) is str for each in texts.values()):
            raise ValueError("a text is not a string")
        logprobs = SampleLogprobs(
            alternatives=own["asked"], tokens=tuple(map(token_logprobs, own["tokens"])), ends=tuple(own["ends"]), texts=texts
        )
    _require_counts(ids)
    return Finished(text=text, token_ids=tuple(ids), finish_reason=reason, logprobs=logprobs, **means)


def finished_rows(messages: Lines) -> Iterator[tuple[str, str, Finished]]:
    """Yield the finished rows in an earlier job's messages, each with its `row_hash` and `model_hash`. Skip invalid ones."""
    for line in messages.read():
        with suppress(ValueError, KeyError, TypeError):
            model, rows = line["maker"], line["rows"]
            if type(model) is str:
                for _, row, fields in rows:
                    if type(row) is str:
                        yield row, model, finished_of(fields)


def _require_counts(values: list[Any]) -> None:
    if not set(map(type, values)) <= {int} or min(chain(values, [0])) < 0:
        raise ValueError("a count is not an integer of at least 0")
