"""CSV files with text that is safe to open in a spreadsheet, one line per row, and read back exactly.

A text cell that a spreadsheet would take for a formula (``=1+1``, ``-5``), or that contains a newline or another invisible
character, is written as an apostrophe and a JSON string: ``'"=1+1"``, ``'"\\n"``. Every other cell is written unchanged, as
version 0.1 wrote all cells; its files are read as before.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from ..display import UNSAFE

_TEXT = {"start", "prompt", "model", "out_dir", "path", "revision", "meta", "sweep", "point_id", "status", "error", "directory"}
"""Columns whose cells are text even if they look like numbers."""
_UNSAFE = re.compile(f"[\t\n{UNSAFE}]")
_RISKY = re.compile(rf"""\s*[=+@\-\uff1d\uff0b\uff20\uff0d]|'"|[^\t\n{UNSAFE}]*[\t\n{UNSAFE}]""")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def csv_bytes(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> bytes:
    """A header and ``rows`` in pandas' format, with text escaped; None is an empty field, lists and mappings are JSON."""
    text = io.StringIO()
    # Without pandas: importing it would take longer than writing every file of a run.
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writerow({column: _escaped(column) for column in columns})
    writer.writerows({column: _field(column, value) for column, value in row.items()} for row in rows)
    return text.getvalue().encode()


def csv_rows(lines: Iterable[str]) -> Iterator[dict[str, str | None]]:
    """Yield the rows of a CSV file (opened with ``newline=""``) by column; an empty cell is None.

    Raises:
        csv.Error, ValueError: it is not CSV, or not UTF-8.
    """
    reader = csv.reader(line.replace("\0", "\ufffd") for line in lines)  # Python 3.10 rejects files with a NUL
    names = [_read(name) for name in next(reader, [])]
    for cells in reader:
        if cells:  # skip blank lines
            cells += [""] * (len(names) - len(cells))
            yield {name: _read(cell) or None for name, cell in zip(names, cells, strict=False) if name}


def _field(column: str, value: object) -> object:
    if isinstance(value, str):
        return _text_field(column, value)
    return json.dumps(value) if isinstance(value, (list, tuple, Mapping)) else value


@lru_cache(maxsize=4096)  # most cells of a sweep are equal at every point
def _text_field(column: str, text: str) -> str:
    return text if column not in _TEXT and _NUMBER.fullmatch(text) else _escaped(text)


def _escaped(text: str) -> str:
    if not _RISKY.match(text):
        return text
    return "'" + _UNSAFE.sub(lambda match: json.dumps(match[0])[1:-1], json.dumps(text, ensure_ascii=False))


def _read(cell: str) -> str:
    """The text of a cell. Text that only looks like an escape, as in files of version 0.1, is returned unchanged."""
    if cell.startswith("'\""):
        try:
            text = json.loads(cell[1:])
        except ValueError:
            return cell
        if isinstance(text, str) and _escaped(text) == cell:
            return text
    return cell
