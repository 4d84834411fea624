"""The steps by which a ``tokenizer.json`` normalises, splits and decodes text, checked against the ones that gptsweep supports.

A file may contain any regular expression, including one that takes exponential time. So only the expressions of known
tokenizers are run, and others that look at each character once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

from ...errors import ModelError, brief
from .byte_pairs import Added, LibraryTokenizer, byte_alphabet, library_tokens
from .tokenizers import GPT2_PATTERN, UNKNOWN, fingerprint_of, utf8

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Encoder

Step = Mapping[str, Any]
"""A checked step, in the form of ``tokenizer.json``."""

SPACE = "▁"
"""The character for a space in vocabularies like Llama 2's."""

_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_PATTERN = _SUFFIXES + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
"""The pattern by which Qwen's tokenizers split text."""
LLAMA3_PATTERN = _SUFFIXES + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
"""The pattern by which the tokenizers of Llama 3, SmolLM3 and OLMo 2 split text."""
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_MISTRAL_PATTERN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {
    GPT2_PATTERN,
    GPT2_PATTERN.replace("'(?:[sdmt]|ll|ve|re)", "'s|'t|'re|'ve|'m|'ll|'d"),
    QWEN_PATTERN,
    LLAMA3_PATTERN,
    _MISTRAL_PATTERN,
}
_ONE_CLASS = re.compile(r"(?:(?: |\\s)\?)?(?:\\[pP]\{\^?\w{1,2}\}|\\[dDsSwWrn]|\[\^?(?:[^\[\]\\&]|\\.)+\])(?:\+|\{1,[1-9]\})?")
"""Matches a pattern that is one character class, once or repeated, after an optional space."""
_MOST_STEPS = 16
_LONGEST_TEXT = 16
_MOST_GROWTH = 16
"""The most times by which the ``Replace`` steps of a place may lengthen a text; several would multiply."""
_ONCE = frozenset(("NFC", "NFD", "NFKC", "NFKD", "ByteLevel"))
"""Steps that lengthen a text too, and of which a place may have one."""

_Check = Callable[[Any], bool]


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT and value.encode(errors="replace").decode() == value


def _literal(value: Any) -> bool:
    return isinstance(value, dict) and list(value) == ["String"] and _text(value["String"]) and value["String"] != ""


def _is_pattern(value: Any) -> bool:
    if not isinstance(value, dict) or list(value) != ["Regex"]:
        return _literal(value)
    pattern = value["Regex"]
    return isinstance(pattern, str) and (pattern in _PATTERNS or _ONE_CLASS.fullmatch(pattern) is not None)


def _one_of(*values: Any) -> _Check:
    return lambda value: isinstance(value, (str, int)) and value in values


_BYTE_LEVEL: Mapping[str, tuple[_Check, Any]] = {
    "add_prefix_space": (_flag, False),
    "trim_offsets": (_flag, True),
    "use_regex": (_flag, True),
}
_NONE: Mapping[str, tuple[_Check, Any]] = {}
_REPLACE: Mapping[str, tuple[_Check, Any]] = {"pattern": (_literal, None), "content": (_text, None)}
_METASPACE: Mapping[str, tuple[_Check, Any]] = {
    "replacement": (_one_of(SPACE), SPACE),
    "prepend_scheme": (_one_of("always", "first", "never"), "always"),
    "split": (_flag, True),
}
_BEHAVIORS = _one_of("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")

