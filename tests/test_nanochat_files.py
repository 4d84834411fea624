"""nanochat's files: which step is read, the vocabulary, and that a stranger's run nothing and are refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nanochat_twin import DATA, PATTERN, SPECIAL, random_weights, save_nanochat, save_tokenizer
from sweeps import Run, samples_of

import gptsweep
from gptsweep.models.checkpoint import Checkpoint
from gptsweep.models.files.nanochat import open_nanochat
from gptsweep.models.files.nanochat_tokenizer import NanochatTokenizer, read_tokenizer
from gptsweep.report.data import page_data
from gptsweep.run.executors.local import LocalExecutor

SMALL = {"sequence_len": 16, "vocab_size": 268, "n_layer": 2, "n_head": 2, "n_kv_head": 2, "n_embd": 32}
HERE = "base_checkpoints/d2"
BOS, ASSISTANT_END = 259, 263


def saved(era: str = "C", step: int = 100, **changes: Any) -> str:
    """A small checkpoint as nanochat lays it out in the working directory."""
    shape = SMALL | changes.pop("shape", {})
    save_nanochat(Path(HERE), random_weights(era, SMALL, step) | changes.pop("weights", {}), shape, step, **changes)
    return HERE


def refusal(open_it: Callable[[], Any]) -> str:
    with pytest.raises(gptsweep.ModelError) as caught:
        open_it()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def opened(**given: Any) -> Checkpoint:
    return open_nanochat(HERE, **given)


# -- which checkpoint --------------------------------------------------------------------------------------------------------


def test_the_last_step_is_read_unless_one_is_named() -> None:
    for step in (900, 1000000, 20):
        saved(step=step)
    fingerprints = {step: opened(step=step).fingerprint for step in ("20", "900", "1000000", "last")}
    assert len(set(fingerprints.values())) == 3
    assert fingerprints["last"] == fingerprints["1000000"]
    for step in (900, "900", "000900"):
        assert gptsweep.load(HERE, step=step).fingerprint == fingerprints["900"]
    assert gptsweep.load(HERE).fingerprint == fingerprints["last"]
    assert refusal(lambda: opened(step="901")) == f"model.step=901: is not in {HERE}; there: 20, 900, 1000000"
    with pytest.raises(gptsweep.ConfigError, match=r"model\.step=soon: must be a step of the training, or last"):
        gptsweep.load(HERE, step="soon")


def test_a_wrong_directory_says_where_checkpoints_are() -> None:
    saved()
    assert "there are some in d2" in refusal(lambda: open_nanochat("base_checkpoints"))
    assert "no such directory" in refusal(lambda: open_nanochat("base_checkpoint/d2"))
    assert "there is no model_NNNNNN.pt" in refusal(lambda: open_nanochat("tokenizer"))
    Path(HERE, "meta_000100.json").unlink()
    assert "there is no meta_000100.json, which holds their sizes, beside the weights" in refusal(opened)


@pytest.mark.parametrize("place", [".", "tokenizer", "../tokenizer", "../../tokenizer", "elsewhere"])
def test_the_tokenizer_is_found_where_nanochat_and_its_hub_repositories_lay_it(place: str) -> None:
    saved()
    Path("tokenizer/tokenizer.pkl").unlink()
    assert "model.tokenizer=null: no tokenizer.pkl found" in refusal(opened)
    found = save_tokenizer(Path("elsewhere") if place == "elsewhere" else Path(HERE, place))
    for chosen in (None,) if place != "elsewhere" else (str(found), "elsewhere"):
        assert opened(tokenizer=chosen).tokenizer.vocab_size == SMALL["vocab_size"]


def test_names_of_a_compiled_model_and_a_vocabulary_without_padding_are_read() -> None:
    saved("C")
    plain = opened()
    fingerprint = plain.fingerprint
    padded = random_weights("C", SMALL, 100)
    rows = {name: weight[:268] for name, weight in padded.items() if weight.shape[:1] == (320,)}
    saved("C", weights=rows, prefix="_orig_mod.")
    assert opened().fingerprint == fingerprint
    assert plain.config.vocab_size == SMALL["vocab_size"]


# -- forks, and what is damaged ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("era", "weights", "says"),
    [
        ("C", {"bigram_embed.embed.weight": torch.zeros(9, 32), "bigram_lambdas": torch.zeros(2)}, "never had: bigram_embed"),
        ("C", {"v0_lambdas": torch.zeros(2)}, "never had: v0_lambdas"),
        ("A", {"transformer.h.0.ln_1.weight": torch.zeros(32)}, "never had: transformer.h.0.ln_1.weight"),
        ("C", {"transformer.h.1.attn.ve_gate.weight": torch.zeros(2, 16)}, "gates that read 16 channels"),
        ("A", {"value_embeds.1.weight": torch.zeros(320, 32)}, "gates that read no channels"),
        ("B", {"smear_lambda": torch.zeros(1)}, "does not have: smear_share"),
        ("F", {"value_embeds.0.weight": torch.zeros(320, 32)}, "does not have: blocks.0.attn.value_embed.weight"),
        ("A", {"transformer.h.2.attn.c_proj.weight": torch.zeros(32, 32)}, "does not have: blocks.2.attn.out.weight"),
        ("A", {"transformer.wte.weight": torch.zeros(300, 32)}, "transformer.wte.weight has the shape [300, 32]"),
        ("A", {"lm_head.weight": torch.zeros(268, 33)}, "head.weight has the shape [268, 33]"),
        ("B", {"resid_lambdas": torch.zeros(3)}, "stream_shares has the shape [3]"),
    ],
)
def test_weights_that_nanochat_did_not_write_are_named(era: str, weights: dict[str, Any], says: str) -> None:
    saved(era, weights=weights)
    assert says in refusal(opened)


def test_a_weight_that_is_missing_is_named() -> None:
    for name, says in {"x0_lambdas": "embedding_shares", "transformer.h.1.mlp.c_fc.weight": "blocks.1.mlp.up"}.items():
        weights = {key: weight for key, weight in random_weights("B", SMALL).items() if key != name}
        save_nanochat(Path(HERE), weights, SMALL)
        assert f"weights are missing: {says}" in refusal(opened)
    weights = {key: weight for key, weight in random_weights("B", SMALL).items() if "c_k" not in key}
    save_nanochat(Path(HERE), weights, SMALL)
    assert "of the weights that belong together, only" in refusal(opened)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"n_layer": 2**31 - 1}, "too few for its 2147483647 layers"),
        ({"n_layer": 3}, "missing"),
        ({"n_layer": 0}, "must be at least 1"),
        ({"n_embd": 2**31 - 4}, "has the shape"),
        ({"vocab_size": 2**31 - 1}, "has the shape"),
        ({"sequence_len": "16"}, "sequence_len='16'"),
        ({"n_head": 3}, "n_embd=32, which is not a multiple of n_head=3"),
        ({"n_head": -2}, "n_embd=32, which is not a multiple of n_head=-2"),
        ({"n_kv_head": 2**40}, "n_kv_head=1099511627776"),
        ({"n_kv_head": True}, "n_kv_head=True"),
        ({"n_embd": 8}, "its gates read 32 channels"),
        ({"window_pattern": "SSX"}, "window_pattern='SSX', which does not consist of S and L"),
        ({"window_pattern": ["S"]}, "window_pattern=['S']"),
        ({"rope_base": 5}, "has the model setting rope_base"),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused(shape: dict[str, Any], says: str) -> None:
    saved("C", shape=shape)
    assert says in refusal(opened)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[]", "{}", '{"model_config": 5}', "\xff"])
def test_a_damaged_meta_is_one_line(content: str) -> None:
    saved()
    Path(HERE, "meta_000100.json").write_text(content, encoding="latin-1")
    assert "meta_000100.json" in refusal(opened)


def test_the_weights_of_one_step_may_be_another_models() -> None:
    saved("F")
    Path(HERE, "model_000100.pt").write_bytes(Path(HERE, "model_000100.pt").read_bytes()[:-5000])
    assert "truncated" in refusal(opened)
    torch.save([1, 2], Path(HERE, "model_000100.pt"))
    assert "has 0 weights, too few" in refusal(opened)


# -- the vocabulary ----------------------------------------------------------------------------------------------------------

RANKS = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"the": 257, b" r": 258}


class Encoding:
    """What `pickle` takes for a `tiktoken.Encoding` of any contents."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __reduce__(self) -> Any:
        return tiktoken.Encoding.__new__, (tiktoken.Encoding,), self.state


