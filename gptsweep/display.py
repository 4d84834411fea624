"""Text as it may be shown: characters that a terminal obeys, or that hide or reorder what stands beside them, are escaped.

Names of weights, directories and files, cells of tables and generated text come from strangers. Whatever of them goes to a
terminal, a log or an error message goes through `visible` or `one_line`.
"""

from __future__ import annotations

import re

UNSAFE = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline; they begin every escape sequence
    r"\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u3164\uffa0\ufeff"  # shown as nothing
    r"\u200e\u200f\u2028-\u202e\u2060-\u206f\ufff9-\ufffb"  # direction, line and paragraph separators, annotations
    r"\ud800-\udfff\ufdd0-\ufdef\U000e0000-\U000e0fff"  # lone surrogates, noncharacters, tags
)
"""The inside of a character class. Joiners (U+200C, U+200D) are not in it: words and emoji are spelled with them."""

_UNSAFE = re.compile(f"[{UNSAFE}]")
_UNSAFE_IN_A_LINE = re.compile(f"[\t\n{UNSAFE}]")


def visible(text: str) -> str:
    """``text`` with every unsafe character as a backslash escape; newlines and tabs stay."""
    return _UNSAFE.sub(_escaped, text)


def one_line(text: str) -> str:
    """`visible` with newlines and tabs escaped, too."""
    return _UNSAFE_IN_A_LINE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
