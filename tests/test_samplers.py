"""What a user would lose: samplers that are checked, switched off and documented as they are declared."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from gptsweep.engine.sampler import row_record, sample
from gptsweep.kernels.abi import ROW
from gptsweep.records import SAMPLERS, Row, Sampling

ROOT = Path(__file__).parents[1]
DEFAULTS = {field.name: field.default for field in fields(Sampling)}
NEUTRAL = {name: sampler.neutral for name, sampler in SAMPLERS.items()}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_readme_says_of_a_sampler_what_is_declared(name: str) -> None:
    default = {"None": "null", "()": "{}"}.get(str(DEFAULTS[name]), str(DEFAULTS[name]))
    row = f"| `sampling.{name}` | {default} | {SAMPLERS[name].sentence} |\n"
    assert row in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_order_that_the_settings_name_is_the_declared_one() -> None:
    ordered = sorted(SAMPLERS, key=lambda name: SAMPLERS[name].order)
    assert len({sampler.order for sampler in SAMPLERS.values()}) == len(SAMPLERS)
    merged = list(dict.fromkeys("penalties" if name.endswith("_penalty") else name for name in ordered))
    text = (ROOT / "conf/sampling/default.yaml").read_text(encoding="utf-8")
    (named,) = re.findall(r"order of operations is (.*)\.$", text, re.MULTILINE)
    assert named.split(", ") == merged


def test_the_kernels_record_has_every_sampler_that_says_so() -> None:
    assert {name for name in ROW.names or () if name in SAMPLERS} == {n for n, sampler in SAMPLERS.items() if sampler.recorded}
    assert all(sampler.off is not None for sampler in SAMPLERS.values() if sampler.recorded and sampler.neutral is None)
    row = Row(prompt_ids=(1,), sampling=Sampling(**NEUTRAL), noise_key=5)  # type: ignore[arg-type]
    record = np.array([row_record(row)], ROW)[0]
    found = {name: record[name].item() for name in ROW.names or () if name in SAMPLERS}
    assert found == {
        "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    }  # fmt: skip


def test_neutral_samplers_leave_the_models_distribution() -> None:
    sampling = Sampling(**NEUTRAL)  # type: ignore[arg-type]
    assert not any(map(sampling.uses, SAMPLERS))
    assert not sampling.penalises
    rows = [Row(prompt_ids=(1,), sampling=sampling, noise_key=5, sample_index=i) for i in range(8)]
    records = np.array([row_record(row) for row in rows], ROW)
    sample(torch.randn(1, 40, generator=torch.Generator().manual_seed(3)), records, [None] * len(rows))
    assert (records["sampler_logprob"] == records["logprob"]).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", 0.5), ("top_k", 3), ("top_p", 0.9), ("min_p", 0.1), ("logit_bias", ((3, 1.0),))),
        *(("repetition_penalty", 1.2), ("presence_penalty", 0.5), ("frequency_penalty", -0.5)),
    ],
)
def test_a_sampler_that_is_not_neutral_is_used(name: str, value: object) -> None:
    sampling = Sampling(**NEUTRAL | {name: value})  # type: ignore[arg-type]
    assert [sampler for sampler in SAMPLERS if sampling.uses(sampler)] == [name]
    assert sampling.penalises == name.endswith("_penalty")


def test_a_truncation_at_a_value_that_keeps_every_token_is_off() -> None:
    truncations = {name: sampler for name, sampler in SAMPLERS.items() if sampler.truncates}
    assert {"top_k", "top_p", "min_p"} <= set(truncations)
    assert not any(sampler.is_on(value) for sampler in truncations.values() for value in (sampler.neutral, sampler.off, None))
    assert SAMPLERS["min_p"].is_on(0.05)
    assert SAMPLERS["top_k"].is_on(1)
    assert not SAMPLERS["top_p"].is_on(np.float64(1))
