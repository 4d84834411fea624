"""The config: every key composes to the Point it says, and every mistake is one line that helps."""

from __future__ import annotations

import copy
import hashlib
import re
import string
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from gptsweep.config import point_from_config
from gptsweep.config_schema import (
    CHOICES,
    CONF_DIR,
    DIRECTORY_BYTES,
    GROUPS,
    MODEL_SCHEMAS,
    Config,
    DeviceConfig,
    ModelConfig,
    SamplingConfig,
    choices,
    keys,
    point_dir,
    register,
)
from gptsweep.errors import ConfigError
from gptsweep.multirun.hydra_errors import explain
from gptsweep.records import MODELS, PLACE_KEYS, DeviceSettings, ModelSource, Point, Sampling


@pytest.fixture(autouse=True, scope="module")
def _hydra() -> Iterator[None]:
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        yield


@pytest.fixture(scope="module")
def defaults(_hydra: None) -> DictConfig:
    return compose("config")


def point(*overrides: str) -> Point:
    return point_from_config(compose("config", list(overrides)))


def mistake(*overrides: str) -> str:
    """The line that a user reads about these overrides."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - Hydra's errors share no base class; explain() names ours
        point(*overrides)
    line = explain(caught.value, list(overrides))
    assert line is not None, caught.value
    assert "\n" not in line
    return line


# Presets


def test_defaults_of_the_command_are_those_of_the_records() -> None:
    """But for one: what the model's own program does past its context, only a point that meets a model can name."""
    assert point() == Point(sampling=Sampling(overflow="auto"))


@pytest.mark.parametrize("name", [name for name in MODELS if PLACE_KEYS.get(name) != "path"])
def test_each_model_is_chosen_by_its_name(name: str) -> None:
    assert point(f"model={name}").model == ModelSource(name=name)


def test_a_model_from_the_hub_or_a_directory_is_found_by_its_path() -> None:
    for name in ("hf", "llmc", "litgpt"):
        assert point(f"model={name}", "model.path=distilgpt2").model == ModelSource(name=name, path="distilgpt2")


def test_a_nanogpt_checkpoint_is_found_by_its_directory() -> None:
    expected = ModelSource(name="resume", out_dir="out-shakespeare-char", meta="data/meta.pkl")
    assert point("model=resume", "model.out_dir=out-shakespeare-char", "model.meta=data/meta.pkl").model == expected


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "mps"])
def test_each_device_is_chosen_by_its_name(name: str) -> None:
    assert point(f"device={name}").device == DeviceSettings(name=name)


def test_one_gpu_of_several_can_be_named() -> None:
    assert point("device.name=cuda:1", "device.dtype=float16").device == DeviceSettings(name="cuda:1", dtype="float16")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("default", Sampling(overflow="auto")),
        ("greedy", Sampling(num_samples=1, temperature=0, top_k=None)),
        ("creative", Sampling(temperature=1.2, top_k=None, min_p=0.05)),
        (
            "code",
            Sampling(
                temperature=0.2,
                top_k=None,
                top_p=0.95,
                stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
                stop_at_eot=True,
            ),
        ),
    ],
)
def test_each_sampling_preset_is_what_it_says(name: str, expected: Sampling) -> None:
    assert point(f"sampling={name}").sampling == replace(expected, overflow="auto")


