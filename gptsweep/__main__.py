"""The command ``python -m gptsweep``: Hydra's `main`, with errors that users can act on.

A mistake in the config is reported in one line with exit status 2, before any directory is made or model loaded; a bug gives a
traceback. ``HYDRA_FULL_ERROR=1`` shows the traceback of both.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from .command_help import complete, help_text
from .config import meant, point_from_config, unknown_key
from .config_schema import CONF_DIR, keys, register
from .display import counted, drop, ready_streams, say, write_out
from .errors import ConfigError, GptsweepError, Interrupted, ResultsError, SweepError, describe
from .models.registry import require_some
from .multirun import hydra_internals
from .multirun.compose import PointLoader, SweepLoader, for_some_models
from .multirun.elsewhere import require_launcher
from .multirun.hydra_errors import explain, from_here, is_sweep
from .multirun.overrides import as_typed
from .multirun.steps import with_steps
from .multirun.sweep_check import check_sweep, out_dir_of, ready_params, sweep_params
from .multirun.sweep_files import (
    begin_sweep,
    ending_sweep,
    finish_sweep,
    note_failure,
    refresh_sweep,
    require_no_sweep,
    write_report,
)
from .multirun.sweepers import is_planned, sweeper_of
from .prompts import read_reference, require_some_start
from .records import Point
from .store.schema import MANIFEST, SWEEP

if TYPE_CHECKING:
    from .run.rows import OpenModel

PROGRAM = sys.argv[0]
LISTED = 20
"""The largest number of different errors of points that are printed at the end."""


class Refused(BaseException):
    """Carries an error out of a Hydra callback, where Hydra would turn an Exception into a warning."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Report(Callback):
    """Checks the config before Hydra makes a directory, and prints at the end where the results are."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            point = point_from_config(config)
            if config.reference is not None:
                read_reference(config.reference)
            directory = Path(os.path.abspath(config.hydra.run.dir))
            require_no_sweep(directory.parent)
            require_some_start([point.start])
            if not os.path.lexists(directory / MANIFEST):  # otherwise a finished run may need no model
                require_some([point.model])
        except Exception as error:
            raise Refused(error) from error

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            loader = PointLoader(hydra.config_loader)
            require_launcher(config)
            ready_params(config)
            if config.reference is not None:
                read_reference(config.reference)
            if config.compare_samplers is not None:
                from .analysis.comparison_request import require_comparisons  # late: pandas

                require_comparisons(config.compare_samplers, config.reference)
            points = check_sweep(config, loader)
            require_some_start([point.start for point in points])
            directory = Path(os.path.abspath(config.hydra.sweep.dir))
            if not os.path.lexists(directory / SWEEP):  # otherwise finished points may need no model
                require_some({point.model: None for point in points})
            open_model = partial(open_model_of, points[0])
            shown = {"show_rows": not config.quiet, "compare": config.compare_samplers, "open_model": open_model}
            at_end = score = None
            if "FusedLauncher" in config.hydra.launcher._target_:
                hydra.config_loader = loader  # it has already composed the points
                if not is_planned(config):  # a sweeper that chooses points as it goes never says which is the last
                    at_end = partial(write_report, directory, **shown)
            else:
                hydra.config_loader = SweepLoader(hydra.config_loader.get_search_path())
                at_end = partial(finish_sweep, directory, loader.planned, **shown)
                if config.reference is not None:
                    score = partial(score_reference, directory, config.reference, open_model)
            begin_sweep(directory, at_end, score)
        except Exception as error:
            raise Refused(error) from error

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Called in the job's own process; fused launchers report failures themselves."""
        error = job_return._return_value
        hydra = config.hydra
        if hydra.mode is RunMode.MULTIRUN and isinstance(error, Exception) and "FusedLauncher" not in hydra.launcher._target_:
            sweep = os.path.join(hydra.runtime.cwd, hydra.sweep.dir)  # hydra.job.chdir has changed the working directory
            note_failure(Path(os.path.abspath(sweep)), Path(hydra.runtime.output_dir), error)

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        job_return: JobReturn = kwargs["job_return"]
        refresh_sweep(Path(config.hydra.runtime.output_dir).parent)
        if job_return.status is JobStatus.COMPLETED:
            if config.reference is not None:
                open_model = partial(open_model_of, point_from_config(config))
                score_reference(Path(config.hydra.runtime.output_dir), config.reference, open_model)
            say_where(config.hydra.runtime.output_dir)
        elif isinstance(error := job_return._return_value, GptsweepError):
            raise Refused(error) from error  # before Hydra prints its own line about it

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        say_where(config.hydra.sweep.dir)


