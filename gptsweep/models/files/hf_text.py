"""What the files of a Hugging Face model say beside the vocabulary: which tokens end a text, how a user's turn is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .tokenizers import Tokenizer, fingerprint_of


class HFTokenizer(Tokenizer):
    """A vocabulary with further end tokens, or a chat template.

    Args:
        vocabulary: encodes and decodes.
        end_ids: the tokens that end a sample with ``sampling.stop_at_eot``.
        special_tokens: texts of special tokens by their names, ``bos_token`` and others, for the template.
        template: the chat template, None where there is none.
        name: of the model, for errors.
    """

    def __init__(
        self, vocabulary: Tokenizer, end_ids: Sequence[int], special_tokens: Mapping[str, str], template: str | None, name: str
    ) -> None:
        self._vocabulary, self._end_ids = vocabulary, tuple(end_ids)
        self._special_tokens, self._source, self._name = special_tokens, template, name
        self.vocab_size, self.eot_id = vocabulary.vocab_size, vocabulary.eot_id
        # The template is none of it: it decides the tokens of some points only, whose point_id holds those.
        is_known = self._end_ids == vocabulary.end_ids
        self.fingerprint = vocabulary.fingerprint if is_known else fingerprint_of(vocabulary.fingerprint, self._end_ids)

    @classmethod
    def of(
        cls, vocabulary: Tokenizer, ends: Iterable[int], special_tokens: Mapping[str, str], template: str | None, name: str
    ) -> Tokenizer:
        """``vocabulary``, with what is added to it, if anything.

        Args:
            vocabulary: with an end token of its own or none.
            ends: tokens that the model's configs name; those that the vocabulary does not have are left out.
            special_tokens: as of the class; ``eos_token`` is an end token, too.
            template, name: as of the class.
        """
        named = vocabulary.encode_bare(special_tokens["eos_token"]) if special_tokens.get("eos_token") else []
        known = [token for token in (*ends, *(named if len(named) == 1 else ())) if 0 <= token < vocabulary.vocab_size]
        end_ids = tuple(dict.fromkeys((*vocabulary.end_ids, *known)))
        if template is None and end_ids == vocabulary.end_ids:
            return vocabulary
        return cls(vocabulary, end_ids, special_tokens, template, name)

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self._end_ids

    def encode(self, text: str) -> list[int]:
        return self._vocabulary.encode(text)

    def encode_bare(self, text: str) -> list[int]:
        return self._vocabulary.encode_bare(text)

    def token_bytes(self, token: int) -> bytes:
        return self._vocabulary.token_bytes(token)

    def decode(self, ids: Sequence[int]) -> str:
        return self._vocabulary.decode(ids)
