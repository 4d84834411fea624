"""All use that gptsweep makes of the private APIs of Hydra and OmegaConf.

It saves time. Hydra composes the config of a command twice, and that of each point of a sweep, too; it copies a config five
times and composes again after a mistake; and OmegaConf parses the interpolations in each point's config again. If the
internals differ from those known here, gptsweep does without these shortcuts, which is slower but gives the same results.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.core_plugins import basic_sweeper
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core import utils
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import DictConfig, base

from ..display import Parser, get_logger

__all__ = ["BasicLauncher", "ConfigLoaderImpl", "get_overrides_dirname"]

log = get_logger(__name__)

_omegaconf: Any = base

Compose = Callable[[list[str]], DictConfig]
"""Composes the config of some overrides."""

_KNOWN: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "ConfigLoaderImpl.load_sweep_config": (ConfigLoaderImpl, "load_sweep_config", ("self", "master_config", "sweep_overrides")),
    "ConfigLoaderImpl.load_configuration": (
        ConfigLoaderImpl,
        "load_configuration",
        ("self", "config_name", "overrides", "run_mode", "from_shell", "validate_sweep_overrides"),
    ),
    "ConfigLoaderImpl._apply_overrides_to_config": (ConfigLoaderImpl, "_apply_overrides_to_config", ("overrides", "cfg")),
    "Hydra.get_mode": (Hydra, "get_mode", ("self", "config_name", "overrides")),
    "Hydra.compose_config": (
        Hydra,
        "compose_config",
        ("self", "config_name", "overrides", "run_mode", "with_log_configuration", "from_shell", "validate_sweep_overrides"),
    ),
    "hydra.core.utils.run_job": (
        utils,
        "run_job",
        ("task_function", "config", "job_dir_key", "job_subdir_key", "hydra_context", "configure_logging"),
    ),
    "hydra.core.utils._save_config": (utils, "_save_config", ("cfg", "filename", "output_dir")),
    "omegaconf.base.parse": (_omegaconf, "parse", ("value", "parser_rule", "lexer_mode")),
}


@cache
def differing() -> frozenset[str]:
    """Return the names of the internals whose arguments differ from those known here, and log them if there are any."""
    names = {name for name, (owner, attribute, known) in _KNOWN.items() if _parameters(owner, attribute) != known}
    if "_save_config" not in getattr(getattr(utils.run_job, "__code__", None), "co_names", ()):
        names.add("hydra.core.utils.run_job")
    if names:
        log.info("this version of Hydra differs in %s; sweeps use its slower public functions", ", ".join(sorted(names)))
    return frozenset(names)


def quick_loading() -> bool:
    """Return whether the points of a sweep may share a composed config."""
    return not differing() & {"ConfigLoaderImpl.load_sweep_config", "ConfigLoaderImpl._apply_overrides_to_config"}


def _parameters(owner: Any, attribute: str) -> tuple[str, ...]:
    found = getattr(owner, attribute, None)
    return tuple(inspect.signature(found).parameters) if callable(found) else ()


def apply_values(overrides: list[Override], cfg: DictConfig) -> None:
    """Set plain values in a composed config, as composing it again would."""
    ConfigLoaderImpl._apply_overrides_to_config(overrides, cfg)


@contextmanager
def parsing_once() -> Iterator[None]:
    """Make OmegaConf parse each interpolation only once, however many configs contain it.

    All points of a sweep contain those of their directory and log. Parsing them took a fifth of a point's time apart from
    decoding. Sharing is safe, as parse trees are only read.
    """
    parse = _omegaconf.parse
    if "omegaconf.base.parse" not in differing():
        _omegaconf.parse = lru_cache(256)(parse)
    try:
        yield
    finally:
        _omegaconf.parse = parse


def points_of(overrides: list[Override]) -> list[list[str]]:
    """Return the points of a sweep, each as its overrides, in the order of Hydra's own sweeper."""
    return basic_sweeper.BasicSweeper.split_arguments(overrides, None)[0]


