"""From points to rows: which samples a plan generates, in which order they start, and which of them share a row.

A `Task` is a point whose prompts are read and encoded; a `Plan` is what an executor runs. Both can be pickled.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
from typing import Any, cast

from ..engine.backend import Backend, Workload, windows_read
from ..engine.stopping import Repetition
from ..errors import ConfigError, PromptError
from ..models.files.generated_text import breaker_tokens, completion_text, stop_matcher, text_ends
from ..models.files.tokenizers import Tokenizer, fingerprint_of
from ..records import (
    AUTO,
    Completion,
    DeviceSettings,
    FinishReason,
    ModelSource,
    Point,
    Prefix,
    Prompt,
    Row,
    Sample,
    SampleLogprobs,
    Sampling,
    active_steps,
    point_id,
)
from .sample_identity import canonical_settings, independent_key

POINTS_TOGETHER = 64
"""How many points that share noise are started together: with 256 rows in flight, that is four samples of each."""

Key = tuple[int, int]
"""The key of a sample in its point: ``(prompt_index, sample_index)``."""

SampleKey = tuple[int, Key]
"""The key of a sample in a `Plan`: the index of its task, and its key in the point."""

Prompts = tuple[tuple[Prompt, ...], tuple[tuple[int, ...], ...]]
"""Prompts, and their token ids."""


@dataclass(frozen=True, slots=True, eq=False)
class OpenModel:
    """A model that is ready to run: its backend and tokenizer, and the settings that it was opened with."""

    source: ModelSource
    device: DeviceSettings
    backend: Backend
    tokenizer: Tokenizer

    @property
    def fingerprint(self) -> str:
        """A hash of the weights and the shape."""
        return self.backend.fingerprint

    @property
    def dtype(self) -> str:
        """The resolved dtype, never ``auto``."""
        return self.backend.provenance.dtype

    @property
    def device_type(self) -> str:
        """``cpu``, ``cuda`` or ``mps``."""
        return self.backend.provenance.device

    @property
    def arithmetic(self) -> str:
        """What the layers compute in, as `point_id` hashes it: ``dtype``, or another name where bits differ."""
        return self.backend.provenance.arithmetic

    @property
    def promise(self) -> bool:
        """Whether samples are batch-invariant on this machine with this build of torch."""
        return self.backend.promise


def encoded(model: OpenModel, prompts: tuple[Prompt, ...], *, chat_template: bool = False) -> Prompts:
    """Encode prompts; with ``chat_template``, each as a user's turn.

    Raises:
        ConfigError: the model has no chat template, or it fails.
        PromptError: a prompt has a character that is not in the model's vocabulary.
    """
    encode = model.tokenizer.encode_turn if chat_template else model.tokenizer.encode
    return prompts, tuple(tuple(encode(prompt.text)) for prompt in prompts)


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished row: a `Completion` with its text and without its row. The means are those of `Completion`, in nats."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprob_mean: float | None
    sampler_logprob_mean: float | None
    entropy_mean: float | None
    logprobs: SampleLogprobs | None = None

    def __reduce__(self) -> tuple[type[Finished], tuple[object, ...]]:
        # A driver unpickles thousands per second; from arguments this takes a third of a data class's usual time.
        means = self.logprob_mean, self.sampler_logprob_mean, self.entropy_mean
        return Finished, (self.text, self.token_ids, self.finish_reason, *means, self.logprobs)

    @classmethod
    def of(cls, tokenizer: Tokenizer, completion: Completion) -> Finished:
        """Decode a completion. The text excludes the stop string or end token that ended it.

        Raises:
            ConfigError: ``sampling.logprobs`` is set, and the backend does not record them.
        """
        sampling, ids = completion.row.sampling, completion.token_ids
        last = ids[-1] if ids else None
        ended = completion.finish_reason == "eot" or (completion.finish_reason == "stop" and last in sampling.stop_token_ids)
        text = completion_text(tokenizer, ids, sampling.stop, last if ended else None)
        if sampling.logprobs and len(completion.logprobs) != len(ids):
            raise ConfigError("sampling.logprobs", sampling.logprobs, "this backend does not record log-probabilities; use 0")
        return cls(
            text=text,
            token_ids=ids,
            finish_reason=completion.finish_reason,
            logprob_mean=completion.logprob_mean,
            sampler_logprob_mean=completion.sampler_logprob_mean,
            entropy_mean=completion.entropy_mean,
            logprobs=_sample_logprobs(tokenizer, completion, text) if sampling.logprobs else None,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A point with encoded prompts and settings checked against its model. ``noise_key`` is the 64-bit key of its noise."""

    point: Point
    prompts: tuple[Prompt, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    point_id: str
    noise_key: int
    end_tokens: tuple[int, ...]
    dry_breakers: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: OpenModel, point: Point, prompts: Prompts) -> Task:
        """Resolve ``overflow=auto``, and check the point against the model.

        Raises:
            PromptError: a prompt is longer than the model's context, with ``overflow=stop`` or ``extend``.
            ConfigError: the model does not support a setting.
        """
        sampling = point.sampling
        if sampling.overflow == AUTO:
            sampling = replace(sampling, overflow=model.backend.overflow)
            point = replace(point, sampling=sampling)
        texts, prompt_ids = prompts
        block_size, longest = model.backend.block_size, max(map(len, prompt_ids), default=0)
        if sampling.overflow == "extend" and block_size is not None and model.backend.extends_to == block_size:
            what = f"model={model.source.name} has no positions beyond its context of {block_size}; use crop, rebase or stop"
            raise ConfigError("sampling.overflow", "extend", what)
        most = _most_tokens(model.backend, sampling)
        if most is not None and longest > most:
            what = (
                f"a prompt has {longest} tokens, but the model reads at most {most}; shorten it, or use sampling.overflow=crop"
            )
            raise PromptError("start", point.start, what)
        if sampling.stop_at_eot and not model.backend.end_tokens:
            raise ConfigError(
                "sampling.stop_at_eot", True, f"model={model.source.name} has no end-of-text token; use sampling.stop"
            )
        named = {
            "logit_bias": [token for token, _ in sampling.logit_bias],
            "suppress_tokens": sampling.suppress_tokens,
            "stop_token_ids": sampling.stop_token_ids,
        }
        for setting, token in ((setting, token) for setting, tokens in named.items() for token in tokens):
            if token >= model.backend.vocab_size:
                wanted = f"token ids of model={model.source.name} are below {model.backend.vocab_size}"
                raise ConfigError(f"sampling.{setting}", token, wanted)
        if len({*sampling.suppress_tokens, *sampling.stop_token_ids, *model.backend.end_tokens}) >= model.backend.vocab_size:
            raise ConfigError("sampling.suppress_tokens", list(sampling.suppress_tokens), "leaves no token to sample")
        tokenizer = model.tokenizer.fingerprint
        if sampling.chat_template:  # no fingerprint covers the text that it adds, which may contain the date
            tokenizer = fingerprint_of(tokenizer, prompt_ids)
        identity = point_id(point, prompts=texts, weights=model.fingerprint, tokenizer=tokenizer,
                            dtype=model.arithmetic, device_type=model.device_type)  # fmt: skip
        key = point.seed if sampling.noise == "common" else independent_key(point.seed, identity)
        breakers = _breakers(cast(Any, model.tokenizer), sampling.dry_breakers) if "dry" in active_steps(sampling) else ()
        return cls(point, texts, prompt_ids, identity, key, model.backend.end_tokens, breakers)

    @property
    def keys(self) -> Iterator[Key]:
        """The keys of all samples of the point, in the order of the file."""
        return itertools.product(range(len(self.prompts)), range(self.point.sampling.num_samples))

    def row(self, key: Key, prefix: Prefix | None = None) -> Row:
        """The row of one sample, which continues after ``prefix``."""
        sampling = self.point.sampling
        return Row(
            prompt_ids=self.prompt_ids[key[0]],
            sampling=sampling,
            noise_key=self.noise_key,
            prompt_index=key[0],
            sample_index=key[1],
            end_tokens=self.end_tokens,
            dry_breakers=self.dry_breakers,
            prefix=prefix,
        )

    def can_resume(self, model: OpenModel, key: Key, prefix: Prefix) -> bool:
        """Whether ``prefix`` is a possible state of this sample while unfinished, so that it can continue after it."""
        sampling, ids, backend = self.point.sampling, prefix.token_ids, model.backend
        if key[0] >= len(self.prompts) or (prefix.stream is None) != (sampling.rng == "counter") or not backend.resumes(prefix):
            return False
        length, most = len(self.prompt_ids[key[0]]) + len(ids), _most_tokens(backend, sampling)
        return (
            len(ids) < sampling.max_new_tokens
            and max(ids, default=0) < backend.vocab_size
            and not (sampling.stop_at_eot and not set(self.end_tokens).isdisjoint(ids))
            and set(sampling.stop_token_ids).isdisjoint(ids)
            and not (sampling.stop_on_repetition and any(map(Repetition(*sampling.stop_on_repetition), ids)))
            and not (sampling.stop and any(map(stop_matcher(model.tokenizer, sampling.stop), ids)))
            and (most is None or length <= most)
            and (not sampling.logprobs or _has_logprobs(prefix, min(sampling.logprobs, backend.vocab_size)))
        )

    def dedup_key(self, key: Key) -> object:
        """A key that is equal for samples with the same tokens, such as greedy samples of any seed."""
        sampling = canonical_settings(self.point.sampling)
        if sampling.temperature == 0:
            return self.prompt_ids[key[0]], sampling
        return self.prompt_ids[key[0]], sampling, self.noise_key, key

    def sample(self, key: Key, finished: Finished) -> Sample:
        """Make the record of a sample, with its logprobs if requested, from its finished row."""
        sampling, prompt = self.point.sampling, self.prompts[key[0]]
        return Sample(
            point_id=self.point_id,
            prompt_id=prompt.id,
            prompt_index=key[0],
            sample_index=key[1],
            seed=self.point.seed,
            sampling=sampling,
            model=self.point.model.name,
            prompt=prompt.text,
            completion=finished.text,
            finish_reason=finished.finish_reason,
            prompt_tokens=len(self.prompt_ids[key[0]]),
            token_ids=finished.token_ids,
            logprob_mean=finished.logprob_mean,
            sampler_logprob_mean=finished.sampler_logprob_mean,
            entropy_mean=finished.entropy_mean,
            logprobs=finished.logprobs,
        )


