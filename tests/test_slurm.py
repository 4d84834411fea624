"""Jobs by submitit, real processes of this machine: killed, stopped, preempted, out of time, and left alone by their driver."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
from hydra.core.config_store import ConfigStore
from sweeps import Run, fork, samples_of, save_checkpoint
from table_sweeps import files, lines, settle
from tables import Held, Table, Tables, broken, pause

from gptsweep.config_schema import register
from gptsweep.errors import ConfigError, Interrupted
from gptsweep.multirun.elsewhere import SlurmFusedLauncher
from gptsweep.records import DeviceSettings, ModelSource, SampleLogprobs, TokenLogprobs
from gptsweep.run.executors import job_files
from gptsweep.run.executors.remote import Gone, RemoteExecutor
from gptsweep.run.executors.slurm import FOLDER, SlurmPool
from gptsweep.run.executors.slurm_job import _Server
from gptsweep.run.executors.worker import Report, WorkerError
from gptsweep.run.rows import Finished

SAMPLES = 18


def no_job_stays(root: Path) -> None:
    """No process has a file below ``root`` in its command."""

    def jobs() -> list[psutil.Process]:
        return [each for each in psutil.process_iter(["cmdline"]) if str(root) in " ".join(each.info["cmdline"] or ())]

    _, alive = psutil.wait_procs(jobs(), timeout=120)
    assert not [process.cmdline() for process in alive]


@pytest.fixture(autouse=True)
def _jobs_find_the_tests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    yield
    no_job_stays(tmp_path)


def jobs_of(root: Path, seconds: float = 0.1, workers: int = 2, held: Path | None = None) -> SlurmPool:
    """Jobs whose rows take a while, or wait for what a test does; see `Held`."""
    backends = Tables(Table(before_row=partial(pause, seconds) if held is None else Held(held, seconds)))
    return SlurmPool(backends, root, workers=workers, cluster="local", parameters={"timeout_min": 5})


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a file holds the jobs of `pool`."""
    return tmp_path_factory.mktemp("held")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, held: Path) -> Iterator[SlurmPool]:
    """Two jobs that several tests use."""
    with pytest.MonkeyPatch.context() as context:
        context.setenv("PYTHONPATH", str(Path(__file__).parent))
        made = jobs_of(root := tmp_path_factory.mktemp("jobs"), held=held)
        yield made
        made.close()
    no_job_stays(root)
    assert not list((root / FOLDER / "workers").iterdir())


def sweep_while(root: Path, pool: SlurmPool, executor: RemoteExecutor, held: Path, do: Callable[[], None]) -> None:
    """Run the sweep of `jobs`, and do something when some of its samples are there, and long before all of them are."""
    holds = held / root.parent.name
    holds.touch()

    def wait() -> None:
        try:
            while lines(root) < 2 or len(pool._alive()) < 2:
                time.sleep(0.02)
            do()
        finally:
            holds.unlink()

    thread = threading.Thread(target=wait)
    thread.start()
    assert all(outcome.error is None for outcome in settle(root, executor))
    thread.join()


def tasks(pool: SlurmPool) -> list[psutil.Process]:
    """The processes that compute."""
    return [child for job in pool._jobs for child in psutil.Process(job.job._process.pid).children()]  # type: ignore[attr-defined]


