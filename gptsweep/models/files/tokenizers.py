"""Text to token ids and back: GPT-2's byte pairs, other byte-pair vocabularies, characters; and stop strings, on bytes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

import tiktoken

from ...display import get_logger
from ...errors import ConfigError, ModelError, PromptError

log = get_logger(__name__)

RANKS = Path(__file__).parents[2] / "data" / "gpt2" / "gpt2.tiktoken"
END_OF_TEXT = "<|endoftext|>"
_GPT2_MERGES = 50_000
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

    def encode_turn(self, text: str) -> list[int]:
        """Token ids of ``text`` as one turn of a user that the model is to answer, for ``sampling.chat_template``.

        Raises:
            ConfigError: the vocabulary has no such form: the model was not trained on conversations.
            PromptError: a character cannot be encoded.
        """
        raise ConfigError("sampling.chat_template", True, "the model's vocabulary has no chat template; it only continues text")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that ``token`` stands for; an id without a token stands for U+FFFD."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD."""
        return _text(b"".join(map(self.token_bytes, ids)))


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
        self._bytes = _table(ranks, special)
        self.vocab_size = len(self._bytes)
        self.eot_id: int | None = special[END_OF_TEXT] if eot_id is None else eot_id
        self.fingerprint = _fingerprint("gpt2", sorted(special.items()), self.eot_id)

    def encode(self, text: str) -> list[int]:
        _require_unicode(text)
        return self._encoding.encode(text, allowed_special="all")

    def token_bytes(self, token: int) -> bytes:
        return _lookup(self._bytes, token)


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
        self._bytes = [UNKNOWN if text is None else _utf8(text) for text in texts]
        self.itos = tuple(text or "" for text in texts)
        self.vocab_size = len(texts)
        others = sorted(self._stoi.items() - inverse.items())
        self.fingerprint = _fingerprint("char", texts, *([others] if others else []))

    def encode(self, text: str) -> list[int]:
        try:
            return [self._stoi[character] for character in text]
        except KeyError:
            unknown = [place for place, character in enumerate(text) if character not in self._stoi]
            count = len(unknown) - 1
            more = f", nor {'is 1 more character' if count == 1 else f'are {count} more characters'}" if count else ""
            _refuse(text, unknown[0], f"is not in the model's vocabulary{more}; it has {self._known()}")

    def token_bytes(self, token: int) -> bytes:
        return _lookup(self._bytes, token)

    def _known(self) -> str:
        characters = "".join(self.itos)
        shown = repr(characters)[1:-1]
        return f"the {self.vocab_size} characters {shown if len(shown) <= 120 else shown[:120] + '…'}"


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

        spelling = {byte: character for character, byte in _byte_alphabet().items()}

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
        self._bytes = _table(vocabulary, numbers)
        self.vocab_size = len(self._bytes)
        self.eot_id = eot_id
        pairs = [(left.hex(), right.hex()) for left, right in merges]
        tokens = [token.hex() for token in self._bytes]
        flags = [(text, *astuple(token)[1:4]) for text, token in sorted(added.items()) if not token.takes_plain_text]
        more = [part for part in (flags, self._first_ids) if part]
        self.fingerprint = _fingerprint("bytepair", tokens, pairs, sorted(numbers.items()), eot_id, prefix_space, *more)

    def encode(self, text: str) -> list[int]:
        _require_unicode(text)
        if not self._spells_all:
            self._require_spelling(text)
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        return self._first_ids + ids

    def token_bytes(self, token: int) -> bytes:
        return _lookup(self._bytes, token)

    def _require_spelling(self, text: str) -> None:
        """Refuse a character with a byte that has no token; the library would leave it out."""
        start = 0
        for found in [*self._added.finditer(text), None]:
            for place in range(start, len(text) if found is None else found.start()):
                if not all(bytes([byte]) in self._vocabulary for byte in text[place].encode()):
                    _refuse(text, place, "is not in the model's vocabulary")
            start = 0 if found is None else found.end()


def gpt2_ranks() -> dict[bytes, int]:
    """GPT-2's 50,256 byte strings in the order of their ids, which is the order of their merges."""
    words = RANKS.read_bytes().split()
    return dict(zip(map(base64.b64decode, words[::2]), map(int, words[1::2]), strict=True))


# --- Hugging Face vocabularies --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """What the tokenizer files of a model say, in Hugging Face's spelling of bytes as characters."""

    ids: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added: Mapping[str, Added]
    prefix_space: bool = False
    first_ids: Sequence[int] = ()


