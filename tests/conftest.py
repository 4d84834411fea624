"""What all tests share."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: each process has a core; tests of threads set their count

import gptsweep  # noqa: F401  before torch: beside other work, tests whose threads spin take many times as long

# isort: split
import pytest
import torch
from hypothesis import HealthCheck, settings
from sweeps import composing, logging_kept, run  # noqa: F401  the fixtures
from table_sweeps import whole  # noqa: F401  a fixture
from torch import Tensor
from visit import browser  # noqa: F401  a fixture

from gptsweep.models.gpt2 import GPT

# A shared machine is slow at times; that is no failure.
settings.register_profile("gptsweep", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.load_profile("gptsweep")


PROCESSES = 2


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite runs in two processes, where pytest-xdist is there: many tests wait for a process or compute on one core.

    A file or a test that is named runs in one, which starts faster and stops in a debugger; ``-n`` decides otherwise.
    """
    option = config.option
    suite = config.args == config.getini("testpaths") and "PYTEST_XDIST_WORKER" not in os.environ
    if suite and not option.usepdb and getattr(option, "numprocesses", 0) is None:
        option.numprocesses = PROCESSES
        option.dist = "worksteal"  # files stay together, and so do the fixtures of a module, until a process has nothing to do


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a group come first: what one process takes from another it takes from the end, so a group stays in one."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


def pytest_configure(config: pytest.Config) -> None:
    """What lies in the caches of whoever runs the tests, or in the variables of Hydra and the hub, decides nothing."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # started in the background of a shell, they would ignore Ctrl-C
    if "PYTEST_XDIST_WORKER" not in os.environ:  # else they are the first process's: machine code is made once for all
        caches = tempfile.TemporaryDirectory(prefix="gptsweep-tests-", ignore_cleanup_errors=True)
        config.add_cleanup(caches.cleanup)
        os.environ |= {"XDG_CACHE_HOME": caches.name, "HF_HOME": f"{caches.name}/huggingface"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HYDRA_FULL_ERROR"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _an_empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies where the tests are started, a ``data/`` of nanoGPT's say, decides nothing."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _the_log_of_one_test_alone() -> Iterator[None]:
    """A handler that Hydra left would write what later tests log to a stream that is closed."""
    with logging_kept():
        yield


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
