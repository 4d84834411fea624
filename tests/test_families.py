"""What a user would lose: the logits of the models that people download, from `forward()` and from the cache alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import random_gpt, save_meta, save_nanogpt
from safetensors.torch import load_file, save_file
from test_model import cached_logits, ids_for, in_pieces, one_at_a_time, whole
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

import gptsweep
from gptsweep.engine.engine import Engine
from gptsweep.errors import ConfigError, ModelError
from gptsweep.models.architecture import Architecture
from gptsweep.models.loading import LoadedModel, load_model
from gptsweep.models.registry import architecture_of
from gptsweep.records import DeviceSettings, ModelSource, Row, Sampling

TOLERANCE = 1e-4
VOCAB = 64
SIZES = {
    "vocab_size": VOCAB, "max_position_embeddings": 40, "num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 4,
    "intermediate_size": 40, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


YARN = {
    "rope_type": "yarn", "rope_theta": 700.0, "factor": 3.0, "original_max_position_embeddings": 12, "beta_fast": 4.0,
}  # fmt: skip


SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama one kv head, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "llama heads of 80": {"num_key_value_heads": 2, "head_dim": 80, "rms_norm_eps": 1e-3},
    "llama 3 with biases": {"num_key_value_heads": 2, "rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True},
    "llama linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1000.0}},
    "llama yarn": {"rope_parameters": YARN},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 5, "head_dim": 10},
    "mistral without window": {"num_key_value_heads": 1, "sliding_window": None},
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2 with windows": {
        "num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1,
        "num_hidden_layers": 3,
    },
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "qwen3 yarn": {
        "num_key_value_heads": 4, "head_dim": 80, "attention_bias": True, "tie_word_embeddings": True,
        "rope_parameters": {**YARN, "truncate": False, "attention_factor": 0.9},
    },
    "gpt_neox": {"hidden_size": 96, "intermediate_size": 50},
    "gpt_neox sequential": {
        "hidden_size": 160, "num_attention_heads": 2, "use_parallel_residual": False, "attention_bias": False,
        "hidden_act": "gelu_new", "layer_norm_eps": 1e-3, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5},
    },
    "smollm3": {"num_key_value_heads": 2, "num_hidden_layers": 4, "no_rope_layer_interval": 2},
    "smollm3 with windows": {
        "num_key_value_heads": 1, "num_hidden_layers": 3, "no_rope_layers": [0, 1, 0], "use_sliding_window": True,
        "sliding_window": 6, "tie_word_embeddings": True,
    },
    "olmo2": {"num_key_value_heads": 2},
    "olmo2 tied": {"num_key_value_heads": 4, "attention_bias": True, "tie_word_embeddings": True},
}  # fmt: skip
TYPES = sorted({name.split()[0] for name in SHAPES})


def config_of(shape: str, **changes: Any) -> PretrainedConfig:
    """transformers' config of one of `SHAPES`."""
    return AutoConfig.for_model(shape.split()[0], **{**SIZES, **SHAPES[shape], **changes})


