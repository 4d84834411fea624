"""The nouns: what a user asked for (`Point`), what the engine runs (`Row`), what lands on disk (`Sample`).

Every one is frozen and checks its own invariants, so whoever holds one need not look again. The module is long because
each sampler is declared here, at its setting.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache, lru_cache
from numbers import Real
from typing import Any, Literal, TypeVar, cast, get_type_hints

from .errors import ConfigError, PromptError

_T = TypeVar("_T")

SCHEMA_VERSION = 1
"""The format of lines and manifests. Raised when a field changes its meaning or goes, not when one is added."""
ENGINE_VERSION = 3
"""The arithmetic: raised when the same point gives other tokens than before, as each `point_id` holds it. A new setting leaves
both versions: ids and lines name it only where it is not neutral."""

MODELS = ("shakespeare", "resume", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "hf", "nanochat")
NANOGPT_FILE = "ckpt.pt"
"""The checkpoint in an ``out_dir`` where no other is named."""
GPT2_META = "gpt2"
"""In the place of a ``meta.pkl``: GPT-2's encoding."""
LAST_STEP = "last"
"""In the place of a training step: the greatest that there is."""
DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")
DTYPE_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
AUTO = "auto"
OVERFLOWS = (AUTO, "crop", "stop", "rebase", "extend")
"""What happens at the end of the context; `AUTO` stands for what the model's own program does."""
RNGS = ("counter", "torch")
NOISES = ("common", "independent")
_GREATEST_ADDEND = 1e30  # far from where float32 ends, whatever is added up
_LIMIT = 2**31
"""Counts and token ids are below this: they are counters of the noise, and 32-bit numbers in files and libraries."""
FINISH_REASONS = ("length", "stop", "eot", "overflow", "repetition")
FINISH_REASONS_OF_0_1 = FINISH_REASONS[:4]
"""Every summary counts these; others where there are some."""
FinishReason = Literal["length", "stop", "eot", "overflow", "repetition"]


EXAMPLES: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
"""What a value of a type is called in an error."""


def require(holds: bool, key: str, value: object, wanted: str) -> None:
    """Raise `ConfigError` unless ``holds``."""
    if not holds:
        raise ConfigError(key, value, wanted)


