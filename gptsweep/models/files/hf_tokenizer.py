"""Read the tokenizer of a Hugging Face model, from ``tokenizer.json`` or from ``vocab.json`` with ``merges.txt``."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, AnyStr

from ...display import get_logger
from ...errors import ModelError, brief
from .byte_pairs import Added, BytePairTokenizer, LibraryTokenizer, byte_alphabet
from .hf_pipeline import QWEN, Pipeline, PipelineTokenizer, llama, read_pipeline
from .hf_text import HFTokenizer
from .tokenizers import END_OF_TEXT, GPT2Tokenizer, Tokenizer, gpt2_ranks, utf8

log = get_logger(__name__)

_GPT2_MERGES = 50_000
_MOST_IN_FRONT = 64
"""The most tokens that a file may add before each text; known tokenizers add one."""
_STEPS_FROM_JSON = ("mistral", "olmo2")
"""The model types for which transformers uses tokenizer.json's steps, whatever class tokenizer_config.json names."""


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The contents of a model's tokenizer files, with bytes spelt as characters as Hugging Face does."""

    ids: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added: Mapping[str, Added]
    prefix_space: bool = False
    first_ids: Sequence[int] = ()
    pipeline: Pipeline | None = None  # None: GPT-2's


def read_hf_tokenizer(
    find: Callable[[str], Path | None], *, config: Mapping[str, Any], limit: int, key: str, value: str
) -> Tokenizer | None:
    """Read the tokenizer of a Hugging Face model, from ``tokenizer.json`` or from ``vocab.json`` with ``merges.txt``.

    Args:
        find: returns the path of one of the model's files, or None if it has no such file.
        config: the contents of the model's ``config.json``.
        limit: number of rows of the model's embedding. Added tokens with an id at or above it are dropped, with a warning.
        key, value: name the model in errors.

    Returns:
        A `GPT2Tokenizer` if the vocabulary is GPT-2's, with or without added tokens, and no file names other end tokens or a
        chat template. None if there is no vocabulary file.

    Raises:
        ModelError: the vocabulary is damaged, larger than the model's, or of a kind that gptsweep does not support.
    """

    def wrong(what: str) -> ModelError:
        return ModelError(key, value, f"{what}; gptsweep reads byte-pair vocabularies, byte-level or with byte fallback")

    def text(name: str) -> str | None:
        try:
            return None if (path := find(name)) is None else path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise wrong(f"its {name} cannot be read ({error})") from error

    def read(name: str) -> Any:
        try:
            return None if (contents := text(name)) is None else json.loads(contents)
        except (ValueError, RecursionError) as error:
            raise wrong(f"its {name} cannot be read ({error})") from error

    def settings_in(name: str) -> dict[str, Any] | None:
        if (settings := read(name)) is not None and not isinstance(settings, dict):
            raise wrong(f"its {name} is not a JSON object")
        return settings

    try:
        settings = settings_in("tokenizer_config.json")
        if (whole := read("tokenizer.json")) is not None:
            vocabulary = _from_tokenizer_json(whole, wrong)
        elif (ids := read("vocab.json")) is not None and (lines := text("merges.txt")) is not None:
            merges = [_pair(line) for line in lines.split("\n") if line and not line.startswith("#version")]
            pipeline = QWEN if _class(settings or {}) == "Qwen2Tokenizer" else None
            vocabulary = _Vocabulary(ids, merges, _added_tokens(read, ids, settings or {}), pipeline=pipeline)
        elif settings is not None:
            kind = settings.get("tokenizer_class")
            raise wrong(
                f"its tokenizer{f', a {kind},' if kind else ''} has neither tokenizer.json nor vocab.json with merges.txt"
            )
        else:
            return None
        settings = settings or {}
        if "eos_token" not in settings:  # older models name it in special_tokens_map.json
            settings = {**(settings_in("special_tokens_map.json") or {}), **settings}
        ends = _ends("config.json", config, wrong)
        configured = _configured(vocabulary, settings, config.get("model_type"), wrong)
        tokenizer = _build(configured, limit, ends[0] if ends else None, wrong)
        ends += _ends("generation_config.json", settings_in("generation_config.json") or {}, wrong)
        if configured.first_ids:
            log.info("%s is added before each prompt", tokenizer.decode(configured.first_ids))
        return HFTokenizer.of(tokenizer, ends, _special_tokens(settings), _chat_template(text, settings, wrong), value)
    except ModelError:
        raise
    except Exception as error:  # a damaged file can raise many kinds of error, and the library's have no common class
        raise wrong(f"its vocabulary files are damaged ({type(error).__name__}: {error})") from error


def _class(settings: Mapping[str, Any]) -> str:
    return str(settings.get("tokenizer_class")).removesuffix("Fast")


