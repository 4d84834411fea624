"""What a user would lose: logits that are GPT-2's, from `forward()` and from the engine's cache alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import plain
import pytest
import torch
from model_files import hf_weights, need_packed
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from gptsweep.engine.attention import AttentionMetadata, paged_attention, paged_attention_by_kernels
from gptsweep.engine.kv_cache import KVCache, Span
from gptsweep.kernels import runtime as kernels
from gptsweep.models.architecture import Architecture, Config
from gptsweep.models.gpt2 import GPT, GPTConfig
from gptsweep.models.linear import pack

TOLERANCE = 1e-4
ODD_SHAPES = [
    GPTConfig(block_size=40, vocab_size=65, n_layer=2, n_head=3, n_embd=33, activation="gelu"),
    GPTConfig(block_size=17, vocab_size=101, n_layer=3, n_head=1, n_embd=20, n_inner=50, activation="gelu_tanh"),
    GPTConfig(block_size=64, vocab_size=299, n_layer=2, n_head=8, n_embd=64, activation="gelu_tanh", layer_norm_epsilon=1e-3),
    GPTConfig(block_size=33, vocab_size=7, n_layer=1, n_head=4, n_embd=28, activation="gelu", tied_head=False),
]
GPT2 = GPTConfig(activation="gelu_tanh")


def reference(model: GPT) -> GPT2LMHeadModel:
    """transformers' GPT-2 with the weights of ``model``."""
    c = model.config
    config = GPT2Config(
        vocab_size=c.vocab_size, n_positions=c.block_size, n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd,
        n_inner=c.n_inner, layer_norm_epsilon=c.layer_norm_epsilon, tie_word_embeddings=c.tied_head,
        activation_function="gelu_new" if c.activation == "gelu_tanh" else "gelu", attn_implementation="eager",
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config).eval()
    weights = {name if name == "lm_head.weight" else f"transformer.{name}": w for name, w in hf_weights(model).items()}
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if c.tied_head else set())
    return theirs


def ids_for(config: Config, *lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(config.vocab_size, (n,), generator=generator) for n in lengths]


def whole(_cache: KVCache, sequences: list[Tensor]) -> list[list[Span]]:
    """All of every sequence in one pass."""
    return [[Span(table, 0, len(ids)) for table, ids in enumerate(sequences)]]


def one_at_a_time(_cache: KVCache, sequences: list[Tensor]) -> list[list[Span]]:
    """A token of every sequence in each pass, as long as it has one."""
    longest = max(map(len, sequences))
    return [[Span(table, at, at + 1) for table, ids in enumerate(sequences) if at < len(ids)] for at in range(longest)]


def in_pieces(_cache: KVCache, sequences: list[Tensor]) -> list[list[Span]]:
    """Pieces of uneven length, so that prompts are read across several passes."""
    passes = []
    for begin in range(0, max(map(len, sequences)), 7):
        passes.append([Span(table, begin, min(begin + 7, len(ids))) for table, ids in enumerate(sequences) if begin < len(ids)])
    return passes


