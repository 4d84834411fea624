"""A reference text is measured by the same yardstick as the samples, and its model is not loaded for nothing."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from made_sweep import made_samples, write_point

from gptsweep import reference, review, session
from gptsweep.frames import read_sweep
from gptsweep.model import GPT, GPTConfig
from gptsweep.report import write_report
from gptsweep.tokenizer import CharTokenizer

TEXT = "the quality of mercy is not strained; it droppeth as the gentle rain from heaven upon the place beneath\n" * 3


@pytest.fixture(scope="module")
def lm() -> Any:
    """A tiny model of the characters of `TEXT`, with two ids more than it has characters."""
    torch.manual_seed(0)
    letters = sorted(set(TEXT))
    tokenizer = CharTokenizer(letters)
    model = GPT(GPTConfig(block_size=16, vocab_size=len(letters) + 2, n_layer=1, n_head=2, n_embd=16)).eval()
    return SimpleNamespace(model=model, tokenizer=tokenizer)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_point(tmp_path / "run", made_samples(temperature=0.5, top_k=5, seed=1, words=30))
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "run" / ".hydra").mkdir()
    config = {
        "model": {"name": "shakespeare"},
        "device": {"name": "cpu", "dtype": "float32"},
        "reference": f"FILE:{tmp_path}/text.txt",
    }
    (tmp_path / "run" / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "run"


def test_the_score_is_that_of_the_model_token_by_token(lm: Any) -> None:
    ids = lm.tokenizer.encode(TEXT)
    logprob, entropy = reference.piece_score(lm, ids, 1, 14)
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
    whole, _ = reference.piece_score(lm, ids, 40, 72)
    parts = [reference.piece_score(lm, ids, first, first + 8)[0] for first in range(40, 72, 8)]
    assert whole == pytest.approx(sum(parts) / 4, rel=1e-5)


def test_pieces_are_as_long_as_the_samples_and_do_not_overlap(lm: Any) -> None:
    records = reference.score(lm, TEXT, length=30, pieces=5)
    assert len(records) == 5
    assert all(len(record["token_ids"]) == 30 == len(record["completion"]) for record in records)
    starts = [record["prompt_tokens"] for record in records]
    assert all(after - before >= 30 for before, after in itertools.pairwise(starts))
    assert starts[-1] + 30 == len(TEXT)
    assert len(reference.score(lm, TEXT[:20], length=500, pieces=5)) == 1


def test_the_model_is_loaded_once(run: Path, lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(session, "open_model", lambda *settings: loaded.append(settings) or lm)
    sweep = read_sweep(run)
    first = reference.update_reference(run, sweep)
    assert first is not None
    assert first["perplexity"] is not None
    assert first["sampler_perplexity"] is None
    assert reference.update_reference(run, sweep) == first
    assert len(loaded) == 1
    assert (loaded[0][0].name, loaded[0][1].dtype) == ("shakespeare", "float32")
    (run.parent / "text.txt").write_text(TEXT[:200])
    assert reference.update_reference(run, sweep) != first
    assert len(loaded) == 2


def test_page_and_table_show_the_distance(
    run: Path, lm: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "open_model", lambda *_: lm)
    assert review.main([str(run), "--metric", "diversity", "--format", "csv"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.endswith("diversity,diversity_se,diversity_n,diversity_distance")
    goal = reference.update_reference(run, read_sweep(run))
    assert goal is not None
    values = dict(zip(header.split(","), row.split(","), strict=True))
    assert float(values["diversity_distance"]) == pytest.approx(float(values["diversity"]) - goal["diversity"])  # type: ignore[operator]
    assert review.main([str(run), "--format", "table", "--best", "diversity:reference", "--no-report"]) == 0
    assert "reference text" in capsys.readouterr().out
    assert '"reference":{"perplexity":' in (run / "report.html").read_text()


def test_a_text_that_cannot_be_read_costs_no_report(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run.parent / "text.txt").unlink()
    assert write_report(run).is_file()
    assert "the reference text is left out" in caplog.text


def test_a_text_asked_for_by_name_must_be_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert review.main([str(run), "--reference", "FILE:nowhere.txt", "--no-report"]) == 2
    assert "nowhere.txt" in capsys.readouterr().err
