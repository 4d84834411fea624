"""Read ``meta.pkl``, the vocabulary that nanoGPT's ``prepare.py`` writes next to its data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...display import counted
from ...errors import ModelError, brief
from ...files import open_to_read
from .pickles import PickleError, elements_of, mapping_of, read_pickle
from .tokenizers import CharTokenizer, GPT2Tokenizer

_GPT2_NAMES = ("gpt2", "gpt-2", "r50k_base")
_CHARACTER_NAMES = ("char", "chars", "character", "characters", "character-level")


def read_meta(path: str | Path, limit: int) -> CharTokenizer | GPT2Tokenizer:
    """Read the vocabulary in a ``meta.pkl``: ``itos`` holds the text of each id, ``stoi`` the id of each text.

    ``itos`` may be a mapping, a list, a tuple or a NumPy array. Ids may start above 0 and have gaps. ``stoi`` may also map
    further texts to ids. ``{"tokenizer": "tiktoken"}`` means GPT-2's encoding, unless it names another.

    Args:
        path: path of the file.
        limit: number of rows of the model's embedding; every id must be below it.

    Raises:
        ModelError: the file cannot be read, or holds no such vocabulary.
    """

    def wrong(what: str) -> ModelError:
        return ModelError(
            "model.meta", str(path), f"{what}; give the meta.pkl that nanoGPT's prepare.py wrote beside the training data"
        )

    try:
        with open_to_read(Path(path).expanduser()) as file:
            size = os.fstat(file.fileno()).st_size
            meta = mapping_of(read_pickle(file, size)) or {}
    except OSError as error:
        raise wrong(f"cannot be read ({error.strerror})") from error
    except PickleError as error:
        raise wrong(f"is not a pickle of a vocabulary ({error})") from error
    kind = meta.get("tokenizer")
    if kind in ("tiktoken", *_GPT2_NAMES):
        encoding = meta.get("tiktoken_encoding", meta.get("encoding", "gpt2"))
        if encoding not in _GPT2_NAMES:
            raise wrong(f"names the tiktoken encoding {brief(encoding)}, but gptsweep has only GPT-2's")
        return GPT2Tokenizer()
    if kind is not None and kind not in _CHARACTER_NAMES:
        raise wrong(f"names the tokenizer {brief(kind)}, which gptsweep does not have")
    texts = _texts(meta.get("itos"))
    if not texts:
        raise wrong("has no vocabulary 'itos'")
    if not all(type(token) is int and token >= 0 and type(text) is str for token, text in texts.items()):
        raise wrong("has an 'itos' that does not map ids to text")
    if max(texts) >= limit:
        what = counted(len(texts), "character") if max(texts) + 1 == len(texts) else f"ids up to {max(texts)}"
        raise wrong(f"has {what}, more than the {limit} of the checkpoint")
    if sum(map(len, texts.values())) > size:
        raise wrong("has an 'itos' with more text than the file holds")
    ids = mapping_of(meta["stoi"]) if meta.get("stoi") is not None else {text: token for token, text in texts.items()}
    if ids is None or not all(type(text) is str and type(token) is int and token in texts for text, token in ids.items()):
        raise wrong("has an 'stoi' that does not map text to the ids of its 'itos'")
    if not all(texts.get(ids.get(text)) == text for text in texts.values()):
        raise wrong("has an 'stoi' that is not the inverse of its 'itos'")
    return CharTokenizer([texts.get(token) for token in range(max(texts) + 1)], ids)


def _texts(itos: Any) -> dict[Any, Any] | None:
    elements = elements_of(itos)
    return mapping_of(itos) if elements is None else dict(enumerate(elements))
