"""``hydra/launcher=fused``: run all points of a sweep together, and then each job through Hydra's own `run_job`.

Each job finds its results ready. Run directories, ``.hydra/``, logs, callbacks, job numbers and return values are Hydra's. The
sweeps of other applications run as with Hydra's basic launcher.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from ..config_schema import Config
from ..display import counted, get_logger
from ..errors import Interrupted, SweepError
from ..store.sweep_table import SweepTable
from ..store.unfinished import Unfinished
from .compose import Planned, PointLoader
from .hydra_internals import BasicLauncher, parsing_once, run_job_with
from .run_job import Yaml
from .sweep_files import write_report
from .sweepers import is_planned

if TYPE_CHECKING:
    from ..records import Point
    from ..run.executors import Executor
    from ..run.rows import OpenModel

log = get_logger(__name__)


class FusedLauncher(BasicLauncher):
    """Implements Hydra's launcher interface.

    A subclass can override `executor` to run rows elsewhere; the rest of a sweep stays the same.

    Args:
        strict: whether a point fails if another kind of machine, or another version, left it unfinished.
    """

    _sweep: FusedSweep | None = None

    def __init__(self, *, strict: bool = False) -> None:
        super().__init__()
        self._strict = strict

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Prepare the sweep. Hydra calls this before the sweep."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        ours = OmegaConf.get_type(config) is Config
        self._sweep = FusedSweep(hydra_context, task_function, config, self.executor, strict=self._strict) if ours else None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of points. Hydra's sweeper calls this once or several times."""
        if self._sweep is None:
            return super().launch(job_overrides, initial_job_idx)
        try:
            return self._sweep.run(job_overrides, initial_job_idx)
        finally:
            gc.unfreeze()  # undoes the freezes of a sweep

    def executor(self) -> Executor:
        """Make the executor that runs the rows. It is called once, before the first batch."""
        # Imported late: numpy and torch, which --help and errors in the config need not wait for.
        from ..engine.torch_backend import TorchBackends
        from ..run.executors.local import LocalExecutor

        return LocalExecutor(TorchBackends())


class FusedSweep:
    """A sweep with gptsweep's config. It runs the batches one after another; they share open models and files."""

    def __init__(
        self,
        context: HydraContext,
        task_function: TaskFunction,
        config: DictConfig,
        new_executor: Callable[[], Executor],
        *,
        strict: bool = False,
    ) -> None:
        if not isinstance(context.config_loader, PointLoader):
            context.config_loader = PointLoader(context.config_loader)  # the sweeper uses it, too, from here on
        self.context, self.task_function, self.config = context, task_function, config
        self.loader = context.config_loader
        self._run_job = run_job_with(Yaml().save)
        self.directory = Path(str(config.hydra.sweep.dir))
        self._new_executor, self._strict = new_executor, strict
        self._executor: Executor | None = None
        self._scorer: Executor | None = None
        self._table: SweepTable | None = None
        self._failures: list[tuple[str, Exception]] = []

    def run(self, batch: Sequence[Sequence[str]], first_number: int) -> list[JobReturn]:
        """Run a batch of points.

        Raises:
            ConfigError, HydraException: a point cannot be composed; nothing has run.
            SweepError: points failed. It is raised only after the last batch, as Hydra's own sweeper would stop at the first
                failure. Sweepers that tune find failures in the return value instead.
            Interrupted: on Ctrl-C or SIGTERM; everything finished is on disk.
        """
        setup_globals()
        planned = self.loader.plan(self.config, batch, first_number)
        self._configure_log()
        self.directory.mkdir(parents=True, exist_ok=True)
        # A sweeper that tunes does not tell which batch is the last.
        last = is_planned(self.config) and first_number + len(planned) >= self.loader.points
        compare, open_model = self.config.compare_samplers, partial(self._open, planned[0].point)
        try:
            returns = self._run(planned)
            if self.config.reference:
                from ..run.reference import score_own  # imported late: pandas

                score_own(self.directory, self.config.reference, open_model)
        except Interrupted as stopped:
            compare = None  # comparisons can take long
            raise Interrupted(stopped.signal_number, self.config.name, stopped.unfinished) from None
        finally:
            self._configure_log()
            shows_rows = last and not self.config.quiet
            write_report(self.directory, show_rows=shows_rows, compare=compare, open_model=open_model)
        self._failures += [
            (str(self.directory / os.path.relpath(job.directory, self.directory)), done._return_value)
            for job, done in zip(planned, returns, strict=True)
            if done.status is JobStatus.FAILED
        ]
        if not is_planned(self.config):
            return returns
        if self._failures and last:
            raise SweepError(self._failures, self.loader.points, self.config.name)
        return [done for done in returns if done.status is not JobStatus.FAILED]

    def _open(self, point: Point) -> OpenModel:
        """Open the model of ``point`` for scoring text, in this process even if rows run elsewhere."""
        # Imported late: numpy and torch, which --help and errors in the config need not wait for.
        from ..engine.torch_backend import TorchBackends
        from ..run.executors.local import LocalExecutor
        from ..run.executors.remote import RemoteExecutor

        self._executor = self._executor or self._new_executor()
        if isinstance(self._executor, RemoteExecutor):
            self._scorer = self._scorer or LocalExecutor(TorchBackends())
        return (self._scorer or self._executor).open(point.model, point.device)

    def _run(self, planned: Sequence[Planned]) -> list[JobReturn]:
        # Imported late: numpy, torch and rich, which --help and errors in the config need not wait for.
        from ..run.interruption import Interruption
        from ..run.jobs import Job, Outcome
        from ..run.manifest import wanted_settings
        from ..run.progress import Progress
        from ..run.session import run_jobs
        from . import point

        point.require_objective(self.config.objective)
        self._executor = self._executor or self._new_executor()
        self._table = self._table or SweepTable(self.directory)
        gc.freeze()  # each config is a reference cycle; collecting them must not traverse all objects of torch
        jobs = {job.directory: Job(job.point, job.directory, job.overwrite) for job in planned}
        for job in planned:
            self._table.expect(job.directory, job.overrides, wanted_settings(self._executor, job.point))
        log.info("Launching %s as one batch", counted(len(jobs), "point"))
        outcomes: dict[Path, Outcome] = {}
        unfinished = Unfinished(self.directory)
        token = point.prepared.set(outcomes)
        try:
            with Interruption() as interruption:
                try:
                    with Progress(quiet=self.config.quiet is not False, live_text=self.config.quiet is None) as progress:
                        made = run_jobs(list(jobs.values()), progress, self._executor, unfinished, strict=self._strict)
                        for outcome in made:
                            outcomes[outcome.job.directory] = outcome
                            self._table.settle(outcome.job.directory, outcome.summary, outcome.error)
                finally:
                    self._table.close()
                gc.freeze()
                returns = []
                with parsing_once():
                    for job in planned:
                        interruption.check()
                        returns.append(self._job(job))
        finally:
            point.prepared.reset(token)
        return returns

    def _job(self, job: Planned) -> JobReturn:
        try:
            done = self._run_job(
                hydra_context=self.context,
                task_function=self.task_function,
                config=self.loader.load_job(self.config, job.overrides, job.number),
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        except OSError as error:  # from writing Hydra's own files of the point, for example on a full disk
            done = JobReturn(overrides=list(job.overrides), status=JobStatus.FAILED, _return_value=error)
        done.cfg = done.hydra_cfg = None  # they take 140 KB per point; no sweeper reads them, and .hydra/ has them
        return done

    def _configure_log(self) -> None:
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
