"""Finished samples wait for one another where syncs are slow, and an end of the run that can be noticed costs none of them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from table_sweeps import files
from tables import Table, Tables
from test_backend import settle

from gptsweep.errors import Interrupted
from gptsweep.records import Row
from gptsweep.run import flush_pace
from gptsweep.run.flush_pace import FlushPace


def test_flushing_takes_a_tenth_of_the_time_and_holds_nothing_for_long() -> None:
    now = 0.0
    pace = FlushPace(lambda: now)
    assert not pace.due  # nothing waits
    pace.add()
    assert pace.due
    for took, waits in ((0.1, 0.9), (60.0, flush_pace.SECONDS)):
        pace.begin()
        now += took
        pace.end()
        pace.add()
        now += waits - 0.001
        assert not pace.due
        now += 0.002
        assert pace.due
    pace.begin()
    now += 60.0
    pace.end()
    for _ in range(flush_pace.SAMPLES):
        assert not pace.due
        pace.add()
    assert pace.due  # memory, too, is held for so many alone


def test_samples_that_wait_are_on_disk_when_the_run_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush_pace, "SHARE", 1e-12)  # after the first flush everything waits
    monkeypatch.setattr(flush_pace, "SECONDS", 3600.0)
    table = Table()

    def interrupt(row: Row) -> None:
        if len(table.decoded) == 9:
            signal.raise_signal(signal.SIGINT)

    table.before_row = interrupt
    with pytest.raises(Interrupted):
        settle(tmp_path, Tables(table), num_samples=6)
    lines = [line for path in tmp_path.glob("*/samples*.jsonl") for line in path.read_bytes().splitlines()]
    assert len(lines) == len(table.decoded) == 10
    monkeypatch.undo()
    settle(tmp_path, Tables(), num_samples=6)
    settle(tmp_path / "whole", Tables(), num_samples=6)
    assert {name: data for name, data in files(tmp_path).items() if name != "whole"} == files(tmp_path / "whole")
