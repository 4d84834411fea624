"""The files of a sweep: its lock while a command runs, and ``sweep.csv`` and ``report.html`` when it ends."""

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
"""The callbacks to run when the command's sweep ends."""


@contextlib.contextmanager
def ending_sweep() -> Iterator[None]:
    """End the sweep that `begin_sweep` begins inside this context when the context exits, however it exits."""
    with contextlib.ExitStack() as stack:
        token = _sweeps.set(stack)
        try:
            yield
        finally:
            _sweeps.reset(token)


def begin_sweep(directory: Path, at_end: Callable[[], None] | None, unless_stopped: Callable[[], None] | None) -> None:
    """Lock the directory of a sweep until the command ends. Outside `ending_sweep` this does nothing.

    Args:
        directory: the sweep's directory, created if it is missing.
        at_end: called when the command ends, however it ends.
        unless_stopped: called before ``at_end``, unless the user stops the sweep.

    Raises:
        ResultsError: another process runs a sweep in the directory.
        OSError: the directory cannot be created.
    """
    if (stack := _sweeps.get(None)) is not None:
        directory.mkdir(parents=True, exist_ok=True)
        stack.enter_context(DirectoryLock(directory, SWEEP_LOCK))
        if at_end is not None:
            stack.callback(at_end)
        if unless_stopped is not None:
            stack.push(partial(_unless_stopped, unless_stopped))


def end_with_sweep(do: Callable[[], None]) -> None:
    """Register a callback for the end of the command, before those of `begin_sweep`, or else for the end of the process."""
    if (stack := _sweeps.get(None)) is not None:
        stack.callback(do)
    else:
        atexit.register(do)


def _unless_stopped(do: Callable[[], None], kind: type[BaseException] | None, *_: object) -> None:
    if kind is None or not issubclass(kind, KeyboardInterrupt):
        do()


def note_failure(sweep: Path, point: Path, error: Exception) -> None:
    """Record why a point failed, for the end of the sweep. Any process may call this."""
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
    """Write ``sweep.csv`` and ``report.html`` after a sweep whose launcher does not do so.

    Args:
        directory: the sweep's directory.
        planned: the points that are known.
        show_rows, compare, open_model: see `write_report`.
    """
    # Imported late: torch.
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
    """Check that no process runs a sweep in ``directory``.

    Raises:
        ResultsError: one does.
    """
    if os.path.lexists(directory / SWEEP_LOCK):
        with DirectoryLock(directory, SWEEP_LOCK):
            pass


def refresh_sweep(directory: Path) -> None:
    """Update ``sweep.csv`` after a single run in a sweep's directory. A sweep that is still running will update it itself."""
    if os.path.isfile(directory / SWEEP):
        with contextlib.suppress(ResultsError, OSError), DirectoryLock(directory, SWEEP_LOCK):
            SweepTable(directory).close()


def write_report(directory: Path, *, show_rows: bool, compare: str | None, open_model: Callable[[], OpenModel]) -> None:
    """Write ``report.html``, unless the sweep has no samples. If that fails, log a warning and let the sweep succeed.

    Args:
        directory: the sweep's directory.
        show_rows: whether to print the first rows of the review, and the command that shows the rest.
        compare: the setting ``compare_samplers``: the comparison to add to the report, and to print with the rows. None: the
            report has the comparisons that were requested earlier.
        open_model: loads the model for MAUVE's features, if the comparison uses it.
    """
    # Imported late: pandas.
    from ..analysis.comparison_request import ComparisonRequest, metric_name, read_request, split_metrics
    from ..analysis.frames import read_sweep
    from ..analysis.metrics import MAUVE
    from ..analysis.reference import saved_reference, with_own
    from ..report import report
    from ..report.terminal import print_comparisons, print_first_rows
    from ..run.mauve import mauve_metric

    if not any(directory.glob(f"**/{MANIFEST}")) and not any(directory.glob(f"**/{PARTIAL}")):
        return
    try:
        sweep = read_sweep(directory)
        if show_rows:
            print_first_rows(directory, sweep)
        reference, comparisons = saved_reference(directory, sweep), []
        try:
            request = read_request(directory)
            if compare is not None:
                names, own = split_metrics([compare], "compare_samplers")
                request = ComparisonRequest(tuple(names))
                request.save(directory)
                sweep, reference = sweep.scored(*own), with_own(reference, directory, own)
                if MAUVE.name in map(metric_name, names):
                    sweep = sweep.scored(mauve_metric(directory, open_model))
            comparisons = request.compare(sweep, reference) if request else []
        except GptsweepError as error:
            log.warning("no comparison of samplers: %s", error)
        if compare is not None and show_rows:
            print_comparisons(comparisons)
        html = report(sweep, directory.resolve().name, reference, comparisons)
        atomic_write(directory / REPORT, html)
    except Exception as error:
        log.warning("no report.html: %s", describe(error), exc_info=not isinstance(error, GptsweepError))
