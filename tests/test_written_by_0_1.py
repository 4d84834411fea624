"""What version 0.1 left on disk goes on: sweeps are resumed, extended and reviewed, and no sample of theirs is made again.

``data/written_by_0_1.tar.gz`` holds a directory as version 0.1 (commit f4a7fe9) left it: a tiny checkpoint ``out/`` with
`sweeps.CHARACTERS`, and under ``outputs/`` what these commands wrote, each with `COMMON`. The sweep ``stopped`` was
interrupted by Ctrl-C after nine samples; in ``failing`` the model does not know the prompt ``XYZ``.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from sweeps import Run, samples_of
from test_sweep_resume import decoded  # noqa: F401  the fixture

import gptsweep
from gptsweep import review
from gptsweep.records import Row

COMMON = ("model=resume", "device=cpu", "device.dtype=float32", "start=ab", "sampling.num_samples=2")
LENGTH = "sampling.max_new_tokens=16"
NIGHT = ("-m", *COMMON, LENGTH, "name=night", "sampling.temperature=0,0.9", "sampling.top_k=4,null", "seed=1,2", "quiet=true")
MIXED = (
    "-m", *COMMON, LENGTH, "name=mixed", "device.dtype=float32,bfloat16", "sampling.repetition_penalty=1.3,1",
    "sampling.overflow=crop,rebase,stop", 'sampling.stop=["g"]', "sampling.logit_bias={3:-2.5}", "sampling.top_p=0.9",
    "sampling.min_p=0.02", "quiet=true",
)  # fmt: skip
STREAM = (*COMMON, LENGTH, "name=stream", "sampling.rng=torch", "quiet=true")
STOPPED = (
    "-m", *COMMON[:4], "sampling.num_samples=3", LENGTH, "device.max_rows=3", "name=stopped", "sampling.temperature=0.7,1.1",
    "sampling.top_p=0.8,null", 'start=a,"b c"', "quiet=true",
)  # fmt: skip
FAILING = ("-m", *COMMON[:3], "sampling.num_samples=2", LENGTH, "name=failing", "start=ab,XYZ", "seed=1,2", "quiet=true")


@pytest.fixture
def place(tmp_path: Path, run: Run) -> Path:
    """The directory as version 0.1 left it; commands run in it."""
    with tarfile.open(Path(__file__).parent / "data" / "written_by_0_1.tar.gz") as archive:
        # Python before 3.10.12 and 3.11.4 has no filters.
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return tmp_path


@pytest.mark.parametrize("command", [NIGHT, MIXED], ids=["night", "mixed"])
def test_a_finished_sweep_is_found_finished(run: Run, place: Path, decoded: list[Row], command: tuple[str, ...]) -> None:  # noqa: F811
    before = samples_of(place / "outputs")
    assert run(*command).status == 0
    assert decoded == []
    assert samples_of(place / "outputs") == before


def test_a_finished_stream_is_found_finished(run: Run, place: Path, decoded: list[Row]) -> None:  # noqa: F811
    before = samples_of(place / "outputs")
    assert run(*STREAM).status == 0
    assert decoded == []
    assert samples_of(place / "outputs") == before


def test_a_stopped_sweep_goes_on_from_the_samples_it_has(run: Run, place: Path, decoded: list[Row]) -> None:  # noqa: F811
    sweep = place / "outputs/sweeps/stopped"
    kept = [line for path in sweep.glob("*/samples.partial.jsonl") for line in path.read_bytes().splitlines()]
    assert len(kept) == 9
    assert run(*STOPPED).status == 0
    assert len(decoded) == 24 - 9
    lines = {line for file in samples_of(sweep).values() for line in file.splitlines()}
    assert len(lines) == 24
    assert lines >= set(kept)


def test_a_finished_sweep_takes_more_values_and_more_samples(run: Run, place: Path, decoded: list[Row]) -> None:  # noqa: F811
    sweep = place / "outputs/sweeps/night"
    before = samples_of(sweep)
    assert run(*(line.replace("seed=1,2", "seed=1,2,3") for line in NIGHT)).status == 0
    after = samples_of(sweep)
    assert {name: after[name] for name in before} == before
    assert len(after) == 12
    assert {row.noise_key for row in decoded if row.sampling.temperature} == {3}
    decoded.clear()
    assert run(*(line.replace("num_samples=2", "num_samples=4") for line in NIGHT)).status == 0
    for name, lines in before.items():
        assert samples_of(sweep)[name].startswith(lines)
        assert samples_of(sweep)[name].count(b"\n") == 4
    assert {row.sample_index for row in decoded if row.sampling.temperature} == {2, 3}


def test_its_failed_points_are_run_again(run: Run, place: Path) -> None:
    ended = run(*FAILING)
    assert ended.status == 1
    assert "'X' (U+0058)" in ended.err
    assert run(*(line.replace("XYZ", "noon") for line in FAILING)).status == 0
    found = gptsweep.read_sweep(place / "outputs/sweeps/failing")
    assert set(found.samples["prompt"]) == {"ab", "noon"}
    assert len(found.samples) == 4 * 2


@pytest.mark.parametrize("sweep", ["night", "mixed", "stopped", "failing"])
def test_it_is_reviewed(place: Path, capsys: pytest.CaptureFixture[str], sweep: str) -> None:
    directory = place / "outputs/sweeps" / sweep
    assert review.main([str(directory), "--format", "csv"]) == 0
    assert "perplexity" in capsys.readouterr().out
    lines = [json.loads(line) for path in directory.glob("*/samples*.jsonl") for line in path.read_bytes().splitlines()]
    found = gptsweep.read_sweep(directory).samples
    assert sorted(found["completion"]) == sorted(line["completion"] for line in lines)
    assert len(found) == len(lines) > 0
