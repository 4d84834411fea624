"""The same model for everyone: a Hugging Face directory of a GPT-2 shape with random weights, and what engines make of it.

`write_hf` runs in this project's environment; `to_ctranslate2` and `to_openvino` in the peers', from the files alone.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

DONE = "complete"
"""A file written last: a directory without it was cut off half-way, and is made again."""


def write_hf(directory: Path, shape: str) -> None:
    """Write a model of a shape of `shapes.SHAPES` with GPT-2's initial weights, and GPT-2's vocabulary."""
    import torch
    from safetensors.torch import save_file
    from shapes import SHAPES

    from gptsweep.models.gpt2 import GPT

    config = SHAPES[shape]
    model = GPT(config).initialise(torch.Generator().manual_seed(0))
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        layer = name.split(".")[-2]
        turned = tensor.t() if name.endswith("weight") and layer in ("c_attn", "c_proj", "c_fc") else tensor
        tensors[name] = turned.contiguous()
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    settings = {
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
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(settings, indent=2))
    write_vocabulary(directory)
    (directory / DONE).touch()


def write_vocabulary(directory: Path) -> None:
    """Write ``vocab.json`` and ``merges.txt`` from the byte-pair ranks in this package: a token's rank is that of its merge."""
    from gptsweep.models.files.tokenizers import END_OF_TEXT, gpt2_ranks

    ranks = gpt2_ranks()
    # GPT-2's files write a byte as one visible character: itself where it is one, else the next one from U+0100 on.
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


def to_ctranslate2(hf: Path, directory: Path) -> None:
    """Convert by CTranslate2's own converter; it quantises when it loads."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(hf)).convert(str(directory), force=True)
    (directory / DONE).touch()


def to_openvino(hf: Path, directory: Path, *, int8: bool) -> None:
    """Write the graph that OpenVINO GenAI's continuous batching takes: stateful, with ``beam_idx``, attention as one operation.

    It is built operation by operation, as optimum-intel and nncf would leave it, without either. ``int8``: weights of the
    linear layers as int8 with a scale for each output channel, nncf's ``INT8_SYM``; OpenVINO then quantises activations itself.
    """
    import openvino as ov
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    directory.mkdir(parents=True, exist_ok=True)
    ov.save_model(openvino_graph(hf, int8=int8), directory / "openvino_model.xml", compress_to_fp16=False)
    tokenizer, detokenizer = convert_tokenizer(AutoTokenizer.from_pretrained(hf), with_detokenizer=True)
    ov.save_model(tokenizer, directory / "openvino_tokenizer.xml")
    ov.save_model(detokenizer, directory / "openvino_detokenizer.xml")
    for name in ("config.json", "tokenizer_config.json"):
        (directory / name).write_bytes((hf / name).read_bytes())
    (directory / DONE).touch()


def openvino_graph(hf: Path, *, int8: bool) -> Any:
    """GPT-2 as an `openvino.Model`, from a Hugging Face directory."""
    import numpy as np
    import openvino as ov
    from openvino import opset13 as op
    from openvino.op.util import Variable, VariableInfo
    from safetensors.numpy import load_file

    config = json.loads((hf / "config.json").read_text())
    weights = load_file(hf / "model.safetensors")
    n_head, width = config["n_head"], config["n_embd"]
    head_size = width // n_head

    def integers(*values: int) -> Any:
        return op.constant(np.array(values, np.int64))

    def linear(x: Any, weight: Any, bias: Any = None) -> Any:
        """``x`` times ``weight [out, in]`` transposed, plus ``bias``."""
        if int8:
            scale = np.abs(weight).max(1, keepdims=True) / 127
            quantised = op.constant(np.round(weight / scale).astype(np.int8))
            weight = op.multiply(op.convert(quantised, "f32"), op.constant(scale.astype(np.float32)))
        else:
            weight = op.constant(np.ascontiguousarray(weight))
        y = op.matmul(x, weight, transpose_a=False, transpose_b=True)
        return y if bias is None else op.add(y, op.constant(bias))

    def layer(x: Any, name: str) -> Any:
        return linear(x, weights[f"{name}.weight"].T, weights[f"{name}.bias"])

    def norm(x: Any, name: str) -> Any:
        normalised = op.mvn(x, integers(-1), True, config["layer_norm_epsilon"], "inside_sqrt")
        return op.add(op.multiply(normalised, op.constant(weights[f"{name}.weight"])), op.constant(weights[f"{name}.bias"]))

    def heads(x: Any) -> Any:
        split = op.reshape(x, integers(0, 0, n_head, head_size), special_zero=True)
        return op.transpose(split, integers(0, 2, 1, 3))

    names = ("input_ids", "attention_mask", "position_ids")
    ids, mask, positions = (op.parameter([-1, -1], ov.Type.i64, name=name) for name in names)
    beams = op.parameter([-1], ov.Type.i32, name="beam_idx")
    for parameter in (ids, mask, positions, beams):
        parameter.output(0).set_names({parameter.get_friendly_name()})
    batch = op.gather(op.shape_of(ids), integers(0), integers(0))
    n_places = op.squeeze(op.gather(op.shape_of(mask), integers(1), integers(0)), integers(0))
    places = op.range(op.constant(np.int64(0)), n_places, op.constant(np.int64(1)), "i64")
    past = op.less_equal(op.unsqueeze(places, integers(0, 1, 2)), op.unsqueeze(positions, integers(1, 3)))
    there = op.not_equal(op.unsqueeze(mask, integers(1, 2)), op.constant(np.int64(0)))
    visible = op.logical_and(past, there)
    assigns: list[Any] = []

    def remembered(name: str, now: Any) -> Any:
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, n_head, -1, head_size])
        info.data_type = ov.Type.f32
        info.variable_id = name
        variable = Variable(info)
        empty = op.broadcast(op.constant(np.float32(0)), op.concat([batch, integers(n_head, 0, head_size)], 0))
        before = op.gather(op.read_value(empty, variable), beams, op.constant(np.int64(0)))
        both = op.concat([before, now], 2)
        assigns.append(op.assign(both, variable))
        return both

    x = op.add(
        op.gather(op.constant(weights["transformer.wte.weight"]), ids, op.constant(np.int64(0))),
        op.gather(op.constant(weights["transformer.wpe.weight"]), positions, op.constant(np.int64(0))),
    )
    for i in range(config["n_layer"]):
        block = f"transformer.h.{i}"
        qkv = layer(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn")
        q, k, v = (heads(part) for part in op.split(qkv, op.constant(np.int64(2)), 3).outputs())
        keys, values = remembered(f"past_key_values.{i}.key", k), remembered(f"past_key_values.{i}.value", v)
        mixed = op.scaled_dot_product_attention(q, keys, values, visible)
        joined = op.reshape(op.transpose(mixed, integers(0, 2, 1, 3)), integers(0, 0, width), special_zero=True)
        x = op.add(x, layer(joined, f"{block}.attn.c_proj"))
        wide = op.gelu(layer(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"), "tanh")
        x = op.add(x, layer(wide, f"{block}.mlp.c_proj"))
    logits = linear(norm(x, "transformer.ln_f"), weights["transformer.wte.weight"])
    logits.output(0).set_names({"logits"})
    return ov.Model([op.result(logits)], assigns, [ids, mask, positions, beams], "gpt2")
