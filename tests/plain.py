"""Plain twins of the engine's fast paths: slow, one row and one token at a time, and easy to verify by reading.

Nothing here calls the engine, its kernels or its sampling. Only the model's `forward` is shared, and test_model.py compares it
with transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptsweep.models.architecture import Architecture
from gptsweep.models.decoder import Decoder, DecoderConfig
from gptsweep.models.gpt2 import GPT, GPTConfig
from gptsweep.models.llama import Llama
from gptsweep.records import Row, Sampling

A = TypeVar("A", bound=Architecture)

UNDECIDED = 1e-4
"""Between tokens whose scores differ by less than this, rounding decides, and the twin rounds in another order."""


def peaked_gpt(config: GPTConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> GPT:
    """A random model with peaked distributions like those of a trained one; every parameter is random."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT(config).initialise(generator).requires_grad_(False)
    _make_peaked(model, model.transformer.ln_f.weight, generator)
    return in_dtype(model, dtype).eval()


def peaked_decoder(config: DecoderConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> Decoder:
    """The same as `peaked_gpt`, for a decoder; its family matters only for files."""
    generator = torch.Generator().manual_seed(seed)
    model = Llama(config).initialise(generator).requires_grad_(False)
    assert model.norm.weight is not None
    _make_peaked(model, model.norm.weight, generator)
    return in_dtype(model, dtype).eval()


def _make_peaked(model: nn.Module, last_norm: Tensor, generator: torch.Generator) -> None:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(5)
        else:
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=generator))
    # Logits with a standard deviation of about 3.
    last_norm.mul_(30 / math.sqrt(len(last_norm)))


def in_dtype(model: A, dtype: torch.dtype) -> A:
    """``model`` with its parameters in ``dtype``, except for those of layer norms, as in a loaded model."""
    for name, parameter in model.named_parameters():
        if not model.stays_float32(name):
            parameter.data = parameter.data.to(dtype)
    return model


# -- nanoGPT -----------------------------------------------------------------------------------------------------------------


def draw_first_weights(config: GPTConfig) -> None:
    """Consume torch's global random stream as building nanoGPT's model does: each layer's own weights, then the model's."""
    wte, wpe = nn.Embedding(config.vocab_size, config.n_embd), nn.Embedding(config.block_size, config.n_embd)
    layers: list[nn.Linear] = []
    residual: list[nn.Linear] = []
    n = config.n_embd
    for _ in range(config.n_layer):
        c_attn, attn_proj = nn.Linear(n, 3 * n, bias=config.bias), nn.Linear(n, n, bias=config.bias)
        c_fc, mlp_proj = nn.Linear(n, 4 * n, bias=config.bias), nn.Linear(4 * n, n, bias=config.bias)
        layers += [c_attn, attn_proj, c_fc, mlp_proj]
        residual += [attn_proj, mlp_proj]
    head = nn.Linear(n, config.vocab_size, bias=False)
    for module in (wte, wpe, *layers, head, *residual):
        nn.init.normal_(module.weight, mean=0.0, std=0.02)


@torch.no_grad()
def nanogpt_generate(model: GPT, idx: Tensor, max_new_tokens: int, temperature: float, top_k: int | None) -> Tensor:
    """nanoGPT's ``GPT.generate``: reads the whole cropped context for every token, and draws from torch's global stream."""
    for _ in range(max_new_tokens):
        logits = model(idx[:, -model.config.block_size :])[:, -1, :] / temperature
        if top_k is not None:
            kth = torch.topk(logits, min(top_k, logits.size(-1))).values[:, [-1]]
            logits[logits < kth] = -float("inf")
        idx = torch.cat((idx, torch.multinomial(F.softmax(logits, dim=-1), num_samples=1)), dim=1)
    return idx


def nanogpt_sample(
    model: GPT, start: Sequence[int], *, num_samples: int, max_new_tokens: int, temperature: float, top_k: int | None, seed: int
) -> list[list[int]]:
    """nanoGPT's ``sample.py``: seeds once, then generates one sample after another. Returns the new ids of each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draw_first_weights(model.config)
        x = torch.tensor([list(start)])
        return [
            nanogpt_generate(model, x, max_new_tokens, temperature, top_k)[0, len(start) :].tolist() for _ in range(num_samples)
        ]


# -- linear layers -----------------------------------------------------------------------------------------------------------


def bfloat16_product(x: Tensor, weight: Tensor, bias: Tensor, together: int) -> Tensor:
    """``x @ weight.T + bias`` in oneDNN's order: pair by pair, in runs, rounded to float32 after each product.

    A product of two bfloat16 numbers and its sum with a float32 of similar size are exact in float64, so each is rounded once.
    """
    total = torch.zeros(len(x), len(weight))
    for run in range(0, x.shape[1], together):
        inputs = range(run, min(run + together, x.shape[1]))
        part = torch.zeros_like(total)
        for first in inputs[::2]:
            for i in (first + 1, first):
                part = (part.double() + x[:, i, None].double() * weight[:, i].double()).float()
        total += part
    return (total + bias.float()).bfloat16()


def float_product(x: Tensor, weight: Tensor, bias: Tensor, together: int) -> Tensor:
    """``x @ weight.T + bias`` in float32 in oneDNN's order: in runs, rounded once after each product is added.

    For numbers with the precision of bfloat16, as in `bfloat16_product`.
    """
    total = torch.zeros(len(x), len(weight))
    for run in range(0, x.shape[1], together):
        part = torch.zeros_like(total)
        for i in range(run, min(run + together, x.shape[1])):
            part = (part.double() + x[:, i, None].double() * weight[:, i].double()).float()
        total += part
    return total + bias


def int8_sums(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """``int64 [rows, n_out]``, the products of int8 ``weight`` with rows of ``x`` quantised to int8, and each row's scale."""
    greatest = x.abs().amax(1, keepdim=True)
    quantised = (x * (127 / greatest)).round()
    return (quantised.double() @ weight.double().T).long(), greatest / 127  # exact in float64, and faster than in int64


