"""What a user would lose: the tokens and the text of transformers, for tokenizers of the kinds that people download."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import save_llama
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

import gptsweep
from gptsweep.errors import ModelError, PromptError
from gptsweep.models.files.byte_pairs import Added
from gptsweep.models.files.generated_text import breaker_tokens, completion_text, stop_matcher, text_so_far
from gptsweep.models.files.hf_pipeline import LLAMA3_WORDS, QWEN_WORDS, Pipeline, PipelineTokenizer
from gptsweep.models.files.hf_tokenizer import read_hf_tokenizer
from gptsweep.models.files.tokenizers import Tokenizer

CORPUS = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8").split("\n")
END = "<|endoftext|>"
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
MIXED = "naïve e\u0301 🙂👩‍👧 日本語, 12345 it's IT'S\r\n\ta\t\t  b      c  ▁d \x00\x7f"


def trained(
    pre_tokenizer: Any, normalizer: Any, decoder: Any, special: Sequence[str], *, fallback: bool = False
) -> dict[str, Any]:
    """A small ``tokenizer.json``."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=fallback, fuse_unk=fallback, unk_token=special[0]))
    for name, step in {"pre_tokenizer": pre_tokenizer, "normalizer": normalizer, "decoder": decoder}.items():
        if step is not None:
            setattr(tokenizer, name, step)
    alphabet = [] if fallback else pre_tokenizers.ByteLevel.alphabet()
    first = [*special, *(f"<0x{byte:02X}>" for byte in range(256))] if fallback else list(special)
    size = {"vocab_size": len(first) + 400, "initial_alphabet": alphabet, "special_tokens": first}
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(show_progress=False, **size))
    contents: dict[str, Any] = json.loads(tokenizer.to_str())
    contents["added_tokens"] = [token for token in contents["added_tokens"] if token["content"] in special]
    return contents


