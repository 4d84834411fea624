"""Models by name or path: the files of a Hugging Face model in a directory here, or on the hub."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ...errors import ModelError
from ...records import ModelSource
from ..checkpoint import Checkpoint
from .hf import LocalFiles, ModelFiles, open_hf
from .tokenizers import GPT2Tokenizer

HUB_OWNER = "openai-community"

PROBE_SECONDS = 2.0
"""How long to try for a first connection to the hub."""


def open_path(source: ModelSource) -> Checkpoint:
    """``model=hf``: a directory, or a model on the hub."""
    return open_hf(_files_at(source.path or ""))


def open_gpt2(source: ModelSource) -> Checkpoint:
    """``model=gpt2`` and its larger sisters, from the hub."""
    return open_hf(HubFiles(_cached_name(source.name), "model", source.name), GPT2Tokenizer())


def _files_at(path: str) -> ModelFiles:
    directory = Path(path).expanduser()
    if directory.is_dir():
        return LocalFiles(directory, "model.path", path)
    if directory.exists():
        raise ModelError("model.path", path, "is a file; give the directory that holds config.json and the safetensors")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):
        raise ModelError("model.path", path, f"no such directory in {Path.cwd()}, and not a hub id such as {HUB_OWNER}/gpt2")
    return HubFiles(path, "model.path", path)


class HubFiles:
    """The model's files on the Hugging Face hub, through the hub library's cache."""

    def __init__(self, repo: str, key: str, value: str) -> None:
        self.key, self.value = key, value
        self.unreachable: str | None = None
        self._repo = repo
        self._hub = _hub()
        constants = self._hub.constants
        # The library tries five times with longer and longer waits: right for a hub that stumbles, half a minute for none.
        self._down = None if constants.HF_HUB_OFFLINE else _no_connection(constants.ENDPOINT)

    def find(self, name: str) -> Path | None:
        errors = self._hub.errors
        try:
            fetched = self._hub.hf_hub_download(
                self._repo, name, library_name="gptsweep", local_files_only=self._down is not None
            )
            return Path(fetched)
        except errors.LocalEntryNotFoundError as error:
            if self._hub.try_to_load_from_cache(self._repo, name) is self._hub._CACHED_NO_EXIST:
                return None  # the hub said so when it was last asked
            offline = self._hub.constants.HF_HUB_OFFLINE
            self.unreachable = (
                "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({self._down or _cause(error)})"
            )
            return None
        except errors.EntryNotFoundError:
            return None
        except errors.GatedRepoError as error:
            how = f"ask for access at https://huggingface.co/{self._repo} and log in with: hf auth login"
            raise self._wrong(f"{self._repo} is gated; {how}") from error
        except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
            local = "neither a directory here nor a model on the hub" if self.key == "model.path" else "not a model on the hub"
            raise self._wrong(f"{self._repo} is {local} (a private one needs: hf auth login)") from error
        # The library's other errors are those of whichever HTTP library it uses (three so far), and the disk's.
        except Exception as error:
            raise self._wrong(
                f"fetching {name} of {self._repo} failed ({_cause(error)}); run again, or {self._by_hand()}"
            ) from error

    def absent(self, what: str) -> ModelError:
        if self.unreachable:
            return self._wrong(f"{what} of {self._repo} is not in the cache and {self.unreachable}; {self._by_hand()}")
        return self._wrong(f"{self._repo} has no {what}")

    def _by_hand(self) -> str:
        directory = self._repo.rpartition("/")[2]
        fetch = f"hf download {self._repo} --include '*.json' '*.safetensors' merges.txt --local-dir {directory}"
        return f"fetch it on a machine with network: {fetch}; then use: model=hf model.path={directory}"

    def _wrong(self, what: str) -> ModelError:
        return ModelError(self.key, self.value, what)


def _no_connection(endpoint: str) -> str | None:
    """Why no connection to ``endpoint`` can be made within two seconds; None where one can, or a proxy stands between."""
    url = urlsplit(endpoint)
    host, port = url.hostname or "", url.port or (80 if url.scheme == "http" else 443)
    if getproxies().get(url.scheme) and not proxy_bypass(host):
        return None
    found: list[str | None] = []

    def connect() -> None:
        until = time.monotonic() + PROBE_SECONDS
        while not found:
            try:
                with socket.create_connection((host, port), timeout=PROBE_SECONDS):
                    found.append(None)
            except OSError as error:
                if time.monotonic() + 0.2 > until:
                    found.append(f"{type(error).__name__}: {error}")
                else:
                    threading.Event().wait(0.2)

    thread = threading.Thread(target=connect, daemon=True)  # looking a name up knows no time limit
    thread.start()
    thread.join(PROBE_SECONDS)
    return found[0] if found else "no answer"


def _hub() -> Any:
    """The hub library, with its telemetry off."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Imported late: it costs a quarter of a second that only models from the hub need, and reads its settings at import.
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.errors

    return huggingface_hub


def _cause(error: BaseException) -> str:
    """The innermost reason of a hub error, in one line."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return f"{type(error).__name__}: {error}".strip().splitlines()[0].removesuffix(": ")


def _cached_name(name: str) -> str:
    """Hub id of one of OpenAI's models. nanoGPT fetches them by their old ids, and what is cached so is not fetched again."""
    cached = _hub().try_to_load_from_cache
    current = f"{HUB_OWNER}/{name}"
    has_old = isinstance(cached(name, "model.safetensors"), str) and isinstance(cached(name, "config.json"), str)
    return name if has_old and not isinstance(cached(current, "model.safetensors"), str) else current