def test_each_experiment_runs_on_the_embedded_model_or_says_which_model_it_is_for() -> None:
    in_tinyshakespeare = set("\n !$&',-.3:;?" + string.ascii_letters)
    for name in choices("experiment"):
        made = point(f"experiment={name}")
        if made.model.name != "shakespeare":
            assert "GPT-2" in (CONF_DIR / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[1]
        elif not made.start.startswith("JSONL:"):
            assert set(made.start) <= in_tinyshakespeare


def test_experiments_are_the_points_they_promise() -> None:
    assert point("experiment=story").sampling == Sampling(
        num_samples=4, max_new_tokens=300, temperature=1.2, top_k=None, min_p=0.05, overflow="auto"
    )
    assert point("experiment=code").model.name == "gpt2"
    deterministic = point("experiment=deterministic")
    assert (deterministic.sampling.temperature, deterministic.device.dtype, deterministic.device.name) == (0, "float32", "cpu")


def test_the_batch_experiment_finds_its_prompts_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kind, _, path = point("experiment=batch").start.partition(":")
    assert kind == "JSONL"
    assert len(Path(path).read_text(encoding="utf-8").splitlines()) == 4


def test_an_experiment_yields_to_what_the_command_line_says() -> None:
    made = point("experiment=story", "sampling.num_samples=2", "start=Hello", "seed=7")
    assert (made.sampling.num_samples, made.start, made.seed) == (2, "Hello", 7)


def test_no_value_stands_in_the_config_that_the_records_do_not_know() -> None:
    def names(record: type) -> set[str]:
        return {f.name for f in fields(record)}

    assert names(SamplingConfig) == names(Sampling)
    assert names(DeviceConfig) == names(DeviceSettings)
    assert names(ModelConfig).union(*map(names, MODEL_SCHEMAS.values())) == names(ModelSource)
    assert names(Point) <= names(Config)


def test_every_choice_of_every_group_has_its_file() -> None:
    assert set(choices("model")) == set(MODELS)
    assert [choices(group)[0] for group in GROUPS[:3]] == ["shakespeare", "auto", "default"]


# Values


def test_null_switches_a_truncation_off() -> None:
    assert point("sampling.top_k=null").sampling.top_k is None


def test_a_logit_bias_is_typed_as_token_ids_to_numbers() -> None:
    assert point("sampling.logit_bias={50256:-100,11:2.5}").sampling.logit_bias == ((11, 2.5), (50256, -100.0))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(r'["\n\n"]', ("\n\n",)), (r"[\n\n, END]", ("\n\n", "END")), ('["\n"]', ("\n",)), (r'["\\n"]', (r"\n",)), ("[]", ())],
)
def test_a_stop_string_of_newlines_can_be_typed(typed: str, meant: tuple[str, ...]) -> None:
    assert point(f"sampling.stop={typed}").sampling.stop == meant


def test_a_prompt_with_newlines_can_be_typed() -> None:
    assert point(r'start="Q: why\?\n\tA:"').start == "Q: why\\?\n\tA:"
    assert point('start="two\nlines"').start == "two\nlines"
    assert point(r'start="\\n"').start == r"\n"


def test_the_path_of_a_prompt_file_is_left_alone() -> None:
    assert point(r'start="FILE:C:\new\texts.txt"').start == r"FILE:C:\new\texts.txt"


def test_a_dollar_brace_in_a_prompt_can_be_escaped() -> None:
    assert point(r"start='echo \${HOME}'").start == "echo ${HOME}"


def test_a_number_in_quotes_is_a_prompt_and_one_without_is_refused_as_its_characters_are_lost() -> None:
    assert point("start='1_000'").start == "1_000"
    for typed in ("start=1_000", "start=42", "start=1e3", "start=true", "name=2024_05_01"):
        line = mistake(typed)
        assert line.startswith(f"{typed}: must be text; put a number, true or false in quotes")


def test_a_run_can_be_read_back_from_the_config_file_it_left(tmp_path: Path) -> None:
    overrides = ["model=resume", "model.out_dir=o", "sampling.logit_bias={5:1}", r"sampling.stop=[\n]", "seed=3", "name=night"]
    composed = compose("config", overrides)
    OmegaConf.save(composed, tmp_path / "config.yaml")
    read = OmegaConf.load(tmp_path / "config.yaml")
    assert isinstance(read, DictConfig)
    assert point_from_config(read) == point_from_config(composed)


