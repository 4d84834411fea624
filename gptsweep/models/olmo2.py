"""OLMo 2: Llama with norms after attention and after the feed-forward layer, and with norms of queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .decoder import DecoderConfig, Place
from .hf_settings import HFSettings
from .llama import Llama, llama_config


class Olmo2(Llama):
    """Llama with post-norms. The queries of a token, over all heads, are normalised as one vector, and so are its keys."""

    TITLE = "OLMo 2"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {**Llama.DEFAULTS, "vocab_size": 50304, "rms_norm_eps": 1e-5}
    INSIDE: ClassVar[Mapping[str, Place]] = {
        **{name: place for name, place in Llama.INSIDE.items() if not place.parameter.startswith("norm")},
        "self_attn.q_norm": Place("attn.q_norm"),
        "self_attn.k_norm": Place("attn.k_norm"),
        "post_attention_layernorm": Place("norm_1"),
        "post_feedforward_layernorm": Place("norm_2"),
    }

    @classmethod
    def config_of(cls, hf: HFSettings) -> DecoderConfig:
        bias = hf.flag("attention_bias")
        return llama_config(hf, qkv_bias=bias, out_bias=bias, qk_norm="width", norm_order="post")
