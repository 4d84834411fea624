"""The page that is sent to a colleague: it opens offline in a real browser, shows text as text, and can be used by keyboard."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import random
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_sweep import VOCABULARY, made_samples, write_point, write_report, write_sweep
from visit import Visit

from gptsweep import review
from gptsweep.analysis import numbers
from gptsweep.analysis import sweep as analysed
from gptsweep.analysis.frames import read_sweep
from gptsweep.analysis.metrics import METRICS
from gptsweep.analysis.reference import Reference
from gptsweep.display import UNSAFE
from gptsweep.multirun.point import objective_of
from gptsweep.report import data as report_data
from gptsweep.report import page
from gptsweep.store.ratings import read_ratings

NASTY = "</script><script>boom()</script> <!-- <b>bold</b> \u2028 \u2029 \u202eright\u200f \0 nul \x1b[31m &amp; \ufeff"


SAMPLERS = ["perplexity:min", "self_bleu_4"]


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweeps") / "night"
    write_sweep(root, temperature=(0.0, 0.5, 1.0), top_k=(5, 50, None), seed=(1, 2), num_samples=6, prompts=("\n", "To be"))
    write_report(root, samplers=SAMPLERS)
    return root


def embedded(html: str) -> Any:
    """The page's data as the browser would read it."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_is_small_beside_its_data(sweep_dir: Path) -> None:
    html = (sweep_dir / "report.html").read_text()
    assert len(html.encode()) - len(json.dumps(embedded(html))) < 300_000
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in html


def test_no_text_can_end_the_script_it_stands_in(tmp_path: Path) -> None:
    samples = made_samples(temperature=0.5, top_k=5, seed=1, text=NASTY, prompts=(NASTY,), num_samples=2)
    write_point(tmp_path / "run", samples, start=NASTY)
    html = write_report(tmp_path / "run").read_text()
    assert html.count("</script>") == 2
    assert "<!--" not in html
    assert embedded(html)["samples"]["text"][0] == NASTY


def test_a_title_is_text(sweep_dir: Path) -> None:
    html = page(embedded((sweep_dir / "report.html").read_text()) | {"title": "<b>&{{css}}{{data}}</b>"})
    assert "<title>&lt;b>&amp;{{css}}{{data}}&lt;/b> · gptsweep</title>" in html


def test_numbers_on_the_page_are_those_of_the_frame(sweep_dir: Path) -> None:
    data = embedded((sweep_dir / "report.html").read_text())
    table = read_sweep(sweep_dir).group()
    assert data["values"]["perplexity"]["mean"] == pytest.approx(list(table["perplexity"]), rel=1e-4)
    assert data["values"]["perplexity"]["error"] == pytest.approx(list(table["perplexity_se"]), rel=1e-4)
    assert data["values"]["self_bleu_4"]["n"] == [2] * 9
    assert [key["labels"] for key in data["keys"]] == [["0", "0.5", "1"], ["5", "50", "null"]]
    assert data["total"] == len(data["samples"]["text"]) == 216


def test_the_curves_of_samplers_are_those_of_the_table(sweep_dir: Path) -> None:
    found, few = embedded((sweep_dir / "report.html").read_text())["samplers"]
    compared = read_sweep(sweep_dir).compare_samplers("perplexity:min")
    assert found["sentence"] == compared.sentence
    assert [family["name"] for family in found["families"]] == ["no truncation", "top_k"]
    for family in found["families"]:
        rows = compared.table[compared.table["family"] == family["name"]]
        for short, column in (
            ("best", "held_out"),
            ("low", "held_out_low"),
            ("high", "held_out_high"),
            ("same", "same_samples"),
        ):
            assert family[short] == pytest.approx(list(rows[column]), rel=1e-6)
    assert few["families"][0]["low"] == [None] * 3


def test_a_mean_beside_half_a_digit_is_rounded_once() -> None:
    assert f"{report_data.number(2.304972):.2f}" == "2.30"  # to five digits first it would be 2.305, and shown as 2.31


def test_too_many_samples_are_thinned_evenly_and_the_page_knows(sweep_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysed, "MAX_SAMPLES", 60)
    data = report_data.page_data(read_sweep(sweep_dir), "night")
    samples = data["samples"]
    assert 30 <= len(samples["text"]) <= 60
    assert data["total"] == 216
    by_group: dict[int, set[Any]] = {}
    for group, *place in zip(samples["group"], samples["place"], samples["seed"], samples["index"], strict=True):
        by_group.setdefault(group, set()).add(tuple(place))
    assert len(by_group) == 9
    assert len({frozenset(places) for places in by_group.values()}) == 1