def read_hf_tokenizer(
    find: Callable[[str], Path | None], *, limit: int, eot_id: int | None, key: str, value: str
) -> Tokenizer | None:
    """The tokenizer of a Hugging Face model directory, from ``tokenizer.json`` or ``vocab.json`` with ``merges.txt``.

    Args:
        find: the path of one of the model's files, None where it has no such file.
        limit: rows of the model's embedding; an added token at or beyond it is left out, said in the log.
        eot_id: what the model's config calls its end-of-text token.
        key: the config key to name in errors, and
        value: its value.

    Returns:
        `GPT2Tokenizer` where the vocabulary is GPT-2's, with or without added tokens; None where there is no vocabulary file.

    Raises:
        ModelError: the vocabulary is damaged, larger than the model's, or works in a way that is not GPT-2's.
    """

    def wrong(what: str) -> ModelError:
        return ModelError(key, value, f"{what}; gptsweep reads GPT-2's kind of byte-level byte-pair vocabularies")

    def read(name: str) -> Any:
        if (path := find(name)) is None:
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise wrong(f"its {name} cannot be read ({error})") from error

    try:
        settings = read("tokenizer_config.json")
        if settings is not None and not isinstance(settings, dict):
            raise wrong("its tokenizer_config.json is not a JSON object")
        if (whole := read("tokenizer.json")) is not None:
            vocabulary = _from_tokenizer_json(whole, wrong)
        elif (ids := read("vocab.json")) is not None and (path := find("merges.txt")) is not None:
            lines = path.read_text(encoding="utf-8").split("\n")
            merges = [_pair(line) for line in lines if line and not line.startswith("#version")]
            vocabulary = _Vocabulary(ids, merges, _added_tokens(read, ids, settings or {}))
        elif settings is not None:
            kind = settings.get("tokenizer_class")
            raise wrong(f"its tokenizer is a {kind or 'kind'} without tokenizer.json, or vocab.json and merges.txt")
        else:
            return None
        return _build(_configured(vocabulary, settings or {}, wrong), limit, eot_id, wrong)
    except ModelError:
        raise
    except Exception as error:  # what a damaged file raises is of many kinds, and the library's have no class of their own
        raise wrong(f"its vocabulary files are damaged ({type(error).__name__}: {error})") from error


def _from_tokenizer_json(whole: Any, wrong: Callable[[str], ModelError]) -> _Vocabulary:
    model, split = whole["model"], whole.get("pre_tokenizer") or {}
    unusual = [
        ("model.type", model.get("type", "BPE"), "BPE"),
        ("model.dropout", model.get("dropout") or None, None),
        ("model.byte_fallback", model.get("byte_fallback") or False, False),
        ("model.ignore_merges", model.get("ignore_merges") or False, False),
        ("model.continuing_subword_prefix", model.get("continuing_subword_prefix") or "", ""),
        ("model.end_of_word_suffix", model.get("end_of_word_suffix") or "", ""),
        ("normalizer", (whole.get("normalizer") or {}).get("type"), None),
        ("pre_tokenizer.type", split.get("type"), "ByteLevel"),
        ("pre_tokenizer.use_regex", split.get("use_regex", True), True),
    ]
    for name, is_there, usual in unusual:
        if is_there != usual:
            raise wrong(f"its tokenizer.json has {name}={is_there!r} where GPT-2's has {usual!r}")
    added = {token["content"]: _added(token["id"], token) for token in whole.get("added_tokens") or []}
    merges = [_pair(pair) if isinstance(pair, str) else (pair[0], pair[1]) for pair in model["merges"]]
    first_ids = _ids_in_front(whole.get("post_processor") or {}, wrong)
    return _Vocabulary(model["vocab"], merges, added, bool(split.get("add_prefix_space")), first_ids)


def _ids_in_front(template: Any, wrong: Callable[[str], ModelError]) -> list[int]:
    """The special tokens that a ``post_processor`` puts before a text; those that it puts behind end it, and are left out."""
    kind = template.get("type", "ByteLevel")
    if kind == "Sequence":
        return [token for part in template["processors"] for token in _ids_in_front(part, wrong)]
    if kind in ("RobertaProcessing", "BertProcessing"):
        return [template["cls"][1]]
    if kind == "TemplateProcessing":
        front = itertools.takewhile(lambda piece: "Sequence" not in piece, template["single"])
        return [token for piece in front for token in template["special_tokens"][piece["SpecialToken"]["id"]]["ids"]]
    if kind != "ByteLevel":
        raise wrong(f"its tokenizer.json has post_processor.type={kind!r}, which is not known")
    return []


