"""A text to hold samples against: cut into pieces as long as the samples, scored by the same model, measured the same way.

The pieces and their scores are kept as ``reference.json`` beside the results, so that the model is loaded once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from .display import get_logger
from .errors import GptsweepError, ResultsError
from .metrics import STANDARD_ERROR, text_metrics
from .prompts import read_prompts
from .records import DeviceSettings, ModelSource
from .results import atomic_write, summarise

if TYPE_CHECKING:
    from .frames import Sweep
    from .session import LM

log = get_logger(__name__)

REFERENCE = "reference.json"
MAX_PIECES = 200


def update_reference(directory: Path, sweep: Sweep, asked: str | None = None) -> dict[str, float | None] | None:
    """The metrics of the reference text of these results; scored if that was not done yet, None if there is no such text.

    Args:
        directory: where the results are, and ``reference.json`` goes.
        sweep: what was read of them.
        asked: the text, or ``FILE:path``; by default what the config key ``reference`` said.

    Raises:
        GptsweepError: the text cannot be read, or the model cannot be loaded or does not know its characters.
    """
    point = first_point(directory, sweep)
    config = config_of(point) if point is not None else {}
    source = asked or config.get("reference")
    kept = read_reference(directory)
    if not source or sweep.samples.empty:
        return reference_metrics(kept["samples"]) if kept else None
    length = int(sweep.samples["completion_tokens"].median()) or 1
    pieces = min(MAX_PIECES, int(sweep.summary["num_samples"].max()))
    text = read_prompts(source)[0].text
    wanted = {
        "sha256": hashlib.sha256(text.encode(errors="replace")).hexdigest(),
        "model": config.get("model"), "length": length, "pieces": pieces,
    }  # fmt: skip
    if kept is None or kept["wanted"] != wanted:
        from .session import open_model  # torch: not before there is a text to score

        if not config.get("model"):
            raise ResultsError("reference", source, f"needs {point}/.hydra/config.yaml, which says the model")
        lm = open_model(chosen(ModelSource, config["model"]), chosen(DeviceSettings, config.get("device") or {}))
        kept = {"wanted": wanted, "source": source, "samples": score(lm, text, length=length, pieces=pieces)}
        atomic_write(directory / REFERENCE, (json.dumps(kept, indent=1) + "\n").encode())
    return reference_metrics(kept["samples"])


def try_update(directory: Path, sweep: Sweep) -> dict[str, float | None] | None:
    """`update_reference`; where that fails it is said in the log, and what was kept earlier stands."""
    try:
        return update_reference(directory, sweep)
    except GptsweepError as error:
        log.warning("the reference text is left out: %s", error)
        kept = read_reference(directory)
        return reference_metrics(kept["samples"]) if kept else None


def reference_metrics(samples: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Every metric of the pieces, by name."""
    row: dict[str, Any] = summarise({}, samples)
    return {name: row[name] for name in STANDARD_ERROR} | text_metrics(samples)


def read_reference(directory: Path) -> dict[str, Any] | None:
    """What ``reference.json`` holds; None where there is none, or it is damaged."""
    try:
        kept = json.loads((directory / REFERENCE).read_bytes())
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and isinstance(kept.get("samples"), list) and "wanted" in kept else None


def first_point(directory: Path, sweep: Sweep) -> Path | None:
    """The directory of a point whose config says what the reference is."""
    for name in sweep.summary["directory"].head(20):
        for path in (directory, directory / str(name)):
            if (path / ".hydra" / "config.yaml").is_file():
                return path
    return None


def config_of(point: Path) -> dict[str, Any]:
    """Hydra's record of a point's config."""
    found = yaml.safe_load((point / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def chosen(kind: type[Any], settings: dict[str, Any]) -> Any:
    """The record ``kind`` with those of the settings that it has."""
    names = {each.name for each in fields(kind)}
    return kind(**{name: value for name, value in settings.items() if name in names})


def score(lm: LM, text: str, *, length: int, pieces: int) -> list[dict[str, Any]]:
    """Pieces of ``length`` tokens, evenly spread over the text, with the model's log-probability and entropy of them.

    A token is scored after what precedes it in the text, as far as the model reads (at least half its ``block_size`` where
    the text has it). Ids that the tokenizer does not have are left out of the distribution, as they are in sampling.

    Returns:
        Records with the fields of a line of ``samples.jsonl`` that the metrics read.

    Raises:
        PromptError: the text has a character that the model does not know.
    """
    ids = lm.tokenizer.encode(text)
    if len(ids) < 2:
        raise ResultsError("reference", text, "is too short; give at least two tokens")
    length = min(length, len(ids) - 1)
    pieces = max(1, min(pieces, (len(ids) - 1) // length))
    records = []
    for index in range(pieces):
        start = 1 + (index * (len(ids) - 1 - length)) // max(1, pieces - 1)
        logprob, entropy = piece_score(lm, ids, start, start + length)
        piece = ids[start : start + length]
        place = {"prompt_index": 0, "seed": 0, "sample_index": index, "prompt_tokens": start}
        said = {
            "completion": lm.tokenizer.decode(piece),
            "token_ids": piece,
            "completion_tokens": length,
            "finish_reason": "length",
        }
        records.append(place | said | {"logprob_mean": logprob, "sampler_logprob_mean": None, "entropy_mean": entropy})
    return records


def piece_score(lm: LM, ids: Sequence[int], start: int, end: int) -> tuple[float, float]:
    """Mean log-probability and mean entropy, in nats, of the tokens ``start`` to ``end`` after those before them."""
    import torch  # 1 s: not before there is a text to score

    block_size = lm.model.config.block_size
    stride = max(1, block_size // 2)
    logprob = entropy = 0.0
    with torch.inference_mode():
        for first in range(start, end, stride):
            last = min(end, first + stride)
            window = torch.tensor([ids[max(0, last - 1 - block_size) : last - 1]], device=lm.model.embedding.device)
            logits = lm.model(window)[0, first - last :, : lm.tokenizer.vocab_size].float()
            logs = torch.log_softmax(logits, dim=-1)
            chosen_ids = torch.tensor(ids[first:last], device=logs.device)
            logprob += logs.gather(1, chosen_ids[:, None]).sum().item()
            entropy -= (logs.exp() * logs).sum().item()
    return logprob / (end - start), entropy / (end - start)
