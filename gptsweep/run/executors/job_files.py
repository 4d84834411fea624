"""The files through which a driver and its jobs speak, on a file system that both see.

A file has one writer, which appends lines of JSON, each with a checksum, and closes the file after each: whoever opens it then
sees them, on NFS, too. A line that is not whole yet is read later; one that is damaged is left out, and its rows begin again.

Finished rows are plain JSON: a driver that is started again reads those of its predecessor's jobs, in a directory that may be
anybody's. Everything else is pickled, and read only from directories that the reader's own run made.
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

ASKED, SAID, SNAPSHOT = "asked.jsonl", "said.jsonl", "unfinished.pickle"
"""In the directory of a job: what the driver asks, what the job says, and what its unfinished rows have so far."""

_MEANS = ("logprob_mean", "sampler_logprob_mean", "entropy_mean")
_READ_BYTES = 64 << 20
"""So much of a file is read at once."""


def add_line(path: Path, fields: Mapping[str, Any]) -> None:
    """Append a line to a file that is there.

    Raises:
        OSError: it is not, or the disk is full.
    """
    body = orjson.dumps(fields)[:-1]
    with os.fdopen(open_file(path, os.O_WRONLY | os.O_APPEND), "ab", buffering=0) as file:
        # The line before is torn where its writer was killed.
        write_all(file, b"\n" + body + seal(body))


class Lines:
    """The lines of a file, as they come.

    Args:
        path: of the file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read(self) -> Iterator[dict[str, Any]]:
        """The whole lines since the last time."""
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
    """Anything that pickles, as a field of a line."""
    return base64.b64encode(pickle.dumps(value)).decode()


def unpacked(field: str) -> Any:
    """What was `packed`. Whoever wrote the field can run anything here."""
    return pickle.loads(base64.b64decode(field))


def write_snapshot(directory: Path, turn: int, unfinished: tuple[tuple[int, Prefix], ...]) -> bool:
    """Keep what rows of a job have so far; whether that could be done."""
    body = pickle.dumps((turn, unfinished))
    with suppress(OSError, ResultsError):
        atomic_write(directory / SNAPSHOT, hashlib.sha256(body).digest() + body)
        return True
    return False


def read_snapshot(directory: Path, turn: int) -> tuple[tuple[int, Prefix], ...] | None:
    """What was kept last, if that was in this turn."""
    with suppress(OSError), os.fdopen(open_file(directory / SNAPSHOT, os.O_RDONLY), "rb") as file:
        data = file.read()
        digest, body = data[:32], data[32:]
        if hashlib.sha256(body).digest() == digest:
            of, unfinished = pickle.loads(body)
            return unfinished if of == turn else None
    return None


def name_of(row: Row) -> str | None:
    """Names all that decides a row's tokens but the model; None: rows before it do, too."""
    if row.sampling.rng != "counter":
        return None
    return hashlib.sha256(repr(replace(row, prefix=None)).encode()).hexdigest()[:32]


def maker_of(model: Facts, tokenizer: Tokenizer) -> str:
    """Names the model, and what decides the bits of its samples."""
    how = model.provenance
    decides = model.fingerprint, tokenizer.fingerprint, how.arithmetic, how.device, dict(how.made_by)
    return hashlib.sha256(orjson.dumps(decides, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def fields_of(finished: Finished) -> dict[str, Any]:
    """A finished row as JSON."""
    fields = {name: getattr(finished, name) for name in ("text", "token_ids", "finish_reason", *_MEANS)}
    if (own := finished.logprobs) is not None:
        tokens = list(map(tuple, own.tokens))
        fields["logprobs"] = {"asked": own.asked, "tokens": tokens, "ends": own.ends, "texts": list(own.texts.items())}
    return fields


def finished_of(fields: Mapping[str, Any]) -> Finished:
    """The finished row of `fields_of`.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    text, ids, reason, own = fields["text"], fields["token_ids"], fields["finish_reason"], fields.get("logprobs")
    means = {name: fields[name] for name in _MEANS}
    kinds = {type(each) for each in means.values()}
    if type(text) is not str or reason not in FINISH_REASONS or not kinds <= {float, type(None)}:
        raise ValueError("a field has another type")
    logprobs = None
    if own is not None:
        texts = dict(own["texts"])
        _require_counts([own["asked"], *own["ends"], *texts])
        if not all(type(each) is str for each in texts.values()):
            raise ValueError("a text is none")
        logprobs = SampleLogprobs(
            asked=own["asked"], tokens=tuple(map(token_logprobs, own["tokens"])), ends=tuple(own["ends"]), texts=texts
        )
    _require_counts(ids)
    return Finished(text=text, token_ids=tuple(ids), finish_reason=reason, logprobs=logprobs, **means)


def finished_rows(said: Lines) -> Iterator[tuple[str, str, Finished]]:
    """The rows of an earlier run's job, each with its name and its maker's; what is none is left out."""
    for line in said.read():
        with suppress(ValueError, KeyError, TypeError):
            maker, rows = line["maker"], line["rows"]
            if type(maker) is str:
                for _, name, fields in rows:
                    if type(name) is str:
                        yield name, maker, finished_of(fields)


def _require_counts(values: list[Any]) -> None:
    if not set(map(type, values)) <= {int} or min(chain(values, [0])) < 0:
        raise ValueError("a number is none")
