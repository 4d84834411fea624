"""Models on disk for the tests: nanoGPT's ``ckpt.pt`` and directories of the Hugging Face kind, tiny and random."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gptsweep.models.files.byte_pairs import byte_alphabet
from gptsweep.models.gpt2 import GPT, GPTConfig
from gptsweep.models.linear import can_pack

TINY = GPTConfig(block_size=7, vocab_size=11, n_layer=2, n_head=2, n_embd=6)


def need_packed(dtype: str) -> None:
    """Skip the test if this CPU has no packed layers of ``dtype``, without which there is no batch invariance."""
    if not can_pack(getattr(torch, dtype)):
        pytest.skip(f"no packed {dtype} layers for this CPU")


def random_gpt(config: GPTConfig = TINY, seed: int = 0) -> GPT:
    """A GPT whose parameters, including biases, are all drawn from a normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT(config)
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.3, generator=generator)
    return model


def nanogpt_contents(model: GPT, *, prefix: str = "", dataset: str | None = None) -> dict[str, Any]:
    """What nanoGPT's train.py saves: the model, AdamW's state after one step, arguments and settings."""
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    c = model.config
    sizes = {name: getattr(c, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size")}
    return {
        "model": {prefix + name: tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": sizes | {"dropout": 0.0},
        "iter_num": 5000,
        "best_val_loss": torch.tensor(1.47),
        "config": {"out_dir": "out", "learning_rate": 6e-4, "compile": True} | ({"dataset": dataset} if dataset else {}),
    }


def save_nanogpt(out_dir: Path, model: GPT, **settings: Any) -> Path:
    out_dir.mkdir(parents=True, exist_ok=True)
    torch.save(nanogpt_contents(model, **settings), out_dir / "ckpt.pt")
    return out_dir


def save_meta(path: Path, characters: str) -> Path:
    """``meta.pkl`` as nanoGPT's prepare.py for shakespeare_char writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    itos = dict(enumerate(characters))
    path.write_bytes(pickle.dumps({"vocab_size": len(itos), "itos": itos, "stoi": {c: i for i, c in itos.items()}}))
    return path


def hf_settings(config: GPTConfig) -> dict[str, Any]:
    """A GPT-2 ``config.json``."""
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": config.n_inner,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "eos_token_id": 50256,
    }


def hf_weights(model: GPT) -> dict[str, Tensor]:
    """Weights under the names, and in the ``[in, out]`` layout, of OpenAI's GPT-2 on the hub."""
    return {
        name.removeprefix("transformer."): (p.t() if re.search(r"\.c_(attn|proj|fc)\.weight$", name) else p)
        .detach()
        .contiguous()
        for name, p in model.named_parameters()
    }


def save_hf(directory: Path, model: GPT, **changes: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    save_file(hf_weights(model), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(hf_settings(model.config) | changes))
    return directory


def save_llama(directory: Path, seed: int = 0) -> Path:
    """A tiny Llama under the names that transformers gives, with a token for each byte."""
    directory.mkdir(parents=True, exist_ok=True)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24, "vocab_size": 256}
    config = {"model_type": "llama", "num_hidden_layers": 1, "max_position_embeddings": 64, "tie_word_embeddings": True}
    (directory / "config.json").write_text(json.dumps(sizes | config))
    shapes = {
        "embed_tokens": (256, 16), "norm": (16,), "layers.0.input_layernorm": (16,), "layers.0.post_attention_layernorm": (16,),
        "layers.0.self_attn.q_proj": (16, 16), "layers.0.self_attn.k_proj": (8, 16), "layers.0.self_attn.v_proj": (8, 16),
        "layers.0.self_attn.o_proj": (16, 16), "layers.0.mlp.gate_proj": (24, 16), "layers.0.mlp.up_proj": (24, 16),
        "layers.0.mlp.down_proj": (16, 24),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    weights = {f"model.{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    model = {"type": "BPE", "vocab": byte_alphabet(), "merges": []}
    (directory / "tokenizer.json").write_text(json.dumps({"model": model, "pre_tokenizer": level, "decoder": level}))
    return directory


def save_embedded(directory: Path, model: GPT, characters: list[str]) -> Path:
    """Write a model in the format of the one in the package."""
    directory.mkdir(parents=True, exist_ok=True)
    metadata = {"config": json.dumps(hf_settings(model.config))}
    save_file(hf_weights(model), directory / "model.safetensors", metadata=metadata)
    (directory / "vocab.json").write_text(json.dumps(characters))
    return directory
