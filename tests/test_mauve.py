"""MAUVE: its formula against the package of its authors, its clusters, and the review that asks for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeps import Run, save_checkpoint

import gptsweep
from gptsweep import review
from gptsweep.analysis.mauve import MIN_TEXTS, area, clustered, mauve, reduced
from gptsweep.engine.torch_backend import TorchBackend
from gptsweep.store.schema import SCORES


def normal(n: int, away: float, seed: int, size: int = 16) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(n, size))
    features[:, 0] += away
    return features


@pytest.fixture
def authors() -> object:
    """The package of MAUVE's authors, mauve-text."""
    return pytest.importorskip(
        "mauve.compute_mauve", reason="pip install mauve-text; with faiss and scikit-learn it is too large for the extra test"
    )


def histograms(n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of histograms over a few clusters, some of which are empty on one side."""
    rng, found = np.random.default_rng(0), []
    for _ in range(n):
        p, q = (rng.dirichlet(np.ones(clusters)) for clusters in [rng.integers(2, 9)] * 2)
        for each in (p, q):
            if rng.random() < 0.5 and (each[(at := rng.integers(len(each)))]) < 1:
                each[at] = 0
                each /= each.sum()
        found.append((p, q))
    return [(p, q) for p, q in found if not np.allclose(p, q)]


def test_the_area_is_that_of_the_package_of_its_authors(authors: object) -> None:
    from sklearn.metrics import auc

    weights = np.linspace(1e-6, 1 - 1e-6, 25)
    for p, q in histograms(100):
        x, y = authors.get_divergence_curve_for_multinomials(p, q, weights, 5).T  # type: ignore[attr-defined]
        by, other = np.argsort(x), np.argsort(y)
        assert area(p, q) == pytest.approx((auc(x[by], y[by]) + auc(y[other], x[other])) / 2, abs=1e-9)


@pytest.mark.parametrize("away", [0, 1, 3])
def test_the_value_is_that_of_the_package_of_its_authors_but_for_the_clusters_of_chance(authors: object, away: float) -> None:
    p, q = normal(200, 0, 1), normal(200, away, 2)
    theirs = [authors.compute_mauve(p_features=p, q_features=q, seed=seed).mauve for seed in range(5)]  # type: ignore[attr-defined]
    assert mauve(p, q) == pytest.approx(np.mean(theirs), abs=0.06)


def test_what_is_alike_is_near_and_what_is_not_is_far() -> None:
    same = normal(100, 0, 1)
    assert mauve(same, same) == pytest.approx(1)
    near, middle, far = (mauve(same, normal(100, away, 2)) for away in (0, 1.5, 30))
    assert isinstance(near, float)
    assert isinstance(middle, float)
    assert near > 0.8 > middle > 0.1
    assert far == pytest.approx(area(np.array([1.0, 0]), np.array([0, 1.0])), abs=0.01)
    assert area(np.array([1.0, 0]), np.array([0, 1.0])) < 0.01
    assert mauve(same[: MIN_TEXTS - 1], same) == f"needs {MIN_TEXTS} samples and {MIN_TEXTS} pieces of the reference text"
    assert mauve(np.zeros((30, 4)), np.zeros((30, 4))) == pytest.approx(1)  # all texts the same


@settings(max_examples=20)
@given(seed=st.integers(0, 99), clusters=st.integers(1, 6))
def test_clusters_are_a_minimum_and_the_same_every_time(seed: int, clusters: int) -> None:
    points = reduced(np.random.default_rng(seed).normal(size=(40, 5)))
    labels = clustered(points, clusters)
    assert np.array_equal(labels, clustered(points.copy(), clusters))
    centres = {label: points[labels == label].mean(axis=0) for label in set(labels.tolist())}
    for point, label in zip(points, labels.tolist(), strict=True):
        assert min(centres, key=lambda each: float(((point - centres[each]) ** 2).sum())) == label


def test_features_are_the_hidden_state_that_the_next_token_is_read_from(tmp_path: Path) -> None:
    lm = gptsweep.load(str(save_checkpoint(tmp_path / "out", seed=1)))
    ids = lm.tokenizer.encode("abc de")
    features = torch.tensor(lm.backend.features(ids))
    assert features.shape == (lm.model.embedding.shape[1],)
    torch.testing.assert_close(lm.model.logits(features), lm.model(torch.tensor([ids]))[0, -1])
    long = lm.tokenizer.encode("abcd" * 10)
    assert lm.backend.features(long) == lm.backend.features(long[: lm.backend.block_size])


def test_the_review_keeps_it_beside_the_points(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "out", seed=1)
    Path("text.txt").write_text("abc no de\nhij " * 100)
    small = ("model=resume", "sampling.max_new_tokens=8", "start=a", "quiet=true", "name=s")
    assert run("-m", "sampling.temperature=0.5,1.5", "sampling.num_samples=24", *small).status == 0
    command = ["outputs/sweeps/s", "--metric", "mauve", "--format", "json"]

    def reviewed(*more: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return review.main([*command, *more]), *capsys.readouterr()

    status, _, err = reviewed()
    assert status == 2
    assert "metric=mauve: needs a reference text; give one with --reference FILE:path" in err
    status, out, err = reviewed("--reference", "FILE:text.txt", "--model", "out")
    assert status == 0, err
    values = [row["mauve"] for row in json.loads(out)]
    assert all(0 < value <= 1 for value in values)
    assert values[0] != values[1]
    assert len(list(Path("outputs/sweeps/s").glob(f"*/{SCORES}"))) == 2
    monkeypatch.setattr(TorchBackend, "features", None)  # nothing is computed a second time
    assert [row["mauve"] for row in json.loads(reviewed("--model", "out")[1])] == values
    assert [row["mauve"] for row in json.loads(reviewed()[1])] == values
    status, out, err = reviewed("--best", "mauve", "--format", "table")
    assert status == 0, err
    assert "MAUVE" in out
    assert "mauve" not in Path("outputs/sweeps/s/sweep.csv").read_text()
