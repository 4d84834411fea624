"""``hydra/launcher=fused`` as a launcher: Hydra's own suites, the composition of points, and what Hydra leaves on disk."""

from __future__ import annotations

import copy
import importlib
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite
from hydra.types import RunMode
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from sweeps import Run, samples_of, save_checkpoint

import gptsweep
from gptsweep.config import point_from_config
from gptsweep.errors import ConfigError
from gptsweep.multirun.compose import PointLoader
from gptsweep.multirun.run_job import JobConfig, Yaml

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


@settings(max_examples=6)
@given(batch=batches())
def test_a_point_is_composed_as_hydra_composes_it(
    composing: tuple[ConfigLoaderImpl, PointLoader, DictConfig], batch: list[list[str]]
) -> None:
    slow, fast, master = composing
    master.hydra.runtime.cwd = os.getcwd()  # the fixture was made in another test's
    for number, overrides in enumerate(batch):
        expected = slow.load_sweep_config(master, list(overrides))
        found = fast.load_sweep_config(master, overrides)
        assert everything(found) == everything(expected)
        assert found == expected
        assert str(found.hydra.sweep.subdir) == str(expected.hydra.sweep.subdir)
        assert found.name == expected.name
        job = fast.load_job(master, overrides, number)
        assert job.hydra.job.id == str(number)
        job.hydra.runtime.output_dir = "somewhere"
        job.seed += 1
        OmegaConf.set_readonly(job.hydra, True)  # what a job does to its config is its own affair


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


# -- what a job costs less than Hydra's, and must hold the same --------------------------------------------------------------


@pytest.mark.parametrize("overrides", [[], ["model=resume", "sampling.logit_bias={3:1}", "+sampling.more=[1,[a,{b:null}]]"]])
def test_a_quick_copy_is_a_deep_copy(composing: tuple[ConfigLoaderImpl, PointLoader, DictConfig], overrides: list[str]) -> None:
    slow, _, master = composing
    cfg = slow.load_sweep_config(master, overrides)
    assert str(cfg.hydra.sweep.dir)  # fills the cache of resolvers
    job = JobConfig.of(cfg)
    assert nodes(job) == nodes(copy.deepcopy(job)) == nodes(copy.deepcopy(cfg))
    assert nodes(pickle.loads(pickle.dumps(job))) == nodes(cfg)
    assert type(job.hydra) is type(copy.deepcopy(OmegaConf.masked_copy(job, "hydra")).hydra) is JobConfig
    before = nodes(cfg)
    twin = copy.deepcopy(job)
    twin.sampling.top_k = 3
    twin.hydra.overrides.task.append("x=1")
    OmegaConf.set_readonly(twin.hydra, True)
    OmegaConf.clear_cache(twin)
    assert nodes(job) == nodes(cfg) == before != nodes(twin)


def nodes(node: Any, parent: Any = None) -> list[Any]:
    """Everything that a config is made of; each node is its parent's child."""
    assert node._get_parent() is parent
    kind = DictConfig if isinstance(node, DictConfig) else type(node)
    content = node.__dict__.get("_content")
    children = list(content.values()) if isinstance(content, dict) else content if isinstance(content, list) else []
    inside = [nodes(child, node) for child in children]
    return [kind, copy.deepcopy(node._metadata), None if children else node._value(), inside]


KEYS = ["a", "on", "3", "two words", "x" * 130, "a\nb", ""]
CONTAINERS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text().filter(lambda text: "${" not in text)
    | st.sampled_from(RunMode),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=30)
@given(configs=st.lists(st.dictionaries(st.sampled_from(KEYS), CONTAINERS, max_size=4) | st.lists(CONTAINERS), max_size=6))
def test_yaml_that_remembers_is_the_yaml_of_omegaconf(configs: list[Any]) -> None:
    remembering = Yaml()
    for config in configs + configs:
        cfg = OmegaConf.create({"inside": config}, flags={"allow_objects": True})
        assert remembering.text(cfg) == OmegaConf.to_yaml(cfg)
        assert remembering.text(cfg.inside) == OmegaConf.to_yaml(cfg.inside)


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


@pytest.fixture
def in_reverse(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A plugin with an executor of its own is installed, for one test: joblib's processes get all that Hydra knows of."""
    before = Singleton.get_state()
    with monkeypatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent / "plugins")
        plugin = importlib.import_module("hydra_plugins.in_reverse")
        Plugins.instance().register(plugin.InReverseLauncher)
        plugin.PLANS.clear()
        yield plugin
    del sys.modules["hydra_plugins.in_reverse"]
    Singleton.set_state(before)  # looks for plugins again, where it is no longer


def test_an_executor_of_ones_own_runs_a_sweep_to_the_same_files(run: Run, tmp_path: Path, in_reverse: ModuleType) -> None:
    save_checkpoint(tmp_path / "out", seed=1)
    sweep = ("-m", "model=resume", "sampling.max_new_tokens=4", "sampling.num_samples=3", "quiet=true", "start=a,b")
    assert run(*sweep, "seed=1,2", "name=here").status == 0
    assert not in_reverse.PLANS
    for seeds in ("seed=1", "seed=1,2"):  # begun, then extended
        assert run(*sweep, seeds, "name=there", "hydra/launcher=in_reverse").status == 0
    assert [plan.workload.rows for plan in in_reverse.PLANS] == [6, 6]
    here, there = (samples_of(tmp_path / "outputs/sweeps" / name) for name in ("here", "there"))
    assert len(here) == 4
    assert there == here


def without_launcher(text: str) -> list[str]:
    return [line for line in text.splitlines() if "_target_" not in line and "hydra/" not in line]
