"""Hydra's side of a sweep's files: the lock while a command runs, and ``sweep.csv`` and ``report.html`` at its end."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..display import get_logger
from ..errors import GptsweepError, ResultsError, describe
from ..files import open_file, open_to_read
from ..store.durable import atomic_write
from ..store.lock import DirectoryLock
from ..store.schema import FAILURES, MANIFEST, PARTIAL, REPORT, SWEEP, SWEEP_LOCK
from ..store.sweep_table import SweepTable

if TYPE_CHECKING:
    from ..run.rows import OpenModel
    from .compose import Planned

log = get_logger(__name__)

_sweeps: ContextVar[contextlib.ExitStack] = ContextVar("sweeps")
"""What is to be done when the command's sweep ends."""


@contextlib.contextmanager
def ending_sweep() -> Iterator[None]:
    """Around a command: a sweep that `begin_sweep` begins ends with it, however it ends."""
    with contextlib.ExitStack() as stack:
        token = _sweeps.set(stack)
        try:
            yield
        finally:
            _sweeps.reset(token)


def begin_sweep(directory: Path, at_end: Callable[[], None] | None, unless_stopped: Callable[[], None] | None) -> None:
    """Take the lock of a sweep until the command ends.

    Args:
        directory: of the sweep; made where it is missing.
        at_end: called then, however it ends.
        unless_stopped: called before that, unless the user stops the sweep.

    Raises:
        ResultsError: another process runs a sweep in the directory.
        OSError: it cannot be made.
    """
    if (stack := _sweeps.get(None)) is not None:
        directory.mkdir(parents=True, exist_ok=True)
        stack.enter_context(DirectoryLock(directory, SWEEP_LOCK))
        if at_end is not None:
            stack.callback(at_end)
        if unless_stopped is not None:
            stack.push(partial(_unless_stopped, unless_stopped))


def end_with_sweep(do: Callable[[], None]) -> None:
    """Have something done when the command ends, before what `begin_sweep` has done then, or when the process ends."""
    if (stack := _sweeps.get(None)) is not None:
        stack.callback(do)
    else:
        atexit.register(do)


def _unless_stopped(do: Callable[[], None], kind: type[BaseException] | None, *_: object) -> None:
    if kind is None or not issubclass(kind, KeyboardInterrupt):
        do()


def note_failure(sweep: Path, point: Path, error: Exception) -> None:
    """Keep, for the end of the sweep, why a point failed; callable from any process."""
    line = json.dumps({"directory": str(point), "error": describe(error)}) + "\n"
    fd = open_file(sweep / FAILURES, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def finish_sweep(
    directory: Path,
    planned: Sequence[Planned],
    *,
    show_rows: bool,
    compare: str | None,
    open_model: Callable[[], OpenModel],
) -> None:
    """Write ``sweep.csv`` and ``report.html`` where the launcher does not.

    Args:
        directory: of the sweep.
        planned: its points, as far as they are known.
        show_rows, compare, open_model: as `write_report` takes them.
    """
    # Late: torch.
    from ..engine.torch_backend import TorchBackends
    from ..run.executors.local import LocalExecutor
    from ..run.manifest import wanted_settings

    table, executor = SweepTable(directory), LocalExecutor(TorchBackends())
    for job in planned:
        table.expect(job.directory, job.overrides, wanted_settings(executor, job.point))
    with contextlib.suppress(FileNotFoundError, ValueError), open_to_read(directory / FAILURES) as file:
        for line in file:
            failure = json.loads(line)
            table.fail(Path(failure["directory"]), failure["error"])
    (directory / FAILURES).unlink(missing_ok=True)
    table.close()
    write_report(directory, show_rows=show_rows, compare=compare, open_model=open_model)


def require_no_sweep(directory: Path) -> None:
    """See that no process runs a sweep in ``directory``.

    Raises:
        ResultsError: one does.
    """
    if os.path.lexists(directory / SWEEP_LOCK):
        with DirectoryLock(directory, SWEEP_LOCK):
            pass


def refresh_sweep(directory: Path) -> None:
    """After a single run in a sweep's directory: let ``sweep.csv`` say so, unless a sweep is going on, which will say it."""
    if os.path.isfile(directory / SWEEP):
        with contextlib.suppress(ResultsError, OSError), DirectoryLock(directory, SWEEP_LOCK):
            SweepTable(directory).close()


def write_report(directory: Path, *, show_rows: bool, compare: str | None, open_model: Callable[[], OpenModel]) -> None:
    """Write ``report.html``; a sweep without a single sample has none, and a page that cannot be made fails no sweep.

    Args:
        directory: of the sweep.
        show_rows: whether the first rows of the review are shown, too, and the command that shows the rest.
        compare: the setting ``compare_samplers``: comparisons of samplers for the page, and to be shown where rows are. Without
            it the page has those that were asked for before.
        open_model: loads the model that gives MAUVE its features, if a comparison is by that.
    """
    from ..analysis.asked import Asked, kept, metric_of, named_metrics  # late: pandas
    from ..analysis.frames import read_sweep
    from ..analysis.metrics import MAUVE
    from ..analysis.reference import kept_reference, with_own
    from ..report import report
    from ..report.terminal import print_comparisons, print_first_rows
    from ..run.nearness import mauve_metric

    if not any(directory.glob(f"**/{MANIFEST}")) and not any(directory.glob(f"**/{PARTIAL}")):
        return
    try:
        sweep = read_sweep(directory)
        if show_rows:
            print_first_rows(directory, sweep)
        reference, comparisons = kept_reference(directory, sweep), []
        try:
            asked = kept(directory)
            if compare is not None:
                names, own = named_metrics([compare], "compare_samplers")
                asked = Asked(tuple(names))
                asked.keep(directory)
                sweep, reference = sweep.scored(*own), with_own(reference, directory, own)
                if MAUVE.name in map(metric_of, names):
                    sweep = sweep.scored(mauve_metric(directory, open_model))
            comparisons = asked.compare(sweep, reference) if asked else []
        except GptsweepError as error:
            log.warning("no comparison of samplers: %s", error)
        if compare is not None and show_rows:
            print_comparisons(comparisons)
        html = report(sweep, directory.resolve().name, reference, comparisons)
        atomic_write(directory / REPORT, html)
    except Exception as error:
        log.warning("no report.html: %s", describe(error), exc_info=not isinstance(error, GptsweepError))
