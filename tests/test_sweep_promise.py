"""The promise, end to end: a sample is the same to the byte however its point was run."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from sweeps import Run, samples_of, save_checkpoint

from gptsweep.store import schema

SWEEP = (
    "model=resume",
    "model.out_dir=one,two",
    "sampling.temperature=0,0.7,1.3",
    "sampling.top_k=4,null",
    "seed=1,2",
)
SECOND = (*SWEEP[:2], "sampling.temperature=0,1.3", "sampling.top_k=4,null", "seed=2")
SHUFFLED = ("seed=2,1", "sampling.top_k=null,4", "model.out_dir=two,one", "sampling.temperature=1.3,0,0.7", "model=resume")
REST = ("start=JSONL:prompts.jsonl", "sampling.num_samples=2", "sampling.max_new_tokens=9", "sampling.stop=[bc]", "quiet=true")
PROMPTS = '{"prompt": "a"}\n{"prompt": "abc abc", "id": "two"}\n{"prompt": "hello hi\\nhello hi\\nok"}\n'
POINTS = 24
SINGLE = (
    ("model.out_dir=one", "model.out_dir=two"),
    ("sampling.temperature=0.7",),
    ("sampling.top_k=4", "sampling.top_k=null"),
    ("seed=2",),
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    save_checkpoint(root / "one", seed=1)
    save_checkpoint(root / "two", seed=2, block_size=20)
    (root / "prompts.jsonl").write_text(PROMPTS)
    return root


@pytest.fixture
def place(checkpoints: Path, tmp_path: Path) -> Path:
    shutil.copytree(checkpoints, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_samples_are_the_same_bytes_however_a_sweep_is_run(run: Run, place: Path, threads: None) -> None:
    def sweep(name: str, *more: str, points: tuple[str, ...] = SWEEP) -> dict[str, bytes]:
        assert run("-m", *points, *REST, f"name={name}", *more).status == 0
        return samples_of(place / "outputs/sweeps" / name)

    fused = sweep("fused")
    assert len(fused) == POINTS
    assert all(lines.count(b"\n") == 6 for lines in fused.values())
    assert len(set(fused.values())) == POINTS
    basic = sweep("basic", "hydra/launcher=basic", points=SECOND)  # a third of them: Hydra composes each twice
    assert basic == {name: fused[name] for name in basic}
    assert len(basic) == POINTS // 3
    for max_rows, n in ((1, 1), (3, 2), (64, 2)):  # two threads cost most where steps are many and small
        assert sweep(f"rows{max_rows}", f"device.max_rows={max_rows}", f"device.threads={n}") == fused
    torch.set_num_threads(1)
    assert sweep("shuffled", points=SHUFFLED) == fused
    for number, point in enumerate(product(*SINGLE)):
        assert run("model=resume", *point, *REST, f"name={number}").status == 0
        assert (place / "outputs/runs" / str(number) / schema.SAMPLES).read_bytes() in fused.values()
