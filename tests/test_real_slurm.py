"""Jobs of a real SLURM on this machine; skipped where there is none: ``python -m pytest -m slow tests/test_real_slurm.py``."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from table_sweeps import files, lines, settle
from tables import Table, Tables, pause

from gptsweep.run.executors.remote import RemoteExecutor
from gptsweep.run.executors.slurm import SlurmPool


def _answers() -> bool:
    return shutil.which("sinfo") is not None and subprocess.run(["sinfo"], capture_output=True, timeout=60).returncode == 0


@pytest.mark.slow
def test_jobs_that_are_requeued_and_cancelled_leave_the_bytes_of_a_sweep_here_and_no_job(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not _answers():
        pytest.skip("there is no SLURM here")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    root = tmp_path / "there"
    backends = Tables(Table(before_row=partial(pause, 1.0)))
    pool = SlurmPool(backends, root, workers=2, parameters={"timeout_min": 5, "slurm_additional_parameters": {"requeue": True}})

    def disturb() -> None:
        while lines(root) < 2 or len(pool._alive()) < 2:
            time.sleep(0.1)
        requeued, cancelled = [job.job.job_id for job in pool._jobs]
        subprocess.run(["scontrol", "requeue", requeued], check=True)
        subprocess.run(["scancel", cancelled], check=True)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        assert all(outcome.error is None for outcome in settle(root, RemoteExecutor(pool, shards=9)))
        ids = {job.job.job_id for job in pool._jobs}
    finally:
        thread.join()
        pool.close()
    assert files(root) == whole
    assert caplog.text.count("SLURM ends its job") == 2
    while ids & set(subprocess.run(["squeue", "-h", "--array", "-o", "%i"], capture_output=True, text=True).stdout.split()):
        time.sleep(1)
