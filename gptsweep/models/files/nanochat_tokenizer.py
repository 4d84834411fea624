"""Read nanochat's ``tokenizer.pkl``, a pickled `tiktoken.Encoding`, as plain data, and build a new encoding from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import tiktoken

from ...errors import ModelError, brief
from ...files import open_to_read
from .pickles import Inert, PickleError, read_pickle
from .tokenizers import Tokenizer, bytes_by_id, bytes_of, fingerprint_of, require_unicode

BOS = "<|bos|>"
USER_START, USER_END = "<|user_start|>", "<|user_end|>"
ASSISTANT_START, ASSISTANT_END = "<|assistant_start|>", "<|assistant_end|>"

_CLASS = "tiktoken.core.Encoding"
_FILE_BYTES = 16 << 20
"""The largest file that is read. A vocabulary of 65,536 tokens takes less than 2 MiB."""
_PATTERN = re.compile(
    re.escape(r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}")
    + r"(\{1,[1-9]\})?"
    + re.escape(r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
)
"""Matches the patterns by which nanochat splits text before it merges bytes. The number of digits that stay together has
changed and is often varied. Other patterns are refused, as a pattern can take exponential time."""


class NanochatTokenizer(Tokenizer):
    """nanochat's byte-pair vocabulary, encoded by tiktoken. Its special tokens are recognised in prompts.

    Each prompt begins with `bos`. A text ends at ``<|assistant_end|>``, if the vocabulary has it, or at the next ``<|bos|>``.

    Args:
        pattern: the regular expression that splits text.
        ranks: ids by bytes, in the order of their merges; they include all single bytes.
        special: ids of the special tokens by their texts; they include ``<|bos|>``.
    """

    bos = BOS

    def __init__(self, pattern: str, ranks: Mapping[bytes, int], special: Mapping[str, int]) -> None:
        ranks, special = dict(ranks), dict(special)
        self._encoding = tiktoken.Encoding("nanochat", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        self._special = special
        self._bytes = bytes_by_id(ranks, special)
        self.vocab_size = len(self._bytes)
        self.bos_id = special[BOS]
        self.eot_id: int | None = special.get(ASSISTANT_END, self.bos_id)
        tokens = [token.hex() for token in self._bytes]
        self.fingerprint = fingerprint_of("nanochat", pattern, tokens, sorted(special.items()))

    @property
    def end_ids(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys([self._special.get(ASSISTANT_END, self.bos_id), self.bos_id]))

    def encode(self, text: str) -> list[int]:
        ids = self.encode_bare(text)
        return ids if ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def encode_bare(self, text: str) -> list[int]:
        require_unicode(text)
        return self._encoding.encode(text, allowed_special="all")

    def encode_turn(self, text: str) -> list[int]:
        """Encode ``text`` as a user turn; see `Tokenizer.encode_turn`.

        Special tokens in ``text`` are treated as plain text, as in nanochat's ``render_conversation``.
        """
        require_unicode(text)
        if not {USER_START, USER_END, ASSISTANT_START} <= set(self._special):
            return super().encode_turn(text)
        start, end, answer = (self._special[name] for name in (USER_START, USER_END, ASSISTANT_START))
        return [self.bos_id, start, *self._encoding.encode_ordinary(text), end, answer]

    def token_bytes(self, token: int) -> bytes:
        return bytes_of(self._bytes, token)


def read_tokenizer(path: Path, vocab_size: int) -> NanochatTokenizer:
    """Read the vocabulary in a ``tokenizer.pkl`` of nanochat. No code in the file is run, and none of its objects is created.

    Args:
        path: path of the file.
        vocab_size: size of the model's vocabulary, which must match.

    Raises:
        ModelError: the file cannot be read, or holds no such vocabulary.
    """
    try:
        state = path.stat()
        tokenizer = _read(path, state.st_size, (state.st_mtime_ns, state.st_ino, state.st_dev))
    except OSError as error:
        raise _wrong(path, f"cannot be read ({error.strerror})") from error
    if tokenizer.vocab_size != vocab_size:
        has = f"has {tokenizer.vocab_size} tokens, but the model has {vocab_size}"
        raise _wrong(path, f"{has}; it belongs to another model")
    return tokenizer


def _wrong(path: Path, what: str) -> ModelError:
    return ModelError("model.tokenizer", str(path), f"{what}; give the tokenizer.pkl that nanochat's tok_train.py wrote")


@lru_cache(1)  # a sweep over steps reads the same file for each step, and 65,536 tokens take a second
def _read(path: Path, size: int, _state: tuple[int, int, int]) -> NanochatTokenizer:
    if size > _FILE_BYTES:
        raise _wrong(path, f"is larger than {_FILE_BYTES >> 20} MiB")
    try:
        with open_to_read(path) as file:
            record = read_pickle(file, size)
    except PickleError as error:
        raise _wrong(path, f"is not a pickle of a vocabulary ({error})") from error
    if not isinstance(record, Inert) or record.path != _CLASS:
        what = record.path if isinstance(record, Inert) else type(record).__name__
        raise _wrong(path, f"holds {what:.80}, not a {_CLASS}")
    state: Any = record.state
    if isinstance(state, str):
        raise _wrong(path, f"holds tiktoken's own encoding {brief(state)}, which nanochat does not use")
    parts = state if isinstance(state, dict) else {}
    pattern, ranks, special = (parts.get(name) for name in ("pat_str", "mergeable_ranks", "special_tokens"))
    if not isinstance(pattern, str) or not isinstance(ranks, dict) or not isinstance(special, dict):
        raise _wrong(path, "holds an encoding without pat_str, mergeable_ranks or special_tokens")
    if not _PATTERN.fullmatch(pattern):
        raise _wrong(path, f"has pat_str={brief(pattern)}, which is not one of nanochat's patterns")
    if (fault := _fault(ranks, special)) is not None:
        raise _wrong(path, f"holds a vocabulary {fault}")
    return NanochatTokenizer(pattern, ranks, special)


def _fault(ranks: Mapping[Any, Any], special: Mapping[Any, Any]) -> str | None:
    """Describe what is wrong with a vocabulary, or return None. Some of these faults would make tiktoken abort the process."""
    if not all(type(token) is bytes and token for token in ranks) or not all(type(text) is str and text for text in special):
        return "whose tokens are not bytes, or whose special tokens are not texts"
    numbers = [*ranks.values(), *special.values()]
    if not all(type(number) is int for number in numbers) or sorted(numbers) != list(range(len(numbers))):
        return "whose ids are not 0, 1, 2, … without a gap"
    if not all(bytes([byte]) in ranks for byte in range(256)):
        return "that lacks a token for some bytes"
    if any(not text.isprintable() or text.encode(errors="replace").decode() != text for text in special):
        return "with a special token that cannot be typed"
    if BOS not in special:
        return f"without {BOS}"
    return None