def one_of(key: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless ``value`` is one of ``choices``."""
    require(value in choices, key, value, f"must be one of {', '.join(choices)}")


def coerce(key: str, value: Any, kind: type, *, optional: bool = False) -> Any:
    """``value`` as a plain Python value of ``kind``, so that ``1`` and ``1.0``, or NumPy's and Python's, are one setting.

    Args:
        key: names the value in the error.
        value: a Python value, or a scalar of NumPy, pandas or torch.
        kind: ``int`` (also takes a whole float), ``float`` (also takes an int), ``bool`` or ``str``.
        optional: whether None is a value.

    Raises:
        ConfigError: ``value`` is not one of ``kind``. No text is read as a number, and no truth value taken for one.
    """
    if optional and value is None:
        return None
    given: object = value
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if kind in (int, float) and isinstance(value, Real) and not isinstance(value, bool):
        number: Any = value
        try:
            if kind is float or int(number) == number:
                return kind(number)
        except (OverflowError, ValueError):  # infinity and NaN are no whole numbers, and 10**400 is no float
            pass
    elif kind in (bool, str) and isinstance(value, kind):
        return kind(value)
    raise ConfigError(key, given, f"must be {EXAMPLES[kind]}" + (", or null" if optional else ""))


@cache
def _scalars(record: Any) -> tuple[tuple[str, type, bool], ...]:
    """The fields of a record that hold one plain value: name, type, and whether None is allowed."""
    hints = get_type_hints(record).items()
    return tuple((name, kind, hint != kind) for name, hint in hints for kind in EXAMPLES if hint in (kind, kind | None))


def _coerce_fields(record: Any, section: str) -> None:
    """Make the plain fields of a frozen record plain Python values of their types."""
    kind_of_record: Any = type(record)
    for name, kind, optional in _scalars(kind_of_record):
        object.__setattr__(record, name, coerce(section + name, getattr(record, name), kind, optional=optional))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a model comes from: the config group ``model``."""

    name: str = "shakespeare"
    out_dir: str = "out"
    meta: str | None = None
    path: str | None = None
    file: str = NANOGPT_FILE
    step: str = LAST_STEP
    tokenizer: str | None = None
    softcap: float | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        _coerce_fields(self, "model.")
        one_of("model", self.name, MODELS)
        counted = self.step.isascii() and self.step.isdecimal() and len(self.step) <= 18
        require(self.step == LAST_STEP or counted, "model.step", self.step, f"must be a step of the training, or {LAST_STEP}")
        object.__setattr__(self, "step", str(int(self.step)) if counted else self.step)
        soft = self.softcap is None or 0 < self.softcap < math.inf
        require(soft, "model.softcap", self.softcap, "must be a positive number, or null for that of the checkpoint's time")
        named = bool(self.file) and "\0" not in self.file
        require(named, "model.file", self.file, f"must be the name of a file in model.out_dir, such as {NANOGPT_FILE}")
        require(self.name != "hf" or bool(self.path), "model.path", self.path, "model=hf needs a local directory or a hub id")
        wanted = "must be a branch, a tag or a commit of the model on the hub; null is its main branch"
        require(self.revision is None or bool(self.revision.strip()), "model.revision", self.revision, wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """Where and in which arithmetic a model runs: the config group ``device``.

    ``name`` is ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. ``threads`` None: torch's own. ``max_rows`` None: planned
    from memory.
    """

    name: str = "auto"
    dtype: str = "auto"
    compile: bool = False
    threads: int | None = None
    max_rows: int | None = None

    def __post_init__(self) -> None:
        _coerce_fields(self, "device.")
        object.__setattr__(self, "dtype", DTYPE_ALIASES.get(self.dtype, self.dtype))
        kind, _, index = self.name.partition(":")
        require(
            self.name in ("auto", "cpu", "mps") or (kind == "cuda" and (index.isdecimal() or self.name == "cuda")),
            "device.name",
            self.name,
            "must be auto, cpu, cuda, cuda:N or mps",
        )
        one_of("device.dtype", self.dtype, DTYPES)
        for name in ("threads", "max_rows"):
            value = getattr(self, name)
            require(
                value is None or 1 <= value < _LIMIT, f"device.{name}", value, "must be at least 1 and below 2**31, or null"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """The declaration of a sampler's setting: the metadata of its field in `Sampling`.

    The config's schema, validation, the kernels' record, the README's row and what a `point_id` hashes follow from it. A
    sampler is one *step* of sampling, named like its setting where it has only one; `engine.chain` has the function of
    each step, on all rows at once.

    Args:
        place: where the step stands among the others; steps are applied in ascending order.
        neutral: the value that changes nothing: the default of a setting that 0.1 did not have.
        checks: each a condition on the value, and the end of the error if it does not hold.
        sentence: what the README says of it.
        step: the step that the setting belongs to; empty: its own name.
        switches: whether a value that is not neutral switches the step on. False: it only says how the step works.
        adjusts: whether the step changes the logits of some tokens, as it does for greedy rows too. False: it says which
            tokens are left, and how likely.
        kernel: the NumPy type of the setting's field in the kernels' `ROW` record; empty: the kernel has it from elsewhere;
            None: the kernel does not have the step, and rows that use it are sampled by the plain chain.
        off: what stands for None in that record.
        truncates: whether it takes tokens out of the choice. The samplers that do and are on name the family of a point in a
            comparison of samplers; of several settings of one sampler only the one that switches it on is declared so.
    """

    place: int
    neutral: object
    checks: tuple[tuple[Callable[[Any], bool], str], ...]
    sentence: str
    step: str = ""
    switches: bool = True
    adjusts: bool = False
    kernel: str | None = None
    off: float | None = None
    truncates: bool = False

    def is_on(self, value: object) -> bool:
        """Whether it does anything at this value of its setting: one that is neither neutral nor stands for that."""
        return value is not None and value != self.neutral and value != self.off


def sampler(**declaration: Any) -> dict[str, Sampler]:
    """The metadata of a sampler's field."""
    return {"sampler": Sampler(**declaration)}


DRY_BREAKERS = ("\n", ":", '"', "*")
_SHARE = (lambda p: p is None or 0 < p <= 1, "must be above 0 and at most 1, or null to switch it off")
_CUTOFF = (lambda p: 0 <= p < 1, "must be at least 0 and below 1; 0 switches it off")
_TOKENS = (lambda ids: all(0 <= token < _LIMIT for token in ids), "must hold token ids, 0 or above")
_ADDEND = (lambda value: abs(value) <= _GREATEST_ADDEND, "must be from -1e30 to 1e30; 0 switches it off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and when a sample ends: the config group ``sampling``.

    ``order`` says in which order the steps come: ``hf``, that of their places; ``llama``, llama.cpp's; or the names of steps.
    ``logit_bias`` holds ``(token id, addend)`` pairs by ascending id, and may be given as a mapping; ``stop`` and
    ``dry_breakers`` may be given as one text, or as any collection of texts. ``stop_on_repetition`` is empty, or a longest
    period n and a number of times k: a sample ends when its last tokens are the same period, of up to n tokens, k times.
    ``chat_template``: prompts are turns of a user.
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
            sentence="null switches it off; ties with the k-th are kept, as in nanoGPT",
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
            checks=((lambda p: p is None or 0 < p <= 1, "must be above 0 and at most 1, or null to switch it off"),),
            sentence="after temperature and top_k: the fewest likeliest tokens that hold this probability together",
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
            sentence="locally typical sampling: the tokens whose surprise is nearest to the entropy, up to this probability",
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
            sentence="as epsilon_cutoff, and less strict where the entropy is high; 0 switches it off",
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
            sentence="logits at most this many standard deviations below the greatest",
        ),
    )
    top_h: float | None = field(
        default=None,
        metadata=sampler(
            place=380,
            truncates=True,
            neutral=None,
            checks=(_SHARE,),
            sentence="of the 100 likeliest tokens the first, up to this share of their entropy",
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
            sentence="how often the likeliest tokens are excluded (XTC), by a coin of its own; 0 switches it off",
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
            sentence="XTC leaves the least likely of the tokens at least this likely, and those below",
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
            sentence="the temperature varies by so much around `temperature`, with the entropy; 0 switches it off",
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
            sentence="the power of the entropy's share of the greatest there could be",
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
            sentence="the surprise, in bits, that Mirostat 2.0 aims at; it comes last",
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
            sentence="how fast Mirostat learns",
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
            sentence="Hugging Face's: over prompt and completion",
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
            sentence="vLLM's: over the completion, once a token",
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
            sentence="vLLM's: over the completion, a count at a time",
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
                    lambda bias: all(0 <= token < _LIMIT and abs(addend) <= _GREATEST_ADDEND for token, addend in bias),
                    "must map token ids (0 or above) to numbers from -1e30 to 1e30",
                ),
                (lambda bias: bias == tuple(sorted(dict(bias).items())), "names a token id twice"),
            ),
            sentence="token id to addend: `'sampling.logit_bias={50256:-100}'`",
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
            sentence="what a token loses that would go on with a repetition (DRY) of prompt or completion; 0 switches it off",
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
            sentence="what each token more of the repetition multiplies that with",
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
            checks=((lambda length: 1 <= length < _LIMIT, "must be at least 1"),),
            sentence="tokens of a repetition that cost nothing",
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
            checks=((lambda length: length is None or 1 <= length < _LIMIT, "must be at least 1, or null for the whole text"),),
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
            sentence="texts that no repetition goes across",
        ),
    )
    no_repeat_ngram: int = field(
        default=0,
        metadata=sampler(
            place=240,
            kernel="i8",
            neutral=0,
            adjusts=True,
            checks=((lambda n: 0 <= n < _LIMIT, "must be 0 or above; 0 switches it off"),),
            sentence="no so many tokens come twice, in prompt and completion; 0 switches it off",
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
            sentence="token ids that are never sampled: `[198,628]`",
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
            checks=((lambda n: 0 <= n < _LIMIT, "must be 0 or above, and below 2**31"),),
            sentence="before so many, neither `stop_token_ids` nor, with `stop_at_eot`, the end of text is sampled",
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

    def __post_init__(self) -> None:
        def check(holds: bool, name: str, wanted: str) -> None:
            require(holds, f"sampling.{name}", given.get(name, getattr(self, name)), wanted)

        bias: Any = self.logit_bias
        given = {"logit_bias": dict(bias) if isinstance(bias, Mapping) else bias}  # as errors show them
        _coerce_fields(self, "sampling.")
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))
        for name in ("stop", "dry_breakers"):
            object.__setattr__(self, name, _texts(f"sampling.{name}", getattr(self, name)))
            given[name] = list(getattr(self, name))
        for name in ("suppress_tokens", "stop_token_ids", "stop_on_repetition"):
            object.__setattr__(self, name, _numbers(f"sampling.{name}", getattr(self, name)))
        if not isinstance(self.order, str):
            object.__setattr__(self, "order", _texts("sampling.order", self.order))
        for name in ("num_samples", "max_new_tokens"):
            check(1 <= getattr(self, name) < _LIMIT, name, "must be at least 1 and below 2**31")
        for name, declared in samplers_of(type(self)).items():
            for holds, wanted in declared.checks:
                check(holds(getattr(self, name)), name, wanted)
        check(all(self.stop), "stop", "holds an empty string, which would stop every sample at once")
        check(_TOKENS[0](self.stop_token_ids), "stop_token_ids", _TOKENS[1])
        repeated = self.stop_on_repetition
        some = len(repeated) == 2 and repeated[0] >= 1 and repeated[1] >= 2 and max(repeated) < _LIMIT
        check(some or not repeated, "stop_on_repetition", "must be [n, k], a period of up to n tokens, at least 2 times; or []")
        one_of("sampling.overflow", self.overflow, OVERFLOWS)
        one_of("sampling.rng", self.rng, RNGS)
        one_of("sampling.noise", self.noise, NOISES)
        _require_order(self)

    @property
    def penalises(self) -> bool:
        """Whether the logits depend on which tokens came before."""
        return "penalties" in active_steps(self)

    def uses(self, setting: str) -> bool:
        """Whether a sampler's setting, by name, is not neutral."""
        return bool(getattr(self, setting) != samplers_of(type(self))[setting].neutral)

    def as_json(self) -> dict[str, Any]:
        """Settings by name as JSON and pandas hold them: all of 0.1, and others where they are not neutral.

        ``num_samples``, which decides no token, is left out.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "num_samples"}
        neutral = neutral_settings(type(self))
        return {
            name: _as_json(name, value) for name, value in values.items() if name in SETTINGS_OF_0_1 or value != neutral[name]
        }


SETTINGS_OF_0_1 = (
    *("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "logit_bias", "stop", "stop_at_eot", "overflow", "rng", "noise"),
)
"""What every line of samples and every `point_id` names. A setting added since then is named where it is not neutral."""


def _cached(function: Callable[[type[Sampling]], _T]) -> Callable[[type[Sampling]], _T]:
    """`cache` for functions of a class: mypy takes the ``__hash__`` of a data class for that of its instances."""
    return cast(Callable[[type[Sampling]], _T], cache(function))


@_cached
def samplers_of(kind: type[Sampling]) -> dict[str, Sampler]:
    """The declarations of the samplers' settings by their names. ``kind`` is `Sampling`, or a class that adds to it."""
    return {f.name: f.metadata["sampler"] for f in fields(kind) if "sampler" in f.metadata}


