"""Sweeps whose points are no product of lists: those of a file, and those that are drawn."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeps import Run, samples_of, save_checkpoint

import gptsweep
from gptsweep.config import point_from_config
from gptsweep.engine.engine import Engine
from gptsweep.errors import ConfigError
from gptsweep.multirun import points_file
from gptsweep.multirun.points_file import read_points
from gptsweep.multirun.random_points import axes_of, draw
from gptsweep.multirun.sweepers import points_in_file, random_points
from gptsweep.records import Sampling, neutral_settings

SMALL = ("model=resume", "sampling.num_samples=2", "sampling.max_new_tokens=4", "quiet=true")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "out", seed=1)
    return tmp_path


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each pass of the engine was given."""
    sizes: list[int] = []
    real = Engine.run

    def counted(self: Engine, requested: Any, *arguments: Any) -> Any:
        rows = list(requested)
        if arguments and rows:  # not the engine's own, that times a window
            sizes.append(len(rows))
        return real(self, rows, *arguments)

    monkeypatch.setattr(Engine, "run", counted)
    return sizes


def overrides(*lines: str) -> Any:
    return OverridesParser.create().parse_overrides(list(lines))


def points(text: str, name: str = "p.csv") -> list[list[str]]:
    Path(name).write_text(text, encoding="utf-8")
    return [list(point) for point in read_points(name)]


# -- points of a file --------------------------------------------------------------------------------------------------------


def test_points_of_a_file_are_one_batch_with_the_samples_and_directories_of_a_product(
    run: Run, place: Path, batches: list[int]
) -> None:
    (place / "p.csv").write_text("sampling.temperature,sampling.top_k\n0.5,3\n0.50,\n1,3\n1,\n")
    ended = run("-m", "hydra/sweeper=points", "hydra.sweeper.file=p.csv", "seed=1,2", *SMALL, "name=p")
    assert ended.status == 0, ended.err
    assert len(batches) == 1
    assert run("-m", "sampling.temperature=0.5,1", "sampling.top_k=3,null", "seed=1,2", *SMALL, "name=q").status == 0
    assert samples_of(place / "outputs/sweeps/p") == samples_of(place / "outputs/sweeps/q")
    summary = gptsweep.read_sweep("outputs/sweeps/p").summary
    assert list(summary["temperature"]) == [0.5, 0.5, 0.5, 0.5, 1, 1, 1, 1]  # in the order of the file, others within
    assert list(summary["seed"]) == [1, 2] * 4


def test_a_line_added_to_a_file_runs_alone_with_any_launcher(run: Run, place: Path, batches: list[int]) -> None:
    sweep = ("-m", "hydra/sweeper=points", "hydra.sweeper.file=p.jsonl", *SMALL, "name=p")
    (place / "p.jsonl").write_text('{"seed": 1}\n{"seed": 2, "sampling.top_k": 3}\n')
    assert run(*sweep).status == 0
    before = samples_of(place / "outputs/sweeps/p")
    with (place / "p.jsonl").open("a") as file:
        file.write('{"seed": 3}\n')
    assert run(*sweep, "hydra/launcher=basic").status == 0
    assert batches == [4, 2]
    after = samples_of(place / "outputs/sweeps/p")
    assert len(after) == 3
    assert before.items() <= after.items()


def test_batches_and_models_are_as_in_any_sweep(run: Run, place: Path, batches: list[int]) -> None:
    (place / "p.csv").write_text("model,model.out_dir,seed\nresume,out,1\nshakespeare,,2\n")
    sweep = ("-m", "hydra/sweeper=points", "hydra.sweeper.file=p.csv", "hydra.sweeper.max_batch_size=1")
    ended = run(*sweep, *SMALL[1:], "start=a", "name=p")
    assert ended.status == 0, ended.err
    assert batches == [2, 2]
    assert list(gptsweep.read_sweep("outputs/sweeps/p").summary["model"]) == ["resume", "shakespeare"]


