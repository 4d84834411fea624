"""What a user of a shared machine would lose: cores that idle threads keep from others, and more threads than cores."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gptsweep import memory, threads
from gptsweep.free_cores import CoreTimes, FreeCores, core_times
from gptsweep.kernels import runtime as kernels
from gptsweep.models import loading
from gptsweep.records import DeviceSettings

CHOSEN = """
import gc, json, os, sys
collects = gc.get_threshold()
import gptsweep
assert "torch" not in sys.modules
assert gc.get_threshold() == collects
print(json.dumps({name: os.environ.get(name) for name in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")}))
"""


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*threads.CHOICES, *threads.COUNTS):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def torch_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")


def test_a_program_that_imports_the_package_first_gets_the_best_wait_and_keeps_its_garbage_collection() -> None:
    place = {"PYTHONPATH": str(Path(threads.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", CHOSEN], env=os.environ | place, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == threads.WAIT | {"OMP_WAIT_POLICY": None}


@pytest.mark.usefixtures("torch_not_imported")
@pytest.mark.parametrize(
    "chosen", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "5"}, {"KMP_BLOCKTIME": "0"}, {"KMP_LIBRARY": "turnaround"}]
)
def test_what_the_user_chose_stands(chosen: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    threads.choose_wait()
    assert {name: os.environ[name] for name in threads.CHOICES if name in os.environ} == chosen


def test_where_torch_came_first_nothing_is_pretended() -> None:
    threads.choose_wait()
    assert not any(name in os.environ for name in threads.CHOICES)


@pytest.mark.usefixtures("threads")
def test_kernels_wait_and_count_as_torch_does_in_its_own_threads() -> None:
    openmp = kernels._openmp()
    if openmp is None:
        pytest.skip("torch has another OpenMP than GNU's here, and kernels run on one thread")
    for count in (1, 3):
        torch.set_num_threads(count)
        assert openmp.omp_get_max_threads() == count


# -- how many ----------------------------------------------------------------------------------------------------------------

V2 = ("0::{}\n", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n")
V1 = ("4:cpu,cpuacct:{}\n3:memory:/else\n0::/\n", "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n")
INSIDE = ("4:cpu:{}\n", "32 31 0:29 /docker/7 /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n")


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def files(root: Path, kind: tuple[str, str], group: str, limits: dict[str, str]) -> Path:
    """What Linux shows of control groups, below ``root``."""
    groups, mounts = kind
    shown = {"proc/self/cgroup": groups.format(group), "proc/self/mountinfo": f"23 1 0:21 / /proc rw - proc proc rw\n{mounts}"}
    for path, text in {**shown, **limits}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def v1(folder: str, quota: int) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": "100000\n"}


MAX, CPU = "sys/fs/cgroup/{}cpu.max", "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("kind", "group", "limits", "cores"),
    [
        (V2, "/", {}, 8),
        (V2, "/", {MAX.format(""): "200000 100000\n"}, 2),
        (V2, "/pod/one", {MAX.format("pod/one/"): "max 100000\n", MAX.format("pod/"): "350000 100000\n"}, 4),
        (V2, "/pod/one", {MAX.format("pod/one/"): "50000 100000\n", MAX.format("pod/"): "max 100000\n"}, 1),
        (V2, "/not/shown/here", {MAX.format(""): "300000 100000\n"}, 3),
        (V2, "/", {MAX.format(""): "9900000 100000\n"}, 8),
        (V2, "/", {MAX.format(""): "what is this\n"}, 8),
        (V1, "/user", v1(f"{CPU}/user", 150000), 2),
        (V1, "/user", v1(f"{CPU}/user", -1) | v1(CPU, 300000), 3),
        (V1, "/user", v1(f"{CPU}/user", -1), 8),
        (INSIDE, "/docker/7", v1("sys/fs/cgroup/cpu", 200000), 2),
        (INSIDE, "/docker/7/in", v1("sys/fs/cgroup/cpu/in", 100000) | v1("sys/fs/cgroup/cpu", 400000), 1),
        (("broken", "broken"), "", {}, 8),
    ],
)
def test_there_are_as_many_threads_as_the_container_has_cores(
    tmp_path: Path, kind: tuple[str, str], group: str, limits: dict[str, str], cores: int
) -> None:
    assert threads.own_count(files(tmp_path, kind, group, limits)) == cores


def test_a_process_bound_to_one_core_computes_with_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert threads.own_count(tmp_path) == 1


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The thread counts that torch is given, of which it has four."""
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    return given


@pytest.mark.parametrize(("own", "chosen", "given"), [(2, None, [2]), (8, None, []), (None, None, []), (2, 6, [6])])
def test_torch_is_given_fewer_threads_never_more_unless_asked(
    counts: list[int], monkeypatch: pytest.MonkeyPatch, own: int | None, chosen: int | None, given: list[int]
) -> None:
    monkeypatch.setattr(loading, "own_count", lambda: own)
    free_cores = loading.set_threads(DeviceSettings(threads=chosen))
    assert counts == given
    assert (free_cores is not None) == (own is not None and chosen is None)


def test_a_compiled_model_keeps_the_threads_it_was_compiled_for() -> None:
    assert loading.set_threads(DeviceSettings(compile=True)) is None


class Machine:
    """What is read of a machine whose ``cores`` other processes take ``taken`` of, while this one computes."""

    def __init__(self, cores: int) -> None:
        self.cores, self.taken, self.last = cores, 0.0, CoreTimes(time.perf_counter(), cores, 50.0, 20.0)

    def read(self) -> CoreTimes:
        now = time.perf_counter()
        seconds = now - self.last.now
        own = min(2.0, self.cores - self.taken) * seconds
        self.last = CoreTimes(now, self.cores, self.last.busy + own + self.taken * seconds, self.last.own + own)
        return self.last


@pytest.mark.parametrize(
    ("cores", "most", "taken", "count"),
    [(2, 2, 0, 2), (2, 2, 0.4, 2), (2, 2, 0.7, 1), (2, 2, 2, 1), (8, 8, 3, 5), (8, 8, 8, 2), (64, 2, 32, 2), (64, 2, 63, 1)],
)
def test_a_step_computes_with_the_cores_that_others_leave(
    cores: int, most: int, taken: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FreeCores, "WINDOW", 0.0)
    machine = Machine(cores)
    free_cores = FreeCores(most, machine.read)
    machine.taken = taken
    assert free_cores.count() == count
    machine.taken = 0
    assert free_cores.count() == most


def test_cores_are_measured_over_a_while_not_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FreeCores, "WINDOW", math.inf)
    machine = Machine(2)
    free_cores = FreeCores(2, machine.read)
    machine.taken = 2
    assert free_cores.count() == 2


def test_what_others_did_between_two_runs_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FreeCores, "WINDOW", 0.0)
    for begun, count in ((False, 1), (True, 2)):
        machine = Machine(2)
        free_cores = FreeCores(2, machine.read)
        machine.last = machine.last._replace(busy=machine.last.busy + 100)
        if begun:
            free_cores.begin()
        assert free_cores.count() == count


def test_work_of_others_counts_and_ones_own_does_not() -> None:
    begin = core_times()
    while time.process_time() < begin.own + 0.1:
        pass
    end = core_times()
    assert end.busy - begin.busy >= end.own - begin.own - 0.05
    assert end.cores == len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else end.cores >= 1


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_count_that_the_user_chose_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "64")
    assert threads.own_count() is None


