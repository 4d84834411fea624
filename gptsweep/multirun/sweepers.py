"""The points of a sweep: the product of lists, the lines of a file, or random draws. Hydra's own sweeper runs all three.

``hydra/sweeper=points`` and ``=random`` differ from it only in the points. So batches, job numbers, failures and
``multirun.yaml`` are Hydra's, and all points are known before the first one runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from ..errors import ConfigError
from .hydra_internals import points_of, sweeper_over
from .points_file import in_its_line, read_points
from .random_points import axes_of, draw

if TYPE_CHECKING:
    from .compose import Planned, PointLoader


def sweeper_of(config: DictConfig) -> str:
    """Return the class name of the sweep's sweeper."""
    return str(config.hydra.sweeper._target_).rpartition(".")[2]


def is_planned(config: DictConfig) -> bool:
    """Return whether all points are known before the sweep begins. A sweeper that tunes chooses them as it goes."""
    return sweeper_of(config) in ("BasicSweeper", "PointsSweeper", "RandomSweeper")


def all_points(config: DictConfig, overrides: Sequence[Override]) -> list[list[str]]:
    """Return the points of a sweep that `is_planned`, each as its overrides, in the sweeper's order.

    Args:
        config: the config of the sweep.
        overrides: the overrides in ``hydra.sweeper.params`` and on the command line.

    Raises:
        ConfigError: the file of points cannot be read, or there is nothing to draw from.
        HydraException: the sweeper does not accept one of ``overrides``.
    """
    settings = config.hydra.sweeper
    if sweeper_of(config) == "PointsSweeper":
        return points_in_file(settings.file, overrides)
    if sweeper_of(config) == "RandomSweeper":
        return random_points(settings.n, settings.seed, overrides)
    return points_of(list(overrides))


def points_in_file(file: str | None, overrides: Sequence[Override]) -> list[list[str]]:
    """Combine every point of a file with every combination of ``overrides``, which vary fastest.

    Raises:
        ConfigError: see `read_points`; or a column is also on the command line.
        HydraException: there is an interval among ``overrides``.
    """
    points, rest = read_points(file), points_of(list(overrides))
    columns = {line.partition("=")[0] for point in points for line in point}
    for override in overrides:
        if override.key_or_group in columns:
            raise ConfigError(
                override.key_or_group, override.get_value_string(), f"is also in {file}; give it in one place only"
            )
    return [[*point, *others] for point in points for others in rest]


def plan(config: DictConfig, loader: PointLoader, points: Sequence[Sequence[str]]) -> list[Planned]:
    """Call `PointLoader.plan` with all points; an error about a point from a file names its line.

    Raises:
        ConfigError, HydraException: see `PointLoader.plan`.
    """
    try:
        return loader.plan(config, points)
    except ConfigError as error:
        if sweeper_of(config) == "PointsSweeper" and loader.points < len(points):
            raise in_its_line(error, config.hydra.sweeper.file, points[loader.points]) from error
        raise


def random_points(n: int, seed: int, overrides: Sequence[Override]) -> list[list[str]]:
    """Combine every draw with every combination of the values separated only by commas, which vary fastest.

    Raises:
        ConfigError: see `axes_of` and `draw`.
    """
    axes = axes_of(overrides)
    rest = points_of([override for override in overrides if override.get_key_element() not in axes])
    return [[*point, *others] for point in draw(n, seed, axes.values()) for others in rest]


class DesignSweeper(Sweeper):
    """Hydra's own sweeper over `all_points`. The settings of the design are read from ``hydra.sweeper`` in the config."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None, **design: object) -> None:
        self._sweeper = sweeper_over(lambda overrides: all_points(self._config, overrides), max_batch_size, params)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Prepare the sweep. Hydra calls this before the sweep."""
        self._config = config
        self._sweeper.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep. Hydra calls this with the overrides on the command line."""
        return self._sweeper.sweep(arguments)