@torch.inference_mode()
def cached_logits(
    model: Architecture, sequences: list[Tensor], passes: Callable[..., list[list[Span]]], use_kernels: bool
) -> list[dict[int, Tensor]]:
    """Logits by position, of the last token of every span, for every sequence."""
    cache = KVCache(
        model,
        n_positions=model.block_size,
        n_pages=64,
        n_block_tables=len(sequences),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    store, attend = (kernels.Kernel(name, torch.float32) for name in ("store", "attend"))
    found: list[dict[int, Tensor]] = [{} for _ in sequences]
    for spans in passes(cache, sequences):
        cache.extend(spans)
        metadata = AttentionMetadata.of(spans)
        how = paged_attention_by_kernels(cache, metadata, store, attend) if use_kernels else paged_attention(cache, metadata)
        ids = torch.cat([sequences[span.block_table][span.begin : span.end] for span in spans])
        hidden = model.hidden(ids, torch.from_numpy(metadata.positions), how, torch.from_numpy(metadata.kept))
        for span, logits in zip(spans, model.logits(hidden), strict=True):
            found[span.block_table][span.end - 1] = logits
    return found


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("config", ODD_SHAPES, ids=lambda config: f"{config.n_layer}x{config.n_head}x{config.n_embd}")
@torch.inference_mode()
def test_forward_gives_transformers_logits(config: GPTConfig, packed: bool) -> None:
    model = plain.peaked_gpt(config)
    ids = torch.stack(ids_for(config, *[config.block_size] * 3))
    wanted = reference(model)(ids).logits
    if packed:
        pack(model)
    assert wanted.std() > 1
    assert (model(ids) - wanted).abs().max() < TOLERANCE


@pytest.mark.parametrize("use_kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("config", ODD_SHAPES, ids=lambda config: f"{config.n_layer}x{config.n_head}x{config.n_embd}")
def test_the_cached_path_gives_transformers_logits(config: GPTConfig, packed: bool, use_kernels: bool) -> None:
    model = plain.peaked_gpt(config)
    sequences = ids_for(config, config.block_size, 1, 16, 9, config.block_size - 1)
    with torch.inference_mode():
        theirs = reference(model)
        wanted = [theirs(ids[None]).logits[0] for ids in sequences]
    if packed:
        pack(model)
    for passes in (whole, one_at_a_time, in_pieces):
        for ids, logits, right in zip(sequences, cached_logits(model, sequences, passes, use_kernels), wanted, strict=True):
            assert len(ids) - 1 in logits
            for position, ours in logits.items():
                assert (ours - right[position]).abs().max() < TOLERANCE


def test_gpt2s_own_shape_gives_transformers_logits() -> None:
    model = GPT(GPT2).initialise(torch.Generator().manual_seed(0)).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        # A trained GPT-2's logits spread over some units; fresh weights' do not.
        parameter.mul_(8 if name.endswith("ln_f.weight") else 2 if parameter.dim() > 1 and ".h." in name else 1)
    sequences = ids_for(GPT2, 18, 5)
    with torch.inference_mode():
        theirs = reference(model)
        wanted = [theirs(ids[None]).logits[0] for ids in sequences]
        del theirs
        assert wanted[0].std() > 1
        assert (model(sequences[0][None])[0] - wanted[0]).abs().max() < TOLERANCE
        pack(model)
        assert (model(sequences[0][None])[0] - wanted[0]).abs().max() < TOLERANCE
    for use_kernels in (True, False):
        for logits, right in zip(cached_logits(model, sequences, in_pieces, use_kernels), wanted, strict=True):
            for position, ours in logits.items():
                assert (ours - right[position]).abs().max() < TOLERANCE


@torch.inference_mode()
def test_bfloat16_stays_near_float32() -> None:
    need_packed("bfloat16")
    config = ODD_SHAPES[2]
    ids = torch.stack(ids_for(config, 30, 30))
    wanted = plain.peaked_gpt(config)(ids)
    model = plain.peaked_gpt(config, dtype=torch.bfloat16)
    pack(model)
    got = model(ids)
    assert got.dtype == torch.bfloat16
    assert (got.float() - wanted).pow(2).mean().sqrt() < 0.05 * wanted.std()


def test_a_fork_shares_pages_until_one_of_the_two_writes() -> None:
    config = GPTConfig(block_size=64, vocab_size=65, n_layer=1, n_head=1, n_embd=4)
    cache = KVCache(config, n_positions=64, n_pages=8, n_block_tables=3, dtype=torch.float32, device=torch.device("cpu"))
    cache.extend([Span(0, 0, 20)])
    cache.keys[:, cache.block_tables[0, 1]] = 5.0
    cache.fork(0, 1, 20)
    assert cache.free_pages == 6
    assert (cache.block_tables[0, :2] == cache.block_tables[1, :2]).all()
    cache.extend([Span(1, 20, 21)])
    assert cache.free_pages == 5
    assert cache.block_tables[0, 0] == cache.block_tables[1, 0]
    assert cache.block_tables[0, 1] != cache.block_tables[1, 1]
    assert (cache.keys[:, cache.block_tables[1, 1]] == 5.0).all()
    cache.release(0)
    cache.release(1)
    assert cache.free_pages == 8


def test_too_long_a_row_of_ids_is_reported() -> None:
    config = ODD_SHAPES[0]
    with pytest.raises(ValueError, match="ids has 41 tokens a row, more than the model's block_size, 40"):
        plain.peaked_gpt(config)(torch.zeros(1, 41, dtype=torch.long))


def test_the_places_of_a_pass_are_counted_token_by_token() -> None:
    metadata = AttentionMetadata.of([Span(2, 0, 3), Span(0, 7, 8), Span(1, 5, 7)])
    assert np.array_equal(metadata.block_tables, [2, 2, 2, 0, 1, 1])
    assert np.array_equal(metadata.positions, [0, 1, 2, 7, 5, 6])
    assert np.array_equal(metadata.kept, [2, 3, 5])