# -- how much memory ---------------------------------------------------------------------------------------------------------

V1_MEMORY = ("3:memory:{}\n0::/\n", "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n")


def v2_memory(group: str, limit: str, used: int, cached: int) -> dict[str, str]:
    folder = f"sys/fs/cgroup/{group}"
    stat = f"anon 5\ninactive_file {cached}\n"
    return {f"{folder}memory.max": f"{limit}\n", f"{folder}memory.current": f"{used}\n", f"{folder}memory.stat": stat}


@pytest.mark.parametrize(
    ("kind", "group", "limits", "left"),
    [
        (V2, "/", {}, 8000),
        (V2, "/", v2_memory("", "1000", 700, 200), 500),
        (V2, "/pod/one", v2_memory("pod/one/", "max", 10, 0) | v2_memory("pod/", "3000", 1000, 0), 2000),
        (V2, "/", v2_memory("", "1000", 1200, 0), 0),
        (V2, "/", v2_memory("", "90000", 700, 0), 8000),
        (V2, "/", v2_memory("", "what is this", 700, 0), 8000),
        (V1_MEMORY, "/job", {
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "4000\n",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "3000\n",
            "sys/fs/cgroup/memory/job/memory.stat": "total_inactive_file 500\n",
        }, 1500),
        (("broken", "broken"), "", {}, 8000),
    ],
)  # fmt: skip
def test_memory_is_what_the_machine_has_or_what_the_container_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: tuple[str, str], group: str, limits: dict[str, str], left: int
) -> None:
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=8000))
    assert memory.host_memory(files(tmp_path, kind, group, limits)) == left
