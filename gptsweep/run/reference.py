"""A text to hold samples against: cut into pieces as long as the samples, scored by the same model, measured the same way.

The pieces and their scores are kept as ``reference.json`` beside the results, so that the model is loaded once.

A run that sets ``reference`` scores the text when it is done, with its own model. A review opens a text only where its command
line names one. What the results say of themselves (a text in ``.hydra/config.yaml``, the path of a model) may be a stranger's,
and is not opened: of the models they name only those that have a name of ours are, and others the command line must name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..analysis.metrics import METRICS
from ..analysis.summary import summary_of
from ..display import get_logger
from ..engine.backend import Scorer
from ..errors import GptsweepError, ResultsError
from ..files import open_to_read
from ..prompts import read_reference
from ..records import DTYPES, FINISH_REASONS, MODELS
from ..store.durable import atomic_write
from ..store.reader import read_manifest
from ..store.schema import REFERENCE, is_whole

if TYPE_CHECKING:
    from ..analysis.frames import Sweep
    from .rows import OpenModel

log = get_logger(__name__)

MAX_PIECES = 200
MAX_BYTES = 64 * 2**20
"""A ``reference.json`` that is larger is not ours."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What is known of a reference text.

    ``metrics`` has every metric of its pieces by name; ``source`` is what was typed; ``note`` says where the text is too
    short to be held against the samples, else it is empty.
    """

    metrics: Mapping[str, float | None]
    source: str
    note: str = ""


def update_reference(directory: Path, sweep: Sweep, source: str, open_model: Callable[[], OpenModel]) -> Reference:
    """The reference text ``source`` as these samples' model scores it; kept in ``directory``, and scored once.

    Args:
        directory: where the results are, and ``reference.json`` goes.
        sweep: what was read of them.
        source: ``FILE:path``, from the command line or this run's own config.
        open_model: loads the model.

    Raises:
        GptsweepError: the text cannot be read, there is no sample yet, or the model cannot be loaded, is not the one that made
            the samples, or does not know the text's characters.
    """
    text = read_reference(source)
    if sweep.samples.empty:
        raise ResultsError("reference", source, "there is no sample yet to hold it against")
    length = int(sweep.samples["completion_tokens"].median()) or 1
    pieces = min(MAX_PIECES, int(sweep.summary["num_samples"].max()))
    sha256 = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    wanted: dict[str, object] = {"sha256": sha256, "length": length, "pieces": pieces}
    maker = maker_of(directory, sweep)
    kept = read_kept(directory)
    known = {name: maker.get(name) for name in ("weights", "tokenizer", "dtype")}
    if kept is None or kept["wanted"] != wanted | known:
        model = open_model()
        found = {"weights": model.fingerprint, "tokenizer": model.tokenizer.fingerprint, "dtype": model.dtype}
        for name in ("weights", "tokenizer"):
            if known[name] not in (None, found[name]):
                raise ResultsError("reference", source, f"the model has other {name} than the one that made these samples")
        samples = score(model, text, length=length, pieces=pieces)
        kept = {"wanted": wanted | found, "source": source, "samples": samples}
        atomic_write(directory / REFERENCE, (json.dumps(kept, indent=1) + "\n").encode())
    return reference_of(kept, sweep)


def score_own(directory: Path, source: str, open_model: Callable[[], OpenModel]) -> None:
    """`update_reference` for a run's own config, when it is done; where it fails, that is said in the log."""
    from ..analysis.frames import read_sweep  # it imports the report's readers, which a run without a reference need not

    try:
        reference = update_reference(directory, read_sweep(directory), source, open_model)
    except GptsweepError as error:
        log.warning("the reference text is left out: %s", error)
    else:
        if reference.note:
            log.warning("%s", reference.note)


def kept_reference(directory: Path, sweep: Sweep) -> Reference | None:
    """What an earlier run or review scored; None where there is none."""
    kept = read_kept(directory)
    return None if kept is None or sweep.samples.empty else reference_of(kept, sweep)


