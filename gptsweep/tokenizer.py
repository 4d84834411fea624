"""Text to token ids and back: GPT-2's byte pairs, other byte-pair vocabularies, characters; and stop strings, on bytes."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, Protocol

import tiktoken

from .display import get_logger
from .errors import ModelError, PromptError

log = get_logger(__name__)

RANKS = Path(__file__).parent / "data" / "gpt2" / "gpt2.tiktoken"
END_OF_TEXT = "<|endoftext|>"
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

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``.

        Raises:
            PromptError: a character cannot be encoded; it is named with its place.
        """
        ...

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
        itos: the text of each id, in the order of the ids.
    """

    eot_id = None

    def __init__(self, itos: Iterable[str]) -> None:
        self.itos = tuple(itos)
        self._stoi = {text: token for token, text in enumerate(self.itos)}
        self._bytes = [_utf8(text) for text in self.itos]
        self.vocab_size = len(self.itos)
        self.fingerprint = _fingerprint("char", self.itos)

    def encode(self, text: str) -> list[int]:
        try:
            return [self._stoi[character] for character in text]
        except KeyError:
            unknown = [place for place, character in enumerate(text) if character not in self._stoi]
            more = f", nor are {len(unknown) - 1} more characters" if len(unknown) > 1 else ""
            _refuse(text, unknown[0], f"is not in the model's vocabulary{more}; it has {self._known()}")

    def token_bytes(self, token: int) -> bytes:
        return _lookup(self._bytes, token)

    def _known(self) -> str:
        characters = "".join(self.itos)
        shown = repr(characters)[1:-1]
        return f"the {self.vocab_size} characters {shown if len(shown) <= 120 else shown[:120] + '…'}"


class BytePairTokenizer(Tokenizer):
    """A byte-level byte-pair vocabulary other than GPT-2's, merged exactly as Hugging Face's tokenizers do.

    tiktoken is not used: it takes a token's id for the rank of its merge and merges any pair that spells a token, which holds
    for GPT-2's vocabulary and not for every other.

    Args:
        vocabulary: ids by bytes, the added tokens left out.
        merges: pairs of byte strings, the first to be merged first.
        added: ids by text of the tokens that are recognised in text before anything is split.
        eot_id: the token that ends a text, None where there is none.
        prefix_space: a space is put before each stretch of text that starts with none.
    """

    def __init__(
        self,
        vocabulary: Mapping[bytes, int],
        merges: Sequence[tuple[bytes, bytes]],
        added: Mapping[str, int],
        eot_id: int | None = None,
        prefix_space: bool = False,
    ) -> None:
        # Imported late: it costs 40 ms at start-up that only models with a vocabulary of their own need.
        import regex  # type: ignore[import-untyped]

        self._words = regex.compile(GPT2_WORDS)
        self._added = dict(added)
        self._split = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or r"(?!)")
        self._vocabulary = dict(vocabulary)
        self._ranks = {pair: rank for rank, pair in reversed(list(enumerate(merges)))}
        self._prefix_space = prefix_space
        self._bytes = _table(vocabulary, added)
        self.vocab_size = len(self._bytes)
        self.eot_id = eot_id
        pairs = [(left.hex(), right.hex()) for left, right in merges]
        tokens = [token.hex() for token in self._bytes]
        self.fingerprint = _fingerprint("bytepair", tokens, pairs, sorted(added.items()), eot_id, prefix_space)

    def encode(self, text: str) -> list[int]:
        _require_unicode(text)
        ids: list[int] = []
        start = 0
        for found in self._split.finditer(text):
            ids += self._encode_stretch(text, start, found.start())
            ids.append(self._added[found.group()])
            start = found.end()
        return ids + self._encode_stretch(text, start, len(text))

    def token_bytes(self, token: int) -> bytes:
        return _lookup(self._bytes, token)

    def _encode_stretch(self, text: str, start: int, end: int) -> list[int]:
        stretch = text[start:end]
        if self._prefix_space and stretch and not stretch.startswith(" "):
            stretch, start = " " + stretch, start - 1
        ids: list[int] = []
        for word in self._words.finditer(stretch):
            for part in self._merge(word.group().encode()):
                if part not in self._vocabulary:
                    strange = next(i for i, c in enumerate(word.group()) if not self._spells(c))
                    _refuse(text, start + word.start() + strange, "is not in the model's vocabulary")
                ids.append(self._vocabulary[part])
        return ids

    def _spells(self, character: str) -> bool:
        return all(bytes([byte]) in self._vocabulary for byte in character.encode())

    def _merge(self, word: bytes) -> list[bytes]:
        """``word`` in pieces: the neighbours of the lowest rank are merged, the first of equals, until none has a rank."""
        parts = [bytes([byte]) for byte in word]
        while len(parts) > 1:
            rank, place = min((self._ranks.get(pair, math.inf), place) for place, pair in enumerate(pairwise(parts)))
            if rank == math.inf:
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        return parts


def gpt2_ranks() -> dict[bytes, int]:
    """GPT-2's 50,256 byte strings in the order of their ids, which is the order of their merges."""
    words = RANKS.read_bytes().split()
    return dict(zip(map(base64.b64decode, words[::2]), map(int, words[1::2]), strict=True))


