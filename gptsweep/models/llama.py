"""Llama and what has its architecture: Llama 2 and 3, TinyLlama, SmolLM2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ..errors import ModelError
from .decoder import Decoder, DecoderConfig, Place
from .hf_settings import MOST_LAYERS, HFSettings
from .layers import NormConfig


class Llama(Decoder):
    """A decoder with RMS norm, rotary positions and SwiGLU; keys and values may have fewer heads than queries."""

    TITLE = "Llama"
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
    def config_from_hf(cls, settings: Mapping[str, Any], wrong: Callable[[str], ModelError]) -> DecoderConfig:
        hf = HFSettings(settings, wrong)
        n_layer = hf.size("num_hidden_layers", 32, MOST_LAYERS)
        n_head, n_embd = hf.size("num_attention_heads", 32), hf.size("hidden_size", 4096)
        head_size = hf.size("head_dim", n_embd // n_head)
        bias = hf.flag("attention_bias", False)
        try:
            return DecoderConfig(
                vocab_size=hf.size("vocab_size", 32000),
                block_size=hf.size("max_position_embeddings", 2048),
                n_layer=n_layer,
                n_head=n_head,
                n_kv_heads=hf.size("num_key_value_heads", n_head),
                head_size=head_size,
                n_embd=n_embd,
                n_inner=hf.size("intermediate_size", 11008),
                norm=NormConfig(kind="rms", epsilon=hf.number("rms_norm_eps", 1e-6)),
                rotary=hf.rotary(head_size),
                windows=(None,) * n_layer,
                activation=hf.activation("hidden_act", "silu"),
                qkv_bias=bias,
                out_bias=bias,
                mlp_bias=hf.flag("mlp_bias", False),
                tied_head=hf.flag("tie_word_embeddings", False),
            )
        except (TypeError, ValueError) as error:
            raise wrong(f"its config.json cannot be ({error})") from error