def peaked(config: PretrainedConfig) -> nn.Module:
    """transformers' model with random weights whose logits have a standard deviation of a few."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        deviation = 0.3 if parameter.dim() > 1 else 0.1
        parameter.normal_(0.0, deviation).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return model


def save_tokenizer(directory: Path, vocab_size: int) -> None:
    """A byte-level vocabulary of letters."""
    letters = [chr(0x21 + i) for i in range(94)] + [chr(0xAE + i) for i in range(82)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    model = {"type": "BPE", "vocab": {letter: i for i, letter in enumerate(letters[:vocab_size])}, "merges": []}
    (directory / "tokenizer.json").write_text(json.dumps({"model": model, "pre_tokenizer": level, "decoder": level}))


def saved(directory: Path, model: nn.Module, **changes: Any) -> Path:
    """``model`` as transformers saves it, with changes to its ``config.json``; one of None leaves a setting out."""
    model.save_pretrained(directory)
    save_tokenizer(directory, VOCAB)
    if changes:
        path = directory / "config.json"
        settings = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))
    return directory


def loaded(directory: Path, dtype: str = "float32") -> LoadedModel:
    return load_model(ModelSource(name="hf", path=str(directory)), DeviceSettings(name="cpu", dtype=dtype))


@pytest.fixture(params=SHAPES, scope="module")
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Architecture]:
    """A model of transformers, and the same loaded here."""
    theirs = peaked(config_of(request.param))
    return theirs, loaded(saved(tmp_path_factory.mktemp("model"), theirs)).model


@torch.inference_mode()
def test_forward_gives_transformers_logits(both: tuple[nn.Module, Architecture]) -> None:
    theirs, ours = both
    ids = torch.stack(ids_for(ours.config, 40, 40, 40))
    wanted = theirs(ids).logits
    assert wanted.std() > 1
    assert (ours(ids) - wanted).abs().max() < TOLERANCE


@pytest.mark.parametrize(("passes", "use_kernels"), [(whole, False), (one_at_a_time, True), (in_pieces, True)])
def test_the_cached_path_gives_transformers_logits(
    both: tuple[nn.Module, Architecture], passes: Any, use_kernels: bool
) -> None:
    theirs, ours = both
    sequences = ids_for(ours.config, 40, 1, 16, 9, 39)
    ours.reserve(40)
    with torch.inference_mode():
        wanted = [theirs(ids[None]).logits[0] for ids in sequences]
    for ids, logits, right in zip(sequences, cached_logits(ours, sequences, passes, use_kernels), wanted, strict=True):
        assert len(ids) - 1 in logits
        for position, made in logits.items():
            assert (made - right[position]).abs().max() < TOLERANCE


@torch.inference_mode()
def greedy(model: nn.Module, prompt: tuple[int, ...], count: int) -> tuple[list[int], list[float]]:
    """transformers' greedy tokens, and by how much each won."""
    ids = torch.tensor([prompt])
    settings = {"do_sample": False, "max_new_tokens": count, "eos_token_id": None, "pad_token_id": 0}
    ids = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    first, second = model(ids).logits[0, len(prompt) - 1 : -1].topk(2).values.unbind(-1)
    return ids[0, len(prompt) :].tolist(), (first - second).tolist()


@pytest.mark.parametrize("model_type", TYPES)
def test_greedy_tokens_are_transformers_over_200_steps(model_type: str, tmp_path: Path) -> None:
    theirs = peaked(config_of(model_type, max_position_embeddings=256))
    model = loaded(saved(tmp_path, theirs)).model
    prompt = tuple(ids_for(model.config, 17)[0].tolist())
    row = Row(prompt_ids=prompt, sampling=Sampling(max_new_tokens=200, temperature=0.0), noise_key=0)
    (completion,) = Engine(model, vocab_size=VOCAB).run([row])
    tokens, margins = greedy(theirs, prompt, 200)
    pairs = zip(completion.token_ids, tokens, strict=True)
    first = next((i for i, (made, wanted) in enumerate(pairs) if made != wanted), None)
    assert first is None or margins[first] < 1e-4


# -- config.json -------------------------------------------------------------------------------------------------------------

LLAMA = {
    "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2,
    "intermediate_size": 40, "max_position_embeddings": 40, "rms_norm_eps": 1e-5,
}  # fmt: skip


def wrong(what: str) -> ModelError:
    return ModelError("model.path", "m", what)


