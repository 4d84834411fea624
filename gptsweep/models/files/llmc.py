"""Read a checkpoint of llm.c: the GPT-2 ``.bin`` that its ``train_gpt2.py`` and ``train_gpt2.cu`` write.

A header of 256 int32 values is followed by the weights, one kind after another, each for all layers. The embedding's rows are
padded to a multiple of 128. llm.c never samples a padding row, so they are dropped.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import torch

from ...records import ModelSource
from ..checkpoint import Checkpoint, checkpoint_of, fit
from ..gpt2 import GPT, GPTConfig
from ..hf_settings import MOST_LAYERS
from .places import PATH, llmc_file
from .tokenizers import GPT2_VOCAB, GPT2Tokenizer
from .weights import StoredTensor, WeightFile

_MAGIC = 20240326
_HEADER = struct.Struct("<256i")
_DTYPES = {3: torch.float32, 5: torch.bfloat16}
"""The dtype of the weights, by the version of the file."""


def open_source(source: ModelSource) -> Checkpoint:
    """Open ``model=llmc``."""
    return open_llmc(source.path or "")


def open_llmc(path: str) -> Checkpoint:
    """Open the checkpoint file ``path``, with GPT-2's encoding.

    Raises:
        ModelError: the file is missing, truncated, or not a checkpoint of llm.c with float32 or bfloat16 weights.
    """
    file = WeightFile.at(llmc_file(path), PATH, path)
    config, rows, dtype = _described(file)
    if config.vocab_size != GPT2_VOCAB:
        raise file.wrong(f"has a vocabulary of {config.vocab_size} tokens, but GPT-2's encoding has {GPT2_VOCAB}")
    layers = config.n_layer * sum(map(math.prod, _layer(config).values()))
    expected = _HEADER.size + dtype.itemsize * (config.n_embd * (rows + config.block_size + 2) + layers)
    if file.size != expected:
        what = "it is truncated, or still being written" if file.size < expected else "it is damaged"
        raise file.wrong(f"holds {file.size:,} bytes, but its header implies {expected:,}: {what}")
    weights: dict[str, StoredTensor] = {}
    offset = _HEADER.size
    for name, shape in _laid_out(config, rows):
        stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        weights[name] = StoredTensor(file, offset, dtype, shape, stride)
        offset += weights[name].nbytes
    weights[GPT.EMBEDDING] = weights[GPT.EMBEDDING].rows(0, config.vocab_size)
    return checkpoint_of(GPT, config, GPT2Tokenizer(), fit(GPT, config, weights, PATH, path), PATH, path)


def _described(file: WeightFile) -> tuple[GPTConfig, int, torch.dtype]:
    """Read the header, and return the config, the number of embedding rows with padding, and the dtype of the weights."""
    with file.open() as opened:
        header = opened.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise file.wrong(f"ends after {len(header)} bytes, in its header: it is truncated, or not a checkpoint of llm.c")
    magic, version, block_size, vocab_size, n_layer, n_head, n_embd, rows, *_ = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise file.wrong(f"does not begin with the number {_MAGIC} of llm.c's GPT-2 checkpoints, but with {magic}")
    if version not in _DTYPES:
        raise file.wrong(f"has version {version}, but gptsweep reads 3 (float32) and 5 (bfloat16); write it again with llm.c")
    if n_layer > MOST_LAYERS or rows < vocab_size:
        raise file.wrong(f"is damaged: its header has {n_layer} layers, and {rows} rows for {vocab_size} tokens")
    try:
        config = GPTConfig(
            block_size=block_size,
            vocab_size=vocab_size,
            n_layer=n_layer,
            n_head=n_head,
            n_embd=n_embd,
            activation="gelu_tanh",
        )
    except ValueError as error:
        raise file.wrong(f"is damaged: in its header, {error}") from error
    return config, rows, _DTYPES[version]


def _layer(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights of a layer, in the order of the file."""
    width = config.n_embd
    return {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.c_attn.weight": (3 * width, width),
        "attn.c_attn.bias": (3 * width,),
        "attn.c_proj.weight": (width, width),
        "attn.c_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    }


def _laid_out(config: GPTConfig, rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of all weights, in the order of the file."""
    yield GPT.EMBEDDING, (rows, config.n_embd)
    yield "transformer.wpe.weight", (config.block_size, config.n_embd)
    for name, shape in _layer(config).items():
        for layer in range(config.n_layer):
            yield f"transformer.h.{layer}.{name}", shape
    yield "transformer.ln_f.weight", (config.n_embd,)
    yield "transformer.ln_f.bias", (config.n_embd,)
