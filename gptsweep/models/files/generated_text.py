"""The text of generated tokens: decoding, stop strings, and the sequence breakers of DRY, all at the level of bytes."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Callable, Iterator, Sequence

from ...errors import PromptError
from .tokenizers import Tokenizer, text_of, utf8

_LONGEST_BREAKER, _LONGEST_TAIL = 40, 20
_CONTINUES = bytes(range(0x80, 0xC0))
"""The continuation bytes of UTF-8."""


def stop_matcher(tokenizer: Tokenizer, stops: tuple[str, ...]) -> Callable[[int], bool]:
    """Return a stop matcher for one sample: called with each new token id, it returns whether a stop string is complete.

    It compares bytes, so it finds a stop string across token and character boundaries.
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
    """Find the sequences of token ids that can contain one of the texts ``breakers``, for DRY, as llama.cpp does.

    A text, cut to 40 bytes, may lie within one token, or begin at the end of a token and continue with the tokens of its rest,
    cut to 20.
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
                    with contextlib.suppress(PromptError):  # the model cannot generate what it has no tokens for
                        found[(token, *tokenizer.encode_bare(rest.decode())[:_LONGEST_TAIL])] = None
    return tuple(found)


def completion_text(tokenizer: Tokenizer, ids: Sequence[int], stops: tuple[str, ...], end: int | None) -> str:
    """Decode generated ``ids`` without what ended the sample: a final ``end`` token, or the first complete stop string.

    If one byte completes several stop strings, the longest is cut off. Bytes that are not UTF-8 become U+FFFD.
    """
    if end is not None and ids and ids[-1] == end:
        ids = ids[:-1]
    text = b"".join(map(tokenizer.token_bytes, ids))
    found = [(start + len(stop), start) for stop in map(utf8, stops) if (start := text.find(stop)) >= 0]
    return text_of(text[: min(found)[1]] if found else text)


class TextStream:
    """The text of a growing sample, in pieces that add up to its completion.

    A character is held back until its last byte arrives, and a possible beginning of a stop string until it is ruled out.
    """

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = ""
        self._given = 0

    def add(self, token: int) -> str:
        """Add a token that does not end the sample, and return the next piece of text, which may be empty."""
        text = self._held + self._decode(self._tokenizer.token_bytes(token))
        begun = (n for stop in self._stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n]))
        piece, self._held = text[: (kept := len(text) - max(begun, default=0))], text[kept:]
        self._given += len(piece)
        return piece

    def rest(self, completion: str) -> str:
        """Return what is left of the whole ``completion``."""
        return completion[self._given :]


def text_ends(tokenizer: Tokenizer, ids: Sequence[int], length: int) -> Iterator[int]:
    """Yield, for each token of a completion, how many of its ``length`` characters are complete after that token."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    end = 0
    for place, token in enumerate(ids, start=1):
        end += len(decode(tokenizer.token_bytes(token)))
        yield length if place == len(ids) else min(end, length)


def text_so_far(tokenizer: Tokenizer, ids: Sequence[int], most: int) -> str:
    """Decode the last ``most`` of ``ids`` of an unfinished sample, leaving out a character that is cut at either end."""
    text = b"".join(map(tokenizer.token_bytes, ids[-most:]))
    if len(ids) > most:
        text = text.lstrip(_CONTINUES)
    return codecs.getincrementaldecoder("utf-8")("replace").decode(text)