def test_every_format_gives_the_same_points() -> None:
    names = ["sampling.temperature", "sampling.top_k", "sampling.stop_at_eot", "start", "sampling.stop"]
    values = [[0.7, None, True, "1e3", ["a"]], [1e-5, 5, False, "a, b", ["\\n"]]]
    expected = [
        ["sampling.temperature=0.7", "sampling.top_k=null", "sampling.stop_at_eot=True", 'start="1e3"', "sampling.stop=[a]"],
        [
            "sampling.temperature=1e-05",
            "sampling.top_k=5",
            "sampling.stop_at_eot=False",
            'start="a, b"',
            r"sampling.stop=[\\n]",
        ],
    ]
    table = ",".join(names) + "\n" + '0.7,,true,1e3,[a]\n1e-5,5.0,False,"a, b","[""\\n""]"\n\n'
    assert points(table) == expected
    rows = [dict(zip(names, line, strict=True)) for line in values]
    assert points("\n".join(map(json.dumps, rows)), "p.jsonl") == expected
    assert points(json.dumps(rows), "p.yaml") == expected
    assert points("\ufeff" + table.replace("\n", "\r\n"), "q.CSV") == expected


def test_every_setting_of_sampling_can_stand_in_a_file() -> None:
    listed = "sampling.order,sampling.stop_token_ids,sampling.stop_on_repetition\n"
    listed += '"[top_k,temperature]","[1,2]",[]\nllama,[],"[3,4]"\n'
    assert points(listed) == [
        ["sampling.order=[top_k,temperature]", "sampling.stop_token_ids=[1,2]", "sampling.stop_on_repetition=[]"],
        ["sampling.order=llama", "sampling.stop_token_ids=[]", "sampling.stop_on_repetition=[3,4]"],
    ]
    neutral = neutral_settings(Sampling) | {"logit_bias": {}, "max_new_tokens": 5}
    line = json.dumps({f"sampling.{name}": value for name, value in neutral.items()})
    (point,) = points(line, "p.jsonl")
    assert [override.partition("=")[0] for override in point] == [f"sampling.{name}" for name in neutral]
    assert points(f"[{line}]", "p.yaml") == [point]


