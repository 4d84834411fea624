"""Read a checkpoint of nanoGPT: ``ckpt.pt`` in an ``out_dir``, and the ``meta.pkl`` of its training data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...display import get_logger
from ...errors import ModelError, brief
from ...records import GPT2_META, NANOGPT_FILE, ModelSource
from ..architecture import is_size
from ..checkpoint import Checkpoint, by_name, checkpoint_of, fit
from ..gpt2 import GPT, GPTConfig
from .meta import read_meta
from .pickles import mapping_of
from .places import nanogpt_file
from .tokenizers import GPT2_VOCAB, CharTokenizer, GPT2Tokenizer
from .torch_file import TorchFile

log = get_logger(__name__)

PADDING = 128
"""If a checkpoint's vocabulary exceeds its tokenizer's by this or more, that is not padding: the tokenizer is the wrong one."""


def open_source(source: ModelSource) -> Checkpoint:
    """Open ``model=resume``."""
    return open_nanogpt(source.out_dir, source.meta, source.file)


def open_nanogpt(out_dir: str, meta: str | None = None, name: str = NANOGPT_FILE) -> Checkpoint:
    """Open a checkpoint as nanoGPT's ``train.py`` writes it to its ``out_dir``.

    Args:
        out_dir: the directory.
        meta: path of its ``meta.pkl``, or `GPT2_META` for GPT-2's encoding; None: look for a ``meta.pkl``.
        name: name of the checkpoint file in ``out_dir``.

    Raises:
        ModelError: a file is missing or damaged, or the vocabulary does not fit the model.
    """
    key = "model.out_dir"
    path = nanogpt_file(out_dir, name)
    file = TorchFile(path, key, out_dir)
    contents = mapping_of(file.contents) or {}
    weights = mapping_of(contents.get("model"))
    if weights is None or "model_args" not in contents:
        raise ModelError(key, out_dir, f"{path} is not a checkpoint of nanoGPT's train.py: it has no 'model' and 'model_args'")
    config = _config(contents["model_args"], path.name, key, out_dir)
    fitting = fit(GPT, config, by_name(file.tensors(weights), GPT.own_name, key, out_dir), key, out_dir)
    training = mapping_of(contents.get("config")) or {}
    tokenizer = _tokenizer(path.parent, training, meta, config, out_dir)
    return checkpoint_of(GPT, config, tokenizer, fitting, key, out_dir)


def _config(saved: Any, name: str, key: str, value: str) -> GPTConfig:
    def wrong(what: str) -> ModelError:
        return ModelError(key, value, f"the 'model_args' in {name} {what}; is it a checkpoint of nanoGPT's train.py?")

    if (args := mapping_of(saved)) is None:
        raise wrong("are not a dictionary")
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    if missing := [each for each in names if each not in args]:
        raise wrong(f"have no {missing[0]}")
    sizes: dict[str, Any] = {each: args[each] for each in names}
    if odd := next((each for each in names if not is_size(sizes[each])), None):
        raise wrong(f"have {odd}={brief(sizes[odd])}, which is not a whole number below 2**31")
    bias = args.get("bias", True)
    if bias is not None and not isinstance(bias, (bool, int)):
        raise wrong(f"have bias={brief(bias)}, which is neither True nor False")
    try:
        return GPTConfig(**sizes, bias=bool(bias), activation="gelu")
    except ValueError as error:
        raise wrong(f"are invalid ({error})") from error


def _tokenizer(
    out_dir: Path, training: Mapping[str, Any], meta: str | None, config: GPTConfig, value: str
) -> CharTokenizer | GPT2Tokenizer:
    size = config.vocab_size
    if meta == GPT2_META:
        if size < GPT2_VOCAB:
            has = f"GPT-2's encoding has {GPT2_VOCAB} tokens, more than the {size} of the checkpoint in {value}"
            raise ModelError("model.meta", meta, f"{has}; give the path of the meta.pkl of the data it was trained on")
        return GPT2Tokenizer()
    places = [Path(meta).expanduser()] if meta is not None else _meta_places(out_dir, training.get("dataset"))
    path = next((place for place in places if meta is not None or place.is_file()), None)
    if path is not None:
        tokenizer = read_meta(path, size)
        log.info("vocabulary of %s", path)
        if size - tokenizer.vocab_size >= PADDING:
            has = f"has {tokenizer.vocab_size} tokens, but the checkpoint in {value} has {size}, more than padding explains"
            gpt2s = f", or model.meta={GPT2_META} if it is GPT-2's encoding" if size > GPT2_VOCAB else ""
            raise ModelError("model.meta", str(path), f"{has}; give the meta.pkl of the data it was trained on{gpt2s}")
        return tokenizer
    looked = ", ".join(map(str, places))
    if not 0 <= size - GPT2_VOCAB < PADDING:
        has = f"no meta.pkl found ({looked}), and the checkpoint's vocabulary of {size} is not GPT-2's"
        gpt2s = f"; if it is, with more padding: model.meta={GPT2_META}" if size > GPT2_VOCAB else ""
        raise ModelError("model.meta", None, f"{has}; give the path of the meta.pkl of the data it was trained on{gpt2s}")
    log.info("no meta.pkl found (%s): GPT-2 encoding", looked)
    return GPT2Tokenizer()


def _meta_places(out_dir: Path, dataset: object) -> list[Path]:
    """List the places to look for ``meta.pkl``. ``dataset`` is untrusted, so it must not lead out of ``data/``."""
    places = [out_dir / "meta.pkl"]
    if isinstance(dataset, str) and re.fullmatch(r"(?!.*\.\.)\w[\w.-]*(/\w[\w.-]*)*", dataset):
        places += [Path("data", dataset, "meta.pkl"), out_dir.parent / "data" / dataset / "meta.pkl"]
    elif dataset is not None:
        log.warning("the checkpoint's dataset name %s is ignored: it is not a plain name", brief(dataset))
    return places
