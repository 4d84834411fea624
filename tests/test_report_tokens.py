"""What a user would lose: a page that shows each token's surprise and alternatives, by mouse and by key."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_sweep import VOCABULARY, made_samples, write_point, write_report
from test_report import embedded
from visit import Visit

from gptsweep.analysis.frames import read_sweep
from gptsweep.records import Sample, SampleLogprobs, TokenLogprobs
from gptsweep.report import token_data
from gptsweep.store.logprobs import line_of


def with_tokens(sample: Sample) -> Sample:
    """A sample of words, each a token with a space before it, of which every fifth is unlikely, with alternatives made up."""
    pieces = [("" if place == 0 else " ") + VOCABULARY[token] for place, token in enumerate(sample.token_ids)]
    tokens = []
    for place, token in enumerate(sample.token_ids):
        others = [other for other in (70, 71, 72) if other != token][:2]
        likely = place % 5 != 4
        tokens.append(
            TokenLogprobs(
                logprob=-0.1 if likely else -7.0,
                sampler_logprob=-0.05,
                rank=1 if likely else 40,
                entropy=1.5,
                survivors=12,
                top_ids=(token, *others) if likely else (*others, 73),
                top_logprobs=(-0.1, -3.0, -4.0) if likely else (-0.5, -1.5, -4.0),
            )
        )
    named = sorted({*sample.token_ids, *itertools.chain.from_iterable(token.top_ids for token in tokens)})
    made = SampleLogprobs(
        alternatives=3,
        tokens=tuple(tokens),
        ends=tuple(itertools.accumulate(map(len, pieces))),
        texts={token: " " + VOCABULARY[token] for token in named},
    )
    return replace(sample, logprobs=made)


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two points whose samples have their tokens."""
    root = tmp_path_factory.mktemp("inside") / "night"
    for temperature in (0.5, 1.0):
        samples = [with_tokens(each) for each in made_samples(temperature=temperature, top_k=5, seed=1, num_samples=3)]
        write_point(root / f"t{temperature}", samples)
        (root / f"t{temperature}" / "logprobs.jsonl").write_bytes(b"".join(map(line_of, samples)))
    write_report(root)
    return root


def test_the_page_has_the_tokens_of_the_frame(inside: Path) -> None:
    data, tokens = embedded((inside / "report.html").read_text()), read_sweep(inside).tokens
    assert len(tokens) == 6 * 40
    assert sum(len(own["text"]) for own in data["tokens"]["of"]) == 240
    for text, own in zip(data["samples"]["text"], data["tokens"]["of"], strict=True):
        pieces = [text[begin:end] for begin, end in itertools.pairwise([0, *own["ends"]])]
        assert [data["tokens"]["texts"][place].strip() for place in own["text"]] == [piece.strip() for piece in pieces]
    assert {own["logprob"][4] for own in data["tokens"]["of"]} == {-7.0}


def test_a_page_takes_whole_places_up_to_its_bound(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_data, "MAX_TOKENS", 100)
    of = embedded(write_report(inside, read_sweep(inside)).read_text())["tokens"]["of"]
    monkeypatch.undo()
    write_report(inside)
    assert [own is not None for own in of] == [True, False, False] * 2


def test_characters_outside_the_basic_plane_are_counted_as_a_script_counts_them() -> None:
    assert token_data._in_utf16("a😀b", [1, 2, 3]) == [1, 3, 4]
    assert token_data._in_utf16("abc", [1, 2, 3]) == [1, 2, 3]


def test_tokens_are_shaded_and_say_what_else_was_likely_by_mouse_and_key(browser: Any, inside: Path) -> None:
    with Visit(browser, inside / "report.html") as seen:
        assert seen.locator(".token").count() == 0
        whole = embedded((inside / "report.html").read_text())["samples"]["text"][0]
        seen.click("#inside")
        first = seen.locator(".column").first
        assert first.locator(".tokens").inner_text() == whole
        assert "s7" in (first.locator(".tokens .token").nth(4).get_attribute("class") or "")
        assert "s0" in (first.locator(".tokens .token").nth(3).get_attribute("class") or "")
        assert seen.locator(".token.fork").count() == 2
        first.locator(".tokens .token").nth(4).hover()
        shown = first.locator(".inspect").inner_text()
        assert "rank 40" in shown
        assert "left 12" in shown
        assert first.locator(".inspect tr").count() == 4
        first.locator(".tokens .token").first.focus()
        for _ in range(2):
            seen.keyboard.press("ArrowRight")
        assert "token 3 of 40" in first.locator(".inspect").inner_text()
        assert seen.locator("#where").inner_text() == "1 of 3"
        assert first.locator(".inspect .chosen").count() == 1
        assert "inside=1" in seen.evaluate("location.hash")


def test_a_link_opens_the_tokens_and_nothing_sticks_out(browser: Any, inside: Path) -> None:
    with Visit(browser, inside / "report.html", "#inside=1", viewport={"width": 360, "height": 740}) as seen:
        assert seen.locator(".token").count() > 40
        assert seen.evaluate("document.documentElement.scrollWidth") == 360
