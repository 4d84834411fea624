"""What a sweep costs apart from decoding, on this machine: measured with two tiny sweeps of the package's own model."""

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
from ..errors import ResultsError
from ..records import Sample
from ..store.reader import parse_line
from ..store.schema import SAMPLES, SWEEP

_FEW, _MANY = 2, 26
_SAMPLES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Seconds of a whole command and of each point in it, and what a point leaves: files, their bytes, bytes of ``sweep.csv``.

    ``samples.jsonl`` and the checksums of its lines are not among the bytes.
    """

    command: float
    point: float
    files: float
    file_bytes: float
    row_bytes: float


def measured() -> Overhead:
    """Run both sweeps, each in a process and a directory of its own.

    Raises:
        ResultsError: the command does not work here.
    """
    with tempfile.TemporaryDirectory(prefix="gptsweep-") as place:
        few, many = (_timed(Path(place) / str(points), points) for points in (_FEW, _MANY))
        sweep = Path(place) / str(_MANY) / "outputs" / "sweeps" / "calibration"
        points = [path for path in sweep.iterdir() if path.is_dir()]
        files = [path for point in points for path in point.rglob("*") if path.is_file()]
        point = max(0.0, (many - few) / (_MANY - _FEW))
        return Overhead(
            command=few - _FEW * point,
            point=point,
            files=len(files) / len(points) + 2,  # the directory, and that of Hydra's files
            file_bytes=sum(path.stat().st_size for path in files if path.name != SAMPLES) / len(points),
            row_bytes=(sweep / SWEEP).stat().st_size / len(points),
        )


def _timed(place: Path, points: int) -> float:
    place.mkdir()
    command = [sys.executable, "-m", "gptsweep", "-m", f"seed=range(0,{points})", "name=calibration", "quiet=true",
               "sampling.num_samples=1", "sampling.max_new_tokens=1"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    began = time.perf_counter()
    ended = subprocess.run(command, cwd=place, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ended.returncode:
        last = (ended.stderr.strip() or "it says nothing").splitlines()[-1]
        raise ResultsError("plan", " ".join(command[1:4]), f"ends with status {ended.returncode} when it is measured ({last})")
    return time.perf_counter() - began


def sample_seconds(samples: Sequence[Sample], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds that the driver takes for each of these: its line, and its share of the metrics of its point."""
    samples = list(samples)[:_SAMPLES]
    began = clock()
    lines = [sample.line().encode() for sample in samples]
    records: list[dict[str, Any]] = [record for line in lines if (record := parse_line(line)) is not None]
    summarise({}, records)
    text_metrics(records)
    return (clock() - began) / len(samples)
