"""``report.html``: a sweep on one page that opens offline and can be sent to a colleague.

The page is one file: the data as JSON, a style sheet and a script, all in place. It asks the network for nothing.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from ..analysis.frames import Sweep, read_sweep
from ..run.reference import Reference, kept_reference
from ..store.durable import atomic_write
from ..store.schema import REPORT
from .data import page_data

__all__ = ["page", "write_report"]


def write_report(directory: Path, sweep: Sweep | None = None, reference: Reference | None = None) -> Path:
    """Write ``report.html`` into ``directory``, whatever state the sweep is in.

    Args:
        directory: a sweep, a run, or a directory of them.
        sweep: what was read of it, if it was read already.
        reference: the reference text, if it was looked up already; else what ``reference.json`` holds.

    Raises:
        ResultsError: there is nothing to show, or the page cannot be written.
    """
    directory = Path(directory)
    path = directory / REPORT
    sweep = read_sweep(directory) if sweep is None else sweep
    reference = kept_reference(directory, sweep) if reference is None else reference
    atomic_write(path, page(page_data(sweep, directory.resolve().name, reference)).encode())
    return path


def page(data: dict[str, Any]) -> str:
    """The page around its data. Nothing in ``data`` can end the script element it stands in."""
    assets = resources.files(__package__)
    parts = {name: (assets / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    parts["data"] = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    parts["title"] = str(data["title"]).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"\{\{(css|js|data|title)\}\}", lambda match: parts[match[1]], parts["html"])
