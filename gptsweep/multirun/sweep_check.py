"""Prepare the overrides of a sweep, and check them before anything is written or computed."""

from __future__ import annotations

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, flag_override

from ..config import point_from_config
from ..errors import ConfigError
from ..records import ModelSource, Point
from .compose import PointLoader, for_some_models
from .overrides import as_typed
from .random_points import axes_of, ends
from .steps import with_steps
from .sweepers import all_points, is_planned, plan, sweeper_of

_TUNERS = ("Optuna", "Ax", "Nevergrad")


def ready_params(config: DictConfig) -> None:
    """Treat ``hydra.sweeper.params`` like the command line: quote text, mark keys of only some models, and expand steps.

    It changes ``config`` in place.
    """
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    lines = [as_typed(f"{key}={value}", sweeping=True) for key, value in params.items()]
    task = config.hydra.overrides.task
    marked = for_some_models(with_steps([*lines, *task], out_dir_of(config)))
    with flag_override(config, ["readonly", "struct"], False), flag_override(config.hydra, ["readonly", "struct"], False):
        for (key, value), line in zip(list(params.items()), marked, strict=False):
            name, _, text = line.partition("=")
            del params[key]  # to keep the order
            params[name] = text if isinstance(value, str) else value
        task[:] = marked[len(lines) :]


def out_dir_of(config: DictConfig) -> str:
    """Return the model's checkpoint directory, or the default one if it has none."""
    return str(OmegaConf.select(config, "model.out_dir") or ModelSource().out_dir)


def sweep_params(config: DictConfig) -> list[str]:
    """Return ``hydra.sweeper.params`` as overrides."""
    return [f"{key}={value}" for key, value in (OmegaConf.select(config, "hydra.sweeper.params") or {}).items()]


def check_sweep(config: DictConfig, loader: PointLoader) -> list[Point]:
    """Check a sweep before anything is written or computed, and return the points that are known, at least one.

    If all points are known, each is composed. If the sweeper chooses them as it goes, the first one is composed, and then every
    other value of each swept key in its place.

    Raises:
        ConfigError: a value is wrong, occurs twice, or would not appear in the names of the points' directories.
        HydraException: an override cannot be composed.
    """
    sweeper = sweeper_of(config)
    if sweeper.startswith(_TUNERS) and config.objective is None:
        what = f"{sweeper} optimises what a run returns; name a column of summary.csv, such as objective=logprob_mean"
        raise ConfigError("objective", None, what)
    parser = OverridesParser.create(config_loader=loader)
    overrides = parser.parse_overrides([*sweep_params(config), *config.hydra.overrides.task])
    drawn = axes_of(overrides) if sweeper == "RandomSweeper" else {}
    swept: dict[str, list[str]] = {}  # a later override of a key replaces an earlier one, as in the sweeper
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            swept[key] = [override.input_line or ""]
        elif override.is_discrete_sweep():
            swept[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            _check_directories(config, key, swept[key], override.get_value_string())
        elif key in drawn:
            swept[key] = ends(drawn[key])
            _check_directories(config, key, swept[key], override.get_value_string())
    if not is_planned(config) or drawn:  # the points are not known yet
        first = {key: line for key, (line, *_) in swept.items()}
        others = [first | {key: line} for key, (_, *lines) in swept.items() for line in lines]
        points = [point_from_config(loader.load_sweep_config(config, list(point.values()))) for point in (first, *others)]
        if not is_planned(config):
            return points
    planned = all_points(config, overrides)
    for line in {key: line for point in planned for line in point if (key := line.partition("=")[0]) not in swept}.values():
        key, _, value = line.partition("=")
        _check_directories(config, key, [line], value)
    return [job.point for job in plan(config, loader, planned)]


def _check_directories(config: DictConfig, key: str, lines: list[str], value: str) -> None:
    """Refuse a swept key with no value or a repeated one, or one that the names of the points' directories do not contain.

    Raises:
        ConfigError: there is one.
    """
    if not lines or len(set(lines)) < len(lines):
        raise ConfigError(key, value, "must contain at least one value, and each only once")
    named_after_overrides = "gptsweep.point_dir" in OmegaConf.to_yaml(config.hydra.sweep)
    if named_after_overrides and key in config.hydra.job.config.override_dirname.exclude_keys:
        raise ConfigError(
            key, value, "must have one value in a sweep, because the names of points' directories do not contain it"
        )