# --- meta.pkl -------------------------------------------------------------------------------------------------------------


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, numbers and strings; a pickle that asks for anything else is refused before anything is run."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"asks for {module}.{name}")


def read_meta(path: str | Path) -> CharTokenizer:
    """The character vocabulary of a nanoGPT ``meta.pkl``: ``itos``, a list or ``{id: text}``, and ``stoi``, its inverse.

    Raises:
        ModelError: the file cannot be read, holds more than containers, numbers and strings, or no such vocabulary.
    """

    def wrong(what: str) -> ModelError:
        return ModelError(
            "model.meta", str(path), f"{what}; give the meta.pkl that nanoGPT's prepare.py wrote beside the training data"
        )

    try:
        with Path(path).expanduser().open("rb") as file:
            meta: Any = _PlainUnpickler(file).load()
    except OSError as error:
        raise wrong(f"cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged pickle can raise anything: EOFError, IndexError, UnicodeDecodeError, MemoryError…
        reason = str(error) if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        raise wrong(f"is not a pickle of plain containers, numbers and strings ({reason})") from error
    itos = meta.get("itos") if isinstance(meta, dict) else None
    if isinstance(itos, list):
        itos = dict(enumerate(itos))
    if not isinstance(itos, dict) or not itos:
        raise wrong("has no vocabulary 'itos'")
    if set(itos) != set(range(len(itos))) or not all(isinstance(text, str) for text in itos.values()):
        raise wrong(f"has an 'itos' that does not map the ids 0 to {len(itos) - 1} to text")
    stoi = meta.get("stoi")
    if stoi is not None and stoi != {text: token for token, text in itos.items()}:
        raise wrong("has an 'stoi' that is not the inverse of its 'itos'")
    return CharTokenizer(itos[token] for token in range(len(itos)))


# --- Hugging Face vocabularies --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """What the tokenizer files of a model say, in Hugging Face's spelling of bytes as characters."""

    ids: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added: Mapping[str, int]
    prefix_space: bool = False


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
        if (whole := read("tokenizer.json")) is not None:
            vocabulary = _from_tokenizer_json(whole, wrong)
        elif (ids := read("vocab.json")) is not None and (path := find("merges.txt")) is not None:
            lines = path.read_text(encoding="utf-8").split("\n")
            settings = read("tokenizer_config.json") or {}
            merges = [_pair(line) for line in lines if line and not line.startswith("#version")]
            vocabulary = _Vocabulary(ids, merges, _added_tokens(read, ids, settings), bool(settings.get("add_prefix_space")))
        elif (settings := read("tokenizer_config.json")) is not None:
            kind = settings.get("tokenizer_class") if isinstance(settings, dict) else None
            raise wrong(f"its tokenizer is a {kind or 'kind'} without tokenizer.json, or vocab.json and merges.txt")
        else:
            return None
        return _build(vocabulary, limit, eot_id, wrong)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise wrong(f"its vocabulary files are damaged ({type(error).__name__}: {error})") from error


def _from_tokenizer_json(whole: Any, wrong: Callable[[str], ModelError]) -> _Vocabulary:
    model, split = whole["model"], whole.get("pre_tokenizer") or {}
    unusual = [
        ("model.type", model.get("type", "BPE"), "BPE"),
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
    added = {}
    for token in whole.get("added_tokens") or []:
        if any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
            log.warning("added token %r takes the white space around it; in prompts it is read as plain text", token["content"])
        else:
            added[token["content"]] = token["id"]
    merges = [_pair(pair) if isinstance(pair, str) else (pair[0], pair[1]) for pair in model["merges"]]
    return _Vocabulary(model["vocab"], merges, added, bool(split.get("add_prefix_space")))


def _added_tokens(find_json: Callable[[str], Any], ids: Mapping[str, int], settings: Mapping[str, Any]) -> dict[str, int]:
    """Added tokens as the files around ``vocab.json`` give them: ids by text, texts by id, or only the texts."""
    numbered = {token["content"]: int(number) for number, token in (settings.get("added_tokens_decoder") or {}).items()}
    named = [END_OF_TEXT]
    for entry in (find_json("special_tokens_map.json") or {}).values():
        named += [
            token["content"] if isinstance(token, dict) else token for token in (entry if isinstance(entry, list) else [entry])
        ]
    return (find_json("added_tokens.json") or {}) | numbered | {text: ids[text] for text in named if text in ids}


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
    beyond = {text: token for text, token in vocabulary.added.items() if token >= limit}
    if beyond:
        log.warning("added tokens beyond the model's %d embeddings are left out: %s", limit, ", ".join(map(repr, beyond)))
    added = {text: token for text, token in vocabulary.added.items() if text not in beyond}
    alphabet = _byte_alphabet()

    def spelt(token: str) -> bytes:
        return bytes(map(alphabet.__getitem__, token))

    merges = [(spelt(left), spelt(right)) for left, right in vocabulary.merges]
    made = {left + right for left, right in merges}
    ids = {
        spelt(token): number
        for token, number in vocabulary.ids.items()
        if token not in vocabulary.added or spelt(token) in made or len(spelt(token)) == 1
    }
    if unknown := made - set(ids):
        raise wrong(f"its merges make {min(unknown)!r}, which is not in its vocabulary")
    tokens = {number: token for token, number in ids.items()} | {number: _utf8(text) for text, number in added.items()}
    numbers = set(tokens)
    if not ids or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise wrong("its vocabulary is empty or gives a token an id that is not a whole number")
    if len(tokens) < len({*ids, *map(_utf8, added)}):
        raise wrong("its vocabulary gives two tokens the same id")
    if max(numbers) >= limit:
        raise wrong(f"its vocabulary goes up to id {max(numbers)}, beyond the model's {limit} embeddings")
    if eot_id not in numbers:
        eot_id = added.get(END_OF_TEXT)
    ranks = gpt2_ranks()
    alone = len(ranks) - len(merges)
    is_gpt2 = ids == ranks and alone == 256 and all(ranks[a + b] == 256 + i for i, (a, b) in enumerate(merges))
    if is_gpt2 and not vocabulary.prefix_space and added.get(END_OF_TEXT) == len(ranks):
        return GPT2Tokenizer(added, eot_id)
    return BytePairTokenizer(ids, merges, added, eot_id, vocabulary.prefix_space)


# --- stop strings ---------------------------------------------------------------------------------------------------------


def stop_watch(tokenizer: Tokenizer, stops: tuple[str, ...]) -> Callable[[int], bool]:
    """A watcher for one sample: called with each new token id, it says whether a stop string has been completed.

    It looks at the bytes generated so far, so a stop string is found wherever token and character boundaries lie in it.
    """
    wanted = tuple(map(_utf8, stops))
    reach = max(map(len, wanted), default=1) - 1
    tail = b""
    found = False

    def watch(token: int) -> bool:
        nonlocal tail, found
        seen = tail + tokenizer.token_bytes(token)
        found = found or any(stop in seen for stop in wanted)
        tail = seen[max(0, len(seen) - reach) :]
        return found

    return watch


def completion_text(tokenizer: Tokenizer, ids: Sequence[int], stops: tuple[str, ...], eot_id: int | None) -> str:
    """The text of generated ``ids`` without what ended it: a closing ``eot_id``, or the stop string that was completed first.

    Of stop strings completed by the same byte the longest counts. Bytes that are not UTF-8 become U+FFFD.
    """
    if eot_id is not None and ids and ids[-1] == eot_id:
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