@settings(max_examples=60)
@given(
    text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
    | st.sampled_from(["1e3", "null", "${seed}", "'a'", "a\\", r"\${x}", r"\\${x}", '"', "choice(1,2)", " a ", "[x", "=,:"])
)
def test_the_characters_of_a_cell_are_the_text(composing: Any, text: str) -> None:
    cell = text.replace("\\", "\\\\")  # in start, a backslash is written twice, as on the command line
    _, loader, master = composing
    table = io.StringIO()
    csv.writer(table).writerows([["start", "seed"], [cell, 1]])
    for name, content in {"p.csv": table.getvalue(), "p.jsonl": json.dumps({"start": cell, "seed": 1})}.items():
        (line,) = points(content, name)
        assert point_from_config(loader.load_sweep_config(master, line)).start == text
    (line,) = points(json.dumps({"sampling.stop": [cell, "x"]}), "p.jsonl")
    assert point_from_config(loader.load_sweep_config(master, line)).sampling.stop == (text, "x")


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("p.csv", "", "has no points; give one per line"),
        ("p.csv", "seed\n\n", "has no points; give one per line"),
        ("p.txt", "seed\n1\n", "must end in .csv, .jsonl or .yaml"),
        ("p.csv", "sampling.top_pp\n1\n", "line 1 has the key sampling.top_pp: no such key; did you mean sampling.top_p?"),
        ("p.csv", "temperature\n1\n", "line 1 has the key temperature: no such key; did you mean sampling.temperature?"),
        ("p.csv", "hydra.sweep.dir\nx\n", "line 1 has the key hydra.sweep.dir: no such key; --cfg hydra shows Hydra's"),
        ("p.csv", "seed,seed\n1,2\n", "line 1 has a key twice"),
        ("p.csv", "seed,start\n1,a\n2\n", "line 3 has 1 cells, but the first line has 2 names"),
        ("p.csv", 'start\n"a\nb"\n"c\n', "line 4 is not CSV (unexpected end of data)"),
        ("p.csv", "seed\n1\n2\n1\n", "line 4 is the same point as line 2"),
        ("p.csv", "seed\nsoon\n", "line 2 has seed=soon: must be a whole number"),
        ("p.csv", "seed,start\n,a\n", "line 2 has seed=null: must be a whole number, and may not be empty"),
        ("p.csv", "start,seed\n,1\n", "line 2 has start=null: must be text, and may not be empty"),
        ("p.csv", 'sampling.top_k\n"1,2"\n', "line 2 has sampling.top_k=1,2: must be a whole number, or null"),
        ("p.csv", "sampling.top_k\n2.5\n", "line 2 has sampling.top_k=2.5: must be a whole number, or null"),
        ("p.csv", "sampling.top_p\n${seed}\n", "line 2 has sampling.top_p=${seed}: must be a number, or null"),
        ("p.csv", "sampling\n../x\n", "line 2 has sampling=../x: must be the name of a choice"),
        ("p.csv", "model,model.file\ngpt2,x\n", "line 2 has model.file=x: only model=resume accepts it"),
        ("p.jsonl", "[1]", 'line 1 is not an object; each line is an object like {"sampling.top_k": 50}'),
        ("p.jsonl", '{"seed": 1, "seed": 2}', "line 1 has a key twice"),
        ("p.jsonl", '{"start": 1}', "line 1 has start=1: must be text; put a number, true or false in quotes"),
        ("p.jsonl", '{"seed": true}', "line 1 has seed=True: must be a whole number"),
        ("p.jsonl", '{"sampling.stop": [1]}', 'line 1 has sampling.stop=[1]: must be a list of strings, such as ["\\n\\n"]'),
        ("p.yaml", "seed: 1", "is not a list of mappings, such as - {sampling.top_k: 50}"),
        ("p.yaml", "- seed: 1\n- 3\n", "line 2 is not a list of mappings, such as - {sampling.top_k: 50}"),
        ("p.jsonl", '{"sampling.stop_token_ids": [1.5]}',
         "line 1 has sampling.stop_token_ids=1.5: must be a list of whole numbers, such as [198,628]"),
        ("p.yaml", "- ? [seed]\n  : 1\n", "line 1 has a list or a mapping as a key"),
        ("p.yaml", "- sampling: {top_k: 3}\n", "line 1 has sampling=[('top_k', 3)]: must be the name of a choice"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_of_points_is_one_line_that_names_it(name: str, text: str, wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        points(text, name)
    assert str(caught.value) == f"hydra.sweeper.file={name}: {wrong}"


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bytes_of(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "made", "wrong"),
    [
        ("p.csv", pipe, "cannot be read: Not a regular file"),
        ("p.csv", os.mkdir, "cannot be read: "),
        ("p.csv", lambda path: None, "no such file"),
        ("p.csv", bytes_of(b"seed\n\xff\n"), "line 2 is not UTF-8"),
        ("p.csv", bytes_of(b"start\n" + b"a" * 200_000), "is not CSV (field larger than field limit"),
        ("p.csv", bytes_of(b"seed\n" + b"1" * 5000), "must be a whole number"),
        ("p.jsonl", bytes_of(b'{"seed": ' + b"1" * 5000 + b"}"), "line 1 is not JSON"),
        ("p.jsonl", bytes_of(b"[" * 100_000), "line 1 is not JSON"),
        ("p.yaml", bytes_of(b"- " * 10_000), "is nested too deeply"),
        ("p.yaml", bytes_of(b"[" * 100_000), "is not YAML|is nested too deeply"),  # by the version of libyaml
        ("p.yaml", bytes_of(b"- {seed: 1, sampling.stop: &a [b]}\n- {sampling.stop: *a}"), "line 2 has an alias"),
        ("p.yaml", bytes_of(b"- {start: !!python/object/apply:os.getcwd []}"), "line 1 is not YAML"),
        ("p.yaml", bytes_of(b"- {start: \x00}"), "is not YAML"),
        ("p.csv", bytes_of(b"seed\n" + b"\n".join(b"%d" % i for i in range(12))), "is point 11; a sweep has at most 10"),
        ("p.csv", bytes_of(b"seed\n" + b" " * (1 << 20)), "is larger than 1 MiB"),
    ],
)  # fmt: skip
def test_a_hostile_file_of_points_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, made: Callable[[Path], Any], wrong: str
) -> None:
    monkeypatch.setattr(points_file, "MAX_POINTS", 10)
    monkeypatch.setattr(points_file, "JSON_BYTES", 1 << 20)
    made(tmp_path / name)
    with pytest.raises(ConfigError, match="p\\.") as caught:
        read_points(name)
    assert any(each in str(caught.value) for each in wrong.split("|"))
    assert len(str(caught.value)) < 600