def get_mode(typed: Sequence[str], compose: hydra_internals.Compose, overrides: list[str]) -> RunMode | None:
    """Return Hydra's mode. Exit on mistakes, and parse text as a sweep's if a config file asks for a sweep.

    Args:
        typed: the arguments as the user typed them.
        compose: composes a config from overrides.
        overrides: the overrides as Hydra parsed them from ``sys.argv``; changed in place for a sweep.

    Raises:
        ConfigError, HydraException: a value is wrong, or an override cannot be composed.
    """
    try:
        cfg = compose(overrides)
    except HydraException:
        others = [line for line in overrides if not line.startswith("model.")]
        with suppress(HydraException):
            cfg = compose(others)
            # A file may request a sweep over models, some of which take keys that the default model does not.
            if is_sweep(sys.argv) or cfg.hydra.mode is RunMode.MULTIRUN:
                before = [*sweep_params(cfg), *overrides]
                if for_some_models(before) != before:
                    return sweep_mode(cfg, overrides, typed)
        raise
    if is_sweep(sys.argv) or cfg.hydra.mode is RunMode.MULTIRUN:
        return sweep_mode(cfg, overrides, typed)
    if not any("," in line or "(" in line for line in overrides):
        point_from_config(cfg)
    if (sweeper := sweeper_of(cfg)) in ("PointsSweeper", "RandomSweeper"):
        raise ConfigError("hydra/sweeper", sweeper.removesuffix("Sweeper").lower(), "needs -m, because it makes a sweep")
    mode: RunMode | None = cfg.hydra.mode
    return mode


def sweep_mode(config: DictConfig, overrides: list[str], typed: Sequence[str]) -> RunMode | None:
    """Return the mode of a sweep, and parse ``overrides`` again as a sweep's if they were parsed as a run's."""
    mode: RunMode | None = config.hydra.mode
    if not is_sweep(sys.argv):
        written = dict(zip(from_shell(list(typed)), typed, strict=True))
        overrides[:] = [as_typed(written.get(line, line), sweeping=True) for line in overrides]
    params = sweep_params(config)
    overrides[:] = for_some_models(with_steps([*params, *overrides], out_dir_of(config)))[len(params) :]
    return mode


def say_where(directory: str) -> None:
    try:
        say(f"Results: {from_here(directory)}")
    except OSError as error:
        raise Refused(error) from error  # Hydra logs other errors of a callback and ends with status 0


def open_model_of(point: Point) -> OpenModel:
    """The model of ``point``, on this machine."""
    from .engine.torch_backend import TorchBackends  # late: torch
    from .run.executors.local import LocalExecutor

    return LocalExecutor(TorchBackends()).open(point.model, point.device)


def score_reference(directory: Path, source: str, open_model: Callable[[], OpenModel]) -> None:
    """Call `run.reference.score_own`, imported late for start-up time."""
    from .run.reference import score_own  # late: pandas

    score_own(directory, source, open_model)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def task(cfg: DictConfig) -> float | None:
    """Run one point: Hydra calls this for a single run and for every job of a sweep."""
    from .multirun.point import run_point  # late: numpy, which --help, --cfg and a mistake in the config need not wait for

    return run_point(cfg, Path(HydraConfig.get().runtime.output_dir))


