"""A reference text is measured by the same yardstick as the samples, and its model is not loaded for nothing."""

from __future__ import annotations

import itertools
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from made_sweep import made_samples, write_point, write_report
from sweeps import Run, save_checkpoint

from gptsweep import api, review
from gptsweep.analysis.frames import read_sweep
from gptsweep.analysis.reference import saved_reference
from gptsweep.engine.torch_backend import TorchBackend
from gptsweep.errors import ResultsError
from gptsweep.models.files.tokenizers import CharTokenizer
from gptsweep.models.gpt2 import GPT, GPTConfig
from gptsweep.models.loading import LoadedModel
from gptsweep.run import reference

TEXT = "the quality of mercy is not strained; it droppeth as the gentle rain from heaven upon the place beneath\n" * 3


@pytest.fixture
def lm() -> Any:
    """A tiny model of the characters of `TEXT`, with two ids more than it has characters."""
    torch.manual_seed(0)
    letters = sorted(set(TEXT))
    tokenizer = CharTokenizer(letters)
    model = GPT(GPTConfig(block_size=16, vocab_size=len(letters) + 2, n_layer=1, n_head=2, n_embd=16)).eval()
    loaded = LoadedModel(
        model=model, tokenizer=tokenizer, fingerprint="w", device=torch.device("cpu"), dtype="float32", arithmetic="float32"
    )
    backend = TorchBackend(loaded, None)
    return SimpleNamespace(model=model, backend=backend, tokenizer=tokenizer, fingerprint="w", dtype="float32")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_point(tmp_path / "run", made_samples(temperature=0.5, top_k=5, seed=1, words=30, num_samples=5))
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "run"


def test_the_score_is_that_of_the_model_token_by_token(lm: Any) -> None:
    ids = lm.tokenizer.encode(TEXT)
    logprob, entropy = lm.backend.score(ids, 1, 14)
    logs, entropies = [], []
    for at in range(1, 14):
        with torch.inference_mode():
            logits = lm.model(torch.tensor([ids[:at]]))[0, -1, : lm.tokenizer.vocab_size]
        p = torch.softmax(logits.double(), 0)
        logs.append(math.log(p[ids[at]]))
        entropies.append(-sum(float(each) * math.log(each) for each in p))
    assert logprob == pytest.approx(sum(logs) / 13, rel=1e-4)
    assert entropy == pytest.approx(sum(entropies) / 13, rel=1e-4)


def test_far_into_a_text_every_token_has_half_a_block_before_it(lm: Any) -> None:
    ids = lm.tokenizer.encode(TEXT)
    whole, _ = lm.backend.score(ids, 40, 72)
    parts = [lm.backend.score(ids, first, first + 8)[0] for first in range(40, 72, 8)]
    assert whole == pytest.approx(sum(parts) / 4, rel=1e-5)


def test_pieces_are_as_long_as_the_samples_and_do_not_overlap(lm: Any) -> None:
    records = reference.score(lm, TEXT, length=30, pieces=5)
    assert len(records) == 5
    assert all(len(record["token_ids"]) == 30 == len(record["completion"]) for record in records)
    starts = [record["prompt_tokens"] for record in records]
    assert all(after - before >= 30 for before, after in itertools.pairwise(starts))
    assert starts[-1] + 30 == len(TEXT)
    assert len(reference.score(lm, TEXT[:20], length=500, pieces=5)) == 1


def say_maker(results: Path, **maker: str) -> None:
    """Let the manifest say what made the samples."""
    manifest = json.loads((results / "manifest.json").read_text())
    (results / "manifest.json").write_text(json.dumps(manifest | maker))


def test_the_model_is_loaded_once_for_a_text_its_weights_and_their_dtype(results: Path, lm: Any) -> None:
    loaded = []

    def metrics() -> Any:
        return reference.update_reference(results, read_sweep(results), f"FILE:{results.parent}/text.txt", open_lm).metrics

    def open_lm() -> Any:
        loaded.append(lm.dtype)
        return lm

    say_maker(results, weights="w", tokenizer=lm.tokenizer.fingerprint, dtype="float32")
    first = metrics()
    assert first["perplexity"] is not None
    assert first["sampler_perplexity"] is None
    assert metrics() == first
    assert len(loaded) == 1
    (results.parent / "text.txt").write_text(TEXT[:200])
    assert metrics() != first
    assert len(loaded) == 2
    say_maker(results, dtype="bfloat16")
    lm.dtype = "bfloat16"
    assert metrics() == metrics()
    assert loaded == ["float32", "float32", "bfloat16"]
    say_maker(results, weights="others")
    with pytest.raises(ResultsError, match="different weights"):
        metrics()


def reviewed(monkeypatch: pytest.MonkeyPatch, lm: Any, *arguments: object) -> tuple[int, list[str]]:
    """The status of a review, and the models it opened."""
    opened: list[str] = []
    monkeypatch.setattr(api, "load", lambda name, **_: opened.append(name) or lm)
    return review.main([str(argument) for argument in arguments]), opened


