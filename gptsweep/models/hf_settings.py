"""Read and check the settings in a ``config.json`` of `transformers`. No setting that changes the arithmetic is ignored.

Both spellings of rotary positions are read: ``rope_theta`` with ``rope_scaling``, and ``rope_parameters`` of transformers 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from ..display import get_logger
from ..errors import ModelError, brief
from ..records import is_number
from .layers import Activation, LinearScaling, Llama3Scaling, RotaryConfig, YarnScaling

log = get_logger(__name__)

MOST_LAYERS = 10_000
"""The most layers that a config may name. Beyond that it is damaged, and per-layer data could exhaust the memory."""

HF_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""Activations by the names that transformers gives them."""


class HFSettings:
    """The settings of a ``config.json``. It notes which have been read.

    Args:
        settings: the contents of the file.
        defaults: the values that transformers assumes for missing settings of this model type; null is not missing.
        wrong: makes a `ModelError` from a message.
    """

    FILE: ClassVar[str] = "config.json"

    def __init__(self, settings: Mapping[str, Any], defaults: Mapping[str, Any], wrong: Callable[[str], ModelError]) -> None:
        self.wrong = wrong
        self._settings, self._defaults = settings, defaults
        self._read = {"model_type"}

    def get(self, name: str) -> Any:
        """Return the value of a setting or its default, None if it has neither."""
        self._read.add(name)
        return self._settings.get(name, self._defaults.get(name))

    def refuse(self, name: str, what: str) -> ModelError:
        """Return the error for the value of a setting."""
        return self.wrong(f"its {self.FILE} has {name}={brief(self.get(name))}, {what}")

    def size(self, name: str, null: int | None = None, most: int = 2**31 - 1) -> int:
        """Read an integer from 1 to ``most``; ``null`` replaces a null.

        Raises:
            ModelError: it is not one.
        """
        value = self.get(name)
        value = null if value is None else value
        if type(value) is not int or not 1 <= value <= most:
            raise self.refuse(name, f"which is not a whole number from 1 to {most:,}")
        return value

    def number(self, name: str) -> float:
        """Read a number of at least 0.

        Raises:
            ModelError: it is not one.
        """
        value = self.get(name)
        if not is_nonnegative(value):
            raise self.refuse(name, "which is not a number of at least 0")
        return float(value)

    def flag(self, name: str) -> bool:
        """Read a boolean.

        Raises:
            ModelError: it is not one.
        """
        value = self.get(name)
        if not isinstance(value, bool):
            raise self.refuse(name, "which is neither true nor false")
        return value

    def activation(self, name: str) -> Activation:
        """Read an activation, by the name that transformers gives it.

        Raises:
            ModelError: gptsweep does not have it.
        """
        value = self.get(name)
        if value not in list(HF_ACTIVATIONS):  # a list, as a damaged config may hold an unhashable value
            raise self.refuse(name, f"but gptsweep supports only {', '.join(HF_ACTIVATIONS)}")
        return HF_ACTIVATIONS[value]

    def windows(self, window: int | None, usual: Sequence[bool]) -> tuple[int | None, ...]:
        """Read the attention window of each layer, in positions; None: unlimited.

        Args:
            window: the window of sliding-window layers; None: no layer may have one.
            usual: for each layer, whether it has a window if ``layer_types`` is missing.

        Raises:
            ModelError: ``layer_types`` is wrong.
        """
        kinds = self.get("layer_types")
        if kinds is None:
            kinds = ["sliding_attention" if window is not None and slides else "full_attention" for slides in usual]
        known = isinstance(kinds, list) and all(kind in ("sliding_attention", "full_attention") for kind in kinds)
        if not known or len(kinds) != len(usual):
            raise self.refuse("layer_types", "which is not full_attention or sliding_attention for each layer")
        if window is None and "sliding_attention" in kinds:
            raise self.refuse("layer_types", "but no sliding_window is in use")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)

    def rotary(
        self, head_size: int, *, theta: str = "rope_theta", share: str = "partial_rotary_factor", partial: bool = False
    ) -> RotaryConfig:
        """Read the settings of rotary positions, in either spelling.

        Args:
            head_size: size of a head of queries and keys.
            theta, share: names, in the older spelling, of the base and of the fraction of a head that is rotated.
            partial: whether this model type can rotate a fraction of a head.

        Raises:
            ModelError: a setting is wrong, or gptsweep does not support it.
        """
        name = "rope_scaling" if self.get("rope_scaling") else "rope_parameters"
        rope = self.get(name) or {}
        kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else None
        if not isinstance(kind, str) or kind not in _ROPE_KEYS:
            raise self.refuse(name, f"but gptsweep supports only the types {', '.join(_ROPE_KEYS)}")
        strange = set(rope) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"} - set(_ROPE_KEYS[kind])
        if set_to := sorted(str(key)[:80] for key in strange if rope[key] is not None):
            raise self.refuse(name, f"in which gptsweep does not support {set_to[0]}")

        def value(key: str, usual: object = None, outside: str | None = None) -> float:
            """Read a number above 0 from the mapping, else from the setting ``outside`` it."""
            number: Any = rope.get(key)
            wrong = name, f"in which {key} is not a number above 0"
            if number is None and outside is not None:
                number, wrong = self.get(outside), (outside, "which is not a number above 0")
            number = usual if number is None else number
            if not is_nonnegative(number) or not number:
                raise self.refuse(*wrong)
            return float(number)

        base, rotated = value("rope_theta", outside=theta), value("partial_rotary_factor", outside=share)
        if rotated > 1 or (rotated < 1 and not partial):
            raise self.wrong(
                f"its {self.FILE} rotates {rotated} of each head ({share}), which gptsweep does not support for this type"
            )
        # The setting outside the mapping takes precedence.
        original = "original_max_position_embeddings"
        trained = self.number(original) if self.get(original) else value(original, self.get("max_position_embeddings"))
        scaling: Llama3Scaling | LinearScaling | YarnScaling | None = None
        if kind == "linear":
            scaling = LinearScaling(factor=value("factor"))
        elif kind == "llama3":
            low, high = value("low_freq_factor"), value("high_freq_factor")
            if low >= high:
                raise self.refuse(name, "in which low_freq_factor is not below high_freq_factor")
            scaling = Llama3Scaling(factor=value("factor"), low=low, high=high, trained=trained)
        elif kind == "yarn":
            factor = value("factor", self.get("max_position_embeddings") / trained)
            truncate = rope.get("truncate")
            if truncate not in (None, True, False):
                raise self.refuse(name, "in which truncate is neither true nor false")
            amplitude = yarn_amplitude(factor)
            if rope.get("mscale") and rope.get("mscale_all_dim"):
                amplitude = yarn_amplitude(factor, value("mscale")) / yarn_amplitude(factor, value("mscale_all_dim"))
            scaling = YarnScaling(
                factor=factor,
                trained=trained,
                fast=value("beta_fast", 32.0),
                slow=value("beta_slow", 1.0),
                truncate=truncate is not False,
                amplitude=value("attention_factor", amplitude),
            )
        config = RotaryConfig(size=int(head_size * rotated), base=base, scaling=scaling)
        if isinstance(scaling, YarnScaling):
            try:
                scaling.bounds(config.size, base)
            except (ValueError, ArithmeticError) as error:
                raise self.refuse(name, f"from which YaRN cannot be computed with the base {base:g}") from error
        return config

    def unread(self) -> list[str]:
        """Return the names of the settings in the file that have not been read."""
        return [name for name in self._settings if name not in self._read]

    def finish(self) -> None:
        """Check the settings that have not been read, and log those that are not known.

        Raises:
            ModelError: one of them would change the arithmetic.
        """
        for name in self.unread():
            value = self._settings[name]
            if value is None or value is False or value == []:
                continue
            if name in _ARITHMETIC:
                raise self.refuse(name, "which gptsweep does not support for this type")
            if name not in _WITHOUT_EFFECT and not name.startswith("_"):
                log.info("ignoring the unknown setting %s of config.json, as transformers does", brief(name))


