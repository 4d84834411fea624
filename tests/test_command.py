"""The command ``python -m gptsweep``: what it prints, how it ends, what it leaves behind."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

import gptsweep
from gptsweep import __main__ as command
from gptsweep import multirun
from gptsweep.config_schema import GROUPS, choices, keys
from gptsweep.errors import ModelError
from gptsweep.run import session

ROOT = Path(__file__).parents[1]


@dataclass
class Ended:
    status: int
    out: str
    err: str


Run = Callable[..., Ended]
Jobs = list[tuple[DictConfig, Path]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["gptsweep", *arguments])
        try:
            status = command.main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        return Ended(status, *capsys.readouterr())

    return run


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """Every point that came through to the session, which here only notes it."""
    seen: Jobs = []

    def run_job(cfg: DictConfig, directory: Path) -> float:
        seen.append((cfg, directory))
        return float(cfg.seed)

    stand_in = types.ModuleType("gptsweep.multirun.point")
    stand_in.run_point = run_job  # type: ignore[attr-defined]
    stand_in.require_objective = lambda name: None  # type: ignore[attr-defined]
    stand_in.prepared = MagicMock()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gptsweep.multirun.point", stand_in)
    # `from . import point` takes the package's attribute, which is there once another test has imported the real one.
    monkeypatch.setattr(multirun, "point", stand_in, raising=False)
    monkeypatch.setattr(session, "run_jobs", lambda *_, **__: iter(()))
    return seen


def fails(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run_job(cfg: DictConfig, directory: Path) -> float:
        raise error

    monkeypatch.setattr(sys.modules["gptsweep.multirun.point"], "run_point", run_job)


def test_help_names_every_group_choice_and_key(run: Run) -> None:
    ended = run("--help")
    assert ended.status == 0
    for group in GROUPS:
        assert f"\n{group}=\n" in ended.out
        assert all(f"\n  {choice} " in ended.out for choice in choices(group))
    for key in keys().keys() - {"model.name"}:
        assert f"\n  {key}=" in ended.out
    assert " # " not in ended.out  # the comment of conf/ without its mark


def test_help_fits_a_terminal_of_110_columns(run: Run) -> None:
    assert max(map(len, run("--help").out.splitlines())) <= 110


def test_cfg_shows_the_config_the_same_line_would_run_with(run: Run) -> None:
    ended = run("--cfg", "job", "model=gpt2", "sampling.top_k=null", "name=night")
    assert ended.status == 0
    shown = OmegaConf.create(ended.out)
    assert (shown.model, shown.sampling.top_k, shown.name) == ({"name": "gpt2"}, None, "night")


def test_info_says_where_the_config_comes_from(run: Run) -> None:
    assert "conf" in run("--info", "searchpath").out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sampling.temprature=1"], "sampling.temprature=1: no such key; did you mean sampling.temperature?"),
        (["sampling.top_k=0"], "sampling.top_k=0: must be at least 1, or null to switch it off"),
        (["--num_samples=5"], "--num_samples=5: write sampling.num_samples=5, without dashes"),
        (["--init_from=gpt2"], "--init_from=gpt2: write model=gpt2, without dashes"),
        (["--sampling.top_k=5"], "--sampling.top_k=5: write sampling.top_k=5, without dashes"),
        (["--cfg", "job", "sampling.top_k=abc"], "sampling.top_k=abc: must be a whole number, or null"),
        (["-m", "sampling.top_k=50,0"], "sampling.top_k=0: must be at least 1, or null to switch it off"),
        (["-m", "sampling.topk=50,100"], "sampling.topk=50: no such key; did you mean sampling.top_k?"),
        (["-m", "seed=1,2", "model=gpt2,hf"], "model.path=null: model=hf needs a local directory or a hub id"),
        (["-m", "seed=1,soon"], "seed=soon: must be a whole number"),
        (["-m", "seed=1,2,1"], "seed=1,2,1: must contain at least one value, and each only once"),
        (
            ["-m", "hydra/launcher=fused_ray", "hydra.launcher.resources=4"],
            "hydra.launcher.resources=4: must be a mapping, such as {CPU:4}, or null",
        ),
        (
            ["-m", "hydra/launcher=fused_ray", "hydra.launcher.resources={CPU:-1}"],
            "hydra.launcher.resources.CPU=-1: must be 0 or more",
        ),
        (["-m", "model=glob(x*)"], "model=glob(x*): must contain at least one value, and each only once"),
        (
            ["-m", "hydra/sweeper=optuna", "seed=range(1,5)"],
            "objective=null: OptunaSweeper optimises what a run returns; name a column of summary.csv, such as "
            "objective=logprob_mean",
        ),
        (
            ["hydra/sweeper=ax"],
            "hydra/sweeper=ax: must be one of basic, optuna, points, random; pip install hydra-ax-sweeper adds it",
        ),
        (
            ["sampling.top_k=9223372036854775808"],
            "sampling.top_k=9223372036854775808: must be below 2**63; null switches it off",
        ),
        ([f"seed={'9' * 5000}"], f"seed={'9' * 200}…: has a number with more digits than Python accepts"),
        (["-m", f"seed=1,{'9' * 5000}"], f"seed=1,{'9' * 198}…: has a number with more digits than Python accepts"),
        (
            ["start=???"],
            "start=???: must be given; Hydra reads ??? as a missing value: put such a prompt into a file",
        ),
        (
            ["reference=FILE:~nobody-there/text"],
            "reference=FILE:~nobody-there/text: cannot be read: Could not determine home directory.",
        ),
        ([f"reference=FILE:{'a' * 5000}"], f"reference=FILE:{'a' * 195}…: cannot be read: File name too long"),
        (["hydra/sweeper=points", "hydra.sweeper.file=p.csv"], "hydra/sweeper=points: needs -m, because it makes a sweep"),
        (
            ["-m", "hydra/sweeper=random", "sampling.temperature=interval(-1,1)"],
            "sampling.temperature=-1.0: must be 0 (greedy) or a positive number, at least 1e-6",
        ),
        (
            ["-m", "sampling.top_k=choice(null,5)"],
            "sampling.top_k=choice(null,5): Hydra's functions reject null; separate the values with commas instead: null,5",
        ),
        (
            ["-m", "name=a,b"],
            "name=a,b: must have one value in a sweep, because the names of points' directories do not contain it",
        ),
    ],
)
def test_a_mistake_in_the_config_is_one_line_before_anything_is_made(
    run: Run, jobs: Jobs, tmp_path: Path, arguments: list[str], line: str
) -> None:
    ended = run(*arguments)
    assert ended == Ended(2, "", f"gptsweep: error: {line}\n")
    assert not jobs
    assert not list(tmp_path.iterdir())


def test_a_working_directory_that_is_gone_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    try:
        ended = run("seed=1")
    finally:
        os.chdir(tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert "the working directory was removed; cd to another" in ended.err
    assert len(ended.err.splitlines()) == 1


def test_a_run_says_where_its_results_are(run: Run, jobs: Jobs, tmp_path: Path) -> None:
    ended = run("name=night", "seed=5")
    assert (ended.status, ended.out) == (0, "Results: outputs/runs/night\n")
    [(cfg, directory)] = jobs
    assert (cfg.seed, directory) == (5, tmp_path / "outputs/runs/night")
    assert (directory / ".hydra" / "config.yaml").exists()
    assert (directory / "gptsweep.log").exists()


def test_a_sweep_says_where_its_results_are(run: Run, jobs: Jobs, tmp_path: Path) -> None:
    ended = run("-m", "name=night", "sampling.top_k=50,null", "seed=1")
    assert (ended.status, ended.out) == (0, "Results: outputs/sweeps/night\n")
    assert [directory.relative_to(tmp_path / "outputs/sweeps/night") for _, directory in jobs] == [
        Path("top_k=50,seed=1"),
        Path("top_k=null,seed=1"),
    ]


def test_settings_may_stand_on_both_sides_of_a_flag(run: Run, jobs: Jobs) -> None:
    assert run("name=night", "-m", "seed=1,2").status == 0
    assert [directory.name for _, directory in jobs] == ["seed=1", "seed=2"]


def test_the_version_is_reported(run: Run) -> None:
    assert run("--version") == Ended(0, f"gptsweep {gptsweep.__version__}\n", "")


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=1,2"], ["-m", "start=FILE:nowhere.txt,LINES:nowhere"]])
def test_prompts_that_are_nowhere_end_the_command_before_a_model_is_loaded(run: Run, jobs: Jobs, sweep: list[str]) -> None:
    ended = run("start=FILE:nowhere.txt", *sweep)
    assert (ended.status, jobs) == (2, [])
    assert ended.err.startswith("gptsweep: error: start=FILE:nowhere.txt: no such file (looked in ")


def test_an_unknown_flag_is_one_line(run: Run, jobs: Jobs) -> None:
    ended = run("--best")
    assert (ended.status, jobs) == (2, [])
    assert ended.err == "gptsweep: error: unrecognized arguments: --best; see --help\n"


@pytest.mark.parametrize("which", ["hydra/job_logging", "hydra/hydra_logging"])
@pytest.mark.parametrize("choice", ["disabled", "none"])
def test_logging_can_be_switched_off(run: Run, jobs: Jobs, which: str, choice: str) -> None:
    ended = run("name=night", f"{which}={choice}")
    assert (ended.status, ended.out) == (0, "Results: outputs/runs/night\n")


@pytest.mark.parametrize("module", ["hydra", "torch"])
def test_ctrl_c_while_the_command_starts_is_one_line(tmp_path: Path, module: str) -> None:
    (tmp_path / module).mkdir()
    (tmp_path / module / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)\nwhile True: pass\n")
    ended = subprocess.run(
        [sys.executable, "-m", "gptsweep", "name=x"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (130, "", 1)
    assert ended.stderr.startswith("gptsweep: stopped")


def test_all_points_of_a_sweep_without_a_name_share_one_directory(run: Run, jobs: Jobs) -> None:
    run("-m", "seed=1,2,3")
    assert len({directory.parent for _, directory in jobs}) == 1
    assert len({cfg.name for cfg, _ in jobs}) == 1
    assert [directory.name for _, directory in jobs] == ["seed=1", "seed=2", "seed=3"]
    assert {directory.parent.name for _, directory in jobs} == {cfg.name for cfg, _ in jobs}


def test_two_runs_without_a_name_do_not_meet_in_one_directory(run: Run, jobs: Jobs) -> None:
    run()
    run()
    assert jobs[0][1] != jobs[1][1]


def test_a_sweep_can_stand_in_a_file(run: Run, jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "night.yaml").write_text(
        "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '1,2', sampling: 'greedy,creative'}}}\n"
    )
    assert run("--config-dir", "mine", "experiment=night").status == 0
    assert sorted((cfg.seed, cfg.sampling.temperature) for cfg, _ in jobs) == [(1, 0.0), (1, 1.2), (2, 0.0), (2, 1.2)]
    ended = run("--config-dir", "mine", "experiment=night", "seed=3,-3")
    assert ended.err == "gptsweep: error: seed=-3: must be from 0 to 2**64 - 1\n"


@pytest.mark.parametrize(
    "prompt",
    [
        "Hello, <world>!",
        "<|endoftext|>",
        'It\'s "quoted"',
        "ends in a space ",
        "two\nlines",
        "a=b; {c: [d",
        "back\\slash\\",
        "é日本",
    ],
)
def test_a_prompt_needs_no_quotes_but_the_shells(prompt: str) -> None:
    [argument] = command.from_shell([f"start={prompt}"])
    assert OverridesParser.create().parse_override(argument).value() == prompt


def test_a_prompt_comes_through_to_the_run_as_it_was_typed(run: Run, jobs: Jobs) -> None:
    run("start=It's <a> \"test\", \n isn't it? ")
    assert jobs[0][0].start == "It's <a> \"test\", \n isn't it? "


def test_prompts_are_swept_over_where_commas_part_them(run: Run, jobs: Jobs) -> None:
    assert run("-m", "start=Once,Twice", "seed=1").status == 0
    assert [cfg.start for cfg, _ in jobs] == ["Once", "Twice"]


def test_prompts_can_be_swept_over_with_a_function(run: Run, jobs: Jobs) -> None:
    assert run("-m", "start=choice(Once)", "seed=1").status == 0
    assert [cfg.start for cfg, _ in jobs] == ["Once"]


def test_a_strange_prompt_of_a_sweep_needs_quotes_only_where_it_holds_a_comma(run: Run, jobs: Jobs) -> None:
    assert run("-m", "start=<|endoftext|>", "seed=1,2").status == 0
    assert {cfg.start for cfg, _ in jobs} == {"<|endoftext|>"}
    jobs.clear()
    assert run("-m", "start=Hello, world!", "seed=1,2").status == 0  # a comma parts prompts, whatever stands beside it
    assert {cfg.start for cfg, _ in jobs} == {"Hello", "world!"}
    jobs.clear()
    assert run("-m", 'start="Hello, world!"', "seed=1,2").status == 0
    assert {cfg.start for cfg, _ in jobs} == {"Hello, world!"}


@pytest.fixture
def checkpoint(run: Run) -> None:
    """Something in the default ``out_dir``, for jobs that do not look into it."""
    Path("out").mkdir()
    Path("out", "ckpt.pt").touch()


@pytest.mark.usefixtures("checkpoint")
def test_an_error_of_the_run_is_one_line(run: Run, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, ModelError("model.out_dir", "out", "no such directory"))
    assert run("model=resume") == Ended(2, "", "gptsweep: error: model.out_dir=out: no such directory\n")


@pytest.mark.usefixtures("checkpoint")
def test_a_sweep_ends_with_the_points_that_failed_and_the_command_that_retries_them(
    run: Run, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(monkeypatch, ModelError("model.out_dir", "out", "no such directory"))
    ended = run("-m", "model=resume", "seed=1,2", "name=night", "start=Good night")
    assert ended.status == 1
    seen = sorted(f"outputs/sweeps/night/{path.name}" for path in Path("outputs/sweeps/night").glob("seed*"))
    assert ended.err.splitlines()[-2:] == [
        f"{seen[0]} and 1 more: model.out_dir=out: no such directory",
        "gptsweep: error: 2 of 2 points failed; to retry: "
        "python -m gptsweep -m model=resume seed=1,2 name=night 'start=Good night'",
    ]
    assert "Traceback" not in ended.err


def test_a_place_that_cannot_be_written_is_one_line(run: Run, jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file")
    for arguments in (["name=night"], ["-m", "name=night", "seed=1,2"]):
        ended = run(*arguments)
        assert (ended.status, ended.err.count("\n")) == (2, 1)
        assert "cannot write outputs/" in ended.err
    assert not jobs


def test_a_bug_keeps_its_traceback(run: Run, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        run()


def test_hydra_full_error_keeps_the_traceback_of_a_mistake(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="temprature"):
        run("sampling.temprature=1")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_ctrl_c_ends_with_130(run: Run, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, KeyboardInterrupt())
    ended = run()
    assert (ended.status, ended.out) == (130, "")
    assert ended.err.startswith("gptsweep: stopped")


def test_help_and_mistakes_do_not_wait_for_torch(tmp_path: Path) -> None:
    program = """