def test_page_and_table_show_the_distance(
    results: Path, lm: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--reference", f"FILE:{results.parent}/text.txt")
    assert reviewed(monkeypatch, lm, results, "--metric", "diversity", "--format", "csv", *options) == (0, ["shakespeare"])
    header, row = capsys.readouterr().out.splitlines()
    assert header.endswith("diversity,diversity_se,diversity_n,diversity_distance")
    kept = saved_reference(results, read_sweep(results))
    assert kept is not None
    values = dict(zip(header.split(","), row.split(","), strict=True))
    goal = kept.metrics["diversity"]
    assert goal is not None
    assert float(values["diversity_distance"]) == pytest.approx(float(values["diversity"]) - goal)
    assert review.main([str(results), "--format", "table", "--best", "diversity:reference", "--no-report"]) == 0
    assert "reference text" in capsys.readouterr().out
    assert '"reference":{"perplexity":' in (results / "report.html").read_text()
    assert review.main([str(results), "--reference", "null"]) == 0
    assert '"reference":null' in (results / "report.html").read_text()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("text.txt", "did you mean FILE:text.txt?"),
        ("some words", "must be FILE: and the path"),
        ("LINES:text.txt", "not LINES: or JSONL:"),
        ("JSONL:text.txt", "not LINES: or JSONL:"),
        ("FILE:nowhere.txt", "no such file"),
        ("FILE:", "names no file"),
        ("FILE:run", "is not a regular file"),
        ("FILE:pipe", "is not a regular file"),
        ("FILE:empty.txt", "has no text"),
        ("FILE:bytes.bin", "is not UTF-8"),
    ],
)
def test_a_wrong_text_is_one_line_before_any_work(
    results: Path, run: Run, capsys: pytest.CaptureFixture[str], source: str, says: str
) -> None:
    os.mkfifo("pipe")
    Path("empty.txt").write_text(" \n")
    Path("bytes.bin").write_bytes(b"a\xff")
    assert review.main([str(results), "--reference", source]) == 2
    found = capsys.readouterr()
    assert (says in found.err, found.err.count("\n"), found.out) == (True, 1, "")
    assert not (results / "reference.json").exists()
    for arguments in ((), ("-m", "seed=1,2")):
        ended = run(*arguments, f"reference='{source}'", "name=x", "sampling.max_new_tokens=1", "sampling.num_samples=1")
        assert (ended.status, says in ended.err, ended.err.count("\n")) == (2, True, 1), ended.err
    assert not Path("outputs").exists()


def test_a_run_scores_the_text_of_its_own_config_with_its_own_model(run: Run) -> None:
    out_dir = save_checkpoint(Path("out"), 1)
    Path("text.txt").write_text("a bad cab\n")
    model = ("model=resume", f"model.out_dir={out_dir}", "reference=FILE:text.txt", "device=cpu", "start=a")
    sampling = ("sampling.num_samples=5", "sampling.max_new_tokens=8", "quiet=true", "name=x")
    assert run(*model, *sampling).status == 0
    assert run("-m", *model, *sampling, "seed=1,2").status == 0
    for path in (Path("outputs/runs/x"), Path("outputs/sweeps/x")):
        kept = saved_reference(path, read_sweep(path))
        assert kept is not None
        assert kept.metrics["perplexity"] is not None
        assert kept.note.startswith("the reference text is short: it makes 1 piece of 8 tokens, and a point has 5 samples")
    page = Path("outputs/sweeps/x/report.html").read_text()
    assert '"reference text FILE:text.txt","the reference text is short' in page
    for launcher in ("basic", "joblib"):
        if launcher == "joblib":
            pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
        jobs = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []  # else ten processes import torch
        name = f"name={launcher}"
        assert run("-m", *model, *sampling, "seed=1,2", name, f"hydra/launcher={launcher}", *jobs).status == 0
        assert saved_reference(Path("outputs/sweeps", launcher), read_sweep(f"outputs/sweeps/{launcher}")) == kept
        assert '"reference text FILE:text.txt"' in Path("outputs/sweeps", launcher, "report.html").read_text()


def test_a_review_opens_nothing_that_the_results_name(
    results: Path, lm: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stranger's directory: its config names a private file and a pipe for a model, and its own files are pipes and links."""
    secret = results.parent / "secret.txt"
    secret.write_text("the secret of mercy " * 20)
    os.mkfifo(results.parent / "ckpt.pt")
    (results / ".hydra").mkdir()
    config = {"model": {"name": "resume", "out_dir": str(results.parent)}, "reference": f"FILE:{secret}"}
    (results / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    say_maker(results, model={"name": "resume", "out_dir": str(results.parent)})  # type: ignore[arg-type]
    (results / "reference.json").symlink_to(secret)
    assert reviewed(monkeypatch, lm, results) == (0, [])
    written = (results / "report.html").read_text()
    assert "secret" not in written
    for row in ("resume", "../out"):
        path = results / "summary.csv"
        path.write_text(path.read_text().replace("shakespeare", row))
        assert reviewed(monkeypatch, lm, results, "--reference", f"FILE:{results.parent}/text.txt") == (2, [])
        assert "to open it, add --model" in capsys.readouterr().err
        path.write_text(path.read_text().replace(row, "shakespeare"))
    options = ("--reference", f"FILE:{results.parent}/text.txt", "--model", "mine")
    assert reviewed(monkeypatch, lm, results, *options) == (0, ["mine"])
    assert secret.read_text().startswith("the secret")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"wanted": 1}', "[" * 100_000, '{"wanted": {}, "source": "x", "samples": [{}]}', "pipe", "record"]
)
def test_a_damaged_record_of_a_text_costs_nothing(results: Path, text: str) -> None:
    path = results / "reference.json"
    if text == "pipe":
        os.mkfifo(path)
    elif text == "record":
        piece = made_samples(temperature=0.5, top_k=5, seed=1, num_samples=1)[0].as_json() | {"logprob_mean": 1e308}
        path.write_text(json.dumps({"wanted": {}, "source": "x", "samples": [piece]}))
    else:
        path.write_text(text)
    assert write_report(results).is_file()


def test_a_text_asked_for_by_name_must_be_there(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert review.main([str(results), "--reference", "FILE:nowhere.txt", "--no-report"]) == 2
    assert "nowhere.txt" in capsys.readouterr().err
    assert review.main([str(results), "--model", "gpt2", "--no-report"]) == 2
    assert "needs --reference" in capsys.readouterr().err
