"""The Python interface: load a model, generate with it, and sweep its settings without a run directory.

This module is long because the docstrings of its functions are the API reference.
"""

from __future__ import annotations

import difflib
import html
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from numbers import Integral
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, get_type_hints

import numpy as np
import numpy.typing as npt
import torch

from .analysis.metrics import METRICS
from .analysis.summary import text_metrics
from .display import one_line
from .engine.engine import Engine
from .engine.sampler import chained_probabilities
from .engine.torch_backend import TorchBackend, TorchBackends
from .errors import ConfigError, ModelError
from .models.architecture import Architecture
from .models.files.generated_text import TextStream
from .models.files.places import LITGPT_WEIGHTS
from .prompts import read_prompts
from .records import (
    AUTO,
    LAST_STEP,
    MODELS,
    NANOGPT_FILE,
    ORDERS,
    PLACE_KEYS,
    DeviceSettings,
    ModelSource,
    Point,
    Prompt,
    Sample,
    Samples,
    Sampling,
    coerce,
    neutral_settings,
)
from .run.executors.local import LocalExecutor
from .run.notebook import NotebookBar
from .run.rows import Finished, OpenModel, Plan, SampleKey, Task, encoded

if TYPE_CHECKING:
    import pandas as pd


_P = ParamSpec("_P")
_R = TypeVar("_R")


_MODELS_OWN = {"overflow": AUTO}
"""Settings that follow the model unless the user sets them."""


@dataclass(frozen=True, slots=True, eq=False)
class LM(OpenModel):
    """A loaded language model: `generate` text, or write your own loop on ``model(ids)``.

    ``model`` maps ``int64 [batch, time]`` to logits ``[batch, time, vocab_size]``; it is for inference only. ``dtype`` and
    ``device_type`` are resolved, never ``auto``. ``arithmetic`` is what the layers compute in, as hashed by `point_id`:
    ``dtype``, or ``int8 in halves`` on a CPU where version 0.1 saturated the sums of int8 layers, whose samples differ.
    ``promise``: whether samples are bit-identical in any batch.
    """

    backend: TorchBackend

    @property
    def model(self) -> Architecture:
        """The model as a torch module."""
        return self.backend.model

    @property
    def engine(self) -> Engine:
        """The engine that decodes rows."""
        return self.backend.engine

    def generate(self, prompts: str | Sequence[str], *, num_samples: int = 1, seed: int = 1337, **sampling: Any) -> Samples:
        """Continue one prompt or several.

        Args:
            prompts: the text to continue; ``FILE:``, ``LINES:`` and ``JSONL:`` are not interpreted here.
            num_samples: completions of each prompt.
            seed: from 0 to 2**64 - 1.
            **sampling: any key of the config group ``sampling`` (``temperature=0.8, top_k=200, max_new_tokens=500, …``).

        Returns:
            A list of `Sample` records ordered by prompt and sample: ``.completion`` is the text, ``.token_ids`` are the sampled
            tokens.

        Raises:
            ConfigError: a setting is out of range.
            PromptError: a prompt is empty, cannot be encoded, or does not fit with ``overflow="stop"``.
            ModelError: the model's logits contain NaN or infinity.
            MemoryError: not even one row fits into memory.
        """
        texts = [prompts] if isinstance(prompts, str) else _listed("prompts", prompts)
        task = self._task(texts, seed, num_samples=num_samples, **sampling)
        return Samples(sample for _, sample in _generated(self, [task]))

    def stream(self, prompt: str, *, seed: int = 1337, **sampling: Any) -> Iterator[str]:
        """Continue a prompt and yield the text piece by piece; joined, the pieces are the ``completion`` of `generate`.

        Pieces contain complete characters and no part of a stop string. Close the iterator, or drop it, to stop early.

        Args:
            prompt, seed, **sampling: as in `generate`.

        Raises:
            ConfigError, PromptError: as in `generate`, before the first piece.
            ModelError, MemoryError: as in `generate`.
        """
        if "num_samples" in sampling:
            raise ConfigError("sampling.num_samples", sampling["num_samples"], "stream makes one sample; use generate for more")
        return self._pieces(self._task([prompt], seed, num_samples=1, **sampling))

    def _pieces(self, task: Task) -> Iterator[str]:
        text, seen = TextStream(self.tokenizer, task.point.sampling.stop), 0
        for finished, progress in self.engine.steps([task.row((0, 0))], watched=False):
            for completion in finished:
                if rest := text.rest(Finished.of(self.tokenizer, completion).text):
                    yield rest
            for _, prefix in progress.unfinished():
                for token in prefix.token_ids[seen:]:
                    if piece := text.add(token):
                        yield piece
                seen = len(prefix.token_ids)

    def _task(self, texts: Sequence[Any], seed: int, *, num_samples: int, **sampling: Any) -> Task:
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise ConfigError("prompts", wrong[0], "must be a string, or several")
        point = Point(
            model=self.source,
            device=self.device,
            sampling=sampling_of(("prompts", "seed"), num_samples=num_samples, **_MODELS_OWN | sampling),
            seed=seed,
        )
        prompts = tuple(Prompt(str(i), text) for i, text in enumerate(texts))
        return Task.of(self, point, encoded(self, prompts, chat_template=point.sampling.chat_template))

    def _repr_html_(self) -> str:
        """Show in notebooks which model is loaded and how it computes."""
        source = self.source
        where = source.place
        context = "any length" if self.backend.block_size is None else f"{self.backend.block_size:,} tokens"
        facts = {
            "model": source.name if where is None else f"{source.name}, {where}",
            "architecture": type(self.model).__name__,
            "context": context,
            "vocabulary": f"{self.backend.vocab_size:,}",
            "computes in": f"{self.dtype} on {self.device_type}",
            "same samples in any batch": "yes" if self.promise else "no",
        }
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(one_line(value))}</td></tr>" for name, value in facts.items())
        return f"<table>{rows}</table>"