def test_the_door_names_what_is_wrong_in_a_config_not_made_by_hydra() -> None:
    plain = OmegaConf.to_container(compose("config"), resolve=True)
    assert isinstance(plain, dict)
    with pytest.raises(ConfigError, match=r"sampling\.topk=3: no such key; did you mean sampling\.top_k\?"):
        point_from_config(OmegaConf.create(plain | {"sampling": plain["sampling"] | {"topk": 3}}))
    with pytest.raises(ConfigError, match="seed=soon: must be a whole number"):
        point_from_config(OmegaConf.create(plain | {"seed": "soon"}))
    with pytest.raises(ConfigError, match=r"seed=\?\?\?: must be given"):
        point_from_config(OmegaConf.create({key: value for key, value in plain.items() if key != "seed"}))


# Mistakes: (what was typed, what the line begins with, what it must also say)

RANGES = [
    ("sampling.temperature=-1", "sampling.temperature=-1.0: ", "0 (greedy)"),
    ("sampling.temperature=nan", "sampling.temperature=nan: ", "positive"),
    ("sampling.temperature=inf", "sampling.temperature=inf: ", "positive"),
    ("sampling.top_k=0", "sampling.top_k=0: ", "null"),
    ("sampling.top_p=0", "sampling.top_p=0.0: ", "null"),
    ("sampling.top_p=1.5", "sampling.top_p=1.5: ", "at most 1"),
    ("sampling.min_p=-0.1", "sampling.min_p=-0.1: ", "from 0 to 1"),
    ("sampling.num_samples=0", "sampling.num_samples=0: ", "at least 1"),
    ("sampling.max_new_tokens=0", "sampling.max_new_tokens=0: ", "at least 1"),
    ("sampling.repetition_penalty=0", "sampling.repetition_penalty=0.0: ", "1.0 switches it off"),
    ("sampling.logit_bias={-1:3}", "sampling.logit_bias={-1: 3.0}: ", "token ids"),
    ("sampling.stop=[a,'']", "sampling.stop=['a', '']: ", "an empty string"),
    ('sampling.stop=[""]', "sampling.stop=", "empty string"),
    ("device.threads=0", "device.threads=0: ", "at least 1"),
    ("device.max_rows=-5", "device.max_rows=-5: ", "at least 1"),
    ("seed=-1", "seed=-1: ", "2**64"),
    ("name=a/b", "name=a/b: ", "directory name"),
    ("name=..", "name=..: ", "directory name"),
    ("name=", "name=: ", "directory name"),
]
TYPES = [
    ("sampling.top_k=abc", "sampling.top_k=abc: ", "whole number, or null"),
    ("sampling.top_k=5.5", "sampling.top_k=5.5: ", "whole number"),
    ("sampling.temperature=hot", "sampling.temperature=hot: ", "a number"),
    ("sampling.stop_at_eot=maybe", "sampling.stop_at_eot=maybe: ", "true or false"),
    ('sampling.stop="END"', 'sampling.stop="END": ', "list"),
    ("sampling.logit_bias=5", "sampling.logit_bias=5: ", "{50256:-100}"),
    ("sampling.logit_bias={the:5}", "sampling.logit_bias.the={the:5}: ", "token ids"),
    ("start=null", "start=null: ", "text"),
    ("start=[a]", "start=[a]: ", "text"),
    ("seed=null", "seed=null: ", "whole number"),
]
CHOSEN = [
    ("model=gpt3", "model=gpt3: must be one of ", "gpt2-medium"),
    ("model=null", "model=null: must be one of ", "shakespeare, "),
    ("device=cuda:1", "device=cuda:1: must be one of ", "device.name=cuda:1"),
    ("device.name=gpu", "device.name=gpu: ", "cuda:N"),
    ("sampling=hot", "sampling=hot: must be one of ", "creative"),
    ("experiment=stories", "experiment=stories: must be one of ", "story"),
    ("device.dtype=float8", "device.dtype=float8: must be one of ", "bfloat16"),
    ("device.dtype=null", "device.dtype=null: must be one of ", "bfloat16"),
    ("sampling.overflow=wrap", "sampling.overflow=wrap: must be one of ", "rebase"),
    ("sampling.rng=philox", "sampling.rng=philox: must be one of ", "counter"),
    ("sampling.noise=none", "sampling.noise=none: must be one of ", "independent"),
    ("hydra/launcher=nowhere", "hydra/launcher=nowhere: must be one of ", "basic"),
]
NAMES = [
    ("sampling.temprature=0.5", "sampling.temprature=0.5: no such key", "sampling.temperature?"),
    ("temperature=0.5", "temperature=0.5: no such key", "sampling.temperature?"),
    ("smapling.top_k=5", "smapling.top_k=5: no such key", "sampling.top_k?"),
    ("device.name_=cpu", "device.name_=cpu: no such key", "device.name?"),
    ("init_from=resume", "init_from=resume: no such key", "mean model?"),
    ("modl=gpt2", "modl=gpt2: no such key", "mean model?"),
    ("zzz=1", "zzz=1: no such key", "there are model, device, sampling, experiment, start, seed"),
    ("sampling.zzz=1", "sampling.zzz=1: no such key", "there are num_samples, max_new_tokens"),
    ("+sampling.topk=5", "sampling.topk=5: no such key", "sampling.top_k?"),
    ("+zzz=1", "zzz=1: no such key", "there are model"),
    ("hydra.zzz=1", "hydra.zzz=1: no such key", "--cfg hydra"),
    ("model.path=gpt2", "model.path=gpt2: ", "model=hf"),
    ("+model.out_dir=out", "model.out_dir=out: ", "model=resume"),
    ("model.name=hf", "model.name=hf: ", "model=hf"),
]
GRAMMAR = [
    ("sampling.top_k=abc", "sampling.top_k=abc: ", "whole number, or null"),
    ("++seed=soon", "seed=soon: ", "whole number"),
    ("seed", "seed: must be key=value", ""),
    ("temprature", "temprature: must be key=value", "sampling.temperature=…"),
    ("sampling.stop=[#]", "sampling.stop=[#]: Hydra cannot read it", "put each string in quotes: 'sampling.stop=[\"#\"]'"),
    ("seed=1,2", "seed=1,2: ", "-m"),
    ("seed=range(3)", "seed=range(3): ", "-m"),
    ("start=costs ${price}", "start=costs ${price}: ", r"write \${"),
    ("~sampling.top_k", "~sampling.top_k: ", "cannot be removed"),
    ("~model", "model=???: ", "must be given"),
    ("+experiment=story", "experiment: ", "without +"),
]


