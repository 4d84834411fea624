"""The engine's input (`Row`), its output (`Completion`), and the record written to disk (`Sample`)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as _string
from math import isfinite
from typing import Any, Literal, SupportsIndex, overload

import orjson

from ..errors import PromptError
from .logprobs import SampleLogprobs, TokenLogprobs
from .sample_display import sample_html, samples_html, samples_text
from .sampling import Sampling

SCHEMA_VERSION = 1
"""The format of lines and manifests; incremented when a field changes its meaning or is removed, not when one is added."""
FINISH_REASONS = ("length", "stop", "eot", "overflow", "repetition")
FINISH_REASONS_OF_0_1 = FINISH_REASONS[:4]
"""Every summary counts these; other reasons only if they occurred."""
_JSON = json.JSONEncoder(ensure_ascii=True, allow_nan=False)  # shared, because a driver writes thousands of lines a second
FinishReason = Literal["length", "stop", "eot", "overflow", "repetition"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: its text, and its id, which its samples have as ``prompt_id``.

    Raises:
        PromptError: the text is empty.
    """

    id: str
    text: str

    def __post_init__(self) -> None:
        if not self.text:
            raise PromptError("start", self.text, f"prompt {self.id} is empty; give at least one character or <|endoftext|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """The progress of an unfinished `Row`: its first tokens, and the sums (in nats) behind the means of its `Completion`.

    ``stream`` is the state of the ``rng=torch`` generator after these tokens; None for counter-based noise. ``logprobs`` has
    one record per token if ``sampling.logprobs`` requests them.
    """

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0
    sampler_logprob: float = 0.0
    entropy: float = 0.0
    stream: bytes | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sample for the engine to generate: token ids and settings, no text.

    Rows with equal ``prompt_ids`` share one prefill. ``noise_key`` is the 64-bit key of the counter-based noise; with
    ``prompt_index`` and ``sample_index`` it determines every random number of the row. ``end_tokens`` end the sample if
    ``sampling.stop_at_eot``; a text of ``sampling.stop`` ends it once the backend has decoded it. ``dry_breakers`` are
    sequences of token ids that end a repetition. A row with a ``prefix`` continues after it, with the same result as without;
    among rows that draw from one stream (``rng=torch``), only the first may have a prefix.

    Raises:
        PromptError: there are no ``prompt_ids``.
    """

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    noise_key: int
    prompt_index: int = 0
    sample_index: int = 0
    end_tokens: tuple[int, ...] = ()
    dry_breakers: tuple[tuple[int, ...], ...] = ()
    prefix: Prefix | None = None

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise PromptError("start", "", "the prompt is empty; give at least one character or <|endoftext|>")

    @property
    def begun(self) -> int:
        """The number of tokens that the row already has."""
        return 0 if self.prefix is None else len(self.prefix.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The engine's result for a `Row`.

    ``token_ids`` has every sampled token, including one that completed a stop string or was end-of-text. The means are over
    those tokens, in nats, None if no token was sampled: ``logprob_mean`` under the model's own distribution (temperature 1,
    nothing truncated or penalised), ``sampler_logprob_mean`` under the distribution sampled from, ``entropy_mean`` of the
    model's own distribution. ``logprobs`` has one record per token if ``row.sampling.logprobs`` requests them.
    """

    row: Row
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprob_mean: float | None
    sampler_logprob_mean: float | None
    entropy_mean: float | None
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A line of ``samples.jsonl``. It has no time and no path, so that a point gives the same bytes everywhere.

    ``completion`` is the text of ``token_ids`` without the stop string or end token that ended it. ``prompt_tokens`` is the
    length of the prompt. The means are those of `Completion`, in nats. ``logprobs``, which is written to a file of its own, is
    set if ``sampling.logprobs`` requests it.
    """

    point_id: str
    prompt_id: str
    prompt_index: int
    sample_index: int
    seed: int
    sampling: Sampling
    model: str
    prompt: str
    completion: str
    finish_reason: FinishReason
    prompt_tokens: int
    token_ids: tuple[int, ...]
    logprob_mean: float | None
    sampler_logprob_mean: float | None
    entropy_mean: float | None
    logprobs: SampleLogprobs | None = field(default=None, repr=False)

    @property
    def key(self) -> tuple[int, int]:
        """The sample's sort key within its point and its file: ``(prompt_index, sample_index)``."""
        return self.prompt_index, self.sample_index

    def as_json(self) -> dict[str, Any]:
        """The line's fields, in the file's order."""
        return {
            "schema_version": SCHEMA_VERSION,
            "point_id": self.point_id,
            "sample_id": f"{self.point_id}-{self.prompt_index}-{self.sample_index}",
            "prompt_id": self.prompt_id,
            "prompt_index": self.prompt_index,
            "sample_index": self.sample_index,
            "seed": self.seed,
            **self.sampling.as_json(),
            "model": self.model,
            "prompt": self.prompt,
            "completion": self.completion,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.token_ids),
            "token_ids": list(self.token_ids),
            "logprob_mean": self.logprob_mean,
            "sampler_logprob_mean": self.sampler_logprob_mean,
            "entropy_mean": self.entropy_mean,
        }

    def _repr_html_(self) -> str:
        return sample_html(self)

    def line(self) -> str:
        """The sample as one line of JSON, newline included; lone surrogates and control characters are escaped.

        Raises:
            ValueError: a mean is not a finite number.
        """
        return _JSON.encode(self.as_json()) + "\n"


