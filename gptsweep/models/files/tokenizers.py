"""Text to token ids and back: what every vocabulary can do, and those of GPT-2 and of characters."""

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

GPT2_WORDS = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
"""Where GPT-2 splits text before it merges bytes (Radford et al. 2019, section 2.2)."""


class Tokenizer(Protocol):
    """What the rest of the package knows of a vocabulary.

    ``vocab_size``: ids below it can be sampled. ``fingerprint``: equal where ids and bytes correspond alike. ``eot_id``: the
    token that ends a text, None where there is none.
    """

    vocab_size: int
    fingerprint: str
    eot_id: int | None

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a sample with ``sampling.stop_at_eot``."""
        return () if self.eot_id is None else (self.eot_id,)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``.

        Raises:
            PromptError: a character cannot be encoded; it is named with its place.
        """
        ...

    def encode_bare(self, text: str) -> list[int]:
        """As `encode`, without the tokens that every prompt begins with: of text that goes on, or has them already."""
        return self.encode(text)

    def encode_turn(self, text: str) -> list[int]:
        """Token ids of ``text`` as one turn of a user that the model is to answer, for ``sampling.chat_template``.

        Raises:
            ConfigError: the vocabulary has no such form: the model was not trained on conversations.
            PromptError: a character cannot be encoded.
        """
        what = "the model's vocabulary has no chat template; it only continues text"
        works = (
            "use one that was trained on conversations, with chat_template.jinja or a chat_template in tokenizer_config.json"
        )
        raise ConfigError("sampling.chat_template", True, f"{what}: {works}")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that ``token`` stands for; an id without a token stands for U+FFFD."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD."""
        return text_of(b"".join(map(self.token_bytes, ids)))


class GPT2Tokenizer(Tokenizer):
    """GPT-2's encoding by tiktoken, from the ranks in the package: no network.

    Args:
        added: tokens that a fine-tuned model adds, by their text; recognised in prompts as ``<|endoftext|>`` is.
        eot_id: the token that ends a text.
    """

    def __init__(self, added: Mapping[str, int] | None = None, eot_id: int | None = None) -> None:
        ranks = gpt2_ranks()
        special = {END_OF_TEXT: len(ranks)} | dict(added or {})
        self._encoding = tiktoken.Encoding("gpt2", pat_str=GPT2_WORDS, mergeable_ranks=ranks, special_tokens=special)
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
    """One token a character, as nanoGPT's ``prepare.py`` for ``shakespeare_char`` numbers them.

    Args:
        itos: the text of each id, in the order of the ids; None for an id that has none.
        stoi: the id of each text that can be encoded, where that is not the inverse of ``itos`` alone.
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
    """GPT-2's 50,256 byte strings in the order of their ids, which is the order of their merges."""
    words = RANKS.read_bytes().split()
    return dict(zip(map(base64.b64decode, words[::2]), map(int, words[1::2]), strict=True))


# --- small parts that vocabularies share ----------------------------------------------------------------------------------


def utf8(text: str) -> bytes:
    """UTF-8, with half a surrogate pair as it would be spelt: it equals no token's bytes."""
    return text.encode("utf-8", "surrogatepass")


def text_of(data: bytes) -> str:
    """Text in which bytes that are not UTF-8 are U+FFFD."""
    return data.decode("utf-8", "replace")


def bytes_of(table: Sequence[bytes], token: int) -> bytes:
    """A row of a `bytes_by_id`; U+FFFD for an id beyond it."""
    return table[token] if 0 <= token < len(table) else UNKNOWN


def bytes_by_id(vocabulary: Mapping[bytes, int], added: Mapping[str, int]) -> list[bytes]:
    """Bytes by id; an id that no token has stands for U+FFFD."""
    table = [UNKNOWN] * (1 + max([*vocabulary.values(), *added.values()]))
    for token, number in [*vocabulary.items(), *((utf8(text), number) for text, number in added.items())]:
        table[number] = token
    return table


def fingerprint_of(*parts: object) -> str:
    """A hash of what decides a vocabulary. Every ``point_id`` holds one, so the parts of an old vocabulary stay as they are."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def require_unicode(text: str) -> None:
    """Raise a `PromptError` for a text that cannot be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        refuse(text, error.start, "is half of a surrogate pair or a byte that is not UTF-8, and has no encoding")


def refuse(text: str, place: int, what: str) -> NoReturn:
    """Raise a `PromptError` that names a character of ``text`` and its place."""
    character = text[place]
    line, column = text.count("\n", 0, place) + 1, place - text.rfind("\n", 0, place)
    raise PromptError("start", text, f"{character!r} (U+{ord(character):04X}), line {line}, column {column}, {what}")
