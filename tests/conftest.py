"""Configuration and fixtures of all tests."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: each process has one core

import gptsweep  # noqa: F401  before torch: beside other work, tests whose threads spin take many times as long

# isort: split
import pytest
import torch
from gpus import gpu, no_gpu  # noqa: F401  the fixtures
from hypothesis import HealthCheck, settings
from sweeps import composing, logging_kept, run  # noqa: F401  the fixtures
from table_sweeps import whole  # noqa: F401  a fixture
from torch import Tensor
from visit import browser  # noqa: F401  a fixture

from gptsweep.models.gpt2 import GPT

# No deadlines: a shared machine is slow at times.
settings.register_profile("gptsweep", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.load_profile("gptsweep")


PROCESSES = 2


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite in two processes if pytest-xdist is installed: many tests wait for a process or compute on one core.

    A named file or test runs in one process, which starts faster and can stop in a debugger, unless ``-n`` says otherwise.
    """
    option = config.option
    suite = config.args == config.getini("testpaths") and "PYTEST_XDIST_WORKER" not in os.environ
    if suite and not option.usepdb and getattr(option, "numprocesses", 0) is None:
        option.numprocesses = PROCESSES
        option.dist = "worksteal"  # files stay together, and so do the fixtures of a module, until a process has nothing to do


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of a group first: a process steals tests from the end of another's queue, so a group stays in one."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


def pytest_configure(config: pytest.Config) -> None:
    """Make the tests independent of the user's caches, and of the variables of Hydra and the hub."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C, and so would children
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
    if "PYTEST_XDIST_WORKER" not in os.environ:  # else they are the first process's: machine code is made once for all
        caches = tempfile.TemporaryDirectory(prefix="gptsweep-tests-", ignore_cleanup_errors=True)
        config.add_cleanup(caches.cleanup)
        os.environ |= {"XDG_CACHE_HOME": caches.name, "HF_HOME": f"{caches.name}/huggingface"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HYDRA_FULL_ERROR"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _an_empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in an empty directory, independent of files such as nanoGPT's ``data/`` where pytest was started."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _the_log_of_one_test_alone() -> Iterator[None]:
    """Remove log handlers that Hydra left: they would write what later tests log to a closed stream."""
    with logging_kept():
        yield


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore torch's number of threads after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens that each forward pass read."""
    counts: list[int] = []
    hidden = GPT.hidden

    def counted(self: GPT, ids: Tensor, *rest: Any) -> Tensor:
        counts.append(ids.numel())
        return hidden(self, ids, *rest)

    monkeypatch.setattr(GPT, "hidden", counted)
    return counts
