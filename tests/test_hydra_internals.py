"""Hydra's private API: known as it is installed, named where it differs, and not needed for the same samples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core import utils
from omegaconf import OmegaConf, base
from sweeps import Run, samples_of, save_checkpoint

from gptsweep.multirun import hydra_internals
from gptsweep.multirun.hydra_internals import ConfigLoaderImpl, differing, parsing_once, run_job_with
from gptsweep.multirun.run_job import Yaml

SINGLE = ("model=resume", "sampling.num_samples=1", "sampling.max_new_tokens=4", "quiet=true")
SWEEP = ("-m", "seed=1,2", "sampling.temperature=0.5,1", *SINGLE)


@pytest.fixture
def fresh() -> Iterator[None]:
    """What is known of Hydra is found out anew, here and after."""
    differing.cache_clear()
    yield
    differing.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_the_installed_hydra_is_the_one_that_is_known() -> None:
    assert differing() == frozenset(), "these internals of Hydra have changed, and sweeps are slower"


@pytest.mark.usefixtures("fresh")
def test_a_hydra_that_differs_is_named_and_its_sweeps_make_the_same_files(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "out", seed=1)
    assert run(*SWEEP, "name=fast").status == 0
    assert run(*SINGLE, "name=fast").status == 0
    differing.cache_clear()
    real = ConfigLoaderImpl._apply_overrides_to_config
    changed = staticmethod(lambda overrides, cfg, strict=True: real(overrides, cfg))
    monkeypatch.setattr(ConfigLoaderImpl, "_apply_overrides_to_config", changed)
    load = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", lambda *given, **named: load(*given, **named))
    save_config = utils._save_config
    monkeypatch.setattr(utils, "_save_config", lambda cfg, filename, output_dir, mode=0: save_config(cfg, filename, output_dir))
    monkeypatch.setattr(base, "parse", lambda text, parse=base.parse: parse(text))
    assert differing() == {
        "ConfigLoaderImpl._apply_overrides_to_config",
        "ConfigLoaderImpl.load_configuration",
        "hydra.core.utils._save_config",
        "omegaconf.base.parse",
    }
    assert run_job_with(Yaml().save) is utils.run_job
    assert run(*SWEEP, "name=plain").status == 0
    assert run(*SINGLE, "name=plain").status == 0
    fast, plain = (tmp_path / "outputs/sweeps" / name for name in ("fast", "plain"))
    assert samples_of(plain) == samples_of(fast)
    assert len(samples_of(plain)) == 4
    for written in (*plain.glob("*/.hydra/*"), *(tmp_path / "outputs/runs/plain/.hydra").iterdir()):
        there = Path(str(written).replace("/plain/", "/fast/"))
        assert re.sub(r"\bplain\b", "fast", written.read_text()) == there.read_text()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("how", ["run", "sweep"])
def test_a_command_composes_its_config_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    save_checkpoint(tmp_path / "out", seed=1)
    composed: list[str] = []
    real = ConfigLoaderImpl._load_configuration_impl

    def compose(self: ConfigLoaderImpl, **arguments: Any) -> Any:
        composed.append(" ".join(arguments["overrides"]))
        return real(self, **arguments)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", compose)
    assert run(*(SWEEP if how == "sweep" else SINGLE), "name=n").status == 0
    assert len(composed) == 1


@pytest.mark.parametrize("sweep", [(), ("-m", "seed=1,2")], ids=["run", "sweep"])
def test_a_group_without_a_choice_is_refused(run: Run, sweep: tuple[str, ...]) -> None:
    ended = run(*sweep, "device=???", "sampling.num_samples=1")
    assert (ended.status, "device" in ended.err) == (2, True), ended.err


def test_an_interpolation_is_parsed_once_for_all_configs_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed, real = [], base.parse

    def parse(value: str, parser_rule: str = "configValue", lexer_mode: str = "DEFAULT_MODE") -> Any:
        parsed.append(value)
        return real(value, parser_rule, lexer_mode)

    monkeypatch.setattr(base, "parse", parse)
    configs = [OmegaConf.create({"name": name, "place": "in/${name}"}) for name in "abc"]
    with parsing_once():
        assert [config.place for config in configs] == ["in/a", "in/b", "in/c"]
        assert parsed == ["in/${name}"]
    assert base.parse is parse


def test_no_other_module_reaches_into_hydra() -> None:
    package = Path(hydra_internals.__file__).parents[1]
    found = {path.name for path in package.rglob("*.py") if "hydra._internal" in path.read_text(encoding="utf-8")}
    assert found == {"hydra_internals.py"}