_STEPS: Mapping[str, Mapping[str, Mapping[str, tuple[_Check, Any]]]] = {
    "normalizer": {
        **dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD"), _NONE),
        "Prepend": {"prepend": (_text, None)},
        "Replace": _REPLACE,
    },
    "pre_tokenizer": {
        "ByteLevel": _BYTE_LEVEL,
        "Digits": {"individual_digits": (_flag, False)},
        "Split": {"pattern": (_is_pattern, None), "behavior": (_BEHAVIORS, None), "invert": (_one_of(False), False)},
        "Metaspace": _METASPACE,
    },
    "decoder": {
        "ByteLevel": _BYTE_LEVEL,
        "ByteFallback": _NONE,
        "Fuse": _NONE,
        "Metaspace": _METASPACE,
        "Replace": _REPLACE,
        "Strip": {"content": (_one_of(" "), " "), "start": (_one_of(0, 1), 0), "stop": (_one_of(0), 0)},
    },
}
"""The steps for each place in the pipeline, and for each step its settings: a check of the value, and the default."""
_PARTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The steps of one tokenizer, and the options of its byte-pair model."""

    normalizer: Step | None = None
    pre_tokenizer: Step | None = None
    decoder: Step | None = None
    ignore_merges: bool = False
    byte_fallback: bool = False

    @property
    def is_byte_level(self) -> bool:
        """Whether tokens are spelt in GPT-2's byte alphabet. Otherwise they are text, with `SPACE` for a space."""
        return any(step["type"] == "ByteLevel" for step in _parts("pre_tokenizer", self.pre_tokenizer))

    @property
    def is_gpt2(self) -> bool:
        """Whether text is split and its bytes are spelt as for GPT-2."""
        step = self.pre_tokenizer
        splits = step is not None and step["type"] == "ByteLevel" and step["use_regex"]
        return splits and self.normalizer is None and not self.ignore_merges

    @property
    def puts_space(self) -> bool:
        """Whether a byte-level pipeline inserts a space before a text that does not begin with one."""
        steps = _parts("pre_tokenizer", self.pre_tokenizer)
        return any(step["type"] == "ByteLevel" and step["add_prefix_space"] for step in steps)

    def with_prefix_space(self, wanted: bool) -> Pipeline:
        """Return a copy whose byte-level step inserts a space before a text, or does not."""

        def changed(step: Step) -> Step:
            return {**step, "add_prefix_space": wanted} if step["type"] == "ByteLevel" else step

        return replace(self, pre_tokenizer=_joined("pre_tokenizer", map(changed, _parts("pre_tokenizer", self.pre_tokenizer))))

    def table(self, ids: Mapping[str, int], added: Mapping[str, Added]) -> list[bytes]:
        """Return the bytes of each token inside a text, by id. An unused id decodes to U+FFFD."""
        table = [UNKNOWN] * (1 + max([*ids.values(), *(token.id for token in added.values())]))
        alphabet = byte_alphabet()
        is_byte_level = self.is_byte_level
        for token, number in ids.items():
            is_spelt = is_byte_level and set(token) <= alphabet.keys()
            table[number] = bytes(map(alphabet.__getitem__, token)) if is_spelt else self._decoded(token)
        for text, number in ((text, token.id) for text, token in added.items()):
            table[number] = self._decoded(text)
        return table

    def _decoded(self, token: str) -> bytes:
        for step in _parts("decoder", self.decoder):
            if step["type"] == "ByteFallback" and re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
                return bytes([int(token[3:5], 16)])
            if step["type"] == "Replace":
                token = token.replace(step["pattern"]["String"], step["content"])
            if step["type"] == "Metaspace":
                token = token.replace(SPACE, " ")
        return utf8(token)

    def spells(self, ids: Mapping[str, int]) -> Callable[[str], bool] | None:
        """Return a function that tells whether a character can be encoded: as a token, or byte by byte.

        Returns:
            The function, or None if every character can.
        """
        spelling = {byte: character for character, byte in byte_alphabet().items()}
        if not self.is_byte_level:
            spelling = {byte: f"<0x{byte:02X}>" for byte in range(256)} if self.byte_fallback else {}
        known = {byte for byte, token in spelling.items() if token in ids}
        if len(known) == 256:
            return None
        characters = set() if self.is_byte_level else {token for token in ids if len(token) == 1}
        return lambda character: character.replace(" ", SPACE) in characters or known.issuperset(character.encode())

    def encoder(self, ids: Mapping[str, int], merges: Sequence[tuple[str, str]], added: Mapping[str, Added]) -> Encoder:
        """Build the library's tokenizer with these steps. It does not pad, truncate or add special tokens."""
        # Imported late: only models with a vocabulary of their own need it.
        from tokenizers import Tokenizer as Encoder

        model = {
            "type": "BPE",
            # The library gives an added token the id that the BPE model has for its text.
            "vocab": {**{text: token.id for text, token in added.items()}, **ids},
            "merges": list(dict.fromkeys(merges)),  # the first of two equal pairs counts
            "ignore_merges": self.ignore_merges,
            "byte_fallback": self.byte_fallback,
        }
        steps = {"normalizer": self.normalizer, "pre_tokenizer": self.pre_tokenizer, "decoder": self.decoder}
        encoder: Encoder = Encoder.from_str(json.dumps({"version": "1.0", "model": model, "added_tokens": [], **steps}))
        encoder.add_tokens(library_tokens(added))
        return encoder


