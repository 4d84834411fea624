"""A sample's display in a notebook."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

from ..display import one_line, visible

if TYPE_CHECKING:
    from .rows import Sample

_BOX = "white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace;text-align:left;max-width:60em;margin:.3em 0"
_NATS = 8.0
"""The surprise, in nats, that gets the darkest shade."""


def sample_html(sample: Sample) -> str:
    """Prompt and completion, with tokens shaded by surprise if recorded, and a line of facts; without scripts."""
    facts = [f"sample {sample.sample_index}", f"seed {sample.seed}", f"{len(sample.token_ids):,} tokens"]
    if sample.logprob_mean is not None:
        facts.append(f"perplexity {math.exp(min(-sample.logprob_mean, 700)):.3g}")
    facts.append(f"ended by {sample.finish_reason}")
    prompt = f'<span style="opacity:.6">{_escaped(sample.prompt)}</span>'
    return f'<div style="{_BOX}">{prompt}{_completion(sample)}</div><small>{one_line(" · ".join(facts))}</small>'


def _completion(sample: Sample) -> str:
    found, text = sample.logprobs, sample.completion
    if found is None:
        return _escaped(text)
    pieces = []
    for begin, end, token in zip((0, *found.ends), found.ends, found.tokens, strict=False):
        shade = min(1.0, max(0.0, -token.logprob / _NATS)) / 2
        likely = ", ".join(
            f"{found.texts[top]!r} {math.exp(logprob):.1%}"
            for top, logprob in zip(token.top_ids, token.top_logprobs, strict=True)
        )
        said = f"{math.exp(token.logprob):.1%}, rank {token.rank}; likeliest: {likely}"
        title = html.escape(one_line(said))
        pieces.append(
            f'<span style="background:rgba(200,90,40,{shade:.2f})" title="{title}">{_escaped(text[begin:end])}</span>'
        )
    return "".join(pieces)


def _escaped(text: str) -> str:
    return html.escape(visible(text))
