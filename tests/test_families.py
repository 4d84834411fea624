"""What a user would lose: the logits of the models that people download, from `forward()` and from the cache alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_model import cached_logits, ids_for, in_pieces, one_at_a_time, whole
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig

from gptsweep.engine.engine import Engine
from gptsweep.models.architecture import Architecture
from gptsweep.models.loading import LoadedModel, load_model
from gptsweep.records import DeviceSettings, ModelSource, Row, Sampling

TOLERANCE = 1e-4
VOCAB = 64
SIZES = {"vocab_size": VOCAB, "max_position_embeddings": 40, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


def llama(**changes: Any) -> PretrainedConfig:
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 40}
    return LlamaConfig(**{**SIZES, **sizes, **changes})


SHAPES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": llama,
    "llama-one-kv-head-tied": lambda: llama(num_key_value_heads=1, tie_word_embeddings=True),
    "llama-two-kv-heads-of-80": lambda: llama(num_key_value_heads=2, head_dim=80, rms_norm_eps=1e-3),
    "llama3-biases": lambda: llama(num_key_value_heads=2, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True),
    "llama-linear": lambda: llama(rope_parameters={"rope_type": "linear", "factor": 2.5, "rope_theta": 1000.0}),
}


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
    theirs = peaked(SHAPES[request.param]())
    return theirs, loaded(saved(tmp_path_factory.mktemp("model"), theirs)).model


@torch.inference_mode()
def test_forward_gives_transformers_logits(both: tuple[nn.Module, Architecture]) -> None:
    theirs, ours = both
    ids = torch.stack(ids_for(ours.config, 40, 40, 40))
    wanted = theirs(ids).logits
    assert wanted.std() > 1
    assert (ours(ids) - wanted).abs().max() < TOLERANCE


@pytest.mark.parametrize("passes", [whole, one_at_a_time, in_pieces])
def test_the_cached_path_gives_transformers_logits(both: tuple[nn.Module, Architecture], passes: Any) -> None:
    theirs, ours = both
    sequences = ids_for(ours.config, 40, 1, 16, 9, 39)
    ours.reserve(40)
    with torch.inference_mode():
        wanted = [theirs(ids[None]).logits[0] for ids in sequences]
    for ids, logits, right in zip(sequences, cached_logits(ours, sequences, passes, use_kernels=False), wanted, strict=True):
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


def test_greedy_tokens_are_transformers_over_200_steps(tmp_path: Path) -> None:
    theirs = peaked(llama(max_position_embeddings=256, num_key_value_heads=2))
    model = loaded(saved(tmp_path, theirs)).model
    prompts = [tuple(ids.tolist()) for ids in ids_for(model.config, 17, 3)]
    sampling = Sampling(max_new_tokens=200, temperature=0.0)
    rows = [Row(prompt_ids=prompt, sampling=sampling, noise_key=0, prompt_index=i) for i, prompt in enumerate(prompts)]
    for completion in Engine(model, vocab_size=VOCAB).run(rows):
        tokens, margins = greedy(theirs, completion.row.prompt_ids, 200)
        pairs = zip(completion.token_ids, tokens, strict=True)
        first = next((i for i, (made, wanted) in enumerate(pairs) if made != wanted), None)
        assert first is None or margins[first] < 1e-4