def yarn_amplitude(factor: float, scale: float = 1.0) -> float:
    """Compute the factor by which YaRN multiplies cosines and sines (Peng et al., 2023)."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


_ROPE_KEYS: Mapping[str, Sequence[str]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    ),
}
"""The kinds of rotary scaling, and the settings of each."""

_ARITHMETIC = frozenset(
    (
        # settings of other model types in transformers, and of old or forked files of the known types
        *("add_cross_attention", "alibi", "attention_bias", "attention_chunk_size", "attention_multiplier", "attention_sinks"),
        *(
            "attn_logit_softcapping",
            "attn_temperature_tuning",
            "clip_qkv",
            "cross_attention_hidden_size",
            "decoder_sparse_step",
        ),
        *("dim_model_base", "embedding_multiplier", "final_logit_softcapping", "head_dim", "is_encoder_decoder", "layer_types"),
        *("lm_head_multiplier", "logit_scale", "logits_scaling", "mlp_bias", "mlp_only_layers", "moe_intermediate_size"),
        *("n_routed_experts", "no_rope_layers", "norm_type", "num_experts", "num_experts_per_tok", "num_key_value_heads"),
        *("num_local_experts", "parallel_attn", "partial_rotary_factor", "post_norm", "pruned_heads", "qk_layernorm"),
        *("qk_norm", "qkv_bias", "quantization_config", "query_pre_attn_scalar", "residual_multiplier", "rope_interleaved"),
        *("rope_local_base_freq", "rope_scaling", "rotary_dim", "rotary_pct", "rotary_percentage", "scale_attn_weights"),
        *("scale_depth", "scale_emb", "scale_embedding", "scale_embeddings", "sliding_window", "sliding_window_pattern"),
        *("tie_encoder_decoder", "use_alibi", "use_attention_sinks", "use_bias", "use_mrope", "use_parallel_residual"),
        *("use_qk_norm", "use_qkv_bias", "use_sliding_window"),
    )
)
"""Settings that change the arithmetic of some model type. A type that does not read one must refuse it."""

_WITHOUT_EFFECT = frozenset(
    (
        *("architectures", "attention_dropout", "auto_map", "bos_token_id", "chunk_size_feed_forward", "classifier_dropout"),
        *("decoder_start_token_id", "dtype", "eos_token_id", "finetuning_task", "gradient_checkpointing", "hidden_dropout"),
        *("id2label", "initializer_range", "is_decoder", "is_llama_config", "label2id", "max_window_layers"),
        *("no_rope_layer_interval", "output_attentions", "output_hidden_states", "pad_token_id", "prefix", "pretraining_tp"),
        *("problem_type", "return_dict", "sep_token_id", "task_specific_params", "tokenizer_class", "torch_dtype"),
        *("torchscript", "transformers.js_config", "transformers_version", "use_cache"),
    )
)
"""Settings that do not affect the logits: of training, other tasks, the tokenizer and the files."""


def is_nonnegative(value: object) -> bool:
    """Return whether ``value``, read from an untrusted file, is a number from 0 to 1e38, which a float32 can hold."""
    return is_number(value, 0, 1e38)
