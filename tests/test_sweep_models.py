"""A sweep over models: each point gets the keys that its model takes, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweeps import Run, samples_of, save_checkpoint

import gptsweep
from gptsweep.multirun.compose import for_some_models, of_its_model
from gptsweep.run.progress import Progress

SMALL = ("name=s", "quiet=true", "sampling.num_samples=1", "sampling.max_new_tokens=2", "start=a")


def test_a_sweep_may_name_the_embedded_model_and_checkpoints(run: Run) -> None:
    for seed, name in enumerate(["a", "b"]):
        save_checkpoint(Path(name), seed)
    ended = run("-m", "model=shakespeare,resume", "model.out_dir=a,b", "model.meta=a/meta.pkl", *SMALL)
    assert ended.status == 0, ended.err
    summary = gptsweep.read_sweep("outputs/sweeps/s").summary
    assert sorted(zip(summary["model"], summary["out_dir"].fillna(""), strict=True)) == [
        ("resume", "a"), ("resume", "b"), ("shakespeare", ""),
    ]  # fmt: skip
    before = samples_of(Path("outputs/sweeps/s"))
    assert len(before) == 3
    assert gptsweep.read_sweep("outputs/sweeps/s").swept == ("model", "out_dir")  # what follows from the model is no setting
    assert run("-m", "model=shakespeare,resume", "model.out_dir=a,b", "model.meta=a/meta.pkl", *SMALL).status == 0
    assert samples_of(Path("outputs/sweeps/s")) == before


def test_which_of_many_checkpoints_is_a_setting(run: Run) -> None:
    for seed, name in enumerate(["ckpt.pt", "ckpt_500.pt", "ckpt_1000.pt"]):
        save_checkpoint(Path("x"), seed)
        Path("x/ckpt.pt").rename(save_checkpoint(Path("out"), seed) / name)
    save_checkpoint(Path("out"), 0)
    ended = run("-m", "model=resume", "model.file=ckpt.pt,ckpt_500.pt,ckpt_1000.pt", *SMALL, "sampling.max_new_tokens=9")
    assert ended.status == 0, ended.err
    found = gptsweep.read_sweep("outputs/sweeps/s")
    assert found.swept == ("file",)
    assert list(found.group(["file"])["file"]) == ["ckpt.pt", "ckpt_1000.pt", "ckpt_500.pt"]
    lm = gptsweep.load("out", file="ckpt_500.pt")
    ids = lm.generate("a", max_new_tokens=9)[0].token_ids
    chosen = found.summary["file"] == "ckpt_500.pt"
    (point,) = found.summary.index[chosen]
    assert tuple(found.samples[found.samples["point"] == point]["token_ids"].iloc[0]) == ids
    assert found.samples["token_ids"].map(tuple).nunique() == 3
    ended = run("model=resume", "model.file=ckpt_501.pt", "name=r")
    assert ended.status == 2
    assert "model.file=ckpt_501.pt: is not in out; there: ckpt.pt, ckpt_1000.pt, ckpt_500.pt" in ended.err
    Path("out/ckpt.pt").unlink()
    ended = run("model=resume", "name=r")
    assert "model.file=ckpt.pt: is not in out; there: ckpt_1000.pt, ckpt_500.pt" in ended.err
    with pytest.raises(gptsweep.ModelError, match=r"there: ckpt_1000\.pt, ckpt_500\.pt"):
        gptsweep.load("out")


@pytest.mark.parametrize(
    ("arguments", "ready"),
    [
        (
            ["model=shakespeare,resume", "model.out_dir=x", "seed=1"],
            ["model=shakespeare,resume", "++model.out_dir=x", "seed=1"],
        ),
        (["model=resume,hf", "model.path=p,q", "model.file=f"], ["model=resume,hf", "++model.path=p,q", "++model.file=f"]),
        (["model=resume", "model.out_dir=x,y"], ["model=resume", "model.out_dir=x,y"]),
        (["model=shakespeare,gpt2", "model.out_dir=x"], ["model=shakespeare,gpt2", "model.out_dir=x"]),
        (["model=shakespeare,resume", "model.outdir=x"], ["model=shakespeare,resume", "model.outdir=x"]),
        (["model=(", "model.out_dir=x"], ["model=(", "model.out_dir=x"]),
    ],
)
def test_only_keys_that_some_of_the_models_take_are_left_to_the_points(arguments: list[str], ready: list[str]) -> None:
    assert for_some_models(arguments) == ready


def test_a_point_has_the_keys_of_its_model() -> None:
    assert of_its_model(["model=shakespeare", "++model.out_dir=x", "seed=1"]) == ("model=shakespeare", "seed=1")
    assert of_its_model(["model=resume", "++model.out_dir=x", "seed=1"]) == ("model=resume", "model.out_dir=x", "seed=1")
    assert of_its_model(["seed=1", "++model.out_dir=x"]) == ("seed=1", "++model.out_dir=x")


def test_a_key_that_no_model_of_the_sweep_takes_is_an_error(run: Run) -> None:
    ended = run("-m", "model=shakespeare,gpt2", "model.out_dir=x", *SMALL)
    assert ended.status == 2
    assert "model.out_dir=x: only model=resume accepts it" in ended.err


@pytest.mark.parametrize("how", ["fused", "basic", "joblib", "file", "params and command line", "mode in a file"])
def test_a_sweep_over_models_works_wherever_it_is_asked_for(run: Run, how: str) -> None:
    save_checkpoint(Path("a"), 0)
    models, keys = "model=shakespeare,resume", ("model.out_dir=a", "model.meta=a/meta.pkl")
    swept: tuple[str, ...] = ("-m", models, *keys)
    if how in ("fused", "basic", "joblib"):
        if how == "joblib":
            pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
            swept += ("hydra.launcher.n_jobs=2",)  # else ten processes import torch
        swept += (f"hydra/launcher={how}",)
    else:
        Path("mine/experiment").mkdir(parents=True)
        params = "{model: 'shakespeare,resume'}" if how != "mode in a file" else "{}"
        if how == "file":
            params = "{model: 'shakespeare,resume', model.out_dir: a, model.meta: a/meta.pkl}"
        mode = "" if how == "params and command line" else "mode: MULTIRUN, "
        text = f"# @package _global_\nhydra: {{{mode}sweeper: {{params: {params}}}}}\n"
        Path("mine/experiment/night.yaml").write_text(text)
        swept = ("--config-dir", "mine", "experiment=night", *(() if how == "file" else keys))
        swept += {"params and command line": ("-m",), "mode in a file": (models,)}.get(how, ())
    ended = run(*swept, *SMALL)
    assert ended.status == 0, ended.err
    summary = gptsweep.read_sweep("outputs/sweeps/s").summary
    assert sorted(zip(summary["model"], summary["out_dir"].fillna(""), strict=True)) == [("resume", "a"), ("shakespeare", "")]
    assert list(summary["status"]) == ["complete", "complete"]


def test_the_time_left_knows_of_models_that_are_not_open_yet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    totals: list[tuple[int, int]] = []
    update = Progress.update

    def noted(self: Progress, **counts: int | None) -> None:
        update(self, **counts)
        totals.append((self._meter.tokens_total, self._meter.windows_total))

    monkeypatch.setattr(Progress, "update", noted)
    for seed, name in enumerate(["a", "b"]):
        save_checkpoint(Path(name), seed)
    small = ("name=s", "quiet=true", "sampling.num_samples=2", "sampling.max_new_tokens=20", "start=a")
    ended = run("-m", "model=resume", "model.out_dir=a,b,nowhere", *small)
    assert "done: 4/4 rows" in ended.err
    assert {tokens for tokens, _ in totals if tokens} == {120}
    assert totals[0][1] >= totals[-1][1] > 0
    totals.clear()
    Path("many.txt").write_text("a\nb\nc\n")
    others = ("-m", "model=resume", "model.out_dir=a,b", *small[:-1], "seed=1")
    assert run(*others, "start=LINES:many.txt").status == 0
    assert {tokens for tokens, _ in totals if tokens} == {240}, "each prompt of a model that is not open yet counts"
    totals.clear()
    assert run(*others, "start=LINES:many.txt,a").status == 0
    assert {tokens for tokens, _ in totals if tokens} == {80}, "and what is on disk already does not"
