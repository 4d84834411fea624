"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from sweeps import run  # noqa: F401  the fixture
from torch import Tensor

from gptsweep.model import GPT

# A shared machine is slow at times; that is no failure.
settings.register_profile("gptsweep", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.load_profile("gptsweep")


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