def _configured(vocabulary: _Vocabulary, settings: Mapping[str, Any], wrong: Callable[[str], ModelError]) -> _Vocabulary:
    """``vocabulary`` with what ``tokenizer_config.json`` adds to it: ``add_prefix_space`` and ``add_bos_token``."""
    # transformers takes the setting of classes that are made of a vocabulary, and tokenizer.json's for the others.
    from_json = settings.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
    if "add_prefix_space" in settings and not from_json:
        vocabulary = replace(vocabulary, prefix_space=bool(settings["add_prefix_space"]))
    if settings.get("add_bos_token") and not vocabulary.first_ids:
        bos = settings.get("bos_token", END_OF_TEXT)
        text = bos["content"] if isinstance(bos, dict) else bos
        number = vocabulary.added[text].id if text in vocabulary.added else vocabulary.ids.get(text)
        if number is None:
            raise wrong(f"its tokenizer_config.json has add_bos_token, and no token is its bos_token {text!r}")
        vocabulary = replace(vocabulary, first_ids=[number])
    return vocabulary


def _added(number: int, flags: Mapping[str, Any]) -> Added:
    return Added(number, *(bool(flags.get(name)) for name in ("lstrip", "rstrip", "single_word", "normalized")))


def _added_tokens(find_json: Callable[[str], Any], ids: Mapping[str, int], settings: Mapping[str, Any]) -> dict[str, Added]:
    """Added tokens as the files around ``vocab.json`` give them: ids by text, texts by id, or only the texts."""
    numbered = {
        token["content"]: _added(int(number), token) for number, token in (settings.get("added_tokens_decoder") or {}).items()
    }
    named: dict[str, Mapping[str, Any]] = {END_OF_TEXT: {}}
    for entry in (find_json("special_tokens_map.json") or {}).values():
        for token in entry if isinstance(entry, list) else [entry]:
            named |= {token["content"]: token} if isinstance(token, dict) else {token: {}}
    plain = {text: Added(number) for text, number in (find_json("added_tokens.json") or {}).items()}
    known = {**ids, **{text: token.id for text, token in plain.items()}}
    return plain | {text: _added(known[text], flags) for text, flags in named.items() if text in known} | numbered


def _pair(line: str) -> tuple[str, str]:
    left, right = line.split(" ")
    return left, right


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte: itself if printable in Latin-1 and not a space, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _build(
    vocabulary: _Vocabulary, limit: int, eot_id: int | None, wrong: Callable[[str], ModelError]
) -> GPT2Tokenizer | BytePairTokenizer:
    if not all(type(number) is int and number >= 0 for number in [*vocabulary.ids.values(), *vocabulary.first_ids]):
        raise wrong("its vocabulary gives a token an id that is not a whole number")
    for text, token in vocabulary.added.items():
        if not (isinstance(text, str) and text and text.encode(errors="replace").decode() == text):
            raise wrong(f"it has the added token {text!r}, which is not a text")
        if type(token.id) is not int or token.id < 0:
            raise wrong(f"its added token {text!r} has the id {token.id!r}, which is not a whole number")
    beyond = {text: token for text, token in vocabulary.added.items() if token.id >= limit}
    if beyond:
        log.warning("added tokens beyond the model's %d embeddings are left out: %s", limit, ", ".join(map(repr, beyond)))
    added = {text: token for text, token in vocabulary.added.items() if text not in beyond}
    alphabet = _byte_alphabet()

    def spelt(token: str) -> bytes:
        return bytes(map(alphabet.__getitem__, token))

    merges = [(spelt(left), spelt(right)) for left, right in vocabulary.merges]
    made = {left + right for left, right in merges}

    def is_merged(token: str) -> bool:
        """Whether an added token is one of the vocabulary's own, too; its text need not be spelt as theirs."""
        return set(token) <= set(alphabet) and (spelt(token) in made or len(token) == 1)

    ids = {
        spelt(token): number for token, number in vocabulary.ids.items() if token not in vocabulary.added or is_merged(token)
    }
    for verb, needed in ("make", made), ("take", {part for pair in merges for part in pair}):
        if unknown := needed - set(ids):
            raise wrong(f"its merges {verb} {min(unknown)!r}, which is not in its vocabulary")
    tokens = {number: token for token, number in ids.items()} | {token.id: _utf8(text) for text, token in added.items()}
    numbers = set(tokens)
    if not ids:
        raise wrong("its vocabulary is empty")
    if len(tokens) < len({*ids, *map(_utf8, added)}):
        raise wrong("its vocabulary gives two tokens the same id")
    if max(numbers) >= limit:
        raise wrong(f"its vocabulary goes up to id {max(numbers)}, beyond the model's {limit} embeddings")
    if strange := set(vocabulary.first_ids) - numbers:
        raise wrong(f"it puts the token {min(strange)} before every text, and has no such token")
    if eot_id not in numbers:
        eot_id = added[END_OF_TEXT].id if END_OF_TEXT in added else None
    is_plain = not (vocabulary.prefix_space or vocabulary.first_ids)
    if is_plain and all(token.takes_plain_text for token in added.values()) and _is_gpt2(ids, merges, added):
        return GPT2Tokenizer({text: token.id for text, token in added.items()}, eot_id)
    return BytePairTokenizer(ids, merges, added, eot_id, vocabulary.prefix_space, vocabulary.first_ids)


