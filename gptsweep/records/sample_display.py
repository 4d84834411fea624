"""The display of a sample and of a list of samples: in a notebook, and of a list in a terminal."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from ..display import counted, one_line, visible

if TYPE_CHECKING:
    from .rows import Sample

MAX_SAMPLES = 50
MAX_TOKENS = 20_000
"""A list shows no more samples and tokens than this: every shaded token is an element of the page."""
_WIDTH = 70
"""The maximum number of characters of a text on a line of a terminal."""
_BOX = "white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace;text-align:left;max-width:60em;margin:.3em 0"
_INDENT = "margin-left:1.5em"
_NATS = 8.0
"""The surprise, in nats, that gets the darkest shade."""


def sample_html(sample: Sample) -> str:
    """Prompt and completion, with tokens shaded by surprise if recorded, and a line of facts; without scripts."""
    return f'<div style="{_BOX}">{_prompt(sample)}{_completion(sample)}</div>{_small(_facts(sample))}'


def samples_html(samples: Sequence[Sample]) -> str:
    """Each prompt once, then its completions as `sample_html` shows them; a line says what is left out."""
    shown = _first(samples)
    parts = []
    for prompted in _by_prompt(shown):
        parts.append(f'<div style="{_BOX}">{_prompt(prompted[0])}</div>')
        parts += [
            f'<div style="{_INDENT}"><div style="{_BOX}">{_completion(sample)}</div>{_small(_facts(sample))}</div>'
            for sample in prompted
        ]
    return f"<div>{''.join(parts)}{_small(_counts(samples, shown))}</div>"


def samples_text(samples: Sequence[Sample]) -> str:
    """Each prompt's end, then a line for each of its completions with the beginning; a line says what is left out."""
    shown = _first(samples)
    lines = []
    for prompted in _by_prompt(shown):
        prompt = one_line(prompted[0].prompt)
        lines.append(prompt if len(prompt) <= _WIDTH else f"…{prompt[-_WIDTH:]}")
        for sample in prompted:
            text = one_line(sample.completion)
            lines.append(f"  {text if len(text) <= _WIDTH else f'{text[:_WIDTH]}…'}  ({_facts(sample)})")
    return "\n".join([*lines, _counts(samples, shown)])


def _first(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The first samples, within ``MAX_SAMPLES`` and ``MAX_TOKENS``, at least one."""
    tokens = 0
    for place, sample in enumerate(samples[:MAX_SAMPLES]):
        tokens += len(sample.token_ids)
        if place and tokens > MAX_TOKENS:
            return samples[:place]
    return samples[:MAX_SAMPLES]


def _by_prompt(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Group adjacent samples of the same prompt, in order."""
    return [list(found) for _, found in groupby(samples, key=lambda sample: (sample.prompt_index, sample.prompt))]


def _counts(samples: Sequence[Sample], shown: Sequence[Sample]) -> str:
    counts = counted(len(samples), "sample")
    return counts if len(shown) == len(samples) else f"{counts}, the first {len(shown)} shown; a slice shows others"


def _facts(sample: Sample) -> str:
    facts = [f"sample {sample.sample_index}", f"seed {sample.seed}", f"{counted(len(sample.token_ids), 'token')}"]
    if sample.logprob_mean is not None:
        facts.append(f"perplexity {math.exp(min(-sample.logprob_mean, 700)):.3g}")
    return " · ".join([*facts, f"ended by {sample.finish_reason}"])


def _small(text: str) -> str:
    return f"<small>{html.escape(one_line(text))}</small>"


def _prompt(sample: Sample) -> str:
    return f'<span style="opacity:.6">{_escaped(sample.prompt)}</span>'


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
        measured = f"{math.exp(token.logprob):.1%}, rank {token.rank}; likeliest: {likely}"
        title = html.escape(one_line(measured))
        pieces.append(
            f'<span style="background:rgba(200,90,40,{shade:.2f})" title="{title}">{_escaped(text[begin:end])}</span>'
        )
    return "".join(pieces)


def _escaped(text: str) -> str:
    return html.escape(visible(text))
