"""The vocabulary beside nanoGPT's data: every form that is written of it is read, and a file that is none does no harm."""

from __future__ import annotations

import collections
import pickle
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import save_meta

from gptsweep.errors import ModelError
from gptsweep.models.files.meta import read_meta
from gptsweep.models.files.tokenizers import CharTokenizer, GPT2Tokenizer


class Malicious:
    """Unpickled by the standard library, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_meta_pkl_runs_nothing(tmp_path: Path, protocol: int) -> None:
    trap, path = tmp_path / "trap", tmp_path / "meta.pkl"
    for contents in (Malicious(trap), {"itos": {0: "a"}, "stoi": {"a": 0}, "extra": [Malicious(trap)]}):
        path.write_bytes(pickle.dumps(contents, protocol))
        if isinstance(contents, dict):
            assert read_meta(path, 65).itos == ("a",)
        else:
            with pytest.raises(ModelError, match="has no vocabulary 'itos'"):
                read_meta(path, 65)
    assert not trap.exists()
    pickle.loads(path.read_bytes())["extra"][0].close()
    assert trap.exists()  # the trap works


def written(path: Path, meta: object, protocol: int = 4) -> Path:
    path.write_bytes(meta if isinstance(meta, bytes) else pickle.dumps(meta, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "meta",
    [
        {"itos": ["a", "b"]},
        {"itos": ("a", "b"), "stoi": {"a": 0, "b": 1}},
        {"itos": collections.OrderedDict({0: "a", 1: "b"}), "stoi": collections.OrderedDict(b=1, a=0)},
        {"itos": collections.defaultdict(str, {1: "b", 0: "a"}), "stoi": collections.defaultdict(int, a=0, b=1)},
        {"itos": np.array(["a", "b"]), "vocab_size": np.int64(2)},
        {"itos": np.array(["a", "b"], dtype=object)},
        {"itos": {np.int64(0): np.str_("a"), np.uint8(1): "b"}, "stoi": {"a": np.int32(0), np.str_("b"): 1}},
        {"itos": {0: "a", 1: "b"}, "tokenizer": "char", "prepared": Path("data"), "sizes": {1, 2}, "chars": frozenset("ab")},
    ],
)
def test_a_vocabulary_may_be_written_in_any_container(tmp_path: Path, meta: Any, protocol: int) -> None:
    tokenizer = read_meta(written(tmp_path / "meta.pkl", meta, protocol), 2)
    assert tokenizer.encode("ba") == [1, 0]
    assert tokenizer.fingerprint == CharTokenizer("ab").fingerprint


def test_ids_may_begin_above_zero_and_have_holes(tmp_path: Path) -> None:
    tokenizer = read_meta(written(tmp_path / "meta.pkl", {"itos": {1: "a", 3: "b"}, "stoi": {"a": 1, "b": 3}}), 64)
    assert tokenizer.encode("ba") == [3, 1]
    assert tokenizer.decode([1, 3, 2, 0]) == "ab\ufffd\ufffd"
    assert tokenizer.vocab_size == 4
    assert tokenizer.fingerprint != CharTokenizer("ab").fingerprint


def test_other_texts_may_share_an_id(tmp_path: Path) -> None:
    tokenizer = read_meta(written(tmp_path / "meta.pkl", {"itos": {0: "a", 1: "b"}, "stoi": {"a": 0, "b": 1, "A": 0}}), 2)
    assert tokenizer.encode("Ab") == [0, 1]
    assert tokenizer.decode([0, 1]) == "ab"
    assert tokenizer.fingerprint != CharTokenizer("ab").fingerprint  # "A" is another prompt than it was
    tokenizer = read_meta(written(tmp_path / "meta.pkl", {"itos": ["a", "?", "?"], "stoi": {"a": 0, "?": 2}}), 3)
    assert tokenizer.encode("?") == [2]


def test_a_meta_pkl_may_name_gpt2s_encoding(tmp_path: Path) -> None:
    for meta in ({"tokenizer": "tiktoken"}, {"tokenizer": "tiktoken", "tiktoken_encoding": "gpt2"}, {"tokenizer": "gpt2"}):
        assert isinstance(read_meta(written(tmp_path / "meta.pkl", meta), 50304), GPT2Tokenizer)
    for meta, says in [
        ({"tokenizer": "tiktoken", "tiktoken_encoding": "cl100k_base"}, "encoding 'cl100k_base'"),
        ({"tokenizer": "sentencepiece", "itos": {0: "a"}}, "the tokenizer 'sentencepiece'"),
        ({"tokenizer": [[[[]]]], "itos": {0: "a"}}, "the tokenizer [[[...]]]"),
    ]:
        with pytest.raises(ModelError, match=re.escape(says)):
            read_meta(written(tmp_path / "meta.pkl", meta), 50304)


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (b"", "is not a pickle of a vocabulary (the pickle in it is damaged (ValueError))"),
        (b"\x80", "is not a pickle of a vocabulary"),
        (b"hello", "is not a pickle of a vocabulary"),
        (b"(lp0\n.", "has no vocabulary 'itos'"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", "pickle"),
        ({"vocab_size": 50257}, "has no vocabulary 'itos'"),
        ({"itos": {}}, "has no vocabulary 'itos'"),
        ({"itos": 5}, "has no vocabulary 'itos'"),
        ({"itos": {0: "a", 1: 5}}, "does not map ids to text"),
        ({"itos": {0: "a", "b": "b"}}, "does not map ids to text"),
        ({"itos": {0: "a", -1: "b"}}, "does not map ids to text"),
        ({"itos": {0: "a", 10**12: "b"}}, "has ids up to 1000000000000, more than the 65"),
        ({"itos": {0: "a", 1: "b"}, "stoi": {"a": 1, "b": 0}}, "is not the inverse"),
        ({"itos": ["a", "b"], "stoi": {"a": 0}}, "is not the inverse"),
        ({"itos": ["a"], "stoi": {"a": 0, "b": 1}}, "does not map text to the ids"),
        (range(3), "has no vocabulary 'itos'"),
    ],
)
def test_a_meta_pkl_that_is_none_says_why(tmp_path: Path, contents: object, says: str) -> None:
    path = written(tmp_path / "meta.pkl", contents)
    with pytest.raises(ModelError, match=re.escape(says)) as caught:
        read_meta(path, 65)
    assert str(caught.value).startswith(f"model.meta={path}: ")
    assert "\n" not in str(caught.value)


def nested_key() -> bytes:
    """A dictionary whose key is a tuple of tuples: its hash takes 2**60 steps."""
    return b"\x80\x02}(" + b")" + b"2\x86" * 60 + b"K\x01u."


def repeated_text() -> bytes:
    """2,000 ids of one text of a megabyte."""
    text = b"X" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20) + b"q\x00"
    ids = b"".join(b"M" + token.to_bytes(2, "little") + b"h\x00" for token in range(2000))
    return b"\x80\x02" + text + b"0}X\x04\x00\x00\x00itos}(" + ids + b"us."


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (nested_key(), "has no vocabulary"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "has no vocabulary"),  # a memo index of two billion
        (repeated_text(), "more text than the file holds"),
        (b"\x80\x02]q\x00h\x00a.", "has no vocabulary"),  # a list that holds itself
        (b"\x80\x04" + b"\x8f" * 30_000 + b".", "more than 20,000 operations"),
        (b"\x80\x02" + b"(" * 9_000 + b"t" * 9_000 + b".", "has no vocabulary"),
        (b"\x80\x02" + b")" + b"\x85" * 19_000 + b".", "has no vocabulary"),
        (b"\x80\x02T\xff\xff\xff\x7fabc.", "is not a pickle"),
        (b"cos\nsystem\n(S'true'\ntR.", "has no vocabulary"),
        (b"\x80\x02\x82\x01.", "uses EXT1"),
        (b"\x80\x02K\x01Q.", "uses BINPERSID"),
        (pickle.dumps({"itos": np.array(["a"])}).replace(b"a\0\0\0", b"\xff\xff\xff\xff"), "has no vocabulary"),
    ],
    ids=[
        "nested key",
        "memo index",
        "repeated text",
        "cycle",
        "sets",
        "marks",
        "deep",
        "length",
        "call",
        "extension",
        "persistent",
        "no character",
    ],
)
def test_a_hostile_meta_pkl_neither_hangs_nor_fills_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: bytes, says: str
) -> None:
    monkeypatch.setattr("gptsweep.models.files.pickles.OPERATIONS", 20_000)
    began = time.process_time()
    with pytest.raises(ModelError, match=says) as caught:
        read_meta(written(tmp_path / "meta.pkl", contents), 3000)
    assert len(str(caught.value)) < 1000
    assert time.process_time() - began < 30


def test_text_made_anew_by_each_call_is_not_more_than_the_file_holds(tmp_path: Path) -> None:
    encode = b"c_codecs\nencode\nq\x01X" + (1 << 16).to_bytes(4, "little") + b"a" * (1 << 16) + b"q\x02"
    calls = (b"h\x01h\x02X\x06\x00\x00\x00latin1\x86R") * 1000
    with pytest.raises(ModelError, match="makes more than it holds"):
        read_meta(written(tmp_path / "meta.pkl", b"\x80\x02" + encode + calls + b"."), 65)


@settings(max_examples=200)
@given(data=st.data())
def test_a_damaged_meta_pkl_is_an_error_or_a_vocabulary(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = save_meta(tmp_path_factory.mktemp("meta") / "meta.pkl", "abc")
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:place] + data.draw(st.binary(max_size=2)) + whole[place + 1 :])
    try:
        tokenizer = read_meta(path, 65)
    except ModelError:
        return
    assert isinstance(tokenizer, GPT2Tokenizer) or tokenizer.vocab_size == len(tokenizer.itos)
