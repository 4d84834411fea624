"""Which points a sweep has: the product of lists, the lines of a file, or draws; Hydra's own sweeper runs all three.

``hydra/sweeper=points`` and ``=random`` differ from it in nothing but the points. So batches, job numbers, failures and
``multirun.yaml`` are Hydra's, and the points are known before the first one runs.
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
    """The name of the class of the sweep's sweeper."""
    return str(config.hydra.sweeper._target_).rpartition(".")[2]


def is_planned(config: DictConfig) -> bool:
    """Whether all points of the sweep are known before it begins; a sweeper that tunes chooses them as it goes."""
    return sweeper_of(config) in ("BasicSweeper", "PointsSweeper", "RandomSweeper")


def all_points(config: DictConfig, overrides: Sequence[Override]) -> list[list[str]]:
    """The points of a sweep that `is_planned`, each as its overrides, in the sweeper's order.

    Args:
        config: of the sweep.
        overrides: of ``hydra.sweeper.params`` and of the command line.

    Raises:
        ConfigError: the file of points cannot be read, or nothing is to be drawn.
        HydraException: the sweeper cannot take one of ``overrides``.
    """
    settings = config.hydra.sweeper
    if sweeper_of(config) == "PointsSweeper":
        return points_in_file(settings.file, overrides)
    if sweeper_of(config) == "RandomSweeper":
        return random_points(settings.n, settings.seed, overrides)
    return points_of(list(overrides))


def points_in_file(file: str | None, overrides: Sequence[Override]) -> list[list[str]]:
    """Every point of a file with every combination of ``overrides``, which vary fastest.

    Raises:
        ConfigError: see `read_points`; or a column is on the command line, too.
        HydraException: there is an interval among ``overrides``.
    """
    points, rest = read_points(file), points_of(list(overrides))
    columns = {line.partition("=")[0] for point in points for line in point}
    for override in overrides:
        if override.key_or_group in columns:
            raise ConfigError(
                override.key_or_group, override.get_value_string(), f"stands in {file}, too; give it in one place"
            )
    return [[*point, *others] for point in points for others in rest]


def plan(config: DictConfig, loader: PointLoader, points: Sequence[Sequence[str]]) -> list[Planned]:
    """`PointLoader.plan` of `all_points`, whose errors name the line of a file of points.

    Raises:
        ConfigError, HydraException: as there.
    """
    try:
        return loader.plan(config, points)
    except ConfigError as error:
        if sweeper_of(config) == "PointsSweeper" and loader.points < len(points):
            raise in_its_line(error, config.hydra.sweeper.file, points[loader.points]) from error
        raise


def random_points(n: int, seed: int, overrides: Sequence[Override]) -> list[list[str]]:
    """Every draw with every combination of the values that commas alone part, which vary fastest.

    Raises:
        ConfigError: see `axes_of` and `draw`.
    """
    axes = axes_of(overrides)
    rest = points_of([override for override in overrides if override.get_key_element() not in axes])
    return [[*point, *others] for point in draw(n, seed, axes.values()) for others in rest]


class DesignSweeper(Sweeper):
    """Hydra's own sweeper over `all_points`; the settings of a design are read from the config, ``hydra.sweeper``."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None, **design: object) -> None:
        self._sweeper = sweeper_over(lambda overrides: all_points(self._config, overrides), max_batch_size, params)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before the sweep."""
        self._config = config
        self._sweeper.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Called by Hydra with the overrides of the command line."""
        return self._sweeper.sweep(arguments)
