"""Small tokenizers with the settings of those that people download, and their directories."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from gptsweep.models.files.hf_pipeline import LLAMA3_PATTERN, QWEN_PATTERN
from gptsweep.models.files.hf_tokenizer import read_hf_tokenizer
from gptsweep.models.files.tokenizers import Tokenizer

CORPUS = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8").split("\n")
END = "<|endoftext|>"
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
MIXED = "naïve e\u0301 🙂👩‍👧 日本語, 12345 it's IT'S\r\n\ta\t\t  b      c  ▁d \x00\x7f"


def trained(
    pre_tokenizer: Any, normalizer: Any, decoder: Any, special: Sequence[str], *, fallback: bool = False
) -> dict[str, Any]:
    """A small ``tokenizer.json``."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=fallback, fuse_unk=fallback, unk_token=special[0]))
    for name, step in {"pre_tokenizer": pre_tokenizer, "normalizer": normalizer, "decoder": decoder}.items():
        if step is not None:
            setattr(tokenizer, name, step)
    alphabet = [] if fallback else pre_tokenizers.ByteLevel.alphabet()
    first = [*special, *(f"<0x{byte:02X}>" for byte in range(256))] if fallback else list(special)
    size = {"vocab_size": len(first) + 400, "initial_alphabet": alphabet, "special_tokens": first}
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(show_progress=False, **size))
    contents: dict[str, Any] = json.loads(tokenizer.to_str())
    contents["added_tokens"] = [token for token in contents["added_tokens"] if token["content"] in special]
    return contents


def in_front(text: str, number: int) -> dict[str, Any]:
    """A post_processor that puts a token before a text."""
    single = [{"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    known = {text: {"id": text, "ids": [number], "tokens": [text]}}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": known}


def split(words: str) -> Any:
    pieces = pre_tokenizers.Split(tokenizers.Regex(words), "isolated")
    return pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


Files = tuple[dict[str, Any], dict[str, Any], str]
"""``tokenizer.json``, ``tokenizer_config.json`` and the model_type."""


@functools.cache
def _kinds() -> dict[str, Files]:
    level, decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    chatml = [END, "<|im_start|>", "<|im_end|>"]
    names = {"bos_token": END, "eos_token": END, "unk_token": END}
    turns = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": END}
    llama2 = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    fallback = trained(None, spaces, decoders.Sequence(back), ["<unk>", "<s>", "</s>"], fallback=True)
    fallback |= {"post_processor": in_front("<s>", 1)}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    llama3 = trained(split(LLAMA3_PATTERN), None, decoder, LLAMA3)
    llama3["model"]["ignore_merges"] = True
    after = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    llama3["post_processor"] = {"type": "Sequence", "processors": [after, in_front(LLAMA3[0], 0)]}
    neox = trained(level, normalizers.NFC(), decoder, [END, "<|padding|>"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    size = len(neox["model"]["vocab"])
    neox["added_tokens"] += [{"id": size + more, "content": "  " * (1 + more), **flags} for more in (0, 1)]
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    fast = {"tokenizer_class": "PreTrainedTokenizerFast"}
    return {
        "gpt2": (trained(level, None, decoder, [END]) | {"post_processor": after}, names, "gpt2"),
        "smollm2": (trained(digits, None, decoder, chatml), turns | {"tokenizer_class": "GPT2Tokenizer"}, "llama"),
        "qwen": (
            trained(split(QWEN_PATTERN), normalizers.NFC(), decoder, chatml),
            {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>", "add_prefix_space": False},
            "qwen3",
        ),
        "llama2": (fallback, llama2 | fast, "llama"),
        "mistral": (fallback, llama2 | {"tokenizer_class": "LlamaTokenizer", "legacy": True}, "mistral"),
        "metaspace": (fallback | {"normalizer": None, "pre_tokenizer": metaspace}, llama2 | fast, "llama"),
        "llama2_by_class": (fallback, llama2 | {"tokenizer_class": "LlamaTokenizer", "legacy": False}, "llama"),
        "llama2_by_legacy_class": (fallback, llama2 | {"tokenizer_class": "LlamaTokenizerFast", "legacy": True}, "llama"),
        "llama3": (llama3, fast | {"bos_token": LLAMA3[0], "eos_token": LLAMA3[-1]}, "llama"),
        "neox": (neox, names | {"tokenizer_class": "GPTNeoXTokenizer"}, "gpt_neox"),
    }


KINDS = (
    "gpt2", "smollm2", "qwen", "llama2", "mistral", "metaspace", "llama2_by_class", "llama2_by_legacy_class", "llama3", "neox",
)  # fmt: skip


def files_of(kind: str) -> Files:
    """The files of one of `KINDS`, the same objects at each call."""
    return _kinds()[kind]


def write(directory: Path, files: Files, **more: object) -> Path:
    """Write the tokenizer's files of a model's directory; ``more`` goes into ``tokenizer_config.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    contents, config, model_type = files
    (directory / "tokenizer.json").write_text(json.dumps(contents))
    (directory / "tokenizer_config.json").write_text(json.dumps(config | more))
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    return directory


def ours(directory: Path, limit: int = 1000) -> Tokenizer:
    def find(name: str) -> Path | None:
        return path if (path := directory / name).is_file() else None

    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    found = read_hf_tokenizer(find, config=config, limit=limit, key="model.path", value="here")
    assert found is not None
    return found


def theirs(directory: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)


def damage(contents: Any, data: st.DataObject, strange: st.SearchStrategy[Any], most: int) -> None:
    """Replace up to ``most`` parts of a JSON value by strange ones."""
    for _ in range(data.draw(st.integers(1, most))):
        found = places(contents)
        *path, last = found[data.draw(st.integers(1, len(found) - 1))]
        place = contents
        for key in path:
            place = place[key]
        place[last] = copy.deepcopy(data.draw(strange))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places in a JSON value, a few of each list or object."""
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [path, *(place for key, each in itertools.islice(inner, 12) for place in places(each, (*path, key)))]
