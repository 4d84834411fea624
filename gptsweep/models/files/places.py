"""Where the files of a model are: in a directory here, or on the hub.

The module imports no torch, so that an error about files that are not there comes at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from ...errors import ModelError
from ...records import NANOGPT_FILE, ModelSource
from .hub import HUB_OWNER, HubFiles, cached_name

PATH = "model.path"
LITGPT_WEIGHTS, LITGPT_CONFIG = "lit_model.pth", "model_config.yaml"
MERGE = "merge it with peft's model.merge_and_unload(), then save_pretrained(DIR)"


class ModelFiles(Protocol):
    """The files of a Hugging Face model; ``key`` and ``value`` name it in errors.

    ``unreachable``: why the place where they are kept could not be asked for a file, None as long as it could.
    """

    key: str
    value: str
    unreachable: str | None

    def find(self, name: str) -> Path | None:
        """The path of a file of the model, None where it has none of that name."""
        ...

    def absent(self, what: str) -> ModelError:
        """The error that says that ``what`` is needed and not there."""
        ...


class LocalFiles:
    """The model's files in a directory."""

    def __init__(self, directory: Path, key: str, value: str) -> None:
        self.key, self.value = key, value
        self.unreachable: str | None = None
        self._directory = directory

    def find(self, name: str) -> Path | None:
        path = self._directory / name
        return path if path.is_file() else None

    def absent(self, what: str) -> ModelError:
        return ModelError(self.key, self.value, f"the directory has no {what}")


def find_nanogpt(source: ModelSource) -> None:
    """Check that the checkpoint of ``model=resume`` is there.

    Raises:
        ModelError: it is not.
    """
    nanogpt_file(source.out_dir, source.file)


def find_hf(source: ModelSource) -> None:
    """Check that the model of ``model=hf`` or ``model=gpt2`` is there, which fetches its ``config.json``.

    Raises:
        ModelError: it is not.
    """
    config_of(files_of(source))


def find_llmc(source: ModelSource) -> None:
    """Check that the ``.bin`` of ``model=llmc`` is there.

    Raises:
        ModelError: it is not.
    """
    llmc_file(source.path or "")


def find_litgpt(source: ModelSource) -> None:
    """Check that the weights and the config of ``model=litgpt`` are there.

    Raises:
        ModelError: they are not.
    """
    litgpt_directory(source.path or "")


def files_of(source: ModelSource) -> ModelFiles:
    """The files of ``model=hf`` or ``model=gpt2``.

    Raises:
        ModelError: ``model.path`` is neither a directory nor a hub id.
    """
    if source.name != "hf":
        return HubFiles(cached_name(source.name), "model", source.name)
    path = source.path or ""
    directory = Path(path).expanduser()
    if directory.is_dir():
        if source.revision is not None:
            what = f"model.path={path} is a directory here, and revisions are those of a model on the hub"
            raise ModelError("model.revision", source.revision, what)
        return LocalFiles(directory, PATH, path)
    if directory.exists():
        raise ModelError(PATH, path, "is a file; give the directory that holds config.json and the safetensors")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):
        raise ModelError(PATH, path, f"no such directory in {Path.cwd()}, and not a hub id such as {HUB_OWNER}/gpt2")
    return HubFiles(path, PATH, path, source.revision)


def config_of(files: ModelFiles) -> Path:
    """The model's ``config.json``.

    Raises:
        ModelError: it is not there.
    """
    if (path := files.find("config.json")) is None:
        if files.find("adapter_config.json") is not None:
            raise ModelError(files.key, files.value, f"is an adapter of PEFT without its model; {MERGE}")
        raise files.absent("config.json")
    return path


def llmc_file(name: str) -> Path:
    """The ``.bin`` of llm.c called ``name``.

    Raises:
        ModelError: it is not there.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        there = _some(found.name for found in path.glob("*.bin"))
        raise ModelError(PATH, name, f"is a directory; give a .bin of llm.c's{f', here {there}' if there else ''}")
    if not path.exists():
        raise ModelError(PATH, name, f"no such file in {Path.cwd()}; give a .bin that llm.c wrote, such as gpt2_124M.bin")
    return path


def litgpt_directory(name: str) -> Path:
    """The checkpoint directory of LitGPT called ``name``.

    Raises:
        ModelError: there is none, or its weights or its config are not in it.
    """
    directory = Path(name).expanduser()
    if not directory.is_dir():
        missing = "is a file, not a directory" if directory.exists() else f"no such directory in {Path.cwd()}"
        raise ModelError(PATH, name, f"{missing}; give a checkpoint directory of LitGPT, such as out/pretrain/final")
    if not (directory / LITGPT_WEIGHTS).exists():
        if (directory / f"{LITGPT_WEIGHTS}.lora").exists():
            raise ModelError(PATH, name, f"holds the weights of LoRA alone; merge them: litgpt merge_lora {name}")
        inside = _some(found.parent.name for found in directory.glob(f"*/{LITGPT_WEIGHTS}"))
        hint = f"; there is one in {inside}" if inside else "; give a checkpoint directory of LitGPT"
        raise ModelError(PATH, name, f"there is no {LITGPT_WEIGHTS} in this directory{hint}")
    if not (directory / LITGPT_CONFIG).exists():
        raise ModelError(PATH, name, f"there is no {LITGPT_CONFIG} beside the weights, which says how they compute")
    return directory


def _some(names: Iterable[str]) -> str:
    """Some of many names, for an error."""
    each = sorted(set(names))
    more = f" and {len(each) - 5:,} more" if len(each) > 5 else ""
    return f"{', '.join(each[:5])}{more}"


def nanogpt_file(out_dir: str, name: str = NANOGPT_FILE) -> Path:
    """The checkpoint ``name`` in an ``out_dir`` of nanoGPT.

    Raises:
        ModelError: it is not there.
    """
    directory = Path(out_dir).expanduser()
    if not (directory / name).exists():
        raise _no_checkpoint(directory, out_dir, name)
    return directory / name


def _no_checkpoint(directory: Path, out_dir: str, name: str) -> ModelError:
    if directory.is_dir():
        if beside := _some(found.name for found in directory.glob("*.pt")):
            return ModelError("model.file", name, f"is not in {out_dir}; there: {beside}")
        if name != NANOGPT_FILE:
            return ModelError("model.file", name, f"is not in {out_dir}, nor is any other *.pt")
    others = sorted(str(found.parent) for found in Path().glob(f"*/{NANOGPT_FILE}"))
    hint = f"; there is one in {', '.join(others[:5])}" if others else "; give the out_dir of nanoGPT's train.py"
    if directory.is_dir():
        return ModelError("model.out_dir", out_dir, f"there is no {NANOGPT_FILE} in this directory{hint}")
    missing = "is a file, not a directory" if directory.exists() else f"no such directory in {Path.cwd()}"
    return ModelError("model.out_dir", out_dir, f"{missing}{hint}")
