"""Blind rating on the page: by keyboard alone, the right pairs in the right order, kept, and read back by the review."""

from __future__ import annotations

import io
import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_sweep import write_report, write_sweep
from scipy.special import expit
from visit import Visit

from gptsweep import review
from gptsweep.analysis.frames import read_sweep
from gptsweep.analysis.preference import Comparisons, bradley_terry
from gptsweep.store.ratings import Rating, read_ratings

STRENGTH = [-1.0, 1.2, 0.6, -0.4]
"""What the simulated rater thinks of the settings, in log-odds."""
KEYS = {"left": "ArrowLeft", "right": "ArrowRight", "tie": "t", "both_bad": "b", "skip": "s"}


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweeps") / "night"
    prompts = ["\n", "To be", "ROMEO:"]
    write_sweep(root, temperature=(0.2, 0.5, 0.7, 1.0), top_k=(50,), seed=(1,), num_samples=4, prompts=prompts, words=20)
    write_report(root)
    return root


def hashed(text: str) -> int:
    """FNV-1a."""
    found = 0x811C9DC5
    for character in text:
        found = ((found ^ ord(character)) * 0x01000193) & 0xFFFFFFFF
    return found


class Twin:
    """The rule of docs/rating.md, written plainly: which pair a rater of no name sees after these ratings."""

    def __init__(self, root: Path) -> None:
        sweep = read_sweep(root)
        groups = {point: number for number, points in enumerate(sweep.group()["points"]) for point in points}
        rows = sweep.samples.assign(point_id=sweep.samples["point"].map(sweep.summary["point_id"])).to_dict("records")
        self.samples = {f"{row['point_id']}-{row['prompt_index']}-{row['sample_index']}": row | {"group": groups[row["point"]]}
                        for row in rows}  # fmt: skip
        same = [
            (a, b) for a, b in itertools.combinations(self.samples, 2)
            if all(self.samples[a][key] == self.samples[b][key] for key in ("prompt_index", "seed", "sample_index"))
            and self.samples[a]["completion"] != self.samples[b]["completion"]
        ]  # fmt: skip
        self.pairs = [tuple(sorted(pair)) for pair in same]

    def groups(self, pair: tuple[str, ...]) -> tuple[int, int]:
        a, b = sorted(self.samples[name]["group"] for name in pair)
        return a, b

    def next(self, ratings: list[Rating]) -> tuple[str, str]:
        """Left and right."""
        done = {tuple(sorted((each.left, each.right))) for each in ratings}
        open_pairs = [pair for pair in self.pairs if pair not in done]
        if len(ratings) % 4:
            open_pairs = self.leading(open_pairs, ratings)
            times = [self.samples[each.left]["prompt_index"] for each in ratings]
            chosen = min(
                open_pairs, key=lambda pair: (times.count(self.samples[pair[0]]["prompt_index"]), hashed(" ".join(pair)))
            )
        else:
            chosen = min(open_pairs, key=lambda pair: hashed(" ".join(pair)))
        a, b = sorted(chosen, key=lambda name: self.samples[name]["group"])
        return (b, a) if hashed(" ".join(chosen) + " ") % 2 else (a, b)

    def leading(self, open_pairs: list[tuple[str, ...]], ratings: list[Rating]) -> list[tuple[str, ...]]:
        judged = [each for each in ratings if each.verdict != "skip"]
        first, second = (np.array([self.samples[getattr(each, side)]["group"] for each in judged], dtype=np.int64)
                         for side in ("left", "right"))  # fmt: skip
        score = np.array([{"left": 1.0, "right": 0.0}.get(each.verdict, 0.5) for each in judged])
        found = bradley_terry(Comparisons(first, second, score, np.arange(len(judged)), len(STRENGTH)))
        spread, strength = np.linalg.inv(found.information), found.strength

        def apart(a: int, b: int) -> float:
            return float(spread[a, a] + spread[b, b] - 2 * spread[a, b])

        order = sorted(range(len(STRENGTH)), key=lambda a: -strength[a])
        near = {*order[:2], *(a for a in order if strength[order[0]] - strength[a] <= 2 * apart(order[0], a) ** 0.5)}
        among = {self.groups(pair) for pair in open_pairs}
        among = {pair for pair in among if set(pair) <= near} or among

        def gain(pair: tuple[int, int]) -> float:
            p = expit(strength[pair[0]] - strength[pair[1]])
            return round(float(np.log1p(p * (1 - p) * apart(*pair))), 9)

        best = max(sorted(among), key=gain)
        return [pair for pair in open_pairs if self.groups(pair) == best]


def shown(page: Any) -> list[str]:
    """The two texts, without the marks of the page."""
    return [re.sub(r"\s+", " ", text).strip() for text in page.locator("#rate .text").all_inner_texts()]


@pytest.fixture(scope="module")
def rated(browser: Any, sweep_dir: Path) -> Iterator[tuple[Any, list[Rating], list[list[str]], Path]]:
    """Verdicts by keyboard: the page, the ratings as saved, the texts that were seen, and the two files."""
    rng, twin, seen_texts = random.Random(4), Twin(sweep_dir), []
    visit = Visit(browser, sweep_dir / "report.html", offline=True)
    with visit as page:
        page.locator("#rate-open").focus()
        page.keyboard.press("Enter")
        ratings: list[Rating] = []
        for number in range(24):
            left, right = twin.next(ratings)
            seen_texts.append([*shown(page), *(twin.samples[name]["completion"] for name in (left, right))])
            gap = STRENGTH[twin.samples[left]["group"]] - STRENGTH[twin.samples[right]["group"]]
            verdict: Any = "left" if rng.random() < expit(gap) else "right"
            verdict = {5: "tie", 9: "both_bad", 11: "skip"}.get(number, verdict)
            page.keyboard.press(KEYS[verdict])
            ratings.append(Rating(left, right, verdict, "ratings"))
        files = []
        for button in ("#save-ratings", "#save-pairs"):
            page.locator(button).focus()
            with page.expect_download() as download:
                page.keyboard.press("Enter")
            files.append(sweep_dir.parent / download.value.suggested_filename)
            download.value.save_as(files[-1])
        yield page, ratings, seen_texts, files[0]