def changed(cfg: DictConfig, typed: str) -> DictConfig:
    ConfigLoaderImpl._apply_overrides_to_config([OverridesParser.create().parse_override(typed)], cfg)
    return cfg


@pytest.mark.parametrize(("typed", "begins", "says"), RANGES + TYPES)
def test_a_wrong_value_is_one_line_with_the_key_the_value_and_what_would_work(
    typed: str, begins: str, says: str, defaults: DictConfig
) -> None:
    cfg = copy.deepcopy(defaults)
    with pytest.raises((ConfigError, HydraException)) as caught:
        point_from_config(changed(cfg, typed))
    line = explain(caught.value, [typed])
    assert line is not None
    assert line.startswith(begins)
    assert says in line
    assert "\n" not in line


@pytest.mark.parametrize(("typed", "begins", "says"), CHOSEN + NAMES + GRAMMAR)
def test_a_mistake_is_one_line_with_the_key_the_value_and_what_would_work(typed: str, begins: str, says: str) -> None:
    line = mistake(typed)
    assert line.startswith(begins)
    assert says in line


def test_a_hub_model_without_a_path_says_what_is_missing() -> None:
    assert mistake("model=hf") == "model.path=null: model=hf needs a local directory or a hub id"
    assert mistake("model=llmc") == "model.path=null: model=llmc needs the .bin that llm.c wrote, such as gpt2_124M.bin"
    assert mistake("model=litgpt").startswith("model.path=null: model=litgpt needs a checkpoint directory of LitGPT")


def test_a_key_of_another_model_names_the_model_that_takes_it() -> None:
    assert mistake("model=resume", "model.path=x") == "model.path=x: only model=hf accepts it, and model=llmc and model=litgpt"