def test_a_key_in_the_file_and_on_the_command_line_is_refused() -> None:
    Path("p.csv").write_text("seed\n1\n")
    with pytest.raises(ConfigError, match=r"seed=3: is also in p\.csv; give it in one place only"):
        points_in_file("p.csv", overrides("seed=3"))
    with pytest.raises(ConfigError, match="must name a CSV, JSONL or YAML file"):
        points_in_file(None, [])


def test_a_mistake_in_a_design_is_found_before_anything_is_made(run: Run, place: Path) -> None:
    (place / "p.csv").write_text("sampling.top_p,name\n0.5,a\n")
    sweep = ("-m", "hydra/sweeper=points", "hydra.sweeper.file=p.csv", "name=n")
    ended = run(*sweep)
    assert ended.status == 2
    assert "name=n: is also in p.csv" in ended.err
    ended = run(*sweep[:-1])
    assert "name=a: must have one value in a sweep, because the names of points' directories do not contain it" in ended.err
    (place / "p.csv").write_text("sampling.top_p\n0.5\n1.5\n")
    ended = run(*sweep)
    assert (ended.status, ended.out) == (2, "")
    assert (
        "hydra.sweeper.file=p.csv: line 3 has sampling.top_p=1.5: must be above 0 and at most 1, or null to switch it off"
        in ended.err
    )
    assert not (place / "outputs").exists()


# -- points that are drawn ---------------------------------------------------------------------------------------------------


DRAWN = (
    "sampling.temperature=interval(0.3,1.5)",
    "sampling.top_k=tag(log,interval(2,200))",
    "start=choice(a,b,c)",
    "seed=range(1,9)",
)


def test_more_draws_keep_the_first_and_fill_the_space_evenly() -> None:
    few, many = (random_points(n, 0, overrides(*DRAWN)) for n in (13, 64))
    assert many[:13] == few
    assert few[:1] == [
        ["sampling.temperature=0.7919", "sampling.top_k=170", "start=c", "seed=6"],
    ]
    values = [dict(line.partition("=")[::2] for line in point) for point in many]
    temperatures = sorted(float(value["sampling.temperature"]) for value in values)
    assert all(0.3 + 1.2 * i / 64 - 1e-3 <= t <= 0.3 + 1.2 * (i + 1) / 64 + 1e-3 for i, t in enumerate(temperatures))
    ks = [int(value["sampling.top_k"]) for value in values]
    assert min(ks) >= 2
    assert max(ks) <= 200
    assert sum(k <= 20 for k in ks) == pytest.approx(32, abs=2)  # evenly by logarithm
    assert {value["start"] for value in values} == {"a", "b", "c"}
    assert [sum(int(value["seed"]) == seed for value in values) for seed in range(1, 9)] == [8] * 8
    assert random_points(13, 1, overrides(*DRAWN)) != few


def test_commas_are_crossed_with_what_is_drawn() -> None:
    found = random_points(2, 0, overrides("seed=1,2", "sampling.top_p=interval(0.5,1)", "sampling.top_k=5"))
    assert [line[1:] for line in found] == [["seed=1", "sampling.top_k=5"], ["seed=2", "sampling.top_k=5"]] * 2
    assert found[0][0] == found[1][0] != found[2][0]


