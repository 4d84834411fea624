"""A reference text to compare samples with: cut into pieces as long as the samples, and scored and measured the same way.

The pieces and their scores are saved as ``reference.json`` beside the results, so that the model is loaded only once.

A run that sets ``reference`` scores the text at its end, with its own model. A review opens only texts that its command line
names. Paths in results (of a text in ``.hydra/config.yaml``, of a model) may be a stranger's and are never opened; of the
models that results name, a review opens only the known ones, and the command line must name others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..analysis.frames import read_sweep
from ..analysis.reference import MAX_PIECES, Reference, read_reference_json, reference_of
from ..analysis.sweep import Sweep
from ..display import get_logger
from ..engine.backend import Scorer
from ..errors import GptsweepError, ResultsError
from ..models.files.generated_text import completion_text
from ..prompts import read_reference
from ..records import DTYPES, MODELS, PLACE_KEYS
from ..store.durable import atomic_write
from ..store.reader import read_manifest
from ..store.schema import REFERENCE

if TYPE_CHECKING:
    from .rows import OpenModel

log = get_logger(__name__)


def update_reference(directory: Path, sweep: Sweep, source: str, open_model: Callable[[], OpenModel]) -> Reference:
    """Score the reference text ``source`` with the model that made these samples, once; the result is saved in ``directory``.

    Args:
        directory: the results, and the location of ``reference.json``.
        sweep: the results as read.
        source: ``FILE:path``, from the command line or this run's own config.
        open_model: loads the model.

    Raises:
        GptsweepError: the text cannot be read, there are no samples yet, or the model cannot be loaded, is not the one that
            made the samples, or lacks a character of the text.
    """
    text = read_reference(source)
    if sweep.samples.empty:
        raise ResultsError("reference", source, "there are no samples to compare it with yet")
    length = int(sweep.samples["completion_tokens"].median()) or 1
    pieces = min(MAX_PIECES, int(sweep.summary["num_samples"].max()))
    sha256 = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    wanted: dict[str, object] = {"sha256": sha256, "length": length, "pieces": pieces}
    manifest = first_manifest(directory, sweep)
    saved = read_reference_json(directory)
    known = {name: manifest.get(name) for name in ("weights", "tokenizer", "dtype")}
    if saved is None or saved["wanted"] != wanted | known:
        log.info("scoring the reference text, %s", source)
        model = open_model()
        found = {"weights": model.fingerprint, "tokenizer": model.tokenizer.fingerprint, "dtype": model.dtype}
        for name in ("weights", "tokenizer"):
            if known[name] not in (None, found[name]):
                raise ResultsError("reference", source, f"the model is not the one that made these samples: different {name}")
        samples = score(model, text, length=length, pieces=pieces)
        saved = {"wanted": wanted | found, "source": source, "samples": samples}
        atomic_write(directory / REFERENCE, (json.dumps(saved, indent=1) + "\n").encode())
    return reference_of(saved, sweep)


def score_own(directory: Path, source: str, open_model: Callable[[], OpenModel]) -> None:
    """`update_reference` at the end of a run, from its own config; errors are only logged."""
    try:
        reference = update_reference(directory, read_sweep(directory), source, open_model)
    except GptsweepError as error:
        log.warning("ignoring the reference text: %s", error)
    else:
        if reference.note:
            log.warning("%s", reference.note)


def first_manifest(directory: Path, sweep: Sweep) -> dict[str, Any]:
    """The origin of the samples from the first finished point's manifest: ``model``, ``weights``, ``tokenizer``, ``dtype``."""
    done = sweep.summary.loc[sweep.summary["status"] == "complete", "directory"]
    for name in done.head(1):
        for place in (directory / str(name), directory):
            if (manifest := read_manifest(place)) is not None:
                return manifest
    return {}


def model_name(sweep: Sweep, named: str | None) -> tuple[str, str]:
    """The model that made these samples and its dtype. ``named`` is a name for `gptsweep.load`; None: a known model's name.

    Raises:
        ResultsError: the results name the path of a model, and ``named`` is None.
    """
    row = sweep.summary[sweep.summary["num_samples"] > 0].iloc[0]
    name, dtype = row.get("model"), row.get("dtype")
    if named is None and (name not in MODELS or name in PLACE_KEYS):
        place = next((row[key] for key in ("out_dir", "path") if key in row and pd.notna(row[key])), "PATH")
        raise ResultsError("model", name, f"a review does not open paths that results name; to open it, add --model {place}")
    return named or str(name), str(dtype) if dtype in DTYPES else "auto"


def score(model: OpenModel, text: str, *, length: int, pieces: int) -> list[dict[str, Any]]:
    """Pieces of ``length`` tokens, evenly spread over the text, with the model's log-probabilities and entropies.

    A token is scored given the text before it, as far as the model's context reaches (at least half the ``block_size``, if the
    text has that much). Ids that the tokenizer lacks are left out of the distribution, as in sampling.

    Returns:
        Records with the fields of ``samples.jsonl`` that metrics read.

    Raises:
        PromptError: the text has a character that is not in the model's vocabulary.
        ResultsError: the text is too short, or the model's backend cannot score text.
    """
    backend = model.backend
    if not isinstance(backend, Scorer):
        raise ResultsError("reference", text, f"the backend of model={model.source.name} cannot score text")
    ids = model.tokenizer.encode(text)
    if len(ids) < 2:
        raise ResultsError("reference", text, "is too short; give at least two tokens")
    length = min(length, len(ids) - 1)
    pieces = max(1, min(pieces, (len(ids) - 1) // length))
    records = []
    for index in range(pieces):
        start = 1 + (index * (len(ids) - 1 - length)) // max(1, pieces - 1)
        logprob, entropy = backend.score(ids, start, start + length)
        piece = ids[start : start + length]
        place = {"prompt_index": 0, "seed": 0, "sample_index": index, "prompt_tokens": start}
        text_fields = {
            "completion": completion_text(model.tokenizer, piece, (), None),
            "token_ids": piece,
            "completion_tokens": length,
            "finish_reason": "length",
        }
        records.append(place | text_fields | {"logprob_mean": logprob, "sampler_logprob_mean": None, "entropy_mean": entropy})
    return records
