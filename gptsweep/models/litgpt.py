"""LitGPT's model: the meaning of its ``model_config.yaml``, and the names of its weights.

LitGPT runs many model families with one class, and the fields of its config choose how each step is done. The fields here are
those of version 0.5.13 (2026-06), and fields of earlier versions that have been removed since.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from ..errors import ModelError, brief
from .decoder import Decoder, DecoderConfig, Place, by_kind
from .files.weights import Stored, StoredTensor
from .hf_settings import MOST_LAYERS, HFSettings, is_nonnegative
from .layers import Activation, LinearScaling, Llama3Scaling, NormConfig, RotaryConfig


class LitSettings(HFSettings):
    """The settings of a ``model_config.yaml``. Unknown ones are errors."""

    FILE = "model_config.yaml"

    def finish(self) -> None:
        for name in self.unread():
            if name not in _WITHOUT_EFFECT:
                has = f"its {self.FILE} has {brief(name)}={brief(self.get(name))}"
                raise self.wrong(f"{has}, which is not a setting of any LitGPT that gptsweep knows")


class LitGPT(Decoder):
    """A decoder configured by LitGPT's fields."""

    TITLE = "LitGPT"
    OVERFLOW = "stop"  # its generate() stops at the end of the context
    SETTINGS = LitSettings
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "name": "",
        "block_size": 4096,
        "n_layer": 16,
        "n_embd": 4096,
        "vocab_size": 50254,
        "padding_multiple": 512,
        "norm_class_name": "LayerNorm",
        "norm_eps": 1e-5,
        "norm_qk": False,
        "norm_qk_type": "default",
        "norm_1": True,
        "norm_2": True,
        "post_attention_norm": False,
        "post_mlp_norm": False,
        "parallel_residual": True,
        "shared_attention_norm": False,
        "n_head": 32,
        "bias": True,
        "attn_bias": False,
        "lm_head_bias": False,
        "rope_base": 10_000,
        "rotary_percentage": 0.25,
        "rope_condense_ratio": 1,
        "rope_interleave": False,
        "mlp_class_name": "GptNeoxMLP",
        "gelu_approximate": "none",
        "scale_embeddings": False,
    }
    LAYERS = "transformer.h."
    OUTSIDE: ClassVar[Mapping[str, str]] = {
        "transformer.wte.weight": "embed.weight",
        "transformer.ln_f.weight": "norm.weight",
        "transformer.ln_f.bias": "norm.bias",
        "lm_head.weight": "head.weight",
    }
    INSIDE: ClassVar[Mapping[str, Place]] = {
        "norm_1": Place("norm_1"),
        "norm_2": Place("norm_2"),
        "attn.qkv": Place("attn.qkv"),
        "attn.norm_q": Place("attn.q_norm"),
        "attn.norm_k": Place("attn.k_norm"),
        "attn.proj": Place("attn.out"),
        "mlp.fc_1": Place("mlp.up", 0, 2),
        "mlp.fc_2": Place("mlp.up", 1, 2),
        "mlp.proj": Place("mlp.down"),
    }

    @classmethod
    def config_of(cls, hf: HFSettings) -> DecoderConfig:
        for name, usual in _ONLY.items():
            if hf.get(name) != usual:
                raise hf.refuse(name, f"but gptsweep supports only {usual}")
        n_layer = hf.size("n_layer", most=MOST_LAYERS)
        n_head, n_embd = hf.size("n_head"), hf.size("n_embd")
        head_size = hf.size("head_size", null=n_embd // n_head)
        if hf.get("attention_scores_scalar") not in (None, head_size):
            raise hf.refuse("attention_scores_scalar", f"but gptsweep supports only the head size, {head_size}")
        rows, multiple = hf.size("vocab_size"), hf.size("padding_multiple")
        bias = hf.flag("bias")
        activation, gated = _feed_forward(hf)
        return DecoderConfig(
            vocab_size=hf.size("padded_vocab_size", null=-(-rows // multiple) * multiple),
            block_size=hf.size("block_size"),
            n_layer=n_layer,
            n_head=n_head,
            n_kv_heads=hf.size("n_query_groups", null=n_head),
            head_size=head_size,
            n_embd=n_embd,
            n_inner=hf.size("intermediate_size", null=None if activation == "silu" else 4 * n_embd),
            norm=_norm(hf),
            norm_order=_norm_order(hf),
            parallel=hf.flag("parallel_residual"),
            qk_norm=_qk_norm(hf),
            rotary=_rotary(hf, head_size),
            windows=_windows(hf, n_layer),
            activation=activation,
            gated=gated,
            qkv_bias=hf.flag("attn_bias") or bias,
            out_bias=bias,
            mlp_bias=bias,
        )

    @classmethod
    def weights_from_hf(
        cls,
        stored: Mapping[str, StoredTensor],
        settings: Mapping[str, Any],
        config: DecoderConfig,
        wrong: Callable[[str], ModelError],
    ) -> dict[str, Stored]:
        """Convert weights as `Decoder.weights_from_hf` does.

        Until 2024-12 LitGPT stored queries, keys and values group by group, as ``attn.attn``; both layouts are read.
        """
        weights = super().weights_from_hf(stored, settings, config, wrong)
        moved = {} if config.gated else {"mlp.fc": "mlp.up"}
        moved |= {"post_attention_norm": "norm_1", "post_mlp_norm": "norm_2"} if config.norm_order == "post" else {}
        for name, weight in list(weights.items()):
            if (found := re.fullmatch(r"transformer\.h\.(\d{1,9})\.(.+)\.(weight|bias)", name)) is None:
                continue
            if found[2] == "attn.attn" and isinstance(weight, StoredTensor):
                own, weight = "attn.qkv", by_kind(weight, config)
            elif not (own := moved.get(found[2], "")):
                continue
            if (own := f"blocks.{int(found[1])}.{own}.{found[3]}") not in weights:
                del weights[name]
                weights[own] = weight
        if settings.get("shared_attention_norm"):
            shared = {name.replace(".norm_1.", ".norm_2."): norm for name, norm in weights.items() if ".norm_1." in name}
            if twice := sorted(shared.keys() & weights.keys()):
                raise wrong(f"it has the weight {twice[0]:.80}, although shared_attention_norm replaces it by the other norm")
            weights |= shared
        return weights

    @classmethod
    def is_own(cls, name: str) -> bool:
        return True  # the file holds only the model's weights


def _norm(hf: HFSettings) -> NormConfig:
    kind, epsilon, name = hf.get("norm_class_name"), hf.number("norm_eps"), hf.get("name")
    made_of = hf.get("hf_config")
    name = str(name or (made_of.get("name") if isinstance(made_of, dict) else None) or "")
    if kind == "RMSNorm":
        if "Gemma" in name:
            raise hf.refuse("name", "but gptsweep does not support Gemma, whose norms multiply by 1 + weight")
        return NormConfig(kind="rms", epsilon=epsilon)
    if kind == "LayerNorm":
        plain = "OLMo" in name  # LitGPT decides by the name, too
        return NormConfig(kind="layer", epsilon=epsilon, weight=not plain, bias=not plain)
    raise hf.refuse("norm_class_name", "but gptsweep supports only RMSNorm and LayerNorm")


def _norm_order(hf: HFSettings) -> Literal["pre", "post"]:
    before, after = ("norm_1", "norm_2"), ("post_attention_norm", "post_mlp_norm")
    there = [hf.flag(name) for name in (*before, *after)]
    parallel, shared = hf.flag("parallel_residual"), hf.flag("shared_attention_norm")
    if shared and not parallel:
        raise hf.refuse("shared_attention_norm", "without parallel_residual, which LitGPT does not support either")
    if there == [True, True, False, False]:
        return "pre"
    if there == [False, False, True, True] and not parallel:
        return "post"
    has = ", ".join(f"{name}={hf.get(name)}" for name in (*before, *after, "parallel_residual"))
    raise hf.wrong(f"its {hf.FILE} has {has}; gptsweep supports norms before both steps of a layer, or after both in sequence")


def _qk_norm(hf: HFSettings) -> Literal["head", "width"] | None:
    kinds: dict[object, Literal["head", "width"]] = {"default": "head", "olmo2": "width"}
    kind = hf.get("norm_qk_type")
    if not isinstance(kind, str) or kind not in kinds:
        raise hf.refuse("norm_qk_type", f"but gptsweep supports only {', '.join(map(str, kinds))}")
    return kinds[kind] if hf.flag("norm_qk") else None


def _feed_forward(hf: HFSettings) -> tuple[Activation, bool]:
    """Read the activation, and whether it gates."""
    gelus: dict[object, Activation] = {"none": "gelu", "tanh": "gelu_tanh"}
    kind, gelu = hf.get("mlp_class_name"), hf.get("gelu_approximate")
    if kind == "LLaMAMLP":
        return "silu", True
    if kind not in ("GptNeoxMLP", "GemmaMLP"):
        raise hf.refuse("mlp_class_name", "but gptsweep supports only GptNeoxMLP, LLaMAMLP and GemmaMLP")
    if not isinstance(gelu, str) or gelu not in gelus:
        raise hf.refuse("gelu_approximate", "but gptsweep supports only none and tanh")
    return gelus[gelu], kind == "GemmaMLP"


def _rotary(hf: HFSettings, head_size: int) -> RotaryConfig:
    base, rotated, condensed = (hf.number(name) for name in ("rope_base", "rotary_percentage", "rope_condense_ratio"))
    for name, positive in (("rope_base", base), ("rope_condense_ratio", condensed)):
        if not positive:
            raise hf.refuse(name, "which is not a number above 0")
    if rotated > 1:
        raise hf.refuse("rotary_percentage", "which is more than a whole head")
    scaling = _adjusted(hf)
    if condensed != 1:
        if scaling is not None:
            raise hf.refuse("rope_condense_ratio", "with rope_adjustments, but gptsweep supports only one of the two")
        scaling = LinearScaling(factor=condensed)
    return RotaryConfig(size=int(rotated * head_size), base=base, pairs=hf.flag("rope_interleave"), scaling=scaling)


def _adjusted(hf: HFSettings) -> LinearScaling | Llama3Scaling | None:
    """Read ``rope_adjustments``. LitGPT also has its own variant of YaRN, which gptsweep does not support."""
    name, adjustments = "rope_adjustments", hf.get("rope_adjustments")
    if adjustments is None or adjustments == {}:
        return None
    if not isinstance(adjustments, dict) or set(adjustments) not in (set(_LLAMA3), {"factor"}):
        raise hf.refuse(name, f"but gptsweep supports only factor, or {', '.join(_LLAMA3)}")
    if odd := [key for key, number in adjustments.items() if not is_nonnegative(number) or not number]:
        raise hf.refuse(name, f"in which {odd[0]} is not a number above 0")
    if len(adjustments) == 1:
        return LinearScaling(factor=float(adjustments["factor"]))
    factor, low, high, trained = (float(adjustments[key]) for key in _LLAMA3)
    if low >= high:
        raise hf.refuse(name, "in which low_freq_factor is not below high_freq_factor")
    return Llama3Scaling(factor=factor, low=low, high=high, trained=trained)


def _windows(hf: HFSettings, n_layer: int) -> tuple[int | None, ...]:
    """Read the attention window of each layer. Until 2025-04 a placing or a stride chose the layers that have one."""
    indices, earlier = hf.get("sliding_window_indices"), {name: hf.get(name) for name in _PLACING}
    if hf.get("sliding_window_size") is None:
        return (None,) * n_layer
    window = hf.size("sliding_window_size")
    if odd := [name for name, value in earlier.items() if value not in _PLACING[name]]:
        raise hf.refuse(odd[0], "but gptsweep supports only a window in all layers, or in those of sliding_window_indices")
    if indices is None:
        return (window,) * n_layer
    if not isinstance(indices, list) or len(indices) < n_layer or any(index not in (0, 1) for index in indices):
        raise hf.refuse("sliding_window_indices", "which is not 0 or 1 for each layer")
    return tuple(window if index else None for index in indices[:n_layer])


_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len")
_PLACING: Mapping[str, tuple[object, ...]] = {
    "sliding_window_layer_placing": (None, "all", 1),
    "sliding_window_layer_stride": (None, 1),
    "sliding_window_offset": (None, 0),
    "sliding_window_type": (None,),
}
"""Settings of earlier versions, and the values of each with which every layer has the window."""
_ONLY: Mapping[str, object] = {
    "attention_logit_softcapping": None,
    "final_logit_softcapping": None,
    "latent_attention": None,
    "lm_head_bias": False,
    "rope_indices": None,
    "rope_local_base_freq": None,
    "scale_embeddings": False,
}
"""Settings that change the arithmetic, and the only value of each that gptsweep supports."""
_WITHOUT_EFFECT = frozenset(
    (
        # settings of mixtures of experts, which only mlp_class_name=LLaMAMoE uses
        *("first_k_dense_replace", "moe_intermediate_size", "n_expert", "n_expert_groups", "n_expert_per_token"),
        *("n_shared_expert", "n_topk_groups", "n_topk_scores_per_group", "norm_topk_prob", "routed_scaling_factor"),
    )
)