def test_draws_that_come_out_the_same_are_one_point() -> None:
    found = random_points(32, 0, overrides("seed=choice(1,2)", "sampling.top_k=int(interval(3,4))"))
    assert sorted(found) == [[f"seed={seed}", f"sampling.top_k={k}"] for seed in (1, 2) for k in (3, 4)]


@given(
    ends=st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)).filter(lambda e: e[0] < e[1]),
    log=st.booleans(),
    u=st.floats(0, 1, exclude_max=True),
)
def test_a_draw_is_inside_its_interval(ends: tuple[float, float], log: bool, u: float) -> None:
    low, high = (abs(end) + 1e-9 for end in ends) if log else ends
    low, high = min(low, high), max(low, high)
    if low == high:
        return
    text = f"interval({low!r},{high!r})"
    axes = axes_of(overrides(f"sampling.presence_penalty={f'tag(log,{text})' if log else text}"))
    value = float(axes["sampling.presence_penalty"](u).partition("=")[2])
    exact = low * (high / low) ** u if log else low + (high - low) * u
    assert low <= value <= high
    assert math.isclose(value, exact, rel_tol=1e-9, abs_tol=(exact * math.log(high / low) if log else high - low) / 9_000)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("sampling.top_k=interval(1.5,3)", "must go from a whole number to a whole number"),
        ("sampling.top_p=interval(1,0)", "must have its first number below its second"),
        ("sampling.top_p=interval(0,inf)", "must have its first number below its second"),
        ("sampling.top_p=tag(log,interval(0,1))", "with the tag log must begin above 0"),
        ("sampling.top_p=tag(even,interval(0,1))", "accepts only the tag log"),
        ("sampling.top_k=tag(log,choice(1,2))", "accepts no tag; tag(log, interval(…)) draws log-uniformly"),
        ("start=interval(0,1)", "cannot be drawn from an interval; use choice(…)"),
        ("seed=shuffle(range(1,4))", "cannot be shuffled; points are drawn at random anyway"),
        ("seed=range(4,4)", "must contain at least one value"),
    ],
)
def test_what_cannot_be_drawn_is_refused(line: str, wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        axes_of(overrides(line))
    assert str(caught.value) == f"{line}: {wrong}"


def test_a_wrong_number_of_draws_is_refused() -> None:
    axes = axes_of(overrides("seed=range(1,4)")).values()
    mistakes = [(0, 0, "n=0: must"), (10**6, 0, "n=1000000: must"), (1, -1, "seed=-1: must")]
    for n, seed, wrong in mistakes:
        with pytest.raises(ConfigError, match=wrong):
            draw(n, seed, axes)
    with pytest.raises(ConfigError, match="n=4: has nothing to draw from"):
        draw(4, 0, [])


def test_a_greater_n_runs_the_new_points_alone(run: Run, place: Path, batches: list[int]) -> None:
    sweep = (
        "-m",
        "hydra/sweeper=random",
        "sampling.temperature=interval(0.3,1.5)",
        "sampling.top_k=interval(2,9)",
        *SMALL,
        "name=r",
    )
    assert run(*sweep, "hydra.sweeper.n=3", "hydra.sweeper.max_batch_size=2").status == 0
    before = samples_of(place / "outputs/sweeps/r")
    ended = run(*sweep, "hydra.sweeper.n=5")
    assert ended.status == 0, ended.err
    assert batches == [4, 2, 4]
    assert before.items() <= samples_of(place / "outputs/sweeps/r").items()
    assert len(gptsweep.read_sweep("outputs/sweeps/r").summary) == 5


def test_a_draw_that_is_not_allowed_is_found_before_anything_is_made(run: Run, place: Path) -> None:
    for line in ("sampling.top_p=interval(0,1)", "sampling.topp=interval(0.5,1)", "sampling.top_k=choice(5,0)"):
        ended = run("-m", "hydra/sweeper=random", line, "name=n")
        assert (ended.status, ended.out) == (2, "")
        assert ended.err.startswith(f"gptsweep: error: {line.partition('=')[0]}=")
    assert not (place / "outputs").exists()