def test_the_page_of_a_partial_sweep_says_what_is_missing(tmp_path: Path) -> None:
    root = write_sweep(tmp_path / "s", temperature=[0.5, 1.0], top_k=[5], seed=[1])
    broken = root / "sampling.temperature=1.5,sampling.top_k=5,seed=1"
    broken.mkdir()
    lines = [sample.line() for sample in made_samples(temperature=1.5, top_k=5, seed=1)]
    (broken / "samples.partial.jsonl").write_text("".join(lines[:3]) + "{torn")
    (root / "sweep.csv").write_text("temperature,top_k,seed,status,error,directory\n2,5,1,failed,out of memory,nowhere\n")
    data = embedded(write_report(root).read_text())
    assert data["facts"]["statuses"] == {"complete": 2, "partial": 1, "failed": 1, "missing": 0}
    assert any("out of memory" in problem for problem in data["problems"])
    assert any("samples.partial.jsonl" in problem for problem in data["problems"])


def test_a_page_can_be_written_before_the_first_sample(tmp_path: Path) -> None:
    (tmp_path / "s" / "sampling.temperature=0.5" / ".hydra").mkdir(parents=True)
    (tmp_path / "s" / "sampling.temperature=0.5" / ".hydra" / "overrides.yaml").write_text("- sampling.temperature=0.5\n")
    assert embedded(write_report(tmp_path / "s").read_text())["facts"]["points"] == 1


# ---------------------------------------------------------------------------------------------------- in a real browser


def test_it_opens_offline_without_a_request_or_an_error(browser: Any, sweep_dir: Path) -> None:
    with Visit(browser, sweep_dir / "report.html", offline=True) as seen:
        assert seen.locator("h1").inner_text() == "night"
        assert "18 points" in seen.locator("#facts").inner_text()
        assert seen.locator(".heat td button").count() == 9
        assert seen.locator(".points tbody tr").count() == 9
        assert seen.locator("#curve .dot").count() == 9
        assert seen.locator(".column").count() == 3


def test_the_metric_changes_every_chart(browser: Any, sweep_dir: Path) -> None:
    with Visit(browser, sweep_dir / "report.html") as seen:
        before = seen.locator(".heat").inner_text()
        seen.select_option("#metric", "entropy_mean")
        assert seen.locator(".heat").inner_text() != before
        assert seen.locator("#charts-h").inner_text() == "Entropy"
        seen.locator(".effects th button", has_text="Diversity").click()
        assert seen.locator("#charts-h").inner_text() == "Diversity"


def test_pressing_a_cell_shows_its_samples(browser: Any, sweep_dir: Path) -> None:
    with Visit(browser, sweep_dir / "report.html", "#points=0") as seen:
        assert seen.locator(".column").count() == 1
        cell = seen.locator('.heat button[aria-label*="temperature 1, top_k 50"]')
        cell.focus()
        assert "top_k 50: Perplexity" in seen.locator("#read").inner_text()
        seen.keyboard.press("Enter")
        assert seen.locator(".column").count() == 2
        assert "temperature 1 · top_k 50" in seen.locator(".column select").nth(1).evaluate("e => e.selectedOptions[0].text")


def test_a_column_can_show_another_point(browser: Any, sweep_dir: Path) -> None:
    with Visit(browser, sweep_dir / "report.html", "#points=0,4") as seen:
        seen.locator(".column select").nth(1).focus()
        seen.locator(".column select").nth(1).select_option("8")
        assert seen.locator(".column").nth(1).get_attribute("aria-label") == "Column B: temperature 1 · top_k null"
        assert "points=0%2C8" in seen.evaluate("location.hash")
        seen.locator(".column header button[aria-label^=Remove]").first.click()
        assert seen.locator(".column").count() == 1


def test_arrow_keys_move_through_the_samples(browser: Any, sweep_dir: Path) -> None:
    with Visit(browser, sweep_dir / "report.html") as seen:
        assert seen.locator("#where").inner_text() == "1 of 24"
        first = seen.locator(".column .text").first.inner_text()
        for _ in range(2):
            seen.keyboard.press("ArrowRight")
        assert seen.locator("#where").inner_text() == "3 of 24"
        seen.keyboard.press("ArrowLeft")
        seen.keyboard.press("ArrowLeft")
        assert seen.locator("#where").inner_text() == "1 of 24"
        assert seen.locator(".column .text").first.inner_text() == first
        seen.locator("#find").focus()
        seen.keyboard.press("ArrowRight")  # in a text field the keys belong to the text
        assert seen.locator("#where").inner_text() == "1 of 24"


def test_the_filter_keeps_only_samples_with_the_words(browser: Any, sweep_dir: Path) -> None:
    with Visit(browser, sweep_dir / "report.html", "#points=8") as seen:
        samples = embedded((sweep_dir / "report.html").read_text())["samples"]
        texts = [text for text, group in zip(samples["text"], samples["group"], strict=True) if group == 8]
        counts = {word: sum(word in text for text in texts) for word in VOCABULARY}
        word, wanted = next((word, count) for word, count in counts.items() if 3 <= count <= 9)
        seen.fill("#find", word.upper())
        assert seen.locator("#where").inner_text().endswith(f"of {wanted}")
        assert seen.locator(".text .hit").first.inner_text() == word
        seen.fill("#find", "no such words")
        assert seen.locator("#where").inner_text() == "nothing found"


