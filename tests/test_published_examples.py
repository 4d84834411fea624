"""Samplers against numbers that others published: by hand, in the tests of their own implementations.

The numbers are facts of these files, as of 2026; nothing else is taken from them.

- ``llama.cpp``: ``tests/test-sampling.cpp`` of ggml-org/llama.cpp
- ``transformers``: ``tests/generation/test_logits_process.py`` of huggingface/transformers
- ``mlx-lm``: ``tests/test_sample_utils.py`` of ml-explore/mlx-lm
- ``XTC``: the author's example in the pull request that introduced it, oobabooga/text-generation-webui 6335
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gptsweep

FOUR, FALLING, FIVE = [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.2] * 5
PENALISED = {"frequency_penalty": 5.0, "presence_penalty": 5.0}
DRY = {"dry_multiplier": 1.0, "dry_base": 1.1, "dry_allowed_length": 2}
ETA = [[0.0, 0.1, 0.8, 0.1], [0.01, 0.04, 0.9, 0.05]]
BIGRAMS = {"no_repeat_ngram": 2}

LLAMA_CPP: list[tuple[list[float], dict[str, Any], list[float]]] = [
    (FOUR, {"temperature": 1.0}, FOUR),
    (FOUR, {"temperature": 0.0}, [0, 0, 0, 1]),
    (FOUR, {"top_k": 1}, [0, 0, 0, 1]),
    (FOUR, {"top_k": 3}, [0, 0.22222, 0.33333, 0.44444]),
    (FOUR, {"top_k": 4}, FOUR),
    (FOUR, {"top_p": 0.7}, [0, 0, 0.428571, 0.571429]),
    (FOUR, {"top_p": 0.8}, [0, 0.22222, 0.33333, 0.44444]),
    (FOUR, {"top_p": 1.0}, FOUR),
    (FOUR, {"min_p": 0.0}, FOUR),
    (FOUR, {"min_p": 0.24}, FOUR),
    (FOUR, {"min_p": 0.26}, [0, 2 / 9, 3 / 9, 4 / 9]),
    (FOUR, {"min_p": 0.49}, [0, 2 / 9, 3 / 9, 4 / 9]),
    (FOUR, {"min_p": 0.51}, [0, 0, 3 / 7, 4 / 7]),
    (FOUR, {"min_p": 0.74}, [0, 0, 3 / 7, 4 / 7]),
    (FOUR, {"min_p": 0.76}, [0, 0, 0, 1]),
    (FOUR, {"min_p": 1.0}, [0, 0, 0, 1]),
    (FALLING, {"xtc_threshold": 0.09}, [0, 0, 0, 0.1]),
    (FALLING, {"xtc_threshold": 0.19}, [0, 0, 0.2, 0.1]),
    (FALLING, {"xtc_threshold": 0.29}, [0, 0.3, 0.2, 0.1]),
    (FALLING, {"xtc_threshold": 0.39}, FALLING),
    ([0.97, 0.01, 0.01, 0.01], {"typical_p": 0.5}, [0.97, 0, 0, 0]),
    ([0.4, 0.2, 0.2, 0.2], {"typical_p": 0.5}, [0, 0.2, 0.2, 0.2]),
    (FOUR, {"top_n_sigma": 1.0}, [0, 0, 0.428571, 0.571429]),
    (FOUR, {"top_n_sigma": 3.0}, FOUR),
    (FIVE, {"completion_ids": [0], "repetition_penalty": 50.0}, [0, 0.25, 0.25, 0.25, 0.25]),
    (FIVE, {"completion_ids": [0, 1, 2], "repetition_penalty": 50.0}, [0, 0, 0, 0.5, 0.5]),
    (FIVE, {"completion_ids": [0, 1, 2, 0, 0], "repetition_penalty": 50.0}, [0, 0, 0, 0.5, 0.5]),
    (FIVE, {"completion_ids": [0], **PENALISED}, [0.000011, 0.249997, 0.249997, 0.249997, 0.249997]),
    (FIVE, {"completion_ids": [0, 1, 2], **PENALISED}, [0.000023, 0.000023, 0.000023, 0.499966, 0.499966]),
    (FIVE, {"completion_ids": [0, 1, 2, 0, 0], **PENALISED}, [0, 0.000023, 0.000023, 0.499977, 0.499977]),
    ([0.25] * 4, {"completion_ids": [0, 1], **DRY}, [0.25] * 4),
    ([0.25] * 4, {"completion_ids": [0, 1, 2, 0, 1], **DRY}, [0.296923, 0.296923, 0.109232, 0.296923]),
    (FIVE, {"completion_ids": [0, 1, 3, 4, 0, 1], "dry_breakers": [3], **DRY}, FIVE),
    (
        FIVE,
        {"completion_ids": [0, 1, 2, 0, 1], **DRY, "dry_multiplier": 2.0},
        [0.241818, 0.241818, 0.032727, 0.241818, 0.241818],
    ),
    (FIVE, {"completion_ids": [0, 1, 2, 3, 4, 0, 1], **DRY, "dry_allowed_length": 4}, FIVE),
]
TRANSFORMERS: list[tuple[list[float], dict[str, Any], list[float]]] = [
    ([0.3, 0.1, 0.1, 0.5], {"top_p": 0.79}, [0.3, 0, 0, 0.5]),  # 0.8 there, the mass of the two: rounding decides
    ([0.15, 0.3, 0.3, 0.25], {"top_p": 0.8}, [0, 0.3, 0.3, 0.25]),
    ([0.97, 0.01, 0.01, 0.01], {"top_h": 0.3}, [0.97, 0, 0, 0]),
    (FALLING, {"top_h": 0.7}, [0.4, 0.3, 0, 0]),
    ([0.25] * 4, {"top_h": 1.0}, [0.25] * 4),
    ([0.75, 0.25, 0.0, 0.0], {"top_h": 0.4}, [0.75, 0, 0, 0]),
    ([0.9, 0.0274, 0.047, 0.0274], {"min_p": 0.05}, [0.9, 0, 0.047, 0]),
    ([0.15, 0.3, 0.3, 0.25], {"min_p": 0.05}, [0.15, 0.3, 0.3, 0.25]),
    ([0.97, 0.01, 0.01, 0.01], {"min_p": 0.05}, [0.97, 0, 0, 0]),
    ([0.87, 0.099, 0.001, 0.03], {"epsilon_cutoff": 0.1}, [0.87, 0, 0, 0]),
    ([0.4, 0.299, 0.101, 0.2], {"epsilon_cutoff": 0.1}, [0.4, 0.299, 0.101, 0.2]),
    (ETA[0], {"eta_cutoff": 0.0625}, [0, 0.1, 0.8, 0.1]),  # min(0.0625, 0.1320)
    (ETA[1], {"eta_cutoff": 0.0625}, [0, 0, 0.9, 0]),  # min(0.0625, 0.1644)
    ([1, 1, 1], {"prompt_ids": [1, 1, 2, 1], **BIGRAMS}, [1, 0, 0]),
    ([1, 1, 1], {"prompt_ids": [0, 1, 0, 1], **BIGRAMS}, [0, 1, 1]),
    ([1, 1, 1], {"prompt_ids": [1, 1, 2, 1], "no_repeat_ngram": 3}, [1, 1, 1]),
    ([1, 1, 1], {"prompt_ids": [0, 1, 0, 1], "no_repeat_ngram": 3}, [0, 1, 1]),
    ([1] * 10, {"prompt_ids": [1, 2, 5, 7, 8, 5, 1, 2], "no_repeat_ngram": 3}, [1] * 5 + [0] + [1] * 4),
]
MLX: list[tuple[list[float], dict[str, Any], list[float]]] = [
    ([0.9, 0.0, 0.0, 0.1], {"top_p": 0.3}, [1, 0, 0, 0]),
    ([0.9, 0.0, 0.0, 0.1], {"top_p": 0.95}, [0.9, 0, 0, 0.1]),
    ([0.0, 0.5, 0.4, 0.1], {"top_p": 0.6}, [0, 5 / 9, 4 / 9, 0]),
    ([0.9, 0.0, 0.0, 0.1], {"min_p": 0.8}, [1, 0, 0, 0]),
    ([0.6, 0.0, 0.1, 0.3], {"top_k": 2}, [2 / 3, 0, 0, 1 / 3]),
    ([0.4, 0.3, 0.15, 0.15], {"xtc_threshold": 0.2}, [0, 0.5, 0.25, 0.25]),
    ([0.4, 0.3, 0.15, 0.15], {"xtc_threshold": 0.1, "xtc_probability": 0}, [0.4, 0.3, 0.15, 0.15]),
    ([1, 1, 1, 1], {"completion_ids": [0, 0, 0, 1, 1], "presence_penalty": 0.5}, [np.exp(-0.5)] * 2 + [1, 1]),
    ([1, 1, 1, 1], {"completion_ids": [0, 0, 0, 1, 1], "frequency_penalty": 0.5}, [np.exp(-1.5), np.exp(-1), 1, 1]),
]
XTC: list[tuple[list[float], dict[str, Any], list[float]]] = [
    ([0.79, 0.12, 0.09], {"xtc_threshold": 0.1}, [0, 0.12, 0.09]),  # "shivers down her spine" 0.79, "back" 0.12
]


@pytest.mark.parametrize(("given", "sampling", "published"), [*LLAMA_CPP, *TRANSFORMERS, *MLX, *XTC], ids=str)
def test_the_distribution_is_the_published_one(given: list[float], sampling: dict[str, Any], published: list[float]) -> None:
    if "xtc_threshold" in sampling:
        sampling = {"xtc_probability": 1, **sampling}
    with np.errstate(divide="ignore"):
        found = gptsweep.distribution(np.log(given), **sampling)
    assert found == pytest.approx(np.array(published) / sum(published), abs=3e-5)
