"""Every command and program in README.md and in the pages of docs/ runs as it is printed."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from markdown_it import MarkdownIt
from model_files import TINY, random_gpt, save_hf, save_llama, save_meta, save_nanogpt
from nanochat_twin import SHAPE, random_weights, save_nanochat
from omegaconf import DictConfig
from test_llmc import save as save_llmc
from test_llmc import small_gpt2

import gptsweep.__main__
import gptsweep.review
from gptsweep.analysis.metrics import MAUVE, METRICS, PREFERENCE
from gptsweep.command_help import HELP
from gptsweep.config import point_from_config
from gptsweep.config_schema import CONF_DIR, choices
from gptsweep.engine.backend import windows_read
from gptsweep.multirun.compose import PointLoader
from gptsweep.multirun.steps import with_steps
from gptsweep.multirun.sweepers import points_in_file, random_points
from gptsweep.prompts import read_prompts

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs").glob("*.md"))
    if path.stem not in ("extend", "rating")  # tests of their own follow these
}
BLOCKS = list(
    dict.fromkeys(
        block
        for text in (README, *PAGES.values())
        for block in re.findall(r"^```(bash|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    )
)
PROMPTS = ("ROMEO", "JULIET", "MENENIUS", "VOLUMNIA", "PETRUCHIO", "KATHARINA")
INSTALLS = ("pip install -e . && python -m gptsweep", "pip install -e '.[test]' && python -m pytest")
SMALL = ("sampling.num_samples=1", "sampling.max_new_tokens=8")


def commands() -> list[str]:
    return [text.strip() for language, text in BLOCKS if language == "bash"]


def test_every_row_of_a_table_has_the_cells_of_its_head() -> None:
    text = "\n\n".join((README, *PAGES.values()))
    html = MarkdownIt("commonmark").enable("table").render(text)
    tables = re.findall(r"<table>.*?</table>", html, re.DOTALL)
    assert len(tables) >= 5
    assert "<code>&lt;|endoftext|&gt;</code>" in html
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


def test_the_licence_is_there() -> None:
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert 'license = "MIT"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the README's examples name: a checkpoint, prompt files, a small GPT-2 in the hub's cache."""
    place = tmp_path_factory.mktemp("readme")
    save_nanogpt(place / "out-shakespeare-char", random_gpt())
    save_meta(place / "out-shakespeare-char" / "meta.pkl", "\n abcdefghi")
    for step in (1000, 2000):
        save_nanochat(place / "base_checkpoints" / "d12", random_weights("F", SHAPE, step), SHAPE, step)
    for name in ("step-00001000", "final"):
        shutil.copytree(ROOT / "tests" / "data" / "litgpt", place / "out" / "pretrain" / name)
        vocabulary = {"model": {"type": "BPE", "vocab": {"\u010a": 0, "a": 1}, "merges": []}, "decoder": {"type": "ByteLevel"}}
        (place / "out" / "pretrain" / name / "tokenizer.json").write_text(
            json.dumps(vocabulary | {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}), encoding="utf-8"
        )
    (place / "log124M").mkdir()
    for step in (10000, 19560):
        save_llmc(place / "log124M" / f"model_{step:08d}.bin", small_gpt2(1, 4), version=5)
    (place / "prompt.txt").write_text("ab", encoding="utf-8")
    (place / "points.csv").write_text("sampling.temperature,sampling.top_p\n0.7,0.9\n1.1,\n", encoding="utf-8")
    (place / "my_metrics.py").write_text(
        "def exclamations(sample: dict) -> float:\n    return sample['completion'].count('!')\n"
    )
    (place / "prompts.txt").write_text("".join(f"{name}:\n" for name in PROMPTS), encoding="utf-8")
    shutil.copy(CONF_DIR / "experiment" / "samplers.txt", place / "human.txt")
    shutil.copy(place / "out-shakespeare-char" / "ckpt.pt", place / "out-shakespeare-char" / "ckpt_2000.pt")
    (place / "prompts.jsonl").write_text('{"prompt": "To be"}\n{"prompt": "Or not", "id": "b"}\n', encoding="utf-8")
    cached = place / "hub" / "models--openai-community--gpt2"
    save_hf(cached / "snapshots" / "0", random_gpt(replace(TINY, vocab_size=50257, block_size=64, activation="gelu_tanh")))
    for repo, revisions in {
        "HuggingFaceTB/SmolLM2-135M": ["main"],
        "HuggingFaceTB/SmolLM2-135M-Instruct": ["main"],
        "EleutherAI/pythia-70m": ["step1000", "step143000"],
    }.items():
        for number, revision in enumerate(revisions):
            refs = place / "hub" / f"models--{repo.replace('/', '--')}" / "refs"
            save_llama(refs.parent / "snapshots" / str(number), seed=number)
            refs.mkdir(exist_ok=True)
            (refs / revision).write_text(str(number), encoding="utf-8")
    instructed = place / "hub" / "models--HuggingFaceTB--SmolLM2-135M-Instruct" / "snapshots" / "0"
    (instructed / "chat_template.jinja").write_text("{{ messages[0].role }}: {{ messages[0].content }}", encoding="utf-8")
    (instructed / "generation_config.json").write_text('{"eos_token_id": [0, 2]}', encoding="utf-8")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0", encoding="utf-8")
    return place


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return place