def test_a_link_brings_a_colleague_to_the_same_view(browser: Any, sweep_dir: Path) -> None:
    with Visit(browser, sweep_dir / "report.html") as seen:
        seen.select_option("#metric", "diversity")
        seen.locator(".points tbody tr").nth(4).locator(".pickcell button").click()
        seen.keyboard.press("ArrowRight")
        seen.fill("#find", "the")
        fragment = seen.evaluate("location.hash")
        views = [seen.locator("main").inner_text(), seen.locator("#find").input_value()]
    with Visit(browser, sweep_dir / "report.html", fragment) as seen:
        assert [seen.locator("main").inner_text(), seen.locator("#find").input_value()] == views
        seen.evaluate("location.hash = '#metric=zipf&sample=1-2-3'")
        seen.wait_for_function("document.querySelector('#charts-h').textContent.startsWith('Zipf')")
        assert "prompt 1" in seen.locator("#place").inner_text()
    with Visit(browser, sweep_dir / "report.html", "#metric=nonsense&points=99,x&sample=9&x=%00&sort=y&base=-1") as seen:
        assert seen.locator("#charts-h").inner_text() == "Perplexity"


def test_text_is_shown_as_text_whatever_it_holds(browser: Any, tmp_path: Path) -> None:
    for temperature in (0.5, 1.0):
        samples = made_samples(
            temperature=temperature, top_k=5, seed=1, text=f"{NASTY} {temperature}", prompts=(NASTY,), num_samples=2
        )
        write_point(tmp_path / NASTY.replace("/", "").replace("\0", "")[:40] / f"t{temperature}", samples, start=NASTY)
    [root] = tmp_path.iterdir()
    path = write_report(root).rename(tmp_path / "report.html")
    with Visit(browser, path) as seen:
        text = seen.locator(".column .text").first.inner_text()
        assert "</script><script>boom()</script> <!-- <b>bold</b>" in text
        assert seen.locator(".text .odd").all_inner_texts()[:7] == ["LS", "PS", "RLO", "RLM", "NUL", "ESC", "BOM"]
        assert seen.locator(".text b").count() == 0
        assert "&amp;" in text
        assert seen.evaluate("document.querySelectorAll('script').length") == 2


def test_no_name_or_problem_hides_or_reorders_what_stands_beside_it(browser: Any, tmp_path: Path) -> None:
    odd = "\u202eright\u2066\u200b\U000e0041\x9b"
    root = tmp_path / f"night{odd}"
    for number, (out_dir, temperature) in enumerate(itertools.product((f"a{odd}", f"b{odd}"), (0.5, 1.0))):
        samples = made_samples(temperature=temperature, top_k=5, seed=1, model=f"m{odd}", num_samples=2)
        write_point(root / f"{number}", samples, model=f"m{odd}", out_dir=out_dir)
    (root / "sweep.csv").write_text(f"temperature,top_k,seed,status,error,directory\n2,5,1,failed,boom{odd},nowhere\n")
    everything = """() => [document.title, document.body.textContent.replace(document.getElementById("data").textContent, ""),
        ...[...document.querySelectorAll("*")].flatMap((node) => [...node.attributes].map((each) => each.value))].join(" ")"""
    with Visit(browser, write_report(root).rename(tmp_path / "report.html"), "#points=0,1,2,3") as seen:
        seen.locator("#curve .dot").first.hover(force=True)
        for select in seen.locator(".column select").all():
            select.focus()
        text = seen.evaluate(everything)
        assert not re.search(f"[{UNSAFE}]", text)
        shown = r"\u202eright\u2066\u200b\u{e0041}\u009b"
        assert seen.locator("h1").inner_text() == f"night{shown}"
        assert f"m{shown}" in seen.locator("#facts").text_content()
        assert f"boom{shown}" in seen.locator("#problems").text_content()
        for place in (".heat tbody", "#effects", ".points", ".column header"):
            assert shown in seen.locator(place).first.inner_text() + seen.locator(place).first.inner_html(), place


def test_the_first_difference_is_marked_and_repeats_are_folded(browser: Any, tmp_path: Path) -> None:
    for temperature, ending in ((0.5, "one"), (1.0, "two")):
        text = "My lord, " + "so it goes on " * 30 + ending + " and the rest"
        write_point(tmp_path / "s" / f"t{temperature}", made_samples(temperature=temperature, top_k=5, seed=1, text=text))
    with Visit(browser, write_report(tmp_path / "s")) as seen:
        assert seen.locator(".text .fork").all_inner_texts() == ["one", "two"]
        assert "parts from A after 429 characters" in seen.locator(".column").nth(1).inner_text()
        fold = seen.locator(".text .times").first
        assert fold.inner_text() == "×30"
        assert seen.locator(".text").first.inner_text().count("so it goes on") == 1
        fold.click()
        assert seen.locator(".text").first.inner_text().count("so it goes on") == 30


