"""SmolLM3: Llama without rotary positions in every fourth layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .decoder import DecoderConfig
from .hf_settings import MOST_LAYERS, HFSettings
from .llama import Llama, llama_config


class SmolLM3(Llama):
    """Llama with rotary positions in some layers only."""

    TITLE = "SmolLM3"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **Llama.DEFAULTS,
        "vocab_size": 128256,
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 2_000_000.0,
        "use_sliding_window": False,
        "no_rope_layer_interval": 4,
        "tie_word_embeddings": True,
    }

    @classmethod
    def config_of(cls, hf: HFSettings) -> DecoderConfig:
        n_layer = hf.size("num_hidden_layers", most=MOST_LAYERS)
        rotated = hf.get("no_rope_layers")
        if rotated is None:
            interval = hf.size("no_rope_layer_interval")
            rotated = [int((layer + 1) % interval != 0) for layer in range(n_layer)]
        if not isinstance(rotated, list) or len(rotated) < n_layer or not all(each in (0, 1) for each in rotated):
            raise hf.refuse("no_rope_layers", "which is not 0 or 1 for each layer")
        unrotated = tuple(layer for layer in range(n_layer) if not rotated[layer])
        slides = hf.flag("use_sliding_window") and hf.get("sliding_window") is not None
        windows = hf.windows(hf.size("sliding_window") if slides else None, [not rotated[layer] for layer in range(n_layer)])
        bias, mlp_bias = hf.flag("attention_bias"), hf.flag("mlp_bias")
        return llama_config(hf, unrotated=unrotated, windows=windows, qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias)
