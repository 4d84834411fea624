"""Reading many samples on the page: filters and order by measurements, a baseline, a matrix, links that keep it all."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from made_sweep import made_samples, write_point, write_report
from visit import Visit

from gptsweep.analysis.frames import read_sweep
from gptsweep.analysis.metrics import ends_repeating


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three settings; sample 1 is the same at all of them, sample 2 ends in a loop at the first, sample 3 begins blank."""
    root = tmp_path_factory.mktemp("sweeps") / "night"
    for temperature in (0.2, 0.6, 1.0):
        samples = made_samples(temperature=temperature, top_k=50, seed=1, num_samples=5, words=30, prompts=("\n", "To be"))
        for at, sample in enumerate(samples):
            if sample.sample_index == 1:
                samples[at] = sample.__class__(**fields_of(sample) | {"completion": "the same everywhere"})
            if sample.sample_index == 2 and temperature == 0.2:
                samples[at] = sample.__class__(**fields_of(sample) | {"token_ids": (1, 2, 3, 4) * 8})
            if sample.sample_index == 3:
                samples[at] = sample.__class__(**fields_of(sample) | {"completion": f"\n \n{sample.completion}"})
        write_point(root / f"t{temperature}", samples)
    write_report(root)
    return root


def fields_of(sample: Any) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in sample.__dataclass_fields__}


def where(page: Any) -> str:
    return str(page.locator("#where").inner_text())


def test_samples_are_filtered_and_ordered_by_what_was_measured(browser: Any, sweep_dir: Path) -> None:
    samples = read_sweep(sweep_dir).samples
    wanted = sorted(math.exp(-value) for value in samples[samples["temperature"] == 0.2]["logprob_mean"])
    with Visit(browser, sweep_dir / "report.html", "#points=0,2") as page:
        assert where(page) == "1 of 10"
        page.locator("#samples-controls select").nth(0).select_option("parted")
        assert where(page).endswith("of 8")
        page.locator("#samples-controls select").nth(0).select_option("repeating")
        loops = samples[(samples["temperature"] != 0.6) & samples["token_ids"].map(lambda ids: ends_repeating(ids.tolist()))]
        assert where(page).endswith(f"of {len(loops.drop_duplicates(['prompt_index', 'sample_index']))}")
        page.locator("#samples-controls select").nth(0).select_option("")
        page.locator("#samples-controls select").nth(1).select_option("perplexity")
        seen = []
        for _ in range(5):
            [value] = re.findall(r"perplexity ([\d.]+)", page.locator(".column").first.inner_text())
            seen.append(float(value))
            page.keyboard.press("ArrowRight")
        assert seen == pytest.approx(wanted[:5], abs=0.006)
        page.locator("#samples-controls select").nth(1).select_option("-perplexity")
        assert page.locator("#place").inner_text().count("sample") == 1
        assert where(page) == "1 of 10"


def test_every_number_and_text_stands_against_the_baseline(browser: Any, sweep_dir: Path) -> None:
    table = read_sweep(sweep_dir).compare({"temperature": 0.6}, {"temperature": 1.0})
    with Visit(browser, sweep_dir / "report.html", "#points=0,2") as page:
        assert "parts from A" in page.locator(".column").nth(1).inner_text()
        page.locator("#points-controls select").select_option("1")
        for at in (0, 1):
            text = page.locator(".column").nth(at).inner_text()
            assert "the baseline" in text
            assert "(baseline " in text
        assert (
            page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.getElementById('points-body'))") == 0
        )  # all in the window
        cell = page.locator(".points tbody tr").nth(2).locator("td.n").nth(1).inner_text()
        [difference] = re.findall(r"\(\+([\d.]+)\)", cell)
        assert float(difference) == pytest.approx(table.loc["perplexity", "difference"], abs=0.006)
        shown = f"{table.loc['perplexity', 'a']:#.3g}".rstrip(".")
        assert page.locator("#curve text.basename").text_content() == f"baseline {shown}"
        assert page.locator("#scatter text.basename").count() == page.locator("#curve line.base").count() == 1
        page.locator("#curve .dot").last.hover()
        assert re.search(r"; \+[\d.]+ \[[\d.−]+, [\d.]+\] from the baseline", page.locator("#read").inner_text())
        page.get_by_role("button", name="Column A as the baseline").click()
        assert "base=0" in page.evaluate("location.hash")
        assert "parts from A" in page.locator(".column").nth(1).inner_text()


def test_the_matrix_has_prompts_as_rows_and_settings_as_columns(browser: Any, sweep_dir: Path) -> None:
    with Visit(browser, sweep_dir / "report.html", "#points=0,2") as page:
        head = page.locator(".matrix thead th .what")
        assert [text.split()[1] for text in head.all_inner_texts()] == ["0.2", "0.6", "1"]
        assert page.locator(".matrix tbody tr").count() == 10
        page.get_by_role("button", name="Pin temperature 1").click()
        assert [text.split()[1] for text in head.all_inner_texts()] == ["1", "0.2", "0.6"]
        page.get_by_role("button", name="Hide temperature 0.2").click()
        assert head.count() == 2
        assert "the same as" in page.locator(".matrix tbody tr").nth(1).inner_text()
        assert all(text[0] not in "\n …" for text in page.locator(".matrix tbody td .excerpt").all_inner_texts())
        page.locator("#samples-controls select").nth(0).select_option("parted")
        assert page.locator(".matrix tbody tr").count() == 8
        page.locator(".matrix tbody tr").nth(2).locator("button.open").last.click()
        assert "sample 3" in page.locator("#place").inner_text()
        assert "temperature 0.6" in str(page.locator(".column").nth(1).get_attribute("aria-label"))


def test_a_link_carries_the_whole_state(browser: Any, sweep_dir: Path) -> None:
    with Visit(browser, sweep_dir / "report.html") as page:
        page.locator(".all-metrics").last.click()
        page.locator("#points-controls summary").click()
        page.get_by_label("Entropy", exact=True).uncheck()
        page.locator("#points-controls select").select_option("1")
        page.locator("#samples-controls select").nth(0).select_option("parted")
        page.locator("#samples-controls select").nth(1).select_option("-diversity")
        page.get_by_role("button", name="Pin temperature 0.6").click()
        page.get_by_role("button", name="Hide temperature 1").click()
        page.locator(".points thead button", has_text="Zipf").click()
        page.keyboard.press("ArrowRight")
        fragment, view = page.evaluate("location.hash"), page.locator("main").inner_text()
        assert "Entropy" not in page.locator(".points thead").inner_text()
    with Visit(browser, sweep_dir / "report.html", fragment) as page:
        assert page.locator("main").inner_text() == view
    hostile = "#pin=9,x,0,0&hide=__proto__&less=__proto__,nothing&show=__proto__&order=-toString&wide=2&every=x"
    with Visit(browser, sweep_dir / "report.html", hostile) as page:
        assert page.locator(".matrix thead th").count() == 4
        assert where(page) == "1 of 10"
