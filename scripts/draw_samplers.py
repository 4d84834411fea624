"""Draw the effect of each sampler on two distributions, for ``docs/samplers.md``.

    python scripts/draw_samplers.py

It writes one SVG file per sampler into ``docs/samplers/``. Grey is the model's distribution, colour the one sampled from (by
`gptsweep.distribution`): on the left for a model that is certain of the next token, on the right for one that is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gptsweep

DIRECTORY = Path(__file__).resolve().parent.parent / "docs" / "samplers"
TOKENS = 20
SURE = [3.6 * math.exp(-0.4 * rank) for rank in range(TOKENS)]
UNSURE = [1.5 - 0.11 * rank for rank in range(TOKENS)]
SHOWN: dict[str, dict[str, Any]] = {
    "temperature-0.5": {"temperature": 0.5},
    "temperature-1.5": {"temperature": 1.5},
    "dynatemp": {"temperature": 1.0, "dynatemp_range": 0.9},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.2},
    "typical_p": {"typical_p": 0.6},
    "epsilon_cutoff": {"epsilon_cutoff": 0.04},
    "eta_cutoff": {"eta_cutoff": 0.2},
    "top_n_sigma": {"top_n_sigma": 1.2},
    "top_h": {"top_h": 0.5},
    "xtc": {"xtc_probability": 1.0, "xtc_threshold": 0.1},
    "mirostat": {"mirostat_tau": 1.2},
    "repetition_penalty": {"repetition_penalty": 1.5, "prompt_ids": (0, 3, 5)},
    "presence_penalty": {"presence_penalty": 1.0, "completion_ids": (0, 3, 3, 5)},
    "frequency_penalty": {"frequency_penalty": 1.0, "completion_ids": (0, 3, 3, 5)},
}
WIDTH, HEIGHT, GAP, BAR = 560, 120, 40, 10
MODEL, SAMPLED, TEXT = "#8c8c8c", "#c2571a", "#808080"


def panel(model: Sequence[float], sampled: Sequence[float], left: float) -> list[str]:
    """The bars of both distributions, side by side for each token."""
    top = max(*model, *sampled)
    bars = []
    for place, (before, after) in enumerate(zip(model, sampled, strict=True)):
        for value, colour, shift in ((before, MODEL, 0), (after, SAMPLED, BAR / 2)):
            high = round(value / top * (HEIGHT - 24), 1)
            if high >= 0.1:
                x = round(left + place * (BAR + 2) + shift, 1)
                bars.append(
                    f'<rect x="{x}" y="{round(HEIGHT - 6 - high, 1)}" width="{BAR / 2 - 0.5}" height="{high}" fill="{colour}"/>'
                )
    return bars


def picture(settings: dict[str, Any]) -> str:
    """The SVG of one sampler."""
    shapes = []
    for logits, title, left in ((SURE, "a sure model", 8.0), (UNSURE, "an unsure model", WIDTH / 2 + GAP / 2)):
        model = gptsweep.distribution(logits).tolist()
        shapes.append(f'<text x="{left}" y="12" font-size="11" font-family="sans-serif" fill="{TEXT}">{title}</text>')
        shapes += panel(model, gptsweep.distribution(logits, **settings).tolist(), left)
    named = ", ".join(f"{name}={value}" for name, value in settings.items() if not name.endswith("_ids"))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">'
    )
    return "\n".join([head, f"<title>{named}</title>", *shapes, "</svg>\n"])


def main() -> None:
    """Draw all samplers."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, settings in SHOWN.items():
        (DIRECTORY / f"{name}.svg").write_text(picture(settings))


if __name__ == "__main__":
    main()
