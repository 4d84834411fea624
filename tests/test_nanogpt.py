"""What a user would lose: the right to believe that this samples as nanoGPT does."""

from __future__ import annotations

import pytest
import torch
from plain import draw_first_weights, nanogpt_sample, peaked_gpt

from gptsweep.engine.engine import Engine
from gptsweep.models.gpt2 import GPTConfig
from gptsweep.models.linear import pack
from gptsweep.models.nanogpt_stream import nanogpt_stream
from gptsweep.records import Row, Sampling

CONFIG = GPTConfig(block_size=64, vocab_size=65, n_layer=2, n_head=2, n_embd=32)


def torch_rows(sampling: Sampling, prompt_ids: tuple[int, ...], seed: int) -> list[Row]:
    return [Row(prompt_ids=prompt_ids, sampling=sampling, noise_key=seed, sample_index=i) for i in range(sampling.num_samples)]


def ids_in_order(engine: Engine, rows: list[Row]) -> list[list[int]]:
    completions = sorted(engine.run(rows), key=lambda completion: completion.row.sample_index)
    return [list(completion.token_ids) for completion in completions]


def test_ten_samples_are_nanogpts_far_past_the_context_too() -> None:
    model, prompt = peaked_gpt(CONFIG), (0, 17, 5)
    settings = {"num_samples": 10, "max_new_tokens": 150, "temperature": 0.8, "top_k": 20}
    twins = nanogpt_sample(model, prompt, seed=1337, **settings)
    pack(model)
    engine = Engine(model, vocab_size=65)
    assert ids_in_order(engine, torch_rows(Sampling(rng="torch", **settings), prompt, 1337)) == twins


def test_so_are_those_of_a_model_without_biases_in_plain_torch() -> None:
    model = peaked_gpt(GPTConfig(block_size=16, vocab_size=65, n_layer=2, n_head=2, n_embd=32, bias=False))
    settings = {"num_samples": 3, "max_new_tokens": 40, "temperature": 0.8, "top_k": 20}
    twins = nanogpt_sample(model, (0,), seed=1337, **settings)
    engine = Engine(model, vocab_size=65, use_kernels=False)
    assert ids_in_order(engine, torch_rows(Sampling(rng="torch", **settings), (0,), 1337)) == twins


@pytest.mark.parametrize(("temperature", "top_k", "seed"), [(1.3, None, 1), (0.5, 1, 2), (1.0, 1000, 2**63 + 5)])
def test_settings_and_a_prompt_longer_than_the_context(temperature: float, top_k: int | None, seed: int) -> None:
    config = GPTConfig(block_size=9, vocab_size=65, n_layer=2, n_head=2, n_embd=32)
    model, prompt = peaked_gpt(config, seed=4), tuple(range(30, 50))
    sampling = Sampling(num_samples=3, max_new_tokens=25, temperature=temperature, top_k=top_k, rng="torch")
    twins = nanogpt_sample(model, prompt, num_samples=3, max_new_tokens=25, temperature=temperature, top_k=top_k, seed=seed)
    assert ids_in_order(Engine(model, vocab_size=65), torch_rows(sampling, prompt, seed)) == twins


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("vocab_size", "n_embd"), [(65, 32), (7, 5), (3, 1)])
def test_the_stream_begins_where_building_nanogpts_model_leaves_it(vocab_size: int, n_embd: int, bias: bool) -> None:
    config = GPTConfig(block_size=11, vocab_size=vocab_size, n_layer=2, n_head=1, n_embd=n_embd, bias=bias)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        draw_first_weights(config)
        left = torch.rand(8)
    assert torch.equal(torch.rand(8, generator=nanogpt_stream(config, 3)), left)


def test_streams_of_several_points_run_at_once_and_do_not_mix() -> None:
    model = peaked_gpt(CONFIG, seed=1)
    prompt = (1, 2)
    wanted = {}
    rows = []
    for seed in (1, 2):
        for temperature in (0.7, 1.2):
            settings = {"num_samples": 3, "max_new_tokens": 20, "temperature": temperature, "top_k": 10}
            rows += torch_rows(Sampling(rng="torch", **settings), prompt, seed)
            wanted[seed, temperature] = nanogpt_sample(model, prompt, seed=seed, **settings)
    for max_rows in (1, 3, 64):
        got: dict[tuple[int, float], list[list[int]]] = {key: [[]] * 3 for key in wanted}
        for completion in Engine(model, vocab_size=65, max_rows=max_rows).run(rows):
            row = completion.row
            got[row.noise_key, row.sampling.temperature][row.sample_index] = list(completion.token_ids)
        assert got == wanted
