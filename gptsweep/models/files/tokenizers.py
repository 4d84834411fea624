"""Encode text as token ids and decode it: the interface of every vocabulary, GPT-2's encoding, and character vocabularies."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, Protocol

import tiktoken

from ...errors import ConfigError, PromptError

RANKS = Path(__file__).parents[2] / "data" / "gpt2" / "gpt2.tiktoken"
END_OF_TEXT = "<|endoftext|>"
GPT2_VOCAB = 50257
UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()

GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
"""The pattern by which GPT-2 splits text before it merges bytes (Radford et al. 2019, section 2.2)."""


class Tokenizer(Protocol):
    """The interface of a vocabulary.

    Ids below ``vocab_size`` can be sampled. Two vocabularies with the same ``fingerprint`` map the same ids to the same bytes.
    ``eot_id`` is the token that ends a text, or None.
    """

    vocab_size: int
    fingerprint: str
    eot_id: int | None

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a sample with ``sampling.stop_at_eot``."""
        return () if self.eot_id is None else (self.eot_id,)

    def encode(self, text: str) -> list[int]:
        """Encode ``text`` as token ids, including the tokens that every prompt begins with.

        Raises:
            PromptError: a character cannot be encoded; the error names it and its place.
        """
        ...

    def encode_bare(self, text: str) -> list[int]:
        """Encode ``text`` without the tokens that every prompt begins with, for text that continues or already has them."""
        return self.encode(text)

    def encode_turn(self, text: str) -> list[int]:
        """Encode ``text`` as a user turn for the model to answer, for ``sampling.chat_template``.

        Raises:
            ConfigError: the vocabulary has no chat template, or the template fails.
            PromptError: a character cannot be encoded.
        """
        what = "the model's vocabulary has no chat template; it only continues text"
        works = (
            "use one that was trained on conversations, with chat_template.jinja or a chat_template in tokenizer_config.json"
        )
        raise ConfigError("sampling.chat_template", True, f"{what}: {works}")

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of ``token``; those of U+FFFD for an id without a token."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ``ids``; bytes that are not UTF-8 become U+FFFD."""
        return text_of(b"".join(map(self.token_bytes, ids)))


class GPT2Tokenizer(Tokenizer):
    """GPT-2's encoding by tiktoken, with the ranks that ship with the package, so it needs no network.

    Args:
        added: ids of the tokens that a fine-tuned model adds, by their text. Like ``<|endoftext|>`` they are recognised in
            prompts.
        eot_id: the token that ends a text; None: ``<|endoftext|>``.
    """

    def __init__(self, added: Mapping[str, int] | None = None, eot_id: int | None = None) -> None:
        ranks = gpt2_ranks()
        special = {END_OF_TEXT: len(ranks)} | dict(added or {})
        self._encoding = tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special)
        self._bytes = bytes_by_id(ranks, special)
        self.vocab_size = len(self._bytes)
        self.eot_id: int | None = special[END_OF_TEXT] if eot_id is None else eot_id
        self.fingerprint = fingerprint_of("gpt2", sorted(special.items()), self.eot_id)

    def encode(self, text: str) -> list[int]:
        require_unicode(text)
        return self._encoding.encode(text, allowed_special="all")

    def token_bytes(self, token: int) -> bytes:
        return bytes_of(self._bytes, token)


class CharTokenizer(Tokenizer):
    """A vocabulary with one token per character, as in nanoGPT's ``shakespeare_char``.

    Args:
        itos: the text of each id, in the order of the ids; None for an unused id.
        stoi: the id of each character that can be encoded; None: the inverse of ``itos``.
    """

    eot_id = None

    def __init__(self, itos: Iterable[str | None], stoi: Mapping[str, int] | None = None) -> None:
        texts = tuple(itos)
        inverse = {text: token for token, text in enumerate(texts) if text is not None}
        self._stoi = dict(inverse if stoi is None else stoi)
        self._bytes = [UNKNOWN if text is None else utf8(text) for text in texts]
        self.itos = tuple(text or "" for text in texts)
        self.vocab_size = len(texts)
        others = sorted(self._stoi.items() - inverse.items())
        self.fingerprint = fingerprint_of("char", texts, *([others] if others else []))

    def encode(self, text: str) -> list[int]:
        try:
            return [self._stoi[character] for character in text]
        except KeyError:
            unknown = [place for place, character in enumerate(text) if character not in self._stoi]
            count = len(unknown) - 1
            more = f", nor {'is 1 more character' if count == 1 else f'are {count} more characters'}" if count else ""
            refuse(text, unknown[0], f"is not in the model's vocabulary{more}; it has {self._known()}")

    def token_bytes(self, token: int) -> bytes:
        return bytes_of(self._bytes, token)

    def _known(self) -> str:
        characters = "".join(self.itos)
        shown = repr(characters)[1:-1]
        return f"the {self.vocab_size} characters {shown if len(shown) <= 120 else shown[:120] + '…'}"


def gpt2_ranks() -> dict[bytes, int]:
    """Read GPT-2's 50,256 byte strings with their ids. The order of the ids is that of the merges."""
    words = RANKS.read_bytes().split()
    return dict(zip(map(base64.b64decode, words[::2]), map(int, words[1::2]), strict=True))


# --- helpers that vocabularies share --------------------------------------------------------------------------------------


def utf8(text: str) -> bytes:
    """Encode ``text`` as UTF-8. A lone surrogate is encoded, too, as bytes that no token has."""
    return text.encode("utf-8", "surrogatepass")


def text_of(data: bytes) -> str:
    """Decode UTF-8; invalid bytes become U+FFFD."""
    return data.decode("utf-8", "replace")


def bytes_of(table: Sequence[bytes], token: int) -> bytes:
    """Look up ``token`` in a table from `bytes_by_id`; return U+FFFD for an id outside it."""
    return table[token] if 0 <= token < len(table) else UNKNOWN


def bytes_by_id(vocabulary: Mapping[bytes, int], added: Mapping[str, int]) -> list[bytes]:
    """Return a table of bytes by id, with U+FFFD for unused ids."""
    table = [UNKNOWN] * (1 + max([*vocabulary.values(), *added.values()]))
    for token, number in [*vocabulary.items(), *((utf8(text), number) for text, number in added.items())]:
        table[number] = token
    return table


def fingerprint_of(*parts: object) -> str:
    """Hash what defines a vocabulary. Every ``point_id`` depends on it, so never change the parts of an existing vocabulary."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def require_unicode(text: str) -> None:
    """Check that ``text`` can be encoded as UTF-8.

    Raises:
        PromptError: it cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        refuse(text, error.start, "is half of a surrogate pair or a byte that is not UTF-8, and has no encoding")


def refuse(text: str, place: int, what: str) -> NoReturn:
    """Raise a `PromptError` that names the character of ``text`` at index ``place``, with its line and column."""
    character = text[place]
    line, column = text.count("\n", 0, place) + 1, place - text.rfind("\n", 0, place)
    raise PromptError("start", text, f"{character!r} (U+{ord(character):04X}), line {line}, column {column}, {what}")
