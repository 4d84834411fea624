"""Hydra's private API, and OmegaConf's: all of it that gptsweep uses.

It saves time: Hydra composes the config of a command twice and so each point of a sweep, copies its config five times and
composes once more after a mistake, and OmegaConf parses the interpolations of each point's config anew.
A Hydra whose internals are not as known here is used as it comes, by the plain way, which is slower and does the same.
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
    """The internals, by name, that take other arguments than the ones known here; if there are any, the log says so."""
    names = {name for name, (owner, attribute, known) in _KNOWN.items() if _parameters(owner, attribute) != known}
    if "_save_config" not in getattr(getattr(utils.run_job, "__code__", None), "co_names", ()):
        names.add("hydra.core.utils.run_job")
    if names:
        log.info("this Hydra differs in %s; sweeps take the plain, slower way through it", ", ".join(sorted(names)))
    return frozenset(names)


def quick_loading() -> bool:
    """Whether points of a sweep may share a composed config."""
    return not differing() & {"ConfigLoaderImpl.load_sweep_config", "ConfigLoaderImpl._apply_overrides_to_config"}


def _parameters(owner: Any, attribute: str) -> tuple[str, ...]:
    found = getattr(owner, attribute, None)
    return tuple(inspect.signature(found).parameters) if callable(found) else ()


def apply_values(overrides: list[Override], cfg: DictConfig) -> None:
    """Set plain values in a composed config, as composing it anew would."""
    ConfigLoaderImpl._apply_overrides_to_config(overrides, cfg)


@contextmanager
def parsing_once() -> Iterator[None]:
    """Within it, OmegaConf parses an interpolation once, however many configs have it.

    All points of a sweep have those of their directory and log, and parsing them took a fifth of what a point costs apart from
    decoding. A parse tree is only read.
    """
    parse = _omegaconf.parse
    if "omegaconf.base.parse" not in differing():
        _omegaconf.parse = lru_cache(256)(parse)
    try:
        yield
    finally:
        _omegaconf.parse = parse


def points_of(overrides: list[Override]) -> list[list[str]]:
    """The points of a sweep, each as its overrides, in the order of Hydra's own sweeper."""
    return basic_sweeper.BasicSweeper.split_arguments(overrides, None)[0]


def sweeper_over(
    points: Callable[[list[Override]], list[list[str]]], max_batch_size: int | None, params: dict[str, str] | None
) -> Sweeper:
    """Hydra's own sweeper, over other points than the product of the values: those that ``points`` makes of the overrides."""

    def split(overrides: list[Override], size: int | None) -> list[list[list[str]]]:
        return list(sweeper.split_overrides_to_chunks(points(overrides), size))

    sweeper = basic_sweeper.BasicSweeper(max_batch_size, params)  # by the module's name: Hydra runs the module a second time
    sweeper.split_arguments = split  # type: ignore[method-assign,assignment]
    return sweeper


def settings_in(arguments: Sequence[str]) -> list[str]:
    """What of a command line is no flag of Hydra's; an unknown flag ends the program with one line and status 2."""
    parser = get_args_parser()
    parser.prog = "gptsweep"
    parser.error = partial(Parser.error, cast(Parser, parser))  # type: ignore[method-assign]
    return list(parser.parse_intermixed_args(list(arguments)).overrides)


class _ComposedOnce(ConfigLoaderImpl):
    """Hydra's config loader, which gives the config that `get_mode` composed to the one that asks for it next.

    Args:
        loader: Hydra's.
        composed: by `get_mode`, by their overrides.
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
        """As Hydra composes it; what `get_mode` composed is given once, for whoever gets it may change it."""
        added = [f"hydra.mode={run_mode.name}"]  # by Hydra, where the config names no mode
        asked = overrides[:-1] if overrides[-1:] == added else overrides
        config = self._composed.pop(tuple(asked), None)
        if config is None or _may_be_refused(config, asked, run_mode):
            return super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        if asked is not overrides:
            config.hydra.mode = run_mode
            config.hydra.overrides.hydra.extend(added)
        return config


def _may_be_refused(config: DictConfig, overrides: list[str], run_mode: RunMode) -> bool:
    """Whether Hydra may refuse in ``run_mode`` what `get_mode` lets pass: a group without a choice, or a misplaced sweep."""
    run = run_mode is RunMode.RUN
    swept = any("," in line or "(" in line for line in overrides if run or line.lstrip("+~").startswith("hydra"))
    return swept or (run and "???" in config.hydra.runtime.choices.values())


def replace_get_mode(mode_of: Callable[[Compose, list[str]], RunMode | None]) -> None:
    """Let ``mode_of`` say in which mode Hydra runs; an error in it ends the command.

    Hydra's own `get_mode` swallows the error, composes a second time and meets it again: 0.1 s in which the user waits for one
    line. Without an error it composes a second time too, for as long. The plain way leaves it so.

    Args:
        mode_of: called with a function that composes, and the overrides, which it may change in place.
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
    """`hydra.core.utils.run_job`, the same code, with another ``_save_config``; Hydra's own is left as it is.

    The plain way is Hydra's own function, and Hydra's own ``_save_config``.
    """
    run_job = utils.run_job
    if differing() & {"hydra.core.utils.run_job", "hydra.core.utils._save_config"}:
        return run_job
    known = run_job.__globals__ | {"_save_config": save_config}
    return FunctionType(run_job.__code__, known, run_job.__name__, run_job.__defaults__, run_job.__closure__)
