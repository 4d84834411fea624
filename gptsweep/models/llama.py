"""Llama, and models with its architecture: Llama 2 and 3, TinyLlama, SmolLM2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .decoder import Decoder, DecoderConfig, Place
from .hf_settings import MOST_LAYERS, HFSettings
from .layers import NormConfig


class Llama(Decoder):
    """A decoder with RMS norm, rotary positions and SwiGLU; keys and values may have fewer heads than queries."""

    TITLE = "Llama"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 1.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    }
    OUTSIDE: ClassVar[Mapping[str, str]] = {
        "embed_tokens.weight": "embed.weight",
        "norm.weight": "norm.weight",
        "lm_head.weight": "head.weight",
    }
    INSIDE: ClassVar[Mapping[str, Place]] = {
        "input_layernorm": Place("norm_1"),
        "self_attn.q_proj": Place("attn.qkv", 0, 3),
        "self_attn.k_proj": Place("attn.qkv", 1, 3),
        "self_attn.v_proj": Place("attn.qkv", 2, 3),
        "self_attn.o_proj": Place("attn.out"),
        "post_attention_layernorm": Place("norm_2"),
        "mlp.gate_proj": Place("mlp.up", 0, 2),
        "mlp.up_proj": Place("mlp.up", 1, 2),
        "mlp.down_proj": Place("mlp.down"),
    }

    @classmethod
    def config_of(cls, hf: HFSettings) -> DecoderConfig:
        attention_bias, mlp_bias = hf.flag("attention_bias"), hf.flag("mlp_bias")
        return llama_config(hf, qkv_bias=attention_bias, out_bias=attention_bias, mlp_bias=mlp_bias)


def llama_config(hf: HFSettings, **variations: Any) -> DecoderConfig:
    """Read the settings that all relatives of Llama share; ``variations`` sets or replaces fields of `DecoderConfig`."""
    n_layer = hf.size("num_hidden_layers", most=MOST_LAYERS)
    n_head, n_embd = hf.size("num_attention_heads"), hf.size("hidden_size")
    head_size = hf.size("head_dim", null=n_embd // n_head)
    fields: dict[str, Any] = {
        "vocab_size": hf.size("vocab_size"),
        "block_size": hf.size("max_position_embeddings"),
        "n_layer": n_layer,
        "n_head": n_head,
        "n_kv_heads": hf.size("num_key_value_heads", null=n_head),
        "head_size": head_size,
        "n_embd": n_embd,
        "n_inner": hf.size("intermediate_size"),
        "norm": NormConfig(kind="rms", epsilon=hf.number("rms_norm_eps")),
        "rotary": hf.rotary(head_size),
        "windows": (None,) * n_layer,
        "activation": hf.activation("hidden_act"),
        "gated": True,
        "tied_head": hf.flag("tie_word_embeddings"),
    }
    return DecoderConfig(**(fields | variations))
