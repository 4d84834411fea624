"""What a user would lose: a finished sample, a byte of it, or the right to believe a manifest."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import itertools
import json
import logging
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptsweep.analysis.summary import summarise
from gptsweep.errors import ResultsError
from gptsweep.files import LogFile
from gptsweep.records import LineEncoder, Sample, Sampling
from gptsweep.store import durable, keyed_lines, lock
from gptsweep.store import writer as results
from gptsweep.store.csv_files import csv_bytes, csv_rows
from gptsweep.store.durable import atomic_write
from gptsweep.store.lock import DirectoryLock
from gptsweep.store.reader import read_manifest, read_rows, read_samples
from gptsweep.store.recorded_settings import overridden
from gptsweep.store.schema import MANIFEST, ORIGINS, PARTIAL, SAMPLES, SUMMARY
from gptsweep.store.sweep_table import SweepTable, write_sweep_csv
from gptsweep.store.writer import PointWriter

POINT = "0123456789abcdef"
OTHER = "fedcba9876543210"
ROOT = Path(__file__).parents[1]
Key = tuple[int, int]
RESULT_FILES = [MANIFEST, SAMPLES, SUMMARY]


def make_sample(prompt_index: int, sample_index: int, point: str = POINT) -> Sample:
    """The same sample whenever it is made, as the engine promises; its text has everything that JSON must escape."""
    draw = random.Random(f"{point} {prompt_index} {sample_index}")
    count = draw.randint(0, 40)
    return Sample(
        point_id=point,
        prompt_id=f"prompt {prompt_index}",
        prompt_index=prompt_index,
        sample_index=sample_index,
        seed=1,
        sampling=Sampling(num_samples=99, stop=("\n\n",), logit_bias=((3, -1.5),)),
        model="gpt2",
        prompt="Once\n",
        completion="".join(draw.choices('ab "\\\n\r\t\u2028é中\ud800\U0001f600\x00', k=count)),
        finish_reason=draw.choice(["length", "stop", "eot", "overflow"]),
        prompt_tokens=2,
        token_ids=tuple(draw.randrange(50257) for _ in range(count)),
        logprob_mean=-draw.random() if count else None,
        sampler_logprob_mean=-draw.random() if count else None,
        entropy_mean=draw.random() if count else None,
    )


def make_samples(prompts: int, samples: int, point: str = POINT) -> list[Sample]:
    return [make_sample(p, s, point) for p in range(prompts) for s in range(samples)]


def plain_file(samples: list[Sample]) -> bytes:
    """The plain twin: sort, write."""
    return "".join(sample.line() for sample in sorted(samples, key=lambda s: s.key)).encode()


short, means = st.text(max_size=9), st.none() | st.floats(allow_nan=False, allow_infinity=False)
any_samples = st.builds(
    Sample, point_id=short, prompt_id=short, prompt_index=st.integers(0), sample_index=st.integers(0), seed=st.integers(0),
    sampling=st.sampled_from([Sampling(), Sampling(stop=("\n",), xtc_probability=0.5)]), model=short, prompt=short,
    completion=short, finish_reason=st.sampled_from(["length", "stop"]), prompt_tokens=st.integers(0),
    token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple), logprob_mean=means, sampler_logprob_mean=means,
    entropy_mean=means,
)  # fmt: skip


@given(st.lists(any_samples, max_size=4))
@settings(max_examples=25, deadline=None)
def test_lines_that_are_encoded_one_after_another_have_the_bytes_of_each_alone(samples: list[Sample]) -> None:
    encoder = LineEncoder()
    assert [encoder.line(sample) for sample in samples] == [sample.line() for sample in samples]


def test_no_line_has_a_mean_that_json_has_not() -> None:
    with pytest.raises(ValueError, match="JSON"):
        LineEncoder().line(replace(make_sample(0, 0), entropy_mean=float("nan")))


def finish(writer: PointWriter) -> None:
    writer.finish(summarise({"temperature": 0.8}, writer.samples()), {"promise": True})


def run(directory: Path, wanted: list[Sample], batch: int = 3, point: str = POINT, **options: bool) -> list[Sample]:
    """What a session does with a point; the samples that it had to make."""
    with PointWriter(directory, point, **options) as writer:
        missing = [sample for sample in wanted if sample.key not in writer.done]
        for i in range(0, len(missing), batch):
            writer.add(missing[i : i + batch])
        if missing or not writer.complete:
            finish(writer)
    return missing


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def assert_complete(directory: Path, wanted: list[Sample]) -> None:
    expected = plain_file(wanted)
    assert (directory / SAMPLES).read_bytes() == expected
    manifest = read_manifest(directory)
    assert manifest is not None
    assert manifest["status"] == "complete"
    assert manifest["point_id"] == wanted[0].point_id
    assert manifest["sha256"] == hashlib.sha256(expected).hexdigest()
    assert manifest["lines"] == len(wanted)
    assert manifest["promise"] is True
    summary = pd.read_csv(directory / SUMMARY)
    assert summary["num_samples"].tolist() == [len(wanted)]
    assert names(directory) == RESULT_FILES


# Writing and going on


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_order_and_any_batches_give_the_plain_file(tmp_path_factory, data):
    wanted = make_samples(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5)))
    shuffled = data.draw(st.permutations(wanted))
    directory = tmp_path_factory.mktemp("run")
    assert len(run(directory, shuffled, batch=data.draw(st.integers(1, 6)))) == len(wanted)
    assert_complete(directory, wanted)
    assert run(directory, shuffled) == []


def test_samples_that_arrive_in_order_are_written_once(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(keyed_lines, "write_temporary", lambda path, chunks: written.append(path.name) or path.write_bytes(b""))
    monkeypatch.setattr(durable.os, "replace", lambda source, target: written.append(f"{Path(source).name} renamed"))
    with PointWriter(tmp_path, POINT) as writer:
        writer.add(make_samples(1, 8))
        finish(writer)
    assert written[0] == f"{PARTIAL} renamed"
    assert SAMPLES not in written


def test_added_samples_are_on_disk_before_add_returns(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(durable.os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    with PointWriter(tmp_path, POINT) as writer:
        writer.add(make_samples(1, 2))
        assert synced == [str(tmp_path / PARTIAL), str(tmp_path)], "the data, and once the file's name"
        writer.add(make_samples(1, 3))
        assert synced[2:] == [str(tmp_path / PARTIAL)]
        assert read_samples(tmp_path) == ([sample.as_json() for sample in make_samples(1, 3)], 0)
        assert writer.done == {(0, 0), (0, 1), (0, 2)}


def test_a_sample_added_twice_is_kept_once(tmp_path):
    with PointWriter(tmp_path, POINT) as writer:
        writer.add(make_samples(1, 2))
        writer.add(make_samples(1, 4))
        assert [sample["sample_index"] for sample in writer.samples()] == [0, 1, 2, 3]
        finish(writer)
    assert_complete(tmp_path, make_samples(1, 4))


def test_samples_of_another_point_are_not_mixed_in(tmp_path):
    with PointWriter(tmp_path, POINT) as writer, pytest.raises(ValueError, match=OTHER):
        writer.add(make_samples(1, 2, OTHER))
    assert names(tmp_path) == []


def test_hydras_files_in_the_directory_are_left_alone(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("seed: 1")
    (tmp_path / "gptsweep.log").write_text("log")
    run(tmp_path, make_samples(1, 2))
    assert names(tmp_path) == [".hydra", "gptsweep.log", *RESULT_FILES]


def test_a_complete_point_is_not_touched(tmp_path):
    run(tmp_path, make_samples(2, 2))

    def touched() -> dict[str, tuple[int, int]]:
        return {name: (found.st_ino, found.st_mtime_ns) for name in RESULT_FILES if (found := os.stat(tmp_path / name))}

    before = touched()
    with PointWriter(tmp_path, POINT) as writer:
        assert writer.complete
        assert writer.done == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert touched() == before


def test_raising_num_samples_makes_only_the_further_ones_and_keeps_the_earlier_lines(tmp_path):
    run(tmp_path, make_samples(3, 2))
    earlier = (tmp_path / SAMPLES).read_bytes().splitlines(keepends=True)
    made = run(tmp_path, make_samples(3, 5))
    assert [sample.sample_index for sample in made] == [2, 3, 4] * 3
    assert_complete(tmp_path, make_samples(3, 5))
    later = (tmp_path / SAMPLES).read_bytes().splitlines(keepends=True)
    assert [later[i] for i in (0, 1, 5, 6, 10, 11)] == earlier


# What made which samples


HERE = {"torch": "2.13.0", "instructions": "avx2", "limits": "", "promise": True}
THERE = {"torch": "2.13.0", "instructions": "avx2 avx512_f", "limits": "", "promise": True}


def made(directory: Path, count: int, by: dict[str, Any] | None, stop: bool = False) -> str:
    """Add the samples up to ``count``, and finish unless ``stop``; what changed since the earlier ones."""
    with PointWriter(directory, POINT, made_by=by) as writer:
        change = writer.change
        writer.add([sample for sample in make_samples(2, count) if sample.key not in writer.done])
        if not stop:
            finish(writer)
    return change


@pytest.mark.parametrize("stop", [True, False], ids=["killed", "finished"])
def test_samples_of_two_kinds_of_machines_are_told_apart_and_promise_nothing(tmp_path, stop):
    assert made(tmp_path, 2, HERE, stop) == ""
    assert made(tmp_path, 3, HERE, stop) == ""
    assert made(tmp_path, 4, THERE, stop) == "instructions avx2, now avx2 avx512_f"
    assert made(tmp_path, 6, HERE) == "instructions avx2 avx512_f, now avx2"
    assert (tmp_path / SAMPLES).read_bytes() == plain_file(make_samples(2, 6))
    manifest = read_manifest(tmp_path)
    assert manifest["promise"] is False
    assert manifest["parts"] == [
        {"samples": [[0, 0, 2], [1, 0, 2]], "made_by": HERE},
        {"samples": [[0, 3, 3], [1, 3, 3]], "made_by": THERE},
        {"samples": None, "made_by": HERE},
    ]
    assert names(tmp_path) == RESULT_FILES


def test_samples_of_one_kind_of_machine_are_one_part_however_often_it_was_stopped(tmp_path):
    for count, stop in ((1, True), (2, False), (3, True), (5, False)):
        made(tmp_path, count, HERE, stop)
    assert read_manifest(tmp_path)["parts"] == [{"samples": None, "made_by": HERE}]
    assert read_manifest(tmp_path)["promise"] is True
    assert read_manifest(tmp_path)["line_sha256"]


def test_a_limit_that_was_set_in_between_is_reported(tmp_path):
    made(tmp_path, 2, HERE)
    assert made(tmp_path, 3, HERE | {"limits": "ONEDNN_MAX_CPU_ISA=SSE41"}) == "limits none, now ONEDNN_MAX_CPU_ISA=SSE41"


def test_a_part_without_the_promise_takes_it_from_the_whole(tmp_path):
    made(tmp_path, 2, HERE | {"promise": False})
    assert made(tmp_path, 3, HERE) == "promise False, now True"
    assert read_manifest(tmp_path)["promise"] is False


def test_of_samples_of_version_0_1_only_what_is_known_to_differ_is_reported(tmp_path):
    for name, torch, change in (("a", "2.13.0", ""), ("b", "2.12.1", "torch 2.12.1, now 2.13.0")):
        with PointWriter(tmp_path / name, POINT) as writer:
            writer.add(make_samples(2, 2))
            writer.finish({}, {"promise": True, "versions": {"torch": torch}})
        assert made(tmp_path / name, 3, HERE) == change
        manifest = read_manifest(tmp_path / name)
        assert manifest["promise"] is (not change)
        assert manifest["parts"][0]["samples"] == [[0, 0, 1], [1, 0, 1]]
    with PointWriter(tmp_path / "c", POINT) as writer:
        writer.add(make_samples(2, 2))
    assert made(tmp_path / "c", 3, HERE) == ""
    assert read_manifest(tmp_path / "c")["promise"] is True


@pytest.mark.parametrize("damage", ["", "[]", "[1]", '[{"samples": 3, "made_by": {}}]', '[{"made_by": {}}]', "{}", "[" * 99999])
def test_damaged_origins_are_as_none(tmp_path, damage):
    made(tmp_path, 2, THERE, stop=True)
    (tmp_path / ORIGINS).write_text(damage)
    assert made(tmp_path, 3, HERE) == ""
    assert (tmp_path / SAMPLES).read_bytes() == plain_file(make_samples(2, 3))


# Another point, another process


@pytest.mark.parametrize("finished", [True, False])
def test_another_points_samples_are_not_overwritten_unasked(tmp_path, finished):
    with PointWriter(tmp_path, OTHER) as writer:
        writer.add(make_samples(1, 2, OTHER))
        if finished:
            finish(writer)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with pytest.raises(ResultsError, match=f"another point.*{OTHER}.*overwrite=true") as refusal:
        run(tmp_path, make_samples(1, 2))
    assert refusal.value.key == "name"
    assert "\n" not in str(refusal.value)
    with PointWriter(tmp_path, POINT, overwrite=True) as writer:
        assert not writer.complete
        assert writer.done == frozenset()
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before, "until there is something new"
    run(tmp_path, make_samples(1, 3), overwrite=True)
    assert_complete(tmp_path, make_samples(1, 3))
    assert run(tmp_path, make_samples(1, 3), overwrite=True) == [], "overwrite=true does not redo the same point"


def test_a_file_that_happens_to_be_called_samples_jsonl_is_not_overwritten_unasked(tmp_path):
    (tmp_path / SAMPLES).write_text('{"text": "mine"}\n')
    with pytest.raises(ResultsError, match=r"samples of another version.*overwrite=true"):
        run(tmp_path, make_samples(1, 2))
    assert (tmp_path / SAMPLES).read_text() == '{"text": "mine"}\n'


def test_lines_of_another_schema_version_are_not_mixed_with_ours(tmp_path, monkeypatch):
    run(tmp_path, make_samples(1, 2))
    monkeypatch.setattr(results, "SCHEMA_VERSION", 999)
    with pytest.raises(ResultsError, match="samples of another version"):
        run(tmp_path, make_samples(1, 3))


HOLD = """
import sys
from gptsweep.store.writer import PointWriter
with PointWriter(sys.argv[1], sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds ``tmp_path``."""
    command = [sys.executable, "-c", HOLD, str(tmp_path), POINT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_who_has_the_directory(tmp_path, holder):
    with pytest.raises(ResultsError, match=f"in use by process {holder.pid} on ") as refusal, PointWriter(tmp_path, POINT):
        pass
    assert refusal.value.key == "name"


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert names(tmp_path) == [".lock"]
    run(tmp_path, make_samples(1, 2))
    assert_complete(tmp_path, make_samples(1, 2))


def test_a_lock_that_is_given_back_while_another_waits_for_it_is_not_held_twice(tmp_path, monkeypatch):
    """The other opened the file, then the holder removed it: a lock on the removed file would keep nobody out."""
    first, second, third = (DirectoryLock(tmp_path) for _ in range(3))
    first.acquire()
    real = lock._try_lock
    monkeypatch.setattr(lock, "_try_lock", lambda file: (first.release(), real(file))[1])
    second.acquire()
    with pytest.raises(ResultsError, match="in use"):
        third.acquire()
    second.release()
    third.acquire()
    third.release()
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, 524, errno.EINVAL, errno.EBADF, errno.EIO])
def test_a_file_system_without_locks_or_synced_directories_is_used_and_that_is_reported_once(
    tmp_path, monkeypatch, caplog, number
):
    fsync = os.fsync

    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", refused)
    monkeypatch.setattr(durable.os, "fsync", lambda fd: refused() if stat.S_ISDIR(os.fstat(fd).st_mode) else fsync(fd))
    lock._warn_no_locks.cache_clear()
    for name in ("a", "b"):
        run(tmp_path / name, make_samples(1, 2))
        assert_complete(tmp_path / name, make_samples(1, 2))
    assert caplog.text.count("this file system has no locks") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_directory_that_cannot_be_synced_for_another_reason_is_an_error(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def failing(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(fd)

    monkeypatch.setattr(durable.os, "fsync", failing)
    with pytest.raises(ResultsError, match=os.strerror(number).lower()):
        run(tmp_path, make_samples(1, 2))


@pytest.mark.parametrize("name", [".lock", PARTIAL])
def test_a_link_that_somebody_put_in_the_directory_leads_nowhere(tmp_path, name):
    """In a directory that others write to, too, it might lead to any file of the user's."""
    precious, directory = tmp_path / "precious", tmp_path / "run"
    precious.write_text("mine")
    directory.mkdir()
    (directory / name).symlink_to(precious)
    with pytest.raises(ResultsError, match="a symbolic link is in the way: remove it"):
        run(directory, make_samples(1, 2))
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("name", [".lock", PARTIAL, SAMPLES, MANIFEST, SUMMARY])
def test_a_pipe_in_place_of_a_file_holds_nobody_up(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with contextlib.suppress(ResultsError):
        run(tmp_path, make_samples(1, 2))
        assert_complete(tmp_path, make_samples(1, 2))
    with contextlib.suppress(ResultsError):
        read_samples(tmp_path)


def test_a_log_is_not_written_through_a_link(tmp_path, capsys):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run.log").symlink_to(tmp_path / "precious")
    for name in ("run.log", "other.log"):
        handler = LogFile(tmp_path / name)
        handler.emit(logging.makeLogRecord({"msg": "logged"}))
        handler.close()
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "other.log").read_text() == "logged\n"
    assert capsys.readouterr().err.count("run.log: it is a symbolic link") == 1


# Killed, torn, damaged


def fork(
    work: Callable[[Callable[[Sample], None]], None], kill: Callable[[int, IO[bytes]], list[bytes]]
) -> tuple[bool, set[Key]]:
    """Run ``work`` in a child process that may be killed; whether it was, and the keys of the samples that it acknowledged.

    Forked from this process, which has imported everything, so that what is killed is the writing, not the imports.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            work(lambda sample: os.write(writer, json.dumps(sample.key).encode() + b"\n"))
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        lines = kill(child, pipe) + pipe.read().splitlines(keepends=True)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0, {tuple(json.loads(line)) for line in lines}


def write_last_first(directory: Path, wanted: list[Sample], tell: Callable[[Sample], None]) -> None:
    """Add what is missing one by one, telling of each sample once `PointWriter.add` has returned, and finish."""
    with PointWriter(directory, POINT) as writer:
        for sample in reversed(wanted):
            if sample.key not in writer.done:
                writer.add([sample])
                tell(sample)
        if not writer.complete:
            finish(writer)


def assert_nothing_lost_and_nothing_claimed(directory: Path, acknowledged: set[Key]) -> set[Key]:
    """After a crash every sample that was acknowledged is there, once, and a manifest claims what is there; the keys found."""
    found, damaged = read_samples(directory) if directory.exists() else ([], 0)
    keys = [(sample["prompt_index"], sample["sample_index"]) for sample in found]
    assert acknowledged <= set(keys), "a finished sample was lost"
    assert len(keys) == len(set(keys))
    assert damaged == 0
    manifest = read_manifest(directory)
    if manifest is not None:
        data = (directory / SAMPLES).read_bytes()
        assert (manifest["sha256"], manifest["lines"]) == (hashlib.sha256(data).hexdigest(), data.count(b"\n"))
        assert pd.read_csv(directory / SUMMARY)["num_samples"].tolist() == [manifest["lines"]]
    return set(keys)


def test_sigkill_at_twenty_random_moments_loses_no_sample_and_makes_none_twice(tmp_path):
    wanted = make_samples(3, 40)
    moments = random.Random(0)
    acknowledged: set[Key] = set()
    kills = 0

    def kill(child: int, pipe: IO[bytes]) -> list[bytes]:
        """Killed when so many samples were acknowledged, or a moment later: in the middle of a write, a rename, a sync."""
        lines = list(itertools.islice(pipe, moments.choice([1, 5, 10, 20, 30, 120])))
        for _ in range(moments.randrange(30_000)):
            pass
        os.kill(child, signal.SIGKILL)
        return lines

    for directory in (tmp_path / str(number) for number in itertools.count()):
        acknowledged.clear()
        complete = False
        while not complete and kills < 20:
            killed, new = fork(lambda tell, directory=directory: write_last_first(directory, wanted, tell), kill)
            assert not new & acknowledged, "a finished sample was made again"
            acknowledged |= new
            kills += killed
            assert_nothing_lost_and_nothing_claimed(directory, acknowledged)
            complete = not killed
        run(directory, wanted)
        assert_complete(directory, wanted)
        if kills == 20:
            break


def test_sigkill_at_every_step_of_extending_a_point_loses_no_sample_and_makes_none_twice(tmp_path):
    """The steps are short, so chance would hardly ever hit them: the child kills itself at each in turn."""
    earlier, wanted = make_samples(2, 1), make_samples(2, 3)
    for last_step in itertools.count(1):
        directory = tmp_path / str(last_step)
        run(directory, earlier)

        def work(tell: Callable[[Sample], None], directory: Path = directory, last_step: int = last_step) -> None:
            steps = itertools.count(1)

            def killing(call: Callable[..., Any]) -> Callable[..., Any]:
                def step(*args: Any, **options: Any) -> Any:
                    if next(steps) == last_step:
                        if call is write_all:
                            write_all(args[0], args[1][: len(args[1]) // 2])
                        os.kill(os.getpid(), signal.SIGKILL)
                    return call(*args, **options)

                return step

            write_all = durable.write_all
            durable.write_all = killing(write_all)
            for name in ("fsync", "replace", "unlink", "truncate", "open"):
                setattr(os, name, killing(getattr(os, name)))
            write_last_first(directory, wanted, tell)

        killed, acknowledged = fork(work, lambda child, pipe: [])
        found = assert_nothing_lost_and_nothing_claimed(directory, acknowledged | {sample.key for sample in earlier})
        assert {sample.key for sample in run(directory, wanted)} == {sample.key for sample in wanted} - found
        assert_complete(directory, wanted)
        if not killed:
            break
    assert last_step > 15


class Disk:
    """What a machine that loses power keeps of a directory.

    Of each file, what it had when last synced. Of the names, those there were when the directory was last synced, at best
    with all changes since, at worst with none of them, or with the last one overtaking the others.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.contents: dict[int, bytes] = {}
        self.synced: dict[str, int] = {}
        self.overtaken: dict[str, int] = {}
        self.held: list[int] = []

    def names(self) -> dict[str, int]:
        return {entry.name: entry.inode() for entry in os.scandir(self.directory)}

    def fsync(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.is_dir():
            self.synced = self.overtaken = self.names()
        else:
            self.contents[os.fstat(fd).st_ino] = path.read_bytes()
            self.held.append(os.dup(fd))  # so that no other file gets the inode

    def replace(self, source: Path, target: Path) -> None:
        self.overtaken = self.synced | {target.name: os.stat(target).st_ino}
        self.overtaken.pop(source.name, None)

    def unlink(self, path: Path) -> None:
        self.overtaken = {name: inode for name, inode in self.synced.items() if name != Path(path).name}

    def copies_after_power_loss(self, target: Path) -> Iterator[Path]:
        for number, names in enumerate((self.synced, self.overtaken, self.names())):
            copy = target / str(number)
            copy.mkdir(parents=True)
            for name, inode in names.items():
                (copy / name).write_bytes(self.contents.get(inode, b""))
            yield copy


@pytest.mark.parametrize("order", [1, -1], ids=["in order", "last first"])
def test_a_power_cut_at_every_step_loses_no_sample_and_leaves_nothing_that_looks_complete(tmp_path, monkeypatch, order):
    wanted = make_samples(2, 3)
    directory = tmp_path / "run"
    disk = Disk(directory)
    acknowledged: set[Key] = set()
    cuts = itertools.count()
    real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink")}

    def cut(claimed: int = 0) -> None:
        for copy in disk.copies_after_power_loss(tmp_path / f"cut {next(cuts)}"):
            found = assert_nothing_lost_and_nothing_claimed(copy, acknowledged)
            assert not claimed or read_manifest(copy)["lines"] == claimed, "finish had returned"
            with monkeypatch.context() as patch:
                for name, call in real.items():
                    patch.setattr(durable.os, name, call)
                assert {sample.key for sample in run(copy, wanted)} == {sample.key for sample in wanted} - found
            assert_complete(copy, wanted)

    def cutting(name: str) -> Callable[..., Any]:
        def step(*args: Any, **options: Any) -> Any:
            real[name](*args, **options)
            getattr(disk, name)(*args)
            cut()

        return step

    for name in real:
        monkeypatch.setattr(durable.os, name, cutting(name))
    for samples in (wanted[:4], wanted):  # the second goes on from a complete point
        with PointWriter(directory, POINT) as writer:
            for sample in samples[::order]:
                if sample.key not in writer.done:
                    writer.add([sample])
                    acknowledged.add(sample.key)
                    cut()
            finish(writer)
            cut(claimed=len(samples))
    for fd in disk.held:
        os.close(fd)
    assert next(cuts) > 20


@pytest.fixture(scope="module")
def partial_bytes() -> bytes:
    return b"".join(sample.line().encode() for sample in [make_sample(0, s) for s in (2, 0, 3, 1)])


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_partial_file_torn_anywhere_goes_on_to_the_same_bytes(tmp_path_factory, partial_bytes, data):
    cut = data.draw(st.integers(0, len(partial_bytes)))
    garbage = data.draw(st.sampled_from([b"", b"\x00" * 50, b"\x00\n", b"{", b"\xff\xfe\n", b"[1]\n"]))
    directory = tmp_path_factory.mktemp("run")
    (directory / PARTIAL).write_bytes(partial_bytes[:cut] + garbage)
    made = run(directory, make_samples(1, 4), batch=1)
    assert len(made) == 4 - partial_bytes[:cut].count(b"\n")
    assert_complete(directory, make_samples(1, 4))


def test_a_torn_line_is_dropped_and_the_next_sample_is_not_glued_to_it(tmp_path):
    (tmp_path / PARTIAL).write_bytes(make_sample(0, 0).line().encode() + make_sample(0, 1).line().encode()[:-20])
    assert read_samples(tmp_path) == ([make_sample(0, 0).as_json()], 0), "a torn last line is no damage"
    with PointWriter(tmp_path, POINT) as writer:
        writer.add([make_sample(0, 1)])
    assert read_samples(tmp_path / PARTIAL) == ([make_sample(0, s).as_json() for s in (0, 1)], 0)


def test_a_damaged_line_in_the_middle_is_reported_and_its_sample_made_again(tmp_path, caplog):
    lines = [sample.line().encode() for sample in make_samples(1, 3)]
    lines[1] = lines[1].replace(b"gpt2", b"\x00\x00\x00\x00")
    (tmp_path / PARTIAL).write_bytes(b"".join(lines))
    assert read_samples(tmp_path)[1] == 1
    made = run(tmp_path, make_samples(1, 3))
    assert [sample.key for sample in made] == [(0, 1)]
    assert f"{PARTIAL}: damaged lines (2); their samples are made again" in caplog.text
    assert_complete(tmp_path, make_samples(1, 3))


TAMPERINGS = {
    "a line lost": (lambda lines: lines[:2] + lines[3:], [2]),
    "the end lost": (lambda lines: [*lines[:3], lines[3][:40]], [3]),
    "a word changed": (lambda lines: [lines[0], lines[1].replace(b"Once", b"Twice"), *lines[2:]], [1]),
    "a number changed": (lambda lines: [lines[0].replace(b'"seed": 1', b'"seed": 2'), *lines[1:]], [0]),
    "lines swapped": (lambda lines: [lines[1], lines[0], *lines[2:]], []),
    "a line doubled": (lambda lines: [lines[0], *lines], []),
    "rubbish added": (lambda lines: [*lines, b"rubbish"], []),
    "saved on Windows": (lambda lines: [line[:-1] + b"\r\n" for line in lines], [0, 1, 2, 3]),
    "emptied": (lambda lines: [], [0, 1, 2, 3]),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_a_finished_file_that_was_changed_is_repaired_not_skipped(tmp_path, caplog, tampering):
    change, lost = TAMPERINGS[tampering]
    run(tmp_path, make_samples(1, 4))
    lines = (tmp_path / SAMPLES).read_bytes().splitlines(keepends=True)
    (tmp_path / SAMPLES).write_bytes(b"".join(change(lines)))
    made = run(tmp_path, make_samples(1, 4))
    assert [sample.sample_index for sample in made] == lost
    assert f"changed after it was finished: {4 - len(lost)} of its 4 samples" in caplog.text
    assert_complete(tmp_path, make_samples(1, 4))


@pytest.mark.parametrize("name", RESULT_FILES)
def test_a_finished_file_that_was_deleted_is_made_again(tmp_path, name):
    run(tmp_path, make_samples(1, 4))
    (tmp_path / name).unlink()
    made = run(tmp_path, make_samples(1, 4))
    assert len(made) == (4 if name == SAMPLES else 0)
    assert_complete(tmp_path, make_samples(1, 4))


@pytest.mark.parametrize("keeps_hash", [True, False], ids=["", "written by 0.1"])
@pytest.mark.parametrize(
    "damage", [b"", b"x", b"temperature,num_samples\n0.8,3\n", b'temperature,num_samples\n"0.8,4', b"\xff\x00"]
)
def test_a_damaged_summary_is_written_again(tmp_path, caplog, damage, keeps_hash):
    run(tmp_path, make_samples(1, 4))
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    if not keeps_hash:
        del manifest["summary_sha256"]
        (tmp_path / MANIFEST).write_text(json.dumps(manifest))
        with PointWriter(tmp_path, POINT) as writer:
            assert writer.complete
    (tmp_path / SUMMARY).write_bytes(damage)
    assert run(tmp_path, make_samples(1, 4)) == []
    assert "summary.csv was changed after it was finished and will be written again" in caplog.text
    assert_complete(tmp_path, make_samples(1, 4))


def test_a_damaged_manifest_is_written_again(tmp_path, caplog):
    run(tmp_path, make_samples(1, 4))
    (tmp_path / MANIFEST).write_text('{"status": "comp')
    assert read_manifest(tmp_path) is None
    assert run(tmp_path, make_samples(1, 4)) == []
    assert "is damaged and will be written again" in caplog.text
    assert_complete(tmp_path, make_samples(1, 4))


def test_what_a_killed_process_had_half_written_is_cleared_away(tmp_path):
    (tmp_path / f".{SAMPLES}.0a1b2c3d.tmp").write_bytes(b"half")
    run(tmp_path, make_samples(1, 4))
    assert_complete(tmp_path, make_samples(1, 4))


# No room, no right


@pytest.fixture
def size_limit() -> Iterator[None]:
    """No file may grow beyond 4,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_file_that_may_not_grow_keeps_its_whole_lines(tmp_path, size_limit, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(ResultsError, match="file too large; raise the file size limit") as refusal:
        run(tmp_path, make_samples(1, 12), batch=12)
    assert "\n" not in str(refusal.value)
    assert names(tmp_path) == [PARTIAL]
    kept = (tmp_path / PARTIAL).read_bytes()
    assert kept.endswith(b"}\n")
    assert 1 <= kept.count(b"\n") < 12
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    assert len(run(tmp_path, make_samples(1, 12))) == 12 - kept.count(b"\n")
    assert "half-written" not in caplog.text
    assert_complete(tmp_path, make_samples(1, 12))


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if not made or made.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("when", ["adding", "extending", "finishing"])
def test_a_full_disk_is_one_clear_line_and_what_was_finished_stays(small_disk, when):
    directory = small_disk / "run"
    earlier = make_samples(1, 8) if when == "extending" else []
    if earlier:
        run(directory, earlier)
    wanted = make_samples(1, 30)
    filler = small_disk / "filler"

    def fill_up() -> None:
        with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass

    def work() -> None:
        with PointWriter(directory, POINT) as writer:
            writer.add(wanted[10:20])
            writer.add(wanted[:10])
            if when != "finishing":
                fill_up()
            writer.add(wanted[20:])
            fill_up()
            finish(writer)

    with pytest.raises(ResultsError, match="no space left on device; free some space") as refusal:
        work()
    assert "\n" not in str(refusal.value)
    assert names(directory) == (sorted([PARTIAL, *RESULT_FILES]) if earlier else [PARTIAL]), "no temporary is left"
    if earlier:
        assert read_manifest(directory)["sha256"] == hashlib.sha256((directory / SAMPLES).read_bytes()).hexdigest()
    found, damaged = read_samples(directory)
    assert len(found) >= 20
    assert damaged == 0
    filler.unlink()
    assert len(run(directory, wanted)) == 30 - len(found)
    assert_complete(directory, wanted)


def test_a_disk_that_may_only_be_read_is_one_clear_line(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ResultsError, match="read-only file system; choose a directory that can be written"):
        run(small_disk / "run", make_samples(1, 2))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_one_clear_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ResultsError, match="permission denied; make it writable"):
        run(tmp_path / "run", make_samples(1, 2))


def test_a_file_in_the_way_is_one_clear_line(tmp_path):
    (tmp_path / "run").write_text("")
    for directory in (tmp_path / "run", tmp_path / "run" / "point"):
        with pytest.raises(ResultsError, match="a file is in the way"):
            run(directory, make_samples(1, 2))


def test_many_points_open_at_once_take_one_file_each(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    writers = [PointWriter(tmp_path / str(i), POINT) for i in range(20)]
    for writer in writers:
        writer.__enter__()
        writer.add(make_samples(1, 1))
    assert len(os.listdir("/proc/self/fd")) == before + 20
    for writer in writers:
        writer.__exit__(None, None, None)
    assert len(os.listdir("/proc/self/fd")) == before


# Atomic files, summaries


def test_an_atomic_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    atomic_write(path, b"old")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", full)
        with pytest.raises(ResultsError, match="no space left"):
            atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["report.html"]
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"


def test_files_have_the_permissions_that_the_user_asked_for(tmp_path):
    before = os.umask(0o027)
    try:
        run(tmp_path, make_samples(1, 2))
    finally:
        os.umask(before)
    assert {oct((tmp_path / name).stat().st_mode & 0o777) for name in RESULT_FILES} == {"0o640"}


def test_a_csv_file_without_odd_text_is_what_pandas_would_have_written(tmp_path):
    rows = [
        {"start": 'x,"y" ', "seed": 1, "top_k": None, "temperature": -0.1, "stop_at_eot": True, "stop": ["a", "é"]},
        {"start": "it's", "seed": 2, "temperature": 1e20, "later": "-1"},
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    write_sweep_csv(tmp_path, columns, iter(rows))
    cells = [{name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in row.items()} for row in rows]
    expected = pd.DataFrame(cells, columns=columns, dtype=object).to_csv(index=False, lineterminator="\n")
    assert (tmp_path / "sweep.csv").read_bytes() == expected.encode()


FORMULAS = ["=1+1", "+1", "-5", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1"]
ESCAPES = ['\'"=1"', "'\"x", "'=1", "'", "C:\\new"]
UNSEEN = ["\n", "a\r\nb", "\x00", "\x85 \u2028", "\x1b]0;owned\x07", "a\u200bb", "\u202eabc", "\U000e0041", "\ud800"]
ODD_TEXTS = [*FORMULAS, *ESCAPES, *UNSEEN]


@pytest.mark.parametrize("column", ["start", "error", "directory", "path", "some_key"])
def test_text_in_a_csv_file_is_no_formula_and_no_second_line_and_comes_back(tmp_path, column):
    write_sweep_csv(tmp_path, [column, "n"], [{column: text, "n": -1.5} for text in ODD_TEXTS])
    written = (tmp_path / "sweep.csv").read_bytes()
    assert written.count(b"\n") == 1 + len(ODD_TEXTS), "wc -l counts rows"
    with (tmp_path / "sweep.csv").open(newline="", encoding="utf-8") as file:
        cells = [row[column] for row in csv.DictReader(file)]
        file.seek(0)
        assert list(csv_rows(file)) == [{column: text, "n": "-1.5"} for text in ODD_TEXTS]
    harmless = {"+1", "-5"} if column == "some_key" else set()  # numbers, where the column does not say that they are text
    assert [cell for cell in cells if cell.lstrip()[:1] in "=+-@＝" and cell not in harmless] == []
    assert all(cell.isprintable() for cell in cells)


@given(st.text(st.characters(codec=None)))
def test_any_text_comes_back_from_a_csv_file(text):
    lines = csv_bytes(["start", f"{text}="], [{"start": text}]).decode()
    assert lines.count("\n") == 2
    assert list(csv_rows(io.StringIO(lines, newline=""))) == [{"start": text or None, f"{text}=": None}]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00")))
def test_a_csv_file_of_version_0_1_reads_as_it_did(text):
    file = io.StringIO(newline="")
    texts = [text, text + ".", "=" + text, "'" + text + "'", '\'"it"', "'=1"]
    csv.writer(file, lineterminator="\n").writerows([["start", "seed"], *([each, 1] for each in texts)])
    file.seek(0)
    before = list(csv.DictReader(file))
    file.seek(0)
    assert list(csv_rows(file)) == [{name: cell or None for name, cell in row.items() if name} for row in before]


def test_the_summary_agrees_with_pandas():
    samples = [sample.as_json() for sample in make_samples(2, 20)]
    row = summarise({"temperature": 0.8, "top_k": None}, samples)
    frame = pd.DataFrame([{name: value for name, value in sample.items() if name != "completion"} for sample in samples])
    assert list(row)[:4] == ["temperature", "top_k", "num_prompts", "num_samples"]
    assert row["num_prompts"] == 2
    assert row["num_samples"] == 40
    counts = frame["finish_reason"].value_counts()
    assert [row[f"finish_{reason}"] for reason in counts.index] == counts.tolist()
    assert row["completion_tokens"] == frame["completion_tokens"].sum()
    assert row["prompt_tokens"] == 80
    for name in ("logprob", "sampler_logprob", "entropy"):
        assert row[f"{name}_mean"] == pytest.approx(frame[f"{name}_mean"].mean(), rel=1e-12)
        assert row[f"{name}_std"] == pytest.approx(frame[f"{name}_mean"].std(), rel=1e-12)


def test_a_summary_of_one_sample_or_of_none_with_tokens_claims_no_spread():
    one = make_sample(0, 1).as_json() | {"logprob_mean": -1.5, "entropy_mean": None}
    row = summarise({}, [one])
    assert (row["logprob_mean"], row["logprob_std"]) == (-1.5, None)
    assert (row["entropy_mean"], row["entropy_std"]) == (None, None)


def test_the_summary_does_not_depend_on_the_order_of_the_samples():
    samples = [sample.as_json() for sample in make_samples(2, 20)]
    assert summarise({}, samples) == summarise({}, samples[::-1])


def test_settings_come_back_from_the_summary_as_they_went_in(tmp_path):
    went_in = {
        "start": 'a,"b"\n\rc é',
        "top_k": None,
        "seed": 2**64 - 1,
        "temperature": 0.1 + 0.2,
        "stop_at_eot": True,
        "stop": ["\n\n"],
        "logit_bias": {"50256": -100.0},
    }
    with PointWriter(tmp_path, POINT) as writer:
        writer.add(make_samples(1, 2))
        writer.finish(went_in, {})
    frame = pd.read_csv(tmp_path / SUMMARY, float_precision="round_trip")  # as pandas 3 does unasked
    assert list(frame) == list(went_in)
    row = frame.iloc[0]
    with (tmp_path / SUMMARY).open(newline="", encoding="utf-8") as file:
        assert next(csv_rows(file))["start"] == went_in["start"]
    assert pd.isna(row["top_k"])
    assert row["seed"] == went_in["seed"]
    assert row["temperature"] == went_in["temperature"]
    assert bool(row["stop_at_eot"]) is True
    assert json.loads(row["stop"]) == went_in["stop"]
    assert json.loads(row["logit_bias"]) == went_in["logit_bias"]


def test_the_sweep_file_has_every_column_and_whole_numbers_stay_whole(tmp_path):
    rows = [
        {"sampling.top_k": 50, "seed": 1, "num_samples": 8, "status": "complete"},
        {"sampling.top_k": None, "seed": 2, "status": "failed", "error": "start=FILE:\ud800: no such file\n"},
    ]
    write_sweep_csv(tmp_path, list(rows[0]), rows[:1])
    write_sweep_csv(tmp_path, list(rows[0] | rows[1]), rows)
    assert names(tmp_path) == ["sweep.csv"]
    lines = (tmp_path / "sweep.csv").read_text().splitlines()
    assert lines[0] == "sampling.top_k,seed,num_samples,status,error"
    assert lines[1] == "50,1,8,complete,"
    assert pd.read_csv(tmp_path / "sweep.csv")["status"].tolist() == ["complete", "failed"]


def test_reading_a_directory_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(ResultsError, match="no such file or directory"):
        read_samples(tmp_path / "nowhere")
    assert read_manifest(tmp_path / "nowhere") is None


def test_an_override_is_the_same_value_in_the_table_and_in_the_point(tmp_path: Path) -> None:
    lines = {"a": "model.meta='a b.pkl'", "b": "model.meta=c.pkl"}
    table = SweepTable(tmp_path)
    for name, line in lines.items():
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra/overrides.yaml").write_text(json.dumps([line]))
        table.expect(tmp_path / name, [line], {"model": "resume"})
    table.write()
    rows = {row["directory"]: row["meta"] for row in read_rows(tmp_path / "sweep.csv", [])}
    assert rows == {name: overridden(tmp_path / name / ".hydra/overrides.yaml")["meta"] for name in lines}
    assert rows == {"a": "a b.pkl", "b": "c.pkl"}
