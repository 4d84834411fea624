"""The same model for all engines: a Hugging Face directory with random weights, and its conversions.

`write_hf` runs in this project's environment; `to_ctranslate2`, `to_openvino` and `to_gguf` run in those of the peers.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

DONE = "complete"
"""The file that is written last; a directory without it is incomplete and is written again."""


def write_hf(directory: Path, shape: str) -> None:
    """Write a model of a shape of `shapes.SHAPES`, with as much of GPT-2's vocabulary as fits; other ids have no text."""
    from safetensors.torch import save_file
    from shapes import random_weights

    from gptsweep.models.gpt2 import GPT

    model = random_weights(shape)
    directory.mkdir(parents=True, exist_ok=True)
    tensors, settings = gpt2_files(model) if isinstance(model, GPT) else decoder_files(model)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors", {"format": "pt"}
    )
    end = write_vocabulary(directory, model.config.vocab_size)
    settings |= {"bos_token_id": end, "eos_token_id": end, "tie_word_embeddings": True, "dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(settings, indent=2))
    (directory / DONE).touch()


def gpt2_files(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and the ``config.json`` of a GPT-2, in transformers' layout."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        layer = name.split(".")[-2]
        transposed = name.endswith("weight") and layer in ("c_attn", "c_proj", "c_fc")
        tensors[name] = tensor.t() if transposed else tensor
    config = model.config
    return tensors, {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "vocab_size": config.vocab_size,
        "layer_norm_epsilon": config.layer_norm_epsilon,
    }


def decoder_files(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and the ``config.json`` of a Llama or a Qwen3, in transformers' layout."""
    config, state = model.config, model.state_dict()
    tensors = {f"model.{theirs}": state[ours] for theirs, ours in model.OUTSIDE.items() if ours != model.HEAD}
    heads = [count * config.head_size for count in (config.n_head, config.n_kv_heads, config.n_kv_heads)]
    parts = {"attn.qkv": heads, "mlp.up": [config.n_inner] * 2}
    for layer in range(config.n_layer):
        for theirs, place in model.INSIDE.items():
            whole = state[f"blocks.{layer}.{place.parameter}.weight"]
            split = whole.split(parts[place.parameter]) if place.of > 1 else [whole]
            tensors[f"model.layers.{layer}.{theirs}.weight"] = split[place.part]
    name = {"Llama": "Llama", "Qwen3": "Qwen3"}[model.TITLE]
    return tensors, {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": name.lower(),
        "hidden_act": "silu",
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_inner,
        "max_position_embeddings": config.block_size,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm.epsilon,
        "rope_theta": config.rotary.base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary.base},
        "attention_bias": False,
    }


def write_vocabulary(directory: Path, vocab_size: int) -> int:
    """Write ``vocab.json`` and ``merges.txt`` from the byte-pair ranks in this package: a token's rank is that of its merge.

    Returns:
        The id of the end of a text, the last one.
    """
    from gptsweep.models.files.tokenizers import END_OF_TEXT, gpt2_ranks

    ranks = {token: rank for token, rank in gpt2_ranks().items() if rank < vocab_size - 1}
    # GPT-2's files spell a byte as one visible character: itself if it is visible, else the next one from U+0100 on.
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + place) for place, byte in enumerate(others)}

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            place = pairs.index(min(pairs))
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        if len(parts) == 2:
            merges.append(" ".join(map(written, parts)))
    vocabulary = {written(token): rank for token, rank in ranks.items()} | {END_OF_TEXT: len(ranks)}
    (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024, "unk_token": END_OF_TEXT}
    settings |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(ranks)


def to_ctranslate2(hf: Path, directory: Path) -> None:
    """Convert with CTranslate2's own converter; CTranslate2 quantises on loading."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(hf)).convert(str(directory), force=True)
    (directory / DONE).touch()


def to_gguf(hf: Path, directory: Path, dtype: str) -> None:
    """Write a GGUF file without a vocabulary, with matrices in ``BF16``, ``F16``, ``F32`` or ``Q8_0``."""
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    config = json.loads((hf / "config.json").read_text())
    kind = gguf.GGMLQuantizationType[dtype]
    architecture = {"gpt2": gguf.MODEL_ARCH.GPT2, "llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}[
        config["model_type"]
    ]
    directory.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(directory / "model.gguf", gguf.MODEL_ARCH_NAMES[architecture])
    gpt2 = config["model_type"] == "gpt2"
    n_layer, n_head = (
        (config["n_layer"], config["n_head"]) if gpt2 else (config["num_hidden_layers"], config["num_attention_heads"])
    )
    writer.add_block_count(n_layer)
    writer.add_head_count(n_head)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    if gpt2:
        writer.add_context_length(config["n_positions"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_feed_forward_length(4 * config["n_embd"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    else:
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
        writer.add_rope_dimension_count(config["head_dim"])
        writer.add_rope_freq_base(config["rope_theta"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    names = gguf.get_tensor_name_map(architecture, n_layer)
    for name, tensor in load_file(hf / "model.safetensors").items():
        if gpt2 and name.split(".")[-2] in ("c_attn", "c_proj", "c_fc") and tensor.ndim == 2:
            tensor = tensor.T
        if config["model_type"] == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            # llama.cpp rotates adjacent pairs, where Hugging Face's file has the two halves of a head.
            halves = tensor.reshape(-1, 2, config["head_dim"] // 2, tensor.shape[1])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        tensor = np.ascontiguousarray(tensor, np.float32)
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        plain = tensor.ndim == 1 or name.endswith("wpe.weight")
        stored = gguf.GGMLQuantizationType.F32 if plain else kind
        writer.add_tensor(theirs, gguf.quants.quantize(tensor, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (directory / DONE).touch()


def to_openvino(hf: Path, directory: Path, *, int8: bool) -> None:
    """Write the graph that OpenVINO GenAI's continuous batching takes: stateful, with ``beam_idx``, attention as one operation.

    It is built operation by operation, with the same result as optimum-intel and nncf. ``int8``: the weights of linear layers
    are int8 with a scale per output channel, nncf's ``INT8_SYM``; OpenVINO then quantises activations itself.
    """
    import openvino as ov
    from openvino_tokenizers import convert_tokenizer
    from peer_openvino import openvino_graph
    from transformers import AutoTokenizer

    directory.mkdir(parents=True, exist_ok=True)
    ov.save_model(openvino_graph(hf, int8=int8), directory / "openvino_model.xml", compress_to_fp16=False)
    tokenizer, detokenizer = convert_tokenizer(AutoTokenizer.from_pretrained(hf), with_detokenizer=True)
    ov.save_model(tokenizer, directory / "openvino_tokenizer.xml")
    ov.save_model(detokenizer, directory / "openvino_detokenizer.xml")
    for name in ("config.json", "tokenizer_config.json"):
        (directory / name).write_bytes((hf / name).read_bytes())
    (directory / DONE).touch()
