"""What the files of a Hugging Face model add to its vocabulary: end tokens, and a chat template for user turns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ...display import get_logger
from ...errors import ConfigError
from .tokenizers import Tokenizer, fingerprint_of, require_unicode

if TYPE_CHECKING:
    from .chat_template import ChatTemplate

log = get_logger(__name__)


class HFTokenizer(Tokenizer):
    """A vocabulary with additional end tokens, a chat template, or both.

    Args:
        vocabulary: encodes and decodes.
        end_ids: the tokens that end a sample with ``sampling.stop_at_eot``.
        special_tokens: texts of special tokens by name, such as ``bos_token``, for the template.
        template: the chat template, or None.
        name: name of the model in errors.
    """

    def __init__(
        self, vocabulary: Tokenizer, end_ids: Sequence[int], special_tokens: Mapping[str, str], template: str | None, name: str
    ) -> None:
        self._vocabulary, self._end_ids = vocabulary, tuple(end_ids)
        self._special_tokens, self._source, self._name = special_tokens, template, name
        self._template: ChatTemplate | None = None
        self.vocab_size, self.eot_id = vocabulary.vocab_size, vocabulary.eot_id
        # The fingerprint leaves out the template: it only affects points that use it, and their point_id covers its tokens.
        is_known = self._end_ids == vocabulary.end_ids
        self.fingerprint = vocabulary.fingerprint if is_known else fingerprint_of(vocabulary.fingerprint, self._end_ids)

    @classmethod
    def of(
        cls, vocabulary: Tokenizer, ends: Iterable[int], special_tokens: Mapping[str, str], template: str | None, name: str
    ) -> Tokenizer:
        """Wrap ``vocabulary`` if there are end tokens or a template to add to it, else return it unchanged.

        Args:
            vocabulary: may have an end token of its own.
            ends: end tokens that the model's configs name; those outside the vocabulary are ignored.
            special_tokens: see the class; ``eos_token`` is an end token, too.
            template, name: see the class.
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

    def encode_turn(self, text: str) -> list[int]:
        """Encode ``text`` as a user turn; see `Tokenizer.encode_turn`. Special tokens in it are recognised, as in prompts."""
        if self._source is None:
            return super().encode_turn(text)
        require_unicode(text)
        is_first = self._template is None
        try:
            if self._template is None:
                # Imported late: only some points need Jinja.
                from .chat_template import ChatTemplate

                self._template = ChatTemplate(self._source, self._special_tokens)
            written = self._template.render(text)
        except RecursionError as error:
            raise self._wrong("it recurses without end, or nests too deeply") from error
        except Exception as error:  # an untrusted template can raise anything
            raise self._wrong(str(error) or type(error).__name__) from error
        ids = self.encode_bare(written)
        if not ids:
            raise self._wrong("it renders nothing")
        if is_first:
            log.info("the chat template turns the first prompt into: %s", _shortened(repr(written)))
        return ids

    def token_bytes(self, token: int) -> bytes:
        return self._vocabulary.token_bytes(token)

    def decode(self, ids: Sequence[int]) -> str:
        return self._vocabulary.decode(ids)

    def _wrong(self, what: str) -> ConfigError:
        problem = f"the chat template of {self._name} cannot be used: {what.rstrip('.')}"
        return ConfigError(
            "sampling.chat_template", True, f"{problem}; write the turn into the prompt, with sampling.chat_template=false"
        )


def _shortened(text: str) -> str:
    return text if len(text) <= 1000 else f"{text[:500]} … {text[-500:]}"
