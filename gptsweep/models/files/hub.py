"""The files of a model on the Hugging Face hub, through the hub library and its cache."""

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
"""How long to wait for a first connection to the hub."""

REFUSED_SECONDS = 1.0
"""How long to try again where the connection is refused, or the hub's name unknown."""


class HubFiles:
    """The model's files on the Hugging Face hub, through the hub library's cache.

    Args:
        repo: the model's id.
        key, value: name the model in errors.
        revision: a branch, tag or commit; None: the main branch.
    """

    def __init__(self, repo: str, key: str, value: str, revision: str | None = None) -> None:
        self.key, self.value = key, value
        self.unreachable: str | None = None
        self._repo, self._revision = repo, revision
        # The library tries five times with longer and longer waits: right for a hub that stumbles, half a minute for none.
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
                return None  # the hub said so when it was last asked
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
        revision = "" if self._revision is None else f" --revision {self._revision}"
        files = "'*.json' '*.jinja' '*.safetensors' merges.txt"
        fetch = f"hf download {self._repo}{revision} --include {files} --local-dir {directory}"
        return f"fetch it on a machine with network: {fetch}; then use: model=hf model.path={directory}"

    def _wrong(self, what: str) -> ModelError:
        return ModelError(self.key, self.value, what)


class _Probe:
    """An attempt to connect to the hub, made in the background while its library is imported."""

    def __init__(self, constants: Any) -> None:
        url = urlsplit(constants.ENDPOINT)
        self._host, self._port = url.hostname or "", url.port or (80 if url.scheme == "http" else 443)
        self._until = time.monotonic() + PROBE_SECONDS
        self._found: list[str | None] = []
        if constants.HF_HUB_OFFLINE or (getproxies().get(url.scheme) and not proxy_bypass(self._host)):
            self._found.append(None)
        # A name lookup has no time limit, so the thread may outlive the wait for it.
        self._thread = threading.Thread(target=self._connect, daemon=True)
        self._thread.start()

    def failure(self) -> str | None:
        """Why no connection can be made; None where one can, a proxy stands between, or none is wanted."""
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
    """The settings of the hub library, which it reads from the environment at import; its telemetry is off."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Imported late: only models from the hub need it.
    import huggingface_hub.constants

    return huggingface_hub.constants


def _hub() -> Any:
    """The hub library."""
    _constants()
    # Imported late: it costs half a second that only models from the hub need.
    import huggingface_hub
    import huggingface_hub.errors
    import huggingface_hub.file_download

    return huggingface_hub


def _cause(error: BaseException) -> str:
    """The innermost reason of a hub error, in one line."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return f"{type(error).__name__}: {error}".strip().splitlines()[0].removesuffix(": ")


def cached_name(name: str) -> str:
    """Hub id of one of OpenAI's models. nanoGPT fetches them by their old ids, and what is cached so is not fetched again."""
    cached = _hub().try_to_load_from_cache
    current = f"{HUB_OWNER}/{name}"
    has_old = isinstance(cached(name, "model.safetensors"), str) and isinstance(cached(name, "config.json"), str)
    return name if has_old and not isinstance(cached(current, "model.safetensors"), str) else current
