"""GPUs: hidden from all tests, whose expectations are a CPU's, except those that use the fixture ``gpu``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

_VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")
_MODULES = {"cuda": torch.cuda, "mps": torch.backends.mps}
_AVAILABLE = {name: module.is_available for name, module in _MODULES.items()}


@pytest.fixture(scope="session", autouse=True)
def no_gpu() -> Iterator[None]:
    """``device=auto`` is the CPU in this process and in those that tests start, whatever the machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        for module in _MODULES.values():
            patch.setattr(module, "is_available", lambda: False)
        yield


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of this machine's GPU: ``cuda`` or ``mps``. Skips the test where there is none."""
    if _VISIBLE is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", _VISIBLE)
    for name, module in _MODULES.items():
        monkeypatch.setattr(module, "is_available", _AVAILABLE[name])
    kind = next((name for name, available in _AVAILABLE.items() if available()), None)
    if kind is None:
        pytest.skip("no GPU on this machine")
    return kind