def test_what_cannot_be_told_from_the_chosen_point_is_marked(browser: Any, sweep_dir: Path) -> None:
    with Visit(browser, sweep_dir / "report.html") as seen:
        seen.select_option("#points-controls select", "0")
        cells = seen.locator(".points tbody tr").nth(8).locator("td").all_inner_texts()
        assert not any(cell.startswith("≈") and cell.startswith("7.") for cell in cells)
        assert any(cell.startswith("≈ 40.0") for cell in cells)
        seen.locator(".points thead button", has_text="Perplexity").click()
        seen.locator(".points thead button", has_text="Perplexity").click()
        assert seen.locator(".points th[aria-sort]").get_attribute("aria-sort") == "descending"


def read_number(text: str) -> float:
    """A number as the page writes it."""
    return float(text.replace("\u2212", "-"))


@pytest.mark.parametrize(("drawn", "noise"), [(5, "common"), (6, "independent")])
def test_the_page_and_the_review_say_the_same_of_two_points(browser: Any, tmp_path: Path, drawn: int, noise: str) -> None:
    """Samples of very different lengths, empty ones, copies, a missing seed: every metric, every mark, every interval."""
    rng = random.Random(drawn)
    for temperature, seed in itertools.product((0.2, 0.25, 1.2), (1, 2, 3)):
        samples = []
        made = made_samples(temperature=temperature, top_k=None, seed=seed, num_samples=4, words=90, prompts=("a", "b"))
        for sample in made:
            cut = rng.choice([0, 3, 40, 90])
            assert sample.logprob_mean is not None
            numbers = {"logprob_mean": sample.logprob_mean - rng.random(), "entropy_mean": rng.random()}
            numbers = numbers if cut else dict.fromkeys(numbers)  # type: ignore[assignment]
            text = " ".join(sample.completion.split()[:cut])
            own_noise = replace(sample.sampling, noise=noise)
            more: Any = {
                "sampling": own_noise,
                **numbers,
                "sampler_logprob_mean": None,
                "token_ids": sample.token_ids[:cut],
                "completion": text,
            }
            samples.append(replace(sample, **more))
        if (temperature, seed) != (1.2, 2):
            write_point(tmp_path / "s" / f"{temperature} {seed}", samples)
        if seed == 1:
            write_point(tmp_path / "s" / f"{temperature} {seed} again", samples)
    sweep = read_sweep(tmp_path / "s")
    marks = []
    with Visit(browser, write_report(tmp_path / "s"), "#base=0") as seen:
        seen.locator(".all-metrics").last.click()
        for group, temperature in ((1, 0.25), (2, 1.2)):
            cells = seen.locator(".points tbody tr").nth(group).locator("td.n").all()[1:]
            for name, cell in zip(sweep.metrics, cells, strict=True):
                change = sweep.compare({"temperature": 0.2}, {"temperature": temperature}).loc[name]
                mark = "?" if change["reason"] else "" if change["differs"] else "≈"
                marks.append(mark)
                assert cell.inner_text().partition(" ")[0].strip("0123456789.−-±") == mark, (name, cell.inner_text(), change)
                found = re.fullmatch(
                    r"\+?(\S+) \[(\S+), (\S+)\] from the baseline, (\d+) pairs?", cell.get_attribute("title") or ""
                )
                assert found, name
                assert int(found[4]) == change["pairs"], name
                shown = [read_number(each) for each in found.groups()[:3]]
                wanted = [change["difference"], change["low"], change["high"]]
                if change["pairs"] > 1:
                    assert shown == pytest.approx(wanted, rel=0.006, abs=0.006 * abs(change["difference"]) + 5e-4), name
        assert re.search(
            r"of \d+ comparisons [\d.]+ would differ by chance alone", seen.locator("#points-controls").inner_text()
        )
    assert {"?", "≈", ""} == set(marks)


def test_a_number_has_the_same_digits_in_the_terminal_and_on_the_page(browser: Any) -> None:
    """Among them halves of the last digit, zeros with a sign, and numbers that become one digit longer."""
    rng = random.Random(2)
    values = [0.0, 0.0625, -0.0625, 0.3125, 1.125, 2.5, 100.5, -100.5, 999.5, 0.9996, -0.0004, 1e-5, 1234567.0, 1225000.0, 1e12]
    values += [sign * rng.randrange(1, 4000) / 16 ** rng.randrange(6) for _ in range(600) for sign in (1, -1)]
    values += [math.exp(rng.uniform(-14, 16)) for _ in range(600)]
    errors = [abs(value) * rng.random() for value in values]
    script = resources.files("gptsweep.report") / "assets" / "names.js"
    program = f"""(cases) => {{
        const byName = {{ share: {{ unit: "share" }}, nats: {{ unit: "nats" }} }}, keys = [], groups = {{}}, state = {{}};
        {script.read_text(encoding="utf-8")}
        const edges = (name, value, error) => [error, -error].map((edge) => showLike(name, edge, value));
        return cases.map(([name, value, error]) => [showOf(name, value), ...edges(name, value, error)]);
    }}"""
    shares, nats = METRICS["distinct_2"], METRICS["entropy_mean"]
    assert (shares.unit, nats.unit) == ("share", "nats")
    cases = [(metric, *pair) for metric in (shares, nats) for pair in zip(values, errors, strict=True)]
    page = browser.new_page()
    shown = page.evaluate(
        program, [(m.unit, report_data.number(value), report_data.number(error)) for m, value, error in cases]
    )
    page.close()
    for (metric, value, error), found in zip(cases, shown, strict=True):
        formatted = [numbers.number(metric, value), *(numbers.like(metric, edge, value) for edge in (error, -error))]
        assert [each.replace("\u2212", "-") for each in found] == formatted, (metric.unit, value, error)
    assert numbers.number(shares, 0.0625) == "0.063"
    assert numbers.like(shares, -0.0004, 0.5) == "0.000"


