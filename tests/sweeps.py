"""Sweeps for the tests: tiny checkpoints in nanoGPT's format, and the command run in this process."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from model_files import save_meta, save_nanogpt
from omegaconf import DictConfig
from plain import peaked_gpt

from gptsweep import __main__ as command
from gptsweep.config_schema import CONF_DIR, register
from gptsweep.models.gpt2 import GPTConfig
from gptsweep.multirun.compose import PointLoader

CHARACTERS = "\n !abcdefghijklmno"


def save_checkpoint(out_dir: Path, seed: int, block_size: int = 12) -> Path:
    """Write a tiny model with peaked distributions, whose characters are `CHARACTERS`."""
    config = GPTConfig(block_size=block_size, vocab_size=len(CHARACTERS), n_layer=2, n_head=2, n_embd=8)
    save_nanogpt(out_dir, peaked_gpt(config, seed).requires_grad_(True))
    save_meta(out_dir / "meta.pkl", CHARACTERS)
    return out_dir


@dataclass
class Ended:
    """The result of a command."""

    status: int
    out: str
    err: str


Run = Callable[..., Ended]


@contextmanager
def logging_kept() -> Iterator[None]:
    """Restore the root logger, which Hydra configures."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(before[0]):
            handler.close()
        root.handlers[:], root.level = before


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs the command in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["gptsweep", *arguments])
        return Ended(command.main(), *capsys.readouterr())

    yield run
    if (loky := sys.modules.get("joblib.externals.loky")) is not None:
        loky.get_reusable_executor().shutdown(wait=True)  # joblib's workers would outlive the test, in its directory


@pytest.fixture(scope="module")
def composing() -> tuple[ConfigLoaderImpl, PointLoader, DictConfig]:
    """Hydra's loader, ours, and the config of a sweep."""
    register()
    hydra = Hydra.create_main_hydra2("gptsweep", create_config_search_path(str(CONF_DIR)))
    GlobalHydra.instance().clear()
    assert isinstance(hydra.config_loader, ConfigLoaderImpl)
    master = hydra.compose_config("config", ["hydra.verbose=true"], RunMode.MULTIRUN, with_log_configuration=False)
    assert master.name  # now: from the cache
    return hydra.config_loader, PointLoader(hydra.config_loader), master


def samples_of(sweep: Path) -> dict[str, bytes]:
    """The bytes of every ``samples.jsonl`` under ``sweep``, by the name of its directory."""
    return {path.parent.name: path.read_bytes() for path in sweep.glob("**/samples.jsonl")}


def fork(program: Callable[[], int]) -> int:
    """Run ``program`` in a forked child, which starts with everything imported; return its process id."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            status = program()
        finally:
            os._exit(status)
    return pid
