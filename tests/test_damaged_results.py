"""What a user would lose: a review of all points, or a sweep that goes on, for one file that somebody or something changed."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sweep import made_samples

from gptsweep.analysis.columns import typed_column
from gptsweep.analysis.frames import read_sweep
from gptsweep.analysis.summary import summarise, summary_of, text_metrics
from gptsweep.errors import ResultsError
from gptsweep.store.reader import read_samples
from gptsweep.store.sweep_table import SweepTable
from gptsweep.store.writer import PointWriter

SAMPLES = made_samples(temperature=0.5, top_k=3, seed=1, num_samples=2, words=6)
POINT_ID = SAMPLES[0].point_id
WRONG = [
    None, True, -1, 0, 1.5, 2**31, 2**63, 2**70, 10**400, math.nan, math.inf, -1e308, "", "x", "=1", "'\"", "\ud800", "\x00",
    "\n", "../../..", "/", "x" * 300, [], [None], [-1], [2**31], ["a"], [[]], {}, {"a": 1},
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of a complete point, of one that was killed, and of one that failed."""
    sweep = tmp_path_factory.mktemp("whole")
    with PointWriter(sweep / "complete", POINT_ID, made_by={"torch": "0"}) as writer:
        writer.add(SAMPLES)
        writer.finish(summary_of([sample.as_json() for sample in SAMPLES]), {"promise": True})
    with PointWriter(sweep / "partial", POINT_ID, made_by={"torch": "0"}) as writer:
        writer.add(SAMPLES[:1])
    with PointWriter(sweep / "partial", POINT_ID, made_by={"torch": "1"}) as writer:
        writer.add(SAMPLES[1:])
    (sweep / "partial/.hydra").mkdir()
    (sweep / "partial/.hydra/overrides.yaml").write_text("- sampling.temperature=0.5\n- start=a\n")
    table = SweepTable(sweep)
    table.expect(sweep / "failed", ["seed=3"], {"model": "gpt2", "seed": 3})
    table.fail(sweep / "failed", "no such model")
    table.close()
    return sweep


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value, with a key of it."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


@st.composite
def damages(draw: st.DrawFn, path: Path) -> bytes:
    """The content of a file with something wrong in it: a value, a cell, some bytes."""
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and draw(st.booleans()):
        lines = [json.loads(line) for line in (data.splitlines() if path.suffix == ".jsonl" else [data])]
        container, key = draw(st.sampled_from([place for line in lines for place in places(line)]))
        if isinstance(container, dict) and draw(st.booleans()):
            del container[key]
        else:
            container[key] = draw(st.sampled_from(WRONG))
        return "".join(json.dumps(line) + "\n" for line in lines).encode()
    if path.suffix == ".csv" and draw(st.booleans()):
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        row = draw(st.sampled_from(rows))
        row[draw(st.integers(0, len(row) - 1))] = str(draw(st.sampled_from(WRONG)))
        return "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows).encode(
            errors="surrogatepass"
        )
    start = draw(st.integers(0, len(data)))
    return data[:start] + draw(st.binary(max_size=8)) + data[start + draw(st.integers(0, 40)) :]


@settings(max_examples=40)
@given(data=st.data())
def test_a_damaged_file_ends_neither_a_review_nor_a_sweep(whole: Path, tmp_path_factory: Any, data: st.DataObject) -> None:
    sweep = tmp_path_factory.mktemp("damaged") / "sweep"
    shutil.copytree(whole, sweep)
    files = sorted(path.relative_to(sweep) for path in sweep.rglob("*") if path.is_file())
    for name in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True)):
        (sweep / name).write_bytes(data.draw(damages(sweep / name)))
    read_sweep(sweep).group()
    SweepTable(sweep).close()
    for name in ("complete", "partial"):
        read_samples(sweep / name)
        try:
            with PointWriter(sweep / name, POINT_ID, made_by={"torch": "1"}) as writer:
                writer.add(SAMPLES)
                samples = writer.samples()
                writer.finish(summarise({}, samples) | text_metrics(samples), {"promise": True})
        except ResultsError:  # it seems to hold another point
            continue
        with PointWriter(sweep / name, POINT_ID) as writer:
            assert writer.complete
            assert {sample.key for sample in SAMPLES} <= writer.done
    shutil.rmtree(sweep)


def test_a_table_that_names_a_directory_elsewhere_takes_nothing_from_there(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "other")
    names = ["../other/complete", str(tmp_path / "other/partial"), "\x00", "x" * 300]
    (tmp_path / "sweep/own").mkdir(parents=True)
    shutil.copy(whole / "complete/samples.jsonl", tmp_path / "sweep/own")
    (tmp_path / "sweep/sweep.csv").write_text("directory,status\n" + "".join(f"{name},complete\n" for name in names))
    found = read_sweep(tmp_path / "sweep")
    assert len(found.samples) == len(SAMPLES)
    assert sorted(found.summary["status"]) == ["missing"] * 4 + ["partial"]
    SweepTable(tmp_path / "sweep").close()
    with (tmp_path / "sweep/sweep.csv").open(newline="") as file:
        assert [row["directory"] for row in csv.DictReader(file)] == ["own"]


def test_a_line_without_a_field_that_is_used_ends_no_review(whole: Path, tmp_path: Path) -> None:
    """Found by fuzzing."""
    shutil.copytree(whole, tmp_path / "sweep")
    lines = []
    for name in ("completion_tokens", "finish_reason", "prompt_tokens"):
        line = SAMPLES[0].as_json()
        del line[name]
        lines.append(json.dumps(line) + "\n")
    for changed in ({"prompt_index": 2**63}, {"token_ids": [-1] * 6}, {"logprob_mean": -math.inf}, {"entropy_mean": 10**400}):
        lines.append(json.dumps(SAMPLES[0].as_json() | changed) + "\n")
    (tmp_path / "sweep/partial/samples.partial.jsonl").write_text("".join(lines))
    found = read_sweep(tmp_path / "sweep")
    assert found.damaged_lines == len(lines)
    assert read_samples(tmp_path / "sweep/partial") == ([], len(lines))


def test_links_that_lead_round_in_circles_end_no_review(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "sweep")
    (tmp_path / "sweep/loop").symlink_to(tmp_path / "sweep", target_is_directory=True)
    assert len(read_sweep(tmp_path / "sweep").samples) == 2 * len(SAMPLES)


def test_a_config_whose_aliases_name_a_thousand_million_values_ends_no_review(whole: Path, tmp_path: Path) -> None:
    sweep = shutil.copytree(whole, tmp_path / "sweep")
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]")
    (sweep / "partial/.hydra/config.yaml").write_text("\n".join([*lines, "start: *i", "seed: *i"]))
    assert len(read_sweep(sweep).samples) == 2 * len(SAMPLES)


@pytest.mark.parametrize(
    ("name", "cells", "read"),
    [
        ("num_prompts", ["1" + "0" * 400, "2"], [0, 2]),
        ("num_samples", [10**40, 3, None, "x", float("inf")], [0, 3, 0, 0, 0]),
        ("seed", ["1" + "0" * 30, "2"], ["1" + "0" * 30, "2"]),
        ("seed", ["-1" + "0" * 30], ["-1" + "0" * 30]),
        ("seed", [str(2**64 - 1), "2"], [2**64 - 1, 2]),
    ],
)
def test_a_number_that_no_column_can_hold_ends_no_review(name: str, cells: list[Any], read: list[Any]) -> None:
    assert list(typed_column(name, cells)) == read
