"""The text of generated tokens: where it ends, by stop strings, and what breaks a repetition; all on bytes."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Callable, Iterator, Sequence

from ...errors import PromptError
from .tokenizers import Tokenizer, text_of, utf8

_LONGEST_BREAKER, _LONGEST_TAIL = 40, 20
_CONTINUES = bytes(range(0x80, 0xC0))
"""The bytes of a character in UTF-8 but its first."""


def stop_matcher(tokenizer: Tokenizer, stops: tuple[str, ...]) -> Callable[[int], bool]:
    """A stop matcher for one sample: called with each new token id, it returns whether a stop string is complete.

    It looks at the bytes generated so far, so a stop string is found wherever token and character boundaries lie in it.
    """
    wanted = tuple(map(utf8, stops))
    reach = max(map(len, wanted), default=1) - 1
    tail = b""
    found = False

    def matches(token: int) -> bool:
        nonlocal tail, found
        seen = tail + tokenizer.token_bytes(token)
        found = found or any(stop in seen for stop in wanted)
        tail = seen[max(0, len(seen) - reach) :]
        return found

    return matches


def breaker_tokens(tokenizer: Tokenizer, breakers: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """The sequences of token ids that any of some texts may be, for DRY: as llama.cpp finds them.

    A text, of which 40 bytes count, may lie in one token, or begin at the end of one and go on with the tokens of the rest,
    of which 20 count.
    """
    found: dict[tuple[int, ...], None] = {}
    for text in breakers:
        wanted = utf8(text)[:_LONGEST_BREAKER]
        for token in range(tokenizer.vocab_size):
            own = tokenizer.token_bytes(token)
            if wanted in own:
                found[(token,)] = None
                continue
            for begun in range(1, min(len(own) + 1, len(wanted))):
                rest = wanted[begun:]
                if own.endswith(wanted[:begun]) and (rest.decode("utf-8", "replace").encode() == rest):
                    with contextlib.suppress(PromptError):  # what the model has no tokens for, it cannot generate
                        found[(token, *tokenizer.encode_bare(rest.decode())[:_LONGEST_TAIL])] = None
    return tuple(found)


def completion_text(tokenizer: Tokenizer, ids: Sequence[int], stops: tuple[str, ...], end: int | None) -> str:
    """The text of generated ``ids`` without what ended it: a closing ``end``, or the stop string that was completed first.

    Of stop strings completed by the same byte the longest counts. Bytes that are not UTF-8 become U+FFFD.
    """
    if end is not None and ids and ids[-1] == end:
        ids = ids[:-1]
    text = b"".join(map(tokenizer.token_bytes, ids))
    found = [(start + len(stop), start) for stop in map(utf8, stops) if (start := text.find(stop)) >= 0]
    return text_of(text[: min(found)[1]] if found else text)


class TextStream:
    """The text of a sample as it grows, in pieces that together are its completion.

    A character comes when its last byte is there, and what may be the beginning of a stop string when it turns out to be none.
    """

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = ""
        self._given = 0

    def add(self, token: int) -> str:
        """The next piece, which may be empty, where ``token`` does not end the sample."""
        text = self._held + self._decode(self._tokenizer.token_bytes(token))
        begun = (n for stop in self._stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n]))
        piece, self._held = text[: (kept := len(text) - max(begun, default=0))], text[kept:]
        self._given += len(piece)
        return piece

    def rest(self, completion: str) -> str:
        """What is left of the whole completion."""
        return completion[self._given :]


def text_ends(tokenizer: Tokenizer, ids: Sequence[int], length: int) -> Iterator[int]:
    """For each token of a completion, how many of its ``length`` characters are complete after it."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    end = 0
    for place, token in enumerate(ids, start=1):
        end += len(decode(tokenizer.token_bytes(token)))
        yield length if place == len(ids) else min(end, length)


def text_so_far(tokenizer: Tokenizer, ids: Sequence[int], most: int) -> str:
    """The text of the last ``most`` of ``ids`` while more are to come: a character that is cut at either end is left out."""
    text = b"".join(map(tokenizer.token_bytes, ids[-most:]))
    if len(ids) > most:
        text = text.lstrip(_CONTINUES)
    return codecs.getincrementaldecoder("utf-8")("replace").decode(text)
