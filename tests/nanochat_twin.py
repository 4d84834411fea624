"""A plain twin of nanochat: tiny random checkpoints as its code of each era writes them, and the logits that it computes.

The twin reads the file's own weights, one layer after another, with none of the package's layers.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiktoken
import torch
from torch import Tensor
from torch.nn import functional as F

DATA = Path(__file__).parent / "data" / "nanochat"
"""Checkpoints that nanochat's own code of four eras wrote, with the logits that it computed."""

PATTERN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
SPECIAL = (
    "<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>", "<|python_start|>",
    "<|python_end|>", "<|output_start|>", "<|output_end|>",
)  # fmt: skip
SHAPE = {"sequence_len": 300, "vocab_size": 268, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 64}

CONSTANTS: dict[str, dict[str, Any]] = {
    "A": {"softcap": 15, "base": 10_000, "rounded": True, "sharp": 1.0},
    "B": {"softcap": 15, "base": 10_000, "rounded": True, "sharp": 1.0, "short": lambda n: n // 2},
    "C": {"softcap": 15, "base": 10_000, "rounded": True, "sharp": 1.0, "short": lambda n: n // 2, "gate": (2, 32)},
    "D": {"softcap": 20, "base": 10_000, "rounded": True, "sharp": 1.0, "short": lambda n: n // 2, "gate": (2, 32)},
    "E": {"softcap": 15, "base": 100_000, "rounded": False, "sharp": 1.15, "short": lambda n: -(-n // 3 // 128) * 128,
          "gate": (3, 12)},
    "F": {"softcap": 15, "base": 100_000, "rounded": False, "sharp": 1.2, "short": lambda n: -(-n // 4 // 128) * 128,
          "gate": (3, 12)},
}  # fmt: skip
"""By era: as nanochat's ``gpt.py`` has them at commits 3a5e0bc, fbc1484, e85db6b, aba30cb, 6ed7d1d and a825e63."""


def random_weights(era: str, shape: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
    """A state dict as nanochat of that era saves it, with peaked distributions."""
    generator = torch.Generator().manual_seed(seed)
    layers, width, heads = shape["n_layer"], shape["n_embd"], shape["n_head"]
    kv = shape["n_kv_head"] * (width // heads)
    rows = shape["vocab_size"] if era == "A" else -(-shape["vocab_size"] // 64) * 64

    def draw(*size: int, deviation: float) -> Tensor:
        return torch.empty(size).normal_(0, deviation, generator=generator)

    def embedding(columns: int, deviation: float) -> Tensor:
        return draw(rows, columns, deviation=deviation).bfloat16()

    weights = {"transformer.wte.weight": embedding(width, 1.0), "lm_head.weight": draw(rows, width, deviation=0.4)}
    for layer in range(layers):
        name = f"transformer.h.{layer}."
        sizes = {"attn.c_q": width, "attn.c_k": kv, "attn.c_v": kv, "attn.c_proj": width, "mlp.c_fc": 4 * width}
        for part, size in sizes.items():
            weights[f"{name}{part}.weight"] = draw(size, width, deviation=width**-0.5)
        weights[f"{name}mlp.c_proj.weight"] = draw(width, 4 * width, deviation=0.5 * width**-0.5)
        if "gate" in CONSTANTS[era] and layer % 2 == (layers - 1) % 2:
            weights[f"{name}attn.ve_gate.weight"] = draw(shape["n_kv_head"], CONSTANTS[era]["gate"][1], deviation=0.3)
            weights[f"value_embeds.{layer}.weight"] = embedding(kv, 0.7)
    if era != "A":
        weights["resid_lambdas"] = 1 + draw(layers, deviation=0.2)
        weights["x0_lambdas"] = draw(layers, deviation=0.3)
    if era == "F":
        weights["smear_gate.weight"] = draw(1, 24, deviation=0.5)
        weights["smear_lambda"] = draw(1, deviation=1.0)
        weights["backout_lambda"] = draw(1, deviation=0.3)
    return weights


def save_tokenizer(directory: Path) -> Path:
    """A ``tokenizer.pkl`` of `SHAPE`'s vocabulary: the bytes, three merges, the special tokens."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"the": 257, b" r": 258}
    special = {text: len(ranks) + place for place, text in enumerate(SPECIAL)}
    encoding = tiktoken.Encoding("rustbpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    return directory / "tokenizer.pkl"


def save_nanochat(
    directory: Path, weights: Mapping[str, Tensor], shape: Mapping[str, Any], step: int = 100, prefix: str = ""
) -> Path:
    """Write a checkpoint in nanochat's directory layout, with the tokenizer beside the parent of the checkpoints."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.save({prefix + name: weight for name, weight in weights.items()}, directory / f"model_{step:06d}.pt")
    meta = {"step": step, "val_bpb": 1.0, "model_config": dict(shape), "user_config": {"depth": shape["n_layer"]}}
    (directory / f"meta_{step:06d}.json").write_text(json.dumps(meta, indent=2))
    save_tokenizer(directory.parent.parent / "tokenizer")
    return directory


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()


def rotated(heads: Tensor, base: float, rounded: bool) -> Tensor:
    """Queries or keys ``[time, heads, head_size]``, each rotated by minus its position's angles."""
    time, _, size = heads.shape
    frequencies = 1.0 / (base ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    angles = torch.outer(torch.arange(time, dtype=torch.float32), frequencies)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    if rounded:
        cos, sin = cos.bfloat16().float(), sin.bfloat16().float()
    a, b = heads[..., : size // 2], heads[..., size // 2 :]
    return torch.cat([a * cos + b * sin, a * -sin + b * cos], -1)


@torch.no_grad()
def twin_logits(weights: Mapping[str, Tensor], shape: Mapping[str, Any], era: str, ids: list[int]) -> Tensor:
    """The logits ``float32 [time, vocab_size]`` that nanochat's code of that era computes for one row of ids."""
    constants, n_layer = CONSTANTS[era], shape["n_layer"]
    n_head, n_kv, size = shape["n_head"], shape["n_kv_head"], shape["n_embd"] // shape["n_head"]
    w = {name: weight.float() for name, weight in weights.items()}
    tokens, places = torch.tensor(ids), torch.arange(len(ids))
    distance = places[:, None] - places
    pattern = shape.get("window_pattern")
    x = rms(w["transformer.wte.weight"][tokens])
    if era == "F":
        gate = w["smear_lambda"] * torch.sigmoid(x[1:, :24] @ w["smear_gate.weight"].T)
        x = torch.cat([x[:1], x[1:] + gate * x[:-1]])
    start, middle = x, None
    for layer in range(n_layer):
        part = {name.removeprefix(f"transformer.h.{layer}."): weight for name, weight in w.items()}
        if era != "A":
            x = w["resid_lambdas"][layer] * x + w["x0_lambdas"][layer] * start
        inside = rms(x)
        q = (inside @ part["attn.c_q.weight"].T).view(-1, n_head, size)
        k = (inside @ part["attn.c_k.weight"].T).view(-1, n_kv, size)
        v = (inside @ part["attn.c_v.weight"].T).view(-1, n_kv, size)
        if f"value_embeds.{layer}.weight" in w:
            most, channels = constants["gate"]
            gate = most * torch.sigmoid(inside[:, :channels] @ part["attn.ve_gate.weight"].T)
            v = v + gate[:, :, None] * w[f"value_embeds.{layer}.weight"][tokens].view(-1, n_kv, size)
        q, k = (constants["sharp"] * rms(rotated(each, constants["base"], constants["rounded"])) for each in (q, k))
        k, v = (each.repeat_interleave(n_head // n_kv, 1) for each in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / size**0.5
        seen = distance >= 0
        if pattern is not None:
            is_short = pattern[layer % len(pattern)] == "S" and layer < n_layer - 1
            seen &= distance <= (constants["short"](shape["sequence_len"]) if is_short else shape["sequence_len"])
        mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
        x = x + mixed.flatten(1) @ part["attn.c_proj.weight"].T
        x = x + F.relu(rms(x) @ part["mlp.c_fc.weight"].T).square() @ part["mlp.c_proj.weight"].T
        if era == "F" and layer == n_layer // 2:
            middle = x
    if middle is not None:
        x = x - w["backout_lambda"] * middle
    logits = rms(x) @ w["lm_head.weight"].T
    capped: Tensor = constants["softcap"] * torch.tanh(logits[:, : shape["vocab_size"]] / constants["softcap"])
    return capped
