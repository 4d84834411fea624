"""Find the files of a model on the Hugging Face hub, through the hub library and its cache."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ...errors import ModelError

HUB_OWNER = "openai-community"

PROBE_SECONDS = 1.5
"""How long to wait for the first connection to the hub."""

REFUSED_SECONDS = 1.0
"""How long to retry if the connection is refused or the hub's name cannot be resolved."""


class HubFiles:
    """The files of a model on the Hugging Face hub, downloaded through the hub library's cache. Implements `ModelFiles`.

    Args:
        repo: the model's id on the hub.
        key, value: name the model in errors.
        revision: a branch, tag or commit; None: the main branch.
    """

    def __init__(self, repo: str, key: str, value: str, revision: str | None = None) -> None:
        self.key, self.value = key, value
        self.unreachable: str | None = None
        self._repo, self._revision = repo, revision
        # The library retries five times with growing waits. That suits a busy hub, but takes half a minute without a network.
        probe = _Probe(_constants())
        self._hub = _hub()
        self._down = probe.failure()

    def find(self, name: str) -> Path | None:
        errors = self._hub.errors
        try:
            fetched = self._hub.hf_hub_download(
                self._repo,
                name,
                revision=self._revision,
                library_name="gptsweep",
                local_files_only=self._down is not None,
            )
            return Path(fetched)
        except errors.LocalEntryNotFoundError as error:
            if self._hub.try_to_load_from_cache(self._repo, name, revision=self._revision) is self._hub._CACHED_NO_EXIST:
                return None  # the cache records that the hub does not have the file
            offline = self._hub.constants.HF_HUB_OFFLINE
            self.unreachable = (
                "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({self._down or _cause(error)})"
            )
            return None
        except errors.EntryNotFoundError:
            return None
        except errors.RevisionNotFoundError as error:
            what = f"{self._repo} has no such branch, tag or commit; https://huggingface.co/{self._repo}/tree/main lists them"
            raise ModelError("model.revision", self._revision, what) from error
        except errors.GatedRepoError as error:
            how = f"ask for access at https://huggingface.co/{self._repo} and log in with: hf auth login"
            raise self._wrong(f"{self._repo} is gated; {how}") from error
        except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
            local = "neither a directory here nor a model on the hub" if self.key == "model.path" else "not a model on the hub"
            raise self._wrong(f"{self._repo} is {local} (a private one needs: hf auth login)") from error
        # Its other errors come from the HTTP library it uses (three so far) or from the disk.
        except Exception as error:
            raise self._wrong(
                f"fetching {name} of {self._repo} failed ({_cause(error)}); run again, or {self._by_hand()}"
            ) from error

    def absent(self, what: str) -> ModelError:
        if self.unreachable:
            local = f"; there is no directory {self._repo} here, either" if self.key == "model.path" else ""
            return self._wrong(f"{what} of {self._repo} is not in the cache and {self.unreachable}; {self._by_hand()}{local}")
        return self._wrong(f"{self._repo} has no {what}")

    def _by_hand(self) -> str:
        directory = self._repo.rpartition("/")[2]
        revision = "" if self._revision is None else f" --revision {self._revision}"
        files = "'*.json' '*.jinja' '*.safetensors' merges.txt"
        fetch = f"hf download {self._repo}{revision} --include {files} --local-dir {directory}"
        return f"fetch it on a machine with network access: {fetch}; then use: model=hf model.path={directory}"

    def _wrong(self, what: str) -> ModelError:
        return ModelError(self.key, self.value, what)


class _Probe:
    """An attempt to connect to the hub, in the background while the hub library is being imported."""

    def __init__(self, constants: Any) -> None:
        url = urlsplit(constants.ENDPOINT)
        self._host, self._port = url.hostname or "", url.port or (80 if url.scheme == "http" else 443)
        self._until = time.monotonic() + PROBE_SECONDS
        self._found: list[str | None] = []
        if constants.HF_HUB_OFFLINE or (getproxies().get(url.scheme) and not proxy_bypass(self._host)):
            self._found.append(None)
        # A name lookup has no timeout, so the thread may outlive the wait for it.
        self._thread = threading.Thread(target=self._connect, daemon=True)
        self._thread.start()

    def failure(self) -> str | None:
        """Return why the hub cannot be reached. None if it can, if a proxy is used, or if offline mode is set."""
        self._thread.join(max(0.0, self._until - time.monotonic()))
        return self._found[0] if self._found else "no answer"

    def _connect(self) -> None:
        last_try = time.monotonic() + REFUSED_SECONDS
        while not self._found:
            try:
                with socket.create_connection((self._host, self._port), timeout=PROBE_SECONDS):
                    self._found.append(None)
            except OSError as error:
                if time.monotonic() >= last_try:
                    self._found.append(f"{type(error).__name__}: {error}")
                else:
                    threading.Event().wait(0.2)


def _constants() -> Any:
    """Import the hub library's settings, which it reads from the environment, with its telemetry turned off."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Imported late: only models from the hub need it.
    import huggingface_hub.constants

    return huggingface_hub.constants


def _hub() -> Any:
    """Import the hub library."""
    _constants()
    # Imported late: it takes half a second, and only models from the hub need it.
    import huggingface_hub
    import huggingface_hub.errors
    import huggingface_hub.file_download

    return huggingface_hub


def _cause(error: BaseException) -> str:
    """Describe the innermost cause of a hub error in one line."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return f"{type(error).__name__}: {error}".strip().splitlines()[0].removesuffix(": ")


def cached_name(name: str) -> str:
    """Return the hub id of one of OpenAI's GPT-2 models.

    nanoGPT downloads them by their old ids. If only a copy under the old id is cached, that id is used, to avoid a download.
    """
    cached = _hub().try_to_load_from_cache
    current = f"{HUB_OWNER}/{name}"
    has_old = isinstance(cached(name, "model.safetensors"), str) and isinstance(cached(name, "config.json"), str)
    return name if has_old and not isinstance(cached(current, "model.safetensors"), str) else current
