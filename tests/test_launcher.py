"""``hydra/launcher=fused`` as a launcher: Hydra's own suites, the composition of points, and what Hydra leaves on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite
from hydra.types import RunMode
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from sweeps import Run, save_checkpoint

import gptsweep
from gptsweep.compose import PointLoader
from gptsweep.config import CONF_DIR, point_from_config, register
from gptsweep.errors import ConfigError

PLUGIN_PATH = Path(gptsweep.__file__).parent / "_plugin_path"


@pytest.fixture
def base_of_the_suites() -> Iterator[None]:
    """Hydra's suites count on the version base of a program that names none; importing the command names one."""
    before = version.getbase()
    version.setbase("1.1")
    yield
    version.setbase(str(before))


@pytest.mark.usefixtures("base_of_the_suites")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("fused", [])])
class TestFusedLauncher(LauncherTestSuite):
    """Hydra's suite for launchers."""


@pytest.mark.usefixtures("base_of_the_suites")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("fused", ["hydra.sweeper.max_batch_size=2"])])
class TestFusedLauncherInBatches(BatchedSweeperTestSuite):
    """Hydra's suite for batches."""


@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=fused"])])
class TestFusedLauncherInItsOwnProcess(IntegrationTestSuite):
    """Hydra's suite of programs that know nothing of gptsweep."""

    @pytest.fixture(autouse=True)
    def _plugin_on_the_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PLUGIN_PATH), str(Path(gptsweep.__file__).parents[1])]))


def test_hydra_finds_the_launcher() -> None:
    assert "FusedLauncher" in {found.__name__ for found in Plugins.instance().discover(Launcher)}


# -- composition -------------------------------------------------------------------------------------------------------------


VALUES: dict[str, list[str]] = {
    "seed": ["0", "1", "18446744073709551615"],
    "start": ["Once", "'a b, c=d'", '"${seed}"', "FILE:x", "null_"],
    "name": ["x", "y"],
    "quiet": ["true", "false"],
    "objective": ["null", "perplexity"],
    "sampling.top_k": ["1", "200", "null"],
    "sampling.temperature": ["0", "0.7", "1e-1", "1"],
    "sampling.stop": ["[]", "[a,b]", "['\\n\\n']"],
    "sampling.logit_bias": ["{}", "{3:1}", "{3:1,4:-100}"],
    "sampling": ["default", "greedy", "creative"],
    "model": ["gpt2", "shakespeare", "resume"],
    "device": ["cpu", "auto"],
    "device.max_rows": ["null", "3"],
    "experiment": ["story", "deterministic"],
    "hydra.job.name": ["one", "two"],
    "+hydra.job.env_set.A": ["1", "2"],
}


@st.composite
def batches(draw: st.DrawFn) -> list[list[str]]:
    """Points that override the same keys, as those of a sweep do; mostly keys with plain values."""
    plain = [
        key for key, values in VALUES.items() if key not in ("sampling", "model", "device", "experiment") and key.islower()
    ]
    keys = draw(st.lists(st.sampled_from(plain), min_size=1, unique=True))
    keys += draw(st.lists(st.sampled_from(sorted(VALUES.keys() - set(plain))), max_size=2, unique=True))
    keys = draw(st.permutations(keys))
    return [[f"{key}={draw(st.sampled_from(VALUES[key]))}" for key in keys] for _ in range(draw(st.integers(2, 4)))]


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


@settings(max_examples=30)
@given(batch=batches())
def test_a_point_is_composed_as_hydra_composes_it(
    composing: tuple[ConfigLoaderImpl, PointLoader, DictConfig], batch: list[list[str]]
) -> None:
    slow, fast, master = composing
    for number, overrides in enumerate(batch):
        expected = slow.load_sweep_config(master, list(overrides))
        found = fast.load_sweep_config(master, overrides)
        assert everything(found) == everything(expected)
        assert found == expected
        assert str(found.hydra.sweep.subdir) == str(expected.hydra.sweep.subdir)
        assert found.name == expected.name
        OmegaConf.set_readonly(found.hydra, True)  # as a job leaves it
        fast.load_job(master, overrides, number).hydra.runtime.output_dir = "somewhere"


def everything(cfg: DictConfig) -> tuple[str, Any, Any]:
    """A config as text, with the flags and the types that the text does not show."""
    flags = (OmegaConf.is_readonly(cfg), OmegaConf.is_readonly(cfg.hydra), OmegaConf.is_struct(cfg))
    types = [OmegaConf.get_type(cfg, key) for key in ("model", "sampling", "device")]
    return OmegaConf.to_yaml(cfg), flags, types


def test_a_wrong_value_is_refused_in_the_words_of_the_first_point(
    composing: tuple[ConfigLoaderImpl, PointLoader, DictConfig],
) -> None:
    _, fast, master = composing
    fast.load_sweep_config(master, ["seed=1", "sampling.top_k=5"])
    for overrides in (["seed=1", "sampling.top_k=many"], ["seed=one", "sampling.top_k=5"]):
        with pytest.raises(Exception, match="Error merging override"):
            fast.load_sweep_config(master, overrides)
    with pytest.raises(ConfigError, match="top_k=0"):
        fast.plan(master, [["seed=1", "sampling.top_k=5"], ["seed=1", "sampling.top_k=0"]])
    assert point_from_config(fast.load_sweep_config(master, ["seed=1", "sampling.top_k=7"])).sampling.top_k == 7


# -- what Hydra leaves on disk ------------------------------------------------------------------------------------------------


def test_a_run_directory_holds_what_hydras_own_launcher_leaves_there(run: Run, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "out", seed=1)
    sweep = ("-m", "model=resume", "seed=2,1", "sampling.stop=[a]", "sampling.max_new_tokens=2", "name=x", "quiet=true")
    files = {}
    for launcher in ("fused", "basic"):
        assert run(*sweep, f"hydra/launcher={launcher}", f"hydra.sweep.dir={launcher}").status == 0
        files[launcher] = {
            str(path.relative_to(launcher)): path.read_text().replace(launcher, "launcher")
            for path in Path(launcher).glob("*/.hydra/*")
        }
    assert len(files["fused"]) == 6
    for name, text in files["basic"].items():
        assert without_launcher(files["fused"][name]) == without_launcher(text)


def without_launcher(text: str) -> list[str]:
    return [line for line in text.splitlines() if "_target_" not in line and "hydra/" not in line]