def require_here() -> None:
    """Check that the working directory exists.

    Raises:
        ResultsError: it was removed.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        wanted = "the working directory was removed; cd to another"
        raise ResultsError("directory", os.environ.get("PWD"), wanted) from error


def main() -> int:
    """Run the command in ``sys.argv`` and return the exit status.

    0; 1 for a sweep with failed points; 2 for a mistake that the user can fix; 130 for Ctrl-C; 143 for SIGTERM; 129 for SIGHUP.
    """
    ready_streams()
    arguments = sys.argv[1:]
    user_wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        require_here()
        if {"-sc", "--shell-completion"} & set(arguments) and complete(arguments):
            return 0
        if {"-h", "--help"} & set(arguments):
            write_out(help_text())
            return 0
        if "--version" in arguments:
            from . import __version__  # late: looking it up takes a twentieth of the time of --help

            write_out(f"gptsweep {__version__}\n")
            return 0
        register()
        sys.argv = ["gptsweep", *settings_first(from_shell(arguments))]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise its errors instead of printing pages and exiting
        hydra_internals.replace_get_mode(partial(get_mode, arguments))
        with ending_sweep():
            task()
        write_out("")
    except KeyboardInterrupt as stopped:
        name, kept = (stopped.name, stopped.unfinished) if isinstance(stopped, Interrupted) else (None, 0)
        begun = f", {counted(kept, 'unfinished sample')} kept" if kept else ""
        say(f"gptsweep: stopped{begun}; to go on: {command_line(arguments, name)}", error=True)
        return 128 + (stopped.signal_number if isinstance(stopped, Interrupted) else signal.SIGINT)
    except SweepError as failed:
        points: dict[str, list[str]] = {}
        for directory, error in failed.failures:
            points.setdefault(describe(error), []).append(directory)
        for what, directories in list(points.items())[:LISTED]:
            others = f" and {len(directories) - 1:,} more" if len(directories) > 1 else ""
            say(f"{directories[0]}{others}: {what}", error=True)
        if len(points) > LISTED:
            say(f"… and {counted(len(points) - LISTED, 'more error')}; sweep.csv has them all", error=True)
        say(f"gptsweep: error: {failed}; to retry: {command_line(arguments, failed.name)}", error=True)
        return failed.exit_status
    except (Refused, Exception) as raised:
        error = raised.error if isinstance(raised, Refused) else raised
        if isinstance(error, BrokenPipeError):  # the reader, such as `| head`, has closed the pipe
            drop(sys.stdout)
            return 141
        message = explain(error, arguments)
        if user_wants_traceback or message is None:
            raise error from error.__cause__
        say(f"gptsweep: error: {message}", error=True)
        return error.exit_status if isinstance(error, GptsweepError) else 2
    finally:
        if not user_wants_traceback:
            os.environ.pop("HYDRA_FULL_ERROR", None)
    return 0


def settings_first(arguments: list[str]) -> list[str]:
    """Move flags to the end, because argparse does not accept settings on both sides of a flag (``name=x -m seed=1,2``)."""
    settings = hydra_internals.settings_in(arguments)
    left = list(settings)
    flags = []
    for argument in arguments:
        if left and argument == left[0]:
            del left[0]
        else:
            flags.append(argument)
    return [*settings, *flags]


def command_line(arguments: list[str], name: str | None) -> str:
    """The shell command that continues in the same directory."""
    program = ["gptsweep"] if Path(PROGRAM).name == "gptsweep" else ["python", "-m", "gptsweep"]
    named = name is None or any(argument.startswith("name=") for argument in arguments)
    return shlex.join([*program, *arguments, *([] if named else [f"name={name}"])])


def from_shell(arguments: list[str]) -> list[str]:
    """Quote ``arguments`` for Hydra's grammar, so that a text key gets exactly the characters the user typed.

    Raises:
        ConfigError: a setting is written with dashes, as in nanoGPT; or see `as_typed`.
    """
    sweeping = is_sweep(arguments)
    ready = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key.startswith("--") and not key.startswith(("--config", "--info", "--cfg", "--package", "--exp")):
            name = key.lstrip("-")
            near = name if name in keys() else meant(name)
            raise ConfigError(key, value, f"write {near}={value}, without dashes" if near else unknown_key(name, value).wanted)
        ready.append(as_typed(argument, sweeping=sweeping))
    return for_some_models(ready) if sweeping else ready


if __name__ == "__main__":
    from .__main__ import main  # by its own name, as Hydra imports Report from there

    sys.exit(main())
