"""The cost of a sweep on this machine apart from decoding, measured with two tiny sweeps of the package's own model."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..analysis.summary import summarise, text_metrics
from ..display import get_logger
from ..errors import ResultsError
from ..records import Sample
from ..store.reader import parse_line
from ..store.schema import SAMPLES, SWEEP

log = get_logger(__name__)

SECONDS = 12.0
"""The time limit of both sweeps together. If they exceed it, the cost of a point is that of another machine."""
_FEW, _MANY = 2, 66
_SAMPLES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """The cost of a sweep apart from decoding.

    Args:
        command: seconds per command.
        point: seconds per point.
        files: files and directories per point.
        file_bytes: bytes of these files, without ``samples.jsonl`` and the checksums of its lines.
        row_bytes: bytes of a point's row of ``sweep.csv``.
    """

    command: float
    point: float
    files: float
    file_bytes: float
    row_bytes: float

    @property
    def is_borrowed(self) -> bool:
        """Whether the cost of a point is that of another machine, because this one was too busy to measure it."""
        return {name: getattr(self, name) for name in _ELSEWHERE} == _ELSEWHERE


_ELSEWHERE = {"point": 0.02, "files": 9.0, "file_bytes": 7300.0, "row_bytes": 345.0}
"""The `Overhead` of a point on a virtual machine with two cores."""


def measured(limit: float = SECONDS) -> Overhead:
    """Run both sweeps, each in a process and a directory of its own, for at most ``limit`` seconds.

    Raises:
        ResultsError: the command does not work here.
    """
    with tempfile.TemporaryDirectory(prefix="gptsweep-") as name:
        place = Path(name)
        few = _timed(place / "few", _FEW, limit)
        many = None if few is None else _timed(place / "many", _MANY, limit - few)
        if few is None or many is None:
            log.warning("this machine is busy: a command took %.0f s; using another machine's cost of a point", few or limit)
            return Overhead(command=few or limit, **_ELSEWHERE)
        sweep = place / "many" / "outputs" / "sweeps" / "calibration"
        points = [path for path in sweep.iterdir() if path.is_dir()]
        files = [path for point in points for path in point.rglob("*") if path.is_file()]
        point = max(0.0, (many - few) / (_MANY - _FEW))
        return Overhead(
            command=few - _FEW * point,
            point=point,
            files=len(files) / len(points) + 2,  # the directory itself, and the one with Hydra's files
            file_bytes=sum(path.stat().st_size for path in files if path.name != SAMPLES) / len(points),
            row_bytes=(sweep / SWEEP).stat().st_size / len(points),
        )


def _timed(place: Path, points: int, limit: float) -> float | None:
    """Return the seconds that a sweep takes, or None if it does not end within ``limit``."""
    place.mkdir()
    command = [sys.executable, "-m", "gptsweep", "-m", f"seed=range(0,{points})", "name=calibration", "quiet=true",
               "sampling.num_samples=1", "sampling.max_new_tokens=1"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    began = time.perf_counter()
    try:
        ended = subprocess.run(
            command,
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=max(0.1, limit),
        )
    except subprocess.TimeoutExpired:
        return None
    if ended.returncode:
        last = (ended.stderr.strip() or "no output").splitlines()[-1]
        raise ResultsError("plan", " ".join(command[1:4]), f"ends with status {ended.returncode} when measured ({last})")
    return time.perf_counter() - began


def sample_seconds(samples: Sequence[Sample], clock: Callable[[], float] = time.process_time) -> float:
    """Measure the driver's seconds per sample, by ``clock``: for its line, and for its share of its point's metrics."""
    samples = list(samples)[:_SAMPLES]
    began = clock()
    lines = [sample.line().encode() for sample in samples]
    records: list[dict[str, Any]] = [record for line in lines if (record := parse_line(line)) is not None]
    summarise({}, records)
    text_metrics(records)
    return (clock() - began) / len(samples)
