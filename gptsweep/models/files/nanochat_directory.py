"""Find the checkpoints of nanochat and their tokenizer, without importing torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...errors import ModelError
from ...records import LAST_STEP, ModelSource
from .places import not_a_directory

KEY = "model.out_dir"
TOKENIZER = "tokenizer.pkl"


def steps_in(out_dir: str) -> dict[int, Path]:
    """Find the ``model_NNNNNN.pt`` of each step in a checkpoint directory, in ascending order of steps.

    Raises:
        ModelError: there is no such directory, or it holds no checkpoint.
    """
    directory = Path(out_dir).expanduser()
    if not directory.is_dir():
        wanted = "give a checkpoint directory of nanochat, such as base_checkpoints/d12"
        raise ModelError(KEY, out_dir, f"{not_a_directory(directory)}; {wanted}")
    named = [(re.fullmatch(r"model_(\d{1,18})\.pt", path.name), path) for path in directory.glob("model_*.pt")]
    found = {int(match[1]): path for match, path in named if match}
    if not found:
        inside = sorted({path.parent.name for path in directory.glob("*/model_*.pt")})
        hint = f"; there are some in {', '.join(inside[:5])}" if inside else ""
        raise ModelError(KEY, out_dir, f"there is no model_NNNNNN.pt of nanochat in this directory{hint}")
    return dict(sorted(found.items()))


def checkpoint_at(out_dir: str, step: str) -> tuple[int, Path]:
    """Return the step and the file that ``model.step`` names.

    Raises:
        ModelError: the directory does not hold them.
    """
    found = steps_in(out_dir)
    number = max(found) if step == LAST_STEP else int(step)
    if number not in found:
        there = list(map(str, found))
        some = there if len(there) <= 6 else [*there[:5], f"… {there[-1]}"]
        raise ModelError("model.step", step, f"is not in {out_dir}; there: {', '.join(some)}")
    return number, found[number]


def tokenizer_of(out_dir: str, chosen: str | None) -> Path:
    """Return the path of ``tokenizer.pkl``: ``chosen``, or where nanochat and its hub repositories store it.

    Raises:
        ModelError: it is not found.
    """
    if chosen is not None:
        path = Path(chosen).expanduser()
        return path / TOKENIZER if path.is_dir() else path
    directory = Path(out_dir).expanduser()
    here = Path(os.path.abspath(directory))
    places = [directory / TOKENIZER, *(place / "tokenizer" / TOKENIZER for place in (here, here.parent, here.parent.parent))]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(map(str, places))
    raise ModelError("model.tokenizer", None, f"no {TOKENIZER} found ({looked}); give the path of nanochat's {TOKENIZER}")


def find_nanochat(source: ModelSource) -> None:
    """Check that the weights and the vocabulary of ``model=nanochat`` exist.

    Raises:
        ModelError: they do not.
    """
    checkpoint_at(source.out_dir, source.step)
    tokenizer_of(source.out_dir, source.tokenizer)