def test_rating_by_keyboard_shows_the_pairs_of_the_rule(rated: Any) -> None:
    for number, (*texts, left, right) in enumerate(rated[2]):
        for text, wanted in zip(texts, (left, right), strict=True):
            begin = re.split(r" ?×\d", text)[0].strip()  # repetitions are folded
            assert begin
            assert wanted.startswith(begin), number


def test_the_saved_file_is_what_the_review_ranks(rated: Any, sweep_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, ratings, _, file = rated
    assert file.name == "night-ratings.jsonl"
    found = read_ratings(file)
    assert [(each.left, each.right, each.verdict) for each in found] == [
        (each.left, each.right, each.verdict) for each in ratings
    ]
    assert all(0 <= each.seconds < 60 for each in found)
    options = ["--ratings", str(file), "--metric", "preference", "--format", "csv", "--no-report"]
    assert review.main([str(sweep_dir), *options]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert page.locator(".tally").count() == 0
    page.locator("#tally").press("Enter")
    rows = [row.split("\t") for row in page.locator(".tally tbody tr").all_inner_texts()]
    for row in table.to_dict("records"):
        [cells] = [cells for cells in rows if cells[0] == f"temperature {row['temperature']:g}"]
        assert cells[1] == f"{row['preference']:.3f}"
        assert list(map(int, cells[2:])) == [row["won"], row["tied"], row["both_bad"], row["lost"]]
    page.keyboard.press("s")
    assert page.locator(".tally").count() == 0
    page.keyboard.press("u")


def test_pairs_are_saved_as_data_sets_for_preference_tuning_have_them(rated: Any, sweep_dir: Path) -> None:
    _, ratings, _, file = rated
    pairs = [json.loads(line) for line in file.with_name("night-pairs.jsonl").read_text().splitlines()]
    samples = Twin(sweep_dir).samples
    wanted = [each for each in ratings if each.verdict in ("left", "right")]
    assert len(pairs) == len(wanted) == 21
    for pair, each in zip(pairs, wanted, strict=True):
        chosen, rejected = (each.left, each.right) if each.verdict == "left" else (each.right, each.left)
        assert pair == {"prompt": samples[chosen]["prompt"], "chosen": samples[chosen]["completion"],
                        "rejected": samples[rejected]["completion"]}  # fmt: skip


def test_nothing_on_the_view_names_a_setting_and_a_link_opens_it(rated: Any, browser: Any, sweep_dir: Path) -> None:
    page = rated[0]
    assert not re.search(r"temperature|top_k|perplexity", page.locator("body").inner_text())
    assert "rate=1" in page.evaluate("location.hash")
    before = shown(page)
    again = page.context.new_page()
    again.goto(page.url)
    assert shown(again) == before, "the same pair comes again"
    assert again.locator("#rate-count").inner_text() == "23 rated"
    page.keyboard.press("Escape")
    assert page.locator("#rate").is_hidden()
    assert page.locator("#samples").is_visible()
    with Visit(browser, sweep_dir / "report.html", "#rate=1&among=shown&points=1,3") as seen:
        assert "0 rated" in seen.locator("#rate-count").inner_text()
        assert seen.locator("#rate .side").count() == 2
        assert seen.locator("#rate select").evaluate("e => e.selectedOptions[0].value") == "shown"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_rating_hinders_nobody_and_fits_a_phone(browser: Any, sweep_dir: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="needs axe-core-python").Axe()
    size = {"width": 360, "height": 740}
    with Visit(browser, sweep_dir / "report.html", "#rate=1", color_scheme=scheme, viewport=size) as seen:
        seen.keyboard.press("ArrowLeft")
        seen.click("#tally")
        serious = [one for one in axe.run(seen)["violations"] if one["impact"] in ("serious", "critical")]
        assert [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in serious] == []
        assert seen.evaluate("document.documentElement.scrollWidth") == 360
        bar = seen.locator("#rate-verdicts").bounding_box()
        assert bar["y"] + bar["height"] <= 740


def test_what_a_browser_kept_damages_nothing(browser: Any, sweep_dir: Path) -> None:
    for kept in ("{", '{"ratings": [null, {"left": 1}], "rater": {}}'):
        with Visit(browser, sweep_dir / "report.html") as first:
            first.evaluate("text => localStorage.setItem('gptsweep ratings: night', text)", kept)
            seen = first.context.new_page()
            seen.goto(first.url)
            seen.click("#rate-open")
            seen.click("#rate-verdicts .verdict-tie")
            assert seen.locator("#rate-count").inner_text() == "A tie. 1 rated"
            seen.fill("#rater", "ann")
            with seen.expect_download():
                seen.click("#save-ratings")  # at once, from the field of the name
            assert "ann" in seen.evaluate("localStorage.getItem('gptsweep ratings: night')")
