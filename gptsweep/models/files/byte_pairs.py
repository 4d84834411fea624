"""Vocabularies that Hugging Face's ``tokenizers`` library encodes, among them byte-level ones like GPT-2's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from typing import TYPE_CHECKING

from .tokenizers import Tokenizer, bytes_by_id, bytes_of, fingerprint_of, refuse, require_unicode

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Encoder


@dataclass(frozen=True, slots=True)
class Added:
    """An added token, which is recognised in the text before it is split. The flags are those of Hugging Face's tokenizers.

    With ``lstrip`` or ``rstrip`` it includes the white space before or after it. With ``single_word`` it is not recognised
    inside a word. With ``normalized`` it is looked for after normalisation.
    """

    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @property
    def takes_plain_text(self) -> bool:
        """Whether it is recognised wherever its text occurs, and includes nothing else."""
        return not (self.lstrip or self.rstrip or self.single_word)


class LibraryTokenizer(Tokenizer):
    """A vocabulary that Hugging Face's ``tokenizers`` library encodes.

    Args:
        encoder: the library's tokenizer, without a post-processor.
        table: bytes by id.
        added: the texts of the added tokens.
        spells: returns whether a character can be encoded; None: every character can.
        eot_id: the token that ends a text, or None.
        first_ids: tokens that every prompt begins with.
        fingerprint: see `Tokenizer`.
    """

    def __init__(
        self,
        encoder: Encoder,
        table: Sequence[bytes],
        added: Iterable[str],
        spells: Callable[[str], bool] | None,
        eot_id: int | None,
        first_ids: Sequence[int],
        fingerprint: str,
    ) -> None:
        self._encoder = encoder
        self._bytes = table
        self._added = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or r"(?!)")
        self._spells = spells
        self._first_ids = list(first_ids)
        self.vocab_size = len(table)
        self.eot_id = eot_id
        self.fingerprint = fingerprint

    def encode(self, text: str) -> list[int]:
        return self._first_ids + self.encode_bare(text)

    def encode_bare(self, text: str) -> list[int]:
        require_unicode(text)
        if self._spells is not None:
            self._require_spelling(text, self._spells)
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token: int) -> bytes:
        return bytes_of(self._bytes, token)

    def _require_spelling(self, text: str, spells: Callable[[str], bool]) -> None:
        """Refuse a character without a token, which the library would silently drop.

        Raises:
            PromptError: there is one.
        """
        start = 0
        for found in [*self._added.finditer(text), None]:
            for place in range(start, len(text) if found is None else found.start()):
                if not spells(text[place]):
                    refuse(text, place, "is not in the model's vocabulary")
            start = 0 if found is None else found.end()


class BytePairTokenizer(LibraryTokenizer):
    """A byte-level byte-pair vocabulary other than GPT-2's that splits text as GPT-2's does.

    It does not use tiktoken, which takes a token's id as the rank of its merge and merges any pair that forms a token. That is
    right for GPT-2's vocabulary but not for every other.

    Args:
        vocabulary: ids by bytes, without the added tokens.
        merges: pairs of byte strings, in the order in which they are merged.
        added: the added tokens by their text.
        eot_id: the token that ends a text, or None.
        prefix_space: whether a space is inserted before each stretch of text that does not begin with one.
        first_ids: tokens that every prompt begins with.

    Raises:
        ValueError: an added token has another id than the vocabulary gives its text.
    """

    def __init__(
        self,
        vocabulary: Mapping[bytes, int],
        merges: Sequence[tuple[bytes, bytes]],
        added: Mapping[str, Added],
        eot_id: int | None = None,
        prefix_space: bool = False,
        first_ids: Sequence[int] = (),
    ) -> None:
        # Imported late: only models with a vocabulary of their own need it.
        from tokenizers import Tokenizer as Encoder
        from tokenizers import models, pre_tokenizers

        spelling = {byte: character for character, byte in byte_alphabet().items()}

        @cache  # most tokens occur in several merges
        def spelt(token: bytes) -> str:
            return "".join(map(spelling.__getitem__, token))

        # The library gives an added token the id that the BPE model has for its text.
        ids = {spelt(token): number for token, number in vocabulary.items()}
        for text, token in added.items():
            if ids.setdefault(text, token.id) != token.id:
                raise ValueError(f"the added token {text!r} has the ids {token.id} and {ids[text]}")
        once = dict.fromkeys(merges)  # the first of two equal pairs counts
        encoder = Encoder(models.BPE(ids, [(spelt(left), spelt(right)) for left, right in once]))
        encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
        encoder.add_tokens(library_tokens(added))
        known = frozenset(vocabulary)

        def spells(character: str) -> bool:
            return all(bytes([byte]) in known for byte in character.encode())

        numbers = {text: token.id for text, token in added.items()}
        table = bytes_by_id(vocabulary, numbers)
        pairs = [(left.hex(), right.hex()) for left, right in merges]
        flags = [(text, *astuple(token)[1:4]) for text, token in sorted(added.items()) if not token.takes_plain_text]
        more = [part for part in (flags, list(first_ids)) if part]
        tokens = [token.hex() for token in table]
        fingerprint = fingerprint_of("bytepair", tokens, pairs, sorted(numbers.items()), eot_id, prefix_space, *more)
        spells_all = all(bytes([byte]) in known for byte in range(256))
        super().__init__(encoder, table, added, None if spells_all else spells, eot_id, first_ids, fingerprint)


def library_tokens(added: Mapping[str, Added]) -> list[AddedToken]:
    """Convert added tokens to the library's type."""
    from tokenizers import AddedToken  # imported late, as above

    return [
        AddedToken(
            text,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            single_word=token.single_word,
            normalized=token.normalized,
            special=True,
        )
        for text, token in added.items()
    ]


def byte_alphabet() -> dict[str, int]:
    """Map each character of GPT-2's byte alphabet to its byte.

    A byte is spelt as itself if it is printable in Latin-1 and not a space, else as a character from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