def test_jobs_that_are_killed_and_preempted_lose_nothing_and_stay_for_the_next_batch(
    tmp_path: Path, pool: SlurmPool, held: Path, whole: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    def disturb() -> None:
        first, second = tasks(pool)
        first.send_signal(signal.SIGUSR2)  # as SLURM does before it takes the node away
        second.kill()

    sweep_while(tmp_path / "there", pool, RemoteExecutor(pool, shards=9), held, disturb)
    assert files(tmp_path / "there") == whole
    assert "preempted" in caplog.text
    there = tasks(pool)
    settle(tmp_path / "again", RemoteExecutor(pool))
    assert files(tmp_path / "again") == whole
    assert tasks(pool) == there, "the jobs have the model open still"


def test_a_job_that_slurm_ends_writes_what_it_has_and_does_not_wait_to_be_killed(
    tmp_path: Path, pool: SlurmPool, held: Path, whole: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    sweep_while(tmp_path / "there", pool, RemoteExecutor(pool, shards=9), held, lambda: tasks(pool)[0].terminate())
    assert files(tmp_path / "there") == whole
    assert "SLURM ends its job" in caplog.text


def test_a_job_whose_sweep_has_ended_ends_without_an_error_in_its_log(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "1"
    directory.mkdir(parents=True)
    (directory / job_files.MESSAGES).touch()
    server = _Server(Tables(), directory, driver_timeout_s=300)
    while not list(job_files.Lines(directory / job_files.MESSAGES).read()):
        time.sleep(0.01)
    shutil.rmtree(tmp_path / "run")
    server.wait()
    assert server.error is None


def test_a_job_that_stands_still_is_killed_and_replaced(
    tmp_path: Path, pool: SlurmPool, held: Path, whole: dict[str, bytes]
) -> None:
    stopped: list[psutil.Process] = []

    def stop() -> None:
        stopped.append(tasks(pool)[0])
        stopped[0].suspend()

    sweep_while(tmp_path / "there", pool, RemoteExecutor(pool, shards=9, heartbeat_s=3), held, stop)
    assert files(tmp_path / "there") == whole
    psutil.wait_procs(stopped, timeout=120)
    assert not stopped[0].is_running()


def test_ctrl_c_keeps_what_is_there_and_the_sweep_goes_on(
    tmp_path: Path, pool: SlurmPool, held: Path, whole: dict[str, bytes]
) -> None:
    there: list[psutil.Process] = []

    def interrupt() -> None:
        there.extend(tasks(pool))
        os.kill(os.getpid(), signal.SIGINT)

    executor = RemoteExecutor(pool)
    with pytest.raises(Interrupted):
        sweep_while(tmp_path / "there", pool, executor, held, interrupt)
    assert 2 <= (kept := lines(tmp_path / "there")) < SAMPLES
    made = executor._tokens
    settle(tmp_path / "there", executor)
    assert executor._tokens - made == 4 * (SAMPLES - kept)
    assert files(tmp_path / "there") == whole
    assert tasks(pool) == there, "the jobs stopped between two rows"


def test_jobs_whose_time_is_over_are_requeued_and_go_on(
    tmp_path: Path, whole: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    pool = jobs_of(tmp_path / "there", seconds=0.15, workers=1)
    pool._cluster.executor._executor.parameters |= {"timeout_min": 0.1, "signal_delay_s": 3}  # type: ignore[attr-defined]
    try:
        assert all(outcome.error is None for outcome in settle(tmp_path / "there", RemoteExecutor(pool)))
        assert len(list(pool._run.iterdir())) == 2, "the driver's heartbeat, and one job"
    finally:
        pool.close()
    assert files(tmp_path / "there") == whole
    assert "its time is over" in caplog.text


def test_a_row_that_always_fails_takes_its_point_with_it_and_no_other(tmp_path: Path, whole: dict[str, bytes]) -> None:
    pool = SlurmPool(Tables(Table(before_row=broken)), tmp_path / "there", workers=1, cluster="local")
    try:
        outcomes = settle(tmp_path / "there", RemoteExecutor(pool))
    finally:
        pool.close()
    assert [type(outcome.error) for outcome in outcomes] == [type(None), WorkerError, type(None)]
    assert "OwnError: row two" in str(outcomes[1].error)
    assert "in broken" in str(outcomes[1].error.__cause__)
    assert len(files(tmp_path / "there")) == 2
    assert list((tmp_path / "there" / FOLDER).glob("*/*_log.err")), "logs are where submitit's users look"


def test_a_driver_that_is_killed_goes_on_and_keeps_what_its_jobs_finished_without_it(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    root, held = tmp_path / "there", tmp_path / "held"
    held.mkdir()
    (held / "jobs").touch()

    def drive() -> int:
        settle(root, RemoteExecutor(jobs_of(root, held=held), shards=2))  # a job has more rows than it may finish
        return 0

    def finished() -> int:
        return sum(
            1
            for path in root.glob(f"{FOLDER}/workers/*/*/{job_files.MESSAGES}")
            for _ in job_files.finished_rows(job_files.Lines(path))
        )

    driver = fork(drive)
    while lines(root) < 2:
        time.sleep(0.05)
    os.kill(driver, signal.SIGKILL)
    os.waitpid(driver, 0)
    (held / "jobs").unlink()
    while (made := finished()) < lines(root) + 2:  # its jobs go on
        time.sleep(0.05)
    pool = jobs_of(root, seconds=0.0, workers=1)
    try:
        executor = RemoteExecutor(pool)
        assert all(outcome.error is None for outcome in settle(root, executor))
        assert executor._tokens <= 4 * (SAMPLES - made), "what jobs had finished was not made again"
    finally:
        pool.close()
    assert files(root) == whole


def test_a_sweep_of_the_command_runs_in_jobs_by_one_override_and_a_tuner_keeps_them(run: Run, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "out", seed=1)
    sweep = ("-m", "model=resume", "start=a", "sampling.max_new_tokens=4", "sampling.num_samples=3", "quiet=true", "seed=1,2")
    jobs = ("hydra/launcher=fused_slurm", "hydra.launcher.cluster=local", "hydra.launcher.workers=1")
    assert run(*sweep, "name=here").status == 0
    tuner = ("hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweeper.n_jobs=1", "hydra.sweeper.n_trials=2")
    assert run(*sweep, *jobs, *tuner, "objective=logprob_mean", "name=there").status == 0
    here, there = (samples_of(tmp_path / "outputs/sweeps" / name) for name in ("here", "there"))
    assert sorted(there.values()) == sorted(here.values())
    assert len(here) == 2
    (logs,) = (tmp_path / "outputs/sweeps/there" / FOLDER).glob("[0-9]*")
    assert list(logs.glob("*_log.err")), "one job for two batches, whose log is where submitit's users look"
    assert (tmp_path / "outputs/sweeps/there/report.html").exists()


def query_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Query SLURM's queue all the time."""
    for name in ("_QUEUE_SECONDS", "_SOON_SECONDS"):
        monkeypatch.setattr(f"gptsweep.run.executors.job_control.{name}", 0.0)


def answer(stubs: Path, queue: str) -> None:
    """SLURM's queue is this from now on."""
    (stubs / "new").write_text(queue)
    (stubs / "new").replace(stubs / "queue")


def poll_until_any(pool: SlurmPool) -> list[tuple[str, Report | Gone]]:
    """Return the next messages of a pool."""
    while not (messages := pool.poll(0.01)):
        pass
    return messages


# -- the commands of a cluster ------------------------------------------------------------------------------------------------


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SLURM's commands, which record their arguments here; ``queue`` is what squeue prints; without it squeue fails."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, does in {
        "srun": "",
        "sbatch": "[ -e $NOTES/refusal ] && cat $NOTES/refusal >&2 && exit 1; env > $NOTES/env; cat $1 >> $NOTES/sbatch; "
        "echo Submitted batch job 12",
        "sacct": "echo accounting storage is disabled >&2",
        "squeue": "echo $* >> $NOTES/squeue; cat $NOTES/queue",
        "scancel": "echo $* >> $NOTES/scancel; [ ! -e $NOTES/refusal ] || { cat $NOTES/refusal >&2; exit 1; }",
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{does}\n")
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("NOTES", str(tmp_path))
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    return tmp_path


def test_slurm_gets_an_array_with_the_settings_and_loses_it_at_the_end(tmp_path: Path, stubs: Path) -> None:
    launcher = SlurmFusedLauncher(
        workers=3, timeout_min=30, cpus_per_task=2, gpus_per_node=1, mem_gb=16, partition="long",
        setup=["module load cuda"], additional_parameters={"account": "me"},
    )  # fmt: skip
    pool = SlurmPool(Tables(), tmp_path, workers=3, parameters=launcher._parameters)
    pool.poll(0)
    pool.close()
    script = (tmp_path / "sbatch").read_text()
    for line in (
        "--array=0-2%3", "--time=30", "--partition=long", "--cpus-per-task=2", "--gpus-per-node=1", "--mem=16GB",
        "--account=me", "--requeue", "--signal=USR2@90", f"--output={tmp_path}/{FOLDER}/%A_%a/%A_%a_0_log.out",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    assert "\nmodule load cuda\n" in script
    assert (stubs / "scancel").read_text() == "12_0 12_1 12_2\n", "one call, as each waits if SLURM is down"


def test_jobs_of_a_few_minutes_are_not_signalled_as_they_start() -> None:
    delays = [SlurmFusedLauncher(timeout_min=minutes)._parameters["slurm_signal_delay_s"] for minutes in (1, 3, 60)]
    assert delays == [20, 60, 90]


def test_a_command_that_is_a_job_itself_submits_jobs_as_from_a_login_node(
    tmp_path: Path, stubs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_CPU": "1000", "SBATCH_CPU_BIND_LIST": "0x1"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "me"}
    for name, value in (own | kept).items():
        monkeypatch.setenv(name, value)
    pool = SlurmPool(Tables(), tmp_path, workers=2)
    pool.poll(0)
    pool.close()
    seen = dict(line.partition("=")[::2] for line in (stubs / "env").read_text().splitlines())
    assert {name: seen[name] for name in seen.keys() & (own | kept)} == kept
    assert own.items() <= os.environ.items()


def test_what_sbatch_and_scancel_say_is_one_line(
    tmp_path: Path, stubs: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (stubs / "refusal").write_text("sbatch: error: invalid partition: x\nsbatch: error: Batch job submission failed\n")
    pool = SlurmPool(Tables(), tmp_path, workers=2)
    with pytest.raises(ConfigError, match=r": invalid partition: x; Batch job submission failed$"):
        pool.poll(0)
    (stubs / "refusal").unlink()
    pool.poll(0)
    errors = [f"scancel: error: Kill job error on job id 12_{job}: Unable to contact slurm controller\n" for job in (0, 1)]
    (stubs / "refusal").write_text("".join(errors))
    pool.close()
    assert "2 jobs cannot be cancelled now (Unable to contact slurm controller), and will end without it\n" in caplog.text
    assert capfd.readouterr() == ("", "")


def test_a_driver_whose_workers_open_the_model_imports_no_torch(tmp_path: Path) -> None:
    code = """if True:
        import pickle, sys
        from omegaconf import OmegaConf
        from gptsweep.multirun.elsewhere import SlurmFusedLauncher
        import gptsweep.run.session, gptsweep.run.executors.ray
        launcher = SlurmFusedLauncher(cluster="local")
        launcher.config = OmegaConf.create({"hydra": {"sweep": {"dir": "."}, "job": {"name": "n"}}})
        pool = launcher.executor().pool
        assert "torch" not in sys.modules
        print(type(pickle.loads(pool._backends)).__name__)
        pool.close()
    """
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("TorchBackends\n", "")


def test_without_accounting_a_job_that_slurm_has_no_more_is_noticed_and_nothing_is_printed(
    tmp_path: Path, stubs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    query_at_once(monkeypatch)
    pool = SlurmPool(Tables(), tmp_path, workers=3)
    while not (stubs / "squeue").exists() or len((stubs / "squeue").read_text().splitlines()) < 3:
        assert pool.poll(0.01) == [], "as long as SLURM does not answer no job has ended"
    answer(stubs, "12_2|R|None\n7|PD|Priority\n12_0|CG|None\n")
    ((name, gone),) = poll_until_any(pool)
    pool.close()
    assert name == "job 12_1"
    assert isinstance(gone, Gone)
    assert (stubs / "squeue").read_text().startswith(f"--user={os.getuid()} --array --noheader")
    assert (stubs / "scancel").read_text() == "12_0 12_2\n"
    assert capfd.readouterr() == ("", "")


def test_rows_of_a_job_that_slurm_puts_back_into_its_queue_do_not_wait_for_it_and_the_display_says_why_it_waits(
    tmp_path: Path, stubs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query_at_once(monkeypatch)
    answer(stubs, "12_0|PD|ReqNodeNotAvail, UnavailableNodes:n1\n12_1|PD|Priority\n")
    pool = SlurmPool(Tables(), tmp_path, workers=2)
    executor = RemoteExecutor(pool)
    while not pool.pending():
        executor._poll()
    waits = "2 pending: Priority + ReqNodeNotAvail,UnavailableNodes:n1"
    assert pool.waiting_for == f"SLURM to start a job of this sweep ({waits}; see squeue --me)"
    assert executor._display() == f"0 workers ({waits})"
    answer(stubs, "12_0|R|None\n12_1|PD|Priority\n")
    path = pool._jobs[0].messages._path

    def begin(process: str) -> None:
        job_files.add_line(path, {"process": process, "started": ["n1", 3]})
        while not executor._workers:
            executor._poll()

    begin("a")
    while pool.pending() != "1 pending: Priority":
        executor._poll()
    answer(stubs, "12_0|PD|BeginTime\n12_1|PD|Priority\n")
    gone: list[tuple[str, Report | Gone]] = []
    while not gone:
        gone += [(name, message) for name, message in executor._poll() if isinstance(message, Gone)]
    ((name, message),) = gone
    assert name.endswith("(n1:3, job 12_0)")
    assert message == Gone("SLURM has put its job back into the queue: BeginTime", counts=False)
    assert executor._display() == "0 workers (1 restarted; 2 pending: BeginTime + Priority)"
    answer(stubs, "12_0|R|None\n12_1|R|None\n")
    begin("b")
    assert len(pool._jobs) == 2, "it comes back by itself"
    pool.close()


def test_without_slurm_or_with_jobs_that_cannot_start_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {"timeout_min": 5, "local_setup": ["exit 3"]}
    pool = SlurmPool(Tables(), tmp_path, workers=3, cluster="local", parameters=parameters)
    try:
        with pytest.raises(ConfigError, match="3 jobs ended before they began"):
            RemoteExecutor(pool).open(ModelSource(), DeviceSettings())
    finally:
        pool.close()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.cluster.*srun"):
        SlurmPool(Tables(), tmp_path, workers=1)


@pytest.mark.parametrize(("launcher", "module", "extra"), [("fused_ray", "ray", "ray"), ("fused_slurm", "submitit", "slurm")])
def test_a_launcher_whose_extra_is_missing_names_it_in_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, launcher: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # no import finds it
    ended = run("-m", f"hydra/launcher={launcher}", "seed=1,2")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == f"gptsweep: error: hydra/launcher={launcher}: needs {module}: pip install 'gptsweep[{extra}]'\n"


@pytest.mark.parametrize(
    ("setting", "says"),
    [("cluster=pbs", "slurm or local"), ("workers=0", "at least 1"), ("timeout_min=0", "at least 1"), ("mem_gb=-1", "above 0")],
)
def test_a_wrong_setting_of_the_jobs_is_refused_in_one_line(run: Run, setting: str, says: str) -> None:
    ended = run("-m", "hydra/launcher=fused_slurm", f"hydra.launcher.{setting}", "seed=1,2")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert says in ended.err


def test_our_launchers_names_leave_rays_and_submitits_own_plugins_theirs() -> None:
    """Theirs: ``ray``, ``ray_aws`` (hydra-ray-launcher), ``submitit_local``, ``submitit_slurm`` (hydra-submitit-launcher)."""
    register()
    importlib.import_module("hydra_plugins.gptsweep_launcher")
    launchers = ConfigStore.instance().repo["hydra"]["launcher"]
    ours = {name for name, node in launchers.items() if node.provider == "gptsweep"}
    assert ours == {"fused.yaml", "fused_ray.yaml", "fused_slurm.yaml"}


# -- the files ----------------------------------------------------------------------------------------------------------------


def test_lines_are_read_as_they_come_without_those_that_are_torn_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "messages"
    lines = job_files.Lines(path)
    assert list(lines.read()) == []
    path.touch()
    job_files.add_line(path, {"a": 1})
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(whole[1:-5])
    assert list(lines.read()) == [{"a": 1, "check": json.loads(whole)["check"]}]
    job_files.add_line(path, {"a": 2})  # after the torn one
    with path.open("ab") as file:
        file.write(whole.replace(b"1,", b"3,") + b"[1]\n\xff\n" + whole[:9])
    assert [line["a"] for line in lines.read()] == [2]
    with path.open("ab") as file:
        file.write(whole[9:])
    assert [line["a"] for line in lines.read()] == [1]


def test_finished_rows_come_back_from_their_files_and_strangers_rows_do_not(tmp_path: Path) -> None:
    token = TokenLogprobs(-1.5, -0.25, 2, 3.0, 5, (7, 9), (-0.5, -1.5))
    logprobs = SampleLogprobs(alternatives=2, tokens=(token,), ends=(1,), texts={7: "a", 9: "\ufffd"})
    row = Finished("a", (7,), "length", -1.5, -0.25, None, logprobs)
    for finished in (row, replace(row, logprobs=None, text="é\n\u2028", token_ids=(), finish_reason="eot")):
        path = tmp_path / "messages"
        path.write_bytes(b"")
        good = job_files.fields_of(finished)
        bad = [
            good | {name: value}
            for name, value in (("text", 1), ("token_ids", [-1]), ("finish_reason", "x"), ("entropy_mean", "y"))
        ]
        job_files.add_line(path, {"maker": "m", "rows": [(1, "r", good), *((2, "s", fields) for fields in bad)]})
        job_files.add_line(path, {"maker": "m", "rows": 5})
        assert list(job_files.finished_rows(job_files.Lines(path))) == [("r", "m", finished)]
