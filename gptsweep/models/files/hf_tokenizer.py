"""The tokenizer of a Hugging Face model, from its ``tokenizer.json`` or ``vocab.json`` with ``merges.txt``."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...display import get_logger
from ...errors import ModelError
from .byte_pairs import Added, BytePairTokenizer, byte_alphabet
from .tokenizers import END_OF_TEXT, GPT2Tokenizer, Tokenizer, gpt2_ranks, utf8

log = get_logger(__name__)

_GPT2_MERGES = 50_000


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
    alphabet = byte_alphabet()

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
    tokens = {number: token for token, number in ids.items()} | {token.id: utf8(text) for text, token in added.items()}
    numbers = set(tokens)
    if not ids:
        raise wrong("its vocabulary is empty")
    if len(tokens) < len({*ids, *map(utf8, added)}):
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
