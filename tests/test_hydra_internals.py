"""Hydra's private API: known as it is installed, named where it differs, and not needed for the same samples."""

from __future__ import annotations

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

SWEEP = ("-m", "model=resume", "seed=1,2", "sampling.num_samples=1", "sampling.max_new_tokens=4", "sampling.temperature=0.5,1")


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
    differing.cache_clear()
    real = ConfigLoaderImpl._apply_overrides_to_config
    changed = staticmethod(lambda overrides, cfg, strict=True: real(overrides, cfg))
    monkeypatch.setattr(ConfigLoaderImpl, "_apply_overrides_to_config", changed)
    save_config = utils._save_config
    monkeypatch.setattr(utils, "_save_config", lambda cfg, filename, output_dir, mode=0: save_config(cfg, filename, output_dir))
    monkeypatch.setattr(base, "parse", lambda text, parse=base.parse: parse(text))
    assert differing() == {
        "ConfigLoaderImpl._apply_overrides_to_config",
        "hydra.core.utils._save_config",
        "omegaconf.base.parse",
    }
    assert run_job_with(Yaml().save) is utils.run_job
    assert run(*SWEEP, "name=plain").status == 0
    fast, plain = (tmp_path / "outputs/sweeps" / name for name in ("fast", "plain"))
    assert samples_of(plain) == samples_of(fast)
    assert len(samples_of(plain)) == 4
    for point in samples_of(plain):
        for file in ("config.yaml", "overrides.yaml"):
            written = [(sweep / point / ".hydra" / file).read_text() for sweep in (plain, fast)]
            assert written[0].replace("name: plain", "name: fast").replace("name=plain", "name=fast") == written[1]


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
