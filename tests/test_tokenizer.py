"""Text goes to the model's tokens and back unchanged, and samples end where their stop strings begin."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe
from tiktoken_ext.openai_public import r50k_pat_str

from gptsweep.errors import PromptError
from gptsweep.models.files.byte_pairs import Added, BytePairTokenizer, byte_alphabet
from gptsweep.models.files.generated_text import breaker_tokens, completion_text, stop_matcher
from gptsweep.models.files.tokenizers import RANKS, CharTokenizer, GPT2Tokenizer, Tokenizer

GPT2 = GPT2Tokenizer()
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


# --- GPT-2 ----------------------------------------------------------------------------------------------------------------


def test_the_shipped_ranks_are_openais() -> None:
    """The hash that tiktoken itself expects of r50k_base.tiktoken."""
    digest = hashlib.sha256(RANKS.read_bytes()).hexdigest()
    assert digest == "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
    assert "Permission is hereby granted" in (RANKS.parent / "LICENSE").read_text()


def test_known_text_gets_gpt2s_known_tokens() -> None:
    assert GPT2.encode("Hello world") == [15496, 995]
    assert GPT2.encode("\n") == [198]
    assert GPT2.encode("hi<|endoftext|>x") == [5303, 50256, 87]
    assert GPT2.decode([15496, 50256, 995]) == "Hello<|endoftext|> world"
    assert (GPT2.vocab_size, GPT2.eot_id) == (50257, 50256)


@settings(max_examples=300)
@given(TEXTS)
def test_gpt2_tokens_are_tiktokens_and_lose_nothing(text: str) -> None:
    assert GPT2.encode(text) == TIKTOKEN.encode(text, allowed_special={"<|endoftext|>"})
    assert GPT2.decode(GPT2.encode(text)) == text


def _tiktoken() -> tiktoken.Encoding:
    """The encoding as tiktoken builds ``gpt2``: its own splitting pattern, its own reader of ranks."""
    # A local path is read as it is; the cache directory keeps tiktoken from writing a copy of it.
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""
    try:
        ranks = load_tiktoken_bpe(str(RANKS))
    finally:
        os.environ.pop("TIKTOKEN_CACHE_DIR")
        if before is not None:
            os.environ["TIKTOKEN_CACHE_DIR"] = before
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256})


TIKTOKEN = _tiktoken()


def test_an_id_that_is_no_token_does_not_break_a_page_of_text() -> None:
    assert GPT2.decode([15496, 50300, -1, 995]) == "Hello\ufffd\ufffd world"
    assert CharTokenizer("ab").decode([0, 5, 1, -2]) == "a\ufffdb\ufffd"


def test_half_a_character_becomes_the_replacement_character() -> None:
    smile = GPT2.encode("🙂")
    assert len(smile) > 1
    assert GPT2.decode(smile) == "🙂"
    assert "\ufffd" in GPT2.decode(smile[:1])


def test_a_byte_that_is_not_utf8_is_named() -> None:
    for tokenizer in (GPT2, BytePairTokenizer({b"a": 0}, [], {})):
        with pytest.raises(
            PromptError, match=r"'\\udcff' \(U\+DCFF\), line 2, column 3, is half of a surrogate pair or a byte"
        ):
            tokenizer.encode("one\nab\udcffc")


# --- characters -----------------------------------------------------------------------------------------------------------


def test_an_unknown_character_is_named_with_its_place() -> None:
    tokenizer = CharTokenizer("\n abc")
    assert tokenizer.encode("a cab\n") == [2, 1, 4, 2, 3, 0]
    with pytest.raises(PromptError) as caught:
        tokenizer.encode("ab\nca é b!")
    line = str(caught.value)
    assert line.startswith("start=ab\\nca é b!: 'é' (U+00E9), line 2, column 4, is not in the model's vocabulary")
    assert "nor is 1 more character; it has the 5 characters \\n abc" in line
    with pytest.raises(PromptError, match=r"'<' \(U\+003C\), line 1, column 1,"):
        tokenizer.encode("<|endoftext|>")


@given(st.text(min_size=1))
def test_characters_lose_nothing(text: str) -> None:
    tokenizer = CharTokenizer(sorted(set(text)))
    assert [tokenizer.itos[token] for token in tokenizer.encode(text)] == list(text)
    if text.isprintable():
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_vocabularies_that_differ_have_different_fingerprints() -> None:
    vocabularies: list[Tokenizer] = [
        GPT2,
        GPT2Tokenizer({"<|pad|>": 50257}),
        GPT2Tokenizer(eot_id=0),
        CharTokenizer("ab"),
        CharTokenizer("ba"),
        BytePairTokenizer({b"a": 0, b"b": 1}, [], {}),
        BytePairTokenizer({b"a": 0, b"b": 1}, [], {"c": Added(2)}),
        BytePairTokenizer({b"a": 0, b"b": 1}, [], {"c": Added(2)}, 2),
        BytePairTokenizer({b"a": 0, b"b": 1}, [], {"c": Added(2, lstrip=True)}),
        BytePairTokenizer({b"a": 0, b"b": 1}, [], {"c": Added(2, rstrip=True)}),
        BytePairTokenizer({b"a": 0, b"b": 1}, [], {"c": Added(2)}, first_ids=[2]),
        BytePairTokenizer({b"a": 0, b"b": 1, b"ab": 2}, [(b"a", b"b")], {}),
        BytePairTokenizer({b"a": 0, b"b": 1, b"ab": 2}, [], {}),
    ]
    assert len({tokenizer.fingerprint for tokenizer in vocabularies}) == len(vocabularies)
    assert GPT2Tokenizer().fingerprint == GPT2.fingerprint


# --- byte pairs -----------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    corpus=st.lists(st.text("abcé \n1<|>", min_size=1), min_size=1), text=st.text("abcé \n1<|>x"), prefix_space=st.booleans()
)
def test_byte_pairs_are_merged_as_hugging_face_merges_them(corpus: list[str], text: str, prefix_space: bool) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.ByteLevelBPETokenizer(add_prefix_space=prefix_space)
    added = ["<|", "<|x", "1"]
    theirs.train_from_iterator(corpus, vocab_size=300, min_frequency=1, special_tokens=added, show_progress=False)
    model = json.loads(theirs._tokenizer.to_str())["model"]
    alphabet = byte_alphabet()

    def spelt(token: str) -> bytes:
        return bytes(alphabet[character] for character in token)

    ours = BytePairTokenizer(
        {spelt(token): number for token, number in model["vocab"].items() if token not in added},
        [(spelt(left), spelt(right)) for left, right in model["merges"]],
        {token: Added(model["vocab"][token]) for token in added},
        prefix_space=prefix_space,
    )
    assert ours.encode(text) == theirs.encode(text).ids
    assert ours.decode(ours.encode(text)).replace(" ", "") == text.replace(" ", "")


def test_a_byte_without_a_token_is_named_with_its_place() -> None:
    tokenizer = BytePairTokenizer({b"a": 0, b" ": 1, b"\xc3": 2}, [], {"<>": Added(3)})
    assert tokenizer.encode("a a<>a") == [0, 1, 0, 3, 0]
    with pytest.raises(PromptError, match=r"'é' \(U\+00E9\), line 1, column 6, is not in the model's vocabulary"):
        tokenizer.encode("a<> aéa")


# --- stop strings ---------------------------------------------------------------------------------------------------------


class Chunks(Tokenizer):
    """Tokens of arbitrary bytes."""

    eot_id = None
    fingerprint = "chunks"

    def __init__(self, chunks: list[bytes]) -> None:
        self.chunks = chunks
        self.vocab_size = len(chunks)

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def token_bytes(self, token: int) -> bytes:
        return self.chunks[token]


def plain_stop(data: bytes, stops: tuple[str, ...]) -> int | None:
    """Where the text ends: the bytes are looked through one more at a time, from the start each time."""
    for end in range(1, len(data) + 1):
        starts = [end - len(stop.encode()) for stop in stops if data[:end].endswith(stop.encode())]
        if starts:
            return min(starts)
    return None


BYTES = "aé🙂".encode()
CUT = st.lists(st.lists(st.sampled_from([bytes([byte]) for byte in BYTES]), max_size=4).map(b"".join), max_size=12)
WHOLE = st.text("aé🙂", max_size=8).flatmap(
    lambda text: st.lists(st.integers(0, len(text.encode())), max_size=6).map(
        lambda cuts: [text.encode()[a:b] for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), None], strict=True)]
    )
)
STOPS = st.lists(st.text("aé🙂", min_size=1, max_size=3), max_size=3).map(tuple)


@settings(max_examples=1000)
@given(chunks=CUT | WHOLE, stops=STOPS)
def test_a_stop_string_is_found_wherever_tokens_and_characters_are_cut(chunks: list[bytes], stops: tuple[str, ...]) -> None:
    tokenizer = Chunks(chunks)
    matches = stop_matcher(tokenizer, stops)
    seen = b""
    for token, chunk in enumerate(chunks):
        seen += chunk
        assert matches(token) == (plain_stop(seen, stops) is not None)
    end = plain_stop(seen, stops)
    assert completion_text(tokenizer, range(len(chunks)), stops, None) == seen[:end].decode("utf-8", "replace")


def test_a_stop_string_across_gpt2_tokens_ends_the_text_before_it() -> None:
    ids = GPT2.encode("One line.\n\nAnother 🙂 one")
    matches = stop_matcher(GPT2, ("e 🙂 o", "r 🙂"))
    heard = [matches(token) for token in ids]
    assert any(heard)
    assert heard == sorted(heard)
    assert completion_text(GPT2, ids, ("e 🙂 o", "r 🙂"), None) == "One line.\n\nAnothe"
    assert completion_text(GPT2, ids, (), None) == "One line.\n\nAnother 🙂 one"


def llama_breakers(text: bytes) -> set[tuple[int, ...]]:
    """What llama.cpp's ``get_overlapping_token_sequences`` finds for one breaker in GPT-2's vocabulary."""
    found = set()
    for token in range(GPT2.vocab_size):
        word = TIKTOKEN.decode_single_token_bytes(token)
        if text in word:
            found.add((token,))
            continue
        for begin in range(len(word)):
            if text.startswith(word[begin:]):
                found.add((token, *TIKTOKEN.encode_ordinary(text[len(word) - begin :].decode())))
    return found


def test_breakers_are_the_tokens_of_gpt2_that_llama_cpp_takes() -> None:
    for text in ("\n", "**", "User:"):
        assert set(breaker_tokens(GPT2, (text,))) == llama_breakers(text.encode()), text
    whole = GPT2.encode(" said:\nUser: ")
    assert any(
        whole[at : at + len(each)] == list(each) for each in breaker_tokens(GPT2, ("User:",)) for at in range(len(whole))
    )


def test_each_sample_has_a_watch_of_its_own() -> None:
    tokenizer = CharTokenizer("ab")
    first, second = stop_matcher(tokenizer, ("ab",)), stop_matcher(tokenizer, ("ab",))
    assert not first(0)
    assert not second(1)
    assert first(1)
    assert not second(0)


def test_the_closing_end_of_text_is_not_part_of_the_completion() -> None:
    ids = [*GPT2.encode("The end"), 50256]
    assert completion_text(GPT2, ids, (), 50256) == "The end"
    assert completion_text(GPT2, ids, (), None) == "The end<|endoftext|>"
    assert completion_text(GPT2, [], (), 50256) == ""
    assert completion_text(GPT2, [50256, *ids], (" e",), 50256) == "<|endoftext|>The"
