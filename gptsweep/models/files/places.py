"""Find the files of a model, in a local directory or on the hub.

This module does not import torch, so an error about missing files appears at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from ...errors import ModelError
from ...files import open_to_read
from ...records import NANOGPT_FILE, ModelSource
from .hub import HUB_OWNER, HubFiles, cached_name

PATH = "model.path"
LITGPT_WEIGHTS, LITGPT_CONFIG = "lit_model.pth", "model_config.yaml"
MERGE = "merge it with peft's model.merge_and_unload(), then save_pretrained(DIR)"


class ModelFiles(Protocol):
    """The files of a Hugging Face model; ``key`` and ``value`` name it in errors.

    ``unreachable`` says why the hub could not be asked for a file; None: no lookup has failed so far.
    """

    key: str
    value: str
    unreachable: str | None

    def find(self, name: str) -> Path | None:
        """Return the path of a file of the model, None if it has no file of that name."""
        ...

    def absent(self, what: str) -> ModelError:
        """Return the error that says that ``what`` is needed and missing."""
        ...


class LocalFiles:
    """The files of a model in a local directory. Implements `ModelFiles`."""

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
    """Check that the checkpoint of ``model=resume`` exists.

    Raises:
        ModelError: it does not.
    """
    nanogpt_file(source.out_dir, source.file)


def find_hf(source: ModelSource) -> None:
    """Check that the model of ``model=hf`` or ``model=gpt2`` exists; from the hub this downloads its ``config.json``.

    Raises:
        ModelError: it does not.
    """
    config_of(files_of(source))


def find_llmc(source: ModelSource) -> None:
    """Check that the ``.bin`` of ``model=llmc`` exists.

    Raises:
        ModelError: it does not.
    """
    llmc_file(source.path or "")


def find_litgpt(source: ModelSource) -> None:
    """Check that the weights and the config of ``model=litgpt`` exist.

    Raises:
        ModelError: they do not.
    """
    litgpt_directory(source.path or "")


def files_of(source: ModelSource) -> ModelFiles:
    """Return the files of ``model=hf``, or of ``model=gpt2`` and its larger versions.

    Raises:
        ModelError: ``model.path`` is neither a directory nor a hub id, or ``model.revision`` is set for a directory.
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
    """Return the path of the model's ``config.json``.

    Raises:
        ModelError: there is none.
    """
    if (path := files.find("config.json")) is None:
        if files.find("adapter_config.json") is not None:
            raise ModelError(files.key, files.value, f"is a PEFT adapter without its model; {MERGE}")
        raise files.absent("config.json")
    return path


def llmc_file(name: str) -> Path:
    """Return the path of the llm.c checkpoint ``name``.

    Raises:
        ModelError: there is no such file.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        there = some_of(sorted(found.name for found in path.glob("*.bin")))
        raise ModelError(PATH, name, f"is a directory; give a .bin that llm.c wrote{f', such as {there}' if there else ''}")
    if not path.exists():
        raise ModelError(PATH, name, f"no such file in {Path.cwd()}; give a .bin that llm.c wrote, such as gpt2_124M.bin")
    return path


def litgpt_directory(name: str) -> Path:
    """Return the path of the LitGPT checkpoint directory ``name``.

    Raises:
        ModelError: there is no such directory, or it lacks the weights or the config.
    """
    directory = Path(name).expanduser()
    if not directory.is_dir():
        wanted = "give a checkpoint directory of LitGPT, such as out/pretrain/final"
        raise ModelError(PATH, name, f"{not_a_directory(directory)}; {wanted}")
    if not (directory / LITGPT_WEIGHTS).exists():
        if (directory / f"{LITGPT_WEIGHTS}.lora").exists():
            raise ModelError(PATH, name, f"holds only the weights of LoRA; merge them: litgpt merge_lora {name}")
        inside = some_of(sorted(found.parent.name for found in directory.glob(f"*/{LITGPT_WEIGHTS}")))
        hint = f"; there is one in {inside}" if inside else "; give a checkpoint directory of LitGPT"
        raise ModelError(PATH, name, f"there is no {LITGPT_WEIGHTS} in this directory{hint}")
    if not (directory / LITGPT_CONFIG).exists():
        raise ModelError(
            PATH, name, f"there is no {LITGPT_CONFIG}, which describes the model, beside the weights; copy it, too"
        )
    return directory


def not_a_directory(path: Path) -> str:
    """Describe for an error message a path that should be a directory."""
    return "is a file, not a directory" if path.exists() else f"no such directory in {Path.cwd()}"


def some_of(names: Iterable[str]) -> str:
    """List up to five names for an error message, each cut to 80 characters, and count the rest."""
    each = list(names)
    more = f" and {len(each) - 5:,} more" if len(each) > 5 else ""
    return f"{', '.join(name[:80] for name in each[:5])}{more}"


def nanogpt_file(out_dir: str, name: str = NANOGPT_FILE) -> Path:
    """Return the path of the checkpoint ``name`` in nanoGPT's ``out_dir``.

    Raises:
        ModelError: there is no such file, or ``name`` is not the default and cannot be read.
    """
    directory = Path(out_dir).expanduser()
    path = directory / name
    if name == NANOGPT_FILE or not directory.is_dir():
        if not path.exists():
            raise _no_checkpoint(directory, out_dir, name)
        return path
    try:
        open_to_read(path).close()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _no_checkpoint(directory, out_dir, name) from error
    except OSError as error:  # the directory is there, so the name is at fault
        raise ModelError("model.file", name, f"cannot be read: {error.strerror}; give a file in {out_dir}") from error
    return path


def _no_checkpoint(directory: Path, out_dir: str, name: str) -> ModelError:
    if directory.is_dir():
        if beside := some_of(sorted(found.name for found in directory.glob("*.pt"))):
            return ModelError("model.file", name, f"is not in {out_dir}; there: {beside}")
        if name != NANOGPT_FILE:
            return ModelError("model.file", name, f"is not in {out_dir}, nor is any other *.pt")
    others = sorted(str(found.parent) for found in Path().glob(f"*/{NANOGPT_FILE}"))
    hint = f"; there is one in {', '.join(others[:5])}" if others else "; give the out_dir of nanoGPT's train.py"
    if directory.is_dir():
        return ModelError("model.out_dir", out_dir, f"there is no {NANOGPT_FILE} in this directory{hint}")
    return ModelError("model.out_dir", out_dir, f"{not_a_directory(directory)}{hint}")
