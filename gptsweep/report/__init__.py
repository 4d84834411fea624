"""``report.html``: a sweep on one page that opens offline and can be sent to a colleague.

The page is one file: the data as JSON, a style sheet and a script, all in place. It asks the network for nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from ..analysis.reference import Reference
from ..analysis.samplers import SamplerComparison
from ..analysis.sweep import Sweep
from ..display import UNSAFE, one_line
from .data import page_data

__all__ = ["page", "page_data", "report"]


def report(
    sweep: Sweep, title: str, reference: Reference | None = None, comparisons: Sequence[SamplerComparison] = ()
) -> bytes:
    """``report.html`` of a sweep, whatever state it is in.

    Args:
        sweep: what `read_sweep` found.
        title: of the page.
        reference: what is known of a reference text.
        comparisons: of its samplers, those that were asked for.
    """
    return page(page_data(sweep, title, reference, comparisons)).encode()


ASSETS = {
    "html": ("page.html",),
    "css": ("page.css", "tokens.css", "rate.css", "matrix.css"),
    "js": (
        "data.js", "elements.js", "names.js", "state.js", "places.js", "means.js", "head.js", "effects.js", "plot.js",
        "charts.js", "samplers.js", "compare.js", "points.js", "tokens.js", "samples.js", "filters.js", "matrix.js",
        "rate.js", "begin.js",
    ),
}  # fmt: skip
"""The files of the page, in the order in which they follow each other."""


def page(data: dict[str, Any]) -> str:
    """The page around its data. Nothing in ``data`` can end the script element it stands in."""
    assets = resources.files(__package__) / "assets"
    parts = {name: "".join((assets / file).read_text(encoding="utf-8") for file in files) for name, files in ASSETS.items()}
    parts["js"] = f'"use strict";\n(() => {{\n{parts["js"]}}})();\n'
    # In a pattern of JavaScript, code points of more than four digits stand in braces.
    unsafe = re.sub(r"\\U000([0-9a-f]{5})", r"\\u{\1}", UNSAFE)
    text = json.dumps(data | {"unsafe": unsafe}, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    parts["data"] = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    parts["title"] = one_line(str(data["title"])).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"\{\{(css|js|data|title)\}\}", lambda match: parts[match[1]], parts["html"])