@_cached
def neutral_settings(kind: type[Sampling]) -> dict[str, Any]:
    """The value of each setting that changes nothing: a sampler's as declared, another's default."""
    declared = samplers_of(kind)
    return {f.name: declared[f.name].neutral if f.name in declared else f.default for f in fields(kind)}


@_cached
def steps_of(kind: type[Sampling]) -> dict[str, tuple[str, ...]]:
    """The steps of sampling in their order, each with the names of its settings."""
    steps: dict[str, list[str]] = defaultdict(list)
    for name, declared in sorted(samplers_of(kind).items(), key=lambda item: item[1].place):
        steps[declared.step or name].append(name)
    return {step: tuple(names) for step, names in steps.items()}


def step_order(sampling: Sampling) -> tuple[str, ...]:
    """The steps of a row in its order, active or not. Some need not be named: bias and bans come first, mirostat last."""
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
            require(step in steps, "sampling.order", order, f"{step} is none of {', '.join(steps)}")
            require(order.count(step) == 1, "sampling.order", order, f"names {step} twice")
        require("mirostat" not in order[:-1], "sampling.order", order, "mirostat comes last")
    left_out = [step for step in _active(sampling) if step not in step_order(sampling)]
    require(not left_out, "sampling.order", order, f"has no {', '.join(left_out)}, which the settings use")