def _sample_logprobs(tokenizer: Tokenizer, completion: Completion, text: str) -> SampleLogprobs:
    """The logprobs of a completion whose text is ``text``, with the texts of the tokens in them."""
    ids = completion.token_ids
    named = sorted({*ids, *itertools.chain.from_iterable(token.top_ids for token in completion.logprobs)})
    return SampleLogprobs(
        alternatives=completion.row.sampling.logprobs,
        tokens=completion.logprobs,
        ends=tuple(text_ends(tokenizer, ids, len(text))),
        texts={token: tokenizer.decode([token]) for token in named},
    )


def _has_logprobs(prefix: Prefix, alternatives: int) -> bool:
    return len(prefix.logprobs) == len(prefix.token_ids) and all(
        len(token.top_ids) == alternatives for token in prefix.logprobs
    )


@lru_cache(16)
def _breakers(tokenizer: Any, breakers: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """`breaker_tokens`, cached for all points of a sweep, because it scans the whole vocabulary."""
    return breaker_tokens(tokenizer, breakers)


def _most_tokens(backend: Backend, sampling: Sampling) -> int | None:
    """The maximum number of tokens in a row's context; None: unlimited, or the row drops its oldest tokens."""
    return {"stop": backend.block_size, "extend": backend.extends_to}.get(sampling.overflow)


Prefixes = Sequence[Mapping[Key, Prefix]]
"""For each task of a plan, the prefixes of its unfinished samples."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Rows for one batched pass, in the order in which to start them.

    Args:
        tasks: the points of the rows.
        recipients: for each row, the samples that get its result, one or several.
        prefixes: the prefixes after which samples continue. Rows read them when they start.
        workload: bounds on the rows.
    """

    tasks: tuple[Task, ...]
    recipients: tuple[list[SampleKey], ...]
    prefixes: Prefixes
    workload: Workload

    @classmethod
    def of(
        cls,
        model: OpenModel,
        tasks: Sequence[Task],
        wanted: Sequence[Iterable[Key]] | None = None,
        prefixes: Prefixes | None = None,
    ) -> Plan:
        """Plan samples of ``tasks``, in the order of `_starting_order`.

        Args:
            model: the model of all tasks.
            tasks: the points.
            wanted: for each task, the samples to generate; None: all.
            prefixes: for each task, the prefixes after which samples continue; None: there are none.
        """
        prefixes = [{} for _ in tasks] if prefixes is None else prefixes
        each_wanted = [list(keys) for keys in (wanted or [task.keys for task in tasks])]
        same: dict[object, list[SampleKey]] = defaultdict(list)
        for place, key in _starting_order(tasks, each_wanted, prefixes):
            same[tasks[place].dedup_key(key)].append((place, key))
        recipients = tuple(same.values())
        new_tokens = windows = 0
        for each in recipients:
            task, prefix = tasks[each[0][0]], _begun(each, prefixes)
            begun = 0 if prefix is None else len(prefix.token_ids)
            most, prompt_tokens = task.point.sampling.max_new_tokens, len(task.prompt_ids[each[0][1][0]])
            new_tokens += most - begun
            windows += windows_read(task.point.sampling, prompt_tokens, most, model.backend.block_size, begun)
        prompts = [(len(ids), task.point.sampling.max_new_tokens) for task in tasks for ids in task.prompt_ids]
        workload = Workload(
            rows=len(recipients),
            prompt_tokens=max((tokens for tokens, _ in prompts), default=1),
            row_tokens=max((tokens + most for tokens, most in prompts), default=1),
            new_tokens=new_tokens,
            windows=windows,
            extends=any(task.point.sampling.overflow == "extend" for task in tasks),
        )
        return cls(tuple(tasks), recipients, prefixes, workload)

    def rows(self) -> Iterator[tuple[Row, list[SampleKey]]]:
        """Yield each row, created on demand, with the samples that get its result."""
        for each in self.recipients:
            place, key = each[0]
            yield self.tasks[place].row(key, _begun(each, self.prefixes)), each


def _begun(recipients: Iterable[SampleKey], prefixes: Prefixes) -> Prefix | None:
    """The prefix of the first of ``recipients`` that has one. All have the same tokens, so any prefix will do."""
    return next((prefixes[place][key] for place, key in recipients if key in prefixes[place]), None)


def _starting_order(tasks: Sequence[Task], wanted: Sequence[Sequence[Key]], prefixes: Prefixes) -> Iterator[SampleKey]:
    """Yield samples in the order in which they start. The same sample of points that share noise is started together.

    The tokens of such samples are equal until their settings make a difference, and until then they are computed once. Samples
    of a random stream (``rng=torch``) follow each other, including those on disk, unless a prefix has the stream's state.
    """
    with_noise: dict[int, list[int]] = defaultdict(list)
    streams: dict[int, list[object]] = {}
    firsts: dict[object, int] = {}
    for place, task in enumerate(tasks):
        if task.point.sampling.rng == "counter":
            with_noise[task.noise_key].append(place)
        else:
            settings = canonical_settings(task.point.sampling), task.noise_key
            streams[place] = [(*settings, prompt, ids) for prompt, ids in enumerate(task.prompt_ids)]
            for stream, first in zip(streams[place], _firsts(task, wanted[place], prefixes[place]), strict=True):
                firsts[stream] = min(first, firsts.get(stream, first))
    for place, each in streams.items():
        yield from ((place, key) for key in tasks[place].keys if key[1] >= firsts[each[key[0]]])
    for alike in with_noise.values():
        for begin in range(0, len(alike), POINTS_TOGETHER):
            together = alike[begin : begin + POINTS_TOGETHER]
            yield from sorted(((place, key) for place in together for key in wanted[place]), key=itemgetter(1))


def _firsts(task: Task, wanted: Iterable[Key], prefixes: Mapping[Key, Prefix]) -> list[int]:
    """For each prompt, the first sample to draw from its stream: the last with a prefix, unless an earlier one is wanted."""
    samples = task.point.sampling.num_samples
    lowest: dict[int, int] = {}
    for prompt, sample in wanted:
        lowest[prompt] = min(sample, lowest.get(prompt, sample))
    latest = dict(sorted(prefixes))
    begins = [(lowest.get(prompt, samples), latest.get(prompt, 0)) for prompt in range(len(task.prompts))]
    return [samples if low == samples else last if last <= low else 0 for low, last in begins]