def _is_gpt2(ids: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]], added: Mapping[str, Added]) -> bool:
    """Whether a vocabulary is GPT-2's, its end of text included."""
    if len(ids) != _GPT2_MERGES + 256 or len(merges) != _GPT2_MERGES or added.get(END_OF_TEXT, Added(-1)).id != len(ids):
        return False
    ranks = gpt2_ranks()
    return ids == ranks and all(ranks[a + b] == 256 + i for i, (a, b) in enumerate(merges))


_LONGEST_BREAKER, _LONGEST_TAIL = 40, 20

# --- stop strings ---------------------------------------------------------------------------------------------------------


def stop_matcher(tokenizer: Tokenizer, stops: tuple[str, ...]) -> Callable[[int], bool]:
    """A stop matcher for one sample: called with each new token id, it returns whether a stop string is complete.

    It looks at the bytes generated so far, so a stop string is found wherever token and character boundaries lie in it.
    """
    wanted = tuple(map(_utf8, stops))
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
        wanted = _utf8(text)[:_LONGEST_BREAKER]
        for token in range(tokenizer.vocab_size):
            own = tokenizer.token_bytes(token)
            if wanted in own:
                found[(token,)] = None
                continue
            for begun in range(1, min(len(own) + 1, len(wanted))):
                rest = wanted[begun:]
                if own.endswith(wanted[:begun]) and (rest.decode("utf-8", "replace").encode() == rest):
                    with contextlib.suppress(PromptError):  # what the model has no tokens for, it cannot generate
                        found[(token, *tokenizer.encode(rest.decode())[:_LONGEST_TAIL])] = None
    return tuple(found)


def completion_text(tokenizer: Tokenizer, ids: Sequence[int], stops: tuple[str, ...], end: int | None) -> str:
    """The text of generated ``ids`` without what ended it: a closing ``end``, or the stop string that was completed first.

    Of stop strings completed by the same byte the longest counts. Bytes that are not UTF-8 become U+FFFD.
    """
    if end is not None and ids and ids[-1] == end:
        ids = ids[:-1]
    text = b"".join(map(tokenizer.token_bytes, ids))
    found = [(start + len(stop), start) for stop in map(_utf8, stops) if (start := text.find(stop)) >= 0]
    return _text(text[: min(found)[1]] if found else text)


# --- shared small parts ---------------------------------------------------------------------------------------------------


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _lookup(table: Sequence[bytes], token: int) -> bytes:
    return table[token] if 0 <= token < len(table) else UNKNOWN


def _table(vocabulary: Mapping[bytes, int], added: Mapping[str, int]) -> list[bytes]:
    """Bytes by id; an id that no token has stands for U+FFFD."""
    table = [UNKNOWN] * (1 + max([*vocabulary.values(), *added.values()]))
    for token, number in [*vocabulary.items(), *((_utf8(text), number) for text, number in added.items())]:
        table[number] = token
    return table


def _fingerprint(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        _refuse(text, error.start, "is half of a surrogate pair or a byte that is not UTF-8, and has no encoding")


def _refuse(text: str, place: int, what: str) -> NoReturn:
    character = text[place]
    line, column = text.count("\n", 0, place) + 1, place - text.rfind("\n", 0, place)
    raise PromptError("start", text, f"{character!r} (U+{ord(character):04X}), line {line}, column {column}, {what}")
