"""Qwen 2, 2.5 and 3: Llama with biases or with norms of queries and keys, and optional sliding windows in later layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .decoder import DecoderConfig, Place
from .hf_settings import MOST_LAYERS, HFSettings
from .llama import Llama, llama_config


class Qwen2(Llama):
    """Llama with biases in the projections of queries, keys and values."""

    TITLE = "Qwen2"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **Llama.DEFAULTS,
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }

    @classmethod
    def config_of(cls, hf: HFSettings) -> DecoderConfig:
        return llama_config(hf, qkv_bias=True, windows=_windows(hf))


class Qwen3(Qwen2):
    """Llama with norms of queries and keys, per head."""

    TITLE = "Qwen3"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {**Qwen2.DEFAULTS, "head_dim": 128}
    INSIDE: ClassVar[Mapping[str, Place]] = {
        **Llama.INSIDE,
        "self_attn.q_norm": Place("attn.q_norm"),
        "self_attn.k_norm": Place("attn.k_norm"),
    }

    @classmethod
    def config_of(cls, hf: HFSettings) -> DecoderConfig:
        bias = hf.flag("attention_bias")
        return llama_config(hf, qkv_bias=bias, out_bias=bias, qk_norm="head", windows=_windows(hf))


def _windows(hf: HFSettings) -> tuple[int | None, ...]:
    """Read the attention windows. With ``use_sliding_window`` the layers from ``max_window_layers`` on have one."""
    n_layer = hf.size("num_hidden_layers", most=MOST_LAYERS)
    slides = hf.flag("use_sliding_window") and hf.get("sliding_window") is not None
    first = hf.get("max_window_layers")
    if slides and (type(first) is not int or first < 0):
        raise hf.refuse("max_window_layers", "which is not a whole number of at least 0")
    return hf.windows(hf.size("sliding_window") if slides else None, [slides and i >= first for i in range(n_layer)])