def sweeper_over(
    points: Callable[[list[Override]], list[list[str]]], max_batch_size: int | None, params: dict[str, str] | None
) -> Sweeper:
    """Make Hydra's own sweeper run over the points that ``points`` makes of the overrides, instead of their product."""

    def split(overrides: list[Override], size: int | None) -> list[list[list[str]]]:
        return list(sweeper.split_overrides_to_chunks(points(overrides), size))

    sweeper = basic_sweeper.BasicSweeper(max_batch_size, params)  # looked up in the module, which Hydra executes a second time
    sweeper.split_arguments = split  # type: ignore[method-assign,assignment]
    return sweeper


def settings_in(arguments: Sequence[str]) -> list[str]:
    """Return the overrides in a command line, without Hydra's flags. An unknown flag exits with one line and status 2."""
    parser = get_args_parser()
    parser.prog = "gptsweep"
    parser.error = partial(Parser.error, cast(Parser, parser))  # type: ignore[method-assign]
    return list(parser.parse_intermixed_args(list(arguments)).overrides)


class _ComposedOnce(ConfigLoaderImpl):
    """Hydra's config loader, which returns a config that `get_mode` has composed the first time it is asked for.

    Args:
        loader: Hydra's own loader.
        composed: the configs that `get_mode` composed, by their overrides.
    """

    def __init__(self, loader: ConfigLoader, composed: Mapping[tuple[str, ...], DictConfig]) -> None:
        super().__init__(loader.get_search_path())
        self._composed = dict(composed)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose as Hydra does. A config that `get_mode` composed is returned only once, as the caller may change it."""
        added = [f"hydra.mode={run_mode.name}"]  # by Hydra, where the config names no mode
        requested = overrides[:-1] if overrides[-1:] == added else overrides
        config = self._composed.pop(tuple(requested), None)
        if config is None or _may_be_refused(config, requested, run_mode):
            return super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        if requested is not overrides:
            config.hydra.mode = run_mode
            config.hydra.overrides.hydra.extend(added)
        return config


def _may_be_refused(config: DictConfig, overrides: list[str], run_mode: RunMode) -> bool:
    """Return whether Hydra may refuse in ``run_mode`` what `get_mode` accepts: an open choice, or a misplaced sweep."""
    run = run_mode is RunMode.RUN
    swept = any("," in line or "(" in line for line in overrides if run or line.lstrip("+~").startswith("hydra"))
    return swept or (run and "???" in config.hydra.runtime.choices.values())


def replace_get_mode(mode_of: Callable[[Compose, list[str]], RunMode | None]) -> None:
    """Make ``mode_of`` decide in which mode Hydra runs; an error in it ends the command.

    Hydra's own `get_mode` swallows an error, composes again and meets it again, so the user waits 0.1 s longer for one line.
    Without an error it also composes a second time. If Hydra's internals are not known, its `get_mode` stays.

    Args:
        mode_of: called with a function that composes, and with the overrides, which it may change in place.
    """

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> RunMode | None:
        composed: dict[tuple[str, ...], DictConfig] = {}

        def compose(lines: list[str]) -> DictConfig:
            config = self.compose_config(config_name, lines, RunMode.MULTIRUN, validate_sweep_overrides=False)
            composed[tuple(lines)] = config
            return config

        mode = mode_of(compose, overrides)
        if "ConfigLoaderImpl.load_configuration" not in differing():
            self.config_loader = _ComposedOnce(self.config_loader, composed)
        return mode

    if not differing() & {"Hydra.get_mode", "Hydra.compose_config"}:
        Hydra.get_mode = get_mode  # type: ignore[method-assign]


def run_job_with(save_config: Callable[[Any, str, Path], None]) -> Callable[..., JobReturn]:
    """Return a copy of `hydra.core.utils.run_job` that calls ``save_config`` in place of ``_save_config``.

    If Hydra's internals are not known, return Hydra's own function.
    """
    run_job = utils.run_job
    if differing() & {"hydra.core.utils.run_job", "hydra.core.utils._save_config"}:
        return run_job
    known = run_job.__globals__ | {"_save_config": save_config}
    return FunctionType(run_job.__code__, known, run_job.__name__, run_job.__defaults__, run_job.__closure__)
