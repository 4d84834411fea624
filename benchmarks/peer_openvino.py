"""The graphs that OpenVINO GenAI is given: GPT-2, Llama and Qwen3, built operation by operation; in the peers' environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo
from safetensors.numpy import load_file


def openvino_graph(hf: Path, *, int8: bool) -> ov.Model:
    """The model in a Hugging Face directory: stateful keys and values, attention as one operation."""
    config = json.loads((hf / "config.json").read_text())
    graph = _Graph(config, load_file(hf / "model.safetensors"), int8)
    logits = _gpt2(graph) if config["model_type"] == "gpt2" else _llama(graph)
    logits.output(0).set_names({"logits"})
    inputs = [graph.ids, graph.mask, graph.positions, graph.beams]
    return ov.Model([op.result(logits)], graph.assigns, inputs, config["model_type"])


def _integers(*values: int) -> Any:
    return op.constant(np.array(values, np.int64))


def _number(value: float) -> Any:
    return op.constant(np.float32(value))


class _Graph:
    """The inputs of a graph, and what its layers have in common."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Any], int8: bool) -> None:
        self.config, self.weights, self.int8 = config, weights, int8
        gpt2 = config["model_type"] == "gpt2"
        self.n_head = config["n_head" if gpt2 else "num_attention_heads"]
        self.n_kv_heads = self.n_head if gpt2 else config["num_key_value_heads"]
        self.head_size = config["n_embd"] // self.n_head if gpt2 else config["head_dim"]
        self.n_layer = config["n_layer" if gpt2 else "num_hidden_layers"]
        names = ("input_ids", "attention_mask", "position_ids")
        self.ids, self.mask, self.positions = (op.parameter([-1, -1], ov.Type.i64, name=name) for name in names)
        self.beams = op.parameter([-1], ov.Type.i32, name="beam_idx")
        for parameter in (self.ids, self.mask, self.positions, self.beams):
            parameter.output(0).set_names({parameter.get_friendly_name()})
        self.batch = op.gather(op.shape_of(self.ids), _integers(0), _integers(0))
        n_places = op.squeeze(op.gather(op.shape_of(self.mask), _integers(1), _integers(0)), _integers(0))
        places = op.range(op.constant(np.int64(0)), n_places, op.constant(np.int64(1)), "i64")
        past = op.less_equal(op.unsqueeze(places, _integers(0, 1, 2)), op.unsqueeze(self.positions, _integers(1, 3)))
        there = op.not_equal(op.unsqueeze(self.mask, _integers(1, 2)), op.constant(np.int64(0)))
        self.visible = op.logical_and(past, there)
        self.assigns: list[Any] = []

    def constant(self, name: str) -> Any:
        return op.constant(self.weights[name])

    def embedded(self, name: str, ids: Any) -> Any:
        return op.gather(self.constant(name), ids, op.constant(np.int64(0)))

    def linear(self, x: Any, weight: Any, bias: Any = None) -> Any:
        """``x`` times ``weight [out, in]`` transposed, plus ``bias``."""
        if self.int8:
            scale = np.abs(weight).max(1, keepdims=True) / 127
            quantised = op.constant(np.round(weight / scale).astype(np.int8))
            weight = op.multiply(op.convert(quantised, "f32"), op.constant(scale.astype(np.float32)))
        else:
            weight = op.constant(np.ascontiguousarray(weight))
        y = op.matmul(x, weight, transpose_a=False, transpose_b=True)
        return y if bias is None else op.add(y, op.constant(bias))

    def heads(self, x: Any, count: int) -> Any:
        """``[batch, time, count * head_size] -> [batch, time, count, head_size]``."""
        return op.reshape(x, _integers(0, 0, count, self.head_size), special_zero=True)

    def _remembered(self, name: str, now: Any) -> Any:
        """Keys or values of a layer ``[batch, n_kv_heads, time, head_size]`` behind those before."""
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, self.n_kv_heads, -1, self.head_size])
        info.data_type = ov.Type.f32
        info.variable_id = name
        variable = Variable(info)
        shape = op.concat([self.batch, _integers(self.n_kv_heads, 0, self.head_size)], 0)
        empty = op.broadcast(_number(0), shape)
        before = op.gather(op.read_value(empty, variable), self.beams, op.constant(np.int64(0)))
        both = op.concat([before, now], 2)
        self.assigns.append(op.assign(both, variable))
        return both

    def _for_all_heads(self, x: Any) -> Any:
        """Keys or values once for each head of queries: what OpenVINO knows as fewer heads of keys than of queries."""
        sharing = self.n_head // self.n_kv_heads
        if sharing == 1:
            return x
        length = op.gather(op.shape_of(x), _integers(2), _integers(0))
        shape = op.concat([self.batch, _integers(self.n_kv_heads, sharing), length, _integers(self.head_size)], 0)
        repeated = op.broadcast(op.unsqueeze(x, _integers(2)), shape)
        return op.reshape(repeated, _integers(0, self.n_head, -1, self.head_size), special_zero=True)

    def attention(self, layer: int, q: Any, k: Any, v: Any) -> Any:
        """Attention of ``[batch, time, heads, head_size]`` each: ``[batch, time, n_head * head_size]``."""
        q, k, v = (op.transpose(x, _integers(0, 2, 1, 3)) for x in (q, k, v))
        keys = self._for_all_heads(self._remembered(f"past_key_values.{layer}.key", k))
        values = self._for_all_heads(self._remembered(f"past_key_values.{layer}.value", v))
        mixed = op.scaled_dot_product_attention(q, keys, values, self.visible)
        width = self.n_head * self.head_size
        return op.reshape(op.transpose(mixed, _integers(0, 2, 1, 3)), _integers(0, 0, width), special_zero=True)


