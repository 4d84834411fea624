"""Mistral: Llama with a sliding window in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .decoder import DecoderConfig
from .hf_settings import MOST_LAYERS, HFSettings
from .llama import Llama, llama_config


class Mistral(Llama):
    """Llama with the same sliding window in every layer, or none."""

    TITLE = "Mistral"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **Llama.DEFAULTS,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    }

    @classmethod
    def config_of(cls, hf: HFSettings) -> DecoderConfig:
        window = None if hf.get("sliding_window") is None else hf.size("sliding_window")
        windows = (window,) * hf.size("num_hidden_layers", most=MOST_LAYERS)
        if hf.windows(window, [True] * len(windows)) != windows:
            raise hf.refuse("layer_types", "but transformers gives all layers of this type the same window")
        return llama_config(hf, windows=windows)