# -- counter noise -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 18)
def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 in Python's own integers (Salmon, Moraes, Dror, Shaw, SC'11)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 % 2**32,
            (product0 >> 32) ^ c3 ^ k1,
            product0 % 2**32,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def gumbel(token: int, *, noise_key: int, position: int, sample_index: int, prompt_index: int) -> float:
    """The noise of one token: the formula of docs/identical.md."""
    counter = (token // 4, position, sample_index, prompt_index)
    word = philox4x32(counter, (noise_key % 2**32, noise_key // 2**32))[token % 4]
    return -math.log(-math.log((word + 0.5) / 2**32))


# -- the distribution sampled from -------------------------------------------------------------------------------------------


def edited(logits: Sequence[float], sampling: Sampling, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> list[float]:
    """Logits after logit_bias (OpenAI), repetition penalty (Keskar et al. 2019), frequency and presence penalty (OpenAI)."""
    x = list(logits)
    for token, addend in sampling.logit_bias:
        x[token] += addend
    for token in {*prompt_ids, *new_ids}:
        x[token] = x[token] * sampling.repetition_penalty if x[token] < 0 else x[token] / sampling.repetition_penalty
    for token in set(new_ids):
        x[token] -= sampling.frequency_penalty * new_ids.count(token) + sampling.presence_penalty
    return x


def probabilities(x: Sequence[float], sampling: Sampling) -> dict[int, float]:
    """The probabilities of the tokens that temperature, top_k, top_p and min_p leave, by id."""
    if sampling.temperature == 0:
        return {max(range(len(x)), key=lambda token: (x[token], -token)): 1.0}
    kept = {token: value / sampling.temperature for token, value in enumerate(x)}
    if sampling.top_k is not None and sampling.top_k < len(kept):
        kth = sorted(kept.values(), reverse=True)[sampling.top_k - 1]
        kept = {token: value for token, value in kept.items() if value >= kth}
    if sampling.top_p is not None:
        # Weights, not probabilities: those of equal logits are 1, so a mass of exactly top_p is reached exactly.
        greatest, mass, nucleus = max(kept.values()), 0.0, {}
        weights = {token: math.exp(value - greatest) for token, value in kept.items()}
        for token in sorted(kept, key=lambda token: (-kept[token], token)):
            if mass < sampling.top_p * math.fsum(weights.values()):
                nucleus[token] = kept[token]
            mass += weights[token]
        kept = nucleus
    if sampling.min_p is not None:
        p = softmax(kept)
        kept = {token: value for token, value in kept.items() if p[token] >= sampling.min_p * max(p.values())}
    return softmax(kept)


def softmax(logits: dict[int, float]) -> dict[int, float]:
    """The softmax of logits, by id."""
    greatest = max(logits.values())
    total = sum(math.exp(value - greatest) for value in logits.values())
    return {token: math.exp(value - greatest) / total for token, value in logits.items()}


# -- decoding ----------------------------------------------------------------------------------------------------------------


@dataclass
class Twin:
    """The expected result of a row. ``margins`` is by how much each token's score exceeds the next best."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    margins: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampler_logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)


@torch.no_grad()
def decode(model: GPT | Decoder, row: Row, vocab_size: int, stopped: Callable[[list[int]], bool] = lambda _ids: False) -> Twin:
    """Decode one row with counter-based noise, computing everything anew for every token.

    ``stopped`` is called with all new ids after each token, and returns whether they contain a stop string.
    """
    sampling, block_size, twin = row.sampling, model.config.block_size, Twin()
    half = max(1, block_size // 2)
    context = list(row.prompt_ids)
    if len(context) > block_size and sampling.overflow != "extend":
        context = context[-half:] if sampling.overflow == "rebase" else context[-block_size:]
    while not twin.finish_reason:
        logits = model(torch.tensor([context]))[0, -1, :vocab_size].double()
        x = edited(logits.tolist(), sampling, row.prompt_ids, twin.token_ids)
        p = probabilities(x, sampling)
        noisy = {
            token: math.log(p[token]) + gumbel(token, noise_key=row.noise_key, position=len(twin.token_ids),
                                               sample_index=row.sample_index, prompt_index=row.prompt_index)
            for token in p if p[token] > 0
        }  # fmt: skip
        token = max(noisy, key=lambda token: (noisy[token], -token))
        # A greedy row compares the logits themselves.
        scores = sorted(noisy.values() if sampling.temperature else x, reverse=True)
        twin.margins.append(scores[0] - scores[1] if len(scores) > 1 else math.inf)
        logprobs = logits.log_softmax(-1)
        twin.token_ids.append(token)
        twin.logprobs.append(float(logprobs[token]))
        twin.sampler_logprobs.append(math.log(p[token]))
        twin.entropies.append(float(-(logprobs.exp() * logprobs).sum()))
        if sampling.stop_at_eot and token in row.end_tokens:
            twin.finish_reason = "eot"
        elif stopped(twin.token_ids):
            twin.finish_reason = "stop"
        elif len(twin.token_ids) == sampling.max_new_tokens:
            twin.finish_reason = "length"
        elif len(context) < block_size or sampling.overflow == "extend":
            context.append(token)
        elif sampling.overflow == "crop":
            context = [*context[1:], token]
        elif sampling.overflow == "rebase":
            context = [*context, token][-half:]
        else:
            twin.finish_reason = "overflow"
    return twin
