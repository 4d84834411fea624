"""What a user would lose: samplers that are checked, switched off and documented as they are declared."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from test_sampling import many, run
from torch import Tensor

from gptsweep.config_schema import sampling_schema
from gptsweep.engine.chain import CHAIN, Rows
from gptsweep.engine.sampler import row_record, sample
from gptsweep.errors import ConfigError
from gptsweep.kernels.abi import ROW
from gptsweep.records import SAMPLERS, SETTINGS_OF_0_1, Point, Prompt, Row, Sampling, active_steps, point_id, sampler, steps_of

ROOT = Path(__file__).parents[1]
DEFAULTS = {field.name: field.default for field in fields(Sampling)}
NEUTRAL = {name: sampler.neutral for name, sampler in SAMPLERS.items()}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_page_of_settings_says_of_a_sampler_what_is_declared(name: str) -> None:
    value = {} if name == "logit_bias" else DEFAULTS[name]
    default = json.dumps(list(value) if isinstance(value, tuple) else value)
    row = f"| `sampling.{name}` | {default} | {SAMPLERS[name].sentence} |\n"
    assert row in (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")


def test_the_order_that_the_settings_name_is_the_declared_one() -> None:
    merged = list(steps_of(Sampling))
    places = {(declared.step or name, declared.place) for name, declared in SAMPLERS.items()}
    assert len({place for _, place in places}) == len(places) == len(merged)
    assert set(merged) == set(CHAIN)
    text = (ROOT / "conf/sampling/default.yaml").read_text(encoding="utf-8")
    (named,) = re.findall(r"order of operations is (.*)\.$", text, re.MULTILINE)
    assert named.split(", ") == merged


def test_the_kernels_record_has_every_sampler_that_says_so() -> None:
    assert {name for name in ROW.names or () if name in SAMPLERS} == {n for n, sampler in SAMPLERS.items() if sampler.kernel}
    assert all(sampler.off is not None for sampler in SAMPLERS.values() if sampler.kernel and sampler.neutral is None)
    row = Row(prompt_ids=(1,), sampling=Sampling(**NEUTRAL), noise_key=5)  # type: ignore[arg-type]
    record = np.array([row_record(row)], ROW)[0]
    found = {name: record[name].item() for name in ROW.names or () if name in SAMPLERS}
    assert {name: found[name] for name in SETTINGS_OF_0_1 if name in found} == {
        "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    }  # fmt: skip


def test_neutral_samplers_leave_the_models_distribution() -> None:
    sampling = Sampling(**NEUTRAL)  # type: ignore[arg-type]
    assert not any(map(sampling.uses, SAMPLERS))
    assert "penalties" not in active_steps(sampling)
    rows = [Row(prompt_ids=(1,), sampling=sampling, noise_key=5, sample_index=i) for i in range(8)]
    records = np.array([row_record(row) for row in rows], ROW)
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(3))
    sample(logits, records, Rows([sampling] * len(rows), [None] * len(rows), records, logits.device))
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
    assert ("penalties" in active_steps(sampling)) == name.endswith("_penalty")


def test_a_truncation_at_a_value_that_keeps_every_token_is_off() -> None:
    truncations = {name: sampler for name, sampler in SAMPLERS.items() if sampler.truncates}
    assert {"top_k", "top_p", "min_p"} <= set(truncations)
    assert not any(sampler.is_on(value) for sampler in truncations.values() for value in (sampler.neutral, sampler.off, None))
    assert SAMPLERS["min_p"].is_on(0.05)
    assert SAMPLERS["top_k"].is_on(1)
    assert not SAMPLERS["top_p"].is_on(np.float64(1))


# -- a sampler of one's own --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tilted(Sampling):
    """Today's settings and one more: `tilt` is its declaration, and the function below what it does."""

    tilt: float = field(
        default=0.0,
        metadata=sampler(
            place=310,
            neutral=0.0,
            checks=((lambda tilt: abs(tilt) <= 100, "must be from -100 to 100; 0 switches it off"),),
            sentence="what is added for each id",
        ),
    )


def tilt(x: Tensor, rows: Rows) -> Tensor:
    return x + rows.column("tilt") * torch.arange(x.shape[-1])


def identity(sampling: Sampling) -> str:
    point = Point(sampling=sampling)
    return point_id(point, prompts=(Prompt("0", "a"),), weights="w", tokenizer="t", dtype="float32", device_type="cpu")


def test_a_sampler_of_ones_own_is_a_declaration_and_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHAIN, "tilt", tilt)
    order = list(steps_of(Tilted))
    assert order[: order.index("tilt") + 2][-3:] == ["temperature", "tilt", "top_n_sigma"]
    assert {f.name: f.type for f in fields(sampling_schema(Tilted))}["tilt"] is float
    with pytest.raises(ConfigError, match=r"sampling\.tilt=101\.0: must be from -100 to 100; 0 switches it off"):
        Tilted(tilt=101)
    settings = {"temperature": 1.0, "max_new_tokens": 4, "top_k": 30}
    rows = [*many(Sampling(**settings), 8), *many(Tilted(**settings), 8), *many(Tilted(**settings, tilt=0.1), 8)]
    rows += many(Tilted(**settings, tilt=100), 2)
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0))
    mixed = [completion.token_ids for completion in run(logits, rows, use_kernels=True)]
    assert mixed[:8] == mixed[8:16] == [c.token_ids for c in run(logits, rows[:8], use_kernels=True)]
    assert mixed[16:24] == [c.token_ids for c in run(logits + 0.1 * torch.arange(100), rows[:8], use_kernels=True)]
    assert mixed[24:] == [(99,) * 4] * 2


def test_a_setting_that_is_neutral_is_in_no_id_and_in_no_line() -> None:
    assert identity(Tilted()) == identity(Sampling())
    assert identity(Tilted(tilt=1.0)) != identity(Tilted(tilt=2.0)) != identity(Sampling())
    assert tuple(Tilted().as_json()) == tuple(Sampling().as_json()) == SETTINGS_OF_0_1
    assert Tilted(tilt=1.0).as_json() == Tilted().as_json() | {"tilt": 1.0}
