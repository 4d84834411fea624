"""GPT-NeoX and Pythia: layer norms with biases, partial rotary positions, and parallel attention and feed-forward layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ..errors import ModelError
from .decoder import Decoder, DecoderConfig, Place, by_kind
from .files.weights import Stored, StoredTensor
from .hf_settings import MOST_LAYERS, HFSettings
from .layers import NormConfig


class GPTNeoX(Decoder):
    """A decoder with layer norms. Files store its query, key and value weights head by head."""

    TITLE = "GPT-NeoX"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 50432,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "hidden_act": "gelu",
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "rotary_emb_base": 10_000.0,
        "rotary_pct": 0.25,
        "attention_bias": True,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
    }
    LAYERS = "gpt_neox.layers."
    OUTSIDE: ClassVar[Mapping[str, str]] = {
        "gpt_neox.embed_in.weight": "embed.weight",
        "gpt_neox.final_layer_norm.weight": "norm.weight",
        "gpt_neox.final_layer_norm.bias": "norm.bias",
        "embed_out.weight": "head.weight",
        "lm_head.weight": "head.weight",
    }
    INSIDE: ClassVar[Mapping[str, Place]] = {
        "input_layernorm": Place("norm_1"),
        "attention.query_key_value": Place("attn.qkv"),
        "attention.dense": Place("attn.out"),
        "post_attention_layernorm": Place("norm_2"),
        "mlp.dense_h_to_4h": Place("mlp.up"),
        "mlp.dense_4h_to_h": Place("mlp.down"),
    }

    @classmethod
    def config_of(cls, hf: HFSettings) -> DecoderConfig:
        n_layer = hf.size("num_hidden_layers", most=MOST_LAYERS)
        n_head, n_embd = hf.size("num_attention_heads"), hf.size("hidden_size")
        if n_embd % n_head:
            raise hf.refuse("hidden_size", f"which is not a multiple of the {n_head} heads")
        attention_bias = hf.flag("attention_bias")
        return DecoderConfig(
            vocab_size=hf.size("vocab_size"),
            block_size=hf.size("max_position_embeddings"),
            n_layer=n_layer,
            n_head=n_head,
            n_kv_heads=n_head,
            head_size=n_embd // n_head,
            n_embd=n_embd,
            n_inner=hf.size("intermediate_size"),
            norm=NormConfig(kind="layer", epsilon=hf.number("layer_norm_eps"), bias=True),
            parallel=hf.flag("use_parallel_residual"),
            rotary=hf.rotary(n_embd // n_head, theta="rotary_emb_base", share="rotary_pct", partial=True),
            windows=(None,) * n_layer,
            activation=hf.activation("hidden_act"),
            gated=False,
            qkv_bias=attention_bias,
            out_bias=attention_bias,
            mlp_bias=True,
            tied_head=hf.flag("tie_word_embeddings"),
        )

    @classmethod
    def weights_from_hf(
        cls,
        stored: Mapping[str, StoredTensor],
        settings: Mapping[str, Any],
        config: DecoderConfig,
        wrong: Callable[[str], ModelError],
    ) -> dict[str, Stored]:
        weights = super().weights_from_hf(stored, settings, config, wrong)
        for name, weight in weights.items():
            if re.fullmatch(r"blocks\.\d+\.attn\.qkv\.(weight|bias)", name) and isinstance(weight, StoredTensor):
                weights[name] = by_kind(weight, config)
        return weights

    @classmethod
    def is_buffer(cls, name: str) -> bool:
        return re.search(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$", name) is not None