def reference_of(kept: Mapping[str, Any], sweep: Sweep) -> Reference:
    """The metrics of what ``reference.json`` holds, and whether it is long enough for these samples."""
    samples = kept["samples"]
    row = summary_of(samples)
    metrics = {name: row[name] for name in METRICS}
    length, pieces = samples[0]["completion_tokens"], len(samples)
    wanted_length = int(sweep.samples["completion_tokens"].median())
    wanted_pieces = min(MAX_PIECES, int(sweep.summary["num_samples"].max()))
    have = f"the reference text is short: it makes {pieces} {'piece' if pieces == 1 else 'pieces'} of {length:,} tokens"
    note = ""
    if length < wanted_length:
        note = f"{have}, and a sample has {wanted_length:,}; its metrics are of shorter text, and do not compare"
    elif pieces < wanted_pieces:
        note = f"{have}, and a point has {wanted_pieces} samples; metrics of whole points do not compare"
    return Reference(metrics, kept["source"], note)


def read_kept(directory: Path) -> dict[str, Any] | None:
    """What ``reference.json`` holds; None where there is none, or it is damaged."""
    try:
        with open_to_read(directory / REFERENCE) as file:
            data = file.read(MAX_BYTES + 1)
        kept = json.loads(data) if len(data) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(kept, dict) or not isinstance(kept.get("wanted"), dict) or not isinstance(kept.get("source"), str):
        return None
    samples = kept.get("samples")
    return kept if isinstance(samples, list) and 0 < len(samples) <= MAX_PIECES and all(map(is_piece, samples)) else None


def is_piece(record: Any) -> bool:
    """Whether a record has what the metrics read, as `score` makes it."""
    if not isinstance(record, dict) or not is_whole(record | {"prompt": "", "prompt_id": ""}):
        return False
    numbers = [record[f"{name}_mean"] for name in ("logprob", "sampler_logprob", "entropy")]
    return (
        all(value is None or (abs(value) < 1e6 and math.isfinite(value)) for value in numbers)
        and record["finish_reason"] in FINISH_REASONS
        and record.get("completion_tokens") == len(record["token_ids"]) > 0
    )


def maker_of(directory: Path, sweep: Sweep) -> dict[str, Any]:
    """What made the samples, as the first finished point's manifest says: ``model``, ``weights``, ``tokenizer``, ``dtype``."""
    done = sweep.summary.loc[sweep.summary["status"] == "complete", "directory"]
    for name in done.head(1):
        for place in (directory / str(name), directory):
            if (manifest := read_manifest(place)) is not None:
                return manifest
    return {}


def maker_name(sweep: Sweep, asked: str | None) -> tuple[str, str]:
    """The model that made these samples and the dtype it had: ``asked``, a name as `gptsweep.load` takes it, or one of ours.

    Raises:
        ResultsError: the results name the path of a model, and none was asked for.
    """
    row = sweep.summary[sweep.summary["num_samples"] > 0].iloc[0]
    name, dtype = row.get("model"), row.get("dtype")
    if asked is None and (name not in MODELS or name in ("resume", "hf")):
        place = next((row[key] for key in ("out_dir", "path") if key in row and pd.notna(row[key])), "PATH")
        raise ResultsError("model", name, f"a review opens no path that results name; to open this one add --model {place}")
    return asked or str(name), str(dtype) if dtype in DTYPES else "auto"


def score(model: OpenModel, text: str, *, length: int, pieces: int) -> list[dict[str, Any]]:
    """Pieces of ``length`` tokens, evenly spread over the text, with the model's log-probability and entropy of them.

    A token is scored after what precedes it in the text, as far as the model reads (at least half its ``block_size`` where
    the text has it). Ids that the tokenizer does not have are left out of the distribution, as they are in sampling.

    Returns:
        Records with the fields of a line of ``samples.jsonl`` that the metrics read.

    Raises:
        PromptError: the text has a character that the model does not know.
        ResultsError: the text is too short, or the model's backend scores no text.
    """
    backend = model.backend
    if not isinstance(backend, Scorer):
        raise ResultsError("reference", text, f"model={model.source.name} runs where no text can be scored")
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
        said = {
            "completion": model.tokenizer.decode(piece),
            "token_ids": piece,
            "completion_tokens": length,
            "finish_reason": "length",
        }
        records.append(place | said | {"logprob_mean": logprob, "sampler_logprob_mean": None, "entropy_mean": entropy})
    return records
