"""How the next token is chosen: all settings, each with its sampler's declaration.

This module is long because it has the declarations of all samplers, and each is complete in itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ..errors import ConfigError
from .checks import LIMIT, coerce, coerce_fields, one_of, require
from .samplers import neutral_settings, sampler, samplers_of, steps_of

AUTO = "auto"
OVERFLOWS = (AUTO, "crop", "stop", "rebase", "extend")
"""What happens at the end of the context; with `AUTO`, what the model's own program does."""
RNGS = ("counter", "torch")
NOISES = ("common", "independent")
_GREATEST_ADDEND = 1e30  # sums of these stay far below float32's maximum
DRY_BREAKERS = ("\n", ":", '"', "*")
_SHARE = (lambda p: p is None or 0 < p <= 1, "must be above 0 and at most 1, or null to switch it off")
_CUTOFF = (lambda p: 0 <= p < 1, "must be at least 0 and below 1; 0 switches it off")
_TOKENS = (lambda ids: all(0 <= token < LIMIT for token in ids), "must hold token ids, 0 or above")
_ADDEND = (lambda value: abs(value) <= _GREATEST_ADDEND, "must be from -1e30 to 1e30; 0 switches it off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen and when a sample ends: the config group ``sampling``.

    ``order`` gives the order of the steps: ``hf`` (by their ``place``), ``llama`` (llama.cpp's), or the names of steps.
    ``logit_bias`` has ``(token id, addend)`` pairs by ascending id, and may be given as a mapping; ``stop`` and
    ``dry_breakers`` may be given as one text or any collection of texts. ``stop_on_repetition`` is empty, or a maximum period n
    and a count k: a sample ends when its last tokens are one period of up to n tokens, k times. ``chat_template``: each prompt
    is a user's turn. ``logprobs``: the number of alternatives to record at each token, with measurements (`TokenLogprobs`); 0
    records nothing. docs/settings.md describes the other settings.

    Raises:
        ConfigError: a value has the wrong type or is out of its range, or ``order`` lacks an active step.
    """

    num_samples: int = 10
    max_new_tokens: int = 500
    temperature: float = field(
        default=0.8,
        metadata=sampler(
            place=300,
            neutral=1.0,
            kernel="f8",
            checks=((lambda t: t == 0 or 1e-6 <= t < math.inf, "must be 0 (greedy) or a positive number, at least 1e-6"),),
            sentence="0 is greedy",
        ),
    )
    top_k: int | None = field(
        default=200,
        metadata=sampler(
            place=400,
            neutral=None,
            kernel="i8",
            off=0,
            truncates=True,
            checks=(
                (lambda k: k is None or k >= 1, "must be at least 1, or null to switch it off"),
                (lambda k: k is None or k < 2**63, "must be below 2**63; null switches it off"),
            ),
            sentence="null switches it off; keeps ties with the k-th, as nanoGPT does",
        ),
    )
    top_p: float | None = field(
        default=None,
        metadata=sampler(
            place=500,
            neutral=None,
            kernel="f8",
            off=1.0,
            truncates=True,
            checks=(_SHARE,),
            sentence="after temperature and top_k: the smallest set of likeliest tokens with this total probability",
        ),
    )
    min_p: float | None = field(
        default=None,
        metadata=sampler(
            place=600,
            neutral=None,
            kernel="f8",
            off=0.0,
            truncates=True,
            checks=((lambda p: p is None or 0 <= p <= 1, "must be from 0 to 1, or null to switch it off"),),
            sentence="after top_p: tokens at least this likely relative to the likeliest",
        ),
    )
    typical_p: float | None = field(
        default=None,
        metadata=sampler(
            place=700,
            truncates=True,
            kernel="f8",
            off=1.0,
            neutral=None,
            checks=(_SHARE,),
            sentence="locally typical sampling: tokens whose surprise is closest to the entropy, up to this total probability",
        ),
    )
    epsilon_cutoff: float = field(
        default=0.0,
        metadata=sampler(
            place=720,
            truncates=True,
            kernel="f8",
            neutral=0.0,
            checks=(_CUTOFF,),
            sentence="tokens at least this likely, and the likeliest; 0 switches it off",
        ),
    )
    eta_cutoff: float = field(
        default=0.0,
        metadata=sampler(
            place=740,
            truncates=True,
            kernel="f8",
            neutral=0.0,
            checks=(_CUTOFF,),
            sentence="as epsilon_cutoff, but less strict where the entropy is high; 0 switches it off",
        ),
    )
    top_n_sigma: float | None = field(
        default=None,
        metadata=sampler(
            place=350,
            truncates=True,
            kernel="f8",
            off=math.inf,
            neutral=None,
            checks=((lambda n: n is None or 0 < n <= 1e6, "must be above 0, or null to switch it off"),),
            sentence="logits at most this many standard deviations below the largest",
        ),
    )
    top_h: float | None = field(
        default=None,
        metadata=sampler(
            place=380,
            truncates=True,
            neutral=None,
            checks=(_SHARE,),
            sentence="the likeliest tokens up to this share of the entropy of the 100 likeliest",
        ),
    )
    xtc_probability: float = field(
        default=0.0,
        metadata=sampler(
            place=800,
            step="xtc",
            truncates=True,
            kernel="f8",
            neutral=0.0,
            checks=((lambda p: 0 <= p <= 1, "must be from 0 to 1; 0 switches it off"),),
            sentence="the probability of excluding the likeliest tokens (XTC), drawn for each token; 0 switches it off",
        ),
    )
    xtc_threshold: float = field(
        default=0.1,
        metadata=sampler(
            place=800,
            step="xtc",
            switches=False,
            kernel="f8",
            neutral=0.1,
            checks=((lambda p: 0 <= p <= 0.5, "must be from 0 to 0.5: no two tokens are likelier than that"),),
            sentence="XTC excludes tokens at least this likely, except the least likely of them",
        ),
    )
    dynatemp_range: float = field(
        default=0.0,
        metadata=sampler(
            place=300,
            step="temperature",
            kernel="f8",
            neutral=0.0,
            checks=((lambda t: 0 <= t < 1e6, "must be 0 or above; 0 switches it off"),),
            sentence="how far the temperature varies around `temperature`, following the entropy; 0 switches it off",
        ),
    )
    dynatemp_exponent: float = field(
        default=1.0,
        metadata=sampler(
            place=300,
            step="temperature",
            switches=False,
            kernel="f8",
            neutral=1.0,
            checks=((lambda power: 1e-3 <= power <= 1e3, "must be from 0.001 to 1000"),),
            sentence="the exponent of the entropy relative to its maximum",
        ),
    )
    mirostat_tau: float | None = field(
        default=None,
        metadata=sampler(
            place=900,
            step="mirostat",
            truncates=True,
            kernel="",
            neutral=None,
            checks=((lambda tau: tau is None or 0 < tau <= 1e3, "must be above 0, or null to switch it off"),),
            sentence="the surprise, in bits, that Mirostat 2.0 aims at; always the last step",
        ),
    )
    mirostat_eta: float = field(
        default=0.1,
        metadata=sampler(
            place=900,
            step="mirostat",
            switches=False,
            kernel="",
            neutral=0.1,
            checks=((lambda eta: 0 <= eta <= 1e3, "must be 0 or above"),),
            sentence="Mirostat's learning rate",
        ),
    )
    repetition_penalty: float = field(
        default=1.0,
        metadata=sampler(
            place=200,
            step="penalties",
            neutral=1.0,
            adjusts=True,
            kernel="f8",
            checks=((lambda penalty: 1e-6 <= penalty <= 1e6, "must be from 1e-6 to 1e6; 1.0 switches it off"),),
            sentence="Hugging Face's: for each token in prompt and completion",
        ),
    )
    presence_penalty: float = field(
        default=0.0,
        metadata=sampler(
            place=200,
            step="penalties",
            neutral=0.0,
            adjusts=True,
            kernel="f8",
            checks=(_ADDEND,),
            sentence="vLLM's: once for each token in the completion",
        ),
    )
    frequency_penalty: float = field(
        default=0.0,
        metadata=sampler(
            place=200,
            step="penalties",
            neutral=0.0,
            adjusts=True,
            kernel="f8",
            checks=(_ADDEND,),
            sentence="vLLM's: for each occurrence of a token in the completion",
        ),
    )
    logit_bias: tuple[tuple[int, float], ...] = field(
        default=(),
        metadata=sampler(
            place=100,
            neutral=(),
            adjusts=True,
            kernel="",
            checks=(
                (
                    lambda bias: all(0 <= token < LIMIT and abs(addend) <= _GREATEST_ADDEND for token, addend in bias),
                    "must map token ids (0 or above) to numbers from -1e30 to 1e30",
                ),
                (lambda bias: bias == tuple(sorted(dict(bias).items())), "names a token id twice"),
            ),
            sentence="addends by token id: `'sampling.logit_bias={50256:-100}'`",
        ),
    )
    dry_multiplier: float = field(
        default=0.0,
        metadata=sampler(
            place=220,
            step="dry",
            kernel="f8",
            neutral=0.0,
            adjusts=True,
            checks=((lambda value: 0 <= value <= 1e6, "must be 0 or above; 0 switches it off"),),
            sentence="penalty for a token that would extend a repetition (DRY) of prompt or completion; 0 switches it off",
        ),
    )
    dry_base: float = field(
        default=1.75,
        metadata=sampler(
            place=220,
            step="dry",
            switches=False,
            kernel="f8",
            neutral=1.75,
            adjusts=True,
            checks=((lambda base: 1 <= base <= 1e6, "must be at least 1"),),
            sentence="the factor by which each further token of the repetition raises that penalty",
        ),
    )
    dry_allowed_length: int = field(
        default=2,
        metadata=sampler(
            place=220,
            step="dry",
            switches=False,
            kernel="i8",
            neutral=2,
            adjusts=True,
            checks=((lambda length: 1 <= length < LIMIT, "must be at least 1"),),
            sentence="the longest repetition without a penalty, in tokens",
        ),
    )
    dry_range: int | None = field(
        default=None,
        metadata=sampler(
            place=220,
            step="dry",
            switches=False,
            kernel="i8",
            off=2**62,
            neutral=None,
            adjusts=True,
            checks=((lambda length: length is None or 1 <= length < LIMIT, "must be at least 1, or null for the whole text"),),
            sentence="how many tokens DRY looks back; null is the whole text",
        ),
    )
    dry_breakers: tuple[str, ...] = field(
        default=DRY_BREAKERS,
        metadata=sampler(
            place=220,
            step="dry",
            switches=False,
            kernel="",
            neutral=DRY_BREAKERS,
            adjusts=True,
            checks=((all, "holds an empty string"),),
            sentence="texts that end a repetition",
        ),
    )
    no_repeat_ngram: int = field(
        default=0,
        metadata=sampler(
            place=240,
            kernel="i8",
            neutral=0,
            adjusts=True,
            checks=((lambda n: 0 <= n < LIMIT, "must be 0 or above; 0 switches it off"),),
            sentence="no n-gram of this many tokens occurs twice in prompt and completion; 0 switches it off",
        ),
    )
    suppress_tokens: tuple[int, ...] = field(
        default=(),
        metadata=sampler(
            place=260,
            neutral=(),
            kernel="",
            adjusts=True,
            checks=(_TOKENS,),
            sentence="token ids that are never sampled, such as `[198,628]`",
        ),
    )
    min_new_tokens: int = field(
        default=0,
        metadata=sampler(
            place=260,
            step="suppress_tokens",
            kernel="",
            neutral=0,
            adjusts=True,
            checks=((lambda n: 0 <= n < LIMIT, "must be 0 or above, and below 2**31"),),
            sentence="before this many tokens, neither `stop_token_ids` nor, with `stop_at_eot`, the end of text is sampled",
        ),
    )
    order: str | tuple[str, ...] = "hf"
    stop: tuple[str, ...] = ()
    stop_at_eot: bool = False
    chat_template: bool = False
    stop_token_ids: tuple[int, ...] = ()
    stop_on_repetition: tuple[int, ...] = ()
    overflow: str = "crop"
    rng: str = "counter"
    noise: str = "common"
    logprobs: int = 0

    def __post_init__(self) -> None:
        def check(holds: bool, name: str, wanted: str) -> None:
            require(holds, f"sampling.{name}", given.get(name, getattr(self, name)), wanted)

        bias: Any = self.logit_bias
        given = {"logit_bias": dict(bias) if isinstance(bias, Mapping) else bias}  # as errors show them
        coerce_fields(self, "sampling.")
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))
        for name in ("stop", "dry_breakers"):
            object.__setattr__(self, name, _texts(f"sampling.{name}", getattr(self, name)))
            given[name] = list(getattr(self, name))
        for name in ("suppress_tokens", "stop_token_ids", "stop_on_repetition"):
            object.__setattr__(self, name, _numbers(f"sampling.{name}", getattr(self, name)))
        if not isinstance(self.order, str):
            object.__setattr__(self, "order", _texts("sampling.order", self.order))
        for name in ("num_samples", "max_new_tokens"):
            check(1 <= getattr(self, name) < LIMIT, name, "must be at least 1 and below 2**31")
        for name, declared in samplers_of(type(self)).items():
            for holds, wanted in declared.checks:
                check(holds(getattr(self, name)), name, wanted)
        check(0 <= self.logprobs <= 1000, "logprobs", "must be from 0 to 1000; 0 records nothing")
        check(all(self.stop), "stop", "holds an empty string, which would stop every sample at once")
        check(_TOKENS[0](self.stop_token_ids), "stop_token_ids", _TOKENS[1])
        repeated = self.stop_on_repetition
        some = len(repeated) == 2 and repeated[0] >= 1 and repeated[1] >= 2 and max(repeated) < LIMIT
        check(some or not repeated, "stop_on_repetition", "must be [n, k], a period of up to n tokens, at least 2 times; or []")
        one_of("sampling.overflow", self.overflow, OVERFLOWS)
        one_of("sampling.rng", self.rng, RNGS)
        one_of("sampling.noise", self.noise, NOISES)
        _require_order(self)

    def uses(self, setting: str) -> bool:
        """Whether the value of a sampler's setting is not neutral."""
        return bool(getattr(self, setting) != samplers_of(type(self))[setting].neutral)

    def as_json(self) -> dict[str, Any]:
        """Settings by name as JSON and pandas represent them: all settings of 0.1, and others that are not neutral.

        `UNDECIDING` settings, which determine no token, are left out.
        """
        named = ((name, neutral, getattr(self, name)) for name, neutral in neutral_settings(type(self)).items())
        return {
            name: _as_json(name, value)
            for name, neutral, value in named
            if name not in UNDECIDING and (name in SETTINGS_OF_0_1 or value != neutral)
        }


UNDECIDING = ("num_samples", "logprobs")
"""Settings that say how many samples there are and what is recorded of them; they do not affect any token."""

SETTINGS_OF_0_1 = (
    *("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "logit_bias", "stop", "stop_at_eot", "overflow", "rng", "noise"),
)
"""Settings that every line of samples and every `point_id` names. Later ones are named only if they are not neutral."""


def step_order(sampling: Sampling) -> tuple[str, ...]:
    """The steps of a row in its order, active or not. Bias and bans come first and mirostat last if they are not named."""
    steps, order = tuple(steps_of(type(sampling))), sampling.order
    if order == "hf":
        return steps
    named = LLAMA_ORDER if order == "llama" else tuple(order)
    first = tuple(step for step in steps if step in _FIRST and step not in named)
    return (*first, *named, *(step for step in _LAST if step not in named))


ORDERS = ("hf", "llama")
LLAMA_ORDER = ("penalties", "dry", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc", "temperature")
_FIRST, _LAST = ("logit_bias", "no_repeat_ngram", "suppress_tokens"), ("mirostat",)


def _require_order(sampling: Sampling) -> None:
    order, steps = sampling.order, tuple(steps_of(type(sampling)))
    if isinstance(order, str):
        one_of("sampling.order", order, ORDERS)
    else:
        for step in order:
            require(step in steps, "sampling.order", order, f"{step} is not one of {', '.join(steps)}")
            require(order.count(step) == 1, "sampling.order", order, f"names {step} twice")
        require("mirostat" not in order[:-1], "sampling.order", order, "mirostat comes last")
    left_out = [step for step in _active(sampling) if step not in step_order(sampling)]
    require(not left_out, "sampling.order", order, f"has no {', '.join(left_out)}, which the settings use")


@lru_cache(4096)
def active_steps(sampling: Sampling) -> tuple[str, ...]:
    """The steps that affect a row, in order. A greedy row takes the likeliest token, so truncation does not affect it."""
    active = _active(sampling)
    return tuple(step for step in step_order(sampling) if step in active)


def _active(sampling: Sampling) -> list[str]:
    declared = samplers_of(type(sampling))

    def active(names: tuple[str, ...]) -> bool:
        return any(
            declared[name].switches and sampling.uses(name) and (declared[name].adjusts or sampling.temperature > 0)
            for name in names
        )

    return [step for step, names in steps_of(type(sampling)).items() if active(names)]


SAMPLERS = samplers_of(Sampling)


def _as_json(name: str, value: Any) -> Any:
    if name == "logit_bias":
        return {str(token): addend for token, addend in value}
    return list(value) if isinstance(value, tuple) else value


def _bias(value: Any) -> tuple[tuple[int, float], ...]:
    key = "sampling.logit_bias"
    wanted = "must map token ids to numbers, such as {50256: -100}"
    try:
        pairs = [(token, addend) for token, addend in (value.items() if isinstance(value, Mapping) else value)]
    except (TypeError, ValueError) as error:
        raise ConfigError(key, value, wanted) from error
    try:
        return tuple(sorted((coerce(key, token, int), coerce(key, addend, float)) for token, addend in pairs))
    except ConfigError as error:
        raise ConfigError(key, value, wanted) from error


def _texts(key: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (None,)
    require(all(isinstance(text, str) for text in texts), key, value, "must be a string, or several")
    return tuple(map(str, texts))


def _numbers(key: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise ConfigError(key, value, "must be a list of whole numbers")
    return tuple(coerce(key, number, int) for number in value)
