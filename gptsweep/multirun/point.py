"""Run one job of the command. Hydra calls this for a single run and for every point of a sweep."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from operator import itemgetter
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ..analysis.metrics import PREFERENCE
from ..analysis.own_metrics import OwnMetric
from ..analysis.summary import summarise, text_metrics
from ..config import point_from_config
from ..display import shown_text
from ..errors import ConfigError, Interrupted
from ..run.executors.local import LocalExecutor
from ..run.jobs import Job, Outcome
from ..run.progress import Progress
from ..run.session import run_jobs
from ..store.reader import read_samples
from ..store.schema import SAMPLE_KEY
from ..store.unfinished import Unfinished

prepared: ContextVar[Mapping[Path, Outcome]] = ContextVar("prepared")
"""The outcomes of points that a launcher has already run together before Hydra's jobs, by run directory."""


def run_point(cfg: DictConfig, directory: Path) -> float | None:
    """Run one point, write its results to ``directory``, and return the value of ``objective``, None if it is not set.

    Raises:
        GptsweepError: an error that the user can fix.
        Interrupted: on Ctrl-C or SIGTERM; finished samples are on disk.
    """
    require_objective(cfg.objective)
    outcome = prepared.get({}).get(directory)
    if outcome is None:
        from ..engine.torch_backend import TorchBackends  # late: it imports torch, which a driver of workers does not need

        job = Job(point_from_config(cfg), directory, cfg.overwrite)
        alone = HydraConfig.get().mode is not RunMode.MULTIRUN
        samples_each = job.point.sampling.num_samples if alone else None
        try:
            quiet = not alone if cfg.quiet is None else cfg.quiet
            unfinished = Unfinished(directory)
            with in_directory(HydraConfig.get().runtime.cwd), Progress(quiet=quiet, samples_each=samples_each) as progress:
                (outcome,) = run_jobs([job], progress, LocalExecutor(TorchBackends()), unfinished)
                if alone and outcome.error is None:
                    progress.write_rest(stored_texts(directory))
        except Interrupted as stopped:
            raise Interrupted(stopped.signal_number, cfg.name, stopped.unfinished) from None
    if outcome.error is not None:
        raise outcome.error
    if cfg.objective is not None and ":" in cfg.objective:
        samples = sorted(read_samples(directory)[0], key=itemgetter(*SAMPLE_KEY))
        return objective_of(
            {cfg.objective: OwnMetric.named(cfg.objective, "objective").mean(samples, directory)}, cfg.objective
        )
    return None if cfg.objective is None else objective_of(outcome.summary or {}, cfg.objective)


def stored_texts(directory: Path) -> Iterator[tuple[tuple[int, int], str, str]]:
    """Yield the indices, the text and the label of each sample in a run directory, in order."""
    samples = read_samples(directory)[0]
    several = any(sample["prompt_index"] for sample in samples)
    for sample in samples:
        label = f"prompt {sample['prompt_id']}, " * several + f"sample {sample['sample_index']}"
        text = shown_text(sample["prompt"], sample["completion"], chat_template=sample.get("chat_template", False))
        yield (sample["prompt_index"], sample["sample_index"]), text, label


@contextlib.contextmanager
def in_directory(path: str) -> Iterator[None]:
    """Change to ``path``, where the command was started, so that relative paths do not depend on ``hydra.job.chdir``."""
    before = os.getcwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def require_objective(name: str | None) -> None:
    """Check before any work that ``objective`` is a measured column of ``summary.csv`` or a metric ``module:function``.

    Raises:
        ConfigError: it is neither.
    """
    if name is None:
        return
    if ":" in name:
        OwnMetric.named(name, "objective")
        return
    if name == PREFERENCE.name:
        wanted = "needs people's ratings; to tune on an automatic judge, give a function of your own, module:function"
        raise ConfigError("objective", name, wanted)
    columns = [*summarise({}, []), "tokens_per_second", *text_metrics([])]
    if name not in columns:
        raise ConfigError("objective", name, f"must be one of {', '.join(columns)}, or module:function")


def objective_of(summary: Mapping[str, Any], name: str) -> float:
    """Return the value of a column of ``summary.csv``.

    Raises:
        ConfigError: the column is empty, which happens to some columns with too few samples.
    """
    if summary[name] is None:
        raise ConfigError("objective", name, "has no value for this point; try more samples, or longer ones")
    return float(summary[name])