def read(settings: dict[str, Any]) -> Any:
    return architecture_of(settings["model_type"]).config_from_hf(settings, wrong)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 500.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        (
            {"rope_theta": 9.0, "rope_scaling": {"type": "linear", "factor": 2}},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 9.0}},
        ),
        (
            {"rope_theta": 500.0, "rope_scaling": {**LLAMA3, "rope_theta": None}},
            {"rope_parameters": {**LLAMA3, "rope_theta": 500}},
        ),
        ({"torch_dtype": "bfloat16", "sliding_window": None, "rope_scaling": None}, {"dtype": "float16"}),
        ({"model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 70}, {
            "model_type": "gpt_neox", "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 70.0},
        }),
    ],
    ids=lambda settings: " ".join(settings),
)  # fmt: skip
def test_both_spellings_of_a_setting_mean_the_same(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert read(LLAMA | old) == read(LLAMA | new)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling={'factor': 2.0, 'type': 'dynamic'}, but gptsweep"),
        ({"rope_scaling": {"rope_type": "linear"}}, "in which factor is not a number above 0"),
        ({"rope_scaling": [2]}, "but gptsweep supports only the types default, linear, llama3, yarn"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [1, 2]}}, "does not support mrope_section"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "does not support full_attention"),
        ({"rope_parameters": {**LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor is not below"),
        ({"rope_theta": 0}, "rope_theta=0, which is not a number above 0"),
        ({"rope_parameters": {"rope_theta": 0}}, "in which rope_theta is not a number above 0"),
        ({"rope_theta": 1, "rope_scaling": {"type": "yarn", "factor": 2}}, "YaRN cannot be computed with the base 1"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_slow": 1e-308}}, "YaRN cannot be computed"),
        ({"original_max_position_embeddings": "x"}, "original_max_position_embeddings='x', which is not a number"),
        ({"partial_rotary_factor": 0.5}, "rotates 0.5 of each head (partial_rotary_factor)"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}, which gptsweep does not support"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ({"sliding_window": 128}, "sliding_window=128"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"hidden_act": "mish"}, "hidden_act='mish', but gptsweep supports only gelu"),
        ({"hidden_act": ["silu"]}, "hidden_act=['silu']"),
        ({"attention_bias": "no"}, "attention_bias='no', which is neither true nor false"),
        ({"num_attention_heads": 0}, "num_attention_heads=0, which is not a whole number from 1"),
        ({"num_key_value_heads": 3}, "n_head is 4, but must be a multiple of n_kv_heads, 3"),
        ({"num_hidden_layers": 2**31}, "num_hidden_layers=2147483648, which is not a whole number from 1 to 10,000"),
        ({"head_dim": 7}, "the rotary size is 7, but must be even"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps='small'"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps=a number of 1,329 bits"),
        ({"model_type": "gpt_neox", "head_dim": 8}, "head_dim=8"),
        ({"model_type": "gpt_neox", "hidden_size": 25}, "hidden_size=25, which is not a multiple of the 4 heads"),
        ({"model_type": "qwen3", "layer_types": ["full_attention"]}, "layer_types=['full_attention']"),
        ({"model_type": "qwen3", "layer_types": ["sliding_attention"] * 2}, "but no sliding_window is in use"),
        ({"model_type": "mistral", "layer_types": ["sliding_attention", "full_attention"]}, "the same window"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers=[1]"),
        ({"model_type": "smollm3", "no_rope_layer_interval": 0}, "no_rope_layer_interval=0"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": None}, "max_window_layers=None"),
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_that_changes_the_arithmetic_is_not_ignored(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError) as caught:
        read(LLAMA | settings)
    assert says in str(caught.value)


def test_a_setting_that_nobody_knows_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    read(LLAMA | {"torch_dtype": "bfloat16", "use_cache": True, "_name": 1, "unsloth_version": "2024.9"})
    assert caplog.messages == ["ignoring the unknown setting 'unsloth_version' of config.json, as transformers does"]


# -- weights -----------------------------------------------------------------------------------------------------------------


def test_sharded_16_bit_weights_are_read_whole(tmp_path: Path) -> None:
    peaked(config_of("gpt_neox")).bfloat16().save_pretrained(tmp_path, max_shard_size="20KB")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    save_tokenizer(tmp_path, VOCAB)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = loaded(tmp_path)
    ids = torch.stack(ids_for(ours.model.config, 40))
    with torch.inference_mode():
        assert (ours.model(ids) - theirs(ids).logits).abs().max() < TOLERANCE


def weights_of(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("model.layers.1.self_attn.k_proj.weight"), "layers.1.self_attn.q_proj.weight, "),
        (lambda w: w.pop("model.layers.1.self_attn.o_proj.weight"), "weights are missing: blocks.1.attn.out.weight"),
        (lambda w: w.update({"model.layers.0.mlp.up_proj.weight": torch.ones(40, 23)}), "their widths or dtypes differ"),
        (lambda w: w.update({"model.layers.0.mlp.up_proj.weight": torch.ones(39, 24)}), "has the shape [79, 24]"),
        (lambda w: w.update({f"model.layers.1.mlp.{n}_proj.weight": torch.ones(()) for n in ("gate", "up")}), "single numbers"),
        (lambda w: w.update({"model.norm.weight": torch.ones([1] * 8 + [24])}), "holds model.norm.weight with 9 dimensions"),
        (lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(24)}), "that belong together, only"),
        (lambda w: w.update({"model.layers.0.self_attn.o_proj.bias": torch.ones(24)}), "does not have: blocks.0.attn.out.bias"),
        (lambda w: w.update({"model.layers.2.input_layernorm.weight": torch.ones(24)}), "does not have: blocks.2.norm_1"),
        (lambda w: w.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(6)}), "does not have: layers.0.self_attn.q_"),
        (lambda w: w.update({"embed_tokens.weight": torch.ones(VOCAB, 24)}), "holds the weight embed_tokens.weight twice"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(tmp_path: Path, change: Any, says: str) -> None:
    saved(tmp_path, peaked(config_of("llama")))
    weights = weights_of(tmp_path)
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        loaded(tmp_path)
    assert says in str(caught.value)


def test_old_checkpoints_hold_buffers_that_are_left_out(tmp_path: Path) -> None:
    theirs = peaked(config_of("gpt_neox"))
    saved(tmp_path, theirs)
    extra = {"attention.bias": torch.ones(1, 1, 4, 4), "attention.masked_bias": torch.tensor(-1e9)}
    extra["attention.rotary_emb.inv_freq"] = torch.ones(3)
    weights = weights_of(tmp_path) | {f"gpt_neox.layers.0.{name}": tensor for name, tensor in extra.items()}
    weights["embed_out.weight"] = weights.pop("lm_head.weight", weights.get("embed_out.weight"))
    save_file(weights, tmp_path / "model.safetensors")
    ids = torch.stack(ids_for(theirs.config, 9))
    assert (loaded(tmp_path).model(ids) - theirs(ids).logits).abs().max() < TOLERANCE


# -- past the context --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A model of transformers with a context of 24 and a window of 10 in its second layer, and its directory."""
    changes = {"max_position_embeddings": 24, "sliding_window": 10, "max_window_layers": 1, "num_hidden_layers": 2}
    theirs = peaked(config_of("qwen2 with windows", **changes))
    return theirs, saved(tmp_path_factory.mktemp("short"), theirs)


def engine_rows(overflow: str, lengths: Sequence[int], vocab: Any) -> list[Row]:
    sampling = Sampling(max_new_tokens=40, temperature=0.0, overflow=overflow)
    prompts = [tuple(ids.tolist()) for ids in ids_for(vocab, *lengths)]
    return [Row(prompt_ids=ids, sampling=sampling, noise_key=0, sample_index=i) for i, ids in enumerate(prompts)]


@torch.inference_mode()
def test_a_rotary_model_crops_as_a_window_that_is_read_anew_and_extends_as_transformers(short: tuple[nn.Module, Path]) -> None:
    theirs, directory = short
    model = loaded(directory).model
    rows = [
        row for overflow in ("crop", "extend", "rebase", "stop") for row in engine_rows(overflow, (5, 24, 30), model.config)
    ]
    for completion in Engine(model, vocab_size=VOCAB, max_rows=5).run(rows):
        seen, overflow = list(completion.row.prompt_ids), completion.row.sampling.overflow
        if overflow == "stop":
            wanted = {5: 20, 24: 1}.get(len(seen))
            assert wanted is None or (len(completion.token_ids) == wanted and completion.finish_reason == "overflow")
            continue
        assert completion.finish_reason == "length"
        for token in completion.token_ids if overflow != "rebase" else ():
            window = seen[-24:] if overflow == "crop" else seen
            logits = theirs(torch.tensor([window])).logits[0, -1]
            assert logits.max() - logits[token] < 1e-4
            seen.append(token)


def test_a_row_that_extends_ends_where_the_positions_do(short: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(short[1]).model
    whole = {c.row.sample_index: c for c in Engine(model, vocab_size=VOCAB).run(engine_rows("extend", (5, 30), model.config))}
    monkeypatch.setattr(type(model), "extends_to", 33)
    for completion in Engine(model, vocab_size=VOCAB).run(engine_rows("extend", (5, 30), model.config)):
        room = 33 + 1 - len(completion.row.prompt_ids)
        assert completion.token_ids == whole[completion.row.sample_index].token_ids[:room]
        assert completion.finish_reason == "overflow"


def test_by_itself_a_model_does_past_its_context_what_its_own_program_does(
    short: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    save_meta(save_nanogpt(tmp_path, random_gpt()) / "meta.pkl", "abcdefghijk")
    gpt = gptsweep.load(tmp_path, device="cpu")
    lm = gptsweep.load(short[1], device="cpu")
    (made,) = lm.generate('"#$', max_new_tokens=60, temperature=0)
    assert (made.sampling.overflow, len(made.token_ids)) == ("extend", 60)
    (cropped,) = gpt.generate("a", max_new_tokens=2)
    assert cropped.sampling.overflow == "crop"
    with pytest.raises(ConfigError, match=r"sampling.overflow=extend: model=\S+ has no positions beyond its"):
        gpt.generate("a", max_new_tokens=2, overflow="extend")


def test_a_model_without_tokenizer_gets_none_of_another_type(tmp_path: Path) -> None:
    saved(tmp_path, peaked(config_of("gpt_neox", vocab_size=50304)))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"the directory has no tokenizer\.json, or vocab\.json with merges\.txt$"):
        loaded(tmp_path)