class Runs:
    """Leaves a file where its pickle is loaded as Python does."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def pickled(**changes: Any) -> bytes:
    """A ``tokenizer.pkl`` with some of its contents changed."""
    special = {text: len(RANKS) + place for place, text in enumerate(SPECIAL)}
    state = {"name": "rustbpe", "pat_str": PATTERN, "mergeable_ranks": RANKS, "special_tokens": special} | changes
    operations = pickle.dumps(state, 4)
    # A record of the class, as an `Encoding` is pickled: made without arguments, then given its state.
    return b"\x80\x04\x8c\x0dtiktoken.core\x8c\x08Encoding\x93)\x81" + operations[2:-1] + b"b."


SPECIALS = {text: len(RANKS) + place for place, text in enumerate(SPECIAL)}
HOSTILE = {
    "runs": (pickle.dumps(Runs()), "holds posix.mkdir, not a tiktoken.core.Encoding"),
    "runs inside": (pickled(name=Runs(), mergeable_ranks=Runs()), "without pat_str, mergeable_ranks or special_tokens"),
    "another object": (pickle.dumps({"itos": {}}), "holds dict, not a tiktoken.core.Encoding"),
    "no pickle": (b"hello", "is not a pickle of a vocabulary"),
    "cut short": (pickled()[:700], "is not a pickle of a vocabulary"),
    "one of tiktoken's": (b"\x80\x04\x8c\x0dtiktoken.core\x8c\x08Encoding\x93)\x81\x8c\x04gpt2b.", "own encoding 'gpt2'"),
    "endless words": (pickled(pat_str=r"(\w+\w+)+$"), "which is not one of nanochat's patterns"),
    "endless words behind nanochat's": (
        pickled(pat_str=PATTERN + r"|(a+a+)+$"),
        "which is not one of nanochat's patterns",
    ),
    "words of bytes": (pickled(pat_str=b"x"), "without pat_str"),
    "gap": (pickled(mergeable_ranks=RANKS | {b" r": 300}), "whose ids are not 0, 1, 2"),
    "twice": (pickled(mergeable_ranks=RANKS | {b" r": 257}), "whose ids are not 0, 1, 2"),
    "shared": (pickled(special_tokens=SPECIALS | {"<|bos|>": 5}), "whose ids are not 0, 1, 2"),
    "no number": (pickled(mergeable_ranks=RANKS | {b" r": "258"}), "whose ids are not 0, 1, 2"),
    "truth": (pickled(mergeable_ranks=RANKS | {b"\x01": True}), "whose ids are not 0, 1, 2"),
    "text": (pickled(mergeable_ranks=RANKS | {" r": 258}), "whose tokens are not bytes"),
    "empty": (
        pickled(special_tokens={"": 267} | {t: i for t, i in SPECIALS.items() if i < 267}),
        "special tokens are not texts",
    ),
    "half a pair": (
        pickled(special_tokens={"\ud800": 267} | {t: i for t, i in SPECIALS.items() if i < 267}),
        "that cannot be typed",
    ),
    "a byte short": (
        pickled(mergeable_ranks={token: i for i, token in enumerate([*RANKS][1:])}, special_tokens={"<|bos|>": 258}),
        "lacks a token for some bytes",
    ),
    "no bos": (pickled(special_tokens={f"<{i}>": i for i in range(259, 268)}), "without <|bos|>"),
    "too few": (pickled(special_tokens={"<|bos|>": 259}), "has 260 tokens, but the model has 268"),
    "itself": (b"\x80\x04\x8c\x0dtiktoken.core\x8c\x08Encoding\x93)\x81\x94h\x00b.", "without pat_str"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tokenizer_runs_nothing_and_is_one_line(name: str) -> None:
    content, says = HOSTILE[name]
    Path("tokenizer.pkl").write_bytes(content)
    assert says in refusal(lambda: read_tokenizer(Path("tokenizer.pkl"), 268))
    assert not Path("ran").exists()


def test_the_record_that_the_tests_change_is_read() -> None:
    Path("tokenizer.pkl").write_bytes(pickled())
    assert read_tokenizer(Path("tokenizer.pkl"), 268).encode("the r") == [BOS, 257, 258]
    fingerprint = read_tokenizer(save_tokenizer(Path("x")), 268).fingerprint
    assert read_tokenizer(Path("tokenizer.pkl"), 268).fingerprint == fingerprint
    Path("tokenizer.pkl").write_bytes(pickled(pat_str=PATTERN.replace("{1,2}", "{1,3}")))
    assert read_tokenizer(Path("tokenizer.pkl"), 268).fingerprint != fingerprint


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, len(pickled()) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_damage_to_a_tokenizer_is_an_error_or_harmless(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(pickled())
    for place, byte in changes:
        content[place] = byte
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(content)
    try:
        tokenizer = read_tokenizer(path, 268)
    except gptsweep.ModelError:
        return
    assert set(tokenizer.encode("the rain")) <= set(range(268))


def test_no_file_is_read_to_its_end_that_no_vocabulary_fills() -> None:
    with Path("tokenizer.pkl").open("wb") as file:
        file.truncate(1 << 40)
    assert "is larger than 16 MiB" in refusal(lambda: read_tokenizer(Path("tokenizer.pkl"), 268))
    os.mkfifo("pipe")
    assert "cannot be read" in refusal(lambda: read_tokenizer(Path("pipe"), 268))


def test_ids_and_texts_are_those_of_tiktoken() -> None:
    text = "the rain 1234567 falls, thé \U0001f600 日本語\r\n\t  x  \x00 <|user_end|>"
    tokenizer = NanochatTokenizer(PATTERN, RANKS, SPECIALS)
    plain = tiktoken.Encoding("x", pat_str=PATTERN, mergeable_ranks=RANKS, special_tokens=SPECIALS)
    assert tokenizer.encode(text) == [BOS, *plain.encode(text, allowed_special="all")]
    assert tokenizer.decode(tokenizer.encode(text)) == f"<|bos|>{text}"
    assert tokenizer.encode("<|bos|>") == [BOS]  # what stands there already is not put in front again
    assert tokenizer.encode_turn("a <|bos|>") == [BOS, 260, *plain.encode_ordinary("a <|bos|>"), 261, 262]
    assert tokenizer.decode([0xE2, 0x82]) == "\N{REPLACEMENT CHARACTER}"
    large = json.loads((DATA / "A" / "expected.json").read_text())
    known = read_tokenizer(DATA / "A" / "tokenizer" / "tokenizer.pkl", 329)
    assert known.encode(large["text"]) == [320, *large["text_ids"]]


@pytest.mark.parametrize("token", [ASSISTANT_END, BOS])
def test_a_sample_ends_where_the_assistant_does_and_where_another_text_begins(token: int) -> None:
    saved()
    lm = gptsweep.load(HERE)
    forced = {"logit_bias": {token: 1000.0}, "max_new_tokens": 5}
    (ended,) = lm.generate("the", stop_at_eot=True, **forced)
    assert (ended.finish_reason, ended.token_ids, ended.completion) == ("eot", (token,), "")
    (went_on,) = lm.generate("the", **forced)
    assert (went_on.finish_reason, len(went_on.token_ids)) == ("length", 5)


def test_a_chat_template_asks_a_model_and_leaves_others_as_they_were(run: Run) -> None:
    saved()
    lm = gptsweep.load(HERE)
    greedy: dict[str, Any] = {"max_new_tokens": 4, "temperature": 0.0}
    (plain,), (templated,) = (lm.generate("the r", chat_template=chat, **greedy) for chat in (False, True))
    assert (plain.prompt_tokens, templated.prompt_tokens) == (3, 6)
    assert templated.prompt == "the r"
    assert plain.point_id != templated.point_id
    assert "chat_template" not in plain.as_json()
    wrapped = "<|bos|><|user_start|>the r<|user_end|><|assistant_start|>"
    assert lm.generate(wrapped, max_new_tokens=4, temperature=0.0)[0].token_ids == templated.token_ids
    assert run(*SWEPT, "sampling.chat_template=true,false", "sampling.temperature=1.0").status == 0
    found = gptsweep.read_sweep("outputs/sweeps/s")
    assert found.swept == ("chat_template",)
    assert sorted(zip(found.samples["chat_template"], found.samples["prompt_tokens"], strict=True))[::2] == [
        (False, 3),
        (True, 6),
    ]


def test_a_model_that_knows_no_conversations_is_not_asked() -> None:
    lm = gptsweep.load("shakespeare")
    with pytest.raises(
        gptsweep.ConfigError, match=r"sampling\.chat_template=True: the model's vocabulary has no chat template"
    ):
        lm.generate("ROMEO:", chat_template=True)
    tokenizer = NanochatTokenizer(PATTERN, RANKS, {"<|bos|>": 259})
    with pytest.raises(gptsweep.ConfigError, match="has no chat template"):
        tokenizer.encode_turn("a")
    assert tokenizer.end_ids == (259,)


# -- sampling over training --------------------------------------------------------------------------------------------------

SWEPT = (
    "-m", "name=s", "quiet=true", "model=nanochat", f"model.out_dir={HERE}", "sampling.temperature=0.7,1.0",
    "sampling.num_samples=2", "sampling.max_new_tokens=8", "start=the r",
)  # fmt: skip


def test_a_sweep_over_all_steps_is_fused_per_step_and_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (100, 20, 1000):
        saved("F", step)
    runs: list[int] = []
    run_plan = LocalExecutor.run

    def counted(self: LocalExecutor, model: Any, plan: Any, *rest: Any) -> Any:
        runs.append(len(plan.tasks))
        return run_plan(self, model, plan, *rest)

    monkeypatch.setattr(LocalExecutor, "run", counted)
    ended = run(*SWEPT, "model.step=glob(*)")
    assert ended.status == 0, ended.err
    assert runs == [2, 2, 2]  # both temperatures of a step in one batch
    found = gptsweep.read_sweep("outputs/sweeps/s")
    assert found.swept == ("step", "temperature")
    assert list(found.group(["step"])["step"]) == [20, 100, 1000]
    keys = {key["name"]: key for key in page_data(found, "s")["keys"]}
    assert keys["step"]["numbers"] == [20.0, 100.0, 1000.0]  # a number: the page draws a curve along it
    before = samples_of(Path("outputs/sweeps/s"))
    assert len(before) == 6
    saved("F", 3000)
    files = Path("outputs/sweeps/s").glob("*/samples.jsonl")
    next(path for path in files if re.search(r"step=100(\D|$)", path.parent.name)).unlink()
    runs.clear()
    assert run(*SWEPT, "model.step=glob(*)").status == 0
    assert [count for count in runs if count] == [1, 2]  # what was lost, and the new step
    after = samples_of(Path("outputs/sweeps/s"))
    assert before.items() <= after.items()
    assert len(after) == 8
    lm = gptsweep.load(HERE, step=20)
    samples = lm.generate("the r", num_samples=2, temperature=0.7, max_new_tokens=8)
    chosen = found.samples[(found.samples["step"] == 20) & (found.samples["temperature"] == 0.7)]
    assert [tuple(ids) for ids in chosen["token_ids"]] == [sample.token_ids for sample in samples]


@pytest.mark.parametrize(
    ("typed", "steps"),
    [("1000,20", [20, 1000]), ("glob(1*)", [100, 1000]), ("glob(*,exclude=2*)", [100, 1000]), ("range(20,101,80)", [20, 100])],
)
def test_steps_are_listed_matched_and_counted(run: Run, typed: str, steps: list[int]) -> None:
    for step in (100, 20, 1000):
        saved("A", step)
    ended = run(*SWEPT, f"model.step={typed}", "sampling.temperature=1.0", "sampling.num_samples=1")
    assert ended.status == 0, ended.err
    assert list(gptsweep.read_sweep("outputs/sweeps/s").group(["step"])["step"]) == steps


def test_steps_that_cannot_be_swept_are_an_error_before_anything_runs(run: Run) -> None:
    saved("A", 100)
    saved("A", 20)
    ended = run(*SWEPT, "model.step=glob(7*)")
    assert ended.status == 2
    assert f"model.step=glob(7*): matches no step in {HERE}, which has 20, 100" in ended.err
    save_nanochat(Path("base_checkpoints/d9"), random_weights("A", SMALL), SMALL, 100)
    ended = run(*SWEPT, "model.out_dir=base_checkpoints/d2,base_checkpoints/d9", "model.step=glob(*)")
    assert ended.status == 2
    assert "matches other steps in base_checkpoints/d9" in ended.err
    ended = run(*SWEPT, "model.out_dir=nowhere", "model.step=glob(*)")
    assert "model.out_dir=nowhere: no such directory" in ended.err
    assert not Path("outputs").exists()


def test_a_step_in_a_file_is_a_number_or_text(run: Run) -> None:
    saved("A", 100)
    Path("mine/experiment").mkdir(parents=True)
    for typed in ("100", "'100'", "last"):
        text = f"# @package _global_\ndefaults: [override /model: nanochat]\nmodel: {{out_dir: {HERE}, step: {typed}}}\n"
        Path("mine/experiment/x.yaml").write_text(text)
        ended = run("--config-dir", "mine", "experiment=x", "name=r", "quiet=true", "sampling.max_new_tokens=2", "start=the")
        assert ended.status == 0, ended.err
        manifest = json.loads(Path("outputs/runs/r/manifest.json").read_text())
        assert manifest["model"]["out_dir"] == HERE
        assert manifest["step"] == 100, "whatever was typed, and whatever the last step is later"