class Samples(list[Sample]):
    """A list of samples that displays their texts: in a notebook as HTML, elsewhere a line each."""

    @overload
    def __getitem__(self, at: SupportsIndex) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> Samples: ...
    def __getitem__(self, at: SupportsIndex | slice) -> Sample | Samples:
        return Samples(super().__getitem__(at)) if isinstance(at, slice) else super().__getitem__(at)

    def __repr__(self) -> str:
        return samples_text(self) if self._pure() else super().__repr__()

    def _repr_html_(self) -> str | None:
        return samples_html(self) if self._pure() else None

    def _pure(self) -> bool:
        """Whether nothing else was put into the list."""
        return all(isinstance(each, Sample) for each in self)


class LineEncoder:
    """Encodes the lines of many samples; settings are encoded once for all samples that share them."""

    def __init__(self) -> None:
        self._of: Sampling | None = None
        self._settings = ""

    def line(self, sample: Sample) -> str:
        """Return the same as `Sample.line`, in a tenth of the time."""
        if sample.sampling is not self._of:
            self._of, self._settings = sample.sampling, _JSON.encode(sample.sampling.as_json())[1:-1]
        point, prompt, index = sample.point_id, sample.prompt_index, sample.sample_index
        ids = orjson.dumps(sample.token_ids).decode().replace(",", ", ")  # as json writes them, in a fifth of the time
        return (
            f'{{"schema_version": {SCHEMA_VERSION}, "point_id": {_string(point)}, '
            f'"sample_id": {_string(f"{point}-{prompt}-{index}")}, "prompt_id": {_string(sample.prompt_id)}, '
            f'"prompt_index": {prompt}, "sample_index": {index}, "seed": {sample.seed}, {self._settings}, '
            f'"model": {_string(sample.model)}, "prompt": {_string(sample.prompt)}, '
            f'"completion": {_string(sample.completion)}, "finish_reason": {_string(sample.finish_reason)}, '
            f'"prompt_tokens": {sample.prompt_tokens}, "completion_tokens": {len(sample.token_ids)}, '
            f'"token_ids": {ids}, "logprob_mean": {_mean(sample.logprob_mean)}, '
            f'"sampler_logprob_mean": {_mean(sample.sampler_logprob_mean)}, "entropy_mean": {_mean(sample.entropy_mean)}}}\n'
        )


def _mean(value: float | None) -> str:
    """Encode a mean as JSON.

    Raises:
        ValueError: it is not a finite number.
    """
    return repr(value) if type(value) is float and isfinite(value) else _JSON.encode(value)
