"""Make the pictures of the README: a sweep of the embedded model, its page in Chromium, its table on a terminal.

    python scripts/make_pictures.py [SWEEP [SAMPLERS]]

Without SWEEP, a sweep is run in a temporary directory; without SAMPLERS, ``experiment=samplers``. It needs the extra ``test``
(playwright) and Debian's chromium, and writes ``docs/report.png``, ``docs/samples.png``, ``docs/report-dark.png``,
``docs/review.png`` and ``docs/samplers.png``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.terminal_theme import TerminalTheme

from gptsweep import read_sweep, review

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SETTINGS = [
    "sampling.temperature=0.2,0.5,0.8,1.1,1.4", "sampling.top_k=3,10,65", "seed=1,2,3", "sampling.num_samples=8",
    "sampling.max_new_tokens=240", "quiet=true",
]  # fmt: skip
SONNET = """Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date;
Sometime too hot the eye of heaven shines,
And often is his gold complexion dimm'd;
And every fair from fair sometime declines,
By chance or nature's changing course untrimm'd;
But thy eternal summer shall not fade,
Nor lose possession of that fair thou owest;
Nor shall Death brag thou wander'st in his shade,
When in eternal lines to time thou growest:
So long as men can breathe or eyes can see,
So long lives this, and this gives life to thee.
"""
PAPER = TerminalTheme(
    (252, 251, 248), (29, 27, 24),
    [(29, 27, 24), (176, 58, 10), (36, 110, 54), (138, 59, 18), (28, 95, 107), (107, 79, 160), (28, 95, 107), (93, 88, 80)],
)  # fmt: skip


def run_sweep(directory: Path) -> Path:
    """Run the sweep to show, and return its directory."""
    text = directory / "sonnet.txt"
    text.write_text(SONNET)
    sweep = directory / "shakespeare"
    command = [sys.executable, "-m", "gptsweep", "-m", "name=shakespeare", f"hydra.sweep.dir={sweep}", f"reference=FILE:{text}"]
    subprocess.run([*command, *SETTINGS], check=True, cwd=ROOT)
    return sweep


def run_samplers(directory: Path) -> Path:
    """Run the comparison of samplers to show, and return its directory."""
    sweep = directory / "samplers"
    command = [sys.executable, "-m", "gptsweep", "-m", "experiment=samplers", f"hydra.sweep.dir={sweep}", "quiet=true"]
    subprocess.run(command, check=True, cwd=ROOT)
    return sweep


def terminal(sweep: Path, path: Path) -> None:
    """Write the table of the command as an SVG file, as a terminal of 104 columns shows it."""
    options = review.parser().parse_args([str(sweep), "--best", "seq_rep_4:reference", "--no-report", "--format", "table",
                                          "--metric", "perplexity,seq_rep_4,diversity,self_bleu_4"])  # fmt: skip
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=104, file=nowhere, force_terminal=True, color_system="truecolor", markup=False)
        review.review(options, console)
    path.write_text(console.export_svg(title="python -m gptsweep.review outputs/sweeps/shakespeare", theme=PAPER))


def telling_view(sweep: Path) -> str:
    """The address of the page with three points, at the sample whose texts diverge last."""
    found = read_sweep(sweep)
    groups = found.group()
    middle = groups.index[groups["top_k"] == 65][1:4]
    texts = [
        found.samples[found.samples["point"].isin(groups["points"][row])].set_index(["prompt_index", "seed", "sample_index"])
        for row in middle
    ]
    together = {
        place: len(os.path.commonprefix([text["completion"][place] for text in texts]))  # noqa: RUF071 - not paths
        for place in texts[0].index
    }
    place = max(together, key=lambda each: together[each])
    return f"#points={','.join(map(str, middle))}&sample={'-'.join(map(str, place))}"


def clip(page: Any, selector: str, path: Path) -> None:
    """Take a picture of one part of the page, with a margin."""
    box = page.locator(selector).bounding_box()
    page.screenshot(path=path, full_page=True, clip={"x": 0, "y": max(0, box["y"]), "width": 1200, "height": box["height"]})


def main() -> None:
    """Make all pictures."""
    DOCS.mkdir(exist_ok=True)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        sweep = Path(sys.argv[1]) if len(sys.argv) > 1 else run_sweep(Path(scratch))
        samplers = Path(sys.argv[2]) if len(sys.argv) > 2 else run_samplers(Path(scratch))
        terminal(sweep, Path(scratch) / "review.svg")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1200, "height": 900}, device_scale_factor=1.5, color_scheme=scheme)
            page.goto(f"file://{sweep.resolve()}/report.html")
            page.add_style_tag(content=".bar { position: static; }")
            if scheme == "dark":
                clip(page, "#charts", DOCS / "report-dark.png")
                continue
            end = page.locator("#charts").bounding_box()
            page.screenshot(path=DOCS / "report.png", full_page=True,
                            clip={"x": 0, "y": 0, "width": 1200, "height": end["y"] + end["height"]})  # fmt: skip
            page.goto(f"file://{sweep.resolve()}/report.html{telling_view(sweep)}")
            page.reload()
            clip(page, "#samples", DOCS / "samples.png")
            page.goto(f"file://{samplers.resolve()}/report.html")
            clip(page, "#samplers", DOCS / "samplers.png")
        page = browser.new_page(viewport={"width": 1200, "height": 900}, device_scale_factor=1.5)
        page.goto(f"file://{scratch}/review.svg")
        page.locator("svg").first.screenshot(path=DOCS / "review.png")
        browser.close()


if __name__ == "__main__":
    main()