def _gpt2(graph: _Graph) -> Any:
    """Logits of a GPT-2."""
    weights = graph.weights

    def layer(x: Any, name: str) -> Any:
        return graph.linear(x, weights[f"{name}.weight"].T, weights[f"{name}.bias"])

    def norm(x: Any, name: str) -> Any:
        normalised = op.mvn(x, _integers(-1), True, graph.config["layer_norm_epsilon"], "inside_sqrt")
        return op.add(op.multiply(normalised, graph.constant(f"{name}.weight")), graph.constant(f"{name}.bias"))

    embedded = graph.embedded("transformer.wte.weight", graph.ids)
    x = op.add(embedded, graph.embedded("transformer.wpe.weight", graph.positions))
    for i in range(graph.n_layer):
        block = f"transformer.h.{i}"
        qkv = layer(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn")
        q, k, v = (graph.heads(part, graph.n_head) for part in op.split(qkv, op.constant(np.int64(2)), 3).outputs())
        x = op.add(x, layer(graph.attention(i, q, k, v), f"{block}.attn.c_proj"))
        wide = op.gelu(layer(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"), "tanh")
        x = op.add(x, layer(wide, f"{block}.mlp.c_proj"))
    return graph.linear(norm(x, "transformer.ln_f"), weights["transformer.wte.weight"])


def _llama(graph: _Graph) -> Any:
    """Logits of a Llama, or of a Qwen3, which has norms of queries and keys."""
    config, weights = graph.config, graph.weights

    def layer(x: Any, name: str) -> Any:
        return graph.linear(x, weights[f"{name}.weight"])

    def norm(x: Any, name: str) -> Any:
        mean = op.reduce_mean(op.power(x, _number(2)), _integers(-1), True)
        root = op.sqrt(op.add(mean, _number(config["rms_norm_eps"])))
        return op.multiply(op.multiply(x, op.divide(_number(1), root)), graph.constant(f"{name}.weight"))

    half = graph.head_size // 2
    frequencies = 1.0 / config["rope_theta"] ** (np.arange(half, dtype=np.float32) * 2 / graph.head_size)
    angles = op.multiply(
        op.unsqueeze(op.convert(graph.positions, "f32"), _integers(2)), op.constant(frequencies.astype(np.float32)[None, None])
    )
    both = op.unsqueeze(op.concat([angles, angles], 2), _integers(2))
    cos, sin = op.cos(both), op.sin(both)

    def rotated(x: Any) -> Any:
        a, b = op.split(x, op.constant(np.int64(3)), 2).outputs()
        return op.add(op.multiply(x, cos), op.multiply(op.concat([op.negative(b), a], 3), sin))

    x = graph.embedded("model.embed_tokens.weight", graph.ids)
    for i in range(graph.n_layer):
        block = f"model.layers.{i}"
        y = norm(x, f"{block}.input_layernorm")
        q = graph.heads(layer(y, f"{block}.self_attn.q_proj"), graph.n_head)
        k, v = (graph.heads(layer(y, f"{block}.self_attn.{name}"), graph.n_kv_heads) for name in ("k_proj", "v_proj"))
        if config["model_type"] == "qwen3":
            q, k = norm(q, f"{block}.self_attn.q_norm"), norm(k, f"{block}.self_attn.k_norm")
        x = op.add(x, layer(graph.attention(i, rotated(q), rotated(k), v), f"{block}.self_attn.o_proj"))
        y = norm(x, f"{block}.post_attention_layernorm")
        gate, up = layer(y, f"{block}.mlp.gate_proj"), layer(y, f"{block}.mlp.up_proj")
        x = op.add(x, layer(op.multiply(op.swish(gate), up), f"{block}.mlp.down_proj"))
    return graph.linear(norm(x, "model.norm"), weights["model.embed_tokens.weight"])