class PipelineTokenizer(LibraryTokenizer):
    """A byte-pair vocabulary with the steps of its ``tokenizer.json``.

    Args:
        ids: ids of the tokens by their spelling in the file, without the added tokens.
        merges: pairs of tokens, in the order in which they are merged.
        added: the added tokens by their text.
        pipeline: the steps.
        eot_id: the token that ends a text, or None.
        first_ids: tokens that every prompt begins with.
    """

    def __init__(
        self,
        ids: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        added: Mapping[str, Added],
        pipeline: Pipeline,
        eot_id: int | None = None,
        first_ids: Sequence[int] = (),
    ) -> None:
        flags = [(text, *astuple(token)) for text, token in sorted(added.items())]
        fingerprint = fingerprint_of("pipeline", sorted(ids.items()), merges, flags, asdict(pipeline), eot_id, list(first_ids))
        encoder, table = pipeline.encoder(ids, merges, added), pipeline.table(ids, added)
        super().__init__(encoder, table, added, pipeline.spells(ids), eot_id, first_ids, fingerprint)
        self._is_byte_level = pipeline.is_byte_level

    def decode(self, ids: Sequence[int]) -> str:
        """Decode a whole text; see `Tokenizer.decode`.

        With a vocabulary like Llama 2's, the space inserted before the text is removed, and each byte of a run that is not
        UTF-8 becomes U+FFFD, as in ``transformers``.
        """
        if self._is_byte_level:
            return super().decode(ids)
        text: str = self._encoder.decode([token for token in ids if 0 <= token < self.vocab_size], skip_special_tokens=False)
        return text


LLAMA_CLASS, QWEN_CLASS = "LlamaTokenizer", "Qwen2Tokenizer"