def test_a_mistake_in_a_file_of_the_users_own_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nsampling: {temperature: hot}\n")
    (tmp_path / "experiment" / "other.yaml").write_text("# @package _global_\nsampling: {temprature: 1}\n")
    where = f"hydra.searchpath=[file://{tmp_path}]"
    assert re.match(r"sampling\.temperature: .*hot.*, in experiment/mine\.yaml$", mistake(where, "experiment=mine"))
    assert re.match(r"sampling\.temprature: .*, in experiment/other\.yaml$", mistake(where, "experiment=other"))


def test_a_bug_is_not_explained_away() -> None:
    assert explain(KeyError("cache"), []) is None
    assert explain(ValueError("shapes differ"), []) is None


def test_every_key_with_choices_lists_them() -> None:
    assert set(CHOICES) <= keys().keys()


# Directories of points


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("sampling.top_k=50,seed=1", "top_k=50,seed=1"),
        ("model=gpt2-xl,sampling.temperature=0.8", "temperature=0.8,model=gpt2-xl"),
        ("+experiment=story", "+experiment=story"),
        ("sampling.top_k=null", "top_k=null"),
        (
            "device.dtype=int8,model=gpt2,sampling=greedy,sampling.max_new_tokens=9,sampling.min_p=0.1,sampling.top_k=5,seed=3",
            "top_k=5,min_p=0.1,seed=3,model=gpt2,device.dtype=int8,max_new_tokens=9,sampling=greedy",
        ),
    ],
)
def test_a_short_name_of_a_point_is_readable_and_has_its_settings_first(overrides: str, name: str) -> None:
    assert point_dir(overrides) == name


def test_a_name_that_is_cut_still_says_the_settings() -> None:
    where = f"model=nanochat,model.out_dir={'very/' * 40}long,model.step="
    names = {point_dir(f"{where}{step},sampling.stop=[',','x,y'],sampling.top_k=5,seed=1") for step in (100, 200)}
    wanted = {f"top_k=5,seed=1,model=nanochat,model.step={step}," for step in (100, 200)}
    assert {name[:45] for name in names} == wanted


def test_a_point_of_a_sweep_of_before_is_found_under_its_old_name(tmp_path: Path) -> None:
    overrides = "model=gpt2,sampling.top_k=5,seed=1"
    assert point_dir(overrides, str(tmp_path)) == "top_k=5,seed=1,model=gpt2"
    (tmp_path / overrides).mkdir()
    assert point_dir(overrides, str(tmp_path)) == overrides
    long = overrides + ",start=" + "x" * 200
    before = (overrides + ",start=" + "x" * 200)[:87] + "-" + hashlib.sha256(long.encode()).hexdigest()[:12]
    (tmp_path / before).mkdir()
    assert point_dir(long, str(tmp_path)) == before


@given(st.lists(st.text(max_size=150), unique=True, min_size=2, max_size=2))
def test_two_points_never_share_a_directory_and_every_name_is_a_directory_name(names: list[str]) -> None:
    made = [point_dir(name) for name in names]
    assert made[0] != made[1]
    for name in made:
        assert name.strip(".")
        assert len(name) <= DIRECTORY_BYTES
        assert set(name) <= set(string.ascii_letters + string.digits + "._=,+-")


def test_directories_of_points_do_not_depend_on_what_decides_no_token() -> None:
    def subdir(*overrides: str) -> str:
        return str(compose("config", list(overrides), return_hydra_config=True).hydra.sweep.subdir)

    free = ["name=night", "sampling.num_samples=20", "device.max_rows=8", "device.threads=1", "quiet=true", "overwrite=true"]
    assert subdir("seed=1", "sampling.top_k=50", *free) == "top_k=50,seed=1"
    assert subdir("seed=1", "sampling.top_k=50", "objective=logprob_mean") == subdir("seed=1", "sampling.top_k=50")
    assert subdir("device.dtype=bfloat16") == "device.dtype=bfloat16"
    assert subdir("start='a/b'") != subdir("start='a b'")
    assert subdir() == "defaults"
