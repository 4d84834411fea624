"""The command ``python -m gptsweep.plan -m …``: estimate what a sweep takes, without loading weights or writing results.

It accepts any command line of ``python -m gptsweep``. It composes points like that command, and plans rows and memory like the
session and the engine. Speeds are measured once on this machine and kept in the user's cache directory.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from .__main__ import Refused
from .__main__ import main as command
from .config import point_from_config
from .display import Parser, one_line, ready_streams
from .multirun.compose import PointLoader
from .multirun.sweep_check import check_sweep, ready_params
from .multirun.sweepers import is_planned, sweeper_of

EXAMPLES = """examples:
  python -m gptsweep.plan -m sampling.temperature=0.5,0.8,1.1 seed=1,2,3
  python -m gptsweep.plan --machines 1,4,16 -m model=gpt2 start=LINES:prompts.txt sampling.top_p=0.8,0.9,0.95
  python -m gptsweep.plan --json -m hydra/sweeper=random hydra.sweeper.n=64 'sampling.top_p=interval(0.5,1)'
"""
WIDTH = 80


class Planned(BaseException):
    """Ends the command before Hydra makes a directory; an Exception in a callback would become a warning."""


class Planner:
    """A Hydra callback in place of `__main__.Report` that plans the sweep and ends the command.

    Args:
        machines: numbers of machines to estimate the time for.
        form: ``table`` or ``json``.
    """

    def __init__(self, machines: Sequence[int], form: str) -> None:
        self.machines, self.form = list(machines), form

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra before a single run."""
        try:
            point = point_from_config(config)
            self._show(config, [(point, Path(str(config.hydra.run.dir)).absolute())], "")
        except Exception as error:
            raise Refused(error) from error
        raise Planned

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra before a sweep."""
        try:
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            loader = PointLoader(hydra.config_loader)
            ready_params(config)
            points = check_sweep(config, loader)
            if is_planned(config):
                self._show(config, [(each.point, each.directory) for each in loader.planned], "")
            else:
                trials = OmegaConf.select(config, "hydra.sweeper.n_trials")
                many = f"; times {trials} trials" if trials else ""
                note = f"{sweeper_of(config)} chooses points as it goes, so this estimate is for one{many}"
                self._show(config, [(points[0], Path(str(config.hydra.sweep.dir)).absolute() / "0")], note)
        except Exception as error:
            raise Refused(error) from error
        raise Planned

    def _show(self, config: DictConfig, jobs: Sequence[tuple[Any, Path]], note: str) -> None:
        from .run.planning import planned  # late: torch, which --help and a mistake in the config need not wait for

        plan = planned(jobs, self.machines, note)
        if self.form == "json":
            print(json.dumps(plan.as_json(), indent=1))
        else:
            show(plan.lines())


def show(lines: Sequence[tuple[str, str]], console: Console | None = None) -> None:
    """Print a plan as a table with two columns; long values wrap."""
    console = console or Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else WIDTH)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines:
        table.add_row(one_line(name), one_line(value))
    console.print(table)


def parser() -> argparse.ArgumentParser:
    """This command's options; everything else on its line belongs to the sweep."""
    found = Parser(
        prog="python -m gptsweep.plan", usage="%(prog)s [--machines N[,N]] [--json] [-m] [KEY=VALUE ...]",
        description="Estimate a sweep's rows, tokens, disk, memory and time. Nothing is run or written.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    found.add_argument(
        "--machines", type=_counts, default=[1, 4, 16], metavar="N[,N]", help="estimate the time for N machines (1,4,16)"
    )
    found.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return found


def _counts(text: str) -> list[int]:
    counts = [int(each) for each in text.split(",")]
    if min(counts) < 1:
        raise ValueError(text)
    return sorted(set(counts))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: 0, or 2 after a mistake."""
    ready_streams()
    options, rest = parser().parse_known_args(sys.argv[1:] if arguments is None else arguments)
    ours = "hydra.callbacks.gptsweep"
    sys.argv = [
        sys.argv[0],
        *rest,
        f"{ours}._target_=gptsweep.plan.Planner",
        f"+{ours}.machines=[{','.join(map(str, options.machines))}]",
        f"+{ours}.form={'json' if options.json else 'table'}",
    ]
    try:
        return command()
    except Planned:
        return 0


if __name__ == "__main__":
    from .plan import main  # by its own name, as Hydra imports Planner from there

    sys.exit(main())