def in_front(text: str, number: int) -> dict[str, Any]:
    """The post_processor that puts a token before a text."""
    single = [{"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    known = {text: {"id": text, "ids": [number], "tokens": [text]}}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": known}


def split(words: str) -> Any:
    pieces = pre_tokenizers.Split(tokenizers.Regex(words), "isolated")
    return pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


Files = tuple[dict[str, Any], dict[str, Any], str]
"""``tokenizer.json``, ``tokenizer_config.json`` and the model_type."""


@pytest.fixture(scope="session")
def kinds() -> dict[str, Files]:
    level, decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    chatml = [END, "<|im_start|>", "<|im_end|>"]
    names = {"bos_token": END, "eos_token": END, "unk_token": END}
    turns = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": END}
    llama2 = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    fallback = trained(None, spaces, decoders.Sequence(back), ["<unk>", "<s>", "</s>"], fallback=True)
    fallback |= {"post_processor": in_front("<s>", 1)}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    llama3 = trained(split(LLAMA3_WORDS), None, decoder, LLAMA3)
    llama3["model"]["ignore_merges"] = True
    after = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    llama3["post_processor"] = {"type": "Sequence", "processors": [after, in_front(LLAMA3[0], 0)]}
    neox = trained(level, normalizers.NFC(), decoder, [END, "<|padding|>"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    size = len(neox["model"]["vocab"])
    neox["added_tokens"] += [{"id": size + more, "content": "  " * (1 + more), **flags} for more in (0, 1)]
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    fast = {"tokenizer_class": "PreTrainedTokenizerFast"}
    return {
        "gpt2": (trained(level, None, decoder, [END]) | {"post_processor": after}, names, "gpt2"),
        "smollm2": (trained(digits, None, decoder, chatml), turns | {"tokenizer_class": "GPT2Tokenizer"}, "llama"),
        "qwen": (
            trained(split(QWEN_WORDS), normalizers.NFC(), decoder, chatml),
            {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>", "add_prefix_space": False},
            "qwen3",
        ),
        "llama2": (fallback, llama2 | fast, "llama"),
        "mistral": (fallback, llama2 | {"tokenizer_class": "LlamaTokenizer", "legacy": True}, "mistral"),
        "metaspace": (fallback | {"normalizer": None, "pre_tokenizer": metaspace}, llama2 | fast, "llama"),
        "llama2_by_class": (fallback, llama2 | {"tokenizer_class": "LlamaTokenizer", "legacy": False}, "llama"),
        "llama2_by_legacy_class": (fallback, llama2 | {"tokenizer_class": "LlamaTokenizerFast", "legacy": True}, "llama"),
        "llama3": (llama3, fast | {"bos_token": LLAMA3[0], "eos_token": LLAMA3[-1]}, "llama"),
        "neox": (neox, names | {"tokenizer_class": "GPTNeoXTokenizer"}, "gpt_neox"),
    }


KINDS = (
    "gpt2", "smollm2", "qwen", "llama2", "mistral", "metaspace", "llama2_by_class", "llama2_by_legacy_class", "llama3", "neox",
)  # fmt: skip


def write(directory: Path, files: Files, **more: object) -> Path:
    """A model's directory as far as its tokenizer; ``more`` goes to ``tokenizer_config.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    contents, config, model_type = files
    (directory / "tokenizer.json").write_text(json.dumps(contents))
    (directory / "tokenizer_config.json").write_text(json.dumps(config | more))
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    return directory


def ours(directory: Path, limit: int = 1000) -> Tokenizer:
    def find(name: str) -> Path | None:
        return path if (path := directory / name).is_file() else None

    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    found = read_hf_tokenizer(find, config=config, limit=limit, key="model.path", value="here")
    assert found is not None
    return found


def theirs(directory: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_those_of_transformers(kind: str, kinds: Mapping[str, Files], tmp_path: Path) -> None:
    write(tmp_path, kinds[kind])
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


def test_qwens_vocabulary_without_tokenizer_json_is_split_as_qwens(kinds: Mapping[str, Files], tmp_path: Path) -> None:
    contents, config, model_type = kinds["qwen"]
    flags = {token["id"]: token for token in contents["added_tokens"]}
    write(tmp_path, (contents, config, model_type), added_tokens_decoder=flags)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(contents["model"]["vocab"]))
    merges = [" ".join(pair) for pair in contents["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    tokenizer, expected = ours(tmp_path), theirs(tmp_path)
    assert tokenizer.encode(MIXED) == expected(MIXED)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_text_streams_without_broken_characters(kind: str, kinds: Mapping[str, Files], tmp_path: Path) -> None:
    tokenizer = ours(write(tmp_path, kinds[kind]))
    ids = tokenizer.encode_bare("ab 🙂👩‍👧 日本語 naïve")
    whole = completion_text(tokenizer, ids, (), None)
    assert whole.endswith("ab 🙂👩‍👧 日本語 naïve")
    assert len(ids) > len(whole)  # characters are cut into several tokens
    shown = [text_so_far(tokenizer, ids[:end], 100) for end in range(len(ids) + 1)]
    assert shown[-1] == whole
    assert all(later.startswith(sooner) for sooner, later in itertools.pairwise(shown))
    assert all(whole.find(text_so_far(tokenizer, ids[:end], 3)) >= 0 for end in range(len(ids) + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_string_is_found_across_tokens_and_bytes(kind: str, kinds: Mapping[str, Files], tmp_path: Path) -> None:
    tokenizer = ours(write(tmp_path, kinds[kind]))
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


def test_what_breaks_a_repetition_holds_no_beginning_of_text(kinds: Mapping[str, Files], tmp_path: Path) -> None:
    tokenizer = ours(write(tmp_path, kinds["llama3"]))
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


def test_vocabularies_that_differ_in_a_step_have_different_fingerprints(kinds: Mapping[str, Files], tmp_path: Path) -> None:
    contents, config, model_type = kinds["qwen"]
    changes: list[dict[str, Any]] = [
        {},
        {"normalizer": None},
        {"pre_tokenizer": kinds["llama3"][0]["pre_tokenizer"]},
        {"model": contents["model"] | {"ignore_merges": True}},
        {"post_processor": in_front("<|im_start|>", 1)},
        {"model": contents["model"] | {"merges": contents["model"]["merges"][:-1]}},
    ]
    files = [(contents | change, config | {"tokenizer_class": "PreTrainedTokenizerFast"}, model_type) for change in changes]
    assert len({ours(write(tmp_path, each)).fingerprint for each in files}) == len(files)


# --- end tokens -----------------------------------------------------------------------------------------------------------


def test_every_end_token_that_the_files_name_ends_a_text(kinds: Mapping[str, Files], tmp_path: Path) -> None:
    write(tmp_path, kinds["qwen"])
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


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places in a JSON value, a few of each list or object."""
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [path, *(place for key, each in itertools.islice(inner, 8) for place in places(each, (*path, key)))]


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


@settings(max_examples=60)
@given(data=st.data(), kind=st.sampled_from(["llama2", "metaspace", "qwen"]))
def test_a_damaged_pipeline_is_one_clear_line(
    data: st.DataObject, kind: str, kinds: Mapping[str, Files], tmp_path_factory: pytest.TempPathFactory
) -> None:
    contents = copy.deepcopy(kinds[kind][0])
    contents["model"] |= {"merges": contents["model"]["merges"][:30]}
    for _ in range(data.draw(st.integers(1, 2))):
        found = places(contents)
        *path, last = found[data.draw(st.integers(1, len(found) - 1))]
        place = contents
        for key in path:
            place = place[key]
        place[last] = copy.deepcopy(data.draw(STRANGE))
    directory = write(tmp_path_factory.mktemp("damaged"), (contents, {"tokenizer_class": "PreTrainedTokenizerFast"}, "llama"))
    said, tokenizer, ids = "model.path=here: ", None, []
    try:
        tokenizer = ours(directory)
        ids = tokenizer.encode("self.x </s> word\n")
    except (ModelError, PromptError) as error:
        said = str(error)
    assert said.startswith(("model.path=here: ", "start=self.x </s> word\\n: "))
    assert "\n" not in said
    if tokenizer is not None:
        assert all(0 <= token < tokenizer.vocab_size for token in ids)
        assert len(tokenizer.decode(ids)) < 1000
        assert len(b"".join(map(tokenizer.token_bytes, ids))) < 1000
