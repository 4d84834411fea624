"""User-defined metrics: functions of a sample, or of all samples of a point, as the argument's annotation says.

    def exclamations(sample: dict) -> float:
        return sample["completion"].count("!")

    def variety(samples: list) -> float:
        return len({sample["completion"] for sample in samples}) / len(samples)

A sample is a mapping with the fields `FIELDS` of its line of ``samples.jsonl``. A function may return None for a sample without
a value. A function is imported only if the command line, the run's own config or a program names it; files of results never do.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, GptsweepError, ResultsError
from ..store.schema import MEANS
from ..store.scores import Values, read_scores, write_scores
from .metrics import METRICS, Metric, Record

FIELDS = (
    "prompt_id", "prompt_index", "sample_index", "seed", "prompt", "completion", "finish_reason", "prompt_tokens",
    "completion_tokens", "token_ids", *MEANS,
)  # fmt: skip
"""The fields that a function finds in a sample."""


@dataclass(frozen=True, slots=True)
class OwnMetric:
    """A user's function as a metric.

    Args:
        metric: its declaration, under the function's name.
        function: called with a sample, or with a list of samples.
        source: a hash of the function's code; empty if the code cannot be read, and then values are not cached.
        key: ``module:function``.
    """

    metric: Metric
    function: Callable[[Any], Any]
    source: str
    key: str

    @classmethod
    def named(cls, text: str, setting: str = "metric") -> OwnMetric:
        """Import the metric ``module:function`` from the Python path or the working directory.

        Args:
            text: ``module:function`` as the user typed it.
            setting: the name of the setting, for errors.

        Raises:
            ConfigError: there is no such function, importing the module fails, or see `of`.
        """
        module, _, name = text.partition(":")
        if not module or not name.isidentifier():
            raise ConfigError(setting, text, "must be module:function, as in my_metrics:exclamations")
        if not {"", os.getcwd()} & set(sys.path):  # as with `python -m`
            sys.path.append(os.getcwd())
        try:
            found = importlib.import_module(module)
        except (Exception, SystemExit) as error:  # a script that ends the process when it is imported
            looked = f" (looked in {Path.cwd()} and where packages are)" if isinstance(error, ModuleNotFoundError) else ""
            raise ConfigError(setting, text, f"cannot be imported: {_message_of(error)}{looked}") from error
        if not callable(function := getattr(found, name, None)):
            raise ConfigError(setting, text, f"{module} has no function {name}")
        return cls.of(function, text)

    @classmethod
    def of(cls, function: Callable[[Any], Any], key: str = "") -> OwnMetric:
        """Make a metric of a function.

        Raises:
            ConfigError: its argument is not annotated as a sample or a list of samples, or another metric has its name.
        """
        name = getattr(function, "__name__", type(function).__name__)
        key = key or f"{getattr(function, '__module__', '')}:{name}"
        if name in METRICS or not name.isidentifier():
            raise ConfigError("metric", key, "must have a name of its own: def my_metric(sample: dict) -> float")
        per_point = _takes_list(function, key)
        meaning = (inspect.getdoc(function) or f"{key}, defined by the user").splitlines()[0]
        metric = Metric(
            name=name,
            label=name,
            meaning=meaning,
            field="" if per_point else name,
            of_point=(lambda texts: function([_sample(text.record) for text in texts])) if per_point else None,
            needs=f"a sample that {name} gives a value",
            default=True,
        )
        return cls(metric, function, _source(function), key)

    def values(self, records: Sequence[Record], directory: Path | None) -> Values:
        """One value per sample, or one for all of them; cached in ``scores.json`` of ``directory``.

        Args:
            records: the samples of a point in order, with at least the fields `FIELDS`.
            directory: the point's directory; None disables the cache.

        Raises:
            ResultsError: the function raises, or returns something that is not a number; the error names the sample.
        """
        samples = [_sample(record) for record in records]
        count = 1 if self.metric.per == "point" else len(samples)
        cache = directory if self.source else None
        stamp = hashlib.sha256(repr([tuple(sample.values()) for sample in samples]).encode("utf-8", "replace")).hexdigest()
        if cache and (found := read_scores(cache, self.key, source=self.source, samples=stamp, count=count)) is not None:
            return found
        place = f" of {directory}" if directory else ""
        if self.metric.per == "point":
            values: Values = [self._value(samples, f"{len(samples)} samples{place}")] if samples else [None]
        else:
            where = [f"sample {sample['prompt_index']}-{sample['sample_index']}{place}" for sample in samples]
            values = [self._value(sample, at) for sample, at in zip(samples, where, strict=True)]
        if cache:
            write_scores(cache, self.key, source=self.source, samples=stamp, values=values)
        return values

    def mean(self, records: Sequence[Record], directory: Path | None) -> float | None:
        """The value of a point: that of its samples together, or the mean over samples; see `values`."""
        known = [value for value in self.values(records, directory) if value is not None]
        return math.fsum(known) / len(known) if known else None

    def _value(self, argument: Any, where: str) -> float | None:
        try:
            found = self.function(argument)
            value = None if found is None else float(found)
        except GptsweepError:
            raise
        except (Exception, SystemExit) as error:
            raise ResultsError("metric", self.key, f"{where}: {_message_of(error)}") from error
        if value is not None and not math.isfinite(value):
            raise ResultsError(
                "metric", self.key, f"{where}: gives {value}, which is not finite; return None where there is no value"
            )
        return value


def _message_of(error: BaseException) -> str:
    """An error of a user's own code, whose text may be an error, too."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def _sample(record: Record) -> dict[str, Any]:
    return {name: record[name] for name in FIELDS}


def _takes_list(function: Callable[[Any], Any], key: str) -> bool:
    wanted = "must take one argument that is annotated, (sample: dict) or (samples: list)"
    try:
        (argument, *others) = inspect.signature(function, eval_str=True).parameters.values()
    except (TypeError, ValueError, NameError) as error:
        raise ConfigError("metric", key, wanted) from error
    kind = typing.get_origin(argument.annotation) or argument.annotation
    optional = (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
    needed = [other for other in others if other.default is other.empty and other.kind not in optional]
    if not isinstance(kind, type) or kind in (argument.empty, object, Any) or needed:
        raise ConfigError("metric", key, wanted)
    if issubclass(kind, Mapping):
        return False
    if issubclass(list, kind):
        return True
    raise ConfigError("metric", key, wanted)


def _source(function: Callable[[Any], Any]) -> str:
    """A hash of the module that defines a function, which covers its helpers there; of the function alone if it has no file.

    Empty if the hash would not determine the function's behaviour: it closes over values, or its code cannot be read.
    """
    if not inspect.isfunction(function) or function.__closure__ or function.__defaults__:
        return ""
    for thing in (inspect.getmodule(function), function):
        try:
            code = inspect.getsource(thing)  # type: ignore[arg-type]  # None is a TypeError
        except (OSError, TypeError):
            continue
        return hashlib.sha256(f"{function.__qualname__}\n{code}".encode("utf-8", "replace")).hexdigest()
    return ""