def test_the_two_install_commands_are_the_readmes_and_cis() -> None:
    assert [command for command in commands() if command.startswith("pip")] == list(INSTALLS)
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "pip install --quiet -e '.[test]'" in ci
    assert "python -m pytest" in ci


@pytest.fixture
def typed(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Runs a command of the README in this process, with few and short samples; what it prints."""

    def typed(command: str) -> str:
        python, flag, module, *arguments = shlex.split(command)
        assert (python, flag) == ("python", "-m")
        assert module in ("gptsweep", "gptsweep.review")
        program = importlib.import_module(f"{module}.__main__" if module == "gptsweep" else module)
        monkeypatch.setattr(sys, "argv", [module, *arguments, *(SMALL if module == "gptsweep" else ())])
        assert program.main() in (0, None)
        return "".join(capsys.readouterr())

    return typed


@pytest.fixture
def swept(here: Path, typed: Callable[[str], str]) -> Callable[[str], Path]:
    """Runs the sweep of a name that the reviews read, once."""

    def swept(name: str) -> Path:
        directory = here / "outputs" / "sweeps" / name
        if not directory.exists():
            typed(next(command for command in commands() if f"name={name} " in command))
        return directory

    return swept


@pytest.fixture
def night(swept: Callable[[str], Path]) -> Path:
    """The sweep that most reviews read."""
    return swept("night")


@pytest.mark.parametrize("command", [command for command in commands() if "-m gptsweep " in command and "pip" not in command])
def test_a_command_of_the_readme_samples(command: str, typed: Callable[[str], str]) -> None:
    (directory,) = re.findall(r"^Results: (.*)$", typed(command), re.MULTILINE)
    made = gptsweep.read_sweep(directory)
    assert set(made.summary["status"]) == {"complete"}
    assert len(made.samples) == sum(made.summary["num_samples"]) > 0
    assert Path(directory, "report.html").exists() is ("-m name=" in command)


@pytest.mark.parametrize("command", [command for command in commands() if "-m gptsweep.review" in command])
def test_a_review_of_the_readme_shows_the_sweep(
    command: str, typed: Callable[[str], str], swept: Callable[[str], Path]
) -> None:
    sweep = swept(shlex.split(command)[3].rpartition("/")[2])
    (sweep / "report.html").unlink(missing_ok=True)
    head, *rows = typed(command).splitlines()
    settings = "temperature,top_k,num_points," if sweep.name == "night" else "temperature,num_points,"
    shown = {"--samplers": "family,settings,", "--diff": "metric,"}
    assert head.startswith(next((begins for option, begins in shown.items() if option in command), settings))
    assert len([row for row in rows if row.count(",") == head.count(",")]) >= 2
    assert (sweep / "report.html").exists()


def examples() -> list[str]:
    """The commands that the README and ``--help`` show, and one for each experiment."""
    shown = [*commands(), *re.findall(r"^  (python -m gptsweep .*)", HELP, re.MULTILINE)]
    typed = [line for line in shown if "-m gptsweep" in line and "[key" not in line and "<" not in line]
    return [*typed, *(f"python -m gptsweep experiment={name}" for name in choices("experiment"))]


@pytest.mark.parametrize("command", [command for command in examples() if "review" not in command])
def test_an_example_on_the_embedded_model_takes_seconds(
    command: str, here: Path, composing: tuple[ConfigLoaderImpl, PointLoader, DictConfig]
) -> None:
    """A sweep that crosses the context reads as much as twenty runs of the defaults: minutes, where the rest takes seconds."""
    _, loader, master = composing
    arguments = with_steps(shlex.split(command.partition("-m gptsweep")[2].partition("   ")[0]), "out")
    typed = OverridesParser.create().parse_overrides([argument for argument in arguments if argument != "-m"])
    design = {override.key_or_group: override.value() for override in typed if override.is_hydra_override()}
    overrides = [override for override in typed if not override.is_hydra_override()]
    if design.get("hydra/sweeper") == "points":
        points = points_in_file(str(design["hydra.sweeper.file"]), overrides)
    elif design.get("hydra/sweeper") == "random":
        points = random_points(int(str(design.get("hydra.sweeper.n", 64))), 0, overrides)
    else:
        points = BasicSweeper.split_arguments(overrides, None)[0]
    context, read = 256, 0
    for line in points:
        point = point_from_config(loader.load_sweep_config(master, line))
        for prompt in read_prompts(point.start) if point.model.name == "shakespeare" else ():
            new = point.sampling.max_new_tokens
            windows = windows_read(point.sampling, len(prompt.text), new, context)
            read += point.sampling.num_samples * (new + context * windows)
    assert read <= 1_000_000


@pytest.mark.parametrize("program", [text for language, text in BLOCKS if language == "python" and "@hydra.main" not in text])
@pytest.mark.usefixtures("here", "night")
def test_a_program_of_the_readme_runs(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(program, "page", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_statistics_page_defines_every_metric() -> None:
    text = PAGES["statistics"]
    defined = re.findall(r"^\| `(\w+)` \| (.*) \|$", text.split("| metric |")[1].split("\n\n")[0], re.MULTILINE)
    assert dict(defined) == {
        name: metric.meaning + (", in nats" if metric.unit == "nats" else "")
        for name, metric in {**METRICS, MAUVE.name: MAUVE, PREFERENCE.name: PREFERENCE}.items()
    }
