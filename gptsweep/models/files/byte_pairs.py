"""Byte-level byte-pair vocabularies other than GPT-2's, by Hugging Face's ``tokenizers``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

from .tokenizers import Tokenizer, bytes_by_id, bytes_of, fingerprint_of, refuse, require_unicode


@dataclass(frozen=True, slots=True)
class Added:
    """A token that is recognised in text before anything is split, and how, in the words of Hugging Face's tokenizers.

    ``lstrip`` and ``rstrip``: white space before or after it belongs to it. ``single_word``: not inside a word. ``normalized``:
    looked for after those that are not.
    """

    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @property
    def takes_plain_text(self) -> bool:
        """Whether it is recognised wherever its text stands, and takes nothing but that."""
        return not (self.lstrip or self.rstrip or self.single_word)


class BytePairTokenizer(Tokenizer):
    """A byte-level byte-pair vocabulary other than GPT-2's, by Hugging Face's ``tokenizers``.

    tiktoken is not used: it takes a token's id for the rank of its merge and merges any pair that spells a token, which holds
    for GPT-2's vocabulary and not for every other.

    Args:
        vocabulary: ids by bytes, the added tokens left out.
        merges: pairs of byte strings, the first to be merged first.
        added: the added tokens by their text.
        eot_id: the token that ends a text, None where there is none.
        prefix_space: a space is put before each stretch of text that starts with none.
        first_ids: tokens that every prompt begins with.
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
        from tokenizers import AddedToken, models, pre_tokenizers
        from tokenizers import Tokenizer as Encoder

        spelling = {byte: character for character, byte in byte_alphabet().items()}

        def spelt(token: bytes) -> str:
            return "".join(map(spelling.__getitem__, token))

        # The library gives an added token the id that the model has for its text.
        ids = {spelt(token): number for token, number in vocabulary.items()}
        for text, token in added.items():
            if ids.setdefault(text, token.id) != token.id:
                raise ValueError(f"the added token {text!r} has the ids {token.id} and {ids[text]}")
        once = dict.fromkeys(merges)  # of a pair that stands there twice the first counts
        self._encoder = Encoder(models.BPE(ids, [(spelt(left), spelt(right)) for left, right in once]))
        self._encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
        self._encoder.add_tokens(
            [
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
        )
        self._added = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or r"(?!)")
        self._spells_all = all(bytes([byte]) in vocabulary for byte in range(256))
        self._vocabulary = dict(vocabulary)
        self._first_ids = list(first_ids)
        numbers = {text: token.id for text, token in added.items()}
        self._bytes = bytes_by_id(vocabulary, numbers)
        self.vocab_size = len(self._bytes)
        self.eot_id = eot_id
        pairs = [(left.hex(), right.hex()) for left, right in merges]
        tokens = [token.hex() for token in self._bytes]
        flags = [(text, *astuple(token)[1:4]) for text, token in sorted(added.items()) if not token.takes_plain_text]
        more = [part for part in (flags, self._first_ids) if part]
        self.fingerprint = fingerprint_of("bytepair", tokens, pairs, sorted(numbers.items()), eot_id, prefix_space, *more)

    def encode(self, text: str) -> list[int]:
        require_unicode(text)
        if not self._spells_all:
            self._require_spelling(text)
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        return self._first_ids + ids

    def token_bytes(self, token: int) -> bytes:
        return bytes_of(self._bytes, token)

    def _require_spelling(self, text: str) -> None:
        """Refuse a character with a byte that has no token; the library would leave it out."""
        start = 0
        for found in [*self._added.finditer(text), None]:
            for place in range(start, len(text) if found is None else found.start()):
                if not all(bytes([byte]) in self._vocabulary for byte in text[place].encode()):
                    refuse(text, place, "is not in the model's vocabulary")
            start = 0 if found is None else found.end()


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte: itself if printable in Latin-1 and not a space, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
