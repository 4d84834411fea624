"""Files of a sweep, as every reader of results finds them: ``python tests/fuzz/fuzz_results.py --seconds 600``.

The input is a whole sweep of one point, see `lay_out`.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

from driver import END, MEMORY, check_message, instrumented, lay_out, run

with instrumented():
    from gptsweep.analysis.frames import read_sweep
    from gptsweep.analysis.summary import summarise, text_metrics
    from gptsweep.errors import GptsweepError
    from gptsweep.store.reader import read_samples
    from gptsweep.store.sweep_table import SweepTable
    from gptsweep.store.writer import PointWriter
from made_sweep import made_samples, write_point

SWEEP = Path(tempfile.mkdtemp(dir=MEMORY)) / "sweep"
POINT = SWEEP / "temperature=0.5"
FILES = [
    POINT / "samples.jsonl", POINT / "samples.partial.jsonl", POINT / "manifest.json", POINT / "summary.csv",
    POINT / "origins.json", POINT / ".hydra/overrides.yaml", POINT / ".hydra/config.yaml", SWEEP / "sweep.csv",
]  # fmt: skip
SAMPLES = made_samples(temperature=0.5, top_k=3, seed=1, num_samples=2, words=6)
POINT_ID = SAMPLES[0].point_id


def target(data: bytes) -> None:
    """Everything that reads a sweep, then a run that goes on in its point."""
    shutil.rmtree(SWEEP, ignore_errors=True)
    (POINT / ".hydra").mkdir(parents=True)
    lay_out(data, FILES)
    try:
        read_sweep(SWEEP)
    except GptsweepError as error:
        check_message(error)
    SweepTable(SWEEP).close()
    read_samples(POINT)
    try:
        with PointWriter(POINT, POINT_ID, made_by={"torch": "1"}) as writer:
            writer.add(SAMPLES)
            samples = writer.samples()
            writer.finish(summarise({}, samples) | text_metrics(samples), {"promise": True})
    except GptsweepError as error:
        check_message(error)
        return
    assert {sample.key for sample in SAMPLES} <= writer.done
    with PointWriter(POINT, POINT_ID) as writer:
        assert writer.complete
    SweepTable(SWEEP).close()


def seeds() -> list[bytes]:
    """A complete point, one that was killed, and one of which ``sweep.csv`` alone is left."""
    logging.disable()
    os.fsync = lambda fd: None  # durability is not tested here, and syncs are slow
    write_point(POINT, SAMPLES)
    SweepTable(SWEEP).close()
    manifest, summary, table = ((POINT / "manifest.json").read_bytes(), (POINT / "summary.csv").read_bytes(),
                                (SWEEP / "sweep.csv").read_bytes())  # fmt: skip
    lines = [sample.line().encode() for sample in SAMPLES]
    overrides, config = b"- sampling.temperature=0.5\n- 'start=a, b'\n", b"model:\n  name: shakespeare\nseed: 1\nstart: a\n"
    origins = b'[{"samples": [[0, 0, 0]], "made_by": {"torch": "0"}}, {"samples": null, "made_by": {"torch": "1"}}]\n'
    found = [
        [b"".join(lines), b"", manifest, summary, b"", overrides, config, table],
        [lines[0], lines[1], b"", b"", origins, overrides, config, table],
        [b"", b"", b"", b"", b"", overrides, config, table.replace(b"complete", b"failed")],
        [b"", lines[1][:-9], manifest[:40], summary[:60], origins[:30], b"", b"", b"directory,status\nother,missing\n"],
    ]
    return [END.join(each) for each in found]


if __name__ == "__main__":
    run(target, seeds())
