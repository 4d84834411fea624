"""Build ``report.html``: a sweep on one page that opens offline and can be sent to a colleague.

The page is one file that contains the data as JSON, a style sheet and a script. It makes no network requests.
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
    """Build ``report.html`` of a sweep, which may be unfinished.

    Args:
        sweep: the result of `read_sweep`.
        title: the page's title.
        reference: the reference text, if there is one.
        comparisons: the requested comparisons of its samplers.
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
"""The page's files, in the order in which they are concatenated."""


def page(data: dict[str, Any]) -> str:
    """Insert the data into the page. Nothing in ``data`` can close the script element around it."""
    assets = resources.files(__package__) / "assets"
    parts = {name: "".join((assets / file).read_text(encoding="utf-8") for file in files) for name, files in ASSETS.items()}
    parts["js"] = f'"use strict";\n(() => {{\n{parts["js"]}}})();\n'
    # JavaScript's patterns need braces around code points with more than four digits.
    unsafe = re.sub(r"\\U000([0-9a-f]{5})", r"\\u{\1}", UNSAFE)
    text = json.dumps(data | {"unsafe": unsafe}, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    parts["data"] = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    parts["title"] = one_line(str(data["title"])).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"\{\{(css|js|data|title)\}\}", lambda match: parts[match[1]], parts["html"])
