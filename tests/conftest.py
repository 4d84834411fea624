"""What all tests share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gptsweep  # noqa: F401  before torch: beside other work, tests whose threads spin take many times as long

# isort: split
import pytest
import torch
from hypothesis import HealthCheck, settings
from sweeps import run  # noqa: F401  the fixture
from torch import Tensor

from gptsweep.models.gpt2 import GPT

# A shared machine is slow at times; that is no failure.
settings.register_profile("gptsweep", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.load_profile("gptsweep")


def pytest_configure(config: pytest.Config) -> None:
    """What lies in the caches of whoever runs the tests, or in the variables of Hydra and the hub, decides nothing."""
    caches = tempfile.TemporaryDirectory(prefix="gptsweep-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(caches.cleanup)
    os.environ |= {"XDG_CACHE_HOME": caches.name, "HF_HOME": f"{caches.name}/huggingface"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HYDRA_FULL_ERROR"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _an_empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies where the tests are started, a ``data/`` of nanoGPT's say, decides nothing."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def threads() -> Iterator[None]:
    """For tests that set the thread count: it is put back afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that each forward pass has read."""
    counts: list[int] = []
    hidden = GPT.hidden

    def counted(self: GPT, ids: Tensor, *rest: Any) -> Tensor:
        counts.append(ids.numel())
        return hidden(self, ids, *rest)

    monkeypatch.setattr(GPT, "hidden", counted)
    return counts