import sys
from gptsweep.__main__ import main
RANDOM = ["-m", "hydra/sweeper=random", "sampling.top_p=interval(0,1)"]
for arguments in (["--help"], ["sampling.temprature=1"], ["sampling.top_k=0"], ["-m", "seed=1,-1"], ["--cfg", "job"], RANDOM):
    sys.argv = ["gptsweep", *arguments]
    main()
print("LOADED", sorted({"torch", "pandas", "numpy", "numba", "rich"} & sys.modules.keys()))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.stdout.splitlines()[-1] == "LOADED []", ended.stderr
    assert len(ended.stderr.splitlines()) == 4


def test_a_model_that_is_not_there_is_reported_before_torch_is_imported(tmp_path: Path) -> None:
    program = """
import sys
from gptsweep.__main__ import main
for line in ("model=gpt2", "model=hf model.path=some/repo", "-m model=gpt2,gpt2-xl seed=1,2", "model=resume"):
    sys.argv = ["gptsweep", *line.split()]
    print(main())
print("LOADED", sorted({"torch", "pandas", "numpy", "numba", "tiktoken", "transformers"} & sys.modules.keys()))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert ended.stdout.split() == ["2", "2", "2", "2", "LOADED", "[]"], ended.stderr
    gpt2, hf, sweep, resume = ended.stderr.splitlines()
    assert gpt2 == sweep
    assert "model=gpt2: config.json of openai-community/gpt2 is not in the cache and HF_HUB_OFFLINE is set" in gpt2
    assert "model.path=some/repo: config.json of some/repo is not in the cache" in hf
    assert "model.out_dir=out: no such directory" in resume
    assert not (tmp_path / "outputs").exists()


def test_the_module_ends_with_the_status_of_a_mistake(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "gptsweep", "model=gpt3"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"gptsweep: error: model=gpt3: must be one of {', '.join(sorted(choices('model')))}\n"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["mo"], {"model=", "model."}),
        (["model=gpt2-"], {"model=gpt2-large", "model=gpt2-medium", "model=gpt2-xl"}),
        (["seed=1", "sampling.top_"], {"sampling.top_h=", "sampling.top_k=", "sampling.top_n_sigma=", "sampling.top_p="}),
    ],
)
def test_the_tab_key_offers_groups_choices_and_keys(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], offered: set[str]
) -> None:
    for program in ("python -m gptsweep", "/usr/bin/python3.11 -m gptsweep", "gptsweep"):
        monkeypatch.setenv("COMP_LINE", " ".join([program, *words]))
        assert set(run("-sc", "query=bash").out.split()) == offered


def test_completion_works_in_a_real_bash(tmp_path: Path) -> None:
    program = f"""
python() {{ {shlex.quote(sys.executable)} "$@"; }}
eval "$(python -m gptsweep -sc install=bash)"
COMP_WORDS=(python -m gptsweep experiment=d) COMP_CWORD=3 COMP_LINE="python -m gptsweep experiment=d"
_gptsweep_completion
echo "offered: ${{COMPREPLY[*]}}"
complete -p gptsweep
"""
    ended = subprocess.run(
        ["bash", "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert "offered: experiment=deterministic\n" in ended.stdout, ended.stderr
    assert "_gptsweep_completion gptsweep" in ended.stdout
