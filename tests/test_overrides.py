"""For a key that holds text, the characters typed are the value, or an error says what to type."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fuzz.fuzz_start import PLAIN, TEXTS, Sampled, check_run, check_sweep
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sweeps import Run

from gptsweep.config_schema import keys
from gptsweep.multirun.overrides import as_typed

LOOKALIKES = [
    "1e3", "1_000", "3.50", "true", "NULL", "nan", "+5", "007", "str(x)", "choice(a)", "a,b", r"a\,b", r"\\n", " a ", "[a]",
    "{a:b}", "range(3)", "x: y", "Hello, <world>!",
]  # fmt: skip


@pytest.fixture(scope="module")
def sampled() -> Sampled:
    return Sampled()


@settings(max_examples=150)
@given(text=TEXTS)
@example(text="'Hi'")
@example(text='"1e3"')
@example(text="str(x)")
def test_a_prompt_is_sampled_as_typed_or_the_error_says_what_to_type(sampled: Sampled, text: str) -> None:
    check_run(sampled, text)


@pytest.mark.parametrize("text", LOOKALIKES)
def test_a_prompt_that_looks_like_something_else_is_sampled_as_typed(sampled: Sampled, text: str) -> None:
    assert sampled(f"start={text}") == [text.replace(r"\\", "\\")]


@settings(max_examples=100)
@given(texts=st.lists(PLAIN, min_size=1, max_size=4, unique=True))
@example(texts=["1e3", "true", "1_000", "3.50", "null", "Once"])
def test_prompts_between_commas_are_sampled_as_typed(sampled: Sampled, texts: list[str]) -> None:
    check_sweep(sampled, texts, quote=False)


@settings(max_examples=100)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3, unique=True))
def test_prompts_in_quotes_are_swept_over_as_what_is_in_them(sampled: Sampled, texts: list[str]) -> None:
    check_sweep(sampled, texts, quote=True)


@pytest.mark.parametrize(
    ("typed", "prompts"),
    [
        ("1e3,true", ["1e3", "true"]),
        (r"a\,b,c", ["a,b", "c"]),
        ("str(x),y", ["str(x)", "y"]),
        ("choice(1e3,true)", ["1e3", "true"]),
        ("choice(Once)", ["Once"]),
        ("range(1,3)", ["1", "2"]),
        ("[a],{b:c}", ["[a]", "{b:c}"]),
        (" a ", [" a "]),
        ("a , b", ["a", "b"]),
        ("'1,2',\"3\"", ["1,2", "3"]),
        ("42,0.5", ["42", "0.5"]),
        ("é,ö", ["é", "ö"]),
        ("Hello!,Who <is> it;,~", ["Hello!", "Who <is> it;", "~"]),
        ("choice(Hello!,b)", ["Hello!", "b"]),
        ('"é,ö",日本', ["é,ö", "日本"]),
        (r"\\n,b", [r"\n", "b"]),
    ],
)
def test_prompts_that_look_like_something_else_are_swept_over_as_typed(
    sampled: Sampled, typed: str, prompts: list[str]
) -> None:
    assert sampled(f"start={typed}", sweeping=True) == prompts


@pytest.mark.parametrize(
    "argument", ["start=Once,Twice", "start=Hello world", "seed=1e3", 'start="b c",a', "model.out_dir=out", "+x=1e3"]
)
def test_what_hydra_reads_as_typed_is_left_as_it_is_so_that_a_sweep_keeps_its_directories(argument: str) -> None:
    assert as_typed(argument, sweeping=True) == argument


def test_every_key_that_holds_text_takes_what_is_typed(run: Run) -> None:
    more = ("reference=1_0", "model.meta=null", "sampling.stop=[1e3,true,x]")
    shown = run("--cfg", "job", "name=2024_05_01", "model=resume", "model.out_dir=2023_02_14", *more).out
    assert "name: '2024_05_01'" in shown or "name: 2024_05_01" in shown
    assert re.search(r"out_dir: '?2023_02_14'?", shown)
    assert "meta: null" in shown
    assert re.search(r"reference: '?1_0'?", shown)
    assert re.search(r"stop:\s+- '?1e3'?\s+- 'true'\s+- x", shown)
    assert {key for key, hint in keys().items() if hint == str | None} >= {"model.meta", "model.path", "objective", "reference"}


@pytest.mark.parametrize("typed", ["${", r"\\${", "${'", "${price}", "a ${ b"])
def test_what_looks_like_an_interpolation_says_how_to_type_it(run: Run, typed: str) -> None:
    ended = run(f"start={typed}")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert r"write \${ where no interpolation is meant" in ended.err


def test_numbers_for_text_in_files_are_refused_with_what_to_write(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    path = tmp_path / "mine" / "experiment" / "x.yaml"
    for line in ("start: 1e3", "start: yes", "name: 2024_05_01", "sampling: {stop: [1e3]}"):
        path.write_text(f"# @package _global_\n{line}\n")
        ended = run("--config-dir", "mine", "experiment=x")
        assert (ended.status, ended.err.count("\n")) == (2, 1)
        assert "quotes" in ended.err
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_that_a_file_asks_for_sweeps_over_prompts_too(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    path = tmp_path / "mine" / "experiment" / "x.yaml"
    short = ("device=cpu", "sampling.num_samples=1", "sampling.max_new_tokens=1", "quiet=true")
    path.write_text("# @package _global_\nhydra: {mode: MULTIRUN}\n")
    assert run("--config-dir", "mine", "experiment=x", "name=a", "start=ab,true", *short).status == 0
    assert prompts_in(Path("outputs/sweeps/a")) == {"ab", "true"}
    path.write_text(
        "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {start: 'ab,1.50'}}}\n".replace("1.50", "TRUE")
    )
    assert run("--config-dir", "mine", "experiment=x", "name=b", *short).status == 0
    assert prompts_in(Path("outputs/sweeps/b")) == {"ab", "TRUE"}


def prompts_in(sweep: Path) -> set[str]:
    return {match for path in sweep.glob("*/samples.jsonl") for match in re.findall(r'"prompt": "(.*?)"', path.read_text())}
