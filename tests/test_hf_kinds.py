"""What a user would lose: the tokens and the text of transformers, for tokenizers of the kinds that people download."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import save_llama
from tokenizer_kinds import END, KINDS, MIXED, damage, files_of, in_front, ours, theirs, write

import gptsweep
from gptsweep.errors import ModelError, PromptError
from gptsweep.models.files.byte_pairs import Added
from gptsweep.models.files.generated_text import breaker_tokens, completion_text, stop_matcher, text_so_far
from gptsweep.models.files.hf_pipeline import Pipeline, PipelineTokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    write(tmp_path, files_of(kind))
    tokenizer, expected = ours(tmp_path), theirs(tmp_path)
    end, first = expected.eos_token, expected.bos_token or END
    typed = f"{first}[INST] {MIXED}{end} x{end}y {end}  z{first}"
    for text in (MIXED, typed, " a", "", " ", "\n", end, f"<unk>{end}\u0301"):
        ids = expected(text)["input_ids"]
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == expected.decode(ids), text
    bare = expected(MIXED, add_special_tokens=False)["input_ids"]
    assert tokenizer.encode_bare(MIXED) == bare
    assert len(tokenizer.encode(MIXED)) - len(bare) == ("llama" in kind or kind in ("mistral", "metaspace"))
    assert tokenizer.vocab_size == len(expected)
    for number in range(0, len(expected), 3):  # bytes that are no character among them
        ids = [number, (number * 7) % len(expected), (number * 13 + 5) % len(expected)]
        assert tokenizer.decode(ids) == expected.decode(ids)
        assert tokenizer.decode(ids[:1]) == expected.decode(ids[:1])


def test_qwens_vocabulary_without_tokenizer_json_is_split_as_qwens(tmp_path: Path) -> None:
    contents, config, model_type = files_of("qwen")
    flags = {token["id"]: token for token in contents["added_tokens"]}
    write(tmp_path, (contents, config, model_type), added_tokens_decoder=flags)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(contents["model"]["vocab"]))
    merges = [" ".join(pair) for pair in contents["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    tokenizer, expected = ours(tmp_path), theirs(tmp_path)
    assert tokenizer.encode(MIXED) == expected(MIXED)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_text_streams_without_broken_characters(kind: str, tmp_path: Path) -> None:
    tokenizer = ours(write(tmp_path, files_of(kind)))
    ids = tokenizer.encode_bare("ab 🙂👩‍👧 日本語 naïve")
    whole = completion_text(tokenizer, ids, (), None)
    assert whole.endswith("ab 🙂👩‍👧 日本語 naïve")
    assert len(ids) > len(whole)  # characters are cut into several tokens
    shown = [text_so_far(tokenizer, ids[:end], 100) for end in range(len(ids) + 1)]
    assert shown[-1] == whole
    assert all(later.startswith(sooner) for sooner, later in itertools.pairwise(shown))
    assert all(whole.find(text_so_far(tokenizer, ids[:end], 3)) >= 0 for end in range(len(ids) + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_string_is_found_across_tokens_and_bytes(kind: str, tmp_path: Path) -> None:
    tokenizer = ours(write(tmp_path, files_of(kind)))
    ids = tokenizer.encode_bare("One line.\n\nAnother 🙂 one 日本語 end")
    text = completion_text(tokenizer, ids, (), None)
    for stop in ("r 🙂 o", "🙂", "\n\nA", "日本", "本", "e 日", "d"):
        matches = stop_matcher(tokenizer, (stop,))
        heard = [matches(token) for token in ids]
        assert heard.count(True), stop
        until = ids[: heard.index(True) + 1]
        assert completion_text(tokenizer, until, (stop,), None) == text[: text.index(stop)]
        assert stop in completion_text(tokenizer, until, (), None)
        assert stop not in completion_text(tokenizer, until[:-1], (), None)


def test_what_breaks_a_repetition_holds_no_beginning_of_text(tmp_path: Path) -> None:
    tokenizer = ours(write(tmp_path, files_of("llama3")))
    found = breaker_tokens(tokenizer, ("\n\nAb",))
    assert found
    assert all(0 not in sequence[1:] for sequence in found)


def test_a_character_without_a_token_is_named() -> None:
    ids = {"a": 0, "▁": 1, "<0xC3>": 2, "<0xA9>": 3}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    decoder = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]}
    decoder["decoders"] += [{"type": "ByteFallback"}, {"type": "Fuse"}]  # type: ignore[operator]
    tokenizer = PipelineTokenizer(ids, [], {"<b>": Added(4)}, Pipeline(replace, None, decoder, byte_fallback=True))
    assert tokenizer.encode("a é<b>") == [0, 1, 2, 3, 4]
    assert tokenizer.decode([0, 1, 2, 3, 4]) == "a é<b>"
    with pytest.raises(PromptError, match=r"'b' \(U\+0062\), line 1, column 5, is not in the model's vocabulary"):
        tokenizer.encode("a<b>b")


def test_vocabularies_that_differ_in_a_step_have_different_fingerprints(tmp_path: Path) -> None:
    contents, config, model_type = files_of("qwen")
    changes: list[dict[str, Any]] = [
        {},
        {"normalizer": None},
        {"pre_tokenizer": files_of("llama3")[0]["pre_tokenizer"]},
        {"model": contents["model"] | {"ignore_merges": True}},
        {"post_processor": in_front("<|im_start|>", 1)},
        {"model": contents["model"] | {"merges": contents["model"]["merges"][:-1]}},
    ]
    files = [(contents | change, config | {"tokenizer_class": "PreTrainedTokenizerFast"}, model_type) for change in changes]
    assert len({ours(write(tmp_path, each)).fingerprint for each in files}) == len(files)


# --- end tokens -----------------------------------------------------------------------------------------------------------


def test_every_end_token_that_the_files_name_ends_a_text(tmp_path: Path) -> None:
    write(tmp_path, files_of("qwen"))
    assert ours(tmp_path).end_ids == (0, 2)  # the vocabulary's own, and tokenizer_config.json's
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "eos_token_id": [2, 9]}))
    without = ours(tmp_path)
    assert (without.eot_id, without.end_ids) == (2, (2, 9))
    for ends, expected in ((7, (2, 9, 7)), ([2, 0, 5000], (2, 9, 0)), (None, (2, 9))):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        tokenizer = ours(tmp_path)
        assert tokenizer.end_ids == expected
        assert (tokenizer.fingerprint == without.fingerprint) == (expected == (2, 9))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "2"}')
    with pytest.raises(ModelError, match=r"its generation_config\.json has eos_token_id='2', which is neither"):
        ours(tmp_path)


def test_a_sample_ends_at_each_of_the_end_tokens(tmp_path: Path) -> None:
    save_llama(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [65, 66]}))
    lm = gptsweep.load(tmp_path)
    for token in (65, 66):
        (ended,) = lm.generate("the", stop_at_eot=True, logit_bias={token: 1000.0}, max_new_tokens=5)
        assert (ended.finish_reason, ended.token_ids, ended.completion) == ("eot", (token,), "")
    (went_on,) = lm.generate("the", logit_bias={65: 1000.0}, max_new_tokens=5)
    assert (went_on.finish_reason, len(went_on.token_ids)) == ("length", 5)


# --- files from strangers -------------------------------------------------------------------------------------------------


STRANGE = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1.5,
        2**32,
        2**64,
        10**400,
        "",
        "a",
        "▁" * 20,
        "\ud800",
        "\x00",
        "(a+)+$",
        [],
        [[]],
        [0, 0],
        {},
        {"a": 0},
    ]
    + [{"type": kind} for kind in ("ByteLevel", "Sequence", "Metaspace", "Fuse", "NFC", "Prepend", "Replace", "Split", "Strip")]
    + [{"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated"} for words in ("(a+)+$", r"\p{L}+", "[a", "(")]
    + [{"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}, {"Regex": "(a|a)*$"}, {"String": ""}]
)


_ALEF = {"type": "Replace", "pattern": {"String": "\u0627"}, "content": "\ufdfa"}
_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}


@pytest.mark.parametrize(
    ("place", "steps", "says"),
    [
        ("normalizer", [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 5}] * 2, "more than 16 times"),
        ("normalizer", [_ALEF, {"type": "NFKD"}, _ALEF, {"type": "NFKC"}], "normalizer with NFKD, NFKC, but gptsweep supports"),
        ("pre_tokenizer", [_LEVEL] * 2, "pre_tokenizer with ByteLevel, ByteLevel, but gptsweep supports only one"),
        ("decoder", [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 5}] * 2, "more than 16 times"),
    ],
)
def test_steps_that_together_lengthen_a_text_without_end_are_refused(
    place: str, steps: list[dict[str, Any]], says: str, tmp_path: Path
) -> None:
    inner = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}[place]
    contents = files_of("llama2")[0] | {place: {"type": "Sequence", inner: steps}}
    with pytest.raises(ModelError, match=says):
        ours(write(tmp_path, (contents, {}, "llama")))


def test_a_template_does_not_put_thousands_of_tokens_before_each_text(tmp_path: Path) -> None:
    front = in_front("<s>", 1)
    front["single"] = [*front["single"][:1] * 1000, front["single"][1]]
    front["special_tokens"]["<s>"]["ids"] *= 1000
    with pytest.raises(ModelError, match="adds more than 64 tokens before each text"):
        ours(write(tmp_path, (files_of("llama2")[0] | {"post_processor": front}, {}, "llama")))


@settings(max_examples=60)
@given(data=st.data(), kind=st.sampled_from(["llama2", "metaspace", "qwen"]))
def test_a_damaged_pipeline_is_one_clear_line(data: st.DataObject, kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    contents = copy.deepcopy(files_of(kind)[0])
    contents["model"] |= {"merges": contents["model"]["merges"][:30]}
    damage(contents, data, STRANGE, 2)
    directory = write(tmp_path_factory.mktemp("damaged"), (contents, {"tokenizer_class": "PreTrainedTokenizerFast"}, "llama"))
    message, tokenizer, ids = "model.path=here: ", None, []
    try:
        tokenizer = ours(directory)
        ids = tokenizer.encode("self.x </s> word\n")
    except (ModelError, PromptError) as error:
        message = str(error)
    assert message.startswith(("model.path=here: ", "start=self.x </s> word\\n: "))
    assert "\n" not in message
    if tokenizer is not None:
        assert all(0 <= token < tokenizer.vocab_size for token in ids)
        assert len(tokenizer.decode(ids)) < 1000
        assert len(b"".join(map(tokenizer.token_bytes, ids))) < 1000