def _refusing_unknown(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Wrap ``function`` so that an unknown keyword raises `ConfigError`."""
    known = list(signature(function).parameters)

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        for name, value in kwargs.items():
            if name not in known:
                raise _unknown(name, value, known)
        return function(*args, **kwargs)

    return call


@_refusing_unknown
def load(
    model: str | os.PathLike[str] = "shakespeare",
    *,
    device: str = "auto",
    dtype: str = "auto",
    compile: bool = False,
    threads: int | None = None,
    max_rows: int | None = None,
    meta: str | None = None,
    file: str = NANOGPT_FILE,
    step: int | str = LAST_STEP,
    tokenizer: str | None = None,
    softcap: float | None = None,
    revision: str | None = None,
) -> LM:
    """Load a model.

    Args:
        model: ``shakespeare``, ``gpt2``, ``gpt2-medium``, ``gpt2-large``, ``gpt2-xl``; a nanoGPT ``out_dir`` (a directory
            with ``ckpt.pt``); a checkpoint directory of nanochat (with ``model_NNNNNN.pt``) or of LitGPT (with
            ``lit_model.pth``); a ``.bin`` of llm.c; or a directory or hub id with ``config.json`` and safetensors of a
            supported architecture (docs/settings.md, "Which files are read").
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``, ``int8``.
        compile: whether to use `torch.compile`.
        threads: CPU threads; None: as many as torch uses, or fewer if other processes leave fewer cores.
        max_rows: the number of rows to decode together; None derives it from free memory.
        meta: path of a nanoGPT checkpoint's ``meta.pkl`` if it is not found automatically; ``gpt2`` is GPT-2's encoding.
        file: the checkpoint in a nanoGPT ``out_dir`` if it is not ``ckpt.pt``.
        step: the training step of a nanochat checkpoint; ``last`` is the latest.
        tokenizer: path of nanochat's ``tokenizer.pkl`` if it is not found automatically.
        softcap: the softcap of a nanochat model's logits if it differs from the code of the checkpoint's time.
        revision: a branch, tag or commit of a model on the hub other than the main branch.

    Raises:
        ModelError: there is no such model, or it cannot be read.
        DeviceError: the device, dtype or compiler is not available.
        ConfigError: a keyword is not a setting.
    """
    if not isinstance(model, (str, os.PathLike)):
        raise ModelError("model", model, f"must be a directory, or one of {', '.join(MODELS)}")
    name = os.fspath(model)
    directory = Path(name)
    there = os.path.isdir(directory)  # not Path's: it raises for a name that is too long
    saved = there and (
        (directory / NANOGPT_FILE).exists() or (any(directory.glob("*.pt")) and not (directory / "config.json").exists())
    )
    of_nanochat = there and any(directory.glob("model_*.pt")) and any(directory.glob("meta_*.json"))
    if (step, tokenizer, softcap) != (LAST_STEP, None, None) or (of_nanochat and file == NANOGPT_FILE):
        source = ModelSource(name="nanochat", out_dir=name, step=str(step), tokenizer=tokenizer, softcap=softcap)
    elif file != NANOGPT_FILE or saved:
        source = ModelSource(name="resume", out_dir=name, meta=meta, file=file)
    elif there and (directory / LITGPT_WEIGHTS).exists():
        source = ModelSource(name="litgpt", path=name)
    elif os.path.isfile(name) and directory.suffix == ".bin":
        source = ModelSource(name="llmc", path=name)
    elif name in PLACE_KEYS or there or "/" in name or revision is not None:
        source = ModelSource(name="hf", path=name, revision=revision)
    elif name in MODELS:
        source = ModelSource(name=name)
    else:
        near = difflib.get_close_matches(name, MODELS, n=1)
        meant = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(MODELS)}"
        raise ModelError("model", name, f"is not a known model, a directory, or a hub id such as owner/name{meant}")
    settings = DeviceSettings(name=device, dtype=dtype, compile=compile, threads=threads, max_rows=max_rows)
    return open_model(source, settings)


def open_model(source: ModelSource, settings: DeviceSettings) -> LM:
    """Load a model as `load` does, from the records of a config."""
    return LM(source, settings, *TorchBackends().open(source, settings))


def sampling_of(others: Sequence[str] = (), /, **settings: Any) -> Sampling:
    """Make `Sampling` from keyword arguments; lists and dicts are accepted.

    Args:
        others: other arguments of the user's call, to suggest in the error.
        **settings: fields of `Sampling`.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    known = sorted(Sampling.__dataclass_fields__)
    for name, value in settings.items():
        if name not in known:
            raise _unknown(f"sampling.{name}", value, [*known, *others])
    return Sampling(**settings)


def _unknown(key: str, value: object, known: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
    return ConfigError(
        key, value, f"no such setting; did you mean {near[0]}?" if near else f"no such setting; there are {', '.join(known)}"
    )


def distribution(
    logits: Any,
    *,
    prompt_ids: Sequence[int] = (),
    completion_ids: Sequence[int] = (),
    dry_breakers: Iterable[int | Sequence[int]] = (),
    **sampling: Any,
) -> npt.NDArray[np.float64]:
    """Apply the samplers to one row of logits and return the probability of sampling each token.

    This runs the plain sampler chain that rows are sampled by, without the noise.

    Args:
        logits: ``[vocab_size]``, a NumPy array, a torch tensor or a list.
        prompt_ids: the tokens of the prompt, for the repetition penalty, DRY and ``no_repeat_ngram``.
        completion_ids: the tokens sampled so far, for all penalties.
        dry_breakers: token ids, or sequences of them, that end a repetition; there is no tokenizer here.
        **sampling: keys of the config group ``sampling``. Defaults are neutral: ``temperature`` 1, ``top_k`` null.

    Returns:
        ``float64 [vocab_size]``; with ``xtc_probability`` below 1, the mixture of both outcomes of its coin; with
        ``mirostat_tau``, the distribution at a sample's first token.

    Raises:
        ConfigError: a setting is out of range, or the logits are not one row.
    """
    try:
        row = torch.as_tensor(logits).detach().cpu()
        row = row if row.is_floating_point() and torch.is_tensor(logits) else row.double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError("logits", logits, "must be numbers") from error
    if row.ndim != 1 or not len(row) or row.isnan().any() or not row.isfinite().any():
        raise ConfigError("logits", list(row.shape), "must be one row, [vocab_size], with at least one finite value")
    prompt, completion = (tuple(map(int, ids)) for ids in (prompt_ids, completion_ids))
    for key, ids in (("prompt_ids", prompt), ("completion_ids", completion)):
        if any(not 0 <= token < len(row) for token in ids):
            raise ConfigError(key, list(ids), f"token ids are from 0 to {len(row) - 1} here")
    settings = neutral_settings(Sampling) | {"max_new_tokens": len(completion) + 1} | sampling
    listed: list[Any] = list(dry_breakers)
    breakers = tuple((int(each),) if isinstance(each, Integral) else tuple(map(int, each)) for each in listed)
    return chained_probabilities(row, sampling_of(**settings), prompt, completion, breakers).numpy()


def sweep(
    lm: LM,
    *,
    points: Iterable[Mapping[str, Any]] | pd.DataFrame = ({},),
    start: str | Sequence[str] = "\n",
    seed: int | Sequence[int] = 1337,
    **sampling: Any,
) -> pd.DataFrame:
    """Generate every combination of settings in one batched pass.

    Args:
        lm: a loaded model.
        points: settings by name: mappings, one per point, or a frame with one row per point (where a missing value is None).
            Each is combined with every combination of the other arguments. A setting may be in points or an argument, not
            both, except that ``start`` and ``seed`` then apply to the points without one.
        start: a prompt, or ``FILE:``, ``LINES:`` or ``JSONL:`` and a path; several sweep over them.
        seed: a seed, or several.
        **sampling: keys of the config group ``sampling``; several values sweep over them (for ``stop``, a list of lists). They
            may be a list, a range, a generator, an array or a column of a frame.

    Returns:
        One row per sample, with the columns of ``samples.jsonl``, ``logprobs`` if requested (`records.SampleLogprobs`), and the
        metrics of `gptsweep.analysis.metrics`. A metric per sample (such as ``diversity``) is that of the row's sample. A
        metric per point (such as ``self_bleu_4``) is that of all samples of its point, repeated in each of their rows, so that
        means over groups are means over points. Points keep their order, then follow the order of the arguments, the last one
        varying fastest.

    Raises:
        ConfigError, PromptError, MemoryError: as in `LM.generate`.
        ModelError: as in `LM.generate`; or ``lm`` is not a loaded model.
    """
    import pandas as pd  # late: half a second that only this function needs

    if not isinstance(lm, LM):
        raise ModelError("lm", lm, "must be a loaded model: gptsweep.sweep(gptsweep.load(…), …)")
    axes = {name: _axis(name, values) for name, values in {"start": start, "seed": seed, **sampling}.items()}
    lists = list(axes.values())
    tasks = []
    for own, combination in itertools.product(_points(points, sampling), itertools.product(*lists)):
        settings = dict(zip(axes, combination, strict=True)) | own
        text, number = coerce("start", settings.pop("start"), str), settings.pop("seed")
        point = Point(
            model=lm.source,
            device=lm.device,
            sampling=sampling_of(("start", "seed"), **_MODELS_OWN | settings),
            start=text,
            seed=number,
        )
        tasks.append(Task.of(lm, point, encoded(lm, read_prompts(text), chat_template=point.sampling.chat_template)))
    samples = _generated(lm, tasks)
    records: list[dict[str, Any]] = []
    for _, of_point in itertools.groupby(samples, key=lambda found: found[0][0]):
        lines = [
            sample.as_json() | ({"logprobs": sample.logprobs} if sample.logprobs is not None else {}) for _, sample in of_point
        ]
        common = {
            name: value for name, value in text_metrics(lines).items() if name in METRICS and METRICS[name].per == "point"
        }
        for line in lines:
            own = text_metrics([line])
            records.append(line | {name: common.get(name, own.get(name, line.get(name))) for name in METRICS})
    return pd.DataFrame(records).astype(dict.fromkeys(METRICS, float) if records else {})


def _generated(lm: LM, tasks: Sequence[Task]) -> list[tuple[SampleKey, Sample]]:
    """Generate all samples of some points in one batched pass, and return them in order; a notebook shows a progress bar."""
    plan = Plan.of(lm, tasks)
    samples = []
    with NotebookBar(sum(map(len, plan.recipients))) as bar:
        for found in LocalExecutor(TorchBackends()).run(lm, plan, bar.on_step):
            samples.append(found)
            bar.add_sample()
    return sorted(samples, key=itemgetter(0))


def _points(points: Any, others: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The argument ``points`` of `sweep` as settings by name.

    Raises:
        ConfigError: they are not mappings, there are none, or a setting is in ``others``, too.
    """
    if hasattr(points, "to_dict") and getattr(points, "ndim", 0) == 2:  # a pandas frame
        columns = {str(name): _listed(str(name), points[name]) for name in points}
        points = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    listed = _listed("points", points)
    if not listed or not all(isinstance(point, Mapping) for point in listed):
        raise ConfigError("points", points, "must be mappings from settings to values, at least one, one per point")
    for point in listed:
        if twice := sorted(map(str, point.keys() & others.keys())):
            raise ConfigError(twice[0], others[twice[0]], "is also a setting of points; give it in one place only")
    return [dict(point) for point in listed]


def _axis(name: str, values: Any) -> list[Any]:
    """The values of an argument of `sweep`: the items of a collection; for a setting that is itself a list, its items."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        return [values]
    listed = _listed(name, values)
    one = {key: (list, tuple) for key, hint in get_type_hints(Sampling).items() if getattr(hint, "__origin__", None) is tuple}
    kinds = {**one, "logit_bias": (Mapping,), "order": (list, tuple)}.get(name, (object,))
    if not any(isinstance(value, kinds) or (name == "order" and value in ORDERS) for value in listed):
        return [listed]
    return listed


def _listed(name: str, values: Any) -> list[Any]:
    """The items of a collection: a list, a generator, a range, an array, a column of a frame.

    Raises:
        ConfigError: it is not a collection, or it is empty.
    """
    if isinstance(values, (bytes, Mapping)) or not isinstance(values, Iterable):
        raise ConfigError(name, values, "must be one value, or a list of them")
    if hasattr(values, "isna") and getattr(values, "ndim", 0) == 1:  # a pandas column, where None becomes a missing value
        return [None if missing else value for value, missing in zip(values, values.isna(), strict=True)]
    return list(values)
