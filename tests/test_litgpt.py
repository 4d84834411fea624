"""What a user of LitGPT would lose: its checkpoints of any layout, with its own logits, and one line for what is not run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeps import Run, samples_of
from test_checkpoint import user_error
from test_families import TOLERANCE, VOCAB, config_of, peaked, save_tokenizer
from test_model import ids_for
from torch import Tensor, nn

import gptsweep
from gptsweep.models.architecture import Architecture
from gptsweep.models.litgpt import LitGPT
from gptsweep.models.loading import load_model
from gptsweep.models.registry import open_checkpoint
from gptsweep.records import DeviceSettings, ModelSource

WRITTEN = Path(__file__).parent / "data" / "litgpt"
"""A tiny Llama that LitGPT 0.5.13 converted, with the logits that its own code computes."""


def source(directory: Path | str) -> ModelSource:
    return ModelSource(name="litgpt", path=str(directory))


def loaded(directory: Path) -> Architecture:
    return load_model(source(directory), DeviceSettings(name="cpu", dtype="float32")).model


def written(directory: Path, vocab_size: int = 60, **changes: Any) -> Path:
    """The checkpoint that LitGPT wrote, with a tokenizer, and with changes to its config."""
    shutil.copytree(WRITTEN, directory, dirs_exist_ok=True)
    save_tokenizer(directory, vocab_size)
    if changes:
        path = directory / "model_config.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return directory


def test_a_checkpoint_that_litgpt_wrote_has_its_logits_and_greedy_tokens(tmp_path: Path) -> None:
    expected = json.loads((WRITTEN / "expected.json").read_text())
    lm = gptsweep.load(written(tmp_path), device="cpu", dtype="float32")
    assert lm.source.name == "litgpt"
    with torch.inference_mode():
        logits = lm.model(torch.tensor([expected["ids"]]))[0]
    assert (logits - torch.tensor(expected["logits"])).abs().max() < TOLERANCE
    prompt = lm.tokenizer.decode(expected["ids"])
    (sample,) = lm.generate(prompt, temperature=0, max_new_tokens=len(expected["greedy"]))
    assert list(sample.token_ids) == expected["greedy"]
    (sample,) = lm.generate(prompt, max_new_tokens=100)
    assert (sample.finish_reason, len(sample.token_ids)) == ("overflow", 48 + 1 - 12), "LitGPT does not go on"


# -- weights of transformers, under the names that LitGPT's conversion gives them ---------------------------------------------

LLAMA = {
    "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "parallel_residual": False, "bias": False,
    "rotary_percentage": 1.0,
}  # fmt: skip
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt_neox": ({"hidden_size": 96}, {"rotary_percentage": 0.25}),
    "gpt_neox sequential": (
        {"attention_bias": True},
        {"parallel_residual": False, "gelu_approximate": "tanh", "rotary_percentage": 0.5, "rope_base": 300},
    ),
    "llama 3 with biases": (
        {},
        {
            **LLAMA, "bias": True, "rope_base": 500, "rope_adjustments": {
                "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 16,
            },
        },
    ),
    "mistral": ({}, {**LLAMA, "sliding_window_size": 5, "sliding_window_layer_placing": "all"}),
    "qwen3": ({}, {**LLAMA, "norm_qk": True}),
    "olmo2": (
        {},
        {
            **LLAMA, "norm_qk": True, "norm_qk_type": "olmo2", "norm_1": False, "norm_2": False,
            "post_attention_norm": True, "post_mlp_norm": True,
        },
    ),
}  # fmt: skip
NAMES = {
    "model.embed_tokens": "transformer.wte", "gpt_neox.embed_in": "transformer.wte", "embed_out": "lm_head",
    "model.norm": "transformer.ln_f", "gpt_neox.final_layer_norm": "transformer.ln_f",
    "self_attn.o_proj": "attn.proj", "attention.dense": "attn.proj", "attention.query_key_value": "attn.attn",
    "self_attn.q_norm": "attn.norm_q", "self_attn.k_norm": "attn.norm_k",
    "mlp.gate_proj": "mlp.fc_1", "mlp.up_proj": "mlp.fc_2", "mlp.down_proj": "mlp.proj",
    "mlp.dense_h_to_4h": "mlp.fc", "mlp.dense_4h_to_h": "mlp.proj",
    "post_feedforward_layernorm": "post_mlp_norm", "input_layernorm": "norm_1",
}  # fmt: skip


def renamed(name: str, post: bool) -> str:
    for theirs, its in (*NAMES.items(), ("post_attention_layernorm", "post_attention_norm" if post else "norm_2")):
        name = name.replace(theirs, its)
    return re.sub(r"^(model|gpt_neox)\.layers\.", "transformer.h.", name)


def converted(theirs: nn.Module, config: dict[str, Any], grouped: bool) -> dict[str, Tensor]:
    """A state dict of LitGPT's: q, k and v one under another, or ``grouped``, as until 2024-12, each group's together."""
    state = {renamed(name, not config.get("norm_1", True)): weight for name, weight in theirs.state_dict().items()}
    groups, per_group, size = config["n_query_groups"], config["n_head"] // config["n_query_groups"], config["head_size"]
    for name in list(state):
        if ".self_attn.q_proj." in name:
            each = [state.pop(name.replace("q_proj", f"{kind}_proj")) for kind in "qkv"]
            chunks = zip(*(weight.chunk(groups) for weight in each), strict=True)
            state[name.replace("self_attn.q_proj", "attn.attn")] = torch.cat([torch.cat(kinds) for kinds in chunks])
    for name in [] if grouped else list(state):
        if ".attn.attn." in name:
            weight = state.pop(name).unflatten(0, (groups, (per_group + 2) * size))
            each = weight.split([per_group * size, size, size], 1)
            state[name.replace("attn.attn", "attn.qkv")] = torch.cat([kind.flatten(0, 1) for kind in each])
    return state


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_in_either_layout_of_queries_keys_and_values(family: str, tmp_path: Path) -> None:
    changes, variations = FAMILIES[family]
    theirs = peaked(config_of(family, **changes))
    c = theirs.config
    config = {
        "block_size": 40, "n_layer": c.num_hidden_layers, "n_embd": c.hidden_size, "n_head": c.num_attention_heads,
        "n_query_groups": getattr(c, "num_key_value_heads", c.num_attention_heads), "vocab_size": 60, "padding_multiple": 64,
        "head_size": getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
        "intermediate_size": c.intermediate_size, "norm_eps": getattr(c, "rms_norm_eps", None) or c.layer_norm_eps,
    } | variations  # fmt: skip
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump(config))
    save_tokenizer(tmp_path, VOCAB)
    ids = torch.stack(ids_for(theirs.config, 40, 40))
    made: list[Architecture] = []
    for grouped in (False, True):
        state = converted(theirs, config, grouped)
        torch.save({"model": state, "step_count": 7} if grouped else state, tmp_path / "lit_model.pth")
        made.append(loaded(tmp_path))
    with torch.inference_mode():
        wanted = theirs(ids).logits
        assert wanted.std() > 1
        assert (made[0](ids) - wanted).abs().max() < TOLERANCE
    for one, other in zip(made[0].parameters(), made[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_norm_that_two_steps_share_stands_for_both(tmp_path: Path) -> None:
    state = torch.load(WRITTEN / "lit_model.pth", weights_only=True)
    once = {name: weight for name, weight in state.items() if ".norm_2." not in name}
    twice = once | {name.replace("norm_1", "norm_2"): weight for name, weight in once.items() if ".norm_1." in name}
    made = []
    for shared, weights in (True, once), (False, twice):
        written(tmp_path, parallel_residual=True, shared_attention_norm=shared)
        torch.save(weights, tmp_path / "lit_model.pth")
        made.append(loaded(tmp_path)(torch.arange(20)[None]))
    assert torch.equal(*made)


# -- what is not run, and what is damaged --------------------------------------------------------------------------------------


def read(**changes: Any) -> Any:
    def wrong(what: str) -> gptsweep.ModelError:
        return gptsweep.ModelError("model.path", "m", what)

    return LitGPT.config_from_hf(yaml.safe_load((WRITTEN / "model_config.yaml").read_text()) | changes, wrong)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scale_embeddings": True}, "scale_embeddings=True, but gptsweep supports only False"),
        ({"lm_head_bias": True}, "lm_head_bias=True"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0, but gptsweep supports only None"),
        ({"attention_logit_softcapping": 50.0}, "attention_logit_softcapping=50.0"),
        ({"attention_scores_scalar": 256}, "attention_scores_scalar=256, but gptsweep supports only the head size, 4"),
        ({"rope_local_base_freq": 1e4}, "rope_local_base_freq=10000.0"),
        ({"rope_indices": [0, 1]}, "rope_indices=[0, 1]"),
        ({"latent_attention": {"q_lora_rank": 8}}, "latent_attention={'q_lora_rank': 8}"),
        ({"mlp_class_name": "LLaMAMoE", "n_expert": 8}, "mlp_class_name='LLaMAMoE', but gptsweep supports only GptNeoxMLP"),
        ({"mlp_class_name": "GemmaMLP", "gelu_approximate": "sigmoid"}, "gelu_approximate='sigmoid'"),
        ({"norm_class_name": "Norm"}, "norm_class_name='Norm', but gptsweep supports only RMSNorm and LayerNorm"),
        ({"name": "Gemma-2b"}, "name='Gemma-2b', but gptsweep does not support Gemma"),
        ({"hf_config": {"name": "Gemma-2b"}, "name": ""}, "does not support Gemma"),
        ({"norm_qk_type": "other"}, "norm_qk_type='other', but gptsweep supports only default, olmo2"),
        ({"post_mlp_norm": True}, "post_mlp_norm=True, parallel_residual=False; gptsweep supports norms"),
        ({"shared_attention_norm": True}, "shared_attention_norm=True, without parallel_residual"),
        ({"rope_adjustments": {"factor": 2, "beta_fast": 32}}, "but gptsweep supports only factor, or factor, low_freq_factor"),
        ({"rope_adjustments": {"factor": 0}}, "in which factor is not a number above 0"),
        ({"rope_adjustments": {"factor": 2}, "rope_condense_ratio": 4}, "rope_condense_ratio=4, with rope_adjustments"),
        ({"rotary_percentage": 1.5}, "rotary_percentage=1.5, which is more than a whole head"),
        ({"rotary_percentage": 0.0}, "the rotary size is 0, but must be even, and from 2 to the head size, 4"),
        ({"rope_base": 0}, "rope_base=0, which is not a number above 0"),
        ({"sliding_window_size": 4, "sliding_window_layer_placing": "interleaved"}, "placing='interleaved'"),
        ({"sliding_window_size": 4, "sliding_window_layer_stride": 6}, "sliding_window_layer_stride=6"),
        ({"sliding_window_size": 4, "sliding_window_indices": [1]}, "sliding_window_indices=[1], which is not 0 or 1 for each"),
        ({"n_query_groups": 3}, "its model_config.yaml is invalid (n_head is 4, but must be a multiple of"),
        ({"intermediate_size": None}, "intermediate_size=None"),
        ({"n_layer": 10**9}, "n_layer=1000000000, which is not a whole number from 1 to 10,000"),
        ({"gated_attention": True}, "'gated_attention'=True, which is not a setting of any LitGPT that gptsweep knows"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_run_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    assert says in user_error(lambda: read(**changes))


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"padded_vocab_size": None, "vocab_size": 60, "padding_multiple": 64}, "vocab_size", 64),
        ({"head_size": None, "n_query_groups": None}, "n_kv_heads", 4),
        ({"sliding_window_size": 4, "sliding_window_indices": [0, 1, 1]}, "windows", (None, 4)),
        ({"sliding_window_indices": [0, 1]}, "windows", (None, None)),
        ({"mlp_class_name": "GptNeoxMLP", "intermediate_size": None}, "n_inner", 64),
        ({"attn_bias": True}, "qkv_bias", True),
        ({"name": "OLMo-1B-hf", "norm_class_name": "LayerNorm"}, "norm.weight", False),
        ({"rope_interleave": True}, "rotary.pairs", True),
        ({"rope_condense_ratio": 8}, "rotary.scaling.factor", 8.0),
        ({"attention_scores_scalar": 4}, "head_size", 4),
    ],
    ids=str,
)
def test_settings_mean_what_litgpt_means(changes: dict[str, Any], field: str, value: object) -> None:
    found = read(**changes)
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value


def error_of(call: Callable[[], object]) -> str:
    """The error of ``call``, or nothing."""
    try:
        call()
    except gptsweep.ModelError as error:
        return str(error)
    return ""


def assert_one_line(text: str) -> None:
    assert "\n" not in text
    assert len(text) < 1000


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
ANYTHING = st.recursive(
    LEAVES | st.sampled_from([1, 2, 4, 16, 2**31, "LayerNorm"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.just("factor"), inner, max_size=2),
    max_leaves=4,
)
KEYS = sorted(yaml.safe_load((WRITTEN / "model_config.yaml").read_text()))


@given(changes=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), ANYTHING, max_size=3))
@settings(max_examples=60)
def test_any_config_is_read_or_refused_in_one_line(changes: dict[str, Any]) -> None:
    assert_one_line(error_of(lambda: read(**changes)))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model_config.yaml", "a: &a [1]\nb: *a\n", "its model_config.yaml cannot be read (it has aliases)"),
        ("model_config.yaml", "- " * 5000, "its model_config.yaml cannot be read ("),
        ("model_config.yaml", "!!python/object/apply:os.mkdir [ran]", "its model_config.yaml cannot be read ("),
        ("model_config.yaml", "x" * (2 << 20), "it is larger than 1 MiB"),
        ("model_config.yaml", "text", "its model_config.yaml holds no named settings"),
        ("model_config.yaml", None, "there is no model_config.yaml, which describes the model, beside the weights"),
        ("lit_model.pth", None, "there is no lit_model.pth in this directory; give a checkpoint directory of LitGPT"),
        ("lit_model.pth", "", "lit_model.pth is empty"),
        ("tokenizer.json", None, "the directory has no tokenizer.json, or vocab.json with merges.txt"),
        ("tokenizer.json", "{", "its tokenizer.json cannot be read"),
        ("config.json", "{", "its config.json cannot be read"),
    ],
)
def test_a_missing_or_damaged_file_is_one_line(tmp_path: Path, name: str, content: str | None, says: str) -> None:
    written(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_text(content)
    assert says in user_error(lambda: open_checkpoint(source(tmp_path)))
    assert not (tmp_path / "ran").exists()


@given(cut=st.integers(0, 28_940), flipped=st.none() | st.tuples(st.integers(0, 28_940), st.integers(1, 255)))
@settings(max_examples=25)
def test_truncated_and_damaged_weights_are_one_line(tmp_path_factory: pytest.TempPathFactory, cut: int, flipped: Any) -> None:
    directory = written(tmp_path_factory.mktemp("m"))
    content = bytearray((WRITTEN / "lit_model.pth").read_bytes())
    if flipped is None:
        del content[cut:]
    else:
        content[flipped[0]] ^= flipped[1]
    (directory / "lit_model.pth").write_bytes(content)
    line = error_of(lambda: open_checkpoint(source(directory)))
    assert_one_line(line)
    assert line or flipped is not None, "a file that ends early is no checkpoint"


def test_a_directory_that_is_none_says_where_one_is(tmp_path: Path) -> None:
    written(tmp_path / "final")
    assert "there is one in final" in user_error(lambda: open_checkpoint(source(tmp_path)))
    assert "is a file, not a directory" in user_error(lambda: open_checkpoint(source(tmp_path / "final" / "lit_model.pth")))
    (tmp_path / "final" / "lit_model.pth").rename(tmp_path / "final" / "lit_model.pth.lora")
    assert "merge them: litgpt merge_lora" in user_error(lambda: open_checkpoint(source(tmp_path / "final")))


def test_a_sweep_over_steps_of_a_training_is_a_sweep_over_directories(run: Run) -> None:
    for step, scale in ("step-00000100", 0.5), ("step-00000200", 1.0):
        directory = written(Path("out") / step)
        state = torch.load(directory / "lit_model.pth", weights_only=True)
        torch.save(
            {"model": {name: weight * scale for name, weight in state.items()}, "step_count": 7}, directory / "lit_model.pth"
        )
    small = ("name=s", "quiet=true", "sampling.num_samples=2", "sampling.max_new_tokens=6", "start='\"#$'", "seed=1,2")
    ended = run("-m", "model=litgpt", "model.path=out/step-00000100,out/step-00000200", *small)
    assert ended.status == 0, ended.err
    found = gptsweep.read_sweep("outputs/sweeps/s")
    assert found.swept == ("path", "seed")
    assert len(samples_of(Path("outputs/sweeps/s"))) == 4
    lm = gptsweep.load("out/step-00000200", device="cpu")
    ids = [sample.token_ids for sample in lm.generate('"#$', num_samples=2, max_new_tokens=6, seed=2)]
    chosen = (found.summary["path"] == "out/step-00000200") & (found.summary["seed"] == 2)
    (point,) = found.summary.index[chosen]
    assert [tuple(made) for made in found.samples[found.samples["point"] == point]["token_ids"]] == ids