def test_every_surface_shows_the_same_numbers(browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three settings, seeds and lengths, two prompts, ratings: frame, CSV, terminal, page, notebook, objective."""
    rng, root = random.Random(9), tmp_path / "s"
    ids: dict[tuple[int, ...], list[str]] = {}
    for temperature, seed in itertools.product((0.2, 0.6, 1.2), (1, 2, 3)):
        samples = []
        for sample in made_samples(temperature=temperature, top_k=5, seed=seed, num_samples=3, words=60, prompts=("a", "b")):
            words = sample.completion.split()[: rng.choice([8, 30, 60])]
            assert sample.logprob_mean is not None
            numbers_of = {"token_ids": sample.token_ids[: len(words)], "logprob_mean": sample.logprob_mean - rng.random()}
            samples.append(replace(sample, completion=" ".join(words), **numbers_of))  # type: ignore[arg-type]
            ids.setdefault((seed, *sample.key), []).append(sample.as_json()["sample_id"])
        write_point(root / f"{temperature} {seed}", samples)
    rated = [rng.sample(each, 2) for each in ids.values()]
    ratings = [{"left": left, "right": right, "verdict": rng.choice(["left", "right", "tie"])} for left, right in rated]
    (tmp_path / "me.jsonl").write_text("".join(json.dumps(rating) + "\n" for rating in ratings))

    def reviewed(*arguments: str) -> str:
        assert review.main([str(root), "--ratings", str(tmp_path / "me.jsonl"), *arguments]) == 0
        return capsys.readouterr().out

    wanted = "preference,perplexity,entropy_mean,distinct_2,self_bleu_4,seq_rep_4,completion_tokens_mean"
    table = pd.read_csv(io.StringIO(reviewed("--format", "csv", "--metric", wanted)))
    terminal = [
        reviewed("--format", "table", "--best", best, "--metric", wanted) for best in ("perplexity:min", "preference:max")
    ]
    sweep = read_sweep(root).rated(read_ratings(tmp_path / "me.jsonl"))
    rows = sweep.group()
    assert rows["num_samples"].tolist() == [18, 18, 18]
    shown = []
    for name in (found for found in wanted.split(",") if found in sweep.metrics):
        metric = sweep.declared[name]
        for row, of_csv in zip(rows.to_dict("records"), table.to_dict("records"), strict=True):
            mean, error = row[name], row[f"{name}_se"]
            assert [of_csv[name], of_csv[f"{name}_se"], of_csv[f"{name}_n"]] == [mean, error, row[f"{name}_n"]]
            shown.append((name, f"{numbers.number(metric, mean)} ±{numbers.like(metric, error, mean)}"))
    html = sweep._repr_html_()
    with Visit(browser, root / "report.html") as seen:
        seen.locator(".all-metrics").last.click()
        page_cells = seen.locator(".points tbody").inner_text()
    for name, cell in shown:
        assert all(cell in text for text in terminal), (name, cell)
        assert cell in page_cells, (name, cell)
        assert not sweep.declared[name].default or cell.replace("±", "± ") in html, (name, cell)
    for (label, point), of_file in zip(sweep.summary.iterrows(), sweep.directories.values(), strict=True):
        alone = sweep.only(sweep.summary.index == label).group().iloc[0]
        [line] = csv.DictReader((of_file / "summary.csv").open())
        for name in ("perplexity", "entropy_mean", "distinct_2", "seq_rep_4"):
            objective = objective_of({name: float(line[name])}, name)
            assert [point[name], alone[name]] == pytest.approx([objective] * 2, rel=1e-12)


@pytest.mark.parametrize("noise", ["common", "independent"])
def test_the_page_has_the_means_of_the_review_whatever_is_left_open(browser: Any, tmp_path: Path, noise: str) -> None:
    root = tmp_path / "s"
    for temperature, top_k, words, seed in itertools.product((0.2, 0.9), (5, 50), (10, 60), (1, 2)):
        samples = made_samples(temperature=temperature, top_k=top_k, seed=seed, words=words, num_samples=3)
        samples = [replace(sample, sampling=replace(sample.sampling, noise=noise)) for sample in samples]
        write_point(root / f"{temperature} {top_k} {words} {seed}", samples)
    sweep = read_sweep(root)
    table, base = sweep.group(["temperature", "top_k"]), {"temperature": 0.2, "top_k": 5, "max_new_tokens": 10}
    with Visit(browser, write_report(root), "#x=temperature&y=top_k&base=0") as seen:
        for row in table.to_dict("records"):
            cell = seen.locator(f'.heat button[aria-label^="temperature {row["temperature"]:g}, top_k {row["top_k"]}:"]')
            mean, error, n = re.findall(r"([\d.]+) ± ([\d.]+), n = (\d+)", cell.get_attribute("aria-label"))[0]
            assert (float(mean), float(error)) == pytest.approx((row["perplexity"], row["perplexity_se"]), rel=5e-3, abs=6e-3)
            assert int(n) == row["perplexity_n"] == 12
            cell.hover()
            change = sweep.compare(base, {key: row[key] for key in ("temperature", "top_k")}).loc["perplexity"]
            shown = re.findall(r"; ([≈?]?) ?\+?(\S+) \[(\S+), (\S+)\] from the baseline", seen.locator("#read").inner_text())[0]
            assert shown[0] == ("?" if change["reason"] else "" if change["differs"] else "≈")
            assert [read_number(each) for each in shown[1:]] == pytest.approx(
                [change["difference"], change["low"], change["high"]], rel=0.006, abs=0.006
            )


@pytest.mark.parametrize("goal", [2000.0, 0.001])
def test_a_reference_far_away_flattens_no_curve(browser: Any, sweep_dir: Path, goal: float) -> None:
    def height(seen: Any, plot: str) -> float:
        return float(
            seen.evaluate(f"""(() => {{ const at = [...document.querySelectorAll('{plot} .dot')]
            .map((dot) => {{ const box = dot.getBoundingClientRect(); return box.y + box.height / 2; }});
            return Math.max(...at) - Math.min(...at); }})()""")
        )

    sweep, path = read_sweep(sweep_dir), sweep_dir / "report.html"
    near = Reference({"perplexity": 5.0, "diversity": 0.9}, "FILE:near.txt")
    with Visit(browser, write_report(sweep_dir, sweep, near)) as seen:
        assert "reference text 5.00" in seen.locator("#curve").inner_text()
        heights = height(seen, "#curve"), height(seen, "#scatter")
        assert seen.locator("#curve .ref").count() == 1
    with Visit(
        browser, write_report(sweep_dir, sweep, Reference({"perplexity": goal, "diversity": 0.9}, "FILE:far.txt"))
    ) as seen:
        assert "reference text" in seen.locator("#curve").inner_text()
        assert seen.locator("#curve .ref").count() == 0
        assert height(seen, "#curve") > 0.6 * heights[0]
        assert height(seen, "#scatter") > 0.6 * heights[1]
    assert write_report(sweep_dir, samplers=SAMPLERS) == path  # as other tests read it


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_are_told_apart_and_named(browser: Any, tmp_path: Path, scheme: str) -> None:
    write_sweep(tmp_path / "s", temperature=(0.2, 0.9), top_k=range(2, 42), seed=[1], num_samples=1, words=5)
    with Visit(browser, write_report(tmp_path / "s"), "#x=temperature&y=top_k", color_scheme=scheme) as seen:
        looks = seen.evaluate("""[...document.querySelectorAll('#curve g:has(> .dot)')].map((one) => {
            const line = one.querySelector('.line'), dot = one.querySelector('.dot');
            return [getComputedStyle(line).stroke, line.getAttribute('stroke-dasharray'),
                dot.tagName + (dot.getAttribute('d') || '').replace(/[^A-Z]/g, '')]; })""")
        lines = [tuple(look) for look in looks]
        assert len(set(lines)) == len(lines) == 40
        colours = [[int(part) for part in re.findall(r"\d+", colour)[:3]] for colour, *_ in lines[:8]]
        assert min(math.dist(a, b) for a, b in itertools.combinations(colours, 2)) > 50
        names = seen.locator("#curve text").all_text_contents()
        assert {str(top_k) for top_k in range(2, 42)} <= set(names)


def test_titles_and_labels_say_what_differs(browser: Any, tmp_path: Path) -> None:
    long = [f"/home/someone/experiments/nanogpt/{name}/out-shakespeare-char" for name in ("dropout-a", "dropout-b")]
    for number, (out_dir, temperature) in enumerate(itertools.product(long, (0.5, 1.0))):
        samples = made_samples(temperature=temperature, top_k=5, seed=1, model=out_dir, num_samples=2)
        write_point(tmp_path / "s" / f"{number}", samples, model="resume", out_dir=out_dir)
    with Visit(browser, write_report(tmp_path / "s"), "#points=0,1") as seen:
        titles = [seen.locator(".column select").nth(at).evaluate("e => e.selectedOptions[0].text") for at in (0, 1)]
        assert len(set(titles)) == 2
        assert all("dropout-" in title and len(title) < 40 and "temperature" not in title for title in titles)
        assert "all columns temperature 0.5" in seen.locator("#place").inner_text()
        for labels in (seen.locator(".heat tbody th"), seen.locator(".points tbody th")):
            found = {text for text in labels.all_inner_texts() if "/" in text or "dropout" in text or "-" in text}
            assert len(found) in (0, 2)


def test_a_failed_point_is_no_column(browser: Any, tmp_path: Path) -> None:
    root = write_sweep(tmp_path / "s", temperature=[0.5, 0.7], top_k=[5], seed=[1])
    (root / "sweep.csv").write_text(
        "temperature,top_k,seed,status,error,directory\n" + "".join(f"{t},5,1,failed,boom,x{t}\n" for t in (0.1, 0.2, 0.6, 1.5))
    )
    with Visit(browser, write_report(root)) as seen:
        assert seen.locator(".column").count() == 2
        assert seen.locator(".column .empty").count() == 0
        seen.locator(".column header button[aria-label^=Remove]").first.click()
        seen.click("#more")
        assert seen.locator(".column .empty").count() == 0


@pytest.mark.parametrize("word", ["__proto__", "constructor", "toString", "-__proto__", "-1", "1e9", "NaN", "%", "<b>"])
def test_no_address_empties_the_page(browser: Any, sweep_dir: Path, word: str) -> None:
    names = ("metric", "mx", "my", "x", "y", "only.top_k", "only.__proto__", "points", "sort", "base", "sample")
    with Visit(browser, sweep_dir / "report.html", "#" + "&".join(f"{name}={word}" for name in names)) as seen:
        assert seen.locator("#charts-h").inner_text() == "Perplexity"
        assert seen.locator(".heat td button").count() == 9
        assert seen.locator(".points tbody tr").count() == 9
        assert seen.locator(".points th[aria-sort]").count() == 0
        assert seen.locator(".column").count() == 3
        seen.evaluate("location.hash = 'x=top_k&y=top_k&metric=entropy_mean'")
        seen.wait_for_function("document.querySelector('#charts-h').textContent === 'Entropy'")
        assert seen.locator(".heat td button").count() == 9


def test_the_comparison_of_samplers_is_drawn_and_stated(browser: Any, sweep_dir: Path, tmp_path: Path) -> None:
    compared = read_sweep(sweep_dir).compare_samplers("perplexity:min")
    with Visit(browser, sweep_dir / "report.html") as seen:
        figure = seen.locator("#samplers figure").first
        assert figure.locator(".verdict").inner_text() == compared.sentence
        assert figure.locator(".plot .dot").count() == sum(compared.settings)
        assert figure.locator(".plot .band").count() == 2
        assert figure.locator(".family").all_inner_texts() == ["no truncation 3 settings", "top_k 6 settings"]
        figure.locator("summary").click()
        figure.locator("tbody td").first.wait_for()  # the page builds the table in an event of its own
        cells = figure.locator("tbody tr").nth(5).locator("td").all_inner_texts()
        assert cells[0] == "–"
        assert cells[1].startswith(f"{compared.table['held_out'].iloc[-1]:.2f} [")
        figure.locator(".plot .dot").first.hover()
        assert seen.locator("#samplers-read").inner_text().startswith("no truncation, best of 1 setting: ")
        assert seen.locator("nav a[href='#samplers']").is_visible()
    write_report(write_sweep(tmp_path / "s", temperature=(0.5,), top_k=(5,), seed=(1,)))
    with Visit(browser, tmp_path / "s" / "report.html") as seen:
        assert not seen.locator("#samplers").is_visible()
        assert not seen.locator("nav a[href='#samplers']").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_hindrance_for_anyone(browser: Any, sweep_dir: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="needs axe-core-python").Axe()
    with Visit(browser, sweep_dir / "report.html", "#find=the", color_scheme=scheme) as seen:
        seen.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        seen.wait_for_function("[...document.querySelectorAll('.as-table')].every((one) => one.querySelector('td'))")
        found = axe.run(seen)["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in serious] == []


def test_the_two_colour_schemes_differ_and_can_be_chosen(browser: Any, sweep_dir: Path) -> None:
    def paper(seen: Any) -> str:
        return str(seen.evaluate("getComputedStyle(document.body).backgroundColor"))

    with Visit(browser, sweep_dir / "report.html", color_scheme="light") as seen:
        light = paper(seen)
        seen.click("#theme")
        assert paper(seen) == light
        seen.click("#theme")
        dark = paper(seen)
    with Visit(browser, sweep_dir / "report.html", color_scheme="dark") as seen:
        assert paper(seen) == dark != light


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_sticks_out_on_a_phone(browser: Any, sweep_dir: Path, width: int) -> None:
    with Visit(browser, sweep_dir / "report.html", viewport={"width": width, "height": 740}) as seen:
        assert seen.evaluate("document.documentElement.scrollWidth") == width
        for chart in ("#heat table", "#curve svg", "#scatter svg"):
            assert seen.locator(chart).is_visible()
        assert seen.locator("#curve text").first.evaluate("e => e.getBoundingClientRect().height") > 9
        assert seen.locator(".column select").first.evaluate("e => e.clientWidth") > 170  # enough for a title


def test_a_printed_page_has_the_tables_and_no_controls(browser: Any, sweep_dir: Path) -> None:
    with Visit(browser, sweep_dir / "report.html") as seen:
        seen.emulate_media(media="print")
        assert not seen.locator(".bar").is_visible()
        assert seen.locator(".points").is_visible()


def test_a_single_run_has_a_page_too(browser: Any, tmp_path: Path) -> None:
    write_point(tmp_path / "run", made_samples(temperature=0.5, top_k=5, seed=1))
    with Visit(browser, write_report(tmp_path / "run")) as seen:
        assert seen.locator(".column").count() == 1
        assert not seen.locator("#effects").is_visible()
        assert seen.locator("nav a:visible").all_inner_texts() == ["Points", "Samples"]
        seen.keyboard.press("ArrowRight")
        assert seen.locator("#where").inner_text() == "2 of 10"


def test_a_sweep_that_failed_everywhere_says_so(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "sweep.csv").write_text("temperature,status,error,directory\n0.5,failed,boom <b>,x\n0.7,failed,boom,y\n")
    with Visit(browser, write_report(tmp_path)) as seen:
        seen.locator(".problem summary").click()
        assert seen.locator(".problem li").all_inner_texts() == ["x: boom <b>", "y: boom"]
        assert seen.locator("nav a:visible").all_inner_texts() == ["Points", "Samples"]


def test_a_page_of_many_points_answers_at_once(browser: Any, tmp_path: Path) -> None:
    root = write_sweep(
        tmp_path / "s", temperature=[i / 20 for i in range(20)], top_k=list(range(1, 16)), seed=[1], num_samples=2
    )
    with Visit(browser, write_report(root)) as seen:
        assert seen.locator(".points tbody tr").count() == 200
        seen.get_by_text("Show all 300 points").click()
        assert seen.locator(".points tbody tr").count() == 300
        assert seen.locator(".heat td button").count() == 300


def of_many_points(data: dict[str, Any], across: int, *, up: int | None) -> dict[str, Any]:
    """A page's data of so many values of two settings: a grid; with ``up`` None points that share no value."""
    at = [[x, y] for x in range(across) for y in range(up)] if up else [[x, x] for x in range(across)]

    def again(column: list[Any]) -> list[Any]:
        return [column[place % len(column)] for place in range(len(at))]

    values = {name: {part: each and again(each) for part, each in found.items()} for name, found in data["values"].items()}
    keys = [
        key | {"labels": [f"{n / 100}" for n in range(size)], "numbers": [n / 100 for n in range(size)]}
        for key, size in zip(data["keys"], (across, up or across), strict=True)
    ]
    groups = {name: again(column) for name, column in data["groups"].items()} | {"at": at}
    return data | {"keys": keys, "groups": groups, "values": values}


def test_of_thousands_of_points_a_page_draws_a_part_and_turns_its_pages(browser: Any, sweep_dir: Path, tmp_path: Path) -> None:
    data = report_data.page_data(read_sweep(sweep_dir), "many")
    (tmp_path / "grid.html").write_text(page(of_many_points(data, 30, up=44) | {"total": 100_000}))
    with Visit(browser, tmp_path / "grid.html", "#all=1&row=399&base=401") as seen:  # not all at once, though a link asks
        held = len(data["samples"]["text"])
        assert f"100,000 samples ({held} of them on this page)" in seen.locator("#facts").inner_text()
        assert f"holds {held} of 100,000 samples" in (lead := seen.locator("#samples-lead").inner_text())
        assert "of every point the same: prompt 0, seed 1, sample 0; " in lead
        rows = seen.locator(".points tbody tr")
        assert rows.count() == 200
        assert rows.nth(1).locator("th").inner_text() == "0.04"
        assert "201 to 400 of 1,320" in seen.locator("#points-body").inner_text()
        assert seen.evaluate("document.querySelectorAll('*').length") < 25_000
        assert seen.locator("#curve path.line").count() == 40 + 40  # the lines, and beside their names
        seen.get_by_role("button", name="Points after").click()
        assert "row=400" in seen.evaluate("location.hash")
        seen.locator("#points-controls select").focus()
        assert seen.locator("#points-controls option").count() == 1 + 1_320
        seen.locator(".points thead button", has_text="Perplexity").click()
        assert "row=" not in seen.evaluate("location.hash")
    (tmp_path / "random.html").write_text(page(of_many_points(data, 2_100, up=None)))
    with Visit(browser, tmp_path / "random.html") as seen:  # no grid: no heat map of empty cells, no lines of one point
        assert not seen.locator("#heat").is_visible()
        assert seen.locator("#curve path.line").count() == 0
        assert seen.locator("#curve .dot").count() == 2_000
