"""What a user of a notebook would lose: text as it is made, objects that show themselves, a bar, and values of any library."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sweep import write_sweep
from model_files import save_llama

import gptsweep
from gptsweep.analysis import sweep_html
from gptsweep.api import LM
from gptsweep.display import one_line
from gptsweep.errors import ConfigError, PromptError
from gptsweep.records import Sample, Samples, sample_display
from gptsweep.run import notebook


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LM:
    """Its tokens are single bytes, which are seldom characters."""
    return gptsweep.load(save_llama(tmp_path_factory.mktemp("llama")), device="cpu")


# -- text as it is made ------------------------------------------------------------------------------------------------------


@settings(max_examples=8)
@given(
    st.integers(0, 2**32),
    st.integers(1, 20),
    st.lists(st.sampled_from(["a", "\ufffd", "\ufffd\ufffd", "é", "q\ufffd", "\x00"]), max_size=3),
    st.sampled_from([{}, {"stop_token_ids": [65, 200, 201, 202]}, {"rng": "torch"}, {"logprobs": 1}]),
)
def test_a_stream_is_the_text_of_generate_in_whole_characters(
    lm: LM, seed: int, length: int, stop: list[str], more: dict[str, Any]
) -> None:
    settings = {"max_new_tokens": length, "temperature": 1.5, "top_k": None, "stop": stop, "seed": seed, **more}
    pieces = list(lm.stream("Once", **settings))
    assert "".join(pieces) == lm.generate("Once", **settings)[0].completion
    assert all(pieces)


def test_a_stream_comes_in_pieces_and_may_be_left(lm: LM) -> None:
    stream = lm.stream("Once", max_new_tokens=40, temperature=0.01, top_k=1, logit_bias={97: 1e6}, stop=["ab"])
    assert next(stream) == "a"  # not "aa": the last could begin "ab"
    assert next(stream) == "a"
    stream.close()


def test_what_is_wrong_with_a_stream_is_reported_at_the_call(lm: LM) -> None:
    with pytest.raises(ConfigError, match="num_samples"):
        lm.stream("Once", num_samples=2)
    with pytest.raises(ConfigError, match="temperature"):
        lm.stream("Once", temperature=-1)
    with pytest.raises(PromptError):
        lm.stream("")


# -- reprs for people --------------------------------------------------------------------------------------------------------


def test_a_sample_shows_its_text_as_text(lm: LM) -> None:
    [sample] = lm.generate("<b>&", max_new_tokens=5, logprobs=2)
    shown = replace(sample, completion="<script>\u202e", logprobs=None)._repr_html_()
    assert "&lt;b&gt;&amp;" in shown
    assert "&lt;script&gt;\\u202e" in shown
    assert "<script>" not in shown
    shaded = sample._repr_html_()
    assert shaded.count("rank ") == 5
    assert "SampleLogprobs" not in repr(sample)


def test_a_list_of_samples_shows_each_prompt_once_and_every_text(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = lm.generate(["<b>&\x1b", "other"], num_samples=3, max_new_tokens=5, logprobs=1)
    shown = samples._repr_html_()
    assert shown is not None
    assert shown.count("&lt;b&gt;&amp;\\x1b") == shown.count("other") == 1
    assert shown.count("rank ") == 30
    assert shown.count("ended by length") == 6
    assert "<small>6 samples</small>" in shown
    lines = repr(samples).splitlines()
    assert [lines[0], lines[4], lines[8]] == ["<b>&\\x1b", "other", "6 samples"]
    assert one_line(samples[1].completion[:70]) in lines[2]
    assert "6 samples, the first 2 shown" in repr(Samples([replace(sample, token_ids=(0,) * 10_000) for sample in samples]))
    monkeypatch.setattr(sample_display, "MAX_SAMPLES", 4)
    assert "6 samples, the first 4 shown" in repr(samples)
    assert repr(samples[4:]).endswith("\n2 samples")
    assert repr(Samples()) == "0 samples"


def test_a_list_of_samples_is_a_list_to_all_other_code(lm: LM) -> None:
    samples = lm.generate("Once", num_samples=3, max_new_tokens=2)
    plain = list(samples)
    assert samples == plain
    assert isinstance(samples[1:], list)
    assert (samples[1:], samples[0], [*samples], sorted(samples, key=lambda sample: sample.key)) == (
        plain[1:],
        plain[0],
        plain,
        plain,
    )
    assert pickle.loads(pickle.dumps(samples)) == plain
    assert json.dumps(samples, default=Sample.as_json) == json.dumps(plain, default=Sample.as_json)
    pd.testing.assert_frame_equal(pd.DataFrame(samples), pd.DataFrame(plain))
    samples.append(None)  # type: ignore[arg-type]
    assert repr(samples) == repr([*plain, None])
    assert samples._repr_html_() is None


def test_a_sweep_shows_the_table_of_the_review(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = gptsweep.read_sweep(write_sweep(tmp_path / "s", temperature=[0.5, 1.0], top_k=[5], seed=[1, 2], num_samples=3))
    table = sweep.group()
    shown = sweep._repr_html_()
    assert shown.count("<tr>") == 3
    assert f"{table['perplexity'][0]:.2f} ± {table['perplexity_se'][0]:.2f}" in shown
    assert "4 points (4 complete), 12 samples" in shown
    monkeypatch.setattr(sweep_html, "MAX_ROWS", 1)
    assert "1 more row: .group() has all" in sweep._repr_html_()


def test_a_model_shows_what_it_is(lm: LM) -> None:
    shown = lm._repr_html_()
    assert "hf" in shown
    assert "float32 on cpu" in shown


# -- a bar -------------------------------------------------------------------------------------------------------------------


class Shown:
    """In place of IPython in a kernel: what was displayed, in order."""

    def __init__(self) -> None:
        self.all: list[dict[str, str]] = []
        self.display = SimpleNamespace(display=self._display)

    def get_ipython(self) -> Any:
        return SimpleNamespace(kernel=None)

    def _display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        self.all.append(data)
        return SimpleNamespace(update=lambda data, raw: self.all.append(data))


def test_a_long_call_in_a_notebook_has_a_bar(
    lm: LM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Shown()
    monkeypatch.setitem(sys.modules, "IPython", kernel)  # type: ignore[arg-type]
    monkeypatch.setattr(notebook, "SECONDS", 0.0)
    lm.generate("Once", num_samples=3, max_new_tokens=4)
    assert "<progress" in kernel.all[0]["text/html"]
    assert "3/3 rows" in kernel.all[-1]["text/plain"]
    assert "<progress" not in kernel.all[-1]["text/html"]
    kernel.all.clear()
    assert len(gptsweep.sweep(lm, temperature=[0.5, 1.0], max_new_tokens=2, num_samples=1)) == 2
    assert "2/2 rows" in kernel.all[-1]["text/plain"]
    assert capsys.readouterr() == ("", "")


def test_a_short_call_and_a_script_have_none(
    lm: LM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lm.generate("Once", max_new_tokens=1)
    kernel = Shown()
    monkeypatch.setitem(sys.modules, "IPython", kernel)  # type: ignore[arg-type]
    monkeypatch.setattr(notebook, "SECONDS", 1e9)
    lm.generate("Once", max_new_tokens=1)
    assert not kernel.all
    assert capsys.readouterr() == ("", "")


# -- values of any library ---------------------------------------------------------------------------------------------------


NUMBERS = [np.int64, np.uint8, np.float32, np.array, torch.tensor, lambda n: pd.Series([n]).iloc[0]]
LISTS = [list, tuple, np.array, pd.Series, pd.Index, torch.tensor, iter]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_may_be_of_any_library(lm: LM, number: Any) -> None:
    plain = lm.generate("Once", num_samples=2, max_new_tokens=3, seed=3, top_k=4, logprobs=2)
    given = {name: number(value) for name, value in {"max_new_tokens": 3, "seed": 3, "top_k": 4, "logprobs": 2}.items()}
    found = lm.generate("Once", num_samples=number(2), **given)
    assert [sample.line() for sample in found] == [sample.line() for sample in plain]
    assert found[0].logprobs == plain[0].logprobs
    assert "".join(lm.stream("Once", **given)) == plain[0].completion


@pytest.mark.parametrize("listed", LISTS)
def test_a_list_may_be_of_any_library(lm: LM, listed: Any) -> None:
    bias = {"logit_bias": dict(zip(np.array([3, 4]), np.array([1.0, 2.0], np.float32), strict=True))}
    plain = lm.generate("Once", max_new_tokens=3, stop_token_ids=[65, 66], logit_bias={3: 1.0, 4: 2.0})
    assert lm.generate("Once", max_new_tokens=3, stop_token_ids=listed([65, 66]), **bias) == plain
    assert len(gptsweep.sweep(lm, seed=listed([1, 2]), max_new_tokens=2, num_samples=1)) == 2
    chances = gptsweep.distribution([0.0, 1.0, 2.0, 3.0], completion_ids=[1, 2], prompt_ids=[3], repetition_penalty=2.0)
    again = gptsweep.distribution(
        np.array([0.0, 1.0, 2.0, 3.0]), completion_ids=listed([1, 2]), prompt_ids=listed([3]), repetition_penalty=np.float64(2)
    )
    assert again.tolist() == chances.tolist()
    if listed is not torch.tensor:
        assert len(lm.generate(listed(["a", "b"]), max_new_tokens=1)) == 2


def test_breakers_may_be_of_numpy() -> None:
    text = {"prompt_ids": [0, 1, 2, 0, 1], "dry_multiplier": 1.0}
    plain = gptsweep.distribution([0.0, 0.0, 0.0], dry_breakers=[1], **text)
    assert gptsweep.distribution([0.0, 0.0, 0.0], dry_breakers=np.array([1]), **text).tolist() == plain.tolist()


def test_settings_of_a_point_may_be_of_pandas(tmp_path: Path) -> None:
    sweep = gptsweep.read_sweep(write_sweep(tmp_path / "s", temperature=[0.5, 1.0], top_k=[5], seed=[1, 2], num_samples=7))
    plain = sweep.compare({"temperature": 0.5}, {"temperature": 1.0})
    rows = sweep.group()
    a, b = ({"temperature": rows["temperature"][at]} for at in (0, 1))
    pd.testing.assert_frame_equal(sweep.compare(a, b), plain)
    pd.testing.assert_frame_equal(sweep.compare(np.int64(0), np.int64(2)), sweep.compare(0, 2))
    pd.testing.assert_frame_equal(sweep.group(pd.Index(["temperature"])), sweep.group(["temperature"]))