def _ends(name: str, settings: Mapping[str, Any], wrong: Callable[[str], ModelError]) -> list[int]:
    """Read the end tokens that a model's config names."""
    found = settings.get("eos_token_id")
    ends = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int for token in ends):
        raise wrong(f"its {name} has eos_token_id={brief(found)}, which is neither a token id nor a list of token ids")
    return list(ends)


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of special tokens by name, such as ``bos_token`` and ``eos_token``, for the chat template."""
    texts = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in settings.items()
        if name.endswith("_token") and not name.startswith("add_")
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _chat_template(
    text: Callable[[str], str | None], settings: Mapping[str, Any], wrong: Callable[[str], ModelError]
) -> str | None:
    """Read the chat template; of several named ones, the one called ``default``."""
    if (found := text("chat_template.jinja")) is not None:
        return found
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {each["name"]: each["template"] for each in template}
        if "default" not in named:
            log.warning("none of the chat templates is the default one: %s", ", ".join(map(str, named)))
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise wrong(f"its tokenizer_config.json has chat_template={brief(template)}, which is not text")
    return template


def _from_tokenizer_json(whole: Any, wrong: Callable[[str], ModelError]) -> _Vocabulary:
    model = whole["model"]
    for name, is_there, usual in (
        ("model.type", model.get("type", "BPE"), "BPE"),
        ("model.dropout", model.get("dropout") or None, None),
        ("model.continuing_subword_prefix", model.get("continuing_subword_prefix") or "", ""),
        ("model.end_of_word_suffix", model.get("end_of_word_suffix") or "", ""),
    ):
        if is_there != usual:
            raise wrong(f"its tokenizer.json has {name}={brief(is_there)}, but gptsweep supports only {usual!r}")
    pipeline = read_pipeline(whole, wrong)
    added = {token["content"]: _added(token["id"], token) for token in whole.get("added_tokens") or []}
    merges = [_pair(pair) if isinstance(pair, str) else (pair[0], pair[1]) for pair in model["merges"]]
    first_ids = list(itertools.islice(_ids_in_front(whole.get("post_processor") or {}, wrong), _MOST_IN_FRONT + 1))
    if len(first_ids) > _MOST_IN_FRONT:
        raise wrong(f"its tokenizer.json adds more than {_MOST_IN_FRONT} tokens before each text")
    kept = None if pipeline.is_gpt2 else pipeline
    return _Vocabulary(model["vocab"], merges, added, pipeline.puts_space, first_ids, kept)


def _ids_in_front(template: Any, wrong: Callable[[str], ModelError]) -> Iterator[int]:
    """Yield the special tokens that a ``post_processor`` adds before a text. Those that it adds after the text are ignored."""
    kind = template.get("type", "ByteLevel")
    if kind == "Sequence":
        for part in template["processors"]:
            yield from _ids_in_front(part, wrong)
    elif kind in ("RobertaProcessing", "BertProcessing"):
        yield template["cls"][1]
    elif kind == "TemplateProcessing":
        for piece in itertools.takewhile(lambda piece: "Sequence" not in piece, template["single"]):
            yield from template["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    elif kind != "ByteLevel":
        raise wrong(f"its tokenizer.json has post_processor.type={brief(kind)}, which gptsweep does not support")


def _configured(
    vocabulary: _Vocabulary, settings: Mapping[str, Any], model_type: object, wrong: Callable[[str], ModelError]
) -> _Vocabulary:
    """Apply ``add_prefix_space``, ``legacy`` and ``add_bos_token`` of ``tokenizer_config.json`` to ``vocabulary``."""
    # transformers uses these settings for tokenizer classes built from a vocabulary, and tokenizer.json for the others.
    kind, pipeline = _class(settings), vocabulary.pipeline
    from_json = kind in ("PreTrainedTokenizer", "TokenizersBackend") or model_type in _STEPS_FROM_JSON
    if pipeline is not None and kind == "LlamaTokenizer":
        if not from_json and not pipeline.is_byte_level:
            puts_space = settings.get("add_prefix_space") in (None, True)
            vocabulary = replace(vocabulary, pipeline=llama(pipeline, puts_space, bool(settings.get("legacy"))))
    elif "add_prefix_space" in settings and not from_json:
        puts_space = bool(settings["add_prefix_space"])
        pipeline = None if pipeline is None else pipeline.with_prefix_space(puts_space)
        vocabulary = replace(vocabulary, prefix_space=puts_space, pipeline=pipeline)
    bos = settings.get("bos_token", END_OF_TEXT)
    if settings.get("add_bos_token") and bos is not None and not vocabulary.first_ids:
        text = bos["content"] if isinstance(bos, dict) else bos
        number = vocabulary.added[text].id if text in vocabulary.added else vocabulary.ids.get(text)
        if number is None:
            raise wrong(f"its tokenizer_config.json has add_bos_token, but its bos_token {text!r} is not in the vocabulary")
        vocabulary = replace(vocabulary, first_ids=[number])
    return vocabulary


def _added(number: int, flags: Mapping[str, Any]) -> Added:
    return Added(number, *(bool(flags.get(name)) for name in ("lstrip", "rstrip", "single_word", "normalized")))


def _added_tokens(find_json: Callable[[str], Any], ids: Mapping[str, int], settings: Mapping[str, Any]) -> dict[str, Added]:
    """Collect the added tokens from the files next to ``vocab.json``, which list ids by text, texts by id, or only texts."""
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
) -> GPT2Tokenizer | LibraryTokenizer:
    if not all(type(number) is int and number >= 0 for number in [*vocabulary.ids.values(), *vocabulary.first_ids]):
        raise wrong("its vocabulary gives a token an id that is not a whole number")
    for text, token in vocabulary.added.items():
        if not (isinstance(text, str) and text and text.encode(errors="replace").decode() == text):
            raise wrong(f"it has the added token {text!r}, which is not text")
        if type(token.id) is not int or token.id < 0:
            raise wrong(f"its added token {text!r} has the id {token.id!r}, which is not a whole number")
    beyond = {text: token for text, token in vocabulary.added.items() if token.id >= limit}
    if beyond:
        log.warning("ignoring added tokens beyond the model's %d embeddings: %s", limit, ", ".join(map(repr, beyond)))
    added = {text: token for text, token in vocabulary.added.items() if text not in beyond}
    if vocabulary.pipeline is None:
        return _build_byte_pairs(replace(vocabulary, added=added), limit, eot_id, beyond, wrong)
    ids = {token: number for token, number in vocabulary.ids.items() if token not in vocabulary.added}
    known = {**ids, **{text: token.id for text, token in vocabulary.added.items()}}
    _check_merges(vocabulary.merges, known, wrong)
    eot_id = _check_ids(ids, added, limit, vocabulary.first_ids, eot_id, wrong)
    merges = [pair for pair in vocabulary.merges if "".join(pair) not in beyond and beyond.keys().isdisjoint(pair)]
    return PipelineTokenizer(ids, merges, added, vocabulary.pipeline, eot_id, vocabulary.first_ids)


def _build_byte_pairs(
    vocabulary: _Vocabulary, limit: int, eot_id: int | None, beyond: Collection[str], wrong: Callable[[str], ModelError]
) -> GPT2Tokenizer | BytePairTokenizer:
    """Build a tokenizer that splits text as GPT-2 does; ``beyond`` are the added tokens that were dropped."""
    alphabet, added = byte_alphabet(), vocabulary.added

    @cache  # most tokens occur in several merges
    def spelt(token: str) -> bytes:
        return bytes(map(alphabet.__getitem__, token))

    merges = [(spelt(left), spelt(right)) for left, right in vocabulary.merges]
    made = {left + right for left, right in merges}

    def is_merged(token: str) -> bool:
        """Return whether an added token is also a token of the vocabulary itself. Its text need not be in the byte alphabet."""
        return set(token) <= set(alphabet) and (spelt(token) in made or len(token) == 1)

    ids = {
        spelt(token): number
        for token, number in vocabulary.ids.items()
        if (token not in added and token not in beyond) or is_merged(token)
    }
    _check_merges(merges, ids, wrong)
    eot_id = _check_ids(ids, added, limit, vocabulary.first_ids, eot_id, wrong)
    is_plain = not (vocabulary.prefix_space or vocabulary.first_ids)
    if is_plain and all(token.takes_plain_text for token in added.values()) and _is_gpt2(ids, merges, added):
        return GPT2Tokenizer({text: token.id for text, token in added.items()}, eot_id)
    return BytePairTokenizer(ids, merges, added, eot_id, vocabulary.prefix_space, vocabulary.first_ids)


def _check_merges(merges: Iterable[tuple[AnyStr, AnyStr]], ids: Collection[AnyStr], wrong: Callable[[str], ModelError]) -> None:
    for left, right in merges:
        for verb, needed in ("make", left + right), ("take", left), ("take", right):
            if needed not in ids:
                raise wrong(f"its merges {verb} {needed!r}, which is not in its vocabulary")


def _check_ids(
    ids: Mapping[AnyStr, int],
    added: Mapping[str, Added],
    limit: int,
    first_ids: Sequence[int],
    eot_id: int | None,
    wrong: Callable[[str], ModelError],
) -> int | None:
    """Check that ids are unique and below ``limit`` and that ``first_ids`` exist, and return the end token, if any."""
    if not ids:
        raise wrong("its vocabulary is empty")
    numbers = {*ids.values(), *(token.id for token in added.values())}
    twice = sum(1 for text, token in added.items() if text in ids or utf8(text) in ids)
    if len(numbers) < len(ids) + len(added) - twice:
        raise wrong("its vocabulary gives two tokens the same id")
    if max(numbers) >= limit:
        raise wrong(f"its vocabulary goes up to id {max(numbers)}, beyond the model's {limit} embeddings")
    if strange := set(first_ids) - numbers:
        raise wrong(f"it puts the token {min(strange)} before each text, but has no such token")
    return eot_id if eot_id in numbers else added[END_OF_TEXT].id if END_OF_TEXT in added else None


def _is_gpt2(ids: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]], added: Mapping[str, Added]) -> bool:
    """Return whether a vocabulary is GPT-2's, including its end-of-text token."""
    if len(ids) != _GPT2_MERGES + 256 or len(merges) != _GPT2_MERGES or added.get(END_OF_TEXT, Added(-1)).id != len(ids):
        return False
    ranks = gpt2_ranks()
    return ids == ranks and all(ranks[a + b] == 256 + i for i, (a, b) in enumerate(merges))