@lru_cache(4096)
def active_steps(sampling: Sampling) -> tuple[str, ...]:
    """The steps that change something for a row, in order. A greedy row takes the likeliest token whatever truncates."""
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
    require(all(isinstance(text, str) for text in texts), key, value, "must be a text, or several")
    return tuple(map(str, texts))


def _numbers(key: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise ConfigError(key, value, "must be a list of whole numbers")
    return tuple(coerce(key, number, int) for number in value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of a sweep, as the config says it; nothing is read from disk yet."""

    model: ModelSource = field(default_factory=ModelSource)
    device: DeviceSettings = field(default_factory=DeviceSettings)
    sampling: Sampling = field(default_factory=Sampling)
    start: str = "\n"
    seed: int = 1337

    def __post_init__(self) -> None:
        _coerce_fields(self, "")
        require(0 <= self.seed < 2**64, "seed", self.seed, "must be from 0 to 2**64 - 1")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: its text, and the id that samples carry."""

    id: str
    text: str

    def __post_init__(self) -> None:
        if not self.text:
            raise PromptError("start", self.text, f"prompt {self.id} is empty; give at least one character or <|endoftext|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """What an unfinished `Row` has so far: its first tokens, and sums in nats that the means of its `Completion` are made of.

    ``stream`` is the state of the generator behind ``rng=torch`` after these tokens; None where the noise is counter-based.
    """

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0
    sampler_logprob: float = 0.0
    entropy: float = 0.0
    stream: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sample for the engine to generate: token ids and settings, no text.

    Rows with equal ``prompt_ids`` share one prefill. ``noise_key`` is the 64-bit key of the counter noise; with
    ``prompt_index`` and ``sample_index`` it decides every random number of the row. ``end_tokens`` end the sample
    if ``sampling.stop_at_eot``; ``sampling.stop`` ends it where the backend finds one of these texts in what it
    decodes; ``dry_breakers`` are token ids that no repetition goes across. A row with a ``prefix`` continues after it,
    with the same result as without;
    of rows that draw from one stream (``rng=torch``), only the first may have a prefix.
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
        """How many tokens the row has already."""
        return 0 if self.prefix is None else len(self.prefix.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the engine made of a `Row`.

    ``token_ids`` holds every sampled token, the one that completed a stop string or was end-of-text included. The means run
    over those tokens: ``logprob_mean`` under the model's own distribution (temperature 1, nothing truncated or penalised),
    ``sampler_logprob_mean`` under the distribution sampled from, ``entropy_mean`` of the model's own distribution; all in
    nats, None where no token was sampled.
    """

    row: Row
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprob_mean: float | None
    sampler_logprob_mean: float | None
    entropy_mean: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A line of ``samples.jsonl``. It holds no time and no path, so that the same point gives the same bytes anywhere."""

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

    @property
    def key(self) -> tuple[int, int]:
        """The sample's place in its point, and in the file: ``(prompt_index, sample_index)``."""
        return self.prompt_index, self.sample_index

    def as_json(self) -> dict[str, Any]:
        """The line's fields in the file's order."""
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

    def line(self) -> str:
        """One line of JSON, newline included; lone surrogates and control characters are escaped."""
        return json.dumps(self.as_json(), ensure_ascii=True, allow_nan=False, separators=(", ", ": ")) + "\n"


def point_id(point: Point, *, prompts: tuple[Prompt, ...], weights: str, tokenizer: str, dtype: str, device_type: str) -> str:
    """Sixteen hex digits that name everything that decides the point's tokens, and nothing else.

    Args:
        point: the settings; ``num_samples``, rows, threads and names in it are left out.
        prompts: what ``point.start`` was read as.
        weights: fingerprint of the model's weights and shape.
        tokenizer: fingerprint of the vocabulary.
        dtype: the resolved dtype, never ``auto``; ``int8 in halves`` on a CPU where int8 products have to be parted.
        device_type: ``cpu``, ``cuda`` or ``mps``.
    """
    decides = {
        "engine_version": ENGINE_VERSION,
        "weights": weights,
        "tokenizer": tokenizer,
        "prompts": [asdict(prompt) for prompt in prompts],
        "sampling": point.sampling.as_json(),
        "seed": point.seed,
        "dtype": dtype,
        "device_type": device_type,
        "compile": point.device.compile,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