QWEN = Pipeline(
    normalizer={"type": "NFC"},
    pre_tokenizer={
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    },
    decoder={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
)
"""The steps of Qwen's tokenizers, for models without a ``tokenizer.json``."""


def llama(pipeline: Pipeline, prefix_space: bool, legacy: bool) -> Pipeline:
    """Replace the steps of ``pipeline`` by those of transformers' ``LlamaTokenizer``, which override ``tokenizer.json``.

    Args:
        pipeline: the steps of the file.
        prefix_space: whether a space is inserted before a text.
        legacy: whether it is also inserted after each special token.
    """
    scheme = "never" if not prefix_space else "always" if legacy else "first"
    decoders: list[Step] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix_space:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
    decoder = {"type": "Sequence", "decoders": decoders}
    return replace(pipeline, normalizer=None, pre_tokenizer=metaspace, decoder=decoder, byte_fallback=True)


def read_pipeline(whole: Mapping[str, Any], wrong: Callable[[str], ModelError]) -> Pipeline:
    """Read and check the steps of a ``tokenizer.json``.

    Args:
        whole: the contents of the file.
        wrong: makes a `ModelError` from a message.

    Raises:
        ModelError: gptsweep does not support one of the steps, or they do not fit each other.
    """
    model = whole["model"]
    found = Pipeline(
        normalizer=_checked("normalizer", whole.get("normalizer"), wrong),
        pre_tokenizer=_checked("pre_tokenizer", whole.get("pre_tokenizer"), wrong),
        decoder=_checked("decoder", whole.get("decoder"), wrong),
        ignore_merges=bool(model.get("ignore_merges")),
        byte_fallback=bool(model.get("byte_fallback")),
    )
    if found.is_byte_level and found.byte_fallback:
        raise wrong("its tokenizer.json has model.byte_fallback=True although it is byte-level already")
    kinds = {step["type"] for step in _parts("decoder", found.decoder)}
    if found.is_byte_level and found.decoder is not None and kinds != {"ByteLevel"}:
        raise wrong(f"its tokenizer.json has decoder={brief(sorted(kinds))} where its pre_tokenizer is ByteLevel")
    if not found.is_byte_level and (found.decoder is None or "ByteLevel" in kinds):
        steps = [step["type"] for step in _parts("pre_tokenizer", found.pre_tokenizer)]
        kind = steps[0] if len(steps) == 1 else steps or None
        raise wrong(f"its tokenizer.json has pre_tokenizer.type={brief(kind)}, with a decoder that does not fit it")
    return found


def _parts(place: str, step: Step | None) -> list[Step]:
    if step is None:
        return []
    return list(step[_PARTS[place]]) if step["type"] == "Sequence" else [step]


def _joined(place: str, steps: Iterator[Step]) -> Step | None:
    several = list(steps)
    if not several:
        return None
    return several[0] if len(several) == 1 else {"type": "Sequence", _PARTS[place]: several}


def _checked(place: str, step: Any, wrong: Callable[[str], ModelError]) -> Step | None:
    if step is None:
        return None
    kind = step.get("type") if isinstance(step, dict) else None
    if kind != "Sequence":
        return _checked_part(place, step, wrong)
    parts = step.get(_PARTS[place])
    if not isinstance(parts, list) or len(parts) > _MOST_STEPS:
        raise wrong(
            f"its tokenizer.json has {place}.{_PARTS[place]}={brief(parts)}, which is not a list of up to {_MOST_STEPS}"
        )
    found = [_checked_part(place, part, wrong) for part in parts]
    if len(twice := [part["type"] for part in found if part["type"] in _ONCE]) > 1:
        raise wrong(f"its tokenizer.json has {place} with {', '.join(twice)}, but gptsweep supports only one of them")
    replacing = [part for part in found if part["type"] == "Replace"]
    if math.prod(max(1, len(part["content"]) / len(part["pattern"]["String"])) for part in replacing) > _MOST_GROWTH:
        raise wrong(f"its tokenizer.json has {place} with Replace steps that lengthen a text more than {_MOST_GROWTH} times")
    return _joined(place, iter(found))


def _checked_part(place: str, step: Any, wrong: Callable[[str], ModelError]) -> Step:
    kind = step.get("type") if isinstance(step, dict) else None
    settings = _STEPS[place].get(kind) if isinstance(kind, str) else None
    if settings is None:
        raise wrong(f"its tokenizer.json has {place}.type={brief(kind)}, but gptsweep supports only {', '.join(_STEPS[place])}")
    if kind == "Metaspace" and step.get("prepend_scheme") is None and step.get("add_prefix_space") is False:
        step = {**step, "prepend_scheme": "never"}  # files from before 2023 say it this way
    found = {"type": kind}
    for name, (fits, usual) in settings.items():
        value = step.get(name)
        found[name] = usual if value is None else value
        if not fits(found[name]):
            raise wrong(
                f"its tokenizer.json has {place}.type={kind!r} with {name}={brief(value)}, which gptsweep does not support"
            )
    return found
